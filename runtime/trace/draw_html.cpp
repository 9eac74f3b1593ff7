#include <algorithm>
#include <cmath>

#include "plans/traits.h"
#include "runtime/trace/describe.h"
#include "runtime/trace/tracks.h"
#include "support/units.h"

namespace ds {
namespace {

/// What the critical path spends where; the rows add up to the TTFT.
std::string critical_table(const Variant& v, const std::vector<Track>& tracks) {
  std::vector<CriticalShares> shares;
  for (const Track& t : tracks) shares.push_back(critical_shares(v, t.critical));
  std::string out = "<h2>What the end waited for</h2>\n<div class=\"s\"><table><tr><th>critical path</th>";
  for (const Track& t : tracks) out += fmt::format("<th>{}</th><th>share</th>", t.name);
  out += "</tr>\n";
  auto row = [&](std::string_view name, auto&& value) {
    std::string text = "<tr>" + html_cell("td", name);
    int64_t most = 0;
    for (size_t t = 0; t < tracks.size(); ++t) {
      int64_t ns = value(t);
      most = std::max(most, ns);
      text += html_cell("td", format_ns(ns)) +
              html_cell("td", fmt::format("{:.1f} %", percent(ns, tracks[t].end)));
    }
    if (most > 0) out += text + "</tr>\n";
  };
  for (StreamKind kind : kPlanStreams)
    row(stream_kind_name(kind), [&](size_t t) { return shares[t].stream_ns[static_cast<size_t>(kind)]; });
  row("not in the plan", [&](size_t t) { return shares[t].gap_ns; });
  row("after the last op", [&](size_t t) { return tracks[t].end - shares[t].total_ns(); });
  return out + "</table></div>\n";
}

std::string alternatives_table(const Variant& v) {
  std::string out =
      "<h2>What else could be had</h2>\n<div class=\"s\"><table><tr><th>choice</th><th>TTFT</th><th>of this "
      "one's</th><th>quality loss</th><th>compute</th></tr>\n";
  for (const Alternative& a : v.alternatives) {
    out += "<tr>" + html_cell("td", escape_markup(a.what)) + html_cell("td", format_ns(a.ttft_ns)) +
           html_cell("td", fmt::format("{:.0f} %", percent(a.ttft_ns, v.promise.ttft_ns))) +
           html_cell("td", loss_text(a.quality_loss)) + html_cell("td", format_ns(a.compute_ns)) + "</tr>\n";
  }
  return out + "</table></div>\n";
}

}  // namespace

std::string draw_schedule_html(const Picture& p) {
  std::vector<Track> tracks = make_tracks(p);
  const Variant& v = p.variant;
  std::string out;
  auto add = [&](std::string_view text) { out += text; };
  add(html_begin(picture_title(p), Theme::kLight));  // the picture itself is on white paper
  add("<dl>");
  auto item = [&](std::string_view name, const std::string& value) {
    add(fmt::format("<dt>{}</dt><dd>{}</dd>", name, escape_markup(value)));
  };
  item("shape", fmt::format("{}, {} layers, {}", p.plan.shape.family, p.plan.shape.layers, p.plan.dtype));
  if (!std::isnan(v.promise.quality_loss)) item("quality loss", promised_loss_text(v.promise) + " promised");
  if (!std::isnan(v.promise.divergence))
    item("divergence", promised_divergence_text(v.promise) + " promised");
  if (!v.why.empty()) item("chosen by", v.why);
  if (v.regret >= 0) item("regret", regret_text(v.regret) + " at worst in its ranges");
  for (const Track& t : tracks) item(t.name + " TTFT", format_ns(t.end) + " (" + t.note + ")");
  if (p.record != nullptr) {
    if (!p.record->choice.empty()) item("chosen because", p.record->choice);
    if (!p.record->cache_status.empty()) {
      item("cache",
           p.record->cache_status + (p.record->cache_reason.empty() ? "" : ": " + p.record->cache_reason));
    }
    if (!p.record->cache_shorter.empty())
      item("reused", fmt::format("the context's first {} tokens; {}", p.record->context_tokens,
                                 p.record->cache_shorter));
    if (p.record->gate) item("gate", p.record->gate->text());
    item("loaded", format_bytes(p.record->bytes_loaded));
  }
  add("</dl>\n<figure class=\"page\">\n" + draw_svg(p, false, false) + "</figure>\n");
  add("<figure class=\"phone\">\n" + draw_svg(p, true, false) + "</figure>\n");
  add(critical_table(v, tracks));
  if (!v.alternatives.empty()) add(alternatives_table(v));
  add("<h2>Where the time went</h2>\n<div class=\"s\"><table><tr><th>stream</th>");
  for (const Track& t : tracks)
    add(fmt::format("<th>{0}, busy</th><th>idle</th><th>share busy</th>", t.name));
  add("</tr>\n");
  for (size_t s = 0; s < v.streams.size(); ++s) {
    add("<tr>" + html_cell("td", escape_markup(tracks[0].lanes[s].name)));
    for (const Track& t : tracks) {
      add(html_cell("td", format_ns(t.lanes[s].busy)) +
          html_cell("td", format_ns(std::max<int64_t>(0, t.end - t.lanes[s].busy))) +
          html_cell("td", fmt::format("{:.1f} %", percent(t.lanes[s].busy, t.end))));
    }
    add("</tr>\n");
  }
  add("</table></div>\n<div class=\"s\"><table><tr><th>kind of op</th><th>ops</th>");
  for (const Track& t : tracks) add(fmt::format("<th>{}</th>", t.name));
  if (tracks.size() > 1) add("<th>measured / predicted</th>");
  add("</tr>\n");
  for (const OpTraits& traits : op_traits()) {
    int64_t count = 0;
    std::vector<int64_t> sum(tracks.size(), 0);
    for (size_t i = 0; i < v.ops.size(); ++i) {
      if (&traits_of(v.ops[i]) != &traits) continue;
      ++count;
      for (size_t t = 0; t < tracks.size(); ++t)
        sum[t] += tracks[t].times[i].end_ns - tracks[t].times[i].start_ns;
    }
    if (count == 0) continue;
    add("<tr>" + html_cell("td", traits.legend) + html_cell("td", std::to_string(count)));
    for (int64_t s : sum) add(html_cell("td", format_ns(s)));
    if (tracks.size() > 1) {
      add(html_cell(
          "td", sum[0] > 0 ? fmt::format("{:.2f}", static_cast<double>(sum[1]) / static_cast<double>(sum[0]))
                           : "–"));
    }
    add("</tr>\n");
  }
  add(
      fmt::format("</table></div>\n<details><summary>All {} ops (● on the critical path)</summary>\n"
                  "<div class=\"s\"><table><tr><th>op</th><th>stream</th><th>waits</th>",
                  v.ops.size()));
  for (const Track& t : tracks) add(fmt::format("<th>{} start</th><th>duration</th>", t.name));
  add("</tr>\n");
  auto on_path = [](const Track& t, size_t i) {
    // The path is in the order of its ops' indices.
    return std::binary_search(t.critical.begin(), t.critical.end(), CriticalStep{static_cast<int32_t>(i)},
                              [](const CriticalStep& a, const CriticalStep& b) { return a.op < b.op; });
  };
  for (size_t i = 0; i < v.ops.size(); ++i) {
    add("<tr>" + html_cell("td", fmt::format("{} {}", i, op_label(v.ops[i], v.chunks))) +
        html_cell("td", tracks[0].lanes[static_cast<size_t>(v.ops[i].stream)].name) +
        html_cell("td", fmt::format("{}", fmt::join(v.ops[i].waits, ", "))));
    for (const Track& t : tracks) {
      bool ran = t.times[i].start_ns >= 0;
      add(html_cell("td", ran ? (on_path(t, i) ? "● " : "") + format_ns(t.times[i].start_ns) : "–") +
          html_cell("td", ran ? format_ns(t.times[i].end_ns - t.times[i].start_ns) : "–"));
    }
    add("</tr>\n");
  }
  add("</table></div></details>\n");
  return out + std::string(kHtmlEnd);
}

}  // namespace ds
