// A variant's operations as a scheduling problem, on plain structures, and a schedule written back into them.
#pragma once

#include "compiler/inputs/machine.h"
#include "compiler/scheduling/problem.h"
#include "plans/plan.h"

namespace ds {

/// The variant's operations as a problem of one job. A variant without loads looks nothing up and starts at
/// 0; otherwise `releases` hold.
Problem problem_of(const Variant& variant, const Releases& releases);

/// Starts, waits (the schedule's barriers are some), makespan, bound and proof of a schedule of that problem;
/// operations in the order of their starts.
void apply_schedule(const Schedule& schedule, Variant& variant);

}  // namespace ds
