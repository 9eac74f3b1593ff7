// The profile of finished runs: what they are runs of must agree, a question counts once.
#include <algorithm>
#include <set>

#include "profiler/aggregate.h"
#include "profiler/profile_run_internal.h"
#include "support/file.h"
#include "support/schema.h"

namespace ds {
namespace {

/// What a profile says of the first of its runs' pair and ways.
Status read_first(const std::string& folder, const JsonObject& root, ProfileOptions& options,
                  std::vector<Way>& ways, Quality& q) {
  DS_ASSIGN(q.layers, root.integer("layers", 1, 100'000));
  WayOptions& w = options.ways;
  DS_TRY(read_chosen(root, q.layers, w));
  DS_ASSIGN(w.heuristics, root.boolean_or("heuristics", false));
  DS_ASSIGN(w.no_context, root.boolean_or("no_context", false));
  DS_ASSIGN(w.other_document, root.boolean_or("other_document", false));
  DS_ASSIGN(int64_t seed, root.integer("seed", 0, INT64_MAX));
  w.seed = static_cast<uint64_t>(seed);
  DS_ASSIGN(w.restore, root.boolean("restore"));
  if (root.has("race")) {
    DS_ASSIGN(options.race, root.number("race", 0.5, 1));
  }
  DS_ASSIGN(options.race_round, root.integer("race_round", 1, INT32_MAX));
  DS_TRY(read_align(root, w));
  DS_ASSIGN(ways, all_ways(q.layers, w));
  if (!w.align.empty()) {
    DS_ASSIGN(MapSet maps, MapSet::read(folder + "/maps.safetensors"));
    q.maps = {"maps.safetensors", maps.fingerprint()};
    ways = available_ways(ways, maps);
  }
  DS_ASSIGN(JsonObject sender, root.object("sender"));
  DS_ASSIGN(q.sender_name, sender.string("name"));
  DS_ASSIGN(q.sender_fingerprint, sender.string("fingerprint"));
  DS_ASSIGN(JsonObject receiver, root.object("receiver"));
  DS_ASSIGN(q.receiver_name, receiver.string("name"));
  DS_ASSIGN(q.receiver_fingerprint, receiver.string("fingerprint"));
  DS_ASSIGN(q.dtype, root.string("dtype"));
  DS_ASSIGN(JsonObject prompts, root.object("template"));
  DS_ASSIGN(q.prompt_template.name, prompts.string("name"));
  DS_ASSIGN(q.prompt_template.sha256, prompts.string("sha256"));
  q.granularity = w.granularity;
  q.seed = seed;
  return ok_status();
}

}  // namespace

Result<Quality> profile_of_runs(const std::vector<std::string>& folders, const Quality* other_pair) {
  Quality q;
  nlohmann::json first;
  std::vector<Way> ways;
  std::vector<ContextRecord> all;
  std::set<std::string> sources;
  ProfileOptions options;
  for (const std::string& folder : folders) {
    const std::string path = folder + "/run.json";
    DS_ASSIGN(nlohmann::json json, read_json_file(path));
    DS_ASSIGN(JsonObject root, JsonObject::make(json, path));
    DS_TRY(check_schema(root, "droidspeak.profile-run", 1));
    if (first.is_null()) {
      first = json;
      DS_TRY(read_first(folder, root, options, ways, q));
    } else if (auto differ = differences(
                   json, first,
                   {"data", "contexts", "backend", "fit_data", "fit_share", "most_contexts", "maps"});
               !differ.empty()) {
      return error(Code::kMismatch, "'{}' cannot be merged with '{}': they differ in {}", folder, folders[0],
                   fmt::join(differ, ", "));
    } else if (options.race) {
      return error(Code::kInvalidArgument,
                   "'{}': a run that raced dropped groups by its own data; merge runs made without --race",
                   folder);
    }
    if (!options.ways.align.empty() && &folder != &folders[0]) {
      DS_ASSIGN(MapSet maps, MapSet::read(folder + "/maps.safetensors"));
      if (maps.fingerprint() != q.maps.fingerprint)
        return error(Code::kMismatch,
                     "'{}' cannot be merged with '{}': their maps differ; fit them once (ds-profile fit) and "
                     "give both "
                     "runs --maps",
                     folder, folders[0]);
    }
    DS_ASSIGN(const nlohmann::json* data, root.array("data"));
    for (const auto& d : *data) {
      DS_ASSIGN(JsonObject o, JsonObject::make(d, path + ": data"));
      Quality::Input input;
      DS_ASSIGN(input.name, o.string("name"));
      DS_ASSIGN(input.sha256, o.string("sha256"));
      if (std::find(q.data.begin(), q.data.end(), input) == q.data.end()) q.data.push_back(std::move(input));
    }
    DS_ASSIGN(int64_t contexts, root.integer("contexts", 1, INT32_MAX));
    DS_ASSIGN(RunRecords found, read_records(folder, ways.size()));
    if (!found.damaged.empty())
      return error(Code::kCorrupt, "{}; run ds-profile again with the same options to make it anew",
                   found.damaged[0]);
    if (static_cast<int64_t>(found.records.size()) != contexts)
      return error(Code::kInfeasible,
                   "'{}' has {} of {} contexts; run ds-profile again with the same options to finish it",
                   folder, found.records.size(), contexts);
    const auto offset = static_cast<int64_t>(all.size());
    for (ContextRecord& r : found.records) {
      r.index += offset;
      std::erase_if(r.items, [&](const ItemRecord& item) { return !sources.insert(item.source).second; });
      if (!r.items.empty()) all.push_back(std::move(r));
    }
  }
  AggregateOptions a;
  a.layers = q.layers;
  a.seed = options.ways.seed;
  a.other_pair = other_pair;
  SharedRuns runs = shared_runs(ways, std::vector<bool>(ways.size(), true), q.layers);
  const auto contexts = static_cast<int64_t>(all.size());
  if (options.race) {
    std::vector<bool> active = racing_ways(ways, q.layers, all, options, contexts);
    a.dropped.resize(ways.size());
    for (size_t i = 0; i < ways.size(); ++i) a.dropped[i] = !active[i];
  }
  int64_t answers = 0;
  for (const ContextRecord& r : all)
    for (const ItemRecord& item : r.items)
      answers +=
          std::count_if(item.ways.begin(), item.ways.end(), [](const WayResult& w) { return w.scored; });
  aggregate(ways, std::move(all), a, q);
  q.cost = {{"answers", answers},
            {"layer_runs", contexts * runs.layer_runs(q.layers)},
            {"layer_runs_each_way_by_itself", contexts * naive_layer_runs(ways, q.layers)}};
  return q;
}

}  // namespace ds
