// From what the QKV product gave to Q, and to K and V in the cache: bias, norm of each head, rotation.
#include "runtime/backends/cuda/kernels_internal.h"
#include "runtime/backends/cuda/vectors_internal.h"

namespace ds::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMostPairs = 128;  // of a head of 256

DS_DEVICE int64_t position_of(const RowPlaces& places, int64_t row) {
  if (places.targets != nullptr) return places.targets[row].position;
  if (places.positions != nullptr) return places.positions[row];
  return places.first + (places.first_at != nullptr ? *places.first_at : 0) + row;
}

/// One head of one row: where it comes from, what is done to it, where it goes.
template <typename T>
struct Head {
  const T* from;
  const float *bias, *norm;
  int64_t position;
  bool rotated;
  T* to;
};

template <typename T>
DS_DEVICE Head<T> head_of(const RopeCall& call, int64_t row, int head) {
  const int q_heads = call.q_at >= 0 ? static_cast<int>(call.heads) : 0;
  const int k_heads = call.k_at >= 0 ? static_cast<int>(call.kv_heads) : 0;
  const int64_t dim = call.head_dim;
  auto* projected = reinterpret_cast<const T*>(call.projected) + row * call.stride;
  Head<T> h{};
  h.position = position_of(call.places, row);
  if (head < q_heads) {
    h.from = projected + call.q_at + head * dim;
    h.bias = call.q_bias == nullptr ? nullptr : call.q_bias + head * dim;
    h.norm = call.q_norm;
    h.rotated = true;
    h.to = reinterpret_cast<T*>(call.q_out) + (row * call.heads + head) * dim;
    return h;
  }
  head -= q_heads;
  auto* kv =
      reinterpret_cast<T*>(call.places.targets != nullptr ? call.places.targets[row].kv : call.places.cache);
  if (call.places.targets == nullptr) kv += h.position * 2 * call.kv_heads * dim;
  if (head < k_heads) {
    h.from = projected + call.k_at + head * dim;
    h.bias = call.k_bias == nullptr ? nullptr : call.k_bias + head * dim;
    h.norm = call.k_norm;
    h.rotated = true;
    h.to = kv + head * dim;
    return h;
  }
  head -= k_heads;
  h.from = projected + call.v_at + head * dim;
  h.bias = call.v_bias == nullptr ? nullptr : call.v_bias + head * dim;
  h.to = kv + (call.kv_heads + head) * dim;
  return h;
}

/// 2^lane_bits threads to a head, each with kVector elements of its first half and as many of its second.
template <typename T>
DS_KERNEL DS_THREADS(kThreads) rope_vectors(RopeCall call, uint32_t heads, float inverse_dim, int lane_bits) {
  constexpr int N = kVector<T>;
  const uint32_t unit = (blockIdx.x * kThreads + threadIdx.x) >> lane_bits;
  const uint32_t row = unit / heads;
  const int lanes = 1 << lane_bits, half = static_cast<int>(call.head_dim / 2);
  const int at = static_cast<int>(threadIdx.x & (static_cast<uint32_t>(lanes) - 1)) * N;
  const bool mine = row < call.rows && at < half;
  Head<T> h{};
  float a[N] = {}, b[N] = {}, p[N], q[N];
  if (mine) {
    h = head_of<T>(call, row, static_cast<int>(unit % heads));
    load(h.from + at, a);
    load(h.from + half + at, b);
    if (h.bias != nullptr) {
      load_f32(h.bias + at, p);
      load_f32(h.bias + half + at, q);
#pragma unroll
      for (int j = 0; j < N; ++j) a[j] += p[j], b[j] += q[j];
    }
  }
  if (call.q_norm != nullptr || call.k_norm != nullptr) {  // all lanes meet, whatever head they have
    float sum = 0;
#pragma unroll
    for (int j = 0; j < N; ++j) sum += a[j] * a[j] + b[j] * b[j];
    for (int offset = lanes / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    if (h.norm != nullptr) {
      const float factor = rsqrtf(sum * inverse_dim + call.eps);
      load_f32(h.norm + at, p);
      load_f32(h.norm + half + at, q);
#pragma unroll
      for (int j = 0; j < N; ++j) a[j] = a[j] * factor * p[j], b[j] = b[j] * factor * q[j];
    }
  }
  if (!mine) return;
  if (h.rotated) {
    load_f32(call.cos + h.position * half + at, p);
    load_f32(call.sin + h.position * half + at, q);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float x = a[j], y = b[j];
      a[j] = x * p[j] - y * q[j];
      b[j] = y * p[j] + x * q[j];
    }
  }
  store(h.to + at, a);
  store(h.to + half + at, b);
}

