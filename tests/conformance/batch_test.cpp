// Batches: many sequences, each with a cache of its own or sharing a prefix, and logits of many rows.
#include <gtest/gtest.h>

#include <cstring>

#include "tests/conformance/rig.h"

namespace ds::conformance {
namespace {

/// Ragged: on both sides of a tile of keys and of queries and of what is processed at once; K and V only.
std::vector<SequenceRows> ragged_batch() {
  return {{nullptr, 0, 1, 1},   {nullptr, 63, 1, 1},  {nullptr, 64, 1, 1},    {nullptr, 0, 90, 90},
          {nullptr, 70, 40, 1}, {nullptr, 17, 9, 0},  {nullptr, 5, 600, 333}, {nullptr, 199, 1, 1},
          {nullptr, 130, 3, 3}, {nullptr, 0, 17, 17}, {nullptr, 640, 2, 1}};
}

TEST_P(Conformance, BatchEqualsSingleCalls) {
  for (const auto& [name, config] : models(GetParam().few_models())) {
    if (GetParam().quick && name != "qwen2_ratio_7") continue;
    SCOPED_TRACE(name);
    constexpr int64_t kContext = 650;
    auto sequences = ragged_batch();
    int64_t rows = 0;
    for (const SequenceRows& s : sequences) rows += s.rows;
    auto count = static_cast<int64_t>(sequences.size());
    Rig rig(GetParam(), config, std::max(rows, count * kContext));  // a cache per sequence, one after another
    auto workspace = take(rig.model->make_workspace(kContext));
    rig.fill_hidden(5);
    rig.fill_cache(6);
    int64_t at = 0;
    for (int64_t i = 0; i < count; ++i) {
      SequenceRows& s = sequences[static_cast<size_t>(i)];
      s.cache = rig.cache->data() + i * kContext * rig.cache_row();
      rig.model->layer(*rig.stream, *workspace,
                       {.layer = 1,
                        .hidden = rig.hidden_at(at),
                        .cache = s.cache,
                        .position = s.position,
                        .rows = s.rows,
                        .query_rows = s.query_rows});
      at += s.rows;
    }
    ASSERT_OK(rig.stream->synchronize());
    auto hidden = rig.hidden_bytes(), cache = rig.cache_bytes();
    rig.fill_hidden(5);
    rig.fill_cache(6);
    rig.model->layer_batch(*rig.stream, *workspace, 1, rig.hidden->data(), sequences);
    ASSERT_OK(rig.stream->synchronize());
    EXPECT_TRUE(rig.same_rows(rig.hidden_bytes(), hidden));
    EXPECT_TRUE(rig.same_rows(rig.cache_bytes(), cache));
  }
}

TEST_P(Conformance, SharedPrefixEqualsOwnRows) {
  struct Tail {
    int64_t prefix_rows, position, rows, query_rows;
  };
  // Prefixes that end within a tile of keys and on its edge; tails of one tile of queries and of several.
  const Tail tails[] = {{150, 150, 3, 3},    {150, 150, 200, 200}, {150, 170, 130, 1}, {64, 64, 100, 100},
                        {150, 150, 90, 90},  {192, 192, 150, 150}, {37, 90, 1, 1},     {192, 192, 1, 1},
                        {192, 200, 120, 70}, {1, 1, 70, 70},       {0, 0, 80, 80}};
  constexpr int64_t kContext = 400, kPrefix = 192;
  constexpr auto kCount = static_cast<int64_t>(std::size(tails));
  for (const auto& [name, config] : models(GetParam().few_models())) {
    if (GetParam().quick && name != "qwen2_ratio_7") continue;
    SCOPED_TRACE(name);
    Rig rig(GetParam(), config, (kCount + 1) * kContext);
    auto workspace = take(rig.model->make_workspace(kContext));
    const int64_t row = rig.cache_row();
    std::byte* prefix = rig.cache->data() + kCount * kContext * row;
    rig.fill_cache(6);
    auto before = rig.cache_bytes();
    auto own = [&](int64_t i) { return rig.cache->data() + i * kContext * row; };
    // Each with the shared rows copied in front of its own.
    rig.fill_hidden(5);
    for (int64_t i = 0, at = 0; i < kCount; at += tails[i].rows, ++i) {
      rig.stream->copy(own(i), prefix, tails[i].prefix_rows * row);
      rig.model->layer(*rig.stream, *workspace,
                       {1, rig.hidden_at(at), own(i), tails[i].position, tails[i].rows, tails[i].query_rows});
    }
    ASSERT_OK(rig.stream->synchronize());
    auto hidden = rig.hidden_bytes(), cache = rig.cache_bytes();
    // Not copied. Behind what a sequence does not own lies NaN.
    rig.write(rig.cache->data(), before);
    std::vector<SequenceRows> sequences;
    for (int64_t i = 0; i < kCount; ++i) {
      const Tail& t = tails[i];
      std::vector<double> nan(static_cast<size_t>(t.prefix_rows * config.kv_row()), std::nan(""));
      rig.write(own(i), nan);
      sequences.push_back({own(i) + t.prefix_rows * row, t.position, t.rows, t.query_rows,
                           t.prefix_rows > 0 ? prefix : nullptr, t.prefix_rows});
    }
    rig.fill_hidden(5);
    rig.model->layer_batch(*rig.stream, *workspace, 1, rig.hidden->data(), sequences);
    ASSERT_OK(rig.stream->synchronize());
    EXPECT_TRUE(rig.same_rows(rig.hidden_bytes(), hidden));
    for (int64_t i = 0; i < kCount; ++i) {
      int64_t first = i * kContext + tails[i].prefix_rows, end = (i + 1) * kContext;
      EXPECT_TRUE(rig.same_rows(rig.read(rig.cache->data() + first * row, (end - first) * row),
                                {cache.begin() + first * row, cache.begin() + end * row}))
          << i;
    }
    EXPECT_EQ(std::memcmp(rig.read(prefix, kPrefix * row).data(), before.data() + kCount * kContext * row,
                          static_cast<size_t>(kPrefix * row)),
              0)
        << "a prefix is only read";
  }
}

/// More than one pass over it takes, of several lengths, out of order.
TEST_P(Conformance, ManySequencesShareAPrefix) {
  constexpr int64_t kCount = 70, kContext = 80, kPrefix = 150;
  for (const auto& [name, config] : models(GetParam().few_models())) {
    if (GetParam().quick && name != "qwen2_ratio_7") continue;
    SCOPED_TRACE(name);
    Rig rig(GetParam(), config, kCount * kContext + kPrefix);
    auto workspace = take(rig.model->make_workspace(kPrefix + kContext));
    const int64_t row = rig.cache_row();
    std::byte* prefix = rig.cache->data() + kCount * kContext * row;
    auto sequence = [&](int64_t i) {
      const int64_t rows = i % 5 == 0 ? 3 : 1;
      return SequenceRows{rig.cache->data() + i * kContext * row,
                          kPrefix + i * 13 % (kContext - rows + 1),
                          rows,
                          rows,
                          prefix,
                          kPrefix};
    };
    rig.fill_cache(6);
    rig.fill_hidden(5);
    std::vector<SequenceRows> sequences;
    for (int64_t i = 0; i < kCount; ++i) sequences.push_back(sequence(i));
    for (int64_t i = 0, at = 0; i < kCount; at += sequences[static_cast<size_t>(i++)].rows)
      rig.model->layer_batch(*rig.stream, *workspace, 1, rig.hidden_at(at),
                             std::span(sequences).subspan(static_cast<size_t>(i), 1));
    ASSERT_OK(rig.stream->synchronize());
    auto hidden = rig.hidden_bytes(), cache = rig.cache_bytes();
    rig.fill_cache(6);
    rig.fill_hidden(5);
    rig.model->layer_batch(*rig.stream, *workspace, 1, rig.hidden->data(), sequences);
    ASSERT_OK(rig.stream->synchronize());
    EXPECT_TRUE(rig.same_rows(rig.hidden_bytes(), hidden));
    EXPECT_TRUE(rig.same_rows(rig.cache_bytes(), cache));
  }
}

TEST_P(Conformance, OneCacheMayBeInABatchTwice) {
  // Two pieces of one sequence, the second longer than a tile of queries: it reads what the first has
  // written.
  Rig rig(GetParam(), small(Family::kLlama), 300);
  rig.fill_hidden(5);
  rig.enqueue(0, 0, 300, 300);
  ASSERT_OK(rig.stream->synchronize());
  auto hidden = rig.hidden_bytes(), cache = rig.cache_bytes();
  rig.fill_hidden(5);
  rig.fill_cache(6);
  const SequenceRows pieces[] = {{rig.cache->data(), 0, 110, 110}, {rig.cache->data(), 110, 190, 190}};
  rig.model->layer_batch(*rig.stream, *rig.workspace, 0, rig.hidden->data(), pieces);
  ASSERT_OK(rig.stream->synchronize());
  EXPECT_TRUE(rig.same_rows(rig.hidden_bytes(), hidden));
  EXPECT_TRUE(rig.same_rows(rig.cache_bytes(), cache));
}

TEST_P(Conformance, BatchedLogitsEqualSingleOnes) {
  for (const auto& [name, config] : models(GetParam().few_models())) {
    SCOPED_TRACE(name);
    Rig rig(GetParam(), config, 80);
    rig.fill_hidden(5);
    std::vector<int64_t> rows;  // every number of rows up to 40, out of order
    for (int64_t i = 0; i < 40; ++i) rows.push_back((i * 37 + 11) % 80);
    auto vocab = static_cast<size_t>(config.vocab);
    std::vector<float> single(rows.size() * vocab);
    for (size_t i = 0; i < rows.size(); ++i)
      rig.model->logits(*rig.stream, *rig.workspace, rig.hidden_at(rows[i]), single.data() + i * vocab);
    ASSERT_OK(rig.stream->synchronize());
    for (size_t count = 1; count <= rows.size(); ++count) {
      // What lies behind the last row must stay as it is.
      std::vector<float> batch(count * vocab + 1, -1.0f);
      rig.model->logits_batch(*rig.stream, *rig.workspace, rig.hidden->data(), std::span(rows).first(count),
                              batch.data());
      ASSERT_OK(rig.stream->synchronize());
      if (rig.exact_rows) {
        EXPECT_EQ(std::memcmp(batch.data(), single.data(), count * vocab * sizeof(float)), 0) << count;
      } else {
        auto end = static_cast<int64_t>(count * vocab);
        EXPECT_LT(difference({batch.begin(), batch.begin() + end}, {single.begin(), single.begin() + end}),
                  rig.tolerance);
      }
      EXPECT_EQ(batch.back(), -1.0f) << count;
    }
  }
}

TEST_P(Conformance, NothingInABatchIsNoWork) {
  Rig rig(GetParam(), small(Family::kLlama), 16);
  rig.fill_hidden(5);
  auto hidden = rig.hidden_bytes();
  rig.model->layer_batch(*rig.stream, *rig.workspace, 0, rig.hidden->data(), {});
  rig.model->logits_batch(*rig.stream, *rig.workspace, rig.hidden->data(), {}, nullptr);
  ASSERT_OK(rig.stream->synchronize());
  EXPECT_TRUE(rig.hidden_bytes() == hidden);
}

TEST_P(Conformance, ImpossibleSequencesAreRefusedByNumber) {
  Rig rig(GetParam(), small(Family::kLlama), 32);
  const SequenceRows good{rig.cache->data(), 3, 4, 4};
  auto hidden = rig.hidden_bytes();
  auto expect_refused = [&](const char* what, auto change) {
    SequenceRows bad = good;
    change(bad);
    const SequenceRows batch[] = {good, bad};
    rig.model->layer_batch(*rig.stream, *rig.workspace, 0, rig.hidden->data(), batch);
    Status status = rig.stream->synchronize();
    EXPECT_EQ(status.code(), Code::kInvalidArgument) << what;
    EXPECT_NE(status.message().find("sequence 1 of 2"), std::string::npos) << status.message();
  };
  expect_refused("no rows", [](SequenceRows& s) { s.rows = s.query_rows = 0; });
  expect_refused("more queries than rows", [](SequenceRows& s) { s.query_rows = 5; });
  expect_refused("past the workspace", [](SequenceRows& s) { s.position = 29; });
  expect_refused("negative position", [](SequenceRows& s) { s.position = -1; });
  expect_refused("no cache", [](SequenceRows& s) { s.cache = nullptr; });
  expect_refused("no prefix", [](SequenceRows& s) { s.prefix_rows = 2; });
  expect_refused("begins within its prefix", [](SequenceRows& s) {
    s.prefix = s.cache;
    s.prefix_rows = 4;
  });
  EXPECT_TRUE(rig.hidden_bytes() == hidden) << "nothing of a refused batch runs";
}

}  // namespace
}  // namespace ds::conformance
