// Run records, simulation, and what is drawn of plans.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "plans/critical_path.h"
#include "plans/simulate.h"
#include "runtime/trace/describe.h"
#include "runtime/trace/draw.h"
#include "runtime/trace/explain.h"
#include "runtime/trace/plan_diff.h"
#include "runtime/trace/plan_json.h"
#include "runtime/trace/plan_text.h"
#include "runtime/trace/run_record.h"
#include "support/file.h"
#include "tests/unit/plan_builder.h"
#include "tests/unit/well_formed.h"

namespace ds {
namespace {

using ::testing::AllOf;
using ::testing::ContainsRegex;
using testing::expect_well_formed;
using ::testing::HasSubstr;
using testing::make_aligned_plan;
using testing::make_plan;
using testing::make_restore_plan;
using testing::make_select_plan;
using testing::make_variant;
using ::testing::Not;
using testing::small_shape;
using ::testing::StartsWith;

/// A record of `variant` in which everything took a tenth longer.
RunRecord slower_record(const Variant& v) {
  RunRecord r;
  r.plan_sha256 = std::string(64, 'a');
  r.variant = v.name;
  r.policy = v.policy;
  r.scheduler = v.scheduler;
  r.choice = "its ranges cover <b>";
  r.mode = "plan";
  r.sender = "S";
  r.receiver = "R \"quoted\" <b>";
  r.backend = "cpu";
  r.dtype = "bf16";
  r.context_tokens = v.tuned_tokens;
  r.suffix_tokens = v.tuned_suffix;
  r.link_rate = v.tuned_rate;
  for (size_t i = 0; i < v.ops.size(); ++i) {
    const Op& op = v.ops[i];
    int64_t start = op.start_ns + op.start_ns / 10, end = op.start_ns + op.duration_ns;
    r.ops.push_back({static_cast<int32_t>(i), op_label(op, v.chunks),
                     std::string(stream_kind_name(v.streams[static_cast<size_t>(op.stream)].kind)), start,
                     end + end / 10, op.payload == Payload::kKv ? 100 : 0});
    r.ttft_ns = std::max(r.ttft_ns, r.ops.back().end_ns);
  }
  r.bytes_loaded = 12345;
  r.cache_status = "hit";
  r.cache_shorter = "store '<i>' has no more";
  r.dropped = 2;
  return r;
}

// --- Run records
// --------------------------------------------------------------------------------------------

TEST(RunRecord, SurvivesItsFile) {
  RunRecord record = slower_record(make_variant(small_shape(), {3, 6}));
  std::string path = ::testing::TempDir() + "ds_run_record.jsonl";
  Status written = write_run_record(path, record);
  ASSERT_TRUE(written.ok()) << written.message();
  Result<RunRecord> read = read_run_record(path);
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_EQ(*read, record);
  // Each line is JSON by itself.
  Result<std::string> text = read_text_file(path);
  ASSERT_TRUE(text.ok());
  EXPECT_EQ(static_cast<size_t>(std::count(text->begin(), text->end(), '\n')), record.ops.size() + 2);
  std::filesystem::remove(path);
}

TEST(RunRecord, HoldsWhatTheGateSaid) {
  RunRecord record = slower_record(make_variant(small_shape(), {3, 6}));
  record.gate = GateRecord{
      .status = "alarm", .variant = "v0", .way = "recompute 3-6", .gate_ns = 5, .lost_ns = 4'200'000};
  record.gate->proxies = {{"entropy", 3.25, 2.5, true}, {"margin", std::nan(""), 0.125, false}};
  record.gate->drift = "in line with the profile";
  Result<RunRecord> read = parse_run_record(run_record_text(record), "x");
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_EQ(*read, record);
  const std::string text =
      "alarm: entropy 3.25 (alarm; threshold 2.5), margin nan (threshold 0.125); variant 'v0' was tried "
      "and " +
      format_ns(4'200'000) + " lost; last requests: in line with the profile";
  EXPECT_EQ(record.gate->text(), text);
  Plan plan = make_plan(small_shape(), {3, 6});
  std::string with = draw_schedule_html({plan, plan.variants[0], &record});
  EXPECT_THAT(with, HasSubstr("<dt>gate</dt><dd>alarm: entropy 3.25"));
  record.gate.reset();
  read = parse_run_record(run_record_text(record), "x");
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_FALSE(read->gate.has_value());
  EXPECT_THAT(draw_schedule_html({plan, plan.variants[0], &record}), Not(HasSubstr("<dt>gate</dt>")));
  Result<RunRecord> bad = parse_run_record(
      R"({"schema":"droidspeak.run_record","version":1,"variant":"v","context_tokens":1,"suffix_tokens":1}
{"summary":{"ops":0,"ttft_ns":2,"gate":{"status":"passed","proxies":[{"name":"entropy"}]}}}
)",
      "x");
  EXPECT_THAT(bad.status().message(),
              AllOf(HasSubstr("x line 2"), HasSubstr("proxies[0]"), HasSubstr("threshold")));
}

TEST(RunRecord, NothingRanIsARecordToo) {
  RunRecord record;
  record.variant = "full-prefill";
  Result<RunRecord> read = parse_run_record(run_record_text(record), "x");
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_EQ(*read, record);
}

TEST(RunRecord, UnknownKeysAreIgnored) {
  Result<RunRecord> read = parse_run_record(
      R"({"schema":"droidspeak.run_record","version":1,"variant":"v","context_tokens":1,"suffix_tokens":1,"new":[]}
{"op":0,"label":"head","stream":"compute","start_ns":1,"end_ns":2,"new":1}
{"summary":{"ops":1,"ttft_ns":2,"new":{}}}
)",
      "x");
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_EQ(read->ops[0].end_ns, 2);
}

TEST(RunRecord, BadInputIsAnErrorWithItsLine) {
  std::string header =
      R"({"schema":"droidspeak.run_record","version":1,"variant":"v","context_tokens":1,"suffix_tokens":1})"
      "\n";
  std::string op = R"({"op":0,"label":"head","stream":"compute","start_ns":5,"end_ns":7})"
                   "\n";
  std::string summary = R"({"summary":{"ops":1,"ttft_ns":7}})"
                        "\n";
  struct Bad {
    std::string text, message;
    Code code;
  };
  const Bad cases[] = {
      {"", "'x' is empty", Code::kCorrupt},
      {"\x01\x02", "x line 1", Code::kCorrupt},
      {"[]\n", "x line 1: found [], expected a JSON object", Code::kCorrupt},
      {R"({"schema":"other"})", "schema is \"other\"", Code::kCorrupt},
      {R"({"schema":"droidspeak.run_record","version":9})", "version 9, this program reads versions 1 to 1",
       Code::kUnsupported},
      {op, "x line 1: key 'schema' is missing", Code::kCorrupt},
      {header, "truncated: its last line is not a summary", Code::kCorrupt},
      {header + op + op.substr(0, 20), "x line 3", Code::kCorrupt},
      {header + op + op + summary, "x line 3: op 0 (head) for the second time", Code::kCorrupt},
      {header + summary, "the summary counts 1 ops, but 0 lines", Code::kCorrupt},
      {header + op + summary + op, "x line 4: found more after the summary", Code::kCorrupt},
      {header + R"({"op":0,"label":"head","stream":"compute","start_ns":5,"end_ns":4})", "'end_ns' is 4",
       Code::kInvalidArgument},
      {header + R"({"op":-1,"label":"head","stream":"compute","start_ns":5,"end_ns":6})", "'op' is -1",
       Code::kInvalidArgument},
      {header + R"({"op":0,"label":"head","stream":"compute","start_ns":1e300,"end_ns":6})",
       "'start_ns' is 1e+300", Code::kInvalidArgument},
  };
  for (const Bad& bad : cases) {
    Result<RunRecord> read = parse_run_record(bad.text, "x");
    ASSERT_FALSE(read.ok()) << bad.message;
    EXPECT_EQ(read.status().code(), bad.code) << read.status().message();
    EXPECT_THAT(read.status().message(), HasSubstr(bad.message));
  }
  EXPECT_EQ(read_run_record("/nonexistent/r.jsonl").status().code(), Code::kNotFound);
}

TEST(RunRecord, WhatCouldNotBeReadBackIsNotWritten) {
  RunRecord record;
  record.variant = "v";
  record.ops = {{0, "head", "compute", 7, 5, 0}};
  Status status = write_run_record(::testing::TempDir() + "ds_bad_record.jsonl", record);
  EXPECT_EQ(status.code(), Code::kInvalidArgument);
  EXPECT_FALSE(std::filesystem::exists(::testing::TempDir() + "ds_bad_record.jsonl"));
}

