// convert-reuse-to-plan: tiles -> transfers, kernels and what waits for what.
#include "compiler/emit/convert.h"
#include "compiler/lowering/lower_tiles.h"
#include "compiler/passes.h"
#include "dialects/reuse/ReuseDialect.h"

namespace ds {

#define GEN_PASS_DEF_CONVERTREUSETOPLAN
#include "compiler/Passes.h.inc"

namespace {

/// Into the variant: its tiles, the maps of its cuts (the dialect's verifier has seen that they agree), the
/// share of selected tokens.
void read_tiles(reuse::PlanOp plan, int32_t chunks, Variant& v) {
  for (mlir::Operation& op : plan.getBody().front()) {
    if (auto tile = mlir::dyn_cast<plan::TileInterface>(op)) v.tiles.push_back(tile.describe(chunks));
    if (auto maps = op.getAttrOfType<plan::AlignmentAttr>("alignment")) {
      v.map_form = maps.getForm();
      v.map_side = maps.getSide();
    }
    if (auto share = op.getAttrOfType<mlir::FloatAttr>("share")) v.select_share = share.getValueAsDouble();
  }
}

struct ConvertReuseToPlan : impl::ConvertReuseToPlanBase<ConvertReuseToPlan> {
  using impl::ConvertReuseToPlanBase<ConvertReuseToPlan>::ConvertReuseToPlanBase;

  void runOnOperation() final {
    llvm::SmallVector<reuse::PlanOp> plans;
    getOperation().walk([&](reuse::PlanOp plan) { plans.push_back(plan); });
    for (reuse::PlanOp plan : plans) {
      auto chunks = static_cast<int32_t>(plan.getChunks().value_or(1));
      Variant what;
      read_tiles(plan, chunks, what);
      Variant v = lower_tiles(what.tiles, static_cast<int64_t>(plan.getLayers()), chunks,
                              /*whole_entry=*/true, what.aligns(), own_buffers ? 0 : kRestoreBuffers);
      v.map_form = what.map_form;
      v.map_side = what.map_side;
      v.select_share = what.select_share;
      v.scheduler = "none";
      read_purpose(plan, v);
      mlir::OpBuilder b(plan);
      auto built = build_variant(b, plan.getLoc(), v, plan.getFallback(), /*scheduled=*/false);
      if (!built.ok()) {
        plan.emitError(built.status().message());
        return signalPassFailure();
      }
      plan.erase();
    }
  }
};

}  // namespace

}  // namespace ds
