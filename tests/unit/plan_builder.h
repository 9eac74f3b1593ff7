// Valid plans made by hand, for tests that need one without the compiler. Header only.
//
//   Plan plan = ds::testing::make_plan(shape, {3, 6}, "e-first");
//
// One request, one link stream (0) and one compute stream (1; the only one of a full prefill). Schedules:
// "e-first", "kv-preload", "serial", as in plans/README.md; the group {0, -1} is full reuse, {0, layers - 1}
// is a full prefill (with "serial" it still moves the whole entry).
#pragma once

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "plans/plan.h"
#include "support/hash.h"
#include "support/units.h"

namespace ds::testing {

struct PlanOptions {
  int32_t chunks = 1;
  int64_t tokens = 1024, suffix = 16;  // the tuned point
  int64_t rate = 20'000'000;           // bytes per second
  int64_t element_bytes = 2;           // of `dtype`
  std::string dtype = "bf16";
  int64_t ns_per_row = 2'000;         // one layer, one row
  MapForm map_form = MapForm::kNone;  // of the cut, where the group has one
  MapSide map_side = MapSide::kReceiver;
};

inline Shape small_shape(int64_t layers = 12) {
  return {.family = "llama",
          .layers = layers,
          .d_model = 128,
          .ff = 256,
          .heads = 4,
          .kv_heads = 2,
          .head_dim = 32,
          .vocab = 754};
}

inline ModelIdentity make_identity(const std::string& name) {
  return {.name = name,
          .fingerprint = sha256_hex(name),
          .config = sha256_hex(std::string("config")),
          .weights = sha256_hex(name + " weights"),
          .tokenizer = sha256_hex(std::string("tokenizer"))};
}

namespace detail {

class VariantBuilder {
 public:
  VariantBuilder(const Shape& shape, LayerRange group, std::string schedule, const PlanOptions& options)
      : shape_(shape), group_(group), schedule_(std::move(schedule)), o_(options) {}

  /// `transfers` false: nothing is sent, everything is computed.
  Variant build(bool transfers) {
    layers_ = static_cast<int32_t>(shape_.layers);
    first_ = group_.empty() ? layers_ : static_cast<int32_t>(group_.first);
    last_ = group_.empty() ? layers_ : static_cast<int32_t>(group_.last);
    from_embeddings_ = first_ == 0;
    prefill_ = from_embeddings_ && o_.chunks == 1;
    if (transfers) v_.streams.push_back({StreamKind::kLink});
    compute_ = static_cast<int32_t>(v_.streams.size());
    v_.streams.push_back({StreamKind::kCompute});
    buffers();
    if (transfers) make_transfers();
    make_compute();
    schedule();
    tiles();
    if (!e_.empty()) {
      v_.map_form = o_.map_form;
      v_.map_side = o_.map_side;
    }
    v_.chunks = o_.chunks;
    v_.tuned_tokens = o_.tokens;
    v_.tuned_suffix = o_.suffix;
    v_.tuned_rate = o_.rate;
    v_.scheduler = schedule_;
    return std::move(v_);
  }

 private:
  bool in_group(int32_t l) const { return l >= first_ && l <= last_; }
  int64_t chunk_rows(int32_t c) const {
    return chunk_begin(o_.tokens, o_.chunks, c + 1) - chunk_begin(o_.tokens, o_.chunks, c);
  }

  void buffers() {
    for (int32_t l = 0; l < layers_; ++l) v_.buffers.push_back({BufferKind::kKv, l, true, true});
    suffix_buffer_ = layers_;
    if (prefill_) {
      v_.buffers.push_back({BufferKind::kHidden, 0, true, true});
    } else {
      v_.buffers.push_back({BufferKind::kHidden, 0, true, false});
      if (!group_.empty()) v_.buffers.push_back({BufferKind::kHidden, first_, false, true});
    }
  }

  int32_t add(Op op) {
    v_.ops.push_back(std::move(op));
    return static_cast<int32_t>(v_.ops.size()) - 1;
  }

