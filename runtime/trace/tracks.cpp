#include "runtime/trace/tracks.h"

#include <algorithm>

#include "runtime/trace/describe.h"
#include "support/units.h"

namespace ds {

std::vector<std::string> stream_names(const Variant& v) {
  std::vector<std::string> names;
  for (size_t s = 0; s < v.streams.size(); ++s) {
    auto same = [&](const Stream& other) { return other.kind == v.streams[s].kind; };
    auto at = v.streams.begin() + static_cast<ptrdiff_t>(s);
    std::string name(stream_kind_name(v.streams[s].kind));
    if (std::count_if(v.streams.begin(), v.streams.end(), same) > 1)
      name += fmt::format(" {}", std::count_if(v.streams.begin(), at, same));
    names.push_back(std::move(name));
  }
  return names;
}

double percent(int64_t part, int64_t whole) {
  return whole > 0 ? 100.0 * static_cast<double>(part) / static_cast<double>(whole) : 0;
}

std::string picture_title(const Picture& p) {
  const std::string& sender = p.plan.sender.name;
  std::string pair = p.plan.receiver.name;
  if (!sender.empty() && cut_layers(p.plan).size() + p.plan.variants.size() > 0)
    pair = sender + " \u2192 " + pair;
  std::string aligned = alignment_text(p.variant);
  return fmt::format("{}: variant {} ({}, {}){}{}", pair, p.variant.name, p.variant.policy,
                     p.variant.scheduler, aligned.empty() ? "" : ", ", aligned);
}

namespace {

Track make_track(const Variant& v, std::string name, std::string note, std::vector<OpTime> times) {
  Track t;
  t.name = std::move(name);
  t.note = std::move(note);
  t.critical = critical_path(v, times);
  t.times = std::move(times);
  for (std::string& stream : stream_names(v)) t.lanes.push_back({std::move(stream), {}, 0});
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

}  // namespace

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
  int64_t lower_bound = v.lower_bound_ns;
  if (point != tuned) {
    if (Result<Simulation> sim = simulate_variant(p.plan, v, point); sim.ok()) {
      predicted = std::move(sim->ops);
      lower_bound = sim->lower_bound_ns;
      note = point_text(point, link) + ", scaled from " + note;
    }
  }
  if (predicted.empty()) {
    for (const Op& op : v.ops) predicted.push_back({op.start_ns, op.start_ns + op.duration_ns});
  }
  std::vector<Track> tracks;
  tracks.push_back(make_track(v, "predicted", note, std::move(predicted)));
  tracks.back().lower_bound = lower_bound;
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

}  // namespace ds
