#include "compiler/scheduling/ir_problem.h"

#include "llvm/ADT/DenseMap.h"

namespace ds {
namespace {

class Builder {
 public:
  explicit Builder(IrProblem& out) : out_(out) {}

  void stream(plan::StreamOp op) {
    streams_[op.getResult()] = static_cast<int32_t>(out_.problem.streams.size());
    out_.problem.streams.push_back(plan::stringifyStreamKind(op.getKind()).str());
  }

  void task(plan::OperationInterface op, int64_t release_ns) {
    Task t;
    t.name = op.label();
    t.role = static_cast<TaskRole>(op.role());
    t.stream = streams_.lookup(op.getStream());
    t.job = static_cast<int32_t>(out_.problem.jobs.size()) - 1;
    t.duration_ns = static_cast<int64_t>(op.getDuration().value_or(0));
    t.release_ns = release_ns;
    for (mlir::Value w : op.getAfter()) t.after.push_back(tasks_.lookup(w));
    tasks_[op->getResult(0)] = static_cast<int32_t>(out_.problem.tasks.size());
    out_.problem.tasks.push_back(std::move(t));
    out_.ops.push_back(op);
  }

 private:
  IrProblem& out_;
  llvm::DenseMap<mlir::Value, int32_t> streams_, tasks_;
};

static_assert(static_cast<int>(plan::Role::load_e) == static_cast<int>(TaskRole::kLoadE));
static_assert(static_cast<int>(plan::Role::compute) == static_cast<int>(TaskRole::kCompute));
static_assert(static_cast<int>(plan::Objective::sum) == static_cast<int>(Objective::kSum));

}  // namespace

IrProblem problem_of(plan::VariantOp variant, int64_t link_release_ns) {
  IrProblem out;
  out.problem.name = variant.getSymName().str();
  out.problem.jobs = {Job{"request", 0}};
  Builder b(out);
  for (mlir::Operation& op : variant.getBody().front()) {
    if (auto stream = mlir::dyn_cast<plan::StreamOp>(op)) b.stream(stream);
    if (auto streamed = mlir::dyn_cast<plan::OperationInterface>(op))
      b.task(streamed, streamed.role() == plan::Role::compute ? 0 : link_release_ns);
  }
  return out;
}

IrProblem problem_of(plan::ProblemOp problem) {
  IrProblem out;
  out.problem.name = problem.getSymName().str();
  out.problem.objective = static_cast<Objective>(problem.getObjective());
  Builder b(out);
  for (mlir::Operation& op : problem.getBody().front()) {
    if (auto stream = mlir::dyn_cast<plan::StreamOp>(op)) b.stream(stream);
    auto job = mlir::dyn_cast<plan::JobOp>(op);
    if (!job) continue;
    out.problem.jobs.push_back({job.getSymName().str(), static_cast<int64_t>(job.getArrival())});
    for (auto task : job.getBody().getOps<plan::TaskOp>())
      b.task(task, static_cast<int64_t>(task.getRelease().value_or(0)));
  }
  return out;
}

mlir::LogicalResult require_durations(const IrProblem& p) {
  for (plan::OperationInterface op : p.ops) {
    if (!op.getDuration())
      return op.emitError() << "'" << op.label()
                            << "' has no duration ('for'); run --plan-materialize-durations";
  }
  return mlir::success();
}

mlir::FailureOr<std::vector<int64_t>> starts_of(const IrProblem& p) {
  std::vector<int64_t> starts;
  if (mlir::failed(require_durations(p))) return mlir::failure();
  for (plan::OperationInterface op : p.ops) {
    if (!op.getAt()) {
      op.emitError() << "'" << op.label()
                     << "' has no start ('at'): illegal for this phase, expected to have been scheduled";
      return mlir::failure();
    }
    starts.push_back(static_cast<int64_t>(*op.getAt()));
  }
  return starts;
}

mlir::LogicalResult report(mlir::Operation* whole, const IrProblem& p, const Fault& fault) {
  auto operation = [&](int32_t i) {
    return plan::OperationInterface(p.ops[static_cast<size_t>(i)]).getOperation();
  };
  mlir::Operation* at = fault.task >= 0 ? operation(fault.task) : whole;
  mlir::InFlightDiagnostic d = at->emitError(fault.message);
  if (fault.other >= 0) d.attachNote(operation(fault.other)->getLoc()) << "the other operation is here";
  return d;
}

}  // namespace ds
