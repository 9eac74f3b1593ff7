// Scores over recomputed layers: all ways without maps, and all with them beside their controls.
#include <algorithm>
#include <functional>
#include <map>

#include "profiler/report_figures_internal.h"

namespace ds::report {
namespace {

/// The average over the tasks, or one task's score.
using ScoreOf = std::function<Mean(const WayScore&)>;

double bar_low(const Mean& m) {
  return std::isfinite(m.standard_error) ? std::max(0.0, m.value - kBar * m.standard_error) : m.value;
}
double bar_high(const Mean& m) {
  return std::isfinite(m.standard_error) ? std::min(100.0, m.value + kBar * m.standard_error) : m.value;
}

/// From the lowest score to the highest of what a chart shows, error bars included where they are drawn.
struct ScoreRange {
  double low = 100, high = 0;
  void add(const Mean& m, bool bar) {
    if (!std::isfinite(m.value)) return;
    low = std::min(low, bar ? bar_low(m) : m.value);
    high = std::max(high, bar ? bar_high(m) : m.value);
  }
  /// Rounded to steps, with some room.
  std::pair<double, double> axis() const {
    if (low > high) return {0, 100};
    double step = tick_step(std::max(high - low, 1.0), 6);
    double from = std::max(0.0, std::floor((low - 0.2 * step) / step) * step);
    double to = std::min(100.0, std::ceil((high + 0.2 * step) / step) * step);
    return {from, std::max(to, from + step)};
  }
};

/// Scores over recomputed layers: what all such charts share.
class ScoreFrame {
 public:
  ScoreFrame(const Quality& q, const Chart::Layout& layout, ScoreOf score, const ScoreRange& range)
      : q_(q),
        score_(std::move(score)),
        small_(layout.width < 500),
        column_((layout.width - layout.left - layout.right - beside()) /
                (static_cast<double>(q.layers) + 0.5)),
        chart_(layout, x_axis(), y_axis(range)) {}

 protected:
  /// Pixels left of 0, where restored layers stand with their labels.
  double beside() const { return small_ ? 16 : 58; }
  ChartAxis x_axis() const {
    ChartAxis x{"recomputed layers", -beside() / column_, static_cast<double>(q_.layers) + 0.5};
    x.ticks = linear_ticks(0, static_cast<double>(q_.layers), column_ > 22 ? static_cast<int>(q_.layers) : 8);
    std::erase_if(x.ticks, [](double v) { return v != std::floor(v); });
    return x;
  }
  static ChartAxis y_axis(const ScoreRange& range) {
    auto [low, high] = range.axis();
    return {"score, points", low, high};
  }
  int64_t size(const WayScore& w) const { return w.way.recomputed(q_.layers); }
  static bool among(const WayList& list, const WayScore& w) {
    return std::find(list.begin(), list.end(), &w) != list.end();
  }
  void level(const Way& way, const std::string& css) {
    if (const WayScore* w = q_.find(way)) chart_.level(score_(*w).value, css);
  }
  void levels() {
    level(Way::full_prefill(), kPrefillCss + " dashed");
    level(Way::full_reuse(), kReuseCss + " dashed");
    level(Way::sender_alone(), kSenderCss + " dotted");
  }
  void with_bar(Mark shape, double x, const WayScore& w, double r, const std::string& css) {
    Mean m = score_(w);
    chart_.error_bar(x, bar_low(m), bar_high(m), css);
    chart_.mark(shape, x, m.value, r, css, hover(w, m));
  }
  void ends() {
    if (const WayScore* w = q_.find(Way::full_reuse())) with_bar(Mark::kDot, 0, *w, 3.4, kReuseCss);
    if (const WayScore* w = q_.find(Way::full_prefill()))
      with_bar(Mark::kDot, static_cast<double>(q_.layers), *w, 3.4, kPrefillCss);
  }

  /// In its column from left to right by first layer, so that groups of one size can be told apart.
  double spread(const WayScore& w) const {
    constexpr double kSpread = 0.64;
    auto places = static_cast<double>(q_.layers - size(w));
    auto first = static_cast<double>(w.way.layers[0].first);
    return static_cast<double>(size(w)) + (places > 0 ? kSpread * (first / places - 0.5) : 0);
  }

