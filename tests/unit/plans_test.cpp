// Plans that are right, what is asked of them, and the tables.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cctype>
#include <chrono>
#include <cmath>
#include <set>

#include "plans/full_prefill.h"
#include "plans/plan_file.h"
#include "plans/plan_generated.h"
#include "plans/traits.h"
#include "plans/way.h"
#include "tests/unit/plan_builder.h"
#include "tests/unit/plan_edits.h"

namespace ds {
namespace {

using testing::bytes_of;
using testing::find_op;
using testing::insert_op;
using testing::kTransferKv;
using testing::make_aligned_plan;
using testing::make_plan;
using testing::make_restore_plan;
using testing::make_variant;
using testing::op_of;
using testing::PlanOptions;
using testing::remove_op;
using testing::small_shape;

struct Case {
  LayerRange group;
  const char* schedule;
  int32_t chunks;
};

TEST(Plans, EveryShapeOfGroupIsValidAndSurvivesTheFile) {
  for (LayerRange group : {LayerRange{0, -1}, LayerRange{0, 11}, LayerRange{0, 3}, LayerRange{8, 11},
                           LayerRange{5, 5}, LayerRange{0, 0}, LayerRange{11, 11}, LayerRange{3, 6}}) {
    for (const char* schedule : {"e-first", "kv-preload", "serial"}) {
      for (int32_t chunks : {1, 2, 5}) {
        SCOPED_TRACE(format_layers(group) + " " + schedule + " " + std::to_string(chunks));
        Plan plan = make_plan(small_shape(), group, schedule, {.chunks = chunks});
        Status status = verify_plan(plan, "made");
        ASSERT_TRUE(status.ok()) << status.message();
        std::string bytes = serialize_plan(plan);
        EXPECT_EQ(bytes, serialize_plan(plan));
        Result<Plan> read = parse_plan(bytes_of(bytes), "made");
        ASSERT_TRUE(read.ok()) << read.status().message();
        EXPECT_EQ(*read, plan);
        EXPECT_EQ(serialize_plan(*read), bytes);
      }
    }
  }
}

TEST(Plans, OneLayerModel) {
  for (LayerRange group : {LayerRange{0, -1}, LayerRange{0, 0}}) {
    Plan plan = make_plan(small_shape(1), group);
    Status status = verify_plan(plan, "made");
    EXPECT_TRUE(status.ok()) << status.message();
  }
}

TEST(Plans, UntimedFullPrefillIsValid) {
  Plan plan = make_plan(small_shape(), {0, -1});
  plan.variants.clear();
  plan.full_prefill = full_prefill_variant(plan.shape.layers);
  Status status = verify_plan(plan, "made");
  EXPECT_TRUE(status.ok()) << status.message();
}

TEST(Plans, SeveralVariantsNaNAndUtf8SurviveTheFile) {
  Plan plan = make_plan(small_shape(), {3, 6});
  plan.receiver.name = "réceveur";
  plan.shared_vocab = 700;
  plan.variants[0].tokens_max = 2048;
  plan.variants[0].promise.quality_loss = std::nan("");
  plan.variants.push_back(make_variant(plan.shape, {0, -1}, "kv-preload", {.tokens = 4096}));
  plan.variants[1].name = "v1";
  plan.variants[1].tokens_min = 2048;
  std::string bytes = serialize_plan(plan);
  Result<Plan> read = parse_plan(bytes_of(bytes), "made");
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_EQ(*read, plan);
  EXPECT_EQ(serialize_plan(*read), bytes);
}

TEST(Plans, UnalignedBytesAreRead) {
  std::string bytes = " " + serialize_plan(make_plan(small_shape(), {3, 6}));
  Result<Plan> read = parse_plan(bytes_of(bytes).subspan(1), "made");
  EXPECT_TRUE(read.ok()) << read.status().message();
}

/// A staircase: the band's upper edge is higher in the first chunk; the cut is needed only once per chunk.
TEST(Plans, StaircaseIsValid) {
  Plan plan = make_plan(small_shape(4), {1, 2}, "kv-preload", {.chunks = 2});
  Variant& v = plan.variants[0];
  // Chunk 1 of layer 2 is loaded instead.
  remove_op(v, find_op(v, OpKind::kRecompute, 2, 1));
  int32_t at = find_op(v, kTransferKv, 3, 0);
  insert_op(
      v, at,
      {.kind = OpKind::kTransfer, .payload = Payload::kKv, .stream = 0, .layer = 2, .chunk = 1, .buffer = 2});
  op_of(v, OpKind::kRecompute, 1, 1).queries = Queries::kNone;
  v.tiles = {{Mode::kLoad, 0, 0, 0, 1, false},
             {Mode::kRecompute, 1, 1, 0, 1, true},
             {Mode::kRecompute, 2, 2, 0, 0, false},
             {Mode::kLoad, 2, 2, 1, 1, false},
             {Mode::kLoad, 3, 3, 0, 1, false}};
  Status status = verify_plan(plan, "made");
  EXPECT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(recomputed_layers(v), 2);
}

TEST(Plans, AlignedCutsAreValidAndSurviveTheFile) {
  for (MapForm form : {MapForm::kDiagonal, MapForm::kLowRank, MapForm::kFull}) {
    for (MapSide side : {MapSide::kReceiver, MapSide::kSender}) {
      for (const char* schedule : {"e-first", "kv-preload", "serial"}) {
        for (int32_t chunks : {1, 3}) {
          SCOPED_TRACE(
              fmt::format("{} {} {} {}", map_form_name(form), map_side_name(side), schedule, chunks));
          Plan plan = make_aligned_plan(small_shape(), {3, 6}, form, side, schedule, {.chunks = chunks});
          Status status = verify_plan(plan, "made");
          ASSERT_TRUE(status.ok()) << status.message();
          std::string bytes = serialize_plan(plan);
          Result<Plan> read = parse_plan(bytes_of(bytes), "made");
          ASSERT_TRUE(read.ok()) << read.status().message();
          EXPECT_EQ(*read, plan);
          EXPECT_EQ(serialize_plan(*read), bytes);
          const Variant& v = read->variants[0];
          auto aligns = std::count_if(v.ops.begin(), v.ops.end(),
                                      [](const Op& op) { return op.kind == OpKind::kAlign; });
          EXPECT_EQ(aligns, side == MapSide::kReceiver ? chunks : 0);
          EXPECT_EQ(v.aligns(), side == MapSide::kReceiver);
        }
      }
    }
  }
}

TEST(Plans, WaysAndPublishedCutsOfAlignedVariants) {
  const Shape shape = small_shape();
  EXPECT_EQ(way_of(make_aligned_plan(shape, {3, 6}, MapForm::kFull).variants[0]).name(),
            "recompute 3-6 aligned");
  EXPECT_EQ(way_of(make_aligned_plan(shape, {3, 6}, MapForm::kLowRank, MapSide::kSender).variants[0]).name(),
            "recompute 3-6 aligned (low-rank)");
  PlanOptions diagonal{.map_form = MapForm::kDiagonal};
  EXPECT_EQ(way_of(make_restore_plan(shape, 3, diagonal).variants[0]).name(), "restore 3 aligned (diagonal)");
  // A group from the embeddings has no cut to map.
  Plan plan = make_aligned_plan(shape, {0, 3}, MapForm::kFull);
  EXPECT_EQ(plan.variants[0].map_form, MapForm::kNone);
  EXPECT_EQ(way_of(plan.variants[0]).name(), "recompute 0-3");
  EXPECT_TRUE(published_cuts(plan).empty());
  // What is published: the sender's own E where the receiver maps it, and each form that the sender maps.
  plan = make_aligned_plan(shape, {3, 6}, MapForm::kFull);
  for (auto [group, form, side] : {std::tuple(LayerRange{3, 7}, MapForm::kNone, MapSide::kReceiver),
                                   std::tuple(LayerRange{3, 5}, MapForm::kFull, MapSide::kSender),
                                   std::tuple(LayerRange{5, 5}, MapForm::kDiagonal, MapSide::kSender)}) {
    plan.variants.push_back(make_aligned_plan(shape, group, form, side).variants[0]);
  }
  EXPECT_EQ(cut_layers(plan), (std::vector<int32_t>{3, 5}));
  EXPECT_EQ(published_cuts(plan),
            (std::vector<Cut>{{3, MapForm::kNone}, {3, MapForm::kFull}, {5, MapForm::kDiagonal}}));
  EXPECT_EQ(op_label({.kind = OpKind::kAlign, .layer = 3, .chunk = 2}, 4), "align 3.2");
}

TEST(Plans, Helpers) {
  Plan plan = make_plan(small_shape(), {3, 6});
  plan.variants[0].tokens_min = 100;
  plan.variants[0].tokens_max = 200;
  plan.variants[0].rate_min = 5;
  EXPECT_EQ(select_variant(plan, 99, 10), nullptr);
  EXPECT_EQ(select_variant(plan, 100, 10), &plan.variants[0]);
  EXPECT_EQ(select_variant(plan, 199, kNoLimit), &plan.variants[0]);
  EXPECT_EQ(select_variant(plan, 200, 10), nullptr);
  EXPECT_EQ(select_variant(plan, 150, 4), nullptr);
  EXPECT_EQ(cut_layers(plan), std::vector<int32_t>{3});
  EXPECT_EQ(recomputed_layers(plan.variants[0]), 4);
  EXPECT_EQ(recomputed_layers(plan.full_prefill), 12);
  EXPECT_EQ(op_label(plan.variants[0].ops[0], 1), "e(3)");
  EXPECT_EQ(op_label({.kind = OpKind::kRecompute, .layer = 4, .chunk = 2}, 3), "recompute 4.2");
  EXPECT_EQ(op_label({.kind = OpKind::kHead, .rows = Rows::kSuffix}, 1), "head");
  for (int64_t n : {1, 63, 64, 65, 1000, 100'000}) {
    for (int64_t chunks : {1, 2, 3, 16}) {
      EXPECT_EQ(chunk_begin(n, chunks, 0), 0);
      EXPECT_EQ(chunk_begin(n, chunks, chunks), n);
      for (int64_t c = 0; c < chunks; ++c)
        EXPECT_LE(chunk_begin(n, chunks, c), chunk_begin(n, chunks, c + 1));
    }
  }
}

TEST(Plans, ReadingALargePlanTakesAboutAMillisecond) {
  Shape shape = small_shape(80);
  std::string bytes = serialize_plan(make_plan(shape, {30, 60}, "e-first", {.chunks = 16, .tokens = 16384}));
  double best = 1e9;
  for (int k = 0; k < 20; ++k) {
    auto start = std::chrono::steady_clock::now();
    Result<Plan> plan = parse_plan(bytes_of(bytes), "large");
    auto taken = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
    ASSERT_TRUE(plan.ok()) << plan.status().message();
    best = std::min(best, taken);
  }
  RecordProperty("milliseconds", std::to_string(best));
  EXPECT_LT(best, 20.0);  // generous: debug builds, sanitizers and busy machines
}

/// "TransferKv" and "transfer kv" are one name.
std::string letters_of(std::string_view name) {
  std::string letters;
  for (char c : name)
    if (std::isalnum(static_cast<unsigned char>(c))) letters += static_cast<char>(std::tolower(c));
  return letters;
}

TEST(Traits, NumbersMeanTheSameInTheSchema) {
  for (const OpTraits& t : op_traits()) {
    EXPECT_EQ(letters_of(fb::EnumNameOpKind(static_cast<fb::OpKind>(t.kind))) +
                  std::string(t.kind == OpKind::kTransfer ? payload_name(t.payload) : ""),
              letters_of(t.name));
    EXPECT_EQ(letters_of(fb::EnumNamePayload(static_cast<fb::Payload>(t.payload))),
              t.payload == Payload::kNone ? "none" : payload_name(t.payload));
  }
  for (SourceRule r : {SourceRule::kPrefix, SourceRule::kSegment})
    EXPECT_EQ(letters_of(fb::EnumNameSourceRule(static_cast<fb::SourceRule>(r))), source_rule_name(r));
  for (size_t m = 0; m < kModes; ++m)
    EXPECT_EQ(letters_of(fb::EnumNameMode(static_cast<fb::Mode>(m))),
              letters_of(mode_name(static_cast<Mode>(m))));
  for (size_t f = 0; f < kMapForms; ++f)
    EXPECT_EQ(letters_of(fb::EnumNameMapForm(static_cast<fb::MapForm>(f))), letters_of(kMapFormNames[f]));
  for (StreamKind s : {StreamKind::kLink, StreamKind::kCopy, StreamKind::kCompute})
    EXPECT_EQ(letters_of(fb::EnumNameStreamKind(static_cast<fb::StreamKind>(s))), stream_kind_name(s));
  for (MapSide s : {MapSide::kReceiver, MapSide::kSender})
    EXPECT_EQ(letters_of(fb::EnumNameMapSide(static_cast<fb::MapSide>(s))), map_side_name(s));
  for (BufferKind b : {BufferKind::kKv, BufferKind::kHidden})
    EXPECT_EQ(letters_of(fb::EnumNameBufferKind(static_cast<fb::BufferKind>(b))), buffer_kind_name(b));
  for (Rows r : {Rows::kChunk, Rows::kSuffix, Rows::kAll, Rows::kSelected})
    EXPECT_EQ(letters_of(fb::EnumNameRows(static_cast<fb::Rows>(r))), rows_name(r));
  for (Queries q : {Queries::kNone, Queries::kAll, Queries::kSuffix, Queries::kLast})
    EXPECT_EQ(letters_of(fb::EnumNameQueries(static_cast<fb::Queries>(q))), queries_name(q));
}

TEST(Traits, RowsAreDistinctAndWhole) {
  std::set<std::string_view> names, short_names;
  std::set<char> letters;
  for (const OpTraits& t : op_traits()) {
    Op op{.kind = t.kind, .payload = t.payload};
    EXPECT_EQ(&traits_of(op), &t);
    EXPECT_TRUE(names.insert(t.name).second && short_names.insert(t.short_name).second) << t.name;
    EXPECT_TRUE(letters.insert(t.letter).second) << t.letter;
    EXPECT_EQ(t.stream == StreamKind::kLink, t.payload != Payload::kNone) << t.name;
    EXPECT_EQ(t.since > 1, !t.feature.empty()) << t.name;
    EXPECT_LE(t.since, kPlanFormatVersion);
    for (Rows rows : {Rows::kChunk, Rows::kSuffix, Rows::kAll, Rows::kSelected}) {
      if ((t.rows & bit(rows)) == 0) continue;
      op.rows = rows;
      std::span<const Access> all = accesses_of(op);
      EXPECT_FALSE(all.empty()) << t.name;
      EXPECT_EQ(t.queries != QueriesRule::kNone,
                std::any_of(all.begin(), all.end(),
                            [](const Access& a) { return a.write && a.state == Access::State::kMade; }))
          << t.name;
    }
  }
  letters.clear();
  for (size_t m = 0; m < kModes; ++m) {
    const ModeTraits& t = traits_of(static_cast<Mode>(m));
    EXPECT_TRUE(letters.insert(t.letter).second) << t.letter;
    EXPECT_EQ(t.since > 1, !t.feature.empty()) << t.name;
    EXPECT_TRUE(t.sends_kv || t.computes) << t.name << ": who makes its cells?";
    EXPECT_FALSE(t.does.empty() || t.done.empty() || t.legend.empty()) << t.name;
  }
}

}  // namespace
}  // namespace ds
