#include "runtime/trace/chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "runtime/trace/markup.h"

namespace ds {
namespace {

double position(const ChartAxis& axis, double v, double from, double to) {
  v = std::clamp(v, axis.low, axis.high);
  double span = axis.logarithmic ? std::log(axis.high / axis.low) : axis.high - axis.low;
  double part = axis.logarithmic ? std::log(v / axis.low) : v - axis.low;
  return from + (to - from) * (span > 0 ? part / span : 0.5);
}

std::string tick_text(const ChartAxis& axis, double v) {
  return axis.text ? axis.text(v) : fmt::format("{:g}", v);
}

/// The outline of a mark around (x, y), `r` from its middle.
std::string mark_path(Mark shape, double x, double y, double r) {
  switch (shape) {
    case Mark::kSquare:
      return fmt::format("M{:.1f},{:.1f} h{:.1f} v{:.1f} h{:.1f} z", x - r, y - r, 2 * r, 2 * r, -2 * r);
    case Mark::kDiamond:
      return fmt::format("M{:.1f},{:.1f} l{:.1f},{:.1f} l{:.1f},{:.1f} l{:.1f},{:.1f} z", x, y - 1.3 * r,
                         1.3 * r, 1.3 * r, -1.3 * r, 1.3 * r, -1.3 * r, -1.3 * r);
    case Mark::kTriangle:
      return fmt::format("M{:.1f},{:.1f} l{:.1f},{:.1f} h{:.1f} z", x, y - 1.2 * r, 1.2 * r, 2.1 * r,
                         -2.4 * r);
    case Mark::kDownTriangle:
      return fmt::format("M{:.1f},{:.1f} l{:.1f},{:.1f} h{:.1f} z", x, y + 1.2 * r, 1.2 * r, -2.1 * r,
                         -2.4 * r);
    case Mark::kCross:
      return fmt::format("M{:.1f},{:.1f} l{:.1f},{:.1f} m0,{:.1f} l{:.1f},{:.1f}", x - r, y - r, 2 * r, 2 * r,
                         -2 * r, -2 * r, 2 * r);
    default:
      return "";
  }
}

std::string mark_markup(Mark shape, double x, double y, double r, std::string_view css,
                        std::string_view title) {
  const char* paint = shape == Mark::kRing || shape == Mark::kCross ? "o" : "f";
  std::string hover = title.empty() ? "" : fmt::format("<title>{}</title>", escape_markup(title));
  if (shape == Mark::kDot || shape == Mark::kRing)
    return fmt::format("<circle class=\"{} {}\" cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"{:.1f}\">{}</circle>\n",
                       paint, css, x, y, r, hover);
  return fmt::format("<path class=\"{} {}\" d=\"{}\">{}</path>\n", paint, css, mark_path(shape, x, y, r),
                     hover);
}

}  // namespace

const std::string_view kChartStyle = R"x(
.chart text{font:11px 'DejaVu Sans',Verdana,Arial,sans-serif;fill:var(--ink)} .chart .n{fill:var(--soft)} .chart .m{text-anchor:middle} .chart .r{text-anchor:end}
.chart .grid{stroke:var(--line);stroke-width:0.8;fill:none} .chart .f{fill:currentColor} .chart .o{fill:none;stroke:currentColor;stroke-width:1.6}
.chart .thin{stroke-width:1} .chart .faint{opacity:0.35} .chart .dashed{stroke-dasharray:6 3} .chart .dotted{stroke-dasharray:1.5 3} .chart text.f{fill:currentColor} .chart .ghost{stroke-width:0.6;opacity:0.25} .chart .tiny{font-size:9.5px}
.legend{list-style:none;padding:0;margin:6px 0;font-size:12.5px} .legend li{display:inline-block;margin:0 16px 3px 0} .legend svg{display:inline-block;vertical-align:-2px;margin-right:5px}
)x";

double tick_step(double span, int count) {
  double step = std::pow(10, std::floor(std::log10(span / count)) - 1);
  // A step that fits but for rounding fits.
  for (int k = 0; std::floor(span / step + 1e-9) > count; ++k) step = k % 3 == 1 ? step / 2 * 5 : step * 2;
  return step;
}

std::vector<double> linear_ticks(double low, double high, int count) {
  if (!(high > low)) return {low};
  double step = tick_step(high - low, count);
  std::vector<double> ticks;
  for (double k = std::ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; ++k)
    ticks.push_back(k * step + 0.0);  // never -0
  return ticks;
}

Chart::Chart(const Layout& layout, ChartAxis x, ChartAxis y)
    : at_(layout), x_(std::move(x)), y_(std::move(y)) {
  if (x_.ticks.empty()) x_.ticks = linear_ticks(x_.low, x_.high, 10);
  if (y_.ticks.empty()) y_.ticks = linear_ticks(y_.low, y_.high, 6);
}

