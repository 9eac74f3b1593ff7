// The engine of all schedulers here: start whatever can start, by rank.
#pragma once

#include <cstdint>
#include <vector>

#include "compiler/scheduling/problem.h"

namespace ds {

/// What has been decided so far.
struct PartialSchedule {
  std::vector<int64_t> start_ns;     // per task; -1: not yet
  std::vector<int64_t> stream_free;  // per stream: when it is free again
};
PartialSchedule empty_schedule(const Problem& problem);

/// Adds `tasks`, whose predecessors are among them or already placed, behind what is there: a stream that is
/// free starts the task of smallest rank among those that can start, and idles only while there is none.
/// Nothing starts before `not_before`. O(t log t).
void list_schedule(const Problem& problem, const std::vector<int32_t>& tasks,
                   const std::vector<int64_t>& rank, int64_t not_before, PartialSchedule& partial);

/// Tasks of one job, in the problem's order; `loads`: its loads or its kernels.
std::vector<int32_t> tasks_of(const Problem& problem, int32_t job);
std::vector<int32_t> tasks_of(const Problem& problem, int32_t job, bool loads);

/// Jobs in the order of their arrival; the problem's order where two arrive together.
std::vector<int32_t> jobs_by_arrival(const Problem& problem);

/// Ranks: loads of role `first` before those of the other, each in the order of the problem (upward by layer,
/// as lowering lists them); kernels in the order of the problem.
std::vector<int64_t> rank_loads(const Problem& problem, TaskRole first);

}  // namespace ds
