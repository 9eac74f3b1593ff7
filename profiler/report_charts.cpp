// The pictures of the page about a profile.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <optional>

#include "profiler/report_internal.h"
#include "runtime/trace/chart.h"
#include "runtime/trace/markup.h"

namespace ds::report {
namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

// Classes of colours by what is shown; shapes differ too.
const std::string kPrefillCss = colour_class(0), kScatteredCss = colour_class(1), kReuseCss = colour_class(2),
                  kSenderCss = colour_class(3), kNoCutCss = colour_class(4), kGroupCss = colour_class(5),
                  kRestoreCss = colour_class(6), kSelectCss = colour_class(7), kWorstCss = colour_class(9);

bool is_group(const WayScore& w) { return w.way.kind == WayKind::kGroup && !w.way.layers.empty(); }

std::string figure(std::string_view caption, const std::string& content) {
  return fmt::format("<figure>{}{}</figure>\n",
                     caption.empty() ? "" : html_cell("figcaption", escape_markup(caption)), content);
}

// --- Scores by recomputed layers

/// The average over the tasks, or one task's score.
using ScoreOf = std::function<Mean(const WayScore&)>;

double bar_low(const Mean& m) {
  return std::isfinite(m.standard_error) ? std::max(0.0, m.value - kBar * m.standard_error) : m.value;
}
double bar_high(const Mean& m) {
  return std::isfinite(m.standard_error) ? std::min(100.0, m.value + kBar * m.standard_error) : m.value;
}

std::string hover(const WayScore& w, const Mean& score) {
  std::string text = fmt::format("{}: {}", w.way.name(), mean_text(score));
  if (std::isfinite(w.loss.value)) text += fmt::format(", loss {}", mean_text(w.loss));
  if (std::isfinite(w.divergence.value))
    text += fmt::format(", divergence {} nats", nats_text(w.divergence.value));
  if (w.dropped) text += fmt::format("; dropped after {} contexts", w.contexts);
  return text;
}

/// From the lowest score to the highest that a chart shows, error bars included where they are drawn.
std::pair<double, double> score_range(const Quality& q, const ScoreOf& score) {
  double low = 100, high = 0;
  for (const WayScore& w : q.ways) {
    Mean m = score(w);
    if (!std::isfinite(m.value) || w.dropped || w.way.kind == WayKind::kReuseOnly) continue;
    low = std::min(low, is_group(w) ? m.value : bar_low(m));
    high = std::max(high, bar_high(m));
  }
  if (low > high) return {0, 100};
  double step = tick_step(std::max(high - low, 1.0), 6);
  low = std::max(0.0, std::floor((low - 0.2 * step) / step) * step);
  high = std::min(100.0, std::ceil((high + 0.2 * step) / step) * step);
  return {low, std::max(high, low + step)};
}

class ScoreChart {
 public:
  ScoreChart(const Quality& q, const Chart::Layout& layout, ScoreOf score)
      : q_(q),
        score_(std::move(score)),
        small_(layout.width < 500),
        column_((layout.width - layout.left - layout.right - beside()) /
                (static_cast<double>(q.layers) + 0.5)),
        chart_(layout, x_axis(), y_axis()) {}

  std::string draw(std::string_view label) {
    levels();
    worst();
    groups();
    scattered();
    controls();
    pareto();
    return chart_.svg(label);
  }

 private:
  /// Pixels left of 0, where restored layers stand with their labels.
  double beside() const { return small_ ? 16 : 58; }
  ChartAxis x_axis() const {
    ChartAxis x{"recomputed layers", -beside() / column_, static_cast<double>(q_.layers) + 0.5};
    x.ticks = linear_ticks(0, static_cast<double>(q_.layers), column_ > 22 ? static_cast<int>(q_.layers) : 8);
    std::erase_if(x.ticks, [](double v) { return v != std::floor(v); });
    return x;
  }
  ChartAxis y_axis() const {
    auto [low, high] = score_range(q_, score_);
    return {"score, points", low, high};
  }
  int64_t size(const WayScore& w) const { return w.way.recomputed(q_.layers); }
  bool on_pareto(const WayScore& w) const {
    return std::find(pareto_.begin(), pareto_.end(), &w) != pareto_.end();
  }
  void level(WayKind kind, const std::string& css) {
    if (const WayScore* w = find_way(q_, kind)) chart_.level(score_(*w).value, css);
  }
  void with_bar(Mark shape, double x, const WayScore& w, double r, const std::string& css) {
    Mean m = score_(w);
    chart_.error_bar(x, bar_low(m), bar_high(m), css);
    chart_.mark(shape, x, m.value, r, css, hover(w, m));
  }

