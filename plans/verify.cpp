// The semantic verifier. Rules and their numbers: plans/README.md. It shares nothing with the compiler that
// makes plans; the executor relies on every rule and checks none of them again.
#include <algorithm>
#include <cmath>
#include <unordered_set>

#include "plans/limits.h"
#include "plans/plan_file.h"
#include "plans/traits.h"

namespace ds {
namespace {

/// UTF-8 without control characters: such text can go into any message, JSON or picture.
bool clean_text(std::string_view s) {
  for (size_t i = 0; i < s.size();) {
    auto c = static_cast<unsigned char>(s[i]);
    size_t length = c < 0x80                ? 1
                    : c >= 0xc2 && c < 0xe0 ? 2
                    : c >= 0xe0 && c < 0xf0 ? 3
                    : c >= 0xf0 && c < 0xf5 ? 4
                                            : 0;
    if (length == 0 || i + length > s.size() || c < 0x20 || c == 0x7f) return false;
    uint32_t point = length == 1 ? c : c & (0x7fu >> length);
    for (size_t k = 1; k < length; ++k) {
      auto next = static_cast<unsigned char>(s[i + k]);
      if ((next & 0xc0) != 0x80) return false;
      point = point << 6 | (next & 0x3f);
    }
    if ((length == 3 && point < 0x800) || (length == 4 && (point < 0x10000 || point > 0x10ffff)) ||
        (point >= 0xd800 && point < 0xe000)) {
      return false;
    }
    i += length;
  }
  return true;
}

bool is_sha256(std::string_view s) {
  return s.size() == 64 && s.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}

std::string_view rows_name(Rows rows) {
  return rows == Rows::kChunk    ? "chunk"
         : rows == Rows::kSuffix ? "suffix"
         : rows == Rows::kAll    ? "all"
                                 : "selected";
}
std::string_view queries_name(Queries q) {
  switch (q) {
    case Queries::kNone:
      return "none";
    case Queries::kAll:
      return "all";
    case Queries::kSuffix:
      return "suffix";
    case Queries::kLast:
      return "last";
  }
  return "unknown";
}
/// "chunk, suffix or all", of a set of bit()s.
std::string rows_text(uint8_t rows) {
  std::vector<std::string_view> names;
  for (Rows r : {Rows::kChunk, Rows::kSuffix, Rows::kAll, Rows::kSelected})
    if ((rows & bit(r)) != 0) names.push_back(rows_name(r));
  std::string text;
  for (size_t k = 0; k < names.size(); ++k)
    text += fmt::format("{}{}", k == 0 ? "" : k + 1 < names.size() ? ", " : " or ", names[k]);
  return text;
}
std::string_view buffer_name(BufferKind kind) { return kind == BufferKind::kKv ? "kv" : "hidden"; }
std::string limit_text(int64_t limit) { return limit == kNoLimit ? "no limit" : std::to_string(limit); }

class VariantVerifier {
 public:
  VariantVerifier(const std::string& origin, const Shape& shape, const Variant& variant)
      : origin_(origin),
        v_(variant),
        layers_(static_cast<int32_t>(shape.layers)),
        last_layer_(layers_ - 1),
        chunks_(variant.chunks),
        streams_(variant.streams.size()) {}

  Status run() {
    DS_TRY(sizes());
    DS_TRY(header());
    DS_TRY(streams());
    DS_TRY(buffers());
    DS_TRY(tiles());
    for (int32_t i = 0; i < ops(); ++i) DS_TRY(fields(i));
    DS_TRY(times());
    DS_TRY(coverage());
    return dataflow();
  }

  /// Rule 7.
  Status full_prefill() const {
    if (v_.tokens_min != 1 || v_.tokens_max != kNoLimit || v_.rate_min != 0 || v_.rate_max != kNoLimit ||
        v_.load_min != 0 || v_.load_max != kNoLimit) {
      return fail(
          7,
          "covers contexts [{}, {}), rates [{}, {}) and loads [{}, {}); expected every length from 1, every "
          "rate and every load from 0, without limit: it is the fall-back",
          v_.tokens_min, limit_text(v_.tokens_max), v_.rate_min, limit_text(v_.rate_max), v_.load_min,
          limit_text(v_.load_max));
    }
    for (size_t i = 0; i < v_.tiles.size(); ++i) {
      if (v_.tiles[i].mode != Mode::kRecompute || v_.tiles[i].cut) {
        return fail(7, "tile {} is {}{}; expected only recompute without cuts: the fall-back needs no sender",
                    i, mode_name(v_.tiles[i].mode), v_.tiles[i].cut ? " with a cut" : "");
      }
    }
    for (int32_t i = 0; i < ops(); ++i) {
      if (is_transfer(op(i))) {
        return fail_op(i, 7, "is a transfer; expected none: the fall-back needs no sender");
      }
    }
    return ok_status();
  }

 private:
  int32_t ops() const { return static_cast<int32_t>(v_.ops.size()); }
  const Op& op(int32_t i) const { return v_.ops[static_cast<size_t>(i)]; }
  size_t cell(int32_t l, int32_t c) const {
    return static_cast<size_t>(l) * static_cast<size_t>(chunks_) + static_cast<size_t>(c);
  }
  /// Of a cell that has a tile.
  const ModeTraits& mode(int32_t l, int32_t c) const {
    return traits_of(static_cast<Mode>(mode_[cell(l, c)] - 1));
  }
  bool is(Mode mode, int32_t l, int32_t c) const {
    return mode_[cell(l, c)] == 1 + static_cast<uint8_t>(mode);
  }
  bool recomputed(int32_t l, int32_t c) const { return is(Mode::kRecompute, l, c); }
  bool selected(int32_t l, int32_t c) const { return is(Mode::kSelect, l, c); }
  /// The hidden states that leave layer l at chunk c are used: the cell above is recomputed from them.
  bool goes_on(int32_t l, int32_t c) const {
    return l < last_layer_ &&
           ((recomputed(l + 1, c) && !cut_[cell(l + 1, c)]) || (l == 0 && selected(l + 1, c)));
  }

