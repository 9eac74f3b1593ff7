// The body of the kernels, included by kernels_{generic,avx2,avx512}.cpp, each inside its own namespace and
// under its own instruction set: vectors of kWidth floats in GCC's vector extension. Includes nothing: a
// standard header compiled for AVX-512 here could be what the linker keeps for everybody.
//
// Needs: kWidth; kVectors (vectors per row of a block, as many as the registers hold with kRowBlock rows);
// kPanelRows (rows of a portable product at a time). Whoever includes it defines any_greater().

typedef float Vec __attribute__((vector_size(4 * kWidth)));
typedef int32_t Int __attribute__((vector_size(4 * kWidth)));
typedef uint32_t Uint __attribute__((vector_size(4 * kWidth)));
typedef uint16_t Half __attribute__((vector_size(2 * kWidth)));
typedef float VecU __attribute__((vector_size(4 * kWidth), aligned(4), may_alias));
typedef uint16_t HalfU __attribute__((vector_size(2 * kWidth), aligned(2), may_alias));

using F32 = float;
using Bf16 = uint16_t;

inline Vec splat(float v) { return Vec{} + v; }
/// Whether any lane of a is greater than b's.
bool any_greater(Vec a, Vec b);

inline Vec load(const F32* p) { return *reinterpret_cast<const VecU*>(p); }
inline Vec load(const Bf16* p) {
  return (Vec)(__builtin_convertvector(*reinterpret_cast<const HalfU*>(p), Uint) << 16);
}
inline void store(F32* p, Vec v) { *reinterpret_cast<VecU*>(p) = v; }
inline void store(Bf16* p, Vec v) {
  Uint bits = (Uint)v;
  Uint rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
  Uint nan = (Uint)(v != v);
  *reinterpret_cast<HalfU*>(p) = __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0u), Half);
}

template <typename T>
inline Vec load_part(const T* p, int64_t n) {
  T part[kWidth] = {};
  for (int64_t i = 0; i < n; ++i) part[i] = p[i];
  return load(part);
}
template <typename T>
inline void store_part(T* p, Vec v, int64_t n) {
  T part[kWidth];
  store(part, v);
  for (int64_t i = 0; i < n; ++i) p[i] = part[i];
}

/// Calls f(offset, count) for whole vectors, then for what is left.
template <typename F>
inline void for_vectors(int64_t n, F f) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) f(i, int64_t{kWidth});
  if (i < n) f(i, n - i);
}
template <typename T>
inline Vec get(const T* p, int64_t count) {
  return count == kWidth ? load(p) : load_part(p, count);
}
template <typename T>
inline void put(T* p, Vec v, int64_t count) {
  count == kWidth ? store(p, v) : store_part(p, v, count);
}

inline float sum(Vec v) {
  float part[kWidth];
  store(part, v);
  for (int width = kWidth / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) part[i] += part[i + width];
  return part[0];
}
inline float maximum(Vec v) {
  float part[kWidth];
  store(part, v);
  for (int width = kWidth / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) part[i] = part[i] > part[i + width] ? part[i] : part[i + width];
  return part[0];
}

/// 2^x for x <= 127; 0 below -126, NaN for NaN. Relative error below 2e-7.
inline Vec exp2v(Vec x) {
  const Vec shift = splat(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  Vec bounded = x < -127.f ? splat(-127.f) : x;
  Vec t = bounded + shift;
  Int n = (Int)t - (Int)shift;
  Vec f = bounded - (t - shift);
  Vec p = splat(1.5403530393381608e-4f);
  p = p * f + 1.3333558146428443e-3f;
  p = p * f + 9.6181291076284772e-3f;
  p = p * f + 5.5504108664821580e-2f;
  p = p * f + 2.4022650695910072e-1f;
  p = p * f + 6.9314718055994531e-1f;
  p = p * f + 1.0f;
  Vec power = (Vec)((Int)p + (n << 23)) + (bounded - bounded);
  return (Vec)((Int)power & ~(x < -126.f));
}

struct Exp2 {  // no lambda: it would not be compiled for the instruction set
  Vec operator()(Vec x) const { return exp2v(x); }
};

// ---- element-wise

template <typename T>
float inverse_rms(const T* x, int64_t n, float eps) {
  Vec squares = {};
  for_vectors(n, [&](int64_t i, int64_t count) {
    Vec v = get(x + i, count);
    squares += v * v;
  });
  return 1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(n) + eps);
}

