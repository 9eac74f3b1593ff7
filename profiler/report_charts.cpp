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
                  kRestoreCss = colour_class(6), kSelectCss = colour_class(7), kAlignedCss = colour_class(8),
                  kWorstCss = colour_class(9);

bool is_plain_group(const WayScore& w) { return is_group(w) && is_plain(w); }
bool is_aligned_group(const WayScore& w) { return is_group(w) && is_aligned(w); }

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
  void level(WayKind kind, const std::string& css) {
    if (const WayScore* w = find_way(q_, kind)) chart_.level(score_(*w).value, css);
  }
  void levels() {
    level(WayKind::kFullPrefill, kPrefillCss + " dashed");
    level(WayKind::kFullReuse, kReuseCss + " dashed");
    level(WayKind::kSenderAlone, kSenderCss + " dotted");
  }
  void with_bar(Mark shape, double x, const WayScore& w, double r, const std::string& css) {
    Mean m = score_(w);
    chart_.error_bar(x, bar_low(m), bar_high(m), css);
    chart_.mark(shape, x, m.value, r, css, hover(w, m));
  }
  void ends() {
    if (const WayScore* w = find_way(q_, WayKind::kFullReuse)) with_bar(Mark::kDot, 0, *w, 3.4, kReuseCss);
    if (const WayScore* w = find_way(q_, WayKind::kFullPrefill))
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
      if (w.way.kind == WayKind::kScattered && w.way.layers[0].first > 0 &&
          (aligned ? is_aligned(w) : is_plain(w)) && !w.dropped && std::isfinite(score_(w).value))
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
    const WayScore* reuse = find_way(q_, WayKind::kFullReuse);
    if (reuse && (list.empty() || size(*list[0]) > 0)) points.emplace_back(0, score_(*reuse).value);
    for (const WayScore* w : list)
      points.emplace_back(static_cast<double>(size(*w)) + shift, score_(*w).value);
    if (const WayScore* w = find_way(q_, WayKind::kFullPrefill))
      points.emplace_back(q_.layers, score_(*w).value);
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
      bool right = side == Side::kBelow || w->way.kind == WayKind::kRestore;
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
      if (!w.dropped && w.way.kind != WayKind::kReuseOnly && w.way.kind != WayKind::kNoContext && is_plain(w))
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
      if (w.way.kind == WayKind::kSelect && !w.dropped && std::isfinite(score_(w).value))
        select.emplace_back(w.way.share * static_cast<double>(q_.layers), score_(w).value);
    std::sort(select.begin(), select.end());
    chart_.line(select, kSelectCss + " thin");
    for (const WayScore& w : q_.ways)
      if (w.way.kind == WayKind::kSelect && !w.dropped)
        with_bar(Mark::kDiamond, w.way.share * static_cast<double>(q_.layers), w, small_ ? 2.6 : 3.6,
                 kSelectCss);
  }
};

