// Policies draw the tiles: WHAT may be loaded and what recomputed. Which drawing is taken, by what objective
// and for which contexts, links and loads, is choose.h's and variants.h's business; when anything runs is the
// scheduler's.
//
// A new policy is a new file with one function, and one row in policy.cpp's table.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "plans/plan.h"
#include "plans/quality.h"
#include "runtime/model/maps.h"
#include "support/status.h"

namespace ds {

/// One drawing of the layer x token plane. It speaks of chunks, so it can be tried at every context length.
struct Tiling {
  std::string what;  // for people: "recompute 3-6 in 8 chunks"
  std::vector<Tile> tiles;
  int32_t chunks = 1;
  Way way;                        // what every token gets at least: what the promise is taken from
  double loss = 0;                // promised points; NaN: not known
  double loss_stderr = kUnknown;  // of the loss, points; NaN: not known
  double loss_bound = kUnknown;  // what the loss exceeds with probability 1 - confidence only; NaN: not known
  double divergence = kUnknown;  // promised nats per reference token; NaN: not known
  double divergence_stderr = kUnknown, divergence_bound = kUnknown;  // as those of the loss
  MapSide map_side = MapSide::kReceiver;                             // who applies the maps of an aligned way
  int64_t map_rank = 0;                                              // of those maps, where they are low-rank

  /// Does the receiver map what it is sent?
  bool aligns() const { return way.map != MapForm::kNone && map_side == MapSide::kReceiver; }
};

struct PolicyInput {
  int64_t layers = 0;
  std::optional<LayerRange> recompute;  // layers that the user fixed: recomputed, or restored
  std::optional<double> select_share;   // of the tokens, in (0, 1]: fixed by the user
  const Quality* quality = nullptr;     // may be absent
  std::vector<int32_t> chunks = {1};    // numbers of chunks to try, ascending, from 1
  double confidence = 0;                // of the bounds on losses, one-sided; 0: none are asked for
  bool by_divergence = false;           // the divergence counts in the choice, beside the loss
  const MapSet* maps = nullptr;         // for aligned cuts; may be absent
  std::vector<MapForm> forms = {
      MapForm::kNone};  // that cuts may have, ascending; kNone: as the sender has them
  MapSide map_side = MapSide::kReceiver;
  int64_t map_rank = 0;  // the largest of the low-rank maps
};

/// Every tiling that the policy offers, at least one. Same input, same list.
using Policy = Result<std::vector<Tiling>> (*)(const PolicyInput& input);

/// The receiver computes everything, as if there were no sender. Loses nothing by definition.
Result<std::vector<Tiling>> draw_full_prefill(const PolicyInput& input);

/// The sender's K and V of every layer, as they are. Only the suffix is computed.
Result<std::vector<Tiling>> draw_full_reuse(const PolicyInput& input);

/// DroidSpeak: one contiguous group of layers is recomputed from a cut, the others are loaded (paper, section
/// 4). The groups are the user's or the profile's; full reuse and full prefill take part. With several
/// chunks, recomputation starts when the first chunk of E has arrived. Cuts are aligned too, in each form for
/// which there are maps: of the user's group, or of those that the profile has scored so.
Result<std::vector<Tiling>> draw_droidspeak(const PolicyInput& input);

/// droidspeak, and stairs on it that balance link and compute: the first chunks are recomputed from the
/// embeddings through all layers (nothing of them is sent, and it starts before anything has arrived), or go
/// on from the group to the top layer. Every token keeps its group, so the promise is the group's. Restored
/// layers that the profile has scored take part.
Result<std::vector<Tiling>> draw_balanced(const PolicyInput& input);

/// Cake: a split along the tokens; the first chunks are computed, the others loaded. Promises no more than
/// full reuse does.
Result<std::vector<Tiling>> draw_cake(const PolicyInput& input);

/// HCache across models: the sender's hidden states of a run of layers are sent instead of its K and V, and
/// the receiver computes its K and V of them. The runs are the user's, or those that reach the top layer and
/// those that the profile has scored; full reuse and full prefill take part. Aligned too, as groups are.
Result<std::vector<Tiling>> draw_restore(const PolicyInput& input);

/// CacheBlend across models: the sender's K and V, but for a share of the tokens, whose K deviates most from
/// the receiver's at layer 1; those go through every layer. The share is the user's, or one of those that the
/// profile has scored, or of a list; full reuse and full prefill take part. kInvalidArgument: models of one
/// layer.
Result<std::vector<Tiling>> draw_select(const PolicyInput& input);

/// What a policy may be asked.
struct PolicyTraits {
  std::string_view name;
  Policy draw;
  /// The way of layers that the user names; null: it takes none.
  Way (*named_layers)(const LayerRange& layers, int64_t depth);
  bool takes_share;   // a share of the tokens, that the user names
  bool chooses;       // by a profile and an objective, where the user names nothing
  bool sends_hidden;  // hidden states of the sender, so that maps can be applied to them
  bool may_lose;      // quality; else a profile has nothing to say of it
};

/// All that there are. A new policy is a row here.
std::span<const PolicyTraits> policies();
std::vector<std::string_view> policy_names();
/// kInvalidArgument names the policies that there are.
Result<const PolicyTraits*> find_policy(std::string_view name);

/// Are there maps of this form for all layers whose hidden states the sender sends for this way, and is there
/// such a layer?
bool can_map(const PolicyInput& input, const Way& way, MapForm form);
/// A way in the forms that are allowed: as it is (one that sends no hidden states in any case), and aligned
/// where there are the maps and, unless the user has named the layers, the profile has scored that. Forms
/// that compute more than another one and lose no less are left out.
std::vector<Way> in_all_forms(const PolicyInput& input, const Way& plain);

/// Group as a way of the profile: full reuse, full prefill, or the group between them.
Way way_of(const LayerRange& group, int64_t layers);
/// With the promise that the profile gives for the way (controls are other ways); the full prefill loses
/// nothing by definition.
Tiling make_tiling(const PolicyInput& input, std::string what, std::vector<Tile> tiles, int32_t chunks,
                   Way way);

/// "load below, recompute `group` from a cut, load above"; an empty group loads everything. `from_embeddings`
/// and `to_top` first chunks (apart from each other, in this order) are recomputed through all layers, and
/// from the group upward.
std::vector<Tile> tiles_for_group(const LayerRange& group, int64_t layers, int32_t chunks = 1,
                                  int32_t from_embeddings = 0, int32_t to_top = 0);

}  // namespace ds
