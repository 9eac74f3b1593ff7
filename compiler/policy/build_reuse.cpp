#include "compiler/policy/build_reuse.h"

namespace ds {

void build_reuse_plan(mlir::OpBuilder& b, mlir::Location loc, const Variant& v, int64_t layers,
                      bool fallback) {
  mlir::OpBuilder::InsertionGuard guard(b);
  auto i64 = [&](int64_t n) { return b.getI64IntegerAttr(n); };
  auto i32 = [&](int64_t n) { return b.getI32IntegerAttr(static_cast<int32_t>(n)); };
  auto plan = b.create<reuse::PlanOp>(
      loc, b.getStringAttr(v.name), fallback ? b.getUnitAttr() : mlir::UnitAttr(), b.getStringAttr(v.policy),
      i32(layers), i64(v.tokens_min), i64(v.tokens_max), i64(v.rate_min), i64(v.rate_max),
      i64(v.tuned_tokens), i64(v.tuned_suffix), i64(v.tuned_rate), b.getF64FloatAttr(v.promise.quality_loss),
      i64(v.promise.ttft_ns));
  b.setInsertionPointToStart(&plan.getBody().emplaceBlock());
  auto hidden = b.getType<reuse::HiddenType>();
  auto cache = b.getType<reuse::CacheType>();
  llvm::SmallVector<mlir::Value> caches;
  mlir::Value below;  // what leaves the recomputed tile below
  for (const Tile& t : v.tiles) {
    if (t.mode == Mode::kLoad) {
      caches.push_back(b.create<reuse::LoadOp>(loc, cache, i32(t.first_layer), i32(t.last_layer)));
      below = {};
      continue;
    }
    mlir::Value from = t.cut ? b.create<reuse::CutOp>(loc, hidden, i32(t.first_layer)).getHidden() : below;
    auto recompute =
        b.create<reuse::RecomputeOp>(loc, cache, hidden, i32(t.first_layer), i32(t.last_layer), from);
    caches.push_back(recompute.getCache());
    below = recompute.getHidden();
  }
  b.create<reuse::AnswerOp>(loc, caches);
}

}  // namespace ds
