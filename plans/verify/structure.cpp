#include "plans/verify/variant_internal.h"

namespace ds {

Status VariantVerifier::run() {
  DS_TRY(sizes());
  DS_TRY(header());
  DS_TRY(streams());
  DS_TRY(buffers());
  DS_TRY(tiles());
  for (int32_t i = 0; i < ops(); ++i) DS_TRY(fields(i));
  DS_TRY(times());
  DS_TRY(coverage());
  return check_dataflow(*this);
}

Status VariantVerifier::full_prefill() const {
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

Status VariantVerifier::sizes() const {
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

Status VariantVerifier::streams() const {
  for (size_t s = 0; s < streams_; ++s) {
    if (v_.streams[s].kind > StreamKind::kCompute) {
      return unknown(fmt::format("stream {}", s), "kind", static_cast<int>(v_.streams[s].kind),
                     static_cast<int>(StreamKind::kCompute));
    }
    if (v_.streams[s].kind == StreamKind::kCopy) {
      return fail(
          8,
          "has stream {}, a copy stream; expected link and compute streams: what is copied to a device "
          "goes behind the link",
          s);
    }
  }
  return ok_status();
}

Status VariantVerifier::buffers() {
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
      return fail(13, "buffer {} ({}) is for layer {}; expected 0 to {}", b, buffer_kind_name(buffer.kind),
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
      return fail(13,
                  "buffer {} (kv) of layer {} lacks {} rows; expected context and suffix rows in every cache",
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

Status VariantVerifier::tiles() {
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
          return fail(14, "tile {} covers layer {}, chunk {} again; expected every cell in exactly one tile",
                      t, l, c);
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

}  // namespace ds
