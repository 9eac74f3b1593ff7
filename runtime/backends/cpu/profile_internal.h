// Times of a model's kernels by phase.
#pragma once

#include <chrono>
#include <utility>

#include "runtime/backends/backend.h"

namespace ds::cpu {

/// Adds the time since the last lap to a phase; does nothing without `times`.
class LapTimer {
 public:
  explicit LapTimer(PhaseTimes* times) : times_(times), last_(times != nullptr ? now() : 0) {}
  void lap(Phase phase) {
    if (times_ == nullptr) return;
    int64_t time = now();
    (*times_)[phase] += time - std::exchange(last_, time);
  }

 private:
  static int64_t now() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }
  PhaseTimes* times_;
  int64_t last_;
};

}  // namespace ds::cpu
