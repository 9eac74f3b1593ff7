#include <algorithm>
#include <cstring>

#include "runtime/backends/host/tensors_internal.h"

namespace ds::host {

Status check_shape(const Checkpoint& checkpoint, const std::string& name,
                   std::initializer_list<int64_t> shape) {
  DS_ASSIGN(std::vector<int64_t> found, checkpoint.shape(name));
  if (std::equal(found.begin(), found.end(), shape.begin(), shape.end())) return ok_status();
  return error(Code::kMismatch, "checkpoint '{}': tensor '{}' has shape [{}], expected [{}]",
               checkpoint.name(), name, fmt::join(found, ", "), fmt::join(shape, ", "));
}

Result<TensorView> tensor_of_shape(const Checkpoint& checkpoint, const std::string& name,
                                   std::initializer_list<int64_t> shape) {
  DS_ASSIGN(TensorView view, checkpoint.tensor(name));
  if (!std::equal(view.shape.begin(), view.shape.end(), shape.begin(), shape.end()) ||
      static_cast<int64_t>(view.data.size()) != view.elements() * dtype_size(view.dtype))
    return error(Code::kMismatch, "checkpoint '{}': tensor '{}' has shape [{}] ({} bytes), expected [{}]",
                 checkpoint.name(), name, fmt::join(view.shape, ", "), view.data.size(),
                 fmt::join(shape, ", "));
  return view;
}

void convert(const TensorView& from, int64_t first, int64_t count, DType to, std::byte* out) {
  const std::byte* data = from.data.data() + first * dtype_size(from.dtype);
  if (from.dtype == to) {
    std::memcpy(out, data, static_cast<size_t>(count * dtype_size(to)));
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    float value = 0;
    uint16_t half = 0;
    if (from.dtype == DType::kF32) {
      std::memcpy(&value, data + i * 4, 4);
    } else {
      std::memcpy(&half, data + i * 2, 2);
      value = from.dtype == DType::kBF16 ? bf16_to_f32(half) : f16_to_f32(half);
    }
    if (to == DType::kF32) {
      std::memcpy(out + i * 4, &value, 4);
    } else {
      half = f32_to_bf16(value);
      std::memcpy(out + i * 2, &half, 2);
    }
  }
}

}  // namespace ds::host
