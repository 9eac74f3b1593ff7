#include "compiler/scheduling/list_schedule.h"
#include "compiler/scheduling/schedulers.h"

namespace ds {
namespace {

Schedule overlapped(const Problem& p, TaskRole first) {
  PartialSchedule partial = empty_schedule(p);
  std::vector<int64_t> rank = rank_loads(p, first);
  for (int32_t job : jobs_by_arrival(p)) list_schedule(p, tasks_of(p, job), rank, 0, partial);
  Schedule s;
  s.start_ns = std::move(partial.start_ns);
  return s;
}

}  // namespace

Result<Schedule> schedule_e_first(const Problem& p) { return overlapped(p, TaskRole::kLoadE); }
Result<Schedule> schedule_kv_first(const Problem& p) { return overlapped(p, TaskRole::kLoadKv); }

}  // namespace ds
