// Maps of aligned cuts: laid out on the device, and applied to rows of hidden states.
#include <algorithm>

#include "runtime/backends/cuda/model_internal.h"
#include "runtime/backends/host/tensors_internal.h"

namespace ds::cuda {

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

}  // namespace ds::cuda
