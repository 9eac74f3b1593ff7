// The kernels for AVX2 with FMA.
#include <cstddef>
#include <cstdint>

#include "runtime/backends/cpu/kernels_internal.h"

// GCC 12 takes the intrinsics' own undefined operands, and arrays filled through vectors, for uninitialised.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#ifdef __x86_64__

#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace ds::cpu {
namespace avx2 {
constexpr int kWidth = 8, kVectors = 2;
#include "runtime/backends/cpu/kernels_body_internal.h"
}  // namespace avx2
}  // namespace ds::cpu
#pragma GCC pop_options

namespace ds::cpu {
Kernels kernels_avx2(DType hidden) {
  return hidden == DType::kF32 ? avx2::f32_kernels<avx2::F32>() : avx2::f32_kernels<avx2::Bf16>();
}
}  // namespace ds::cpu

#else
namespace ds::cpu {
Kernels kernels_avx2(DType hidden) { return kernels_generic(hidden); }
}  // namespace ds::cpu
#endif
