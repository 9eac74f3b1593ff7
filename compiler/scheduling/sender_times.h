// When a sender that computes a context as the request comes has shown what of it (docs/stores.md).
#pragma once

#include <cstdint>
#include <vector>

#include "compiler/scheduling/cost_model.h"
#include "compiler/scheduling/problem.h"
#include "plans/plan.h"

namespace ds {

/// Of a sender on such a machine as the cost model's, which computes as publishing does: layer by layer, in
/// each all of the context, kLiveRows at a time.
class SenderTimes {
 public:
  SenderTimes(const CostModel& costs, int64_t tokens);

  /// From when on a transfer can move all of its rows.
  int64_t ready_ns(const Op& transfer, int32_t chunks) const;

 private:
  int64_t tokens_, layers_;
  std::vector<double> within_,
      within_last_;  // a layer, and the last one: until so many pieces of it are there
};

/// Lets the tasks that are transfers wait for it: `ops` are those of the tasks.
void release_by_sender(const SenderTimes& sender, const std::vector<Op>& ops, int32_t chunks,
                       Problem& problem);

}  // namespace ds