void add_levels(const Quality& q, std::vector<LegendEntry>& entries) {
  if (find_way(q, WayKind::kFullReuse))
    entries.push_back({Mark::kDot, kReuseCss + " dashed", "full reuse", true});
  if (find_way(q, WayKind::kFullPrefill))
    entries.push_back({Mark::kDot, kPrefillCss + " dashed", "full prefill", true});
  if (find_way(q, WayKind::kSenderAlone))
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
                    [](const WayScore& w) { return w.way.kind == WayKind::kScattered && is_aligned(w); }))
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
      bool end = w.way.kind == WayKind::kFullReuse || w.way.kind == WayKind::kFullPrefill;
      bool shown = end || is_aligned(w) || w.way.kind == WayKind::kSenderAlone;
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
  auto kind = [&](WayKind k) {
    return any([&](const WayScore& w) { return w.way.kind == k && is_plain(w) && !w.dropped; });
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
  if (kind(WayKind::kGroup))
    entries.push_back({Mark::kDot, kWorstCss + " dotted",
                       any([](const WayScore& w) { return is_plain_group(w) && w.dropped; })
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
  add_levels(q, entries);
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
  std::string id, caption;
  bool bright_is_low = false, logarithmic = false;
  std::function<double(const WayScore&)> value;
  std::function<std::string(double)> text;
  MapForm form = MapForm::kNone;                                      // of the groups that are shown
  double low = std::numeric_limits<double>::infinity(), high = -low;  // what the scale must hold
};

class HeatPicture {
 public:
  HeatPicture(const Quality& q, const HeatMap& map)
      : q_(q), map_(map), blocks_((q.layers + q.granularity - 1) / q.granularity) {
    cell_ = (kWidth - kLeft - 4) / static_cast<double>(blocks_);
    low_ = map.low;
    high_ = map.high;
    for (const WayScore& w : q.ways) {
      double v = shown(w) ? map.value(w) : kNone;
      if (!std::isfinite(v)) continue;
      any_ = true;
      low_ = std::min(low_, v);
      high_ = std::max(high_, v);
      constexpr double kCharacter = 5.3;  // of the cells' text, about
      numbers_ = numbers_ && static_cast<double>(map.text(v).size()) * kCharacter + 1 <= cell_;
    }
    // A distribution that is the same to the bit has no logarithm: it is as good as a millionth of the worst.
    if (map.logarithmic) low_ = std::max(low_, high_ * 1e-6);
  }

  std::string draw() const {
    if (!any_) return "";
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
    return is_group(w) && maps_used(w.way) == MapsUsed{map_.form} &&
           w.way.layers[0].first % q_.granularity == 0 && w.items > 0;
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
  double cell_, low_, high_;
  bool any_ = false, numbers_ = true;  // every cell has room for its own
};

/// Score and divergence of every group, on scales that all forms of maps share.
std::vector<HeatMap> shared_heat_maps(const Quality& q) {
  HeatMap score{"hatch-score",
                "Score, points",
                false,
                false,
                [](const WayScore& w) { return w.score.value; },
                [](double v) { return fmt::format("{:.0f}", v); }};
  HeatMap divergence{"hatch-divergence",
                     "Divergence from the full prefill, nats per token",
                     true,
                     false,
                     [](const WayScore& w) { return w.divergence.value; },
                     [](double v) { return fmt::format("{:.2g}", v); }};
  std::vector<HeatMap> maps{std::move(score), std::move(divergence)};
  for (HeatMap& map : maps)
    for (const WayScore& w : q.ways) {
      double v = is_plain_group(w) || is_aligned_group(w) ? map.value(w) : kNone;
      if (!std::isfinite(v)) continue;
      map.low = std::min(map.low, v);
      map.high = std::max(map.high, v);
    }
  maps[1].logarithmic = maps[1].low > 0 && maps[1].high > 20 * maps[1].low;
  return maps;
}

/// What maps of a form win over the same group without them.
HeatMap won_map(const Quality& q) {
  auto won = [&q](const WayScore& w) {
    const WayScore* plain = q.find(w.way.aligned(MapForm::kNone));
    return plain && !w.dropped ? Twins{plain, &w}.won().value : kNone;
  };
  // Never "-0".
  auto text = [](double v) { return fmt::format("{:.0f}", std::round(v) + 0.0); };
  return {"hatch-won", "Won by the maps, points of loss", false, false, won, text};
}

std::string heat_row(const Quality& q, std::vector<HeatMap> maps, MapForm form) {
  std::string pictures;
  for (HeatMap& map : maps) {
    map.form = form;
    if (form != MapForm::kNone) map.id += fmt::format("-{}", map_form_name(form));
    if (std::string svg = HeatPicture(q, map).draw(); !svg.empty()) pictures += figure(map.caption, svg);
  }
  return pictures.empty()
             ? ""
             : fmt::format("<div class=\"row{}\">\n{}</div>\n", maps.size() > 2 ? "" : " two", pictures);
}

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

std::string heat_section(const Quality& q) {
  const std::vector<HeatMap> maps = shared_heat_maps(q);
  std::string rows = heat_row(q, maps, MapForm::kNone);
  for (const MapsUsed& used : all_maps(q)) {
    if (!used.control.empty()) continue;
    std::vector<HeatMap> with = maps;
    with.push_back(won_map(q));
    std::string row = heat_row(q, std::move(with), used.form);
    if (!row.empty()) rows += fmt::format("<h3>With {} maps</h3>\n{}", used.name(), row);
  }
  if (rows.empty()) return "";
  bool dropped = std::any_of(q.ways.begin(), q.ways.end(), [](const WayScore& w) {
    return w.dropped && (is_plain_group(w) || is_aligned_group(w));
  });
  return fmt::format(
      "<h2>Every group: first and last recomputed layer</h2>\n<p class=\"n\">Bright is good.{}</p>\n{}",
      dropped ? " Hatched: dropped by racing, scored on fewer contexts." : "", rows);
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
