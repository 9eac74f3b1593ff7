#include "runtime/trace/draw.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>

#include "support/units.h"

namespace ds {
namespace {

std::string escaped(std::string_view text) {
  std::string out;
  for (char c : text) {
    switch (c) {
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '&':
        out += "&amp;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
  }
  return out;
}

/// Colour, and hatching on top of it, by kind of op. Lightness differs too, for prints in grey.
struct Style {
  const char* id;
  const char* legend;
  const char* fill;
  const char* hatch;  // content of an 8 x 8 pattern tile
};
constexpr std::array<Style, 7> kStyles = {{
    {"e", "transfer E (cut)", "#f2a65a",
     R"x(<path d="M-2,2 l4,-4 M0,8 l8,-8 M6,10 l4,-4" stroke="#8a4b08" stroke-width="1.6"/>)x"},
    {"kv", "transfer KV", "#bcdcf2", ""},
    {"embed", "embed", "#e4e4e4", R"x(<path d="M4,0 v8" stroke="#777" stroke-width="1"/>)x"},
    {"recompute", "recompute", "#e58a7a",
     R"x(<path d="M-2,6 l4,4 M0,0 l8,8 M6,-2 l4,4" stroke="#8c2a1a" stroke-width="1"/>)x"},
    {"suffix", "suffix", "#9fd3a8", R"x(<circle cx="4" cy="4" r="1.3" fill="#1f6b30"/>)x"},
    {"prefill", "prefill", "#c9b3e6",
     R"x(<path d="M0,0 l8,8 M8,0 l-8,8" stroke="#5e3a99" stroke-width="0.9"/>)x"},
    {"head", "head", "#444444", ""},
}};
const Style& style(OpKind kind) { return kStyles[static_cast<size_t>(kind)]; }

struct Bar {
  int32_t op;
  int64_t start, end;
};
struct Lane {
  std::string name;
  std::vector<Bar> bars;
  int64_t busy = 0;
};
/// One schedule: the predicted one or the measured one.
struct Track {
  std::string name, note;
  std::vector<Lane> lanes;
  std::vector<OpTime> times;  // by op; start -1: did not run
  int64_t end = 0;
};

std::string stream_name(const Variant& v, size_t s) {
  std::string name(stream_kind_name(v.streams[s].kind));
  size_t same = 0, number = 0;
  for (size_t k = 0; k < v.streams.size(); ++k) {
    if (v.streams[k].kind != v.streams[s].kind) continue;
    if (k < s) ++number;
    ++same;
  }
  return same > 1 ? fmt::format("{} {}", name, number) : name;
}

Track make_track(const Variant& v, std::string name, std::string note, std::vector<OpTime> times) {
  Track t{std::move(name), std::move(note), {}, std::move(times), 0};
  for (size_t s = 0; s < v.streams.size(); ++s) t.lanes.push_back({stream_name(v, s), {}, 0});
  for (size_t i = 0; i < v.ops.size(); ++i) {
    if (t.times[i].start_ns < 0) continue;
    Lane& lane = t.lanes[static_cast<size_t>(v.ops[i].stream)];
    lane.bars.push_back({static_cast<int32_t>(i), t.times[i].start_ns, t.times[i].end_ns});
    lane.busy += t.times[i].end_ns - t.times[i].start_ns;
    t.end = std::max(t.end, t.times[i].end_ns);
  }
  for (Lane& lane : t.lanes) {
    std::sort(lane.bars.begin(), lane.bars.end(),
              [](const Bar& a, const Bar& b) { return a.start < b.start; });
  }
  return t;
}

std::string point_text(const OperatingPoint& p, bool link) {
  std::string text =
      fmt::format("{} context + {} suffix tokens", format_count(p.tokens), format_count(p.suffix));
  return link ? text + " at " + format_rate(static_cast<double>(p.rate)) : text;
}

std::vector<Track> make_tracks(const Picture& p) {
  const Variant& v = p.variant;
  bool link = std::any_of(v.streams.begin(), v.streams.end(),
                          [](const Stream& s) { return s.kind == StreamKind::kLink; });
  OperatingPoint tuned = tuned_point(v), point = tuned;
  if (p.record != nullptr) {
    point = {p.record->context_tokens, p.record->suffix_tokens,
             p.record->link_rate > 0 ? p.record->link_rate : tuned.rate};
  }
  // A prediction for another length says little beside this run: scale it to the run's own point.
  std::vector<OpTime> predicted;
  std::string note = point_text(tuned, link);
  if (point != tuned) {
    if (Result<Simulation> sim = simulate_variant(p.plan, v, point); sim.ok()) {
      predicted = std::move(sim->ops);
      note = point_text(point, link) + ", scaled from " + note;
    }
  }
  if (predicted.empty()) {
    for (const Op& op : v.ops) predicted.push_back({op.start_ns, op.start_ns + op.duration_ns});
  }
  std::vector<Track> tracks;
  tracks.push_back(make_track(v, "predicted", note, std::move(predicted)));
  if (p.record != nullptr) {
    std::vector<OpTime> measured(v.ops.size(), OpTime{-1, -1});
    for (const OpRecord& r : p.record->ops) measured[static_cast<size_t>(r.op)] = {r.start_ns, r.end_ns};
    std::string backend = p.record->backend.empty() ? std::string() : " on " + p.record->backend;
    std::string rate =
        p.record->link_rate > 0 ? ", link " + format_rate(static_cast<double>(p.record->link_rate)) : "";
    note = fmt::format("{} context + {} suffix tokens{}{}, {}", format_count(p.record->context_tokens),
                       format_count(p.record->suffix_tokens), rate, backend, p.record->dtype);
    if (p.record->dropped > 0) note += fmt::format("; {} ops not recorded", p.record->dropped);
    tracks.push_back(make_track(v, "measured", note, std::move(measured)));
    tracks.back().end = std::max(tracks.back().end, p.record->ttft_ns);
  }
  return tracks;
}

std::string title(const Picture& p) {
  const std::string& sender = p.plan.sender.name;
  std::string pair = p.plan.receiver.name;
  if (!sender.empty() && cut_layers(p.plan).size() + p.plan.variants.size() > 0)
    pair = sender + " \u2192 " + pair;
  return fmt::format("{}: variant {} ({}, {})", pair, p.variant.name, p.variant.policy, p.variant.scheduler);
}

double percent(int64_t part, int64_t whole) {
  return whole > 0 ? 100.0 * static_cast<double>(part) / static_cast<double>(whole) : 0;
}

// --- SVG ------------------------------------------------------------------------------------------------

constexpr double kWidth = 1200, kLeft = 104, kRight = 84, kPlot = kWidth - kLeft - kRight;
constexpr double kLane = 34, kLaneGap = 18;
constexpr double kCharacter = 6.3;  // width of a character of the bars' 11-pixel text, about
constexpr size_t kMaxArrows = 80;

/// A step of 1, 2 or 5 times a power of ten that gives about `count` ticks.
int64_t tick_step(int64_t end, int count) {
  int64_t step = 1;
  for (int k = 0; end / step > count && step < INT64_MAX / 10; ++k)
    step = step / (k % 3 == 1 ? 2 : 1) * (k % 3 == 1 ? 5 : 2);
  return step;
}

class Svg {
 public:
  explicit Svg(const Picture& p) : p_(p), v_(p.variant), tracks_(make_tracks(p)) {
    for (const Track& t : tracks_) end_ = std::max(end_, t.end);
    end_ = std::max<int64_t>(end_, 1);
  }

  std::string draw() {
    y_ = 30;
    text(20, y_, escaped(title(p_)), "t");
    y_ += 26;
    layers();
    for (const Track& t : tracks_) track(t);
    axis();
    legend();
    std::string out = fmt::format(
        R"x(<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1:.0f}" width="{0}" height="{1:.0f}" role="img" aria-label="{2}">
<style>text{{font:12px 'DejaVu Sans',Verdana,Arial,sans-serif;fill:#111}}.t{{font-size:16px;font-weight:bold}}.h{{font-weight:bold;font-size:13px}}.n{{fill:#555}}.i{{fill:#888;font-size:10.5px;font-style:italic}}.b{{font-size:11px;paint-order:stroke;stroke:#fff;stroke-width:3px;stroke-linejoin:round}}.m{{text-anchor:middle}}.r{{text-anchor:end}}.a{{fill:none;stroke:#222;stroke-width:1.1}}.s{{stroke:#999;stroke-width:0.6}}</style>
<defs>)x",
        kWidth, y_ + 14, escaped(title(p_)));
    out +=
        R"x(<marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto"><path d="M0,1 L7,4 L0,7 z" fill="#333"/></marker>)x";
    for (const Style& s : kStyles) {
      out += fmt::format(
          R"x(<pattern id="k-{}" width="8" height="8" patternUnits="userSpaceOnUse"><rect width="8" height="8" fill="{}"/>{}</pattern>)x",
          s.id, s.fill, s.hatch);
    }
    return out + "</defs>\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n" + grid_ + body_ + arrows_ +
           "</svg>\n";
  }

 private:
  double x(int64_t ns) const { return kLeft + kPlot * static_cast<double>(ns) / static_cast<double>(end_); }

  template <typename... Args>
  void add(fmt::format_string<Args...> format, Args&&... args) {
    fmt::format_to(std::back_inserter(body_), format, std::forward<Args>(args)...);
    body_ += '\n';
  }
  void text(double at_x, double at_y, std::string_view content, std::string_view css) {
    add(R"x(<text x="{:.1f}" y="{:.1f}" class="{}">{}</text>)x", at_x, at_y, css, content);
  }

  /// The tiling: one cell per layer and row of chunks, L or R in it, a bar and an E under each cut.
  void layers() {
    auto count = static_cast<int32_t>(p_.plan.shape.layers);
    double cell = std::min(26.0, kPlot / count);
    double height = v_.chunks == 1 ? 20 : std::clamp(120.0 / v_.chunks, 3.0, 18.0);
    text(20, y_ + 14, "layers", "h");
    double bottom = y_ + height * v_.chunks;
    for (const Tile& t : v_.tiles) {
      double tx = kLeft + cell * t.first_layer, ty = y_ + height * t.first_chunk;
      bool r = t.mode == Mode::kRecompute;
      add(R"x(<rect x="{:.2f}" y="{:.2f}" width="{:.2f}" height="{:.2f}" fill="url(#k-{})" stroke="#333" stroke-width="0.8"/>)x",
          tx, ty, cell * (t.last_layer - t.first_layer + 1), height * (t.last_chunk - t.first_chunk + 1),
          r ? "recompute" : "kv");
      for (int32_t l = t.first_layer; l <= t.last_layer; ++l) {
        double cx = kLeft + cell * l;
        if (l > t.first_layer) {
          add(R"x(<path d="M{:.2f},{:.2f} v{:.2f}" stroke="#333" stroke-width="0.3"/>)x", cx, ty,
              height * (t.last_chunk - t.first_chunk + 1));
        }
        for (int32_t c = t.first_chunk; c <= t.last_chunk && cell >= 11 && height >= 11; ++c) {
          text(cx + cell / 2, y_ + height * (c + 0.5) + 4, r ? "R" : "L", "b m");
        }
      }
      if (t.cut) {
        double below = ty + height * (t.last_chunk - t.first_chunk + 1);
        add(R"x(<path d="M{:.2f},{:.2f} v{:.2f}" stroke="#000" stroke-width="3.5"/>)x", tx, ty - 3,
            below - ty + 6);
        if (t.last_chunk == v_.chunks - 1)
          text(tx, bottom + 27, fmt::format("E of layer {}", t.first_layer), "m n");
      }
    }
    int32_t step = 1;
    while (cell * step < 22) step = step % 5 == 0 ? step * 2 : step == 2 ? 5 : step * 2;
    for (int32_t l = 0; l < count; l += step)
      text(kLeft + cell * (l + 0.5), bottom + 13, std::to_string(l), "m n");
    text(kLeft + kPlot, 30,
         fmt::format(
             "L load, R recompute: {} of {} layers{}", recomputed_layers(v_), count,
             v_.chunks > 1 ? fmt::format("; {} chunks, from top to bottom", v_.chunks) : std::string()),
         "n r");
    y_ = bottom + 50;
    plot_top_ = y_;
  }

  void track(const Track& t) {
    text(20, y_, t.name, "h");
    text(kLeft, y_, escaped(t.note), "n");
    y_ += 12;
    std::vector<double> tops;
    for (const Lane& lane : t.lanes) {
      tops.push_back(y_);
      add(R"x(<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill="#fafafa" stroke="#bbb" stroke-width="0.8"/>)x",
          kLeft, y_, kPlot, kLane);
      text(kLeft - 8, y_ + 21, escaped(lane.name), "r");
      text(kLeft + kPlot + 8, y_ + 15, fmt::format("{:.0f} %", percent(lane.busy, t.end)), "");
      text(kLeft + kPlot + 8, y_ + 28, "busy", "n");
      int64_t at = 0;
      for (const Bar& bar : lane.bars) {
        idle(at, bar.start, y_);
        draw_bar(bar, y_);
        at = std::max(at, bar.end);
      }
      idle(at, t.end, y_);
      y_ += kLane + kLaneGap;
    }
    arrows(t, tops);
    double line = x(t.end);
    add(R"x(<path d="M{0:.1f},{1:.1f} V{2:.1f}" stroke="#000" stroke-width="1.6" stroke-dasharray="5 3"/>)x",
        line, tops.front() - 6, y_ - kLaneGap + 6);
    // At the right edge, not at the line: the note on the left may be long.
    text(kLeft + kPlot, tops.front() - 12, fmt::format("{} TTFT {}", t.name, format_ns(t.end)), "r h");
    y_ += 22;
  }

  void idle(int64_t from, int64_t to, double top) {
    if (to <= from) return;
    double width = x(to) - x(from);
    if (width < 1.5) return;
    add(R"x(<path d="M{:.1f},{:.1f} H{:.1f}" stroke="#aaa" stroke-width="1" stroke-dasharray="1 4"/>)x",
        x(from), top + kLane / 2, x(to));
    std::string label = "idle " + format_ns(to - from);
    if (width > static_cast<double>(label.size()) * 6 + 8) {
      add(R"x(<text x="{:.1f}" y="{:.1f}" class="i m" style="paint-order:stroke;stroke:#fafafa;stroke-width:4px">{}</text>)x",
          (x(from) + x(to)) / 2, top + kLane / 2 + 4, label);
    }
  }

  void draw_bar(const Bar& bar, double top) {
    const Op& op = v_.ops[static_cast<size_t>(bar.op)];
    std::string label = op_label(op, v_.chunks);
    double width = std::max(x(bar.end) - x(bar.start), 0.6);
    add(R"x(<rect x="{:.2f}" y="{:.1f}" width="{:.2f}" height="{:.1f}" fill="url(#k-{})" stroke="#333" stroke-width="{}"><title>op {}: {}, {} to {} ({})</title></rect>)x",
        x(bar.start), top + 3, width, kLane - 6, style(op.kind).id, width > 3 ? 0.7 : 0.25, bar.op, label,
        format_ns(bar.start), format_ns(bar.end), format_ns(bar.end - bar.start));
    std::string number = op.layer < 0 ? std::string() : std::to_string(op.layer);
    if (op.rows == Rows::kChunk && v_.chunks > 1) number += fmt::format(".{}", op.chunk);
    for (const std::string& shown : {label, number}) {
      if (shown.empty() || static_cast<double>(shown.size()) * kCharacter + 4 > width) continue;
      text(x(bar.start) + width / 2, top + kLane / 2 + 4, shown, "b m");
      break;
    }
  }

  void arrows(const Track& t, const std::vector<double>& tops) {
    size_t count = 0;
    for (const Op& op : v_.ops) {
      for (int32_t w : op.waits) count += v_.ops[static_cast<size_t>(w)].stream != op.stream ? 1 : 0;
    }
    if (count > kMaxArrows) return;
    for (size_t i = 0; i < v_.ops.size(); ++i) {
      for (int32_t w : v_.ops[i].waits) {
        const OpTime &from = t.times[static_cast<size_t>(w)], &to = t.times[i];
        auto a = static_cast<size_t>(v_.ops[static_cast<size_t>(w)].stream),
             b = static_cast<size_t>(v_.ops[i].stream);
        if (a == b || from.start_ns < 0 || to.start_ns < 0) continue;
        double x0 = x(from.end_ns), x1 = x(to.start_ns);
        double y0 = tops[a] + (a < b ? kLane - 3 : 3), y1 = tops[b] + (a < b ? 3 : kLane - 3);
        arrows_ += fmt::format(
            "<path class=\"{}\" d=\"M{:.1f},{:.1f} C{:.1f},{:.1f} {:.1f},{:.1f} {:.1f},{:.1f}\" "
            "marker-end=\"url(#arrow)\"/>\n",
            to.start_ns - from.end_ns > end_ / 200 ? "a s" : "a", x0, y0, x0, y0 + (y1 - y0) * 0.6, x1,
            y1 - (y1 - y0) * 0.6, x1, y1);
      }
    }
  }

  void axis() {
    double bottom = y_ - 26;
    int64_t step = tick_step(end_, 10);
    for (int64_t t = 0; t <= end_; t += step) {
      grid_ += fmt::format("<path d=\"M{0:.1f},{1:.1f} V{2:.1f}\" stroke=\"#ddd\" stroke-width=\"0.8\"/>\n",
                           x(t), plot_top_ + 6, bottom + 6);
      text(x(t), bottom + 20, t == 0 ? std::string("0") : format_ns(t), "m n");
      if (end_ - t < step) break;
    }
    y_ = bottom + 48;
  }

  void legend() {
    double at = kLeft;
    for (size_t k = 0; k < kStyles.size(); ++k) {
      bool used = std::any_of(v_.ops.begin(), v_.ops.end(),
                              [&](const Op& op) { return static_cast<size_t>(op.kind) == k; });
      if (!used) continue;
      add(R"x(<rect x="{:.1f}" y="{:.1f}" width="26" height="14" fill="url(#k-{})" stroke="#333" stroke-width="0.7"/>)x",
          at, y_ - 11, kStyles[k].id);
      text(at + 32, y_, kStyles[k].legend, "");
      at += 58 + 7.2 * static_cast<double>(std::string_view(kStyles[k].legend).size());
    }
    add(R"x(<path class="a" d="M{:.1f},{:.1f} h24" marker-end="url(#arrow)"/>)x", at, y_ - 4);
    text(at + 32, y_, "waits for (grey: had long ended)", "");
  }

  const Picture& p_;
  const Variant& v_;
  std::vector<Track> tracks_;
  int64_t end_ = 0;
  double y_ = 0, plot_top_ = 0;
  std::string grid_, body_, arrows_;
};

}  // namespace

Status check_record(const Variant& variant, const RunRecord& record, const std::string& origin) {
  if (record.variant != variant.name) {
    return error(Code::kMismatch,
                 "run record '{}' is of variant '{}', expected '{}'; give the plan that was run", origin,
                 record.variant, variant.name);
  }
  for (const OpRecord& r : record.ops) {
    if (r.op < 0 || static_cast<size_t>(r.op) >= variant.ops.size()) {
      return error(Code::kMismatch,
                   "run record '{}' has op {} ({}), but variant '{}' has {} ops; give the plan that was run",
                   origin, r.op, r.label, variant.name, variant.ops.size());
    }
    std::string expected = op_label(variant.ops[static_cast<size_t>(r.op)], variant.chunks);
    if (r.label != expected) {
      return error(Code::kMismatch,
                   "run record '{}' says that op {} is '{}', expected '{}' as in variant '{}'; give the plan "
                   "that was run",
                   origin, r.op, r.label, expected, variant.name);
    }
  }
  return ok_status();
}

std::string draw_schedule_svg(const Picture& picture) { return Svg(picture).draw(); }

std::string draw_schedule_html(const Picture& p) {
  std::vector<Track> tracks = make_tracks(p);
  const Variant& v = p.variant;
  std::string out;
  auto add = [&](std::string_view text) { out += text; };
  auto cell = [](std::string_view tag, std::string_view content) {
    return fmt::format("<{0}>{1}</{0}>", tag, content);
  };
  add(fmt::format(
      R"x(<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{0}</title>
<style>
body{{font:14px/1.45 'DejaVu Sans',Verdana,Arial,sans-serif;margin:24px auto;max-width:1240px;padding:0 16px;color:#111;background:#fff}}
h1{{font-size:20px}} h2{{font-size:16px;margin-top:28px}} svg{{max-width:100%;height:auto;display:block}}
table{{border-collapse:collapse;margin:8px 0}} th,td{{padding:3px 12px;border-bottom:1px solid #ddd;text-align:right}}
th{{border-bottom:2px solid #555}} td:first-child,th:first-child{{text-align:left}} dt{{float:left;width:9em;color:#555}} dd{{margin:0 0 2px 9em}}
summary{{cursor:pointer;font-weight:bold;margin-top:20px}}
</style></head><body>
<h1>{0}</h1>
)x",
      escaped(title(p))));
  add("<dl>");
  auto item = [&](std::string_view name, const std::string& value) {
    add(fmt::format("<dt>{}</dt><dd>{}</dd>", name, escaped(value)));
  };
  item("shape", fmt::format("{}, {} layers, {}", p.plan.shape.family, p.plan.shape.layers, p.plan.dtype));
  if (!std::isnan(v.promise.quality_loss))
    item("quality loss", fmt::format("{:.4g} points promised", v.promise.quality_loss));
  for (const Track& t : tracks) item(t.name + " TTFT", format_ns(t.end) + " (" + t.note + ")");
  if (p.record != nullptr) {
    if (!p.record->cache_status.empty()) {
      item("cache",
           p.record->cache_status + (p.record->cache_reason.empty() ? "" : ": " + p.record->cache_reason));
    }
    item("loaded", format_bytes(p.record->bytes_loaded));
  }
  add("</dl>\n<figure style=\"margin:0\">\n");
  add(draw_schedule_svg(p));
  add("</figure>\n<h2>Where the time went</h2>\n<table><tr><th>stream</th>");
  for (const Track& t : tracks)
    add(fmt::format("<th>{0}, busy</th><th>idle</th><th>share busy</th>", t.name));
  add("</tr>\n");
  for (size_t s = 0; s < v.streams.size(); ++s) {
    add("<tr>" + cell("td", escaped(tracks[0].lanes[s].name)));
    for (const Track& t : tracks) {
      add(cell("td", format_ns(t.lanes[s].busy)) +
          cell("td", format_ns(std::max<int64_t>(0, t.end - t.lanes[s].busy))) +
          cell("td", fmt::format("{:.1f} %", percent(t.lanes[s].busy, t.end))));
    }
    add("</tr>\n");
  }
  add("</table>\n<table><tr><th>kind of op</th><th>ops</th>");
  for (const Track& t : tracks) add(fmt::format("<th>{}</th>", t.name));
  if (tracks.size() > 1) add("<th>measured / predicted</th>");
  add("</tr>\n");
  for (size_t k = 0; k < kStyles.size(); ++k) {
    int64_t count = 0;
    std::vector<int64_t> sum(tracks.size(), 0);
    for (size_t i = 0; i < v.ops.size(); ++i) {
      if (static_cast<size_t>(v.ops[i].kind) != k) continue;
      ++count;
      for (size_t t = 0; t < tracks.size(); ++t)
        sum[t] += tracks[t].times[i].end_ns - tracks[t].times[i].start_ns;
    }
    if (count == 0) continue;
    add("<tr>" + cell("td", kStyles[k].legend) + cell("td", std::to_string(count)));
    for (int64_t s : sum) add(cell("td", format_ns(s)));
    if (tracks.size() > 1) {
      add(cell("td", sum[0] > 0
                         ? fmt::format("{:.2f}", static_cast<double>(sum[1]) / static_cast<double>(sum[0]))
                         : "&ndash;"));
    }
    add("</tr>\n");
  }
  add(
      fmt::format("</table>\n<details><summary>All {} "
                  "ops</summary>\n<table><tr><th>op</th><th>stream</th><th>waits</th>",
                  v.ops.size()));
  for (const Track& t : tracks) add(fmt::format("<th>{} start</th><th>duration</th>", t.name));
  add("</tr>\n");
  for (size_t i = 0; i < v.ops.size(); ++i) {
    add("<tr>" + cell("td", fmt::format("{} {}", i, op_label(v.ops[i], v.chunks))) +
        cell("td", tracks[0].lanes[static_cast<size_t>(v.ops[i].stream)].name) +
        cell("td", fmt::format("{}", fmt::join(v.ops[i].waits, ", "))));
    for (const Track& t : tracks) {
      bool ran = t.times[i].start_ns >= 0;
      add(cell("td", ran ? format_ns(t.times[i].start_ns) : "&ndash;") +
          cell("td", ran ? format_ns(t.times[i].end_ns - t.times[i].start_ns) : "&ndash;"));
    }
    add("</tr>\n");
  }
  add("</table></details>\n</body></html>\n");
  return out;
}

std::string draw_schedule_chrome(const Picture& p) {
  using Json = nlohmann::ordered_json;
  const Variant& v = p.variant;
  std::vector<Track> tracks = make_tracks(p);
  Json events = Json::array();
  auto us = [](int64_t ns) { return static_cast<double>(ns) / 1000.0; };
  auto meta = [&](const char* what, size_t pid, size_t tid, const char* key, const Json& value) {
    events.push_back({{"name", what}, {"ph", "M"}, {"pid", pid}, {"tid", tid}, {"args", {{key, value}}}});
  };
  int64_t flow = 0;
  for (size_t t = 0; t < tracks.size(); ++t) {
    const Track& track = tracks[t];
    meta("process_name", t + 1, 0, "name", track.name + " (" + track.note + ")");
    meta("process_sort_index", t + 1, 0, "sort_index", t);
    for (size_t s = 0; s < track.lanes.size(); ++s) {
      meta("thread_name", t + 1, s + 1, "name", track.lanes[s].name);
      meta("thread_sort_index", t + 1, s + 1, "sort_index", s);
    }
    for (size_t i = 0; i < v.ops.size(); ++i) {
      const Op& op = v.ops[i];
      const OpTime& time = track.times[i];
      if (time.start_ns < 0) continue;
      auto tid = static_cast<size_t>(op.stream) + 1;
      events.push_back(
          {{"name", op_label(op, v.chunks)},
           {"cat", op_kind_name(op.kind)},
           {"ph", "X"},
           {"pid", t + 1},
           {"tid", tid},
           {"ts", us(time.start_ns)},
           {"dur", us(time.end_ns - time.start_ns)},
           {"args", {{"op", i}, {"layer", op.layer}, {"chunk", op.chunk}, {"waits", op.waits}}}});
      for (int32_t w : op.waits) {
        const Op& source = v.ops[static_cast<size_t>(w)];
        const OpTime& from = track.times[static_cast<size_t>(w)];
        if (source.stream == op.stream || from.start_ns < 0) continue;
        // The arrow leaves from inside its op (its last nanosecond), or it would belong to none.
        Json start = {{"name", "wait"},
                      {"cat", "wait"},
                      {"ph", "s"},
                      {"id", ++flow},
                      {"pid", t + 1},
                      {"tid", source.stream + 1},
                      {"ts", us(std::max(from.start_ns, from.end_ns - 1))}};
        Json end = {{"name", "wait"}, {"cat", "wait"}, {"ph", "f"},  {"bp", "e"},
                    {"id", flow},     {"pid", t + 1},  {"tid", tid}, {"ts", us(time.start_ns)}};
        events.push_back(std::move(start));
        events.push_back(std::move(end));
      }
    }
  }
  Json trace = {{"displayTimeUnit", "ms"},
                {"otherData",
                 {{"plan", title(p)}, {"variant", v.name}, {"policy", v.policy}, {"scheduler", v.scheduler}}},
                {"traceEvents", std::move(events)}};
  return trace.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

}  // namespace ds
