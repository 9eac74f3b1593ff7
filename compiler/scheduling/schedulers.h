// The schedulers. Each takes a problem that check() accepts and gives a schedule that verify() accepts.
#pragma once

#include <string_view>
#include <vector>

#include "compiler/scheduling/problem.h"

namespace ds {

/// Runs the scheduler of that name ("best", "e-first", "kv-first", "kv-preload", "serial"), check() before
/// and verify() after it, and fills in cost, lower bound and proof; without `with_bound` the bound is 0 and
/// nothing is proven (for searching through many problems). kInvalidArgument: the problem, or a name that is
/// not known.
Result<Schedule> schedule(const Problem& problem, std::string_view scheduler, bool with_bound = true);

/// Names, as the command line takes them.
std::vector<std::string_view> scheduler_names();

// Below: start times and barriers only. Minimise nothing unless they say so.

/// The baseline without overlap. Jobs one after another in the order of their arrival; in each all loads (E,
/// then KV upward), then all kernels. Optimal only where nothing can overlap. Fails (kInvalidArgument) where
/// a load waits for a kernel.
Result<Schedule> schedule_serial(const Problem& problem);

/// As serial, with KV before E. What distinguishes it in practice is that loads which nothing needs have been
/// left out before (--plan-elide-loads), while `serial` moves the whole entry.
Result<Schedule> schedule_kv_preload(const Problem& problem);

/// Overlapped. Jobs in the order of their arrival, on every stream; in each job E first, then KV upward; a
/// stream is never idle while a task of the current job could run on it (a tie: the order of the problem).
/// For one job, optimal where the kernels that wait for E never wait for the link again and the last KV is
/// needed last.
Result<Schedule> schedule_e_first(const Problem& problem);

/// As e-first, with KV before E: the counter-example, good where the group lies on top and is short.
Result<Schedule> schedule_kv_first(const Problem& problem);

/// Minimises the objective over a fixed portfolio: e-first, kv-first, longest tail first, and the order of
/// the schedule of the reversed problem, each with kernels in the problem's order and by longest tail, for
/// job orders by arrival and by work, jobs kept apart or mixed. Never worse than e-first. Optimal where
/// proven_optimal says so, which is not searched for: the bound happens to be met.
Result<Schedule> schedule_best(const Problem& problem);

}  // namespace ds
