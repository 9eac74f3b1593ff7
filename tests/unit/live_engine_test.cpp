// An engine's requests that reuse what their sender is still computing. Sender and receiver are one model
// here, so that any mixture of what came and what was computed in its place gives the full prefill's answer.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <cstring>
#include <filesystem>
#include <map>
#include <mutex>

#include "runtime/core/publish.h"
#include "runtime/engine/engine.h"
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

class LiveEngine : public ::testing::Test {
 protected:
  LiveEngine() {
    std::filesystem::remove_all(folder_);
    under_ = take(open_store("file:" + folder_));
    script_ = std::make_unique<LiveScript>(*under_);
    plan_.sender = plan_.receiver = model_.identity;
    PublishOptions options{.cuts = plain_cuts({1, 2, 3, 4})};
    take(publish(*model_.backend, *model_.model, model_.identity, other_, *under_, options));
    options.live_rows = 64;
    take(publish(*model_.backend, *model_.model, model_.identity, context_, *script_, options));
    make_engine();
    EngineRequest exact = request(context_);
    exact.reuse = Reuse::kOff;
    expected_ = answer(exact).first_logits;
  }
  ~LiveEngine() override {
    engine_.reset();
    std::filesystem::remove_all(folder_);
  }
  void make_engine() {
    // Nothing here is late: who waits is waiting for the test.
    engine_ = take(Engine::create(*model_.backend, {.cache_bytes = 64 << 20,
                                                    .tokens = 1024,
                                                    .batch = 4,
                                                    .patience_ns = 600'000'000'000,
                                                    .prefix_cache = false}));
    const ReceiverPlan given[] = {{&plan_, nullptr}};
    receiver_ = take(engine_->add(take(Receiver::create("r", *model_.model, model_.identity, given))));
  }
  EngineRequest request(const std::vector<int32_t>& context) const {
    EngineRequest r;
    r.receiver = receiver_;
    r.context = context;
    r.suffix = random_ids(3, 300, 3);
    r.max_new_tokens = 2;
    r.first_logits = true;
    r.store = script_.get();
    return r;
  }
  EngineAnswer answer(EngineRequest r) { return take(take(engine_->submit(std::move(r)))->wait()); }
  void expect_right(const EngineAnswer& a, const std::string& what) const {
    ASSERT_EQ(a.first_logits.size(), expected_.size());
    if (testing::exact_rows()) {
      EXPECT_EQ(std::memcmp(a.first_logits.data(), expected_.data(), expected_.size() * 4), 0) << what;
    }
  }

  const std::string folder_ = ::testing::TempDir() + "/ds_live_engine" + std::to_string(getpid());
  TinyModel model_{tiny_config(Family::kLlama), 11, DType::kF32};
  Plan plan_ = [this] {
    testing::PlanOptions options;
    options.dtype = "f32";
    options.element_bytes = 4;
    return testing::make_plan(model_.model->config().shape(), {1, 3}, "e-first", options);
  }();
  std::vector<int32_t> context_ = random_ids(kTokens, 300, 1), other_ = random_ids(kTokens, 300, 2);
  std::unique_ptr<Store> under_;
  std::unique_ptr<LiveScript> script_;
  std::unique_ptr<Engine> engine_;
  const Receiver* receiver_ = nullptr;
  std::vector<float> expected_;
};

TEST_F(LiveEngine, EveryInterleavingGivesTheFullPrefill) {
  const size_t all = script_->records.size();
  ASSERT_GT(all, 25u);
  for (size_t there = 1; there <= all; ++there) {
    script_->release(there, all);
    const EngineAnswer a = answer(request(context_));
    const std::string what = fmt::format("{} of {} parts", there, all);
    EXPECT_EQ(a.cache, CacheStatus::kHit) << what << ": " << a.miss.message();
    EXPECT_TRUE(a.live) << what;
    EXPECT_FALSE(a.repaired) << what;
    EXPECT_EQ(a.reused_tokens, kTokens) << what;
    expect_right(a, what);
  }
}

TEST_F(LiveEngine, ALookUpWhileItEndsFindsTheEntry) {
  script_->release(script_->records.size(), script_->records.size());
  script_->before_follow = [this] {
    const PublishOptions options{.cuts = plain_cuts({1, 2, 3, 4})};
    take(publish(*model_.backend, *model_.model, model_.identity, context_, *under_, options));
    script_->ended = true;
  };
  const EngineAnswer a = answer(request(context_));
  EXPECT_EQ(a.cache, CacheStatus::kHit) << a.miss.message();
  EXPECT_FALSE(a.live);
  EXPECT_EQ(a.reused_tokens, kTokens);
  expect_right(a, "whole when it was followed");
}