  std::string op_name(int32_t i) const { return fmt::format("op {} ({})", i, op_label(op(i), chunks_)); }

  template <typename... Args>
  Status fail(int rule, fmt::format_string<Args...> format, Args&&... args) const {
    return error(Code::kCorrupt, "plan '{}': variant '{}' {} [rule {}]", origin_, v_.name,
                 fmt::format(format, std::forward<Args>(args)...), rule);
  }
  template <typename... Args>
  Status fail_op(int32_t i, int rule, fmt::format_string<Args...> format, Args&&... args) const {
    return error(Code::kCorrupt, "plan '{}': variant '{}': {} {} [rule {}]", origin_, v_.name, op_name(i),
                 fmt::format(format, std::forward<Args>(args)...), rule);
  }
  Status unknown(std::string_view where, std::string_view what, int found, int known) const {
    return error(Code::kUnsupported,
                 "plan '{}': variant '{}': {} has {} {}; this version knows 0 to {}: update droidspeak here, "
                 "or compile the "
                 "plan with an older ds-compile [rule 9]",
                 origin_, v_.name, where, what, found, known);
  }

  Status sizes() const {
    if (v_.chunks < 1 || v_.chunks > kMaxChunks) {
      return fail(4, "has {} chunks; expected 1 to {}", v_.chunks, kMaxChunks);
    }
    if (streams_ < 1 || streams_ > kMaxStreams) {
      return fail(4, "has {} streams; expected 1 to {}", streams_, kMaxStreams);
    }
    if (v_.ops.size() > kMaxOps) return fail(4, "has {} ops; expected at most {}", v_.ops.size(), kMaxOps);
    // What follows needs memory and time in proportion to layers and cells.
    if (int64_t{layers_} * chunks_ > kMaxCells) {
      return fail(4, "has {} layers of {} chunks; expected at most {} cells", layers_, chunks_, kMaxCells);
    }
    if (static_cast<int64_t>(v_.ops.size()) < layers_) {
      return fail(4, "has {} ops for {} layers; expected at least one op for each", v_.ops.size(), layers_);
    }
    if (v_.alternatives.size() > kMaxAlternatives) {
      return fail(4, "has {} alternatives; expected at most {}", v_.alternatives.size(), kMaxAlternatives);
    }
    if (v_.buffers.size() > 2 * static_cast<size_t>(layers_) + 2) {
      return fail(4, "has {} buffers; expected at most {} for {} layers", v_.buffers.size(), 2 * layers_ + 2,
                  layers_);
    }
    if (v_.tiles.size() > static_cast<size_t>(layers_) * static_cast<size_t>(chunks_)) {
      return fail(4, "has {} tiles; expected at most {}, one for each layer and chunk", v_.tiles.size(),
                  int64_t{layers_} * chunks_);
    }
    return ok_status();
  }

  Status header() const {
    if (v_.tokens_min < 1 || v_.tokens_max <= v_.tokens_min) {
      return fail(5, "is for context lengths [{}, {}); expected a range that is not empty, from 1 up",
                  v_.tokens_min, limit_text(v_.tokens_max));
    }
    if (v_.rate_min < 0 || v_.rate_max <= v_.rate_min) {
      return fail(5, "is for link rates [{}, {}); expected a range that is not empty, from 0 up", v_.rate_min,
                  limit_text(v_.rate_max));
    }
    if (v_.load_min < 0 || v_.load_max <= v_.load_min) {
      return fail(5, "is for loads [{}, {}); expected a range that is not empty, from 0 up", v_.load_min,
                  limit_text(v_.load_max));
    }
    if (!(v_.regret == -1 || (v_.regret >= 0 && std::isfinite(v_.regret)))) {
      return fail(5, "states a regret of {}; expected 0 or more, or -1 where it is not known", v_.regret);
    }
    for (size_t a = 0; a < v_.alternatives.size(); ++a) {
      const Alternative& other = v_.alternatives[a];
      const bool diverges = other.divergence < 0 || std::isinf(other.divergence);
      if (std::isinf(other.quality_loss) || other.quality_loss < -100 || other.quality_loss > 100 ||
          other.ttft_ns < 0 || other.compute_ns < 0 || diverges) {
        return fail(
            5,
            "has alternative {} with a loss of {}, a divergence of {}, a TTFT of {} ns and {} ns of compute; "
            "expected -100 to 100 points or NaN, nats of 0 or more or NaN, and times of 0 or more",
            a, other.quality_loss, other.divergence, other.ttft_ns, other.compute_ns);
      }
    }
    bool untuned = v_.tuned_tokens == 0 && v_.tuned_suffix == 0 && v_.tuned_rate == 0 && v_.makespan_ns == 0;
    if (!untuned && (v_.tuned_tokens < v_.tokens_min || v_.tuned_tokens >= v_.tokens_max ||
                     v_.tuned_tokens > kMaxTokens || v_.tuned_suffix < 1 || v_.tuned_suffix > kMaxTokens ||
                     v_.tuned_rate < v_.rate_min || v_.tuned_rate >= v_.rate_max)) {
      return fail(5,
                  "is tuned for {} tokens, a suffix of {} and {} B/s; expected a suffix of 1 or more and a "
                  "point in its own ranges [{}, {}) and [{}, {}), at most {} tokens, or zeros for a plan "
                  "without times",
                  v_.tuned_tokens, v_.tuned_suffix, v_.tuned_rate, v_.tokens_min, limit_text(v_.tokens_max),
                  v_.rate_min, limit_text(v_.rate_max), kMaxTokens);
    }
    double loss = v_.promise.quality_loss;
    if (std::isinf(loss) || loss < -100 || loss > 100) {
      return fail(5,
                  "promises a quality loss of {}; expected -100 to 100 points, or NaN where it is not known",
                  loss);
    }
    const Promise& p = v_.promise;
    if (std::isinf(p.loss_stderr) || p.loss_stderr < 0) {
      return fail(5, "states a standard error of {} for its loss; expected 0 points or more, or NaN",
                  p.loss_stderr);
    }
    if (p.confidence != 0 && !(p.confidence > 0.5 && p.confidence < 1)) {
      return fail(5, "states a confidence of {}; expected 0 (none), or above 0.5 and below 1", p.confidence);
    }
    if (std::isinf(p.loss_bound) || (p.confidence == 0 && !std::isnan(p.loss_bound))) {
      return fail(5, "bounds its loss by {} points with a confidence of {}; expected {}", p.loss_bound,
                  p.confidence, p.confidence == 0 ? "NaN: no bound was asked for" : "a number, or NaN");
    }
    for (double nats : {p.divergence, p.divergence_stderr, p.divergence_bound}) {
      if (!(std::isnan(nats) || (nats >= 0 && std::isfinite(nats))))
        return fail(5,
                    "promises a divergence of {} nats, a standard error of {}, a bound of {}; expected 0 or "
                    "more, or NaN where it is not known",
                    p.divergence, p.divergence_stderr, p.divergence_bound);
    }
    if (p.confidence == 0 && !std::isnan(p.divergence_bound)) {
      return fail(
          5, "bounds its divergence by {} nats with a confidence of 0; expected NaN: no bound was asked for",
          p.divergence_bound);
    }
    if (v_.map_form > MapForm::kFull)
      return unknown("its header", "map form", static_cast<int>(v_.map_form),
                     static_cast<int>(MapForm::kFull));
    if (v_.map_side > MapSide::kSender)
      return unknown("its header", "map side", static_cast<int>(v_.map_side),
                     static_cast<int>(MapSide::kSender));
    if (v_.promise.ttft_ns < 0)
      return fail(5, "promises a TTFT of {} ns; expected 0 or more", v_.promise.ttft_ns);
    return ok_status();
  }

