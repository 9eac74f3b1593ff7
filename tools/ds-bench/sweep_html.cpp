#include <fmt/format.h>

#include <cmath>
#include <map>

#include "support/units.h"
#include "tools/ds-bench/sweep_result.h"

namespace ds {
namespace {

constexpr double kWidth = 640, kHeight = 360, kLeft = 70, kRight = 150, kTop = 30, kBottom = 50;
constexpr const char* kColours[] = {"#222222", "#c2410c", "#a16207", "#65a30d", "#0f766e",
                                    "#2563eb", "#7c3aed", "#be185d", "#dc2626", "#64748b"};

/// A logarithmic axis.
struct Axis {
  double low, high, from, to;
  double at(double v) const {
    double span = std::log(high / low);
    return from + (to - from) * (span > 0 ? std::log(v / low) / span : 0.5);
  }
};

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
  Axis x{rate(cells.front()), rate(cells.back()), kLeft, kWidth - kRight},
      y{least, most, kHeight - kBottom, kTop};
  std::string svg = fmt::format(
      "<h2>{} context tokens</h2>\n<svg viewBox=\"0 0 {} {}\" width=\"{}\" font-family=\"sans-serif\" "
      "font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
      tokens, kWidth, kHeight, kWidth);
  for (const SweepCell* cell : cells) {
    svg += fmt::format(
        "<line x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"{1}\" y2=\"{2}\" stroke=\"#ddd\"/><text x=\"{0:.1f}\" "
        "y=\"{3}\" "
        "text-anchor=\"middle\">{4}</text>\n",
        x.at(rate(cell)), kTop, kHeight - kBottom, kHeight - kBottom + 18, format_rate(rate(cell)));
  }
  for (int k = 0; k <= 4; ++k) {
    double ns = least * std::pow(most / least, k / 4.0);
    svg += fmt::format(
        "<line x1=\"{0}\" x2=\"{1}\" y1=\"{2:.1f}\" y2=\"{2:.1f}\" stroke=\"#ddd\"/><text x=\"{3}\" "
        "y=\"{4:.1f}\" "
        "text-anchor=\"end\">{5}</text>\n",
        kLeft, kWidth - kRight, y.at(ns), kLeft - 6, y.at(ns) + 4, format_ns(std::llround(ns)));
  }
  for (size_t w = 0; w < cells.front()->runs.size(); ++w) {
    const char* colour = kColours[w % std::size(kColours)];
    std::string measured, predicted, dots;
    for (const SweepCell* cell : cells) {
      const SweepRun& run = cell->runs[w];
      double at = x.at(rate(cell));
      measured += fmt::format("{:.1f},{:.1f} ", at, y.at(static_cast<double>(run.median_ns())));
      predicted += fmt::format("{:.1f},{:.1f} ", at, y.at(static_cast<double>(run.predicted_ns)));
      dots += fmt::format(
          "<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\" fill=\"{}\"><title>{}, {}: {} measured, {} predicted "
          "({})"
          "</title></circle>\n",
          at, y.at(static_cast<double>(run.median_ns())), colour, run.way, format_rate(rate(cell)),
          format_ns(run.median_ns()), format_ns(run.predicted_ns), run.what);
    }
    svg += fmt::format(
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\"/>\n<polyline points=\"{}\" fill=\"none\" "
        "stroke=\"{}\" stroke-dasharray=\"3 3\"/>\n{}",
        measured, colour, predicted, colour, dots);
    double line = kTop + 14 + 16 * static_cast<double>(w);
    svg += fmt::format("<text x=\"{}\" y=\"{}\" fill=\"{}\">&#9679; {}</text>\n", kWidth - kRight + 12, line,
                       colour, cells.front()->runs[w].way);
  }
  return svg + "</svg>\n";
}

}  // namespace

std::string draw_sweep_html(const std::string& title, const std::vector<SweepCell>& cells) {
  std::map<int64_t, std::vector<const SweepCell*>> by_length;
  for (const SweepCell& cell : cells) by_length[cell.tokens].push_back(&cell);
  std::string page = fmt::format(
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{0}</title></head>\n"
      "<body style=\"font-family:sans-serif;max-width:720px;margin:auto\">\n<h1 "
      "style=\"font-size:20px;overflow-wrap:anywhere\">{0}</h1>\n"
      "<p>Time to first token by link rate. Solid: measured (median); dashed: predicted.</p>\n",
      title);
  for (auto& [tokens, panels] : by_length) {
    std::sort(panels.begin(), panels.end(), [](const auto* a, const auto* b) { return a->rate < b->rate; });
    page += panel(tokens, panels);
  }
  return page + "</body></html>\n";
}

}  // namespace ds
