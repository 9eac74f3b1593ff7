// The choice between tilings, and the placing of variants.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "compiler/select/doubt.h"
#include "compiler/select/variants.h"
#include "tests/unit/compile_inputs.h"
#include "tests/unit/take.h"

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

}  // namespace
}  // namespace ds