  Status streams() const {
    for (size_t s = 0; s < streams_; ++s) {
      if (v_.streams[s].kind > StreamKind::kCompute) {
        return unknown(fmt::format("stream {}", s), "kind", static_cast<int>(v_.streams[s].kind),
                       static_cast<int>(StreamKind::kCompute));
      }
    }
    return ok_status();
  }

  Status buffers() {
    kv_buffer_.assign(static_cast<size_t>(layers_), -1);
    hidden_.assign(v_.buffers.size(), -1);
    int32_t hidden = 0;
    for (size_t b = 0; b < v_.buffers.size(); ++b) {
      const Buffer& buffer = v_.buffers[b];
      if (buffer.kind > BufferKind::kHidden) {
        return unknown(fmt::format("buffer {}", b), "kind", static_cast<int>(buffer.kind),
                       static_cast<int>(BufferKind::kHidden));
      }
      if (buffer.layer < 0 || buffer.layer >= layers_) {
        return fail(13, "buffer {} ({}) is for layer {}; expected 0 to {}", b, buffer_name(buffer.kind),
                    buffer.layer, last_layer_);
      }
      if (buffer.kind == BufferKind::kHidden) {
        if (!buffer.with_context && !buffer.with_suffix) {
          return fail(13, "buffer {} (hidden) has neither context nor suffix rows; expected one of them", b);
        }
        hidden_[b] = hidden++;
        continue;
      }
      int32_t& known = kv_buffer_[static_cast<size_t>(buffer.layer)];
      if (known >= 0) {
        return fail(13, "buffers {} and {} are both the cache of layer {}; expected one", known, b,
                    buffer.layer);
      }
      if (!buffer.with_context || !buffer.with_suffix) {
        return fail(
            13, "buffer {} (kv) of layer {} lacks {} rows; expected context and suffix rows in every cache",
            b, buffer.layer, buffer.with_context ? "suffix" : "context");
      }
      known = static_cast<int32_t>(b);
    }
    hidden_count_ = hidden;
    for (int32_t l = 0; l < layers_; ++l) {
      if (kv_buffer_[static_cast<size_t>(l)] < 0) {
        return fail(13, "has no kv buffer for layer {}; expected one for each of {} layers", l, layers_);
      }
    }
    return ok_status();
  }

