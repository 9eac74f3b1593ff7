#include "runtime/core/calibration_json.h"

#include <algorithm>
#include <cmath>

#include <fmt/ranges.h>

#include "support/hash.h"
#include "support/json.h"

namespace ds {
namespace {

using Json = nlohmann::ordered_json;
constexpr int64_t kVersion = 4;
constexpr int64_t kHour = 3'600'000'000'000;

// Every number under its object and key, so that writing and reading cannot forget one.
template <typename M, typename F>
void each_number(M& m, F f) {
  f("compute", "matmul_flops_per_s", m.matmul_flops);
  f("compute", "attention_flops_per_s", m.attention_flops);
  f("compute", "memory_bytes_per_s", m.memory_bytes_per_s);
  f("compute", "op_overhead_ns", m.op_overhead_ns);
  f("compute", "wakeup_ns", m.wakeup_ns);
  f("link", "lookup_ns", m.lookup_ns);
  f("link", "read_latency_ns", m.read_latency_ns);
  f("link", "read_bytes_per_s", m.read_bytes_per_s);
  f("link", "copy_bytes_per_s", m.copy_bytes_per_s);
  f("contention", "kernel_slowdown_permille", m.kernel_slowdown_permille);
  f("contention", "kernel_ns_per_transfer", m.kernel_ns_per_transfer);
  f("contention", "transfer_slowdown_permille", m.transfer_slowdown_permille);
  f("embed", "ns", m.embed_ns);
  f("embed", "row_ns", m.embed_row_ns);
  f("head", "ns", m.head_ns);
}

Json numbers(const MachineTimes& times) {
  Json json;
  each_number(times, [&](const char* object, const char* key, auto value) {
    // A rate's fractions say nothing.
    if constexpr (std::is_same_v<decltype(value), double>) {
      if (value >= 1e6) value = std::round(value);
    }
    json[object][key] = value;
  });
  if (times.staged_block_bytes > 0) json["link"]["staged_block_bytes"] = times.staged_block_bytes;
  for (const AlignTime& t : times.aligns)
    json["align"].push_back(
        {{"form", map_form_name(t.form)}, {"rank", t.rank}, {"ns", t.ns}, {"row_ns", t.row_ns}});
  return json;
}

/// `json` with the points in place of `layer_ns`, each on a line of its own.
std::string with_points(Json json, const std::vector<LayerTime>& layers) {
  json["layer_ns"] = "POINTS";
  std::string points;
  for (const LayerTime& t : layers) {
    Json point = {{"rows", t.size.rows},         {"query_rows", t.size.query_rows},
                  {"position", t.size.position}, {"ns", t.ns},
                  {"min_ns", t.min_ns},          {"max_ns", t.max_ns},
                  {"passes", t.passes},          {"probe_ns", t.probe_ns}};
    points += (points.empty() ? "\n    " : ",\n    ") + point.dump();
  }
  points = points.empty() ? "[]" : "[" + points + "\n  ]";
  std::string text = json.dump(2, ' ', false, Json::error_handler_t::replace);
  constexpr std::string_view kPlace = "\"layer_ns\": \"POINTS\"";
  return text.replace(text.find(kPlace), kPlace.size(), "\"layer_ns\": " + points) + "\n";
}

Result<AlignTime> read_align(const nlohmann::json& json, const std::string& where) {
  DS_ASSIGN(JsonObject o, JsonObject::make(json, where));
  DS_ASSIGN(std::string form, o.string("form"));
  AlignTime t;
  DS_ASSIGN(t.form, parse_map_form(form, o.at("form"), Code::kCorrupt));
  const bool low_rank = t.form == MapForm::kLowRank;
  DS_ASSIGN(t.rank, o.integer("rank", low_rank ? 1 : 0, low_rank ? INT32_MAX : 0));
  DS_ASSIGN(t.ns, o.integer("ns", 1, kHour));
  DS_ASSIGN(t.row_ns, o.number("row_ns", 0, 1e15));
  return t;
}

std::string subject_hash(const CalibrationSubject& s) {
  const Shape& h = s.shape;
  return sha256_hex(fmt::format("{}\n{}\n{}\n{}\n{} {}\n{} {} {} {} {} {} {} {}\n{}\n{}\n", s.name, s.backend,
                                s.description, s.cpu, s.kernel, s.threads, h.family, h.layers, h.d_model,
                                h.ff, h.heads, h.kv_heads, h.head_dim, h.vocab, dtype_name(s.dtype),
                                s.options));
}

}  // namespace

std::string machine_json(const CalibrationSubject& s, const Calibration& calibration) {
  Json json = {{"schema", "droidspeak.machine"},
               {"version", kVersion},
               {"name", s.name},
               {"backend", s.backend},
               {"dtype", dtype_name(s.dtype)},
               {"machine", {{"cpu", s.cpu}, {"kernel", s.kernel}, {"backend", s.description}}},
               {"shape",
                {{"family", s.shape.family},
                 {"layers", s.shape.layers},
                 {"d_model", s.shape.d_model},
                 {"ff", s.shape.ff},
                 {"heads", s.shape.heads},
                 {"kv_heads", s.shape.kv_heads},
                 {"head_dim", s.shape.head_dim},
                 {"vocab", s.shape.vocab}}}};
  json.update(numbers(*calibration.machine));
  json["link"]["rtt_ns"] = s.link_rtt_ns;
  std::vector<LayerTime> sorted = calibration.layers;
  std::sort(sorted.begin(), sorted.end(),
            [](const LayerTime& a, const LayerTime& b) { return a.size < b.size; });
  return with_points(std::move(json), sorted);
}

std::string partial_json(const CalibrationSubject& subject, const Calibration& calibration) {
  Json json = {{"schema", "droidspeak.machine.partial"},
               {"version", kVersion},
               {"subject", subject_hash(subject)},
               {"spent_ns", calibration.spent_ns}};
  if (calibration.machine) json["machine"] = numbers(*calibration.machine);
  return with_points(std::move(json), calibration.layers);
}

Result<Calibration> read_partial(const std::string& path, const CalibrationSubject& subject) {
  DS_ASSIGN(nlohmann::json json, read_json_file(path));
  DS_ASSIGN(JsonObject root, JsonObject::make(json, path));
  DS_ASSIGN(std::string schema, root.string("schema"));
  DS_ASSIGN(int64_t version, root.integer("version", 1, INT32_MAX));
  if (schema != "droidspeak.machine.partial" || version != kVersion) {
    return error(Code::kMismatch,
                 "'{}' holds '{}' version {}, expected 'droidspeak.machine.partial' version {}", path, schema,
                 version, kVersion);
  }
  DS_ASSIGN(std::string hash, root.string("subject"));
  if (hash != subject_hash(subject)) {
    return error(Code::kMismatch, "'{}' was measured for another model, machine or other options", path);
  }
  Calibration c;
  DS_ASSIGN(c.spent_ns, root.integer("spent_ns", 0, INT64_MAX / 2));
  if (root.has("machine")) {
    DS_ASSIGN(JsonObject machine, root.object("machine"));
    MachineTimes times;
    Status status;
    each_number(times, [&](const char* object, const char* key, auto& value) {
      auto read = [&]() -> Status {
        DS_ASSIGN(JsonObject o, machine.object(object));
        if constexpr (std::is_same_v<std::remove_reference_t<decltype(value)>, double>) {
          DS_ASSIGN(value, o.number(key, 0, 1e21));
        } else {
          DS_ASSIGN(value, o.integer(key, 0, kHour));
        }
        return ok_status();
      };
      if (status.ok()) status = read();
    });
    DS_TRY(status);
    DS_ASSIGN(JsonObject link, machine.object("link"));
    if (link.has("staged_block_bytes")) {
      DS_ASSIGN(times.staged_block_bytes, link.integer("staged_block_bytes", 1, INT64_MAX / 2));
    }
    DS_ASSIGN(const nlohmann::json* aligns, machine.array("align"));
    for (size_t i = 0; i < aligns->size(); ++i) {
      DS_ASSIGN(AlignTime t, read_align((*aligns)[i], fmt::format("{}: machine: align[{}]", path, i)));
      times.aligns.push_back(t);
    }
    c.machine = times;
  }
  DS_ASSIGN(const nlohmann::json* points, root.array("layer_ns"));
  for (size_t i = 0; i < points->size(); ++i) {
    DS_ASSIGN(JsonObject o, JsonObject::make((*points)[i], fmt::format("{}: layer_ns[{}]", path, i)));
    LayerTime t;
    DS_ASSIGN(t.size.rows, o.integer("rows", 1, INT32_MAX));
    DS_ASSIGN(t.size.query_rows, o.integer("query_rows", 0, t.size.rows));
    DS_ASSIGN(t.size.position, o.integer("position", 0, INT32_MAX));
    DS_ASSIGN(t.ns, o.integer("ns", 1, kHour));
    DS_ASSIGN(t.min_ns, o.integer("min_ns", 1, kHour));
    DS_ASSIGN(t.max_ns, o.integer("max_ns", 1, kHour));
    DS_ASSIGN(t.passes, o.integer("passes", 1, INT32_MAX));
    DS_ASSIGN(t.probe_ns, o.integer("probe_ns", 1, kHour));
    c.layers.push_back(t);
  }
  return c;
}

}  // namespace ds
