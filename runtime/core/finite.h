// Whether logits are numbers.
#pragma once

#include <cstdint>
#include <span>

#include "plans/plan.h"
#include "support/status.h"

namespace ds {

/// kInternal where one is not: a model of finite weights gives finite logits; what else comes is no answer,
/// and choosing from it would hide that. `token`: which of the answer, from 1; `variant`: what ran.
Status check_finite(std::span<const float> logits, int64_t token, const Variant& variant);

}  // namespace ds
