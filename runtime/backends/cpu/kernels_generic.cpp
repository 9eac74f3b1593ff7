// The kernels for any machine: 4 floats at a time.
#include <cstddef>
#include <cstdint>

#include "runtime/backends/cpu/kernels_internal.h"

// GCC 12 takes the intrinsics' own undefined operands, and arrays filled through vectors, for uninitialised.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"

namespace ds::cpu {
namespace generic {
constexpr int kWidth = 4, kVectors = 2, kPanelRows = 2;
#include "runtime/backends/cpu/kernels_body_internal.h"

inline bool any_greater(Vec a, Vec b) {
  Int mask = a > b;
  int32_t any = 0;
  for (int i = 0; i < kWidth; ++i) any |= mask[i];
  return any != 0;
}
}  // namespace generic

constinit const Kernels kGenericF32 = generic::f32_kernels<generic::F32>();
constinit const Kernels kGenericBf16 = generic::f32_kernels<generic::Bf16>();

}  // namespace ds::cpu
