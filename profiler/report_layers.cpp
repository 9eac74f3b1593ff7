// Layer by layer: what reusing one costs, and what recomputing it alone gains.
#include <algorithm>

#include "profiler/report_figures_internal.h"

namespace ds::report {
namespace {

struct LayerBar {
  LayerRange layers;
  Mean mean;
  std::string title;
};

std::string layer_chart(const Quality& q, std::string_view caption, std::string_view unit,
                        const std::vector<LayerBar>& bars, const std::string& css) {
  double low = 0, high = 0;
  for (const LayerBar& b : bars) {
    double error = std::isfinite(b.mean.standard_error) ? kBar * b.mean.standard_error : 0;
    low = std::min(low, b.mean.value - error);
    high = std::max(high, b.mean.value + error);
  }
  if (bars.empty()) return "";
  if (!(high > low)) high = low + 1;
  ChartAxis x{"layer", -0.5, static_cast<double>(q.layers) - 0.5};
  x.ticks = linear_ticks(0, static_cast<double>(q.layers - 1), 12);
  std::erase_if(x.ticks, [](double v) { return v != std::floor(v); });
  Chart chart({.width = 380, .height = 220}, std::move(x), {std::string(unit), low, high});
  chart.level(0, colour_class(9) + " thin");
  for (const LayerBar& b : bars) {
    chart.bar(static_cast<double>(b.layers.first) - 0.38, static_cast<double>(b.layers.last) + 0.38, 0,
              b.mean.value, css, b.title);
    double error = kBar * b.mean.standard_error;
    chart.error_bar(static_cast<double>(b.layers.first + b.layers.last) / 2, b.mean.value - error,
                    b.mean.value + error, kPrefillCss);
  }
  return figure(caption, chart.svg(caption));
}

}  // namespace

std::string sensitivity_section(const Quality& q) {
  std::vector<LayerBar> loss, divergence, gain;
  const WayScore* reuse = q.find(Way::full_reuse());
  for (const WayScore& w : q.ways) {
    if (w.dropped || w.way.layers.size() != 1) continue;
    const LayerRange& range = w.way.layers[0];
    std::string title = hover(w, w.score);
    if (w.way.control == Control::kReuseOnly) {
      if (std::isfinite(w.loss.value)) loss.push_back({range, w.loss, title});
      if (std::isfinite(w.divergence.value)) divergence.push_back({range, w.divergence, title});
    }
    // Pairs of a group and full reuse are not kept, so that the gain has no error.
    bool block = range.first % q.granularity == 0 && range.size() <= q.granularity;
    if (is_plain_group(w) && block && range.size() < q.layers && reuse)
      gain.push_back({range, {w.score.value - reuse->score.value, kNone}, title});
  }
  std::erase_if(gain, [](const LayerBar& b) { return !std::isfinite(b.mean.value); });
  std::string charts =
      layer_chart(q, "Loss of reusing that layer only", "points", loss, kReuseCss) +
      layer_chart(q, "Divergence of reusing that layer only", "nats per token", divergence, kRestoreCss) +
      layer_chart(q,
                  q.granularity > 1
                      ? fmt::format("Gain of recomputing {} layers alone over full reuse", q.granularity)
                      : "Gain of recomputing that layer alone over full reuse",
                  "points", gain, kGroupCss);
  if (charts.empty()) return "";
  return "<h2>Layer by layer</h2>\n<div class=\"row\">\n" + charts + "</div>\n";
}

}  // namespace ds::report
