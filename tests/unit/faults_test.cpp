// Every fault of a store, at every policy's tilings: whatever comes of a look-up or a read, the answer is
// right, the miss is counted once and has its reason, memory comes back, and nobody waits for ever. Sender
// and receiver are one model here, so that any mixture of what came and what was computed in its place gives
// the full prefill's answer.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "plans/traits.h"
#include "runtime/core/publish.h"
#include "runtime/core/session.h"
#include "runtime/engine/engine.h"
#include "tests/unit/faulty_store.h"
#include "tests/unit/model_fixture.h"
#include "tests/unit/policy_plans.h"

namespace ds {
namespace {

using testing::exact_rows;
using testing::Fault;
using testing::FaultTraits;
using testing::FaultyStore;
using testing::kFaults;
using testing::plain_cuts;
using testing::random_ids;
using testing::tiny_config;
using testing::TinyModel;

constexpr int64_t kContext = 64 * 3 + 21;

class Faults : public ::testing::TestWithParam<FaultTraits> {
 protected:
  Faults() : model(tiny_config(Family::kLlama), 11, DType::kF32) {
    shape = model.model->config().shape();
    context = random_ids(kContext, shape.vocab, 1);
    suffix = random_ids(3, shape.vocab, 2);
    folder = ::testing::TempDir() + "/ds_faults_" + std::to_string(getpid());
    std::filesystem::remove_all(folder);
    store = std::move(open_store("file:" + folder)).value();
    plans = testing::plans_of_policies(shape, model.identity, model.identity, {1, 3});
    std::erase_if(plans, [](const Plan& p) {
      return std::ranges::none_of(p.variants[0].ops, [](const Op& op) { return is_transfer(op); });
    });
    if (!exact_rows()) {  // a simulated device is some hundred times slower: one plan in four
      std::vector<Plan> some;
      for (size_t i = 0; i < plans.size(); i += 4) some.push_back(plans[i]);
      plans = std::move(some);
    }
    publish_it(context);
    other = publish_it(random_ids(kContext, shape.vocab, 3));
  }
  ~Faults() override { std::filesystem::remove_all(folder); }
  std::string publish_it(const std::vector<int32_t>& tokens) {
    auto published = publish(*model.backend, *model.model, model.identity, tokens, *store,
                             {.cuts = plain_cuts({1, 2, 3, 4})});
    EXPECT_TRUE(published.ok()) << published.status().message();
    return published->key;
  }
  /// Calls `f` with the faulty store for each read that the fault may begin with, of a run with so many.
  template <typename F>
  void at_reads(F&& f) const {
    for (int from : {1, 2, 5}) {
      if (from > 1 && !GetParam().by_read) break;
      FaultyStore faulty(*store, GetParam().fault, from, other);
      SCOPED_TRACE(fmt::format("{} from read {}", GetParam().name, from));
      f(faulty);
    }
  }
  void expect_counted(const Answer& answer, const EngineStats* stats) const {
    if (answer.miss.ok()) {
      // One that comes after the last read, or that only delays.
      EXPECT_TRUE(GetParam().by_read);
      EXPECT_EQ(answer.cache, CacheStatus::kHit);
      return;
    }
    EXPECT_TRUE(answer.cache == CacheStatus::kMiss ||
                (stats != nullptr && answer.cache == CacheStatus::kRepaired));
    // On a machine that is busy a thread that tells of the fault may come late itself.
    const bool late = GetParam().by_read && answer.miss.message().starts_with("late: ");
    EXPECT_TRUE(late || answer.miss.message().find(GetParam().says) != std::string::npos)
        << answer.miss.message();
    if (stats != nullptr) {
      EXPECT_EQ(stats->entry_misses, answer.cache == CacheStatus::kMiss ? 1 : 0);
      EXPECT_EQ(stats->entry_repairs, answer.cache == CacheStatus::kRepaired ? 1 : 0);
      EXPECT_EQ(stats->entry_hits, 0);
    }
  }
  void expect_right(std::span<const float> logits) const {
    ASSERT_EQ(logits.size(), expected.size());
    if (exact_rows()) {
      EXPECT_EQ(std::memcmp(logits.data(), expected.data(), expected.size() * sizeof(float)), 0);
    } else {
      for (size_t i = 0; i < logits.size(); ++i) ASSERT_NEAR(logits[i], expected[i], 2e-3f);
    }
  }
  Result<std::unique_ptr<Session>> session_of(const Plan& plan) {
    return Session::create(*model.backend, *model.model, plan, {kContext, 3, 4});
  }
  void answer_exactly() {
    auto session = session_of(plans[0]);
    ASSERT_TRUE(session.ok()) << session.status().message();
    Request request{.context = context, .suffix = suffix};
    request.full_prefill = true;
    ASSERT_TRUE((*session)->run(request).ok());
    expected.assign((*session)->first_logits().begin(), (*session)->first_logits().end());
  }

