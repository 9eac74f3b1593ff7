// A chosen tiling as IR of the dialect `reuse`.
#pragma once

#include "dialects/reuse/ReuseDialect.h"
#include "plans/plan.h"

namespace ds {

/// Builds a reuse.plan at the builder's place from a variant's name, policy, ranges, tuned point, promise and
/// tiles.
void build_reuse_plan(mlir::OpBuilder& builder, mlir::Location loc, const Variant& variant, int64_t layers,
                      bool fallback);

}  // namespace ds
