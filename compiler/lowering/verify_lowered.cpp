// plan-verify-lowered closes the lowering: nothing of `reuse` is left, and every variant makes every layer's
// cache and one first token; where the receiver maps what it is sent, all of it is mapped.
#include "compiler/passes.h"
#include "dialects/reuse/ReuseDialect.h"
#include "llvm/ADT/DenseSet.h"
#include "plans/traits.h"

namespace ds {

#define GEN_PASS_DEF_PLANVERIFYLOWERED
#include "compiler/Passes.h.inc"

namespace {

/// The layer whose cache an operation writes for the context; -1: none.
int64_t writes_context_cache(mlir::Operation& op) {
  auto described = mlir::dyn_cast<plan::VariantOperationInterface>(op);
  if (!described) return -1;
  const Op what = described.describe();
  auto writes = [](const Access& a) {
    return a.write && a.memory == Access::Memory::kCache && a.span != Access::Span::kSuffix;
  };
  return llvm::any_of(accesses_of(what), writes) ? what.layer : -1;
}

struct VerifyLowered : impl::PlanVerifyLoweredBase<VerifyLowered> {
  void runOnOperation() final {
    auto walked = getOperation().walk<mlir::WalkOrder::PreOrder>([&](mlir::Operation* op) {
      if (op->getDialect() &&
          op->getDialect()->getNamespace() == reuse::ReuseDialect::getDialectNamespace()) {
        op->emitError()
            << "'" << op->getName().getStringRef()
            << "' is illegal for this phase of lowering; expected to have been converted or removed";
        return mlir::WalkResult::interrupt();
      }
      auto variant = mlir::dyn_cast<plan::VariantOp>(op);
      if (variant && mlir::failed(check(variant))) return mlir::WalkResult::interrupt();
      return mlir::WalkResult::advance();
    });
    if (walked.wasInterrupted()) signalPassFailure();
  }

  static mlir::LogicalResult check(plan::VariantOp variant) {
    llvm::DenseSet<int64_t> written;
    int heads = 0;
    const plan::AlignmentAttr maps = variant.getAlignmentAttr();
    const bool aligns = maps && maps.getSide() == MapSide::kReceiver;
    for (mlir::Operation& op : variant.getBody().front()) {
      auto transfer = mlir::dyn_cast<plan::TransferOp>(op);
      if (aligns && transfer && transfer.getPayload() == Payload::kE &&
          llvm::none_of(transfer->getUsers(),
                        [](mlir::Operation* u) { return mlir::isa<plan::AlignOp>(u); })) {
        return transfer.emitError() << "'" << transfer.label()
                                    << "' is sent to a receiver that maps it, but no plan.align waits for it";
      }
      int64_t layer = writes_context_cache(op);
      if (layer >= 0) written.insert(layer);
      if (auto head = mlir::dyn_cast<plan::HeadOp>(op)) {
        if (++heads > 1) return head.emitError("is a second head; a request has one first token");
      }
    }
    for (auto buffer : variant.getBody().getOps<plan::BufferOp>()) {
      if (buffer.getKind() != BufferKind::kKv || !buffer.getWithContext()) continue;
      if (!written.contains(buffer.getLayer())) {
        return buffer.emitError() << "nothing writes the context's K and V of layer " << buffer.getLayer()
                                  << "; expected a transfer, a recompute or a prefill of it";
      }
    }
    if (heads == 0) return variant.emitError("has no plan.head; the first token is never made");
    return mlir::success();
  }
};

}  // namespace

}  // namespace ds
