#include "profiler/dataset.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <map>

#include "profiler/json_lines.h"

namespace ds {
namespace {

constexpr std::string_view kWhat = "the fields context, input, answers and dataset";

Result<std::vector<std::string>> read_answers(const JsonObject& o) {
  DS_ASSIGN(const nlohmann::json* list, o.array("answers"));
  std::vector<std::string> answers;
  for (size_t i = 0; i < list->size(); ++i) {
    if (!(*list)[i].is_string())
      return error(Code::kInvalidArgument, "{}: answers[{}] is not a string; expected a list of strings",
                   o.where(), i);
    answers.push_back((*list)[i].get<std::string>());
  }
  if (std::all_of(answers.begin(), answers.end(), [](const std::string& a) { return a.empty(); })) {
    return error(Code::kInvalidArgument,
                 "{}: found {}, expected at least one that is not empty; add an accepted answer or take the "
                 "item out",
                 o.at("answers"), answers.empty() ? "no answer" : "empty answers only");
  }
  return answers;
}

/// Ids are for people: a number will do.
Result<std::string> read_id(const JsonObject& o) {
  if (o.has("_id") && o.json()["_id"].is_number_integer()) return o.json()["_id"].dump();
  return o.string_or("_id", "");
}

Result<Metric> read_metric(const JsonObject& o, const std::string& task, const MetricOfTask& metric_of) {
  if (o.has("metric")) {
    DS_ASSIGN(std::string name, o.string("metric"));
    Result<Metric> metric = parse_metric(name);
    if (!metric.ok()) return metric.status().with_context(o.at("metric"));
    return metric;
  }
  if (std::optional<Metric> metric = metric_of(task)) return *metric;
  return error(
      Code::kInvalidArgument,
      "{}: data set '{}' has no known metric; give a metric in the prompt template file or a 'metric' "
      "field in the item: {}",
      o.at("dataset"), task, fmt::join(kMetricNames, ", "));
}

Result<Item> read_item(const JsonObject& o, int64_t line, const MetricOfTask& metric_of) {
  Item item;
  item.line = line;
  item.where = o.where();
  for (std::string_view key : {"context", "input", "answers", "dataset"})
    if (!o.has(key))
      return error(Code::kCorrupt, "{}: key '{}' is missing; expected {}", o.where(), key, kWhat);
  DS_ASSIGN(item.context, o.string("context"));
  DS_ASSIGN(item.input, o.string("input"));
  DS_ASSIGN(item.answers, read_answers(o));
  DS_ASSIGN(item.task, o.string("dataset"));
  DS_ASSIGN(item.id, read_id(o));
  if (item.context.empty())
    return error(Code::kInvalidArgument, "{}: empty; expected the text that sender and receiver share",
                 o.at("context"));
  DS_ASSIGN(item.metric, read_metric(o, item.task, metric_of));
  return item;
}

}  // namespace

Result<Dataset> read_dataset(const std::string& path, const MetricOfTask& metric_of) {
  Dataset data;
  data.path = path;
  std::map<std::string, size_t> first_of_task;
  auto add = [&](const JsonObject& o, int64_t line) -> Status {
    DS_ASSIGN(Item item, read_item(o, line, metric_of));
    auto [it, is_first] = first_of_task.try_emplace(item.task, data.items.size());
    if (const Item* first = is_first ? &item : &data.items[it->second]; first->metric != item.metric) {
      return error(Code::kInvalidArgument,
                   "{}: data set '{}' is scored by {} here and by {} in line {}; expected one metric for all "
                   "items of a data set",
                   o.at("metric"), item.task, metric_name(item.metric), metric_name(first->metric),
                   first->line);
    }
    data.items.push_back(std::move(item));
    return ok_status();
  };
  DS_ASSIGN(data.sha256, read_json_lines(path, kWhat, add));
  return data;
}

}  // namespace ds
