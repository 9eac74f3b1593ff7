// What differs between two plans, in words: `ds-plan diff`.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "plans/plan.h"

namespace ds {

struct PlanChange {
  std::string where;            // "plan", or a variant's name
  std::string field;            // "promised TTFT"
  nlohmann::ordered_json a, b;  // the values; null where there is none
  std::string text;             // "4.318 ms -> 3.9 ms (-9.7 %)"
};

/// Empty when the plans are equal in every field. Variants are matched by their ranges of length and link
/// rate; those whose ranges are in one plan only, by name.
std::vector<PlanChange> diff_plans(const Plan& a, const Plan& b);

/// One line per change, under the variant it belongs to.
std::string plan_diff_text(const std::vector<PlanChange>& changes);
nlohmann::ordered_json plan_diff_json(const std::vector<PlanChange>& changes);

}  // namespace ds
