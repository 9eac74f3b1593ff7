// ds-plan diff: what changed, in words and bytes.
#include "tools/ds-plan/actions.h"

#include "runtime/trace/plan_diff.h"
#include "support/file.h"

namespace ds {

Status diff(const PlanOptions& o, bool& differ) {
  DS_ASSIGN(LoadedPlan a, load(o.files[0]));
  DS_ASSIGN(LoadedPlan b, load(o.files[1]));
  std::vector<PlanChange> changes = diff_plans(a.plan, b.plan);
  differ = !changes.empty();
  if (!o.json) return write_file_atomically("-", plan_diff_text(changes));
  auto file = [](const LoadedPlan& l) { return Json{{"file", l.path}, {"sha256", l.sha256}}; };
  return write_file_atomically("-", json_text({{"schema", "droidspeak.plan_diff"},
                                               {"version", 1},
                                               {"same", changes.empty()},
                                               {"a", file(a)},
                                               {"b", file(b)},
                                               {"changes", plan_diff_json(changes)}}));
}

}  // namespace ds
