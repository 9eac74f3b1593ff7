// Requests that reuse what their sender is still computing: the laws of docs/design.md whatever of it is
// there and when, and misses that are counted where it does not come.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <thread>

#include "runtime/core/chain.h"
#include "runtime/core/publish.h"
#include "runtime/core/session.h"
#include "runtime/store/live_entry.h"
#include "tests/unit/live_script.h"
#include "tests/unit/model_fixture.h"
#include "tests/unit/plan_builder.h"
#include "tests/unit/take.h"

namespace ds {
namespace {

using ::testing::HasSubstr;
using testing::LiveScript;
using testing::plain_cuts;
using testing::random_ids;
using testing::take;
using testing::tiny_config;
using testing::TinyModel;

constexpr int64_t kTokens = 257;

std::string fresh_folder(const std::string& name) {
  std::string folder = ::testing::TempDir() + "/ds_live_" + name + std::to_string(getpid());
  std::filesystem::remove_all(folder);
  return folder;
}

class Live : public ::testing::Test {
 protected:
  Live() {
    request_.context = context_;
    request_.suffix = suffix_;
    request_.receiver = &model_.identity;
    request_.store = &script_;
    const Request full{.context = context_, .suffix = suffix_, .full_prefill = true};
    const Plan plan = plan_for({1, 3}, "e-first");
    Answer answer;
    expected_ = run(plan, full, answer);
    // What the sender writes, part by part; the entry itself is not kept.
    PublishOptions options{.cuts = plain_cuts({1, 2, 3, 4})};
    options.live_rows = 64;
    published_ = take(publish(*model_.backend, *model_.model, model_.identity, context_, script_, options));
  }
  Plan plan_for(LayerRange group, const std::string& schedule) const {
    testing::PlanOptions options;
    options.dtype = "f32";
    options.element_bytes = 4;
    Plan plan = testing::make_plan(model_.model->config().shape(), group, schedule, options);
    plan.sender = plan.receiver = model_.identity;
    return plan;
  }
  std::vector<float> run(const Plan& plan, const Request& request, Answer& answer) {
    auto session = take(Session::create(*model_.backend, *model_.model, plan,
                                        {kTokens, static_cast<int64_t>(suffix_.size()) + kTokens, 1}));
    answer = take(session->run(request));
    answer.variant = nullptr;  // the plan may not live on
    const auto logits = session->first_logits();
    return {logits.begin(), logits.end()};
  }
  void expect_full_prefill(const std::vector<float>& logits, const std::string& what) {
    ASSERT_EQ(logits.size(), expected_.size());
    if (testing::exact_rows()) {
      EXPECT_EQ(std::memcmp(logits.data(), expected_.data(), logits.size() * sizeof(float)), 0) << what;
      return;
    }
    for (size_t i = 0; i < logits.size(); ++i) EXPECT_NEAR(logits[i], expected_[i], 1e-4) << what;
  }

