#include "compiler/lowering/lower_tiles.h"

#include <algorithm>

#include "plans/traits.h"

namespace ds {
namespace {

class Lowering {
 public:
  Lowering(const std::vector<Tile>& tiles, int64_t layers, int32_t chunks, bool whole_entry, bool aligns,
           int32_t restore_buffers)
      : tiles_(tiles),
        layers_(static_cast<int32_t>(layers)),
        chunks_(chunks),
        turns_(restore_buffers > 0 ? restore_buffers : static_cast<int32_t>(layers)),
        whole_entry_(whole_entry),
        aligns_(aligns) {}

  Variant run() {
    maker_.assign(static_cast<size_t>(layers_) * static_cast<size_t>(chunks_), -1);
    goes_on_.assign(maker_.size(), false);
    for (const Tile& t : tiles_) {
      // The choice of tokens needs what leaves layer 0.
      if (t.mode == Mode::kSelect) goes_on_[cell(0, 0)] = true;
      if (t.mode != Mode::kRecompute) continue;
      // A tile's cells go on upward inside it, and so do those below a tile without a cut.
      for (int32_t l = t.cut ? t.first_layer : t.first_layer - 1; l < t.last_layer; ++l)
        for (int32_t c = t.first_chunk; l >= 0 && c <= t.last_chunk; ++c) goes_on_[cell(l, c)] = true;
    }
    v_.chunks = chunks_;
    v_.tiles = tiles_;
    declare();
    if (link_ >= 0) transfers();
    kernels();
    return std::move(v_);
  }

 private:
  size_t cell(int32_t l, int32_t c) const {
    return static_cast<size_t>(l) * static_cast<size_t>(chunks_) + static_cast<size_t>(c);
  }
  static bool from_embeddings(const Tile& t) { return traits_of(t.mode).computes && t.first_layer == 0; }
  static bool loads(const Tile& t) { return traits_of(t.mode).sends_kv; }
  static int32_t last_or_none(int32_t first, int32_t last) { return last > first ? last : -1; }

  int32_t add(Op op) {
    v_.ops.push_back(std::move(op));
    return static_cast<int32_t>(v_.ops.size()) - 1;
  }
  int32_t add_hidden(int32_t layer, bool with_suffix, bool with_context) {
    v_.buffers.push_back({BufferKind::kHidden, layer, with_suffix, with_context});
    return static_cast<int32_t>(v_.buffers.size()) - 1;
  }

  void declare() {
    bool uses_entry = false;
    for (const Tile& t : tiles_) uses_entry = uses_entry || loads(t) || t.cut || t.sends_e(t.last_layer);
    if (uses_entry) {
      link_ = 0;
      v_.streams.push_back({StreamKind::kLink});
    }
    compute_ = static_cast<int32_t>(v_.streams.size());
    v_.streams.push_back({StreamKind::kCompute});
    for (int32_t l = 0; l < layers_; ++l) v_.buffers.push_back({BufferKind::kKv, l, true, true});
    // The suffix's hidden states go through all layers; where the context starts from the embeddings too,
    // both share a buffer, so that one kernel takes them together.
    prefill_ = chunks_ == 1 && from_embeddings(tiles_.front());
    suffix_hidden_ = add_hidden(0, true, prefill_);
    hidden_.assign(tiles_.size(), -1);
    restored_.assign(static_cast<size_t>(layers_), -1);
    std::vector<int32_t> below(static_cast<size_t>(chunks_), -1);  // by chunk: the highest tile so far
    for (size_t i = 0; i < tiles_.size(); ++i) {
      const Tile& t = tiles_[i];
      if (t.mode == Mode::kRecompute) {
        int32_t under = below[static_cast<size_t>(t.first_chunk)];
        if (t.cut || t.first_layer == 0) {
          hidden_[i] =
              prefill_ && t.first_layer == 0 ? suffix_hidden_ : add_hidden(t.first_layer, false, true);
        } else {
          hidden_[i] = hidden_[static_cast<size_t>(under)];
        }
      }
      for (int32_t l = t.first_layer; t.mode == Mode::kRestore && l <= t.last_layer; ++l) {
        int32_t& buffer = restored_[static_cast<size_t>(named_after(t, l))];
        if (buffer < 0) buffer = prefill_ && l == 0 ? suffix_hidden_ : add_hidden(l, false, true);
      }
      for (int32_t c = t.first_chunk; c <= t.last_chunk; ++c)
        below[static_cast<size_t>(c)] = static_cast<int32_t>(i);
    }
  }