  void levels() {
    level(WayKind::kFullPrefill, kPrefillCss + " dashed");
    level(WayKind::kFullReuse, kReuseCss + " dashed");
    level(WayKind::kSenderAlone, kSenderCss + " dotted");
  }

  void worst() {
    std::map<int64_t, double> least;
    for (const WayScore& w : q_.ways) {
      double v = score_(w).value;
      if (!is_group(w) || w.dropped || !std::isfinite(v)) continue;
      auto [at, fresh] = least.try_emplace(size(w), v);
      if (!fresh) at->second = std::min(at->second, v);
    }
    Chart::Points points;
    for (auto [layers, v] : least) points.emplace_back(layers, v);
    chart_.line(points, kWorstCss + " thin dotted");
  }

  /// In their column from left to right by first layer, so that they can be told apart.
  void groups() {
    constexpr double kSpread = 0.64;
    constexpr int64_t kMostBars = 150;
    bool bars = std::count_if(q_.ways.begin(), q_.ways.end(), is_group) <= kMostBars;
    for (const WayScore& w : q_.ways) {
      if (!is_group(w) || on_pareto(w)) continue;
      auto places = static_cast<double>(q_.layers - size(w));
      auto first = static_cast<double>(w.way.layers[0].first);
      double x = static_cast<double>(size(w)) + (places > 0 ? kSpread * (first / places - 0.5) : 0);
      Mean m = score_(w);
      bool no_cut = w.way.layers[0].first == 0;
      const std::string& css = no_cut ? kNoCutCss : kGroupCss;
      if (bars && !w.dropped) chart_.error_bar(x, bar_low(m), bar_high(m), css + " ghost");
      Mark shape = w.dropped ? Mark::kCross : no_cut ? Mark::kRing : Mark::kDot;
      chart_.mark(shape, x, m.value, small_ ? 2 : 2.6, css + (no_cut && !w.dropped ? "" : " faint"),
                  hover(w, m));
    }
  }

  void scattered() {
    std::map<int64_t, std::vector<double>> by_size;
    for (const WayScore& w : q_.ways)
      if (w.way.kind == WayKind::kScattered && !w.dropped && std::isfinite(score_(w).value))
        by_size[size(w)].push_back(score_(w).value);
    for (auto& [layers, v] : by_size) {
      auto [low, high] = std::minmax_element(v.begin(), v.end());
      double sum = 0;
      for (double s : v) sum += s;
      double mean = sum / static_cast<double>(v.size());
      chart_.error_bar(static_cast<double>(layers), *low, *high, kScatteredCss);
      chart_.mark(Mark::kSquare, static_cast<double>(layers), mean, small_ ? 2.4 : 3.2, kScatteredCss,
                  fmt::format("{} scattered sets of {} layers: mean {}, from {} to {}", v.size(), layers,
                              points_text(mean), points_text(*low), points_text(*high)));
    }
  }

  void controls() {
    std::vector<const WayScore*> restores;
    Chart::Points select;
    for (const WayScore& w : q_.ways) {
      if (w.dropped || !std::isfinite(score_(w).value)) continue;
      if (w.way.kind == WayKind::kRestore) restores.push_back(&w);
      if (w.way.kind == WayKind::kSelect)
        select.emplace_back(w.way.share * static_cast<double>(q_.layers), score_(w).value);
    }
    std::sort(select.begin(), select.end());
    chart_.line(select, kSelectCss + " thin");
    for (const WayScore& w : q_.ways)
      if (w.way.kind == WayKind::kSelect && !w.dropped)
        with_bar(Mark::kDiamond, w.way.share * static_cast<double>(q_.layers), w, small_ ? 2.6 : 3.6,
                 kSelectCss);
    restored(std::move(restores));
    if (const WayScore* w = find_way(q_, WayKind::kFullReuse)) with_bar(Mark::kDot, 0, *w, 3.4, kReuseCss);
    if (const WayScore* w = find_way(q_, WayKind::kFullPrefill))
      with_bar(Mark::kDot, static_cast<double>(q_.layers), *w, 3.4, kPrefillCss);
  }