  TinyModel model;
  Shape shape;
  std::vector<int32_t> context, suffix;
  std::string folder, other;
  std::unique_ptr<Store> store;
  std::vector<Plan> plans;
  std::vector<float> expected;
};

TEST_P(Faults, OneRequestIsAnsweredAllTheSame) {
  const Fault fault = GetParam().fault;
  if (fault == Fault::kHangs || fault == Fault::kLookUpHangs)
    GTEST_SKIP() << "a session waits for its store, which has time limits of its own";
  ASSERT_NO_FATAL_FAILURE(answer_exactly());
  int runs = 0, missed = 0;
  for (const Plan& plan : plans) {
    SCOPED_TRACE(plan.variants[0].why);
    at_reads([&](FaultyStore& faulty) {
      auto session = session_of(plan);
      ASSERT_TRUE(session.ok()) << session.status().message();
      Request request{.context = context, .suffix = suffix};
      request.store = &faulty;
      auto answer = (*session)->run(request);
      ASSERT_TRUE(answer.ok()) << answer.status().message();
      expect_counted(*answer, nullptr);
      expect_right((*session)->first_logits());
      ++runs;
      missed += answer->miss.ok() ? 0 : 1;
      // It is well: the next one hits.
      request.store = store.get();
      answer = (*session)->run(request);
      ASSERT_TRUE(answer.ok()) << answer.status().message();
      EXPECT_EQ(answer->cache, CacheStatus::kHit) << answer->miss.message();
      expect_right((*session)->first_logits());
    });
  }
  EXPECT_GE(runs, exact_rows() ? 14 : 4);
  EXPECT_TRUE(GetParam().says.empty() || missed >= runs / 3) << missed << " of " << runs;
  RecordProperty("runs", runs);
  RecordProperty("missed", missed);
}

TEST_P(Faults, AnEngineAnswersAllTheSame) {
  ASSERT_NO_FATAL_FAILURE(answer_exactly());
  int runs = 0, missed = 0;
  for (const Plan& plan : plans) {
    SCOPED_TRACE(plan.variants[0].why);
    at_reads([&](FaultyStore& faulty) {
      auto engine = Engine::create(*model.backend, {.cache_bytes = 64 << 20, .tokens = 1024, .batch = 4});
      ASSERT_TRUE(engine.ok()) << engine.status().message();
      const ReceiverPlan given[] = {{&plan, nullptr}};
      auto receiver = Receiver::create("receiver", *model.model, model.identity, given);
      ASSERT_TRUE(receiver.ok()) << receiver.status().message();
      auto added = (*engine)->add(std::move(*receiver));
      ASSERT_TRUE(added.ok()) << added.status().message();
      EngineRequest request;
      request.receiver = *added;
      request.context = context;
      request.suffix = suffix;
      request.max_new_tokens = 4;
      request.first_logits = true;
      request.store = &faulty;
      auto ticket = (*engine)->submit(request);
      ASSERT_TRUE(ticket.ok()) << ticket.status().message();
      auto answer = (*ticket)->wait();
      ASSERT_TRUE(answer.ok()) << answer.status().message();
      (*engine)->drain();
      EngineStats stats = (*engine)->stats();
      expect_counted(*answer, &stats);
      expect_right(answer->first_logits);
      ++runs;
      missed += answer->miss.ok() ? 0 : 1;
      // Others are served beside a store that hangs.
      request.reuse = Reuse::kOff;
      ticket = (*engine)->submit(request);
      ASSERT_TRUE(ticket.ok()) << ticket.status().message();
      answer = (*ticket)->wait();
      ASSERT_TRUE(answer.ok()) << answer.status().message();
      expect_right(answer->first_logits);
      faulty.let_go();
    });
  }
  EXPECT_GE(runs, exact_rows() ? 14 : 4);
  EXPECT_TRUE(GetParam().says.empty() || missed >= runs / 3) << missed << " of " << runs;
  RecordProperty("runs", runs);
  RecordProperty("missed", missed);
}

INSTANTIATE_TEST_SUITE_P(All, Faults, ::testing::ValuesIn(kFaults), [](const auto& info) {
  std::string name(info.param.name);
  std::erase_if(name, [](char c) { return c == ' ' || c == '-' || c == '\''; });
  return name;
});

/// A store whose writes fail.
class FullStore final : public Store {
 public:
  /// After so many bytes; negative: put() fails at once.
  FullStore(Store& under, int64_t room) : under_(under), room_(room) {}
  std::string url() const override { return "full:"; }
  Status put(const std::string& key, const Produce& produce, Names names) override {
    if (room_ < 0) return error(Code::kIo, "connection refused");
    return under_.put(
        key,
        [&](const Sink& sink) {
          int64_t left = room_;
          return produce([&](std::span<const std::byte> bytes) {
            left -= static_cast<int64_t>(bytes.size());
            return left < 0 ? error(Code::kExhausted, "no space left on device") : sink(bytes);
          });
        },
        names);
  }
  Result<Found> find(Names keys, Names names) override { return under_.find(keys, names); }
  Result<std::unique_ptr<StoreObject>> open(const std::string& key) override { return under_.open(key); }
  Status remove(const std::string& key) override { return under_.remove(key); }

