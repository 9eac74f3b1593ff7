#include "compiler/scheduling/ranks.h"
#include "compiler/scheduling/schedulers.h"

namespace ds {

Result<Schedule> schedule_e_first(const Problem& p) {
  return dispatch(p, {rank_loads(p, TaskRole::kLoadE), job_turns(p, jobs_by_arrival(p))}, "e-first");
}

Result<Schedule> schedule_kv_first(const Problem& p) {
  return dispatch(p, {rank_loads(p, TaskRole::kLoadKv), job_turns(p, jobs_by_arrival(p))}, "kv-first");
}

}  // namespace ds