  void scattered(bool aligned, Mark shape, const std::string& css) {
    std::map<int64_t, std::vector<double>> by_size;
    for (const WayScore& w : q_.ways)
      // First and last layers are no random set.
      if (w.way.is_scattered() && w.way.layers[0].first > 0 && (aligned ? is_aligned(w) : is_plain(w)) &&
          !w.dropped && std::isfinite(score_(w).value))
        by_size[size(w)].push_back(score_(w).value);
    for (auto& [layers, v] : by_size) {
      auto [low, high] = std::minmax_element(v.begin(), v.end());
      double sum = 0;
      for (double s : v) sum += s;
      double mean = sum / static_cast<double>(v.size());
      chart_.error_bar(static_cast<double>(layers), *low, *high, css);
      chart_.mark(
          shape, static_cast<double>(layers), mean, small_ ? 2.4 : 3.2, css,
          fmt::format("{} scattered sets of {} layers{}: mean {}, from {} to {}", v.size(), layers,
                      aligned ? ", aligned" : "", points_text(mean), points_text(*low), points_text(*high)));
    }
  }

  /// Nothing is recomputed: all at 0, with as many labels as there is room for.
  void restored(WayList list, Mark shape, const std::string& css) {
    constexpr double kLabel = 11;
    const double at = -(small_ ? 9 : 16) / column_;
    std::sort(list.begin(), list.end(),
              [&](const WayScore* a, const WayScore* b) { return score_(*a).value > score_(*b).value; });
    double last = -kLabel;
    for (const WayScore* w : list) {
      Mean m = score_(*w);
      if (!std::isfinite(m.value)) continue;
      chart_.mark(shape, at, m.value, small_ ? 2.4 : 3.2, css, hover(*w, m));
      double y = chart_.y_pixel(m.value);
      if (small_ || y - last < kLabel) continue;
      chart_.text(at, m.value, -6, 4, format_layer_set(w->way.layers), "tiny r f " + css);
      last = y;
    }
  }

  /// Without maps and with them; the latter, where it stands beside the former, a little to the right.
  void pareto(bool beside_other) {
    line_through(pareto_, 0, kGroupCss);
    for (const WayScore* w : pareto_) {
      bool no_cut = w->way.layers[0].first == 0;
      with_bar(no_cut ? Mark::kRing : Mark::kDot, static_cast<double>(size(*w)), *w, small_ ? 3 : 4,
               no_cut ? kNoCutCss : kGroupCss);
    }
    labels(pareto_, 0, pareto_aligned_.empty() ? Side::kAbove : Side::kBelow, "");
    if (!pareto_aligned_.empty()) aligned_curve(beside_other ? 5 / column_ : 0);
  }
  void aligned_curve(double shift) {
    line_through(pareto_aligned_, shift, kAlignedCss);
    for (const WayScore* w : pareto_aligned_)
      with_bar(Mark::kDownTriangle, static_cast<double>(size(*w)) + shift, *w, small_ ? 3 : 4, kAlignedCss);
    labels(pareto_aligned_, shift, Side::kAbove, " f " + kAlignedCss);
  }
  /// From full reuse, unless the list starts at its place, to the full prefill.
  void line_through(const WayList& list, double shift, const std::string& css) {
    Chart::Points points;
    const WayScore* reuse = q_.find(Way::full_reuse());
    if (reuse && (list.empty() || size(*list[0]) > 0)) points.emplace_back(0, score_(*reuse).value);
    for (const WayScore* w : list)
      points.emplace_back(static_cast<double>(size(*w)) + shift, score_(*w).value);
    if (const WayScore* w = q_.find(Way::full_prefill())) points.emplace_back(q_.layers, score_(*w).value);
    chart_.line(points, css);
  }
  enum class Side : uint8_t { kAbove, kBelow };
  void labels(const WayList& list, double shift, Side side, const std::string& css) {
    constexpr double kLabel = 34, kTopEdge = 26;  // pixels
    double last = -kLabel;
    for (const WayScore* w : list) {
      double x = static_cast<double>(size(*w)) + shift;
      if (small_ || chart_.x_pixel(x) - last < kLabel) continue;
      bool below = side == Side::kBelow || (is_plain(*w) && chart_.y_pixel(score_(*w).value) < kTopEdge);
      bool right = side == Side::kBelow || w->way.restores();
      chart_.text(x, score_(*w).value, right ? 6 : -6,
                  below          ? 14
                  : is_plain(*w) ? -8
                                 : -11,
                  format_layer_set(w->way.layers), (right ? "tiny" : "tiny r") + css);
      last = chart_.x_pixel(x);
    }
  }

