// reuse-verify-tiling closes the phase WHAT. A single plan is right by its own verifier; here they are looked
// at together, since the runtime picks one by context length and link rate and must find at most one.
#include "compiler/passes.h"
#include "dialects/reuse/ReuseDialect.h"

namespace ds {

#define GEN_PASS_DEF_REUSEVERIFYTILING
#include "compiler/Passes.h.inc"

namespace {

/// Of two ranges, of which either may stand for everything.
bool overlap(plan::RangeAttr a, plan::RangeAttr b) { return !a || !b || a.overlaps(b); }

struct VerifyTiling : impl::ReuseVerifyTilingBase<VerifyTiling> {
  void runOnOperation() final {
    llvm::SmallVector<reuse::PlanOp> plans;
    getOperation().walk([&](reuse::PlanOp plan) { plans.push_back(plan); });
    for (size_t i = 0; i < plans.size(); ++i) {
      for (size_t k = 0; k < i; ++k)
        if (mlir::failed(compatible(plans[k], plans[i]))) return signalPassFailure();
      if (mlir::failed(fits_file(plans[i])) || mlir::failed(read_once(plans[i]))) return signalPassFailure();
    }
    auto walked = getOperation().walk([](plan::FileOp file) {
      auto plans = file.getBody().getOps<reuse::PlanOp>();
      if (llvm::any_of(plans, [](reuse::PlanOp p) { return p.getFallback(); }))
        return mlir::WalkResult::advance();
      file.emitError("has no plan marked 'fallback'; every plan file carries the full prefill");
      return mlir::WalkResult::interrupt();
    });
    if (walked.wasInterrupted()) signalPassFailure();
  }

  static mlir::LogicalResult compatible(reuse::PlanOp a, reuse::PlanOp b) {
    if (a->getParentOp() != b->getParentOp()) return mlir::success();
    auto fault = [&](const llvm::Twine& message) -> mlir::LogicalResult {
      mlir::InFlightDiagnostic d = b.emitError(message);
      d.attachNote(a.getLoc()) << "'" << a.getSymName() << "' is here";
      return d;
    };
    if (a.getLayers() != b.getLayers()) {
      return fault(llvm::Twine("has ") + llvm::Twine(b.getLayers()) + " layers, but '" + a.getSymName() +
                   "' has " + llvm::Twine(a.getLayers()));
    }
    if (a.getFallback() != b.getFallback()) return mlir::success();
    if (a.getFallback()) return fault("is a second fall-back; expected one");
    // One for a live sender stands beside the others.
    if (a.getLive() == b.getLive() && overlap(a.getTokens(), b.getTokens()) &&
        overlap(a.getRate(), b.getRate()) && overlap(a.getLoadAttr(), b.getLoadAttr())) {
      return fault(llvm::Twine("holds for context lengths, link rates and loads for which '") +
                   a.getSymName() + "' holds too; expected ranges that do not overlap");
    }
    return mlir::success();
  }

  /// What is sent is sent for one tile, and so is what a map makes of it. While passes rewrite a tiling that
  /// need not be so.
  static mlir::LogicalResult read_once(reuse::PlanOp plan) {
    for (mlir::Operation& op : plan.getBody().front()) {
      if (!mlir::isa<reuse::CutOp, reuse::AlignOp>(op) || op.getResult(0).hasOneUse()) continue;
      auto uses = std::distance(op.getResult(0).use_begin(), op.getResult(0).use_end());
      mlir::InFlightDiagnostic d = op.emitOpError();
      if (auto cut = mlir::dyn_cast<reuse::CutOp>(op)) d << "at layer " << cut.getLayer() << " ";
      return d << "is read by " << uses << " tiles, expected exactly one; what nobody reads must not be sent";
    }
    return mlir::success();
  }

  static mlir::LogicalResult fits_file(reuse::PlanOp plan) {
    auto file = plan->getParentOfType<plan::FileOp>();
    if (!file || static_cast<int64_t>(plan.getLayers()) == file.getShape().getLayers())
      return mlir::success();
    return plan.emitError() << "has " << plan.getLayers() << " layers, but the models have "
                            << file.getShape().getLayers();
  }
};

}  // namespace

}  // namespace ds
