// Charts with two axes, as SVG inside a page (markup.h): points, lines, bars, error bars. Colours come from
// the page's classes, so that a chart follows its theme; marks differ in shape as well.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ds {

/// The smallest step of 1, 2 or 5 times a power of ten of which at most `count` go into `span` > 0.
double tick_step(double span, int count);
/// Multiples of tick_step() from `low` up to `high`.
std::vector<double> linear_ticks(double low, double high, int count);

struct ChartAxis {
  std::string label;
  double low = 0, high = 1;
  bool logarithmic = false;                      // then 0 < low
  std::vector<double> ticks;                     // empty: linear_ticks()
  std::function<std::string(double)> text = {};  // of a tick; empty: "{:g}"
};

enum class Mark : uint8_t { kDot, kRing, kSquare, kDiamond, kTriangle, kCross, kDownTriangle };

class Chart {
 public:
  struct Layout {
    double width = 640, height = 400;
    double left = 48, right = 14, top = 14, bottom = 42;  // the plot lies between the margins
  };
  using Points = std::vector<std::pair<double, double>>;

  Chart(const Layout& layout, ChartAxis x, ChartAxis y);

  // Values are in the axes' units; what lies outside is drawn at the edge, what is not a number not at all.
  // `css`: classes, of which one is colour_class(). `title`: plain text, shown on hovering; empty: none.
  void mark(Mark shape, double x, double y, double size, std::string_view css, std::string_view title = "");
  void line(const Points& points, std::string_view css);
  void error_bar(double x, double low, double high, std::string_view css);
  void level(double y, std::string_view css);  // from edge to edge
  void bar(double x0, double x1, double y0, double y1, std::string_view css, std::string_view title = "");
  /// Moved by (dx, dy) pixels. css: m (middle) or r (right) aligned, else left.
  void text(double x, double y, double dx, double dy, std::string_view content, std::string_view css);

  double x_pixel(double x) const;
  double y_pixel(double y) const;

  /// The whole picture; `label` says in words what it shows.
  std::string svg(std::string_view label) const;

 private:
  Layout at_;
  ChartAxis x_, y_;
  std::string body_;
};

/// CSS that charts need on their page. Classes: thin, faint, ghost (hardly there), dashed, dotted; of texts
/// tiny, n (in passing), f (in the colour of its series).
extern const std::string_view kChartStyle;

struct LegendEntry {
  Mark mark = Mark::kDot;
  std::string css, words;
  bool line = false, mark_shown = true;
};
/// A list that wraps.
std::string chart_legend(const std::vector<LegendEntry>& entries);

}  // namespace ds
