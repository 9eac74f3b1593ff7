#include "runtime/backends/cuda/model_internal.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "runtime/backends/host/tensors_internal.h"

namespace ds::cuda {
namespace {

int64_t aligned(int64_t bytes) { return (bytes + kArrayAlign - 1) / kArrayAlign * kArrayAlign; }

/// Runs `work(stream)` -> Status, where kernels can be enqueued now. The context is only formatted for a
/// failure.
template <typename Work, typename... Args>
void on(CommandStream& stream, Work work, fmt::format_string<Args...> context, Args&&... args) {
  auto& ours = static_cast<CudaStream&>(stream);
  if (!ours.begin()) return;
  if (Status status = work(ours); !status.ok())
    ours.fail(status.with_context(fmt::format(context, std::forward<Args>(args)...)));
}

}  // namespace

// ---- loading

CudaModel::CudaModel(std::shared_ptr<Device> device, const ModelConfig& config, DType dtype, Weights weights)
    : device_(std::move(device)),
      config_(config),
      dtype_(dtype),
      eps_(static_cast<float>(config.rms_norm_eps)),
      weights_(std::move(weights)) {}

Result<std::unique_ptr<DeviceModel>> CudaModel::load(std::shared_ptr<Device> device,
                                                     const Checkpoint& checkpoint,
                                                     const LoadOptions& options) {
  // Packed weights are read from their files at every start: that is bound by the link to the device.
  if (options.report != nullptr) *options.report = {};
  auto weights = Weights::load(device, checkpoint, options);
  if (!weights.ok())
    return weights.status().with_context(fmt::format("loading '{}' on the cuda backend", checkpoint.name()));
  return std::unique_ptr<DeviceModel>(
      new CudaModel(std::move(device), checkpoint.config(), options.dtype, std::move(*weights)));
}

Result<std::unique_ptr<DeviceModel>> CudaModel::load_random(std::shared_ptr<Device> device,
                                                            const ModelConfig& config,
                                                            const LoadOptions& options, uint64_t seed) {
  if (options.report != nullptr) *options.report = {};
  DS_ASSIGN(Weights weights, Weights::random(device, config, options, seed));
  ModelConfig drawn = config;
  drawn.dtype = DType::kBF16;  // as Checkpoint::random() says
  return std::unique_ptr<DeviceModel>(
      new CudaModel(std::move(device), drawn, options.dtype, std::move(weights)));
}

Result<std::unique_ptr<Workspace>> CudaModel::new_workspace(int64_t max_context) {
  DS_ASSIGN(std::unique_ptr<CudaWorkspace> workspace, CudaWorkspace::make(*this, max_context));
  return std::unique_ptr<Workspace>(std::move(workspace));
}

// ---- maps of aligned cuts

CudaMap::CudaMap(const CudaModel& model, int64_t shape) : DeviceMap(model, shape) {}

Result<std::unique_ptr<DeviceMap>> CudaModel::new_map(const AlignmentMap& map) {
  const int64_t d = config_.d_model;
  const bool full = map.form == MapForm::kFull, low_rank = map.form == MapForm::kLowRank;
  const std::string what = fmt::format("the {} map of layer {}", map_form_name(map.form), map.layer);
  auto size = [](const std::vector<float>& v) { return static_cast<int64_t>(v.size()); };

  device_->use();
  const int64_t rank = (map.rank + kRankAlign - 1) / kRankAlign * kRankAlign;
  int64_t shape = -1;
  if (full || low_rank) {
    std::lock_guard lock(map_mutex_);
    auto at = std::find(map_ranks_.begin(), map_ranks_.end(), rank);
    shape = at - map_ranks_.begin();
    if (at == map_ranks_.end()) map_ranks_.push_back(rank);
  }
  auto loaded = std::make_unique<CudaMap>(*this, shape);
  CudaMap& m = *loaded;
  const int64_t element = dtype_size(dtype_), vector = aligned(d * 4);
  const int64_t first = aligned(full ? d * d * element : rank * d * element);
  const int64_t second = aligned(low_rank ? d * rank * element : 0);
  DS_ASSIGN(m.memory_, DeviceBuffer::make(device_, first + second + 2 * vector, what));
  std::byte* at = m.memory_.data();
  auto upload = [&](const std::vector<float>& values, DType type, int64_t bytes) -> Result<const std::byte*> {
    std::byte* to = std::exchange(at, at + bytes);
    const TensorView view{DType::kF32, {size(values)}, std::as_bytes(std::span(values))};
    std::vector<std::byte> converted(values.size() * static_cast<size_t>(dtype_size(type)));
    host::convert(view, 0, size(values), type, converted.data());
    DS_TRY(check(cudaMemcpy(to, converted.data(), converted.size(), cudaMemcpyHostToDevice),
                 "cudaMemcpy of {}", what));
    return static_cast<const std::byte*>(to);
  };
  if (full) {
    DS_ASSIGN(m.first_, upload(map.weight, dtype_, first));
  }
  if (low_rank) {
    // Rows of zeros below `down`, columns of zeros beside `up`.
    std::vector<float> down(static_cast<size_t>(rank * d)), up(static_cast<size_t>(d * rank));
    std::copy(map.down.begin(), map.down.end(), down.begin());
    for (int64_t o = 0; o < d; ++o)
      std::copy_n(map.up.begin() + o * map.rank, map.rank, up.begin() + o * rank);
    DS_ASSIGN(m.first_, upload(down, dtype_, first));
    DS_ASSIGN(m.second_, upload(up, dtype_, second));
  }
  if (!map.scale.empty()) {
    DS_ASSIGN(const std::byte* scale, upload(map.scale, DType::kF32, vector));
    m.scale_ = reinterpret_cast<const float*>(scale);
  }
  DS_ASSIGN(const std::byte* bias, upload(map.bias, DType::kF32, vector));
  m.bias_ = reinterpret_cast<const float*>(bias);
  return std::unique_ptr<DeviceMap>(std::move(loaded));
}

// ---- enqueuing

void CudaModel::enqueue_embed(CommandStream& stream, const int32_t* ids, int64_t rows, std::byte* hidden) {
  on(
      stream, [&](CudaStream& ours) { return run_embed(ours, ids, rows, hidden); }, "embed");
}

void CudaModel::enqueue_layer(CommandStream& stream, Workspace& workspace, const LayerCall& call) {
  auto& w = static_cast<CudaWorkspace&>(workspace);
  on(
      stream, [&](CudaStream& ours) { return run_layer(ours, w, call); }, "layer {}, {} rows", call.layer,
      call.rows);
}

void CudaModel::enqueue_batch(CommandStream& stream, Workspace& workspace, int64_t layer, std::byte* hidden,
                              std::span<const SequenceRows> sequences) {
  auto& w = static_cast<CudaWorkspace&>(workspace);
  on(
      stream, [&](CudaStream& ours) { return run_batch(ours, w, layer, hidden, sequences); },
      "layer {}, {} sequences", layer, sequences.size());
}

void CudaModel::enqueue_select(CommandStream& stream, Workspace& workspace, const SelectCall& call) {
  auto& w = static_cast<CudaWorkspace&>(workspace);
  on(
      stream, [&](CudaStream& ours) { return run_select(ours, w, call); }, "select at layer {}", call.layer);
}

void CudaModel::enqueue_selected(CommandStream& stream, Workspace& workspace, const SelectedCall& call) {
  auto& w = static_cast<CudaWorkspace&>(workspace);
  on(
      stream, [&](CudaStream& ours) { return run_selected(ours, w, call); }, "layer {}, {} selected rows",
      call.layer, call.rows);
}

void CudaModel::enqueue_align(CommandStream& stream, Workspace& workspace, const DeviceMap& map,
                              std::byte* hidden, int64_t rows) {
  auto& w = static_cast<CudaWorkspace&>(workspace);
  auto& m = static_cast<const CudaMap&>(map);
  on(
      stream, [&](CudaStream& ours) { return run_align(ours, w, m, hidden, rows); }, "align");
}

void CudaModel::enqueue_head(CommandStream& stream, Workspace& workspace, const HeadCall& call) {
  auto& w = static_cast<CudaWorkspace&>(workspace);
  on(
      stream, [&](CudaStream& ours) { return run_head(ours, w, call); }, "head");
}

void CudaModel::enqueue_logits(CommandStream& stream, Workspace& workspace, const std::byte* hidden,
                               std::span<const int64_t> rows, float* logits) {
  auto& w = static_cast<CudaWorkspace&>(workspace);
  on(
      stream, [&](CudaStream& ours) { return run_logits(ours, w, hidden, rows, logits); }, "logits");
}

void CudaModel::enqueue_step(CommandStream& stream, Workspace& workspace, const StepCall& call) {
  auto& w = static_cast<CudaWorkspace&>(workspace);
  on(
      stream, [&](CudaStream& ours) { return run_step(ours, w, call); }, "a step at position {}",
      call.position);
}

// ---- running: kernels go to the stream

Status CudaModel::run_embed(CudaStream& stream, const int32_t* ids, int64_t rows, std::byte* hidden) const {
  Launcher on(stream, profile_);
  DS_TRY(on.begin());
  DS_ASSIGN(const int32_t* staged, stream.stage_copy(std::span(ids, static_cast<size_t>(rows))));
  DS_TRY(on.started(
      cuda::embed(on.stream(), dtype_, staged, rows, weights_.embedding(), config_.d_model, hidden),
      "embed of {} rows of {}", rows, config_.d_model));
  return on.lap(Phase::kEmbed);
}

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

Status CudaModel::run_selected(CudaStream& stream, CudaWorkspace& w, const SelectedCall& call) const {
  Launcher on(stream, profile_);
  DS_TRY(on.begin());
  // K and V of a block are written before its queries read, and no query sees a position of a later block.
  for (int64_t at = 0; at < call.rows;) {
    Block b;
    b.rows = std::min(w.block_rows_, call.rows - at);
    b.queries = call.queries ? b.rows : 0;
    b.hidden = call.hidden + at * hidden_row();
    b.places = {.cache = call.cache, .positions = call.positions + at};
    if (call.queries) {
      // Which positions they are only the device knows.
      w.segments_.assign(
          1,
          {.cache = call.cache, .positions = call.positions + at, .rows = b.rows, .keys = w.max_context()});
      DS_ASSIGN(b.attention, plan_attention(stream, w));
    }
    DS_TRY(run_block(on, w, call.layer, b));
    at += b.rows;
  }
  return ok_status();
}

Status CudaModel::run_select(CudaStream& stream, CudaWorkspace& w, const SelectCall& call) const {
  const ModelConfig& c = config_;
  const LayerWeights& layer = weights_.layers()[static_cast<size_t>(call.layer)];
  const int64_t kv = kv_size(), row = hidden_row();
  Launcher on(stream, profile_);
  DS_TRY(on.begin());
  for (int64_t first = 0; first < call.rows; first += w.block_rows_) {
    const int64_t rows = std::min(w.block_rows_, call.rows - first);
    DS_TRY(run_norm(on, call.hidden + first * row, nullptr, layer.input_norm, rows, w.normed_));
    DS_TRY(on.lap(Phase::kNorm));
    DS_TRY(
        on.multiply(*w.kv_, layer.qkv + q_size() * row, w.normed_, w.projected_, rows, w.product_workspace_));
    DS_TRY(on.lap(Phase::kQkv));
    // Keys as if they were queries: side by side, and not into the cache.
    const RopeCall rope{.projected = w.projected_,
                        .stride = 2 * kv,
                        .q_at = 0,
                        .rows = rows,
                        .heads = c.kv_heads,
                        .kv_heads = c.kv_heads,
                        .head_dim = c.head_dim,
                        .q_bias = layer.k_bias,
                        .q_norm = layer.k_norm,
                        .eps = eps_,
                        .cos = w.cos_,
                        .sin = w.sin_,
                        .places = {.first = first},
                        .q_out = w.q_};
    DS_TRY(on.started(rope_scatter(on.stream(), dtype_, rope), "rope_scatter of {} rows of {}", rows, kv));
    DS_TRY(on.started(key_deviation(on.stream(), dtype_, w.q_, call.cache + first * cache_row(), rows, kv,
                                    c.kv_row(), w.deviation_ + first),
                      "key_deviation of {} rows of {}", rows, kv));
    DS_TRY(on.lap(Phase::kRope));
  }
  DS_TRY(on.started(select_largest(on.stream(), w.deviation_, call.rows, call.count, call.positions),
                    "select_largest of {} of {}", call.count, call.rows));
  // Position i of the ascending ones is i or more: no block overwrites what a later one reads.
  for (int64_t at = 0; at < call.count && call.count < call.rows; at += w.block_rows_) {
    const int64_t rows = std::min(w.block_rows_, call.count - at);
    DS_TRY(on.started(gather_rows(on.stream(), call.hidden, call.positions + at, rows, row, w.compact_),
                      "gather_rows of {} rows of {} bytes", rows, row));
    DS_TRY(check(cudaMemcpyAsync(call.hidden + at * row, w.compact_, static_cast<size_t>(rows * row),
                                 cudaMemcpyDeviceToDevice, on.stream()),
                 "cudaMemcpyAsync of {} rows", rows));
  }
  return on.lap(Phase::kNorm);
}

Status CudaModel::run_align(CudaStream& stream, CudaWorkspace& w, const CudaMap& map, std::byte* hidden,
                            int64_t rows) const {
  const int64_t d = config_.d_model;
  Launcher on(stream, profile_);
  DS_TRY(on.begin());
  for (int64_t at = 0; at < rows; at += w.block_rows_) {
    const int64_t count = std::min(w.block_rows_, rows - at);
    std::byte* x = hidden + at * hidden_row();
    // What is added is summed in f32 and rounded with the row, once: a product that adds to the row itself
    // would turn -0 into 0 where it adds nothing, and round the bias first.
    const float* product = nullptr;
    if (map.shape() >= 0) {
      auto& [first, second] = w.map_products_[static_cast<size_t>(map.shape())];
      DS_TRY(on.multiply(*first, map.first_, x, second ? w.attended_ : w.projected_, count,
                         w.product_workspace_));
      if (second)
        DS_TRY(on.multiply(*second, map.second_, w.attended_, w.projected_, count, w.product_workspace_));
      product = reinterpret_cast<const float*>(w.projected_);
    }
    DS_TRY(on.started(align_rows(on.stream(), dtype_, x, product, map.scale_, map.bias_, count, d),
                      "align_rows of {} rows of {}", count, d));
  }
  return on.lap(Phase::kAlign);
}

Status CudaModel::run_head_product(Launcher& on, CudaWorkspace& w, const std::byte* hidden,
                                   const int64_t* index, int64_t rows) const {
  DS_TRY(run_norm(on, hidden, index, weights_.final_norm(), rows, w.normed_));
  return on.multiply(*w.head_, weights_.head(), w.normed_, reinterpret_cast<std::byte*>(w.logits_), rows,
                     w.product_workspace_);
}

Status CudaModel::run_head(CudaStream& stream, CudaWorkspace& w, const HeadCall& call) const {
  Launcher on(stream, profile_);
  DS_TRY(on.begin());
  DS_TRY(run_head_product(on, w, call.hidden, nullptr, 1));
  const auto* logits = reinterpret_cast<const std::byte*>(w.logits_);
  if (call.logits != nullptr) DS_TRY(stream.read_back(call.logits, logits, config_.vocab * 4));
  if (call.next != nullptr) {
    DS_ASSIGN(const Choice* choice, stream.stage_copy(std::span(&call.choice, 1)));
    DS_TRY(on.started(choose_token(on.stream(), w.logits_, config_.vocab, choice, w.next_),
                      "choose_token of {}", config_.vocab));
    DS_TRY(stream.read_back(call.next, reinterpret_cast<const std::byte*>(w.next_), sizeof(int32_t)));
  }
  return on.lap(Phase::kLogits);
}

Status CudaModel::run_logits(CudaStream& stream, CudaWorkspace& w, const std::byte* hidden,
                             std::span<const int64_t> rows, float* logits) const {
  Launcher on(stream, profile_);
  DS_TRY(on.begin());
  DS_ASSIGN(const int64_t* index, stream.stage_copy(rows));
  const auto all = static_cast<int64_t>(rows.size());
  for (int64_t at = 0; at < all; at += kLogitRows) {
    const int64_t count = std::min(kLogitRows, all - at);
    DS_TRY(run_head_product(on, w, hidden, index + at, count));
    DS_TRY(stream.read_back(logits + at * config_.vocab, reinterpret_cast<const std::byte*>(w.logits_),
                            count * config_.vocab * 4));
  }
  return on.lap(Phase::kLogits);
}

Status CudaModel::warm_up(CudaWorkspace& w) const {
  // CUDA loads a kernel when it is first started, and may wait for the device to be idle then: that would be
  // for ever where the device waits for an event that the same thread is to record later.
  const int64_t most = std::min(w.max_context(), w.block_rows_);
  const int64_t rows = std::min<int64_t>(most, w.library_ != nullptr ? w.library_->least_rows() : 17);
  const int64_t few = std::min<int64_t>(most, 3), layers = config_.layers;
  DS_ASSIGN(auto stream, CudaStream::make(device_, StreamKind::kCompute, 64));
  DS_ASSIGN(DeviceBuffer memory,
            DeviceBuffer::make(device_, aligned(rows * cache_row()) + aligned(rows * hidden_row()) + rows * 4,
                               "a first run of the kernels"));
  std::byte *cache = memory.data(), *hidden = cache + aligned(rows * cache_row());
  auto* positions = reinterpret_cast<int32_t*>(hidden + aligned(rows * hidden_row()));
  const std::vector<int32_t> ids(static_cast<size_t>(rows), 0);
  const std::vector<std::byte*> caches(static_cast<size_t>(layers), cache);
  const std::vector<int64_t> index(static_cast<size_t>(few), 0);
  std::vector<float> logits(static_cast<size_t>(few * config_.vocab));
  int32_t next = 0;
  DS_TRY(run_embed(*stream, ids.data(), rows, hidden));
  DS_TRY(run_layer(*stream, w, {0, hidden, cache, 0, rows, rows}));
  for (int64_t queries : {few, int64_t{1}, int64_t{0}})
    DS_TRY(run_layer(*stream, w, {0, hidden, cache, 0, few, queries}));
  const SequenceRows sequences[] = {{cache, 0, few, 1}, {cache, 0, 1, 1}};
  if (rows > few) DS_TRY(run_batch(*stream, w, 0, hidden, sequences));
  DS_TRY(run_select(*stream, w, {0, hidden, cache, rows, (rows + 1) / 2, positions}));
  DS_TRY(run_selected(*stream, w, {0, hidden, cache, positions, (rows + 1) / 2, true}));
  Launcher on(*stream, nullptr);
  DS_TRY(on.started(align_rows(on.stream(), dtype_, hidden, reinterpret_cast<float*>(w.projected_), w.logits_,
                               w.logits_, 1, std::min(config_.d_model, config_.vocab)),
                    "align_rows"));
  DS_TRY(run_logits(*stream, w, hidden, index, logits.data()));
  DS_TRY(run_head(*stream, w, {hidden, logits.data(), {}, &next}));
  DS_TRY(run_step(*stream, w, {0, 0, hidden, caches, logits.data(), {}, &next}));
  // As over a full context, in as many splits.
  DS_TRY(run_step_kernels(on, w, hidden, caches, w.max_context(), w.graphs_.front().segments));
  DS_TRY(stream->synchronize());
  w.graphs_.clear();
  return ok_status();
}

// ---- a step of decoding

int64_t CudaModel::step_keys(const CudaWorkspace& w, int64_t keys) const {
  const auto power = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(keys)));
  return std::min(std::max(power, kLeastStepKeys), w.max_context());
}

