// A plan as one JSON object, for programs: every field of the plan file, under the names of plans/plan.fbs.
#pragma once

#include <nlohmann/json.hpp>

#include "plans/plan.h"

namespace ds {

/// {"schema": "droidspeak.plan", "version": 1, ...}. Open ends of ranges and an unknown quality loss are
/// null.
nlohmann::ordered_json plan_to_json(const Plan& plan);

}  // namespace ds
