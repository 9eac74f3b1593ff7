// What a variant's schedule would take at another context length, suffix length or link rate: an estimate.
#pragma once

#include <cstdint>
#include <vector>

#include "plans/plan.h"
#include "support/status.h"

namespace ds {

/// Where a request stands: n context tokens, m suffix tokens, link rate in bytes per second.
struct OperatingPoint {
  int64_t tokens = 0, suffix = 0, rate = 0;
  bool operator==(const OperatingPoint&) const = default;
};

struct StreamUse {
  StreamKind kind = StreamKind::kCompute;
  int64_t busy_ns = 0, idle_ns = 0;  // add up to the makespan
};

struct Simulation {
  OperatingPoint point;
  int64_t ttft_ns = 0;             // end of the last op
  int64_t lower_bound_ns = 0;      // schedule_lower_bound_ns() of these durations
  int64_t bytes = 0;               // over the link
  std::vector<OpTime> ops;         // one per op of the variant
  std::vector<StreamUse> streams;  // one per stream of the variant
};

/// The point at which the variant's own times hold.
OperatingPoint tuned_point(const Variant& variant);

/// Runs the ops of a (verified) variant in the order of their streams, each as soon as its stream is free and
/// its waits have ended. Durations are scaled from the tuned ones:
///   transfers  what was predicted beyond bytes / rate stays as it is, bytes / rate is taken anew;
///   kernels    in proportion to multiply-adds (matrices by rows, attention by pairs of tokens).
/// What comes before a stream's first op (finding the entry, the link's round trip) stays as it is, and so
/// does what passes between the end of an op and the start of one on another stream that was held back for
/// it. What a live sender shows comes at its tuned time, scaled by the arithmetic of a prefill of that
/// length. `compute_speed` 2: a machine whose kernels take half as long. At the tuned point durations are the
/// plan's own. Small sizes are thus judged too fast: fixed costs of kernels and lower efficiency at few rows
/// are in the tuned durations only. kInvalidArgument: a point that is not one, or a variant without times.
Result<Simulation> simulate_variant(const Plan& plan, const Variant& variant, const OperatingPoint& point,
                                    double compute_speed = 1);

/// simulate_variant()'s TTFT; 0 where there is nothing to predict from (a variant without times).
int64_t predicted_ttft_ns(const Plan& plan, const Variant& variant, const OperatingPoint& point);

/// Bytes that an op moves over the link for n context tokens; 0 for kernels.
int64_t transfer_bytes(const Plan& plan, const Variant& variant, const Op& op, int64_t tokens);

}  // namespace ds
