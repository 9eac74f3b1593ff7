// Search through all schedules that can be the best one, for small problems without slowdowns.
#pragma once

#include <cstdint>

#include "compiler/scheduling/dispatch.h"

namespace ds {

constexpr size_t kSearchTasks = 128;  // at most so many

struct SearchResult {
  /// Nothing was left out: where `found` is false, no schedule costs less than was asked for.
  bool exhausted = false;
  bool found = false;
  Times times;  // the best one found
  int64_t cost = 0;
  int64_t nodes = 0;
};

/// Looks for schedules that cost less than `below` (INT64_MAX: any); ends at `good_enough`, or after
/// `max_nodes` nodes. The problem has no slowdowns and at most kSearchTasks tasks.
///
/// A node is the schedule's beginning in the order of starts; a child starts one more task, as early as
/// streams, waits and hand-overs allow, and not before the latest start so far. Some best schedule is of this
/// form: go through any best schedule in the order of its starts, and start each task as early as that
/// allows. Left out are
/// - a task that could not start before another one could have ended: the other one can be put in front of it
///   and delays nothing,
/// - a beginning that another beginning with the same tasks is at least as good as in every respect,
/// - the first task of a job before that of an identical job that stands before it in the problem,
/// - what the bounds (see bounds.h) say cannot cost less.
SearchResult branch_and_bound(const Problem& problem, int64_t below, int64_t good_enough, int64_t max_nodes);

}  // namespace ds
