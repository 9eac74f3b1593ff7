#include "compiler/policy/build_reuse.h"

#include "compiler/emit/convert.h"

namespace ds {

void build_reuse_plan(mlir::OpBuilder& b, mlir::Location loc, const Variant& v, int64_t layers,
                      bool fallback) {
  mlir::OpBuilder::InsertionGuard guard(b);
  auto* ctx = b.getContext();
  auto i64 = [&](int64_t n) { return b.getI64IntegerAttr(n); };
  auto i32 = [&](int64_t n) { return b.getI32IntegerAttr(static_cast<int32_t>(n)); };
  auto plan = b.create<reuse::PlanOp>(
      loc, b.getStringAttr(v.name), fallback ? b.getUnitAttr() : mlir::UnitAttr(), b.getStringAttr(v.policy),
      i32(layers), i64(v.tokens_min), i64(v.tokens_max), i64(v.rate_min), i64(v.rate_max),
      i64(v.tuned_tokens), i64(v.tuned_suffix), i64(v.tuned_rate), b.getF64FloatAttr(v.promise.quality_loss),
      i64(v.promise.ttft_ns), v.chunks > 1 ? i32(v.chunks) : nullptr, nullptr, nullptr, nullptr, nullptr,
      nullptr, nullptr, nullptr, nullptr, nullptr);
  write_choice(plan, v);
  b.setInsertionPointToStart(&plan.getBody().emplaceBlock());
  auto hidden = b.getType<reuse::HiddenType>();
  auto cache = b.getType<reuse::CacheType>();
  llvm::SmallVector<mlir::Value> caches;
  std::vector<std::pair<Tile, mlir::Value>> leaving;  // what leaves each recomputed tile
  for (const Tile& t : v.tiles) {
    bool all = t.first_chunk == 0 && t.last_chunk == v.chunks - 1;
    auto first = all ? nullptr : i32(t.first_chunk), last = all ? nullptr : i32(t.last_chunk);
    if (t.mode == Mode::kLoad) {
      caches.push_back(
          b.create<reuse::LoadOp>(loc, cache, i32(t.first_layer), i32(t.last_layer), first, last));
      continue;
    }
    if (t.mode == Mode::kRestore) {
      bool sends = t.sends_e(t.last_layer);
      caches.push_back(b.create<reuse::RestoreOp>(loc, cache, i32(t.first_layer), i32(t.last_layer), first,
                                                  last, sends ? map_form_attr(ctx, v) : nullptr,
                                                  sends ? map_side_attr(ctx, v) : nullptr));
      continue;
    }
    if (t.mode == Mode::kSelect) {
      // A policy draws it over a recomputed layer 0; the verifier says so where it does not.
      mlir::Value below = leaving.empty() ? mlir::Value() : leaving.front().second;
      caches.push_back(b.create<reuse::SelectOp>(loc, cache, i32(t.first_layer), i32(t.last_layer),
                                                 b.getF64FloatAttr(v.select_share), below));
      continue;
    }
    mlir::Value from;
    if (t.cut) {
      from = b.create<reuse::CutOp>(loc, hidden, i32(t.first_layer)).getHidden();
      if (v.map_form != MapForm::kNone)
        from = b.create<reuse::AlignOp>(loc, hidden, from, map_form_attr(ctx, v), map_side_attr(ctx, v));
    } else if (t.first_layer > 0) {
      for (auto& [below, value] : leaving) {
        if (below.last_layer + 1 == t.first_layer && below.first_chunk <= t.first_chunk &&
            below.last_chunk >= t.last_chunk) {
          from = value;
        }
      }
    }
    auto recompute = b.create<reuse::RecomputeOp>(loc, cache, hidden, i32(t.first_layer), i32(t.last_layer),
                                                  first, last, from);
    caches.push_back(recompute.getCache());
    leaving.push_back({t, recompute.getHidden()});
  }
  b.create<reuse::AnswerOp>(loc, caches);
}

}  // namespace ds