  void transfer_e() {
    if (group_.empty() || from_embeddings_) return;
    for (int32_t c = 0; c < o_.chunks; ++c) {
      e_.push_back(add({.kind = OpKind::kTransfer,
                        .payload = Payload::kE,
                        .stream = 0,
                        .layer = first_,
                        .chunk = c,
                        .buffer = layers_ + 1,
                        .duration_ns = wire_ns(c, shape_.e_row())}));
    }
  }
  void transfer_kv(int32_t l) {
    for (int32_t c = 0; c < o_.chunks; ++c) {
      kv_[static_cast<size_t>(l)] = add({.kind = OpKind::kTransfer,
                                         .payload = Payload::kKv,
                                         .stream = 0,
                                         .layer = l,
                                         .chunk = c,
                                         .buffer = l,
                                         .duration_ns = wire_ns(c, shape_.kv_row())});
    }
  }
  int64_t wire_ns(int32_t c, int64_t row) const {
    double bytes = static_cast<double>(chunk_rows(c) * row * o_.element_bytes);
    return static_cast<int64_t>(bytes / static_cast<double>(o_.rate) * 1e9);
  }

  void make_transfers() {
    kv_.assign(static_cast<size_t>(layers_), -1);
    bool all = schedule_ == "serial";
    if (schedule_ != "kv-preload") transfer_e();
    for (int32_t l = 0; l < layers_; ++l) {
      if (all || !in_group(l)) transfer_kv(l);
    }
    if (schedule_ == "kv-preload") transfer_e();
    last_transfer_ = static_cast<int32_t>(v_.ops.size()) - 1;
  }

  /// Two chains in the order of the layers: the recompute group and the suffix.
  void make_compute() {
    if (kv_.empty()) kv_.assign(static_cast<size_t>(layers_), -1);
    Op embed{.kind = OpKind::kEmbed,
             .stream = compute_,
             .rows = prefill_ ? Rows::kAll : Rows::kSuffix,
             .buffer = suffix_buffer_};
    embed.duration_ns = o_.ns_per_row * (prefill_ ? o_.tokens + o_.suffix : o_.suffix) / 10;
    suffix_chain_.push_back(add(embed));
    std::vector<int32_t> recompute_last(static_cast<size_t>(layers_), -1);
    if (!group_.empty() && !prefill_) {
      for (int32_t c = 0; c < o_.chunks && from_embeddings_; ++c) {
        group_chain_.push_back(add({.kind = OpKind::kEmbed,
                                    .stream = compute_,
                                    .chunk = c,
                                    .buffer = layers_ + 1,
                                    .duration_ns = o_.ns_per_row * chunk_rows(c) / 10}));
      }
      for (int32_t l = first_; l <= last_; ++l) {
        for (int32_t c = 0; c < o_.chunks; ++c) {
          Op op{.kind = OpKind::kRecompute,
                .stream = compute_,
                .layer = l,
                .chunk = c,
                .queries = l == last_ ? Queries::kNone : Queries::kAll,
                .buffer = layers_ + 1};
          op.duration_ns = o_.ns_per_row * chunk_rows(c) / (l == last_ ? 4 : 1);
          if (l == first_ && !from_embeddings_) op.waits.push_back(entering(c));
          if (kv_[static_cast<size_t>(l)] >= 0) op.waits.push_back(kv_[static_cast<size_t>(l)]);
          group_chain_.push_back(add(op));
          recompute_last[static_cast<size_t>(l)] = group_chain_.back();
        }
      }
    }
    for (int32_t l = 0; l < layers_; ++l) {
      bool prefill = prefill_ && in_group(l);
      Op op{.kind = prefill ? OpKind::kPrefill : OpKind::kSuffix,
            .stream = compute_,
            .layer = l,
            .rows = prefill ? Rows::kAll : Rows::kSuffix,
            .buffer = suffix_buffer_};
      op.queries = l == layers_ - 1        ? Queries::kLast
                   : prefill && l == last_ ? Queries::kSuffix
                                           : Queries::kAll;
      op.duration_ns = o_.ns_per_row * (prefill ? o_.tokens + o_.suffix : o_.suffix);
      if (op.queries != Queries::kAll) op.duration_ns /= 4;
      if (kv_[static_cast<size_t>(l)] >= 0) op.waits.push_back(kv_[static_cast<size_t>(l)]);
      suffix_chain_.push_back(add(op));
      if (!prefill && in_group(l))
        after_.push_back({suffix_chain_.back(), recompute_last[static_cast<size_t>(l)]});
    }
    suffix_chain_.push_back(add({.kind = OpKind::kHead,
                                 .stream = compute_,
                                 .rows = Rows::kSuffix,
                                 .buffer = suffix_buffer_,
                                 .duration_ns = o_.ns_per_row}));
  }

