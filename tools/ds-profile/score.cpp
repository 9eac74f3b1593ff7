// ds-profile score: scores predictions that exist already, as LongBench's eval.py does.
#include <fmt/ranges.h>

#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "profiler/dataset.h"
#include "profiler/json_lines.h"
#include "support/file.h"
#include "tools/ds-profile/profile.h"

namespace ds {
namespace {

struct ScoreOptions {
  std::string metric = "auto", data, predictions, jieba;
  bool text = false, json = false;
};

struct Prediction {
  std::string text, where;                               // where: "pred.jsonl:3"
  std::optional<std::vector<std::string>> answers = {};  // its item's, where the file repeats them
};

struct TaskScores {
  std::string name;
  Metric metric;
  std::vector<double> scores;
};

Result<std::vector<Prediction>> read_text_predictions(const std::string& path) {
  DS_ASSIGN(std::string text, read_text_file(path));
  std::vector<Prediction> predictions;
  DS_TRY(for_each_line(text, [&](std::string_view line, int64_t number) {
    predictions.push_back({std::string(line), fmt::format("{}:{}", path, number)});
    return ok_status();
  }));
  return predictions;
}

/// LongBench's own output: "pred", and beside it a copy of the item's answers.
Result<std::vector<Prediction>> read_json_predictions(const std::string& path) {
  std::vector<Prediction> predictions;
  auto add = [&](const JsonObject& o, int64_t) -> Status {
    Prediction& p = predictions.emplace_back();
    p.where = o.where();
    DS_ASSIGN(p.text, o.string("pred"));
    if (!o.has("answers") || !o.json()["answers"].is_array()) return ok_status();
    p.answers.emplace();
    for (const auto& answer : o.json()["answers"])
      if (answer.is_string()) p.answers->push_back(answer.get<std::string>());
    return ok_status();
  };
  Result<std::string> read = read_json_lines(path, "the field pred", add);
  if (!read.ok()) {
    return error(read.status().code(), "{}\nfor plain text, one prediction a line, add --text",
                 read.status().message());
  }
  return predictions;
}

/// One prediction per item, in the items' order.
Status check_order(const ScoreOptions& o, const Dataset& data, const std::vector<Prediction>& predictions) {
  if (predictions.size() != data.items.size()) {
    return error(
        Code::kMismatch,
        "'{}' has {} predictions, '{}' has {} items; expected one prediction for each item, in order",
        o.predictions, predictions.size(), o.data, data.items.size());
  }
  for (size_t i = 0; i < predictions.size(); ++i) {
    const Prediction& p = predictions[i];
    if (p.answers && *p.answers != data.items[i].answers) {
      return error(Code::kMismatch,
                   "{}: its 'answers' are not those of {}; expected the predictions in the order of the data "
                   "(several processes that write one file mix them)",
                   p.where, data.items[i].where);
    }
  }
  return ok_status();
}

Result<Dataset> read_data(const ScoreOptions& o) {
  if (o.metric == "auto") return read_dataset(o.data);
  Result<Metric> metric = parse_metric(o.metric);
  if (!metric.ok()) return metric.status().with_context("--metric");
  DS_ASSIGN(Dataset data, read_dataset(o.data, [&](std::string_view) { return *metric; }));
  for (Item& item : data.items) {
    item.metric = *metric;
    DS_TRY(check_answers(*metric, item.answers, item.classes).with_context(item.where));
  }
  return data;
}

void print_table(const std::vector<TaskScores>& tasks, double average) {
  size_t width = 4;
  for (const TaskScores& t : tasks) width = std::max(width, t.name.size());
  size_t metric_width = 11;
  for (const TaskScores& t : tasks) metric_width = std::max(metric_width, metric_name(t.metric).size());
  fmt::print("{:<{}}  {:<{}}  {:>6}  {:>6}\n", "task", width, "metric", metric_width, "items", "score");
  for (const TaskScores& t : tasks)
    fmt::print("{:<{}}  {:<{}}  {:>6}  {:>6.2f}\n", t.name, width, metric_name(t.metric), metric_width,
               t.scores.size(), points(t.scores));
  if (tasks.size() > 1) fmt::print("average of {} tasks: {:.2f}\n", tasks.size(), average);
}

void print_json(const std::vector<TaskScores>& tasks, double average, const std::vector<double>& items) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const TaskScores& t : tasks)
    list.push_back({{"name", t.name},
                    {"metric", metric_name(t.metric)},
                    {"items", t.scores.size()},
                    {"score", points(t.scores)}});
  nlohmann::ordered_json out = {{"tasks", list}, {"score", average}, {"items", items}};
  fmt::print("{}\n", out.dump(2));
}

Status run_score(const ScoreOptions& o) {
  DS_ASSIGN(Dataset data, read_data(o));
  DS_ASSIGN(std::vector<Prediction> predictions,
            o.text ? read_text_predictions(o.predictions) : read_json_predictions(o.predictions));
  DS_TRY(check_order(o, data, predictions));
  DS_ASSIGN(std::shared_ptr<const Jieba> words, load_words({&data, 1}, o.jieba));
  std::vector<TaskScores> tasks;
  std::map<std::string, size_t> task_of_name;
  std::vector<double> items;
  for (size_t i = 0; i < predictions.size(); ++i) {
    const Item& item = data.items[i];
    std::string_view text = predictions[i].text;
    if (longbench_first_line(item.task)) text = first_line(text);
    items.push_back(score(item.metric, text, item.answers, {item.classes, words.get()}));
    size_t task = task_of_name.try_emplace(item.task, tasks.size()).first->second;
    if (task == tasks.size()) tasks.push_back({item.task, item.metric, {}});
    tasks[task].scores.push_back(items.back());
  }
  double sum = 0;
  for (const TaskScores& t : tasks) sum += points(t.scores);
  double average = round_points(sum / static_cast<double>(tasks.size()));
  if (o.json) {
    print_json(tasks, average, items);
  } else {
    print_table(tasks, average);
  }
  return ok_status();
}

}  // namespace

Action add_score(CLI::App& app) {
  auto o = std::make_shared<ScoreOptions>();
  CLI::App* cmd = app.add_subcommand(
      "score", "score predictions that exist already: points by task as LongBench's eval.py prints them");
  cmd->add_option(
         "--metric", o->metric,
         fmt::format("for all items: {}; auto: the item's own 'metric', else LongBench's for its data set",
                     fmt::join(kMetricNames, ", ")))
      ->capture_default_str();
  cmd->add_option("--data", o->data,
                  "JSON lines with context, input, answers and dataset (LongBench's fields)")
      ->required();
  cmd->add_option("--predictions", o->predictions,
                  "JSON lines with pred (LongBench's output), one for each item, in order")
      ->required();
  cmd->add_option("--jieba", o->jieba, kJiebaHelp);
  cmd->add_flag("--text", o->text,
                "predictions are plain text, one a line (an empty line is an empty answer)");
  cmd->add_flag("--json", o->json,
                "print one JSON object: tasks and score in points (0 to 100), items from 0 to 1 in order");
  cmd->footer(
      "Examples:\n"
      "  ds-profile score --data hotpotqa.jsonl --predictions pred/hotpotqa.jsonl\n"
      "  ds-profile score --data notes.jsonl --metric exact_match --predictions answers.txt --text\n"
      "  ds-profile score --data mixed.jsonl --predictions pred.jsonl --json");
  return [o] { return run_score(*o); };
}

}  // namespace ds