template <typename T, typename A>
void norm(const std::byte* hidden, const float* weight, float eps, int64_t n, std::byte* out) {
  auto* x = reinterpret_cast<const T*>(hidden);
  auto* y = reinterpret_cast<A*>(out);
  Vec factor = splat(inverse_rms(x, n, eps));
  for_vectors(n, [&](int64_t i, int64_t count) {
    put(y + i, get(x + i, count) * factor * get(weight + i, count), count);
  });
}

template <typename T, typename A>
void add_norm(std::byte* hidden, const float* y, const float* weight, float eps, int64_t n, std::byte* out) {
  auto* x = reinterpret_cast<T*>(hidden);
  for_vectors(n, [&](int64_t i, int64_t count) { put(x + i, get(x + i, count) + get(y + i, count), count); });
  if (weight != nullptr) norm<T, A>(hidden, weight, eps, n, out);
}

template <typename T, typename A>
void activate(const std::byte* hidden, int64_t n, std::byte* out) {
  auto* x = reinterpret_cast<const T*>(hidden);
  auto* y = reinterpret_cast<A*>(out);
  for_vectors(n, [&](int64_t i, int64_t count) { put(y + i, get(x + i, count), count); });
}

template <typename T>
void align(std::byte* hidden, const float* y, const float* scale, const float* bias, int64_t n) {
  auto* x = reinterpret_cast<T*>(hidden);
  for_vectors(n, [&](int64_t i, int64_t count) {
    Vec v = get(x + i, count), added = get(bias + i, count);
    if (scale != nullptr) added = get(scale + i, count) * v + added;
    if (y != nullptr) added = get(y + i, count) + added;
    put(x + i, added == 0.f ? v : v + added, count);
  });
}

template <typename O>
void head(const float* x, const float* bias, const float* weight, float eps, const float* cos,
          const float* sin, int64_t n, int64_t padded, std::byte* out) {
  float row[kMaxHeadDim];
  for_vectors(n, [&](int64_t i, int64_t count) {
    Vec v = get(x + i, count);
    put(row + i, bias != nullptr ? v + get(bias + i, count) : v, count);
  });
  if (weight != nullptr) {
    Vec factor = splat(inverse_rms(row, n, eps));
    for_vectors(n, [&](int64_t i, int64_t count) {
      put(row + i, get(row + i, count) * factor * get(weight + i, count), count);
    });
  }
  auto* y = reinterpret_cast<O*>(out);
  int64_t half = n / 2;  // pairs (i, i + n/2), as Hugging Face stores q and k
  for_vectors(half, [&](int64_t i, int64_t count) {
    Vec a = get(row + i, count), b = get(row + half + i, count);
    Vec c = get(cos + i, count), s = get(sin + i, count);
    put(y + i, a * c - b * s, count);
    put(y + half + i, b * c + a * s, count);
  });
  for (int64_t i = n; i < padded; ++i) y[i] = 0;
}

template <typename T>
void value(const float* x, const float* bias, int64_t n, std::byte* out) {
  auto* y = reinterpret_cast<T*>(out);
  for_vectors(n, [&](int64_t i, int64_t count) {
    Vec v = get(x + i, count);
    put(y + i, bias != nullptr ? v + get(bias + i, count) : v, count);
  });
}

