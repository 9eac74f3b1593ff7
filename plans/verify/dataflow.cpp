// What each op reads has been written, in an order that waits and streams enforce.
// Memory is divided into regions: one per cache and chunk, one per cache's suffix rows, the same for hidden
// states. Ops are followed in the order of their indices, which respects every wait and stream.
// clock_[i][s] counts the ops of stream s that have ended when op i has; a happens before b exactly when
// b's count for a's stream has reached a's place there. Each region knows its last writer and, per stream,
// its last reader since.
#include "plans/verify/variant_internal.h"

namespace ds {
namespace {

class Dataflow : VariantFacts {
 public:
  explicit Dataflow(const VariantFacts& facts) : VariantFacts(facts) {}

  Status run() {
    clock_.assign(v_.ops.size() * streams_, 0);
    place_.assign(v_.ops.size(), 0);
    std::vector<int32_t> previous(streams_, -1);
    for (int32_t i = 0; i < ops(); ++i) {
      auto s = static_cast<size_t>(op(i).stream);
      uint32_t* mine = &clock_[static_cast<size_t>(i) * streams_];
      auto join = [&](int32_t other) {
        const uint32_t* theirs = &clock_[static_cast<size_t>(other) * streams_];
        for (size_t k = 0; k < streams_; ++k) mine[k] = std::max(mine[k], theirs[k]);
      };
      if (previous[s] >= 0) join(previous[s]);
      for (int32_t w : op(i).waits) join(w);
      place_[static_cast<size_t>(i)] = ++mine[s];
      previous[s] = i;
    }
    size_t count = static_cast<size_t>(layers_ + hidden_count_) * (static_cast<size_t>(chunks_) + 1);
    regions_.assign(count, {});
    readers_.assign(count * streams_, -1);
    started_.assign(v_.buffers.size(), false);
    for (int32_t i = 0; i < ops(); ++i) DS_TRY(access(i));
    for (size_t b = 0; b < v_.buffers.size(); ++b) {
      if (v_.buffers[b].kind == BufferKind::kHidden && !started_[b]) {
        return fail(13, "has buffer {} (hidden), which no op uses; expected only buffers that are needed", b);
      }
    }
    return ok_status();
  }

 private:
  struct Region {
    int32_t writer = -1;
    // Hidden: they enter this layer (only_selected() and not_aligned() of it: in that state); cache: kSent or
    // kMade; -1: nothing yet.
    int32_t level = -1;
  };
  static constexpr int32_t kSent = 0, kMade = 1;

  size_t kv_region(int32_t l, int32_t c) const {
    return static_cast<size_t>(l) * (static_cast<size_t>(chunks_) + 1) + static_cast<size_t>(c);
  }
  size_t hidden_region(int32_t buffer, int32_t c) const {
    return static_cast<size_t>(layers_ + hidden_[static_cast<size_t>(buffer)]) *
               (static_cast<size_t>(chunks_) + 1) +
           static_cast<size_t>(c);
  }
  std::string region_name(size_t r) const {
    auto row = static_cast<int32_t>(r / (static_cast<size_t>(chunks_) + 1));
    auto c = static_cast<int32_t>(r % (static_cast<size_t>(chunks_) + 1));
    std::string rows = c == chunks_ ? std::string("the suffix") : fmt::format("chunk {}", c);
    if (row < layers_) return fmt::format("KV of layer {}, {}", row, rows);
    for (size_t b = 0; b < hidden_.size(); ++b) {
      if (hidden_[b] == row - layers_) return fmt::format("hidden states of buffer {}, {}", b, rows);
    }
    return "?";
  }

  bool before(int32_t a, int32_t b) const {
    return clock_[static_cast<size_t>(b) * streams_ + static_cast<size_t>(op(a).stream)] >=
           place_[static_cast<size_t>(a)];
  }
  Status unordered(int32_t i, int32_t other, size_t r, const char* mine, const char* theirs) const {
    return fail_op(i, 19,
                   "{} {}, which {} {}, with no order between them; expected op {} among its waits, or "
                   "before them on one "
                   "stream",
                   mine, region_name(r), op_name(other), theirs, other);
  }
  Status read(int32_t i, size_t r) {
    if (regions_[r].writer >= 0 && !before(regions_[r].writer, i)) {
      return unordered(i, regions_[r].writer, r, "reads", "writes");
    }
    readers_[r * streams_ + static_cast<size_t>(op(i).stream)] = i;
    return ok_status();
  }
  Status write(int32_t i, size_t r, int32_t level) {
    Region& region = regions_[r];
    if (region.writer >= 0 && !before(region.writer, i))
      return unordered(i, region.writer, r, "writes", "writes too");
    for (size_t s = 0; s < streams_; ++s) {
      int32_t& reader = readers_[r * streams_ + s];
      if (reader >= 0 && reader != i && !before(reader, i)) return unordered(i, reader, r, "writes", "reads");
      reader = -1;
    }
    region = {i, level};
    return ok_status();
  }

  /// Of hidden states that hold the selected rows only, in front.
  int32_t only_selected(int32_t level) const { return layers_ + 1 + level; }
  /// Of the sender's hidden states that have yet to be mapped.
  int32_t not_aligned(int32_t level) const { return 2 * (layers_ + 1) + level; }

