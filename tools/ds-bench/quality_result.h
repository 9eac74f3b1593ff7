// What ds-bench quality has measured: times to a first token beside the scores that a profile knows.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "plans/quality.h"
#include "tools/ds-bench/rounds.h"

namespace ds {

/// One way, by one policy's plan, over one link.
struct QualityRun {
  Way way;             // of the profile
  std::string policy;  // that drew the plan
  std::string what;    // the tiling that ran: "load 0-6, recompute 7-11 from E"
  Mean score, loss;    // points; NaN: the profile does not know
  int64_t predicted_ns = 0, lower_bound_ns = 0;
  std::vector<int64_t> ttft_ns{}, compute_ns{};  // one per repeat; compute: how long kernels ran
  int64_t bytes = 0;                             // over the link

  int64_t ttft() const { return median_of(ttft_ns); }
  int64_t compute() const { return median_of(compute_ns); }
  bool aligned() const { return way.map != MapForm::kNone; }
  bool one_of_many() const { return way.is_group(); }
  /// "recompute 7-11, balanced", "full reuse".
  std::string name() const { return one_of_many() ? way.name() + ", " + policy : way.name(); }
  /// Layers' worth of every token's work: 1.8 for 15 % of the tokens of 12 layers (without layer 0, which
  /// token selection computes for all of them).
  double layers_worth(int64_t layers) const {
    return way.selects() ? way.share * static_cast<double>(layers)
                         : static_cast<double>(way.recomputed(layers));
  }
};

struct QualityRate {
  int64_t rate = 0;  // bytes per second
  std::vector<QualityRun> runs;
  const QualityRun* find(const Way& way) const;
};

/// The quickest whose loss is known and at most `loss` points; nullptr: none. `maps`: with maps too.
const QualityRun* fastest_within(const QualityRate& rate, double loss, bool maps = true);

/// Those that nothing beats in both TTFT and known score, by TTFT.
std::vector<const QualityRun*> front(const QualityRate& rate);

/// Token selection (CacheBlend) beside what droidspeak has for the same cost.
struct SelectComparison {
  const QualityRun* select = nullptr;
  const QualityRun* other = nullptr;  // nullptr: there is nothing to compare with
};
/// The group without maps, by policy droidspeak, whose recomputed layers come closest to the share of all.
std::vector<SelectComparison> at_equal_compute(const QualityRate& rate, int64_t layers);
/// What loses least of all groups, with maps and without, full reuse and the full prefill that are as quick,
/// up to `noise` (0.03: 3
/// %).
std::vector<SelectComparison> at_equal_ttft(const QualityRate& rate, double noise);

/// A page of its own: for every rate the scores by TTFT, and the comparisons.
std::string draw_quality_html(const std::string& title, const std::string& note, int64_t layers,
                              const std::vector<QualityRate>& rates);

// For the table and the page alike.
inline constexpr double kCloseLoss = 1;  // points
inline constexpr double kNoise = 0.03;   // medians this far apart may be the machine's noise
/// "5 of 12", "15 % of tokens", "restores 12".
std::string effort_text(const QualityRun& run, int64_t layers);
/// "93.4 ± 1.2"; "–" where it is not known.
std::string points_text(const Mean& mean);
/// "200 MB/s: the fastest within 1 point is ..., 4.1 ms, ..."; where ways with maps were measured, what it is
/// without them as well.
std::string fastest_text(const QualityRate& rate);

}  // namespace ds
