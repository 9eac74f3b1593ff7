// Which tokens of a context another model's keys fit least.
#include "runtime/backends/cuda/kernels_internal.h"
#include "runtime/backends/cuda/vectors_internal.h"

namespace ds::cuda {
namespace {

// ---- deviation: a row's sum is one thread's, in the order of the elements; the others fetch for it

constexpr int kTileRows = 32, kTileElements = 64, kFetchers = 128;

template <typename T, int N>
DS_DEVICE void fetch_squares(const T* k, const T* cache, int64_t first, int64_t rows, int64_t start,
                             int64_t elements, int64_t kv_row, float (*squares)[kTileElements + 1]) {
  constexpr int kAcross = kTileElements / N;
#pragma unroll 2
  for (int i = static_cast<int>(threadIdx.x); i < kTileRows * kAcross; i += kFetchers) {
    const int row = i / kAcross, at = i % kAcross * N;
    float a[N] = {}, b[N] = {};
    if (first + row < rows && start + at < elements) {
      load(k + (first + row) * elements + start + at, a);
      load(cache + (first + row) * kv_row + start + at, b);
    }
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float difference = a[j] - b[j];
      squares[row][at + j] = __fmul_rn(difference, difference);  // never fused with the sum: as every machine
    }
  }
}

template <typename T, int N>
DS_KERNEL DS_THREADS(kFetchers) sum_deviations(const T* k, const T* cache, int64_t rows, int64_t elements,
                                               int64_t kv_row, float* deviation) {
  DS_SHARED float squares[2][kTileRows][kTileElements + 1];
  const int64_t first = int64_t{blockIdx.x} * kTileRows;
  const int64_t tiles = (elements + kTileElements - 1) / kTileElements;
  float sum = 0;
  fetch_squares<T, N>(k, cache, first, rows, 0, elements, kv_row, squares[0]);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    __syncthreads();
    if (tile + 1 < tiles)
      fetch_squares<T, N>(k, cache, first, rows, (tile + 1) * kTileElements, elements, kv_row,
                          squares[(tile + 1) % 2]);
    if (threadIdx.x < kTileRows) {
#pragma unroll
      for (int i = 0; i < kTileElements; ++i) sum = __fadd_rn(sum, squares[tile % 2][threadIdx.x][i]);
    }
  }
  if (threadIdx.x < kTileRows && first + threadIdx.x < rows)
    deviation[first + threadIdx.x] = sum != sum ? INFINITY : sum;
}

// ---- the largest, by the bits of the numbers: none is negative, so these are ordered as the numbers are

constexpr int kThreads = 1024, kWarps = kThreads / 32, kBins = 2048, kPerThread = 4;

DS_DEVICE uint32_t key_of(float v) { return __float_as_uint(v) & 0x7fffffffu; }

/// Warp 0: the bin from which on upwards the counts reach `wanted`; `wanted` becomes how many of it are.
DS_DEVICE uint32_t bin_of(const uint32_t* counts, uint32_t& wanted) {
  constexpr int kPerLane = kBins / 32;
  const int lane = static_cast<int>(threadIdx.x);
  uint32_t own = 0;
  for (int i = 0; i < kPerLane; ++i) own += counts[lane * kPerLane + i];
  uint32_t from_here = own;  // of this lane's bins and all above
  for (int offset = 1; offset < 32; offset *= 2) {
    uint32_t other = __shfl_down_sync(0xffffffffu, from_here, offset);
    if (lane + offset < 32) from_here += other;
  }
  const uint32_t reached = __ballot_sync(0xffffffffu, from_here >= wanted);
  const int owner = 31 - __clz(static_cast<int>(reached));
  uint32_t bin = 0, left = wanted - (from_here - own);
  if (lane == owner) {
    bin = static_cast<uint32_t>(lane * kPerLane + kPerLane - 1);
    while (counts[bin] < left) left -= counts[bin--];
  }
  wanted = __shfl_sync(0xffffffffu, left, owner);
  return __shfl_sync(0xffffffffu, bin, owner);
}

