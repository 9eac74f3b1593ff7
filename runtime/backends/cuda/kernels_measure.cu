// Random weights, and how fast memory is read.
#include "runtime/backends/cuda/kernels_internal.h"
#include "runtime/backends/cuda/vectors_internal.h"

namespace ds::cuda {
namespace {

constexpr int kThreads = 256, kReads = 8;

/// The n-th number of splitmix64.
DS_DEVICE uint64_t random_bits(uint64_t seed, uint64_t n) {
  uint64_t z = seed + (n + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

template <typename T, int N>
DS_KERNEL DS_THREADS(kThreads) fill_normal(T* out, int64_t elements, uint64_t seed, float deviation) {
  const int64_t first = (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kVector<T>;
  float v[kVector<T>];
#pragma unroll
  for (int j = 0; j < kVector<T>; j += 2) {  // two of each draw (Box and Muller)
    const uint64_t bits = random_bits(seed, static_cast<uint64_t>(first + j) / 2);
    const float u = (static_cast<float>(bits >> 40) + 1) * 0x1p-24f,
                turns = static_cast<float>(bits & 0xffffff) * 0x1p-23f;
    const float radius = deviation * sqrtf(-2.0f * logf(u));
    float s, c;
    sincospif(turns, &s, &c);
    v[j] = radius * c;
    v[j + 1] = radius * s;
  }
  if (N > 1 && first + kVector<T> <= elements) {
    store(out + first, v);
    return;
  }
  for (int j = 0; j < kVector<T> && first + j < elements; ++j) out[first + j] = from_float<T>(v[j]);
}

DS_KERNEL DS_THREADS(kThreads) read_vectors(const uint4* data, int64_t vectors, uint32_t* sum) {
  DS_SHARED uint32_t sums[kThreads / 32];
  const int64_t first = int64_t{blockIdx.x} * kThreads * kReads + threadIdx.x;
  uint4 read[kReads] = {};
#pragma unroll
  for (int i = 0; i < kReads; ++i)
    if (first + i * kThreads < vectors) read[i] = load_16(data + first + i * kThreads);
  uint32_t own = 0;
#pragma unroll
  for (int i = 0; i < kReads; ++i) own += read[i].x + read[i].y + read[i].z + read[i].w;
  for (int offset = 16; offset > 0; offset /= 2) own += __shfl_xor_sync(0xffffffffu, own, offset);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = own;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int i = 1; i < kThreads / 32; ++i) own += sums[i];
    atomicAdd(sum, own);
  }
}

}  // namespace

cudaError_t fill_random(cudaStream_t stream, DType dtype, std::byte* out, int64_t elements, uint64_t seed,
                        float deviation) {
  if (elements == 0) return cudaSuccess;
  return with_type(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    auto* to = reinterpret_cast<T*>(out);
    const dim3 grid(static_cast<unsigned>(divide_up(elements, int64_t{kThreads} * kVector<T>)));
    if (aligned_16(out))
      return launch(fill_normal<T, kVector<T>>, grid, dim3(kThreads), 0, stream, to, elements, seed,
                    deviation);
    return launch(fill_normal<T, 1>, grid, dim3(kThreads), 0, stream, to, elements, seed, deviation);
  });
}

cudaError_t read_all(cudaStream_t stream, const std::byte* data, int64_t bytes, uint32_t* sum) {
  if (bytes % 16 != 0 || !aligned_16(data)) return cudaErrorInvalidValue;
  if (bytes == 0) return cudaSuccess;
  return launch(read_vectors, dim3(static_cast<unsigned>(divide_up(bytes / 16, int64_t{kThreads} * kReads))),
                dim3(kThreads), 0, stream, reinterpret_cast<const uint4*>(data), bytes / 16, sum);
}

}  // namespace ds::cuda