  /// The layers of a restore tile take turns in the buffers of its first ones, so that tiles side by side
  /// share them. Layer 0 may go along with the prefill, in its buffer.
  int32_t first_buffered(const Tile& t) const { return std::max(t.first_layer, prefill_ ? 1 : 0); }
  int32_t named_after(const Tile& t, int32_t l) const {
    const int32_t first = first_buffered(t);
    return l < first ? l : first + (l - first) % turns_;
  }
  int32_t restored_buffer(const Tile& t, int32_t l) const {
    return restored_[static_cast<size_t>(named_after(t, l))];
  }
  bool waits_for_turn(const Tile& t, int32_t l) const { return named_after(t, l) != l; }

  int32_t send_e(const Tile& t, int32_t l, std::vector<int32_t> waits) {
    return add({.kind = OpKind::kTransfer,
                .payload = Payload::kE,
                .stream = link_,
                .layer = l,
                .chunk = t.first_chunk,
                .buffer = restored_buffer(t, l),
                .waits = std::move(waits),
                .last_chunk = last_or_none(t.first_chunk, t.last_chunk)});
  }

  void transfers() {
    cut_.assign(tiles_.size(), -1);
    sent_e_.assign(maker_.size(), -1);
    for (size_t i = 0; i < tiles_.size(); ++i) {
      const Tile& t = tiles_[i];
      for (int32_t l = t.first_layer; t.mode == Mode::kRestore && l <= t.last_layer; ++l) {
        if (l == 0 || waits_for_turn(t, l)) continue;
        sent_e_[cell(l, t.first_chunk)] = send_e(t, l, {});
      }
      for (int32_t c = t.first_chunk; t.cut && c <= t.last_chunk; ++c) {
        int32_t op = add({.kind = OpKind::kTransfer,
                          .payload = Payload::kE,
                          .stream = link_,
                          .layer = t.first_layer,
                          .chunk = c,
                          .buffer = hidden_[i]});
        if (c == t.first_chunk) cut_[i] = op;
      }
    }
    for (const Tile& t : tiles_) {
      bool load = loads(t);
      for (int32_t l = t.first_layer; l <= t.last_layer && (load || whole_entry_); ++l) {
        int32_t op = add({.kind = OpKind::kTransfer,
                          .payload = Payload::kKv,
                          .stream = link_,
                          .layer = l,
                          .chunk = t.first_chunk,
                          .buffer = l,
                          .last_chunk = last_or_none(t.first_chunk, t.last_chunk)});
        for (int32_t c = t.first_chunk; load && c <= t.last_chunk; ++c) maker_[cell(l, c)] = op;
      }
    }
  }

  /// What must have ended before the K and V of the chunks in front of `chunk` can be read at layer l. A
  /// kernel with queries has waited for all chunks before its own, so nothing behind it is needed.
  void wait_for_chunks_before(int32_t l, int32_t chunk, std::vector<int32_t>& waits) const {
    for (int32_t c = chunk - 1; c >= 0; --c) {
      int32_t m = maker_[cell(l, c)];
      waits.push_back(m);
      const Op& op = v_.ops[static_cast<size_t>(m)];
      if (op.kind == OpKind::kRecompute && op.queries == Queries::kAll) return;
      c = op.chunk;
    }
  }
  static void tidy(std::vector<int32_t>& waits) {
    std::sort(waits.begin(), waits.end());
    waits.erase(std::unique(waits.begin(), waits.end()), waits.end());
  }

