// What is kept of one profiled context: every way's answers and scores. A run is a folder of such files, one
// per context, which stand for themselves: no data set is needed to make a profile of them.
#pragma once

#include <string>
#include <vector>

#include "profiler/metrics.h"
#include "support/status.h"

namespace ds {

struct WayResult {
  bool scored = false;                             // false: racing had dropped the way before this context
  double score = 0;                                // of the task's metric, 0 to 1
  double exact = 0;                                // 0 or 1
  double divergence = 0, entropy = 0, margin = 0;  // as in engine.h; divergence NaN: has none
  std::string text;                                // as scored
};

struct ItemRecord {
  std::string source;  // "SHA-256 of the data file:line": the same in every run
  std::string task, question;
  Metric metric = Metric::kQaF1;
  std::vector<std::string> references;
  std::vector<WayResult> ways;  // in the order of the run's ways
};

struct ContextRecord {
  int64_t index = 0;  // in the run's order
  int64_t tokens = 0;
  double k_deviation = 0;
  std::vector<ItemRecord> items;
};

/// The same record gives the same text; doubles survive it to the bit.
std::string record_text(const ContextRecord& record);
/// kCorrupt where it is not one, is cut short, or its content is not what its checksum says; `origin` names
/// the file. `ways`: how many each item must have.
Result<ContextRecord> parse_record(std::string_view text, const std::string& origin, size_t ways);

}  // namespace ds
