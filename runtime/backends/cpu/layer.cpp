// A layer over rows of one sequence or many: cut into blocks, and a block through norm, products, attention
// and MLP.
#include <algorithm>
#include <cstring>

#include "runtime/backends/cpu/model_internal.h"

namespace ds::cpu {
namespace {

/// row += bias, where there is one. A row of its own: what the others of a call are does not matter.
void add_bias(const std::vector<float>& bias, std::byte* row, DType dtype) {
  for (size_t i = 0; i < bias.size(); ++i) {
    if (dtype == DType::kF32) {
      reinterpret_cast<float*>(row)[i] += bias[i];
    } else {
      auto* at = reinterpret_cast<uint16_t*>(row) + i;
      *at = f32_to_bf16(bf16_to_f32(*at) + bias[i]);
    }
  }
}

}  // namespace

Status CpuModel::run_layer(CpuWorkspace& w, int64_t layer, std::byte* hidden,
                           std::span<const SequenceRows> sequences) const {
  int64_t row_bytes = config_.d_model * dtype_size(dtype_);
  int64_t kv_bytes = config_.kv_row() * dtype_size(dtype_);
  auto clear = [&] {
    w.rows_.clear();
    w.query_rows_.clear();
    w.segments_.clear();
  };
  auto flush = [&]() -> Status {
    DS_TRY(run_block(w, layers_[static_cast<size_t>(layer)])
               .with_context(fmt::format("layer {}, {} rows", layer, w.rows_.size())));
    clear();
    return ok_status();
  };
  clear();  // what a failed call left
  w.attention_->begin();
  for (const SequenceRows& s : sequences)
    for (int64_t at = 0; at < s.rows;) {
      int64_t used = static_cast<int64_t>(w.rows_.size()), count = std::min(kBlockRows - used, s.rows - at);
      int64_t first_query = std::max(at, s.rows - s.query_rows);
      if (first_query < at + count)
        w.segments_.push_back({s.cache, s.position + first_query, at + count - first_query,
                               static_cast<int64_t>(w.query_rows_.size()), s.prefix, s.prefix_rows});
      for (; count > 0; --count, ++at, hidden += row_bytes) {
        int64_t position = s.position + at;
        CpuWorkspace::Row row{hidden, s.cache + (position - s.prefix_rows) * kv_bytes, position};
        if (at >= first_query) w.query_rows_.push_back(row);
        w.rows_.push_back(row);
      }
      if (w.rows_.size() == kBlockRows) DS_TRY(flush());
    }
  return w.rows_.empty() ? ok_status() : flush();
}

Status CpuModel::run_block(CpuWorkspace& w, const Layer& layer) const {
  const ModelConfig& c = config_;
  const Kernels& k = kernels_;
  int64_t d = c.d_model, q_size = c.heads * c.head_dim, kv_size = c.kv_heads * c.head_dim,
          half = c.head_dim / 2;
  int64_t active = dtype_size(active_), wire = dtype_size(dtype_);
  auto rows = static_cast<int64_t>(w.rows_.size()), queries = static_cast<int64_t>(w.query_rows_.size());
  bool many = rows * d > (int64_t{1} << 15);  // less is not worth waking threads for
  LapTimer timer(profile_);

  // K and V of every row.
#pragma omp parallel for schedule(static) if (many)
  for (int64_t r = 0; r < rows; ++r)
    k.norm(w.rows_[r].hidden, layer.input_norm.data(), eps_, d, w.normed_ + r * d * active);
  timer.lap(Phase::kNorm);
  DS_TRY(w.kv_->run(layer.kv, rows, w.normed_, reinterpret_cast<std::byte*>(w.projected_), w.scratch_));
  timer.lap(Phase::kQkv);
#pragma omp parallel for schedule(static) if (many)
  for (int64_t r = 0; r < rows; ++r) {
    int64_t position = w.rows_[r].position;
    const float* x = w.projected_ + r * 2 * kv_size;
    std::byte* out = w.rows_[r].kv;
    const float *cos = w.cos_ + position * half, *sin = w.sin_ + position * half;
    const float* bias = or_null(layer.kv_bias);
    for (int64_t h = 0; h < c.kv_heads; ++h)
      k.key_head(x + h * c.head_dim, bias ? bias + h * c.head_dim : nullptr, or_null(layer.k_norm), eps_, cos,
                 sin, c.head_dim, c.head_dim, out + h * c.head_dim * wire);
    k.value(x + kv_size, bias ? bias + kv_size : nullptr, kv_size, out + kv_size * wire);
  }
  timer.lap(Phase::kRope);

  // The rest of the layer for the rows with a query only.
  if (queries == 0) return intact();
  if (queries < rows)
    for (int64_t r = 0, q = 0; q < queries; ++r)
      if (w.rows_[r].hidden == w.query_rows_[q].hidden)
        std::memmove(w.normed_ + q++ * d * active, w.normed_ + r * d * active,
                     static_cast<size_t>(d * active));
  DS_TRY(w.q_->run(layer.q, queries, w.normed_, reinterpret_cast<std::byte*>(w.projected_), w.scratch_));
  timer.lap(Phase::kQkv);
#pragma omp parallel for schedule(static) if (many)
  for (int64_t r = 0; r < queries; ++r) {
    int64_t position = w.query_rows_[r].position;
    const float *cos = w.cos_ + position * half, *sin = w.sin_ + position * half;
    const float* bias = or_null(layer.q_bias);
    for (int64_t h = 0; h < c.heads; ++h)
      k.query_head(w.projected_ + r * q_size + h * c.head_dim, bias ? bias + h * c.head_dim : nullptr,
                   or_null(layer.q_norm), eps_, cos, sin, c.head_dim,
                   (c.head_dim + kHeadAlign - 1) / kHeadAlign * kHeadAlign,
                   w.attention_->query(queries, r, h));
  }
  timer.lap(Phase::kRope);
  w.attention_->run(w.segments_, w.attended_, timer);
  DS_TRY(w.o_->run(layer.o, queries, w.attended_, reinterpret_cast<std::byte*>(w.projected_), w.scratch_));
  timer.lap(Phase::kO);
#pragma omp parallel for schedule(static) if (many)
  for (int64_t r = 0; r < queries; ++r) {
    add_bias(layer.o_bias, reinterpret_cast<std::byte*>(w.projected_ + r * d), DType::kF32);
    k.add_norm(w.query_rows_[r].hidden, w.projected_ + r * d, layer.post_norm.data(), eps_, d,
               w.normed_ + r * d * active);
  }
  timer.lap(Phase::kNorm);
  DS_TRY(w.gate_up_product_->run(layer.gate_up, queries, w.normed_, w.gate_up_, w.scratch_));
  timer.lap(Phase::kGateUp);
#pragma omp parallel for schedule(static) if (many)
  for (int64_t r = 0; r < queries; ++r) {
    std::byte* gate = w.gate_up_ + r * 2 * c.ff * active;
    add_bias(layer.gate_up_bias, gate, active_);
    k.swiglu(gate, gate + c.ff * active, c.ff, w.activated_ + r * c.ff * active);
  }
  timer.lap(Phase::kSwiglu);
  DS_TRY(w.down_->run(layer.down, queries, w.activated_, reinterpret_cast<std::byte*>(w.projected_),
                      w.scratch_));
  timer.lap(Phase::kDown);
#pragma omp parallel for schedule(static) if (many)
  for (int64_t r = 0; r < queries; ++r) {
    add_bias(layer.down_bias, reinterpret_cast<std::byte*>(w.projected_ + r * d), DType::kF32);
    k.add_norm(w.query_rows_[r].hidden, w.projected_ + r * d, nullptr, eps_, d, nullptr);
  }
  timer.lap(Phase::kNorm);
  return intact();
}

}  // namespace ds::cpu
