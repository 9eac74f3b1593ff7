#include "compiler/policy/build_reuse.h"

#include "compiler/emit/convert.h"
#include "plans/traits.h"

namespace ds {

void build_reuse_plan(mlir::OpBuilder& b, mlir::Location loc, const Variant& v, int64_t layers,
                      bool fallback) {
  mlir::OpBuilder::InsertionGuard guard(b);
  auto i32 = [&](int64_t n) { return b.getI32IntegerAttr(static_cast<int32_t>(n)); };
  mlir::OperationState whole(loc, reuse::PlanOp::getOperationName());
  auto& to = whole.getOrAddProperties<reuse::PlanOp::Properties>();
  write_purpose(b, v, fallback, to);
  to.layers = i32(layers);
  if (v.chunks > 1) to.chunks = i32(v.chunks);
  whole.addRegion();
  auto plan = mlir::cast<reuse::PlanOp>(b.create(whole));
  b.setInsertionPointToStart(&plan.getBody().emplaceBlock());
  auto hidden = b.getType<reuse::HiddenType>();
  auto cache = b.getType<reuse::CacheType>();
  const auto maps = plan::AlignmentAttr::of(b.getContext(), v);
  llvm::SmallVector<mlir::Value> caches;
  std::vector<std::pair<Tile, mlir::Value>> leaving;  // what leaves each recomputed tile
  auto leaving_below = [&](const Tile& t) {
    mlir::Value from;
    for (auto& [below, value] : leaving) {
      if (below.last_layer + 1 == t.first_layer && below.first_chunk <= t.first_chunk &&
          below.last_chunk >= t.last_chunk) {
        from = value;
      }
    }
    return from;
  };
  for (const Tile& t : v.tiles) {
    const ModeTraits& mode = traits_of(t.mode);
    mlir::OperationState state(loc, (reuse::ReuseDialect::getDialectNamespace() + "." + mode.name).str());
    state.addTypes(cache);
    if (mode.stands) state.addTypes(hidden);
    state.addAttribute("first_layer", i32(t.first_layer));
    state.addAttribute("last_layer", i32(t.last_layer));
    if (t.first_chunk != 0 || t.last_chunk != v.chunks - 1) {
      state.addAttribute("first_chunk", i32(t.first_chunk));
      state.addAttribute("last_chunk", i32(t.last_chunk));
    }
    if (mode.selects) state.addAttribute("share", b.getF64FloatAttr(v.select_share));
    if (t.cut) {
      mlir::Value from = b.create<reuse::CutOp>(loc, hidden, i32(t.first_layer)).getHidden();
      if (maps) from = b.create<reuse::AlignOp>(loc, hidden, from, maps);
      state.addOperands(from);
    } else if ((mode.stands || mode.selects) && t.first_layer > 0) {
      if (mlir::Value below = leaving_below(t)) state.addOperands(below);
    } else if (maps && t.sends_e(t.last_layer)) {
      state.addAttribute("alignment", maps);
    }
    mlir::Operation* tile = b.create(state);
    caches.push_back(tile->getResult(0));
    if (mode.stands) leaving.push_back({t, tile->getResult(1)});
  }
  b.create<reuse::AnswerOp>(loc, caches);
}

}  // namespace ds
