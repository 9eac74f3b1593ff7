// What LongBench does with each of its 21 data sets: the tables of its eval.py and pred.py.
//
// Not done: for samsum its pred.py ends an answer at a line break, but never with the first token; here such
// answers go on, and only their first line is scored. It cuts whole prompts in the middle, --truncate cuts
// contexts.
#pragma once

#include <string_view>

#include "profiler/metrics.h"

namespace ds {

struct LongBenchTask {
  std::string_view name;
  Metric metric;
  bool first_line = false;  // only first_line() of an answer is scored: few-shot tasks, where models go on
                            // with the next example
  bool chat = true;         // asked through the model's chat template; few-shot and code tasks are not
};

/// By the name of a data set, or of its LongBench-E form ("hotpotqa_e"); nullptr for one that LongBench does
/// not have.
const LongBenchTask* longbench_task(std::string_view dataset);

std::optional<Metric> longbench_metric(std::string_view dataset);
bool longbench_first_line(std::string_view dataset);

}  // namespace ds
