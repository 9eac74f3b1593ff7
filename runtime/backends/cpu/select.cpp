// Token-wise repair: which tokens deviate most, and a layer over those that were chosen.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "runtime/backends/cpu/model_internal.h"

namespace ds::cpu {
namespace {

/// In f32 and in the order of the elements; infinite where one is not a number, which is as far off as can
/// be.
float squared_distance(const std::byte* a, const std::byte* b, int64_t n, DType dtype) {
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    float x, y;
    if (dtype == DType::kF32) {
      std::memcpy(&x, a + 4 * i, 4);
      std::memcpy(&y, b + 4 * i, 4);
    } else {
      uint16_t p, q;
      std::memcpy(&p, a + 2 * i, 2);
      std::memcpy(&q, b + 2 * i, 2);
      x = bf16_to_f32(p);
      y = bf16_to_f32(q);
    }
    float difference = x - y, square = difference * difference;
    sum += square;
  }
  return std::isnan(sum) ? INFINITY : sum;
}

}  // namespace

Status CpuModel::run_selected(CpuWorkspace& w, const SelectedCall& call) const {
  int64_t row_bytes = config_.d_model * dtype_size(dtype_);
  int64_t kv_bytes = config_.kv_row() * dtype_size(dtype_);
  // Only now are they known.
  for (int64_t i = 0; i < call.rows; ++i) {
    if (call.positions[i] <= (i > 0 ? call.positions[i - 1] : -1) || call.positions[i] >= w.max_context())
      return error(Code::kInvalidArgument,
                   "layer {}: selected row {} of {} has position {}; expected ascending positions below {}",
                   call.layer, i, call.rows, call.positions[i], w.max_context());
  }
  w.attention_->begin();
  // K and V of a block are written before its queries read, and no query sees a position of a later block.
  for (int64_t at = 0; at < call.rows;) {
    int64_t count = std::min(kBlockRows, call.rows - at);
    w.rows_.clear();
    w.query_rows_.clear();
    w.segments_.clear();
    if (call.queries)
      w.segments_.push_back(
          {.cache = call.cache, .tokens = count, .at = 0, .positions = call.positions + at});
    for (int64_t end = at + count; at < end; ++at)
      w.rows_.push_back({.hidden = call.hidden + at * row_bytes,
                         .kv = call.cache + call.positions[at] * kv_bytes,
                         .position = call.positions[at]});
    if (call.queries) w.query_rows_ = w.rows_;
    DS_TRY(run_block(w, layers_[static_cast<size_t>(call.layer)])
               .with_context(fmt::format("layer {}, {} selected rows", call.layer, w.rows_.size())));
  }
  return ok_status();
}

Status CpuModel::run_select(CpuWorkspace& w, const SelectCall& call) const {
  const ModelConfig& c = config_;
  const Layer& layer = layers_[static_cast<size_t>(call.layer)];
  int64_t d = c.d_model, kv_size = c.kv_heads * c.head_dim, half = c.head_dim / 2;
  int64_t active = dtype_size(active_), wire = dtype_size(dtype_);
  LapTimer timer(profile_);
  for (int64_t first = 0; first < call.rows; first += kBlockRows) {
    int64_t rows = std::min(kBlockRows, call.rows - first);
    bool many = rows * d > (int64_t{1} << 15);
#pragma omp parallel for schedule(static) if (many)
    for (int64_t r = 0; r < rows; ++r)
      kernels_.norm(call.hidden + (first + r) * d * wire, layer.input_norm.data(), eps_, d,
                    w.normed_ + r * d * active);
    timer.lap(Phase::kNorm);
    DS_TRY(w.kv_->run(layer.kv, rows, w.normed_, reinterpret_cast<std::byte*>(w.projected_), w.scratch_)
               .with_context(fmt::format("select at layer {}", call.layer)));
    timer.lap(Phase::kQkv);
#pragma omp parallel for schedule(static) if (many)
    for (int64_t r = 0; r < rows; ++r) {
      int64_t position = first + r;
      const float* x = w.projected_ + r * 2 * kv_size;
      const float *cos = w.cos_ + position * half, *sin = w.sin_ + position * half;
      const float* bias = or_null(layer.kv_bias);
      std::byte* mine = w.attended_ + r * kv_size * wire;
      for (int64_t h = 0; h < c.kv_heads; ++h)
        kernels_.key_head(x + h * c.head_dim, bias ? bias + h * c.head_dim : nullptr, or_null(layer.k_norm),
                          eps_, cos, sin, c.head_dim, c.head_dim, mine + h * c.head_dim * wire);
      w.deviation_[position] =
          squared_distance(mine, call.cache + position * 2 * kv_size * wire, kv_size, dtype_);
    }
    timer.lap(Phase::kRope);
  }
  // The order is a total one, so that every machine chooses the same tokens.
  const float* deviation = w.deviation_;
  auto more = [deviation](int32_t a, int32_t b) {
    return deviation[a] != deviation[b] ? deviation[a] > deviation[b] : a < b;
  };
  int32_t* order = w.order_;
  std::iota(order, order + call.rows, 0);
  if (call.count < call.rows) std::nth_element(order, order + call.count, order + call.rows, more);
  std::sort(order, order + call.count);
  std::copy(order, order + call.count, call.positions);
  for (int64_t i = 0; i < call.count; ++i) {
    if (order[i] != i)
      std::memmove(call.hidden + i * d * wire, call.hidden + order[i] * d * wire,
                   static_cast<size_t>(d * wire));
  }
  timer.lap(Phase::kNorm);
  return intact();
}

}  // namespace ds::cpu
