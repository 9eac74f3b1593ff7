#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "runtime/trace/chart.h"
#include "runtime/trace/markup.h"
#include "support/units.h"
#include "tools/ds-bench/sweep_result.h"

namespace ds {
namespace {

constexpr double kNoRoom = 1.02;  // between the lowest and the highest value, a factor

std::string time_text(double ns) { return format_ns(std::llround(ns)); }

std::string panel(int64_t tokens, const std::vector<const SweepCell*>& cells) {
  double least = 1e300, most = 0;
  for (const SweepCell* cell : cells) {
    for (const SweepRun& run : cell->runs) {
      for (double ns : {static_cast<double>(run.predicted_ns), static_cast<double>(run.median_ns())}) {
        least = std::min(least, ns);
        most = std::max(most, ns);
      }
    }
  }
  auto rate = [](const SweepCell* cell) { return static_cast<double>(cell->rate); };
  ChartAxis x{"link", rate(cells.front()), rate(cells.back()), true, {}, format_rate};
  for (const SweepCell* cell : cells) x.ticks.push_back(rate(cell));
  ChartAxis y{"", least, std::max(most, least * kNoRoom), true, {}, time_text};
  for (int k = 0; k <= 4; ++k) y.ticks.push_back(least * std::pow(y.high / least, k / 4.0));
  Chart chart({.width = 640, .height = 360, .left = 70, .right = 40}, std::move(x), std::move(y));
  std::vector<LegendEntry> legend;
  for (size_t w = 0; w < cells.front()->runs.size(); ++w) {
    std::string colour = colour_class(w);
    Chart::Points measured, predicted;
    for (const SweepCell* cell : cells) {
      const SweepRun& run = cell->runs[w];
      auto ns = static_cast<double>(run.median_ns());
      measured.emplace_back(rate(cell), ns);
      predicted.emplace_back(rate(cell), static_cast<double>(run.predicted_ns));
      chart.mark(Mark::kDot, rate(cell), ns, 3, colour,
                 fmt::format("{}, {}: {} measured, {} predicted ({})", run.way, format_rate(rate(cell)),
                             format_ns(run.median_ns()), format_ns(run.predicted_ns), run.what));
    }
    chart.line(measured, colour + " thin");
    chart.line(predicted, colour + " thin dotted");
    legend.push_back({Mark::kDot, colour, cells.front()->runs[w].way, true});
  }
  std::string title = fmt::format("{} context tokens", tokens);
  return fmt::format("<h2>{}</h2>\n{}{}", title, chart.svg(title), chart_legend(legend));
}

}  // namespace

std::string draw_sweep_html(const std::string& title, const std::vector<SweepCell>& cells) {
  std::map<int64_t, std::vector<const SweepCell*>> by_length;
  for (const SweepCell& cell : cells) by_length[cell.tokens].push_back(&cell);
  std::string page = html_begin(title, Theme::kLightAndDark, kChartStyle);
  page += "<p>Time to first token by link rate. Solid: measured (median); dotted: predicted.</p>\n";
  for (auto& [tokens, panels] : by_length) {
    std::sort(panels.begin(), panels.end(), [](const auto* a, const auto* b) { return a->rate < b->rate; });
    page += panel(tokens, panels);
  }
  return page + std::string(kHtmlEnd);
}

}  // namespace ds
