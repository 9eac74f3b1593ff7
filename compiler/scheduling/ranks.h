// Orders of tasks and jobs that the schedulers decide by.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "compiler/scheduling/dispatch.h"

namespace ds {

/// Loads of role `first` before those of the other, each in the order of the problem (upward by layer, as
/// lowering lists them); kernels in the order of the problem.
std::vector<int64_t> rank_loads(const Problem& problem, TaskRole first);

/// By descending key; the problem's order where keys are equal.
std::vector<int64_t> rank_by_descending(const std::vector<int64_t>& key);

/// Per task the place of its job in this order of jobs.
std::vector<int32_t> job_turns(const Problem& problem, const std::vector<int32_t>& jobs);

/// Jobs in the order of their arrival; the problem's order where two arrive together.
std::vector<int32_t> jobs_by_arrival(const Problem& problem);

/// One run of the engine as a schedule; kInfeasible, in the scheduler's name, where it gets stuck.
Result<Schedule> dispatch(const Problem& problem, const Priorities& priorities, std::string_view name);

}  // namespace ds
