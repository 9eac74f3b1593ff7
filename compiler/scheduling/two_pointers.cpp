// Cake and the two pointers over layers: loads from one end, kernels from the other.
#include <algorithm>
#include <numeric>
#include <tuple>

#include "compiler/scheduling/ranks.h"
#include "compiler/scheduling/schedulers.h"

namespace ds {
namespace {

/// Ranks by a key of each task; the problem's order where keys are equal.
template <class Key>
std::vector<int64_t> rank_ascending(const Problem& p, Key key) {
  std::vector<int32_t> order(p.tasks.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return key(p.tasks[static_cast<size_t>(a)]) < key(p.tasks[static_cast<size_t>(b)]);
  });
  std::vector<int64_t> rank(p.tasks.size());
  for (size_t k = 0; k < order.size(); ++k) rank[static_cast<size_t>(order[k])] = static_cast<int64_t>(k);
  return rank;
}

}  // namespace

Result<Schedule> schedule_cake(const Problem& p) {
  auto key = [](const Task& t) {
    return std::tuple(t.role == TaskRole::kCompute ? t.chunk : -t.chunk, t.layer);
  };
  return dispatch(p, {rank_ascending(p, key), job_turns(p, jobs_by_arrival(p))}, "cake");
}

Result<Schedule> schedule_two_pointer(const Problem& p) {
  auto key = [](const Task& t) {
    return std::tuple(t.role == TaskRole::kCompute ? t.layer : -t.layer, t.chunk);
  };
  return dispatch(p, {rank_ascending(p, key), job_turns(p, jobs_by_arrival(p))}, "two-pointer");
}

}  // namespace ds
