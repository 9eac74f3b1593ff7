#include "compiler/scheduling/ir_problem.h"

#include "compiler/scheduling/variant_problem.h"
#include "llvm/ADT/DenseMap.h"
#include "llvm/ADT/StringMap.h"
#include "plans/traits.h"

namespace ds {
namespace {

class Builder {
 public:
  explicit Builder(IrProblem& out) : out_(out) {}

  void stream(plan::StreamOp op) {
    streams_[op.getResult()] = static_cast<int32_t>(out_.problem.streams.size());
    out_.problem.streams.push_back(std::string(stream_kind_name(op.getKind())));
  }

  /// All of them at once: the table is as wide as there are classes.
  void slowdowns(scheduling::ProblemOp problem) {
    auto ops = problem.getBody().getOps<scheduling::SlowdownOp>();
    for (auto op : ops) {
      (void)class_of(op.getSlowed());
      (void)class_of(op.getBeside());
    }
    size_t n = out_.problem.classes.size();
    out_.problem.slow_permille.assign(n * n, 0);
    for (auto op : ops) {
      auto at =
          static_cast<size_t>(class_of(op.getSlowed())) * n + static_cast<size_t>(class_of(op.getBeside()));
      out_.problem.slow_permille[at] = static_cast<int64_t>(op.getPermille());
    }
  }

  void task(plan::OperationInterface op, int64_t release_ns) {
    Task t;
    t.name = op.label();
    t.role = static_cast<TaskRole>(op.role());
    t.stream = streams_.lookup(op.getStream());
    t.job = static_cast<int32_t>(out_.problem.jobs.size()) - 1;
    t.duration_ns = static_cast<int64_t>(op.getDuration().value_or(0));
    t.release_ns = release_ns;
    if (auto described = mlir::dyn_cast<plan::VariantOperationInterface>(op.getOperation())) {
      const Op what = described.describe();
      if (traits_of(what).layered) {
        t.layer = what.layer;
        t.chunk = std::max(what.chunk, 0);
      }
    } else if (auto task = mlir::dyn_cast<scheduling::TaskOp>(op.getOperation())) {
      t.layer = static_cast<int32_t>(task.getLayer().value_or(0));
      t.chunk = static_cast<int32_t>(task.getChunk().value_or(0));
      // A class that no slowdown names is as good as none.
      if (auto name = task.getContention()) {
        auto found = classes_.find(*name);
        if (found != classes_.end()) t.contention = found->second;
      }
    }
    for (mlir::Value w : op.getAfter()) t.after.push_back(tasks_.lookup(w));
    tasks_[op->getResult(0)] = static_cast<int32_t>(out_.problem.tasks.size());
    out_.problem.tasks.push_back(std::move(t));
    out_.ops.push_back(op);
  }

 private:
  int32_t class_of(llvm::StringRef name) {
    auto [at, fresh] = classes_.insert({name, static_cast<int32_t>(out_.problem.classes.size())});
    if (fresh) out_.problem.classes.push_back(name.str());
    return at->second;
  }

  IrProblem& out_;
  llvm::DenseMap<mlir::Value, int32_t> streams_, tasks_;
  llvm::StringMap<int32_t> classes_;
};

static_assert(static_cast<int>(plan::Role::load_e) == static_cast<int>(TaskRole::kLoadE));
static_assert(static_cast<int>(plan::Role::compute) == static_cast<int>(TaskRole::kCompute));
static_assert(static_cast<int>(scheduling::Objective::sum) == static_cast<int>(Objective::kSum));
static_assert(static_cast<int>(scheduling::Proof::search) == static_cast<int>(Proof::kSearch));

}  // namespace

IrProblem problem_of(plan::VariantOp variant, const Conditions& conditions) {
  IrProblem out;
  out.problem.name = variant.getSymName().str();
  out.problem.jobs = {Job{"request", 0}};
  Builder b(out);
  for (mlir::Operation& op : variant.getBody().front()) {
    if (auto stream = mlir::dyn_cast<plan::StreamOp>(op)) b.stream(stream);
    if (auto streamed = mlir::dyn_cast<plan::OperationInterface>(op)) b.task(streamed, 0);
  }
  apply_conditions(conditions, out.problem);
  return out;
}

IrProblem problem_of(scheduling::ProblemOp problem) {
  IrProblem out;
  out.problem.name = problem.getSymName().str();
  out.problem.objective = static_cast<Objective>(problem.getObjective());
  Builder b(out);
  b.slowdowns(problem);
  for (mlir::Operation& op : problem.getBody().front()) {
    if (auto stream = mlir::dyn_cast<plan::StreamOp>(op)) b.stream(stream);
    auto job = mlir::dyn_cast<scheduling::JobOp>(op);
    if (!job) continue;
    out.problem.jobs.push_back({job.getSymName().str(), static_cast<int64_t>(job.getArrival())});
    for (auto task : job.getBody().getOps<scheduling::TaskOp>())
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

mlir::FailureOr<Times> times_of(const IrProblem& p) {
  Times times;
  if (mlir::failed(require_durations(p))) return mlir::failure();
  for (plan::OperationInterface op : p.ops) {
    if (!op.getAt()) {
      op.emitError() << "'" << op.label()
                     << "' has no start ('at'): illegal for this phase, expected to have been scheduled";
      return mlir::failure();
    }
    times.start_ns.push_back(static_cast<int64_t>(*op.getAt()));
    auto task = mlir::dyn_cast<scheduling::TaskOp>(op.getOperation());
    times.end_ns.push_back(task && task.getEnds()
                               ? static_cast<int64_t>(*task.getEnds())
                               : times.start_ns.back() + static_cast<int64_t>(*op.getDuration()));
  }
  return times;
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
