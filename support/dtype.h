// Element types of checkpoints, caches and entries.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "support/status.h"

namespace ds {

enum class DType : uint8_t { kF32 = 0, kBF16 = 1, kF16 = 2 };

constexpr int64_t dtype_size(DType t) { return t == DType::kF32 ? 4 : 2; }

/// "f32", "bf16", "f16".
constexpr std::string_view dtype_name(DType t) {
  return t == DType::kF32 ? "f32" : t == DType::kBF16 ? "bf16" : "f16";
}

/// Accepts the tools' names (f32, bf16, f16), torch's (float32, bfloat16, float16) and safetensors' (F32,
/// BF16, F16).
Result<DType> parse_dtype(std::string_view text);

inline float bf16_to_f32(uint16_t v) { return std::bit_cast<float>(static_cast<uint32_t>(v) << 16); }

/// Round to nearest, ties to even; NaN stays NaN.
inline uint16_t f32_to_bf16(float f) {
  uint32_t bits = std::bit_cast<uint32_t>(f);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  bits += 0x7fffu + ((bits >> 16) & 1u);
  return static_cast<uint16_t>(bits >> 16);
}

float f16_to_f32(uint16_t v);

}  // namespace ds
