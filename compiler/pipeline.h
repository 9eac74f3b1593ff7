// From chosen tilings to a plan: the phases of the two dialects, each verified before the next one relies on
// it.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "compiler/inputs/machine.h"
#include "plans/plan.h"
#include "support/status.h"

namespace ds {

/// What a policy has drawn and a choice has taken: tiles, chunks, ranges, the tuned point and the promise; no
/// ops yet.
struct ChosenVariant {
  Variant variant;
  bool fallback = false;
};

struct PipelineOptions {
  std::string scheduler = "best";
  std::string emit = "flatbuffer";  // or where to stop: reuse, plan, schedule
  MachineModel machine;
  int64_t map_rank = 0;  // of the low-rank maps that cuts go through, for their cost
};

struct PipelineOutput {
  std::string text;          // IR, where it was to stop
  std::optional<Plan> plan;  // verified, where it ran to the end
  int64_t lower_ns = 0, schedule_ns = 0, emit_ns = 0;
};

/// `head`: a plan without variants. Errors: kInternal (a phase's verifier, with what it says), kCorrupt (the
/// plan's), kInvalidArgument (no such scheduler).
Result<PipelineOutput> run_pipeline(const Plan& head, std::span<const ChosenVariant> chosen,
                                    const PipelineOptions& options);

}  // namespace ds
