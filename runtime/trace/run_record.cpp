#include "runtime/trace/run_record.h"

#include <cmath>
#include <unordered_set>

#include "support/file.h"
#include "support/json.h"
#include "support/units.h"

namespace ds {
namespace {

constexpr const char* kSchema = "droidspeak.run_record";
constexpr int64_t kMaxOpIndex = 10'000'000;

std::string line(const nlohmann::ordered_json& json) {
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

Status read_header(const JsonObject& o, RunRecord& r) {
  DS_ASSIGN(std::string schema, o.string("schema"));
  if (schema != kSchema) {
    return error(Code::kCorrupt,
                 "{}: schema is \"{}\", expected \"{}\"; give a file that ds-run --record wrote", o.where(),
                 schema, kSchema);
  }
  DS_ASSIGN(int64_t version, o.integer("version", 1, INT64_MAX));
  if (version > kRunRecordVersion) {
    return error(Code::kUnsupported,
                 "{}: the record has version {}, this program reads versions 1 to {}; update droidspeak "
                 "here, or record "
                 "the run again with this version",
                 o.where(), version, kRunRecordVersion);
  }
  DS_ASSIGN(r.plan_sha256, o.string_or("plan_sha256", ""));
  DS_ASSIGN(r.variant, o.string("variant"));
  DS_ASSIGN(r.policy, o.string_or("policy", ""));
  DS_ASSIGN(r.scheduler, o.string_or("scheduler", ""));
  DS_ASSIGN(r.choice, o.string_or("choice", ""));
  DS_ASSIGN(r.mode, o.string_or("mode", ""));
  DS_ASSIGN(r.sender, o.string_or("sender", ""));
  DS_ASSIGN(r.receiver, o.string_or("receiver", ""));
  DS_ASSIGN(r.backend, o.string_or("backend", ""));
  DS_ASSIGN(r.dtype, o.string_or("dtype", ""));
  DS_ASSIGN(r.context_tokens, o.integer("context_tokens", 0, INT64_MAX));
  DS_ASSIGN(r.suffix_tokens, o.integer("suffix_tokens", 0, INT64_MAX));
  DS_ASSIGN(r.link_rate, o.integer_or("link_rate", 0, INT64_MAX, 0));
  DS_ASSIGN(r.waiting, o.integer_or("waiting", 0, INT64_MAX, 0));
  return ok_status();
}

Status read_op(const JsonObject& o, OpRecord& op) {
  DS_ASSIGN(int64_t index, o.integer("op", 0, kMaxOpIndex));
  op.op = static_cast<int32_t>(index);
  DS_ASSIGN(op.label, o.string("label"));
  DS_ASSIGN(op.stream, o.string("stream"));
  DS_ASSIGN(op.start_ns, o.integer("start_ns", 0, INT64_MAX));
  DS_ASSIGN(op.end_ns, o.integer("end_ns", op.start_ns, INT64_MAX));
  DS_ASSIGN(op.bytes, o.integer_or("bytes", 0, INT64_MAX, 0));
  return ok_status();
}

Result<GateRecord> read_gate(const JsonObject& o) {
  GateRecord gate;
  DS_ASSIGN(gate.status, o.string("status"));
  DS_ASSIGN(gate.variant, o.string_or("variant", ""));
  DS_ASSIGN(gate.way, o.string_or("way", ""));
  DS_ASSIGN(const nlohmann::json* proxies, o.array("proxies"));
  for (size_t i = 0; i < proxies->size(); ++i) {
    DS_ASSIGN(JsonObject p, JsonObject::make((*proxies)[i], fmt::format("{}: proxies[{}]", o.where(), i)));
    GateRecord::Proxy proxy;
    DS_ASSIGN(proxy.name, p.string("name"));
    DS_ASSIGN(proxy.value, p.number_or("value", -1e308, 1e308, std::nan("")));
    DS_ASSIGN(proxy.threshold, p.number("threshold", -1e308, 1e308));
    DS_ASSIGN(proxy.alarm, p.boolean_or("alarm", false));
    gate.proxies.push_back(std::move(proxy));
  }
  DS_ASSIGN(gate.gate_ns, o.integer_or("gate_ns", 0, INT64_MAX, 0));
  DS_ASSIGN(gate.lost_ns, o.integer_or("lost_ns", 0, INT64_MAX, 0));
  DS_ASSIGN(gate.drift, o.string_or("drift", ""));
  return gate;
}

nlohmann::ordered_json gate_json(const GateRecord& gate) {
  nlohmann::ordered_json proxies = nlohmann::ordered_json::array();
  for (const GateRecord::Proxy& p : gate.proxies) {
    nlohmann::ordered_json value = nullptr;
    if (std::isfinite(p.value)) value = p.value;
    proxies.push_back({{"name", p.name}, {"value", value}, {"threshold", p.threshold}, {"alarm", p.alarm}});
  }
  return {{"status", gate.status},   {"variant", gate.variant}, {"way", gate.way},    {"proxies", proxies},
          {"gate_ns", gate.gate_ns}, {"lost_ns", gate.lost_ns}, {"drift", gate.drift}};
}

Status read_summary(const JsonObject& o, RunRecord& r) {
  DS_ASSIGN(int64_t ops, o.integer("ops", 0, INT64_MAX));
  if (ops != static_cast<int64_t>(r.ops.size())) {
    return error(Code::kCorrupt,
                 "{}: the summary counts {} ops, but {} lines of ops precede it; record the run again",
                 o.where(), ops, r.ops.size());
  }
  DS_ASSIGN(r.ttft_ns, o.integer("ttft_ns", 0, INT64_MAX));
  DS_ASSIGN(r.bytes_loaded, o.integer_or("bytes_loaded", 0, INT64_MAX, 0));
  DS_ASSIGN(r.dropped, o.integer_or("dropped", 0, INT64_MAX, 0));
  if (o.has("gate")) {
    DS_ASSIGN(JsonObject gate, o.object("gate"));
    DS_ASSIGN(r.gate, read_gate(gate));
  }
  if (!o.has("cache")) return ok_status();
  DS_ASSIGN(JsonObject cache, o.object("cache"));
  DS_ASSIGN(r.cache_status, cache.string_or("status", ""));
  DS_ASSIGN(r.cache_reason, cache.string_or("reason", ""));
  DS_ASSIGN(r.cache_shorter, cache.string_or("shorter", ""));
  return ok_status();
}

}  // namespace

std::string GateRecord::text() const {
  std::string out = status;
  for (size_t i = 0; i < proxies.size(); ++i) {
    const Proxy& p = proxies[i];
    out += fmt::format("{}{} {:.4g} ({}threshold {:.4g})", i == 0 ? ": " : ", ", p.name, p.value,
                       p.alarm ? "alarm; " : "", p.threshold);
  }
  if (lost_ns > 0) out += fmt::format("; variant '{}' was tried and {} lost", variant, format_ns(lost_ns));
  return drift.empty() ? out : out + "; last requests: " + drift;
}

std::string run_record_text(const RunRecord& r) {
  std::string text = line({{"schema", kSchema},
                           {"version", kRunRecordVersion},
                           {"plan_sha256", r.plan_sha256},
                           {"variant", r.variant},
                           {"policy", r.policy},
                           {"scheduler", r.scheduler},
                           {"choice", r.choice},
                           {"mode", r.mode},
                           {"sender", r.sender},
                           {"receiver", r.receiver},
                           {"backend", r.backend},
                           {"dtype", r.dtype},
                           {"context_tokens", r.context_tokens},
                           {"suffix_tokens", r.suffix_tokens},
                           {"link_rate", r.link_rate},
                           {"waiting", r.waiting}});
  for (const OpRecord& op : r.ops) {
    text += line({{"op", op.op},
                  {"label", op.label},
                  {"stream", op.stream},
                  {"start_ns", op.start_ns},
                  {"end_ns", op.end_ns},
                  {"bytes", op.bytes}});
  }
  nlohmann::ordered_json summary = {
      {"ops", r.ops.size()},
      {"ttft_ns", r.ttft_ns},
      {"bytes_loaded", r.bytes_loaded},
      {"cache", {{"status", r.cache_status}, {"reason", r.cache_reason}, {"shorter", r.cache_shorter}}},
      {"dropped", r.dropped}};
  if (r.gate) summary["gate"] = gate_json(*r.gate);
  return text + line({{"summary", summary}});
}

Status write_run_record(const std::string& path, const RunRecord& record) {
  std::string text = run_record_text(record);
  if (Result<RunRecord> back = parse_run_record(text, path); !back.ok()) {
    return Status(Code::kInvalidArgument, back.status().message())
        .with_context("refusing to write a run record");
  }
  return write_file_atomically(path, text, {.owner_only = true});
}

Result<RunRecord> parse_run_record(std::string_view text, const std::string& origin) {
  if (text.empty()) {
    return error(Code::kCorrupt,
                 "run record '{}' is empty; expected JSON lines as ds-run --record writes them", origin);
  }
  RunRecord record;
  std::unordered_set<int32_t> seen;
  bool header = false, summary = false;
  int64_t number = 0;
  for (size_t begin = 0; begin < text.size();) {
    size_t end = std::min(text.find('\n', begin), text.size());
    std::string_view row = text.substr(begin, end - begin);
    begin = end + 1;
    ++number;
    if (row.empty() || row == "\r") continue;
    std::string where = fmt::format("{} line {}", origin, number);
    if (summary)
      return error(Code::kCorrupt, "{}: found more after the summary, expected the end of the file", where);
    DS_ASSIGN(nlohmann::json json, parse_json(row, where));
    DS_ASSIGN(JsonObject o, JsonObject::make(json, where));
    if (!header) {
      DS_TRY(read_header(o, record));
      header = true;
    } else if (o.has("summary")) {
      DS_ASSIGN(JsonObject s, o.object("summary"));
      DS_TRY(read_summary(s, record));
      summary = true;
    } else {
      OpRecord op;
      DS_TRY(read_op(o, op));
      if (!seen.insert(op.op).second) {
        return error(Code::kCorrupt, "{}: op {} ({}) for the second time; expected each op once", where,
                     op.op, op.label);
      }
      record.ops.push_back(std::move(op));
    }
  }
  if (!summary) {
    return error(Code::kCorrupt,
                 "run record '{}' ({} bytes, {} lines) is truncated: its last line is not a summary; record "
                 "the run again",
                 origin, text.size(), number);
  }
  return record;
}

Result<RunRecord> read_run_record(const std::string& path) {
  Result<std::string> text = read_text_file(path);
  if (!text.ok()) return text.status().with_context("reading a run record");
  return parse_run_record(*text, path);
}

}  // namespace ds
