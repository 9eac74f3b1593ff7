#include "compiler/scheduling/preload.h"
#include "compiler/scheduling/schedulers.h"

namespace ds {

Result<Schedule> schedule_serial(const Problem& p) {
  return schedule_preloaded(p, TaskRole::kLoadE, "serial");
}

}  // namespace ds
