#include "plans/quality.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <map>
#include <set>

#include "plans/traits.h"
#include "support/json.h"
#include "support/schema.h"
#include "support/student.h"

namespace ds {
namespace {

constexpr double kMostNats = 1e6;
constexpr size_t kMostWays = 200'000, kMostSamples = 1'000'000;

using Json = nlohmann::ordered_json;

Result<const WayForm*> parse_kind(const JsonObject& o) {
  DS_ASSIGN(std::string text, o.string("kind"));
  std::vector<std::string_view> kinds;
  for (const WayForm& form : way_forms()) {
    if (form.kind == text) return &form;
    kinds.push_back(form.kind);
  }
  return error(Code::kInvalidArgument, "{}: unknown kind '{}'; expected one of {}", o.at("kind"), text,
               fmt::join(kinds, ", "));
}

Result<Way> read_way(const JsonObject& o, int64_t layers) {
  DS_ASSIGN(const WayForm* form, parse_kind(o));
  Way way{.mode = form->mode, .control = form->control};
  if (form->lists != WayForm::Lists::kNothing) {
    DS_ASSIGN(std::string text, o.string("layers"));
    auto ranges = parse_layer_set(text, layers);
    if (!ranges.ok()) return ranges.status().with_context(o.at("layers"));
    way.layers = std::move(*ranges);
    if (form->lists == WayForm::Lists::kOneRun && way.layers.size() != 1)
      return error(Code::kInvalidArgument, "{}: '{}' are {} ranges, expected one", o.at("layers"), text,
                   way.layers.size());
  }
  if (form->has_share()) {
    DS_ASSIGN(way.share, o.number("share", 1e-6, 1));
  }
  if (o.has("map")) {
    DS_ASSIGN(std::string form, o.string("map"));
    DS_ASSIGN(way.map, parse_map_form(form, o.at("map")));
    DS_ASSIGN(way.map_control, o.string_or("map_control", ""));
    if (!way.can_align())
      return error(Code::kInvalidArgument,
                   "{}: '{}' starts from no hidden states of the sender; expected no map", o.at("map"),
                   way.name());
  }
  return way;
}

Result<Mean> read_mean(const JsonObject& o, std::string_view key, double low, double high) {
  if (!o.has(key)) return Mean{std::nan(""), std::nan("")};
  DS_ASSIGN(JsonObject m, o.object(key));
  DS_TRY(check_keys(m, {"mean", "stderr"}));
  Mean mean;
  DS_ASSIGN(mean.value, m.number("mean", low, high));
  DS_ASSIGN(mean.standard_error, m.number_or("stderr", 0, high, std::nan("")));
  return mean;
}

Result<std::vector<double>> read_samples(const JsonObject& o, std::string_view key, double low, double high) {
  std::vector<double> samples;
  if (!o.has(key)) return samples;
  DS_ASSIGN(const nlohmann::json* list, o.array(key));
  if (list->size() > kMostSamples)
    return error(Code::kInvalidArgument, "{}: {} samples, expected at most {}", o.at(key), list->size(),
                 kMostSamples);
  for (const auto& x : *list) {
    if (!x.is_number() || !(x.get<double>() >= low && x.get<double>() <= high))
      return error(Code::kInvalidArgument, "{}: found {}, expected numbers from {} to {}", o.at(key),
                   x.dump(), low, high);
    samples.push_back(x.get<double>());
  }
  if (!std::is_sorted(samples.begin(), samples.end()))
    return error(Code::kInvalidArgument, "{}: not in ascending order", o.at(key));
  return samples;
}

Status read_models(const JsonObject& root, Quality& q) {
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
  return model("receiver", q.receiver_name, q.receiver_fingerprint);
}

WayScore plain_score(Way way, double score, double standard_error, const Quality& q) {
  constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
  WayScore w;
  w.way = std::move(way);
  w.items = w.contexts = q.items;
  w.score = {score, standard_error};
  w.loss = {q.receiver_score - score, standard_error};
  w.exact = w.divergence = {kNone, kNone};
  return w;
}

/// The best group of each size, where it is better than full reuse and all smaller ones.
void list_pareto(Quality& q) {
  std::map<int64_t, const WayScore*> best;
  for (const WayScore& w : q.ways) {
    int64_t size = w.way.recomputed(q.layers);
    if (!w.way.is_group() || size == q.layers) continue;
    auto [at, fresh] = best.try_emplace(size, &w);
    if (!fresh && w.score.value > at->second->score.value) at->second = &w;
  }
  double most = q.full_reuse_score;
  for (auto [size, w] : best) {
    if (w->score.value <= most) continue;
    most = w->score.value;
    q.pareto.push_back(w->way.name());
  }
}

/// Version 1: one metric, groups and the two ends only; the error of a loss is taken to be the score's.
Status read_version_1(const JsonObject& root, Quality& q) {
  DS_TRY(check_keys(root, {"schema", "version", "pair", "layers", "metric", "items", "receiver_score",
                           "full_reuse_score", "groups"}));
  q.contexts = q.items;
  constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
  q.ways.push_back(plain_score(Way::full_prefill(), q.receiver_score, kNone, q));
  q.ways.back().loss = {0, 0};
  q.ways.push_back(plain_score(Way::full_reuse(), q.full_reuse_score, kNone, q));
  DS_ASSIGN(const nlohmann::json* groups, root.array("groups"));
  if (groups->empty()) {
    return error(Code::kInvalidArgument,
                 "{}: 'groups' is empty, expected the scores of at least one group of layers", root.where());
  }
  for (size_t i = 0; i < groups->size(); ++i) {
    DS_ASSIGN(JsonObject o, JsonObject::make((*groups)[i], fmt::format("{}: groups[{}]", root.where(), i)));
    DS_TRY(check_keys(o, {"first", "last", "score", "stderr"}));
    LayerRange group;
    DS_ASSIGN(group.first, o.integer("first", 0, q.layers - 1));
    DS_ASSIGN(group.last, o.integer("last", group.first, q.layers - 1));
    DS_ASSIGN(double score, o.number("score", 0, 100));
    DS_ASSIGN(double error_of_mean, o.number_or("stderr", 0, 100, std::nan("")));
    if (q.find(Way::group(group)))
      return error(Code::kInvalidArgument, "{}: group {} was scored before; expected each group once",
                   o.where(), format_layers(group));
    q.ways.push_back(plain_score(Way::group(group), score, error_of_mean, q));
  }
  list_pareto(q);
  return ok_status();
}

Result<WayScore> read_score(const JsonObject& o, const Quality& q) {
  DS_TRY(check_keys(
      o, {"way", "kind", "layers", "share", "map", "map_control", "recomputed_layers", "items", "contexts",
          "dropped", "score", "loss", "exact", "divergence", "tasks", "entropy", "margin"}));
  WayScore w;
  DS_ASSIGN(w.way, read_way(o, q.layers));
  DS_ASSIGN(w.items, o.integer("items", 0, q.items));
  DS_ASSIGN(w.contexts, o.integer("contexts", 0, q.contexts));
  DS_ASSIGN(w.dropped, o.boolean_or("dropped", false));
  DS_ASSIGN(w.score, read_mean(o, "score", 0, 100));
  DS_ASSIGN(w.loss, read_mean(o, "loss", -100, 100));
  DS_ASSIGN(w.exact, read_mean(o, "exact", 0, 100));
  DS_ASSIGN(w.divergence, read_mean(o, "divergence", -kMostNats, kMostNats));
  if (std::isnan(w.score.value))
    return error(Code::kInvalidArgument, "{}: no score; expected {{\"mean\": points}}", o.at("score"));
  if (o.has("tasks")) {
    DS_ASSIGN(const nlohmann::json* tasks, o.array("tasks"));
    if (tasks->size() != q.tasks.size())
      return error(Code::kInvalidArgument, "{}: {} scores, the profile has {} tasks", o.at("tasks"),
                   tasks->size(), q.tasks.size());
    nlohmann::json wrapped;
    for (size_t i = 0; i < tasks->size(); ++i) {
      wrapped["score"] = (*tasks)[i];
      DS_ASSIGN(JsonObject t, JsonObject::make(wrapped, fmt::format("{}[{}]", o.at("tasks"), i)));
      DS_ASSIGN(Mean mean, read_mean(t, "score", 0, 100));
      w.tasks.push_back(mean);
    }
  }
  DS_ASSIGN(w.entropy, read_samples(o, "entropy", 0, kMostNats));
  DS_ASSIGN(w.margin, read_samples(o, "margin", 0, 1));
  return w;
}

Result<Quality::Input> read_input(const nlohmann::json& json, const std::string& where) {
  DS_ASSIGN(JsonObject o, JsonObject::make(json, where));
  DS_TRY(check_keys(o, {"name", "sha256"}));
  Quality::Input input;
  DS_ASSIGN(input.name, o.string("name"));
  DS_ASSIGN(input.sha256, o.string("sha256"));
  return input;
}

template <typename T, typename Read>
Status read_list(const JsonObject& root, std::string_view key, std::vector<T>& to, Read read) {
  if (!root.has(key)) return ok_status();
  DS_ASSIGN(const nlohmann::json* list, root.array(key));
  for (size_t i = 0; i < list->size(); ++i) {
    DS_ASSIGN(JsonObject o, JsonObject::make((*list)[i], fmt::format("{}[{}]", root.at(key), i)));
    DS_ASSIGN(T value, read(o));
    to.push_back(std::move(value));
  }
  return ok_status();
}

Result<QualityTask> read_task(const JsonObject& o) {
  DS_TRY(check_keys(o, {"name", "metric", "items", "contexts"}));
  QualityTask t;
  DS_ASSIGN(t.name, o.string("name"));
  DS_ASSIGN(t.metric, o.string("metric"));
  DS_ASSIGN(t.items, o.integer("items", 1, INT32_MAX));
  DS_ASSIGN(t.contexts, o.integer("contexts", 1, INT32_MAX));
  return t;
}

Result<Selection> read_selection(const JsonObject& o) {
  DS_TRY(check_keys(
      o, {"chosen_on", "scored_on", "layers", "group", "chosen_score", "other_score", "best_score"}));
  Selection s;
  DS_ASSIGN(s.chosen_on, o.string("chosen_on"));
  DS_ASSIGN(s.scored_on, o.string("scored_on"));
  DS_ASSIGN(s.layers, o.integer("layers", 0, 100'000));
  DS_ASSIGN(s.group, o.string_or("group", ""));
  DS_ASSIGN(s.chosen_score, o.number("chosen_score", 0, 100));
  DS_ASSIGN(s.other_score, read_mean(o, "other_score", 0, 100));
  DS_ASSIGN(s.best_score, o.number("best_score", 0, 100));
  return s;
}

Result<Example> read_example(const JsonObject& o) {
  DS_TRY(check_keys(o, {"task", "question", "references", "answers"}));
  Example e;
  DS_ASSIGN(e.task, o.string("task"));
  DS_ASSIGN(e.question, o.string("question"));
  DS_ASSIGN(const nlohmann::json* references, o.array("references"));
  for (const auto& r : *references)
    if (r.is_string()) e.references.push_back(r.get<std::string>());
  DS_TRY(read_list(o, "answers", e.answers, [](const JsonObject& a) -> Result<Example::Answer> {
    DS_TRY(check_keys(a, {"way", "text", "score"}));
    Example::Answer answer;
    DS_ASSIGN(answer.way, a.string("way"));
    DS_ASSIGN(answer.text, a.string("text"));
    DS_ASSIGN(answer.score, a.number("score", 0, 100));
    return answer;
  }));
  return e;
}

Status read_version_2(const JsonObject& root, Quality& q) {
  DS_TRY(check_keys(root, {"schema",           "version",    "made_by",        "pair",  "layers",
                           "metric",           "dtype",      "granularity",    "seed",  "items",
                           "contexts",         "data",       "template",       "tasks", "receiver_score",
                           "full_reuse_score", "pareto",     "pareto_aligned", "maps",  "ways",
                           "k_deviation",      "selections", "examples",       "cost"}));
  DS_ASSIGN(q.dtype, root.string("dtype"));
  DS_ASSIGN(q.granularity, root.integer("granularity", 1, q.layers));
  DS_ASSIGN(q.seed, root.integer("seed", 0, INT64_MAX));
  DS_ASSIGN(q.contexts, root.integer("contexts", 1, q.items));
  DS_TRY(
      read_list(root, "data", q.data, [](const JsonObject& o) { return read_input(o.json(), o.where()); }));
  if (root.has("template")) {
    DS_ASSIGN(q.prompt_template, read_input(root.json()["template"], root.at("template")));
  }
  DS_TRY(read_list(root, "tasks", q.tasks, read_task));
  DS_ASSIGN(const nlohmann::json* ways, root.array("ways"));
  if (ways->empty() || ways->size() > kMostWays)
    return error(Code::kInvalidArgument, "{}: {} entries, expected 1 to {}", root.at("ways"), ways->size(),
                 kMostWays);
  std::set<std::string> names;
  DS_TRY(read_list(root, "ways", q.ways, [&](const JsonObject& o) -> Result<WayScore> {
    DS_ASSIGN(WayScore w, read_score(o, q));
    if (!names.insert(w.way.name()).second)
      return error(Code::kInvalidArgument, "{}: '{}' was scored before; expected each way once", o.where(),
                   w.way.name());
    return w;
  }));
  auto read_names = [&](std::string_view key, std::vector<std::string>& to) -> Status {
    if (!root.has(key)) return ok_status();
    DS_ASSIGN(const nlohmann::json* list, root.array(key));
    for (const auto& name : *list) {
      if (!name.is_string() || !names.contains(name.get<std::string>()))
        return error(Code::kInvalidArgument, "{}: {} is not among the ways", root.at(key), name.dump());
      to.push_back(name.get<std::string>());
    }
    return ok_status();
  };
  DS_TRY(read_names("pareto", q.pareto));
  DS_TRY(read_names("pareto_aligned", q.pareto_aligned));
  if (root.has("maps")) {
    DS_ASSIGN(JsonObject maps, root.object("maps"));
    DS_TRY(check_keys(maps, {"name", "fingerprint"}));
    DS_ASSIGN(q.maps.name, maps.string("name"));
    DS_ASSIGN(q.maps.fingerprint, maps.string("fingerprint"));
  }
  for (const WayScore& w : q.ways) {
    if (w.way.map == MapForm::kNone || !w.way.map_control.empty() || !q.maps.fingerprint.empty()) continue;
    return error(Code::kInvalidArgument, "{}: absent, but '{}' was scored with maps; expected what they were",
                 root.at("maps"), w.way.name());
  }
  DS_ASSIGN(q.k_deviation, read_samples(root, "k_deviation", 0, kMostNats));
  DS_TRY(read_list(root, "selections", q.selections, read_selection));
  DS_TRY(read_list(root, "examples", q.examples, read_example));
  if (root.has("cost")) q.cost = root.json()["cost"];
  return ok_status();
}

/// Six significant digits at most: what a profile knows, and files that people can compare.
Json number(double x) {
  if (!std::isfinite(x)) return nullptr;
  return profile_precision(x);
}

Json mean_json(const Mean& m) {
  Json json;
  json["mean"] = number(m.value);
  if (std::isfinite(m.standard_error)) json["stderr"] = number(m.standard_error);
  return json;
}

Json samples_json(const std::vector<double>& samples) {
  Json json = Json::array();
  for (double x : samples) json.push_back(number(x));
  return json;
}

}  // namespace

double profile_precision(double x) {
  if (!std::isfinite(x)) return x;
  char text[32];
  char* end = fmt::format_to_n(text, sizeof text, "{:.6g}", x).out;
  std::from_chars(text, end, x);
  return x;
}

bool Quality::has_divergences() const {
  return std::any_of(ways.begin(), ways.end(), [](const WayScore& w) {
    return !w.way.is_full_prefill() && std::isfinite(w.divergence.value);
  });
}

const WayScore* Quality::find(const Way& way) const {
  for (const WayScore& w : ways)
    if (w.way == way && !w.dropped) return &w;
  return nullptr;
}

Mean Quality::loss(const LayerRange& group) const {
  if (group.size() == layers) return {0, 0};
  const WayScore* w = find(group.empty() ? Way::full_reuse() : Way::group(group));
  return w ? w->loss : Mean{std::nan(""), std::nan("")};
}

namespace {

double upper_bound(const WayScore& w, const Mean& mean, double confidence) {
  if (w.way.is_full_prefill()) return 0;
  if (w.contexts < 2 || std::isnan(mean.standard_error)) return std::nan("");
  return mean.value + student_quantile(confidence, w.contexts - 1) * mean.standard_error;
}

}  // namespace

double Quality::loss_bound(const WayScore& w, double confidence) const {
  return upper_bound(w, w.loss, confidence);
}

double Quality::divergence_bound(const WayScore& w, double confidence) const {
  return upper_bound(w, w.divergence, confidence);
}

Result<Quality> Quality::read(const std::string& path) {
  DS_ASSIGN(nlohmann::json json, read_json_file(path));
  DS_ASSIGN(JsonObject root, JsonObject::make(json, path));
  DS_TRY(check_schema(root, "droidspeak.quality", kQualityVersion));
  Quality q;
  DS_ASSIGN(q.version, root.integer("version", 1, kQualityVersion));
  DS_TRY(read_models(root, q));
  DS_ASSIGN(q.layers, root.integer("layers", 1, 100'000));
  DS_ASSIGN(q.metric, root.string("metric"));
  DS_ASSIGN(q.items, root.integer("items", 1, INT32_MAX));
  DS_ASSIGN(q.receiver_score, root.number("receiver_score", 0, 100));
  DS_ASSIGN(q.full_reuse_score, root.number("full_reuse_score", 0, 100));
  DS_TRY(q.version == 1 ? read_version_1(root, q) : read_version_2(root, q));
  return q;
}

Json Quality::to_json() const {
  auto model = [](const std::string& name, const std::string& fingerprint) {
    return Json{{"name", name}, {"fingerprint", fingerprint}};
  };
  auto input = [](const Input& i) { return Json{{"name", i.name}, {"sha256", i.sha256}}; };
  Json root;
  root["schema"] = "droidspeak.quality";
  root["version"] = kQualityVersion;
  root["made_by"] = "ds-profile " DS_PLANS_VERSION;
  root["pair"] = {{"sender", model(sender_name, sender_fingerprint)},
                  {"receiver", model(receiver_name, receiver_fingerprint)}};
  root["layers"] = layers;
  root["metric"] = metric;
  root["dtype"] = dtype;
  root["granularity"] = granularity;
  root["seed"] = seed;
  root["items"] = items;
  root["contexts"] = contexts;
  root["data"] = Json::array();
  for (const Input& d : data) root["data"].push_back(input(d));
  root["template"] = input(prompt_template);
  root["tasks"] = Json::array();
  for (const QualityTask& t : tasks)
    root["tasks"].push_back(
        {{"name", t.name}, {"metric", t.metric}, {"items", t.items}, {"contexts", t.contexts}});
  root["receiver_score"] = number(receiver_score);
  root["full_reuse_score"] = number(full_reuse_score);
  root["pareto"] = pareto;
  if (!maps.fingerprint.empty()) {
    root["pareto_aligned"] = pareto_aligned;
    root["maps"] = {{"name", maps.name}, {"fingerprint", maps.fingerprint}};
  }
  root["ways"] = Json::array();
  for (const WayScore& w : ways) {
    Json j;
    j["way"] = w.way.name();
    j["kind"] = w.way.form().kind;
    if (!w.way.layers.empty()) j["layers"] = format_layer_set(w.way.layers);
    if (w.way.form().has_share()) j["share"] = w.way.share;
    if (w.way.map != MapForm::kNone) j["map"] = map_form_name(w.way.map);
    if (!w.way.map_control.empty()) j["map_control"] = w.way.map_control;
    j["recomputed_layers"] = w.way.recomputed(layers);
    j["items"] = w.items;
    j["contexts"] = w.contexts;
    if (w.dropped) j["dropped"] = true;
    j["score"] = mean_json(w.score);
    j["loss"] = mean_json(w.loss);
    if (std::isfinite(w.exact.value)) j["exact"] = mean_json(w.exact);
    if (std::isfinite(w.divergence.value)) j["divergence"] = mean_json(w.divergence);
    if (!w.tasks.empty()) {
      j["tasks"] = Json::array();
      for (const Mean& m : w.tasks) j["tasks"].push_back(mean_json(m));
    }
    if (!w.entropy.empty()) j["entropy"] = samples_json(w.entropy);
    if (!w.margin.empty()) j["margin"] = samples_json(w.margin);
    root["ways"].push_back(std::move(j));
  }
  root["k_deviation"] = samples_json(k_deviation);
  root["selections"] = Json::array();
  for (const Selection& s : selections) {
    Json j{{"chosen_on", s.chosen_on}, {"scored_on", s.scored_on}, {"layers", s.layers}};
    if (!s.group.empty()) j["group"] = s.group;
    j["chosen_score"] = number(s.chosen_score);
    j["other_score"] = mean_json(s.other_score);
    j["best_score"] = number(s.best_score);
    root["selections"].push_back(std::move(j));
  }
  root["examples"] = Json::array();
  for (const Example& e : examples) {
    Json answers = Json::array();
    for (const auto& a : e.answers)
      answers.push_back({{"way", a.way}, {"text", a.text}, {"score", number(a.score)}});
    root["examples"].push_back({{"task", e.task},
                                {"question", e.question},
                                {"references", e.references},
                                {"answers", std::move(answers)}});
  }
  if (!cost.is_null()) root["cost"] = cost;
  return root;
}

std::string Quality::to_text() const {
  auto dump = [](const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); };
  std::string text = "{";
  const Json root = to_json();
  for (const auto& [key, value] : root.items()) {
    text += fmt::format("{}\n \"{}\": ", text.size() > 1 ? "," : "", key);
    bool lines = value.is_array() && !value.empty() && value[0].is_object();
    if (!lines) {
      text += dump(value);
      continue;
    }
    for (size_t i = 0; i < value.size(); ++i) text += (i == 0 ? "[\n  " : ",\n  ") + dump(value[i]);
    text += "\n ]";
  }
  return text + "\n}\n";
}

Status Quality::check_pair(const std::string& path, const std::vector<std::string>& sender,
                           const std::vector<std::string>& receiver, int64_t model_layers,
                           std::string_view whose) const {
  if (layers != model_layers)
    return error(Code::kMismatch, "{}: 'layers' is {}, but the models have {}", path, layers, model_layers);
  auto same = [&](std::string_view role, const std::string& name, const std::string& found,
                  const std::vector<std::string>& expected) -> Status {
    if (std::find(expected.begin(), expected.end(), found) != expected.end()) return ok_status();
    return error(
        Code::kMismatch,
        "{}: pair.{}.fingerprint is {} ('{}'), but {}{} has {}; the profile is of another pair{}, run "
        "ds-profile for this one",
        path, role, found, name, whose, role, expected[0],
        version < 4 ? " (or its tokenizer's file has changed, which profiles before version 4 name too)"
                    : "");
  };
  DS_TRY(same("sender", sender_name, sender_fingerprint, sender));
  return same("receiver", receiver_name, receiver_fingerprint, receiver);
}

}  // namespace ds
