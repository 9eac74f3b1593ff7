// What must lie before and behind each task in every schedule.
#pragma once

#include <cstdint>
#include <vector>

#include "compiler/scheduling/problem.h"

namespace ds {

struct HeadsTails {
  std::vector<int64_t> head;  // no schedule starts the task earlier
  std::vector<int64_t> tail;  // at least so much time lies between its end and its job's end
};
/// With the work of all ancestors and descendants per stream; O(tasks^2).
HeadsTails heads_and_tails(const Problem& problem);

/// The longest path behind each task; O(tasks + waits).
std::vector<int64_t> tails(const Problem& problem);

}  // namespace ds
