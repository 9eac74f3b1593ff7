// Maps of aligned cuts: laid out, and applied to rows of hidden states.
#include <algorithm>
#include <utility>

#include "runtime/backends/cpu/model_internal.h"
#include "support/brief_team.h"

namespace ds::cpu {

CpuMap::CpuMap(const CpuModel& model, int64_t shape) : DeviceMap(model, shape) {}

Result<int64_t> CpuModel::map_products(int64_t rank) {
  std::lock_guard lock(map_mutex_);
  for (size_t i = 0; i < map_products_.size(); ++i)
    if (map_products_[i].rank == rank) return static_cast<int64_t>(i);
  const BriefTeam team;
  const int64_t d = config_.d_model;
  auto make = [&](int64_t in, int64_t out, DType out_dtype) -> Result<std::shared_ptr<Product>> {
    DS_ASSIGN(auto product, Product::make(math_, kernels_, dtype_, in, out, kBlockRows, out_dtype));
    // Not by a map's weights: those of a map that changes nothing are zeros, which tell nothing.
    DS_TRY(product->settle());
    return product;
  };
  MapProducts products;
  products.rank = rank;
  if (rank == 0) {
    DS_ASSIGN(products.first, make(d, d, DType::kF32));
  } else {
    DS_ASSIGN(products.first, make(d, rank, active_));
    DS_ASSIGN(products.second, make(rank, d, DType::kF32));
  }
  map_products_.push_back(std::move(products));
  return static_cast<int64_t>(map_products_.size()) - 1;
}

Result<std::unique_ptr<DeviceMap>> CpuModel::new_map(const AlignmentMap& map) {
  const int64_t d = config_.d_model;
  const bool full = map.form == MapForm::kFull, low_rank = map.form == MapForm::kLowRank;
  const std::string what = fmt::format("the {} map of layer {}", map_form_name(map.form), map.layer);

  ThreadScope scope(threads_);
  const int64_t rank = (map.rank + kRankAlign - 1) / kRankAlign * kRankAlign, vector = aligned(d * 4);
  int64_t shape = -1;
  MapProducts products;
  if (full || low_rank) {
    DS_ASSIGN(shape, map_products(rank));
    std::lock_guard lock(map_mutex_);
    products = map_products_[static_cast<size_t>(shape)];
  }
  auto loaded = std::make_unique<CpuMap>(*this, shape);
  CpuMap& m = *loaded;
  auto packed_bytes = [](const std::shared_ptr<Product>& p) { return p ? aligned(p->packed_bytes()) : 0; };
  DS_ASSIGN(m.memory_, HostBuffer::make(
                           packed_bytes(products.first) + packed_bytes(products.second) + 2 * vector, what));
  std::byte* at = m.memory_.data();
  HostBuffer joined;
  auto pack = [&](const std::shared_ptr<Product>& product, const std::vector<float>& weights,
                  PackedWeights& to) -> Status {
    const PackedWeights::Part part{reinterpret_cast<const std::byte*>(weights.data()), DType::kF32,
                                   product->out()};
    std::byte* data = std::exchange(at, at + packed_bytes(product));
    DS_TRY(PackedWeights::pack(*product, {&part, 1}, joined, data).with_context("packing " + what));
    to = PackedWeights::view(data);
    return ok_status();
  };
  if (full) DS_TRY(pack(products.first, map.weight, m.first_));
  if (low_rank) {
    std::vector<float> down(static_cast<size_t>(rank * d)), up(static_cast<size_t>(d * rank));
    std::copy(map.down.begin(), map.down.end(), down.begin());
    for (int64_t o = 0; o < d; ++o)
      std::copy_n(map.up.begin() + o * map.rank, map.rank, up.begin() + o * rank);
    DS_TRY(pack(products.first, down, m.first_));
    DS_TRY(pack(products.second, up, m.second_));
  }
  auto copy = [&](const std::vector<float>& v) -> const float* {
    if (v.empty()) return nullptr;
    auto* to = reinterpret_cast<float*>(std::exchange(at, at + vector));
    std::copy(v.begin(), v.end(), to);
    return to;
  };
  m.scale_ = copy(map.scale);
  m.bias_ = copy(map.bias);
  return std::unique_ptr<DeviceMap>(std::move(loaded));
}

Status CpuModel::run_align(CpuWorkspace& w, const CpuMap& map, std::byte* hidden, int64_t rows) const {
  const int64_t d = config_.d_model, active = dtype_size(active_), row_bytes = d * dtype_size(dtype_);
  LapTimer timer(profile_);
  for (; rows > 0; rows -= kBlockRows, hidden += kBlockRows * row_bytes) {
    const int64_t count = std::min(rows, kBlockRows);
    const bool many = count * d > (int64_t{1} << 15);
    const float* product = nullptr;
    if (map.shape() >= 0) {
      auto& [first, second] = w.map_products_[static_cast<size_t>(map.shape())];
      // A copy even where the types are the same: products may read some rows more.
#pragma omp parallel for schedule(static) if (many)
      for (int64_t r = 0; r < count; ++r)
        kernels_.activate(hidden + r * row_bytes, d, w.normed_ + r * d * active);
      auto* out = reinterpret_cast<std::byte*>(w.projected_);
      DS_TRY(first->run(map.first_, count, w.normed_, second ? w.gate_up_ : out, w.scratch_)
                 .with_context("align"));
      if (second) DS_TRY(second->run(map.second_, count, w.gate_up_, out, w.scratch_).with_context("align"));
      product = w.projected_;
    }
#pragma omp parallel for schedule(static) if (many)
    for (int64_t r = 0; r < count; ++r)
      kernels_.align(hidden + r * row_bytes, product == nullptr ? nullptr : product + r * d, map.scale_,
                     map.bias_, d);
  }
  timer.lap(Phase::kAlign);
  return ok_status();
}

}  // namespace ds::cpu
