// What no schedule can beat: the pieces of which the bounds of a problem and of a search's nodes are made.
#pragma once

#include <cstdint>
#include <vector>

#include "compiler/scheduling/problem.h"

namespace ds {

/// What must lie before and behind each task in every schedule.
struct HeadsTails {
  std::vector<int64_t> head;  // no schedule starts the task earlier
  std::vector<int64_t> tail;  // at least so much time lies between its end and its job's end
};
/// The longest paths; for up to kAncestorLimit tasks also the work of all ancestors and descendants per
/// stream, in O(tasks^2 / 64) per wait.
HeadsTails heads_and_tails(const Problem& problem);
constexpr size_t kAncestorLimit = 8192;

/// The longest path behind each task (of its job or another one's); O(tasks + waits).
std::vector<int64_t> tails(const Problem& problem);

/// No makespan is less: each stream's work from its first release, and what it loses beside the others.
/// O(tasks); 0 for other objectives.
int64_t busy_bound(const Problem& problem);

/// Task indices such that each stands behind those that it waits for.
std::vector<int32_t> topological_order(const Problem& problem);

/// One task, or all tasks of one job, on a single stream.
struct StreamWork {
  int64_t head = 0, work = 0, tail = 0;
};
/// Least possible largest end + tail on one stream (Jackson's rule, preemptive: the released task with the
/// longest tail runs). Sorts its argument; O(t log t).
int64_t one_machine_bound(std::vector<StreamWork>& tasks);

/// Least possible sum over jobs of their ends. `alone[j]`: job j ends no earlier; `on_stream[s][j]`: its work
/// there (work < 0: it has no task there), whose tail follows on its last task on the stream.
int64_t sum_of_ends_bound(const std::vector<int64_t>& alone,
                          const std::vector<std::vector<StreamWork>>& on_stream);

}  // namespace ds
