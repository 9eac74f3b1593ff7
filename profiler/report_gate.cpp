// What the gate compares a request with: histograms of the profile's samples.
#include <algorithm>

#include "profiler/report_figures_internal.h"

namespace ds::report {
namespace {

struct Series {
  std::string name, css;
  const std::vector<double>* samples;  // ascending
};

std::string histogram(std::string_view caption, std::string_view unit, const std::vector<Series>& all) {
  constexpr size_t kBins = 24;
  double low = std::numeric_limits<double>::infinity(), high = -low;
  for (const Series& s : all) {
    low = std::min(low, s.samples->front());
    high = std::max(high, s.samples->back());
  }
  if (all.empty()) return "";
  if (!(high > low)) high = low + std::max(std::abs(low) * 0.1, 1e-6);
  double width = (high - low) / kBins, most = 0;
  std::vector<std::vector<double>> shares;
  for (const Series& s : all) {
    std::vector<double>& bins = shares.emplace_back(kBins, 0);
    for (double x : *s.samples)
      bins[std::min(kBins - 1, static_cast<size_t>((x - low) / width))] +=
          100 / static_cast<double>(s.samples->size());
    most = std::max(most, *std::max_element(bins.begin(), bins.end()));
  }
  ChartAxis x{std::string(unit), low, high};
  x.ticks = linear_ticks(low, high, 5);
  Chart chart({.width = 380, .height = 200}, std::move(x), {"% of samples", 0, most});
  std::vector<LegendEntry> legend;
  for (size_t i = 0; i < all.size(); ++i) {
    Chart::Points steps{{low, 0}};
    for (size_t b = 0; b < kBins; ++b) {
      double left = low + width * static_cast<double>(b);
      steps.emplace_back(left, shares[i][b]);
      steps.emplace_back(left + width, shares[i][b]);
    }
    steps.emplace_back(high, 0);
    chart.line(steps, all[i].css);
    legend.push_back(
        {Mark::kDot, all[i].css, fmt::format("{} ({})", all[i].name, all[i].samples->size()), true, false});
  }
  return figure(caption, chart.svg(caption) + chart_legend(legend));
}

}  // namespace

std::string gate_section(const Quality& q) {
  std::vector<Series> entropy, margin, deviation;
  auto add = [&](const WayScore* w, const std::string& css) {
    if (!w) return;
    if (!w->entropy.empty()) entropy.push_back({w->way.name(), css, &w->entropy});
    if (!w->margin.empty()) margin.push_back({w->way.name(), css, &w->margin});
  };
  add(q.find(Way::full_prefill()), kPrefillCss);
  add(q.find(Way::full_reuse()), kReuseCss);
  add(best_group(q), kGroupCss);
  add(best_aligned(q), kAlignedCss);
  if (!q.k_deviation.empty()) deviation.push_back({"contexts", kSenderCss, &q.k_deviation});
  std::string charts = histogram("How far the receiver's keys of layer 0 are from the sender's",
                                 "relative distance", deviation) +
                       histogram("Entropy of the first answer token", "nats", entropy) +
                       histogram("Lead of the first answer token over the second", "probability", margin);
  if (charts.empty()) return "";
  return "<h2>What the gate compares a request with</h2>\n<p class=\"n\">In brackets: samples "
         "kept.</p>\n<div "
         "class=\"row\">\n" +
         charts + "</div>\n";
}

}  // namespace ds::report
