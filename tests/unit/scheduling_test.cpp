// Scheduling: the golden case, every scheduler on random problems under the verifier, requests of real size,
// and the path bytes -> plan -> IR -> plan.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <numeric>
#include <random>

#include "compiler/emit/emit.h"
#include "compiler/lowering/lower_tiles.h"
#include "compiler/policy/policy.h"
#include "compiler/scheduling/cost_model.h"
#include "compiler/scheduling/schedulers.h"
#include "compiler/scheduling/variant_problem.h"
#include "plans/full_prefill.h"
#include "plans/plan_file.h"
#include "support/file.h"
#include "tests/unit/plan_builder.h"
#include "tests/unit/schedule_problems.h"

namespace ds {
namespace {

using ::testing::HasSubstr;

TEST(Scheduling, Figure13) {
  auto cost = [](bool whole_entry, std::string_view scheduler) {
    auto s = schedule(figure_13(whole_entry), scheduler);
    return s.ok() ? s->cost_ns : -1;
  };
  EXPECT_EQ(cost(true, "serial"), 18 + 29);
  EXPECT_EQ(cost(false, "kv-preload"), 11 + 19);
  EXPECT_EQ(cost(false, "e-first"), 8 + 9);
  EXPECT_EQ(cost(false, "kv-first"), 11 + 12);
  // E twice and four times as large: each by as much more as its loads are.
  for (auto [e_ns, serial, preload, optimum] :
       {std::tuple{1, 47, 30, 17}, {2, 49, 32, 19}, {4, 53, 36, 23}}) {
    EXPECT_EQ(schedule(figure_13(true, e_ns), "serial")->cost_ns, serial);
    EXPECT_EQ(schedule(figure_13(false, e_ns), "kv-preload")->cost_ns, preload);
    auto best = schedule(figure_13(false, e_ns), "best");
    ASSERT_TRUE(best.ok()) << best.status().message();
    EXPECT_EQ(best->cost_ns, optimum);
    EXPECT_EQ(best->lower_bound_ns, optimum);
    EXPECT_TRUE(best->proven_optimal);
  }
}

TEST(Scheduling, EverySchedulerKeepsTheRulesOnLargeProblems) {
  std::mt19937 rng(11);
  for (int round = 0; round < 20; ++round) {
    RandomKind kind{.tasks = 150, .jobs = 1 + round % 4, .contention = round % 5 == 0};
    if (round % 2 != 0) kind.objective = Objective::kSum;
    Problem p = random_problem(rng, kind);
    int64_t e_first = schedule(p, "e-first")->cost_ns;
    for (std::string_view name : scheduler_names()) {
      auto s = schedule(p, name);  // verifies
      ASSERT_TRUE(s.ok()) << name << ": " << s.status().message();
      if (name == "best") {
        EXPECT_LE(s->cost_ns, e_first);
      }
    }
  }
}

TEST(Scheduling, CheckRefusesUnsoundProblems) {
  auto message = [](const Problem& p) { return check(p).message(); };
  Problem p{.name = "p", .streams = {"link"}, .jobs = {{"A", 0}}, .tasks = {{.name = "a"}, {.name = "b"}}};
  EXPECT_TRUE(check(p).ok());
  p.tasks[0].after = {1};
  p.tasks[1].after = {0};
  EXPECT_THAT(message(p), HasSubstr("cycle"));
  p.tasks[1].after = {2};
  EXPECT_THAT(message(p), HasSubstr("waits for task 2, but there are 2"));
  p.tasks[1].after = {};
  p.tasks[1].stream = 1;
  EXPECT_THAT(message(p), HasSubstr("is on stream 1, but there are 1"));
  p.tasks[1].stream = 0;
  p.tasks[1].duration_ns = -1;
  EXPECT_THAT(message(p), HasSubstr("takes -1 ns"));
  p.tasks[0].duration_ns = p.tasks[1].duration_ns = INT64_MAX / 2;
  EXPECT_THAT(message(p), HasSubstr("does not fit 64 bits"));
  p.tasks[0].duration_ns = p.tasks[1].duration_ns = 5;
  p.tasks[0].contention = 0;
  EXPECT_THAT(message(p), HasSubstr("is of class 0, but there are 0"));
  p.classes = {"copy"};
  EXPECT_THAT(message(p), HasSubstr("0 slowdowns for 1 classes, expected 1"));
  p.slow_permille = {-1};
  EXPECT_THAT(message(p), HasSubstr("slowed by -1 permille"));
  p.slow_permille = {kMaxSlowdown};
  EXPECT_TRUE(check(p).ok());
  p.tasks[0].duration_ns = p.tasks[1].duration_ns = INT64_MAX / 1000;
  EXPECT_THAT(message(p), HasSubstr("does not fit 64 bits"));
  p.jobs.clear();
  EXPECT_THAT(message(p), HasSubstr("has no job"));
}

TEST(Scheduling, VerifyFindsBrokenSchedules) {
  Problem p = figure_13(false);
  auto s = schedule(p, "e-first");
  ASSERT_TRUE(s.ok());
  // Any single task moved one earlier breaks a rule or leaves the cost as stated; none goes unnoticed
  // silently.
  for (size_t i = 0; i < p.tasks.size(); ++i) {
    Schedule moved = *s;
    --moved.start_ns[i];
    --moved.end_ns[i];
    EXPECT_FALSE(verify(p, moved).ok()) << p.tasks[i].name;
  }
  Schedule boast = *s;
  boast.cost_ns = 16;
  EXPECT_THAT(verify(p, boast).message(), HasSubstr("states cost 16"));
}

/// Requests of 80 layers x 16 chunks, bound by the link, by the kernels and by neither: the gap is proven to
/// be small.
TEST(Scheduling, GridsOfRealSize) {
  for (auto [first, last] : {std::pair{16, 48}, {0, 80}, {79, 80}, {40, 40}, {0, 16}, {48, 80}}) {
    for (int64_t load_ns : {5'000, 50'000, 100'000, 400'000}) {
      Problem p = grid_problem({.first = first, .last = last, .load_ns = load_ns});
      SCOPED_TRACE(fmt::format("recompute {} to {}, loads {}", first, last - 1, load_ns));
      auto s = schedule(p, "best");
      ASSERT_TRUE(s.ok()) << s.status().message();
      EXPECT_LE(s->cost_ns - s->lower_bound_ns, s->lower_bound_ns / 100)
          << s->cost_ns << " " << s->lower_bound_ns;
      EXPECT_LE(s->cost_ns, schedule(p, "e-first")->cost_ns);
    }
  }
}

TEST(Scheduling, HugeGridsOnlyConstruct) {
  Problem p = grid_problem({.layers = 1000, .chunks = 16, .first = 100, .last = 600});
  auto s = schedule(p, "best");
  ASSERT_TRUE(s.ok()) << s.status().message();
  EXPECT_LE(s->cost_ns - s->lower_bound_ns, s->lower_bound_ns / 100)
      << s->cost_ns << " " << s->lower_bound_ns;
}

/// A copy beside a kernel that needs the memory, too: 10 ns of work at half speed beside 6 ns, which run at
/// two thirds of theirs.
TEST(Scheduling, SlowdownsStretchBothSides) {
  Problem p{.name = "p",
            .streams = {"link", "compute"},
            .jobs = {{"A", 0}},
            .tasks = {{.name = "copy", .role = TaskRole::kLoadKv, .duration_ns = 10, .contention = 0},
                      {.name = "norm", .stream = 1, .duration_ns = 6, .contention = 1}},
            .classes = {"copy", "norm"},
            .slow_permille = {0, 1000, 500, 0}};
  auto s = schedule(p, "best");
  ASSERT_TRUE(s.ok()) << s.status().message();
  EXPECT_EQ(s->start_ns, (std::vector<int64_t>{0, 0}));
  EXPECT_EQ(s->end_ns, (std::vector<int64_t>{15, 9}));  // 4.5 of the 10 are done at 9
  EXPECT_EQ(s->lower_bound_ns, 13);                     // beside 6 ns at least, in which it loses half
  EXPECT_FALSE(s->proven_optimal);
}

/// Whoever waits for another stream starts so much later, unless its own stream is busy meanwhile.
TEST(Scheduling, HandoversDelayWhatWaitsForAnotherStream) {
  Problem p{.name = "p",
            .streams = {"link", "compute"},
            .jobs = {{"A", 0}},
            .tasks = {{.name = "first", .role = TaskRole::kLoadKv, .duration_ns = 10, .handover_ns = 3},
                      {.name = "second", .role = TaskRole::kLoadKv, .duration_ns = 10, .handover_ns = 3},
                      {.name = "held", .stream = 1, .duration_ns = 8, .after = {0}, .handover_ns = 3},
                      {.name = "busy", .stream = 1, .duration_ns = 1, .after = {1, 2}, .handover_ns = 3}}};
  for (std::string_view scheduler : {"best", "e-first", "kv-first", "cake"}) {
    SCOPED_TRACE(scheduler);
    auto s = schedule(p, scheduler);
    ASSERT_TRUE(s.ok()) << s.status().message();
    // Loads of one stream follow each other at once.
    EXPECT_EQ(s->start_ns, (std::vector<int64_t>{0, 10, 13, 23}));
    EXPECT_EQ(s->cost_ns, 24);
    EXPECT_TRUE(s->proven_optimal);
    Schedule early = *s;
    early.start_ns[2] = 12, early.end_ns[2] = 20;
    EXPECT_THAT(
        verify(p, early).message(),
        HasSubstr(
            "'held' starts at 12, but waits for 'first', which ends at 10 and is handed over within 3"));
  }
  p.tasks[2].duration_ns = 20;
  EXPECT_EQ(schedule(p, "best")->start_ns, (std::vector<int64_t>{0, 10, 13, 33}));
  p.tasks[0].handover_ns = -1;
  EXPECT_THAT(check(p).message(), HasSubstr("'first' (task 0) is handed over within -1 ns"));
}

TEST(Scheduling, PreloadRefusesLoadsBehindKernels) {
  Problem p{
      .name = "p",
      .streams = {"link", "compute"},
      .jobs = {{"A", 0}},
      .tasks = {{.name = "kernel", .stream = 1}, {.name = "load", .role = TaskRole::kLoadKv, .after = {0}}}};
  EXPECT_THAT(schedule(p, "serial").status().message(), HasSubstr("load 'load' waits for kernel 'kernel'"));
  EXPECT_TRUE(schedule(p, "e-first").ok());
}

Shape shape_of(int64_t layers) {
  return {.family = "llama",
          .layers = layers,
          .d_model = 64,
          .ff = 128,
          .heads = 4,
          .kv_heads = 2,
          .head_dim = 16,
          .vocab = 100};
}

/// A plan as compile() makes it, without model folders.
Plan plan_for(const LayerRange& group, int64_t layers, std::string_view scheduler) {
  Plan plan;
  plan.provenance = {"0.1.0", "--recompute " + format_layers(group), {{"sender", "s", std::string(64, 'a')}}};
  plan.sender = {"s", std::string(64, 'a'), std::string(64, 'b'), std::string(64, 'c'), ""};
  plan.receiver = {"r", std::string(64, 'd'), std::string(64, 'b'), std::string(64, 'e'),
                   std::string(64, 'f')};
  plan.shape = shape_of(layers);
  plan.dtype = "bf16";
  CostModel costs(MachineModel::stand_in(DType::kBF16), plan.shape);
  TunedPoint point{.tokens = 777, .suffix = 5, .rate = 20'000'000};
  auto make = [&](const LayerRange& range) {
    Variant v = lower_tiles(tiles_for_group(range, layers), layers, 1, moves_whole_entry(scheduler));
    for (Op& op : v.ops) op.duration_ns = costs.duration_ns(op, point);
    Schedule s = *schedule(problem_of(v, {}), scheduler);
    apply_schedule(s, v);
    v.promise.ttft_ns = s.cost_ns;
    v.tuned_tokens = point.tokens;
    v.tuned_suffix = point.suffix;
    v.tuned_rate = point.rate;
    v.scheduler = scheduler;
    v.policy = "droidspeak";
    return v;
  };
  plan.variants = {make(group)};
  plan.variants[0].name = "v0";
  plan.variants[0].promise.quality_loss = group.empty() ? std::nan("") : 0.1;
  plan.full_prefill = make({0, layers - 1});
  plan.full_prefill.name = plan.full_prefill.policy = "full-prefill";
  return plan;
}

TEST(Dialect, ModesHaveTheirNames) {
  Plan plan = plan_for({1, 2}, 4, "e-first");
  for (size_t m = 0; m < kModes; ++m) {
    plan.variants[0].tiles = {{static_cast<Mode>(m), 0, 0, 0, 0, false}};
    auto text = plan_to_mlir(plan);
    ASSERT_TRUE(text.ok()) << text.status().message();
    EXPECT_THAT(*text, HasSubstr(fmt::format("plan.tile {} layers", mode_name(static_cast<Mode>(m)))));
  }
}

TEST(Lowering, EveryGroupGivesAValidPlanAndSurvivesTextAndBytes) {
  for (int64_t layers : {1, 2, 5}) {
    std::vector<LayerRange> groups = {{}};
    for (int64_t a = 0; a < layers; ++a)
      for (int64_t b = a; b < layers; ++b) groups.push_back({a, b});
    for (const LayerRange& group : groups) {
      for (std::string_view scheduler : {"best", "e-first", "kv-preload", "serial"}) {
        SCOPED_TRACE(fmt::format("{} layers, group {}, {}", layers, format_layers(group), scheduler));
        Plan plan = plan_for(group, layers, scheduler);
        Status status = verify_plan(plan, "test");
        ASSERT_TRUE(status.ok()) << status.message();
        EXPECT_EQ(recomputed_layers(plan.variants[0]), group.size());
        auto text = plan_to_mlir(plan);
        ASSERT_TRUE(text.ok()) << text.status().message();
        auto again = plan_from_mlir(*text, "text");
        ASSERT_TRUE(again.ok()) << again.status().message() << *text;
        EXPECT_EQ(*again, plan);
        EXPECT_EQ(serialize_plan(*again), serialize_plan(plan));
      }
    }
  }
}

TEST(Lowering, FullPrefillIsTheRuntimesOwn) {
  for (int64_t layers : {1, 2, 7}) {
    Variant ours = lower_tiles(tiles_for_group({0, layers - 1}, layers), layers, 1, true);
    Variant theirs = full_prefill_variant(layers);
    EXPECT_EQ(ours.ops, theirs.ops);
    EXPECT_EQ(ours.buffers, theirs.buffers);
    EXPECT_EQ(ours.streams, theirs.streams);
    EXPECT_EQ(ours.tiles, theirs.tiles);
  }
}

TEST(Emit, BadTextIsAnErrorWithAPlace) {
  auto message = [](std::string_view text) {
    auto plan = plan_from_mlir(text, "bad.mlir");
    return plan.ok() ? std::string("parsed") : plan.status().message();
  };
  EXPECT_THAT(message(""), HasSubstr("has 0 plan.file operations"));
  EXPECT_THAT(message("module {"), HasSubstr("bad.mlir:1:7: "));
  EXPECT_THAT(message("plan.file version x"), HasSubstr("bad.mlir:1:18: "));
  EXPECT_THAT(message("\"foo.bar\"() : () -> ()"), HasSubstr("unregistered dialect"));
  std::string good = *plan_to_mlir(plan_for({1, 2}, 4, "e-first"));
  EXPECT_EQ(message(good), "parsed");
  // Cut anywhere, it is an error and not a crash.
  for (size_t n = 0; n + 8 < good.size(); n += 97)
    EXPECT_NE(message(std::string_view(good).substr(0, n)), "parsed") << n;
  // Unscheduled.
  std::string unscheduled = good;
  size_t at = unscheduled.find(" makespan ");
  unscheduled.erase(at, unscheduled.find(" {", at) - at);
  EXPECT_THAT(message(unscheduled), HasSubstr("has not been scheduled"));
}

TEST(Emit, OtherModesSurvive) {
  std::vector<Plan> plans = {testing::make_select_plan(testing::small_shape(4), 0.15),
                             testing::make_restore_plan(testing::small_shape(4), 2)};
  for (MapForm form : {MapForm::kDiagonal, MapForm::kLowRank, MapForm::kFull})
    for (MapSide side : {MapSide::kReceiver, MapSide::kSender})
      plans.push_back(
          testing::make_aligned_plan(testing::small_shape(4), {1, 2}, form, side, "e-first", {.chunks = 3}));
  for (const Plan& plan : plans) {
    auto text = plan_to_mlir(plan);
    ASSERT_TRUE(text.ok()) << text.status().message();
    auto again = plan_from_mlir(*text, "text");
    ASSERT_TRUE(again.ok()) << again.status().message();
    EXPECT_EQ(*again, plan);
  }
}

TEST(Emit, FrozenPlansOfEveryFormatSurviveText) {
  int found = 0;
  for (const auto& file : std::filesystem::directory_iterator(DS_SOURCE_DIR "/plans/golden")) {
    if (file.path().extension() != ".dsplan") continue;
    SCOPED_TRACE(file.path().filename().string());
    ++found;
    auto bytes = read_text_file(file.path().string());
    ASSERT_TRUE(bytes.ok()) << bytes.status().message();
    auto plan = read_plan(file.path().string());
    ASSERT_TRUE(plan.ok()) << plan.status().message();
    auto text = plan_to_mlir(*plan);
    ASSERT_TRUE(text.ok()) << text.status().message();
    auto again = plan_from_mlir(*text, "text");
    ASSERT_TRUE(again.ok()) << again.status().message();
    EXPECT_EQ(serialize_plan(*again), *bytes);
  }
  EXPECT_GE(found, 9);
}

TEST(Emit, ANameWithQuotesAndNewlinesSurvives) {
  Plan plan = plan_for({1, 2}, 4, "e-first");
  plan.provenance.flags = "a \"b\" \\ c\n\t\x01 \xc3\xa9";
  plan.variants[0].name = "odd name \"\\";
  plan.variants[0].promise.quality_loss = 1e-17;
  plan.variants[0].promise.loss_stderr = 0.1;
  plan.variants[0].promise.loss_bound = 1.0 / 3;
  plan.variants[0].promise.confidence = 0.95;
  plan.variants[0].way = "recompute 1-2";
  auto text = plan_to_mlir(plan);
  ASSERT_TRUE(text.ok());
  auto again = plan_from_mlir(*text, "text");
  ASSERT_TRUE(again.ok()) << again.status().message();
  EXPECT_EQ(*again, plan);
}

TEST(CostModel, MeasuredPointsAreMetAndInterpolated) {
  MachineModel m = MachineModel::stand_in(DType::kBF16);
  CostModel plain(m, shape_of(4));
  double base_64 = plain.layer_ns(64, 64, 0), base_128 = plain.layer_ns(128, 128, 0),
         base_96 = plain.layer_ns(96, 96, 0);
  m.layer_points = {{64, 64, 0, std::llround(2 * base_64), 1, 1},
                    {128, 128, 0, std::llround(4 * base_128), 1, 1}};
  CostModel measured(m, shape_of(4));
  EXPECT_NEAR(measured.layer_ns(64, 64, 0), 2 * base_64, 1);
  EXPECT_NEAR(measured.layer_ns(128, 128, 0), 4 * base_128, 1);
  // In between as far as the roofline is.
  EXPECT_NEAR(measured.layer_ns(96, 96, 0),
              2 * base_64 + (4 * base_128 - 2 * base_64) * (base_96 - base_64) / (base_128 - base_64), 3);
  EXPECT_NEAR(measured.layer_ns(1024, 1024, 0) / plain.layer_ns(1024, 1024, 0), 4,
              0.01);                                                 // kept beyond the end
  EXPECT_EQ(measured.layer_ns(64, 0, 0), plain.layer_ns(64, 0, 0));  // another kind of call: not measured
  // Some queries: K and V of all rows, and the rest of a layer for the query rows.
  EXPECT_GT(measured.layer_ns(128, 64, 0), measured.layer_ns(128, 0, 0));
  EXPECT_LT(measured.layer_ns(128, 64, 0), measured.layer_ns(128, 128, 0));
}

TEST(CostModel, ComputesOnlyWhatTheOpDoes) {
  CostModel costs(MachineModel::stand_in(DType::kF32), shape_of(4));
  TunedPoint at{.tokens = 4096, .suffix = 16, .rate = 1'000'000};
  auto ns = [&](Queries q) {
    return costs.duration_ns({.kind = OpKind::kRecompute, .layer = 1, .chunk = 0, .queries = q}, at);
  };
  EXPECT_LT(ns(Queries::kNone) * 2, ns(Queries::kAll));
  // 4096 rows of 2*2*16 elements of 4 bytes at 1 MB/s; E has 64 elements.
  EXPECT_EQ(
      costs.duration_ns({.kind = OpKind::kTransfer, .payload = Payload::kKv, .layer = 1, .chunk = 0}, at),
      1'048'576'000);
  EXPECT_EQ(
      costs.duration_ns({.kind = OpKind::kTransfer, .payload = Payload::kE, .layer = 1, .chunk = 0}, at),
      1'048'576'000);
}

}  // namespace
}  // namespace ds
