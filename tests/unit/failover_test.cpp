// What a cluster's loss of a master means for who reads from it, with real servers: three masters, and a
// replica of the first, which takes over. Nobody is told, and nothing is opened anew.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>

#include "runtime/core/publish.h"
#include "runtime/core/session.h"
#include "runtime/engine/engine.h"
#include "runtime/store/redis_client_internal.h"
#include "tests/unit/model_fixture.h"
#include "tests/unit/plan_builder.h"
#include "tests/unit/redis_servers.h"
#include "tests/unit/store_conformance.h"

namespace ds {
namespace {

using ::testing::HasSubstr;
using testing::random_ids;
using testing::take;
using testing::tiny_config;
using testing::TinyModel;

class Failover : public ::testing::Test {
 protected:
  void SetUp() override {
    if (valkey_program().empty()) GTEST_SKIP() << "there is no Valkey server here; ./dev deps brings one";
    cluster_ = std::make_unique<RedisCluster>(valkey_program(), 1);
  }
  /// By the address of the node that will be lost, alone.
  std::unique_ptr<Store> open(const std::string& more = "") {
    return take(open_store(cluster_->node(0).url("", "?timeout=2" + more)));
  }
  static int owner(const std::string& key) { return RedisCluster::owner(key_slot("ds:{" + key + "}")); }
  static std::string key_at(int node, int count = 0) {
    for (int i = 0;; ++i) {
      const std::string key = fmt::format("k{}", i);
      if (owner(key) == node && count-- == 0) return key;
    }
  }
  /// Reads all of it, and calls `then` once the first bytes have come from the server.
  static Status read_all(StoreObject& object, const std::function<void()>& then) {
    std::string out(static_cast<size_t>(object.size()), '\0');
    int64_t told = 0;
    return object.read_by_parts(0, std::as_writable_bytes(std::span(out)), [&](auto part) {
      const int64_t before = std::exchange(told, told + static_cast<int64_t>(part.size()));
      if (before <= 3'000'000 && told > 3'000'000) then();
      return ok_status();
    });
  }
  /// Until the store's client has found out: it asks who there is once a second at the most.
  static bool has_again(Store& store, const std::string& key, const std::string& text) {
    return RedisServer::soon([&] {
      auto got = get_text(store, key);
      if (!got.ok()) {
        EXPECT_EQ(got.status().code(), Code::kIo) << got.status().message();
      }
      return got.ok() && *got == text;
    });
  }
  std::unique_ptr<RedisCluster> cluster_;
};

TEST_F(Failover, AnOpenStoreReadsWholeFromThePromotedReplica) {
  auto store = open();
  const std::string key = key_at(0), text = pattern(30'000'000);
  std::vector<std::string> names;  // one of each node
  for (int i = 0; names.size() < 3; ++i)
    if (std::string name = fmt::format("{:032x}", i);
        RedisCluster::owner(key_slot("ds:name:" + name)) == static_cast<int>(names.size()))
      names.push_back(std::move(name));
  ASSERT_TRUE(put_text(*store, key, text).ok());
  ASSERT_TRUE(put_text(*store, key_at(1), text, names).ok());
  auto object = take(store->open(key));
  ASSERT_TRUE(cluster_->follows(3, 0));
  const Status lost = read_all(*object, [&] { cluster_->node(0).kill(); });
  EXPECT_EQ(lost.code(), Code::kIo);
  EXPECT_THAT(lost.message(), HasSubstr(fmt::format("redis://127.0.0.1:{}", cluster_->node(0).port())));
  // What the others have is found and read meanwhile, though one of its names is the lost one's.
  const Found found = take(store->find({}, names));
  EXPECT_EQ(found.names[1].size(), 1u);
  EXPECT_EQ(found.names[2].size(), 1u);
  if (found.names[0].empty()) {  // as it is unless this test has slept
    EXPECT_EQ(found.unasked.code(), Code::kIo);
  }
  EXPECT_EQ(take(get_text(*store, key_at(1))) == text, true);

  ASSERT_TRUE(cluster_->promoted(3));
  EXPECT_TRUE(has_again(*store, key, text));
  EXPECT_EQ(take(read_text(*object, 0, text.size())) == text, true) << "one that was opened before";
  ASSERT_TRUE(put_text(*store, key_at(0, 1), text).ok());
  EXPECT_EQ(take(store->find({}, names)).names[0].size(), 1u) << "names are replicated, too";
  EXPECT_EQ(take(store->list()).size(), 3u);

  // It comes back as a replica of its replica, without anything, and takes over again.
  cluster_->node(0).start();
  ASSERT_TRUE(cluster_->node(0).answers());
  ASSERT_TRUE(cluster_->follows(0, 3));
  EXPECT_EQ(read_all(*object, [&] { cluster_->node(3).kill(); }).code(), Code::kIo);
  ASSERT_TRUE(cluster_->promoted(0));
  EXPECT_TRUE(has_again(*store, key, text));
  EXPECT_EQ(take(get_text(*store, key_at(0, 1))) == text, true);
}

TEST_F(Failover, AMasterThatFallsSilentIsReplacedToo) {
  auto store = open();
  const std::string key = key_at(0), text = pattern(30'000'000);
  ASSERT_TRUE(put_text(*store, key, text).ok());
  auto object = take(store->open(key));
  ASSERT_TRUE(cluster_->follows(3, 0));
  const Status lost = read_all(*object, [&] { cluster_->node(0).stop(); });
  EXPECT_THAT(lost.message(), HasSubstr("has said nothing for 2 s"));
  ASSERT_TRUE(cluster_->promoted(3));
  EXPECT_TRUE(has_again(*store, key, text));
  // It goes on as if nothing had been, and learns that it is none any more.
  cluster_->node(0).go_on();
  EXPECT_EQ(take(get_text(*store, key)) == text, true);
  ASSERT_TRUE(cluster_->follows(0, 3));
  EXPECT_EQ(take(read_text(*object, 0, text.size())) == text, true);
  EXPECT_EQ(take(get_text(*open(), key)) == text, true);
}

/// Passes on what a store has, and does something once in the middle of a read.
class InTheMiddle final : public Store {
 public:
  InTheMiddle(Store& under, std::function<void()> then) : under_(under), then_(std::move(then)) {}
  std::string url() const override { return under_.url(); }
  Status put(const std::string& key, const Produce& produce, Names names) override {
    return under_.put(key, produce, names);
  }
  Result<Found> find(Names keys, Names names) override { return under_.find(keys, names); }
  Result<std::unique_ptr<StoreObject>> open(const std::string& key) override {
    return wrap(under_.open(key));
  }
  Result<std::unique_ptr<StoreObject>> open(const ObjectRef& found) override {
    return wrap(under_.open(found));
  }
  Status remove(const std::string& key) override { return under_.remove(key); }

