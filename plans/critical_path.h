// Which ops decide when a schedule ends, predicted or measured.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "plans/plan.h"

namespace ds {

/// What held an op back until it started: the start of the request, the op before it on its stream, or an op
/// that it waits for.
enum class HeldBy : uint8_t { kStart = 0, kStream = 1, kWait = 2 };

struct CriticalStep {
  int32_t op = 0;
  HeldBy by = HeldBy::kStart;
  int64_t gap_ns = 0;   // between that end and the op's start: neither stream nor wait explains it
  int64_t time_ns = 0;  // what the op adds to the path; all gaps and times add up to the last op's end
};

/// Walks back from the op that ends last, each time to whichever ended last before the op started: the op
/// before it on its stream or one that it waits for (at a tie the wait; then the smaller index). In order of
/// time. `times`: by op; a start below 0 means that the op did not run. Empty when none ran.
std::vector<CriticalStep> critical_path(const Variant& variant, const std::vector<OpTime>& times);

struct CriticalShares {
  std::array<int64_t, 3> stream_ns{};  // by StreamKind
  int64_t gap_ns = 0;
  int64_t total_ns() const { return stream_ns[0] + stream_ns[1] + stream_ns[2] + gap_ns; }
};
CriticalShares critical_shares(const Variant& variant, const std::vector<CriticalStep>& path);

/// No order of the ops on their streams ends earlier when they take as long as in `times`: the longest chain
/// of waits, and for each stream its busy time with the least that must lie before and behind it.
int64_t schedule_lower_bound_ns(const Variant& variant, const std::vector<OpTime>& times);

}  // namespace ds
