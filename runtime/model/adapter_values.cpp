// The values of an adapter's tensors: merged into the base's, and looked through for what is not finite.
#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <new>

#include "runtime/model/adapter.h"
#include "runtime/model/adapter_internal.h"
#include "runtime/model/parallel_internal.h"

namespace ds {

using namespace lora;

namespace {

/// `count` elements as f32.
void to_f32(const TensorView& from, int64_t first, int64_t count, float* out) {
  const std::byte* at = from.data.data() + first * dtype_size(from.dtype);
  if (from.dtype == DType::kF32) {
    std::memcpy(out, at, static_cast<size_t>(count) * 4);
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    uint16_t half = 0;
    std::memcpy(&half, at + i * 2, 2);
    out[i] = from.dtype == DType::kBF16 ? bf16_to_f32(half) : f16_to_f32(half);
  }
}

std::vector<float> to_f32(const TensorView& from) {
  std::vector<float> out(static_cast<size_t>(from.elements()));
  to_f32(from, 0, from.elements(), out.data());
  return out;
}

/// [rows][columns] -> [columns][rows]
std::vector<float> transposed(const std::vector<float>& from, int64_t rows, int64_t columns) {
  std::vector<float> out(from.size());
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j)
      out[static_cast<size_t>(j * rows + i)] = from[static_cast<size_t>(i * columns + j)];
  return out;
}

int64_t first_not_finite(std::span<const float> values) {
  for (size_t i = 0; i < values.size(); ++i)
    if (!std::isfinite(values[i])) return static_cast<int64_t>(i);
  return -1;
}

}  // namespace

Result<TensorView> Adapter::merge(const std::string& name) const {
  auto found = low_rank_.find(name);
  if (found == low_rank_.end()) return error(Code::kInternal, "'{}' is not merged by '{}'", name, folder_);
  const LowRank& low = found->second;
  const TensorView& base = tensors_.at(name);
  const int64_t rows = base.shape[0], columns = base.shape.size() == 2 ? base.shape[1] : 1;
  const auto scaling = static_cast<float>(low.scaling);
  try {
    TensorView out{DType::kF32, base.shape, {}};
    const auto bytes = static_cast<size_t>(base.elements()) * 4;
    std::shared_ptr<std::byte[]> memory = std::make_shared_for_overwrite<std::byte[]>(bytes);
    auto* to = reinterpret_cast<float*>(memory.get());
    std::atomic<int64_t> bad{-1};
    if (base.shape.size() == 1) {
      const std::vector<float> bias = to_f32(low.b);
      to_f32(base, 0, rows, to);
      const float one = 1;
      merge_row(&one, bias.data(), 1, rows, scaling, to);
      bad = first_not_finite({to, static_cast<size_t>(rows)});
    } else {
      std::vector<float> a = to_f32(low.a), b = to_f32(low.b);
      const int64_t r = low.a.shape[0];
      if (low.embedding) {  // (B A) transposed is (A transposed) (B transposed)
        std::vector<float> left = transposed(a, r, rows);
        a = transposed(b, columns, r);
        b = std::move(left);
      }
      const std::vector<float> magnitude = low.magnitude ? to_f32(*low.magnitude) : std::vector<float>{};
      constexpr int64_t kRows = 16;  // a thread's share at a time
      parallel_for(static_cast<size_t>((rows + kRows - 1) / kRows), [&](size_t block) {
        const int64_t first = static_cast<int64_t>(block) * kRows, last = std::min(rows, first + kRows);
        for (int64_t i = first; i < last; ++i) {
          float* row = to + i * columns;
          to_f32(base, i * columns, columns, row);
          merge_row(b.data() + i * r, a.data(), r, columns, scaling, row);
          if (!magnitude.empty()) set_magnitude(magnitude[static_cast<size_t>(i)], columns, row);
          if (int64_t at = first_not_finite({row, static_cast<size_t>(columns)}); at >= 0)
            bad = i * columns + at;
        }
      });
    }
    if (bad >= 0)
      return error(Code::kCorrupt, "merging the adapter '{}': tensor '{}' becomes {} at element {}", folder_,
                   name, to[bad], bad.load());
    out.data = {memory.get(), bytes};
    out.owner = std::move(memory);
    return out;
  } catch (const std::bad_alloc&) {
    return error(Code::kExhausted, "merging the adapter '{}': no memory for '{}' ({} elements in f32)",
                 folder_, name, base.elements());
  }
}

Status Adapter::check_finite() const {
  for (const auto& [module, m] : modules_) {
    for (const auto* part :
         {&m.a, &m.b, &m.b_bias, &m.embedding_a, &m.embedding_b, &m.magnitude, &m.weight, &m.bias}) {
      if (!*part) continue;
      const TensorView& view = (*part)->view;
      std::vector<float> piece(1 << 16);
      for (int64_t at = 0; at < view.elements(); at += static_cast<int64_t>(piece.size())) {
        const int64_t count = std::min(view.elements() - at, static_cast<int64_t>(piece.size()));
        to_f32(view, at, count, piece.data());
        const int64_t bad = first_not_finite({piece.data(), static_cast<size_t>(count)});
        if (bad >= 0)
          return error(Code::kCorrupt, "{}{}: tensor '{}' has {} at element {}, expected finite weights",
                       folder_, kWeightFile, (*part)->name, piece[static_cast<size_t>(bad)], at + bad);
      }
    }
  }
  return ok_status();
}

}  // namespace ds