  Status read_hidden(int32_t i, size_t r, int32_t level) {
    if (regions_[r].level != level) {
      auto layer = [&](int32_t l) {
        if (l >= not_aligned(0)) return fmt::format("layer {}, not aligned", l - not_aligned(0));
        if (l >= only_selected(0)) return fmt::format("layer {}, selected tokens only", l - only_selected(0));
        return fmt::format("layer {}", l);
      };
      std::string found =
          regions_[r].level < 0
              ? std::string("which nothing has written before it")
              : fmt::format("which {} has left at {}", op_name(regions_[r].writer), layer(regions_[r].level));
      return fail_op(i, 18,
                     "reads {}, {}; expected what enters {}: E of that layer, the embeddings, or the layer "
                     "below done before it",
                     region_name(r), found, layer(level));
    }
    return read(i, r);
  }
  /// The cache of layer l in chunk c (the suffix: chunks_) as it was sent, or as its tile says.
  Status read_kv(int32_t i, int32_t l, int32_t c, bool sent) {
    size_t r = kv_region(l, c);
    int32_t wanted = sent || !mode(l, c).computes ? kSent : kMade;
    if (regions_[r].level != wanted) {
      return fail_op(i, 18, "reads {}, which nothing has {} before it; expected its {} before this op",
                     region_name(r), wanted == kMade ? "recomputed" : "loaded",
                     wanted == kMade ? "recomputation" : "transfer");
    }
    return read(i, r);
  }
  /// Hidden states start at the layer that their buffer names.
  Status start_chain(int32_t i, int32_t level) {
    const Op& o = op(i);
    const Buffer& buffer = v_.buffers[static_cast<size_t>(o.buffer)];
    if (!started_[static_cast<size_t>(o.buffer)] && buffer.layer != level) {
      return fail_op(i, 13,
                     "starts the chain of buffer {} at layer {}; expected layer {}, as the buffer says",
                     o.buffer, level, buffer.layer);
    }
    started_[static_cast<size_t>(o.buffer)] = true;
    return ok_status();
  }

  /// The level of hidden states in a state, for an op.
  int32_t level_of(const Op& o, const Access& a) const {
    const int32_t enters = o.layer >= 0 ? o.layer : a.write ? 0 : layers_;  // embeddings; what the head reads
    switch (a.state) {
      case Access::State::kSent:
        return v_.aligns() ? not_aligned(enters) : enters;
      case Access::State::kLeaves:
        return enters + 1;
      case Access::State::kChosen:
        return only_selected(enters);
      case Access::State::kChosenLeaves:
        return only_selected(enters + 1);
      default:
        return enters;
    }
  }

  /// The chunks that an access is of, half-open; chunks_: the suffix.
  std::pair<int32_t, int32_t> chunks_of(const Op& o, Access::Span span) const {
    switch (span) {
      case Access::Span::kContext:
        return {0, chunks_};
      case Access::Span::kSuffix:
        return {chunks_, chunks_ + 1};
      case Access::Span::kBefore:
        return {0, o.chunk};
      case Access::Span::kRows:
        break;
    }
    if (o.rows == Rows::kChunk) return {o.chunk, o.chunk_end()};
    return {o.rows == Rows::kSuffix ? chunks_ : 0, o.rows == Rows::kSelected ? chunks_ : chunks_ + 1};
  }

  Status access(int32_t i) {
    const Op& o = op(i);
    bool has_read = false;
    for (const Access& a : accesses_of(o)) {
      if ((a.when == Access::When::kWithQueries && o.queries == Queries::kNone) ||
          (a.when == Access::When::kAllQueries && o.queries != Queries::kAll)) {
        continue;
      }
      const bool hidden = a.memory == Access::Memory::kHidden;
      if (hidden && a.write && !has_read) DS_TRY(start_chain(i, std::max(o.layer, 0)));
      has_read = has_read || !a.write;
      auto [first, end] = chunks_of(o, a.span);
      for (int32_t c = first; c < end; ++c) {
        if (hidden) {
          const size_t r = hidden_region(o.buffer, c);
          DS_TRY(a.write ? write(i, r, level_of(o, a)) : read_hidden(i, r, level_of(o, a)));
        } else if (!a.write) {
          DS_TRY(read_kv(i, o.layer, c, a.state == Access::State::kSent));
        } else {
          const size_t r = kv_region(o.layer, c);
          const bool sent = a.state == Access::State::kSent;
          if (sent && regions_[r].level == kMade) {
            return fail_op(
                i, 18,
                "puts the sender's KV over what {} has recomputed; expected the transfer before it, or none",
                op_name(regions_[r].writer));
          }
          DS_TRY(write(i, r, sent ? kSent : kMade));
        }
      }
    }
    return ok_status();
  }

  std::vector<uint32_t> clock_, place_;
  std::vector<Region> regions_;
  std::vector<int32_t> readers_;
  std::vector<bool> started_;
};

}  // namespace

Status check_dataflow(const VariantFacts& facts) { return Dataflow(facts).run(); }

}  // namespace ds
