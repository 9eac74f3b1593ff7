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

/// Name, policy, ranges, tuned point, promise and choice of a variant, into the properties of a reuse.plan or
/// plan.variant.
template <typename Properties>
void write_purpose(mlir::Builder& b, const Variant& v, bool fallback, Properties& to) {
  mlir::MLIRContext* context = b.getContext();
  auto range = [&](int64_t low, int64_t high) { return plan::RangeAttr::get(context, low, high); };
  to.sym_name = b.getStringAttr(v.name);
  if (fallback) to.fallback = b.getUnitAttr();
  if (v.live) to.live = b.getUnitAttr();
  to.policy = b.getStringAttr(v.policy);
  to.tokens = range(v.tokens_min, v.tokens_max);
  to.rate = range(v.rate_min, v.rate_max);
  if (v.load_min != 0 || v.load_max != kNoLimit) to.load = range(v.load_min, v.load_max);
  to.tuned = plan::PointAttr::get(context, v.tuned_tokens, v.tuned_suffix, v.tuned_rate);
  to.promise = plan::PromiseAttr::of(context, v.promise);
  to.chosen = plan::ChoiceAttr::of(context, v);
}
void read_purpose(plan::PurposeInterface op, Variant& variant);

/// One operation's fields, `waits` left empty; stream and buffer by their position among the variant's.
Op export_op(plan::VariantOperationInterface op);
/// The inverse of build_variant. kUnsupported names an op without a time.
Result<Variant> export_variant(plan::VariantOp variant);
Result<Plan> export_file(plan::FileOp file);

}  // namespace ds
