// How tokens are chosen: the rules of requests, and what temperature, top_k, min_p and top_p keep, against
// what transformers computes.
#include "runtime/backends/choice.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "runtime/core/logit_rules.h"
#include "support/file.h"
#include "support/json.h"

namespace ds {
namespace {

using Scratch = std::vector<std::pair<float, int32_t>>;

class Golden : public ::testing::Test {
 protected:
  void SetUp() override {
    auto read = read_json_file(DS_SOURCE_DIR "/tests/golden/choice/choice.json");
    ASSERT_TRUE(read.ok()) << read.status().message();
    cases_ = std::move(*read);
    ASSERT_GE(cases_.size(), 100u);
  }
  static std::vector<float> ruled(const nlohmann::json& c) {
    auto logits = c["logits"].get<std::vector<float>>();
    const auto prompt = c["prompt"].get<std::vector<int32_t>>(),
               answer = c["answer"].get<std::vector<int32_t>>(),
               stops = c["stops"].get<std::vector<int32_t>>();
    LogitRules rules{.repetition = c["repetition"], .frequency = c["frequency"], .presence = c["presence"]};
    for (const auto& one : c["bias"]) rules.bias.emplace_back(one[0], one[1]);
    EXPECT_TRUE(check_rules(rules, static_cast<int64_t>(logits.size())).ok());
    RuledLogits by(rules, prompt);
    for (int32_t token : answer) by.add(token);
    if (answer.size() < c["min_tokens"].get<size_t>()) mask(logits, stops);
    by.apply(logits);
    return logits;
  }
  nlohmann::json cases_;
};

TEST_F(Golden, RulesAreThoseOfTransformersAndOpenAi) {
  int changed = 0;
  for (size_t i = 0; i < cases_.size(); ++i) {
    const auto& c = cases_[i];
    const std::vector<float> logits = ruled(c);
    for (size_t t = 0; t < logits.size(); ++t) {
      const auto& want = c["ruled"][t];
      if (want.is_null())
        EXPECT_EQ(logits[t], -INFINITY) << i << " token " << t;
      else
        EXPECT_NEAR(logits[t], want.get<float>(), 1e-4) << i << " token " << t;
      changed += want != c["logits"][t] ? 1 : 0;
    }
  }
  EXPECT_GT(changed, 1000);
}

TEST_F(Golden, WhatIsKeptIsThatOfTransformers) {
  Scratch scratch;
  int narrowed = 0;
  for (size_t i = 0; i < cases_.size(); ++i) {
    const auto& c = cases_[i];
    const std::vector<float> logits = ruled(c);
    Choice choice{
        .temperature = c["temperature"], .top_p = c["top_p"], .top_k = c["top_k"], .min_p = c["min_p"]};
    narrowed += c["kept"].size() < logits.size() ? 1 : 0;
    double from = 0;
    for (const auto& one : c["kept"]) {
      const double p = one[1];
      choice.at = from + p / 2;
      from += p;
      if (p > 1e-6 && choice.at < 1) {
        EXPECT_EQ(choose(logits, choice, scratch), one[0]) << "case " << i;
      }
    }
    choice.at = std::nextafter(1.0, 0.0);
    const int32_t last = choose(logits, choice, scratch);
    bool kept = false;
    for (const auto& one : c["kept"]) kept = kept || one[0] == last;
    EXPECT_TRUE(kept) << "case " << i << ": token " << last;
  }
  EXPECT_GT(narrowed, 80);
}

TEST(Choice, OfManyTokensAsOfSortedOnes) {
  std::vector<float> logits(20000);
  uint32_t state = 1;
  for (float& l : logits) l = static_cast<float>((state = state * 1664525u + 1013904223u) >> 20) / 700.0f;
  std::vector<std::pair<float, int32_t>> sorted;
  for (size_t i = 0; i < logits.size(); ++i) sorted.emplace_back(-logits[i], static_cast<int32_t>(i));
  std::sort(sorted.begin(), sorted.end());
  double total = 0;
  for (const auto& [l, id] : sorted) total += std::exp(-l);
  Scratch scratch;
  double sum = 0;
  size_t next = 0;
  for (double at : {0.0, 0.001, 0.02, 0.3, 0.7, 0.95, 0.9999}) {
    while (sum + std::exp(-sorted[next].first) <= at * total) sum += std::exp(-sorted[next++].first);
    EXPECT_EQ(choose(logits, {.temperature = 1, .at = at}, scratch), sorted[next].second) << at;
  }
}

TEST(Choice, WhatIsNoNumberIsNotChosen) {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::nanf("");
  Scratch scratch;
  for (double at : {0.0, 0.5, 0.999})
    for (int32_t top_k : {0, 2}) {
      const Choice choice{.temperature = 1, .top_p = 0.9, .at = at, .top_k = top_k};
      EXPECT_NE(choose(std::vector<float>{1, nan, 3, nan, 2}, choice, scratch) % 2, 1);
      EXPECT_EQ(choose(std::vector<float>{-inf, 2, -inf}, choice, scratch), 1);
      EXPECT_EQ(choose(std::vector<float>{0, inf, 3}, choice, scratch), 1);
      EXPECT_EQ(choose(std::vector<float>{-inf, -inf}, choice, scratch), 0);
    }
}

TEST(Rules, WhatCannotBeIsRefused) {
  EXPECT_TRUE(check_rules({}, 10).ok());
  EXPECT_FALSE(LogitRules{}.any());
  for (const LogitRules& wrong : {LogitRules{.bias = {{10, 1}}}, LogitRules{.bias = {{-1, 1}}},
                                  LogitRules{.bias = {{1, std::nanf("")}}}, LogitRules{.repetition = 0},
                                  LogitRules{.frequency = INFINITY}, LogitRules{.presence = std::nanf("")}})
    EXPECT_EQ(check_rules(wrong, 10).code(), Code::kInvalidArgument);
}

}  // namespace
}  // namespace ds