  /// Layer l over chunks first to last of a tile; `waits`: what left their hidden states there.
  int32_t recompute(int32_t l, int32_t first, int32_t last, int32_t buffer, std::vector<int32_t> waits) {
    bool on = goes_on_[cell(l, first)];
    Op op{.kind = OpKind::kRecompute,
          .stream = compute_,
          .layer = l,
          .chunk = first,
          .queries = on ? Queries::kAll : Queries::kNone,
          .buffer = buffer,
          .waits = std::move(waits),
          .last_chunk = last_or_none(first, last)};
    if (on) wait_for_chunks_before(l, first, op.waits);
    tidy(op.waits);
    int32_t id = add(std::move(op));
    for (int32_t c = first; c <= last; ++c) maker_[cell(l, c)] = id;
    return id;
  }

  /// Layer by layer over runs of chunks that all go on, or all do not. `chains`: by chunk of the tile, what
  /// left its hidden states; replaced by what leaves the tile.
  void recompute_tile(const Tile& t, int32_t buffer, bool by_chunk, std::vector<int32_t>& chains) {
    for (int32_t l = t.first_layer; l <= t.last_layer; ++l) {
      for (int32_t first = t.first_chunk, last = 0; first <= t.last_chunk; first = last + 1) {
        last = first;
        auto same = [&](int32_t c) { return goes_on_[cell(l, c)] == goes_on_[cell(l, first)]; };
        while (!by_chunk && last < t.last_chunk && same(last + 1)) ++last;
        int32_t id = recompute(l, first, last, buffer, {chains.begin() + first, chains.begin() + last + 1});
        for (int32_t c = first; c <= last; ++c) chains[static_cast<size_t>(c)] = id;
      }
    }
  }

  /// What leaves the hidden states that a transfer has brought as the receiver's layers are to see them.
  int32_t aligned(int32_t transfer) {
    if (!aligns_) return transfer;
    const Op& sent = v_.ops[static_cast<size_t>(transfer)];
    return add({.kind = OpKind::kAlign,
                .stream = compute_,
                .layer = sent.layer,
                .chunk = sent.chunk,
                .buffer = sent.buffer,
                .waits = {transfer},
                .last_chunk = sent.last_chunk});
  }

  int32_t embed_chunks(const Tile& t, int32_t buffer) {
    return add({.kind = OpKind::kEmbed,
                .stream = compute_,
                .chunk = t.first_chunk,
                .buffer = buffer,
                .last_chunk = last_or_none(t.first_chunk, t.last_chunk)});
  }

  /// K and V of each layer from E of that layer: a kernel waits for another one's buffer at most.
  void restore_tile(const Tile& t) {
    for (int32_t l = first_buffered(t); l <= t.last_layer; ++l) {
      const size_t at = cell(l, t.first_chunk);
      if (waits_for_turn(t, l)) sent_e_[at] = send_e(t, l, {maker_[cell(l - turns_, t.first_chunk)]});
      int32_t from = l == 0 ? embed_chunks(t, restored_buffer(t, l)) : aligned(sent_e_[at]);
      recompute(l, t.first_chunk, t.last_chunk, restored_buffer(t, l), {from});
    }
  }

  /// Chooses tokens by what enters layer 1, and takes them up to the last layer over the sender's K and V.
  /// `from`: what left those hidden states.
  void select_tile(const Tile& t, int32_t from) {
    int32_t below = add({.kind = OpKind::kSelect,
                         .stream = compute_,
                         .layer = t.first_layer,
                         .chunk = 0,
                         .buffer = suffix_hidden_,
                         .waits = {maker_[cell(t.first_layer, 0)], from}});
    tidy(v_.ops.back().waits);
    for (int32_t l = t.first_layer; l <= t.last_layer; ++l) {
      Op op{.kind = OpKind::kRecompute,
            .stream = compute_,
            .layer = l,
            .rows = Rows::kSelected,
            .queries = l == layers_ - 1 ? Queries::kNone : Queries::kAll,
            .buffer = suffix_hidden_,
            .waits = {maker_[cell(l, 0)], below}};
      tidy(op.waits);
      maker_[cell(l, 0)] = below = add(std::move(op));
    }
  }

