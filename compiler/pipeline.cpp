#include "compiler/pipeline.h"

#include "compiler/emit/convert.h"
#include "compiler/emit/session.h"
#include "compiler/passes.h"
#include "compiler/policy/build_reuse.h"
#include "compiler/scheduling/schedulers.h"
#include "mlir/IR/Verifier.h"
#include "mlir/Pass/PassManager.h"
#include "mlir/Transforms/Passes.h"
#include "plans/plan_file.h"
#include "support/clock.h"

namespace ds {
namespace {

class Stopwatch {
 public:
  /// Nanoseconds since the last call.
  int64_t lap() {
    const int64_t now = now_ns();
    return now - std::exchange(last_, now);
  }

 private:
  int64_t last_ = now_ns();
};

}  // namespace

Result<PipelineOutput> run_pipeline(const Plan& head, std::span<const ChosenVariant> chosen,
                                    const PipelineOptions& options) {
  DS_ASSIGN(const SchedulerTraits* scheduler, find_scheduler(options.scheduler));
  PipelineOutput out;
  Stopwatch watch;
  MlirSession session;
  mlir::OpBuilder b(&session.context());
  auto loc = b.getUnknownLoc();
  mlir::OwningOpRef<mlir::ModuleOp> module(mlir::ModuleOp::create(loc));
  b.setInsertionPointToStart(module->getBody());
  plan::FileOp file = build_file(b, loc, head);
  b.setInsertionPointToStart(&file.getBody().front());
  for (const ChosenVariant& c : chosen) build_reuse_plan(b, loc, c.variant, head.shape.layers, c.fallback);
  if (mlir::failed(mlir::verify(*module))) return session.failure(Code::kInternal, "building the tiling");

  // The order matters: loads are left out before anything is scheduled, and each phase is verified before
  // the next one relies on it.
  auto run = [&](auto add) -> Status {
    mlir::PassManager passes(&session.context());
    add(passes);
    if (mlir::succeeded(passes.run(*module))) return ok_status();
    return session.failure(Code::kInternal, "lowering the tiling");
  };
  DS_TRY(run([&](mlir::PassManager& passes) {
    passes.addPass(create_reuse_verify_tiling());
    if (options.emit == "reuse") return;
    passes.addPass(create_convert_reuse_to_plan());
    if (!scheduler->whole_entry)
      passes.addPass(mlir::createCSEPass());  // loads that nothing waits for are dead
    passes.addPass(create_plan_verify_lowered());
    if (options.emit != "plan")
      passes.addPass(create_plan_materialize_durations(options.machine, options.map_rank));
  }));
  out.lower_ns = watch.lap();
  if (options.emit == "schedule" || options.emit == "flatbuffer") {
    DS_TRY(run([&](mlir::PassManager& passes) {
      passes.addPass(create_plan_schedule(options.scheduler, options.machine.releases()));
      passes.addPass(create_plan_verify_schedule());
    }));
    out.schedule_ns = watch.lap();
  }
  if (options.emit != "flatbuffer") {
    out.text = print_module(*module);
    return out;
  }
  DS_ASSIGN(out.plan, export_file(*module->getOps<plan::FileOp>().begin()));
  DS_TRY(verify_plan(*out.plan, "the compiled plan"));
  out.emit_ns = watch.lap();
  return out;
}

}  // namespace ds
