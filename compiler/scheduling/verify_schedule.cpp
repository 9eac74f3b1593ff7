// plan-verify-schedule closes the phase WHEN: every rule is kept, every stated result is true. It looks at
// the IR alone, whoever wrote the times.
#include "compiler/passes.h"
#include "compiler/scheduling/ir_problem.h"
#include "dialects/reuse/ReuseDialect.h"

namespace ds {

#define GEN_PASS_DEF_PLANVERIFYSCHEDULE
#include "compiler/Passes.h.inc"

namespace {

struct VerifySchedule : impl::PlanVerifyScheduleBase<VerifySchedule> {
  void runOnOperation() final {
    auto walked = getOperation().walk<mlir::WalkOrder::PreOrder>([&](mlir::Operation* op) {
      bool failed = false;
      if (auto variant = mlir::dyn_cast<plan::VariantOp>(op)) {
        failed = mlir::failed(check(variant, problem_of(variant, {}), "makespan", variant.getMakespan(),
                                    variant.getLowerBound(), variant.getProvenOptimal())) ||
                 mlir::failed(check_order(variant));
      } else if (auto problem = mlir::dyn_cast<scheduling::ProblemOp>(op)) {
        failed = mlir::failed(check(problem, problem_of(problem), "cost", problem.getCost(),
                                    problem.getLowerBound(), problem.getProvenOptimal())) ||
                 mlir::failed(check_proof(problem));
      } else {
        return mlir::WalkResult::advance();
      }
      return failed ? mlir::WalkResult::interrupt() : mlir::WalkResult::skip();
    });
    if (walked.wasInterrupted()) signalPassFailure();
  }

  static mlir::LogicalResult check(mlir::Operation* op, const IrProblem& ir, llvm::StringRef what,
                                   std::optional<uint64_t> cost, std::optional<uint64_t> bound,
                                   bool optimal) {
    if (auto fault = find_problem_fault(ir.problem)) return report(op, ir, *fault);
    auto times = times_of(ir);
    if (mlir::failed(times)) return mlir::failure();
    if (auto fault = find_schedule_fault(ir.problem, times->start_ns, times->end_ns))
      return report(op, ir, *fault);
    int64_t found = cost_of(ir.problem, times->end_ns);
    if (cost && static_cast<int64_t>(*cost) != found)
      return op->emitError() << "states " << what << " " << *cost << ", but its start times give " << found;
    if (bound && static_cast<int64_t>(*bound) > found) {
      return op->emitError() << "states lower_bound " << *bound << ", but a schedule of " << found
                             << " is there";
    }
    if (optimal && (!bound || static_cast<int64_t>(*bound) != found)) {
      return op->emitError() << "states proven_optimal, but " << what << " " << found
                             << " is not met by its lower_bound";
    }
    return mlir::success();
  }

  /// A bound that is not from a search can be had again.
  static mlir::LogicalResult check_proof(scheduling::ProblemOp problem) {
    if (problem.getProof() != scheduling::Proof::bound) return mlir::success();
    int64_t bound = lower_bound(problem_of(problem).problem);
    if (static_cast<int64_t>(*problem.getLowerBound()) <= bound) return mlir::success();
    return problem.emitError() << "states proven_optimal by bound, but the problem's bound is " << bound
                               << ", below " << static_cast<int64_t>(*problem.getLowerBound());
  }

  /// The executor runs each stream in the order in which the operations stand.
  static mlir::LogicalResult check_order(plan::VariantOp variant) {
    plan::OperationInterface before;
    for (auto op : variant.getBody().getOps<plan::OperationInterface>()) {
      if (before && *op.getAt() < *before.getAt()) {
        mlir::InFlightDiagnostic d = op.emitError();
        d << "'" << op.label() << "' starts at " << *op.getAt() << " but stands behind '" << before.label()
          << "', which starts at " << *before.getAt() << "; expected the order of starts";
        d.attachNote(before.getLoc()) << "the other operation is here";
        return d;
      }
      before = op;
    }
    return mlir::success();
  }
};

}  // namespace

}  // namespace ds