  /// The op that leaves chunk c of the cut as the group's first layer is to read it.
  int32_t entering(int32_t c) {
    int32_t e = e_[static_cast<size_t>(c)];
    if (o_.map_form == MapForm::kNone || o_.map_side == MapSide::kSender) return e;
    group_chain_.push_back(add({.kind = OpKind::kAlign,
                                .stream = compute_,
                                .layer = first_,
                                .chunk = c,
                                .buffer = layers_ + 1,
                                .duration_ns = o_.ns_per_row * chunk_rows(c) / 8,
                                .waits = {e}}));
    return group_chain_.back();
  }

  /// Transfers as listed; on the compute stream whichever chain can go on earlier (a tie: the group).
  void schedule() {
    std::vector<bool> placed(v_.ops.size(), false);
    std::vector<int32_t> order;
    int64_t link_free = 0, compute_free = 0;
    auto end = [&](int32_t i) {
      return v_.ops[static_cast<size_t>(i)].start_ns + v_.ops[static_cast<size_t>(i)].duration_ns;
    };
    for (int32_t i = 0; i <= last_transfer_; ++i) {
      v_.ops[static_cast<size_t>(i)].start_ns = link_free;
      link_free = end(i);
      placed[static_cast<size_t>(i)] = true;
      order.push_back(i);
    }
    bool overlap = schedule_ == "e-first";
    if (!overlap && last_transfer_ >= 0) {
      for (size_t i = static_cast<size_t>(last_transfer_) + 1; i < v_.ops.size(); ++i)
        v_.ops[i].waits.clear();
    }
    size_t g = 0, s = 0;
    bool first = true;
    while (g < group_chain_.size() || s < suffix_chain_.size()) {
      auto ready = [&](int32_t i) -> int64_t {
        int64_t at = compute_free;
        for (auto [op, needs] : after_) {
          if (op == i && !placed[static_cast<size_t>(needs)]) return INT64_MAX;
        }
        for (int32_t w : v_.ops[static_cast<size_t>(i)].waits) at = std::max(at, end(w));
        return at;
      };
      int64_t gt = g < group_chain_.size() ? ready(group_chain_[g]) : INT64_MAX;
      int64_t st = s < suffix_chain_.size() ? ready(suffix_chain_[s]) : INT64_MAX;
      int32_t i = gt <= st ? group_chain_[g++] : suffix_chain_[s++];
      Op& op = v_.ops[static_cast<size_t>(i)];
      if (first && !overlap && last_transfer_ >= 0) op.waits = {last_transfer_};
      first = false;
      op.start_ns = ready(i);
      compute_free = end(i);
      placed[static_cast<size_t>(i)] = true;
      order.push_back(i);
    }
    // Ordered by start; at one start what takes no time first, else the link first. No wait points forward
    // then.
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      return v_.ops[static_cast<size_t>(a)].start_ns < v_.ops[static_cast<size_t>(b)].start_ns;
    });
    std::vector<int32_t> index(v_.ops.size());
    for (size_t i = 0; i < order.size(); ++i) index[static_cast<size_t>(order[i])] = static_cast<int32_t>(i);
    std::vector<Op> ops;
    for (int32_t i : order) {
      Op op = v_.ops[static_cast<size_t>(i)];
      for (int32_t& w : op.waits) w = index[static_cast<size_t>(w)];
      std::sort(op.waits.begin(), op.waits.end());
      v_.makespan_ns = std::max(v_.makespan_ns, op.start_ns + op.duration_ns);
      ops.push_back(std::move(op));
    }
    v_.ops = std::move(ops);
    v_.promise.ttft_ns = v_.makespan_ns;
    int64_t busy[2] = {0, 0};
    for (const Op& op : v_.ops) busy[op.stream == compute_ ? 1 : 0] += op.duration_ns;
    v_.lower_bound_ns = std::max(busy[0], busy[1]);
    v_.proven_optimal = v_.lower_bound_ns == v_.makespan_ns;
  }

