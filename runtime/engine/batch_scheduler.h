// What runs in one step of an engine.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "runtime/engine/plan_run.h"

namespace ds {

/// How fast a device has been lately, in FLOP per second: what times of plan ops are predicted by.
class ComputeEstimate {
 public:
  void add(double flops, int64_t ns) {
    if (ns < kLeastNs || flops <= 0) return;
    const double fresh = flops / static_cast<double>(ns);
    flops_per_ns_ = flops_per_ns_ > 0 ? (1 - kShare) * flops_per_ns_ + kShare * fresh : fresh;
  }
  bool known() const { return flops_per_ns_ > 0; }
  /// Before anything has run: slow, so that a first step ends soon.
  double flops(int64_t ns) const { return static_cast<double>(ns) * (known() ? flops_per_ns_ : kSlow); }
  int64_t ns(double flops) const { return static_cast<int64_t>(flops / (known() ? flops_per_ns_ : kSlow)); }

 private:
  static constexpr int64_t kLeastNs = 100'000;
  static constexpr double kShare = 0.25, kSlow = 10;
  double flops_per_ns_ = 0;
};

/// Of plan ops beside decoding that takes `decode_ns`.
inline int64_t step_budget_ns(int64_t least_ns, double share, int64_t decode_ns) {
  return std::max(least_ns, static_cast<int64_t>(share * static_cast<double>(decode_ns)));
}

/// A piece that was chosen, and whose: an index into the runs.
struct ScheduledPiece {
  size_t run = 0;
  PlanRun::Piece piece;
};

/// Fills a step with pieces of `runs`, which stand in the order in which they came: of the first one what may
/// run, then, where it waits for its transfers, of the next. `issue` enqueues a piece, after which the run's
/// next() is another one. Takes pieces until their FLOP come to `budget`, one at least where any may run.
template <typename Issue>
void fill_step(std::span<PlanRun* const> runs, double budget, size_t most_pieces, Issue&& issue) {
  size_t pieces = 0;
  double left = budget;
  for (size_t i = 0; i < runs.size(); ++i) {
    while (pieces < most_pieces && (pieces == 0 || left > 0)) {
      const auto piece = runs[i]->next(left);
      if (!piece) break;
      issue(ScheduledPiece{i, *piece});
      left -= piece->flops;
      ++pieces;
    }
  }
}

}  // namespace ds
