#include "profiler/dataset.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <map>

#include "profiler/json_lines.h"
#include "support/file.h"

namespace ds {
namespace {

constexpr std::string_view kWhat = "the fields context, input, answers and dataset";

Result<std::vector<std::string>> read_strings(const JsonObject& o, const char* key) {
  DS_ASSIGN(const nlohmann::json* list, o.array(key));
  std::vector<std::string> strings;
  for (size_t i = 0; i < list->size(); ++i) {
    if (!(*list)[i].is_string())
      return error(Code::kInvalidArgument, "{}: {}[{}] is not a string; expected a list of strings",
                   o.where(), key, i);
    strings.push_back((*list)[i].get<std::string>());
  }
  return strings;
}

Result<std::vector<std::string>> read_answers(const JsonObject& o) {
  DS_ASSIGN(std::vector<std::string> answers, read_strings(o, "answers"));
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

/// LongBench-v2 asks for one of four choices, in fields and by a prompt of its own.
Status check_version(const JsonObject& o) {
  if (!o.has("question") || !o.has("choice_A")) return ok_status();
  return error(
      Code::kUnsupported,
      "{}: found the fields question and choice_A to choice_D: this is LongBench-v2, which is not read; "
      "expected LongBench's fields. Write question and choices into 'input', the answer's letter into "
      "'answers', a name into 'dataset' and \"exact_match\" into 'metric'",
      o.where());
}

Result<Item> read_item(const JsonObject& o, int64_t line, const MetricOfTask& metric_of) {
  Item item;
  DS_TRY(check_version(o));
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
  if (o.has("all_classes")) {
    DS_ASSIGN(item.classes, read_strings(o, "all_classes"));
  }
  DS_TRY(check_answers(item.metric, item.answers, item.classes).with_context(o.where()));
  return item;
}

/// As LongBench-v2's data.json and data sets of many others are.
bool is_json_list(const std::string& path) {
  Result<MappedFile> file = MappedFile::open(path);
  if (!file.ok()) return false;
  std::string_view text(reinterpret_cast<const char*>(file->bytes().data()), file->bytes().size());
  size_t first = text.find_first_not_of(" \t\r\n");
  return first != std::string_view::npos && text[first] == '[';
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
  Result<std::string> read = read_json_lines(path, kWhat, add);
  if (!read.ok() && is_json_list(path))
    return read.status().with_context("a JSON list, not JSON lines (jq -c '.[]' FILE makes lines of a list)");
  DS_ASSIGN(data.sha256, std::move(read));
  return data;
}

Result<std::shared_ptr<const Jieba>> load_words(std::span<const Dataset> data, const std::string& folder) {
  for (const Dataset& set : data) {
    for (const Item& item : set.items) {
      if (!needs_words(item.metric)) continue;
      auto words = Jieba::load(Jieba::find_folder(folder));
      if (!words.ok())
        return words.status().with_context(fmt::format("{}: data set '{}' is scored by {}", item.where,
                                                       item.task, metric_name(item.metric)));
      return words;
    }
  }
  return std::shared_ptr<const Jieba>();
}

}  // namespace ds
