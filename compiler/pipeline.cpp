#include "compiler/pipeline.h"

#include "compiler/emit/convert.h"
#include "compiler/emit/session.h"
#include "compiler/passes.h"
#include "compiler/policy/build_reuse.h"
#include "compiler/scheduling/schedulers.h"
#include "compiler/stopwatch.h"
#include "mlir/IR/Verifier.h"
#include "mlir/Pass/PassManager.h"
#include "mlir/Transforms/Passes.h"
#include "plans/plan_file.h"

namespace ds {
namespace {

Status add_lowering(mlir::OpPassManager& passes, const PassPipeline& p) {
  DS_ASSIGN(const SchedulerTraits* scheduler, find_scheduler(p.scheduler));
  passes.addPass(createReuseVerifyTiling());
  if (p.end == PassPipeline::End::kReuse) return ok_status();
  passes.addPass(createConvertReuseToPlan({scheduler->loads_first}));
  // Loads that nothing waits for are dead code.
  if (!scheduler->whole_entry) passes.addPass(mlir::createCSEPass());
  passes.addPass(createPlanVerifyLowered());
  if (p.end != PassPipeline::End::kPlan)
    passes.addPass(create_plan_materialize_durations(p.machine, p.map_rank));
  return ok_status();
}

Status add_scheduling(mlir::OpPassManager& passes, const PassPipeline& p) {
  passes.addPass(create_plan_schedule(p.scheduler, p.machine));
  passes.addPass(createPlanVerifySchedule());
  return ok_status();
}

}  // namespace

Status add_passes(mlir::OpPassManager& passes, const PassPipeline& pipeline) {
  DS_TRY(add_lowering(passes, pipeline));
  return pipeline.end == PassPipeline::End::kSchedule ? add_scheduling(passes, pipeline) : ok_status();
}

Result<PipelineOutput> run_pipeline(const Plan& head, std::span<const ChosenVariant> chosen,
                                    const PipelineOptions& options) {
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

  auto run = [&](auto add) -> Status {
    mlir::PassManager passes(&session.context());
    DS_TRY(add(passes));
    if (mlir::succeeded(passes.run(*module))) return ok_status();
    return session.failure(Code::kInternal, "lowering the tiling");
  };
  PassPipeline pipeline{options.scheduler, options.machine, options.map_rank};
  if (options.emit == "reuse") pipeline.end = PassPipeline::End::kReuse;
  if (options.emit == "plan") pipeline.end = PassPipeline::End::kPlan;
  DS_TRY(run([&](mlir::PassManager& passes) { return add_lowering(passes, pipeline); }));
  out.lower_ns = watch.lap();
  if (pipeline.end == PassPipeline::End::kSchedule) {
    DS_TRY(run([&](mlir::PassManager& passes) { return add_scheduling(passes, pipeline); }));
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
