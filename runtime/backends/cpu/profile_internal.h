// Times of a model's kernels by phase.
#pragma once

#include <utility>

#include "runtime/backends/backend.h"
#include "support/clock.h"

namespace ds::cpu {

/// Adds the time since the last lap to a phase; does nothing without `times`.
class LapTimer {
 public:
  explicit LapTimer(PhaseTimes* times) : times_(times), last_(times != nullptr ? now_ns() : 0) {}
  void lap(Phase phase) {
    if (times_ == nullptr) return;
    int64_t time = now_ns();
    (*times_)[phase] += time - std::exchange(last_, time);
  }

 private:
  PhaseTimes* times_;
  int64_t last_;
};

}  // namespace ds::cpu
