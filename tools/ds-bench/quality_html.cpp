#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "runtime/trace/chart.h"
#include "runtime/trace/markup.h"
#include "support/units.h"
#include "tools/ds-bench/quality_result.h"

namespace ds {
namespace {

constexpr double kBar = 1.96;  // standard errors on each side: 95 % of a normal distribution

struct Look {
  Mark mark;
  size_t colour;
  const char* words;
};

Look look_of(const QualityRun& run) {
  if (run.way.is_full_prefill()) return {Mark::kDot, 0, "full prefill"};
  if (run.way.is_full_reuse()) return {Mark::kDot, 2, "full reuse"};
  if (run.way.selects()) return {Mark::kDiamond, 7, "select (CacheBlend)"};
  if (run.way.restores()) {
    if (run.aligned()) return {Mark::kDownTriangle, 8, "restore with maps"};
    return {Mark::kTriangle, 6, "restore (HCache)"};
  }
  if (run.aligned())
    return run.policy == "balanced" ? Look{Mark::kSquare, 8, "a group with maps, balanced"}
                                    : Look{Mark::kRing, 8, "a group with maps, droidspeak"};
  return run.policy == "balanced" ? Look{Mark::kSquare, 5, "a group, balanced"}
                                  : Look{Mark::kRing, 5, "a group, droidspeak"};
}

std::pair<double, double> bar_of(const Mean& score) {
  double error = std::isfinite(score.standard_error) ? kBar * score.standard_error : 0;
  return {std::max(0.0, score.value - error), std::min(100.0, score.value + error)};
}

double in_ms(int64_t ns) { return static_cast<double>(ns) / 1e6; }

/// Scores that are not known have no place in the picture; the table has them.
std::string picture(const QualityRate& rate) {
  double least = 100, best = 0, longest = 0;
  for (const QualityRun& run : rate.runs) {
    longest = std::max(longest, in_ms(run.ttft()));
    if (!std::isfinite(run.score.value)) continue;
    auto [low, high] = bar_of(run.score);
    least = std::min(least, low);
    best = std::max(best, high);
  }
  if (least > best) return "";
  double step = tick_step(std::max(best - least, 1.0), 6);
  least = std::max(0.0, std::floor(least / step) * step);
  best = std::max(least + step, std::min(100.0, std::ceil(best / step) * step));
  Chart chart({.width = 640, .height = 380, .left = 46}, {"TTFT, ms", 0, longest * 1.05},
              {"score, points", least, best});
  std::vector<const QualityRun*> on_front = front(rate);
  Chart::Points line;
  for (const QualityRun* run : on_front) line.emplace_back(in_ms(run->ttft()), run->score.value);
  chart.line(line, colour_class(9) + " thin");
  std::vector<LegendEntry> legend;
  for (const QualityRun& run : rate.runs) {
    Look look = look_of(run);
    std::string css = colour_class(look.colour);
    auto [low, high] = bar_of(run.score);
    chart.error_bar(in_ms(run.ttft()), low, high, css + " faint");
    // Where both policies draw one tiling, the ring stands around the square.
    chart.mark(look.mark, in_ms(run.ttft()), run.score.value, look.mark == Mark::kRing ? 5.6 : 3.4, css,
               fmt::format("{}: {}, score {}, loss {} ({})", run.name(), format_ns(run.ttft()),
                           points_text(run.score), points_text(run.loss), run.what));
    bool listed =
        std::any_of(legend.begin(), legend.end(), [&](const auto& e) { return e.words == look.words; });
    if (!listed) legend.push_back({look.mark, css, look.words});
  }
  legend.push_back({Mark::kDot, colour_class(9), "nothing is both quicker and better", true, false});
  std::string label = fmt::format("scores by TTFT at {}", format_rate(static_cast<double>(rate.rate)));
  return chart.svg(label) + chart_legend(legend);
}

std::string row(const std::vector<std::string>& cells, std::string_view tag = "td") {
  std::string out = "<tr>";
  for (const std::string& c : cells) out += html_cell(tag, escape_markup(c));
  return out + "</tr>\n";
}

std::string run_table(const QualityRate& rate, int64_t layers) {
  const QualityRun* prefill = rate.find(Way::full_prefill());
  std::string out = "<div class=\"s\"><table>" + row({"way", "policy", "TTFT", "speed-up", "score", "loss",
                                                      "recomputed", "moved", "compute", "predicted TTFT"},
                                                     "th");
  for (const QualityRun& run : rate.runs)
    out += row({run.way.name(), run.policy, format_ns(run.ttft()),
                fmt::format("{:.2f}×", in_ms(prefill->ttft()) / in_ms(run.ttft())), points_text(run.score),
                points_text(run.loss), effort_text(run, layers), format_bytes(run.bytes),
                format_ns(run.compute()), format_ns(run.predicted_ns)});
  return out + "</table></div>\n";
}

std::string comparison_table(std::string_view heading, const std::vector<SelectComparison>& list) {
  std::string rows;
  for (const SelectComparison& c : list) {
    std::vector<std::string> cells{c.select->way.name(), format_ns(c.select->ttft()),
                                   points_text(c.select->loss)};
    if (c.other) {
      cells.insert(cells.end(), {c.other->name(), format_ns(c.other->ttft()), points_text(c.other->loss)});
    } else {
      cells.insert(cells.end(), {"–", "–", "–"});
    }
    rows += row(cells);
  }
  if (rows.empty()) return "";
  return fmt::format("<h3>{}</h3>\n<div class=\"s\"><table>", heading) +
         row({"select", "TTFT", "loss", "beside it", "TTFT", "loss"}, "th") + rows + "</table></div>\n";
}

}  // namespace

std::string draw_quality_html(const std::string& title, const std::string& note, int64_t layers,
                              const std::vector<QualityRate>& rates) {
  std::string page = html_begin(title, Theme::kLightAndDark, kChartStyle);
  page += html_cell("p", escape_markup(note)) + "\n<ul>\n";
  for (const QualityRate& rate : rates) page += html_cell("li", escape_markup(fastest_text(rate))) + "\n";
  page += "</ul>\n<p class=\"n\">± is one standard error; error bars are ± 1.96 of them.</p>\n";
  for (const QualityRate& rate : rates) {
    page += fmt::format("<h2>{}</h2>\n", format_rate(static_cast<double>(rate.rate)));
    page += picture(rate) + run_table(rate, layers);
    page += comparison_table("Token selection beside the group of as much compute",
                             at_equal_compute(rate, layers));
    page += comparison_table("Token selection beside what loses least in the same time",
                             at_equal_ttft(rate, kNoise));
  }
  return page + std::string(kHtmlEnd);
}

}  // namespace ds
