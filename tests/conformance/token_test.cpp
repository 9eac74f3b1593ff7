// From the last layer to a token: heads, steps of decoding, few rows, profiles.
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/conformance/rig.h"

namespace ds::conformance {
namespace {

TEST_P(Conformance, ProfileCountsEveryPhaseAndChangesNothing) {
  const ModelConfig config = small(Family::kLlama);
  MapRig rig(GetParam(), config, 200, {make_map(MapForm::kFull, config.d_model, 0, 9)});
  rig.workspace = take(rig.model->make_workspace(200));
  auto run = [&] {
    const std::vector<int32_t> ids(100, 3);
    std::vector<float> logits(static_cast<size_t>(rig.config().vocab));
    rig.fill_hidden(5);
    rig.model->embed(*rig.stream, ids.data(), 100, rig.hidden->data());
    rig.enqueue(0, 0, 200, 200);
    rig.model->align(*rig.stream, *rig.workspace, *rig.loaded[0], rig.hidden->data(), 200);
    rig.model->logits(*rig.stream, *rig.workspace, rig.hidden_at(199), logits.data());
    EXPECT_TRUE(rig.stream->synchronize().ok());
    return std::pair(rig.hidden_bytes(), logits);
  };
  auto without = run();
  PhaseTimes times;
  rig.model->set_profile(&times);
  EXPECT_TRUE(run() == without);
  for (size_t i = 0; i < kPhases; ++i) {
    if (static_cast<Phase>(i) == Phase::kAttentionPack && !rig.backend->host_visible()) continue;
    EXPECT_GT(times.ns[i], 0) << kPhaseNames[i];
  }
  rig.model->set_profile(nullptr);
  PhaseTimes before = times;
  EXPECT_TRUE(run() == without);
  EXPECT_TRUE(std::equal(before.ns, before.ns + kPhases, times.ns));
}

TEST_P(Conformance, FewRowsEqualMany) {
  // Deep enough for products that are summed in several pieces; few rows may take another way than many.
  ModelConfig config = shaped(Family::kLlama, 1100, 2310, 6, 2, 48);
  config.layers = 1;
  constexpr int64_t kRows = 100;
  Rig rig(GetParam(), config, kRows);
  rig.fill_hidden(5);
  rig.enqueue(0, 0, kRows, kRows);
  ASSERT_OK(rig.stream->synchronize());
  auto hidden = rig.hidden_bytes(), cache = rig.cache_bytes();
  for (int64_t step : {1, 2, 3, 5, 7, 12, 31, 32, 33}) {
    rig.fill_hidden(5);
    rig.fill_cache(6);
    for (int64_t at = 0; at < kRows; at += step)
      rig.enqueue(0, at, std::min(step, kRows - at), std::min(step, kRows - at));
    ASSERT_OK(rig.stream->synchronize());
    EXPECT_TRUE(rig.same_rows(rig.hidden_bytes(), hidden)) << step;
    EXPECT_TRUE(rig.same_rows(rig.cache_bytes(), cache)) << step;
  }
}

// ---- tokens

TEST_P(Conformance, StepIsEmbedLayersAndHead) {
  for (const auto& [name, config] : models(GetParam().few_models())) {
    SCOPED_TRACE(name);
    constexpr int64_t kContext = 70, kSteps = 4;
    Rig rig(GetParam(), config, kContext + kSteps);
    auto second = take(rig.backend->allocate(rig.cache->size()));
    std::byte* const caches[] = {rig.cache->data(), second->data()};
    const auto vocab = static_cast<size_t>(config.vocab);
    auto run = [&](bool step) {
      rig.fill_cache(6);
      rig.fill(*second, rig.capacity * config.kv_row(), 7);
      std::vector<float> logits(kSteps * vocab);
      std::vector<int32_t> tokens;
      int32_t token = 5, next = -1;
      for (int64_t i = 0; i < kSteps; ++i, token = next) {
        float* to = logits.data() + static_cast<size_t>(i) * vocab;
        if (step) {
          rig.model->step(*rig.stream, *rig.workspace,
                          {token, kContext + i, rig.hidden->data(), caches, to, {}, &next});
        } else {
          rig.model->embed(*rig.stream, &token, 1, rig.hidden->data());
          for (int64_t l = 0; l < config.layers; ++l)
            rig.model->layer(*rig.stream, *rig.workspace,
                             {l, rig.hidden->data(), caches[l], kContext + i, 1, 1});
          rig.model->head(*rig.stream, *rig.workspace, {rig.hidden->data(), to, {}, &next});
        }
        EXPECT_TRUE(rig.stream->synchronize().ok());
        EXPECT_EQ(next, std::max_element(to, to + vocab) - to);
        tokens.push_back(next);
      }
      return std::pair(tokens, std::vector<double>(logits.begin(), logits.end()));
    };
    const auto [tokens, logits] = run(false);
    const auto [step_tokens, step_logits] = run(true);
    EXPECT_EQ(step_tokens, tokens);
    if (rig.exact_rows) {
      EXPECT_EQ(step_logits, logits);
    } else {
      EXPECT_LT(difference(step_logits, logits), rig.tolerance);
    }
  }
}

TEST_P(Conformance, HeadChoosesAsTheHostDoes) {
  Rig rig(GetParam(), small(Family::kLlama), 40);
  rig.fill_hidden(5);
  std::vector<float> logits(static_cast<size_t>(rig.config().vocab));
  std::vector<std::pair<float, int32_t>> scratch;
  int different = 0, last = -1;
  for (int i = 0; i < 40; ++i) {
    Choice choice;
    if (i > 0)
      choice = {0.3 + 0.05 * i, i % 3 == 0 ? 1.0 : 0.6, i * 0.0243, i % 4 == 1 ? 20 : 0,
                i % 5 == 1 ? 0.02 : 0};
    int32_t next = -1, alone = -1;
    rig.model->head(*rig.stream, *rig.workspace, {rig.hidden_at(i), logits.data(), choice, &next});
    rig.model->head(*rig.stream, *rig.workspace,
                    {.hidden = rig.hidden_at(i), .choice = choice, .next = &alone});
    ASSERT_OK(rig.stream->synchronize());
    EXPECT_EQ(next, choose(logits, choice, scratch)) << i;
    EXPECT_EQ(alone, next) << i;
    different += next != last;
    last = next;
  }
  EXPECT_GT(different, 10);
}

TEST_P(Conformance, ImpossibleStepsAreRefused) {
  Rig rig(GetParam(), small(Family::kLlama), 16);
  std::byte* const caches[] = {rig.cache->data(), rig.cache->data()};
  int32_t next = -1;
  auto refused = [&](const char* what, auto change) {
    StepCall call{3, 4, rig.hidden->data(), caches, nullptr, {}, &next};
    change(call);
    rig.model->step(*rig.stream, *rig.workspace, call);
    EXPECT_EQ(rig.stream->synchronize().code(), Code::kInvalidArgument) << what;
    EXPECT_EQ(next, -1) << what;
  };
  refused("a token outside the vocabulary", [](StepCall& c) { c.token = 301; });
  refused("past the workspace", [](StepCall& c) { c.position = 16; });
  refused("too few caches", [&](StepCall& c) { c.caches = c.caches.first(1); });
  refused("no row", [](StepCall& c) { c.hidden = nullptr; });
}

TEST_P(Conformance, ImpossibleHeadsAndTokensAreRefused) {
  Rig rig(GetParam(), small(Family::kLlama), 16), other(GetParam(), small(Family::kLlama), 16);
  rig.fill_hidden(5);
  const auto before = rig.hidden_bytes();
  int32_t next = -1;
  auto expect = [&](const std::string& text) {
    const Status status = rig.stream->synchronize();
    EXPECT_EQ(status.code(), Code::kInvalidArgument) << text;
    EXPECT_NE(status.message().find(text), std::string::npos) << status.message();
    EXPECT_EQ(next, -1) << text;
    EXPECT_TRUE(rig.hidden_bytes() == before) << text;
  };
  rig.model->head(*rig.stream, *rig.workspace, {.hidden = nullptr, .next = &next});
  expect("head without hidden states");
  rig.model->head(*rig.stream, *other.workspace, {.hidden = rig.hidden->data(), .next = &next});
  expect("in a workspace of another model");
  std::vector<float> logits(2 * 301, -7);
  const int64_t rows[] = {0, -1};
  rig.model->logits_batch(*rig.stream, *rig.workspace, rig.hidden->data(), rows, logits.data());
  expect("logits 1 of 2 of row -1");
  rig.model->logits_batch(*rig.stream, *rig.workspace, rig.hidden->data(), {rows, 1}, nullptr);
  expect("which nobody wants");
  rig.model->logits_batch(*rig.stream, *other.workspace, rig.hidden->data(), {rows, 1}, logits.data());
  expect("logits of hidden states, in a workspace of another model");
  EXPECT_EQ(logits, std::vector<float>(logits.size(), -7));
  const int32_t ids[] = {5, 301};
  rig.model->embed(*rig.stream, ids, 2, rig.hidden->data());
  expect("token 1 of 2 is 301");
  rig.model->embed(*rig.stream, ids, -1, rig.hidden->data());
  expect("embed -1 rows");
  rig.model->embed(*rig.stream, nullptr, 1, rig.hidden->data());
  expect("without tokens");
}

}  // namespace
}  // namespace ds::conformance
