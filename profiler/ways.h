// Which ways a profile scores: all contiguous groups, and what they are to be compared with.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "plans/quality.h"
#include "support/status.h"

namespace ds {

/// Way::map_control of maps that were fitted to tokens in a wrong order.
inline constexpr const char* kShuffled = "shuffled";

struct WayOptions {
  int64_t granularity = 1;  // edges of groups are multiples of it (or the top)
  int64_t scattered = 5;    // random scattered sets for each number of layers; 0: none
  uint64_t seed = 1;        // of them
  std::vector<double> select_shares = {0.05, 0.1, 0.15, 0.2, 0.3, 0.5};  // in (0, 1)
  bool restore = true, reuse_only = true, sender_alone = true;
  std::vector<MapForm> align;  // groups from a cut, restored layers and scattered sets with maps, too
  // Controls for restored layers and groups of a third of the layers, with the first form of `align`:
  bool shuffled = false;         // maps that were fitted to tokens in a wrong order
  std::string other_pair;        // another pair's maps, of that name; empty: none
  std::vector<LayerRange> only;  // groups and restored layers are these only; empty: all
  bool heuristics = false;       // those of heuristics() that are no group; not with `only`
  bool no_context = false;       // the receiver asked without the context
  bool other_document = false;   // the receiver over the sender's cache of another document
  bool operator==(const WayOptions&) const = default;
};

/// Granularity where nobody has said any: 1, and in deep models as many layers as leave 12 blocks.
int64_t default_granularity(int64_t layers);

/// The full prefill first, then full reuse, groups by size and first layer, then the controls. Scattered sets
/// have the sizes of groups from 2 layers on, in as many parts as there can be, so that each has several
/// transitions; fewer than asked for where there are no more. kInvalidArgument: a granularity that the layers
/// do not have, a share out of range, layers in `only` that there are not.
Result<std::vector<Way>> all_ways(int64_t layers, const WayOptions& options);

/// What one would recompute without a profile: the first, the last or the middle layers, or first and last
/// ones.
struct Heuristic {
  std::string_view name;  // "first", "last", "middle", "first and last"
  Way way;                // a group; two of them for first and last layers
};
/// Those of `blocks` blocks of `granularity` layers each, 1 to all but one; the top block may be smaller.
std::vector<Heuristic> heuristics(int64_t layers, int64_t granularity, int64_t blocks);

/// Which maps the sender's hidden states go through before a run: none, this pair's, or a control's.
struct MapKey {
  MapForm form = MapForm::kNone;
  std::string control;
  auto operator<=>(const MapKey&) const = default;
};
inline MapKey map_key(const Way& way) { return {way.map, way.map_control}; }

/// Layers that are run per context, the sender's included, when ways share them: all layers from each first
/// layer on that a way needs, once with each kind of map.
struct SharedRuns {
  struct Run {
    int64_t first = 0;  // from the embeddings (0), or the sender's hidden states that enter it
    MapKey maps;
    int64_t top = 0;  // one past the last layer that a way of this run needs
  };
  std::vector<Run> runs;        // by first layer, then maps
  bool other_document = false;  // the sender runs over another one, too
  int64_t layer_runs(int64_t layers) const;
  /// Where in `runs`.
  size_t find(int64_t first, const MapKey& maps) const;
};
/// The runs that the ways [i] with active[i] need.
SharedRuns shared_runs(const std::vector<Way>& ways, const std::vector<bool>& active, int64_t layers);
/// What running every way by itself would cost, in layers per context (K and V alone count as none).
int64_t naive_layer_runs(const std::vector<Way>& ways, int64_t layers);

}  // namespace ds
