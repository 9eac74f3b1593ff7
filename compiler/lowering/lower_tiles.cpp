#include "compiler/lowering/lower_tiles.h"

#include "compiler/scheduling/schedulers.h"

namespace ds {
namespace {

class Lowering {
 public:
  Lowering(const std::vector<Tile>& tiles, int64_t layers, bool whole_entry)
      : tiles_(tiles), layers_(static_cast<int32_t>(layers)), whole_entry_(whole_entry) {}

  Variant run() {
    auto n = static_cast<size_t>(layers_);
    kv_.assign(n, -1);
    recomputed_.assign(n, -1);
    v_.tiles = tiles_;
    declare();
    if (link_ >= 0) transfers();
    kernels();
    return std::move(v_);
  }

 private:
  bool from_embeddings(const Tile& t) const { return t.mode == Mode::kRecompute && t.first_layer == 0; }
  /// The recomputed tile above goes on from this one's output.
  bool continued(size_t i) const {
    return i + 1 < tiles_.size() && tiles_[i + 1].mode == Mode::kRecompute && !tiles_[i + 1].cut;
  }

  int32_t add(Op op) {
    v_.ops.push_back(std::move(op));
    return static_cast<int32_t>(v_.ops.size()) - 1;
  }

  void declare() {
    bool uses_entry = false;
    for (const Tile& t : tiles_) uses_entry = uses_entry || t.mode == Mode::kLoad || t.cut;
    if (uses_entry) {
      link_ = 0;
      v_.streams.push_back({StreamKind::kLink});
    }
    compute_ = static_cast<int32_t>(v_.streams.size());
    v_.streams.push_back({StreamKind::kCompute});
    for (int32_t l = 0; l < layers_; ++l) v_.buffers.push_back({BufferKind::kKv, l, true, true});
    // The suffix's hidden states go through all layers; where the context starts from the embeddings too,
    // both share a buffer, so that one kernel takes them together.
    prefill_ = from_embeddings(tiles_.front());
    suffix_hidden_ = static_cast<int32_t>(v_.buffers.size());
    v_.buffers.push_back({BufferKind::kHidden, 0, true, prefill_});
    cut_hidden_.assign(tiles_.size(), -1);
    for (size_t i = 0; i < tiles_.size(); ++i) {
      if (!tiles_[i].cut) continue;
      cut_hidden_[i] = static_cast<int32_t>(v_.buffers.size());
      v_.buffers.push_back({BufferKind::kHidden, tiles_[i].first_layer, false, true});
    }
  }

  void transfers() {
    cut_.assign(tiles_.size(), -1);
    for (size_t i = 0; i < tiles_.size(); ++i) {
      if (!tiles_[i].cut) continue;
      cut_[i] = add({.kind = OpKind::kTransferE,
                     .stream = link_,
                     .layer = tiles_[i].first_layer,
                     .chunk = 0,
                     .buffer = cut_hidden_[i]});
    }
    for (const Tile& t : tiles_) {
      bool load = t.mode == Mode::kLoad;
      for (int32_t l = t.first_layer; l <= t.last_layer && (load || whole_entry_); ++l) {
        int32_t op = add({.kind = OpKind::kTransferKv, .stream = link_, .layer = l, .chunk = 0, .buffer = l});
        if (load) kv_[static_cast<size_t>(l)] = op;
      }
    }
  }

