#include "serve/fleet.h"

#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <initializer_list>
#include <limits>
#include <set>

#include "support/file.h"
#include "support/hash.h"
#include "support/units.h"

namespace ds {
namespace {

constexpr double kMostRegisteredS = 86400;

/// A key that nobody reads is most often a misspelt one.
Status check_keys(const JsonObject& object, std::initializer_list<std::string_view> known) {
  for (const auto& [key, value] : object.json().items())
    if (std::find(known.begin(), known.end(), key) == known.end())
      return error(Code::kInvalidArgument, "{}: unknown key '{}'; known: {}", object.where(), key,
                   fmt::join(known, ", "));
  return ok_status();
}

Result<JsonObject> section(const JsonObject& root, std::string_view key) {
  static const nlohmann::json kEmpty = nlohmann::json::object();
  if (root.has(key)) return root.object(key);
  return JsonObject::make(kEmpty, root.at(key));
}

std::string path_in(const std::string& folder, const std::string& path) {
  if (path.empty() || path.front() == '/' || folder.empty()) return path;
  return (std::filesystem::path(folder) / path).lexically_normal().string();
}

/// A store's path is relative to the fleet file, as all other paths of it are.
std::string url_in(const std::string& folder, const std::string& url) {
  constexpr std::string_view kFile = "file:";
  if (!url.starts_with(kFile) || url.starts_with("file://")) return url;
  const std::string path = url.substr(kFile.size());
  return path.starts_with("~") ? url : std::string(kFile) + path_in(folder, path);
}

/// Elements of a list of objects.
template <typename Read>
Status each(const JsonObject& root, std::string_view key, Read read) {
  if (!root.has(key)) return ok_status();
  DS_ASSIGN(const nlohmann::json* list, root.array(key));
  for (size_t i = 0; i < list->size(); ++i) {
    DS_ASSIGN(JsonObject one, JsonObject::make((*list)[i], fmt::format("{}[{}]", root.at(key), i)));
    DS_TRY(read(one));
  }
  return ok_status();
}

Result<std::string> text(const JsonObject& object, std::string_view key) {
  DS_ASSIGN(std::string value, object.string(key));
  if (value.empty()) return error(Code::kInvalidArgument, "{}: '{}' is empty", object.where(), key);
  return value;
}

Result<FleetModel> read_model(const JsonObject& o, const std::string& folder) {
  DS_TRY(check_keys(o, {"name", "folder", "base", "chat_template", "tool_parser", "max_model_len", "reuse",
                        "publish", "publish_live"}));
  FleetModel m;
  DS_ASSIGN(m.name, text(o, "name"));
  DS_ASSIGN(m.folder, text(o, "folder"));
  DS_ASSIGN(m.base, o.string_or("base", ""));
  DS_ASSIGN(m.chat_template, o.string_or("chat_template", ""));
  DS_ASSIGN(const std::string tools, o.string_or("tool_parser", ""));
  const auto format = tool_format(tools);
  if (!format)
    return error(Code::kInvalidArgument, "{}: 'tool_parser' is '{}', expected hermes or llama3_json",
                 o.where(), tools);
  m.tools = *format;
  DS_ASSIGN(m.max_model_len, o.integer_or("max_model_len", 0, int64_t{1} << 31, 0));
  DS_ASSIGN(const std::string reuse, o.string_or("reuse", "exact"));
  if (reuse != "exact" && reuse != "approximate")
    return error(Code::kInvalidArgument,
                 "{}: 'reuse' is '{}', expected exact (what this model has computed itself) or approximate "
                 "(what plans make of others' caches)",
                 o.where(), reuse);
  m.approximate = reuse == "approximate";
  DS_ASSIGN(m.publish, o.boolean_or("publish", false));
  DS_ASSIGN(m.publish_live, o.boolean_or("publish_live", false));
  if (m.publish_live && !m.publish)
    return error(Code::kInvalidArgument, "{}: 'publish_live' without 'publish': there is nothing to show",
                 o.where());
  for (std::string* path : {&m.folder, &m.base, &m.chat_template}) *path = path_in(folder, *path);
  return m;
}

Result<FleetPlan> read_plan_entry(const JsonObject& o, const std::string& folder) {
  DS_TRY(check_keys(o, {"file", "maps", "profile"}));
  FleetPlan p;
  DS_ASSIGN(p.file, text(o, "file"));
  DS_ASSIGN(p.maps, o.string_or("maps", ""));
  DS_ASSIGN(p.profile, o.string_or("profile", ""));
  for (std::string* path : {&p.file, &p.maps, &p.profile}) *path = path_in(folder, *path);
  return p;
}

/// The first line of a file that only its owner may read. Its content is never part of a message.
Result<std::string> read_secret(const std::string& path, const std::string& where) {
  struct stat info {};
  if (stat(path.c_str(), &info) == 0 && (info.st_mode & 077) != 0)
    return error(Code::kInvalidArgument,
                 "{}: others than its owner may read '{}' (mode {:o}); chmod 600 it, for it is a secret",
                 where, path, info.st_mode & 0777);
  auto content = read_text_file(path, 4096);
  if (!content.ok()) return content.status().with_context(where);
  const std::string line = content->substr(0, content->find_first_of("\r\n"));
  if (line.empty()) return error(Code::kInvalidArgument, "{}: '{}' begins with an empty line", where, path);
  return line;
}

Result<FleetKey> read_key(const JsonObject& o, const std::string& folder) {
  DS_TRY(check_keys(o, {"tenant", "key_sha256", "key_file", "salt_file", "requests"}));
  FleetKey k;
  DS_ASSIGN(k.tenant, text(o, "tenant"));
  // It may be a salt, behind which a request's own stands on a line of its own.
  if (k.tenant.find('\n') != std::string::npos)
    return error(Code::kInvalidArgument, "{}: 'tenant' has several lines; expected one", o.where());
  if (o.has("key_sha256") == o.has("key_file"))
    return error(Code::kInvalidArgument, "{}: expected one of 'key_sha256' and 'key_file'", o.where());
  if (o.has("key_file")) {
    DS_ASSIGN(const std::string file, text(o, "key_file"));
    DS_ASSIGN(const std::string key, read_secret(path_in(folder, file), o.at("key_file")));
    k.key_sha256 = sha256_hex(key);
  } else {
    DS_ASSIGN(k.key_sha256, text(o, "key_sha256"));
    if (k.key_sha256.size() != 64 || k.key_sha256.find_first_not_of("0123456789abcdef") != std::string::npos)
      return error(Code::kInvalidArgument,
                   "{}: 'key_sha256' is no SHA-256 (64 lower-case hexadecimal digits); printf %s KEY | "
                   "sha256sum makes it",
                   o.where());
  }
  k.salt = k.tenant;
  if (o.has("salt_file")) {
    DS_ASSIGN(const std::string file, text(o, "salt_file"));
    DS_ASSIGN(k.salt, read_secret(path_in(folder, file), o.at("salt_file")));
  }
  DS_ASSIGN(k.requests, o.integer_or("requests", 0, 1'000'000, 0));
  return k;
}

Status read_listen(const JsonObject& root, const std::string& folder, Fleet& fleet) {
  DS_ASSIGN(const JsonObject o, section(root, "listen"));
  DS_TRY(check_keys(o, {"host", "port", "tls", "connections", "body", "idle", "write"}));
  DS_ASSIGN(fleet.host, o.string_or("host", fleet.host));
  DS_ASSIGN(fleet.port, o.integer_or("port", 0, 65535, fleet.port));
  DS_ASSIGN(fleet.connections, o.integer_or("connections", 1, 900, fleet.connections));
  if (o.has("body")) {
    DS_ASSIGN(const std::string body, o.string("body"));
    auto bytes = parse_bytes(body);
    if (!bytes.ok()) return bytes.status().with_context(o.at("body"));
    fleet.body_bytes = *bytes;
  }
  for (auto [key, to] : {std::pair{"idle", &fleet.idle_s}, {"write", &fleet.write_s}}) {
    if (!o.has(key)) continue;
    DS_ASSIGN(const std::string given, o.string(key));
    auto seconds = parse_duration(given);
    if (!seconds.ok()) return seconds.status().with_context(o.at(key));
    *to = *seconds;
  }
  if (!o.has("tls")) return ok_status();
  DS_ASSIGN(const JsonObject tls, o.object("tls"));
  DS_TRY(check_keys(tls, {"certificate", "private_key"}));
  DS_ASSIGN(fleet.certificate, text(tls, "certificate"));
  DS_ASSIGN(fleet.private_key, text(tls, "private_key"));
  fleet.certificate = path_in(folder, fleet.certificate);
  fleet.private_key = path_in(folder, fleet.private_key);
  return ok_status();
}

Status read_limits(const JsonObject& root, Fleet& fleet) {
  DS_ASSIGN(const JsonObject o, section(root, "limits"));
  DS_TRY(check_keys(o, {"cache", "tokens", "new_tokens", "batch", "queue", "step_budget_ms",
                        "step_budget_share", "patience_ms", "request_s"}));
  if (o.has("cache")) {
    DS_ASSIGN(const std::string cache, o.string("cache"));
    auto bytes = parse_bytes(cache);
    if (!bytes.ok()) return bytes.status().with_context(o.at("cache"));
    fleet.cache_bytes = *bytes;
  }
  DS_ASSIGN(fleet.tokens, o.integer_or("tokens", 1, int64_t{1} << 31, fleet.tokens));
  DS_ASSIGN(fleet.new_tokens, o.integer_or("new_tokens", 1, int64_t{1} << 31, fleet.new_tokens));
  DS_ASSIGN(fleet.batch, o.integer_or("batch", 1, 4096, fleet.batch));
  DS_ASSIGN(fleet.queue, o.integer_or("queue", 1, int64_t{1} << 20, fleet.queue));
  DS_ASSIGN(fleet.step_budget_ms, o.number_or("step_budget_ms", 0.001, 1e6, fleet.step_budget_ms));
  DS_ASSIGN(fleet.step_budget_share, o.number_or("step_budget_share", 0, 1000, fleet.step_budget_share));
  DS_ASSIGN(fleet.patience_ms, o.number_or("patience_ms", 0.001, 1e6, fleet.patience_ms));
  DS_ASSIGN(fleet.request_s, o.number_or("request_s", 0, 1e6, fleet.request_s));
  return ok_status();
}

Status read_sections(const JsonObject& root, const std::string& folder, Fleet& fleet) {
  DS_TRY(read_listen(root, folder, fleet));
  DS_TRY(read_limits(root, fleet));
  DS_ASSIGN(const JsonObject device, section(root, "device"));
  DS_TRY(check_keys(device, {"backend", "device", "threads", "dtype"}));
  DS_ASSIGN(fleet.backend, device.string_or("backend", fleet.backend));
  if (fleet.backend != "auto" && fleet.backend != "cpu" && fleet.backend != "cuda")
    return error(Code::kInvalidArgument, "{}: 'backend' is '{}', expected auto, cpu or cuda", device.where(),
                 fleet.backend);
  DS_ASSIGN(fleet.device, device.integer_or("device", 0, 1023, 0));
  DS_ASSIGN(fleet.threads, device.integer_or("threads", 0, 4096, 0));
  DS_ASSIGN(fleet.dtype, device.string_or("dtype", fleet.dtype));
  if (fleet.dtype != "bf16" && fleet.dtype != "f32")
    return error(Code::kInvalidArgument, "{}: 'dtype' is '{}', expected bf16 or f32", device.where(),
                 fleet.dtype);
  if (root.has("store")) {
    DS_ASSIGN(const JsonObject store, root.object("store"));
    DS_TRY(check_keys(store, {"url", "key_file", "registered"}));
    DS_ASSIGN(fleet.store, text(store, "url"));
    DS_ASSIGN(fleet.store_key, store.string_or("key_file", ""));
    fleet.store = url_in(folder, fleet.store);
    fleet.store_key = path_in(folder, fleet.store_key);
    if (store.has("registered")) {
      DS_ASSIGN(const std::string given, store.string("registered"));
      auto seconds = parse_duration(given);
      if (!seconds.ok()) return seconds.status().with_context(store.at("registered"));
      if (!(*seconds >= 1 && *seconds <= kMostRegisteredS))
        return error(Code::kInvalidArgument,
                     "{}: 'registered' is '{}', expected 1s to 1d: how often plans are looked for that are "
                     "registered in the store",
                     store.where(), given);
      fleet.registered_s = *seconds;
    }
  }
  DS_ASSIGN(const JsonObject objectives, section(root, "objectives"));
  DS_TRY(check_keys(objectives, {"loss", "ttft_ms"}));
  DS_ASSIGN(fleet.loss, objectives.number_or("loss", 0, 100, kUnknown));
  DS_ASSIGN(fleet.ttft_ms, objectives.number_or("ttft_ms", 0, 1e9, 0));
  DS_ASSIGN(const JsonObject gate, section(root, "gate"));
  DS_TRY(check_keys(gate, {"false_alarms", "window", "on_drift"}));
  if (gate.has("false_alarms")) {
    DS_ASSIGN(const std::string share, gate.string("false_alarms"));
    auto parsed = parse_percent(share);
    if (!parsed.ok()) return parsed.status().with_context(gate.at("false_alarms"));
    fleet.false_alarms = *parsed;
  }
  DS_ASSIGN(fleet.window,
            gate.integer_or("window", DriftWindow::kLeastRequests, DriftWindow::kMostRequests, fleet.window));
  DS_ASSIGN(const std::string on_drift, gate.string_or("on_drift", "report"));
  if (on_drift != "report" && on_drift != "exact")
    return error(Code::kInvalidArgument, "{}: 'on_drift' is '{}', expected report or exact", gate.where(),
                 on_drift);
  fleet.exact_on_drift = on_drift == "exact";
  return ok_status();
}

/// What single fields do not show.
Status check_whole(const Fleet& fleet) {
  if (fleet.models.empty())
    return error(Code::kInvalidArgument, "{}: 'models' is empty; name one at least, {}", fleet.origin,
                 R"({"name": "agent", "folder": "agent/"})");
  std::set<std::string> names;
  for (const FleetModel& m : fleet.models)
    if (!names.insert(m.name).second)
      return error(Code::kInvalidArgument, "{}: two models are named '{}'; requests ask for them by name",
                   fleet.origin, m.name);
  std::set<std::string> hashes;
  for (const FleetKey& k : fleet.keys)
    if (!hashes.insert(k.key_sha256).second)
      return error(Code::kInvalidArgument, "{}: two of 'keys' have the same key; a key says who asks",
                   fleet.origin);
  for (const FleetModel& m : fleet.models)
    if (fleet.store.empty() && m.publish)
      return error(Code::kInvalidArgument, "{}: model '{}' is to publish, and there is no 'store'",
                   fleet.origin, m.name);
  if (fleet.registered_s > 0 &&
      std::none_of(fleet.models.begin(), fleet.models.end(), [](const FleetModel& m) { return m.publish; }))
    return error(Code::kInvalidArgument,
                 "{}: store: 'registered' says what is published for, and no model has 'publish'",
                 fleet.origin);
  if (fleet.store.empty() && !fleet.plans.empty())
    return error(Code::kInvalidArgument,
                 "{}: 'plans' reuse entries of a store, and there is no 'store': "
                 R"({{"url": "file:PATH"}})",
                 fleet.origin);
  return ok_status();
}

}  // namespace

Result<Fleet> Fleet::parse(std::string_view json, const std::string& origin, const std::string& folder) {
  DS_ASSIGN(const nlohmann::json value, parse_json(json, origin));
  DS_ASSIGN(const JsonObject root, JsonObject::make(value, origin));
  DS_ASSIGN(const int64_t version, root.integer_or("version", 1, std::numeric_limits<int32_t>::max(), 1));
  if (version > kFleetVersion)
    return error(Code::kUnsupported, "{}: version {}, this ds-serve reads {}; use a newer one", origin,
                 version, kFleetVersion);
  DS_TRY(check_keys(root, {"version", "listen", "device", "models", "plans", "store", "objectives", "limits",
                           "gate", "keys", "open_metrics"}));
  Fleet fleet;
  fleet.origin = origin;
  DS_TRY(read_sections(root, folder, fleet));
  DS_TRY(each(root, "models", [&](const JsonObject& o) -> Status {
    DS_ASSIGN(FleetModel m, read_model(o, folder));
    fleet.models.push_back(std::move(m));
    return ok_status();
  }));
  DS_TRY(each(root, "plans", [&](const JsonObject& o) -> Status {
    DS_ASSIGN(FleetPlan p, read_plan_entry(o, folder));
    fleet.plans.push_back(std::move(p));
    return ok_status();
  }));
  DS_TRY(each(root, "keys", [&](const JsonObject& o) -> Status {
    DS_ASSIGN(FleetKey k, read_key(o, folder));
    fleet.keys.push_back(std::move(k));
    return ok_status();
  }));
  DS_ASSIGN(fleet.open_metrics, root.boolean_or("open_metrics", false));
  DS_TRY(check_whole(fleet));
  return fleet;
}

Result<Fleet> Fleet::read(const std::string& path) {
  DS_ASSIGN(const std::string json, read_text_file(path));
  return parse(json, path, std::filesystem::path(path).parent_path().string());
}

}  // namespace ds
