#include "compiler/inputs/quality.h"

#include <cmath>

#include "compiler/inputs/schema.h"
#include "support/json.h"

namespace ds {

Result<Quality> Quality::read(const std::string& path) {
  DS_ASSIGN(nlohmann::json json, read_json_file(path));
  DS_ASSIGN(JsonObject root, JsonObject::make(json, path));
  DS_TRY(check_schema(root, "droidspeak.quality", 1));
  DS_TRY(check_keys(root, {"schema", "version", "pair", "layers", "metric", "items", "receiver_score",
                           "full_reuse_score", "groups"}));
  Quality q;
  DS_ASSIGN(JsonObject pair, root.object("pair"));
  DS_TRY(check_keys(pair, {"sender", "receiver"}));
  auto model = [&](std::string_view role, std::string& name, std::string& fingerprint) -> Status {
    DS_ASSIGN(JsonObject o, pair.object(role));
    DS_TRY(check_keys(o, {"name", "fingerprint"}));
    DS_ASSIGN(name, o.string("name"));
    DS_ASSIGN(fingerprint, o.string("fingerprint"));
    return ok_status();
  };
  DS_TRY(model("sender", q.sender_name, q.sender_fingerprint));
  DS_TRY(model("receiver", q.receiver_name, q.receiver_fingerprint));
  DS_ASSIGN(q.layers, root.integer("layers", 1, 100'000));
  DS_ASSIGN(q.metric, root.string("metric"));
  DS_ASSIGN(q.items, root.integer("items", 1, INT32_MAX));
  DS_ASSIGN(q.receiver_score, root.number("receiver_score", 0, 100));
  DS_ASSIGN(q.full_reuse_score, root.number("full_reuse_score", 0, 100));
  DS_ASSIGN(const nlohmann::json* groups, root.array("groups"));
  if (groups->empty()) {
    return error(Code::kInvalidArgument,
                 "{}: 'groups' is empty, expected the scores of at least one group of layers", path);
  }
  for (size_t i = 0; i < groups->size(); ++i) {
    DS_ASSIGN(JsonObject o, JsonObject::make((*groups)[i], fmt::format("{}: groups[{}]", path, i)));
    DS_TRY(check_keys(o, {"first", "last", "score", "stderr"}));
    GroupScore g;
    DS_ASSIGN(g.group.first, o.integer("first", 0, q.layers - 1));
    DS_ASSIGN(g.group.last, o.integer("last", g.group.first, q.layers - 1));
    DS_ASSIGN(g.score, o.number("score", 0, 100));
    DS_ASSIGN(g.standard_error, o.number_or("stderr", 0, 100, 0));
    for (const GroupScore& other : q.groups) {
      if (other.group == g.group)
        return error(Code::kInvalidArgument, "{}: group {} was scored before; expected each group once",
                     o.where(), format_layers(g.group));
    }
    q.groups.push_back(g);
  }
  return q;
}

double Quality::loss(const LayerRange& group) const {
  if (group.size() == layers) return 0;
  double score = std::nan("");
  if (group.empty()) score = full_reuse_score;
  for (const GroupScore& g : groups)
    if (g.group == group) score = g.score;
  return receiver_score - score;
}

Status Quality::check_pair(const std::string& path, const std::string& sender, const std::string& receiver,
                           int64_t model_layers) const {
  if (layers != model_layers)
    return error(Code::kMismatch, "{}: 'layers' is {}, but the models have {}", path, layers, model_layers);
  auto same = [&](std::string_view role, const std::string& name, const std::string& found,
                  const std::string& expected) -> Status {
    if (found == expected) return ok_status();
    return error(Code::kMismatch,
                 "{}: pair.{}.fingerprint is {} ('{}'), but --{} has {}; the profile is of another pair, run "
                 "ds-profile for this one",
                 path, role, found, name, role, expected);
  };
  DS_TRY(same("sender", sender_name, sender_fingerprint, sender));
  return same("receiver", receiver_name, receiver_fingerprint, receiver);
}

}  // namespace ds
