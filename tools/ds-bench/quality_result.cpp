#include "tools/ds-bench/quality_result.h"

#include <algorithm>
#include <cmath>

#include "support/units.h"

namespace ds {

const QualityRun* QualityRate::find(const Way& way) const {
  for (const QualityRun& run : runs)
    if (run.way == way) return &run;
  return nullptr;
}

const QualityRun* fastest_within(const QualityRate& rate, double loss, bool maps) {
  const QualityRun* best = nullptr;
  for (const QualityRun& run : rate.runs)
    if (run.loss.value <= loss && (maps || !run.aligned()) && (!best || run.ttft() < best->ttft()))
      best = &run;
  return best;
}

std::vector<const QualityRun*> front(const QualityRate& rate) {
  std::vector<const QualityRun*> by_time, out;
  for (const QualityRun& run : rate.runs)
    if (std::isfinite(run.score.value)) by_time.push_back(&run);
  std::stable_sort(by_time.begin(), by_time.end(), [](const QualityRun* a, const QualityRun* b) {
    return std::pair(a->ttft(), -a->score.value) < std::pair(b->ttft(), -b->score.value);
  });
  for (const QualityRun* run : by_time)
    if (out.empty() || run->score.value > out.back()->score.value) out.push_back(run);
  return out;
}

std::vector<SelectComparison> at_equal_compute(const QualityRate& rate, int64_t layers) {
  std::vector<SelectComparison> out;
  for (const QualityRun& select : rate.runs) {
    if (!select.way.selects()) continue;
    auto distance = [&](const QualityRun& run) {
      return std::abs(run.layers_worth(layers) - select.layers_worth(layers));
    };
    SelectComparison c{&select};
    for (const QualityRun& run : rate.runs) {
      bool takes_part = run.way.is_group() && !run.aligned() && run.policy == "droidspeak";
      if (takes_part && (!c.other || distance(run) < distance(*c.other))) c.other = &run;
    }
    out.push_back(c);
  }
  return out;
}

std::vector<SelectComparison> at_equal_ttft(const QualityRate& rate, double noise) {
  std::vector<SelectComparison> out;
  for (const QualityRun& select : rate.runs) {
    if (!select.way.selects()) continue;
    SelectComparison c{&select};
    double most = static_cast<double>(select.ttft()) * (1 + noise);
    for (const QualityRun& run : rate.runs) {
      if (run.way.selects() || run.way.restores()) continue;
      if (!std::isfinite(run.loss.value) || static_cast<double>(run.ttft()) > most) continue;
      if (!c.other || run.loss.value < c.other->loss.value) c.other = &run;
    }
    out.push_back(c);
  }
  return out;
}

std::string effort_text(const QualityRun& run, int64_t layers) {
  if (run.way.selects()) return fmt::format("{:g} % of tokens", 100 * run.way.share);
  if (run.way.restores()) return fmt::format("restores {}", run.way.layers[0].size());
  return fmt::format("{} of {}", run.way.recomputed(layers), layers);
}

std::string points_text(const Mean& mean) {
  if (!std::isfinite(mean.value)) return "–";
  std::string text = fmt::format("{:.1f}", mean.value);
  return std::isfinite(mean.standard_error) ? text + fmt::format(" ± {:.1f}", mean.standard_error) : text;
}

std::string fastest_text(const QualityRate& rate) {
  const QualityRun* best = fastest_within(rate, kCloseLoss);
  const QualityRun* plain = fastest_within(rate, kCloseLoss, false);
  const QualityRun* prefill = rate.find(Way::full_prefill());
  std::string at = format_rate(static_cast<double>(rate.rate));
  if (!best) return fmt::format("{}: no way within {:g} point of loss", at, kCloseLoss);
  auto said = [&](const QualityRun& run) {
    return fmt::format(
        "{}: {}, {:.2f} times as fast as the full prefill, a loss of {}", run.name(), format_ns(run.ttft()),
        static_cast<double>(prefill->ttft()) / static_cast<double>(run.ttft()), points_text(run.loss));
  };
  std::string text =
      fmt::format("{}: the fastest way within {:g} point of loss is {}", at, kCloseLoss, said(*best));
  if (std::none_of(rate.runs.begin(), rate.runs.end(), [](const QualityRun& run) { return run.aligned(); }))
    return text;
  if (plain == best) return text + "; no way with maps is faster";
  return text + (plain ? "; without maps " + said(*plain) : std::string("; without maps none is"));
}

}  // namespace ds
