// Between plans/plan.h's structures and the dialect `plan`, op by op. Used by passes and by emit.cpp.
#pragma once

#include "dialects/plan/PlanDialect.h"
#include "plans/plan.h"
#include "support/status.h"

namespace ds {

/// Builds a plan.variant at the builder's place. `scheduled`: with starts, durations and the scheduler's
/// results.
Result<plan::VariantOp> build_variant(mlir::OpBuilder& builder, mlir::Location loc, const Variant& variant,
                                      bool fallback, bool scheduled);
/// Builds an empty plan.file with everything but variants.
plan::FileOp build_file(mlir::OpBuilder& builder, mlir::Location loc, const Plan& plan);

/// Load range, regret, reason, alternatives, and how certain the promised loss is, of a variant, as
/// attributes of a reuse.plan or plan.variant.
void write_choice(mlir::Operation* op, const Variant& variant);
void read_choice(mlir::Operation* op, Variant& variant);

/// One operation's fields, `waits` left empty; stream and buffer by their position among the variant's.
Op export_op(plan::VariantOperationInterface op);
/// The inverse of build_variant. kUnsupported names an op without a time.
Result<Variant> export_variant(plan::VariantOp variant);
Result<Plan> export_file(plan::FileOp file);

}  // namespace ds