template <typename A>
void swiglu(const std::byte* gate, const std::byte* up, int64_t n, std::byte* out) {
  auto* g = reinterpret_cast<const A*>(gate);
  auto* u = reinterpret_cast<const A*>(up);
  auto* y = reinterpret_cast<A*>(out);
  for_vectors(n, [&](int64_t i, int64_t count) {
    Vec a = get(g + i, count);
    Vec x = a * -1.4426950408889634f;
    x = x > 126.f ? splat(126.f) : x;  // there a / (1 + 2^126) is 0 to every purpose
    put(y + i, a / (1.0f + exp2v(x)) * get(u + i, count), count);
  });
}

template <typename A>
void scale(const float* x, float factor, int64_t n, std::byte* out) {
  auto* y = reinterpret_cast<A*>(out);
  for_vectors(n, [&](int64_t i, int64_t count) { put(y + i, get(x + i, count) * factor, count); });
}

// ---- attention, f32: keys packed as [depth][kKeyTile], values as [kKeyTile][depth]

template <typename T>
void pack_keys_f32(const KeyTileSource& source, int64_t head_dim, std::byte* packed) {
  auto* out = reinterpret_cast<float*>(packed);
  int64_t depth = (head_dim + kHeadAlign - 1) / kHeadAlign * kHeadAlign;
  // Blocks of kWidth keys, so that the lines written to stay in the first-level cache.
  for (int64_t first = 0; first < kKeyTile; first += kWidth) {
    for (int64_t j = first; j < first + kWidth; ++j) {
      if (j >= source.keys) {
        for (int64_t i = 0; i < depth; ++i) out[i * kKeyTile + j] = 0;
        continue;
      }
      auto* row = reinterpret_cast<const T*>(source.k + j * source.stride);
      float part[kWidth];
      for (int64_t i = 0; i < depth; i += kWidth) {
        store(part,
              i + kWidth <= head_dim ? load(row + i) : load_part(row + i, head_dim > i ? head_dim - i : 0));
        for (int64_t c = 0; c < kWidth; ++c) out[(i + c) * kKeyTile + j] = part[c];
      }
    }
  }
}

template <typename T>
void pack_values_f32(const KeyTileSource& source, int64_t head_dim, std::byte* packed) {
  auto* out = reinterpret_cast<float*>(packed);
  int64_t depth = (head_dim + kHeadAlign - 1) / kHeadAlign * kHeadAlign;
  for (int64_t j = 0; j < kKeyTile; ++j, out += depth) {
    auto* row = reinterpret_cast<const T*>(source.v + j * source.stride);
    for (int64_t i = 0; i < depth; i += kWidth) {
      int64_t count = j < source.keys ? (head_dim - i < kWidth ? head_dim - i : kWidth) : 0;
      store(out + i, count == kWidth ? load(row + i) : load_part(row + i, count > 0 ? count : 0));
    }
  }
}

/// acc[r][v] += a[r][0..depth) . b[0..depth)[v]
template <int Rows, int N>
inline void multiply_f32(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t depth,
                         Vec (&acc)[Rows][N]) {
  for (int64_t k = 0; k < depth; ++k, b += b_stride) {
    Vec columns[N];
    for (int v = 0; v < N; ++v) columns[v] = load(b + v * kWidth);
    for (int r = 0; r < Rows; ++r) {
      Vec x = splat(a[r * a_stride + k]);
      for (int v = 0; v < N; ++v) acc[r][v] += x * columns[v];
    }
  }
}

