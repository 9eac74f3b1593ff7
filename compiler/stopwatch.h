// How long the phases of a compilation take.
#pragma once

#include <utility>

#include "support/clock.h"

namespace ds {

class Stopwatch {
 public:
  /// Nanoseconds since the last call.
  int64_t lap() {
    const int64_t now = now_ns();
    return now - std::exchange(last_, now);
  }

 private:
  int64_t last_ = now_ns();
};

}  // namespace ds
