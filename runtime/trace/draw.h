// Pictures of a schedule: what the plan predicts above what a run measured, on one time axis.
//
// Ops are joined by their index. Bars carry colour and hatching by kind, and labels, so that they can be read
// without colour; idle time stays visible. SVG and HTML stand by themselves: no scripts, no fonts or files
// from elsewhere.
#pragma once

#include <string>

#include "plans/plan.h"
#include "plans/simulate.h"
#include "runtime/trace/run_record.h"

namespace ds {

/// What to draw. `variant` belongs to `plan`; `record`, when given, has passed check_record().
struct Picture {
  const Plan& plan;
  const Variant& variant;
  const RunRecord* record = nullptr;
};

/// kMismatch when the record is not of this variant: another name, an op index out of range, another label.
Status check_record(const Variant& variant, const RunRecord& record, const std::string& origin);

std::string draw_schedule_svg(const Picture& picture);
/// A page: the picture, where the time went, and every op, predicted beside measured.
std::string draw_schedule_html(const Picture& picture);
/// The Trace Event Format, for Perfetto and chrome://tracing: predicted and measured as two processes,
/// streams as their threads, waits between streams as flow arrows.
std::string draw_schedule_chrome(const Picture& picture);

}  // namespace ds