Status CudaModel::run_step_kernels(Launcher& on, CudaWorkspace& w, std::byte* hidden,
                                   std::span<std::byte* const> caches, int64_t keys,
                                   const AttentionSegment* segments) const {
  DS_TRY(on.started(
      cuda::embed(on.stream(), dtype_, &w.state_->token, 1, weights_.embedding(), config_.d_model, hidden),
      "embed of 1 row of {}", config_.d_model));
  DS_TRY(on.lap(Phase::kEmbed));
  Block b;
  b.hidden = hidden;
  b.rows = b.queries = 1;
  b.attention.tiles = w.one_tile_;
  b.attention.tile_count = 1;
  b.attention.splits = attention_splits(attention_shape(), 1, keys, device_->info().multiprocessors);
  for (int64_t l = 0; l < config_.layers; ++l) {
    b.places = {.cache = caches[static_cast<size_t>(l)], .first_at = &w.state_->position};
    b.attention.segments = segments + l;
    if (Status status = run_block(on, w, l, b); !status.ok())
      return status.with_context(fmt::format("layer {}", l));
  }
  DS_TRY(run_head_product(on, w, hidden, nullptr, 1));
  DS_TRY(on.started(choose_token(on.stream(), w.logits_, config_.vocab, &w.state_->choice, w.next_),
                    "choose_token of {}", config_.vocab));
  return on.lap(Phase::kLogits);
}

