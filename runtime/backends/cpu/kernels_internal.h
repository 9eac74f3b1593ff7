// The inner loops that are not oneDNN's: one row or one tile each, compiled once per instruction set and
// picked at run time. None of them depends on what the other rows of a call are.
//
// "hidden" elements are the wire's (DType of the model), "active" ones what the matrix products read: bf16
// where the machine multiplies bf16, f32 otherwise (machines without it keep bf16 hidden states and caches).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "support/dtype.h"

namespace ds::cpu {

inline constexpr int64_t kKeyTile = 64;    // keys per attention tile; tiles start at multiples of it
inline constexpr int64_t kRowBlock = 4;    // query rows that one pass over a key tile takes
inline constexpr int64_t kSumLanes = 16;   // partial sums of the weights of a row, added up at the end
inline constexpr int64_t kHeadAlign = 16;  // head_dim is padded to it inside the attention
inline constexpr int64_t kMaxHeadDim = 512;
inline constexpr int64_t kPanel = 16;  // columns of one panel of a portable product's weights

inline constexpr int64_t kPanelDepth = 256;  // most of a panel's depth in one call

/// One tile of keys of one head: cache rows, `stride` bytes apart, `keys` of them valid.
struct KeyTileSource {
  const std::byte* k = nullptr;  // first element of the head in the first row
  const std::byte* v = nullptr;
  int64_t stride = 0;
  int64_t keys = 0;
};

/// Query rows of one kv head (tokens x query heads that share it, token-major) against one packed key tile.
struct TileAttention {
  int64_t rows = 0;                // multiple of kRowBlock
  int64_t depth = 0;               // head_dim, padded to kHeadAlign
  const std::byte* q = nullptr;    // [rows][depth], active
  const std::byte* k = nullptr;    // packed keys
  const std::byte* v = nullptr;    // packed values
  float* o = nullptr;              // [rows][depth], running sums
  float* maximum = nullptr;        // [rows], running maxima of the scores, before scaling
  float* sum = nullptr;            // [rows][kSumLanes], running sums of the weights
  const int32_t* limit = nullptr;  // [rows]: keys of this tile that the row sees (may be < 0 or > kKeyTile)
  float scale = 0;                 // log2(e) / sqrt(head_dim)
};

/// A row-block of the portable product: y[rows][columns of one panel] (+)= x[rows][depth] . w[depth][kPanel]
struct PanelProduct {
  const float* x = nullptr;
  int64_t x_stride = 0;          // elements
  const std::byte* w = nullptr;  // panel, weights' dtype
  float* y = nullptr;
  int64_t y_stride = 0;
  int64_t rows = 0, depth = 0, columns = 0;  // columns <= kPanel
  bool accumulate = false;
};

/// A few rows times one panel of bf16 weights as oneDNN packs them: y[rows][columns] = x[rows][2 pairs] . w.
/// Sums in oneDNN's order: chains of `depth` numbers, added up.
struct ThinProduct {
  const std::byte* x = nullptr;  // bf16
  int64_t x_stride = 0;          // elements
  const std::byte* w = nullptr;  // [pairs][kThinPanel][2]; what follows is read next, and fetched ahead
  std::byte* y = nullptr;
  int64_t y_stride = 0;  // elements
  DType y_dtype = DType::kF32;
  int64_t rows = 0, pairs = 0, columns = 0;  // rows <= kThinRows, columns <= kThinPanel
  int64_t depth = 0;                         // even
};
inline constexpr int64_t kThinRows = 32, kThinPanel = 64;

struct Kernels {
  /// out = active(hidden / rms(hidden) * weight), n elements.
  void (*norm)(const std::byte* hidden, const float* weight, float eps, int64_t n, std::byte* out) = nullptr;
  /// hidden += y, rounded to its dtype; then, unless weight is null, as norm().
  void (*add_norm)(std::byte* hidden, const float* y, const float* weight, float eps, int64_t n,
                   std::byte* out) = nullptr;
  /// out = active(hidden)
  void (*activate)(const std::byte* hidden, int64_t n, std::byte* out) = nullptr;
  /// hidden += y + (scale * hidden + bias), rounded to its dtype; y or scale may be null. Elements to which 0
  /// is added keep their bits, a negative zero too.
  void (*align)(std::byte* hidden, const float* y, const float* scale, const float* bias,
                int64_t n) = nullptr;
  /// One head: bias (or null), RMSNorm (weight or null), rotation by cos/sin [n / 2]; out is active, padded
  /// with zeros to `padded` elements.
  void (*query_head)(const float* x, const float* bias, const float* weight, float eps, const float* cos,
                     const float* sin, int64_t n, int64_t padded, std::byte* out) = nullptr;
  /// The same for a key; out has hidden's dtype.
  void (*key_head)(const float* x, const float* bias, const float* weight, float eps, const float* cos,
                   const float* sin, int64_t n, int64_t padded, std::byte* out) = nullptr;
  /// out = x + bias (or null), hidden's dtype.
  void (*value)(const float* x, const float* bias, int64_t n, std::byte* out) = nullptr;
  /// out = silu(gate) * up, all active.
  void (*swiglu)(const std::byte* gate, const std::byte* up, int64_t n, std::byte* out) = nullptr;
  /// out = active(x * factor)
  void (*scale)(const float* x, float factor, int64_t n, std::byte* out) = nullptr;

  void (*pack_keys)(const KeyTileSource& source, int64_t head_dim, std::byte* packed) = nullptr;
  void (*pack_values)(const KeyTileSource& source, int64_t head_dim, std::byte* packed) = nullptr;
  void (*attend)(const TileAttention& tile) = nullptr;

  void (*panel_product)(const PanelProduct& product) = nullptr;

  void (*thin_product)(const ThinProduct& product) = nullptr;  // with bf16 active elements only

  /// Reads all bytes (a multiple of 1024, 64-byte aligned), for measuring memory; returns their exclusive or.
  uint32_t (*read)(const std::byte* data, int64_t bytes) = nullptr;
};

/// Instruction sets that the kernels are compiled for.
enum class Isa : uint8_t { kGeneric, kAvx2, kAvx512, kAvx512Bf16 };
std::string_view isa_name(Isa isa);
/// The best one of this machine that oneDNN may use too (its ONEDNN_MAX_CPU_ISA limits both).
Isa detect_isa();

/// `active` is bf16 only together with kAvx512Bf16 and bf16 `hidden`.
Kernels select_kernels(Isa isa, DType hidden, DType active);

// The tables behind it; "...Bf16" has bf16 hidden and f32 active elements, kAvx512NativeBf16 both in bf16.
extern const Kernels kGenericF32, kGenericBf16;
extern const Kernels kAvx2F32, kAvx2Bf16;
extern const Kernels kAvx512F32, kAvx512Bf16, kAvx512NativeBf16;

}  // namespace ds::cpu