  Status tiles() {
    mode_.assign(static_cast<size_t>(layers_) * static_cast<size_t>(chunks_), 0);
    cut_.assign(mode_.size(), false);
    sends_e_.assign(mode_.size(), false);
    for (size_t t = 0; t < v_.tiles.size(); ++t) {
      const Tile& tile = v_.tiles[t];
      if (static_cast<size_t>(tile.mode) >= kModes) {
        return unknown(fmt::format("tile {}", t), "mode", static_cast<int>(tile.mode),
                       static_cast<int>(kModes) - 1);
      }
      if (tile.first_layer < 0 || tile.last_layer < tile.first_layer || tile.last_layer > last_layer_ ||
          tile.first_chunk < 0 || tile.last_chunk < tile.first_chunk || tile.last_chunk >= chunks_) {
        return fail(14,
                    "tile {} has layers {} to {}, chunks {} to {}; expected to lie within layers 0 to {}, "
                    "chunks 0 to {}",
                    t, tile.first_layer, tile.last_layer, tile.first_chunk, tile.last_chunk, last_layer_,
                    chunks_ - 1);
      }
      if (tile.cut && (tile.mode != Mode::kRecompute || tile.first_layer == 0)) {
        return fail(14,
                    "tile {} ({}, from layer {}) has a cut; expected cuts under recompute tiles above layer "
                    "0 only: E of "
                    "layer 0 is the receiver's own",
                    t, mode_name(tile.mode), tile.first_layer);
      }
      selects_ = selects_ || tile.mode == Mode::kSelect;
      if (tile.mode == Mode::kSelect &&
          (chunks_ != 1 || tile.first_layer != 1 || tile.last_layer != last_layer_)) {
        return fail(14,
                    "tile {} selects tokens of layers {} to {} in {} chunks; expected layers 1 to {} in one "
                    "chunk: what is chosen goes up to the last layer",
                    t, tile.first_layer, tile.last_layer, chunks_, last_layer_);
      }
      for (int32_t l = tile.first_layer; l <= tile.last_layer; ++l) {
        for (int32_t c = tile.first_chunk; c <= tile.last_chunk; ++c) {
          if (mode_[cell(l, c)] != 0) {
            return fail(14,
                        "tile {} covers layer {}, chunk {} again; expected every cell in exactly one tile", t,
                        l, c);
          }
          mode_[cell(l, c)] = static_cast<uint8_t>(1 + static_cast<uint8_t>(tile.mode));
          cut_[cell(l, c)] = tile.cut && l == tile.first_layer;
          sends_e_[cell(l, c)] = tile.sends_e(l);
        }
      }
    }
    for (int32_t l = 0; l < layers_; ++l) {
      for (int32_t c = 0; c < chunks_; ++c) {
        if (mode_[cell(l, c)] == 0) {
          return fail(14, "leaves layer {}, chunk {} without a tile; expected every cell in exactly one tile",
                      l, c);
        }
        if (l == 1 && selected(l, c) && !recomputed(0, c)) {
          return fail(14,
                      "selects tokens of layer 1, but layer 0 is {}; expected it recomputed, from the "
                      "embeddings: the choice rests on what leaves it",
                      mode(0, c).done);
        }
        if (l > 0 && recomputed(l, c) && !cut_[cell(l, c)] && !recomputed(l - 1, c)) {
          return fail(14,
                      "recomputes layer {}, chunk {} from nothing: the layer below is {} and there is no "
                      "cut; expected E of layer {} (a cut), or layer {} recomputed too",
                      l, c, mode(l - 1, c).done, l, l - 1);
        }
      }
    }
    bool sends = std::find(sends_e_.begin(), sends_e_.end(), true) != sends_e_.end();
    if (v_.map_form != MapForm::kNone && !sends) {
      return fail(20, "has {} maps, but is sent no hidden states; expected a cut or restored layers",
                  map_form_name(v_.map_form));
    }
    if (v_.map_form == MapForm::kNone && v_.map_side != MapSide::kReceiver) {
      return fail(20, "has no maps, but the {} is to apply them; expected the receiver, which means nothing",
                  map_side_name(v_.map_side));
    }
    bool share = v_.select_share > 0 && v_.select_share <= 1;
    if (selects_ ? !share : v_.select_share != 0) {
      return fail(14, "selects a share of {} of the tokens; expected {}", v_.select_share,
                  selects_ ? "more than 0, at most 1" : "0: there is no select tile");
    }
    return ok_status();
  }

  /// Rules 8 to 11 and 16: everything that one op shows by itself.
  Status fields(int32_t i) const {
    const Op& o = op(i);
    std::string where = fmt::format("op {}", i);
    if (static_cast<size_t>(o.kind) >= kOpKinds)
      return unknown(where, "kind", static_cast<int>(o.kind), static_cast<int>(kOpKinds) - 1);
    const OpTraits& traits = traits_of(o.kind);
    if (o.rows > Rows::kSelected)
      return unknown(where, "rows", static_cast<int>(o.rows), static_cast<int>(Rows::kSelected));
    if (o.queries > Queries::kLast) {
      return unknown(where, "queries", static_cast<int>(o.queries), static_cast<int>(Queries::kLast));
    }
    if (o.stream < 0 || static_cast<size_t>(o.stream) >= streams_) {
      return fail_op(i, 10, "is on stream {}; expected 0 to {}", o.stream, streams_ - 1);
    }
    StreamKind stream = v_.streams[static_cast<size_t>(o.stream)].kind;
    if (stream != traits.stream) {
      return fail_op(i, 8, "is on stream {}, a {} stream; expected a {} stream", o.stream,
                     stream_kind_name(stream), stream_kind_name(traits.stream));
    }
    if (traits.layered ? o.layer < 0 || o.layer > last_layer_ : o.layer != -1) {
      return fail_op(
          i, 10, "has layer {}; expected {}", o.layer,
          traits.layered ? fmt::format("0 to {}", last_layer_) : std::string("-1: it has no layer"));
    }
    uint8_t rows = traits.rows;
    if (!selects_) rows &= static_cast<uint8_t>(~bit(Rows::kSelected));
    if ((rows & bit(o.rows)) == 0)
      return fail_op(i, 16, "works on {} rows; expected {}", rows_name(o.rows), rows_text(rows));
    if (o.rows == Rows::kChunk ? o.chunk < 0 || o.chunk >= chunks_ : o.chunk != -1) {
      return fail_op(i, 10, "has chunk {}; expected {}", o.chunk,
                     o.rows == Rows::kChunk ? fmt::format("0 to {}", chunks_ - 1)
                                            : fmt::format("-1: it works on {} rows", rows_name(o.rows)));
    }
    if (o.last_chunk != -1 &&
        (o.rows != Rows::kChunk || o.last_chunk <= o.chunk || o.last_chunk >= chunks_)) {
      return fail_op(
          i, 10,
          "has last chunk {} behind chunk {}; expected -1 (one chunk), or more than its chunk and at most {}",
          o.last_chunk, o.chunk, chunks_ - 1);
    }
    if (o.rows == Rows::kAll && chunks_ != 1) {
      return fail_op(i, 16, "works on all rows of a context in {} chunks; expected one chunk", chunks_);
    }
    if (o.buffer < 0 || static_cast<size_t>(o.buffer) >= v_.buffers.size()) {
      return fail_op(i, 10, "has buffer {}; expected 0 to {}", o.buffer, v_.buffers.size() - 1);
    }
    const Buffer& buffer = v_.buffers[static_cast<size_t>(o.buffer)];
    const BufferKind kind = traits.buffer;
    if (buffer.kind != kind) {
      return fail_op(i, 10, "has buffer {}, a {} buffer; expected a {} buffer", o.buffer,
                     buffer_name(buffer.kind), buffer_name(kind));
    }
    if (kind == BufferKind::kKv && buffer.layer != o.layer) {
      return fail_op(i, 10, "has buffer {}, the cache of layer {}; expected buffer {}, the cache of layer {}",
                     o.buffer, buffer.layer, kv_buffer_[static_cast<size_t>(o.layer)], o.layer);
    }
    if ((o.rows != Rows::kSuffix && !buffer.with_context) ||
        ((o.rows == Rows::kSuffix || o.rows == Rows::kAll) && !buffer.with_suffix)) {
      return fail_op(i, 10,
                     "works on {} rows of buffer {}, which has {} rows only; expected a buffer that has them",
                     rows_name(o.rows), o.buffer, buffer.with_context ? "context" : "suffix");
    }
    DS_TRY(queries(i));
    for (size_t w = 0; w < o.waits.size(); ++w) {
      if (o.waits[w] < 0 || o.waits[w] >= i) {
        return fail_op(i, 11,
                       "waits for op {}; expected an op before itself (0 to {}): waits must not form circles",
                       o.waits[w], i - 1);
      }
      if (w > 0 && o.waits[w] <= o.waits[w - 1]) {
        return fail_op(i, 11, "waits for op {} after op {}; expected ascending indices, each once",
                       o.waits[w], o.waits[w - 1]);
      }
    }
    return ok_status();
  }

