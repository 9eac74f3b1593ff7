// The rules of plans/README.md: a plan that breaks one is refused, in words.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "plans/plan_file.h"
#include "support/hash.h"
#include "tests/unit/plan_builder.h"
#include "tests/unit/plan_edits.h"

namespace ds {
namespace {

using testing::bytes_of;
using testing::find_op;
using ::testing::HasSubstr;
using testing::insert_op;
using testing::kTransferE;
using testing::kTransferKv;
using testing::make_aligned_plan;
using testing::make_plan;
using testing::make_restore_plan;
using testing::make_select_plan;
using testing::make_variant;
using testing::op_of;
using testing::parse_failure;
using testing::remove_op;
using testing::small_shape;
using testing::Wanted;

using Break = std::function<void(Plan&)>;

void expect_broken(int rule, const std::string& message, const Break& change, Plan plan) {
  SCOPED_TRACE(message);
  ASSERT_TRUE(verify_plan(plan, "made").ok()) << verify_plan(plan, "made").message();
  change(plan);
  Status status = verify_plan(plan, "x.dsplan");
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.code(), Code::kCorrupt);
  EXPECT_THAT(status.message(),
              AllOf(HasSubstr("'x.dsplan'"), HasSubstr(message),
                    HasSubstr("[rule " + std::to_string(rule) + "]"), HasSubstr("expected")));
  // The same through the file.
  Result<Plan> read = parse_plan(bytes_of(serialize_plan(plan)), "x.dsplan");
  ASSERT_FALSE(read.ok());
  EXPECT_EQ(read.status().message(), status.message());
}
void expect_broken(int rule, const std::string& message, const Break& change) {
  expect_broken(rule, message, change, make_plan(small_shape(), {3, 6}));
}

TEST(PlanRules, R1Version) {
  expect_broken(1, "format version is 0", [](Plan& p) { p.format_version = 0; });
  expect_broken(1, "format version is -5", [](Plan& p) { p.format_version = -5; });
}

TEST(PlanRules, R2Texts) {
  expect_broken(2, "variants[0].name is empty", [](Plan& p) { p.variants[0].name.clear(); });
  expect_broken(2, "sender.name is not plain text", [](Plan& p) { p.sender.name = "a\nb"; });
  expect_broken(2, "sender.name is not plain text", [](Plan& p) { p.sender.name = "\xc0\x80"; });
  expect_broken(2, "sender.name is not plain text", [](Plan& p) { p.sender.name = "\xed\xa0\x80"; });
  expect_broken(2, "receiver.fingerprint is \"abc\"", [](Plan& p) { p.receiver.fingerprint = "abc"; });
  expect_broken(2, "dtype is \"int3\"", [](Plan& p) { p.dtype = "int3"; });
  expect_broken(2, "provenance.flags has 70000 bytes",
                [](Plan& p) { p.provenance.flags = std::string(70000, 'a'); });
  expect_broken(2, "provenance.inputs[1].role is empty",
                [](Plan& p) { p.provenance.inputs[1].role.clear(); });
}

TEST(PlanRules, R3Shape) {
  expect_broken(3, "shape.layers is 0", [](Plan& p) { p.shape.layers = 0; });
  expect_broken(3, "shape.layers is 5000", [](Plan& p) { p.shape.layers = 5000; });
  expect_broken(3, "shape.d_model is -1", [](Plan& p) { p.shape.d_model = -1; });
  expect_broken(3, "shape.vocab", [](Plan& p) { p.shape.vocab = int64_t{1} << 40; });
  expect_broken(3, "shared_vocab is -1", [](Plan& p) { p.shared_vocab = -1; });
  expect_broken(3, "shared_vocab is 754", [](Plan& p) { p.shared_vocab = p.shape.vocab; });
  expect_broken(3, "shape.heads is 4, shape.kv_heads 3", [](Plan& p) { p.shape.kv_heads = 3; });
  expect_broken(3, "a row of the KV cache", [](Plan& p) {
    p.shape.heads = p.shape.kv_heads = int64_t{1} << 20;
    p.shape.head_dim = int64_t{1} << 20;
  });
}

TEST(PlanRules, R4Sizes) {
  expect_broken(4, "has 0 chunks", [](Plan& p) { p.variants[0].chunks = 0; });
  expect_broken(4, "has 2000000000 chunks", [](Plan& p) { p.variants[0].chunks = 2'000'000'000; });
  expect_broken(4, "has 4096 layers of 4000 chunks", [](Plan& p) {
    p.shape.layers = 4096;
    p.variants[0].chunks = 4000;
  });
  expect_broken(4, "has 5000 alternatives",
                [](Plan& p) { p.variants[0].alternatives.assign(5000, {"full reuse"}); });
  expect_broken(4, "has 0 streams", [](Plan& p) { p.variants[0].streams.clear(); });
  expect_broken(4, "has 17 streams", [](Plan& p) { p.variants[0].streams.resize(17); });
  expect_broken(4, "has 100 buffers", [](Plan& p) { p.variants[0].buffers.resize(100); });
  expect_broken(4, "has 100 tiles", [](Plan& p) { p.variants[0].tiles.resize(100); });
  expect_broken(4, "has 0 ops", [](Plan& p) { p.variants[0].ops.clear(); });
  expect_broken(4, "for 4096 layers", [](Plan& p) { p.shape.layers = 4096; });
}

TEST(PlanRules, R5Variants) {
  expect_broken(
      5, "full_prefill.name is \"full-prefill\", as another variant's",
      [](Plan& p) { p.variants[0].name = "full-prefill"; }, make_plan(small_shape(), {0, -1}));
}

TEST(PlanRules, R5Ranges) {
  expect_broken(5, "for context lengths [0, no limit)", [](Plan& p) { p.variants[0].tokens_min = 0; });
  expect_broken(5, "for context lengths [512, 512)",
                [](Plan& p) { p.variants[0].tokens_min = p.variants[0].tokens_max = 512; });
  expect_broken(5, "for link rates [-1, no limit)", [](Plan& p) { p.variants[0].rate_min = -1; });
  expect_broken(5, "tuned for 1024 tokens", [](Plan& p) { p.variants[0].tokens_max = 1024; });
  expect_broken(5, "at most 4294967296 tokens", [](Plan& p) { p.variants[0].tuned_tokens = INT64_MAX - 1; });
  expect_broken(5, "a suffix of 0", [](Plan& p) { p.variants[0].tuned_suffix = 0; });
  expect_broken(5, "tuned for", [](Plan& p) { p.variants[0].rate_min = p.variants[0].tuned_rate + 1; });
  expect_broken(5, "a quality loss of inf", [](Plan& p) {
    p.variants[0].promise.quality_loss = std::numeric_limits<double>::infinity();
  });
  expect_broken(5, "promises a TTFT of -1", [](Plan& p) { p.variants[0].promise.ttft_ns = -1; });
  expect_broken(5, "for loads [3, 3)", [](Plan& p) { p.variants[0].load_min = p.variants[0].load_max = 3; });
  expect_broken(5, "states a regret of -0.5", [](Plan& p) { p.variants[0].regret = -0.5; });
  expect_broken(5, "has alternative 0 with a loss of 200", [](Plan& p) {
    p.variants[0].alternatives = {{"recompute 3-6", 200, 1, 1}};
  });
  expect_broken(5, "a standard error of -2", [](Plan& p) { p.variants[0].promise.loss_stderr = -2; });
  expect_broken(5, "states a confidence of 0.5", [](Plan& p) { p.variants[0].promise.confidence = 0.5; });
  expect_broken(5, "states a confidence of nan",
                [](Plan& p) { p.variants[0].promise.confidence = kUnknown; });
  expect_broken(5, "bounds its loss by 2 points with a confidence of 0",
                [](Plan& p) { p.variants[0].promise.loss_bound = 2; });
  expect_broken(5, "bounds its loss by inf points", [](Plan& p) {
    p.variants[0].promise.confidence = 0.9;
    p.variants[0].promise.loss_bound = std::numeric_limits<double>::infinity();
  });
}

TEST(PlanRules, R5APromisedDivergence) {
  const Plan without = make_plan(small_shape(), {3, 6});
  Plan plan = without;
  Promise& p = plan.variants[0].promise;
  p.divergence = 0.125;
  p.divergence_stderr = 0.25;
  plan.variants[0].alternatives = {{"recompute 3-6", 2, 1, 1, 0.5}, {"full reuse", 2, 1, 1}};
  auto back = parse_plan(bytes_of(serialize_plan(plan)), "made");
  ASSERT_TRUE(back.ok()) << back.status().message();
  EXPECT_EQ(*back, plan);
  EXPECT_TRUE(std::isnan(back->variants[0].promise.divergence_bound));
  EXPECT_TRUE(std::isnan(back->variants[0].alternatives[1].divergence));
  p.divergence = 0;  // nothing diverges: known, and not the same as not known
  p.confidence = 0.9;
  p.divergence_bound = 0;
  back = parse_plan(bytes_of(serialize_plan(plan)), "made");
  ASSERT_TRUE(back.ok()) << back.status().message();
  EXPECT_EQ(*back, plan);
  // What is not known takes no room: plans without keep their bytes.
  p = without.variants[0].promise;
  plan.variants[0].alternatives.clear();
  EXPECT_EQ(serialize_plan(plan), serialize_plan(without));
  expect_broken(5, "promises a divergence of -2 nats",
                [](Plan& q) { q.variants[0].promise.divergence = -2; });
  expect_broken(5, "a bound of inf", [](Plan& q) {
    q.variants[0].promise.confidence = 0.9;
    q.variants[0].promise.divergence_bound = std::numeric_limits<double>::infinity();
  });
  expect_broken(5, "bounds its divergence by 2 nats with a confidence of 0",
                [](Plan& q) { q.variants[0].promise.divergence_bound = 2; });
  expect_broken(5, "has alternative 0 with a loss of 2, a divergence of -3", [](Plan& q) {
    q.variants[0].alternatives = {{"recompute 3-6", 2, 1, 1, -3}};
  });
  plan = without;
  plan.variants[0].promise.divergence = 0.5;
  plan.format_version = 3;
  EXPECT_THAT(verify_plan(plan, "made").message(),
              HasSubstr("a promised divergence, which came with version 4"));
}

TEST(PlanRules, R1AndR5APromiseWithItsUncertainty) {
  Plan plan = make_plan(small_shape(), {3, 6});
  plan.variants[0].way = "recompute 3-6";
  plan.variants[0].promise.loss_stderr = 0.75;
  plan.variants[0].promise.confidence = 0.95;
  for (double bound : {3.25, kUnknown}) {
    plan.variants[0].promise.loss_bound = bound;
    Result<Plan> back = parse_plan(bytes_of(serialize_plan(plan)), "made");
    ASSERT_TRUE(back.ok()) << back.status().message();
    EXPECT_EQ(*back, plan);
  }
  plan.format_version = 2;
  EXPECT_THAT(verify_plan(plan, "made").message(),
              HasSubstr("a loss with its uncertainty, which came with version 3"));
  plan.variants[0].promise = {1.8, plan.variants[0].promise.ttft_ns};
  EXPECT_THAT(verify_plan(plan, "made").message(), HasSubstr("a way, which came with version 3"));
}

TEST(PlanRules, R6Overlap) {
  expect_broken(6, "variants 'v0' and 'v1' both cover 100 tokens at 7 B/s", [](Plan& p) {
    p.variants[0].tokens_max = 2000;
    p.variants.push_back(p.variants[0]);
    p.variants[1].name = "v1";
    p.variants[1].tokens_min = 100;
    p.variants[1].rate_min = 7;
  });
  expect_broken(6, "with 2 requests waiting", [](Plan& p) {
    p.variants.push_back(p.variants[0]);
    p.variants[1].name = "v1";
    p.variants[0].load_max = 3;
    p.variants[1].load_min = 2;
  });
}

TEST(PlanRules, R7FullPrefill) {
  expect_broken(7, "covers contexts [2, no limit)", [](Plan& p) { p.full_prefill.tokens_min = 2; });
  expect_broken(7, "tile 0 is load", [](Plan& p) {
    p.full_prefill = p.variants[0];
    p.full_prefill.name = "full";
  });
  expect_broken(7, "op 0 (kv(0)) is a transfer", [](Plan& p) {
    p.full_prefill = make_variant(p.shape, {0, 11}, "serial");
    p.full_prefill.name = "full";
  });
}

TEST(PlanRules, R8StreamKinds) {
  expect_broken(8, "op 0 (e(3)) is on stream 1, a compute stream; expected a link stream",
                [](Plan& p) { p.variants[0].ops[0].stream = 1; });
  expect_broken(8, "a link stream; expected a compute stream",
                [](Plan& p) { op_of(p.variants[0], OpKind::kSuffix).stream = 0; });
  expect_broken(8, "has stream 2, a copy stream; expected link and compute streams",
                [](Plan& p) { p.variants[0].streams.push_back({StreamKind::kCopy}); });
}

TEST(PlanRules, R10Indices) {
  auto change = [](Wanted op, auto set) { return [=](Plan& p) { set(op_of(p.variants[0], op)); }; };
  expect_broken(10, "is on stream 2", change(OpKind::kSuffix, [](Op& o) { o.stream = 2; }));
  expect_broken(10, "is on stream -1", change(OpKind::kSuffix, [](Op& o) { o.stream = -1; }));
  expect_broken(10, "has layer 12; expected 0 to 11", change(OpKind::kSuffix, [](Op& o) { o.layer = 12; }));
  expect_broken(10, "has layer 0; expected -1", change(OpKind::kHead, [](Op& o) { o.layer = 0; }));
  expect_broken(10, "has chunk 1; expected 0 to 0", change(OpKind::kRecompute, [](Op& o) { o.chunk = 1; }));
  expect_broken(10, "has chunk 0; expected -1", change(OpKind::kSuffix, [](Op& o) { o.chunk = 0; }));
  expect_broken(10, "has buffer 14; expected 0 to 13", change(OpKind::kSuffix, [](Op& o) { o.buffer = 14; }));
  expect_broken(10, "a kv buffer; expected a hidden buffer",
                change(OpKind::kSuffix, [](Op& o) { o.buffer = 0; }));
  expect_broken(10, "the cache of layer 5; expected buffer 0",
                change(kTransferKv, [](Op& o) { o.buffer = 5; }));
  expect_broken(10, "suffix rows only", change(OpKind::kRecompute, [](Op& o) { o.buffer = 12; }));
  expect_broken(10, "context rows only", change(OpKind::kSuffix, [](Op& o) { o.buffer = 13; }));
}

TEST(PlanRules, R11Waits) {
  expect_broken(11, "waits for op 0; expected an op before itself",
                [](Plan& p) { p.variants[0].ops[0].waits = {0}; });
  expect_broken(11, "waits for op 5", [](Plan& p) { p.variants[0].ops[2].waits = {5}; });
  expect_broken(11, "waits for op -1", [](Plan& p) { p.variants[0].ops[2].waits = {-1}; });
  expect_broken(11, "expected ascending indices", [](Plan& p) { p.variants[0].ops[6].waits = {1, 1}; });
}

TEST(PlanRules, R12Times) {
  expect_broken(12, "starts at -1 ns", [](Plan& p) { p.variants[0].ops[0].start_ns = -1; });
  expect_broken(12, "takes -3 ns", [](Plan& p) { p.variants[0].ops[0].duration_ns = -3; });
  expect_broken(12, "an end below 2^63", [](Plan& p) {
    p.variants[0].ops.back().start_ns = INT64_MAX;
    p.variants[0].ops.back().duration_ns = 2;
  });
  expect_broken(12, "holds the same stream", [](Plan& p) {
    Variant& v = p.variants[0];
    v.ops.back().start_ns = v.ops[v.ops.size() - 2].start_ns;
  });
  expect_broken(12, "is one of its waits", [](Plan& p) {
    // The first recompute op would start before its E is there.
    Op& op = op_of(p.variants[0], OpKind::kRecompute, 3);
    op.start_ns = p.variants[0].ops[2].start_ns;
    p.variants[0].ops[0].duration_ns += 1;
    p.variants[0].ops[2].start_ns += 1;
    op.start_ns += 1;
    op.waits = {2};
  });
  expect_broken(12, "expected ops in the order of their starts",
                [](Plan& p) { std::swap(p.variants[0].ops[1].start_ns, p.variants[0].ops[2].start_ns); });
  expect_broken(12, "states a makespan", [](Plan& p) { p.variants[0].makespan_ns += 1; });
  expect_broken(12, "states a lower bound", [](Plan& p) { p.variants[0].lower_bound_ns = INT64_MAX; });
  expect_broken(12, "states a lower bound of -1", [](Plan& p) { p.variants[0].lower_bound_ns = -1; });
  expect_broken(12, "proven optimal", [](Plan& p) {
    p.variants[0].proven_optimal = true;
    p.variants[0].lower_bound_ns = 0;
  });
}

TEST(PlanRules, R13Buffers) {
  expect_broken(13, "is for layer 12", [](Plan& p) { p.variants[0].buffers[3].layer = 12; });
  expect_broken(13, "buffers 2 and 3 are both the cache of layer 2",
                [](Plan& p) { p.variants[0].buffers[3].layer = 2; });
  expect_broken(13, "lacks suffix rows", [](Plan& p) { p.variants[0].buffers[3].with_suffix = false; });
  expect_broken(13, "neither context nor suffix rows",
                [](Plan& p) { p.variants[0].buffers[12].with_suffix = false; });
  expect_broken(13, "starts the chain of buffer 13 at layer 3; expected layer 4",
                [](Plan& p) { p.variants[0].buffers[13].layer = 4; });
  expect_broken(13, "which no op uses", [](Plan& p) {
    p.variants[0].buffers.push_back({BufferKind::kHidden, 0, true, true});
  });
  expect_broken(13, "has no kv buffer for layer 11", [](Plan& p) {
    p.variants[0].buffers[11] = {BufferKind::kHidden, 0, true, true};
  });
}

TEST(PlanRules, R14Tiles) {
  expect_broken(14, "tile 1 has layers 3 to 12", [](Plan& p) { p.variants[0].tiles[1].last_layer = 12; });
  expect_broken(14, "chunks 0 to 1; expected", [](Plan& p) { p.variants[0].tiles[1].last_chunk = 1; });
  expect_broken(14, "tile 1 covers layer 2, chunk 0 again",
                [](Plan& p) { p.variants[0].tiles[1].first_layer = 2; });
  expect_broken(14, "leaves layer 7, chunk 0 without a tile",
                [](Plan& p) { p.variants[0].tiles[2].first_layer = 8; });
  expect_broken(14, "tile 0 (load, from layer 0) has a cut",
                [](Plan& p) { p.variants[0].tiles[0].cut = true; });
  expect_broken(
      14, "tile 0 (recompute, from layer 0) has a cut", [](Plan& p) { p.variants[0].tiles[0].cut = true; },
      make_plan(small_shape(), {0, 3}));
  expect_broken(14, "recomputes layer 3, chunk 0 from nothing",
                [](Plan& p) { p.variants[0].tiles[1].cut = false; });
}

TEST(PlanRules, R14And15RestoredLayers) {
  Plan plan = make_restore_plan(small_shape(), 3);
  Status status = verify_plan(plan, "made");
  EXPECT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(recomputed_layers(plan.variants[0]), 0);
  EXPECT_EQ(cut_layers(plan), std::vector<int32_t>{3});
  Result<Plan> back = parse_plan(bytes_of(serialize_plan(plan)), "made");
  ASSERT_TRUE(back.ok()) << back.status().message();
  EXPECT_EQ(*back, plan);
  Plan older = plan;
  older.format_version = 2;
  EXPECT_THAT(
      verify_plan(older, "made").message(),
      HasSubstr("format version is 2, but variant 'v0' has restored layers, which came with version 3"));
  expect_broken(
      14, "tile 1 (restore, from layer 3) has a cut", [](Plan& p) { p.variants[0].tiles[1].cut = true; },
      plan);
  expect_broken(
      14, "recomputes layer 4, chunk 0 from nothing: the layer below is restored",
      [](Plan& p) { p.variants[0].tiles[2].mode = Mode::kRecompute; }, plan);
  expect_broken(
      15, "restores layer 3, chunk 0, but no op sends its E", [](Plan& p) { remove_op(p.variants[0], 0); },
      plan);
  expect_broken(
      15, "restores layer 3, chunk 0, but no op does",
      [](Plan& p) { remove_op(p.variants[0], find_op(p.variants[0], OpKind::kRecompute, 3)); }, plan);
  expect_broken(
      16, "has queries 'all'; expected 'none': nobody reads what leaves this layer",
      [](Plan& p) { op_of(p.variants[0], OpKind::kRecompute, 3).queries = Queries::kAll; }, plan);
}

TEST(PlanRules, SelectedTokens) {
  const Plan plan = make_select_plan(small_shape(4), 0.15);
  Status status = verify_plan(plan, "made");
  ASSERT_TRUE(status.ok()) << status.message();
  Result<Plan> back = parse_plan(bytes_of(serialize_plan(plan)), "made");
  ASSERT_TRUE(back.ok()) << back.status().message();
  EXPECT_EQ(*back, plan);
  EXPECT_TRUE(cut_layers(plan).empty());
  EXPECT_EQ(recomputed_layers(plan.variants[0]), 1);
  Plan older = plan;
  older.format_version = 2;
  EXPECT_THAT(verify_plan(older, "made").message(),
              HasSubstr("variant 'v0' has selected tokens, which came with version 3"));
  using V = Variant;
  auto broken = [&](int rule, const std::string& message, const std::function<void(V&)>& change) {
    expect_broken(
        rule, message, [&](Plan& p) { change(p.variants[0]); }, plan);
  };
  broken(14, "selects a share of 0 of the tokens; expected more than 0", [](V& v) { v.select_share = 0; });
  broken(14, "selects a share of 1.5", [](V& v) { v.select_share = 1.5; });
  broken(14, "selects a share of nan", [](V& v) { v.select_share = kUnknown; });
  expect_broken(14, "selects a share of 0.5 of the tokens; expected 0: there is no select tile",
                [](Plan& p) { p.variants[0].select_share = 0.5; });
  broken(14, "tile 1 selects tokens of layers 2 to 3 in 1 chunks; expected layers 1 to 3 in one chunk",
         [](V& v) {
           v.tiles[0].last_layer = 1;
           v.tiles[1].first_layer = 2;
         });
  broken(14, "selects tokens of layer 1, but layer 0 is loaded", [](V& v) { v.tiles[0].mode = Mode::kLoad; });
  broken(14, "selects tokens of layer 1, but layer 0 is restored",
         [](V& v) { v.tiles[0].mode = Mode::kRestore; });
  broken(15, "selects tokens of layer 2, chunk 0, but no op transfers its KV",
         [](V& v) { remove_op(v, find_op(v, kTransferKv, 2)); });
  broken(15, "has a select tile, but no op chooses its tokens",
         [](V& v) { remove_op(v, find_op(v, OpKind::kSelect)); });
  broken(15, "recomputes selected tokens of layer 2, chunk 0, but no op does",
         [](V& v) { remove_op(v, find_op(v, OpKind::kRecompute, 2)); });
  broken(15, "recomputes every token of layer 2, whose tile says select", [](V& v) {
    Op& op = op_of(v, OpKind::kRecompute, 2);
    op.rows = Rows::kChunk;
    op.chunk = 0;
    op.queries = Queries::kNone;
  });
  broken(15, "chooses tokens at layer 2", [](V& v) { op_of(v, OpKind::kSelect).layer = 2; });
  broken(16, "works on selected rows; expected suffix",
         [](V& v) { op_of(v, OpKind::kSuffix).rows = Rows::kSelected; });
  expect_broken(16, "works on selected rows; expected chunk",
                [](Plan& p) { op_of(p.variants[0], OpKind::kRecompute).rows = Rows::kSelected; });
  broken(10, "has chunk 0; expected -1: it works on selected rows",
         [](V& v) { op_of(v, OpKind::kRecompute).chunk = 0; });
  broken(16, "has queries 'none'; expected 'all'",
         [](V& v) { op_of(v, OpKind::kRecompute, 2).queries = Queries::kNone; });
  broken(16, "has queries 'all'; expected 'none': nobody reads what leaves the last layer",
         [](V& v) { op_of(v, OpKind::kRecompute, 3).queries = Queries::kAll; });
  broken(18, "which op 4 (prefill 0) has left at layer 1; expected what enters layer 1, selected tokens only",
         [](V& v) {
           Op &a = op_of(v, OpKind::kSelect), &b = op_of(v, OpKind::kRecompute, 1);
           std::swap(a, b);
           std::swap(a.start_ns, b.start_ns);
           std::swap(a.duration_ns, b.duration_ns);
         });
  broken(
      18, "(select 1) has left at layer 1, selected tokens only; expected what enters layer 2, selected",
      [](V& v) { std::swap(op_of(v, OpKind::kRecompute, 1).layer, op_of(v, OpKind::kRecompute, 2).layer); });
  broken(19, "reads KV of layer 1, chunk 0, which op 0 (kv(1)) writes", [](V& v) {
    for (Op& op : v.ops) op.waits.clear();
  });
}

TEST(SelectedRows, AreTheShareRoundedUpAndAtLeastOne) {
  EXPECT_EQ(selected_rows(0.15, 400), 60);
  EXPECT_EQ(selected_rows(0.1, 30), 3);  // 0.1 * 30 is a little more than 3
  EXPECT_EQ(selected_rows(0.15, 401), 61);
  EXPECT_EQ(selected_rows(1, 17), 17);
  EXPECT_EQ(selected_rows(1e-5, 17), 1);
  EXPECT_EQ(selected_rows(0.5, 0), 0);
  Op op{.kind = OpKind::kRecompute, .layer = 1, .rows = Rows::kSelected, .queries = Queries::kAll};
  OpRows rows = op_rows(op, 1, 400, 7, 0.15);
  EXPECT_EQ(rows.first, 340);
  EXPECT_EQ(rows.rows, 60);
  EXPECT_EQ(rows.queries, 60);
}

TEST(PlanRules, R15TilesAgreeWithOps) {
  expect_broken(15, "loads layer 7, chunk 0, but no op transfers its KV",
                [](Plan& p) { remove_op(p.variants[0], find_op(p.variants[0], kTransferKv, 7)); });
  expect_broken(15, "has a cut at layer 3, chunk 0, but no op sends its E",
                [](Plan& p) { remove_op(p.variants[0], 0); });
  expect_broken(15, "recomputes layer 6, chunk 0, but no op does",
                [](Plan& p) { remove_op(p.variants[0], find_op(p.variants[0], OpKind::kRecompute, 6)); });
  expect_broken(15, "sends E of layer 5", [](Plan& p) {
    Variant& v = p.variants[0];
    insert_op(v, 1,
              {.kind = OpKind::kTransfer,
               .payload = Payload::kE,
               .stream = 0,
               .layer = 5,
               .chunk = 0,
               .buffer = 13});
    v.ops[1].start_ns = 0;
    v.ops[1].start_ns = v.ops[0].duration_ns;
    std::swap(v.ops[1], v.ops[2]);  // behind the embedding, which starts at 0
  });
  expect_broken(15, "whose tile says load", [](Plan& p) {
    Variant& v = p.variants[0];
    insert_op(v, static_cast<int32_t>(v.ops.size()) - 1,
              {.kind = OpKind::kRecompute, .stream = 1, .layer = 8, .chunk = 0, .buffer = 13});
  });
  expect_broken(15, "does again what op", [](Plan& p) {
    Variant& v = p.variants[0];
    int32_t at = find_op(v, OpKind::kRecompute, 6);
    insert_op(v, at, v.ops[static_cast<size_t>(at)]);
  });
}

TEST(PlanRules, R16RowsAndQueries) {
  expect_broken(16, "has queries 'all'; expected 'none': nobody reads what leaves this layer",
                [](Plan& p) { op_of(p.variants[0], OpKind::kRecompute, 6).queries = Queries::kAll; });
  expect_broken(16, "has queries 'none'; expected 'all': the layer above is recomputed from it",
                [](Plan& p) { op_of(p.variants[0], OpKind::kRecompute, 4).queries = Queries::kNone; });
  expect_broken(16, "has queries 'all'; expected 'last'",
                [](Plan& p) { op_of(p.variants[0], OpKind::kSuffix, 11).queries = Queries::kAll; });
  expect_broken(16, "has queries 'last'; expected 'all'",
                [](Plan& p) { op_of(p.variants[0], OpKind::kSuffix, 10).queries = Queries::kLast; });
  expect_broken(
      16, "has queries 'all'; expected 'suffix'",
      [](Plan& p) { op_of(p.variants[0], OpKind::kPrefill, 3).queries = Queries::kAll; },
      make_plan(small_shape(), {0, 3}));
  expect_broken(16, "has queries 'all'; expected 'last'",
                [](Plan& p) { op_of(p.full_prefill, OpKind::kPrefill, 11).queries = Queries::kAll; });
  expect_broken(16, "works on suffix rows; expected chunk",
                [](Plan& p) { op_of(p.variants[0], kTransferKv).rows = Rows::kSuffix; });
  expect_broken(
      16, "works on all rows of a context in 2 chunks",
      [](Plan& p) {
        Op& op = op_of(p.variants[0], OpKind::kEmbed);
        op.rows = Rows::kAll;
      },
      make_plan(small_shape(), {3, 6}, "e-first", {.chunks = 2}));
}

TEST(PlanRules, R17Suffix) {
  expect_broken(17, "never takes the suffix through layer 9",
                [](Plan& p) { remove_op(p.variants[0], find_op(p.variants[0], OpKind::kSuffix, 9)); });
  expect_broken(17, "never embeds the suffix",
                [](Plan& p) { remove_op(p.variants[0], find_op(p.variants[0], OpKind::kEmbed)); });
  expect_broken(17, "has no head",
                [](Plan& p) { remove_op(p.variants[0], find_op(p.variants[0], OpKind::kHead)); });
  expect_broken(17, "is not the last", [](Plan& p) {
    Variant& v = p.variants[0];
    auto n = v.ops.size();
    Op head = v.ops[n - 1], before = v.ops[n - 2];
    head.start_ns = before.start_ns;
    before.start_ns += head.duration_ns;
    v.ops[n - 2] = head;
    v.ops[n - 1] = before;
  });
  expect_broken(17, "before op", [](Plan& p) {
    Variant& v = p.variants[0];
    std::swap(op_of(v, OpKind::kSuffix, 4).layer, op_of(v, OpKind::kSuffix, 5).layer);
  });
  expect_broken(17, "does again", [](Plan& p) { op_of(p.variants[0], OpKind::kSuffix, 4).layer = 5; });
}

TEST(PlanRules, R18EveryReadHasItsWriterBefore) {
  // The suffix does not wait for KV that is transferred later.
  expect_broken(18, "reads KV of layer 1, chunk 0, which nothing has loaded before it", [](Plan& p) {
    Variant& v = p.variants[0];
    // Exchange what the transfers of layers 1 and 11 bring.
    int32_t a = find_op(v, kTransferKv, 1), b = find_op(v, kTransferKv, 11);
    std::swap(v.ops[static_cast<size_t>(a)].layer, v.ops[static_cast<size_t>(b)].layer);
    std::swap(v.ops[static_cast<size_t>(a)].buffer, v.ops[static_cast<size_t>(b)].buffer);
  });
  // Recompute layers out of order: hidden states do not fit.
  expect_broken(18, "which op 3 (recompute 3) has left at layer 4; expected what enters layer 5",
                [](Plan& p) {
                  Variant& v = p.variants[0];
                  std::swap(op_of(v, OpKind::kRecompute, 4).layer, op_of(v, OpKind::kRecompute, 5).layer);
                });
  // The sender's KV arrives over what has been recomputed (serial, the order turned round).
  expect_broken(18, "puts the sender's KV over what", [](Plan& p) {
    Variant& v = p.variants[0];
    int32_t at = static_cast<int32_t>(v.ops.size()) - 1;
    insert_op(v, at,
              {.kind = OpKind::kTransfer,
               .payload = Payload::kKv,
               .stream = 0,
               .layer = 4,
               .chunk = 0,
               .buffer = 4});
    v.ops[static_cast<size_t>(at)].waits = {at - 1};
  });
  // A later chunk is recomputed before an earlier one of the same layer.
  expect_broken(
      18, "reads KV of layer 3, chunk 0",
      [](Plan& p) {
        Variant& v = p.variants[0];
        Op &a = op_of(v, OpKind::kRecompute, 3, 0), &b = op_of(v, OpKind::kRecompute, 3, 1);
        std::swap(a.chunk, b.chunk);
      },
      make_plan(small_shape(), {3, 6}, "kv-preload", {.chunks = 2}));
  // Both layers' E swapped into hidden states that nobody wrote.
  expect_broken(18, "which nothing has written before it", [](Plan& p) {
    Variant& v = p.variants[0];
    v.buffers.push_back({BufferKind::kHidden, 3, false, true});
    op_of(v, OpKind::kRecompute, 3).buffer = 14;
  });
}

TEST(PlanRules, R19NoUnorderedAccesses) {
  expect_broken(
      19,
      "reads hidden states of buffer 13, chunk 0, which op 0 (e(3)) writes, with no order between them; "
      "expected op 0 among its waits",
      [](Plan& p) { op_of(p.variants[0], OpKind::kRecompute, 3).waits.clear(); });
  expect_broken(19, "reads KV of layer 8, chunk 0",
                [](Plan& p) { op_of(p.variants[0], OpKind::kSuffix, 8).waits.clear(); });
  // serial: the sender's KV of a recomputed layer must have landed before R writes there.
  expect_broken(
      19, "writes KV of layer 3, chunk 0",
      [](Plan& p) {
        Variant& v = p.variants[0];

        for (Op& op : v.ops) op.waits.clear();
        op_of(v, OpKind::kRecompute, 3).waits = {0};  // E only
      },
      make_plan(small_shape(), {3, 6}, "serial"));
  // An order through a third op is an order.
  Plan plan = make_plan(small_shape(), {3, 6});
  Variant& v = plan.variants[0];
  int32_t e = find_op(v, kTransferE), kv = find_op(v, kTransferKv, 0);
  Op& op = op_of(v, OpKind::kRecompute, 3);
  ASSERT_EQ(op.waits, std::vector<int32_t>{e});
  int64_t shift = v.ops[static_cast<size_t>(kv)].duration_ns;
  for (Op& o : v.ops) o.start_ns += &o >= &op ? shift : 0;
  v.makespan_ns += shift;
  op.waits = {kv};  // behind e on the link
  Status status = verify_plan(plan, "made");
  EXPECT_TRUE(status.ok()) << status.message();
}

TEST(PlanRules, R20AlignedCuts) {
  using V = Variant;
  const Plan plan =
      make_aligned_plan(small_shape(), {3, 6}, MapForm::kFull, MapSide::kReceiver, "e-first", {.chunks = 2});
  auto broken = [&](int rule, const std::string& message, const std::function<void(V&)>& change) {
    expect_broken(
        rule, message, [&](Plan& p) { change(p.variants[0]); }, plan);
  };
  Plan older = plan;
  older.format_version = 3;
  EXPECT_EQ(verify_plan(older, "made").code(), Code::kCorrupt);
  EXPECT_THAT(verify_plan(older, "made").message(),
              HasSubstr("format version is 3, but variant 'v0' has aligned cuts, which came with version 4"));
  // The header, against what is sent.
  expect_broken(
      20, "has full maps, but is sent no hidden states; expected a cut or restored layers",
      [](Plan& p) {
        p.variants[0].map_form = MapForm::kFull;
        p.maps = {"m", sha256_hex(std::string("m"))};
      },
      make_plan(small_shape(), {0, 3}));
  expect_broken(20, "has no maps, but the sender is to apply them; expected the receiver",
                [](Plan& p) { p.variants[0].map_side = MapSide::kSender; });
  expect_broken(
      20, "maps.fingerprint is \"\"; expected a SHA-256 in hexadecimal: a variant has aligned cuts",
      [](Plan& p) { p.maps.fingerprint.clear(); }, plan);
  expect_broken(20, "expected no maps: no variant has aligned cuts", [](Plan& p) {
    p.maps = {"m", sha256_hex(std::string("m"))};
  });
  expect_broken(
      2, "maps.name is not plain text", [](Plan& p) { p.maps.name = "\n"; }, plan);
  // One align op for each cell that E is sent for, where the receiver maps, and nowhere else.
  broken(20, "maps hidden states of layer 3, chunk 0, but its variant has no maps for the receiver",
         [](V& v) { v.map_side = MapSide::kSender; });
  broken(20, "maps hidden states of layer 4, chunk 0, which nobody sends", [](V& v) {
    Op op = op_of(v, OpKind::kAlign, 3, 0);
    op.layer = 4;
    insert_op(v, find_op(v, OpKind::kAlign, 3, 0) + 1, op);
  });
  broken(20, "(map this layer and chunk); expected it once",
         [](V& v) { insert_op(v, find_op(v, OpKind::kAlign, 3, 1) + 1, op_of(v, OpKind::kAlign, 3, 1)); });
  broken(20, "is sent E of layer 3, chunk 1, but no op maps it; expected one 'align' for it",
         [](V& v) { remove_op(v, find_op(v, OpKind::kAlign, 3, 1)); });
  // Between the transfer and what reads it.
  broken(18, "has left at layer 3, not aligned; expected what enters layer 3", [](V& v) {
    int32_t at = find_op(v, OpKind::kAlign, 3, 0);
    Op align = v.ops[static_cast<size_t>(at)];
    remove_op(v, at);
    insert_op(v, find_op(v, OpKind::kRecompute, 3, 0) + 1, align);
  });
  broken(19, "writes, with no order between them",
         [](V& v) { op_of(v, OpKind::kAlign, 3, 1).waits.clear(); });
  // What it has in its other fields.
  broken(8, "a link stream; expected a compute stream", [](V& v) { op_of(v, OpKind::kAlign).stream = 0; });
  broken(10, "has layer -1; expected 0 to 11", [](V& v) { op_of(v, OpKind::kAlign).layer = -1; });
  broken(10, "has chunk 2; expected 0 to 1", [](V& v) { op_of(v, OpKind::kAlign).chunk = 2; });
  broken(10, "a kv buffer; expected a hidden buffer", [](V& v) { op_of(v, OpKind::kAlign).buffer = 3; });
  broken(16, "works on suffix rows; expected chunk", [](V& v) {
    op_of(v, OpKind::kAlign).chunk = -1;
    op_of(v, OpKind::kAlign, 3, -1).rows = Rows::kSuffix;
  });
  broken(16, "has queries 'all'; expected 'none'",
         [](V& v) { op_of(v, OpKind::kAlign).queries = Queries::kAll; });
  // Restored layers are mapped in the same way.
  const Plan restored = make_restore_plan(small_shape(), 3, {.map_form = MapForm::kDiagonal});
  Status status = verify_plan(restored, "made");
  EXPECT_TRUE(status.ok()) << status.message();
  expect_broken(
      20, "is sent E of layer 3, chunk 0, but no op maps it",
      [](Plan& p) { remove_op(p.variants[0], find_op(p.variants[0], OpKind::kAlign)); }, restored);
  // Nothing that every plan carries is mapped.
  EXPECT_EQ(plan.full_prefill.map_form, MapForm::kNone);
}

/// In format 5, with a second source whose model is wider in what no row of KV depends on.
Plan make_sources_plan() {
  Plan plan = make_plan(small_shape(), {3, 6});
  plan.format_version = 5;
  plan.sources = sources_of(plan);
  plan.sources.push_back({SourceRule::kSegment, {"small", std::string(64, 'e'), "", "", ""}, plan.shape});
  plan.sources[1].shape.ff *= 2;
  plan.sources[1].shape.d_model *= 2;
  op_of(plan.variants[0], kTransferKv, 7).source = 1;
  return plan;
}

TEST(PlanRules, R21Sources) {
  const Plan plan = make_sources_plan();
  ASSERT_TRUE(verify_plan(plan, "made").ok()) << verify_plan(plan, "made").message();
  Result<Plan> read = parse_plan(bytes_of(serialize_plan(plan)), "x.dsplan");
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_EQ(*read, plan);
  using P = Plan;
  auto broken = [&](const std::string& message, const std::function<void(P&)>& change) {
    expect_broken(21, message, change, plan);
  };
  broken("has 0 sources in format version 5; expected 1 to 16", [](P& p) { p.sources.clear(); });
  broken("has 17 sources", [](P& p) { p.sources.resize(17, p.sources[1]); });
  broken("its first source is a segment of 'sender'", [](P& p) { p.sources[0].rule = SourceRule::kSegment; });
  broken("its first source is a prefix of 'small' (eeeeeeeeeeee)",
         [](P& p) { p.sources[0].model = p.sources[1].model; });
  broken("reads source 2; expected 0 to 1", [](P& p) { op_of(p.variants[0], kTransferKv, 7).source = 2; });
  broken("reads source 1, whose d_model is 256, the receiver's 128; expected the same",
         [](P& p) { op_of(p.variants[0], kTransferE).source = 1; });
  broken("reads source 1, whose head_dim is", [](P& p) { p.sources[1].shape.head_dim *= 2; });
  broken("has source 1, but transfers nothing", [](P& p) { op_of(p.variants[0], OpKind::kHead).source = 1; });
  broken("which transfers nothing; expected a payload",
         [](P& p) { op_of(p.variants[0], kTransferKv, 7).payload = Payload::kNone; });
  expect_broken(
      2, "sources[1].fingerprint is \"x\"", [](P& p) { p.sources[1].model.fingerprint = "x"; }, plan);
  expect_broken(
      3, "sources[1].shape.heads is 0; expected 1 to", [](P& p) { p.sources[1].shape.heads = 0; }, plan);
  // Up to format 4 there is one, which nobody writes down.
  Plan older = make_plan(small_shape(), {3, 6});
  EXPECT_EQ(sources_of(older), (std::vector<Source>{{SourceRule::kPrefix, older.sender, older.shape}}));
  older.sources = sources_of(older);
  Status status = verify_plan(older, "x.dsplan");
  EXPECT_THAT(status.message(), HasSubstr("has 1 sources in format version 4; expected none"));
  for (auto [what, change] :
       {std::pair<std::string, std::function<void(P&)>>{
            "source 1 has rule 2; this version knows 0 to 1",
            [](P& p) { p.sources[1].rule = static_cast<SourceRule>(2); }},
        {fmt::format("op 0 has payload {}; this version knows 0 to {}", kPayloads, kPayloads - 1),
         [](P& p) { p.variants[0].ops[0].payload = static_cast<Payload>(kPayloads); }}}) {
    Plan unknown = plan;
    change(unknown);
    status = parse_failure(serialize_plan(unknown));
    EXPECT_EQ(status.code(), Code::kUnsupported) << what;
    EXPECT_THAT(status.message(), AllOf(HasSubstr(what), HasSubstr("[rule 9]")));
  }
}

}  // namespace
}  // namespace ds
