// Plans as IR and back: `plan` text <-> ds::Plan (plans/plan.h). Needs no MLIR header to use.
#pragma once

#include <string>
#include <string_view>

#include "plans/plan.h"
#include "support/status.h"

namespace ds {

/// The plan as text of the dialect `plan`: one `plan.file`, one op per transfer and kernel. kUnsupported: an
/// op that the dialect cannot say (verify_plan() lets none through).
Result<std::string> plan_to_mlir(const Plan& plan);

/// The inverse: text with exactly one `plan.file`, scheduled. kCorrupt with line and column where it does not
/// parse or verify. plan_from_mlir(plan_to_mlir(p)) == p.
Result<Plan> plan_from_mlir(std::string_view text, const std::string& origin);

}  // namespace ds