  const Quality& q_;
  ScoreOf score_;
  WayList pareto_ = pareto_groups(q_), pareto_aligned_ = report::pareto_aligned(q_);
  bool small_;     // for a phone, or one of many
  double column_;  // pixels
  Chart chart_;
};

/// All ways without maps, and the best with them.
class ScoreChart : ScoreFrame {
 public:
  ScoreChart(const Quality& q, const Chart::Layout& layout, const ScoreOf& score)
      : ScoreFrame(q, layout, score, range(q, score)) {}

  std::string draw(std::string_view label) {
    levels();
    worst();
    groups();
    scattered(false, Mark::kSquare, kScatteredCss);
    selects();
    restored(restores(q_, false), Mark::kTriangle, kRestoreCss);
    ends();
    pareto(true);
    return chart_.svg(label);
  }

 private:
  static ScoreRange range(const Quality& q, const ScoreOf& score) {
    ScoreRange range;
    for (const WayScore& w : q.ways)
      if (!w.dropped && w.way.control != Control::kReuseOnly && w.way.control != Control::kNoContext &&
          w.way.control != Control::kOtherDocument && is_plain(w))
        range.add(score(w), !is_group(w));
    for (const WayScore* w : report::pareto_aligned(q)) range.add(score(*w), true);
    return range;
  }

  void worst() {
    std::map<int64_t, double> least;
    for (const WayScore& w : q_.ways) {
      double v = score_(w).value;
      if (!is_plain_group(w) || w.dropped || !std::isfinite(v)) continue;
      auto [at, fresh] = least.try_emplace(size(w), v);
      if (!fresh) at->second = std::min(at->second, v);
    }
    Chart::Points points;
    for (auto [layers, v] : least) points.emplace_back(layers, v);
    chart_.line(points, kWorstCss + " thin dotted");
  }

  void groups() {
    constexpr int64_t kMostBars = 150;
    bool bars = std::count_if(q_.ways.begin(), q_.ways.end(), is_plain_group) <= kMostBars;
    for (const WayScore& w : q_.ways) {
      if (!is_plain_group(w) || among(pareto_, w)) continue;
      Mean m = score_(w);
      bool no_cut = w.way.layers[0].first == 0;
      const std::string& css = no_cut ? kNoCutCss : kGroupCss;
      if (bars && !w.dropped) chart_.error_bar(spread(w), bar_low(m), bar_high(m), css + " ghost");
      Mark shape = w.dropped ? Mark::kCross : no_cut ? Mark::kRing : Mark::kDot;
      chart_.mark(shape, spread(w), m.value, small_ ? 2 : 2.6, css + (no_cut && !w.dropped ? "" : " faint"),
                  hover(w, m));
    }
  }

  void selects() {
    Chart::Points select;
    for (const WayScore& w : q_.ways)
      if (w.way.selects() && !w.dropped && std::isfinite(score_(w).value))
        select.emplace_back(w.way.share * static_cast<double>(q_.layers), score_(w).value);
    std::sort(select.begin(), select.end());
    chart_.line(select, kSelectCss + " thin");
    for (const WayScore& w : q_.ways)
      if (w.way.selects() && !w.dropped)
        with_bar(Mark::kDiamond, w.way.share * static_cast<double>(q_.layers), w, small_ ? 2.6 : 3.6,
                 kSelectCss);
  }
};

void add_levels(const Quality& q, std::vector<LegendEntry>& entries) {
  if (q.find(Way::full_reuse())) entries.push_back({Mark::kDot, kReuseCss + " dashed", "full reuse", true});
  if (q.find(Way::full_prefill()))
    entries.push_back({Mark::kDot, kPrefillCss + " dashed", "full prefill", true});
  if (q.find(Way::sender_alone()))
    entries.push_back({Mark::kDot, kSenderCss + " dotted", "the sender alone", true, false});
}

/// All ways with maps, their controls, and the best without.
class MapsChart : ScoreFrame {
 public:
  MapsChart(const Quality& q, const Chart::Layout& layout) : ScoreFrame(q, layout, average, range(q)) {}

