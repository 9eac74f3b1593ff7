// Elements of hidden states and caches as kernels read and write them: 16 bytes at once where everything is
// aligned and divides, else one element. Included by .cu files only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "runtime/backends/cuda/simt_internal.h"
#include "support/dtype.h"

namespace ds::cuda {

using Bf16 = __nv_bfloat16;

/// Elements of 16 bytes.
template <typename T>
inline constexpr int kVector = 16 / static_cast<int>(sizeof(T));

DS_DEVICE float to_float(float v) { return v; }
DS_DEVICE float to_float(Bf16 v) { return __bfloat162float(v); }
template <typename T>
DS_DEVICE T from_float(float v) {
  if constexpr (sizeof(T) == 4) {
    return v;
  } else {
    return __float2bfloat16_rn(v);
  }
}

DS_DEVICE uint32_t two_bf16(float low, float high) {
  __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &both, sizeof bits);
  return bits;
}
DS_DEVICE void unpack_bf16(uint32_t two, float& low, float& high) {
  low = __uint_as_float(two << 16);
  high = __uint_as_float(two & 0xffff0000u);
}

/// N is kVector<T> (16-byte aligned) or 1.
template <int N, typename T>
DS_DEVICE void load(const T* p, float (&v)[N]) {
  if constexpr (N == 1) {
    v[0] = to_float(*p);
  } else {
    static_assert(N == kVector<T>);
    uint4 bits = load_16(p);
    if constexpr (sizeof(T) == 4) {
      v[0] = __uint_as_float(bits.x);
      v[1] = __uint_as_float(bits.y);
      v[2] = __uint_as_float(bits.z);
      v[3] = __uint_as_float(bits.w);
    } else {
      unpack_bf16(bits.x, v[0], v[1]);
      unpack_bf16(bits.y, v[2], v[3]);
      unpack_bf16(bits.z, v[4], v[5]);
      unpack_bf16(bits.w, v[6], v[7]);
    }
  }
}

template <int N, typename T>
DS_DEVICE void store(T* p, const float (&v)[N]) {
  if constexpr (N == 1) {
    *p = from_float<T>(v[0]);
  } else {
    static_assert(N == kVector<T>);
    uint4 bits;
    if constexpr (sizeof(T) == 4) {
      bits = {__float_as_uint(v[0]), __float_as_uint(v[1]), __float_as_uint(v[2]), __float_as_uint(v[3])};
    } else {
      bits = {two_bf16(v[0], v[1]), two_bf16(v[2], v[3]), two_bf16(v[4], v[5]), two_bf16(v[6], v[7])};
    }
    store_16(p, bits);
  }
}

/// N numbers of f32 (weights, biases, angles); N a multiple of 4 (16-byte aligned) or 1.
template <int N>
DS_DEVICE void load_f32(const float* p, float (&v)[N]) {
  if constexpr (N == 1) {
    v[0] = *p;
  } else {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
      const uint4 four = load_16(p + i);
      v[i] = __uint_as_float(four.x);
      v[i + 1] = __uint_as_float(four.y);
      v[i + 2] = __uint_as_float(four.z);
      v[i + 3] = __uint_as_float(four.w);
    }
  }
}

/// Whether all of these are 16-byte aligned; null is.
template <typename... P>
bool aligned_16(const P*... p) {
  return ((reinterpret_cast<uintptr_t>(p) | ...) & 15) == 0;
}

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// Calls f with a null pointer of the element type.
template <typename F>
cudaError_t with_type(DType dtype, F f) {
  return dtype == DType::kF32 ? f(static_cast<float*>(nullptr)) : f(static_cast<Bf16*>(nullptr));
}

}  // namespace ds::cuda