  Status queries(int32_t i) const {
    const Op& o = op(i);
    Queries expected = Queries::kNone;
    const char* why = "it has no queries";
    const bool last = o.layer == last_layer_;
    const QueriesRule rule = traits_of(o.kind).queries;
    if (rule == QueriesRule::kNone) {
      // As it is said above.
    } else if (o.rows == Rows::kSelected) {
      expected = last ? Queries::kNone : Queries::kAll;
      why = last ? "nobody reads what leaves the last layer" : "the layer above is recomputed from it";
    } else if (rule == QueriesRule::kIfRead) {
      bool on = goes_on(o.layer, o.chunk);
      for (int32_t c = o.chunk; c < o.chunk_end(); ++c) {
        if (goes_on(o.layer, c) == on) continue;
        return fail_op(i, 16,
                       "covers chunks {} and {}, of which one goes on to the layer above and one does not; "
                       "expected an op for each",
                       o.chunk, c);
      }
      expected = on ? Queries::kAll : Queries::kNone;
      why = on ? "the layer above is recomputed from it" : "nobody reads what leaves this layer";
    } else if (last) {
      expected = Queries::kLast;
      why = "only the last suffix token goes on to the head";
    } else if (rule == QueriesRule::kSuffix) {
      expected = Queries::kAll;
      why = "every suffix token goes on";
    } else {
      bool on = goes_on(o.layer, 0);
      expected = on ? Queries::kAll : Queries::kSuffix;
      why = on ? "the layer above is recomputed from it" : "only the suffix goes on from this layer";
    }
    if (o.queries != expected) {
      return fail_op(i, 16, "has queries '{}'; expected '{}': {}", queries_name(o.queries),
                     queries_name(expected), why);
    }
    return ok_status();
  }

  Status times() {
    std::vector<int32_t> previous(streams_, -1);
    int64_t makespan = 0;
    for (int32_t i = 0; i < ops(); ++i) {
      const Op& o = op(i);
      if (o.start_ns < 0 || o.duration_ns < 0 || o.start_ns > INT64_MAX - o.duration_ns) {
        return fail_op(i, 12, "starts at {} ns and takes {} ns; expected 0 or more, and an end below 2^63",
                       o.start_ns, o.duration_ns);
      }
      if (i > 0 && o.start_ns < op(i - 1).start_ns) {
        return fail_op(i, 12,
                       "starts at {} ns, before {} at {} ns; expected ops in the order of their starts",
                       o.start_ns, op_name(i - 1), op(i - 1).start_ns);
      }
      auto after = [&](int32_t before, const char* why) -> Status {
        const Op& b = op(before);
        if (o.start_ns >= b.start_ns + b.duration_ns) return ok_status();
        return fail_op(i, 12,
                       "starts at {} ns, but {} {} and ends at {} ns; expected a start at or after that",
                       o.start_ns, op_name(before), why, b.start_ns + b.duration_ns);
      };
      int32_t& before = previous[static_cast<size_t>(o.stream)];
      if (before >= 0) DS_TRY(after(before, "holds the same stream"));
      for (int32_t w : o.waits) DS_TRY(after(w, "is one of its waits"));
      before = i;
      makespan = std::max(makespan, o.start_ns + o.duration_ns);
    }
    if (v_.makespan_ns != makespan) {
      return fail(12, "states a makespan of {} ns; expected {} ns, the end of its last op", v_.makespan_ns,
                  makespan);
    }
    if (v_.lower_bound_ns < 0 || v_.lower_bound_ns > makespan) {
      return fail(12, "states a lower bound of {} ns; expected 0 to its makespan, {} ns", v_.lower_bound_ns,
                  makespan);
    }
    if (v_.proven_optimal && v_.lower_bound_ns != makespan) {
      return fail(12,
                  "is said to be proven optimal with a lower bound of {} ns; expected it to equal the "
                  "makespan, {} ns",
                  v_.lower_bound_ns, makespan);
    }
    return ok_status();
  }