  std::string draw(std::string_view label) {
    levels();
    for (size_t i = 0; i < controls_.size(); ++i)
      control(controls_[i], kControlCss[i % 2], kControlMark[i % 2]);
    scattered(true, Mark::kSquare, kScatteredCss);
    groups();
    restored(restores(q_, true), Mark::kDownTriangle, kAlignedCss);
    ends();
    best_groups();
    pareto(false);
    return chart_.svg(label);
  }

  std::string legend() const {
    auto any = [&](auto is) { return std::any_of(q_.ways.begin(), q_.ways.end(), is); };
    std::vector<LegendEntry> entries;
    if (!pareto_aligned_.empty())
      entries.push_back({Mark::kDownTriangle, kAlignedCss,
                         "with maps: the best of its size, better than all smaller", true});
    if (!best_.empty())
      entries.push_back(
          {Mark::kDownTriangle, kAlignedCss + " thin dashed", "the best group with maps of each size", true});
    if (any([](const WayScore& w) { return is_aligned_group(w) && !w.dropped; }))
      entries.push_back({Mark::kDownTriangle, kAlignedCss + " faint", "a group with maps"});
    if (any([](const WayScore& w) { return is_aligned_group(w) && w.dropped; }))
      entries.push_back({Mark::kCross, kAlignedCss + " faint", "dropped by racing"});
    if (!restores(q_, true).empty())
      entries.push_back({Mark::kDownTriangle, kAlignedCss, "left of 0: restored layers with maps"});
    if (!pareto_.empty())
      entries.push_back({Mark::kDot, kGroupCss, "without maps: the best of its size", true});
    for (size_t i = 0; i < controls_.size(); ++i)
      entries.push_back({kControlMark[i % 2], std::string(kControlCss[i % 2]) + " dashed",
                         fmt::format("a control: the best of each size with {} maps", control_words(i)),
                         true});
    if (std::any_of(q_.ways.begin(), q_.ways.end(),
                    [](const WayScore& w) { return w.way.is_scattered() && is_aligned(w); }))
      entries.push_back(
          {Mark::kSquare, kScatteredCss, "a control: scattered layers with maps: mean, lowest to highest"});
    add_levels(q_, entries);
    return chart_legend(entries);
  }

 private:
  static Mean average(const WayScore& w) { return w.score; }
  static ScoreRange range(const Quality& q) {
    ScoreRange range;
    for (const WayScore& w : q.ways) {
      bool end = w.way.is_full_reuse() || w.way.is_full_prefill();
      bool shown = end || is_aligned(w) || w.way.control == Control::kSenderAlone;
      if (shown && !w.dropped) range.add(w.score, end);
    }
    for (const MapsUsed& maps : controls_of(q))
      for (auto [size, w] : best_of_sizes(q, ways_with(q, maps))) range.add(w->score, true);
    for (const WayList& list : {pareto_groups(q), report::pareto_aligned(q)})
      for (const WayScore* w : list) range.add(w->score, true);
    return range;
  }
  static std::vector<MapsUsed> controls_of(const Quality& q) {
    std::vector<MapsUsed> all = all_maps(q);
    std::erase_if(all, [](const MapsUsed& m) { return m.control.empty(); });
    return all;
  }
  std::string control_words(size_t i) const {
    const std::string& control = controls_[i].control;
    return control.starts_with("pair ") ? control.substr(5) + "'s" : control;
  }

  /// A line where sizes follow each other: controls may be of a few sizes only.
  void control(const MapsUsed& maps, const std::string& css, Mark shape) {
    Chart::Points points;
    auto best = best_of_sizes(q_, ways_with(q_, maps));
    for (auto [layers, w] : best) {
      auto x = static_cast<double>(layers);
      if (!points.empty() && x - points.back().first > static_cast<double>(q_.granularity))
        points.emplace_back(kNone, kNone);
      points.emplace_back(x, w->score.value);
    }
    chart_.line(points, css + " dashed thin");
    for (auto [layers, w] : best) {
      auto x = static_cast<double>(layers);
      chart_.error_bar(x, bar_low(w->score), bar_high(w->score), css);
      chart_.mark(shape, x, w->score.value, small_ ? 2 : 2.8, css, "a control: " + hover(*w, w->score));
    }
  }

  void groups() {
    for (const WayScore& w : q_.ways)
      if (is_aligned_group(w) && !among(best_, w) && !among(pareto_aligned_, w))
        chart_.mark(w.dropped ? Mark::kCross : Mark::kDownTriangle, spread(w), w.score.value,
                    small_ ? 2 : 2.6, kAlignedCss + " faint", hover(w, w.score));
  }