double Chart::x_pixel(double x) const { return position(x_, x, at_.left, at_.width - at_.right); }
double Chart::y_pixel(double y) const { return position(y_, y, at_.height - at_.bottom, at_.top); }

void Chart::mark(Mark shape, double x, double y, double size, std::string_view css, std::string_view title) {
  if (!std::isfinite(x) || !std::isfinite(y)) return;
  body_ += mark_markup(shape, x_pixel(x), y_pixel(y), size, css, title);
}

void Chart::line(const Points& points, std::string_view css) {
  std::string path;
  bool open = false;
  for (auto [x, y] : points) {
    bool there = std::isfinite(x) && std::isfinite(y);
    if (there) path += fmt::format("{}{:.1f},{:.1f} ", open ? 'L' : 'M', x_pixel(x), y_pixel(y));
    open = there;
  }
  if (!path.empty()) body_ += fmt::format("<path class=\"o {}\" d=\"{}\"/>\n", css, path);
}

void Chart::error_bar(double x, double low, double high, std::string_view css) {
  if (!std::isfinite(x) || !std::isfinite(low) || !std::isfinite(high)) return;
  body_ += fmt::format("<path class=\"o thin {}\" d=\"M{:.1f},{:.1f} V{:.1f}\"/>\n", css, x_pixel(x),
                       y_pixel(low), y_pixel(high));
}

void Chart::level(double y, std::string_view css) { line({{x_.low, y}, {x_.high, y}}, css); }

void Chart::bar(double x0, double x1, double y0, double y1, std::string_view css, std::string_view title) {
  if (!std::isfinite(x0 + x1 + y0 + y1)) return;
  double left = x_pixel(std::min(x0, x1)), right = x_pixel(std::max(x0, x1));
  double top = y_pixel(std::max(y0, y1)), bottom = y_pixel(std::min(y0, y1));
  body_ += fmt::format(
      "<rect class=\"f {}\" x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\">{}</rect>\n", css,
      left, top, right - left, std::max(bottom - top, 0.5),
      title.empty() ? "" : fmt::format("<title>{}</title>", escape_markup(title)));
}

void Chart::text(double x, double y, double dx, double dy, std::string_view content, std::string_view css) {
  if (!std::isfinite(x) || !std::isfinite(y)) return;
  body_ += fmt::format("<text class=\"{}\" x=\"{:.1f}\" y=\"{:.1f}\">{}</text>\n", css, x_pixel(x) + dx,
                       y_pixel(y) + dy, escape_markup(content));
}

std::string Chart::svg(std::string_view label) const {
  double right = at_.width - at_.right, bottom = at_.height - at_.bottom;
  std::string out = fmt::format(
      "<svg class=\"chart\" viewBox=\"0 0 {0:g} {1:g}\" width=\"{0:g}\" height=\"{1:g}\" role=\"img\" "
      "aria-label=\"{2}\">\n",
      at_.width, at_.height, escape_markup(label));
  for (double v : x_.ticks) {
    double x = x_pixel(v);
    out += fmt::format(
        "<path class=\"grid\" d=\"M{0:.1f},{1:.1f} V{2:.1f}\"/><text class=\"m n\" x=\"{0:.1f}\" "
        "y=\"{3:.1f}\">{4}"
        "</text>\n",
        x, at_.top, bottom, bottom + 14, escape_markup(tick_text(x_, v)));
  }
  for (double v : y_.ticks) {
    double y = y_pixel(v);
    out += fmt::format(
        "<path class=\"grid\" d=\"M{0:.1f},{1:.1f} H{2:.1f}\"/><text class=\"r n\" x=\"{3:.1f}\" "
        "y=\"{4:.1f}\">{5}"
        "</text>\n",
        at_.left, y, right, at_.left - 5, y + 4, escape_markup(tick_text(y_, v)));
  }
  if (!x_.label.empty())
    out += fmt::format("<text class=\"m n\" x=\"{:.1f}\" y=\"{:.1f}\">{}</text>\n", (at_.left + right) / 2,
                       bottom + 30, escape_markup(x_.label));
  if (!y_.label.empty())
    out += fmt::format("<text class=\"m n\" transform=\"translate(11,{:.1f}) rotate(-90)\">{}</text>\n",
                       (at_.top + bottom) / 2, escape_markup(y_.label));
  return out + body_ + "</svg>\n";
}

std::string chart_legend(const std::vector<LegendEntry>& entries) {
  std::string out = "<ul class=\"legend\">";
  for (const LegendEntry& e : entries) {
    out += "<li><svg class=\"chart\" width=\"22\" height=\"12\" viewBox=\"0 0 22 12\">";
    if (e.line) out += fmt::format("<path class=\"o {}\" d=\"M1,6 H21\"/>", e.css);
    if (e.mark_shown) out += mark_markup(e.mark, 11, 6, 4, e.css, "");
    out += fmt::format("</svg>{}</li>\n", escape_markup(e.words));
  }
  return out + "</ul>\n";
}

}  // namespace ds
