// A run's folder: what it is a run of (run.json), its contexts' records, its maps.
#include <algorithm>
#include <filesystem>
#include <thread>

#include "profiler/profile_run_internal.h"
#include "runtime/model/identity.h"
#include "support/file.h"
#include "support/hash.h"
#include "support/schema.h"

namespace ds {
namespace {

using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

Json identity_json(const RunIdentity& run) {
  auto model = [](const ModelIdentity& m) {
    return Json{{"name", m.name}, {"fingerprint", model_fingerprint(m)}};
  };
  const WayOptions& w = run.options.ways;
  Json json;
  json["schema"] = "droidspeak.profile-run";
  json["version"] = 1;
  json["sender"] = model(run.sender);
  json["receiver"] = model(run.receiver);
  json["layers"] = run.layers;
  json["dtype"] = run.dtype;
  json["backend"] = run.backend;
  json["data"] = Json::array();
  for (const auto& d : run.data) json["data"].push_back({{"name", d.name}, {"sha256", d.sha256}});
  json["template"] = {{"name", run.prompts.name}, {"sha256", run.prompts.sha256}};
  json["granularity"] = w.granularity;
  json["scattered"] = w.scattered;
  json["seed"] = w.seed;
  json["select"] = w.select_shares;
  json["restore"] = w.restore;
  json["reuse_only"] = w.reuse_only;
  json["sender_alone"] = w.sender_alone;
  json["align"] = Json::array();
  for (MapForm form : w.align) json["align"].push_back(map_form_name(form));
  json["shuffled"] = w.shuffled;
  json["other_pair"] = w.other_pair;
  json["heuristics"] = w.heuristics;
  json["no_context"] = w.no_context;
  json["other_document"] = w.other_document;
  json["only"] = Json::array();
  for (const LayerRange& range : w.only) json["only"].push_back(format_layers(range));
  json["fit_share"] = run.options.fit_share;
  json["most_contexts"] = run.options.most_contexts;
  json["fit_data"] = Json::array();
  for (const auto& d : run.fit_data) json["fit_data"].push_back({{"name", d.name}, {"sha256", d.sha256}});
  json["rank"] = run.options.fit.rank;
  json["plain_where_unfit"] = run.options.fit.plain;
  json["maps"] = run.maps;
  json["other_maps"] = run.other_maps;
  json["truncate"] = run.options.truncate;
  json["race"] = run.options.race ? Json(*run.options.race) : Json(nullptr);
  json["race_round"] = run.options.race_round;
  json["contexts"] = run.contexts;
  // Only where scores depend on it, so that other runs stay those that they were.
  if (!run.words.empty()) json["words"] = run.words;
  return json;
}

}  // namespace

std::string record_path(const std::string& folder, int64_t index, std::string_view extension) {
  return fmt::format("{}/context-{:06}.{}", folder, index, extension);
}

Result<ContextRecord> read_record(const std::string& path, size_t ways) {
  DS_ASSIGN(std::string text, read_text_file(path));
  return parse_record(text, path, ways);
}

std::vector<std::string> differences(const nlohmann::json& a, const nlohmann::json& b,
                                     std::initializer_list<std::string_view> may_differ) {
  std::vector<std::string> found;
  for (const auto& [key, value] : a.items()) {
    if (std::find(may_differ.begin(), may_differ.end(), key) != may_differ.end()) continue;
    auto at = b.find(key);
    // Folders may be renamed; what a model or a file is, its hash says.
    auto content = [](const nlohmann::json& v) {
      nlohmann::json copy = v;
      auto strip = [](nlohmann::json& o) {
        if (o.is_object()) o.erase("name");
      };
      strip(copy);
      if (copy.is_array())
        for (auto& o : copy) strip(o);
      return copy;
    };
    if (at == b.end() || content(*at) != content(value))
      found.push_back(
          fmt::format("{} ({} there, {} here)", key, at == b.end() ? "nothing" : at->dump(), value.dump()));
  }
  return found;
}

Status read_chosen(const JsonObject& root, int64_t layers, WayOptions& w) {
  DS_ASSIGN(w.granularity, root.integer("granularity", 1, layers));
  DS_ASSIGN(w.scattered, root.integer("scattered", 0, INT32_MAX));
  DS_ASSIGN(const nlohmann::json* shares, root.array("select"));
  w.select_shares.clear();
  for (const auto& s : *shares)
    if (s.is_number()) w.select_shares.push_back(s.get<double>());
  DS_ASSIGN(w.reuse_only, root.boolean("reuse_only"));
  DS_ASSIGN(w.sender_alone, root.boolean("sender_alone"));
  if (root.has("shuffled")) {
    DS_ASSIGN(w.shuffled, root.boolean("shuffled"));
  }
  return ok_status();
}

Status read_align(const JsonObject& root, WayOptions& w) {
  if (!root.has("align")) return ok_status();  // of a run from before there were any
  DS_ASSIGN(const nlohmann::json* forms, root.array("align"));
  for (const auto& form : *forms) {
    DS_ASSIGN(MapForm named,
              parse_map_form(form.is_string() ? form.get<std::string>() : "", root.at("align")));
    w.align.push_back(named);
  }
  DS_ASSIGN(w.shuffled, root.boolean("shuffled"));
  DS_ASSIGN(w.other_pair, root.string("other_pair"));
  DS_ASSIGN(const nlohmann::json* only, root.array("only"));
  for (const auto& range : *only) {
    DS_ASSIGN(LayerRange layers, parse_layers(range.is_string() ? range.get<std::string>() : "", INT32_MAX));
    w.only.push_back(layers);
  }
  return ok_status();
}

ProfileEngine::Maps RunMaps::by_control(const std::string& other_pair) const {
  ProfileEngine::Maps maps{{"", &own}, {kShuffled, &shuffled}};
  if (given != nullptr) maps["pair " + other_pair] = given;
  return maps;
}

Result<RunMaps> run_maps(const std::string& folder, bool shuffled, const std::atomic<bool>& stop,
                         const std::function<Result<RunMaps>()>& fit) {
  const std::string path = folder + "/maps.safetensors", control = folder + "/shuffled.safetensors";
  while (!stop.load()) {
    FileLock lock;
    DS_ASSIGN(bool mine, lock.take(folder + "/maps.lock"));
    if (!mine) {
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      continue;
    }
    RunMaps maps;
    if (!file_exists(path)) {
      DS_ASSIGN(maps, fit());
      auto kept = [&](Status status) {
        return status.with_context("keeping the run's maps; the same command goes on from there");
      };
      if (shuffled) DS_TRY(kept(maps.shuffled.write(control)));
      DS_TRY(kept(maps.own.write(path)));  // last: where it is, all are
      return maps;
    }
    DS_ASSIGN(maps.own, MapSet::read(path));
    if (shuffled) {
      DS_ASSIGN(maps.shuffled, MapSet::read(control));
    }
    return maps;
  }
  return error(Code::kInfeasible,
               "stopped before the maps were fitted; the same command begins with them again");
}

std::vector<Way> available_ways(const std::vector<Way>& ways, const MapSet& own) {
  std::vector<Way> available;
  for (const Way& way : ways) {
    bool all = true;
    for (int64_t l : way.sent_layers()) all = all && own.find(l, way.map) != nullptr;
    if (all || way.map == MapForm::kNone) available.push_back(way);
  }
  return available;
}

Status open_run(const std::string& folder, const RunIdentity& identity) {
  std::error_code failure;
  fs::create_directories(folder, failure);
  if (failure) return error(Code::kIo, "cannot make the folder '{}': {}", folder, failure.message());
  Json json = identity_json(identity);
  const std::string path = folder + "/run.json";
  if (!file_exists(path)) return write_file_atomically(path, json.dump(1) + "\n");
  auto found = read_json_file(path);
  if (!found.ok())
    return found.status().with_context(
        "this run cannot be gone on with; remove its folder or give another --state");
  DS_ASSIGN(JsonObject root, JsonObject::make(*found, path));
  DS_TRY(check_schema(root, "droidspeak.profile-run", 1));
  std::vector<std::string> differ = differences(nlohmann::json(json), *found, {});
  if (differ.empty()) return ok_status();
  return error(
      Code::kMismatch,
      "'{}' holds another run; it differs in {}; give another --state, or remove the folder to begin anew",
      folder, fmt::join(differ, ", "));
}

Result<std::optional<ProfileOptions>> options_of_run(const std::string& folder, const ProfileOptions& asked) {
  const std::string path = folder + "/run.json";
  if (!file_exists(path)) return std::optional<ProfileOptions>();
  DS_ASSIGN(nlohmann::json json, read_json_file(path));
  DS_ASSIGN(JsonObject root, JsonObject::make(json, path));
  DS_TRY(check_schema(root, "droidspeak.profile-run", 1));
  ProfileOptions options = asked;
  DS_ASSIGN(int64_t layers, root.integer("layers", 1, 100'000));
  DS_TRY(read_chosen(root, layers, options.ways));
  DS_ASSIGN(options.most_contexts, root.integer_or("most_contexts", 0, INT32_MAX, 0));
  return std::optional(options);
}

Result<RunRecords> read_records(const std::string& folder, size_t ways) {
  RunRecords out;
  std::vector<std::string> paths;
  std::error_code failure;
  for (const auto& entry : fs::directory_iterator(folder, failure))
    if (entry.path().filename().string().starts_with("context-") && entry.path().extension() == ".jsonl")
      paths.push_back(entry.path().string());
  if (failure) return error(Code::kNotFound, "cannot read the folder '{}': {}", folder, failure.message());
  std::sort(paths.begin(), paths.end());
  for (const std::string& path : paths) {
    auto record = read_record(path, ways);
    if (record.ok()) {
      out.records.push_back(std::move(*record));
    } else {
      out.damaged.push_back(record.status().message());
    }
  }
  std::sort(out.records.begin(), out.records.end(),
            [](const ContextRecord& a, const ContextRecord& b) { return a.index < b.index; });
  return out;
}

}  // namespace ds
