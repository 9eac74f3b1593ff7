// The full prefill as a plan, made without the compiler: what runs where there is no plan, and the fall-back
// of every plan file.
#pragma once

#include "plans/plan.h"

namespace ds {

/// One tile: every layer over context and suffix together; the last layer's queries are the last token's
/// only. Times are zero until a cost model fills them in.
Variant full_prefill_variant(int64_t layers);

/// A plan of that variant alone, for running a model without a plan file.
Plan full_prefill_plan(const ModelIdentity& receiver, const Shape& shape, std::string dtype);

}  // namespace ds
