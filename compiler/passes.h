// The compiler's passes, in the order in which they run. Each phase ends with a pass that verifies it.
//
//   reuse-verify-tiling        what was chosen is whole: one fall-back, ranges that do not overlap
//   convert-reuse-to-plan      tiles -> transfers, kernels, waits
//   cse                        loads that nothing waits for are dead code (not for `serial`, which moves the
//                              whole entry)
//   plan-verify-lowered        nothing of `reuse` is left; every cache has a writer
//   plan-materialize-durations how long each operation takes, from the machine
//   plan-schedule              when each starts
//   plan-verify-schedule       every rule is kept, and the stated results are true
#pragma once

#include <memory>
#include <string>

#include "compiler/inputs/machine.h"
#include "mlir/Pass/Pass.h"

namespace ds {

std::unique_ptr<mlir::Pass> create_reuse_verify_tiling();
std::unique_ptr<mlir::Pass> create_convert_reuse_to_plan();
std::unique_ptr<mlir::Pass> create_plan_verify_lowered();
/// From `machine`, and the rank of low-rank maps (0: there are none); the form without takes the pass options
/// `machine=FILE`, without it the stand-in machine, and `map-rank=N`.
std::unique_ptr<mlir::Pass> create_plan_materialize_durations();
std::unique_ptr<mlir::Pass> create_plan_materialize_durations(MachineModel machine, int64_t map_rank);
std::unique_ptr<mlir::Pass> create_plan_schedule();
std::unique_ptr<mlir::Pass> create_plan_schedule(std::string scheduler, const Releases& releases);
std::unique_ptr<mlir::Pass> create_plan_verify_schedule();

void register_passes();

}  // namespace ds
