// convert-reuse-to-plan: tiles -> transfers, kernels and what waits for what.
#include "compiler/emit/convert.h"
#include "compiler/lowering/lower_tiles.h"
#include "compiler/passes.h"
#include "dialects/reuse/ReuseDialect.h"

namespace ds {

#define GEN_PASS_DEF_CONVERTREUSETOPLAN
#include "compiler/Passes.h.inc"

namespace {

/// Into the variant: its tiles, and the maps of its cuts (the dialect's verifier has seen that they agree).
void read_tiles(reuse::PlanOp plan, int32_t chunks, Variant& v) {
  auto maps = [&](auto form, auto side) {
    v.map_form = static_cast<MapForm>(form);
    v.map_side = static_cast<MapSide>(side);
  };
  for (mlir::Operation& op : plan.getBody().front()) {
    Tile t;
    auto extent = [&](auto tile) {
      t.first_layer = static_cast<int32_t>(tile.getFirstLayer());
      t.last_layer = static_cast<int32_t>(tile.getLastLayer());
      t.first_chunk = static_cast<int32_t>(tile.getFirstChunk().value_or(0));
      t.last_chunk = static_cast<int32_t>(tile.getLastChunk().value_or(static_cast<uint32_t>(chunks - 1)));
    };
    if (auto load = mlir::dyn_cast<reuse::LoadOp>(op)) {
      extent(load);
    } else if (auto recompute = mlir::dyn_cast<reuse::RecomputeOp>(op)) {
      t.mode = Mode::kRecompute;
      extent(recompute);
      mlir::Operation* from = recompute.getFrom() ? recompute.getFrom().getDefiningOp() : nullptr;
      auto align = mlir::dyn_cast_or_null<reuse::AlignOp>(from);
      if (align) maps(align.getForm(), align.getSide());
      t.cut = mlir::isa_and_nonnull<reuse::CutOp, reuse::AlignOp>(from);
    } else if (auto restore = mlir::dyn_cast<reuse::RestoreOp>(op)) {
      t.mode = Mode::kRestore;
      extent(restore);
      if (restore.getForm()) maps(*restore.getForm(), *restore.getSide());
    } else if (auto select = mlir::dyn_cast<reuse::SelectOp>(op)) {
      t.mode = Mode::kSelect;
      t.first_layer = static_cast<int32_t>(select.getFirstLayer());
      t.last_layer = static_cast<int32_t>(select.getLastLayer());
    } else {
      continue;
    }
    v.tiles.push_back(t);
  }
}

struct ConvertReuseToPlan : impl::ConvertReuseToPlanBase<ConvertReuseToPlan> {
  void runOnOperation() final {
    llvm::SmallVector<reuse::PlanOp> plans;
    getOperation().walk([&](reuse::PlanOp plan) { plans.push_back(plan); });
    for (reuse::PlanOp plan : plans) {
      auto chunks = static_cast<int32_t>(plan.getChunks().value_or(1));
      Variant what;
      read_tiles(plan, chunks, what);
      Variant v = lower_tiles(what.tiles, static_cast<int64_t>(plan.getLayers()), chunks,
                              /*whole_entry=*/true, what.aligns());
      v.map_form = what.map_form;
      v.map_side = what.map_side;
      v.name = plan.getSymName().str();
      v.policy = plan.getPolicy().str();
      v.scheduler = "none";
      v.tokens_min = static_cast<int64_t>(plan.getTokensMin());
      v.tokens_max = static_cast<int64_t>(plan.getTokensMax());
      v.rate_min = static_cast<int64_t>(plan.getRateMin());
      v.rate_max = static_cast<int64_t>(plan.getRateMax());
      v.tuned_tokens = static_cast<int64_t>(plan.getTunedTokens());
      v.tuned_suffix = static_cast<int64_t>(plan.getTunedSuffix());
      v.tuned_rate = static_cast<int64_t>(plan.getTunedRate());
      v.promise = {plan.getLoss().convertToDouble(), static_cast<int64_t>(plan.getTtftNs())};
      read_choice(plan, v);
      for (auto select : plan.getBody().getOps<reuse::SelectOp>())
        v.select_share = select.getShare().convertToDouble();
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
