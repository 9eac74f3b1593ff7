// Policies, the choice between tilings, the placing of variants, and what compile() refuses.
#include "compiler/compile.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fmt/ranges.h>

#include <cmath>
#include <functional>
#include <map>
#include <set>

#include "compiler/emit/emit.h"
#include "compiler/lowering/lower_tiles.h"
#include "compiler/scheduling/schedulers.h"
#include "compiler/scheduling/sender_times.h"
#include "compiler/scheduling/variant_problem.h"
#include "compiler/select/doubt.h"
#include "compiler/select/variants.h"
#include "plans/full_prefill.h"
#include "plans/plan_file.h"
#include "plans/simulate.h"
#include "plans/traits.h"
#include "tests/unit/take.h"

namespace ds {
namespace {

using ::testing::HasSubstr;

const Shape kShape{"llama", 12, 512, 1408, 8, 2, 64, 1000};

/// A machine whose layers take 1 us per row, whatever the position, and 100 us per call.
MachineModel machine() {
  MachineModel m = MachineModel::stand_in(DType::kBF16);
  m.link_rtt_ns = 0;
  for (int64_t rows = 1; rows <= 65536; rows *= 2) {
    m.layer_points.push_back({rows, rows, 0, 100'000 + 1000 * rows});
    m.layer_points.push_back({rows, 0, 0, 20'000 + 200 * rows});
  }
  return m;
}

Quality profile() {
  Quality q;
  q.layers = 12;
  q.receiver_score = 99;
  q.full_reuse_score = 60;
  auto add = [&](Way way, double score) {
    WayScore w;
    w.way = std::move(way);
    w.items = w.contexts = 50;
    w.score = {score, 1};
    w.loss = {q.receiver_score - score, 1};
    q.ways.push_back(std::move(w));
  };
  add(Way::full_reuse(), 60);
  add(Way::group({3, 7}), 97);
  add(Way::group({4, 5}), 80);
  add(Way::group({2, 8}), 99.5);
  return q;
}

PolicyInput input(const Quality& quality, std::vector<int32_t> chunks) {
  PolicyInput in;
  in.layers = 12;
  in.quality = &quality;
  in.chunks = std::move(chunks);
  return in;
}

std::vector<Tiling> draw(std::string_view policy, const PolicyInput& in) {
  auto found = find_policy(policy);
  EXPECT_TRUE(found.ok());
  auto tilings = (*found)->draw(in);
  EXPECT_TRUE(tilings.ok()) << tilings.status().message();
  return *tilings;
}

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

/// Maps of width 512 that are there for some layers and forms; their numbers are never looked at here.
MapSet some_maps(const std::vector<std::pair<int64_t, MapForm>>& there, int64_t rank = 16) {
  MapSet maps;
  maps.layers = 12;
  maps.d_model = kShape.d_model;
  for (auto [layer, form] : there) {
    AlignmentMap m;
    m.layer = layer;
    m.form = form;
    m.rank = form == MapForm::kLowRank ? rank : 0;
    maps.maps.push_back(std::move(m));
  }
  return maps;
}

void score(Quality& q, const Way& way, double loss, int64_t contexts = 50) {
  WayScore w;
  w.way = way;
  w.items = w.contexts = contexts;
  w.score = {q.receiver_score - loss, 1};
  w.loss = {loss, 1};
  q.ways.push_back(std::move(w));
}

PolicyInput aligned_input(const Quality& q, const MapSet& maps) {
  PolicyInput in = input(q, {1, 2});
  in.maps = &maps;
  in.forms = {MapForm::kNone, MapForm::kDiagonal, MapForm::kLowRank, MapForm::kFull};
  in.map_rank = 16;
  return in;
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

TEST(Choice, AlignedTilingsTakeLongerAndPromiseTheirOwnLoss) {
  Quality q = profile();
  score(q, Way::group({3, 7}).aligned(MapForm::kFull), 0.5);
  const MapSet maps = some_maps({{3, MapForm::kFull}});
  CostModel costs(machine(), kShape);
  auto chooser = [&](Slo slo, MapSide side = MapSide::kReceiver) {
    PolicyInput in = aligned_input(q, maps);
    in.chunks = {1};
    in.map_side = side;
    return Chooser(draw("droidspeak", in), slo, costs, "best");
  };
  const Point point{512, 8, 10'000'000'000};
  auto chosen = [&](double loss) {
    Chooser c = chooser({loss, {}});
    auto best = c.best(point);
    return best.ok() ? c.tilings()[*best].what : best.status().message();
  };
  EXPECT_EQ(chosen(2), "recompute 3-7");
  EXPECT_EQ(chosen(0.5), "recompute 3-7 aligned");
  EXPECT_EQ(chosen(0), "recompute 2-8");
  // Mapping takes its time, at the receiver only.
  auto ttft = [&](Chooser c, const std::string& what) -> std::pair<int64_t, int64_t> {
    for (size_t i = 0; i < c.tilings().size(); ++i)
      if (c.tilings()[i].what == what) return {c.predict(i, point)->ttft_ns, c.predict(i, point)->compute_ns};
    ADD_FAILURE() << what;
    return {};
  };
  auto plain = ttft(chooser({}), "recompute 3-7"), own = ttft(chooser({}), "recompute 3-7 aligned");
  int64_t map = std::llround(costs.align(512, MapForm::kFull, 0).ns);
  EXPECT_GT(map, 0);
  EXPECT_EQ(own.second, plain.second + map);
  EXPECT_GT(own.first, plain.first);
  EXPECT_EQ(ttft(chooser({}, MapSide::kSender), "recompute 3-7 aligned"), plain);
}

TEST(Choice, KeepsTheObjective) {
  Quality q = profile();
  CostModel costs(machine(), kShape);
  auto chosen = [&](Slo slo, int64_t rate, bool waiting = false) {
    Chooser chooser(draw("droidspeak", input(q, {1})), slo, costs, "best");
    auto best = chooser.best({512, 8, rate, waiting});
    return best.ok() ? chooser.tilings()[*best].what : best.status().message();
  };
  constexpr int64_t kFast = 10'000'000'000, kSlow = 1000;
  EXPECT_EQ(chosen({2, {}}, kFast), "recompute 3-7");
  EXPECT_EQ(chosen({0, {}}, kFast), "recompute 2-8");
  EXPECT_EQ(chosen({50, {}}, kFast), "full reuse");
  EXPECT_EQ(chosen({2, {}}, kSlow), "full prefill");
  // A bound on the TTFT: the least loss within it.
  EXPECT_EQ(chosen({{}, 1'000'000'000}, kFast), "recompute 2-8");
  EXPECT_EQ(chosen({{}, 4'600'000}, kFast), "recompute 3-7");
  EXPECT_THAT(chosen({1, 1'000'000}, kFast),
              HasSubstr("a loss of at most 1 points and a TTFT of at most 1 ms"));
  EXPECT_THAT(chosen({1, 1'000'000}, kFast), HasSubstr("recompute 3-7"));
  // Where others wait, what holds a stream shortest; with a hopeless link that is the full prefill again.
  EXPECT_EQ(chosen({2, {}}, kFast, true), "recompute 3-7");
  EXPECT_EQ(chosen({2, {}}, kSlow, true), "full prefill");
  q.ways.clear();
  EXPECT_EQ(chosen({2, {}}, kFast), "full prefill");  // loses nothing and is always there
}

TEST(Choice, WithAConfidenceBoundsAreHeldAgainstTheObjective) {
  Quality q = profile();  // standard errors of 1 point over 50 contexts: bounds lie 1.68 above the means
  CostModel costs(machine(), kShape);
  PolicyInput in = input(q, {1});
  in.confidence = 0.95;
  auto chosen = [&](Slo slo) {
    slo.confidence = in.confidence;
    Chooser chooser(draw("droidspeak", in), slo, costs, "best");
    auto best = chooser.best({512, 8, 10'000'000'000});
    return best.ok() ? chooser.tilings()[*best].what : best.status().message();
  };
  EXPECT_EQ(chosen({3, {}}), "recompute 2-8");  // 2 points, but 3.7 with confidence
  EXPECT_EQ(chosen({3.7, {}}), "recompute 3-7");
  EXPECT_EQ(chosen({{}, 1'000'000'000}), "full prefill");  // the least bound: nothing is lost for certain
  EXPECT_THAT(chosen({3, 1'000'000}), HasSubstr("a loss of at most 3 points with 95 % confidence"));
  EXPECT_THAT(chosen({3, 1'000'000}), HasSubstr("loss   2.00 points, bound   3.68"));
  for (const Tiling& t : draw("droidspeak", in)) {
    if (t.what != "recompute 3-7") continue;
    EXPECT_EQ(t.loss, 2);
    EXPECT_EQ(t.loss_stderr, 1);
    EXPECT_NEAR(t.loss_bound, 2 + 1.6766, 1e-3);  // Student's t, 49 degrees of freedom
  }
  // One context says nothing about others, whatever its standard error.
  for (WayScore& w : q.ways) {
    w.contexts = 1;
    w.loss.standard_error = 0;
  }
  EXPECT_EQ(chosen({3, {}}), "full prefill");
  EXPECT_THAT(chosen({3, 1'000'000}), HasSubstr("have no bound: the profile has too few contexts"));
}

TEST(Choice, GoesByDivergencesToo) {
  Quality q = profile();
  for (WayScore& w : q.ways) w.divergence = {0.4, 0.01};
  q.ways[1].divergence = {0.2, 0.01};    // 3-7, loses 2
  q.ways[2].divergence = {0.05, 0.02};   // 4-5, loses 19
  q.ways[3].divergence = {0.02, 0.005};  // 2-8, loses nothing
  CostModel costs(machine(), kShape);
  PolicyInput in = input(q, {1});
  in.by_divergence = true;
  auto chosen = [&](Slo slo, bool waiting = false) {
    slo.confidence = in.confidence;
    Chooser chooser(draw("droidspeak", in), slo, costs, "best");
    Point p{512, 8, 10'000'000'000, waiting};
    auto best = chooser.best(p);
    return best.ok() ? chooser.tilings()[*best].what + " by " + chooser.objective(p)
                     : best.status().message();
  };
  EXPECT_EQ(chosen({.divergence = 0.05}),
            "recompute 4-5 by least TTFT with a divergence of at most 0.05 nats per token");
  EXPECT_EQ(
      chosen({.divergence = 0.3}, true),
      "recompute 4-5 by least time of the busiest stream with a divergence of at most 0.3 nats per token");
  // Beside a loss both hold.
  EXPECT_THAT(chosen({.loss = 3, .divergence = 0.3}), HasSubstr("recompute 3-7"));
  EXPECT_EQ(
      chosen({.loss = 3, .divergence = 0.1}),
      "recompute 2-8 by least TTFT with a loss of at most 3 points and a divergence of at most 0.1 nats per "
      "token");
  // The least within a time.
  EXPECT_EQ(chosen({.ttft_ns = 1'000'000'000, .least_divergence = true}),
            "full prefill by least divergence with a TTFT of at most " + format_ns(1'000'000'000));
  Chooser all(draw("droidspeak", in), {.divergence = 0}, costs, "best");
  size_t group = 0;
  for (size_t i = 0; i < all.tilings().size(); ++i)
    if (all.tilings()[i].what == "recompute 4-5") group = i;
  const int64_t time = testing::take(all.predict(group, {512, 8, 10'000'000'000})).ttft_ns;
  EXPECT_THAT(chosen({.ttft_ns = time, .least_divergence = true}),
              HasSubstr("recompute 4-5 by least divergence"));
  // What else there is shows both, also what is beaten in loss alone.
  const std::string none = chosen({.ttft_ns = 1000, .divergence = 0.05});
  EXPECT_THAT(none, HasSubstr("a divergence of at most 0.05 nats per token and a TTFT of at most 1 us"));
  EXPECT_THAT(none, HasSubstr("loss  19.00 points   divergence  0.0500 nats   TTFT"));
  EXPECT_THAT(none, HasSubstr("full prefill    loss   0.00 points   divergence  0.0000 nats"));
  // Bounds instead of means: 0.05 ± 0.02 over 50 contexts.
  in.confidence = 0.95;
  EXPECT_THAT(chosen({.divergence = 0.05}), HasSubstr("recompute 2-8"));
  EXPECT_THAT(chosen({.divergence = 0.084}), HasSubstr("recompute 4-5"));
  EXPECT_THAT(chosen({.ttft_ns = 1000, .divergence = 0.05}),
              HasSubstr("divergence  0.0500 nats, bound  0.0835"));
  // Who says nothing of divergences keeps none.
  for (WayScore& w : q.ways) w.divergence = {std::nan(""), std::nan("")};
  in.confidence = 0;
  EXPECT_THAT(chosen({.divergence = 5}), HasSubstr("no group of layers promises"));
}

TEST(Choice, DeepProfilesKeepTheGroupsThatDivergeLeast) {
  Quality q = profile();
  q.ways.resize(1);
  for (int64_t size = 1; size < 12; ++size)
    for (int64_t first = 0; first + size <= 12; ++first) {
      WayScore w;
      w.way = Way::group({first, first + size - 1});
      w.items = w.contexts = 50;
      // All score alike but the lowest; the highest diverge least.
      w.score = {first == 0 ? 95.0 : 90.0, 1};
      w.loss = {99 - w.score.value, 1};
      w.divergence = {0.5 - 0.01 * static_cast<double>(first), 0.001};
      q.ways.push_back(w);
    }
  auto named = [&](bool by_divergence, const std::string& name) {
    PolicyInput in = input(q, {1});
    in.by_divergence = by_divergence;
    auto all = draw("droidspeak", in);
    return std::any_of(all.begin(), all.end(), [&](const Tiling& t) { return t.what == name; });
  };
  EXPECT_TRUE(named(false, "recompute 0-4"));
  EXPECT_TRUE(named(false, "recompute 7-11")) << "of equal scores the one that diverges less";
  EXPECT_FALSE(named(false, "recompute 1-5"));
  for (WayScore& w : q.ways)
    if (w.way == Way::group({1, 5})) w.score.value = 94;
  EXPECT_TRUE(named(false, "recompute 1-5"));
  EXPECT_FALSE(named(false, "recompute 7-11"));
  EXPECT_TRUE(named(true, "recompute 1-5"));
  EXPECT_TRUE(named(true, "recompute 7-11"));
}

TEST(Doubt, IsWhereTheErrorIsTooLarge) {
  // A mean well within the limit, and one whose error is larger than the limit.
  EXPECT_FALSE(doubt_of({1.0, 0.5}, 30, 5));
  EXPECT_FALSE(doubt_of({4.0, 1.0}, 30, 5));
  EXPECT_TRUE(doubt_of({4.1, 1.0}, 30, 5));
  EXPECT_TRUE(doubt_of({-9, 6.0}, 30, 5)) << "what has an error of 6 says nothing of 5";
  EXPECT_FALSE(doubt_of({0, 0}, 30, 0));
  EXPECT_FALSE(doubt_of({0, std::nan("")}, 30, 5));
  // 30 contexts, 1.7 ± 6.0: 1.645 errors are to fit into 3.3, so that 30 * (9.87 / 3.3)^2 = 268.4 contexts
  // would do.
  auto doubt = doubt_of({1.7, 6.0}, 30, 5);
  ASSERT_TRUE(doubt);
  EXPECT_EQ(doubt->would_tell, 270);
  EXPECT_EQ(doubt_of({-9, 6.0}, 30, 5)->would_tell, 120) << "a gain counts as no loss";
  EXPECT_EQ(doubt_of({0, 1.0}, 100, 0)->would_tell, 0) << "nothing shows that nothing is lost";
}

TEST(Choice, IsTheBestOfAllTilings) {
  Quality q = profile();
  CostModel costs(machine(), kShape);
  for (std::string_view policy : policy_names()) {
    for (int64_t rate : {1'000'000, 20'000'000, 60'000'000, 200'000'000, 2'000'000'000}) {
      for (int64_t tokens : {100, 700, 3000}) {
        Point p{tokens, 16, rate};
        Slo slo;
        if ((*find_policy(policy))->chooses) slo.loss = 3;
        Chooser chooser(draw(policy, input(q, {1, 2, 4, 8})), slo, costs, "e-first");
        auto best = chooser.best(p);
        ASSERT_TRUE(best.ok()) << best.status().message();
        auto chosen = chooser.predict(*best, p);
        for (size_t i = 0; i < chooser.tilings().size(); ++i) {
          const Tiling& t = chooser.tilings()[i];
          if (slo.loss && !(t.loss <= *slo.loss)) continue;
          if (t.chunks > 1 && tokens / t.chunks < 64) continue;
          EXPECT_GE(chooser.predict(i, p)->ttft_ns, chosen->ttft_ns)
              << t.what << " against " << chooser.tilings()[*best].what << " at " << tokens << ", " << rate;
        }
      }
    }
  }
}

TEST(Choice, StairsBalanceASlowLink) {
  // Near the rate at which loading a layer takes as long as computing it, a bit of both beats either.
  Quality q = profile();
  CostModel costs(machine(), kShape);
  Point p{4096, 16, 300'000'000};
  Chooser plain(draw("droidspeak", input(q, {1, 2, 4, 8, 16})), {3, {}}, costs, "e-first");
  Chooser stairs(draw("balanced", input(q, {1, 2, 4, 8, 16})), {3, {}}, costs, "e-first");
  size_t a = *plain.best(p), b = *stairs.best(p);
  EXPECT_LT(static_cast<double>(stairs.predict(b, p)->ttft_ns),
            0.97 * static_cast<double>(plain.predict(a, p)->ttft_ns))
      << plain.tilings()[a].what << " against " << stairs.tilings()[b].what;
}

TEST(Variants, CoverEveryPointOnceAndStateTheirRegret) {
  Quality q = profile();
  CostModel costs(machine(), kShape);
  Grid grid{{256, 1024, 4096}, {1'000'000, 10'000'000, 100'000'000, 1'000'000'000}, 16};
  Chooser chooser(draw("balanced", input(q, {1, 2, 4, 8})), {3, {}}, costs, "e-first");
  auto placed = place_variants(chooser, grid);
  ASSERT_TRUE(placed.ok()) << placed.status().message();
  EXPECT_GT(placed->size(), 2u);
  for (int64_t n : {1, 255, 256, 500, 1024, 2047, 4096, 100'000}) {
    for (int64_t rate :
         {int64_t{0}, int64_t{1'000'000}, int64_t{7'777'777}, int64_t{100'000'000}, kNoLimit - 1}) {
      for (int64_t load : {0, 1, 50}) {
        int covering = 0;
        for (const PlacedVariant& v : *placed) {
          covering += n >= v.tokens_min && n < v.tokens_max && rate >= v.rate_min && rate < v.rate_max &&
                      load >= v.load_min && load < v.load_max;
        }
        EXPECT_EQ(covering, 1) << n << " tokens, " << rate << " B/s, " << load << " waiting";
      }
    }
  }
  // At the grid points a variant is as good as it says, for each load that it is for.
  for (int64_t n : grid.tokens) {
    for (int64_t rate : grid.rates) {
      for (bool waiting : {false, true}) {
        Point p{n, 16, rate, waiting};
        auto cost = [&](size_t tiling) {
          Predicted of = *chooser.predict(tiling, p);
          return static_cast<double>(waiting ? std::max(of.compute_ns, of.link_ns) : of.ttft_ns);
        };
        for (const PlacedVariant& v : *placed) {
          if (n < v.tokens_min || n >= v.tokens_max || rate < v.rate_min || rate >= v.rate_max ||
              (waiting ? v.load_max == 1 : v.load_min > 0))
            continue;
          EXPECT_LE(cost(v.tiling), cost(*chooser.best(p)) * (1 + v.regret) + 1)
              << n << " tokens, " << rate << " B/s" << (waiting ? ", some wait" : "");
        }
      }
    }
  }
}

TEST(Variants, MostHoldForEveryLoad) {
  Quality q = profile();
  CostModel costs(machine(), kShape);
  Grid grid{{256, 1024, 4096}, {1'000'000, 10'000'000, 100'000'000, 1'000'000'000}, 16};
  Chooser chooser(draw("balanced", input(q, {1, 2, 4, 8})), {3, {}}, costs, "e-first");
  ASSERT_TRUE(chooser.counts_busy({.waiting = true}));
  auto placed = place_variants(chooser, grid);
  ASSERT_TRUE(placed.ok());
  size_t all = 0;
  for (const PlacedVariant& v : *placed) {
    all += v.load_min == 0 && v.load_max == kNoLimit;
    if (v.load_min == 0) continue;
    // What is apart is so because the other load has another tiling, in the same ranges.
    auto idle = std::find_if(placed->begin(), placed->end(), [&](const PlacedVariant& o) {
      return o.load_max == 1 && o.tokens_min == v.tokens_min && o.rate_min == v.rate_min;
    });
    ASSERT_NE(idle, placed->end());
    EXPECT_EQ(std::pair(idle->tokens_max, idle->rate_max), std::pair(v.tokens_max, v.rate_max));
    EXPECT_NE(idle->tiling, v.tiling);
  }
  EXPECT_GT(2 * all, placed->size());
}

TEST(Variants, FewerAreAskedForAndTheirRegretGrows) {
  Quality q = profile();
  CostModel costs(machine(), kShape);
  Grid grid{{256, 1024, 4096}, {1'000'000, 10'000'000, 100'000'000, 1'000'000'000}, 16};
  Chooser chooser(draw("balanced", input(q, {1, 2, 4, 8})), {3, {}}, costs, "e-first");
  auto worst = [](const std::vector<PlacedVariant>& all) {
    double regret = 0;
    for (const PlacedVariant& v : all) regret = std::max(regret, v.regret);
    return regret;
  };
  auto many = place_variants(chooser, grid), few = place_variants(chooser, grid, 6);
  ASSERT_TRUE(many.ok() && few.ok());
  EXPECT_GT(many->size(), 6u);
  EXPECT_LE(few->size(), 6u);
  EXPECT_GT(worst(*few), worst(*many));
  for (int64_t rate : {1'000'000, 30'000'000, 2'000'000'000}) {
    int covering = 0;
    for (const PlacedVariant& v : *few)
      covering += 700 >= v.tokens_min && 700 < v.tokens_max && rate >= v.rate_min && rate < v.rate_max &&
                  v.load_min == 0;
    EXPECT_EQ(covering, 1) << rate;
  }
}

TEST(Variants, OneTilingIsOneVariant) {
  CostModel costs(machine(), kShape);
  PolicyInput in;
  in.layers = 12;
  Chooser chooser(draw("full-reuse", in), {}, costs, "best");
  auto placed = place_variants(chooser, {{256, 1024, 4096}, {1'000'000, 1'000'000'000}, 16});
  ASSERT_TRUE(placed.ok());
  ASSERT_EQ(placed->size(), 1u);
  EXPECT_EQ(placed->front().tokens_max, kNoLimit);
  EXPECT_EQ(placed->front().rate_max, kNoLimit);
  EXPECT_EQ(placed->front().regret, 0);
}

TEST(Compile, RefusesContradictionsBeforeItOpensAnything) {
  struct Call : CompileOptions {
    CompileFiles files{.receiver = "/nowhere/r", .sender = "/nowhere/s"};
  };
  auto message = [&](const std::function<void(Call&)>& set) {
    Call o;
    set(o);
    auto r = compile(o.files, o);
    return r.ok() ? std::string("compiled")
                  : fmt::format("{}: {}", code_name(r.status().code()), r.status().message());
  };
  auto refused = [&](const std::function<void(Call&)>& set, std::string_view text) {
    std::string m = message(set);
    EXPECT_THAT(m, ::testing::StartsWith("invalid argument: "));
    EXPECT_THAT(m, HasSubstr(std::string(text)));
  };
  refused([](auto& o) { o.recompute = "1-2", o.policy = "full-reuse"; },
          "--recompute contradicts --policy full-reuse");
  refused([](auto& o) { o.recompute = "1-2", o.slo_loss = 2, o.files.quality = "q"; },
          "--slo-loss contradicts --recompute");
  refused([](auto& o) { o.slo_loss = 2; }, "--slo-loss needs --quality");
  refused([](auto& o) { o.slo_ttft_ms = 2; }, "--slo-ttft-ms needs --quality");
  refused([](auto& o) { o.slo_divergence = "0.1"; }, "--slo-divergence needs --quality");
  refused([](auto& o) { o.slo_divergence = "-1"; },
          "--slo-divergence is '-1', expected nats per token, 0 or more, like 0.05, or least");
  refused([](auto& o) { o.slo_divergence = "0.1x"; }, "--slo-divergence is '0.1x'");
  refused([](auto& o) { o.slo_divergence = "least"; }, "--slo-divergence least needs --slo-ttft-ms");
  refused([](auto& o) { o.slo_divergence = "0.1", o.recompute = "1-2", o.files.quality = "q"; },
          "--slo-divergence contradicts --recompute");
  refused([](auto& o) { o.policy = "full-prefill", o.slo_ttft_ms = 2; },
          "--slo-ttft-ms contradicts --policy full-prefill");
  refused([](auto& o) { o.policy = "full-prefill", o.files.quality = "q"; }, "--quality contradicts");
  refused([](auto& o) { o.files.quality = "q"; }, "--quality needs an objective");
  refused([](auto&) {}, "which layers are to be recomputed?");
  refused([](auto& o) { o.policy = "fastest"; }, "unknown policy 'fastest'");
  refused([](auto& o) { o.policy = "full-reuse", o.schedule = "fast"; }, "--schedule is 'fast'");
  refused([](auto& o) { o.policy = "full-reuse", o.chunks = 0; }, "--chunks is 0");
  refused([](auto& o) { o.policy = "cake", o.recompute = "1-2"; }, "--recompute contradicts --policy cake");
  refused([](auto& o) { o.policy = "select", o.recompute = "1-2"; },
          "--recompute contradicts --policy select");
  refused([](auto& o) { o.policy = "select"; }, "how many tokens are to be selected?");
  refused([](auto& o) { o.policy = "restore"; }, "which layers are to be recomputed?");
  refused([](auto& o) { o.policy = "restore", o.select_share = "10%"; },
          "--select-share contradicts --policy restore");
  refused([](auto& o) { o.recompute = "1-2", o.select_share = "10%"; }, "--select-share contradicts");
  for (const char* share : {"", "%", "0%", "101%", "1.01", "-5%", "15 %", "x", "nan"}) {
    refused([&](auto& o) { o.policy = "select", o.select_share = share; },
            fmt::format("--select-share: bad share '{}'", share));
  }
  refused([](auto& o) { o.policy = "select", o.select_share = "10%", o.files.quality = "q", o.slo_loss = 2; },
          "--slo-loss contradicts --select-share");
  refused([](auto& o) { o.policy = "full-reuse", o.emit = "bytes"; }, "--emit is 'bytes'");
  refused([](auto& o) { o.policy = "full-reuse", o.dtype = "f16"; }, "--dtype is 'f16'");
  refused([](auto& o) { o.policy = "full-reuse", o.link_rates = "20"; }, "--link-rates: bad rate '20'");
  refused([](auto& o) { o.policy = "full-reuse", o.link_rates = "20MB/s,160Mb/s"; }, "--link-rates");
  refused([](auto& o) { o.policy = "full-reuse", o.context_lengths = "9,8"; }, "--context-lengths");
  refused([](auto& o) { o.policy = "full-reuse", o.suffix_length = 0; }, "--suffix-length is 0");
  refused([](auto& o) { o.files.quality = "q", o.slo_loss = std::nan(""); }, "--slo-loss is nan");
  refused([](auto& o) { o.files.quality = "q", o.slo_ttft_ms = 0; }, "--slo-ttft-ms is 0");
  refused([](auto& o) { o.files.quality = "q", o.slo_loss = 1, o.confidence = 0.5; }, "--confidence is 0.5");
  refused([](auto& o) { o.files.quality = "q", o.slo_loss = 1, o.confidence = 1; }, "--confidence is 1");
  refused([](auto& o) { o.recompute = "1-2", o.confidence = 0.9; }, "--confidence needs --quality");
  // What can only be seen in files comes after.
  EXPECT_THAT(message([](auto& o) { o.recompute = "1-2"; }), HasSubstr("not found"));
}

CompileInputs inputs_in_memory(MachineModel machine) {
  CompileInputs in;
  in.pair.config = *preset_config("llama:layers=12,d=512,ff=1408,heads=8,kv=2,vocab=1000");
  for (ModelIdentity* model : {&in.pair.sender, &in.pair.receiver})
    *model = {.name = "m",
              .fingerprint = std::string(64, 'a'),
              .config = std::string(64, 'b'),
              .weights = std::string(64, 'c'),
              .tokenizer = ""};
  in.machine = std::move(machine);
  return in;
}

TEST(Compile, NothingStartsBeforeTheEntryHasBeenFound) {
  MachineModel m = machine();
  m.lookup_ns = 1'000'000;
  m.link_rtt_ns = 500'000;
  // Layers 0 to 5 need no cut, so that their kernels could start at once.
  for (const char* scheduler : {"best", "e-first", "kv-preload", "serial"}) {
    CompileOptions o{.recompute = "0-5", .context_lengths = "1024", .link_rates = "100MB/s"};
    o.schedule = scheduler;
    auto out = compile(inputs_in_memory(m), o);
    ASSERT_TRUE(out.ok()) << out.status().message();
    ASSERT_EQ(out->plan->variants.size(), 1u);
    const Variant& v = out->plan->variants[0];
    int64_t first_kernel = INT64_MAX, first_load = INT64_MAX;
    for (const Op& op : v.ops) {
      bool load = op.kind == OpKind::kTransfer;
      (load ? first_load : first_kernel) = std::min(load ? first_load : first_kernel, op.start_ns);
    }
    EXPECT_EQ(first_load, 1'500'000) << scheduler;
    EXPECT_GE(first_kernel, 1'000'000) << scheduler;
    if (std::string_view(scheduler) == "best") {
      EXPECT_EQ(first_kernel, 1'000'000);
    }
    EXPECT_EQ(out->plan->full_prefill.ops[0].start_ns, 0);

    // A simulation keeps that head start, whatever the rate.
    OperatingPoint at = tuned_point(v);
    EXPECT_EQ(predicted_ttft_ns(*out->plan, v, at), v.makespan_ns) << scheduler;
    auto fast = simulate_variant(*out->plan, v, {at.tokens, at.suffix, int64_t{1} << 50});
    ASSERT_TRUE(fast.ok());
    for (size_t i = 0; i < v.ops.size(); ++i) EXPECT_GE(fast->ops[i].start_ns, 1'000'000) << scheduler << i;
  }
}

TEST(Compile, WhatALiveSenderHasNotShownIsWaitedFor) {
  const MachineModel m = machine();
  const CostModel costs(m, kShape);
  const SenderTimes sender(costs, 1024);
  // Each layer in two pieces of 512 rows; of the last layer only K and V.
  const double first = costs.layer_ns(512, 512, 0), second = costs.layer_ns(512, 512, 512);
  const double layer = first + second;
  const auto all = std::llround(11 * layer + costs.layer_ns(512, 0, 0) + costs.layer_ns(512, 0, 512));
  auto transfer = [](Payload payload, int32_t layer, int32_t chunk) {
    return Op{.kind = OpKind::kTransfer, .payload = payload, .layer = layer, .chunk = chunk};
  };
  EXPECT_EQ(sender.ready_ns(transfer(Payload::kKv, 0, 0), 1), std::llround(layer));
  EXPECT_EQ(sender.ready_ns(transfer(Payload::kKv, 0, 0), 2), std::llround(first));
  EXPECT_EQ(sender.ready_ns(transfer(Payload::kE, 3, 0), 1), std::llround(3 * layer + first));
  EXPECT_EQ(sender.ready_ns(transfer(Payload::kKv, 11, 0), 1), all);
  int64_t best = 0;
  for (const char* scheduler : {"best", "e-first", "kv-preload", "serial"}) {
    SCOPED_TRACE(scheduler);
    CompileOptions o{.recompute = "3-7", .context_lengths = "1024", .link_rates = "1GB/s"};
    o.schedule = scheduler;
    auto plain = compile(inputs_in_memory(m), o);
    ASSERT_TRUE(plain.ok()) << plain.status().message();
    EXPECT_EQ(plain->plan->format_version, kWrittenFormatVersion);
    o.live_sender = true;
    auto out = compile(inputs_in_memory(m), o);
    ASSERT_TRUE(out.ok()) << out.status().message();
    const Plan& plan = *out->plan;
    EXPECT_EQ(plan.format_version, kLiveFormatVersion);
    ASSERT_EQ(plan.variants.size(), 2u);
    EXPECT_EQ(plan.variants[0], plain->plan->variants[0]);
    const Variant& live = plan.variants[1];
    EXPECT_TRUE(live.live);
    for (const Op& op : live.ops)
      if (is_transfer(op)) {
        EXPECT_GE(op.start_ns, sender.ready_ns(op, live.chunks));
      }
    EXPECT_GT(live.makespan_ns, all);
    EXPECT_GT(live.makespan_ns, plan.variants[0].makespan_ns);
    EXPECT_EQ(predicted_ttft_ns(plan, live, tuned_point(live)), live.makespan_ns);
    best = best == 0 ? live.makespan_ns : best;
    EXPECT_LE(best, live.makespan_ns) << "the first was the best";
    EXPECT_EQ(select_variant(plan, 1024, 1'000'000'000), &plan.variants[0]);
    EXPECT_EQ(select_variant(plan, 1024, 1'000'000'000, 0, true), &live);
    EXPECT_EQ(select_variant(*plain->plan, 1024, 1'000'000'000, 0, true), &plain->plan->variants[0]);
    auto read = parse_plan(std::as_bytes(std::span(out->bytes.data(), out->bytes.size())), "it");
    ASSERT_TRUE(read.ok()) << read.status().message();
    EXPECT_EQ(*read, plan);
    Plan older = plan;
    older.format_version = 5;
    EXPECT_THAT(verify_plan(older, "it").message(), HasSubstr("a live sender, which came with version 6"));
    Plan twice = plan;
    twice.variants.push_back(live);
    twice.variants.back().name = "again";
    EXPECT_THAT(verify_plan(twice, "it").message(), HasSubstr("both cover"));
  }
}

TEST(Compile, PredictionsKnowSlowdownsAndHandovers) {
  MachineModel quiet = machine(), measured = machine();
  measured.read_bytes_per_s = quiet.read_bytes_per_s = 1e9;
  measured.wakeup_ns = 30'000;
  measured.kernel_slowdown_permille = 800;
  for (const char* scheduler : {"best", "e-first", "cake"}) {
    SCOPED_TRACE(scheduler);
    CompileOptions o{.recompute = "3-7", .context_lengths = "2048", .link_rates = "500MB/s"};
    o.schedule = scheduler;
    auto plain = compile(inputs_in_memory(quiet), o), out = compile(inputs_in_memory(measured), o);
    ASSERT_TRUE(plain.ok() && out.ok()) << plain.status().message() << out.status().message();
    const Variant &before = plain->plan->variants[0], &v = out->plan->variants[0];
    EXPECT_GT(v.makespan_ns, before.makespan_ns);
    EXPECT_LT(v.makespan_ns,
              before.makespan_ns * 14 / 10 + 1'000'000);  // at half the store's speed: 400 permille
    EXPECT_GE(v.lower_bound_ns, before.lower_bound_ns);
    int64_t held = 0, slowed = 0;
    for (const Op& op : v.ops) {
      for (int32_t w : op.waits) {
        const Op& other = v.ops[static_cast<size_t>(w)];
        if (other.stream == op.stream) continue;
        EXPECT_GE(op.start_ns, other.start_ns + other.duration_ns + 30'000);
        held += op.start_ns == other.start_ns + other.duration_ns + 30'000;
      }
      auto same = std::find_if(before.ops.begin(), before.ops.end(), [&](const Op& b) {
        return b.kind == op.kind && b.layer == op.layer && b.chunk == op.chunk && b.rows == op.rows;
      });
      ASSERT_NE(same, before.ops.end());
      slowed += op.duration_ns > same->duration_ns;
      EXPECT_GE(op.duration_ns, same->duration_ns);
      EXPECT_LE(op.duration_ns, same->duration_ns * 14 / 10 + 1);
      if (is_transfer(op)) {
        EXPECT_EQ(op.duration_ns, same->duration_ns);
      }
    }
    EXPECT_GT(held, 0);
    EXPECT_GT(slowed, 0);
    // A simulation keeps both.
    EXPECT_EQ(predicted_ttft_ns(*out->plan, v, tuned_point(v)), v.makespan_ns);
    EXPECT_GT(predicted_ttft_ns(*out->plan, v, {2048, v.tuned_suffix, 100'000'000}), v.makespan_ns);
    // Without loads nothing is slowed, nor handed over.
    EXPECT_EQ(out->plan->full_prefill.makespan_ns, plain->plan->full_prefill.makespan_ns);
  }
}

/// Inputs with maps for every layer above 0, of every form.
CompileInputs inputs_with_maps() {
  CompileInputs in = inputs_in_memory(machine());
  std::vector<std::pair<int64_t, MapForm>> every;
  for (int64_t l = 1; l < 12; ++l)
    for (MapForm form : {MapForm::kDiagonal, MapForm::kLowRank, MapForm::kFull}) every.push_back({l, form});
  in.maps = some_maps(every);
  in.maps_identity = {"m.safetensors", std::string(64, 'd')};
  in.files.push_back({"maps", "m.safetensors", std::string(64, 'e')});
  return in;
}

TEST(Compile, AlignedVariantsAreRightUnderEveryScheduler) {
  const CompileInputs in = inputs_with_maps();
  for (const char* scheduler :
       {"best", "e-first", "kv-first", "kv-preload", "serial", "cake", "two-pointer"}) {
    for (const char* form : {"full", "low-rank", "diagonal"}) {
      for (const char* side : {"receiver", "sender"}) {
        for (const char* policy : {"droidspeak", "balanced", "restore"}) {
          SCOPED_TRACE(fmt::format("{} {} {} {}", scheduler, form, side, policy));
          CompileOptions o{
              .recompute = "3-6", .policy = policy, .context_lengths = "2048", .link_rates = "100MB/s"};
          o.schedule = scheduler;
          o.align = form;
          o.align_side = side;
          o.chunks = 4;
          auto out = compile(in, o);  // verifies the plan
          ASSERT_TRUE(out.ok()) << out.status().message();
          const Variant& v = out->plan->variants[0];
          EXPECT_EQ(map_form_name(v.map_form), form);
          EXPECT_EQ(map_side_name(v.map_side), side);
          EXPECT_EQ(out->plan->maps, in.maps_identity);
          int64_t sent = 0, mapped = 0;
          for (const Op& op : v.ops) {
            sent += op.payload == Payload::kE;
            mapped += op.kind == OpKind::kAlign;
          }
          EXPECT_GT(sent, 0);
          EXPECT_EQ(mapped, v.aligns() ? sent : 0);
          auto text = plan_to_mlir(*out->plan);
          ASSERT_TRUE(text.ok()) << text.status().message();
          auto again = plan_from_mlir(*text, "text");
          ASSERT_TRUE(again.ok()) << again.status().message();
          EXPECT_EQ(serialize_plan(*again), out->bytes);
          EXPECT_EQ(compile(in, o)->bytes, out->bytes);
        }
      }
    }
  }
}

TEST(Compile, TheSenderMapsForOneReceiverWhereThatPays) {
  CompileInputs in = inputs_with_maps();
  auto side_of = [&](CompileOptions o, std::string* flags = nullptr) {
    o.recompute = "3-6";
    o.context_lengths = "2048";
    o.align = "full";
    auto out = compile(in, o);
    EXPECT_TRUE(out.ok()) << out.status().message();
    if (!out.ok()) return MapSide::kReceiver;
    if (flags) *flags = out->plan->provenance.flags + fmt::format("{}", fmt::join(out->notes, "; "));
    return out->plan->variants[0].map_side;
  };
  CompileOptions fast{.link_rates = "10GB/s"}, slow{.link_rates = "10MB/s"}, shared = fast, named = fast;
  fast.chunks = slow.chunks = shared.chunks = named.chunks = 1;
  shared.receivers = 2;
  named.align_side = "receiver";
  std::string text;
  // With a fast link a kernel is what everything waits for; with a slow one nobody notices it.
  EXPECT_EQ(side_of(fast, &text), MapSide::kSender);
  EXPECT_THAT(text, HasSubstr("--align full --align-side auto --receivers 1"));
  EXPECT_THAT(text, HasSubstr("the sender applies the maps"));
  EXPECT_EQ(side_of(slow), MapSide::kReceiver);
  EXPECT_EQ(side_of(shared), MapSide::kReceiver);
  EXPECT_EQ(side_of(named), MapSide::kReceiver);
  named.align_side = "sender";
  named.link_rates = "10MB/s";
  EXPECT_EQ(side_of(named), MapSide::kSender);
}

TEST(Compile, MapsAreCheckedAgainstWhatWasAskedFor) {
  CompileInputs in = inputs_with_maps();
  std::erase_if(in.maps->maps, [](const AlignmentMap& m) {
    return m.form == MapForm::kDiagonal || (m.layer == 3 && m.form == MapForm::kFull);
  });
  auto message = [&](const std::function<void(CompileOptions&)>& set) {
    CompileOptions o{.recompute = "3-6", .context_lengths = "2048", .link_rates = "100MB/s"};
    o.align = "full";
    set(o);
    auto out = compile(in, o);
    return out.ok() ? "ok" : out.status().message();
  };
  EXPECT_EQ(message([](CompileOptions& o) { o.recompute = "4-6"; }), "ok");
  EXPECT_THAT(
      message([](CompileOptions&) {}),
      HasSubstr("--align full: maps 'm.safetensors' have no full map for layer 3; they have one for layers "
                "1, 2, 4, 5"));
  EXPECT_THAT(message([](CompileOptions& o) { o.policy = "restore", o.recompute = "0-3"; }),
              HasSubstr("have no full map for layer 3"));
  EXPECT_EQ(message([](CompileOptions& o) { o.policy = "restore", o.recompute = "0-2"; }), "ok");
  EXPECT_THAT(message([](CompileOptions& o) { o.align = "diagonal"; }),
              HasSubstr("have no diagonal map; they have one for no layer"));
  EXPECT_THAT(
      message([](CompileOptions& o) { o.recompute = "0-3"; }),
      HasSubstr("--align full contradicts --recompute 0-3: that starts from the receiver's own embeddings"));
  EXPECT_THAT(message([](CompileOptions& o) { o.policy = "cake", o.recompute.reset(); }),
              HasSubstr("--align full contradicts --policy cake"));
  // In auto, what there is no map for is no candidate.
  EXPECT_EQ(message([](CompileOptions& o) { o.align = "auto"; }), "ok");
  in.maps.reset();
  EXPECT_THAT(message([](CompileOptions&) {}), HasSubstr("--align full needs --maps FILE"));
  EXPECT_THAT(message([](CompileOptions& o) { o.align = "half"; }),
              HasSubstr("--align is 'half', expected one of auto, none, full, low-rank, diagonal"));
  EXPECT_THAT(message([](CompileOptions& o) { o.align = "auto", o.align_side = "both"; }),
              HasSubstr("--align-side is 'both'"));
  EXPECT_THAT(message([](CompileOptions& o) { o.align = "auto", o.receivers = 0; }),
              HasSubstr("--receivers is 0"));
  EXPECT_THAT(message([](CompileOptions& o) { o.align = "auto", o.align_fallback = "none"; }),
              HasSubstr("--align-fallback is 'none', expected one of plain"));
}

TEST(Compile, TheProfilesLossesHoldForItsMaps) {
  CompileInputs in = inputs_with_maps();
  in.quality = profile();
  score(*in.quality, Way::group({3, 7}).aligned(MapForm::kFull), 0.5);
  in.quality->maps = {"m.safetensors", in.maps_identity.fingerprint};
  CompileOptions o{.policy = "droidspeak", .slo_loss = 1, .context_lengths = "2048", .link_rates = "10GB/s"};
  o.receivers = 4;
  auto out = compile(in, o);
  ASSERT_TRUE(out.ok()) << out.status().message();
  const Variant& v = out->plan->variants[0];
  EXPECT_EQ(v.way, "recompute 3-7 aligned");
  EXPECT_EQ(v.promise.quality_loss, 0.5);
  EXPECT_TRUE(v.aligns());
  // None is aligned: as without maps.
  o.align = "none";
  auto plain = compile(in, o);
  ASSERT_TRUE(plain.ok());
  EXPECT_EQ(plain->plan->variants[0].way, "recompute 2-8");
  EXPECT_EQ(plain->plan->maps, MapsIdentity{});
  // Other maps than it was scored with.
  o.align = "auto";
  in.quality->maps = {"other.safetensors", std::string(64, 'f')};
  auto mismatch = compile(in, o);
  EXPECT_EQ(mismatch.status().code(), Code::kMismatch);
  EXPECT_THAT(mismatch.status().message(),
              ::testing::AllOf(HasSubstr("maps 'm.safetensors' have fingerprint dddddddddddd"),
                               HasSubstr("scored with 'other.safetensors' (ffffffffffff)")));
  o.align_fallback = "plain";
  auto fallen = compile(in, o);
  ASSERT_TRUE(fallen.ok()) << fallen.status().message();
  EXPECT_EQ(fallen->plan->variants[0].way, "recompute 2-8");
  EXPECT_THAT(fallen->notes,
              ::testing::Contains(HasSubstr("no cut is aligned (--align-fallback plain): maps")));
  EXPECT_THAT(fallen->plan->provenance.flags, HasSubstr("--align-fallback plain"));
  // A profile that knows nothing of maps does no harm, and no good.
  in.quality = profile();
  o.align_fallback.reset();
  auto unscored = compile(in, o);
  ASSERT_TRUE(unscored.ok()) << unscored.status().message();
  EXPECT_EQ(unscored->plan->variants[0].way, "recompute 2-8");
  EXPECT_THAT(unscored->notes,
              ::testing::Contains(HasSubstr("are not used: the profile has scored no aligned way")));
}

TEST(Compile, TakesInputsThatWereReadBefore) {
  CompileInputs in = inputs_in_memory(machine());
  CompileOptions o{.policy = "balanced", .slo_loss = 3};
  EXPECT_THAT(compile(in, o).status().message(), HasSubstr("needs --quality"));
  in.quality = profile();
  auto once = compile(in, o), again = compile(in, o);
  ASSERT_TRUE(once.ok()) << once.status().message();
  EXPECT_EQ(once->bytes, again->bytes);
  EXPECT_THAT(once->notes, ::testing::ElementsAre(HasSubstr("times: ")));
  EXPECT_GT(once->times.choose_ns, 0);
  EXPECT_GT(once->times.schedule_ns, 0);
  for (const Variant& v : once->plan->variants) {
    EXPECT_THAT(v.way, ::testing::AnyOf("full prefill", "recompute 3-7", "recompute 2-8"));
    EXPECT_EQ(v.promise.loss_stderr, v.way == "full prefill" ? 0 : 1);
    EXPECT_TRUE(std::isnan(v.promise.loss_bound));
  }
  CompileOptions sure = o;
  sure.confidence = 0.95;
  auto bounded = compile(in, sure);
  ASSERT_TRUE(bounded.ok()) << bounded.status().message();
  EXPECT_THAT(bounded->plan->provenance.flags, HasSubstr("--confidence 0.95"));
  for (const Variant& v : bounded->plan->variants) {
    EXPECT_EQ(v.promise.confidence, 0.95);
    EXPECT_LE(v.promise.loss_bound, 3);
    EXPECT_THAT(v.why, HasSubstr("with 95 % confidence"));
  }
  in.machine.reset();
  auto stand_in = compile(in, o);
  ASSERT_TRUE(stand_in.ok());
  EXPECT_THAT(stand_in->plan->provenance.flags, HasSubstr("stand-in"));
}

TEST(Compile, SaysWhatTheProfileCannotTell) {
  CompileInputs in = inputs_in_memory(machine());
  in.quality = profile();
  for (WayScore& w : in.quality->ways) {
    w.contexts = 30;
    w.divergence = {w.way.is_full_reuse() ? 0.17 : 0.158, 0.01};
    w.loss.standard_error = w.way == Way::group({3, 7}) ? 6 : 5;
  }
  CompileOptions o{.slo_loss = 3};
  auto doubtful = compile(in, o);
  ASSERT_TRUE(doubtful.ok()) << doubtful.status().message();
  ASSERT_EQ(doubtful->warnings.size(), 1u);
  EXPECT_THAT(
      doubtful->warnings[0],
      HasSubstr("the profile cannot tell whether 'recompute 3-7' loses at most 3 points: 2.0 ± 6.0 over 30 "
                "contexts; about 3,000 contexts would tell. The same holds of"));
  EXPECT_THAT(doubtful->warnings[0],
              HasSubstr("Its divergence is 93 % of full reuse's (0.158 of 0.17 nats per token)"));
  EXPECT_THAT(doubtful->warnings[0], HasSubstr("--confidence 0.95"));
  EXPECT_THAT(doubtful->warnings[0], HasSubstr("--slo-divergence"));
  o.confidence = 0.95;
  auto sure = compile(in, o);
  ASSERT_TRUE(sure.ok()) << sure.status().message();
  EXPECT_TRUE(sure->warnings.empty());
  o.confidence.reset();
  for (WayScore& w : in.quality->ways) w.loss.standard_error = 0.5;
  EXPECT_TRUE(compile(in, o)->warnings.empty());
  // The same of a divergence.
  o = {.slo_divergence = "0.16"};
  auto close = compile(in, o);
  ASSERT_TRUE(close.ok()) << close.status().message();
  ASSERT_EQ(close->warnings.size(), 1u);
  EXPECT_THAT(close->warnings[0], HasSubstr("diverges by at most 0.16 nats per token: 0.1580 ± 0.0100"));
  for (const Variant& v : close->plan->variants) EXPECT_LE(v.promise.divergence, 0.16);
  EXPECT_EQ(close->plan->full_prefill.promise.divergence, 0);
  EXPECT_THAT(close->plan->provenance.flags, HasSubstr("--slo-divergence 0.16"));
}

}  // namespace
}  // namespace ds