 private:
  struct Object final : StoreObject {
    Object(InTheMiddle& s, std::unique_ptr<StoreObject> u) : store(s), under(std::move(u)) {}
    int64_t size() const override { return under->size(); }
    Status read_by_parts(int64_t offset, std::span<std::byte> out, const Arrived& arrived) override {
      return under->read_by_parts(offset, out, [&](std::span<const std::byte> part) {
        offset += static_cast<int64_t>(part.size());
        // The first 64 KiB came with the look-up.
        if (offset > (64 << 10) && !store.done_.exchange(true)) store.then_();
        return arrived(part);
      });
    }
    InTheMiddle& store;
    std::unique_ptr<StoreObject> under;
  };
  Result<std::unique_ptr<StoreObject>> wrap(Result<std::unique_ptr<StoreObject>> object) {
    if (!object.ok()) return object;
    return std::unique_ptr<StoreObject>(std::make_unique<Object>(*this, std::move(*object)));
  }
  Store& under_;
  const std::function<void()> then_;
  std::atomic<bool> done_ = false;
};

/// Requests: sender and receiver are one model, so that each answer is the full prefill's whatever came.
class FailoverRequests : public Failover {
 protected:
  static constexpr int64_t kContext = 64 * 3;
  void SetUp() override {
    Failover::SetUp();
    if (IsSkipped()) return;
    plan_ = testing::make_plan(model_.model->config().shape(), {1, 3}, "e-first",
                               {.element_bytes = 4, .dtype = "f32"});
    plan_.sender = plan_.receiver = model_.identity;
    suffix_ = random_ids(3, model_.model->config().vocab, 2);
    for (uint64_t seed = 10;; ++seed) {
      context_ = random_ids(kContext, model_.model->config().vocab, seed);
      const auto id = entry_identity(model_.identity.fingerprint, context_, 0, "", DType::kF32);
      if (owner(id.key()) == 0) break;
    }
    store_ = open("&part=4096");
    auto published = publish(*model_.backend, *model_.model, model_.identity, context_, *store_,
                             {.cuts = testing::plain_cuts({1})});
    ASSERT_TRUE(published.ok()) << published.status().message();
    ASSERT_EQ(owner(published->key), 0);
    ASSERT_TRUE(cluster_->follows(3, 0));
    faulty_ = std::make_unique<InTheMiddle>(*store_, [this] { cluster_->node(0).kill(); });
  }
  void expect_right(std::span<const float> logits) {
    if (expected_.empty()) expected_.assign(logits.begin(), logits.end());
    ASSERT_EQ(logits.size(), expected_.size());
    for (size_t i = 0; i < logits.size(); ++i) {
      if (testing::exact_rows()) {
        ASSERT_EQ(logits[i], expected_[i]);
      } else {
        ASSERT_NEAR(logits[i], expected_[i], 2e-3f);
      }
    }
  }
  TinyModel model_{tiny_config(Family::kLlama), 11, DType::kF32};
  Plan plan_;
  std::vector<int32_t> context_, suffix_;
  std::unique_ptr<Store> store_;
  std::unique_ptr<InTheMiddle> faulty_;
  std::vector<float> expected_;
};

TEST_F(FailoverRequests, ASessionAnswersThroughout) {
  auto session = take(Session::create(*model_.backend, *model_.model, plan_, {kContext, 3, 1}));
  Request request{.context = context_, .suffix = suffix_};
  const auto ask = [&]() -> Answer {
    Answer answer = take(session->run(request));
    expect_right(session->first_logits());
    return answer;
  };
  ask();  // by itself: what is right
  request.store = store_.get();
  EXPECT_EQ(ask().cache, CacheStatus::kHit);
  request.store = faulty_.get();
  Answer answer = ask();
  EXPECT_EQ(answer.cache, CacheStatus::kMiss);
  EXPECT_EQ(answer.miss.code(), Code::kIo) << answer.miss.message();
  int missed = 0;
  EXPECT_TRUE(RedisServer::soon([&] {
    answer = ask();
    if (answer.cache == CacheStatus::kHit) return true;
    EXPECT_EQ(answer.cache, CacheStatus::kMiss);
    EXPECT_EQ(answer.miss.code(), Code::kIo) << answer.miss.message();
    ++missed;
    return false;
  }));
  RecordProperty("missed", missed);
  EXPECT_EQ(answer.reused_tokens, kContext);
  EXPECT_TRUE(cluster_->promoted(3));
}

TEST_F(FailoverRequests, AnEngineAnswersThroughoutAndCounts) {
  auto engine = take(Engine::create(*model_.backend, {.cache_bytes = 64 << 20,
                                                      .tokens = 1024,
                                                      .batch = 4,
                                                      .patience_ns = 60'000'000'000,
                                                      .prefix_cache = false}));
  const ReceiverPlan plans[] = {{&plan_, nullptr}};
  const Receiver* receiver =
      take(engine->add(take(Receiver::create("receiver", *model_.model, model_.identity, plans))));
  EngineRequest request{.receiver = receiver, .context = context_, .suffix = suffix_};
  request.first_logits = true;
  int64_t asked = 0;
  const auto ask = [&]() -> EngineAnswer {
    EngineAnswer answer = take(take(engine->submit(request))->wait());
    expect_right(answer.first_logits);
    asked += request.store != nullptr ? 1 : 0;
    return answer;
  };
  ask();
  request.store = store_.get();
  EXPECT_EQ(ask().cache, CacheStatus::kHit);
  request.store = faulty_.get();
  EngineAnswer answer = ask();
  EXPECT_EQ(answer.cache, CacheStatus::kRepaired) << "what had come is used";
  EXPECT_EQ(answer.miss.code(), Code::kIo) << answer.miss.message();
  EXPECT_GT(answer.lost_transfers, 0);
  EXPECT_TRUE(RedisServer::soon([&] {
    answer = ask();
    if (answer.cache == CacheStatus::kHit) return true;
    EXPECT_EQ(answer.cache, CacheStatus::kMiss);
    EXPECT_EQ(answer.miss.code(), Code::kIo) << answer.miss.message();
    return false;
  }));
  EXPECT_EQ(answer.reused_tokens, kContext);
  engine->drain();
  const EngineStats stats = engine->stats();
  EXPECT_EQ(stats.entry_hits, 2);
  EXPECT_EQ(stats.entry_repairs, 1);
  EXPECT_EQ(stats.entry_misses, asked - 3);
  RecordProperty("missed", static_cast<int>(stats.entry_misses));
}

}  // namespace
}  // namespace ds
