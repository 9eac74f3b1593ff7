// Why a variant takes as long as it does, and what would change it: `ds-plan explain`.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "plans/critical_path.h"
#include "plans/simulate.h"

namespace ds {

struct Explanation {
  const Plan* plan = nullptr;
  const Variant* variant = nullptr;
  OperatingPoint point;
  /// At the tuned point the plan's own times, else simulated ones.
  bool tuned = false;
  int64_t ttft_ns = 0, lower_bound_ns = 0, bytes = 0;
  int64_t simulated_ns = 0;  // what the others and the what-ifs compare with; the plan may start ops later
  std::vector<StreamUse> streams;
  std::vector<CriticalStep> critical;
  CriticalShares shares;

  /// Another variant of the plan, or its full prefill, at the same point. In a plan for several ranges those
  /// were tuned elsewhere.
  struct Other {
    const Variant* variant;
    int64_t ttft_ns, bytes;
  };
  std::vector<Other> others;

  /// The same tiling in the same order on other hardware.
  struct WhatIf {
    std::string what;  // "link x 2"
    double link_speed, compute_speed;
    int64_t ttft_ns;
  };
  std::vector<WhatIf> what_ifs;

  /// Of an aligned variant, at its tuned point: what differs by who applies the maps. -1: not known.
  struct Side {
    MapSide side = MapSide::kReceiver;
    int64_t ttft_ns = 0;      // the plan's own, or simulated with the maps on the other side
    int64_t bytes = 0;        // over the link for a request
    int64_t receiver_ns = 0;  // of maps, for each request
    int64_t sender_ns = 0;    // of maps, once for each entry, on a machine like the receiver's
    int64_t e_bytes = 0;      // hidden states that an entry holds for one receiver
    /// For several that share it and cut at the same layers.
    int64_t e_bytes_for(int64_t receivers) const {
      return side == MapSide::kSender ? receivers * e_bytes : e_bytes;
    }
  };
  std::vector<Side> sides;  // the receiver, the sender; empty: plain cuts
};

/// What decides the time: "link" or "compute" where nine tenths of the critical path lie on it, else "chain":
/// transfers and kernels that wait for one another.
std::string_view bound_name(const Explanation& explanation);

/// kInvalidArgument as simulate_variant(). `variant` belongs to `plan`; both outlive the result.
Result<Explanation> explain_variant(const Plan& plan, const Variant& variant, const OperatingPoint& point);

/// Why select_variant() gave `variant`: "its ranges cover 4,096 tokens at 20 MB/s (as measured)". `rate` 0:
/// not known.
std::string why_selected(const Plan& plan, const Variant& variant, int64_t tokens, int64_t rate,
                         int64_t waiting, bool measured = false);

/// What else the plan holds at the same point, in an explanation's text.
enum class OthersShown : uint8_t { kNone, kQuickest };
/// `why`: why this variant, as why_selected().
std::string explanation_text(const Explanation& explanation, const std::string& why,
                             OthersShown others = OthersShown::kQuickest);

/// A plan of several variants, each at its tuned point: what they have in common once, a row for what each
/// has of its own, and once what else could have been chosen. kInvalidArgument as explain_variant().
Result<std::string> explain_plan(const Plan& plan, const std::string& origin);
nlohmann::ordered_json explanation_json(const Explanation& explanation, const std::string& why);

}  // namespace ds
