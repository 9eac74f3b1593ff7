#include <algorithm>
#include <nlohmann/json.hpp>

#include "runtime/trace/tracks.h"

namespace ds {

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
    std::vector<bool> critical(v.ops.size(), false);
    for (const CriticalStep& step : track.critical) critical[static_cast<size_t>(step.op)] = true;
    auto moment = [&](const char* name, int64_t ns) {
      events.push_back({{"name", name}, {"ph", "i"}, {"s", "p"}, {"pid", t + 1}, {"tid", 1}, {"ts", us(ns)}});
    };
    if (track.lower_bound > 0) moment("lower bound", track.lower_bound);
    moment("first token", track.end);
    for (size_t i = 0; i < v.ops.size(); ++i) {
      const Op& op = v.ops[i];
      const OpTime& time = track.times[i];
      if (time.start_ns < 0) continue;
      auto tid = static_cast<size_t>(op.stream) + 1;
      events.push_back({{"name", op_label(op, v.chunks)},
                        {"cat", std::string(op_name(op)) + (critical[i] ? ",critical path" : "")},
                        {"ph", "X"},
                        {"pid", t + 1},
                        {"tid", tid},
                        {"ts", us(time.start_ns)},
                        {"dur", us(time.end_ns - time.start_ns)},
                        {"args",
                         {{"op", i},
                          {"layer", op.layer},
                          {"chunk", op.chunk},
                          {"last_chunk", op.chunk_end() - 1},
                          {"waits", op.waits},
                          {"critical", static_cast<bool>(critical[i])}}}});
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
  Json trace = {
      {"displayTimeUnit", "ms"},
      {"otherData",
       {{"plan", picture_title(p)}, {"variant", v.name}, {"policy", v.policy}, {"scheduler", v.scheduler}}},
      {"traceEvents", std::move(events)}};
  return trace.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

}  // namespace ds
