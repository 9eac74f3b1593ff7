// Token-wise repair: which tokens deviate most, and a layer over those that were chosen.
#include <algorithm>

#include "runtime/backends/cuda/model_internal.h"

namespace ds::cuda {

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

}  // namespace ds::cuda