  void kernels() {
    int32_t suffix = add({.kind = OpKind::kEmbed,
                          .stream = compute_,
                          .rows = prefill_ ? Rows::kAll : Rows::kSuffix,
                          .buffer = suffix_hidden_});
    int32_t suffix_from = 0;  // the first layer that the suffix still has to go through by itself
    int32_t chain = -1, chain_buffer = -1;
    for (size_t i = 0; i < tiles_.size(); ++i) {
      const Tile& t = tiles_[i];
      if (t.mode != Mode::kRecompute) continue;
      bool together = prefill_ && !t.cut && t.first_layer == suffix_from;
      if (t.cut) {
        chain = cut_[i];
        chain_buffer = cut_hidden_[i];
      }
      for (int32_t l = t.first_layer; l <= t.last_layer; ++l) {
        bool top = l == t.last_layer && !continued(i);
        if (together) {
          Queries q = l == layers_ - 1 ? Queries::kLast : top ? Queries::kSuffix : Queries::kAll;
          suffix = add({.kind = OpKind::kPrefill,
                        .stream = compute_,
                        .layer = l,
                        .rows = Rows::kAll,
                        .queries = q,
                        .buffer = suffix_hidden_,
                        .waits = {suffix}});
          suffix_from = l + 1;
        } else {
          chain = add({.kind = OpKind::kRecompute,
                       .stream = compute_,
                       .layer = l,
                       .chunk = 0,
                       .queries = top ? Queries::kNone : Queries::kAll,
                       .buffer = chain_buffer,
                       .waits = {chain}});
          recomputed_[static_cast<size_t>(l)] = chain;
        }
      }
    }
    for (int32_t l = suffix_from; l < layers_; ++l) {
      Op op{.kind = OpKind::kSuffix,
            .stream = compute_,
            .layer = l,
            .rows = Rows::kSuffix,
            .queries = l == layers_ - 1 ? Queries::kLast : Queries::kAll,
            .buffer = suffix_hidden_};
      int32_t cache = kv_[static_cast<size_t>(l)] >= 0 ? kv_[static_cast<size_t>(l)]
                                                       : recomputed_[static_cast<size_t>(l)];
      op.waits = {cache, suffix};
      if (cache > suffix) std::swap(op.waits[0], op.waits[1]);
      suffix = add(std::move(op));
    }
    add({.kind = OpKind::kHead,
         .stream = compute_,
         .rows = Rows::kSuffix,
         .buffer = suffix_hidden_,
         .waits = {suffix}});
  }

  const std::vector<Tile>& tiles_;
  int32_t layers_;
  bool whole_entry_, prefill_ = false;
  int32_t link_ = -1, compute_ = 0, suffix_hidden_ = 0;
  std::vector<int32_t> cut_, cut_hidden_;  // per tile: transfer and buffer of its cut
  std::vector<int32_t> kv_, recomputed_;   // per layer: the op that makes its cache
  Variant v_;
};

}  // namespace

Variant lower_tiles(const std::vector<Tile>& tiles, int64_t layers, bool whole_entry) {
  return Lowering(tiles, layers, whole_entry).run();
}

Problem problem_of(const Variant& v, int64_t link_release_ns) {
  Problem p;
  p.name = v.name;
  p.jobs = {Job{"request", 0}};
  for (const Stream& s : v.streams) p.streams.emplace_back(stream_kind_name(s.kind));
  for (const Op& op : v.ops) {
    Task t;
    t.name = op_label(op, v.chunks);
    t.role = op.kind == OpKind::kTransferE    ? TaskRole::kLoadE
             : op.kind == OpKind::kTransferKv ? TaskRole::kLoadKv
                                              : TaskRole::kCompute;
    t.stream = op.stream;
    t.duration_ns = op.duration_ns;
    t.release_ns = t.role == TaskRole::kCompute ? 0 : link_release_ns;
    t.after = op.waits;
    t.layer = op.layer;
    t.chunk = op.chunk;
    p.tasks.push_back(std::move(t));
  }
  return p;
}

Result<int64_t> predict_ttft_ns(const std::vector<Tile>& tiles, const TunedPoint& point,
                                const CostModel& costs, std::string_view scheduler) {
  Variant v = lower_tiles(tiles, costs.shape().layers, moves_whole_entry(scheduler));
  for (Op& op : v.ops) op.duration_ns = costs.duration_ns(op, point);
  DS_ASSIGN(Schedule s, schedule(problem_of(v, costs.machine().link_rtt_ns), scheduler, false));
  return s.cost_ns;
}

}  // namespace ds
