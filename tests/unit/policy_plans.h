// Plans of given tilings, and of all that the policies draw.
#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "compiler/pipeline.h"
#include "compiler/policy/policy.h"
#include "plans/full_prefill.h"

namespace ds::testing {

/// Maps through which the receiver takes what it is sent.
struct AlignedCuts {
  MapForm form = MapForm::kNone;
  MapsIdentity maps = {};
  int64_t rank = 0;
};

/// Through the compiler's own phases.
inline Plan compile_tiles(const std::vector<Tile>& tiles, int32_t chunks, std::string_view scheduler,
                          const Shape& shape, const ModelIdentity& sender, const ModelIdentity& receiver,
                          double share = 0, const AlignedCuts& aligned = {}) {
  Plan head = full_prefill_plan(receiver, shape, "f32");
  head.sender = sender;
  ChosenVariant chosen, whole;
  chosen.variant.name = "v0";
  chosen.variant.policy = "test";
  chosen.variant.tiles = tiles;
  chosen.variant.chunks = chunks;
  chosen.variant.select_share = share;
  chosen.variant.tuned_tokens = 200;
  chosen.variant.tuned_suffix = 5;
  chosen.variant.tuned_rate = 1000;
  whole = chosen;
  if (aligned.form != MapForm::kNone) {
    head.maps = aligned.maps;
    chosen.variant.map_form = aligned.form;
    chosen.variant.map_side = MapSide::kReceiver;
  }
  whole.fallback = true;
  whole.variant.name = whole.variant.policy = "full-prefill";
  whole.variant.tiles = head.full_prefill.tiles;
  whole.variant.chunks = 1;
  whole.variant.select_share = 0;
  PipelineOptions options;
  options.scheduler = scheduler;
  options.machine = MachineModel::stand_in(DType::kF32);
  options.map_rank = aligned.rank;
  auto made = run_pipeline(head, std::vector<ChosenVariant>{chosen, whole}, options);
  EXPECT_TRUE(made.ok()) << made.status().message();
  return made.ok() ? std::move(*made->plan) : head;
}

inline bool sends_hidden_states(const std::vector<Tile>& tiles) {
  return std::any_of(tiles.begin(), tiles.end(),
                     [](const Tile& t) { return t.cut || t.mode == Mode::kRestore; });
}

/// One plan for each tiling that a policy draws; Variant::why says which. With aligned cuts: for each that
/// has any.
inline std::vector<Plan> plans_of_policies(const Shape& shape, const ModelIdentity& sender,
                                           const ModelIdentity& receiver,
                                           const std::vector<int32_t>& chunks = {1, 2, 4, 7},
                                           const AlignedCuts& aligned = {}) {
  std::vector<Plan> all;
  for (const PolicyTraits& policy : policies()) {
    PolicyInput in;
    in.layers = shape.layers;
    if (policy.named_layers) in.recompute = LayerRange{1, 3};
    if (policy.takes_share) in.select_share = 0.2;
    in.chunks = chunks;
    auto tilings = policy.draw(in);
    EXPECT_TRUE(tilings.ok()) << policy.name << ": " << tilings.status().message();
    for (const Tiling& t : *tilings) {
      if (aligned.form != MapForm::kNone && !sends_hidden_states(t.tiles)) continue;
      Plan plan = compile_tiles(t.tiles, t.chunks, "best", shape, sender, receiver, t.way.share, aligned);
      plan.variants[0].why = fmt::format("{}: {}", policy.name, t.what);
      all.push_back(std::move(plan));
    }
  }
  return all;
}

}  // namespace ds::testing
