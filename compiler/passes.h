// The compiler's passes (Passes.td says what each does) and the pipeline that they make.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "compiler/inputs/machine.h"
#include "dialects/plan/PlanDialect.h"
#include "mlir/IR/BuiltinOps.h"
#include "mlir/Pass/Pass.h"

namespace mlir {
class OpPassManager;
}

namespace ds {

/// From `machine` (none: a stand-in for each file's type), and the rank of low-rank maps (0: there are none).
std::unique_ptr<mlir::Pass> create_plan_materialize_durations(std::optional<MachineModel> machine,
                                                              int64_t map_rank);

/// plan-schedule under the conditions of `machine` (none: without any) at each variant's tuned rate.
std::unique_ptr<mlir::Pass> create_plan_schedule(std::string scheduler, std::optional<MachineModel> machine);

#define GEN_PASS_DECL
#include "compiler/Passes.h.inc"

struct PassPipeline {
  std::string scheduler = "best";
  std::optional<MachineModel> machine;  // none: a stand-in
  int64_t map_rank = 0;
  /// Where it ends: after the tiling, the lowering, the schedule.
  enum class End { kReuse, kPlan, kSchedule } end = End::kSchedule;
};
/// From `reuse` as far as it is to go. The order matters: loads that nobody waits for are left out before
/// anything is scheduled, and each phase is verified before the next one relies on it. kInvalidArgument: no
/// such scheduler.
Status add_passes(mlir::OpPassManager& passes, const PassPipeline& pipeline);

/// With ds-opt's names; `machine` is what a pass sees that is run by name.
void register_passes(const std::optional<MachineModel>* machine);

}  // namespace ds