DS_KERNEL DS_THREADS(kThreads)
    select_positions(const float* values, int rows, int count, int32_t* positions) {
  DS_SHARED uint32_t counts[kBins];
  DS_SHARED uint32_t found[2];  // the key so far, how many of it are wanted
  DS_SHARED uint32_t totals[2][kWarps];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  uint32_t key = 0, wanted = static_cast<uint32_t>(count);
  // 31 bits in three digits; a key is in question while its digits so far are those found.
  for (int shift = 20, bits = 11; shift >= 0; shift -= 10, bits = 10) {
    for (int i = thread; i < kBins; i += kThreads) counts[i] = 0;
    __syncthreads();
    for (int i = thread; i < rows; i += kThreads) {
      const uint32_t k = key_of(values[i]);
      if (k >> shift >> bits == key >> shift >> bits)
        atomicAdd(&counts[(k >> shift) & ((1u << bits) - 1)], 1u);
    }
    __syncthreads();
    if (warp == 0) {
      const uint32_t bin = bin_of(counts, wanted);
      if (lane == 0) found[0] = key | bin << shift, found[1] = wanted;
    }
    __syncthreads();
    key = found[0];
    wanted = found[1];
  }
  // All above the key, and the first `wanted` that equal it, in order: how many of either kind are before
  // each, both counted in one word (at most kThreads * kPerThread of a kind in a round).
  uint32_t above = 0, equal = 0;  // in the rounds before
  for (int base = 0, round = 0; base < rows; base += kThreads * kPerThread, ++round) {
    const int first = base + thread * kPerThread;
    uint32_t own = 0;
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
      if (first + j >= rows) continue;
      const uint32_t k = key_of(values[first + j]);
      own += k > key ? 1u : k == key ? 1u << 16 : 0u;
    }
    uint32_t until = own;  // of the warp's lanes up to this one
    for (int offset = 1; offset < 32; offset *= 2) {
      uint32_t other = __shfl_up_sync(0xffffffffu, until, offset);
      if (lane >= offset) until += other;
    }
    if (lane == 31) totals[round % 2][warp] = until;
    __syncthreads();  // the next round's totals are others
    uint32_t before = until - own, all = 0;
    for (int w = 0; w < kWarps; ++w) {
      if (w == warp) before += all;
      all += totals[round % 2][w];
    }
    uint32_t above_before = above + (before & 0xffffu), equal_before = equal + (before >> 16);
#pragma unroll
    for (int j = 0; j < kPerThread; ++j) {
      if (first + j >= rows) continue;
      const uint32_t k = key_of(values[first + j]);
      if (k > key || (k == key && equal_before < wanted))
        positions[above_before + (equal_before < wanted ? equal_before : wanted)] = first + j;
      above_before += k > key ? 1u : 0u;
      equal_before += k == key ? 1u : 0u;
    }
    above += all & 0xffffu;
    equal += all >> 16;
  }
}

}  // namespace

cudaError_t key_deviation(cudaStream_t stream, DType dtype, const std::byte* k, const std::byte* cache,
                          int64_t rows, int64_t elements, int64_t kv_row, float* deviation) {
  if (rows == 0) return cudaSuccess;
  return with_type(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    auto *mine = reinterpret_cast<const T*>(k), *other = reinterpret_cast<const T*>(cache);
    constexpr int N = kVector<T>;
    const dim3 grid(static_cast<unsigned>(divide_up(rows, kTileRows)));
    if (elements % N == 0 && kv_row % N == 0 && aligned_16(k, cache))
      return launch(sum_deviations<T, N>, grid, dim3(kFetchers), 0, stream, mine, other, rows, elements,
                    kv_row, deviation);
    return launch(sum_deviations<T, 1>, grid, dim3(kFetchers), 0, stream, mine, other, rows, elements, kv_row,
                  deviation);
  });
}

cudaError_t select_largest(cudaStream_t stream, const float* values, int64_t rows, int64_t count,
                           int32_t* positions) {
  if (count == 0) return cudaSuccess;
  if (count < 0 || count > rows || rows > INT32_MAX - kThreads * kPerThread) return cudaErrorInvalidValue;
  return launch(select_positions, dim3(1), dim3(kThreads), 0, stream, values, static_cast<int>(rows),
                static_cast<int>(count), positions);
}

}  // namespace ds::cuda
