#include <algorithm>
#include <cmath>

#include "plans/traits.h"
#include "runtime/trace/chart.h"
#include "runtime/trace/describe.h"
#include "runtime/trace/tracks.h"
#include "support/units.h"

namespace ds {
namespace {

constexpr double kBar = 26, kLane = 36,
                 kLaneGap = 18;         // below its bars a lane has room for the critical path
constexpr double kCharacter = 6.3;      // of the bars' 11-pixel text, about
constexpr double kNoteCharacter = 6.9;  // of 12-pixel text
constexpr size_t kMaxArrows = 80, kMaxArrowOps = 300;

struct Layout {
  double width, left, right;  // the plot lies between the margins
  int ticks;
  const char* ids;
};
constexpr Layout kWide = {1200, 104, 84, 10, "k"}, kNarrow = {360, 62, 6, 4, "n"};

/// Lines of at most `columns` characters, broken between words.
std::vector<std::string> wrap(std::string text, size_t columns) {
  std::vector<std::string> lines;
  while (text.size() > columns) {
    size_t at = text.rfind(' ', columns);
    if (at == std::string::npos || at == 0) break;
    lines.push_back(text.substr(0, at));
    text.erase(0, at + 1);
  }
  lines.push_back(std::move(text));
  return lines;
}

/// Ops of one kind that lie side by side and are too narrow to be told apart.
struct Group {
  const OpTraits* kind;
  std::vector<int32_t> ops;
  int64_t start, end;
  bool same_layer = true, same_chunk = true;
};

class Svg {
 public:
  Svg(const Picture& p, bool narrow, bool title)
      : p_(p), v_(p.variant), tracks_(make_tracks(p)), narrow_(narrow), at_(narrow ? kNarrow : kWide) {
    for (const Track& t : tracks_) end_ = std::max(end_, t.end);
    end_ = std::max<int64_t>(end_, 1);
    if (title) {
      y_ = 30;
      text(edge(), y_, escape_markup(picture_title(p_)), "t");
    }
    y_ += 26;
  }

  std::string draw() {
    tiling();
    for (const Track& t : tracks_) track(t);
    axis();
    legend();
    std::string out = fmt::format(
        R"x(<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1:.0f}" width="{0}" height="{1:.0f}" role="img" aria-label="{2}">
<style>text{{font:12px 'DejaVu Sans',Verdana,Arial,sans-serif;fill:#111}}.t{{font-size:16px;font-weight:bold}}.h{{font-weight:bold;font-size:13px}}.n{{fill:#555}}.i{{fill:#777;font-size:10.5px;font-style:italic}}.b{{font-size:11px;paint-order:stroke;stroke:#fff;stroke-width:3px;stroke-linejoin:round}}.m{{text-anchor:middle}}.r{{text-anchor:end}}.a{{fill:none;stroke:#222;stroke-width:1.1}}.s{{stroke:#999;stroke-width:0.6}}.c{{fill:none;stroke:#000;stroke-width:3.6}}.g{{stroke-dasharray:2 2}}.l{{fill:none;stroke:#000;stroke-width:1.6;stroke-dasharray:5 3}}.o{{fill:none;stroke:#000;stroke-width:1.8;stroke-dasharray:1.5 3}}</style>
<defs>)x",
        at_.width, y_ + 14, escape_markup(picture_title(p_)));
    for (auto [name, size] : {std::pair("arrow", 7), std::pair("thick", 10)}) {
      out += fmt::format(
          R"x(<marker id="{0}-{1}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="{2}" markerHeight="{2}" markerUnits="userSpaceOnUse" orient="auto"><path d="M0,1 L7,4 L0,7 z" fill="#222"/></marker>)x",
          at_.ids, name, size);
    }
    for (const OpTraits& s : op_traits()) {
      out += fmt::format(
          R"x(<pattern id="{}-{}" width="8" height="8" patternUnits="userSpaceOnUse"><rect width="8" height="8" fill="{}"/>{}</pattern>)x",
          at_.ids, s.short_name, s.fill, s.hatch);
    }
    return out + "</defs>\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n" + grid_ + body_ + front_ +
           "</svg>\n";
  }

 private:
  double edge() const { return narrow_ ? 2 : 20; }
  double plot() const { return at_.width - at_.left - at_.right; }
  double x(int64_t ns) const {
    return at_.left + plot() * static_cast<double>(ns) / static_cast<double>(end_);
  }

