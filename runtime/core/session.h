// A session runs requests of one receiver by a plan: it owns the memory, streams and events that any of the
// plan's variants needs, so that a request allocates nothing once its transfers and kernels start.
#pragma once

#include <atomic>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "plans/plan.h"
#include "runtime/backends/backend.h"
#include "runtime/core/gate.h"
#include "runtime/core/link_estimate.h"
#include "runtime/core/op_calls.h"
#include "runtime/core/request.h"
#include "runtime/core/segments.h"
#include "runtime/core/variant_runner.h"
#include "runtime/model/maps.h"
#include "support/status.h"

namespace ds {

/// Whether `maps` has all maps that the receiver applies in any of the plan's variants. kInvalidArgument:
/// null, but the plan needs them; kMismatch: of another width; kNotFound: without one of them. That they are
/// the very ones that the plan names is MapSet::check_plan()'s to say.
Status check_maps(const Plan& plan, const MapSet* maps);

class Session {
 public:
  /// `model` must have the plan's shape (kMismatch). kExhausted: the caches do not fit. `backend`, `model`
  /// and `plan` outlive the session; `maps`, where the plan needs them (check_maps()), are copied.
  ///
  /// `plain_cuts`: aligned variants run without their maps, wherever these are applied: the receiver's align
  /// ops do nothing, and hidden states are read as the sender has them. Answers are then not those that the
  /// plan's losses were measured on.
  static Result<std::unique_ptr<Session>> create(Backend& backend, DeviceModel& model, const Plan& plan,
                                                 const SessionLimits& limits, const MapSet* maps = nullptr,
                                                 bool plain_cuts = false);
  ~Session();

  /// Touches weights, kernels and, where that takes under a tenth of a second, all memory, so that the first
  /// request is as fast as the next.
  Status warm_up();

  /// Runs one request. A missing, damaged or foreign entry is no error: it is counted (Answer::cache, miss)
  /// and the full prefill answers. Errors: tokens outside the vocabulary or the limits, a call while another
  /// thread's, or the one whose on_token this is, still runs (kInvalidArgument); a kernel that fails,
  /// whatever the way, with the op and its layer (kUnavailable: the device is lost); a first logit that is
  /// not finite (kInternal), and where the host sees the logits of further tokens (Backend::host_visible())
  /// also of these.
  Result<Answer> run(const Request& request);

  /// Bytes per second, from the transfers of requests so far; 0: none yet.
  int64_t measured_link_rate() const { return link_estimate_.rate(); }

  /// Answers that a gate has looked at, and those that it threw away, so far.
  int64_t gate_checks() const { return gate_checks_; }
  int64_t gate_alarms() const { return gate_alarms_; }

  /// Logits of the last run's first token: `vocab` values, valid until the next run.
  std::span<const float> first_logits() const {
    return {first_logits_, static_cast<size_t>(plan_.shape.vocab)};
  }

  /// Positions of the context that the last run has selected and recomputed, ascending; empty where its
  /// variant selects none. Valid until the next run.
  std::span<const int32_t> selected() const { return {selected_, static_cast<size_t>(selected_count_)}; }

 private:
  Session(Backend& backend, DeviceModel& model, const Plan& plan, const SessionLimits& limits,
          bool plain_cuts);
  Status reserve();
  Result<Answer> answer(const Request& request);
  /// What was published for the request, opened and checked. Every error is a miss.
  Result<Segments> open_segments(const Request& request, const Variant& variant) const;
  /// False: what the store has is not all there or not right, `miss` says why.
  Result<bool> execute(const Variant& variant, const Request& request, Segments* segments, int64_t start,
                       Answer& answer, Status& miss);
  Status check_gate(const Gate& gate, const Variant& variant, int64_t n, Answer& answer);
  /// From the first token, which has been chosen, to the last.
  Status decode(const Request& request, Sampler& sampler, Answer& answer);

  Backend& backend_;
  DeviceModel& model_;
  const Plan& plan_;
  SessionLimits limits_;
  bool plain_cuts_ = false;
  DeviceMaps maps_;
  std::string entry_maps_[kMapForms];  // entry_map() of the plan's maps, by form

  std::vector<std::unique_ptr<DeviceMemory>> caches_, hidden_;  // OpMemory's
  std::vector<std::byte*> cache_rows_, hidden_rows_;            // their addresses
  std::unique_ptr<DeviceMemory> positions_;                     // int32 each: what a select op has chosen
  std::unique_ptr<Workspace> workspace_;
  std::vector<int32_t> ids_;  // context and suffix, together
  std::unique_ptr<VariantRunner> runner_;
  Choice first_choice_;  // of the running request's first token
  // What comes back from the device, in memory that it can write by itself.
  std::unique_ptr<DeviceMemory> results_;
  float* first_logits_ = nullptr;  // [vocab]
  float* step_logits_ = nullptr;   // [vocab], of the token decoded last; null: only the device has them
  int32_t* next_id_ = nullptr;     // the token chosen last
  int32_t* selected_ = nullptr;    // the first selected_count_: positions_ of the last run
  int64_t selected_count_ = 0;

  std::unique_ptr<KeyDeviation> key_deviation_;
  int64_t gate_checks_ = 0, gate_alarms_ = 0;

  LinkEstimate link_estimate_;
  std::atomic<bool> running_{false};
};

}  // namespace ds