/// Scores of a row-block -> unnormalised weights exp(score - maximum), through `weigh` (2^x of a vector).
/// Returns whether what was summed before must be multiplied by `factors`.
///
/// The maximum is a running one, and raised only by scores far above it: the weights are then at most
/// 2^kSlack, which no format minds, and almost every tile goes without rescaling. What a row does depends on
/// the row alone, and one that sees nothing of a tile keeps its state to the bit.
template <typename Weigh>
inline bool softmax_block(float (&scores)[kRowBlock][kKeyTile], const int32_t* limit, float scale,
                          float* maxima, float* sums, float (&factors)[kRowBlock], Weigh weigh) {
  constexpr int kVecs = kKeyTile / kWidth;
  constexpr float kSlack = 8;
  const float slack = kSlack / scale;
  Int lane;
  for (int i = 0; i < kWidth; ++i) lane[i] = i;
  bool rescale = false;
  for (int64_t r = 0; r < kRowBlock; ++r) {
    Vec s[kVecs];
    for (int v = 0; v < kVecs; ++v) s[v] = load(scores[r] + v * kWidth);
    if (limit[r] < kKeyTile)
      for (int v = 0; v < kVecs; ++v) s[v] = lane + v * kWidth < limit[r] ? s[v] : splat(-__builtin_inff());
    Vec top = s[0];
    for (int v = 1; v < kVecs; ++v) top = top > s[v] ? top : s[v];
    float* sum_row = sums + r * kSumLanes;
    factors[r] = 1;
    if (any_greater(top, splat(maxima[r] + slack))) {
      float now = maximum(top);
      factors[r] = weigh(splat((maxima[r] - now) * scale))[0];
      maxima[r] = now;
      for (int v = 0; v < kSumLanes; v += kWidth) store(sum_row + v, load(sum_row + v) * factors[r]);
      rescale = true;
    }
    Vec offset = splat(-maxima[r] * scale);
    for (int v = 0; v < kVecs; ++v) {
      Vec p = weigh(s[v] * scale + offset);
      float* lanes = sum_row + v * kWidth % kSumLanes;
      store(lanes, load(lanes) + p);
      store(scores[r] + v * kWidth, p);
    }
  }
  return rescale;
}

/// One column block of the values: o = o * factor + weights . v
template <int N>
inline void add_values_f32(const float (&weights)[kRowBlock][kKeyTile], const float* v, int64_t depth,
                           bool rescale, const float (&factors)[kRowBlock], float* o) {
  Vec acc[kRowBlock][N];
  for (int64_t r = 0; r < kRowBlock; ++r)
    for (int c = 0; c < N; ++c) {
      acc[r][c] = load(o + r * depth + c * kWidth);
      if (rescale) acc[r][c] *= factors[r];
    }
  multiply_f32<kRowBlock, N>(&weights[0][0], kKeyTile, v, depth, kKeyTile, acc);
  for (int64_t r = 0; r < kRowBlock; ++r)
    for (int c = 0; c < N; ++c) store(o + r * depth + c * kWidth, acc[r][c]);
}

inline void attend_f32(const TileAttention& t) {
  auto* q = reinterpret_cast<const float*>(t.q);
  auto* k = reinterpret_cast<const float*>(t.k);
  auto* values = reinterpret_cast<const float*>(t.v);
  for (int64_t row = 0; row < t.rows; row += kRowBlock) {
    if (t.limit[row + kRowBlock - 1] <= 0) continue;  // rows are ordered by position: none sees this tile
    alignas(64) float scores[kRowBlock][kKeyTile];
    for (int64_t column = 0; column < kKeyTile; column += kVectors * kWidth) {
      Vec acc[kRowBlock][kVectors] = {};
      multiply_f32<kRowBlock, kVectors>(q + row * t.depth, t.depth, k + column, kKeyTile, t.depth, acc);
      for (int64_t r = 0; r < kRowBlock; ++r)
        for (int v = 0; v < kVectors; ++v) store(scores[r] + column + v * kWidth, acc[r][v]);
    }
    float factors[kRowBlock];
    bool rescale = softmax_block(scores, t.limit + row, t.scale, t.maximum + row, t.sum + row * kSumLanes,
                                 factors, Exp2{});
    float* o = t.o + row * t.depth;
    int64_t c = 0;
    for (; c + kVectors * kWidth <= t.depth; c += kVectors * kWidth)
      add_values_f32<kVectors>(scores, values + c, t.depth, rescale, factors, o + c);
    for (; c < t.depth; c += kWidth) add_values_f32<1>(scores, values + c, t.depth, rescale, factors, o + c);
  }
}

