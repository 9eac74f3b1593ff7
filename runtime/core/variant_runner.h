// Runs a variant: each op on its stream, in the plan's order, with an event wherever one stream waits for
// another. Nothing is decided any more once it has begun.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "runtime/backends/backend.h"
#include "runtime/core/landing.h"
#include "runtime/core/op_calls.h"
#include "runtime/core/segments.h"
#include "support/status.h"

namespace ds {

/// What a run's transfers read.
struct TransferInput {
  Segments* segments = nullptr;  // null: the variant has no transfers
  std::string_view map = {};     // entry_map() of the E that is meant
  int64_t deadline_ns = 0;       // by which all must be there, on now_ns()'s clock; 0: none
};

/// The streams, events and pinned memory of one request at a time.
class VariantRunner {
 public:
  /// `row_bytes`: of the longest row that is sent. `more_commands`: most that the caller enqueues on
  /// compute() between two runs.
  static Result<std::unique_ptr<VariantRunner>> create(Backend& backend, const Plan& plan, int64_t row_bytes,
                                                       int64_t more_commands);
  ~VariantRunner();

  /// Blocks until all ops have run. False: what was to be sent is not all there or not right, `miss` says
  /// why. An error: a kernel has failed, or the device.
  Result<bool> run(const OpCalls& calls, const TransferInput& input, Status& miss);

  /// Of the last run, by op index, on now_ns()'s clock.
  OpTime time(size_t op) const { return {begun_[op]->time_ns(), ended_[op]->time_ns()}; }
  /// Most ops of a variant.
  size_t most_ops() const { return begun_.size(); }
  CommandStream& compute() { return *compute_; }

 private:
  struct Transfer;
  VariantRunner() = default;
  void enqueue(const OpCalls& calls, const TransferInput& input);
  static void run_transfer(void* context, int64_t argument);

  std::unique_ptr<Landing> landing_;
  std::unique_ptr<CommandStream> link_, compute_;
  std::vector<std::unique_ptr<Event>> begun_, ended_;  // by op index
  std::vector<Transfer> transfers_;
  // The link stream's verdict on the run.
  std::atomic<bool> transfer_failed_{false};
  Status transfer_status_;
};

}  // namespace ds
