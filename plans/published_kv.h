// Of which layers a plan's variants read the sender's K and V, beside published_cuts() (plans/plan.h).
#pragma once

#include <cstdint>
#include <vector>

#include "plans/plan.h"

namespace ds {

/// Ascending, of all variants; of source 0.
std::vector<int32_t> published_kv(const Plan& plan);

}  // namespace ds