 private:
  Store& under_;
  int64_t room_;
};

/// A publication that fails leaves nothing, and the next one does what it would have.
TEST(PublishFaults, LeaveNothing) {
  const TinyModel model(tiny_config(Family::kLlama), 11, DType::kF32);
  const auto context = random_ids(kContext, model.model->config().vocab, 1);
  const std::string folder = ::testing::TempDir() + "/ds_publish_faults_" + std::to_string(getpid());
  std::filesystem::remove_all(folder);
  auto store = std::move(open_store("file:" + folder)).value();
  auto engine = Engine::create(*model.backend, {.cache_bytes = 64 << 20, .tokens = 1024, .batch = 4});
  ASSERT_TRUE(engine.ok()) << engine.status().message();
  auto sender = (*engine)->add(std::move(Receiver::create("sender", *model.model, model.identity)).value());
  ASSERT_TRUE(sender.ok()) << sender.status().message();
  auto objects = [&] {
    auto all = store->list();
    EXPECT_TRUE(all.ok()) << all.status().message();
    return all->size();
  };
  const PublishOptions options{.cuts = plain_cuts({1, 2, 3, 4}), .only_new = true};
  std::string key;
  int failed = 0;
  for (const bool by_engine : {false, true}) {
    auto publish_to = [&](Store& to) -> Result<Published> {
      if (!by_engine) return publish(*model.backend, *model.model, model.identity, context, to, options);
      DS_ASSIGN(auto ticket, (*engine)->publish(
                                 {.sender = *sender, .context = context, .store = &to, .options = options}));
      return ticket->wait();
    };
    for (int64_t room : {-1, 0, 100, 5'000, 50'000, 100'000}) {
      SCOPED_TRACE(fmt::format("{} bytes, {}", room, by_engine ? "engine" : "alone"));
      FullStore full(*store, room);
      auto published = publish_to(full);
      ASSERT_FALSE(published.ok());
      EXPECT_EQ(published.status().code(), room < 0 ? Code::kIo : Code::kExhausted)
          << published.status().message();
      EXPECT_EQ(objects(), 0u);
      ++failed;
    }
    auto published = publish_to(*store);
    ASSERT_TRUE(published.ok()) << published.status().message();
    EXPECT_FALSE(published->already);
    EXPECT_EQ(objects(), 1u);
    if (by_engine) {
      EXPECT_EQ(published->key, key);
    }
    key = published->key;
    ASSERT_TRUE(store->remove(key).ok());
  }
  EXPECT_EQ(failed, 12);
  (*engine)->drain();
  EXPECT_EQ((*engine)->stats().claimed_bytes, 0);
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace ds
