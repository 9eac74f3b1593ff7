#include <fmt/format.h>

#include <algorithm>

#include "runtime/trace/chart.h"
#include "runtime/trace/markup.h"
#include "tools/ds-bench/serve_load.h"

namespace ds {
namespace {

constexpr Mark kMarks[] = {Mark::kDot, Mark::kSquare, Mark::kTriangle, Mark::kDiamond};

/// One figure of all ways by the rate that was offered. Median as a line, p99 dotted. `level`: of the SLO.
std::string panel(const std::string& what, const std::vector<ServeWay>& ways, Summary LoadFigures::*figure,
                  double level) {
  double most_rate = 0, most = level;
  for (const ServeWay& way : ways)
    for (const LoadFigures& f : way.runs) {
      most_rate = std::max(most_rate, f.offered_rate);
      // What lies far past the knee would flatten what is to be seen.
      most = std::max(most, std::min((f.*figure).p99, 4 * std::max(level, (way.runs.front().*figure).p99)));
    }
  Chart chart({.width = 640, .height = 320, .left = 60}, {"requests per second", 0, most_rate * 1.05},
              {what + ", ms", 0, most * 1.05});
  if (level > 0) chart.level(level, "dashed faint");
  std::vector<LegendEntry> legend;
  for (size_t w = 0; w < ways.size(); ++w) {
    const std::string colour = colour_class(w);
    Chart::Points middle, worst;
    for (const LoadFigures& f : ways[w].runs) {
      const Summary& s = f.*figure;
      middle.emplace_back(f.offered_rate, s.median);
      worst.emplace_back(f.offered_rate, s.p99);
      chart.mark(
          kMarks[w % std::size(kMarks)], f.offered_rate, s.median, 3.2, colour,
          fmt::format("{}, {:.2f} requests/s: mean {:.1f}, median {:.1f}, p99 {:.1f} ms; {:.0f} % within "
                      "the SLO",
                      ways[w].name, f.offered_rate, s.mean, s.median, s.p99, 100 * f.within_slo));
    }
    chart.line(middle, colour + " thin");
    chart.line(worst, colour + " thin dotted");
    legend.push_back({kMarks[w % std::size(kMarks)], colour, ways[w].name, true});
  }
  return fmt::format("<h2>{}</h2>\n{}{}", what, chart.svg(what + " by rate"), chart_legend(legend));
}

}  // namespace

std::string draw_serve_html(const std::string& title, double slo_ttft_ms, const std::vector<ServeWay>& ways) {
  std::string page = html_begin(title, Theme::kLightAndDark, kChartStyle);
  page += "<div class=\"s\"><table><tr>";
  for (const char* heading : {"way", "knee, requests/s", "beside the first"})
    page += html_cell("th", heading);
  page += "</tr>\n";
  for (const ServeWay& way : ways)
    page += "<tr>" + html_cell("td", escape_markup(way.name)) +
            html_cell("td", way.knee > 0 ? fmt::format("{:.2f}", way.knee) : "below the lowest rate") +
            html_cell("td", way.knee > 0 && ways[0].knee > 0 ? fmt::format("{:.2f}×", way.knee / ways[0].knee)
                                                             : "–") +
            "</tr>\n";
  page += fmt::format(
      "</table></div>\n<p>The knee: the highest rate at which nine of ten first tokens come within {:.0f} "
      "ms, "
      "the dashed line. Lines: medians; dotted: p99. All ways are given the same requests at the same "
      "times.</p>\n",
      slo_ttft_ms);
  page += panel("time to first token", ways, &LoadFigures::ttft, slo_ttft_ms);
  page += panel("time between tokens", ways, &LoadFigures::itl, 0);
  page += panel("time to the last token", ways, &LoadFigures::e2el, 0);
  return page + std::string(kHtmlEnd);
}

}  // namespace ds
