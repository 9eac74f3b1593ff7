// Token-wise repair: which tokens are chosen, and layers over those that were.
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/conformance/rig.h"

namespace ds::conformance {
namespace {

/// Runs, gaps, and both sides of a tile of keys and of what is processed at once: `count` of `length`
/// positions.
std::vector<int32_t> scattered(int64_t length, int64_t count) {
  Random random(static_cast<uint64_t>(length + count));
  std::vector<int32_t> all(static_cast<size_t>(length));
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<int32_t>(i);
  for (size_t i = 0; i + 1 < all.size(); ++i)
    std::swap(all[i], all[i + static_cast<size_t>(random.below(length - static_cast<int64_t>(i)))]);
  all.resize(static_cast<size_t>(count));
  std::sort(all.begin(), all.end());
  return all;
}

/// In the memory of the device.
std::unique_ptr<DeviceMemory> positions_memory(const Rig& rig, const std::vector<int32_t>& positions) {
  auto memory = take(rig.backend->allocate(static_cast<int64_t>(positions.size() * sizeof(int32_t))));
  rig.stream->copy(memory->data(), reinterpret_cast<const std::byte*>(positions.data()), memory->size());
  EXPECT_TRUE(rig.stream->synchronize().ok());
  return memory;
}

TEST_P(Conformance, SelectedRowsEqualSingleCalls) {
  for (const auto& [name, config] : models(GetParam().quick)) {
    for (auto [length, count] :
         {std::pair<int64_t, int64_t>{1, 1}, {200, 1}, {200, 37}, {200, 200}, {1300, 900}}) {
      if (length > 200 && ((name != "llama" && name != "qwen2_ratio_7") || GetParam().quick)) continue;
      SCOPED_TRACE(fmt::format("{}: {} of {}", name, count, length));
      Rig rig(GetParam(), config, length);
      auto positions = scattered(length, count);
      auto memory = positions_memory(rig, positions);
      for (bool queries : {true, false}) {
        rig.fill_hidden(5);
        rig.fill_cache(6);
        for (size_t i = 0; i < positions.size(); ++i)
          rig.model->layer(*rig.stream, *rig.workspace,
                           {.layer = 1,
                            .hidden = rig.hidden_at(static_cast<int64_t>(i)),
                            .cache = rig.cache->data(),
                            .position = positions[i],
                            .rows = 1,
                            .query_rows = queries ? 1 : 0});
        ASSERT_OK(rig.stream->synchronize());
        auto hidden = rig.hidden_bytes(), cache = rig.cache_bytes();
        rig.fill_hidden(5);
        rig.fill_cache(6);
        rig.model->layer_selected(*rig.stream, *rig.workspace,
                                  {.layer = 1,
                                   .hidden = rig.hidden->data(),
                                   .cache = rig.cache->data(),
                                   .positions = reinterpret_cast<const int32_t*>(memory->data()),
                                   .rows = count,
                                   .queries = queries});
        ASSERT_OK(rig.stream->synchronize());
        EXPECT_TRUE(rig.same_rows(rig.hidden_bytes(), hidden)) << queries;
        EXPECT_TRUE(rig.same_rows(rig.cache_bytes(), cache)) << queries;
      }
    }
  }
}

TEST_P(Conformance, RunsOfOneCacheInABatchEqualSingleCalls) {
  // As selected rows, said as sequences; more rows than are processed at once.
  const int64_t length = GetParam().quick ? 300 : 1300;
  Rig rig(GetParam(), small(Family::kLlama), length);
  std::vector<SequenceRows> runs;
  for (int32_t p : scattered(length, length * 9 / 13)) {
    if (!runs.empty() && runs.back().position + runs.back().rows == p) {
      ++runs.back().rows;
      ++runs.back().query_rows;
    } else {
      runs.push_back({rig.cache->data(), p, 1, 1});
    }
  }
  rig.fill_hidden(5);
  rig.fill_cache(6);
  int64_t at = 0;
  for (const SequenceRows& s : runs) {
    rig.model->layer(*rig.stream, *rig.workspace,
                     {0, rig.hidden_at(at), s.cache, s.position, s.rows, s.rows});
    at += s.rows;
  }
  ASSERT_OK(rig.stream->synchronize());
  auto hidden = rig.hidden_bytes(), cache = rig.cache_bytes();
  rig.fill_hidden(5);
  rig.fill_cache(6);
  rig.model->layer_batch(*rig.stream, *rig.workspace, 0, rig.hidden->data(), runs);
  ASSERT_OK(rig.stream->synchronize());
  EXPECT_TRUE(rig.same_rows(rig.hidden_bytes(), hidden));
  EXPECT_TRUE(rig.same_rows(rig.cache_bytes(), cache));
}

TEST_P(Conformance, SelectChoosesTheTokensWhoseKeysDeviateMost) {
  for (const auto& [name, config] : models(GetParam().few_models())) {
    for (auto [rows, count] :
         {std::pair<int64_t, int64_t>{1, 1}, {200, 30}, {200, 199}, {200, 200}, {1100, 160}}) {
      if (rows > 200 && ((name != "llama" && name != "qwen2_ratio_7") || GetParam().quick)) continue;
      SCOPED_TRACE(fmt::format("{}: {} of {}", name, count, rows));
      Rig rig(GetParam(), config, rows);
      auto memory = positions_memory(rig, std::vector<int32_t>(static_cast<size_t>(rows), -1));
      auto select = [&] {
        rig.model->select(*rig.stream, *rig.workspace,
                          {.layer = 1,
                           .hidden = rig.hidden->data(),
                           .cache = rig.cache->data(),
                           .rows = rows,
                           .count = count,
                           .positions = reinterpret_cast<int32_t*>(memory->data())});
        std::vector<int32_t> found(static_cast<size_t>(rows));
        rig.stream->copy(reinterpret_cast<std::byte*>(found.data()), memory->data(), memory->size());
        EXPECT_TRUE(rig.stream->synchronize().ok());
        found.resize(static_cast<size_t>(count));
        return found;
      };
      // The receiver's own K: nothing deviates, so that the first tokens are chosen.
      rig.fill_hidden(5);
      rig.enqueue(1, 0, rows, 0);
      ASSERT_OK(rig.stream->synchronize());
      auto own = rig.cache_values();
      std::vector<int32_t> first(static_cast<size_t>(count));
      for (size_t i = 0; i < first.size(); ++i) first[i] = static_cast<int32_t>(i);
      EXPECT_EQ(select(), first);

      // Others: an eighth of K differs, by an amount of its own; all of V does, which counts for nothing.
      rig.fill_hidden(5);
      rig.fill_cache(6);
      auto others = rig.cache_values();
      auto width = static_cast<size_t>(config.kv_row()), keys = width / 2;
      Random random(9);
      for (size_t r = 0; r < static_cast<size_t>(rows); ++r)
        for (size_t i = 0; i < keys; ++i)
          others[r * width + i] = own[r * width + i] + (i % 8 == 0 ? random.normal() : 0);
      rig.write(rig.cache->data(), others);
      others = rig.cache_values();  // as rounded
      std::vector<std::pair<float, int32_t>> deviation;
      for (size_t r = 0; r < static_cast<size_t>(rows); ++r) {
        float sum = 0;
        for (size_t i = 0; i < keys; ++i) {
          auto off = static_cast<float>(own[r * width + i]) - static_cast<float>(others[r * width + i]);
          volatile float square = off * off;
          sum += square;
        }
        deviation.push_back({-sum, static_cast<int32_t>(r)});
      }
      std::sort(deviation.begin(), deviation.end());
      std::vector<int32_t> expected;
      for (size_t i = 0; i < static_cast<size_t>(count); ++i) expected.push_back(deviation[i].second);
      std::sort(expected.begin(), expected.end());
      auto hidden = rig.hidden_bytes(), cache = rig.cache_bytes();
      EXPECT_EQ(select(), expected);
      EXPECT_TRUE(rig.cache_bytes() == cache) << "the cache is only read";
      auto row = static_cast<size_t>(rig.hidden_row());
      const auto after = rig.hidden_bytes();
      for (size_t i = 0; i < expected.size(); ++i) {
        EXPECT_EQ(
            std::memcmp(after.data() + i * row, hidden.data() + static_cast<size_t>(expected[i]) * row, row),
            0)
            << "row " << i;
      }
      // A key that is not a number is as far off as can be.
      others[static_cast<size_t>(rows / 2) * width] = std::numeric_limits<double>::quiet_NaN();
      rig.write(rig.cache->data(), others);
      rig.fill_hidden(5);
      auto found = select();
      EXPECT_TRUE(std::count(found.begin(), found.end(), static_cast<int32_t>(rows / 2)) == 1);
    }
  }
}

TEST_P(Conformance, ImpossibleSelectionsAreRefused) {
  Rig rig(GetParam(), small(Family::kLlama), 32);
  auto memory = positions_memory(rig, {0, 3, 3, 40});
  auto* positions = reinterpret_cast<int32_t*>(memory->data());
  auto hidden = rig.hidden_bytes();
  auto refused = [&](const char* what) {
    EXPECT_EQ(rig.stream->synchronize().code(), Code::kInvalidArgument) << what;
    EXPECT_TRUE(rig.hidden_bytes() == hidden) << what;
  };
  auto select = [&](const char* what, auto change) {
    SelectCall call{0, rig.hidden->data(), rig.cache->data(), 4, 2, positions};
    change(call);
    rig.model->select(*rig.stream, *rig.workspace, call);
    refused(what);
  };
  select("more than there are", [](SelectCall& c) { c.count = 5; });
  select("none", [](SelectCall& c) { c.count = 0; });
  select("past the workspace", [](SelectCall& c) { c.rows = 33; });
  select("no such layer", [](SelectCall& c) { c.layer = 2; });
  select("nowhere to write to", [](SelectCall& c) { c.positions = nullptr; });
  auto layer = [&](const char* what, auto change) {
    SelectedCall call{0, rig.hidden->data(), rig.cache->data(), positions, 2};
    change(call);
    rig.model->layer_selected(*rig.stream, *rig.workspace, call);
    refused(what);
  };
  if (rig.backend->host_visible()) {  // a device's own positions are not looked at before they are used
    layer("one position twice", [](SelectedCall& c) { c.rows = 3; });
    layer("a position past the workspace", [](SelectedCall& c) { c.positions += 2, c.rows = 2; });
  }
  layer("no rows", [](SelectedCall& c) { c.rows = 0; });
  layer("no cache", [](SelectedCall& c) { c.cache = nullptr; });
}

}  // namespace
}  // namespace ds::conformance