Result<CudaWorkspace::StepGraph*> CudaModel::step_graph(CudaStream& stream, CudaWorkspace& w,
                                                        const StepCall& call, int64_t keys) const {
  for (CudaWorkspace::StepGraph& step : w.graphs_) {
    if (step.hidden != call.hidden || step.keys != keys ||
        !std::equal(step.caches.begin(), step.caches.end(), call.caches.begin(), call.caches.end()))
      continue;
    step.used = ++w.steps_;
    // What runs for the first time may have to be loaded, which no capture allows.
    // And to make a graph takes memory, which may wait for the device.
    if (step.graph == nullptr && device_->options().graphs && device_->awaited() == 0)
      DS_TRY(capture(w, step));
    return &step;
  }
  const int64_t layers = config_.layers;
  if (w.graphs_.size() < kStepGraphs) {
    auto& step = w.graphs_.emplace_back();
    step.segments = w.step_segments_ + static_cast<int64_t>(w.graphs_.size() - 1) * layers;
  } else {
    auto oldest = std::min_element(w.graphs_.begin(), w.graphs_.end(),
                                   [](const auto& a, const auto& b) { return a.used < b.used; });
    w.discard(*oldest);
    std::swap(*oldest, w.graphs_.back());
  }
  CudaWorkspace::StepGraph& step = w.graphs_.back();
  step.hidden = call.hidden;
  step.caches.assign(call.caches.begin(), call.caches.end());
  step.keys = keys;
  step.used = ++w.steps_;
  w.segments_.clear();
  for (std::byte* cache : call.caches)
    w.segments_.push_back({.cache = cache, .first_at = &w.state_->position, .rows = 1, .keys = keys});
  DS_ASSIGN(const AttentionSegment* staged,
            stream.stage_copy(std::span<const AttentionSegment>(w.segments_)));
  DS_TRY(check(
      cudaMemcpyAsync(const_cast<AttentionSegment*>(step.segments), staged,
                      w.segments_.size() * sizeof(AttentionSegment), cudaMemcpyHostToDevice, stream.handle()),
      "cudaMemcpyAsync of {} segments", w.segments_.size()));
  return &step;
}

