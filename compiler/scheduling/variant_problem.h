// A variant's operations as a scheduling problem, on plain structures, and a schedule written back into them.
#pragma once

#include "compiler/inputs/machine.h"
#include "compiler/scheduling/problem.h"
#include "plans/plan.h"

namespace ds {

/// The variant's operations as a problem of one job, under these conditions.
Problem problem_of(const Variant& variant, const Conditions& conditions);

/// Releases, slowdowns and hand-overs of the tasks of one request, by their roles. One without loads looks
/// nothing up and starts at 0.
void apply_conditions(const Conditions& conditions, Problem& problem);

/// Starts, durations (with the slowdowns), waits (the schedule's barriers are some), makespan, bound and
/// proof of a schedule of that problem; operations in the order of their starts.
void apply_schedule(const Schedule& schedule, Variant& variant);

}  // namespace ds