  /// Nothing is recomputed: all at 0, with as many labels as there is room for.
  void restored(std::vector<const WayScore*> list) {
    constexpr double kLabel = 11;
    const double at = -(small_ ? 9 : 16) / column_;
    std::sort(list.begin(), list.end(),
              [&](const WayScore* a, const WayScore* b) { return score_(*a).value > score_(*b).value; });
    double last = -kLabel;
    for (const WayScore* w : list) {
      Mean m = score_(*w);
      chart_.mark(Mark::kTriangle, at, m.value, small_ ? 2.4 : 3.2, kRestoreCss, hover(*w, m));
      double y = chart_.y_pixel(m.value);
      if (small_ || y - last < kLabel) continue;
      chart_.text(at, m.value, -6, 4, format_layer_set(w->way.layers), "tiny r f " + kRestoreCss);
      last = y;
    }
  }

  void pareto() {
    Chart::Points points;
    if (const WayScore* w = find_way(q_, WayKind::kFullReuse)) points.emplace_back(0, score_(*w).value);
    for (const WayScore* w : pareto_) points.emplace_back(size(*w), score_(*w).value);
    if (const WayScore* w = find_way(q_, WayKind::kFullPrefill))
      points.emplace_back(q_.layers, score_(*w).value);
    chart_.line(points, kGroupCss);
    constexpr double kLabel = 34, kTopEdge = 26;  // pixels
    double last = -kLabel;
    for (const WayScore* w : pareto_) {
      bool no_cut = w->way.layers[0].first == 0;
      auto x = static_cast<double>(size(*w));
      with_bar(no_cut ? Mark::kRing : Mark::kDot, x, *w, small_ ? 3 : 4, no_cut ? kNoCutCss : kGroupCss);
      if (small_ || chart_.x_pixel(x) - last < kLabel) continue;
      bool at_edge = chart_.y_pixel(score_(*w).value) < kTopEdge;
      chart_.text(x, score_(*w).value, -6, at_edge ? 14 : -8, format_layer_set(w->way.layers), "tiny r");
      last = chart_.x_pixel(x);
    }
  }