  /// Rules 15, 17 and 20: which ops there are, by cell and by suffix layer.
  Status coverage() const {
    std::vector<int32_t> kv(mode_.size(), -1), e(mode_.size(), -1), computed(mode_.size(), -1);
    std::vector<int32_t> aligned(mode_.size(), -1);
    std::vector<int32_t> up(static_cast<size_t>(layers_), -1);
    int32_t embed = -1, head = -1, select = -1;
    auto once = [&](int32_t& slot, int32_t i, int rule, std::string_view what) -> Status {
      if (slot >= 0)
        return fail_op(i, rule, "does again what op {} has done ({}); expected it once", slot, what);
      slot = i;
      return ok_status();
    };
    for (int32_t i = 0; i < ops(); ++i) {
      const Op& o = op(i);
      switch (o.kind) {
        case OpKind::kTransferE:
          for (int32_t c = o.chunk; c < o.chunk_end(); ++c) {
            if (!sends_e_[cell(o.layer, c)]) {
              return fail_op(
                  i, 15,
                  "sends E of layer {}, chunk {}, where no tile has a cut or is restored; expected "
                  "E at cuts and for restored layers only",
                  o.layer, c);
            }
            DS_TRY(once(e[cell(o.layer, c)], i, 15, "E of this layer and chunk"));
          }
          break;
        case OpKind::kTransferKv:
          for (int32_t c = o.chunk; c < o.chunk_end(); ++c)
            DS_TRY(once(kv[cell(o.layer, c)], i, 15, "KV of this layer and chunk"));
          break;
        case OpKind::kEmbed:
          if (o.rows != Rows::kChunk) DS_TRY(once(embed, i, 17, "the suffix's embeddings"));
          break;
        case OpKind::kRecompute:
        case OpKind::kPrefill: {
          bool whole = o.kind == OpKind::kPrefill || o.rows == Rows::kSelected;
          for (int32_t c = whole ? 0 : o.chunk; c < (whole ? 1 : o.chunk_end()); ++c) {
            if (!mode(o.layer, c).computes) {
              return fail_op(i, 15,
                             "recomputes layer {}, chunk {}, whose tile says {}; expected a recompute tile",
                             o.layer, c, mode(o.layer, c).name);
            }
            if (selected(o.layer, c) != (o.rows == Rows::kSelected)) {
              return fail_op(i, 15, "recomputes {} of layer {}, whose tile says {}; expected {}",
                             o.rows == Rows::kSelected ? "selected tokens" : "every token", o.layer,
                             mode(o.layer, c).name,
                             o.rows == Rows::kSelected ? "a select tile" : "selected rows");
            }
            DS_TRY(once(computed[cell(o.layer, c)], i, 15, "recompute this layer and chunk"));
          }
          if (o.kind == OpKind::kRecompute) break;
          DS_TRY(once(up[static_cast<size_t>(o.layer)], i, 17, "this layer of the suffix"));
          break;
        }
        case OpKind::kSuffix:
          DS_TRY(once(up[static_cast<size_t>(o.layer)], i, 17, "this layer of the suffix"));
          break;
        case OpKind::kHead:
          DS_TRY(once(head, i, 17, "the head"));
          break;
        case OpKind::kSelect:
          if (!selected(o.layer, o.chunk) || o.layer != 1) {
            return fail_op(i, 15, "chooses tokens at layer {}; expected a select tile, and layer 1", o.layer);
          }
          DS_TRY(once(select, i, 15, "choose tokens"));
          break;
        case OpKind::kAlign:
          for (int32_t c = o.chunk; c < o.chunk_end(); ++c) {
            if (!v_.aligns() || !sends_e_[cell(o.layer, c)]) {
              return fail_op(
                  i, 20,
                  "maps hidden states of layer {}, chunk {}, {}; expected align ops where the "
                  "receiver maps what it is sent",
                  o.layer, c,
                  v_.aligns() ? "which nobody sends" : "but its variant has no maps for the receiver");
            }
            DS_TRY(once(aligned[cell(o.layer, c)], i, 20, "map this layer and chunk"));
          }
          break;
      }
    }
    for (int32_t l = 0; l < layers_; ++l) {
      for (int32_t c = 0; c < chunks_; ++c) {
        size_t at = cell(l, c);
        const ModeTraits& m = mode(l, c);
        if (m.sends_kv && kv[at] < 0) {
          return fail(15,
                      "{} layer {}, chunk {}, but no op transfers its KV; expected one 'transfer kv' for it",
                      m.sends, l, c);
        }
        if (m.computes && computed[at] < 0) {
          return fail(15,
                      "{} layer {}, chunk {}, but no op does; expected one 'recompute' or 'prefill' for it",
                      m.does, l, c);
        }
        if (sends_e_[at] && e[at] < 0) {
          return fail(15, "{} layer {}, chunk {}, but no op sends its E; expected one 'transfer e' for it",
                      m.sends, l, c);
        }
        if (sends_e_[at] && v_.aligns() && aligned[at] < 0) {
          return fail(20,
                      "is sent E of layer {}, chunk {}, but no op maps it; expected one 'align' for it: its "
                      "cuts are aligned by the receiver",
                      l, c);
        }
      }
      if (up[static_cast<size_t>(l)] < 0) {
        return fail(
            17,
            "never takes the suffix through layer {}; expected one 'suffix' or 'prefill' op for each layer",
            l);
      }
      if (l > 0 && up[static_cast<size_t>(l)] < up[static_cast<size_t>(l) - 1]) {
        return fail_op(up[static_cast<size_t>(l)], 17,
                       "takes the suffix through layer {} before {} does so for layer {}; "
                       "expected ascending layers",
                       l, op_name(up[static_cast<size_t>(l) - 1]), l - 1);
      }
    }
    if (selects_ && select < 0)
      return fail(15, "has a select tile, but no op chooses its tokens; expected one 'select' at layer 1");
    if (embed < 0)
      return fail(17, "never embeds the suffix; expected one 'embed' op with rows 'suffix' or 'all'");
    if (head < 0) return fail(17, "has no head; expected one 'head' as its last op");
    if (head != ops() - 1) {
      return fail_op(head, 17,
                     "is not the last of {} ops; expected the head at the end: nothing after it can matter",
                     ops());
    }
    return ok_status();
  }

