// plan-schedule: when each operation starts. Works alike on variants and on problems that are written down
// (scheduling.problem); those it leaves in the order in which they stand, while the operations of a variant
// are put in the order of their starts, which on each stream is the order in which the executor runs them.
#include <algorithm>
#include <numeric>

#include "compiler/emit/convert.h"
#include "compiler/passes.h"
#include "compiler/scheduling/ir_problem.h"
#include "compiler/scheduling/schedulers.h"
#include "compiler/scheduling/sender_times.h"
#include "dialects/reuse/ReuseDialect.h"

namespace ds {

#define GEN_PASS_DEF_PLANSCHEDULE
#include "compiler/Passes.h.inc"

namespace {

/// Of the order in which tasks start: when the last one ends if every load takes `stretch` times as long.
double end_with_slow_loads(const Problem& p, const Schedule& s, double stretch) {
  std::vector<size_t> order(p.tasks.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return std::pair(s.start_ns[a], s.end_ns[a]) < std::pair(s.start_ns[b], s.end_ns[b]);
  });
  std::vector<double> free(p.streams.size(), 0), end(p.tasks.size(), 0);
  double last = 0;
  for (size_t i : order) {
    const Task& t = p.tasks[i];
    double& at = free[static_cast<size_t>(t.stream)];
    at = std::max(at, static_cast<double>(t.release_ns));
    for (int32_t w : t.after)
      at = std::max(at, end[static_cast<size_t>(w)] +
                            static_cast<double>(handover(p.tasks[static_cast<size_t>(w)], t)));
    at += static_cast<double>(t.duration_ns) * (t.role == TaskRole::kCompute ? 1.0 : stretch);
    end[i] = at;
    last = std::max(last, at);
  }
  return last;
}

/// A variant's order is kept at every rate of its range. Where the link is hardly needed at the tuned rate,
/// the best order says little about lower rates; one that costs next to nothing more here and is better
/// there is taken instead.
constexpr double kNextToNothing = 0.005;

struct SchedulePass : impl::PlanScheduleBase<SchedulePass> {
  using impl::PlanScheduleBase<SchedulePass>::PlanScheduleBase;
  SchedulePass(std::string by, std::optional<MachineModel> machine) : machine_(std::move(machine)) {
    scheduler = std::move(by);
  }

  void runOnOperation() final {
    auto walked = getOperation().walk<mlir::WalkOrder::PreOrder>([&](mlir::Operation* op) {
      auto variant = mlir::dyn_cast<plan::VariantOp>(op);
      auto problem = mlir::dyn_cast<scheduling::ProblemOp>(op);
      bool failed = (variant && mlir::failed(run(variant))) || (problem && mlir::failed(run(problem)));
      if (failed) return mlir::WalkResult::interrupt();
      return variant || problem ? mlir::WalkResult::skip() : mlir::WalkResult::advance();
    });
    if (walked.wasInterrupted()) signalPassFailure();
  }

  mlir::FailureOr<Schedule> solve(mlir::Operation* op, const IrProblem& ir) {
    if (mlir::failed(require_durations(ir))) return mlir::failure();
    if (auto fault = find_problem_fault(ir.problem)) {
      (void)report(op, ir, *fault);
      return mlir::failure();
    }
    Result<Schedule> s = schedule(ir.problem, scheduler.getValue());
    if (!s.ok()) {
      op->emitError(s.status().message());
      return mlir::failure();
    }
    return std::move(*s);
  }

  Conditions conditions(plan::VariantOp variant) const {
    if (machine_) return machine_->conditions(variant.getTuned().getRate());
    return {.kernels_ns = release_ns, .loads_ns = std::max<int64_t>(release_ns, link_release_ns)};
  }

  mlir::LogicalResult wait_for_sender(plan::VariantOp variant, IrProblem& ir) const {
    auto file = variant->getParentOfType<plan::FileOp>();
    if (!file)
      return variant.emitError("is for a live sender, and stands outside a plan.file, which says whose");
    const DType dtype = file.getDtype() == "f32" ? DType::kF32 : DType::kBF16;
    const CostModel costs(machine_ ? *machine_ : MachineModel::stand_in(dtype), file.getShape().describe());
    std::vector<Op> ops;
    for (plan::OperationInterface op : ir.ops)
      ops.push_back(export_op(mlir::cast<plan::VariantOperationInterface>(op.getOperation())));
    release_by_sender(SenderTimes(costs, variant.getTuned().getTokens()), ops,
                      static_cast<int32_t>(variant.getChunks()), ir.problem);
    return mlir::success();
  }

