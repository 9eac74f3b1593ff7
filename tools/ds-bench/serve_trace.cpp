#include "tools/ds-bench/serve_trace.h"

#include "support/file.h"
#include "support/json.h"

namespace ds {

Status write_trace(Engine& engine, const std::string& path) {
  using Json = nlohmann::ordered_json;
  Json events = Json::array();
  const char* tracks[] = {"link", "copy", "compute"};
  for (int t : {0, 2}) {
    events.push_back(
        {{"name", "process_name"}, {"ph", "M"}, {"pid", t + 1}, {"args", {{"name", tracks[t]}}}});
  }
  for (const EngineSpan& s : engine.take_spans())
    events.push_back({{"name", s.request == 0 ? s.what : fmt::format("#{} {}", s.request, s.what)},
                      {"cat", tracks[static_cast<int>(s.stream)]},
                      {"ph", "X"},
                      {"pid", static_cast<int>(s.stream) + 1},
                      {"tid", 1},
                      {"ts", static_cast<double>(s.start_ns) / 1e3},
                      {"dur", static_cast<double>(s.end_ns - s.start_ns) / 1e3},
                      {"args", {{"request", s.request}}}});
  return write_file_atomically(path, Json{{"traceEvents", std::move(events)}}.dump() + "\n");
}

}  // namespace ds
