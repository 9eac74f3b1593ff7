// Plans with aligned cuts made by hand from those of plan_builder.h. Header only.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "runtime/model/maps.h"
#include "tests/unit/plan_builder.h"

namespace ds::testing {

/// Layers first to last restored, the others loaded: all transfers, then all kernels.
inline Plan make_restore_range_plan(const Shape& shape, int64_t first, int64_t last,
                                    const PlanOptions& o = {}) {
  Plan plan = make_plan(shape, {0, -1}, "kv-preload", o);
  Variant v;
  v.name = "v0";
  v.policy = "restore";
  v.scheduler = "kv-preload";
  v.chunks = o.chunks;
  v.tuned_tokens = o.tokens;
  v.tuned_suffix = o.suffix;
  v.tuned_rate = o.rate;
  v.promise.quality_loss = 1.8;
  const auto layers = static_cast<int32_t>(shape.layers);
  auto tile = [&](Mode mode, int64_t a, int64_t b) {
    if (a <= b)
      v.tiles.push_back({mode, static_cast<int32_t>(a), static_cast<int32_t>(b), 0, o.chunks - 1, false});
  };
  tile(Mode::kLoad, 0, first - 1);
  tile(Mode::kRestore, first, last);
  tile(Mode::kLoad, last + 1, layers - 1);
  v.streams = {{StreamKind::kLink}, {StreamKind::kCompute}};
  for (int32_t l = 0; l < layers; ++l) v.buffers.push_back({BufferKind::kKv, l, true, true});
  v.buffers.push_back({BufferKind::kHidden, 0, true, false});
  int64_t at = 0;
  auto add = [&](Op op) {
    op.start_ns = at;
    op.duration_ns = 1000;
    at += op.duration_ns;
    v.ops.push_back(std::move(op));
    return static_cast<int32_t>(v.ops.size()) - 1;
  };
  auto restored = [&](int32_t l) { return l >= first && l <= last; };
  auto buffer_of = [&](int32_t l) { return layers + 1 + l - static_cast<int32_t>(first); };
  int32_t last_transfer = -1;
  for (int32_t l = 0; l < layers; ++l) {
    if (restored(l)) v.buffers.push_back({BufferKind::kHidden, l, false, true});
    for (int32_t c = 0; c < o.chunks; ++c)
      last_transfer = add({.kind = OpKind::kTransfer,
                           .payload = restored(l) ? Payload::kE : Payload::kKv,
                           .stream = 0,
                           .layer = l,
                           .chunk = c,
                           .buffer = restored(l) ? buffer_of(l) : l});
  }
  add({.kind = OpKind::kEmbed,
       .stream = 1,
       .rows = Rows::kSuffix,
       .buffer = layers,
       .waits = {last_transfer}});
  for (int32_t l = 0; l < layers; ++l) {
    for (int32_t c = 0; restored(l) && c < o.chunks; ++c)
      add({.kind = OpKind::kRecompute,
           .stream = 1,
           .layer = l,
           .chunk = c,
           .queries = Queries::kNone,
           .buffer = buffer_of(l)});
    add({.kind = OpKind::kSuffix,
         .stream = 1,
         .layer = l,
         .rows = Rows::kSuffix,
         .queries = l == layers - 1 ? Queries::kLast : Queries::kAll,
         .buffer = layers});
  }
  add({.kind = OpKind::kHead, .stream = 1, .rows = Rows::kSuffix, .buffer = layers});
  v.makespan_ns = v.promise.ttft_ns = at;
  plan.variants = {std::move(v)};
  return plan;
}

/// The same plan with its cuts aligned. Where the receiver does it, an op that takes no time stands before
/// the first kernel over each chunk that was sent.
inline Plan with_aligned_cuts(Plan plan, MapForm form, MapSide side, const MapsIdentity& maps) {
  Variant& v = plan.variants.at(0);
  v.map_form = form;
  v.map_side = side;
  plan.maps = maps;
  plan.format_version = kWrittenFormatVersion;
  if (side == MapSide::kSender) return plan;
  std::vector<Op> ops;
  std::vector<int32_t> moved;                            // by old index
  std::vector<std::pair<int32_t, const Op*>> transfers;  // new index and op of E that is not aligned yet
  for (const Op& old : v.ops) {
    Op op = old;
    for (int32_t& w : op.waits) w = moved[static_cast<size_t>(w)];
    if (op.kind == OpKind::kRecompute) {
      for (auto& [index, e] : transfers) {
        if (e == nullptr || e->layer != op.layer || e->chunk != op.chunk || e->buffer != op.buffer) continue;
        ops.push_back({.kind = OpKind::kAlign,
                       .stream = op.stream,
                       .layer = op.layer,
                       .chunk = op.chunk,
                       .buffer = op.buffer,
                       .start_ns = op.start_ns,
                       .waits = {index}});
        e = nullptr;
      }
    }
    moved.push_back(static_cast<int32_t>(ops.size()));
    if (op.payload == Payload::kE) transfers.emplace_back(moved.back(), &old);
    ops.push_back(std::move(op));
  }
  v.ops = std::move(ops);
  return plan;
}

/// Maps for every layer above 0 of `plan_shape`, as `fill(layer, part, numbers)` fills the parts' numbers: 0
/// of them all where it is empty. Names and fingerprints of the pair are the caller's.
template <typename Fill>
MapSet make_maps(const Shape& shape, int64_t rank, Fill fill) {
  MapSet set;
  set.layers = shape.layers;
  set.d_model = shape.d_model;
  set.dtype = "f32";
  const auto d = static_cast<size_t>(shape.d_model), r = static_cast<size_t>(rank);
  for (int64_t l = 1; l < shape.layers; ++l) {
    for (MapForm form : {MapForm::kDiagonal, MapForm::kLowRank, MapForm::kFull}) {
      AlignmentMap& m = set.maps.emplace_back();
      m.layer = l;
      m.form = form;
      m.fit.tokens = m.fit.contexts = 1;
      auto make = [&](const char* part, std::vector<float>& v, size_t count) {
        v.resize(count);
        fill(l, std::string(part), v);
      };
      if (form == MapForm::kFull) make("weight", m.weight, d * d);
      if (form != MapForm::kFull) make("scale", m.scale, d);
      if (form == MapForm::kLowRank) {
        m.rank = rank;
        make("up", m.up, d * r);
        make("down", m.down, r * d);
      }
      make("bias", m.bias, d);
    }
  }
  return set;
}

inline void set_pair(MapSet& set, const ModelIdentity& sender, const ModelIdentity& receiver) {
  set.sender_name = sender.name;
  set.sender_fingerprint = sender.fingerprint;
  set.receiver_name = receiver.name;
  set.receiver_fingerprint = receiver.fingerprint;
}

}  // namespace ds::testing
