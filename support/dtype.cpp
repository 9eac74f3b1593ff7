#include "support/dtype.h"

namespace ds {

Result<DType> parse_dtype(std::string_view text) {
  if (text == "f32" || text == "float32" || text == "F32" || text == "float") return DType::kF32;
  if (text == "bf16" || text == "bfloat16" || text == "BF16") return DType::kBF16;
  if (text == "f16" || text == "float16" || text == "F16" || text == "half") return DType::kF16;
  return error(Code::kInvalidArgument, "unknown element type '{}'; expected f32, bf16 or f16", text);
}

float f16_to_f32(uint16_t v) {
  uint32_t sign = static_cast<uint32_t>(v & 0x8000u) << 16;
  uint32_t exponent = (v >> 10) & 0x1fu;
  uint32_t mantissa = v & 0x3ffu;
  if (exponent == 0) {  // zero and subnormals: exact in f32
    float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
  }
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

}  // namespace ds
