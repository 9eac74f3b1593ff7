// How long a run takes: what is measured, what is told of it, and what a tool says while it runs.
#include "profiler/estimate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "tests/unit/model_fixture.h"
#include "tests/unit/take.h"
#include "tools/progress.h"

namespace ds {
namespace {

using testing::random_ids;
using testing::take;
using testing::tiny_config;
using testing::TinyModel;

ProfileWork a_work(const ModelConfig& config, const WayOptions& options, std::vector<int64_t> lengths) {
  ProfileWork work;
  work.ways = take(all_ways(config.layers, options));
  for (int64_t n : lengths) {
    ProfileContext& c = work.contexts.emplace_back();
    c.tokens = random_ids(n, config.vocab, static_cast<uint64_t>(n));
    c.questions = {{{1, 2, 3}, {4, 5}, 9}, {{1, 2}, {}, 1}};
    work.limits.context = std::max(work.limits.context, n);
  }
  work.limits.question = 12;
  return work;
}

WayOptions groups_only() {
  WayOptions options;
  options.scattered = 0;
  options.select_shares.clear();
  options.restore = options.reuse_only = options.sender_alone = false;
  return options;
}

TEST(TimeEstimate, CountsWhatARunDoes) {
  ModelConfig config = tiny_config(Family::kLlama);
  ProfileWork work = a_work(config, groups_only(), {100, 50});
  const auto layers = static_cast<double>(config.layers), ways = static_cast<double>(work.ways.size());
  Pace pace;
  // Runs alone: the sender's layers, and those of the receiver from each first layer on.
  pace.layer_row = 1e9;
  const double runs = layers + layers * (layers + 1) / 2;
  TimeEstimate time = estimate_time(pace, work, config, {});
  EXPECT_EQ(time.fit_s, 0);
  ASSERT_EQ(time.context_s.size(), 2u);
  EXPECT_DOUBLE_EQ(time.context_s[0], 100 * runs);
  EXPECT_DOUBLE_EQ(time.context_s[1], 50 * runs);
  EXPECT_EQ(time.longest_s, time.context_s);
  // Rows of questions and references: 3 + 2 and 2.
  pace = {};
  pace.question_row = 1e9;
  EXPECT_DOUBLE_EQ(estimate_time(pace, work, config, {}).context_s[0], 7 * layers * ways);
  // Two steps behind the first token where the answer is its reference, eight at most.
  pace = {};
  pace.decode_row = 1e9;
  time = estimate_time(pace, work, config, {});
  EXPECT_DOUBLE_EQ(time.context_s[0], 2 * layers * ways);
  EXPECT_DOUBLE_EQ(time.longest_s[0], 8 * layers * ways);
  pace = {};
  pace.logits_row = 1e9;  // of 3 + 1 tokens with the questions, and of each step
  time = estimate_time(pace, work, config, {});
  EXPECT_DOUBLE_EQ(time.context_s[0], (4 + 2) * ways);
  EXPECT_DOUBLE_EQ(time.longest_s[0], (4 + 8) * ways);
  pace = {};
  pace.score_row = 1e9;
  EXPECT_DOUBLE_EQ(estimate_time(pace, work, config, {}).context_s[0], 4 * ways);
  // Selections run the first layer over all tokens, the others over a share.
  WayOptions selecting = groups_only();
  selecting.select_shares = {0.25};
  pace = {};
  pace.layer_row = 1e9;
  EXPECT_DOUBLE_EQ(estimate_time(pace, a_work(config, selecting, {100}), config, {}).context_s[0],
                   100 * (runs + 1 + 0.25 * (layers - 1)));
}

TEST(TimeEstimate, CountsTheFitOfMaps) {
  ModelConfig config = tiny_config(Family::kLlama);
  ProfileWork work;
  work.fit = {random_ids(30, 300, 1), random_ids(20, 300, 2)};
  work.fit_tokens = 50;
  const auto cuts = static_cast<double>(config.layers - 1);
  Pace pace;
  pace.layer_row = 1e9;
  EXPECT_DOUBLE_EQ(estimate_time(pace, work, config, {}).fit_s, 50 * 2 * cuts);
  pace.sums_row = 1e9;
  EXPECT_DOUBLE_EQ(estimate_time(pace, work, config, {}).fit_s, 50 * 3 * cuts);
  EXPECT_DOUBLE_EQ(estimate_time(pace, work, config, {.shuffled = true}).fit_s, 50 * 4 * cuts);
  pace = {};
  pace.solve = 1e9;
  EXPECT_DOUBLE_EQ(estimate_time(pace, work, config, {.shuffled = true}).fit_s, 2 * cuts);
}

TEST(Budget, GivesUpInTheStatedOrderAndNoMoreThanNeeded) {
  const ModelConfig config = tiny_config(Family::kLlama, 30);
  ProfileOptions asked;
  asked.ways.align = {MapForm::kFull};
  asked.ways.shuffled = asked.fit.shuffled = asked.ways.heuristics = asked.ways.no_context =
      asked.ways.other_document = true;
  const ProfileWork work = a_work(config, asked.ways, std::vector<int64_t>(100, 40));
  Pace pace;
  pace.layer_row = 1e6;
  pace.question_row = 1e5;
  auto seconds = [&](const ProfileOptions& o) {
    ProfileWork other = work;
    other.ways = take(all_ways(config.layers, o.ways));
    const std::vector<double> by_context = estimate_time(pace, other, config, o.fit).context_s;
    const size_t most = o.most_contexts > 0 ? static_cast<size_t>(o.most_contexts) : by_context.size();
    return std::accumulate(by_context.begin(), by_context.begin() + static_cast<ptrdiff_t>(most), 0.0);
  };
  const double all = seconds(asked);
  auto fitted = [&](double share, Budget budget = {}) {
    budget.seconds = all * share;
    return fit_budget(budget, asked, pace, work, config);
  };
  Budgeted got = take(fitted(1.0));
  EXPECT_EQ(got.given_up, "");
  EXPECT_EQ(got.options.ways, asked.ways);
  std::string last;
  for (double share = 0.98; share > 0.002; share *= 0.8) {
    SCOPED_TRACE(share);
    auto one = fitted(share);
    if (!one.ok()) {
      EXPECT_THAT(one.status().message(),
                  ::testing::HasSubstr("seconds are too few: after giving up 5 scattered"));
      EXPECT_THAT(one.status().message(),
                  ::testing::HasSubstr("100 contexts -> 30, granularity 4 -> 9, 30 contexts -> 10"));
      last = "refused";
      continue;
    }
    EXPECT_NE(last, "refused") << "what is refused once is refused with less";
    EXPECT_LE(one->seconds, all * share);
    EXPECT_NEAR(one->seconds, seconds(one->options), 1e-9 * all);
    last = one->given_up;
    const WayOptions& w = one->options.ways;
    // Each kind only after those before it have given all.
    if (w.granularity > 1) {
      EXPECT_LE(w.scattered, 1);
    }
    if (!w.reuse_only) {
      EXPECT_GE(w.granularity, 4);
    }
    if (one->options.most_contexts > 0) {
      EXPECT_FALSE(w.reuse_only);
    }
    if (w.granularity > 4) {
      EXPECT_GT(one->options.most_contexts, 0);
    }
    if (one->options.most_contexts > 0 && one->options.most_contexts < 30) {
      EXPECT_EQ(w.granularity, 9);
    }
    EXPECT_EQ(w.shuffled, one->options.fit.shuffled);
    EXPECT_EQ(w.other_document, w.sender_alone);
    EXPECT_TRUE(w.heuristics && w.no_context) << "what costs nothing stays";
    // The most contexts that fit.
    if (one->options.most_contexts > 0) {
      ProfileOptions more = one->options;
      ++more.most_contexts;
      EXPECT_GT(seconds(more), all * share);
    }
  }
  EXPECT_EQ(last, "refused");
  // What was given stays.
  asked.ways.granularity = 2;
  got = take(fitted(0.1, {.granularity_given = true, .scattered_given = true}));
  EXPECT_EQ(got.options.ways.granularity, 2);
  EXPECT_EQ(got.options.ways.scattered, 5);
  EXPECT_GT(got.options.most_contexts, 0);
}

TEST(Budget, CountsTheContextsThatMapsAreFittedOn) {
  const ModelConfig config = tiny_config(Family::kLlama);
  ProfileOptions asked;
  asked.ways = groups_only();
  asked.ways.align = {MapForm::kFull};
  asked.fit_share = 0.25;
  ProfileWork work = a_work(config, asked.ways, std::vector<int64_t>(75, 40));
  for (ProfileContext& c : work.contexts) c.entry = c.tokens;
  for (uint64_t i = 0; i < 25; ++i) work.fit.push_back(random_ids(80, config.vocab, i));
  work.fit_tokens = 25 * 80;
  Pace pace;
  pace.sums_row = 1e9;  // the fit alone: 40 contexts are 10 to fit on, which stand behind 30 that are scored
  Budgeted got = take(fit_budget({.seconds = 1700, .granularity_given = true}, asked, pace, work, config));
  EXPECT_EQ(got.options.most_contexts, 40);
  EXPECT_DOUBLE_EQ(got.seconds, 10 * 40 * static_cast<double>(config.layers - 1));
}

TEST(TimeEstimate, MeasuresOnTheContextOfTheAverageToken) {
  // Enough layers for many ways' caches.
  TinyModel model(tiny_config(Family::kLlama, 20), 1, DType::kBF16);
  ProfileWork work = a_work(model.model->config(), groups_only(), {10, 40, 90, 100});
  Pace pace = take(measure_pace(*model.backend, *model.model, work));
  EXPECT_EQ(pace.context_tokens, 90);  // (10^2 + 40^2 + 90^2 + 100^2) / 240 = 82.5
  for (double ns : {pace.layer_row, pace.question_row, pace.decode_row, pace.logits_row, pace.score_row})
    EXPECT_GT(ns, 0);
  EXPECT_EQ(pace.sums_row, 0);
  EXPECT_EQ(pace.solve, 0);
  work.fit = {random_ids(64, 300, 1)};
  pace = take(measure_pace(*model.backend, *model.model, work));
  EXPECT_GT(pace.sums_row, 0);
  EXPECT_GT(pace.solve, 0);
  work.contexts.clear();  // as for a fit alone
  pace = take(measure_pace(*model.backend, *model.model, work));
  EXPECT_EQ(pace.context_tokens, 64);
  EXPECT_GT(pace.layer_row, 0);
  EXPECT_EQ(pace.question_row, 0);
}

TEST(TimeEstimate, IsOfTheSizeOfWhatARunTakes) {
  // Other work on the machine can only slow either side down: the shortest of several each, within a factor.
  TinyModel sender(tiny_config(Family::kLlama), 1, DType::kBF16),
      model(tiny_config(Family::kLlama), 2, DType::kBF16);
  ProfileWork work = a_work(model.model->config(), groups_only(), {150});
  auto engine =
      take(ProfileEngine::create(*model.backend, *sender.model, *model.model, work.ways, work.limits, {}));
  double took = 1e9, estimated = 1e9;
  for (int i = 0; i < 5; ++i) {
    const ProfileContext& c = work.contexts[0];
    const auto begin = std::chrono::steady_clock::now();
    take(engine->run(c.tokens, c.questions, std::vector<bool>(work.ways.size(), true)));
    took = std::min(took, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    Pace pace = take(measure_pace(*model.backend, *model.model, work));
    estimated = std::min(estimated, estimate_time(pace, work, model.model->config(), {}).longest_s[0]);
  }
  EXPECT_GT(estimated, took / 5);
  EXPECT_LT(estimated, took * 5);
}

TEST(Progress, DurationsAreForPeople) {
  EXPECT_EQ(format_duration(0.62), "0.6 seconds");
  EXPECT_EQ(format_duration(89), "89 seconds");
  EXPECT_EQ(format_duration(91), "1.5 minutes");
  EXPECT_EQ(format_duration(38 * 60), "38 minutes");
  EXPECT_EQ(format_duration(6.5 * 3600), "6.5 hours");
  EXPECT_EQ(format_duration(30 * 3600), "30 hours");
  EXPECT_EQ(format_duration(3.1 * 86400), "3.1 days");
}

TEST(Progress, GoesByTheExpectedTimeFirstAndByTheTakenTimeThen) {
  Remaining unknown, expected(100);
  EXPECT_EQ(unknown.left(0.01, 5), std::nullopt);
  EXPECT_DOUBLE_EQ(*unknown.left(0.5, 30), 30);
  EXPECT_DOUBLE_EQ(*expected.left(0, 0), 100);
  EXPECT_DOUBLE_EQ(*expected.left(0, 20), 80);
  EXPECT_DOUBLE_EQ(*expected.left(0, 200), 0);
  EXPECT_DOUBLE_EQ(*expected.left(0.05, 10), 0.5 * 190 + 0.5 * 90);
  EXPECT_DOUBLE_EQ(*expected.left(0.25, 60), 180);
}

TEST(Progress, LinesComeNowAndThen) {
  LineClock lines;
  std::vector<int> due;
  for (int second = 0; second < 4000; ++second)
    if (lines.due(second)) due.push_back(second);
  EXPECT_EQ(due[0], 30);
  EXPECT_EQ(due[1], 60);
  EXPECT_EQ(due[2], 90);
  EXPECT_EQ(due[3], 135);
  EXPECT_EQ(due.back() - due[due.size() - 2], 600);
  EXPECT_LT(due.size(), 15u);
}

}  // namespace
}  // namespace ds
