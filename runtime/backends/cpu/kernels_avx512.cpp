// The kernels for AVX-512, and attention with its bf16 dot products.
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
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,prefer-vector-width=512")

namespace ds::cpu {
namespace avx512 {
constexpr int kWidth = 16, kVectors = 4, kPanelRows = 6;
#include "runtime/backends/cpu/kernels_body_internal.h"

inline bool any_greater(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0; }

// Attention in bf16: keys packed as pairs, [depth / 2][kKeyTile][2], values as [kKeyTile / 2][depth][2].

/// Transposes 16 x 16 words.
inline void transpose(__m512i (&r)[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  // Now r[4 g + c] holds, in its four quarters q, word 4 q + c of rows 4 g to 4 g + 3.
  for (int c = 0; c < 4; ++c) {
    __m512i a = _mm512_shuffle_i32x4(r[c], r[4 + c], 0x88), b = _mm512_shuffle_i32x4(r[c], r[4 + c], 0xdd);
    __m512i d = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0x88);
    __m512i e = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0xdd);
    t[c] = _mm512_shuffle_i32x4(a, d, 0x88);
    t[8 + c] = _mm512_shuffle_i32x4(a, d, 0xdd);
    t[4 + c] = _mm512_shuffle_i32x4(b, e, 0x88);
    t[12 + c] = _mm512_shuffle_i32x4(b, e, 0xdd);
  }
  for (int i = 0; i < 16; ++i) r[i] = t[i];
}

/// A head's part of a row one tile further on: such parts lie so far apart that the hardware, which does not
/// look beyond a page, fetches none of them ahead. May reach past the cache's end, which a prefetch may.
inline void fetch_ahead(const std::byte* row, int64_t stride, int64_t head_dim) {
  for (int64_t at = 0; at < head_dim * 2; at += 64)
    __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(row) +
                                                     static_cast<uintptr_t>(kKeyTile * stride + at)),
                       0, 2);
}

void pack_keys_bf16(const KeyTileSource& source, int64_t head_dim, std::byte* packed) {
  auto* out = reinterpret_cast<uint32_t*>(packed);
  int64_t pairs = (head_dim + kHeadAlign - 1) / kHeadAlign * kHeadAlign / 2;
  for (int64_t j = 0; j < kKeyTile; j += 16) {
    for (int64_t i = 0; i < 16; ++i) fetch_ahead(source.k + (j + i) * source.stride, source.stride, head_dim);
    for (int64_t p = 0; p < pairs; p += 16) {
      int64_t words = head_dim / 2 - p;  // head_dim is even
      auto mask = static_cast<__mmask16>(words >= 16 ? 0xffff : words > 0 ? (1 << words) - 1 : 0);
      __m512i r[16];
      for (int64_t i = 0; i < 16; ++i)
        r[i] = j + i < source.keys
                   ? _mm512_maskz_loadu_epi32(mask, source.k + (j + i) * source.stride + p * 4)
                   : _mm512_setzero_si512();
      transpose(r);
      for (int64_t i = 0; i < 16 && p + i < pairs; ++i)
        _mm512_storeu_si512(out + (p + i) * kKeyTile + j, r[i]);
    }
  }
}

void pack_values_bf16(const KeyTileSource& source, int64_t head_dim, std::byte* packed) {
  auto* out = reinterpret_cast<uint32_t*>(packed);
  int64_t depth = (head_dim + kHeadAlign - 1) / kHeadAlign * kHeadAlign;
  for (int64_t j = 0; j < kKeyTile; j += 2, out += depth) {
    for (int64_t i = 0; i < 2; ++i) fetch_ahead(source.v + (j + i) * source.stride, source.stride, head_dim);
    for (int64_t i = 0; i < depth; i += 16) {
      int64_t left = head_dim - i;
      auto mask = static_cast<__mmask16>(left >= 16 ? 0xffff : left > 0 ? (1 << left) - 1 : 0);
      auto row = [&](int64_t key) {
        return key < source.keys ? _mm512_cvtepu16_epi32(
                                       _mm256_maskz_loadu_epi16(mask, source.v + key * source.stride + i * 2))
                                 : _mm512_setzero_si512();
      };
      _mm512_storeu_si512(out + i, _mm512_or_si512(row(j), _mm512_slli_epi32(row(j + 1), 16)));
    }
  }
}

/// acc[r][v] += a[r] . b[v] over `pairs` pairs of bf16.
template <int N>
inline void multiply_bf16(const uint32_t* a, int64_t a_stride, const uint32_t* b, int64_t b_stride,
                          int64_t pairs, __m512 (&acc)[kRowBlock][N]) {
  for (int64_t p = 0; p < pairs; ++p, b += b_stride) {
    __m512i columns[N];
    for (int v = 0; v < N; ++v) columns[v] = _mm512_loadu_si512(b + v * 16);
    for (int64_t r = 0; r < kRowBlock; ++r) {
      __m512i x = _mm512_set1_epi32(static_cast<int>(a[r * a_stride + p]));
      for (int v = 0; v < N; ++v) acc[r][v] = _mm512_dpbf16_ps(acc[r][v], (__m512bh)x, (__m512bh)columns[v]);
    }
  }
}