TEST_F(LiveEngine, AWriterThatDiesIsAMissAndTheRestIsComputed) {
  script_->dies = true;
  int missed = 0;
  for (size_t there = 1; there < script_->records.size(); ++there) {
    script_->release(there, there);
    const EngineAnswer a = answer(request(context_));
    const std::string what = fmt::format("{} parts", there);
    if (!a.miss.ok()) {
      EXPECT_TRUE(a.cache == CacheStatus::kMiss || a.cache == CacheStatus::kRepaired) << what;
      ++missed;
      EXPECT_THAT(a.miss.message(), HasSubstr("died")) << what;
    }
    expect_right(a, what);
  }
  EXPECT_GT(missed, static_cast<int>(script_->records.size()) - 4);
}

// A request that waits for its sender is in nobody's way on the link.
TEST_F(LiveEngine, OthersTransfersDoNotWaitForASender) {
  const size_t all = script_->records.size();
  for (size_t there : {size_t{1}, all / 2}) {
    script_->release(there, there);
    auto waits = take(engine_->submit(request(context_)));
    // While it does: its transfers come before those of the others.
    const EngineAnswer other = answer(request(other_));
    EXPECT_EQ(other.cache, CacheStatus::kHit) << other.miss.message();
    EXPECT_FALSE(other.live);
    script_->release(all, all);
    const EngineAnswer a = take(waits->wait());
    EXPECT_EQ(a.cache, CacheStatus::kHit) << a.miss.message();
    EXPECT_TRUE(a.live);
    expect_right(a, "behind others");
  }
}

/// Rows by tensor, as its parts have brought them.
std::map<uint32_t, std::vector<std::byte>> rows_by_tensor(const LiveScript& script) {
  std::map<uint32_t, std::vector<std::byte>> rows;
  for (size_t i = 1; i < script.records.size(); ++i) {
    uint32_t tensor = 0;
    std::memcpy(&tensor, script.records[i].head.data(), sizeof tensor);
    const auto& payload = script.records[i].payload;
    rows[tensor].insert(rows[tensor].end(), payload.begin(), payload.end());
  }
  return rows;
}

// An engine shows its own publications as publish() does: all rows of all tensors, before the entry is there.
TEST_F(LiveEngine, ItShowsItsOwnPublications) {
  for (const int64_t rows : {64, 512}) {
    LiveScript shown(*under_);
    EnginePublication publication{.sender = receiver_, .context = context_, .store = &shown};
    publication.options.cuts = plain_cuts({1, 2, 3, 4});
    publication.options.live_rows = rows;
    const Published done = take(take(engine_->publish(publication))->wait());
    EXPECT_TRUE(done.live.ok()) << done.live.message();
    EXPECT_EQ(shown.writers, 0);
    if (testing::exact_rows()) {
      EXPECT_EQ(rows_by_tensor(shown) == rows_by_tensor(*script_), true) << rows;
    }
    EXPECT_EQ(rows_by_tensor(shown).size(), 5u + 4);
  }
}

// A store that hangs while something is shown holds up no request, nor does the end of it.
TEST_F(LiveEngine, NobodyWaitsForAStoreThatIsShownTo) {
  for (const bool cancelled : {false, true}) {
    LiveScript shown(*under_);
    std::mutex mutex;
    std::condition_variable changed;
    bool hangs = false, free = false;
    shown.before_append = [&] {
      std::unique_lock lock(mutex);
      hangs = true;
      changed.notify_all();
      changed.wait(lock, [&] { return free; });
    };
    EnginePublication publication{.sender = receiver_, .context = context_, .store = &shown};
    publication.options.cuts = plain_cuts({1, 2, 3, 4});
    publication.options.live_rows = 64;
    auto ticket = take(engine_->publish(publication));
    {
      std::unique_lock lock(mutex);
      changed.wait(lock, [&] { return hangs; });
    }
    if (cancelled) ticket->cancel();
    const EngineAnswer a = answer(request(other_));
    EXPECT_EQ(a.cache, CacheStatus::kHit) << a.miss.message();
    EXPECT_EQ(engine_->stats().publications_open, 1);
    {
      std::lock_guard lock(mutex);
      free = true;
      changed.notify_all();
    }
    const auto done = ticket->wait();
    EXPECT_EQ(shown.writers, 0) << "what was shown is gone";
    if (cancelled) {
      EXPECT_TRUE(done.ok() || done.status().code() == Code::kExhausted) << done.status().message();
    } else {
      EXPECT_TRUE(done.ok() && done->live.ok()) << done.status().message();
    }
  }
}

// Cancelled while it waits, it gives everything back; an engine that ends does not wait for a sender.
TEST_F(LiveEngine, NobodyNeedWaitForASender) {
  script_->release(3, 3);
  auto ticket = take(engine_->submit(request(context_)));
  (void)answer(request(other_));
  ticket->cancel();
  EXPECT_FALSE(ticket->wait().ok());
  engine_->drain();
  auto left = take(engine_->submit(request(context_)));
  (void)answer(request(other_));
  engine_.reset();
}

}  // namespace
}  // namespace ds
