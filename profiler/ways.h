// Which ways a profile scores: all contiguous groups, and what they are to be compared with.
#pragma once

#include <cstdint>
#include <vector>

#include "plans/quality.h"
#include "support/status.h"

namespace ds {

struct WayOptions {
  int64_t granularity = 1;  // edges of groups are multiples of it (or the top)
  int64_t scattered = 5;    // random scattered sets for each number of layers; 0: none
  uint64_t seed = 1;        // of them
  std::vector<double> select_shares = {0.05, 0.1, 0.15, 0.2, 0.3, 0.5};  // in (0, 1)
  bool restore = true, reuse_only = true, sender_alone = true;
};

/// The full prefill first, then full reuse, groups by size and first layer, then the controls. Scattered sets
/// have the sizes of groups from 2 layers on, in as many parts as there can be, so that each has several
/// transitions; fewer than asked for where there are no more. kInvalidArgument: a granularity that the layers
/// do not have, a share out of range.
Result<std::vector<Way>> all_ways(int64_t layers, const WayOptions& options);

/// Layers that are run per context, the sender's included, when ways share them: all layers from each first
/// layer on that a way needs. `layers` above `top` are not needed by any way of that first layer.
struct SharedRuns {
  std::vector<int64_t> first;  // ascending
  std::vector<int64_t> top;    // one past the last layer needed, by `first`
  int64_t layer_runs(int64_t layers) const;
};
/// The runs that the ways [i] with active[i] need.
SharedRuns shared_runs(const std::vector<Way>& ways, const std::vector<bool>& active, int64_t layers);
/// What running every way by itself would cost, in layers per context (K and V alone count as none).
int64_t naive_layer_runs(const std::vector<Way>& ways, int64_t layers);

}  // namespace ds
