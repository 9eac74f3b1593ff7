// What a profile's run reads: contexts and questions as tokens of one text.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "profiler/profile_run.h"
#include "runtime/model/joined_text.h"

namespace ds {
namespace {

using ::testing::HasSubstr;

class Work : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "/ds-profile-work-" + std::to_string(getpid());
    std::filesystem::create_directories(folder_);
    const std::string path = folder_ + "/prompts.json";
    std::ofstream(path) << R"({"schema": "droidspeak.prompts", "version": 1, "tasks": {"*": {
      "prompt": "{context}{input}", "max_new_tokens": 4, "metric": "qa_f1"}}})";
    auto prompts = PromptTemplates::read(path);
    ASSERT_TRUE(prompts.ok()) << prompts.status().message();
    prompts_ = std::move(*prompts);
    auto config = preset_config("llama:layers=2,d=64,vocab=800,positions=256");
    ASSERT_TRUE(config.ok()) << config.status().message();
    config_ = *config;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  static Tokenizer tokenizer(const std::string& name) {
    return Tokenizer::load(DS_SOURCE_DIR "/tests/golden/tokenizers/" + name).value();
  }
  static std::vector<Dataset> data_of(const std::vector<std::pair<std::string, std::string>>& texts) {
    Dataset set{"data.jsonl", std::string(64, 'a'), {}};
    for (const auto& [context, input] : texts) {
      const auto line = static_cast<int64_t>(set.items.size()) + 1;
      set.items.push_back({.context = context,
                           .input = input,
                           .answers = {"the clerk"},
                           .task = "notes",
                           .line = line,
                           .where = "data.jsonl:" + std::to_string(line)});
    }
    return {set};
  }
  Result<ProfileWork> plan(const std::vector<Dataset>& data, const Tokenizer& t, int64_t truncate = 0) {
    ProfileOptions options;
    options.truncate = truncate;
    return plan_work(data, prompts_, t, config_, options);
  }
  static std::vector<int32_t> joined(const std::vector<int32_t>& a, const std::vector<int32_t>& b) {
    std::vector<int32_t> all = a;
    all.insert(all.end(), b.begin(), b.end());
    return all;
  }

  /// Answers go on where the prompt ends.
  PromptTemplates as_is() const {
    const std::string path = folder_ + "/as_is.json";
    std::ofstream(path) << R"({"schema": "droidspeak.prompts", "version": 1, "tasks": {"*": {
      "prompt": "{context}{input}", "max_new_tokens": 4, "metric": "qa_f1", "answer_prefix": ""}}})";
    return PromptTemplates::read(path).value();
  }

  std::string folder_;
  PromptTemplates prompts_;
  ModelConfig config_;
};

/// Two questions, of which one leaves the context's tokens as they are and the other does not.
TEST_F(Work, QuestionsAreReadWithTheirContext) {
  const std::string context = "The report was signed on 3 May. It lists th", a = "e sites. Who signed it?",
                    b = " who?";
  for (const char* name : {"llama2", "mistral", "llama3", "qwen2"}) {
    SCOPED_TRACE(name);
    Tokenizer t = tokenizer(name);
    auto data = data_of({{context, a}, {context, b}});
    auto work = plan(data, t);
    ASSERT_TRUE(work.ok()) << work.status().message();
    ASSERT_EQ(work->contexts.size(), 1u);
    const ProfileContext& c = work->contexts[0];
    EXPECT_EQ(c.entry, text_ids(t, context).value());
    EXPECT_LT(c.tokens.size(), c.entry.size());
    EXPECT_GT(c.tokens.size(), 5u);
    EXPECT_TRUE(std::equal(c.tokens.begin(), c.tokens.end(), c.entry.begin()));
    ASSERT_EQ(c.questions.size(), 2u);
    EXPECT_EQ(joined(c.tokens, c.questions[0].suffix), text_ids(t, context + a).value());
    EXPECT_EQ(joined(c.tokens, c.questions[1].suffix), text_ids(t, context + b).value());
    // As much as both leave, and no less.
    const int64_t least =
        std::min(join_text(t, context, a).value().shared, join_text(t, context, b).value().shared);
    EXPECT_EQ(static_cast<int64_t>(c.tokens.size()), least);
    // The reference goes on where the question ends, without a space that nobody typed.
    EXPECT_EQ(joined(joined(c.tokens, c.questions[0].suffix), c.questions[0].reference),
              text_ids(t, context + a + " the clerk").value());
    EXPECT_EQ(work->limits.context, static_cast<int64_t>(c.tokens.size()));

    // Contexts to fit maps on are read by themselves; this one is known again.
    int64_t left_out = 0;
    auto fit = fit_contexts(data, prompts_, t, config_, 0, work->contexts, left_out);
    ASSERT_TRUE(fit.ok()) << fit.status().message();
    EXPECT_TRUE(fit->empty());
    EXPECT_EQ(left_out, 1);
  }
}

TEST_F(Work, ATruncatedContextKeepsItsEndsAndItsBorder) {
  std::string context = "The report begins.";
  for (int i = 0; i < 12; ++i) context += " It was signed on " + std::to_string(i) + " May.";
  context += " It lists th";
  Tokenizer t = tokenizer("llama2");
  auto work = plan(data_of({{context, "e sites"}}), t, 30);
  ASSERT_TRUE(work.ok()) << work.status().message();
  const ProfileContext& c = work->contexts[0];
  EXPECT_EQ(c.entry.size(), 30u);
  EXPECT_LT(c.tokens.size(), 30u);
  EXPECT_GT(c.tokens.size(), 25u);
  const auto whole = text_ids(t, context + "e sites").value();
  const auto all = joined(c.tokens, c.questions[0].suffix);
  EXPECT_TRUE(std::equal(all.begin(), all.begin() + 15, whole.begin()));
  EXPECT_TRUE(
      std::equal(all.rbegin(), all.rbegin() + static_cast<ptrdiff_t>(all.size()) - 15, whole.rbegin()));
}