  /// Context and suffix together; `from`: what left their hidden states.
  int32_t prefill(int32_t l, int32_t from) {
    Queries q = l == layers_ - 1 ? Queries::kLast : goes_on_[cell(l, 0)] ? Queries::kAll : Queries::kSuffix;
    int32_t id = add({.kind = OpKind::kPrefill,
                      .stream = compute_,
                      .layer = l,
                      .rows = Rows::kAll,
                      .queries = q,
                      .buffer = suffix_hidden_,
                      .waits = {from}});
    maker_[cell(l, 0)] = id;
    return id;
  }

  void kernels() {
    int32_t suffix = add({.kind = OpKind::kEmbed,
                          .stream = compute_,
                          .rows = prefill_ ? Rows::kAll : Rows::kSuffix,
                          .buffer = suffix_hidden_});
    int32_t suffix_from = 0;  // the first layer that the suffix still has to go through by itself
    std::vector<int32_t> chains(static_cast<size_t>(chunks_), -1);  // by chunk: what left its hidden states
    for (size_t i = 0; i < tiles_.size(); ++i) {
      const Tile& t = tiles_[i];
      if (t.mode == Mode::kLoad) continue;
      if (t.mode == Mode::kSelect) {
        select_tile(t, suffix);
        continue;
      }
      if (t.mode == Mode::kRestore) {
        if (prefill_ && t.first_layer == 0) {
          suffix = prefill(0, suffix);
          suffix_from = 1;
        }
        restore_tile(t);
        continue;
      }
      if (prefill_ && !t.cut && t.first_layer == suffix_from) {
        for (int32_t l = t.first_layer; l <= t.last_layer; ++l) suffix = prefill(l, suffix);
        suffix_from = t.last_layer + 1;
        continue;
      }
      for (int32_t c = t.first_chunk; t.cut && c <= t.last_chunk; ++c)
        chains[static_cast<size_t>(c)] = aligned(cut_[i] + (c - t.first_chunk));
      if (from_embeddings(t)) {
        int32_t embed = embed_chunks(t, hidden_[i]);
        std::fill(chains.begin() + t.first_chunk, chains.begin() + t.last_chunk + 1, embed);
      }
      recompute_tile(t, hidden_[i], t.cut, chains);
    }
    for (int32_t l = suffix_from; l < layers_; ++l) {
      Op op{.kind = OpKind::kSuffix,
            .stream = compute_,
            .layer = l,
            .rows = Rows::kSuffix,
            .queries = l == layers_ - 1 ? Queries::kLast : Queries::kAll,
            .buffer = suffix_hidden_,
            .waits = {suffix}};
      wait_for_chunks_before(l, chunks_, op.waits);
      tidy(op.waits);
      suffix = add(std::move(op));
    }
    add({.kind = OpKind::kHead,
         .stream = compute_,
         .rows = Rows::kSuffix,
         .buffer = suffix_hidden_,
         .waits = {suffix}});
  }

  const std::vector<Tile>& tiles_;
  int32_t layers_, chunks_, turns_;
  bool whole_entry_, aligns_, prefill_ = false;
  int32_t link_ = -1, compute_ = 0, suffix_hidden_ = 0;
  std::vector<int32_t> cut_, hidden_;  // per tile: the first transfer of its cut; its hidden states' buffer
  std::vector<int32_t> restored_;      // per layer: the buffer of restored E that is named after it, else -1
  std::vector<int32_t> sent_e_;        // per cell: the transfer of a restored run of chunks that begins here
  std::vector<int32_t> maker_;         // per cell: the op that makes its cache
  std::vector<bool> goes_on_;          // per cell: its output is the input of the cell above
  Variant v_;
};

}  // namespace

Variant lower_tiles(const std::vector<Tile>& tiles, int64_t layers, int32_t chunks, bool whole_entry,
                    bool aligns, int32_t restore_buffers) {
  return Lowering(tiles, layers, chunks, whole_entry, aligns, restore_buffers).run();
}

}  // namespace ds
