// Registration and verifiers of `scheduling`: form only. Whether a schedule is right is for
// --plan-verify-schedule to say.
#include "dialects/scheduling/SchedulingDialect.h"

#include "llvm/ADT/TypeSwitch.h"
#include "mlir/IR/DialectImplementation.h"

#include "dialects/scheduling/SchedulingDialect.cpp.inc"
#include "dialects/scheduling/SchedulingEnums.cpp.inc"

#define GET_OP_CLASSES
#include "dialects/scheduling/SchedulingOps.cpp.inc"

namespace ds::scheduling {

void SchedulingDialect::initialize() {
  addOperations<
#define GET_OP_LIST
#include "dialects/scheduling/SchedulingOps.cpp.inc"
      >();
}

mlir::LogicalResult ProblemOp::verifyRegions() {
  for (mlir::Operation& op : getBody().front()) {
    if (!mlir::isa<plan::StreamOp, SlowdownOp, JobOp>(op))
      return op.emitOpError() << "is neither a stream, a slowdown nor a job; a problem holds nothing else";
  }
  if (getProof() && !getProvenOptimal())
    return emitOpError() << "says how it was proven ('by'), but not that it was ('proven_optimal')";
  return mlir::success();
}

void TaskOp::getEffects(
    llvm::SmallVectorImpl<mlir::SideEffects::EffectInstance<mlir::MemoryEffects::Effect>>& effects) {
  // As for plan.transfer: what is loaded is for those who wait for it.
  if (getKind() == plan::Role::compute)
    effects.emplace_back(mlir::MemoryEffects::Write::get());
  else
    effects.emplace_back(mlir::MemoryEffects::Allocate::get(), getOperation()->getOpResult(0));
}

mlir::LogicalResult JobOp::verifyRegions() {
  if (static_cast<int64_t>(getArrival()) < 0) {
    return emitOpError() << "arrives at " << static_cast<int64_t>(getArrival())
                         << ", expected 0 or later (times count from 0)";
  }
  for (mlir::Operation& op : getBody().front()) {
    if (!mlir::isa<TaskOp, DoneOp>(op)) return op.emitOpError() << "is no task; a job holds nothing else";
  }
  return mlir::success();
}

}  // namespace ds::scheduling