/// A prompt that ends in a space, which is the first token's of the answer.
TEST_F(Work, PromptsWhoseLastTokenJoinsTheAnswerAreCounted) {
  const Tokenizer t = tokenizer("gpt2");
  prompts_ = as_is();
  std::vector<Dataset> data =
      data_of({{"def f(x):", " body: "}, {"def f(x):", " body:"}, {"class A:", "\n"}});
  for (Item& item : data[0].items) item.answers = {"return x"};
  data[0].items[2].task = "other";
  data[0].items[2].answers = {"pass"};
  auto work = plan(data, t);
  ASSERT_TRUE(work.ok()) << work.status().message();
  ASSERT_EQ(work->merged.size(), 2u);
  EXPECT_EQ(work->merged["notes"].items, 1);
  EXPECT_EQ(work->merged["notes"].of, 2);
  EXPECT_EQ(work->merged["other"].items, 0);
  EXPECT_EQ(work->merged["other"].of, 1);
}

TEST_F(Work, WithoutItsContextAQuestionIsTheTemplateAlone) {
  const Tokenizer t = tokenizer("llama3");
  ProfileOptions options;
  options.ways.no_context = true;
  auto work = plan_work(data_of({{"The report was signed.", " Who?"}}), prompts_, t, config_, options);
  ASSERT_TRUE(work.ok()) << work.status().message();
  const Question& q = work->contexts[0].questions[0];
  EXPECT_EQ(q.alone, text_ids(t, " Who?").value());
  EXPECT_EQ(work->limits.alone,
            static_cast<int64_t>(q.alone.size() + std::max<size_t>(q.reference.size(), 4)));
  EXPECT_TRUE(
      plan(data_of({{"The report was signed.", " Who?"}}), t)->contexts[0].questions[0].alone.empty());
}

TEST_F(Work, AnotherDocumentIsTheNextOfTheFileAndAsLong) {
  const Tokenizer t = tokenizer("llama3");
  const std::vector<std::string> texts = {
      "The report was signed.", "The annual report was signed by the mayor, the clerk and two witnesses.",
      "A list."};
  std::vector<Dataset> data = data_of({{texts[0], " Who?"}, {texts[1], " Who?"}, {texts[2], " What?"}});
  ProfileOptions options;
  for (uint64_t seed : {1, 2, 3})
    for (int64_t most : {0, 2}) {  // neither the order nor how many are scored changes it
      options.ways.seed = seed;
      options.most_contexts = most;
      auto work = plan_work(data, prompts_, t, config_, options);
      ASSERT_TRUE(work.ok()) << work.status().message();
      for (const ProfileContext& c : work->contexts) {
        const auto at = std::find(texts.begin(), texts.end(), c.origins[0].item->context) - texts.begin();
        const auto next = text_ids(t, texts[static_cast<size_t>(at + 1) % 3]).value();
        ASSERT_EQ(c.other.size(), c.tokens.size());
        for (size_t i = 0; i < c.other.size(); ++i) EXPECT_EQ(c.other[i], next[i % next.size()]) << at;
      }
    }
  data[0].items.resize(1);
  auto one = plan(data, t);
  ASSERT_TRUE(one.ok());
  EXPECT_TRUE(one->contexts[0].other.empty());
}

TEST_F(Work, FewerContextsAreTheFirstOfTheRunsOrder) {
  const Tokenizer t = tokenizer("llama3");
  std::vector<std::pair<std::string, std::string>> texts;
  for (int i = 0; i < 20; ++i) texts.push_back({"Report " + std::to_string(i) + " was signed.", " Who?"});
  const auto data = data_of(texts);
  ProfileOptions options;
  options.fit_share = 0.25;
  auto all = plan_work(data, prompts_, t, config_, options);
  ASSERT_TRUE(all.ok()) << all.status().message();
  EXPECT_EQ(all->contexts.size(), 15u);
  EXPECT_EQ(all->fit.size(), 5u);
  options.most_contexts = 18;  // 5 to fit on, of which 3 were that before, too
  auto some = plan_work(data, prompts_, t, config_, options);
  ASSERT_TRUE(some.ok()) << some.status().message();
  ASSERT_EQ(some->contexts.size(), 13u);
  ASSERT_EQ(some->fit.size(), 5u);
  for (size_t i = 0; i < 13; ++i) EXPECT_EQ(some->contexts[i].entry, all->contexts[i].entry);
  EXPECT_EQ(some->fit[0], all->fit[2]);
  EXPECT_EQ(some->fit[4], all->contexts[13].entry);
  // Taken from work that is there: the same.
  ASSERT_TRUE(keep_contexts(*all, config_, options).ok());
  ASSERT_EQ(all->contexts.size(), 13u);
  for (size_t i = 0; i < 13; ++i) EXPECT_EQ(all->contexts[i].tokens, some->contexts[i].tokens);
  EXPECT_EQ(all->fit, some->fit);
  EXPECT_EQ(all->tokens, some->tokens);
  EXPECT_EQ(all->fit_tokens, some->fit_tokens);
  EXPECT_EQ(all->layer_runs, some->layer_runs);
}

TEST_F(Work, NothingOfAContextIsLeft) {
  auto work = plan(data_of({{"th", "e sites"}}), tokenizer("qwen2"));
  ASSERT_FALSE(work.ok());
  EXPECT_EQ(work.status().code(), Code::kInvalidArgument);
  EXPECT_THAT(work.status().message(), HasSubstr("data.jsonl:1: no token of the context"));
}

}  // namespace
}  // namespace ds
