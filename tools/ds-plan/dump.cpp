// ds-plan dump: a plan as text, JSON, IR or a picture.
#include "tools/ds-plan/actions.h"

#include "runtime/trace/plan_json.h"
#include "runtime/trace/plan_text.h"
#include "support/file.h"

// MLIR text needs the compiler; everything else works without it.
#if defined(DS_HAVE_COMPILER) && __has_include("compiler/emit/emit.h")
#define DS_PLAN_MLIR 1
#include "compiler/emit/emit.h"
#endif

namespace ds {

Status dump(const PlanOptions& o) {
  if (o.json && !o.format.empty() && o.format != "json") {
    return error(Code::kInvalidArgument, "--json contradicts --format {}; give one of them", o.format);
  }
  std::string format = o.json ? "json" : o.format.empty() ? "text" : o.format;
  if (o.all_ops && format != "text") {
    return error(Code::kInvalidArgument, "--all-ops is for --format text only, not {}", format);
  }
  if (!o.variant.empty() && (format == "json" || format == "mlir")) {
    return error(Code::kInvalidArgument, "--variant does not go with --format {}, which shows the whole plan",
                 format);
  }
  DS_ASSIGN(LoadedPlan loaded, load(o.file));
  const Plan& plan = loaded.plan;
  const Variant* variant = nullptr;
  if (!o.variant.empty()) {
    DS_ASSIGN(variant, find_variant(loaded, o.variant));
  }
  if (format == "json") return write_file_atomically(o.output, json_text(plan_to_json(plan)));
  if (format == "mlir") {
#ifdef DS_PLAN_MLIR
    DS_ASSIGN(std::string text, plan_to_mlir(plan));
    return write_file_atomically(o.output, text);
#else
    return error(Code::kUnsupported,
                 "--format mlir needs the compiler, which this ds-plan was built without; build with "
                 "-DDS_COMPILER=ON, or use "
                 "--format text or json");
#endif
  }
  if (format == "text") {
    TextOptions text{o.file, loaded.bytes, loaded.sha256, variant};
    if (o.all_ops) text.max_ops = SIZE_MAX;
    return write_file_atomically(o.output, plan_to_text(plan, text));
  }
  if (variant == nullptr) variant = plan.variants.empty() ? &plan.full_prefill : &plan.variants[0];
  if (variant->makespan_ns == 0) {
    return error(Code::kInvalidArgument,
                 "variant '{}' has no predicted times, so that there is nothing to draw", variant->name);
  }
  return write_file_atomically(o.output, drawn({plan, *variant}, format));
}

}  // namespace ds
