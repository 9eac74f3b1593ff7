// What ds-bench sweep has measured, and its picture.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tools/ds-bench/rounds.h"

namespace ds {

/// One way to a first token, in one cell.
struct SweepRun {
  std::string way;             // "full prefill", "best", ...
  std::string what;            // the variant that ran: "recompute 3-6 in 4 chunks"
  bool keeps_promise = false;  // its loss is within the objective
  int64_t predicted_ns = 0;
  int64_t lower_bound_ns = 0;          // of its schedule, by the same prediction; 0: not tuned for this cell
  std::vector<int64_t> measured_ns{};  // one per repeat
  int64_t median_ns() const { return median_of(measured_ns); }
  /// Measured over predicted, less 1.
  double error() const { return static_cast<double>(median_ns()) / static_cast<double>(predicted_ns) - 1; }
};

/// A context length behind a link.
struct SweepCell {
  int64_t tokens = 0, rate = 0;  // bytes per second
  std::vector<SweepRun> runs;
  const SweepRun* find(std::string_view way) const {
    for (const SweepRun& run : runs)
      if (run.way == way) return &run;
    return nullptr;
  }
};

/// A page of its own: for every length the measured times by rate, predictions beside them.
std::string draw_sweep_html(const std::string& title, const std::vector<SweepCell>& cells);

}  // namespace ds
