// A session runs requests of one receiver by a plan: it owns the memory, streams and events that any of the
// plan's variants needs, so that a request allocates nothing once its transfers and kernels start.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "plans/plan.h"
#include "runtime/backends/backend.h"
#include "runtime/core/gate.h"
#include "runtime/core/landing.h"
#include "runtime/core/link_estimate.h"
#include "runtime/core/sampler.h"
#include "runtime/model/maps.h"
#include "runtime/store/entry.h"
#include "support/status.h"

namespace ds {

struct SessionLimits {
  int64_t context = 0;     // most context tokens of a request
  int64_t suffix = 1;      // most suffix tokens
  int64_t new_tokens = 1;  // most tokens generated
};

struct Request {
  std::span<const int32_t> context;  // n >= 0 tokens
  /// What the sender's entry was published for, where that is more than `context`, its beginning: an entry
  /// serves every request that begins as it does (JoinedText). Empty: `context`.
  std::span<const int32_t> entry;
  std::span<const int32_t> suffix;  // m >= 1 tokens
  Store* store = nullptr;           // where the sender's entry may be; nullptr: do not reuse (kUnused)
  const ModelIdentity* receiver =
      nullptr;       // who answers; a plan for another receiver is a miss. nullptr: not checked
  std::string salt;  // tenant salt of the entry
  // For the choice of a variant: the link's rate in bytes per second (0: what this session's transfers have
  // shown lately; as fast as can be while none have run), and how many other requests wait.
  int64_t link_rate = 0;
  int64_t waiting = 0;
  bool full_prefill = false;  // ignore the variants
  // From the start of run() until the last transfer must be there; later is a miss. 0: no such limit. Noticed
  // while a tensor is read (EntryReader::read_rows) and before the next one; a look-up is not cut short.
  int64_t link_deadline_ns = 0;
  /// Looks at the answer of a variant that reuses something before its first token is chosen; an alarm makes
  /// the full prefill answer. Of this session's plan. nullptr: none.
  const Gate* gate = nullptr;
  Sampling sampling;
  int64_t max_new_tokens = 1;
  std::span<const int32_t> stop_ids;  // generation ends with one of these, which is not part of the answer
  std::function<void(int32_t token)> on_token;  // called as tokens come; may be empty
  /// Asked after on_token: whether this token, which stays part of the answer, is its last. May be empty.
  std::function<bool(int32_t token)> is_last;
};

/// Where the link rate came from that a variant was chosen by.
enum class RateSource : uint8_t { kGiven, kMeasured, kUnknown };

enum class CacheStatus : uint8_t { kUnused, kHit, kMiss };
std::string_view cache_status_name(CacheStatus status);  // "unused", "hit", "miss"

struct Answer {
  std::vector<int32_t> tokens;         // without the stop token
  bool stopped = false;                // ended by a stop token, not by max_new_tokens
  int32_t stop_token = -1;             // which one
  bool ended_by_caller = false;        // ended by Request::is_last
  const Variant* variant = nullptr;    // what ran in the end
  int64_t link_rate = 0, waiting = 0;  // what it was chosen by, besides the context's length
  RateSource rate_source = RateSource::kUnknown;
  CacheStatus cache = CacheStatus::kUnused;
  Status miss;                          // why the cache missed: a fault of the store, or of the entry
  int64_t ttft_ns = 0;                  // tokens in hand -> first token chosen
  int64_t lookup_ns = 0;                // finding and checking the entry
  GateVerdict gate;                     // after an alarm `cache` stays "hit" and the full prefill answers
  int64_t lost_ns = 0;                  // spent before a miss was noticed, or the gate's alarm
  int64_t link_ns = 0, compute_ns = 0;  // busy times of the streams, in the run that gave the answer
  int64_t decode_ns = 0;                // first token -> last token
  int64_t bytes_loaded =
      0;  // tensors moved over the link, including those of an attempt that missed or alarmed
  std::vector<OpTime> op_times;  // of `variant`, by op index
};

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
  struct Transfer;
  Session(Backend& backend, DeviceModel& model, const Plan& plan, const SessionLimits& limits,
          bool plain_cuts);
  Status load_maps(const MapSet& maps);
  Status reserve();
  Status check(const Request& request) const;
  void enqueue(const Variant& variant, const Request& request, EntryReader* entry);
  Result<Answer> answer(const Request& request);
  /// False: what the store has is not all there or not right, `miss` says why.
  Result<bool> execute(const Variant& variant, const Request& request, EntryReader* entry, int64_t start,
                       Answer& answer, Status& miss);
  Status check_gate(const Gate& gate, const Variant& variant, int64_t n, Answer& answer);
  static void run_transfer(void* context, int64_t argument);

  Backend& backend_;
  DeviceModel& model_;
  const Plan& plan_;
  SessionLimits limits_;
  bool plain_cuts_ = false;
  std::map<Cut, std::unique_ptr<DeviceMap>> maps_;  // that align ops apply
  std::string entry_maps_[kMapForms];               // entry_map() of the plan's maps, by form
  int64_t hidden_row_ = 0, kv_row_ = 0;             // bytes

  std::vector<std::unique_ptr<DeviceMemory>> caches_;  // by layer
  std::vector<std::unique_ptr<DeviceMemory>> hidden_;  // by number of hidden buffer in a variant
  std::unique_ptr<DeviceMemory> positions_;            // int32 each: what a select op has chosen
  std::unique_ptr<Workspace> workspace_;
  std::unique_ptr<Landing> landing_;
  std::unique_ptr<CommandStream> link_, compute_;
  std::vector<std::unique_ptr<Event>> begun_, ended_;  // by op index
  std::vector<Transfer> transfers_;
  std::vector<int32_t> ids_;             // context and suffix, together
  Choice first_choice_;                  // of the running request's first token
  std::vector<std::byte*> step_caches_;  // by layer
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
  int64_t deadline_ns_ = 0;  // of the running request's transfers, on now_ns()'s clock; 0: none
  // The link stream's verdict on the running request.
  std::atomic<bool> transfer_failed_{false};
  Status transfer_status_;
};

}  // namespace ds