  mlir::LogicalResult run(scheduling::ProblemOp problem) {
    IrProblem ir = problem_of(problem);
    auto s = solve(problem, ir);
    if (mlir::failed(s)) return mlir::failure();
    problem.setScheduler(llvm::StringRef(scheduler));
    problem.setCost(static_cast<uint64_t>(s->cost_ns));
    problem.setLowerBound(static_cast<uint64_t>(s->lower_bound_ns));
    problem.setProvenOptimal(s->proven_optimal);
    problem.removeProofAttr();
    if (s->proven_optimal) problem.setProof(static_cast<scheduling::Proof>(s->proof));
    for (size_t i = 0; i < ir.ops.size(); ++i) {
      auto task = mlir::cast<scheduling::TaskOp>(ir.ops[i].getOperation());
      task.setAt(static_cast<uint64_t>(s->start_ns[i]));
      task.removeEndsAttr();
      if (s->end_ns[i] - s->start_ns[i] != ir.problem.tasks[i].duration_ns)
        task.setEnds(static_cast<uint64_t>(s->end_ns[i]));
    }
    return mlir::success();
  }

  void hold_at_lower_rates(plan::VariantOp variant, const IrProblem& ir, Schedule& best) {
    auto tuned = static_cast<double>(variant.getTuned().getRate());
    // Without a lower end: well below the tuned rate, where another variant would have been worth its while.
    double low = std::max(static_cast<double>(variant.getRate().getLow()), tuned / 16);
    if (tuned <= 0 || low >= tuned) return;
    Result<Schedule> other = schedule(ir.problem, scheduler.getValue(), false);
    if (!other.ok() ||
        static_cast<double>(other->cost_ns) > static_cast<double>(best.cost_ns) * (1 + kNextToNothing))
      return;
    if (end_with_slow_loads(ir.problem, *other, tuned / low) >=
        end_with_slow_loads(ir.problem, best, tuned / low))
      return;
    best.start_ns = std::move(other->start_ns);
    best.end_ns = std::move(other->end_ns);
    best.barriers = std::move(other->barriers);
    best.cost_ns = other->cost_ns;
    best.proven_optimal = best.cost_ns == best.lower_bound_ns;
    if (!best.proven_optimal) best.proof = Proof::kNone;
  }

  mlir::LogicalResult run(plan::VariantOp variant) {
    IrProblem ir = problem_of(variant, conditions(variant));
    if (variant.getLive() && mlir::failed(wait_for_sender(variant, ir))) return mlir::failure();
    auto s = solve(variant, ir);
    if (mlir::failed(s)) return mlir::failure();
    hold_at_lower_rates(variant, ir, *s);
    // Beside others an operation takes longer than alone; what is predicted is from its start to its end.
    for (size_t i = 0; i < ir.ops.size(); ++i) {
      plan::OperationInterface op = ir.ops[i];
      op.setAt(static_cast<uint64_t>(s->start_ns[i]));
      op.setDuration(static_cast<uint64_t>(s->end_ns[i] - s->start_ns[i]));
    }
    variant.setScheduler(llvm::StringRef(scheduler));
    variant.setMakespan(static_cast<uint64_t>(s->cost_ns));
    // Tilings are chosen by a quick schedule; the promise is what this one takes.
    Promise promise = variant.getPromise().describe();
    promise.ttft_ns = s->cost_ns;
    variant.setPromiseAttr(plan::PromiseAttr::of(variant.getContext(), promise));
    variant.setLowerBound(static_cast<uint64_t>(s->lower_bound_ns));
    variant.setProvenOptimal(s->proven_optimal);

    std::vector<int32_t> order(ir.ops.size());
    std::iota(order.begin(), order.end(), 0);
    auto key = [&](int32_t i) {
      auto k = static_cast<size_t>(i);
      return std::pair(s->start_ns[k], s->end_ns[k]);
    };
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return key(a) < key(b); });
    mlir::Block& body = variant.getBody().front();
    for (int32_t i : order) ir.ops[static_cast<size_t>(i)]->moveBefore(&body, body.end());
    for (auto [task, before] : s->barriers) {
      mlir::Value event = ir.ops[static_cast<size_t>(before)]->getResult(0);
      plan::OperationInterface op = ir.ops[static_cast<size_t>(task)];
      if (!llvm::is_contained(op.getAfter(), event)) op.getAfterMutable().append(event);
    }
    // Waits in the order of the operations, each once: one way to write a plan down.
    for (plan::OperationInterface op : ir.ops) {
      llvm::SmallVector<mlir::Value> after(op.getAfter());
      llvm::sort(after, [](mlir::Value a, mlir::Value b) {
        return a.getDefiningOp()->isBeforeInBlock(b.getDefiningOp());
      });
      after.erase(std::unique(after.begin(), after.end()), after.end());
      op.getAfterMutable().assign(after);
    }
    return mlir::success();
  }

  std::optional<MachineModel> machine_;
};

}  // namespace

std::unique_ptr<mlir::Pass> create_plan_schedule(std::string scheduler, std::optional<MachineModel> machine) {
  return std::make_unique<SchedulePass>(std::move(scheduler), std::move(machine));
}

}  // namespace ds
