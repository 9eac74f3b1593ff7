// What policies draw and promise, and that all of it is a plan.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>

#include "compiler/lowering/lower_tiles.h"
#include "compiler/scheduling/schedulers.h"
#include "compiler/scheduling/variant_problem.h"
#include "compiler/select/variants.h"
#include "plans/full_prefill.h"
#include "plans/plan_file.h"
#include "plans/traits.h"
#include "tests/unit/compile_inputs.h"

namespace ds {
namespace {

using testing::aligned_input;
using testing::draw;
using ::testing::HasSubstr;
using testing::input;
using testing::kShape;
using testing::machine;
using testing::profile;
using testing::score;
using testing::some_maps;

TEST(Policy, EveryTilingOfEveryPolicyIsAPlanThatTheVerifierAccepts) {
  Quality q = profile();
  CostModel costs(machine(), kShape);
  std::set<std::string> seen;
  for (std::string_view policy : policy_names()) {
    for (const Tiling& t : draw(policy, input(q, {1, 2, 4, 8}))) {
      SCOPED_TRACE(fmt::format("{}: {}", policy, t.what));
      seen.insert(t.what);
      for (std::string_view scheduler : {"serial", "kv-preload", "e-first", "best"}) {
        Variant v = lower_tiles(t.tiles, 12, t.chunks, moves_whole_entry(scheduler), false,
                                loads_come_first(scheduler) ? 0 : kRestoreBuffers);
        TunedPoint at{2048, 16, 20'000'000, t.chunks, t.way.share};
        for (Op& op : v.ops) op.duration_ns = costs.duration_ns(op, at);
        auto s = schedule(problem_of(v, {500, 1000}), scheduler, false);
        ASSERT_TRUE(s.ok()) << s.status().message();
        EXPECT_GE(s->cost_ns, costs.duration_ns(v.ops.back(), at));
        apply_schedule(*s, v);
        v.name = "v0";
        v.policy = policy;
        v.scheduler = scheduler;
        v.select_share = t.way.share;
        v.tuned_tokens = at.tokens;
        v.tuned_suffix = at.suffix;
        v.tuned_rate = at.rate;
        Plan plan = full_prefill_plan({"r", std::string(64, 'd'), "", "", ""}, kShape, "bf16");
        plan.variants = {std::move(v)};
        Status valid = verify_plan(plan, t.what);
        EXPECT_TRUE(valid.ok()) << valid.message();
      }
    }
  }
  EXPECT_THAT(seen, ::testing::Contains("recompute 3-7, 3 of 8 chunks from the embeddings"));
  EXPECT_THAT(seen, ::testing::Contains("recompute 3-7, 3 of 8 chunks to the top"));
  EXPECT_THAT(seen, ::testing::Contains("compute 3 of 8 chunks"));
  EXPECT_THAT(seen, ::testing::Contains("restore 4-11"));
  EXPECT_THAT(seen, ::testing::Contains("select 15 %"));
}

int64_t context_buffers(const Variant& v) {
  return std::count_if(v.buffers.begin(), v.buffers.end(),
                       [](const Buffer& b) { return b.kind == BufferKind::kHidden && b.with_context; });
}

TEST(Lowering, RestoredLayersTakeTurnsInAFewBuffersAndWaitForTheirTurn) {
  constexpr int32_t kLayers = 32;
  const std::vector<Tile> tiles = {{Mode::kLoad, 0, 0, 0, 0, false},
                                   {Mode::kRestore, 1, kLayers - 1, 0, 0, false}};
  Shape shape = kShape;
  shape.layers = kLayers;
  for (std::string_view scheduler : scheduler_names()) {
    SCOPED_TRACE(scheduler);
    const bool own = loads_come_first(scheduler);
    for (bool aligns : {false, true}) {
      Variant v =
          lower_tiles(tiles, kLayers, 1, moves_whole_entry(scheduler), aligns, own ? 0 : kRestoreBuffers);
      EXPECT_EQ(context_buffers(v), own ? kLayers - 1 : kRestoreBuffers);
      if (aligns) v.map_form = MapForm::kDiagonal;
      for (Op& op : v.ops) op.duration_ns = is_transfer(op) ? 3000 : 2000;
      auto s = schedule(problem_of(v, {}), scheduler, false);
      ASSERT_TRUE(s.ok()) << s.status().message();
      apply_schedule(*s, v);
      v.name = "v0";
      v.policy = "restore";
      v.scheduler = scheduler;
      v.tuned_tokens = v.tuned_suffix = v.tuned_rate = 1000;
      Plan plan = full_prefill_plan({"r", std::string(64, 'd'), "", "", ""}, shape, "bf16");
      if (aligns) plan.maps = {"m", std::string(64, 'e')};
      plan.variants = {v};
      Status valid = verify_plan(plan, "turns");
      EXPECT_TRUE(valid.ok()) << valid.message();
      if (own) continue;
      // A transfer that does not wait for its turn is found.
      auto late = std::find_if(plan.variants[0].ops.begin(), plan.variants[0].ops.end(),
                               [](const Op& op) { return op.payload == Payload::kE && !op.waits.empty(); });
      ASSERT_NE(late, plan.variants[0].ops.end());
      late->waits.clear();
      EXPECT_THAT(
          verify_plan(plan, "turns").message(),
          ::testing::AllOf(::testing::HasSubstr("rule 19"), ::testing::HasSubstr("no order between them")));
    }
  }
}

TEST(Policy, WaysOfTheProfileAreOfferedWithTheirLosses) {
  Quality q = profile();
  for (auto [way, loss] : {std::pair(Way::restore({2, 5}), 3.0), std::pair(Way::select(0.25), 4.0)}) {
    WayScore w;
    w.way = way;
    w.items = w.contexts = 50;
    w.loss = {loss, 1};
    q.ways.push_back(w);
  }
  q.ways.push_back(q.ways.back());
  q.ways.back().way = Way::select(0.4);
  q.ways.back().dropped = true;
  std::map<std::string, double> restored, selected;
  for (const Tiling& t : draw("restore", input(q, {1}))) restored[t.what] = t.loss;
  EXPECT_EQ(restored.size(), 2u + 12 + 1);  // the two ends, what reaches the top, and the profile's
  EXPECT_EQ(restored.at("restore 2-5"), 3);
  EXPECT_TRUE(std::isnan(restored.at("restore 0-11")));
  for (const Tiling& t : draw("select", input(q, {1}))) selected[t.what] = t.loss;
  EXPECT_EQ(selected,
            (std::map<std::string, double>{{"full prefill", 0}, {"full reuse", 39}, {"select 25 %", 4}}));
  // What the user names is all that there is.
  PolicyInput in = input(q, {1});
  in.select_share = 0.3;
  in.recompute = LayerRange{1, 4};
  ASSERT_EQ(draw("select", in).size(), 1u);
  EXPECT_EQ(draw("select", in)[0].what, "select 30 %");
  ASSERT_EQ(draw("restore", in).size(), 1u);
  EXPECT_EQ(draw("restore", in)[0].what, "restore 1-4");
  in.layers = 1;
  EXPECT_THAT(draw_select(in).status().message(), HasSubstr("expected 2 or more"));
}

TEST(Policy, APromiseIsThatOfTheLayersThatEveryTokenGets) {
  Quality q = profile();
  for (std::string_view policy : {"balanced", "droidspeak", "cake"}) {
    for (const Tiling& t : draw(policy, input(q, {1, 4}))) {
      SCOPED_TRACE(t.what);
      // Recomputed cells by layer, over all chunks.
      std::vector<int> chunks(12, 0);
      for (const Tile& tile : t.tiles)
        for (int32_t l = tile.first_layer; tile.mode == Mode::kRecompute && l <= tile.last_layer; ++l)
          chunks[static_cast<size_t>(l)] += tile.last_chunk - tile.first_chunk + 1;
      for (int32_t l = 0; l < 12; ++l) {
        bool in_group = t.way.is_full_prefill() ||
                        (t.way.is_group() && l >= t.way.layers[0].first && l <= t.way.layers[0].last);
        EXPECT_EQ(chunks[static_cast<size_t>(l)] == t.chunks, in_group) << "layer " << l;
      }
      EXPECT_EQ(t.loss, t.way.is_full_prefill() ? 0 : q.find(t.way)->loss.value);
    }
  }
}

std::map<std::string, double> losses(std::string_view policy, const PolicyInput& in) {
  std::map<std::string, double> all;
  for (const Tiling& t : draw(policy, in)) all[t.what] = t.loss;
  return all;
}

TEST(Policy, CutsAreAlignedWhereThereAreMapsAndScores) {
  Quality q = profile();  // 3-7 loses 2, 4-5 19, 2-8 -0.5
  const Way g37 = Way::group({3, 7}), g45 = Way::group({4, 5}), g56 = Way::group({5, 6});
  score(q, g37.aligned(MapForm::kFull), 0.5);
  score(q, g37.aligned(MapForm::kDiagonal), 2.5);  // loses more than the plain cut
  score(q, g37.aligned(MapForm::kFull, "shuffled"), 0);
  score(q, g45.aligned(MapForm::kFull), 9);
  score(q, g45.aligned(MapForm::kLowRank), 9);  // as good as full, for less
  score(q, g45.aligned(MapForm::kDiagonal), 15);
  score(q, g56.aligned(MapForm::kFull), 7);  // scored aligned only
  score(q, Way::group({2, 8}).aligned(MapForm::kFull), -1);
  score(q, Way::restore({0, 11}).aligned(MapForm::kFull), 6);
  const MapSet maps = some_maps({{3, MapForm::kDiagonal},
                                 {3, MapForm::kFull},
                                 {4, MapForm::kDiagonal},
                                 {4, MapForm::kLowRank},
                                 {4, MapForm::kFull},
                                 {5, MapForm::kFull}});
  PolicyInput in = aligned_input(q, maps);
  EXPECT_EQ(losses("droidspeak", in),
            (std::map<std::string, double>{{"full reuse", 39},
                                           {"full prefill", 0},
                                           {"recompute 3-7", 2},
                                           {"recompute 3-7 in 2 chunks", 2},
                                           {"recompute 3-7 aligned", 0.5},
                                           {"recompute 3-7 aligned in 2 chunks", 0.5},
                                           {"recompute 4-5", 19},
                                           {"recompute 4-5 in 2 chunks", 19},
                                           {"recompute 4-5 aligned (diagonal)", 15},
                                           {"recompute 4-5 aligned (diagonal) in 2 chunks", 15},
                                           {"recompute 4-5 aligned (low-rank)", 9},
                                           {"recompute 4-5 aligned (low-rank) in 2 chunks", 9},
                                           {"recompute 5-6 aligned", 7},
                                           {"recompute 5-6 aligned in 2 chunks", 7},
                                           {"recompute 2-8", -0.5},  // no map for layer 2
                                           {"recompute 2-8 in 2 chunks", -0.5}}));
  // Stairs stand on aligned cuts too.
  EXPECT_THAT(
      losses("balanced", in),
      ::testing::Contains(std::pair(std::string("recompute 3-7 aligned, 1 of 2 chunks to the top"), 0.5)));
  for (const Tiling& t : draw("balanced", in)) {
    EXPECT_EQ(t.aligns(), t.way.map != MapForm::kNone) << t.what;
    EXPECT_EQ(t.map_rank, t.way.map == MapForm::kLowRank ? 16 : 0) << t.what;
  }
  // Restored layers need a map each; layer 0 needs none.
  EXPECT_EQ(losses("restore", in).count("restore 0-11 aligned"), 0u);
  std::vector<std::pair<int64_t, MapForm>> every;
  for (int64_t l = 1; l < 12; ++l) every.push_back({l, MapForm::kFull});
  const MapSet all_maps = some_maps(every);
  EXPECT_EQ(losses("restore", aligned_input(q, all_maps)).at("restore 0-11 aligned"), 6);
  EXPECT_EQ(losses("restore", aligned_input(q, all_maps)).count("restore 1-11 aligned"), 0u);  // not scored
  // One form only: plain cuts are no candidates, what needs no cut is.
  score(q, Way::group({0, 3}), 4);
  in = aligned_input(q, maps);
  in.forms = {MapForm::kFull};
  in.chunks = {1};
  EXPECT_EQ(losses("droidspeak", in), (std::map<std::string, double>{{"full reuse", 39},
                                                                     {"full prefill", 0},
                                                                     {"recompute 0-3", 4},
                                                                     {"recompute 3-7 aligned", 0.5},
                                                                     {"recompute 4-5 aligned", 9},
                                                                     {"recompute 5-6 aligned", 7}}));
  // What the user names needs no score.
  in.recompute = LayerRange{4, 4};
  EXPECT_EQ(draw("droidspeak", in).size(), 1u);
  EXPECT_EQ(draw("droidspeak", in)[0].what, "recompute 4 aligned");
  EXPECT_TRUE(std::isnan(draw("droidspeak", in)[0].loss));
  EXPECT_EQ(draw("restore", in)[0].what, "restore 4 aligned");
  in.map_side = MapSide::kSender;
  EXPECT_FALSE(draw("restore", in)[0].aligns());
  // The select and cake policies know no cuts.
  for (std::string_view policy : {"select", "cake", "full-reuse", "full-prefill"})
    for (const Tiling& t : draw(policy, aligned_input(q, maps)))
      EXPECT_EQ(t.way.map, MapForm::kNone) << t.what;
}

TEST(Policy, WithAConfidenceAFormIsBeatenByBothItsMeanAndItsBound) {
  Quality q = profile();
  const Way group = Way::group({4, 5});
  score(q, group.aligned(MapForm::kLowRank), 8, 3);  // three contexts: a wide bound
  score(q, group.aligned(MapForm::kFull), 9);
  const MapSet maps = some_maps({{4, MapForm::kLowRank}, {4, MapForm::kFull}});
  PolicyInput in = aligned_input(q, maps);
  EXPECT_EQ(losses("droidspeak", in).count("recompute 4-5 aligned"), 0u);
  in.confidence = 0.95;
  EXPECT_EQ(losses("droidspeak", in).count("recompute 4-5 aligned"), 1u);
}

}  // namespace
}  // namespace ds