/// 2^x for x <= 127, near enough for weights that are rounded to bf16: relative error below 3e-6; 0 far below
/// 0, NaN for NaN.
struct Exp2Bf16 {
  Vec operator()(Vec x) const {
    __m512 bounded = _mm512_max_ps(_mm512_set1_ps(-200.f), x);  // this order lets NaN pass
    __m512 f = _mm512_reduce_ps(bounded, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);  // x - floor(x)
    __m512 p = _mm512_set1_ps(1.35341677e-2f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.20114609e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.41442757e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.93003835e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.00000259f));
    return _mm512_scalef_ps(p, bounded);  // p * 2^floor(x)
  }
};

/// One column block of the values: o = o * factor + weights . v. Not inlined: with all of attend_bf16 around
/// it, GCC 12 keeps the operands of the inner loop on the stack.
template <int N>
__attribute__((noinline)) void add_values_bf16(const uint32_t* weights, const uint32_t* v, int64_t depth,
                                               bool rescale, const float (&factors)[kRowBlock], float* o) {
  __m512 acc[kRowBlock][N];
  for (int64_t r = 0; r < kRowBlock; ++r)
    for (int c = 0; c < N; ++c) {
      acc[r][c] = _mm512_loadu_ps(o + r * depth + c * 16);
      if (rescale) acc[r][c] = _mm512_mul_ps(acc[r][c], _mm512_set1_ps(factors[r]));
    }
  multiply_bf16<N>(weights, kKeyTile / 2, v, depth, kKeyTile / 2, acc);
  for (int64_t r = 0; r < kRowBlock; ++r)
    for (int c = 0; c < N; ++c) _mm512_storeu_ps(o + r * depth + c * 16, acc[r][c]);
}

void attend_bf16(const TileAttention& t) {
  auto* q = reinterpret_cast<const uint32_t*>(t.q);
  auto* k = reinterpret_cast<const uint32_t*>(t.k);
  auto* values = reinterpret_cast<const uint32_t*>(t.v);
  int64_t pairs = t.depth / 2;
  constexpr int kColumns = kKeyTile / 16;
  for (int64_t row = 0; row < t.rows; row += kRowBlock) {
    if (t.limit[row + kRowBlock - 1] <= 0) continue;  // rows are ordered by position: none sees this tile
    alignas(64) float scores[kRowBlock][kKeyTile];
    __m512 acc[kRowBlock][kColumns] = {};
    multiply_bf16<kColumns>(q + row * pairs, pairs, k, kKeyTile, pairs, acc);
    for (int64_t r = 0; r < kRowBlock; ++r)
      for (int v = 0; v < kColumns; ++v) _mm512_store_ps(scores[r] + v * 16, acc[r][v]);
    float factors[kRowBlock];
    bool rescale = softmax_block(scores, t.limit + row, t.scale, t.maximum + row, t.sum + row * kSumLanes,
                                 factors, Exp2Bf16{});
    alignas(64) uint32_t weights[kRowBlock][kKeyTile / 2];
    for (int64_t r = 0; r < kRowBlock; ++r)
      for (int64_t v = 0; v < kKeyTile; v += 32)
        _mm512_store_si512(
            weights[r] + v / 2,
            (__m512i)_mm512_cvtne2ps_pbh(_mm512_load_ps(scores[r] + v + 16), _mm512_load_ps(scores[r] + v)));
    float* o = t.o + row * t.depth;
    int64_t c = 0;
    for (; c + 64 <= t.depth; c += 64)
      add_values_bf16<4>(&weights[0][0], values + c, t.depth, rescale, factors, o + c);
    for (; c < t.depth; c += 16)
      add_values_bf16<1>(&weights[0][0], values + c, t.depth, rescale, factors, o + c);
  }
}

// ---- few rows against packed weights: bound by memory, so what comes next is fetched while this is computed

