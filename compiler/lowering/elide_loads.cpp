// plan-elide-loads: what nobody waits for must not be sent. After lowering that is the KV of recomputed
// layers. Needed for right schedules too, not only for fast ones: such a load and the kernel that computes
// the same cache are not ordered unless a scheduler keeps all loads before all kernels, as `serial` does.
#include "compiler/pass_support.h"

namespace ds {
namespace {

struct ElideLoads : ModulePass<ElideLoads> {
  MLIR_DEFINE_EXPLICIT_INTERNAL_INLINE_TYPE_ID(ElideLoads)
  static constexpr llvm::StringLiteral kArgument = "plan-elide-loads";
  static constexpr llvm::StringLiteral kDescription = "Removes loads that nothing waits for";

  void runOnOperation() final {
    getOperation().walk([](plan::OperationInterface op) {
      if (op.role() != plan::Role::compute && op->use_empty()) op->erase();
    });
  }
};

}  // namespace

std::unique_ptr<mlir::Pass> create_plan_elide_loads() { return std::make_unique<ElideLoads>(); }

}  // namespace ds
