// How fast the link has been lately.
#pragma once

#include <cmath>
#include <cstdint>

#include "plans/plan.h"

namespace ds {

/// A moving estimate from what transfers took: a mean of nanoseconds per byte in which what was moved before
/// the last 64 MiB counts half, before the last 128 MiB a quarter. Large transfers thus count for more than
/// small ones, whose round trips say little about the rate.
class LinkEstimate {
 public:
  /// One request's transfers: bytes, and the time for which they kept the link busy.
  void add(int64_t bytes, int64_t ns) {
    if (bytes < kLeastBytes || ns <= 0) return;
    double fresh = static_cast<double>(ns) / static_cast<double>(bytes);
    double old = ns_per_byte_ > 0 ? std::exp2(-static_cast<double>(bytes) / kHalfLife) : 0;
    ns_per_byte_ = old * ns_per_byte_ + (1 - old) * fresh;
  }
  /// Bytes per second; 0: nothing to go by yet.
  int64_t rate() const {
    if (ns_per_byte_ <= 0) return 0;
    return static_cast<int64_t>(std::fmin(1e9 / ns_per_byte_, static_cast<double>(kNoLimit / 2)));
  }

 private:
  static constexpr int64_t kLeastBytes = 64 << 10;
  static constexpr double kHalfLife = 64 << 20;
  double ns_per_byte_ = 0;
};

}  // namespace ds