  TinyModel model_{tiny_config(Family::kLlama), 11, DType::kF32};
  std::vector<int32_t> context_ = random_ids(kTokens, 300, 1), suffix_ = random_ids(5, 300, 2);
  std::unique_ptr<Store> under_ = take(open_store("file:" + fresh_folder("under")));
  LiveScript script_{*under_};
  Request request_;
  Published published_;
  std::vector<float> expected_;
};

// S = R: whichever parts are there before the request and whichever come while it runs, the answer is the
// full prefill's.
TEST_F(Live, EveryInterleavingGivesTheFullPrefill) {
  EXPECT_TRUE(published_.live.ok()) << published_.live.message();
  // Of each layer K and V in parts, and E of four.
  const size_t all = script_.records.size();
  ASSERT_EQ(all, 1u + 5 * 5 + 4);
  for (LayerRange group : {LayerRange{}, LayerRange{2, 2}, LayerRange{1, 3}, LayerRange{4, 4}})
    for (const char* schedule : {"e-first", "kv-preload"}) {
      const Plan plan = plan_for(group, schedule);
      for (size_t there = 1; there <= all; ++there) {
        script_.release(there, all);
        Answer answer;
        const auto logits = run(plan, request_, answer);
        const std::string what =
            fmt::format("{} {} parts of {} {}", there, all, format_layers(group), schedule);
        EXPECT_EQ(answer.cache, CacheStatus::kHit) << what << ": " << answer.miss.message();
        EXPECT_TRUE(answer.live);
        EXPECT_EQ(answer.reused_tokens, kTokens);
        expect_full_prefill(logits, what);
      }
    }
}

// A writer that dies behind any of its parts is a miss with its reason, unless all that is needed was there.
TEST_F(Live, AWriterThatDiesIsAMiss) {
  const Plan plan = plan_for({1, 3}, "e-first");
  script_.dies = true;
  int hits = 0;
  for (size_t there = 1; there < script_.records.size(); ++there) {
    script_.release(there, there);
    Answer answer;
    const auto logits = run(plan, request_, answer);
    if (answer.cache == CacheStatus::kHit) {
      ++hits;
    } else {
      EXPECT_EQ(answer.cache, CacheStatus::kMiss);
      EXPECT_THAT(answer.miss.message(), HasSubstr("died"));
    }
    expect_full_prefill(logits, fmt::format("{} parts", there));
  }
  EXPECT_LT(hits, 3) << "the last layer's rows are needed";
}

TEST_F(Live, ADeadlineEndsTheWait) {
  const Plan plan = plan_for({1, 3}, "e-first");
  script_.release(3, 3);
  request_.link_deadline_ns = 1;
  Answer answer;
  expect_full_prefill(run(plan, request_, answer), "late");
  EXPECT_THAT(answer.miss.message(), HasSubstr("late"));
}

// Every bit of every record: flipped, it is a miss, whatever it was.
TEST_F(Live, DamagedAndForeignPartsAreMisses) {
  const Plan plan = plan_for({1, 3}, "e-first");
  const auto good = script_.records;
  const auto expect_miss = [&](const std::string& what) {
    script_.release(good.size(), good.size());
    Answer answer;
    const auto logits = run(plan, request_, answer);
    EXPECT_EQ(answer.cache, CacheStatus::kMiss) << what;
    EXPECT_FALSE(answer.miss.ok()) << what;
    expect_full_prefill(logits, what);
    script_.records = good;
  };
  for (size_t at = 0; at < good.size(); ++at) {
    const size_t head = good[at].head.size();
    for (size_t byte : {size_t{0}, size_t{9}, size_t{17}, size_t{25}, head / 2, head - 1}) {
      script_.records[at].head[std::min(byte, head - 1)] ^= 1;
      expect_miss(fmt::format("byte {} of head {}", byte, at));
    }
    script_.records[at].head.resize(head - 1);
    expect_miss(fmt::format("head {} cut short", at));
  }
  // Rows of K and V of every layer are read by this plan, or recomputed: of layers 1 to 3 nothing is.
  int misses = 0;
  for (size_t at = 1; at < good.size(); ++at) {
    script_.records[at].payload[good[at].payload.size() / 2] ^= std::byte{4};
    script_.release(good.size(), good.size());
    Answer answer;
    expect_full_prefill(run(plan, request_, answer), fmt::format("payload {}", at));
    misses += answer.cache == CacheStatus::kMiss;
    if (!answer.miss.ok()) {
      EXPECT_THAT(answer.miss.message(), HasSubstr("damaged"));
    }
    script_.records = good;
  }
  EXPECT_EQ(misses, 1 + 2 * 5) << "E of layer 1, K and V of layers 0 and 4";
  // Two change places; one comes twice; one is left out.
  std::swap(script_.records[3], script_.records[4]);
  expect_miss("swapped");
  script_.records[4] = script_.records[3];
  expect_miss("twice");
  script_.records.erase(script_.records.begin() + 3);
  expect_miss("left out");
  // Those of another run of the same sender over the same tokens.
  PublishOptions options{.cuts = plain_cuts({1, 2, 3, 4})};
  options.live_rows = 64;
  take(publish(*model_.backend, *model_.model, model_.identity, context_, script_, options));
  ASSERT_EQ(script_.records.size(), good.size());
  ASSERT_EQ(script_.records[5].payload, good[5].payload);
  script_.records[5] = good[5];
  script_.release(good.size(), good.size());
  Answer answer;
  expect_full_prefill(run(plan, request_, answer), "of another run");
  EXPECT_EQ(answer.cache, CacheStatus::kMiss);
}

// The entry that comes of it is the one that is written without: the same bytes.
TEST_F(Live, TheFinishedEntryIsTheSame) {
  std::string bytes[2];
  for (int64_t rows : {0, 64}) {
    const std::string folder = fresh_folder("same");
    auto store = take(open_store("file:" + folder));
    PublishOptions options{.cuts = plain_cuts({2})};
    options.live_rows = rows;
    const Published done =
        take(publish(*model_.backend, *model_.model, model_.identity, context_, *store, options));
    EXPECT_TRUE(done.live.ok()) << done.live.message();
    EXPECT_TRUE(take(store->list_live()).empty());
    auto object = take(store->open(done.key));
    std::string& text = bytes[rows > 0];
    text.resize(static_cast<size_t>(object->size()));
    ASSERT_TRUE(object->read(0, std::as_writable_bytes(std::span(text))).ok());
  }
  EXPECT_EQ(bytes[0], bytes[1]);
}

// While it is written, and from what is there once it is: readers before, in the middle, behind.
TEST_F(Live, ReadersComeWhenTheyLike) {
  const Plan plan = plan_for({1, 3}, "e-first");
  auto store = take(open_store("file:" + fresh_folder("when")));
  request_.store = store.get();
  Answer answer;
  expect_full_prefill(run(plan, request_, answer), "before");
  EXPECT_EQ(answer.miss.code(), Code::kNotFound);
  std::vector<LiveTensor> tensors;
  for (int32_t l = 0; l < 5; ++l) tensors.push_back({TensorKind::kKv, l});
  for (int32_t l = 1; l < 5; ++l) tensors.push_back({TensorKind::kE, l});
  const EntryIdentity identity = entry_identity(model_.identity.fingerprint, context_, 0, "", DType::kF32);
  auto writer = take(
      LiveEntryWriter::begin(*store, identity, model_.identity, model_.model->config().shape(), tensors));
  Answer early, late;
  std::thread first([&] { expect_full_prefill(run(plan, request_, early), "before the first part"); });
  // Out of the script: what the sender has written.
  const auto& records = script_.records;
  const auto order = [&](size_t at) {
    uint32_t index = 0;
    std::memcpy(&index, records[at].head.data(), sizeof index);
    return index;
  };
  const auto add = [&](size_t at) {
    const uint32_t index = order(at);  // E of layers 1 to 4, then K and V
    const LiveTensor tensor = index < 4 ? LiveTensor{TensorKind::kE, static_cast<int32_t>(index) + 1}
                                        : LiveTensor{TensorKind::kKv, static_cast<int32_t>(index) - 4};
    EXPECT_TRUE(writer->add(tensor, records[at].payload).ok());
  };
  for (size_t at = 1; at < records.size() / 2; ++at) add(at);
  TinyModel other{tiny_config(Family::kLlama), 11, DType::kF32};
  std::thread second([&] {
    auto session = take(Session::create(*other.backend, *other.model, plan, {kTokens, 5, 1}));
    late = take(session->run(request_));
    const auto logits = session->first_logits();
    expect_full_prefill({logits.begin(), logits.end()}, "in the middle");
  });
  for (size_t at = records.size() / 2; at < records.size(); ++at) add(at);
  first.join();
  second.join();
  EXPECT_TRUE(early.live) << early.miss.message();
  EXPECT_TRUE(late.live) << late.miss.message();
  PublishOptions options{.cuts = plain_cuts({1, 2, 3, 4})};
  take(publish(*model_.backend, *model_.model, model_.identity, context_, *store, options));
  ASSERT_TRUE(writer->end().ok());
  expect_full_prefill(run(plan, request_, answer), "behind");
  EXPECT_EQ(answer.cache, CacheStatus::kHit);
  EXPECT_FALSE(answer.live);
}

// A look-up that comes just when the live entry becomes a whole one finds one of the two, wherever it is by
// then: before it asks for live ones, or before it follows the one that it has found.
TEST_F(Live, ALookUpWhileItEndsFindsTheEntry) {
  const Plan plan = plan_for({1, 3}, "e-first");
  const auto end = [this] {
    const PublishOptions options{.cuts = plain_cuts({1, 2, 3, 4})};
    take(publish(*model_.backend, *model_.model, model_.identity, context_, *under_, options));
    script_.ended = true;
  };
  const auto die = [this] { script_.ended = true; };
  for (auto when : {&LiveScript::before_find_live, &LiveScript::before_follow})
    for (const bool whole : {true, false}) {
      const bool found = when == &LiveScript::before_follow;
      const std::string what = fmt::format("{} {}", whole ? "becomes whole" : "dies",
                                           found ? "when it has been found" : "before it is found");
      script_.release(script_.records.size(), script_.records.size());
      script_.*when = whole ? std::function<void()>(end) : std::function<void()>(die);
      Answer answer;
      expect_full_prefill(run(plan, request_, answer), what);
      EXPECT_EQ(answer.cache, whole ? CacheStatus::kHit : CacheStatus::kMiss) << what;
      EXPECT_EQ(answer.reused_tokens, whole ? kTokens : 0) << what;
      EXPECT_FALSE(answer.live) << what;
      if (!whole) {
        EXPECT_THAT(answer.miss.message(), HasSubstr(found ? "being written any more" : "no object")) << what;
      }
      script_.*when = nullptr;
      script_.ended = false;
      if (whole) {
        EXPECT_TRUE(under_->remove(published_.key).ok());
      }
    }
}

// What is whole is used as far as it goes, what is still written behind it.
TEST_F(Live, AChainEndsInWhatIsWritten) {
  const Plan plan = plan_for({1, 3}, "e-first");
  PublishOptions options{.cuts = plain_cuts({1, 2, 3, 4})};
  take(publish(*model_.backend, *model_.model, model_.identity, std::span(context_).first(128), *under_,
               options));
  options.only_new = true;
  options.live_rows = 64;
  const Published done =
      take(publish(*model_.backend, *model_.model, model_.identity, context_, script_, options));
  EXPECT_EQ(done.first, 128);
  for (size_t there = 1; there <= script_.records.size(); ++there) {
    script_.release(there, script_.records.size());
    Answer answer;
    const auto logits = run(plan, request_, answer);
    EXPECT_EQ(answer.cache, CacheStatus::kHit) << answer.miss.message();
    EXPECT_TRUE(answer.live);
    EXPECT_EQ(answer.reused_tokens, kTokens);
    expect_full_prefill(logits, fmt::format("{} parts", there));
  }
  // A request for the beginning needs no more than what is whole.
  request_.context = std::span(context_).first(128);
  Answer answer;
  (void)run(plan, request_, answer);
  EXPECT_EQ(answer.cache, CacheStatus::kHit);
  EXPECT_FALSE(answer.live);
}

TEST_F(Live, WhatItIsAskedForMustFit) {
  PublishOptions options;
  options.live_rows = 100;
  EXPECT_EQ(
      publish(*model_.backend, *model_.model, model_.identity, context_, *under_, options).status().code(),
      Code::kInvalidArgument);
  options = {.every = 64, .live_rows = 64};
  EXPECT_EQ(
      publish(*model_.backend, *model_.model, model_.identity, context_, *under_, options).status().code(),
      Code::kInvalidArgument);
}

}  // namespace
}  // namespace ds