  void tiles() {
    auto tile = [&](Mode mode, int32_t a, int32_t b, bool cut) {
      if (a <= b) v_.tiles.push_back({mode, a, b, 0, o_.chunks - 1, cut});
    };
    tile(Mode::kLoad, 0, std::min(first_, layers_) - 1, false);
    if (!group_.empty()) tile(Mode::kRecompute, first_, last_, !from_embeddings_);
    if (!group_.empty()) tile(Mode::kLoad, last_ + 1, layers_ - 1, false);
  }

  Shape shape_;
  LayerRange group_;
  std::string schedule_;
  PlanOptions o_;
  Variant v_;
  int32_t layers_ = 0, first_ = 0, last_ = 0, compute_ = 0, suffix_buffer_ = 0, last_transfer_ = -1;
  bool from_embeddings_ = false, prefill_ = false;
  std::vector<int32_t> e_;   // op of each chunk's E
  std::vector<int32_t> kv_;  // op of each layer's last chunk of KV, -1: not sent
  std::vector<int32_t> group_chain_, suffix_chain_;
  std::vector<std::pair<int32_t, int32_t>>
      after_;  // suffix op, the recompute op that must be placed before it
};

}  // namespace detail

inline Variant make_full_prefill(const Shape& shape, PlanOptions options = {}) {
  options.chunks = 1;
  Variant v = detail::VariantBuilder(shape, {0, shape.layers - 1}, "serial", options).build(false);
  v.name = v.policy = "full-prefill";
  return v;
}

/// A variant for every length and rate.
inline Variant make_variant(const Shape& shape, LayerRange group, const std::string& schedule = "e-first",
                            const PlanOptions& options = {}) {
  bool sends = schedule == "serial" || group.size() < shape.layers;
  Variant v = detail::VariantBuilder(shape, group, schedule, options).build(sends);
  v.name = "v0";
  v.policy = group.empty() ? "full-reuse" : group.size() == shape.layers ? "full-prefill" : "droidspeak";
  v.promise.quality_loss = 1.8;
  return v;
}