  const Quality& q_;
  ScoreOf score_;
  std::vector<const WayScore*> pareto_ = pareto_groups(q_);
  bool small_;     // for a phone, or one of many
  double column_;  // pixels
  Chart chart_;
};

std::string score_legend(const Quality& q) {
  auto any = [&](auto is) { return std::any_of(q.ways.begin(), q.ways.end(), is); };
  auto kind = [&](WayKind k) {
    return any([&](const WayScore& w) { return w.way.kind == k && !w.dropped; });
  };
  std::vector<LegendEntry> entries;
  if (!pareto_groups(q).empty())
    entries.push_back({Mark::kDot, kGroupCss, "the best group of its size, better than all smaller", true});
  if (any([](const WayScore& w) { return is_group(w) && w.way.layers[0].first > 0; }))
    entries.push_back({Mark::kDot, kGroupCss + " faint", "a contiguous group"});
  if (any([](const WayScore& w) { return is_group(w) && w.way.layers[0].first == 0; }))
    entries.push_back({Mark::kRing, kNoCutCss, "a group from layer 0: needs no cut"});
  if (any([](const WayScore& w) { return is_group(w) && w.dropped; }))
    entries.push_back({Mark::kCross, kGroupCss + " faint", "dropped by racing"});
  if (kind(WayKind::kGroup))
    entries.push_back({Mark::kDot, kWorstCss + " dotted",
                       any([](const WayScore& w) { return is_group(w) && w.dropped; })
                           ? "the worst group not dropped"
                           : "the worst group",
                       true, false});
  if (kind(WayKind::kScattered))
    entries.push_back({Mark::kSquare, kScatteredCss, "scattered layers: mean, lowest to highest"});
  if (kind(WayKind::kSelect))
    entries.push_back({Mark::kDiamond, kSelectCss,
                       "select (CacheBlend): x is share × layers, equal compute but for layer 0", true});
  if (kind(WayKind::kRestore))
    entries.push_back(
        {Mark::kTriangle, kRestoreCss, "restore (HCache), by restored layers: recomputes none"});
  if (kind(WayKind::kFullReuse)) entries.push_back({Mark::kDot, kReuseCss + " dashed", "full reuse", true});
  if (kind(WayKind::kFullPrefill))
    entries.push_back({Mark::kDot, kPrefillCss + " dashed", "full prefill", true});
  if (kind(WayKind::kSenderAlone))
    entries.push_back({Mark::kDot, kSenderCss + " dotted", "the sender alone", true, false});
  return chart_legend(entries);
}

// --- Heat maps

/// Dark to bright, evenly in lightness (five points of viridis).
std::string heat_colour(double t) {
  constexpr double kStops[5][3] = {{68, 1, 84}, {59, 82, 139}, {33, 145, 140}, {94, 201, 98}, {253, 231, 37}};
  double at = std::clamp(t, 0.0, 1.0) * 4;
  auto i = std::min<size_t>(3, static_cast<size_t>(at));
  double part = at - static_cast<double>(i);
  auto channel = [&](size_t c) {
    return static_cast<int>(std::lround(kStops[i][c] + part * (kStops[i + 1][c] - kStops[i][c])));
  };
  return fmt::format("#{:02x}{:02x}{:02x}", channel(0), channel(1), channel(2));
}

struct HeatMap {
  const char* id;
  std::string caption;
  bool bright_is_low = false, logarithmic = false;
  std::function<double(const WayScore&)> value;
  std::function<std::string(double)> text;
};

class HeatPicture {
 public:
  HeatPicture(const Quality& q, const HeatMap& map)
      : q_(q), map_(map), blocks_((q.layers + q.granularity - 1) / q.granularity) {
    cell_ = (kWidth - kLeft - 4) / static_cast<double>(blocks_);
    for (const WayScore& w : q.ways) {
      double v = shown(w) ? map.value(w) : kNone;
      if (!std::isfinite(v)) continue;
      low_ = std::min(low_, v);
      high_ = std::max(high_, v);
      constexpr double kCharacter = 5.3;  // of the cells' text, about
      numbers_ = numbers_ && static_cast<double>(map.text(v).size()) * kCharacter + 1 <= cell_;
    }
    // A distribution that is the same to the bit has no logarithm: it is as good as a millionth of the worst.
    if (map.logarithmic) low_ = std::max(low_, high_ * 1e-6);
  }

  std::string draw() const {
    if (high_ < low_) return "";
    double bottom = kTop + cell_ * static_cast<double>(blocks_);
    std::string out = fmt::format(
        "<svg class=\"chart\" viewBox=\"0 0 {0:g} {1:.1f}\" width=\"{0:g}\" height=\"{1:.1f}\" role=\"img\" "
        "aria-label=\"{2}\">\n<defs><pattern id=\"{3}\" width=\"6\" height=\"6\" "
        "patternUnits=\"userSpaceOnUse\">"
        "<path d=\"M-1,5 l2,2 M0,0 l6,6 M5,-1 l2,2\" stroke=\"#fff\" "
        "stroke-width=\"1.6\"/></pattern></defs>\n",
        kWidth, bottom + kBottom, escape_markup(map_.caption), map_.id);
    for (const WayScore& w : q_.ways)
      if (shown(w)) out += cell(w);
    return out + axes(bottom) + scale(bottom + 36) + "</svg>\n";
  }

 private:
  static constexpr double kWidth = 380, kLeft = 36, kTop = 6, kBottom = 66;