// ---- portable matrix product

template <int N>
struct Count {
  static constexpr int value = N;
};

template <typename W, int Rows>
void panel_rows(const PanelProduct& p, const float* x, float* y) {
  constexpr int kVecs = kPanel / kWidth;
  auto* w = reinterpret_cast<const W*>(p.w);
  Vec acc[Rows][kVecs] = {};
  if (p.accumulate)
    for (int r = 0; r < Rows; ++r)
      for (int v = 0; v < kVecs; ++v) {
        int64_t left = p.columns - v * kWidth;
        if (left > 0)
          acc[r][v] = get(y + r * p.y_stride + v * kWidth, left < kWidth ? left : int64_t{kWidth});
      }
  for (int64_t k = 0; k < p.depth; ++k, w += kPanel) {
    Vec columns[kVecs];
    for (int v = 0; v < kVecs; ++v) columns[v] = load(w + v * kWidth);
    for (int r = 0; r < Rows; ++r) {
      Vec a = splat(x[r * p.x_stride + k]);
      for (int v = 0; v < kVecs; ++v) acc[r][v] += a * columns[v];
    }
  }
  for (int r = 0; r < Rows; ++r)
    for (int v = 0; v < kVecs; ++v) {
      int64_t left = p.columns - v * kWidth;
      if (left > 0) put(y + r * p.y_stride + v * kWidth, acc[r][v], left < kWidth ? left : int64_t{kWidth});
    }
}

template <typename W>
void panel_blocks(const PanelProduct& p) {
  const float* x = p.x;
  float* y = p.y;
  int64_t row = 0;
  auto rows = [&](auto count) {
    constexpr int kRows = decltype(count)::value;
    for (; row + kRows <= p.rows; row += kRows, x += kRows * p.x_stride, y += kRows * p.y_stride)
      panel_rows<W, kRows>(p, x, y);
  };
  rows(Count<kPanelRows>{});
  rows(Count<2>{});
  rows(Count<1>{});
}

template <typename W>
void panel_product(const PanelProduct& p) {
  if (sizeof(W) == sizeof(float) || p.rows <= 2) return panel_blocks<W>(p);
  // Widened once for all rows.
  alignas(64) float wide[kPanelDepth * kPanel];
  auto* w = reinterpret_cast<const W*>(p.w);
  for (int64_t i = 0; i < p.depth * kPanel; i += kWidth) store(wide + i, load(w + i));
  PanelProduct widened = p;
  widened.w = reinterpret_cast<const std::byte*>(wide);
  panel_blocks<float>(widened);
}

inline uint32_t read_bytes(const std::byte* data, int64_t bytes) {
  typedef uint32_t Words __attribute__((vector_size(4 * kWidth), may_alias));
  Words all[4] = {};
  auto* end = reinterpret_cast<const Words*>(data + bytes);
  for (auto* p = reinterpret_cast<const Words*>(data); p != end; p += 4)
    for (int i = 0; i < 4; ++i) all[i] ^= p[i];
  Words folded = all[0] ^ all[1] ^ all[2] ^ all[3];
  uint32_t result = 0;
  for (int i = 0; i < kWidth; ++i) result ^= folded[i];
  return result;
}

template <typename T>
constexpr Kernels f32_kernels() {
  Kernels k;
  k.norm = norm<T, F32>;
  k.add_norm = add_norm<T, F32>;
  k.activate = activate<T, F32>;
  k.align = align<T>;
  k.query_head = head<F32>;
  k.key_head = head<T>;
  k.value = value<T>;
  k.swiglu = swiglu<F32>;
  k.scale = scale<F32>;
  k.pack_keys = pack_keys_f32<T>;
  k.pack_values = pack_values_f32<T>;
  k.attend = attend_f32;
  k.panel_product = panel_product<T>;
  k.read = read_bytes;
  return k;
}
