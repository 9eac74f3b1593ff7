#include "compiler/scheduling/preload.h"

#include <algorithm>

#include "compiler/scheduling/ranks.h"

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
  Priorities by{.rank = rank_loads(p, first), .turn = {}, .phase = job_turns(p, jobs_by_arrival(p))};
  for (size_t i = 0; i < p.tasks.size(); ++i)
    by.phase[i] = 2 * by.phase[i] + (p.tasks[i].role == TaskRole::kCompute ? 1 : 0);
  DS_ASSIGN(Schedule s, dispatch(p, by, name));

  // Streams run in order, so it is enough that each one's first kernel of a job waits for each one's last
  // load of the job.
  size_t streams = p.streams.size();
  std::vector<int32_t> last_load(p.jobs.size() * streams, -1), first_kernel(p.jobs.size() * streams, -1);
  for (size_t i = 0; i < p.tasks.size(); ++i) {
    const Task& t = p.tasks[i];
    size_t at = static_cast<size_t>(t.job) * streams + static_cast<size_t>(t.stream);
    int32_t& f = first_kernel[at];
    int32_t& l = last_load[at];
    if (t.role == TaskRole::kCompute) {
      if (f < 0 || s.start_ns[i] < s.start_ns[static_cast<size_t>(f)]) f = static_cast<int32_t>(i);
    } else if (l < 0 || s.end_ns[i] >= s.end_ns[static_cast<size_t>(l)]) {
      l = static_cast<int32_t>(i);
    }
  }
  for (size_t j = 0; j < p.jobs.size(); ++j) {
    for (size_t a = j * streams; a < (j + 1) * streams; ++a)
      for (size_t b = j * streams; b < (j + 1) * streams; ++b)
        if (first_kernel[a] >= 0 && last_load[b] >= 0) s.barriers.push_back({first_kernel[a], last_load[b]});
  }
  return s;
}

}  // namespace ds
