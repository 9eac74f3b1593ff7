// Improving a schedule by changing the order of tasks on their streams.
#pragma once

#include <cstdint>

#include "compiler/scheduling/dispatch.h"

namespace ds {

/// Moves tasks of critical blocks (tasks that follow on one stream without a gap, on a path that decides a
/// job's end) to the block's other end, takes every move that lowers the cost, and starts again from a
/// slightly shuffled best order when no move does. Ends when the cost is `good_enough` or `visits` tasks have
/// been visited. Deterministic. `times` is a schedule of the problem that costs `cost`; both are replaced.
void improve_orders(const Problem& problem, int64_t good_enough, int64_t visits, Times& times, int64_t& cost);

}  // namespace ds
