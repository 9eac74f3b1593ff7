#include "profiler/longbench.h"

namespace ds {

const LongBenchTask* longbench_task(std::string_view dataset) {
  static constexpr bool kFirstLine = true, kPlain = false;
  static constexpr LongBenchTask kTasks[] = {
      {"narrativeqa", Metric::kQaF1},
      {"qasper", Metric::kQaF1},
      {"multifieldqa_en", Metric::kQaF1},
      {"multifieldqa_zh", Metric::kQaF1Zh},
      {"hotpotqa", Metric::kQaF1},
      {"2wikimqa", Metric::kQaF1},
      {"musique", Metric::kQaF1},
      {"dureader", Metric::kRougeLZh},
      {"gov_report", Metric::kRougeL},
      {"qmsum", Metric::kRougeL},
      {"multi_news", Metric::kRougeL},
      {"vcsum", Metric::kRougeLZh},
      {"trec", Metric::kClassification, kFirstLine, kPlain},
      {"triviaqa", Metric::kQaF1, kFirstLine, kPlain},
      {"samsum", Metric::kRougeL, kFirstLine, kPlain},
      {"lsht", Metric::kClassification, kFirstLine, kPlain},
      {"passage_retrieval_en", Metric::kRetrieval},
      {"passage_count", Metric::kCount},
      {"passage_retrieval_zh", Metric::kRetrievalZh},
      {"lcc", Metric::kCodeSim, !kFirstLine, kPlain},
      {"repobench-p", Metric::kCodeSim, !kFirstLine, kPlain},
  };
  constexpr std::string_view kOfE = "_e";
  if (dataset.ends_with(kOfE)) dataset.remove_suffix(kOfE.size());
  for (const LongBenchTask& task : kTasks)
    if (task.name == dataset) return &task;
  return nullptr;
}

std::optional<Metric> longbench_metric(std::string_view dataset) {
  const LongBenchTask* task = longbench_task(dataset);
  return task != nullptr ? std::optional(task->metric) : std::nullopt;
}

bool longbench_first_line(std::string_view dataset) {
  const LongBenchTask* task = longbench_task(dataset);
  return task != nullptr && task->first_line;
}

}  // namespace ds
