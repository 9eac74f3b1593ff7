// The kernels for AVX2 with FMA.
#include <cstddef>
#include <cstdint>

#include "runtime/backends/cpu/kernels_internal.h"

// GCC 12 takes the intrinsics' own undefined operands, and arrays filled through vectors, for uninitialised.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"

#ifdef __x86_64__
#include <immintrin.h>

// To the end of the file, where templates are instantiated. So nothing here may run on a machine without it
// but the kernels: the tables are data.
#pragma GCC target("avx2,fma")

namespace ds::cpu {
namespace avx2 {
constexpr int kWidth = 8, kVectors = 2, kPanelRows = 6;
#include "runtime/backends/cpu/kernels_body_internal.h"

inline bool any_greater(Vec a, Vec b) { return _mm256_movemask_ps((__m256)(a > b)) != 0; }
}  // namespace avx2

constinit const Kernels kAvx2F32 = avx2::f32_kernels<avx2::F32>();
constinit const Kernels kAvx2Bf16 = avx2::f32_kernels<avx2::Bf16>();

}  // namespace ds::cpu
#endif
