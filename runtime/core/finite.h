// Whether logits are numbers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>

namespace ds {

/// How many are not finite. Without a branch, so that a vocabulary is read at the speed of memory.
inline int64_t count_not_finite(std::span<const float> values) {
  int64_t bad = 0;
  for (float x : values) {
    uint32_t bits = 0;
    std::memcpy(&bits, &x, sizeof(bits));
    bad += (bits & 0x7f800000u) == 0x7f800000u ? 1 : 0;
  }
  return bad;
}

}  // namespace ds
