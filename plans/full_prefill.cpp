#include "plans/full_prefill.h"

namespace ds {

Variant full_prefill_variant(int64_t layers) {
  auto last = static_cast<int32_t>(layers - 1);
  Variant v;
  v.name = v.policy = v.scheduler = "full-prefill";
  v.promise.quality_loss = 0;
  v.tiles = {Tile{.mode = Mode::kRecompute, .first_layer = 0, .last_layer = last}};
  v.streams = {Stream{StreamKind::kCompute}};
  for (int32_t l = 0; l <= last; ++l)
    v.buffers.push_back({.kind = BufferKind::kKv, .layer = l, .with_suffix = true});
  auto hidden = static_cast<int32_t>(v.buffers.size());
  v.buffers.push_back({.kind = BufferKind::kHidden, .layer = 0, .with_suffix = true});
  auto add = [&](Op op) {
    if (!v.ops.empty()) op.waits = {static_cast<int32_t>(v.ops.size()) - 1};
    op.buffer = hidden;
    v.ops.push_back(std::move(op));
  };
  add({.kind = OpKind::kEmbed, .rows = Rows::kAll});
  for (int32_t l = 0; l <= last; ++l) {
    add({.kind = OpKind::kPrefill,
         .layer = l,
         .rows = Rows::kAll,
         .queries = l == last ? Queries::kLast : Queries::kAll});
  }
  add({.kind = OpKind::kHead, .rows = Rows::kSuffix});
  return v;
}

Plan full_prefill_plan(const ModelIdentity& receiver, const Shape& shape, std::string dtype) {
  Plan plan;
  plan.receiver = plan.sender = receiver;
  plan.shape = shape;
  plan.dtype = std::move(dtype);
  plan.full_prefill = full_prefill_variant(shape.layers);
  return plan;
}

}  // namespace ds