/// A warp to a head, of any even size and alignment.
template <typename T>
DS_KERNEL DS_THREADS(kThreads) rope_elements(RopeCall call, uint32_t heads, float inverse_dim) {
  constexpr int kPairs = kMostPairs / 32;
  const uint32_t unit = (blockIdx.x * kThreads + threadIdx.x) / 32, row = unit / heads;
  if (row >= call.rows) return;  // whole warps
  const int half = static_cast<int>(call.head_dim / 2), lane = static_cast<int>(threadIdx.x % 32);
  const Head<T> h = head_of<T>(call, row, static_cast<int>(unit % heads));
  float a[kPairs] = {}, b[kPairs] = {};
  float sum = 0;
#pragma unroll
  for (int j = 0; j < kPairs; ++j) {
    const int at = lane + 32 * j;
    if (at >= half) continue;
    a[j] = to_float(h.from[at]);
    b[j] = to_float(h.from[half + at]);
    if (h.bias != nullptr) {
      a[j] += h.bias[at];
      b[j] += h.bias[half + at];
    }
    sum += a[j] * a[j] + b[j] * b[j];
  }
  if (h.norm != nullptr) {  // the same for all lanes
    const float factor = rsqrtf(warp_sum(sum) * inverse_dim + call.eps);
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      const int at = lane + 32 * j;
      if (at >= half) continue;
      a[j] = a[j] * factor * h.norm[at];
      b[j] = b[j] * factor * h.norm[half + at];
    }
  }
#pragma unroll
  for (int j = 0; j < kPairs; ++j) {
    const int at = lane + 32 * j;
    if (at >= half) continue;
    float x = a[j], y = b[j];
    if (h.rotated) {
      const float c = call.cos[h.position * half + at], s = call.sin[h.position * half + at];
      x = a[j] * c - b[j] * s;
      y = b[j] * c + a[j] * s;
    }
    h.to[at] = from_float<T>(x);
    h.to[half + at] = from_float<T>(y);
  }
}

/// Whether vectors of `n` elements fit everything that the call names.
bool fits_vectors(const RopeCall& call, int64_t n) {
  auto whole = [n](int64_t at) { return at < 0 || at % n == 0; };
  return call.head_dim / 2 % n == 0 && call.stride % n == 0 && whole(call.q_at) && whole(call.k_at) &&
         whole(call.v_at) &&
         aligned_16(call.projected, call.q_out, call.places.cache, call.q_bias, call.k_bias, call.v_bias,
                    call.q_norm, call.k_norm, call.cos, call.sin);
}

}  // namespace

cudaError_t rope_scatter(cudaStream_t stream, DType dtype, const RopeCall& call) {
  const int64_t heads = (call.q_at >= 0 ? call.heads : 0) + (call.k_at >= 0 ? call.kv_heads : 0) +
                        (call.v_at >= 0 ? call.kv_heads : 0);
  if (call.rows == 0 || heads == 0) return cudaSuccess;
  if (call.head_dim <= 0 || call.head_dim % 2 != 0 || call.head_dim > 2 * kMostPairs)
    return cudaErrorInvalidValue;
  const float inverse_dim = 1.0f / static_cast<float>(call.head_dim);
  return with_type(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    auto blocks = [&](int64_t lanes) {
      return dim3(static_cast<unsigned>(divide_up(call.rows * heads * lanes, kThreads)));
    };
    if (!fits_vectors(call, kVector<T>))
      return launch(rope_elements<T>, blocks(32), dim3(kThreads), 0, stream, call,
                    static_cast<uint32_t>(heads), inverse_dim);
    int lane_bits = 0;
    while ((kVector<T> << lane_bits) < call.head_dim / 2) ++lane_bits;
    return launch(rope_vectors<T>, blocks(int64_t{1} << lane_bits), dim3(kThreads), 0, stream, call,
                  static_cast<uint32_t>(heads), inverse_dim, lane_bits);
  });
}

}  // namespace ds::cuda
