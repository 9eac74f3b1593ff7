// Kernels over rows of hidden states. Each block has one row, or a part of one, or a few.
#include "runtime/backends/cuda/kernels_internal.h"
#include "runtime/backends/cuda/vectors_internal.h"

namespace ds::cuda {
namespace {

constexpr int kThreads = 256;

// ---- copies of rows

template <typename Word>
DS_KERNEL DS_THREADS(kThreads)
    copy_rows(const Word* from, const int32_t* index, int64_t rows, int64_t words, Word* to) {
  int64_t row = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (row >= rows) return;
  const Word* source = from + index[row] * words;
  Word* target = to + row * words;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < words; i += blockDim.x) target[i] = source[i];
}

template <typename Word>
cudaError_t launch_copy(cudaStream_t stream, const std::byte* from, const int32_t* index, int64_t rows,
                        int64_t row_bytes, std::byte* to) {
  const int64_t words = row_bytes / static_cast<int64_t>(sizeof(Word));
  unsigned across = 32;  // threads of a row
  while (across < kThreads && across < words) across *= 2;
  const dim3 block(across, kThreads / across);
  return launch(copy_rows<Word>, dim3(static_cast<unsigned>(divide_up(rows, block.y))), block, 0, stream,
                reinterpret_cast<const Word*>(from), index, rows, words, reinterpret_cast<Word*>(to));
}

// ---- RMSNorm

/// Sum over a block of kThreads threads, to all of them, in an order that does not change.
template <int kCount>
DS_DEVICE float block_sum(float v) {
  DS_SHARED float sums[kCount / 32];
  v = warp_sum(v);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = v;
  __syncthreads();
  v = sums[0];
#pragma unroll
  for (int i = 1; i < kCount / 32; ++i) v += sums[i];
  return v;
}

/// Rows of at most kRowThreads * kVectors vectors, held in registers; kRowThreads is a warp or a block.
template <typename T, int kRowThreads, int kVectors>
DS_KERNEL DS_THREADS(kRowThreads == 32 ? 128 : kRowThreads)
    norm_vectors(const T* x, const int64_t* index, const float* weight, float eps, float inverse_d,
                 int64_t rows, int d, T* out) {
  constexpr int N = kVector<T>;
  const int64_t row = int64_t{blockIdx.x} * (blockDim.x / kRowThreads) + threadIdx.x / kRowThreads;
  if (row >= rows) return;  // whole warps
  const int first = static_cast<int>(threadIdx.x % kRowThreads) * N;
  const T* source = x + (index == nullptr ? row : index[row]) * d;
  constexpr bool kEarly = kVectors <= 2;  // weights beside the row, where registers suffice for both
  float v[kVectors][N], w[kEarly ? kVectors : 1][N];
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int at = first + i * kRowThreads * N;
    if (at < d) load(source + at, v[i]);
    if (kEarly && at < d) load_f32(weight + at, w[kEarly ? i : 0]);
  }
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    if (first + i * kRowThreads * N >= d) continue;
#pragma unroll
    for (int j = 0; j < N; ++j) sum += v[i][j] * v[i][j];
  }
  if constexpr (kRowThreads == 32) {
    sum = warp_sum(sum);
  } else {
    sum = block_sum<kRowThreads>(sum);
  }
  const float factor = rsqrtf(sum * inverse_d + eps);
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    const int at = first + i * kRowThreads * N;
    if (at >= d) continue;
    if (!kEarly) load_f32(weight + at, w[0]);
#pragma unroll
    for (int j = 0; j < N; ++j) v[i][j] = v[i][j] * factor * w[kEarly ? i : 0][j];
    store(out + row * d + at, v[i]);
  }
}

/// Rows of any length and alignment, read twice.
template <typename T>
DS_KERNEL DS_THREADS(kThreads) norm_elements(const T* x, const int64_t* index, const float* weight, float eps,
                                             float inverse_d, int d, T* out) {
  const int64_t row = blockIdx.x;
  const T* source = x + (index == nullptr ? row : index[row]) * d;
  float sum = 0;
  for (int i = static_cast<int>(threadIdx.x); i < d; i += kThreads) {
    float v = to_float(source[i]);
    sum += v * v;
  }
  sum = block_sum<kThreads>(sum);
  const float factor = rsqrtf(sum * inverse_d + eps);
  for (int i = static_cast<int>(threadIdx.x); i < d; i += kThreads)
    out[row * d + i] = from_float<T>(to_float(source[i]) * factor * weight[i]);
}

template <typename T, int kRowThreads, int kVectors>
cudaError_t launch_norm(cudaStream_t stream, const T* x, const int64_t* index, const float* weight, float eps,
                        int64_t rows, int d, T* out) {
  constexpr int kBlock = kRowThreads == 32 ? 128 : kRowThreads;
  return launch(norm_vectors<T, kRowThreads, kVectors>,
                dim3(static_cast<unsigned>(divide_up(rows, kBlock / kRowThreads))), dim3(kBlock), 0, stream,
                x, index, weight, eps, 1.0f / static_cast<float>(d), rows, d, out);
}

// ---- element by element

template <typename T, int N>
DS_KERNEL DS_THREADS(kThreads) swiglu_rows(const T* x, int64_t ff, T* out) {
  const int64_t row = blockIdx.x, at = (int64_t{blockIdx.y} * kThreads + threadIdx.x) * N;
  if (at >= ff) return;
  float gate[N], up[N];
  load(x + row * 2 * ff + at, gate);
  load(x + row * 2 * ff + ff + at, up);
#pragma unroll
  for (int j = 0; j < N; ++j) {
    if constexpr (sizeof(T) == 4) {
      gate[j] = gate[j] / (1.0f + expf(-gate[j])) * up[j];
    } else {
      // Far within the rounding of bf16. Where 2^x is infinite the quotient is 0, as it should be.
      gate[j] = __fdividef(gate[j], 1.0f + exp2_approx(gate[j] * -1.4426950408889634f)) * up[j];
    }
  }
  store(out + row * ff + at, gate);
}