TEST(RunRecord, MustBeOfItsVariant) {
  Variant v = make_variant(small_shape(), {3, 6});
  RunRecord record = slower_record(v);
  EXPECT_TRUE(check_record(v, record, "r").ok());
  record.ops[3].label = "recompute 9";
  EXPECT_THAT(check_record(v, record, "r").message(),
              HasSubstr("op 3 is 'recompute 9', expected 'recompute 3'"));
  record.ops[3].op = 500;
  EXPECT_THAT(check_record(v, record, "r").message(), HasSubstr("has op 500"));
  record.variant = "v7";
  EXPECT_THAT(check_record(v, record, "r").message(), HasSubstr("of variant 'v7', expected 'v0'"));
  EXPECT_EQ(check_record(v, record, "r").code(), Code::kMismatch);
}

// --- Simulation
// ---------------------------------------------------------------------------------------------

TEST(Simulate, ReproducesThePlanAtItsTunedPoint) {
  for (LayerRange group : {LayerRange{0, -1}, LayerRange{3, 6}, LayerRange{0, 3}, LayerRange{0, 11}}) {
    for (const char* schedule : {"e-first", "kv-preload", "serial"}) {
      for (int32_t chunks : {1, 3}) {
        Plan plan = make_plan(small_shape(), group, schedule, {.chunks = chunks});
        const Variant& v = plan.variants[0];
        Result<Simulation> sim = simulate_variant(plan, v, tuned_point(v));
        ASSERT_TRUE(sim.ok()) << sim.status().message();
        EXPECT_EQ(sim->ttft_ns, v.makespan_ns);
        for (size_t i = 0; i < v.ops.size(); ++i) EXPECT_EQ(sim->ops[i].start_ns, v.ops[i].start_ns) << i;
        for (const StreamUse& s : sim->streams) EXPECT_EQ(s.busy_ns + s.idle_ns, v.makespan_ns);
      }
    }
  }
}

TEST(Simulate, TransfersFollowBytesAndRate) {
  Plan plan = make_plan(small_shape(), {0, -1});  // full reuse: the link decides
  const Variant& v = plan.variants[0];
  OperatingPoint at = tuned_point(v);
  int64_t bytes = 12 * at.tokens * plan.shape.kv_row() * 2;
  Result<Simulation> tuned = simulate_variant(plan, v, at);
  Result<Simulation> slow = simulate_variant(plan, v, {at.tokens, at.suffix, at.rate / 4});
  Result<Simulation> twice = simulate_variant(plan, v, {at.tokens * 2, at.suffix, at.rate});
  ASSERT_TRUE(tuned.ok() && slow.ok() && twice.ok());
  EXPECT_EQ(tuned->bytes, bytes);
  EXPECT_EQ(twice->bytes, 2 * bytes);
  EXPECT_NEAR(static_cast<double>(slow->streams[0].busy_ns),
              4.0 * static_cast<double>(tuned->streams[0].busy_ns), 100);
  EXPECT_NEAR(static_cast<double>(twice->streams[0].busy_ns),
              2.0 * static_cast<double>(tuned->streams[0].busy_ns), 100);
  // What a transfer takes beyond bytes / rate (a round trip) does not scale.
  Plan fixed = plan;
  Variant& f = fixed.variants[0];
  for (Op& op : f.ops) op.start_ns += 1'000'000;
  f.ops[0].start_ns = 0;
  f.ops[0].duration_ns += 1'000'000;
  ASSERT_EQ(f.ops[0].payload, Payload::kKv);
  Result<Simulation> fast = simulate_variant(fixed, f, {at.tokens, at.suffix, at.rate * 1'000'000});
  ASSERT_TRUE(fast.ok());
  EXPECT_NEAR(static_cast<double>(fast->ops[0].end_ns), 1'000'000, 100);
}

TEST(Simulate, KernelsFollowMultiplyAdds) {
  Plan plan = make_plan(small_shape(), {3, 6});
  const Variant& v = plan.full_prefill;
  OperatingPoint at = tuned_point(v);
  Result<Simulation> one = simulate_variant(plan, v, at);
  Result<Simulation> two = simulate_variant(plan, v, {at.tokens * 2, at.suffix, at.rate});
  ASSERT_TRUE(one.ok() && two.ok());
  double ratio = static_cast<double>(two->ttft_ns) / static_cast<double>(one->ttft_ns);
  EXPECT_GT(ratio, 2.0);  // attention grows with the square
  EXPECT_LT(ratio, 4.0);
  // Exactly: one recompute layer of n rows costs n (d kv + 2 d q + 3 d ff) + n (n + 1) q.
  const Variant& r = plan.variants[0];
  size_t i = 3;
  ASSERT_EQ(r.ops[i].kind, OpKind::kRecompute);
  auto cost = [&](double n) {
    const Shape& s = plan.shape;
    auto d = static_cast<double>(s.d_model), q = static_cast<double>(s.heads * s.head_dim);
    return n * (d * static_cast<double>(s.kv_row()) + 2 * d * q + 3 * d * static_cast<double>(s.ff)) +
           n * (n + 1) * q;
  };
  Result<Simulation> s = simulate_variant(plan, r, {3000, 16, at.rate});
  ASSERT_TRUE(s.ok());
  double expected = static_cast<double>(r.ops[i].duration_ns) * cost(3000) / cost(1024);
  EXPECT_NEAR(static_cast<double>(s->ops[i].end_ns - s->ops[i].start_ns), expected, 2);
}

