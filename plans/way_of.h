// Which way of a profile a variant is.
#pragma once

#include "plans/plan.h"
#include "plans/quality.h"

namespace ds {

/// By the layers that every token gets recomputed, as promises are (compiler/policy/policy.h): all: the full
/// prefill; none: full reuse, or the one run of layers that every token gets restored; else that group, or
/// several. Where tokens are selected: their share.
Way way_of(const Variant& variant);

}  // namespace ds
