// ds-plan trace: a run beside its plan.
#include "tools/ds-plan/actions.h"

#include "support/file.h"

namespace ds {

Status trace(const PlanOptions& o) {
  DS_ASSIGN(LoadedPlan loaded, load(o.file));
  DS_ASSIGN(RunRecord record, read_run_record(o.record));
  if (!record.plan_sha256.empty() && record.plan_sha256 != loaded.sha256) {
    return error(
        Code::kMismatch,
        "run record '{}' is of the plan with SHA-256 {}..., but '{}' has {}...; give the plan that was run",
        o.record, record.plan_sha256.substr(0, 16), o.file, loaded.sha256.substr(0, 16));
  }
  Result<const Variant*> variant = find_variant(loaded, record.variant);
  if (!variant.ok()) {
    return error(
        Code::kMismatch,
        "run record '{}' is of variant '{}', which plan '{}' does not have; give the plan that was run",
        o.record, record.variant, o.file);
  }
  DS_TRY(check_record(**variant, record, o.record));
  return write_file_atomically(
      o.output, drawn({loaded.plan, **variant, &record}, o.format.empty() ? "html" : o.format));
}

}  // namespace ds