/// All transfers first; then layer 0, the choice of tokens, those tokens upward, the suffix.
inline Variant make_select_variant(const Shape& shape, double share, const PlanOptions& o = {}) {
  auto layers = static_cast<int32_t>(shape.layers);
  Variant v;
  v.name = "v0";
  v.policy = "select";
  v.scheduler = "kv-preload";
  v.select_share = share;
  v.tuned_tokens = o.tokens;
  v.tuned_suffix = o.suffix;
  v.tuned_rate = o.rate;
  v.promise.quality_loss = 1.8;
  v.tiles = {{Mode::kRecompute, 0, 0, 0, 0, false}, {Mode::kSelect, 1, layers - 1, 0, 0, false}};
  v.streams = {{StreamKind::kLink}, {StreamKind::kCompute}};
  for (int32_t l = 0; l < layers; ++l) v.buffers.push_back({BufferKind::kKv, l, true, true});
  v.buffers.push_back({BufferKind::kHidden, 0, true, true});
  int64_t at = 0;
  auto add = [&](Op op, int64_t takes) {
    op.start_ns = at;
    op.duration_ns = takes;
    at += takes;
    v.ops.push_back(std::move(op));
    return static_cast<int32_t>(v.ops.size()) - 1;
  };
  int64_t kv_ns = o.tokens * shape.kv_row() * o.element_bytes * 1'000'000'000 / o.rate;
  std::vector<int32_t> kv(static_cast<size_t>(layers), -1);
  for (int32_t l = 1; l < layers; ++l)
    kv[static_cast<size_t>(l)] = add({.kind = OpKind::kTransfer,
                                      .payload = Payload::kKv,
                                      .stream = 0,
                                      .layer = l,
                                      .chunk = 0,
                                      .buffer = l},
                                     kv_ns);
  int64_t row = o.ns_per_row, chosen = selected_rows(share, o.tokens);
  add({.kind = OpKind::kEmbed, .stream = 1, .rows = Rows::kAll, .buffer = layers, .waits = {kv.back()}}, row);
  add({.kind = OpKind::kPrefill,
       .stream = 1,
       .layer = 0,
       .rows = Rows::kAll,
       .queries = Queries::kAll,
       .buffer = layers},
      row * (o.tokens + o.suffix));
  add({.kind = OpKind::kSelect, .stream = 1, .layer = 1, .chunk = 0, .buffer = layers, .waits = {kv[1]}},
      row * o.tokens / 4);
  for (int32_t l = 1; l < layers; ++l) {
    add({.kind = OpKind::kRecompute,
         .stream = 1,
         .layer = l,
         .rows = Rows::kSelected,
         .queries = l == layers - 1 ? Queries::kNone : Queries::kAll,
         .buffer = layers,
         .waits = {kv[static_cast<size_t>(l)]}},
        row * chosen);
    add({.kind = OpKind::kSuffix,
         .stream = 1,
         .layer = l,
         .rows = Rows::kSuffix,
         .queries = l == layers - 1 ? Queries::kLast : Queries::kAll,
         .buffer = layers},
        row * o.suffix);
  }
  add({.kind = OpKind::kHead, .stream = 1, .rows = Rows::kSuffix, .buffer = layers}, row);
  v.makespan_ns = v.promise.ttft_ns = at;
  return v;
}

/// A plan with one variant for every length and rate, and the full prefill.
inline Plan make_plan(const Shape& shape, LayerRange group, const std::string& schedule = "e-first",
                      const PlanOptions& options = {}) {
  Plan plan;
  plan.provenance = {
      .compiler_version = "0.1.0", .flags = "--recompute " + format_layers(group), .inputs = {}};
  plan.provenance.inputs = {{"sender", "sender", sha256_hex(std::string("sender"))},
                            {"receiver", "receiver", sha256_hex(std::string("receiver"))}};
  plan.sender = make_identity("sender");
  plan.receiver = make_identity("receiver");
  plan.shape = shape;
  plan.dtype = options.dtype;
  plan.variants = {make_variant(shape, group, schedule, options)};
  plan.full_prefill = make_full_prefill(shape, options);
  if (plan.variants[0].map_form != MapForm::kNone)
    plan.maps = {"maps.safetensors", sha256_hex(std::string("maps"))};
  return plan;
}

/// The same with its cut aligned.
inline Plan make_aligned_plan(const Shape& shape, LayerRange group, MapForm form,
                              MapSide side = MapSide::kReceiver, const std::string& schedule = "e-first",
                              PlanOptions options = {}) {
  options.map_form = form;
  options.map_side = side;
  return make_plan(shape, group, schedule, options);
}

/// The same with tokens selected.
inline Plan make_select_plan(const Shape& shape, double share, const PlanOptions& options = {}) {
  Plan plan = make_plan(shape, {0, -1}, "e-first", options);
  plan.variants = {make_select_variant(shape, share, options)};
  return plan;
}

/// The same with one layer restored, by the ops that recompute one layer behind a cut.
inline Plan make_restore_plan(const Shape& shape, int64_t layer, const PlanOptions& options = {}) {
  Plan plan = make_plan(shape, {layer, layer}, "e-first", options);
  plan.variants[0].policy = "restore";
  plan.variants[0].tiles[1].mode = Mode::kRestore;
  plan.variants[0].tiles[1].cut = false;
  return plan;
}

}  // namespace ds::testing
