#include "compiler/scheduling/preload.h"

#include <algorithm>

#include "compiler/scheduling/list_schedule.h"

namespace ds {

Result<Schedule> schedule_preloaded(const Problem& p, TaskRole first, std::string_view name) {
  for (const Task& t : p.tasks) {
    if (t.role == TaskRole::kCompute) continue;
    for (int32_t w : t.after) {
      const Task& before = p.tasks[static_cast<size_t>(w)];
      if (before.role != TaskRole::kCompute) continue;
      return error(Code::kInvalidArgument,
                   "'{}' loads everything before it computes, but load '{}' waits for kernel '{}'", name,
                   t.name, before.name);
    }
  }
  Schedule s;
  PartialSchedule partial = empty_schedule(p);
  std::vector<int64_t> rank = rank_loads(p, first);
  int64_t now = 0;
  for (int32_t job : jobs_by_arrival(p)) {
    std::vector<int32_t> loads = tasks_of(p, job, true), kernels = tasks_of(p, job, false);
    auto end_of = [&](int32_t i) {
      return partial.start_ns[static_cast<size_t>(i)] + p.tasks[static_cast<size_t>(i)].duration_ns;
    };
    list_schedule(p, loads, rank, now, partial);
    std::vector<int32_t> last_load(p.streams.size(), -1);
    for (int32_t i : loads) {
      now = std::max(now, end_of(i));
      int32_t& last = last_load[static_cast<size_t>(p.tasks[static_cast<size_t>(i)].stream)];
      if (last < 0 || end_of(i) >= end_of(last)) last = i;
    }
    list_schedule(p, kernels, rank, now, partial);
    // Streams run in order, so it is enough that each one's first kernel waits.
    std::vector<int32_t> first_kernel(p.streams.size(), -1);
    for (int32_t i : kernels) {
      now = std::max(now, end_of(i));
      int32_t& f = first_kernel[static_cast<size_t>(p.tasks[static_cast<size_t>(i)].stream)];
      if (f < 0 || partial.start_ns[static_cast<size_t>(i)] < partial.start_ns[static_cast<size_t>(f)]) f = i;
    }
    for (int32_t f : first_kernel)
      for (int32_t l : last_load)
        if (f >= 0 && l >= 0) s.barriers.push_back({f, l});
  }
  s.start_ns = std::move(partial.start_ns);
  return s;
}

}  // namespace ds