Status CudaModel::capture(CudaWorkspace& w, CudaWorkspace::StepGraph& step) const {
  DS_TRY(check(cudaStreamBeginCapture(w.side_, cudaStreamCaptureModeRelaxed), "cudaStreamBeginCapture"));
  Launcher on(w.side_);
  Status status = run_step_kernels(on, w, step.hidden, step.caches, step.keys, step.segments);
  cudaGraph_t graph = nullptr;
  Status ended = check(cudaStreamEndCapture(w.side_, &graph), "cudaStreamEndCapture");
  if (status.ok()) status = std::move(ended);
  if (status.ok())
    status = check(cudaGraphInstantiate(&step.graph, graph, 0), "cudaGraphInstantiate of a step's kernels");
  if (graph != nullptr) (void)cudaGraphDestroy(graph);
  return status.with_context("capturing a step");
}

Status CudaModel::run_step(CudaStream& stream, CudaWorkspace& w, const StepCall& call) const {
  Launcher on(stream, profile_);
  DS_TRY(on.begin());
  const int64_t keys = step_keys(w, call.position + 1);
  DS_ASSIGN(CudaWorkspace::StepGraph * step, step_graph(stream, w, call, keys));
  const StepState state{call.token, static_cast<int32_t>(call.position), call.choice};
  DS_ASSIGN(const StepState* staged, stream.stage_copy(std::span(&state, 1)));
  DS_TRY(check(cudaMemcpyAsync(w.state_, staged, sizeof(state), cudaMemcpyHostToDevice, stream.handle()),
               "cudaMemcpyAsync of a step's state"));
  if (step->graph != nullptr && profile_ == nullptr && !device_->options().check_kernels)
    DS_TRY(check(cudaGraphLaunch(step->graph, stream.handle()), "cudaGraphLaunch of a step"));
  else
    DS_TRY(run_step_kernels(on, w, call.hidden, call.caches, keys, step->segments));
  if (call.logits != nullptr)
    DS_TRY(stream.read_back(call.logits, reinterpret_cast<const std::byte*>(w.logits_), config_.vocab * 4));
  if (call.next != nullptr)
    DS_TRY(stream.read_back(call.next, reinterpret_cast<const std::byte*>(w.next_), sizeof(int32_t)));
  return ok_status();
}

}  // namespace ds::cuda