  // --- Rules 18 and 19: what each op reads has been written, in an order that waits and streams enforce.
  //
  // Memory is divided into regions: one per cache and chunk, one per cache's suffix rows, the same for hidden
  // states. Ops are followed in the order of their indices, which respects every wait and stream.
  // clock_[i][s] counts the ops of stream s that have ended when op i has; a happens before b exactly when
  // b's count for a's stream has reached a's place there. Each region knows its last writer and, per stream,
  // its last reader since.

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

  Status dataflow() {
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
    for (const Access& a : accesses_of(o.kind, o.rows)) {
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

  const std::string& origin_;
  const Variant& v_;
  const int32_t layers_, last_layer_, chunks_;
  const size_t streams_;
  std::vector<int32_t> kv_buffer_;  // by layer
  std::vector<int32_t> hidden_;     // by buffer: number among the hidden buffers, -1
  int32_t hidden_count_ = 0;
  std::vector<uint8_t> mode_;  // by cell: 1 + Mode, 0: no tile
  std::vector<bool> cut_;      // by cell: its lower edge is a cut
  std::vector<bool> sends_e_;  // by cell: S's hidden states are sent for it
  bool selects_ = false;       // there is a select tile
  std::vector<uint32_t> clock_, place_;
  std::vector<Region> regions_;
  std::vector<int32_t> readers_;
  std::vector<bool> started_;
};

}  // namespace

Status verify_plan(const Plan& plan, const std::string& origin) {
  auto fail = [&](int rule, const std::string& message) {
    return error(Code::kCorrupt, "plan '{}': {} [rule {}]", origin, message, rule);
  };
  if (plan.format_version > kPlanFormatVersion) {
    return error(
        Code::kUnsupported,
        "plan '{}': format version is {}; this version reads 1 to {}: update droidspeak here [rule 1]",
        origin, plan.format_version, kPlanFormatVersion);
  }
  if (plan.format_version < 1) {
    return fail(1, fmt::format("format version is {}; expected 1 to {}: compile the plan again",
                               plan.format_version, kPlanFormatVersion));
  }
  // Texts.
  if (plan.variants.size() > kMaxVariants) {
    return fail(4, fmt::format("has {} variants; expected at most {}", plan.variants.size(), kMaxVariants));
  }
  if (plan.provenance.inputs.size() > kMaxInputs) {
    return fail(4,
                fmt::format("has {} inputs; expected at most {}", plan.provenance.inputs.size(), kMaxInputs));
  }
  auto text = [&](const std::string& what, const std::string& value, bool may_be_empty) -> Status {
    size_t limit = what == "provenance.flags" ? kMaxFlags : kMaxText;
    if (value.size() > limit) {
      return fail(2, fmt::format("{} has {} bytes; expected at most {}", what, value.size(), limit));
    }
    if (value.empty() && !may_be_empty) return fail(2, fmt::format("{} is empty; expected a text", what));
    if (!clean_text(value)) {
      return fail(2, fmt::format("{} is not plain text; expected UTF-8 without control characters", what));
    }
    return ok_status();
  };
  DS_TRY(text("provenance.compiler_version", plan.provenance.compiler_version, true));
  DS_TRY(text("provenance.flags", plan.provenance.flags, true));
  for (size_t i = 0; i < plan.provenance.inputs.size(); ++i) {
    const InputFile& input = plan.provenance.inputs[i];
    DS_TRY(text(fmt::format("provenance.inputs[{}].role", i), input.role, false));
    DS_TRY(text(fmt::format("provenance.inputs[{}].name", i), input.name, true));
    DS_TRY(text(fmt::format("provenance.inputs[{}].sha256", i), input.sha256, false));
  }
  for (const auto& [role, model] :
       {std::pair{"sender", &plan.sender}, std::pair{"receiver", &plan.receiver}}) {
    DS_TRY(text(fmt::format("{}.name", role), model->name, true));
    DS_TRY(text(fmt::format("{}.config", role), model->config, true));
    DS_TRY(text(fmt::format("{}.weights", role), model->weights, true));
    DS_TRY(text(fmt::format("{}.tokenizer", role), model->tokenizer, true));
    if (!is_sha256(model->fingerprint)) {
      DS_TRY(text(fmt::format("{}.fingerprint", role), model->fingerprint, true));
      return fail(2, fmt::format("{}.fingerprint is \"{}\"; expected a SHA-256 in hexadecimal", role,
                                 model->fingerprint));
    }
  }
  DS_TRY(text("shape.family", plan.shape.family, false));
  DS_TRY(text("dtype", plan.dtype, false));
  DS_TRY(text("backend", plan.backend, true));
  if (plan.dtype != "bf16" && plan.dtype != "f32") {
    return fail(2, fmt::format("dtype is \"{}\"; expected \"bf16\" or \"f32\"", plan.dtype));
  }
  // Shape.
  const Shape& s = plan.shape;
  struct Dimension {
    const char* name;
    int64_t value, limit;
  };
  for (const Dimension& d :
       {Dimension{"layers", s.layers, kMaxLayers}, Dimension{"d_model", s.d_model, kMaxDimension},
        Dimension{"ff", s.ff, kMaxDimension}, Dimension{"heads", s.heads, kMaxDimension},
        Dimension{"kv_heads", s.kv_heads, kMaxDimension}, Dimension{"head_dim", s.head_dim, kMaxDimension},
        Dimension{"vocab", s.vocab, kMaxVocab}}) {
    if (d.value < 1 || d.value > d.limit) {
      return fail(3, fmt::format("shape.{} is {}; expected 1 to {}", d.name, d.value, d.limit));
    }
  }
  if (plan.shared_vocab < 0 || plan.shared_vocab >= s.vocab) {
    return fail(3, fmt::format("shared_vocab is {}; expected 0 (all), or fewer than the vocabulary's {}",
                               plan.shared_vocab, s.vocab));
  }
  if (s.heads % s.kv_heads != 0) {
    return fail(
        3, fmt::format("shape.heads is {}, shape.kv_heads {}; expected a multiple", s.heads, s.kv_heads));
  }
  if (s.kv_row() > kMaxDimension) {
    return fail(3, fmt::format("a row of the KV cache has 2 * {} * {} elements; expected at most {}",
                               s.kv_heads, s.head_dim, kMaxDimension));
  }
  // Variants.
  for (const Variant& v : plan.variants) {
    bool several = std::any_of(v.ops.begin(), v.ops.end(), [](const Op& op) { return op.last_chunk != -1; });
    auto newer = [&](std::string_view what, int since) {
      return fail(1, fmt::format("format version is {}, but variant '{}' has {}, which came with version {}; "
                                 "compile the plan again",
                                 plan.format_version, v.name, what, since));
    };
    if (plan.format_version < 2 && (several || v.load_min != 0 || v.load_max != kNoLimit))
      return newer(several ? "ops over several chunks" : "a range of loads", 2);
    for (const Tile& t : v.tiles) {
      if (static_cast<size_t>(t.mode) < kModes && plan.format_version < traits_of(t.mode).since)
        return newer(traits_of(t.mode).feature, traits_of(t.mode).since);
    }
    bool uncertain = !std::isnan(v.promise.loss_stderr) || v.promise.confidence != 0;
    if (plan.format_version < 3 && (v.select_share != 0 || uncertain || !v.way.empty())) {
      return newer(v.select_share != 0 ? traits_of(Mode::kSelect).feature
                   : uncertain         ? "a loss with its uncertainty"
                                       : "a way",
                   3);
    }
    for (const Op& op : v.ops) {
      if (static_cast<size_t>(op.kind) < kOpKinds && plan.format_version < traits_of(op.kind).since)
        return newer(traits_of(op.kind).feature, traits_of(op.kind).since);
    }
    if (plan.format_version < 4 && v.map_form != MapForm::kNone)
      return newer(traits_of(OpKind::kAlign).feature, 4);
    if (plan.format_version < 4 && !std::isnan(v.promise.divergence))
      return newer("a promised divergence", 4);
  }
  auto aligned = [](const Variant& v) { return v.map_form != MapForm::kNone; };
  const bool maps = std::any_of(plan.variants.begin(), plan.variants.end(), aligned);
  DS_TRY(text("maps.name", plan.maps.name, true));
  if (maps ? !is_sha256(plan.maps.fingerprint) : plan.maps != MapsIdentity{}) {
    DS_TRY(text("maps.fingerprint", plan.maps.fingerprint, true));
    return fail(20, fmt::format("maps.fingerprint is \"{}\"; expected {}", plan.maps.fingerprint,
                                maps ? "a SHA-256 in hexadecimal: a variant has aligned cuts"
                                     : "no maps: no variant has aligned cuts"));
  }
  std::unordered_set<std::string_view> names;
  std::vector<const Variant*> all;
  for (const Variant& v : plan.variants) all.push_back(&v);
  all.push_back(&plan.full_prefill);
  for (size_t i = 0; i < all.size(); ++i) {
    std::string where =
        i < plan.variants.size() ? fmt::format("variants[{}]", i) : std::string("full_prefill");
    DS_TRY(text(where + ".name", all[i]->name, false));
    DS_TRY(text(where + ".policy", all[i]->policy, false));
    DS_TRY(text(where + ".scheduler", all[i]->scheduler, false));
    DS_TRY(text(where + ".why", all[i]->why, true));
    DS_TRY(text(where + ".way", all[i]->way, true));
    for (size_t a = 0; a < all[i]->alternatives.size(); ++a)
      DS_TRY(text(fmt::format("{}.alternatives[{}].what", where, a), all[i]->alternatives[a].what, false));
    if (!names.insert(all[i]->name).second) {
      return fail(5, fmt::format("{}.name is \"{}\", as another variant's; expected names that differ", where,
                                 all[i]->name));
    }
    VariantVerifier verifier(origin, plan.shape, *all[i]);
    DS_TRY(verifier.run());
    if (all[i] == &plan.full_prefill) DS_TRY(verifier.full_prefill());
  }
  for (size_t i = 0; i < plan.variants.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      const Variant &a = plan.variants[j], &b = plan.variants[i];
      if (a.tokens_min < b.tokens_max && b.tokens_min < a.tokens_max && a.rate_min < b.rate_max &&
          b.rate_min < a.rate_max && a.load_min < b.load_max && b.load_min < a.load_max) {
        return fail(
            6,
            fmt::format(
                "variants '{}' and '{}' both cover {} tokens at {} B/s with {} requests waiting; expected at "
                "most one variant for each length, rate and load",
                a.name, b.name, std::max(a.tokens_min, b.tokens_min), std::max(a.rate_min, b.rate_min),
                std::max(a.load_min, b.load_min)));
      }
    }
  }
  return ok_status();
}

}  // namespace ds
