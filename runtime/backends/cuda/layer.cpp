// A layer over rows of one sequence or many: cut into blocks, and the launches of a block.
#include <algorithm>

#include "runtime/backends/cuda/model_internal.h"

namespace ds::cuda {

Status CudaModel::run_norm(Launcher& on, const std::byte* x, const int64_t* index, const float* weight,
                           int64_t rows, std::byte* out) const {
  return on.started(rms_norm(on.stream(), dtype_, x, index, weight, eps_, rows, config_.d_model, out),
                    "rms_norm of {} rows of {}", rows, config_.d_model);
}

Result<AttentionWork> CudaModel::plan_attention(CudaStream& stream, CudaWorkspace& w) const {
  const AttentionShape shape = attention_shape();
  AttentionWork work;
  w.own_segments_.clear();
  w.tiles_.clear();
  // The library's behind our own: both lie in w.segments_ until the block has been enqueued.
  auto for_library = [&](const AttentionSegment& s) {
    return w.library_ != nullptr && s.rows >= w.library_->least_rows() && s.prefix_rows == 0 &&
           s.positions == nullptr;
  };
  int64_t keys = 0;
  const int64_t tile_rows = attention_tile_rows(shape);
  auto end = std::stable_partition(w.segments_.begin(), w.segments_.end(),
                                   [&](const AttentionSegment& s) { return !for_library(s); });
  work.library = {end, w.segments_.end()};
  for (auto s = w.segments_.begin(); s != end; ++s) {
    for (int64_t row = 0; row < s->rows; row += tile_rows)
      w.tiles_.push_back({.segment = static_cast<int32_t>(w.own_segments_.size()),
                          .first_row = static_cast<int32_t>(row),
                          .rows = static_cast<int32_t>(std::min(tile_rows, s->rows - row))});
    w.own_segments_.push_back(*s);
    keys = std::max(keys, s->keys);
  }
  if (w.tiles_.empty()) return work;
  work.tile_count = static_cast<int64_t>(w.tiles_.size());
  work.splits = attention_splits(shape, work.tile_count, keys, device_->info().multiprocessors);
  while (work.splits > 1 &&
         attention_scratch_bytes(shape, work.tile_count, work.splits) > w.attention_scratch_bytes_)
    --work.splits;
  DS_ASSIGN(work.segments, stream.stage_copy(std::span<const AttentionSegment>(w.own_segments_)));
  DS_ASSIGN(work.tiles, stream.stage_copy(std::span<const AttentionTile>(w.tiles_)));
  return work;
}

Status CudaModel::run_block(Launcher& on, CudaWorkspace& w, int64_t number, const Block& b) const {
  const ModelConfig& c = config_;
  const LayerWeights& layer = weights_.layers()[static_cast<size_t>(number)];
  const int64_t d = c.d_model, q = q_size(), kv = kv_size(), row = hidden_row();
  cudaStream_t stream = on.stream();
  RopeCall rope{.projected = w.projected_,
                .heads = c.heads,
                .kv_heads = c.kv_heads,
                .head_dim = c.head_dim,
                .q_bias = layer.q_bias,
                .k_bias = layer.k_bias,
                .v_bias = layer.v_bias,
                .q_norm = layer.q_norm,
                .k_norm = layer.k_norm,
                .eps = eps_,
                .cos = w.cos_,
                .sin = w.sin_,
                .q_out = w.q_};
  auto rotate = [&](int64_t rows, int64_t stride, const RowPlaces& places) {
    rope.rows = rows;
    rope.stride = stride;
    rope.places = places;
    return on.started(rope_scatter(stream, dtype_, rope), "rope_scatter of {} rows of {}", rows, stride);
  };

  // K and V of every row; Q with them where every row has one.
  DS_TRY(run_norm(on, b.hidden, nullptr, layer.input_norm, b.rows, w.normed_));
  DS_TRY(on.lap(Phase::kNorm));
  const bool all = b.queries == b.rows;
  if (all) {
    DS_TRY(on.multiply(*w.qkv_, layer.qkv, w.normed_, w.projected_, b.rows, w.product_workspace_));
    rope.q_at = 0;
    rope.k_at = q;
    rope.v_at = q + kv;
  } else {
    DS_TRY(on.multiply(*w.kv_, layer.qkv + q * row, w.normed_, w.projected_, b.rows, w.product_workspace_));
    rope.k_at = 0;
    rope.v_at = kv;
  }
  DS_TRY(on.lap(Phase::kQkv));
  DS_TRY(rotate(b.rows, (all ? q : 0) + 2 * kv, b.places));
  DS_TRY(on.lap(Phase::kRope));

  // The rest of the layer for the rows with a query only.
  if (b.queries == 0) return ok_status();
  std::byte* hidden = b.hidden + (b.rows - b.queries) * row;
  if (!all) {
    const std::byte* normed = w.normed_ + (b.rows - b.queries) * row;
    if (b.gather != nullptr) {
      normed = w.attended_;
      hidden = w.compact_;
      DS_TRY(on.started(gather_rows(stream, w.normed_, b.gather, b.queries, row, w.attended_),
                        "gather_rows of {} rows of {} bytes", b.queries, row));
      DS_TRY(on.started(gather_rows(stream, b.hidden, b.gather, b.queries, row, w.compact_),
                        "gather_rows of {} rows of {} bytes", b.queries, row));
    }
    DS_TRY(on.lap(Phase::kAttentionPack));
    DS_TRY(on.multiply(*w.q_product_, layer.qkv, normed, w.projected_, b.queries, w.product_workspace_));
    DS_TRY(on.lap(Phase::kQkv));
    rope.q_at = 0;
    rope.k_at = rope.v_at = -1;
    DS_TRY(rotate(b.queries, q, b.query_places));
    DS_TRY(on.lap(Phase::kRope));
  }
  const AttentionWork& a = b.attention;
  if (a.tile_count > 0) {
    DS_TRY(on.started(attend(stream, attention_shape(), w.q_, w.attended_, a.segments, a.tiles, a.tile_count,
                             a.splits, w.attention_scratch_),
                      "attend of {} tiles in {} splits", a.tile_count, a.splits));
  }
  for (const AttentionSegment& segment : a.library) {
    DS_TRY(w.library_->run(stream, w.q_, w.attended_, segment, w.library_workspace_.data()));
    DS_TRY(on.started(cudaSuccess, "the library's attention of {} rows over {} keys", segment.rows,
                      segment.keys));
  }
  DS_TRY(on.lap(Phase::kAttention));
  // Products know no bias but the row that they add to.
  auto add_bias = [&](const float* bias, std::byte* rows, int64_t width) {
    if (bias == nullptr) return ok_status();
    return on.started(align_rows(stream, dtype_, rows, nullptr, nullptr, bias, b.queries, width),
                      "align_rows of {} rows of {}", b.queries, width);
  };
  DS_TRY(on.multiply(*w.o_, layer.o, w.attended_, hidden, b.queries, w.product_workspace_));
  DS_TRY(add_bias(layer.o_bias, hidden, d));
  DS_TRY(on.lap(Phase::kO));
  DS_TRY(run_norm(on, hidden, nullptr, layer.post_norm, b.queries, w.normed_));
  DS_TRY(on.lap(Phase::kNorm));
  DS_TRY(on.multiply(*w.gate_up_, layer.gate_up, w.normed_, w.projected_, b.queries, w.product_workspace_));
  DS_TRY(add_bias(layer.gate_up_bias, w.projected_, 2 * c.ff));
  DS_TRY(on.lap(Phase::kGateUp));
  DS_TRY(on.started(swiglu(stream, dtype_, w.projected_, b.queries, c.ff, w.attended_),
                    "swiglu of {} rows of {}", b.queries, c.ff));
  DS_TRY(on.lap(Phase::kSwiglu));
  DS_TRY(on.multiply(*w.down_, layer.down, w.attended_, hidden, b.queries, w.product_workspace_));
  DS_TRY(add_bias(layer.down_bias, hidden, d));
  DS_TRY(on.lap(Phase::kDown));
  if (b.gather == nullptr) return ok_status();
  // Back to where they came from, run by run.
  for (const CudaWorkspace::Run& run : w.runs_)
    DS_TRY(check(cudaMemcpyAsync(b.hidden + run.row * row, w.compact_ + run.query * row,
                                 static_cast<size_t>(run.rows * row), cudaMemcpyDeviceToDevice, stream),
                 "cudaMemcpyAsync of {} rows of {}", run.rows, d));
  return on.lap(Phase::kAttentionPack);
}

Status CudaModel::run_layer(CudaStream& stream, CudaWorkspace& w, const LayerCall& call) const {
  Launcher on(stream, profile_);
  DS_TRY(on.begin());
  for (int64_t at = 0; at < call.rows;) {
    Block b;
    b.rows = std::min(w.block_rows_, call.rows - at);
    b.queries = std::clamp(at + b.rows - (call.rows - call.query_rows), int64_t{0}, b.rows);
    b.hidden = call.hidden + at * hidden_row();
    b.places = {.cache = call.cache, .first = call.position + at};
    at += b.rows;
    if (b.queries > 0) {
      const int64_t first = call.position + at - b.queries;
      b.query_places = {.cache = call.cache, .first = first};
      // One row in as many splits as a step's, so that both give the same bits.
      const int64_t keys = b.queries == 1 ? step_keys(w, first + 1) : first + b.queries;
      w.segments_.assign(1, {.cache = call.cache, .first = first, .row = 0, .rows = b.queries, .keys = keys});
      DS_ASSIGN(b.attention, plan_attention(stream, w));
    }
    DS_TRY(run_block(on, w, call.layer, b));
  }
  return ok_status();
}

Status CudaModel::run_batch(CudaStream& stream, CudaWorkspace& w, int64_t layer, std::byte* hidden,
                            std::span<const SequenceRows> sequences) const {
  Launcher on(stream, profile_);
  DS_TRY(on.begin());
  auto clear = [&] {
    w.targets_.clear();
    w.query_targets_.clear();
    w.gather_.clear();
    w.runs_.clear();
    w.segments_.clear();
  };
  auto flush = [&]() -> Status {
    DS_TRY(run_listed(on, stream, w, layer, hidden));
    hidden += static_cast<int64_t>(w.targets_.size()) * hidden_row();
    clear();
    return ok_status();
  };
  clear();  // what a failed call left
  for (const SequenceRows& s : sequences)
    for (int64_t at = 0; at < s.rows;) {
      const auto used = static_cast<int64_t>(w.targets_.size());
      const int64_t count = std::min(w.block_rows_ - used, s.rows - at);
      const int64_t queries = std::clamp(at + count - (s.rows - s.query_rows), int64_t{0}, count);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t position = s.position + at + i;
        w.targets_.push_back({s.cache + (position - s.prefix_rows) * cache_row(), position});
      }
      at += count;
      if (queries > 0) {
        const auto query = static_cast<int64_t>(w.gather_.size());
        const int64_t row = used + count - queries, first = s.position + at - queries;
        for (int64_t i = 0; i < queries; ++i) w.gather_.push_back(static_cast<int32_t>(row + i));
        w.query_targets_.insert(w.query_targets_.end(), w.targets_.end() - queries, w.targets_.end());
        if (!w.runs_.empty() && w.runs_.back().row + w.runs_.back().rows == row)
          w.runs_.back().rows += queries;
        else
          w.runs_.push_back({row, query, queries});
        w.segments_.push_back({.cache = s.cache,
                               .prefix = s.prefix,
                               .prefix_rows = s.prefix_rows,
                               .first = first,
                               .row = query,
                               .rows = queries,
                               .keys = first + queries});
      }
      if (static_cast<int64_t>(w.targets_.size()) == w.block_rows_) DS_TRY(flush());
    }
  return w.targets_.empty() ? ok_status() : flush();
}

Status CudaModel::run_listed(Launcher& on, CudaStream& stream, CudaWorkspace& w, int64_t layer,
                             std::byte* hidden) const {
  Block b;
  b.hidden = hidden;
  b.rows = static_cast<int64_t>(w.targets_.size());
  b.queries = static_cast<int64_t>(w.gather_.size());
  DS_ASSIGN(b.places.targets, stream.stage_copy(std::span<const RowTarget>(w.targets_)));
  if (b.queries > 0 && b.queries < b.rows) {
    DS_ASSIGN(b.query_places.targets, stream.stage_copy(std::span<const RowTarget>(w.query_targets_)));
    const bool last = w.runs_.size() == 1 && w.runs_[0].row + w.runs_[0].rows == b.rows;
    if (!last) {
      DS_ASSIGN(b.gather, stream.stage_copy(std::span<const int32_t>(w.gather_)));
    }
  }
  if (b.queries > 0) {
    DS_ASSIGN(b.attention, plan_attention(stream, w));
  }
  return run_block(on, w, layer, b);
}

}  // namespace ds::cuda