template <typename T, int N>
DS_KERNEL DS_THREADS(kThreads)
    add_aligned(T* hidden, const float* product, const float* scale, const float* bias, int64_t d) {
  const int64_t row = blockIdx.x, at = (int64_t{blockIdx.y} * kThreads + threadIdx.x) * N;
  if (at >= d) return;
  float v[N], added[N], part[N];
  load(hidden + row * d + at, v);
  load_f32(bias + at, added);
  if (scale != nullptr) {
    load_f32(scale + at, part);
#pragma unroll
    for (int j = 0; j < N; ++j) added[j] = part[j] * v[j] + added[j];
  }
  if (product != nullptr) {
    load_f32(product + row * d + at, part);
#pragma unroll
    for (int j = 0; j < N; ++j) added[j] = part[j] + added[j];
  }
#pragma unroll
  for (int j = 0; j < N; ++j) v[j] = added[j] == 0.0f ? v[j] : v[j] + added[j];  // -0 stays -0
  store(hidden + row * d + at, v);
}

/// Blocks over rows and, N elements to a thread, over what a row has.
dim3 grid_of(int64_t rows, int64_t elements, int per_thread) {
  return dim3(static_cast<unsigned>(rows),
              static_cast<unsigned>(divide_up(elements, int64_t{kThreads} * per_thread)));
}

}  // namespace

cudaError_t gather_rows(cudaStream_t stream, const std::byte* from, const int32_t* index, int64_t rows,
                        int64_t row_bytes, std::byte* to) {
  if (rows == 0 || row_bytes == 0) return cudaSuccess;
  if (row_bytes % 16 == 0 && aligned_16(from, to))
    return launch_copy<uint4>(stream, from, index, rows, row_bytes, to);
  const auto both = reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to);
  return row_bytes % 4 == 0 && both % 4 == 0
             ? launch_copy<uint32_t>(stream, from, index, rows, row_bytes, to)
             : launch_copy<uint16_t>(stream, from, index, rows, row_bytes, to);
}

cudaError_t embed(cudaStream_t stream, DType dtype, const int32_t* ids, int64_t rows, const std::byte* table,
                  int64_t d, std::byte* hidden) {
  return gather_rows(stream, table, ids, rows, d * dtype_size(dtype), hidden);
}

cudaError_t rms_norm(cudaStream_t stream, DType dtype, const std::byte* x, const int64_t* index,
                     const float* weight, float eps, int64_t rows, int64_t d, std::byte* out) {
  if (rows == 0) return cudaSuccess;
  return with_type(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    auto* from = reinterpret_cast<const T*>(x);
    auto* to = reinterpret_cast<T*>(out);
    const auto n = static_cast<int>(d);
    const int64_t vectors = d / kVector<T>;
    if (d % kVector<T> != 0 || !aligned_16(x, weight, out) || vectors > kThreads * 8)
      return launch(norm_elements<T>, dim3(static_cast<unsigned>(rows)), dim3(kThreads), 0, stream, from,
                    index, weight, eps, 1.0f / static_cast<float>(n), n, to);
    auto run = [&](auto launcher) { return launcher(stream, from, index, weight, eps, rows, n, to); };
    // A warp to a row where that is enough, since it needs no barrier.
    if (vectors <= 32) return run(launch_norm<T, 32, 1>);
    if (vectors <= 128) return run(launch_norm<T, 32, 4>);
    if (vectors <= kThreads) return run(launch_norm<T, kThreads, 1>);
    if (vectors <= kThreads * 2) return run(launch_norm<T, kThreads, 2>);
    if (vectors <= kThreads * 4) return run(launch_norm<T, kThreads, 4>);
    return run(launch_norm<T, kThreads, 8>);
  });
}

cudaError_t swiglu(cudaStream_t stream, DType dtype, const std::byte* x, int64_t rows, int64_t ff,
                   std::byte* out) {
  if (rows == 0) return cudaSuccess;
  return with_type(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    auto* from = reinterpret_cast<const T*>(x);
    auto* to = reinterpret_cast<T*>(out);
    constexpr int N = kVector<T>;
    if (ff % N == 0 && aligned_16(x, out))
      return launch(swiglu_rows<T, N>, grid_of(rows, ff, N), dim3(kThreads), 0, stream, from, ff, to);
    return launch(swiglu_rows<T, 1>, grid_of(rows, ff, 1), dim3(kThreads), 0, stream, from, ff, to);
  });
}

cudaError_t align_rows(cudaStream_t stream, DType dtype, std::byte* hidden, const float* product,
                       const float* scale, const float* bias, int64_t rows, int64_t d) {
  if (rows == 0) return cudaSuccess;
  return with_type(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    auto* to = reinterpret_cast<T*>(hidden);
    constexpr int N = kVector<T>;
    if (d % N == 0 && aligned_16(hidden, product, scale, bias))
      return launch(add_aligned<T, N>, grid_of(rows, d, N), dim3(kThreads), 0, stream, to, product, scale,
                    bias, d);
    return launch(add_aligned<T, 1>, grid_of(rows, d, 1), dim3(kThreads), 0, stream, to, product, scale, bias,
                  d);
  });
}

}  // namespace ds::cuda
