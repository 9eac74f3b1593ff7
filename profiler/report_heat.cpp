// Heat maps: every group by its first and last layer.
#include <algorithm>
#include <functional>

#include "profiler/report_figures_internal.h"

namespace ds::report {
namespace {

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

}  // namespace

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

}  // namespace ds::report
