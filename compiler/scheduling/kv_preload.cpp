#include "compiler/scheduling/preload.h"
#include "compiler/scheduling/schedulers.h"

namespace ds {

Result<Schedule> schedule_kv_preload(const Problem& p) {
  return schedule_preloaded(p, TaskRole::kLoadKv, "kv-preload");
}

}  // namespace ds
