// The clock that all times of requests are on.
#pragma once

#include <chrono>
#include <cstdint>

namespace ds {

/// steady_clock nanoseconds.
inline int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace ds
