// Data sets to score answers on: JSON lines with LongBench's fields, read as LongBench publishes them.
//
// A line has `context` (the shared text), `input` (the question, may be empty), `answers` (a list of accepted
// ones) and `dataset` (the task's name); it may have `_id` and `metric`, which goes before every other choice
// of one; `all_classes` lists the classes that the metric classification compares with. LongBench's other
// keys, and any unknown one, are ignored.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "profiler/jieba.h"
#include "profiler/longbench.h"
#include "support/status.h"

namespace ds {

struct Item {
  std::string context, input;
  std::vector<std::string> answers;  // at least one that is not empty
  std::string task;                  // `dataset`
  Metric metric = Metric::kQaF1;     // the same for all items of a task
  std::vector<std::string> classes;  // `all_classes`; empty where there are none
  std::string id;                    // `_id`; empty where there is none
  int64_t line = 0;                  // from 1
  std::string where;                 // "notes.jsonl:3", for messages
};

struct Dataset {
  std::string path, sha256;  // of the file's bytes
  std::vector<Item> items;
};

/// A task's metric where the item names none; nullopt: not known.
using MetricOfTask = std::function<std::optional<Metric>(std::string_view task)>;

/// Errors say file and line: those of read_json_lines(); kCorrupt and kInvalidArgument for a missing or
/// ill-typed field, no answer, an empty context, an unknown metric, a task of unknown metric or of two, and
/// what check_answers() refuses; kUnsupported for LongBench-v2's fields and for a file that is one JSON list.
Result<Dataset> read_dataset(const std::string& path, const MetricOfTask& metric_of = longbench_metric);

/// What cuts Chinese text into words, where an item's metric needs that, else null. `folder`: of the package
/// jieba, see Jieba::find_folder(). Errors: those of Jieba::load(), with the item that needs it.
Result<std::shared_ptr<const Jieba>> load_words(std::span<const Dataset> data, const std::string& folder);

}  // namespace ds
