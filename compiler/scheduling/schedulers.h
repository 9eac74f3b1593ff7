// The schedulers. Each takes a problem that check() accepts and gives a schedule that verify() accepts.
#pragma once

#include <string_view>
#include <vector>

#include "compiler/scheduling/problem.h"

namespace ds {

/// Runs the scheduler of that name, check() before and verify() after it, and fills in cost, lower bound and
/// proof. Without `with_bound` the bound is 0, nothing is proven and `best` takes the better of e-first and
/// kv-first: for comparing many problems. kInvalidArgument: the problem, or a name that is not known.
/// kInfeasible: the scheduler's order contradicts the waits between jobs.
Result<Schedule> schedule(const Problem& problem, std::string_view scheduler, bool with_bound = true);

struct SchedulerTraits {
  std::string_view name;
  Result<Schedule> (*run)(const Problem& problem, bool thorough);
  bool whole_entry;  // moves all of an entry, also what is recomputed: loads that nothing waits for
                     // are left in
  bool loads_first;  // none of its loads may wait for a kernel
};

/// kInvalidArgument names the schedulers that there are. A new one is a row of schedulers.cpp.
Result<const SchedulerTraits*> find_scheduler(std::string_view name);
/// Names, as the command line takes them.
std::vector<std::string_view> scheduler_names();
/// SchedulerTraits::whole_entry and loads_first, by name; false where there is no such scheduler, which
/// schedule() then says.
bool moves_whole_entry(std::string_view scheduler);
bool loads_come_first(std::string_view scheduler);

// Below: times and barriers only. All but `best` minimise nothing; none of them looks at slowdowns.

/// The baseline without overlap. Jobs one after another in the order of their arrival; in each all loads (E,
/// then KV upward), then all kernels. Optimal only where nothing can overlap. Fails (kInvalidArgument) where
/// a load waits for a kernel.
Result<Schedule> schedule_serial(const Problem& problem);

/// As serial, with KV before E. What distinguishes it in practice is that loads which nothing needs have been
/// left out before (--cse), while `serial` moves the whole entry.
Result<Schedule> schedule_kv_preload(const Problem& problem);

/// Overlapped. Jobs in the order of their arrival, on every stream; in each job E first, then KV upward; a
/// stream is never idle while a task of the current job could run on it (a tie: the order of the problem).
/// For one job, optimal where the kernels that wait for E never wait for the link again and the last KV is
/// needed last.
Result<Schedule> schedule_e_first(const Problem& problem);

/// As e-first, with KV before E: the counter-example, good where the group lies on top and is short.
Result<Schedule> schedule_kv_first(const Problem& problem);

/// Cake's order on a fixed tiling. Jobs in the order of their arrival; loads from the last token chunk to the
/// first (upward by layer within a chunk, E and KV alike), kernels from the first chunk to the last (upward
/// within a chunk), neither waiting for the other but where it must. Which cells are loaded and which
/// computed is the policy's choice; Cake's own meeting point is one such choice. Optimal nowhere in
/// particular: with one chunk it is the order of the layers.
Result<Schedule> schedule_cake(const Problem& problem);

/// The two pointers over layers (CacheFlow's order) on a fixed tiling: loads from the top layer downward,
/// kernels from the bottom upward, chunks ascending within a layer. Right where the top is loaded while the
/// bottom is computed and they meet; wrong where the suffix needs the bottom's KV first.
Result<Schedule> schedule_two_pointer(const Problem& problem);

/// Minimises the objective, in steps that end as soon as the lower bound is met:
/// - a portfolio: e-first, kv-first, longest tail first, and the order of the schedule of the reversed
///   problem, each with kernels in the problem's order and by longest tail, for job orders by arrival and by
///   work, jobs kept apart or mixed; the best of them backward and forward again;
/// - local search on the streams' orders (local_search.h);
/// - for up to kSearchTasks tasks without slowdowns, branch and bound (branch_and_bound.h).
/// If not `thorough`, the better of e-first and kv-first, and all orders only where both get stuck. Limits
/// are counted in tasks visited, never in seconds. Never worse than e-first. Optimal where proven_optimal
/// says so: the bound is met, or the search has left nothing out, and then the optimum is the bound. With
/// slowdowns only the former proves anything; idling on purpose, which can then pay, is never tried.
///
Result<Schedule> schedule_best(const Problem& problem, bool thorough = true);

}  // namespace ds
