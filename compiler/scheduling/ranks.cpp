#include "compiler/scheduling/ranks.h"

#include <algorithm>
#include <numeric>

namespace ds {

std::vector<int64_t> rank_loads(const Problem& p, TaskRole first) {
  std::vector<int64_t> rank(p.tasks.size());
  auto n = static_cast<int64_t>(p.tasks.size());
  for (size_t i = 0; i < p.tasks.size(); ++i) {
    bool behind = p.tasks[i].role != TaskRole::kCompute && p.tasks[i].role != first;
    rank[i] = static_cast<int64_t>(i) + (behind ? n : 0);
  }
  return rank;
}

std::vector<int64_t> rank_by_descending(const std::vector<int64_t>& key) {
  std::vector<int32_t> order(key.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return key[static_cast<size_t>(a)] > key[static_cast<size_t>(b)];
  });
  std::vector<int64_t> rank(key.size());
  for (size_t k = 0; k < order.size(); ++k) rank[static_cast<size_t>(order[k])] = static_cast<int64_t>(k);
  return rank;
}

std::vector<int32_t> jobs_by_arrival(const Problem& p) {
  std::vector<int32_t> jobs(p.jobs.size());
  std::iota(jobs.begin(), jobs.end(), 0);
  std::stable_sort(jobs.begin(), jobs.end(), [&](int32_t a, int32_t b) {
    return p.jobs[static_cast<size_t>(a)].arrival_ns < p.jobs[static_cast<size_t>(b)].arrival_ns;
  });
  return jobs;
}

std::vector<int32_t> job_turns(const Problem& p, const std::vector<int32_t>& jobs) {
  std::vector<int32_t> place(jobs.size()), turn(p.tasks.size());
  for (size_t k = 0; k < jobs.size(); ++k) place[static_cast<size_t>(jobs[k])] = static_cast<int32_t>(k);
  for (size_t i = 0; i < p.tasks.size(); ++i) turn[i] = place[static_cast<size_t>(p.tasks[i].job)];
  return turn;
}

Result<Schedule> dispatch(const Problem& p, const Priorities& priorities, std::string_view name) {
  Dispatcher engine(p);
  Times times;
  if (!engine.run(priorities, times)) {
    return error(Code::kInfeasible, "'{}' finds no schedule for '{}': {}; 'best' finds one", name, p.name,
                 engine.stuck());
  }
  Schedule s;
  s.start_ns = std::move(times.start_ns);
  s.end_ns = std::move(times.end_ns);
  return s;
}

}  // namespace ds
