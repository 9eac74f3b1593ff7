// Bytes: what is no plan, what is written once, and the frozen plans of every format.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <map>
#include <set>
#include <sstream>

#include "plans/plan_file.h"
#include "plans/plan_generated.h"
#include "support/file.h"
#include "support/hash.h"
#include "tests/unit/plan_builder.h"
#include "tests/unit/plan_edits.h"

namespace ds {
namespace {

using testing::bytes_of;
using ::testing::HasSubstr;
using testing::make_aligned_plan;
using testing::make_plan;
using testing::make_restore_plan;
using testing::make_select_plan;
using testing::make_variant;
using testing::parse_failure;
using testing::small_shape;

TEST(PlanBytes, MissingEmptyTruncatedWrongMagic) {
  Result<Plan> missing = read_plan("/nonexistent/x.dsplan");
  ASSERT_FALSE(missing.ok());
  EXPECT_EQ(missing.status().code(), Code::kNotFound);
  EXPECT_THAT(missing.status().message(), HasSubstr("/nonexistent/x.dsplan"));

  Status empty = parse_failure("");
  EXPECT_EQ(empty.code(), Code::kCorrupt);
  EXPECT_THAT(empty.message(), HasSubstr("'x.dsplan' is empty"));

  EXPECT_THAT(parse_failure("abc").message(), HasSubstr("it has 3 bytes (\"abc\")"));

  std::string magic = serialize_plan(make_plan(small_shape(), {3, 6}));
  magic.replace(4, 4, "\x01\"Z\xff");
  EXPECT_THAT(parse_failure(magic).message(), AllOf(HasSubstr(R"(found "\x01\"Z\xff" at bytes 4 to 7)"),
                                                    HasSubstr(std::to_string(magic.size()))));
  EXPECT_EQ(parse_failure(magic).code(), Code::kCorrupt);

  std::string whole = serialize_plan(make_plan(small_shape(), {3, 6}));
  for (size_t size : {size_t{8}, size_t{9}, size_t{100}, whole.size() / 2, whole.size() - 100}) {
    Status status = parse_failure(whole.substr(0, size));
    EXPECT_EQ(status.code(), Code::kCorrupt);
    EXPECT_THAT(status.message(), HasSubstr(std::to_string(size) + " bytes"));
  }
}

TEST(PlanBytes, NewerVersionSaysBothVersionsAndWhatToDo) {
  Plan plan = make_plan(small_shape(), {3, 6});
  plan.format_version = kPlanFormatVersion + 6;
  plan.provenance.compiler_version = "9.9.9";
  plan.variants[0].ops[0].kind = static_cast<OpKind>(77);  // a newer version may well have that
  Status status = parse_failure(serialize_plan(plan));
  EXPECT_EQ(status.code(), Code::kUnsupported);
  EXPECT_THAT(status.message(), AllOf(HasSubstr(fmt::format("format version {}", kPlanFormatVersion + 6)),
                                      HasSubstr("ds-compile 9.9.9"),
                                      HasSubstr(fmt::format("versions 1 to {}", kPlanFormatVersion)),
                                      HasSubstr("update droidspeak")));
}

TEST(PlanBytes, UnknownEnumeratorsAreUnsupported) {
  struct Unknown {
    std::string what;
    std::function<void(Variant&)> set;
  };
  const Unknown cases[] = {
      {fmt::format("op 0 has kind {}; this version knows 0 to {}", kOpKinds, kOpKinds - 1),
       [](Variant& v) { v.ops[0].kind = static_cast<OpKind>(kOpKinds); }},
      {"op 0 has rows 4", [](Variant& v) { v.ops[0].rows = static_cast<Rows>(4); }},
      {"op 0 has queries 9", [](Variant& v) { v.ops[0].queries = static_cast<Queries>(9); }},
      {"stream 1 has kind 3", [](Variant& v) { v.streams[1].kind = static_cast<StreamKind>(3); }},
      {"buffer 2 has kind 2", [](Variant& v) { v.buffers[2].kind = static_cast<BufferKind>(2); }},
      {"tile 1 has mode 9", [](Variant& v) { v.tiles[1].mode = static_cast<Mode>(9); }},
      {"has map form 4; this version knows 0 to 3", [](Variant& v) { v.map_form = static_cast<MapForm>(4); }},
      {"has map side 2; this version knows 0 to 1",
       [](Variant& v) { v.map_side = static_cast<MapSide>(2); }}};
  for (const Unknown& c : cases) {
    Plan plan = make_aligned_plan(small_shape(), {3, 6}, MapForm::kFull);
    c.set(plan.variants[0]);
    Status status = parse_failure(serialize_plan(plan));
    EXPECT_EQ(status.code(), Code::kUnsupported) << c.what;
    EXPECT_THAT(status.message(), AllOf(HasSubstr(c.what), HasSubstr("[rule 9]")));
  }
}

TEST(PlanBytes, UnpackingTheSameBytesManyTimesIsRefused) {
  // 20,000 ops that all point at one vector of 20,000 waits: 0.5 MB that would unpack to 1.6 GB.
  flatbuffers::FlatBufferBuilder b;
  auto text = b.CreateString("x");
  auto waits = b.CreateVector(std::vector<int32_t>(20'000, 0));
  std::vector<flatbuffers::Offset<fb::Op>> list;
  for (int i = 0; i < 20'000; ++i) {
    fb::OpBuilder op(b);
    op.add_start_ns(i + 1);
    op.add_waits(waits);
    list.push_back(op.Finish());
  }
  auto ops = b.CreateVector(list);
  auto tiles = b.CreateVector(std::vector<flatbuffers::Offset<fb::Tile>>());
  auto streams = b.CreateVector(std::vector<flatbuffers::Offset<fb::Stream>>());
  auto buffers = b.CreateVector(std::vector<flatbuffers::Offset<fb::Buffer>>());
  fb::VariantBuilder v(b);
  v.add_name(text);
  v.add_policy(text);
  v.add_scheduler(text);
  v.add_tiles(tiles);
  v.add_streams(streams);
  v.add_buffers(buffers);
  v.add_ops(ops);
  auto variant = v.Finish();
  auto variants = b.CreateVector(std::vector{variant});
  auto inputs = b.CreateVector(std::vector<flatbuffers::Offset<fb::InputFile>>());
  auto provenance = fb::CreateProvenance(b, text, text, inputs);
  auto model = fb::CreateModelIdentity(b, text, text, text, text, text);
  auto shape = fb::CreateShape(b, text);
  fb::FinishPlanBuffer(b, fb::CreatePlan(b, 1, provenance, model, model, shape, text, variants, variant));
  std::string bytes(reinterpret_cast<const char*>(b.GetBufferPointer()), b.GetSize());
  Status status = parse_failure(bytes);
  EXPECT_EQ(status.code(), Code::kCorrupt);
  EXPECT_THAT(status.message(), HasSubstr("refers to the same bytes again and again"));
}

TEST(PlanBytes, FromFormat5OnWhatIsEqualIsWrittenOnce) {
  for (LayerRange group : {LayerRange{3, 6}, LayerRange{0, 2}}) {
    Plan plan = make_plan(small_shape(32), group, "e-first", {.chunks = 3});
    const size_t before = serialize_plan(plan).size();
    plan.format_version = 5;
    plan.sources = sources_of(plan);
    const std::string bytes = serialize_plan(plan);
    EXPECT_LT(bytes.size(), before) << group.first;
    Result<Plan> read = parse_plan(bytes_of(bytes), "x.dsplan");
    ASSERT_TRUE(read.ok()) << read.status().message();
    EXPECT_EQ(*read, plan);
    EXPECT_EQ(serialize_plan(*read), bytes);
  }
}

/// What plans/golden holds of formats 1, 3 and 4; golden/README.md tells how it was written.
std::map<std::string, Plan> plans_to_freeze() {
  std::map<std::string, Plan> plans;
  plans["v1-droidspeak.dsplan"] = make_plan(small_shape(), {3, 6});
  Plan& reuse = plans["v1-full-reuse-f32.dsplan"] =
      make_plan(small_shape(32), {0, -1}, "kv-preload", {.element_bytes = 4, .dtype = "f32"});
  reuse.variants[0].promise.quality_loss = std::nan("");
  plans["v1-group-from-0.dsplan"] = make_plan(small_shape(), {0, 3}, "e-first");
  Plan& several = plans["v1-variants-chunks.dsplan"] =
      make_plan(small_shape(), {8, 11}, "e-first", {.chunks = 3});
  several.receiver.name = "empf\u00e4nger";
  several.variants[0].tokens_max = 2048;
  several.variants.push_back(make_variant(several.shape, {5, 5}, "serial", {.tokens = 4096}));
  several.variants[1].name = "v1";
  several.variants[1].tokens_min = 2048;
  several.variants[1].rate_min = 1'000'000;
  Plan& modes = plans["v3-modes.dsplan"] = make_select_plan(small_shape(5), 0.15);
  modes.variants[0].tokens_max = 2048;
  modes.variants[0].way = "select 15 %";
  modes.variants[0].promise.loss_stderr = 0.75;
  modes.variants[0].promise.loss_bound = 3.25;
  modes.variants[0].promise.confidence = 0.95;
  modes.variants.push_back(make_restore_plan(modes.shape, 3, {.tokens = 4096}).variants[0]);
  modes.variants[1].name = "v1";
  modes.variants[1].tokens_min = 2048;
  modes.variants[1].way = "restore 3";
  Plan& aligned = plans["v4-aligned.dsplan"] =
      make_aligned_plan(small_shape(5), {2, 3}, MapForm::kFull, MapSide::kReceiver, "e-first", {.chunks = 3});
  aligned.variants[0].tokens_max = 2048;
  aligned.variants[0].way = "recompute 2-3 aligned";
  aligned.variants.push_back(
      make_restore_plan(aligned.shape, 3,
                        {.tokens = 4096, .map_form = MapForm::kFull, .map_side = MapSide::kSender})
          .variants[0]);
  aligned.variants[1].name = "v1";
  aligned.variants[1].tokens_min = 2048;
  aligned.variants[1].way = "restore 3 aligned";
  return plans;
}

TEST(GoldenPlans, LoadAndAreWrittenAgainByteForByte) {
  std::string folder = std::string(DS_SOURCE_DIR) + "/plans/golden/";
  if (const char* freeze = std::getenv("DS_FREEZE_PLANS")) {
    for (const auto& [name, plan] : plans_to_freeze()) {
      ASSERT_TRUE(write_file_atomically(std::string(freeze) + "/" + name, serialize_plan(plan)).ok());
    }
    GTEST_SKIP() << "wrote the plans to freeze to " << freeze;
  }
  Result<std::string> sums = read_text_file(folder + "SHA256SUMS");
  ASSERT_TRUE(sums.ok()) << sums.status().message();
  std::set<std::string> listed;
  std::istringstream lines(*sums);
  for (std::string sum, name; lines >> sum >> name;) {
    SCOPED_TRACE(name);
    listed.insert(name);
    Result<std::string> bytes = read_text_file(folder + name);
    ASSERT_TRUE(bytes.ok()) << bytes.status().message();
    EXPECT_EQ(sha256_hex(*bytes), sum) << "a frozen plan has changed; frozen plans are never touched";
    Result<Plan> plan = parse_plan(bytes_of(*bytes), name);
    ASSERT_TRUE(plan.ok()) << plan.status().message();
    EXPECT_EQ(serialize_plan(*plan), *bytes);
  }
  EXPECT_GE(listed.size(), 4u);
  for (const auto& file : std::filesystem::directory_iterator(folder)) {
    if (file.path().extension() == ".dsplan") {
      EXPECT_TRUE(listed.count(file.path().filename().string())) << file.path() << " is not in SHA256SUMS";
    }
  }
}

/// Facts of the frozen files, told here a second time.
TEST(GoldenPlans, MeanWhatTheyMeant) {
  std::string folder = std::string(DS_SOURCE_DIR) + "/plans/golden/";
  Result<Plan> plan = read_plan(folder + "v1-droidspeak.dsplan");
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  const Variant& v = plan->variants[0];
  EXPECT_EQ(plan->format_version, 1);
  EXPECT_EQ(plan->shape, small_shape());
  EXPECT_EQ(plan->dtype, "bf16");
  EXPECT_EQ(v.scheduler, "e-first");
  EXPECT_EQ(v.promise.quality_loss, 1.8);
  EXPECT_EQ(v.tiles, (std::vector<Tile>{{Mode::kLoad, 0, 2, 0, 0, false},
                                        {Mode::kRecompute, 3, 6, 0, 0, true},
                                        {Mode::kLoad, 7, 11, 0, 0, false}}));
  ASSERT_EQ(v.ops.size(), 27u);
  EXPECT_EQ(v.ops[0], (Op{.kind = OpKind::kTransfer,
                          .payload = Payload::kE,
                          .stream = 0,
                          .layer = 3,
                          .chunk = 0,
                          .buffer = 13,
                          .duration_ns = 13'107'200}));
  EXPECT_EQ(v.ops[3], (Op{.kind = OpKind::kRecompute,
                          .stream = 1,
                          .layer = 3,
                          .chunk = 0,
                          .queries = Queries::kAll,
                          .buffer = 13,
                          .start_ns = 13'107'200,
                          .duration_ns = 2'048'000,
                          .waits = {0}}));
  EXPECT_EQ(v.ops[26].kind, OpKind::kHead);
  EXPECT_EQ(v.makespan_ns, 117'974'800);

  plan = read_plan(folder + "v1-variants-chunks.dsplan");
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  EXPECT_EQ(plan->receiver.name, "empf\u00e4nger");
  EXPECT_EQ(cut_layers(*plan), (std::vector<int32_t>{5, 8}));
  EXPECT_EQ(plan->variants[0].chunks, 3);
  EXPECT_EQ(select_variant(*plan, 4096, 2'000'000), &plan->variants[1]);
  EXPECT_EQ(select_variant(*plan, 4096, 1), nullptr);
  plan = read_plan(folder + "v1-full-reuse-f32.dsplan");
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  EXPECT_TRUE(std::isnan(plan->variants[0].promise.quality_loss));
  EXPECT_EQ(plan->dtype, "f32");

  plan = read_plan(folder + "v2-compiled-pair.dsplan");
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  EXPECT_EQ(plan->format_version, 2);
  ASSERT_EQ(plan->variants.size(), 7u);
  const Variant& stairs = plan->variants[0];
  EXPECT_EQ(select_variant(*plan, 1000, 50'000'000), &stairs);
  EXPECT_EQ(select_variant(*plan, 1000, 50'000'000, 1), &plan->variants[4]);
  EXPECT_EQ(stairs.load_max, 1);
  EXPECT_EQ(stairs.chunks, 8);
  EXPECT_EQ(stairs.tiles, (std::vector<Tile>{{Mode::kRecompute, 0, 11, 0, 4, false},
                                             {Mode::kLoad, 0, 5, 5, 7, false},
                                             {Mode::kRecompute, 6, 11, 5, 7, true}}));
  EXPECT_EQ(stairs.ops[2].chunk, 0);
  EXPECT_EQ(stairs.ops[2].last_chunk, 4);
  EXPECT_EQ(stairs.why, "least TTFT with a loss of at most 5 points");
  EXPECT_NEAR(stairs.regret, 0.1223, 0.0001);
  ASSERT_FALSE(stairs.alternatives.empty());
  EXPECT_EQ(stairs.alternatives[0].what, "recompute 0-1, 6 of 8 chunks to the top");
  EXPECT_EQ(stairs.alternatives[0].quality_loss, 37.08);
  EXPECT_EQ(stairs.way, "");
  EXPECT_TRUE(std::isnan(stairs.promise.loss_stderr) && std::isnan(stairs.promise.loss_bound));
  EXPECT_EQ(stairs.promise.confidence, 0);

  plan = read_plan(folder + "v3-modes.dsplan");
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  EXPECT_EQ(plan->format_version, 3);
  ASSERT_EQ(plan->variants.size(), 2u);
  const Variant &select = plan->variants[0], &restore = plan->variants[1];
  EXPECT_EQ(select.select_share, 0.15);
  EXPECT_EQ(select.way, "select 15 %");
  EXPECT_EQ(select.promise.loss_stderr, 0.75);
  EXPECT_EQ(select.promise.loss_bound, 3.25);
  EXPECT_EQ(select.promise.confidence, 0.95);
  EXPECT_EQ(select.tiles,
            (std::vector<Tile>{{Mode::kRecompute, 0, 0, 0, 0, false}, {Mode::kSelect, 1, 4, 0, 0, false}}));
  ASSERT_EQ(select.ops.size(), 16u);
  EXPECT_EQ(select.ops[6].kind, OpKind::kSelect);
  EXPECT_EQ(select.ops[7].rows, Rows::kSelected);
  EXPECT_EQ(select.ops[7].chunk, -1);
  EXPECT_EQ(restore.select_share, 0);
  EXPECT_EQ(restore.tiles[1], (Tile{Mode::kRestore, 3, 3, 0, 0, false}));
  EXPECT_EQ(cut_layers(*plan), std::vector<int32_t>{3});

  plan = read_plan(folder + "v4-aligned.dsplan");
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  EXPECT_EQ(plan->format_version, 4);
  EXPECT_EQ(plan->maps.name, "maps.safetensors");
  EXPECT_EQ(plan->maps.fingerprint, sha256_hex(std::string("maps")));
  ASSERT_EQ(plan->variants.size(), 2u);
  const Variant &group = plan->variants[0], &mapped = plan->variants[1];
  EXPECT_EQ(group.map_form, MapForm::kFull);
  EXPECT_TRUE(group.aligns());
  EXPECT_EQ(group.way, "recompute 2-3 aligned");
  EXPECT_EQ(group.chunks, 3);
  EXPECT_EQ(group.ops[3], (Op{.kind = OpKind::kAlign,
                              .stream = 1,
                              .layer = 2,
                              .chunk = 0,
                              .buffer = 6,
                              .start_ns = 4'096'000,
                              .duration_ns = 80'000,
                              .waits = {0}}));
  EXPECT_EQ(mapped.map_form, MapForm::kFull);
  EXPECT_EQ(mapped.map_side, MapSide::kSender);
  EXPECT_FALSE(mapped.aligns());
  EXPECT_EQ(published_cuts(*plan), (std::vector<Cut>{{2, MapForm::kNone}, {3, MapForm::kFull}}));

  plan = read_plan(folder + "v6-compiled-pair.dsplan");
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  EXPECT_EQ(plan->format_version, 6);
  ASSERT_EQ(plan->variants.size(), 3u);
  EXPECT_FALSE(plan->variants[0].live);
  EXPECT_TRUE(plan->variants[1].live && plan->variants[2].live);
  EXPECT_EQ(plan->variants[1].load_max, 1);

  plan = read_plan(folder + "v5-compiled-pair.dsplan");
  ASSERT_TRUE(plan.ok()) << plan.status().message();
  EXPECT_EQ(plan->format_version, 5);
  EXPECT_EQ(plan->sources, (std::vector<Source>{{SourceRule::kPrefix, plan->sender, plan->shape}}));
  ASSERT_EQ(plan->variants.size(), 5u);
  EXPECT_EQ(plan->variants[0].ops[9], (Op{.kind = OpKind::kTransfer,
                                          .payload = Payload::kKv,
                                          .stream = 0,
                                          .layer = 0,
                                          .chunk = 11,
                                          .buffer = 0,
                                          .start_ns = 1'638'400,
                                          .duration_ns = 1'638'400,
                                          .last_chunk = 15}));
}

}  // namespace
}  // namespace ds