TEST(Simulate, RefusesPointsThatAreNone) {
  Plan plan = make_plan(small_shape(), {3, 6});
  const Variant& v = plan.variants[0];
  EXPECT_EQ(simulate_variant(plan, v, {0, 1, 1}).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(simulate_variant(plan, v, {1, 0, 1}).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(simulate_variant(plan, v, {1, 1, 0}).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(simulate_variant(plan, v, {INT64_MAX, 1, 1}).status().code(), Code::kInvalidArgument);
  EXPECT_EQ(simulate_variant(plan, v, {int64_t{1} << 32, 1, 1}).status().code(),
            Code::kInvalidArgument);  // 200 years
  Plan untimed = plan;
  untimed.variants[0].makespan_ns = 0;
  EXPECT_THAT(simulate_variant(untimed, untimed.variants[0], {1, 1, 1}).status().message(),
              HasSubstr("no predicted times"));
}

// --- The critical path
// ---------------------------------------------------------------------------------------------

/// Two streams and five ops, times by hand:
///   link     0: [0, 4)   1: [4, 6)
///   compute  2: [0, 1)   3: [4, 9) after 0   4: [9, 10) after 1
Variant hand_made() {
  Variant v;
  v.streams = {{StreamKind::kLink}, {StreamKind::kCompute}};
  auto op = [&](OpKind kind, int32_t stream, std::vector<int32_t> waits, Payload payload = Payload::kNone) {
    Op o{.kind = kind, .payload = payload, .stream = stream, .layer = static_cast<int32_t>(v.ops.size())};
    o.waits = std::move(waits);
    v.ops.push_back(std::move(o));
  };
  op(OpKind::kTransfer, 0, {}, Payload::kE);
  op(OpKind::kTransfer, 0, {}, Payload::kKv);
  op(OpKind::kEmbed, 1, {});
  op(OpKind::kRecompute, 1, {0});
  op(OpKind::kSuffix, 1, {1});
  return v;
}
std::vector<int32_t> ops_of(const std::vector<CriticalStep>& path) {
  std::vector<int32_t> ops;
  for (const CriticalStep& s : path) ops.push_back(s.op);
  return ops;
}

TEST(CriticalPath, GoesBackThroughWhateverEndedLast) {
  Variant v = hand_made();
  std::vector<CriticalStep> path = critical_path(v, {{0, 4}, {4, 6}, {0, 1}, {4, 9}, {9, 10}});
  EXPECT_EQ(ops_of(path), (std::vector<int32_t>{0, 3, 4}));
  EXPECT_EQ(path[0].by, HeldBy::kStart);
  EXPECT_EQ(path[1].by, HeldBy::kWait);
  EXPECT_EQ(path[2].by, HeldBy::kStream);
  CriticalShares shares = critical_shares(v, path);
  EXPECT_EQ(shares.stream_ns[0], 4);
  EXPECT_EQ(shares.stream_ns[2], 6);
  EXPECT_EQ(shares.gap_ns, 0);
  // A slow link holds up the suffix instead.
  EXPECT_EQ(ops_of(critical_path(v, {{0, 4}, {4, 12}, {0, 1}, {4, 9}, {12, 13}})),
            (std::vector<int32_t>{0, 1, 4}));
  // A tie goes to the wait: it was late data as much as a busy stream.
  path = critical_path(v, {{0, 4}, {4, 9}, {0, 1}, {4, 9}, {9, 10}});
  EXPECT_EQ(ops_of(path), (std::vector<int32_t>{0, 1, 4}));
  EXPECT_EQ(path[2].by, HeldBy::kWait);
}

TEST(CriticalPath, GapsAndOpsThatDidNotRun) {
  Variant v = hand_made();
  std::vector<CriticalStep> path = critical_path(v, {{2, 4}, {4, 6}, {0, 1}, {5, 9}, {9, 10}});
  EXPECT_EQ(ops_of(path), (std::vector<int32_t>{0, 3, 4}));
  EXPECT_EQ(path[0].gap_ns, 2);
  EXPECT_EQ(path[1].gap_ns, 1);
  EXPECT_EQ(critical_shares(v, path).total_ns(), 10);
  // Measured clocks may overlap; the path still adds up to the end.
  path = critical_path(v, {{0, 5}, {5, 6}, {0, 1}, {4, 9}, {8, 10}});
  EXPECT_EQ(critical_shares(v, path).total_ns(), 10);
  path = critical_path(v, {{-1, -1}, {4, 6}, {-1, -1}, {-1, -1}, {9, 10}});
  EXPECT_EQ(ops_of(path), (std::vector<int32_t>{1, 4}));
  EXPECT_EQ(critical_shares(v, path).gap_ns, 7);
  EXPECT_TRUE(critical_path(v, std::vector<OpTime>(5, OpTime{-1, -1})).empty());
}

TEST(CriticalPath, AddsUpToTheMakespanOfEverySchedule) {
  for (LayerRange group : {LayerRange{0, -1}, LayerRange{3, 6}, LayerRange{0, 3}, LayerRange{0, 11}}) {
    for (const char* schedule : {"e-first", "kv-preload", "serial"}) {
      for (int32_t chunks : {1, 5}) {
        Plan plan = make_plan(small_shape(), group, schedule, {.chunks = chunks});
        const Variant& v = plan.variants[0];
        Result<Simulation> sim = simulate_variant(plan, v, tuned_point(v));
        ASSERT_TRUE(sim.ok());
        CriticalShares shares = critical_shares(v, critical_path(v, sim->ops));
        EXPECT_EQ(shares.gap_ns, 0);
        EXPECT_EQ(shares.total_ns(), v.makespan_ns);
        EXPECT_LE(sim->lower_bound_ns, v.makespan_ns);
      }
    }
  }
}

TEST(CriticalPath, LowerBoundCountsWhatMustLieBeforeAndBehind) {
  // Compute cannot begin its last two before 4 and 6, and works 1 + 5 + 1; the chain 0, 3 takes 9.
  std::vector<OpTime> times = {{0, 4}, {4, 6}, {0, 1}, {4, 9}, {9, 10}};
  EXPECT_EQ(schedule_lower_bound_ns(hand_made(), times), 9);
  // The link is busy for 14, and an op of 1 must follow its last transfer.
  times = {{0, 4}, {4, 14}, {0, 1}, {4, 5}, {14, 15}};
  EXPECT_EQ(schedule_lower_bound_ns(hand_made(), times), 15);
}

// --- Explanations
// ---------------------------------------------------------------------------------------------

TEST(Explain, TellsWhatBoundsTheTime) {
  Plan slow = make_plan(small_shape(), {3, 6}, "e-first", {.rate = 1'000'000});
  Plan fast = make_plan(small_shape(), {3, 6}, "e-first", {.rate = 100'000'000'000});
  Plan serial = make_plan(small_shape(), {3, 6}, "serial", {.rate = 400'000'000});
  auto explain = [](const Plan& plan) {
    Result<Explanation> e = explain_variant(plan, plan.variants[0], tuned_point(plan.variants[0]));
    EXPECT_TRUE(e.ok()) << e.status().message();
    return *e;
  };
  EXPECT_EQ(bound_name(explain(slow)), "link");
  EXPECT_EQ(bound_name(explain(fast)), "compute");
  Explanation e = explain(serial);
  EXPECT_EQ(bound_name(e), "chain");
  EXPECT_EQ(e.ttft_ns, serial.variants[0].makespan_ns);
  // Load, then compute: each half as long with twice the speed, and both together exactly half.
  int64_t link = e.shares.stream_ns[0], compute = e.shares.stream_ns[2];
  EXPECT_EQ(link + compute, e.ttft_ns);
  std::map<std::string, int64_t> ttft;
  for (const Explanation::WhatIf& w : e.what_ifs) ttft[w.what] = w.ttft_ns;
  EXPECT_NEAR(static_cast<double>(ttft["link x 2"]), static_cast<double>(compute + link / 2), 50);
  EXPECT_NEAR(static_cast<double>(ttft["compute x 2"]), static_cast<double>(link + compute / 2), 50);
  EXPECT_NEAR(static_cast<double>(ttft["both x 2"]), static_cast<double>(e.ttft_ns) / 2, 50);
  EXPECT_NEAR(static_cast<double>(ttft["link without limit"]), static_cast<double>(compute), 50);
  EXPECT_NEAR(static_cast<double>(ttft["compute without limit"]), static_cast<double>(link), 50);
  ASSERT_EQ(e.others.size(), 1u);
  EXPECT_EQ(e.others[0].ttft_ns, serial.full_prefill.makespan_ns);
}

TEST(Explain, WordsAndJsonSayTheSame) {
  Plan plan = make_plan(small_shape(), {3, 6});
  plan.variants[0].promise.quality_loss = std::numeric_limits<double>::quiet_NaN();
  Result<Explanation> e = explain_variant(plan, plan.variants[0], {2048, 16, 10'000'000});
  ASSERT_TRUE(e.ok());
  EXPECT_FALSE(e->tuned);
  std::string text = explanation_text(*e, "because");
  EXPECT_THAT(text, AllOf(HasSubstr("Variant v0 (droidspeak, e-first): because"),
                          HasSubstr("load 0-2, recompute 3-6 from E, load 7-11"), HasSubstr("bound by link"),
                          HasSubstr("scaled from the tuned point"),
                          HasSubstr("quality loss          not known"), HasSubstr(format_ns(e->ttft_ns))));
  nlohmann::json json = nlohmann::json::parse(explanation_json(*e, "because").dump());
  EXPECT_EQ(json["bound"], "link");
  EXPECT_EQ(json["ttft_ns"], e->ttft_ns);
  EXPECT_TRUE(json["quality_loss"].is_null());
  int64_t sum = 0;
  for (const auto& step : json["critical_path"]["steps"])
    sum += step["gap_ns"].get<int64_t>() + step["time_ns"].get<int64_t>();
  EXPECT_EQ(sum, e->ttft_ns);
  EXPECT_EQ(explain_variant(plan, plan.variants[0], {0, 1, 1}).status().code(), Code::kInvalidArgument);
}

TEST(Explain, TellsWhatElseTheCompilerHad) {
  Plan plan = make_plan(small_shape(), {3, 6});
  Variant& v = plan.variants[0];
  v.why = "the least TTFT within 2 points <b>";
  v.regret = 0.125;
  v.load_max = 1;
  v.alternatives = {
      {"load everything <i>", std::numeric_limits<double>::quiet_NaN(), v.promise.ttft_ns / 2, 0},
      {"recompute 2-6", 0.5, v.promise.ttft_ns * 3, 123'000'000}};
  Result<Explanation> e = explain_variant(plan, v, tuned_point(v));
  ASSERT_TRUE(e.ok());
  EXPECT_THAT(explanation_text(*e, "because"),
              AllOf(HasSubstr("chosen by             the least TTFT within 2 points"),
                    HasSubstr("12.5 % slower"), HasSubstr("(0.50x of this), loss not known"),
                    HasSubstr("(3.00x of this), loss       0.5"), HasSubstr("123 ms: recompute 2-6")));
  for (const nlohmann::ordered_json& json :
       {explanation_json(*e, "because"), plan_to_json(plan)["variants"][0]}) {
    EXPECT_EQ(json["regret"], 0.125);
    EXPECT_TRUE(json["alternatives"][0]["quality_loss"].is_null());
    EXPECT_EQ(json["alternatives"][1]["compute_ns"], 123'000'000);
  }
  EXPECT_EQ(plan_to_json(plan)["variants"][0]["load_max"], 1);
  EXPECT_THAT(
      plan_to_text(plan, {.origin = "x"}),
      AllOf(HasSubstr("waiting"), HasSubstr("none"), HasSubstr("Chosen by"), HasSubstr("2 alternatives")));
  std::string html = draw_schedule_html({plan, v});
  EXPECT_THAT(html, AllOf(HasSubstr("What else could be had"), HasSubstr("load everything &lt;i&gt;"),
                          HasSubstr("points &lt;b&gt;"), Not(HasSubstr("<i>")), Not(HasSubstr("<b>"))));
}

TEST(Explain, TellsWhatItMattersWhoMaps) {
  const Shape shape = small_shape();
  // A fast link: the map of 512 rows, 2 us / 8 a row, lies on the path.
  testing::PlanOptions fast{.tokens = 512, .rate = 100'000'000'000};
  Plan own = make_aligned_plan(shape, {3, 6}, MapForm::kFull, MapSide::kReceiver, "e-first", fast);
  const Variant& v = own.variants[0];
  Result<Explanation> e = explain_variant(own, v, tuned_point(v));
  ASSERT_TRUE(e.ok()) << e.status().message();
  ASSERT_EQ(e->sides.size(), 2u);
  const Explanation::Side &receiver = e->sides[0], &sender = e->sides[1];
  EXPECT_EQ(receiver.side, MapSide::kReceiver);
  EXPECT_EQ(receiver.ttft_ns, v.makespan_ns);
  EXPECT_EQ(receiver.receiver_ns, 512 * 2000 / 8);
  EXPECT_EQ(receiver.sender_ns, 0);
  EXPECT_EQ(sender.ttft_ns, v.makespan_ns - 512 * 2000 / 8);
  EXPECT_EQ(sender.receiver_ns, 0);
  EXPECT_EQ(sender.sender_ns, 512 * 2000 / 8);
  EXPECT_EQ(receiver.bytes, sender.bytes);
  EXPECT_EQ(receiver.bytes, e->bytes);
  EXPECT_EQ(receiver.e_bytes_for(8), 512 * 128 * 2);  // one cut, whoever reads it
  EXPECT_EQ(sender.e_bytes_for(1), 512 * 128 * 2);
  EXPECT_EQ(sender.e_bytes_for(8), 8 * 512 * 128 * 2);
  EXPECT_THAT(
      explanation_text(*e, "because"),
      AllOf(HasSubstr("recompute 3-6 from E aligned (full map, by the receiver)"),
            HasSubstr("Who maps what is sent (one full map for each cut; at the tuned point)"),
            HasSubstr("receiver (as it is)"), HasSubstr("128.0 KiB, 256.0 KiB, 512.0 KiB, 1.00 MiB")));
  nlohmann::json json = nlohmann::json::parse(explanation_json(*e, "because").dump());
  EXPECT_EQ(json["alignment"]["form"], "full");
  EXPECT_EQ(json["alignment"]["side"], "receiver");
  EXPECT_EQ(json["alignment"]["sides"][1]["ttft_ns"], sender.ttft_ns);
  EXPECT_EQ(json["alignment"]["sides"][1]["entry_e_bytes"]["4"], 4 * 512 * 128 * 2);

  // Mapped by the sender: what the receiver would take is judged by its kernels' arithmetic.
  Plan sent = make_aligned_plan(shape, {3, 6}, MapForm::kFull, MapSide::kSender, "e-first", fast);
  e = explain_variant(sent, sent.variants[0], tuned_point(sent.variants[0]));
  ASSERT_TRUE(e.ok());
  EXPECT_EQ(e->sides[1].ttft_ns, sent.variants[0].makespan_ns);
  EXPECT_GT(e->sides[0].receiver_ns, 0);
  EXPECT_EQ(e->sides[0].receiver_ns, e->sides[1].sender_ns);
  EXPECT_EQ(e->sides[0].ttft_ns, e->sides[1].ttft_ns + e->sides[0].receiver_ns);
  // The rank of low-rank maps is not in the plan.
  sent = make_aligned_plan(shape, {3, 6}, MapForm::kLowRank, MapSide::kSender, "e-first", fast);
  e = explain_variant(sent, sent.variants[0], tuned_point(sent.variants[0]));
  ASSERT_TRUE(e.ok());
  EXPECT_EQ(e->sides[0].ttft_ns, -1);
  EXPECT_THAT(explanation_text(*e, "because"), HasSubstr("not known"));
  EXPECT_TRUE(explanation_json(*e, "because")["alignment"]["sides"][0]["ttft_ns"].is_null());
  // Plain cuts: nothing to tell.
  Plan plain = make_plan(shape, {3, 6});
  e = explain_variant(plain, plain.variants[0], tuned_point(plain.variants[0]));
  EXPECT_TRUE(e->sides.empty());
  EXPECT_TRUE(explanation_json(*e, "because")["alignment"].is_null());
  EXPECT_THAT(explanation_text(*e, "because"), Not(HasSubstr("Who maps")));
}

TEST(Describe, AlignedCutsInWordsAndPictures) {
  Plan plan = make_aligned_plan(small_shape(), {3, 6}, MapForm::kLowRank);
  const Variant& v = plan.variants[0];
  EXPECT_EQ(alignment_text(v), "aligned (low-rank map, by the receiver)");
  EXPECT_EQ(tiling_text(v),
            "load 0-2, recompute 3-6 from E aligned (low-rank map, by the receiver), load 7-11");
  EXPECT_EQ(recomputed_text(v), "3-6 aligned");
  EXPECT_EQ(published_text(plan), "KV of every layer, E of layer 3");
  std::string text = plan_to_text(plan, {.origin = "x"});
  EXPECT_THAT(text,
              AllOf(HasSubstr("Maps        maps.safetensors"), HasSubstr(plan.maps.fingerprint.substr(0, 16)),
                    HasSubstr("Cuts        aligned (low-rank map, by the receiver)"),
                    HasSubstr("the sender's E enters, aligned (low-rank map, by the receiver)"),
                    HasSubstr("align 3 "), HasSubstr("a align")));
  nlohmann::json json = nlohmann::json::parse(plan_to_json(plan).dump());
  EXPECT_EQ(json["cut_layers"], nlohmann::json::parse("[3]"));
  EXPECT_EQ(json["published_cuts"], nlohmann::json::parse(R"([{"layer": 3, "form": "none"}])"));
  EXPECT_EQ(json["maps"]["fingerprint"], plan.maps.fingerprint);
  EXPECT_EQ(json["variants"][0]["map_form"], "low-rank");
  EXPECT_EQ(json["variants"][0]["map_side"], "receiver");
  for (const std::string& drawn : {draw_schedule_svg({plan, v}), draw_schedule_html({plan, v})}) {
    EXPECT_THAT(drawn, AllOf(HasSubstr("align 3"), HasSubstr("aligned (low-rank map, by the receiver)")));
    expect_well_formed(drawn);
  }
  EXPECT_THAT(draw_schedule_chrome({plan, v}), HasSubstr("align 3"));
  Plan other = make_aligned_plan(small_shape(), {3, 6}, MapForm::kLowRank, MapSide::kSender);
  EXPECT_EQ(published_text(other), "KV of every layer, E of layer 3 as mapped (low-rank map)");
  EXPECT_EQ(nlohmann::json::parse(plan_to_json(other).dump())["published_cuts"][0]["form"], "low-rank");
  std::string diff = plan_diff_text(diff_plans(plan, other));
  EXPECT_THAT(
      diff,
      AllOf(HasSubstr("aligned (low-rank map, by the receiver) -> aligned (low-rank map, by the sender)"),
            HasSubstr("E of layer 3 -> KV of every layer, E of layer 3 as mapped (low-rank map)"),
            HasSubstr("gone align 3")));
  Plan plain = make_plan(small_shape(), {3, 6});
  EXPECT_TRUE(plan_to_json(plain)["maps"].is_null());
  EXPECT_TRUE(plan_to_json(plain)["variants"][0]["map_side"].is_null());
  EXPECT_EQ(plan_to_json(plain)["variants"][0]["map_form"], "none");
  EXPECT_THAT(plan_diff_text(diff_plans(plain, plan)),
              AllOf(HasSubstr("nothing -> maps.safetensors"), HasSubstr("plain -> aligned (low-rank map")));
}

TEST(Describe, StairsByTheirBandAndWhosePromiseTheyCarry) {
  auto variant = [](std::string way, std::vector<Tile> tiles) {
    Variant v;
    v.way = std::move(way);
    v.chunks = 8;
    v.tiles = std::move(tiles);
    return v;
  };
  // Five chunks through all 30 layers, the others by the group.
  Variant bottom = variant("recompute 15-24 aligned", {{Mode::kRecompute, 0, 29, 0, 4, false},
                                                       {Mode::kLoad, 0, 14, 5, 7, false},
                                                       {Mode::kRecompute, 15, 24, 5, 7, true},
                                                       {Mode::kLoad, 25, 29, 5, 7, false}});
  bottom.map_form = MapForm::kFull;
  EXPECT_EQ(recomputed_text(bottom), "15-24 aligned, 5 of 8 chunks from the embeddings");
  EXPECT_EQ(measured_text(bottom),
            "recompute 15-24 aligned: what every token gets at least; the first 5 of 8 chunks are the "
            "receiver's own in every layer");
  Variant top = variant("recompute 15-24", {{Mode::kLoad, 0, 14, 0, 7, false},
                                            {Mode::kRecompute, 15, 24, 0, 7, true},
                                            {Mode::kRecompute, 25, 29, 0, 0, false},
                                            {Mode::kLoad, 25, 29, 1, 7, false}});
  EXPECT_EQ(recomputed_text(top), "15-24, 1 of 8 chunks to the top");
  EXPECT_EQ(measured_text(top),
            "recompute 15-24: what every token gets at least; chunk 1 of 8 goes on from there to the top "
            "layer");
  Variant cake =
      variant("full reuse", {{Mode::kRecompute, 0, 29, 0, 1, false}, {Mode::kLoad, 0, 29, 2, 7, false}});
  EXPECT_EQ(recomputed_text(cake), "none, 2 of 8 chunks from the embeddings");
  // Any other tiling is told as it is.
  Variant other = variant("full reuse", {{Mode::kLoad, 0, 29, 0, 2, false},
                                         {Mode::kLoad, 0, 9, 3, 4, false},
                                         {Mode::kRecompute, 10, 12, 3, 4, true},
                                         {Mode::kLoad, 13, 29, 3, 4, false},
                                         {Mode::kLoad, 0, 29, 5, 7, false}});
  EXPECT_EQ(recomputed_text(other), "none, 2 of 8 chunks 10-12");
  EXPECT_EQ(measured_text(other),
            "full reuse: what every token gets at least; chunks 4 to 5 of 8 have 10-12 recomputed");
  // One band in several chunks has no stairs.
  Variant band = variant("recompute 15-24", {{Mode::kLoad, 0, 14, 0, 7, false},
                                             {Mode::kRecompute, 15, 24, 0, 7, true},
                                             {Mode::kLoad, 25, 29, 0, 7, false}});
  EXPECT_EQ(recomputed_text(band), "15-24");
  EXPECT_EQ(measured_text(band), "recompute 15-24");
  EXPECT_EQ(measured_text(variant("", {{Mode::kLoad, 0, 29, 0, 7, false}})), "not known");
}

TEST(Explain, APlanSaysWhatItsVariantsShareOnce) {
  Plan plan = make_plan(small_shape(), {3, 6});
  plan.sender.name = "base";
  plan.receiver.name = "agent";
  for (int i = 0; i < 2; ++i) {
    Variant& v = plan.variants.back();
    v.policy = "droidspeak";
    v.why = "least TTFT with a loss of at most 5 points";
    v.way = i == 0 ? "recompute 3-6" : "full reuse";
    v.promise.quality_loss = 2 + 10 * i;
    v.alternatives = {
        {"recompute 3-8 in 4 chunks", 1.5, v.promise.ttft_ns * 2, 1},
        {"recompute 3-8, 2 of 8 chunks to the top", 1.5, v.promise.ttft_ns * 3 / 2, 1},
        {i == 0 ? "recompute 0-7" : "full prefill", i == 0 ? 1.0 : 0.0, v.promise.ttft_ns * 4, 1}};
    if (i == 1) break;
    v.tokens_max = 2048;
    plan.variants.push_back(make_variant(plan.shape, {0, -1}, "e-first", {.tokens = 4096}));
    plan.variants.back().name = "v1";
    plan.variants.back().tokens_min = 2048;
  }
  Result<std::string> text = explain_plan(plan, "a.dsplan");
  ASSERT_TRUE(text.ok()) << text.status().message();
  EXPECT_THAT(*text, StartsWith("Plan a.dsplan: 2 variants and the full prefill; 'agent' answers over what "
                                "'base' has\n"
                                "  chosen by             least TTFT with a loss of at most 5 points\n"
                                "  policy, scheduler     droidspeak, e-first\n"));
  auto count = [&](std::string_view of) {
    size_t n = 0;
    for (size_t at = text->find(of); at != std::string::npos; at = text->find(of, at + 1)) ++n;
    return n;
  };
  EXPECT_EQ(count("at most 5 points"), 1u);
  EXPECT_EQ(count("e-first"), 1u);
  // What is alike has no column; what differs has.
  EXPECT_THAT(*text, Not(HasSubstr("waiting")));
  EXPECT_THAT(*text,
              ContainsRegex("\n  1 to 2,047 context tokens .*\n  v0 .* 3-6 +2 .*\n  2,048 and more context "
                            "tokens .*\n  v1 .* none +12 "));
  // Each way stands once, with the quickest of its drawings.
  EXPECT_EQ(count("recompute 3-8"), 1u);
  EXPECT_THAT(*text, ContainsRegex("full prefill +0 +1 +4.00x\n"));
  EXPECT_THAT(*text, ContainsRegex("recompute 3-8 +1.5 +2 +1.50x\n"));
  EXPECT_LT(text->find("recompute 0-7"), text->find("recompute 3-8"));
}

TEST(Explain, OfManyOthersTheQuickest) {
  Plan plan = make_plan(small_shape(), {3, 6});
  for (int i = 1; i < 12; ++i) {
    plan.variants.push_back(make_variant(plan.shape, {i, 6}, "e-first", {}));
    plan.variants.back().name = fmt::format("w{}", i);
  }
  Result<Explanation> e = explain_variant(plan, plan.variants[0], tuned_point(plan.variants[0]));
  ASSERT_TRUE(e.ok());
  EXPECT_EQ(e->others.size(), 12u);
  std::string text = explanation_text(*e, "because");
  EXPECT_THAT(text, AllOf(HasSubstr("(4 more variants take longer)"), HasSubstr("  full-prefill")));
  int shown = 0;
  for (int i = 1; i < 12; ++i) shown += text.find(fmt::format("\n  w{} ", i)) != std::string::npos;
  EXPECT_EQ(shown, 7);
  EXPECT_THAT(explanation_text(*e, "because", OthersShown::kNone), Not(HasSubstr("full-prefill")));
}

TEST(Describe, OtherModesInWordsAndPictures) {
  Plan select = make_select_plan(small_shape(4), 0.15), restore = make_restore_plan(small_shape(4), 2);
  const Variant &s = select.variants[0], &r = restore.variants[0];
  EXPECT_EQ(tiling_text(s), "recompute 0, select 1-3 (15 % of the tokens)");
  EXPECT_EQ(recomputed_text(s), "0 (select 15 % in 1-3)");
  EXPECT_EQ(tiling_text(r), "load 0-1, restore 2, load 3");
  EXPECT_EQ(recomputed_text(r), "none (restore 2)");
  std::string text = plan_to_text(select, {.origin = "x"});
  EXPECT_THAT(text, HasSubstr("S loaded, but recomputed for the 15 % of the tokens that deviate most"));
  EXPECT_THAT(text, HasSubstr("R  S  S  S"));
  EXPECT_THAT(text, HasSubstr("c select"));
  EXPECT_THAT(text, HasSubstr("recompute 3 selected (K, V)"));
  text = plan_to_text(restore, {.origin = "x"});
  EXPECT_THAT(text, HasSubstr("E restored: K and V of the sender's E"));
  EXPECT_THAT(text, HasSubstr("L  L  E  L"));
  std::string svg = draw_schedule_svg({select, s});
  EXPECT_THAT(svg, HasSubstr("select layers 1 to 3"));
  EXPECT_THAT(svg, HasSubstr("recomputed for the 15 % of the tokens"));
  EXPECT_THAT(svg, HasSubstr("select tokens"));
  EXPECT_THAT(draw_schedule_svg({restore, r}), HasSubstr("restore layers 2 to 2"));
  EXPECT_THAT(draw_schedule_html({select, s}), HasSubstr("select 1"));
  EXPECT_THAT(draw_schedule_chrome({select, s}), HasSubstr("select 1"));
  auto json = plan_to_json(select)["variants"][0];
  EXPECT_EQ(json["select_share"], 0.15);
  EXPECT_EQ(json["tiles"][1]["mode"], "select");
  EXPECT_EQ(json["ops"][5]["kind"], "select");
  EXPECT_EQ(json["ops"][6]["rows"], "selected");
  // Work is in proportion to the share: twice the tokens, twice the selected rows.
  auto point = tuned_point(s);
  auto once = simulate_variant(select, s, point),
       twice = simulate_variant(select, s, {2 * point.tokens, 16, point.rate});
  ASSERT_TRUE(once.ok() && twice.ok());
  EXPECT_EQ(once->ttft_ns, s.makespan_ns);
  auto takes = [](const Simulation& sim, size_t op) { return sim.ops[op].end_ns - sim.ops[op].start_ns; };
  EXPECT_EQ(takes(*twice, 5), 2 * takes(*once, 5));
  EXPECT_GT(takes(*twice, 6), 2 * takes(*once, 6));  // more keys, too
}

TEST(Describe, PromisesInWords) {
  Promise p{0.4, 1};
  EXPECT_EQ(promised_loss_text(p), "0.4 points");
  p.loss_stderr = 0.3;
  EXPECT_EQ(promised_loss_text(p), "0.4 ± 0.3 points");
  p.confidence = 0.95;
  EXPECT_EQ(promised_loss_text(p), "0.4 ± 0.3 points, not bounded with 95 % confidence");
  p.loss_bound = 1;
  EXPECT_EQ(promised_loss_text(p), "0.4 ± 0.3 points, at most 1 with 95 % confidence");
  p.quality_loss = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(promised_loss_text(p), "not known");
  // In the listing and in the explanation alike.
  Plan plan = make_plan(small_shape(), {3, 6});
  plan.variants[0].promise.loss_stderr = 0.3;
  plan.variants[0].way = "recompute 3-6";
  EXPECT_THAT(plan_to_text(plan, {.origin = "x"}), HasSubstr("quality loss 1.8 ± 0.3 points"));
  auto explanation = explain_variant(plan, plan.variants[0], tuned_point(plan.variants[0]));
  ASSERT_TRUE(explanation.ok()) << explanation.status().message();
  EXPECT_THAT(explanation_text(*explanation, "asked"), HasSubstr("1.8 ± 0.3 points"));
  EXPECT_EQ(explanation_json(*explanation, "asked")["loss_stderr"], 0.3);
  auto json = plan_to_json(plan)["variants"][0];
  EXPECT_EQ(json["way"], "recompute 3-6");
  EXPECT_EQ(json["loss_stderr"], 0.3);
  EXPECT_TRUE(json["loss_bound"].is_null());
}

TEST(Describe, DivergencesInWords) {
  Promise p{0.4, 1};
  EXPECT_EQ(promised_divergence_text(p), "");
  p.divergence = 0.0412;
  EXPECT_EQ(promised_divergence_text(p), "0.0412 nats per token");
  p.divergence_stderr = 0.0031;
  p.divergence_bound = 0.05;
  p.confidence = 0.95;
  EXPECT_EQ(promised_divergence_text(p), "0.0412 ± 0.0031 nats per token, at most 0.05 with 95 % confidence");
  Plan plan = make_plan(small_shape(), {3, 6});
  EXPECT_THAT(plan_to_text(plan, {.origin = "x"}), ::testing::Not(HasSubstr("nats")));
  plan.variants[0].promise.divergence = 0.0412;
  plan.variants[0].alternatives = {{"full reuse", 40, 1000, 10, 0.3}, {"full prefill", 0, 1000, 10}};
  const std::string text = plan_to_text(plan, {.origin = "x"});
  EXPECT_THAT(text, HasSubstr("0.0412 nats per token"));
  EXPECT_THAT(text, HasSubstr("nats"));
  auto explanation = explain_variant(plan, plan.variants[0], tuned_point(plan.variants[0]));
  ASSERT_TRUE(explanation.ok()) << explanation.status().message();
  const std::string explained = explanation_text(*explanation, "asked");
  EXPECT_THAT(explained, HasSubstr("divergence            0.0412 nats per token"));
  EXPECT_THAT(explained, HasSubstr(", divergence    0.3, compute"));
  auto json = explanation_json(*explanation, "asked");
  EXPECT_EQ(json["divergence"], 0.0412);
  EXPECT_TRUE(json["divergence_bound"].is_null());
  EXPECT_EQ(json["alternatives"][0]["divergence"], 0.3);
  EXPECT_TRUE(json["alternatives"][1]["divergence"].is_null());
  EXPECT_EQ(plan_to_json(plan)["variants"][0]["divergence"], 0.0412);
}

TEST(Describe, TilingsInWords) {
  EXPECT_EQ(tiling_text(make_variant(small_shape(), {3, 6})), "load 0-2, recompute 3-6 from E, load 7-11");
  EXPECT_EQ(tiling_text(make_variant(small_shape(), {0, -1}, "e-first", {.chunks = 3})), "load 0-11");
  Variant stairs;
  stairs.chunks = 4;
  stairs.tiles = {{Mode::kLoad, 0, 2, 0, 3, false}, {Mode::kRecompute, 3, 5, 0, 1, true},
                  {Mode::kLoad, 6, 7, 0, 1, false}, {Mode::kRecompute, 3, 6, 2, 2, true},
                  {Mode::kLoad, 7, 7, 2, 2, false}, {Mode::kRecompute, 3, 7, 3, 3, true}};
  EXPECT_EQ(tiling_text(stairs),
            "chunks 0-1: load 0-2, recompute 3-5 from E, load 6-7; chunk 2: load 0-2, recompute 3-6 from E, "
            "load 7; chunk 3: load 0-2, recompute 3-7 from E");
}

// --- Comparisons
// ---------------------------------------------------------------------------------------------

std::map<std::string, std::string> changes(const Plan& a, const Plan& b) {
  std::map<std::string, std::string> texts;
  for (const PlanChange& c : diff_plans(a, b)) texts[c.where + ": " + c.field] = c.text;
  return texts;
}

TEST(PlanDiff, EqualPlansHaveNoneAndEveryFieldCounts) {
  Plan plan = make_plan(small_shape(), {3, 6}, "e-first", {.chunks = 2});
  plan.variants[0].promise.quality_loss = std::numeric_limits<double>::quiet_NaN();
  EXPECT_TRUE(diff_plans(plan, plan).empty());
  EXPECT_EQ(plan_diff_text({}), "");
  // One field at a time, each of another kind: none goes unnoticed.
  using Edit = void (*)(Plan&);
  const std::pair<const char*, Edit> edits[] = {
      {"plan: format version", [](Plan& p) { p.format_version += 1; }},
      {"plan: compiler", [](Plan& p) { p.provenance.compiler_version += "9"; }},
      {"plan: flags", [](Plan& p) { p.provenance.flags += " --x 1"; }},
      {"plan: input sender", [](Plan& p) { p.provenance.inputs[0].sha256[0] = '!'; }},
      {"plan: inputs", [](Plan& p) { std::swap(p.provenance.inputs[0], p.provenance.inputs[1]); }},
      {"plan: sender", [](Plan& p) { p.sender.weights += "w"; }},
      {"plan: receiver", [](Plan& p) { p.receiver.name += "n"; }},
      {"plan: shape", [](Plan& p) { p.shape.vocab += 1; }},
      {"plan: sources", [](Plan& p) { p.sources = sources_of(p); }},
      {"v0: operations", [](Plan& p) { p.variants[0].ops[0].source = 1; }},
      {"plan: ids that both know", [](Plan& p) { p.shared_vocab = 700; }},
      {"plan: element type", [](Plan& p) { p.dtype += "f32"; }},
      {"plan: maps", [](Plan& p) { p.maps.name += "m"; }},
      {"v0: cuts", [](Plan& p) { p.variants[0].map_form = MapForm::kFull; }},
      {"v0: name", [](Plan& p) { p.variants[0].name += "w"; }},
      {"v0: ranges", [](Plan& p) { p.variants[0].tokens_max = 99; }},
      {"v0: policy", [](Plan& p) { p.variants[0].policy += "x"; }},
      {"v0: scheduler", [](Plan& p) { p.variants[0].scheduler += "x"; }},
      {"v0: ranges", [](Plan& p) { p.variants[0].load_max = 1; }},
      {"v0: why", [](Plan& p) { p.variants[0].why = p.variants[0].name; }},
      {"v0: regret", [](Plan& p) { p.variants[0].regret = 0.25; }},
      {"v0: alternatives", [](Plan& p) { p.variants[0].alternatives.push_back({}); }},
      {"v0: tuned context", [](Plan& p) { p.variants[0].tuned_tokens += 64; }},
      {"v0: tuned suffix", [](Plan& p) { p.variants[0].tuned_suffix += 1; }},
      {"v0: tuned link", [](Plan& p) { p.variants[0].tuned_rate += 1'000'000; }},
      {"v0: tiling", [](Plan& p) { p.variants[0].tiles[1].cut = false; }},
      {"v0: promised loss", [](Plan& p) { p.variants[0].promise.quality_loss = 3; }},
      {"v0: promised TTFT", [](Plan& p) { p.variants[0].promise.ttft_ns += 1; }},
      {"v0: selected share", [](Plan& p) { p.variants[0].select_share = 0.2; }},
      {"v0: way", [](Plan& p) { p.variants[0].way = "recompute 3-6"; }},
      {"v0: certainty of loss", [](Plan& p) { p.variants[0].promise.loss_stderr = 0.5; }},
      {"v0: promised divergence", [](Plan& p) { p.variants[0].promise.divergence = 0.5; }},
      {"v0: promised divergence",
       [](Plan& p) { p.variants[0].promise.divergence = p.variants[0].promise.divergence_stderr = 0.5; }},
      {"v0: certainty of loss", [](Plan& p) { p.variants[0].promise.loss_bound = 0.5; }},
      {"v0: certainty of loss", [](Plan& p) { p.variants[0].promise.confidence = 0.9; }},
      {"v0: makespan", [](Plan& p) { p.variants[0].makespan_ns += 1; }},
      {"v0: lower bound", [](Plan& p) { p.variants[0].lower_bound_ns -= 1; }},
      {"v0: proof", [](Plan& p) { p.variants[0].proven_optimal = !p.variants[0].proven_optimal; }},
      {"v0: durations", [](Plan& p) { p.variants[0].ops[2].duration_ns += 1; }},
      {"v0: starts", [](Plan& p) { p.variants[0].ops[2].start_ns += 1; }},
      {"v0: operations", [](Plan& p) { p.variants[0].ops.back().waits.push_back(0); }},
      {"v0: order of transfers",
       [](Plan& p) {
         std::vector<Op*> sent;
         for (Op& op : p.variants[0].ops) {
           if (op.payload == Payload::kKv) sent.push_back(&op);
         }
         std::swap(sent[0]->layer, sent.back()->layer);
         std::swap(sent[0]->chunk, sent.back()->chunk);
       }},
      {"v0: details", [](Plan& p) { p.variants[0].buffers[0].with_suffix = false; }},
      {"v0: streams", [](Plan& p) { p.variants[0].streams.push_back({StreamKind::kLink}); }},
      {"full-prefill: promised TTFT", [](Plan& p) { p.full_prefill.promise.ttft_ns += 1; }},
  };
  for (const auto& [field, edit] : edits) {
    Plan other = plan;
    edit(other);
    EXPECT_TRUE(changes(plan, other).count(field)) << field;
  }
}

TEST(PlanDiff, SaysWhatChangedInWordsAndBytes) {
  Plan a = make_plan(small_shape(), {3, 6}), b = make_plan(small_shape(), {3, 8});
  std::map<std::string, std::string> c = changes(a, b);
  EXPECT_EQ(c["plan: flags"], "--recompute 3-6 -> --recompute 3-8");
  EXPECT_EQ(c["v0: tiling"],
            "load 0-2, recompute 3-6 from E, load 7-11 -> load 0-2, recompute 3-8 from E, load 9-11");
  EXPECT_EQ(c["v0: transfers"], "9 -> 7; gone kv(7), kv(8)");
  // 1024 tokens of 128 elements of 2 bytes: 256 KiB a layer of KV, 256 KiB the cut.
  EXPECT_EQ(c["v0: bytes moved"], "2.25 MiB -> 1.75 MiB (-22.2 %)");
  std::string text = plan_diff_text(diff_plans(a, b));
  EXPECT_THAT(text, AllOf(HasSubstr("The plan as a whole\n  flags "), HasSubstr("\nVariant v0\n")));
  nlohmann::json json = nlohmann::json::parse(plan_diff_json(diff_plans(a, b)).dump());
  EXPECT_EQ(json[0]["field"], "flags");
}

TEST(PlanDiff, VariantsAreMatchedByRange) {
  Plan a = make_plan(small_shape(), {3, 6});
  a.variants[0].tokens_max = 2048;
  Plan b = a;
  b.variants[0].name = "v7";
  b.variants.insert(b.variants.begin(), make_variant(b.shape, {0, -1}, "e-first", {.tokens = 4096}));
  b.variants[0].tokens_min = 2048;
  b.variants[0].name = "v8";
  std::map<std::string, std::string> c = changes(a, b);
  EXPECT_EQ(c.size(), 2u);
  EXPECT_EQ(c["v0: name"], "v0 -> v7");
  EXPECT_THAT(c["v8: variant"], HasSubstr("only in the second: context 2,048 and more, link any; load 0-11"));
  EXPECT_THAT(changes(b, a)["v8: variant"], HasSubstr("only in the first"));
  Plan turned = b;
  std::swap(turned.variants[0], turned.variants[1]);
  EXPECT_EQ(changes(b, turned), (std::map<std::string, std::string>{
                                    {"plan: order of variants", "the same variants in another order"}}));
}

// --- Text
// ---------------------------------------------------------------------------------------------------

TEST(PlanText, ShowsHeaderLayersTimeAndOps) {
  Plan plan = make_plan(small_shape(32), {10, 21});
  std::string text =
      plan_to_text(plan, {.origin = "pair.dsplan", .file_bytes = 1234, .sha256 = std::string(64, 'e')});
  EXPECT_THAT(
      text,
      AllOf(HasSubstr(fmt::format("Plan        pair.dsplan   format {}, 1.2 KiB", kWrittenFormatVersion) +
                      ", sha256 eeeeeeeeeeeeeeee\n"),
            HasSubstr("KV 256 B a layer, 8.0 KiB in all; E 256 B a cut"), HasSubstr("E of layer 10"),
            HasSubstr("--recompute 10-21")));
  EXPECT_THAT(text, HasSubstr("            L L L L L L L L L L R R R R R R R R R R R R L L L L L L L L L L\n"
                              "                                ▲\n"));
  EXPECT_THAT(text, AllOf(HasSubstr("recompute 10"), HasSubstr("recompute 21 (K, V)"), HasSubstr("suffix 31"),
                          HasSubstr("head")));
  // A page is at most about 110 columns wide.
  for (size_t begin = 0; begin < text.size();) {
    size_t end = text.find('\n', begin);
    std::string line = text.substr(begin, end - begin);
    EXPECT_LE(std::count_if(line.begin(), line.end(), [](char c) { return (c & 0xc0) != 0x80; }), 112)
        << line;
    begin = end + 1;
  }
}

TEST(PlanText, SeveralVariantsGiveATableFirst) {
  Plan plan = make_plan(small_shape(), {3, 6});
  plan.variants[0].tokens_max = 2048;
  plan.variants.push_back(make_variant(plan.shape, {0, -1}, "kv-preload", {.tokens = 4096}));
  plan.variants[1].name = "v1";
  plan.variants[1].tokens_min = 2048;
  std::string all = plan_to_text(plan, {.origin = "x"});
  EXPECT_THAT(all, AllOf(HasSubstr("1 to 2,047"), HasSubstr("2,048 and more"), HasSubstr("--variant NAME"),
                         HasSubstr("Variant v0"), Not(HasSubstr("Variant v1"))));
  EXPECT_THAT(plan_to_text(plan, {.origin = "x", .variant = &plan.variants[1]}),
              AllOf(HasSubstr("Variant v1"), HasSubstr("kv(11)")));
  EXPECT_THAT(plan_to_text(plan, {.origin = "x", .variant = &plan.full_prefill, .max_ops = 2}),
              HasSubstr("12 more; --all-ops"));
}

TEST(PlanJson, HasEveryFieldAndNullForOpenEnds) {
  Plan plan = make_plan(small_shape(), {3, 6});
  plan.variants[0].promise.quality_loss = std::numeric_limits<double>::quiet_NaN();
  nlohmann::json json = nlohmann::json::parse(plan_to_json(plan).dump());
  EXPECT_EQ(json["schema"], "droidspeak.plan");
  EXPECT_EQ(json["cut_layers"], nlohmann::json::array({3}));
  const auto& v = json["variants"][0];
  EXPECT_TRUE(v["tokens_max"].is_null());
  EXPECT_TRUE(v["quality_loss"].is_null());
  EXPECT_EQ(v["recomputed_layers"], 4);
  EXPECT_EQ(v["ops"].size(), plan.variants[0].ops.size());
  EXPECT_EQ(v["ops"][0]["label"], "e(3)");
  EXPECT_EQ(v["tiles"][1]["cut"], true);
}

// --- Pictures
// -----------------------------------------------------------------------------------------------

TEST(Draw, SvgAndHtmlAreWellFormedAndStandAlone) {
  for (int32_t chunks : {1, 4}) {
    Plan plan = make_plan(small_shape(), {3, 6}, "e-first", {.chunks = chunks});
    plan.sender.name = "<script>\"&";
    const Variant& v = plan.variants[0];
    RunRecord record = slower_record(v);
    record.cache_reason = "<img src=x>";
    for (const RunRecord* r :
         {static_cast<const RunRecord*>(nullptr), static_cast<const RunRecord*>(&record)}) {
      std::string svg = draw_schedule_svg({plan, v, r}), html = draw_schedule_html({plan, v, r});
      expect_well_formed(svg);
      expect_well_formed(html);
      EXPECT_EQ(html.find("tokens; store '&lt;i&gt;' has no more") != std::string::npos, r != nullptr);
      for (const std::string& text : {svg, html}) {
        EXPECT_THAT(text, AllOf(HasSubstr("predicted TTFT"), HasSubstr("idle"), HasSubstr("&lt;script&gt;"),
                                Not(HasSubstr("<script")), Not(HasSubstr("<img")), Not(HasSubstr("href="))));
        EXPECT_EQ(text.find("measured TTFT") != std::string::npos, r != nullptr);
        EXPECT_THAT(text, Not(HasSubstr("<i>")));
      }
    }
  }
}

/// Ops that an SVG's bars stand for: "op 3: ...", or "12 ops: ..." where narrow ones are joined.
size_t drawn_ops(const std::string& svg) {
  size_t ops = 0;
  for (size_t at = svg.find("<title>"); at != std::string::npos; at = svg.find("<title>", at + 1)) {
    std::string title = svg.substr(at + 7, svg.find("</title>", at) - at - 7);
    if (title.rfind("op ", 0) == 0) ++ops;
    if (size_t n = title.find(" ops: "); n != std::string::npos) ops += std::stoul(title.substr(0, n));
  }
  return ops;
}

TEST(Draw, EveryOpIsThereOnceInEachTrack) {
  Plan plan = make_plan(small_shape(), {3, 6});
  const Variant& v = plan.variants[0];
  RunRecord record = slower_record(v);
  record.ops.pop_back();  // one that did not run
  EXPECT_EQ(drawn_ops(draw_schedule_svg({plan, v, &record})), 2 * v.ops.size() - 1);
}

TEST(Draw, ManyOpsAreJoinedAndKeepTheCriticalArrowsOnly) {
  Plan plan =
      make_plan(small_shape(80), {20, 59}, "e-first", {.chunks = 16, .tokens = 16384, .rate = 400'000'000});
  const Variant& v = plan.variants[0];
  ASSERT_GT(v.ops.size(), 1300u);
  std::string svg = draw_schedule_svg({plan, v});
  EXPECT_EQ(drawn_ops(svg), v.ops.size());
  EXPECT_LT(svg.size(), 60'000u);
  EXPECT_THAT(svg, AllOf(HasSubstr("16 ops: recompute 20.0 to recompute 20.15,"), Not(HasSubstr("waits for")),
                         HasSubstr("#k-thick")));
}

/// "M.. H..": the horizontal strokes of a class, as lengths in the picture's units.
double drawn_length(const std::string& svg, const std::string& css) {
  double length = 0;
  std::string start = "<path class=\"" + css + "\" d=\"M";
  for (size_t at = svg.find(start); at != std::string::npos; at = svg.find(start, at + 1)) {
    size_t h = svg.find(" H", at);
    if (h == std::string::npos || h > svg.find("/>", at)) continue;
    length += std::stod(svg.substr(h + 2)) - std::stod(svg.substr(at + start.size()));
  }
  return length;
}

TEST(Draw, TheCriticalPathCoversTheWholeTime) {
  for (const char* schedule : {"e-first", "serial"}) {
    Plan plan = make_plan(small_shape(), {3, 6}, schedule);
    const Variant& v = plan.variants[0];
    std::string svg = draw_schedule_svg({plan, v});
    EXPECT_NEAR(drawn_length(svg, "c"), 1200 - 104 - 84, 0.5) << schedule;
    EXPECT_EQ(drawn_length(svg, "c g"), 0) << schedule;
    EXPECT_THAT(svg, HasSubstr("lower bound " + format_ns(v.lower_bound_ns)));
    // Nothing but the link's own wait can be on the path before the first transfer of a late run.
    RunRecord late = slower_record(v);
    for (OpRecord& op : late.ops) {
      op.start_ns += v.makespan_ns;
      op.end_ns += v.makespan_ns;
    }
    EXPECT_GT(drawn_length(draw_schedule_svg({plan, v, &late}), "c g"), 300) << schedule;
  }
}

TEST(Draw, APageHoldsBothWidthsWithIdsOfTheirOwn) {
  Plan plan = make_plan(small_shape(), {3, 6}, "e-first", {.chunks = 4});
  const Variant& v = plan.variants[0];
  RunRecord record = slower_record(v);
  std::string html = draw_schedule_html({plan, v, &record});
  EXPECT_EQ(drawn_ops(html), 4 * v.ops.size());  // two tracks, twice
  std::set<std::string> ids;
  for (size_t at = html.find(" id=\""); at != std::string::npos; at = html.find(" id=\"", at + 1)) {
    EXPECT_TRUE(ids.insert(html.substr(at + 5, html.find('"', at + 5) - at - 5)).second);
  }
  for (size_t at = html.find("url(#"); at != std::string::npos; at = html.find("url(#", at + 1)) {
    EXPECT_TRUE(ids.count(html.substr(at + 5, html.find(')', at) - at - 5)));
  }
  EXPECT_THAT(html, AllOf(HasSubstr("What the end waited for"), HasSubstr("max-width:700px")));
}

TEST(Draw, PredictionIsScaledToTheRunsPoint) {
  Plan plan = make_plan(small_shape(), {3, 6});
  const Variant& v = plan.variants[0];
  RunRecord record = slower_record(v);
  record.context_tokens = 2048;
  record.link_rate = 10'000'000;
  Result<Simulation> sim = simulate_variant(plan, v, {2048, v.tuned_suffix, 10'000'000});
  ASSERT_TRUE(sim.ok());
  EXPECT_THAT(
      draw_schedule_svg({plan, v, &record}),
      AllOf(HasSubstr("predicted TTFT " + format_ns(sim->ttft_ns)), HasSubstr("scaled from 1,024 context")));
}

TEST(Draw, ChromeTraceHasTwoProcessesAndFlowsInsideTheirOps) {
  Plan plan = make_plan(small_shape(), {3, 6});
  const Variant& v = plan.variants[0];
  RunRecord record = slower_record(v);
  nlohmann::json trace = nlohmann::json::parse(draw_schedule_chrome({plan, v, &record}));
  std::map<int, size_t> ops;
  std::map<int64_t, nlohmann::json> flows;
  std::map<int, double> critical_us;
  std::map<std::string, int> moments;
  size_t cross = 0;
  for (const Op& op : v.ops) {
    for (int32_t w : op.waits) cross += v.ops[static_cast<size_t>(w)].stream != op.stream ? 1 : 0;
  }
  for (const auto& e : trace["traceEvents"]) {
    if (e["ph"] == "X") ++ops[e["pid"]];
    if (e["ph"] == "X" && e["args"]["critical"] == true) critical_us[e["pid"]] += e["dur"].get<double>();
    if (e["ph"] == "i") ++moments[e["name"]];
    if (e["ph"] == "s") flows[e["id"]] = e;
    if (e["ph"] != "f") continue;
    const auto& start = flows.at(e["id"]);
    EXPECT_LE(start["ts"].get<double>(), e["ts"].get<double>());
    bool inside = false;
    for (const auto& x : trace["traceEvents"]) {
      inside |= x["ph"] == "X" && x["pid"] == start["pid"] && x["tid"] == start["tid"] &&
                x["ts"] <= start["ts"] &&
                start["ts"].get<double>() < x["ts"].get<double>() + x["dur"].get<double>();
    }
    EXPECT_TRUE(inside) << start;
  }
  EXPECT_EQ(ops, (std::map<int, size_t>{{1, v.ops.size()}, {2, v.ops.size()}}));
  EXPECT_EQ(flows.size(), 2 * cross);
  EXPECT_NEAR(critical_us[1], static_cast<double>(v.makespan_ns) / 1000, 0.01);
  EXPECT_EQ(moments, (std::map<std::string, int>{{"first token", 2}, {"lower bound", 1}}));
  EXPECT_GT(cross, 0u);
}

}  // namespace
}  // namespace ds
