// Maps of aligned cuts.
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/conformance/rig.h"

namespace ds::conformance {
namespace {

/// Every form, low-rank ones of ranks on both sides of what is padded.
std::vector<AlignmentMap> maps(int64_t width) {
  std::vector<AlignmentMap> all = {make_map(MapForm::kFull, width, 0, 21),
                                   make_map(MapForm::kDiagonal, width, 0, 22)};
  for (int64_t rank : {int64_t{1}, int64_t{13}, width / 2, width})
    all.push_back(make_map(MapForm::kLowRank, width, rank, 23 + static_cast<uint64_t>(rank)));
  return all;
}

TEST_P(Conformance, AlignEqualsReference) {
  for (const auto& [name, config] : models(GetParam().few_models())) {
    const auto all = maps(config.d_model);
    constexpr int64_t kRows = 67;
    MapRig rig(GetParam(), config, kRows, all);
    for (size_t i = 0; i < all.size(); ++i) {
      SCOPED_TRACE(fmt::format("{} {} rank {}", name, map_form_name(all[i].form), all[i].rank));
      rig.fill_hidden(5);
      const auto before = rig.hidden_bytes();
      const auto x = rig.hidden_values();
      constexpr int64_t kFirst = 3, kCount = 61;
      rig.model->align(*rig.stream, *rig.workspace, *rig.loaded[i], rig.hidden_at(kFirst), kCount);
      ASSERT_OK(rig.stream->synchronize());
      std::vector<double> expected;
      for (int64_t r = kFirst; r < kFirst + kCount; ++r) {
        auto row =
            align(all[i], {x.begin() + r * config.d_model, x.begin() + (r + 1) * config.d_model}, rig.dtype);
        expected.insert(expected.end(), row.begin(), row.end());
      }
      auto found = rig.read_values(rig.hidden_at(kFirst), kCount * config.d_model);
      EXPECT_LT(difference(found, expected), GetParam().tolerance);
      // Rows beside them keep theirs.
      auto first = static_cast<size_t>(kFirst * rig.hidden_row());
      auto end = static_cast<size_t>((kFirst + kCount) * rig.hidden_row());
      const auto after = rig.hidden_bytes();
      EXPECT_EQ(std::memcmp(after.data(), before.data(), first), 0);
      EXPECT_EQ(std::memcmp(after.data() + end, before.data() + end, before.size() - end), 0);
      EXPECT_GE(rig.loaded[i]->bytes(), config.d_model * 4);
    }
  }
}

TEST_P(Conformance, AlignedRowsDoNotDependOnTheirNumber) {
  auto all = models(GetParam().few_models());
  if (!GetParam().quick) all.emplace_back("deep", shaped(Family::kLlama, 1100, 2310, 6, 2, 48));
  all.emplace_back("rank_above_ff", shaped(Family::kLlama, 112, 16, 14, 2, 16));
  if (!GetParam().quick) all.emplace_back("llama_1b", shaped(Family::kLlama, 2048, 512, 32, 8, 64));
  for (auto& [name, config] : all) {
    const bool large = config.d_model > 1000;
    if (large) config.layers = 1;
    const int64_t rows = large || name == "llama" ? 600 : 100;  // above what is processed at once
    const auto of_width = large
                              ? std::vector<AlignmentMap>{make_map(MapForm::kFull, config.d_model, 0, 3),
                                                          make_map(MapForm::kLowRank, config.d_model, 128, 4)}
                              : maps(config.d_model);
    MapRig rig(GetParam(), config, rows, of_width);
    for (size_t i = 0; i < of_width.size(); ++i) {
      rig.fill_hidden(5);
      rig.model->align(*rig.stream, *rig.workspace, *rig.loaded[i], rig.hidden->data(), rows);
      ASSERT_OK(rig.stream->synchronize());
      const auto whole = rig.hidden_bytes();
      for (int64_t step : {1, 2, 3, 7, 31, 32, 33, 64, 90}) {
        if (large && (step == 2 || step == 31)) continue;
        rig.fill_hidden(5);
        for (int64_t at = 0; at < rows; at += step)
          rig.model->align(*rig.stream, *rig.workspace, *rig.loaded[i], rig.hidden_at(at),
                           std::min(step, rows - at));
        ASSERT_OK(rig.stream->synchronize());
        EXPECT_TRUE(rig.same_rows(rig.hidden_bytes(), whole)) << fmt::format(
            "{} {} rank {} in steps of {}", name, map_form_name(of_width[i].form), of_width[i].rank, step);
      }
    }
  }
}

TEST_P(Conformance, MapsThatAddNothingKeepEveryBit) {
  const ModelConfig config = small(Family::kLlama);
  auto all = maps(config.d_model);
  for (AlignmentMap& map : all)
    for (auto* v : {&map.weight, &map.up, &map.down, &map.scale, &map.bias})
      std::fill(v->begin(), v->end(), 0.0f);
  MapRig rig(GetParam(), config, 50, all);
  rig.fill_hidden(5);
  auto values = rig.hidden_values();
  values[0] = -0.0;
  values[1] = 0.0;
  values[7] = 1e-40;  // subnormal
  rig.write(rig.hidden->data(), values);
  const auto before = rig.hidden_bytes();
  for (const auto& map : rig.loaded)
    rig.model->align(*rig.stream, *rig.workspace, *map, rig.hidden->data(), 50);
  ASSERT_OK(rig.stream->synchronize());
  EXPECT_TRUE(rig.hidden_bytes() == before);
}

TEST_P(Conformance, ImpossibleMapsAndAlignmentsAreRefused) {
  const ModelConfig config = small(Family::kLlama);
  const int64_t d = config.d_model;
  Rig rig(GetParam(), config, 8), other(GetParam(), config, 8);
  auto refused = [&](AlignmentMap map, Code code, const std::string& text) {
    auto loaded = rig.model->load_map(map);
    ASSERT_FALSE(loaded.ok()) << text;
    EXPECT_EQ(loaded.status().code(), code) << loaded.status().message();
    EXPECT_NE(loaded.status().message().find(text), std::string::npos) << loaded.status().message();
  };
  refused(make_map(MapForm::kFull, 24, 0, 1), Code::kMismatch, "width 24, the model's have 96");
  AlignmentMap map = make_map(MapForm::kFull, d, 0, 1);
  map.weight.pop_back();
  refused(map, Code::kInvalidArgument, "9215 numbers in its weight");
  map = make_map(MapForm::kLowRank, d, 5, 1);
  map.rank = 6;
  refused(map, Code::kInvalidArgument, "low-rank map of layer 1 of rank 6");
  map.form = MapForm::kNone;
  refused(map, Code::kInvalidArgument, "without a form");

  rig.fill_hidden(5);
  const auto before = rig.hidden_bytes();
  auto expect = [&](const std::string& text) {
    Status status = rig.stream->synchronize();
    EXPECT_EQ(status.code(), Code::kInvalidArgument);
    EXPECT_NE(status.message().find(text), std::string::npos) << status.message();
    EXPECT_TRUE(rig.hidden_bytes() == before);
  };
  auto full = take(rig.model->load_map(make_map(MapForm::kFull, d, 0, 1)));
  rig.model->align(*rig.stream, *rig.workspace, *full, rig.hidden->data(), 8);
  expect("loaded after the workspace was made");
  auto later = take(rig.model->make_workspace(8));
  auto foreign = take(other.model->load_map(make_map(MapForm::kDiagonal, d, 0, 1)));
  rig.model->align(*rig.stream, *later, *foreign, rig.hidden->data(), 8);
  expect("a map of another model");
  rig.model->align(*rig.stream, *other.workspace, *full, rig.hidden->data(), 8);
  expect("a workspace of another model");
  rig.model->align(*rig.stream, *later, *full, rig.hidden->data(), -1);
  expect("align -1 rows");
  rig.model->align(*rig.stream, *later, *full, nullptr, 8);
  expect("without hidden states");
  rig.model->align(*rig.stream, *later, *full, nullptr, 0);  // no rows, no work
  ASSERT_OK(rig.stream->synchronize());
  auto link = take(rig.backend->make_stream(StreamKind::kLink, 8));
  rig.model->align(*link, *later, *full, rig.hidden->data(), 8);
  EXPECT_NE(link->synchronize().message().find("link"), std::string::npos);
  EXPECT_TRUE(rig.hidden_bytes() == before);
}

}  // namespace
}  // namespace ds::conformance
