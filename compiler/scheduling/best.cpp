#include <algorithm>
#include <numeric>

#include "compiler/scheduling/heads_tails.h"
#include "compiler/scheduling/list_schedule.h"
#include "compiler/scheduling/schedulers.h"

namespace ds {
namespace {

/// Ranks by descending key; the problem's order where keys are equal.
std::vector<int64_t> rank_by(const std::vector<int64_t>& key) {
  std::vector<int32_t> order(key.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return key[static_cast<size_t>(a)] > key[static_cast<size_t>(b)];
  });
  std::vector<int64_t> rank(key.size());
  for (size_t k = 0; k < order.size(); ++k) rank[static_cast<size_t>(order[k])] = static_cast<int64_t>(k);
  return rank;
}

/// Ranks from scheduling backward in time: what the reversed problem starts last goes first. It knows, unlike
/// tails, that kernels share a stream.
std::vector<int64_t> rank_reversed(const Problem& p) {
  Problem r = p;
  for (Task& t : r.tasks) {
    t.after.clear();
    t.release_ns = 0;
  }
  for (Job& j : r.jobs) j.arrival_ns = 0;
  for (size_t i = 0; i < p.tasks.size(); ++i)
    for (int32_t w : p.tasks[i].after)
      r.tasks[static_cast<size_t>(w)].after.push_back(static_cast<int32_t>(i));
  std::vector<int32_t> all(p.tasks.size());
  std::iota(all.begin(), all.end(), 0);
  PartialSchedule partial = empty_schedule(r);
  list_schedule(r, all, rank_by(tails(r)), 0, partial);
  for (size_t i = 0; i < p.tasks.size(); ++i) partial.start_ns[i] += p.tasks[i].duration_ns;
  return rank_by(partial.start_ns);
}

/// Loads ranked by one, kernels by the other.
std::vector<int64_t> mix(const Problem& p, const std::vector<int64_t>& loads,
                         const std::vector<int64_t>& kernels) {
  std::vector<int64_t> rank(p.tasks.size());
  for (size_t i = 0; i < p.tasks.size(); ++i)
    rank[i] = p.tasks[i].role == TaskRole::kCompute ? kernels[i] : loads[i];
  return rank;
}

}  // namespace

Result<Schedule> schedule_best(const Problem& p) {
  std::vector<int64_t> e_first = rank_loads(p, TaskRole::kLoadE), kv_first = rank_loads(p, TaskRole::kLoadKv);
  std::vector<int64_t> by_tail = rank_by(tails(p)), reversed = rank_reversed(p);
  const std::vector<int64_t> ranks[] = {
      e_first, mix(p, e_first, by_tail), kv_first, mix(p, kv_first, by_tail),
      by_tail, mix(p, by_tail, e_first), reversed, mix(p, reversed, by_tail)};

  std::vector<std::vector<int32_t>> job_orders = {jobs_by_arrival(p)};
  if (p.jobs.size() > 1) {
    std::vector<int64_t> work(p.jobs.size(), 0);
    for (const Task& t : p.tasks) work[static_cast<size_t>(t.job)] += t.duration_ns;
    std::vector<int32_t> by_work = job_orders[0];
    std::stable_sort(by_work.begin(), by_work.end(), [&](int32_t a, int32_t b) {
      return work[static_cast<size_t>(a)] < work[static_cast<size_t>(b)];
    });
    job_orders.push_back(by_work);
  }

  Schedule best;
  auto offer = [&](std::vector<int64_t> start) {
    int64_t cost = cost_of(p, start);
    if (!best.start_ns.empty() && cost >= best.cost_ns) return;
    best.start_ns = std::move(start);
    best.cost_ns = cost;
  };
  for (const auto& rank : ranks) {
    for (const auto& jobs : job_orders) {
      PartialSchedule partial = empty_schedule(p);
      for (int32_t job : jobs) list_schedule(p, tasks_of(p, job), rank, 0, partial);
      offer(std::move(partial.start_ns));
    }
    if (p.jobs.size() < 2) continue;
    PartialSchedule mixed = empty_schedule(p);
    std::vector<int32_t> all(p.tasks.size());
    std::iota(all.begin(), all.end(), 0);
    list_schedule(p, all, rank, 0, mixed);
    offer(std::move(mixed.start_ns));
  }
  return best;
}

}  // namespace ds
