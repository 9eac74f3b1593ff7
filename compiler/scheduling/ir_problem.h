// The scheduling problem that a plan.variant or a scheduling.problem states.
#pragma once

#include <vector>

#include "compiler/inputs/machine.h"
#include "compiler/scheduling/dispatch.h"
#include "dialects/scheduling/SchedulingDialect.h"

namespace ds {

struct IrProblem {
  Problem problem;
  std::vector<plan::OperationInterface> ops;  // of each task
};

/// One job that arrives at 0, under these conditions. Durations that are not there count as 0.
IrProblem problem_of(plan::VariantOp variant, const Conditions& conditions);
IrProblem problem_of(scheduling::ProblemOp problem);

/// Starts and ends; emits an error at the first operation without a start, or without a duration.
mlir::FailureOr<Times> times_of(const IrProblem& problem);
mlir::LogicalResult require_durations(const IrProblem& problem);

/// Emits a fault at its operation, with a note at the other one.
mlir::LogicalResult report(mlir::Operation* whole, const IrProblem& problem, const Fault& fault);

}  // namespace ds