  bool shown(const WayScore& w) const {
    return is_group(w) && w.way.layers[0].first % q_.granularity == 0 && w.items > 0;
  }
  double part(double v) const {
    if (!(high_ > low_)) return 0.5;
    double t = map_.logarithmic ? std::log(std::max(v, low_) / low_) / std::log(high_ / low_)
                                : (v - low_) / (high_ - low_);
    return map_.bright_is_low ? 1 - t : t;
  }

  std::string cell(const WayScore& w) const {
    double v = map_.value(w);
    if (!std::isfinite(v)) return "";
    const LayerRange& range = w.way.layers[0];
    double x = kLeft + cell_ * static_cast<double>(range.last / q_.granularity);
    double y = kTop + cell_ * static_cast<double>(range.first / q_.granularity);
    auto rect = [&](const std::string& fill, const std::string& inside) {
      return fmt::format(
          "<rect x=\"{:.2f}\" y=\"{:.2f}\" width=\"{:.2f}\" height=\"{:.2f}\" fill=\"{}\">{}</rect>\n", x, y,
          cell_, cell_, fill, inside);
    };
    std::string title = fmt::format("<title>{}</title>", escape_markup(hover(w, w.score)));
    double t = part(v);
    std::string out = rect(heat_colour(t), title);
    if (w.dropped) out += rect(fmt::format("url(#{})", map_.id), title);
    if (numbers_ && !w.dropped)
      out += fmt::format(
          "<text class=\"m\" style=\"font-size:8.5px;fill:{};pointer-events:none\" x=\"{:.1f}\" "
          "y=\"{:.1f}\">{}</text>\n",
          t > 0.5 ? "#000" : "#fff", x + cell_ / 2, y + cell_ / 2 + 3.2, map_.text(v));
    return out;
  }

  std::string axes(double bottom) const {
    std::string out;
    auto every = static_cast<int64_t>(std::ceil(18 / cell_));
    for (int64_t b = 0; b < blocks_; b += every) {
      double at = cell_ * (static_cast<double>(b) + 0.5);
      out += fmt::format("<text class=\"m n\" x=\"{:.1f}\" y=\"{:.1f}\">{}</text>", kLeft + at, bottom + 12,
                         std::min((b + 1) * q_.granularity, q_.layers) - 1);
      out += fmt::format("<text class=\"r n\" x=\"{:.1f}\" y=\"{:.1f}\">{}</text>\n", kLeft - 4,
                         kTop + at + 4, b * q_.granularity);
    }
    double middle = (kTop + bottom) / 2;
    return out + fmt::format(
                     "<text class=\"m n\" x=\"{:.1f}\" y=\"{:.1f}\">last layer</text><text class=\"m n\" "
                     "transform=\"translate(10,{:.1f}) rotate(-90)\">first layer</text>\n",
                     (kLeft + kWidth) / 2, bottom + 26, middle);
  }

  std::string scale(double y) const {
    constexpr int kSteps = 24;
    constexpr double kSide = 60, kHeight = 10;
    double width = kWidth - kLeft - 2 * kSide;
    std::string out;
    for (int i = 0; i < kSteps; ++i) {
      double t = (i + 0.5) / kSteps;
      out += fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:g}\" fill=\"{}\"/>",
                         kLeft + kSide + width * i / kSteps, y, width / kSteps + 0.3, kHeight,
                         heat_colour(map_.bright_is_low ? 1 - t : t));
    }
    auto end = [&](double x, double v, const char* side) {
      return fmt::format("<text class=\"n{}\" x=\"{:.1f}\" y=\"{:.1f}\">{}</text>\n", side, x, y + 9,
                         map_.text(v));
    };
    return out + end(kLeft + kSide - 6, low_, " r") + end(kWidth - kSide + 6, high_, "");
  }

  const Quality& q_;
  const HeatMap& map_;
  int64_t blocks_;
  double cell_, low_ = std::numeric_limits<double>::infinity(), high_ = -low_;
  bool numbers_ = true;  // every cell has room for its own
};

// --- Sensitivities

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

// --- Histograms

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

