#include <algorithm>
#include <cmath>

#include "runtime/model/adapter_internal.h"

// This file is compiled with -ffp-contract=off: the product by `scaling` and the sum are rounded each.

namespace ds::lora {
namespace {

constexpr int64_t kRun = 64;  // elements that stay in registers

[[gnu::always_inline]] inline void run(const float* b, const float* a, int64_t r, int64_t columns,
                                       float scaling, float* row, int64_t count) {
  float sum[kRun] = {};
  for (int64_t k = 0; k < r; ++k)
    for (int64_t j = 0; j < count; ++j) sum[j] = __builtin_fmaf(b[k], a[k * columns + j], sum[j]);
  for (int64_t j = 0; j < count; ++j) row[j] = row[j] + sum[j] * scaling;
}

[[gnu::always_inline]] inline void whole_row(const float* b, const float* a, int64_t r, int64_t columns,
                                             float scaling, float* row) {
  int64_t at = 0;
  for (; at + kRun <= columns; at += kRun) run(b, a + at, r, columns, scaling, row + at, kRun);
  if (at < columns) run(b, a + at, r, columns, scaling, row + at, columns - at);
}

#if defined(__x86_64__)
// The same source for each instruction set: a fused multiply-add without its instruction is a library call.
[[gnu::target("avx512f")]] void whole_row_avx512(const float* b, const float* a, int64_t r, int64_t columns,
                                                 float scaling, float* row) {
  whole_row(b, a, r, columns, scaling, row);
}
[[gnu::target("avx2,fma")]] void whole_row_avx2(const float* b, const float* a, int64_t r, int64_t columns,
                                                float scaling, float* row) {
  whole_row(b, a, r, columns, scaling, row);
}
#endif

}  // namespace

void merge_row(const float* b, const float* a, int64_t r, int64_t columns, float scaling, float* row) {
#if defined(__x86_64__)
  static const bool avx512 = __builtin_cpu_supports("avx512f") != 0;
  static const bool avx2 = __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0;
  if (avx512) return whole_row_avx512(b, a, r, columns, scaling, row);
  if (avx2) return whole_row_avx2(b, a, r, columns, scaling, row);
#endif
  whole_row(b, a, r, columns, scaling, row);
}

void set_magnitude(float magnitude, int64_t columns, float* row) {
  double squares = 0;  // exact products: closer to the true norm than any order of f32 sums
  for (int64_t j = 0; j < columns; ++j) squares += static_cast<double>(row[j]) * row[j];
  const float factor = magnitude / static_cast<float>(std::sqrt(squares));
  for (int64_t j = 0; j < columns; ++j) row[j] = factor * row[j];
}

}  // namespace ds::lora
