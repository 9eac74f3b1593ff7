// The CUDA backend's own kernels, and how each is started. All of them are bound by memory: 16-byte accesses,
// every element read and written once. Sums are in f32. Pointers are to device memory, or to host memory that
// devices can read; shapes are in elements; `dtype` is bf16 or f32, that of hidden states and caches.
//
// Each returns what starting it returned; failures of running kernels come from the stream. Rows that are not
// 16-byte aligned or no multiple of 16 bytes are done element by element. No rows: nothing is started.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "runtime/backends/choice.h"
#include "support/dtype.h"

namespace ds::cuda {

/// Where the K and V of a row go ([2][kv_heads][head_dim]), and its position.
struct RowTarget {
  std::byte* kv = nullptr;
  int64_t position = 0;
};

/// The places of the rows of one call (16-byte aligned each where half a head is a multiple of 16 bytes): row
/// i is targets[i]; or, where there are none, at the position first + (first_at ? *first_at : 0) + i, or
/// positions[i] where these are given, of `cache`, whose row 0 is position 0.
struct RowPlaces {
  const RowTarget* targets = nullptr;
  std::byte* cache = nullptr;
  const int32_t* positions = nullptr;
  const int32_t* first_at = nullptr;
  int64_t first = 0;
};

/// hidden[i] = table[ids[i]]; ids in [0, vocab).
cudaError_t embed(cudaStream_t stream, DType dtype, const int32_t* ids, int64_t rows, const std::byte* table,
                  int64_t d, std::byte* hidden);

/// out[i] = weight * x[index ? index[i] : i] / sqrt(mean square + eps), rounded once. weight: f32 [d].
cudaError_t rms_norm(cudaStream_t stream, DType dtype, const std::byte* x, const int64_t* index,
                     const float* weight, float eps, int64_t rows, int64_t d, std::byte* out);

/// Bias, norm of each head (Q and K), rotary embedding of the pairs (i, i + head_dim / 2) of Q and K, and
/// where the results go: Q to `q_out`, K and V to the cache. head_dim: even, at most 256; else
/// cudaErrorInvalidValue.
struct RopeCall {
  const std::byte* projected = nullptr;  // rows of `stride` elements, in dtype
  int64_t stride = 0;
  int64_t q_at = -1, k_at = -1, v_at = -1;  // offsets in a row; -1: not there
  int64_t rows = 0, heads = 0, kv_heads = 0, head_dim = 0;
  const float *q_bias = nullptr, *k_bias = nullptr, *v_bias = nullptr;  // null: none
  const float *q_norm = nullptr, *k_norm = nullptr;                     // [head_dim]; null: none
  float eps = 0;
  const float *cos = nullptr, *sin = nullptr;  // [positions][head_dim / 2]
  RowPlaces places;
  std::byte* q_out = nullptr;  // [rows][heads][head_dim]
};
cudaError_t rope_scatter(cudaStream_t stream, DType dtype, const RopeCall& call);

/// out[i][j] = silu(x[i][j]) * x[i][ff + j]; x: [rows][2 * ff].
cudaError_t swiglu(cudaStream_t stream, DType dtype, const std::byte* x, int64_t rows, int64_t ff,
                   std::byte* out);

/// hidden += product + (scale * hidden + bias), rounded once. product: f32 [rows][d]; it and scale may be
/// null.
cudaError_t align_rows(cudaStream_t stream, DType dtype, std::byte* hidden, const float* product,
                       const float* scale, const float* bias, int64_t rows, int64_t d);

/// deviation[i] = sum of squared differences between k[i] and the K of row i of the cache, in the order of
/// the elements; infinite where it is not a number. k: [rows][elements]; rows of the cache are kv_row
/// elements.
cudaError_t key_deviation(cudaStream_t stream, DType dtype, const std::byte* k, const std::byte* cache,
                          int64_t rows, int64_t elements, int64_t kv_row, float* deviation);

/// The indexes of the `count` largest of `rows` values (none negative, none NaN), ascending; of equal ones
/// the earlier.
cudaError_t select_largest(cudaStream_t stream, const float* values, int64_t rows, int64_t count,
                           int32_t* positions);

/// to[i] = from[index[i]]; rows of `row_bytes`, a multiple of 2. The two must not overlap.
cudaError_t gather_rows(cudaStream_t stream, const std::byte* from, const int32_t* index, int64_t rows,
                        int64_t row_bytes, std::byte* to);

/// *next = the token that ds::choose() chooses, up to rounding of sums; the same logits always choose the
/// same. Logits that are no number are never chosen, unless the first of a greedy choice is one: then it is,
/// as there. `choice` is read when the kernel runs.
cudaError_t choose_token(cudaStream_t stream, const float* logits, int64_t vocab, const Choice* choice,
                         int32_t* next);

/// Normal numbers of the given deviation, the same for the same seed.
cudaError_t fill_random(cudaStream_t stream, DType dtype, std::byte* out, int64_t elements, uint64_t seed,
                        float deviation);

/// Reads `bytes` (a multiple of 16, 16-byte aligned) once and adds the words that it read to *sum: what
/// memory can do.
cudaError_t read_all(cudaStream_t stream, const std::byte* data, int64_t bytes, uint32_t* sum);

}  // namespace ds::cuda