std::string scores_section(const Quality& q) {
  auto average = [](const WayScore& w) { return w.score; };
  std::string label = "scores by recomputed layers";
  std::string out =
      "<h2>Score by recomputed layers</h2>\n<figure class=\"page\">" +
      ScoreChart(q, {.width = 1100, .height = 440, .left = 50}, average).draw(label) +
      "</figure>\n<figure class=\"phone\">" +
      ScoreChart(q, {.width = 360, .height = 340, .left = 40, .right = 6}, average).draw(label) +
      "</figure>\n" + score_legend(q);
  out +=
      "<p class=\"n\">Error bars: ± 1.96 standard errors, within 0 to 100. Groups of one size stand side by "
      "side by "
      "their first layer.</p>\n";
  if (q.tasks.size() < 2) return out;
  out += "<h3>By task</h3>\n<div class=\"row\">\n";
  for (size_t t = 0; t < q.tasks.size(); ++t) {
    auto score = [t](const WayScore& w) { return t < w.tasks.size() ? w.tasks[t] : Mean{kNone, kNone}; };
    std::string caption = fmt::format("{} ({})", q.tasks[t].name, q.tasks[t].metric);
    out += figure(caption,
                  ScoreChart(q, {.width = 380, .height = 280, .left = 40, .right = 6}, score).draw(caption));
  }
  return out + "</div>\n";
}

std::string heat_section(const Quality& q) {
  double least = std::numeric_limits<double>::infinity(), most = 0;
  bool dropped = false;
  for (const WayScore& w : q.ways) {
    if (!is_group(w)) continue;
    dropped = dropped || w.dropped;
    if (!std::isfinite(w.divergence.value)) continue;
    least = std::min(least, w.divergence.value);
    most = std::max(most, w.divergence.value);
  }
  const HeatMap maps[] = {
      {"hatch-score", "Score, points", false, false, [](const WayScore& w) { return w.score.value; },
       [](double v) { return fmt::format("{:.0f}", v); }},
      {"hatch-divergence", "Divergence from the full prefill, nats per token", true,
       least > 0 && most > 20 * least, [](const WayScore& w) { return w.divergence.value; },
       [](double v) { return fmt::format("{:.2g}", v); }}};
  std::string pictures;
  for (const HeatMap& map : maps)
    if (std::string svg = HeatPicture(q, map).draw(); !svg.empty()) pictures += figure(map.caption, svg);
  if (pictures.empty()) return "";
  return fmt::format(
      "<h2>Every group: first and last recomputed layer</h2>\n<p class=\"n\">Bright is good.{}</p>\n"
      "<div class=\"row two\">\n{}</div>\n",
      dropped ? " Hatched: dropped by racing, scored on fewer contexts." : "", pictures);
}

std::string sensitivity_section(const Quality& q) {
  std::vector<LayerBar> loss, divergence, gain;
  const WayScore* reuse = find_way(q, WayKind::kFullReuse);
  for (const WayScore& w : q.ways) {
    if (w.dropped || w.way.layers.size() != 1) continue;
    const LayerRange& range = w.way.layers[0];
    std::string title = hover(w, w.score);
    if (w.way.kind == WayKind::kReuseOnly) {
      if (std::isfinite(w.loss.value)) loss.push_back({range, w.loss, title});
      if (std::isfinite(w.divergence.value)) divergence.push_back({range, w.divergence, title});
    }
    // Pairs of a group and full reuse are not kept, so that the gain has no error.
    bool block = range.first % q.granularity == 0 && range.size() <= q.granularity;
    if (is_group(w) && block && range.size() < q.layers && reuse)
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

std::string gate_section(const Quality& q) {
  std::vector<Series> entropy, margin, deviation;
  auto add = [&](const WayScore* w, const std::string& css) {
    if (!w) return;
    if (!w->entropy.empty()) entropy.push_back({w->way.name(), css, &w->entropy});
    if (!w->margin.empty()) margin.push_back({w->way.name(), css, &w->margin});
  };
  add(find_way(q, WayKind::kFullPrefill), kPrefillCss);
  add(find_way(q, WayKind::kFullReuse), kReuseCss);
  add(best_group(q), kGroupCss);
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
