// Cross-adapter hits: two adapters of one base, and the base beside them, in one engine with one store. What
// one of them has computed is never another's, neither an entry nor a row of the prefix cache.
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>

#include "runtime/core/publish.h"
#include "runtime/core/session.h"
#include "runtime/engine/engine.h"
#include "tests/unit/model_fixture.h"
#include "tests/unit/plan_builder.h"
#include "tests/unit/take.h"
#include "tests/unit/test_backend.h"

namespace ds {
namespace {

using testing::plain_cuts;
using testing::random_ids;
using testing::take;

constexpr int64_t kTokens = 256, kVocab = 160;
const std::string kGolden = DS_SOURCE_DIR "/tests/golden/";

class CrossAdapter : public ::testing::Test {
 protected:
  struct Model {
    std::unique_ptr<Checkpoint> checkpoint;
    std::unique_ptr<DeviceModel> model;
    ModelIdentity identity;
    const Receiver* receiver = nullptr;  // with no plan
  };

  void start(bool prefix_cache) {
    std::filesystem::remove_all(folder_);
    engine_ = take(Engine::create(
        *backend_, {.cache_bytes = 64 << 20, .tokens = 1024, .batch = 4, .prefix_cache = prefix_cache}));
    for (const char* folder : {"models/llama/receiver", "adapters/patterns", "adapters/regex"}) {
      Model& m = models_.emplace_back();
      m.checkpoint = std::make_unique<Checkpoint>(take(Checkpoint::open(kGolden + folder)));
      m.model = take(backend_->load(*m.checkpoint, {.dtype = DType::kF32}));
      m.identity = take(m.checkpoint->identity());
      m.receiver = take(engine_->add(take(Receiver::create("r", *m.model, m.identity, {}))));
    }
  }
  ~CrossAdapter() override {
    engine_.reset();
    std::filesystem::remove_all(folder_);
  }
  /// The receiver that reuses what `sender` has published.
  const Receiver* reusing(const Model& receiver, const Model& sender) {
    testing::PlanOptions options;
    options.dtype = "f32";
    options.element_bytes = 4;
    auto plan = std::make_unique<Plan>(
        testing::make_plan(receiver.model->config().shape(), {2, 3}, "e-first", options));
    plan->sender = sender.identity;
    plan->receiver = receiver.identity;
    const ReceiverPlan given[] = {{plan.get(), nullptr}};
    const Receiver* added =
        take(engine_->add(take(Receiver::create("reuses", *receiver.model, receiver.identity, given))));
    plans_.push_back(std::move(plan));
    return added;
  }
  EngineAnswer ask(const Receiver* receiver, Reuse reuse, const std::string& salt, uint64_t question) {
    EngineRequest r;
    r.receiver = receiver;
    r.context = context_;
    r.suffix = random_ids(5, kVocab, question);
    r.store = store_.get();
    r.salt = salt;
    r.reuse = reuse;
    r.first_logits = true;
    return take(take(engine_->submit(std::move(r)))->wait());
  }
  static void expect_same(const EngineAnswer& a, const EngineAnswer& b) {
    ASSERT_EQ(a.first_logits.size(), b.first_logits.size());
    if (testing::exact_rows()) {
      EXPECT_EQ(std::memcmp(a.first_logits.data(), b.first_logits.data(), a.first_logits.size() * 4), 0);
    }
  }

  const std::string folder_ = ::testing::TempDir() + "/ds_cross_adapter" + std::to_string(getpid());
  std::unique_ptr<Backend> backend_ = take(testing::test_backend());
  std::unique_ptr<Store> store_ = take(open_store("file:" + folder_));
  std::vector<int32_t> context_ = random_ids(kTokens, kVocab, 1);
  std::vector<Model> models_;
  std::vector<std::unique_ptr<Plan>> plans_;
  std::unique_ptr<Engine> engine_;
};

TEST_F(CrossAdapter, NoRowsOfThePrefixCache) {
  start(true);
  for (size_t i = 0; i < models_.size(); ++i) {
    for (const Model& other : models_)
      for (const std::string& salt :
           {std::string(), other.identity.fingerprint, "exact\n" + other.identity.fingerprint + "\n",
            "\n" + other.identity.name}) {
        const EngineAnswer fresh = ask(models_[i].receiver, Reuse::kOff, salt, 7);
        const EngineAnswer first = ask(models_[i].receiver, Reuse::kExact, salt, 7);
        EXPECT_EQ(first.cached_tokens, &other == &models_[0] || !salt.empty() ? 0 : kTokens) << salt;
        expect_same(first, fresh);
        // Its own it has.
        const EngineAnswer again = ask(models_[i].receiver, Reuse::kExact, salt, 8);
        EXPECT_EQ(again.cached_tokens, kTokens) << salt;
        expect_same(again, ask(models_[i].receiver, Reuse::kOff, salt, 8));
      }
  }
}

TEST_F(CrossAdapter, NoEntries) {
  start(false);
  for (const Model& sender : models_) {
    const Published done = take(publish(*backend_, *sender.model, sender.identity, context_, *store_,
                                        {.cuts = plain_cuts({1, 2, 3, 4})}));
    for (const Model& receiver : models_)
      for (const Model& meant : models_) {
        const EngineAnswer a = ask(reusing(receiver, meant), Reuse::kAuto, "", 7);
        const bool right = &meant == &sender;
        EXPECT_EQ(a.cache, right ? CacheStatus::kHit : CacheStatus::kMiss) << a.miss.message();
        EXPECT_EQ(a.reused_tokens, right ? kTokens : 0);
        if (!right) {
          EXPECT_EQ(a.miss.code(), Code::kNotFound) << a.miss.message();
          expect_same(a, ask(receiver.receiver, Reuse::kOff, "", 7));
        }
      }
    ASSERT_TRUE(store_->remove(done.key).ok());
  }
}

// What a plan has left of one sender's in the prefix cache is not what another sender's plan may take.
TEST_F(CrossAdapter, NoRowsThatCameByAPlan) {
  start(true);
  const Model& receiver = models_[0];
  const Receiver* of[] = {reusing(receiver, models_[1]), reusing(receiver, models_[2])};
  for (const Model* sender : {&models_[1], &models_[2]})
    take(publish(*backend_, *sender->model, sender->identity, context_, *store_,
                 {.cuts = plain_cuts({1, 2, 3, 4})}));
  const EngineAnswer first = ask(of[0], Reuse::kAuto, "", 7);
  const EngineAnswer second = ask(of[1], Reuse::kAuto, "", 7);
  for (const EngineAnswer* a : {&first, &second}) {
    EXPECT_EQ(a->cache, CacheStatus::kHit) << a->miss.message();
    EXPECT_EQ(a->cached_tokens, 0);
  }
  EXPECT_NE(std::memcmp(first.first_logits.data(), second.first_logits.data(), first.first_logits.size() * 4),
            0);
  EXPECT_EQ(ask(receiver.receiver, Reuse::kExact, "", 7).cached_tokens, 0);
}

}  // namespace
}  // namespace ds