  void best_groups() {
    Chart::Points points;
    for (const WayScore* w : best_) {
      points.emplace_back(size(*w), w->score.value);
      if (!among(pareto_aligned_, *w))
        with_bar(Mark::kDownTriangle, static_cast<double>(size(*w)), *w, small_ ? 2 : 2.6, kAlignedCss);
    }
    chart_.line(points, kAlignedCss + " thin dashed");
  }

  const std::string kControlCss[2] = {kWorstCss, kSelectCss};
  static constexpr Mark kControlMark[2] = {Mark::kDiamond, Mark::kRing};
  static WayList best_groups_of(const Quality& q) {
    WayList out;
    for (auto [size, w] : best_of_sizes(q, aligned_groups(q))) out.push_back(w);
    return out;
  }
  std::vector<MapsUsed> controls_ = controls_of(q_);
  WayList best_ = best_groups_of(q_);
};

constexpr Chart::Layout kNarrow{.width = 360, .height = 340, .left = 40, .right = 6};
/// Labels of ways with maps stand above their curve, which is near the top.
Chart::Layout wide_layout(const Quality& q) {
  return {.width = 1100, .height = 440, .left = 50, .top = pareto_aligned(q).empty() ? 14.0 : 30.0};
}

std::string score_legend(const Quality& q) {
  auto any = [&](auto is) { return std::any_of(q.ways.begin(), q.ways.end(), is); };
  auto shown = [&](bool (Way::*is)() const) {
    return any([&](const WayScore& w) { return (w.way.*is)() && is_plain(w) && !w.dropped; });
  };
  std::vector<LegendEntry> entries;
  if (!pareto_groups(q).empty())
    entries.push_back({Mark::kDot, kGroupCss, "the best group of its size, better than all smaller", true});
  if (!pareto_aligned(q).empty())
    entries.push_back({Mark::kDownTriangle, kAlignedCss,
                       "the same with maps (aligned cuts); at 0: restored layers with maps", true});
  if (any([](const WayScore& w) { return is_plain_group(w) && w.way.layers[0].first > 0; }))
    entries.push_back({Mark::kDot, kGroupCss + " faint", "a contiguous group"});
  if (any([](const WayScore& w) { return is_plain_group(w) && w.way.layers[0].first == 0; }))
    entries.push_back({Mark::kRing, kNoCutCss, "a group from layer 0: needs no cut"});
  if (any([](const WayScore& w) { return is_plain_group(w) && w.dropped; }))
    entries.push_back({Mark::kCross, kGroupCss + " faint", "dropped by racing"});
  if (shown(&Way::is_group))
    entries.push_back({Mark::kDot, kWorstCss + " dotted",
                       any([](const WayScore& w) { return is_plain_group(w) && w.dropped; })
                           ? "the worst group not dropped"
                           : "the worst group",
                       true, false});
  if (shown(&Way::is_scattered))
    entries.push_back({Mark::kSquare, kScatteredCss, "scattered layers: mean, lowest to highest"});
  if (shown(&Way::selects))
    entries.push_back({Mark::kDiamond, kSelectCss,
                       "select (CacheBlend): x is share × layers, equal compute but for layer 0", true});
  if (shown(&Way::restores))
    entries.push_back(
        {Mark::kTriangle, kRestoreCss, "restore (HCache), by restored layers: recomputes none"});
  add_levels(q, entries);
  return chart_legend(entries);
}

}  // namespace

std::string scores_section(const Quality& q) {
  auto average = [](const WayScore& w) { return w.score; };
  std::string label = "scores by recomputed layers";
  std::string out = "<h2>Score by recomputed layers</h2>\n<figure class=\"page\">" +
                    ScoreChart(q, wide_layout(q), average).draw(label) +
                    "</figure>\n<figure class=\"phone\">" + ScoreChart(q, kNarrow, average).draw(label) +
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

std::string maps_chart(const Quality& q) {
  std::string label = "scores by recomputed layers, with maps";
  MapsChart wide(q, wide_layout(q)), narrow(q, kNarrow);
  return "<figure class=\"page\">" + wide.draw(label) + "</figure>\n<figure class=\"phone\">" +
         narrow.draw(label) + "</figure>\n" + wide.legend();
}

}  // namespace ds::report
