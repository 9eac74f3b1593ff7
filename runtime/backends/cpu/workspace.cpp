// Scratch of one stream: its sizes, the tables of RoPE, and the products that it calls.
#include <algorithm>
#include <cmath>
#include <utility>

#include "runtime/backends/cpu/model_internal.h"
#include "support/units.h"

namespace ds::cpu {

Result<std::unique_ptr<Workspace>> CpuModel::new_workspace(int64_t max_context) {
  DS_ASSIGN(std::unique_ptr<CpuWorkspace> workspace, CpuWorkspace::make(*this, max_context));
  return std::unique_ptr<Workspace>(std::move(workspace));
}

CpuWorkspace::CpuWorkspace(const CpuModel& model, int64_t max_context, int64_t map_shapes)
    : Workspace(model, max_context, map_shapes) {}

Result<std::unique_ptr<CpuWorkspace>> CpuWorkspace::make(const CpuModel& m, int64_t max_context) {
  const ModelConfig& c = m.config_;
  std::vector<MapProducts> map_products;
  {
    std::lock_guard lock(m.map_mutex_);
    map_products = m.map_products_;
  }
  auto workspace = std::make_unique<CpuWorkspace>(m, max_context, static_cast<int64_t>(map_products.size()));
  CpuWorkspace& w = *workspace;
  w.rows_.reserve(kBlockRows);
  w.query_rows_.reserve(kBlockRows);
  w.segments_.reserve(kBlockRows);
  int64_t rows = kBlockRows + kMaxPadding;
  int64_t active = dtype_size(m.active_), q_size = c.heads * c.head_dim;
  int64_t projected = aligned(rows * std::max({q_size, c.kv_row(), c.d_model}) * 4);
  int64_t normed = aligned(rows * c.d_model * active), attended = aligned(rows * q_size * active);
  int64_t gate_up = aligned(rows * 2 * c.ff * active), activated = aligned(rows * c.ff * active);
  int64_t table = aligned(max_context * (c.head_dim / 2) * 4), scratch = 0;
  int64_t chosen = aligned(max_context * 4), logits = aligned(c.vocab * 4);
  for (const auto* p : {&m.q_, &m.kv_, &m.o_, &m.gate_up_, &m.down_, &m.head_})
    scratch = std::max(scratch, aligned((*p)->scratch_bytes()));
  for (const MapProducts& p : map_products) {
    gate_up = std::max(gate_up, aligned(rows * p.rank * active));
    for (const auto* product : {&p.first, &p.second})
      if (*product) scratch = std::max(scratch, aligned((*product)->scratch_bytes()));
  }

  AttentionShape shape{c.heads, c.kv_heads, c.head_dim, m.dtype_, m.active_};
  int64_t bytes =
      normed + projected + attended + gate_up + activated + scratch + 2 * table + 2 * chosen + logits;
  std::string what = fmt::format("workspace for a context of {} tokens", max_context);
  DS_TRY(check_memory(bytes + Attention::scratch_bytes(shape, max_context, kBlockRows, m.threads_), what));
  DS_ASSIGN(w.buffer_, HostBuffer::make(bytes, what));
  DS_ASSIGN(Attention attention, Attention::make(shape, m.kernels_, max_context, kBlockRows, m.threads_));
  w.attention_ = std::make_unique<Attention>(std::move(attention));

  std::byte* at = w.buffer_.data();
  auto take = [&](int64_t size) { return std::exchange(at, at + size); };
  w.normed_ = take(normed);
  w.projected_ = reinterpret_cast<float*>(take(projected));
  w.attended_ = take(attended);
  w.gate_up_ = take(gate_up);
  w.activated_ = take(activated);
  w.scratch_ = take(scratch);
  w.cos_ = reinterpret_cast<float*>(take(table));
  w.sin_ = reinterpret_cast<float*>(take(table));
  w.deviation_ = reinterpret_cast<float*>(take(chosen));
  w.order_ = reinterpret_cast<int32_t*>(take(chosen));
  w.logits_ = reinterpret_cast<float*>(take(logits));

  const std::vector<float> frequencies = c.rope.inverse_frequencies(c.head_dim);
  const float scaling = c.rope.attention_scaling();
  int64_t half = c.head_dim / 2;
#pragma omp parallel for schedule(static) num_threads(m.threads_)
  for (int64_t position = 0; position < max_context; ++position)
    for (int64_t i = 0; i < half; ++i) {
      float angle = static_cast<float>(position) * frequencies[static_cast<size_t>(i)];
      w.cos_[position * half + i] = std::cos(angle) * scaling;
      w.sin_[position * half + i] = std::sin(angle) * scaling;
    }

  w.q_ = std::make_unique<ProductRunner>(m.q_);
  w.kv_ = std::make_unique<ProductRunner>(m.kv_);
  w.o_ = std::make_unique<ProductRunner>(m.o_);
  w.gate_up_product_ = std::make_unique<ProductRunner>(m.gate_up_);
  w.down_ = std::make_unique<ProductRunner>(m.down_);
  w.head_ = std::make_unique<ProductRunner>(m.head_);
  for (const MapProducts& p : map_products) {
    auto& runners = w.map_products_.emplace_back();
    runners.first = std::make_unique<ProductRunner>(p.first);
    if (p.second) runners.second = std::make_unique<ProductRunner>(p.second);
  }
  return workspace;
}

}  // namespace ds::cpu