/// sums[Rows][kThinPanel] (+)= one chain of `pairs`; Fetch: lines fetched ahead per pair.
template <int Rows, int Fetch>
__attribute__((noinline)) void thin_rows(const uint32_t* x, int64_t x_stride, const uint32_t* w,
                                         int64_t pairs, const std::byte* ahead, bool first, float* sums) {
  constexpr int kColumns = kThinPanel / 16;
  __m512 acc[Rows][kColumns] = {};
  for (int64_t p = 0; p < pairs; ++p, w += kThinPanel, ahead += 64 * Fetch) {
    for (int f = 0; f < Fetch; ++f) __builtin_prefetch(ahead + 64 * f, 0, 2);
    __m512i columns[kColumns];
    for (int c = 0; c < kColumns; ++c) columns[c] = _mm512_loadu_si512(w + c * 16);
    for (int r = 0; r < Rows; ++r) {
      __m512i a = _mm512_set1_epi32(static_cast<int>(x[r * x_stride + p]));
      for (int c = 0; c < kColumns; ++c)
        acc[r][c] = _mm512_dpbf16_ps(acc[r][c], (__m512bh)a, (__m512bh)columns[c]);
    }
  }
  for (int r = 0; r < Rows; ++r)
    for (int c = 0; c < kColumns; ++c) {
      float* sum = sums + r * kThinPanel + c * 16;
      _mm512_storeu_ps(sum, first ? acc[r][c] : _mm512_add_ps(_mm512_loadu_ps(sum), acc[r][c]));
    }
}

template <int Rows>
void thin_rows(int64_t fetch, const uint32_t* x, int64_t x_stride, const uint32_t* w, int64_t pairs,
               const std::byte* ahead, bool first, float* sums) {
  if (fetch >= 3) return thin_rows<Rows, 4>(x, x_stride, w, pairs, ahead, first, sums);
  if (fetch == 2) return thin_rows<Rows, 2>(x, x_stride, w, pairs, ahead, first, sums);
  thin_rows<Rows, 1>(x, x_stride, w, pairs, ahead, first, sums);
}

void thin_product(const ThinProduct& t) {
  constexpr int64_t kMost = 6;  // rows whose sums stay in registers
  alignas(64) float sums[kThinRows][kThinPanel];
  auto* w = reinterpret_cast<const uint32_t*>(t.w);
  auto* x = reinterpret_cast<const uint32_t*>(t.x);
  int64_t stride = t.x_stride / 2, passes = (t.rows + kMost - 1) / kMost, fetch = (4 + passes - 1) / passes;
  for (int64_t pair = 0; pair < t.pairs; pair += t.depth / 2) {
    int64_t left = t.pairs - pair, pairs = left < t.depth / 2 ? left : t.depth / 2;
    // Each pass fetches its share of as many bytes as are read here, from behind them.
    auto* ahead = reinterpret_cast<const std::byte*>(w + pairs * kThinPanel);
    for (int64_t row = 0; row < t.rows; row += kMost, ahead += 64 * fetch * pairs) {
      auto pass = [&](auto rows) {
        thin_rows<decltype(rows)::value>(fetch, x + row * stride + pair, stride, w, pairs, ahead, pair == 0,
                                         sums[row]);
      };
      switch (t.rows - row) {
        case 1:
          pass(Count<1>{});
          break;
        case 2:
          pass(Count<2>{});
          break;
        case 3:
          pass(Count<3>{});
          break;
        case 4:
          pass(Count<4>{});
          break;
        case 5:
          pass(Count<5>{});
          break;
        default:
          pass(Count<6>{});
      }
    }
    w += pairs * kThinPanel;
  }
  for (int64_t row = 0; row < t.rows; ++row)
    for (int64_t c = 0; c < t.columns; c += 16) {
      int64_t left = t.columns - c, at = row * t.y_stride + c;
      auto mask = static_cast<__mmask16>(left >= 16 ? 0xffff : (1 << left) - 1);
      __m512 sum = _mm512_load_ps(sums[row] + c);
      if (t.y_dtype == DType::kF32)
        _mm512_mask_storeu_ps(reinterpret_cast<float*>(t.y) + at, mask, sum);
      else
        _mm256_mask_storeu_epi16(reinterpret_cast<uint16_t*>(t.y) + at, mask,
                                 (__m256i)_mm512_cvtneps_pbh(sum));
    }
}

constexpr Kernels bf16_kernels() {
  Kernels k = f32_kernels<Bf16>();
  k.norm = norm<Bf16, Bf16>;
  k.add_norm = add_norm<Bf16, Bf16>;
  k.activate = activate<Bf16, Bf16>;
  k.query_head = head<Bf16>;
  k.swiglu = swiglu<Bf16>;
  k.scale = scale<Bf16>;
  k.pack_keys = pack_keys_bf16;
  k.pack_values = pack_values_bf16;
  k.attend = attend_bf16;
  k.thin_product = thin_product;
  return k;
}
}  // namespace avx512

constinit const Kernels kAvx512F32 = avx512::f32_kernels<avx512::F32>();
constinit const Kernels kAvx512Bf16 = avx512::f32_kernels<avx512::Bf16>();
constinit const Kernels kAvx512NativeBf16 = avx512::bf16_kernels();

}  // namespace ds::cpu
#endif
