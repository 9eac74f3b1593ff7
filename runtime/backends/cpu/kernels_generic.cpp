// The kernels for any machine: 4 floats at a time.
#include <cstddef>
#include <cstdint>

#include "runtime/backends/cpu/kernels_internal.h"

// GCC 12 takes the intrinsics' own undefined operands, and arrays filled through vectors, for uninitialised.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

namespace ds::cpu {
namespace generic {
constexpr int kWidth = 4, kVectors = 2;
#include "runtime/backends/cpu/kernels_body_internal.h"
}  // namespace generic

Kernels kernels_generic(DType hidden) {
  return hidden == DType::kF32 ? generic::f32_kernels<generic::F32>() : generic::f32_kernels<generic::Bf16>();
}

}  // namespace ds::cpu
