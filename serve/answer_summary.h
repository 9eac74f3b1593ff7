// What was reused for an answer, and what it took: for clients, metrics, the log and the page.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "serve/generation.h"
#include "serve/loaded_fleet.h"

namespace ds {

struct AnswerSummary {
  std::string cache;    // "hit", "miss", "repaired" or "unused": of the store
  std::string reason;   // of a miss, or of what was repaired, a word; "": none
  std::string shorter;  // why the entries have not all of the context, likewise
  std::string why;      // nothing of a sender's is in the answer because of this; "": something is
  std::string sender, plan, variant, way;  // way: "full prefill" without a plan
  bool prefix = false;                     // the prefix cache had its beginning
  double promised_loss = kUnknown;         // points; of a full prefill 0
  std::string gate = "off";                // "off", "passed" or "alarm"
  std::string gate_says;                   // its values and thresholds; "": off
  int64_t bytes = 0;
  int64_t prompt_tokens = 0, cached_tokens = 0, new_tokens = 0;
  int64_t queue_ns = 0, ttft_ns = 0, end_ns = 0, lost_ns = 0,
          predicted_ttft_ns = 0;              // predicted 0: not known
  int64_t transfers = 0, lost_transfers = 0;  // of a run that was repaired

  static AnswerSummary of(const ServedModel& model, const Generation& generation, size_t choice);
  nlohmann::ordered_json json() const;
};

/// A miss in a word: "not found", "late", "corrupt", ...
std::string miss_reason(const Status& miss);

}  // namespace ds