  template <typename... Args>
  void add(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(body_), format, std::forward<Args>(args)...);
    body_ += '\n';
  }
  void text(double at_x, double at_y, std::string_view content, std::string_view css) {
    add(R"x(<text x="{:.1f}" y="{:.1f}" class="{}">{}</text>)x", at_x, at_y, css, content);
  }

  /// Bold on the left; the note on the right, or below where there is no room beside. Leaves y_ below.
  void heading(const std::string& head, const std::string& note) {
    text(edge(), y_, escape_markup(head), "h");
    double right = at_.width - at_.right;
    double beside = right - edge() - 8.6 * static_cast<double>(head.size());
    if (!narrow_ && static_cast<double>(note.size()) * kNoteCharacter < beside) {
      text(right, y_, escape_markup(note), "r n");
    } else {
      for (const std::string& row : wrap(note, static_cast<size_t>((right - edge()) / kNoteCharacter)))
        text(edge(), y_ += 16, escape_markup(row), "n");
    }
    y_ += 12;
  }

  /// Who makes which K and V: layers to the right, chunks of tokens downward, a bar where E is sent.
  void tiling() {
    auto count = static_cast<int32_t>(p_.plan.shape.layers);
    std::string note =
        fmt::format("{}; recomputed: {} of {} layers", modes_text(v_), recomputed_layers(v_), count);
    bool cuts = std::any_of(v_.tiles.begin(), v_.tiles.end(), [](const Tile& t) { return t.cut; });
    if (cuts) note += "; thick bar: the sender's E enters";
    if (v_.chunks > 1) note += fmt::format("; {} chunks of tokens", v_.chunks);
    heading("tiling", note);
    double cell = std::min(26.0, plot() / count);
    double height = v_.chunks == 1 ? 20 : std::clamp(130.0 / v_.chunks, 0.5, 18.0);
    double top = y_, bottom = y_ + height * v_.chunks;
    text(at_.left - 8, top + std::min(14.0, height), v_.chunks > 1 ? "chunk 0" : "layers", "r");
    if (v_.chunks > 1 && height * v_.chunks > 24)
      text(at_.left - 8, bottom - 2, fmt::format("{}", v_.chunks - 1), "r");
    std::vector<int32_t> cut_layers;
    for (const Tile& t : v_.tiles) {
      double tx = at_.left + cell * t.first_layer, ty = top + height * t.first_chunk;
      double width = cell * (t.last_layer - t.first_layer + 1);
      double tall = height * (t.last_chunk - t.first_chunk + 1);
      add(R"x(<rect x="{:.2f}" y="{:.2f}" width="{:.2f}" height="{:.2f}" fill="url(#{}-{})" stroke="#333" stroke-width="0.8"><title>{} layers {} to {}, chunks {} to {}</title></rect>)x",
          tx, ty, width, tall, at_.ids, traits_of(t.mode).drawn_as, mode_name(t.mode), t.first_layer,
          t.last_layer, t.first_chunk, t.last_chunk);
      for (int32_t l = t.first_layer + 1; l <= t.last_layer && cell >= 3; ++l)
        add(R"x(<path d="M{:.2f},{:.2f} v{:.2f}" stroke="#333" stroke-width="0.3"/>)x", at_.left + cell * l,
            ty, tall);
      for (int32_t c = t.first_chunk + 1; c <= t.last_chunk && height >= 3; ++c)
        add(R"x(<path d="M{:.2f},{:.2f} h{:.2f}" stroke="#333" stroke-width="0.3"/>)x", tx, top + height * c,
            width);
      // A letter in every cell, or one in the tile.
      std::string letter(1, traits_of(t.mode).letter);
      if (cell >= 11 && height >= 11) {
        for (int32_t l = t.first_layer; l <= t.last_layer; ++l) {
          for (int32_t c = t.first_chunk; c <= t.last_chunk; ++c)
            text(at_.left + cell * (l + 0.5), top + height * (c + 0.5) + 4, letter, "b m");
        }
      } else if (width >= 10 && tall >= 11) {
        text(tx + width / 2, ty + tall / 2 + 4, letter, "b m");
      }
      if (!t.cut) continue;
      add(R"x(<path d="M{:.2f},{:.2f} v{:.2f}" stroke="#000" stroke-width="3.5"/>)x", tx, ty - 2, tall + 4);
      cut_layers.push_back(t.first_layer);
    }
    int32_t step = 1;
    while (cell * step < 22) step = step % 5 == 0 ? step * 2 : step == 2 ? 5 : step * 2;
    for (int32_t l = 0; l < count; l += step)
      text(at_.left + cell * (l + 0.5), bottom + 13, std::to_string(l), "m n");
    y_ = bottom + 13;
    if (cuts) {
      std::sort(cut_layers.begin(), cut_layers.end());
      double free = 0;
      y_ += 14;
      for (int32_t l : cut_layers) {
        double middle = std::max(at_.left + cell * l, edge() + 36);
        if (middle < free) continue;
        text(middle, y_, fmt::format("E of layer {}", l), "m n");
        free = middle + 84;
      }
    }
    y_ += 32;
    plot_top_ = y_;
  }

  void track(const Track& t) {
    bool bound = t.lower_bound > 0 && t.lower_bound <= t.end;
    std::string head = fmt::format("{} TTFT {}", t.name, format_ns(t.end));
    if (bound) head += ", lower bound " + format_ns(t.lower_bound);
    heading(head, t.note);
    std::vector<double> tops;
    for (const Lane& lane : t.lanes) {
      tops.push_back(y_);
      add(R"x(<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill="#fafafa" stroke="#bbb" stroke-width="0.8"/>)x",
          at_.left, y_, plot(), kLane);
      text(at_.left - 8, y_ + 21, escape_markup(lane.name), "r");
      if (!narrow_) {
        text(at_.left + plot() + 8, y_ + 15, fmt::format("{:.0f} %", percent(lane.busy, t.end)), "");
        text(at_.left + plot() + 8, y_ + 28, "busy", "n");
      }
      int64_t at = 0;
      for (const Bar& bar : lane.bars) {
        idle(at, bar.start, y_);
        at = std::max(at, bar.end);
      }
      idle(at, t.end, y_);
      for (const Group& g : groups(lane)) draw_group(g, y_);
      y_ += kLane + kLaneGap;
    }
    arrows(t, tops);
    critical(t, tops);
    double bottom = y_ - kLaneGap;
    if (bound) line(t.lower_bound, tops.front() - 4, bottom + 4, "o");
    line(t.end, tops.front() - 4, bottom + 4, "l");
    y_ += 22;
  }

  void line(int64_t ns, double from, double to, const char* css) {
    front_ += fmt::format("<path d=\"M{:.1f},{:.1f} V{:.1f}\" class=\"{}\"/>\n", x(ns), from, to, css);
  }

  void idle(int64_t from, int64_t to, double top) {
    if (to <= from) return;
    double width = x(to) - x(from);
    if (width < 1.5) return;
    add(R"x(<path d="M{:.1f},{:.1f} H{:.1f}" stroke="#aaa" stroke-width="1" stroke-dasharray="1 4"/>)x",
        x(from), top + 3 + kBar / 2, x(to));
    std::string label = "idle " + format_ns(to - from);
    if (width > static_cast<double>(label.size()) * 6 + 8) {
      add(R"x(<text x="{:.1f}" y="{:.1f}" class="i m" style="paint-order:stroke;stroke:#fafafa;stroke-width:4px">{}</text>)x",
          (x(from) + x(to)) / 2, top + kBar / 2 + 7, label);
    }
  }

  /// Wide bars stand alone. Narrow ones join: all chunks of a layer, all layers of a chunk, or whatever lies
  /// side by side until a range of layers can be read.
  std::vector<Group> groups(const Lane& lane) const {
    constexpr double kNarrowBar = 4, kNumber = 18, kRange = 36;
    std::vector<Group> out;
    bool open = false;
    for (const Bar& bar : lane.bars) {
      const Op& op = v_.ops[static_cast<size_t>(bar.op)];
      bool narrow = x(bar.end) - x(bar.start) < kNarrowBar;
      if (open && narrow && &traits_of(op) == out.back().kind && x(bar.start) - x(out.back().end) < 0.5) {
        Group& g = out.back();
        const Op& first = v_.ops[static_cast<size_t>(g.ops.front())];
        bool layer = g.same_layer && op.layer == first.layer;
        bool chunk =
            g.same_chunk && op.chunk == first.chunk && op.last_chunk == first.last_chunk && op.chunk >= 0;
        bool small = x(g.end) - x(g.start) < (g.same_layer ? kNumber : kRange);
        if (layer || chunk || small || op.layer == v_.ops[static_cast<size_t>(g.ops.back())].layer) {
          g.ops.push_back(bar.op);
          g.end = std::max(g.end, bar.end);
          g.same_layer = layer;
          g.same_chunk = chunk;
          continue;
        }
      }
      out.push_back({&traits_of(op), {bar.op}, bar.start, bar.end});
      open = narrow;
    }
    return out;
  }

  /// The longest first; none fits where the bar is narrow.
  std::vector<std::string> labels(const Group& g) const {
    const Op& op = v_.ops[static_cast<size_t>(g.ops.front())];
    std::string number = op.layer < 0 ? std::string() : std::to_string(op.layer);
    if (g.ops.size() == 1) {
      if (op.rows == Rows::kChunk && v_.chunks > 1) {
        number += fmt::format(".{}", op.chunk);
        if (op.last_chunk > op.chunk) number += fmt::format("-{}", op.last_chunk);
      }
      return {op_label(op, v_.chunks), number};
    }
    int32_t low = op.layer, high = op.layer;
    for (int32_t i : g.ops) {
      low = std::min(low, v_.ops[static_cast<size_t>(i)].layer);
      high = std::max(high, v_.ops[static_cast<size_t>(i)].layer);
    }
    if (low != high) number = fmt::format("{}-{}", low, high);
    if (g.same_chunk && v_.chunks > 1) number += fmt::format(".{}", op.chunk);
    bool transfer = is_transfer(op);
    std::string name(transfer ? g.kind->short_name : g.kind->name);
    return {transfer ? fmt::format("{}({})", name, number) : fmt::format("{} {}", name, number), number};
  }

  void draw_group(const Group& g, double top) {
    double width = std::max(x(g.end) - x(g.start), 0.6);
    std::string what =
        g.ops.size() == 1
            ? fmt::format("op {}: {}", g.ops[0], op_label(v_.ops[static_cast<size_t>(g.ops[0])], v_.chunks))
            : fmt::format("{} ops: {} to {}", g.ops.size(),
                          op_label(v_.ops[static_cast<size_t>(g.ops.front())], v_.chunks),
                          op_label(v_.ops[static_cast<size_t>(g.ops.back())], v_.chunks));
    add(R"x(<rect x="{:.2f}" y="{:.1f}" width="{:.2f}" height="{:.1f}" fill="url(#{}-{})" stroke="#333" stroke-width="{}"><title>{}, {} to {} ({})</title></rect>)x",
        x(g.start), top + 3, width, kBar, at_.ids, g.kind->short_name, width > 3 ? 0.7 : 0.25, what,
        format_ns(g.start), format_ns(g.end), format_ns(g.end - g.start));
    for (const std::string& shown : labels(g)) {
      if (shown.empty() || static_cast<double>(shown.size()) * kCharacter + 4 > width) continue;
      text(x(g.start) + width / 2, top + kBar / 2 + 7, shown, "b m");
      break;
    }
  }

  size_t stream(int32_t op) const { return static_cast<size_t>(v_.ops[static_cast<size_t>(op)].stream); }

  /// Every wait between streams, unless they would hide what they are to explain.
  bool arrows_fit() const {
    size_t count = 0;
    for (const Op& op : v_.ops) {
      for (int32_t w : op.waits) count += v_.ops[static_cast<size_t>(w)].stream != op.stream ? 1 : 0;
    }
    return count <= (narrow_ ? kMaxArrows / 4 : kMaxArrows) && v_.ops.size() <= kMaxArrowOps;
  }
  void arrows(const Track& t, const std::vector<double>& tops) {
    if (!arrows_fit()) return;
    for (size_t i = 0; i < v_.ops.size(); ++i) {
      for (int32_t w : v_.ops[i].waits) {
        const OpTime &from = t.times[static_cast<size_t>(w)], &to = t.times[i];
        size_t a = stream(w), b = stream(static_cast<int32_t>(i));
        if (a == b || from.start_ns < 0 || to.start_ns < 0) continue;
        double x0 = x(from.end_ns), x1 = x(to.start_ns);
        double y0 = tops[a] + (a < b ? 3 + kBar : 3), y1 = tops[b] + (a < b ? 3 : 3 + kBar);
        front_ += fmt::format(
            "<path class=\"{}\" d=\"M{:.1f},{:.1f} C{:.1f},{:.1f} {:.1f},{:.1f} {:.1f},{:.1f}\" "
            "marker-end=\"url(#{}-arrow)\"/>\n",
            to.start_ns - from.end_ns > end_ / 200 ? "a s" : "a", x0, y0, x0, y0 + (y1 - y0) * 0.6, x1,
            y1 - (y1 - y0) * 0.6, x1, y1, at_.ids);
      }
    }
  }

  /// A thick line under the ops that decide the end, dashed where nothing in the plan explains the time, and
  /// a thick arrow where the path changes streams.
  void critical(const Track& t, const std::vector<double>& tops) {
    auto level = [&](size_t s) { return tops[s] + kLane - 3.2; };
    auto flat = [&](int64_t from, int64_t to, size_t s, const char* css) {
      if (to > from)
        front_ +=
            fmt::format("<path class=\"{}\" d=\"M{:.2f},{:.1f} H{:.2f}\"/>\n", css, x(from), level(s), x(to));
    };
    int64_t at = 0, run = 0;  // the time so far, and since when the path has been on this stream
    for (size_t k = 0; k < t.critical.size(); ++k) {
      const CriticalStep& step = t.critical[k];
      size_t s = stream(step.op), before = k > 0 ? stream(t.critical[k - 1].op) : s;
      if (before != s) {
        flat(run, at, before, "c");
        bool down = before < s;
        front_ += fmt::format(
            "<path class=\"c\" style=\"stroke-width:2\" d=\"M{0:.1f},{1:.1f} V{2:.1f}\" "
            "marker-end=\"url(#{3}-thick)\"/>\n",
            x(at), level(before), down ? tops[s] + 3 : tops[s] + 3 + kBar, at_.ids);
        run = at;
      }
      if (step.gap_ns > 0) {
        flat(run, at, s, "c");
        flat(at, at + step.gap_ns, s, "c g");
        run = at + step.gap_ns;
      }
      at += step.gap_ns + step.time_ns;
    }
    if (!t.critical.empty()) flat(run, at, stream(t.critical.back().op), "c");
  }

  void axis() {
    double bottom = y_ - 26;
    int64_t step = std::max<int64_t>(1, std::llround(tick_step(static_cast<double>(end_), at_.ticks)));
    for (int64_t t = 0; t <= end_; t += step) {
      grid_ += fmt::format("<path d=\"M{0:.1f},{1:.1f} V{2:.1f}\" stroke=\"#ddd\" stroke-width=\"0.8\"/>\n",
                           x(t), plot_top_ + 6, bottom + 6);
      if (x(t) < at_.width - 24) text(x(t), bottom + 20, t == 0 ? std::string("0") : format_ns(t), "m n");
      if (end_ - t < step) break;
    }
    y_ = bottom + 48;
  }

  void legend() {
    double at = narrow_ ? edge() : at_.left;
    auto entry = [&](double sample, std::string_view words, auto&& draw) {
      double width = sample + 6 + 7.0 * static_cast<double>(words.size());
      if (at + width > at_.width - 4) {
        at = narrow_ ? edge() : at_.left;
        y_ += 22;
      }
      draw(at);
      text(at + sample + 6, y_, words, "");
      at += width + 18;
    };
    for (const OpTraits& traits : op_traits()) {
      bool used =
          std::any_of(v_.ops.begin(), v_.ops.end(), [&](const Op& op) { return &traits_of(op) == &traits; });
      if (!used) continue;
      entry(26, traits.legend, [&](double left) {
        add(R"x(<rect x="{:.1f}" y="{:.1f}" width="26" height="14" fill="url(#{}-{})" stroke="#333" stroke-width="0.7"/>)x",
            left, y_ - 11, at_.ids, traits.short_name);
      });
    }
    auto stroke = [&](std::string_view words, const char* path) {
      entry(26, words, [&](double left) {
        add(R"x(<path transform="translate({:.1f},{:.1f})" {}/>)x", left, y_ - 4, path);
      });
    };
    stroke("critical path (dashed: time not in the plan)", R"x(class="c" d="M0,0 h24")x");
    if (arrows_fit()) {
      entry(26, "waits for (grey: had long ended)", [&](double left) {
        add(R"x(<path class="a" d="M{:.1f},{:.1f} h24" marker-end="url(#{}-arrow)"/>)x", left, y_ - 4,
            at_.ids);
      });
    }
    stroke("end", R"x(class="l" d="M12,-9 v18")x");
    stroke("lower bound of any order", R"x(class="o" d="M12,-9 v18")x");
  }

  const Picture& p_;
  const Variant& v_;
  std::vector<Track> tracks_;
  bool narrow_;
  Layout at_;
  int64_t end_ = 0;
  double y_ = 0, plot_top_ = 0;
  std::string grid_, body_, front_;
};

}  // namespace

std::string draw_svg(const Picture& picture, bool narrow, bool title) {
  return Svg(picture, narrow, title).draw();
}

std::string draw_schedule_svg(const Picture& picture) { return draw_svg(picture, false, true); }

}  // namespace ds
