// The engine: what a request gives beside others is what it gives alone, whatever the others do, and faults
// stay with the request that they are of.
#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <random>
#include <thread>

#include "plans/full_prefill.h"
#include "runtime/core/drift.h"
#include "runtime/core/publish.h"
#include "runtime/core/session.h"
#include "runtime/engine/batch_scheduler.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/prefix_cache.h"
#include "support/clock.h"
#include "tests/unit/aligned_plans.h"
#include "tests/unit/broken_model.h"
#include "tests/unit/faulty_store.h"
#include "tests/unit/live_script.h"
#include "tests/unit/model_fixture.h"
#include "tests/unit/plan_builder.h"

namespace ds {
namespace {

using namespace std::chrono_literals;
using testing::exact_rows;
using testing::Fault;
using testing::FaultyStore;
using testing::make_plan;
using testing::make_restore_range_plan;
using testing::make_select_plan;
using testing::plain_cuts;
using testing::random_ids;
using testing::tiny_config;

constexpr int64_t kVocab = 300;

/// Two models of one shape on one backend.
struct Pair {
  std::unique_ptr<Backend> backend;
  struct One {
    std::unique_ptr<Checkpoint> checkpoint;
    std::unique_ptr<DeviceModel> model;
    ModelIdentity identity;
  } sender, receiver;

  explicit Pair(DType dtype = DType::kF32) {
    auto made = testing::test_backend();
    EXPECT_TRUE(made.ok()) << made.status().message();
    backend = std::move(made).value();
    uint64_t seed = 11;
    for (One* one : {&sender, &receiver}) {
      one->checkpoint = std::make_unique<Checkpoint>(
          std::move(Checkpoint::random(tiny_config(Family::kLlama), seed++)).value());
      auto loaded = backend->load(*one->checkpoint, {.dtype = dtype});
      EXPECT_TRUE(loaded.ok()) << loaded.status().message();
      one->model = std::move(loaded).value();
      one->identity = *one->checkpoint->identity();
    }
  }
  Shape shape() const { return receiver.model->config().shape(); }
  Plan named(Plan plan) const {
    plan.sender = sender.identity;
    plan.receiver = receiver.identity;
    return plan;
  }
  testing::PlanOptions options(int32_t chunks = 1) const {
    testing::PlanOptions o;
    o.chunks = chunks;
    o.dtype = std::string(dtype_name(receiver.model->dtype()));
    o.element_bytes = dtype_size(receiver.model->dtype());
    return o;
  }
  void publish_to(Store& store, std::span<const int32_t> context) const {
    auto published =
        publish(*backend, *sender.model, sender.identity, context, store, {.cuts = plain_cuts({1, 2, 3, 4})});
    ASSERT_TRUE(published.ok()) << published.status().message();
  }
};

std::string fresh_folder(const std::string& name) {
  std::string folder = ::testing::TempDir() + "/ds_requests_" + name + std::to_string(getpid());
  std::filesystem::remove_all(folder);
  return folder;
}

std::unique_ptr<Engine> make_engine(Backend& backend, EngineLimits limits) {
  auto engine = Engine::create(backend, limits);
  EXPECT_TRUE(engine.ok()) << engine.status().message();
  return std::move(engine).value();
}

const Receiver* add(Engine& engine, const Pair& pair, const Pair::One& one,
                    const std::vector<const Plan*>& plans = {}) {
  std::vector<ReceiverPlan> given;
  for (const Plan* plan : plans) given.push_back({plan, nullptr});
  auto receiver =
      Receiver::create(&one == &pair.sender ? "sender" : "receiver", *one.model, one.identity, given);
  EXPECT_TRUE(receiver.ok()) << receiver.status().message();
  auto added = engine.add(std::move(receiver).value());
  EXPECT_TRUE(added.ok()) << added.status().message();
  return *added;
}

constexpr EngineLimits kLimits{.cache_bytes = 64 << 20, .tokens = 1024, .batch = 16};

struct Told {
  std::vector<int32_t> tokens;
  std::vector<float> logits;
  DType dtype = DType::kF32;
};

/// Whether the first token's logits are the same: to the bit where rows are independent of how they are
/// split; elsewhere up to what rounding of sums in another order makes of them, of the root of their mean
/// square.
bool alike(const Told& expected, const EngineAnswer& answer) {
  const std::vector<float>&a = expected.logits, &b = answer.first_logits;
  if (a.size() != b.size()) return false;
  if (exact_rows()) return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
  double off = 0, all = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double x = a[i], y = b[i];
    off += (x - y) * (x - y);
    all += x * x;
  }
  return off <= all * (expected.dtype == DType::kF32 ? 1e-5 * 1e-5 : 3e-2 * 3e-2);
}

/// What a session gives.
Told alone(const Pair& pair, const Pair::One& one, const Plan& plan, const EngineRequest& r, Store* store) {
  Request request;
  request.context = r.context;
  request.suffix = r.suffix;
  request.store = store;
  request.sampling = r.sampling;
  request.max_new_tokens = r.max_new_tokens;
  request.full_prefill = store == nullptr;
  auto session = Session::create(
      *pair.backend, *one.model, plan,
      {static_cast<int64_t>(r.context.size()), static_cast<int64_t>(r.suffix.size()), r.max_new_tokens});
  EXPECT_TRUE(session.ok()) << session.status().message();
  auto answer = (*session)->run(request);
  EXPECT_TRUE(answer.ok()) << answer.status().message();
  if (store != nullptr) {
    EXPECT_EQ(answer->cache, CacheStatus::kHit) << answer->miss.message();
  }
  auto logits = (*session)->first_logits();
  return {answer->tokens, {logits.begin(), logits.end()}, one.model->dtype()};
}

void expect_same(const Told& expected, const EngineAnswer& answer, const std::string& what) {
  EXPECT_TRUE(alike(expected, answer)) << what;
  if (exact_rows()) {
    EXPECT_EQ(answer.tokens, expected.tokens) << what;
  } else {  // a token may be drawn between two that rounding has moved
    EXPECT_EQ(answer.tokens.size(), expected.tokens.size()) << what;
  }
}

EngineRequest request_of(const Receiver* receiver, int64_t n, int64_t m, uint64_t seed, int64_t tokens = 6) {
  EngineRequest r;
  r.receiver = receiver;
  r.context = random_ids(n, kVocab, seed);
  r.suffix = random_ids(m, kVocab, seed + 1000);
  r.sampling = {.temperature = 1, .seed = seed};
  r.max_new_tokens = tokens;
  r.first_logits = true;
  return r;
}

EngineAnswer answer_of(Engine& engine, EngineRequest r) {
  auto ticket = engine.submit(std::move(r));
  EXPECT_TRUE(ticket.ok()) << ticket.status().message();
  if (!ticket.ok()) return {};
  auto answer = (*ticket)->wait();
  EXPECT_TRUE(answer.ok()) << answer.status().message();
  return answer.ok() ? *answer : EngineAnswer{};
}

TEST(Engine, OneRequestGivesWhatASessionGives) {
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    Pair pair(dtype);
    auto store = open_store("file:" + fresh_folder("one"));
    for (int64_t n : {0, 1, 63, 200}) {
      for (int chunks : {1, 3}) {
        const auto options = pair.options(chunks);
        std::vector<Plan> plans{pair.named(make_plan(pair.shape(), {2, 3}, "e-first", options)),
                                pair.named(make_plan(pair.shape(), {0, 1}, "kv-preload", options)),
                                pair.named(make_restore_range_plan(pair.shape(), 1, 3, options)),
                                pair.named(make_select_plan(pair.shape(), 0.3, pair.options()))};
        for (size_t i = 0; i < plans.size(); ++i) {
          auto engine = make_engine(*pair.backend, kLimits);
          const Receiver* receiver = add(*engine, pair, pair.receiver, {&plans[i]});
          EngineRequest r = request_of(receiver, n, 9, 5 + static_cast<uint64_t>(n));
          if (n > 0) pair.publish_to(**store, r.context);
          r.store = n > 0 ? store->get() : nullptr;
          const Told expected = alone(pair, pair.receiver, plans[i], r, r.store);
          const EngineAnswer answer = answer_of(*engine, r);
          expect_same(expected, answer, fmt::format("n={} chunks={} plan {}", n, chunks, i));
          EXPECT_EQ(answer.cache, n > 0 ? CacheStatus::kHit : CacheStatus::kUnused) << answer.miss.message();
        }
      }
    }
  }
}

TEST(Engine, TheSecondQuestionCostsItsSuffix) {
  Pair pair;
  auto engine = make_engine(*pair.backend, kLimits);
  const Receiver* receiver = add(*engine, pair, pair.receiver);
  const Plan exact = full_prefill_plan(pair.receiver.identity, pair.shape(), "f32");
  EngineRequest first = request_of(receiver, 200, 9, 1), second = request_of(receiver, 200, 70, 2);
  second.context = first.context;
  expect_same(alone(pair, pair.receiver, exact, first, nullptr), answer_of(*engine, first), "first");
  EngineAnswer answer = answer_of(*engine, second);
  EXPECT_EQ(answer.cached_tokens, 200);
  expect_same(alone(pair, pair.receiver, exact, second, nullptr), answer, "second");
  // A conversation: everything so far, the answer, and new tokens.
  EngineRequest third = second;
  third.context.insert(third.context.end(), second.suffix.begin(), second.suffix.end());
  third.context.insert(third.context.end(), answer.tokens.begin(), answer.tokens.end());
  const Told expected = alone(pair, pair.receiver, exact, third, nullptr);
  answer = answer_of(*engine, third);
  EXPECT_EQ(answer.cached_tokens, 275) << "all but the answer's last token, of which nothing was computed";
  expect_same(expected, answer, "third");
  // Two branches of it.
  for (uint64_t seed : {7, 8, 9}) {
    EngineRequest branch = third;
    branch.suffix = random_ids(100, kVocab, seed);
    const Told told = alone(pair, pair.receiver, exact, branch, nullptr);
    answer = answer_of(*engine, branch);
    EXPECT_EQ(answer.cached_tokens, 276);
    expect_same(told, answer, "branch");
  }
  // Another tenant, and another receiver, begin anew.
  first.salt = "other";
  EXPECT_EQ(answer_of(*engine, first).cached_tokens, 0);
  first.receiver = add(*engine, pair, pair.sender);
  EXPECT_EQ(answer_of(*engine, first).cached_tokens, 0);
}

TEST(Engine, AConversationGoesOnWhereItEnded) {
  Pair pair;
  auto engine = make_engine(*pair.backend, kLimits);
  const Receiver* receiver = add(*engine, pair, pair.receiver);
  const Plan exact = full_prefill_plan(pair.receiver.identity, pair.shape(), "f32");
  EngineRequest turn = request_of(receiver, 128, 20, 1, 9);
  std::vector<int32_t> tokens = turn.context;
  tokens.insert(tokens.end(), turn.suffix.begin(), turn.suffix.end());
  int64_t kept = 0;
  for (uint64_t i = 0; i < 4; ++i) {
    // As a server cuts a prompt: whole blocks, and the rest.
    const auto n = static_cast<int64_t>(tokens.size() - 1) / 64 * 64;
    turn.context.assign(tokens.begin(), tokens.begin() + n);
    turn.suffix.assign(tokens.begin() + n, tokens.end());
    const Told expected = alone(pair, pair.receiver, exact, turn, nullptr);
    const EngineAnswer answer = answer_of(*engine, turn);
    EXPECT_EQ(answer.cached_tokens, kept) << "turn " << i;
    expect_same(expected, answer, fmt::format("turn {}", i));
    kept = static_cast<int64_t>(tokens.size() + answer.tokens.size()) - 1;
    tokens.insert(tokens.end(), answer.tokens.begin(), answer.tokens.end());
    for (int32_t id : random_ids(5, kVocab, 300 + i)) tokens.push_back(id);
  }
}

TEST(Engine, WhatSeveralBeginWithIsComputedOnce) {
  Pair pair;
  auto store = open_store("file:" + fresh_folder("once"));
  const Plan plan = pair.named(make_plan(pair.shape(), {2, 3}, "e-first", pair.options()));
  const Plan exact = full_prefill_plan(pair.receiver.identity, pair.shape(), "f32");
  for (Reuse reuse : {Reuse::kAuto, Reuse::kExact}) {
    auto engine = make_engine(*pair.backend, kLimits);
    const Receiver* receiver = add(*engine, pair, pair.receiver, {&plan});
    EngineRequest r = request_of(receiver, 300, 9, 1);
    r.reuse = reuse;
    r.store = store->get();
    pair.publish_to(**store, r.context);
    std::vector<std::shared_ptr<Ticket>> tickets;
    std::vector<EngineRequest> requests;
    for (uint64_t i = 0; i < 6; ++i) {
      r.suffix = random_ids(5 + static_cast<int64_t>(i), kVocab, 70 + i);
      requests.push_back(r);
      tickets.push_back(*engine->submit(r));
    }
    int64_t cached = 0;
    for (size_t i = 0; i < tickets.size(); ++i) {
      auto answer = tickets[i]->wait();
      ASSERT_TRUE(answer.ok()) << answer.status().message();
      cached += answer->cached_tokens;
      expect_same(reuse == Reuse::kAuto ? alone(pair, pair.receiver, plan, requests[i], store->get())
                                        : alone(pair, pair.receiver, exact, requests[i], nullptr),
                  *answer, fmt::format("question {}", i));
    }
    EXPECT_EQ(cached, 5 * 300);
  }
}

TEST(Engine, AnApproximateCacheNeverAnswersAnExactLookUp) {
  Pair pair;
  auto store = open_store("file:" + fresh_folder("approximate"));
  const Plan plan = pair.named(make_plan(pair.shape(), {2, 3}, "e-first", pair.options()));
  const Plan exact = full_prefill_plan(pair.receiver.identity, pair.shape(), "f32");
  auto engine = make_engine(*pair.backend, kLimits);
  const Receiver* receiver = add(*engine, pair, pair.receiver, {&plan});
  EngineRequest r = request_of(receiver, 256, 9, 1);
  r.store = store->get();
  pair.publish_to(**store, r.context);
  expect_same(alone(pair, pair.receiver, plan, r, r.store), answer_of(*engine, r), "by plan");
  // The same way again has it; so has another question.
  EngineRequest again = r;
  again.suffix = random_ids(20, kVocab, 3);
  EngineAnswer answer = answer_of(*engine, again);
  EXPECT_EQ(answer.cached_tokens, 256);
  EXPECT_EQ(answer.reused, &plan.variants[0]);
  EXPECT_EQ(answer.reused_tokens, 256);
  expect_same(alone(pair, pair.receiver, plan, again, r.store), answer, "by plan, again");
  EngineRequest honest = again;
  honest.reuse = Reuse::kExact;
  answer = answer_of(*engine, honest);
  EXPECT_EQ(answer.cached_tokens, 0);
  EXPECT_EQ(answer.cache, CacheStatus::kUnused);
  EXPECT_EQ(answer.reused, nullptr);
  expect_same(alone(pair, pair.receiver, exact, honest, nullptr), answer, "exact");
  // What is exact serves everybody.
  answer = answer_of(*engine, again);
  EXPECT_EQ(answer.cached_tokens, 256);
  expect_same(alone(pair, pair.receiver, exact, again, nullptr), answer, "exact, for one that would reuse");
  honest.reuse = Reuse::kOff;
  EXPECT_EQ(answer_of(*engine, honest).cached_tokens, 0);
}

/// Whether another tenant has an entry of the same context, or rows of it in the prefix cache, shows in no
/// answer and in no count.
TEST(Engine, NobodyCanTellWhatAnotherTenantHas) {
  Pair pair;
  const Plan plan = pair.named(make_plan(pair.shape(), {2, 3}, "e-first", pair.options()));
  std::string said[2];
  for (const bool has : {false, true}) {
    auto store = open_store("file:" + fresh_folder("tell"));
    auto engine = make_engine(*pair.backend, kLimits);
    const Receiver* receiver = add(*engine, pair, pair.receiver, {&plan});
    EngineRequest mine = request_of(receiver, 256, 9, 1);
    EngineRequest another = request_of(receiver, 256, 9, has ? 1 : 2);
    for (EngineRequest* r : {&mine, &another}) r->store = store->get();
    mine.salt = "mine";
    another.salt = "another";
    const PublishOptions options{.cuts = plain_cuts({1, 2, 3, 4}), .salt = another.salt};
    ASSERT_TRUE(
        publish(*pair.backend, *pair.sender.model, pair.sender.identity, another.context, **store, options)
            .ok());
    EXPECT_EQ(answer_of(*engine, another).cache, CacheStatus::kHit);
    for (const Reuse reuse : {Reuse::kAuto, Reuse::kExact}) {
      mine.reuse = reuse;
      const EngineAnswer a = answer_of(*engine, mine);
      said[has] += fmt::format("{} {} '{}' {} {} {} {} {} {}\n", static_cast<int>(a.cache),
                               static_cast<int>(a.miss.code()), a.miss.message(), a.variant->name,
                               a.reused_tokens, a.cached_tokens, a.bytes_loaded, a.reused == nullptr, a.live);
      mine.suffix = random_ids(9, kVocab, 77);
    }
    const EngineStats s = engine->stats();
    said[has] += fmt::format("{} {} {} {} {} {} {} {} {} {} {}", s.finished, s.entry_hits, s.entry_misses,
                             s.entry_repairs, s.prompt_tokens, s.cached_tokens, s.link_bytes, s.claimed_bytes,
                             s.peak_bytes, s.prefix_bytes, s.evictions);
  }
  EXPECT_EQ(said[0], said[1]);
  EXPECT_NE(said[0].find("no object"), std::string::npos) << said[0];
}

/// A gate whose samples of each proxy are all one number: beyond it is an alarm.
Gate gate_at(const Plan& plan, const ProxyValues& at) {
  Quality quality;
  quality.sender_fingerprint = plan.sender.fingerprint;
  quality.receiver_fingerprint = plan.receiver.fingerprint;
  quality.layers = plan.shape.layers;
  quality.k_deviation.assign(99, at[Proxy::kKDeviation]);
  WayScore score;
  score.way = way_of(plan.variants[0]);
  score.entropy.assign(99, at[Proxy::kEntropy]);
  score.margin.assign(99, at[Proxy::kMargin]);
  quality.ways.push_back(std::move(score));
  auto gate = Gate::create(plan, quality, "q.json", 0.1);
  EXPECT_TRUE(gate.ok()) << gate.status().message();
  return std::move(gate).value();
}

ProxyValues proxies(double keys, double entropy, double margin) {
  ProxyValues values;
  values.of = {keys, entropy, margin};
  return values;
}

void expect_same(const GateVerdict& expected, const GateVerdict& verdict, const std::string& what) {
  EXPECT_EQ(verdict.checked, expected.checked) << what;
  EXPECT_EQ(verdict.alarmed, expected.alarmed) << what;
  EXPECT_EQ(verdict.variant, expected.variant) << what;
  for (size_t p = 0; p < kProxies && exact_rows(); ++p) {
    EXPECT_TRUE(same_number(verdict.values.of[p], expected.values.of[p])) << what << ", " << kProxyNames[p];
    EXPECT_TRUE(same_number(verdict.thresholds.of[p], expected.thresholds.of[p])) << what;
  }
}

/// An alarm is one request's: the full prefill answers it, and others go on as they would.
TEST(Engine, GatesLookAtWhatWasReused) {
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    Pair pair(dtype);
    EngineLimits limits = kLimits;
    limits.patience_ns = 60'000'000'000;  // a machine may be busy
    auto store = open_store("file:" + fresh_folder("gates"));
    const Plan plan = pair.named(make_plan(pair.shape(), {2, 3}, "e-first", pair.options()));
    const Plan exact =
        full_prefill_plan(pair.receiver.identity, pair.shape(), std::string(dtype_name(dtype)));
    EngineRequest r = request_of(nullptr, 333, 9, 1);
    pair.publish_to(**store, r.context);
    r.store = store->get();
    auto session = Session::create(*pair.backend, *pair.receiver.model, plan, {400, 20, 6});
    ASSERT_TRUE(session.ok());
    auto of_session = [&](const EngineRequest& asked, const Gate* gate) {
      Request request{.context = asked.context,
                      .suffix = asked.suffix,
                      .store = store->get(),
                      .gate = gate,
                      .sampling = asked.sampling,
                      .max_new_tokens = asked.max_new_tokens};
      auto answer = (*session)->run(request);
      EXPECT_TRUE(answer.ok()) << answer.status().message();
      const auto logits = (*session)->first_logits();
      return std::pair(Told{answer->tokens, {logits.begin(), logits.end()}, dtype}, answer->gate);
    };
    const Gate wide = gate_at(plan, proxies(1e6, 1e6, 0));
    EngineRequest second = r;
    second.suffix = random_ids(20, kVocab, 3);
    const ProxyValues seen = of_session(r, &wide).second.values;
    const double k = seen[Proxy::kKDeviation], e = seen[Proxy::kEntropy], m = seen[Proxy::kMargin];
    int alarms = 0;
    for (const auto& at : {proxies(1e6, 1e6, 0), proxies(k, e, m), proxies(k * 0.99, 1e6, 0),
                           proxies(1e6, e * 0.99, 0), proxies(1e6, 1e6, m * 1.01)}) {
      const std::string what = fmt::format("{} at {}", dtype_name(dtype), fmt::join(at.of, " "));
      const Gate gate = gate_at(plan, at);
      auto engine = make_engine(*pair.backend, limits);
      r.receiver = second.receiver = add(*engine, pair, pair.receiver, {&plan});
      r.gates = second.gates = {};
      // One without a gate decodes beside it.
      EngineRequest other = request_of(r.receiver, 90, 9, 7, 60);
      auto beside = engine->submit(other);
      r.gates = {&gate};
      const auto [told, verdict] = of_session(r, &gate);
      const EngineAnswer answer = answer_of(*engine, r);
      expect_same(told, answer, what);
      expect_same(verdict, answer.gate, what);
      EXPECT_EQ(answer.cache, CacheStatus::kHit) << what;
      EXPECT_EQ(answer.lost_ns > 0, verdict.alarmed) << what;
      EXPECT_EQ(answer.variant->name, verdict.alarmed ? exact.full_prefill.name : plan.variants[0].name);
      EXPECT_GE(answer.ttft_ns, answer.lost_ns + answer.queue_ns) << "both count";
      // Another question about the context, from the cache that the first one has left.
      second.gates = {&gate};
      const auto [told_second, verdict_second] = of_session(second, &gate);
      const EngineAnswer again = answer_of(*engine, second);
      if (verdict.alarmed) {  // which is exact: nothing to look at
        EXPECT_EQ(again.cached_tokens, 333);
        EXPECT_FALSE(again.gate.checked) << what;
        expect_same(alone(pair, pair.receiver, exact, second, nullptr), again, what + ", exact");
      } else {
        EXPECT_EQ(again.cached_tokens, verdict_second.alarmed ? 0 : 333);
        expect_same(told_second, again, what + ", from the cache");
        expect_same(verdict_second, again.gate, what + ", from the cache");
      }
      auto answered = (*beside)->wait();
      ASSERT_TRUE(answered.ok());
      EXPECT_FALSE(answered->gate.checked);
      expect_same(alone(pair, pair.receiver, exact, other, nullptr), *answered, what + ", beside it");
      engine->drain();
      const EngineStats stats = engine->stats();
      EXPECT_EQ(stats.gate_checks, 1 + (again.gate.checked ? 1 : 0));
      EXPECT_EQ(stats.gate_alarms, (verdict.alarmed ? 1 : 0) + (again.gate.alarmed ? 1 : 0));
      EXPECT_EQ(stats.claimed_bytes, stats.prefix_bytes) << what;
      alarms += verdict.alarmed ? 1 : 0;
    }
    EXPECT_EQ(alarms, 3);
    // An alarm at what the cache of a plan gave.
    const Gate strict = gate_at(plan, proxies(0, 1e6, 0));
    auto engine = make_engine(*pair.backend, limits);
    r.receiver = add(*engine, pair, pair.receiver, {&plan});
    r.gates = {};
    EXPECT_FALSE(answer_of(*engine, r).gate.checked) << "no gate";
    r.gates = {&strict};
    EngineAnswer answer = answer_of(*engine, r);
    EXPECT_TRUE(answer.gate.alarmed);
    EXPECT_EQ(answer.cached_tokens, 0);
    expect_same(of_session(r, &strict).first, answer, "an alarm at a cached prefix");
    r.salt = "nobody's";
    answer = answer_of(*engine, r);
    EXPECT_EQ(answer.cache, CacheStatus::kMiss);
    EXPECT_FALSE(answer.gate.checked) << "nothing was reused";
    const Plan copy = plan;
    const Gate foreign = gate_at(copy, proxies(0, 0, 0));
    r.gates = {&foreign};
    auto refused = engine->submit(r);
    ASSERT_FALSE(refused.ok());
    EXPECT_NE(refused.status().message().find("made for another plan"), std::string::npos);
  }
}

TEST(Engine, PublishesBesideRequests) {
  Pair pair;
  auto store = open_store("file:" + fresh_folder("publishes")),
       other = open_store("file:" + fresh_folder("by_itself"));
  const Plan plan = pair.named(make_plan(pair.shape(), {2, 3}, "e-first", pair.options()));
  EngineLimits limits = kLimits;
  limits.step_budget_ns = 100'000;
  auto engine = make_engine(*pair.backend, limits);
  const Receiver* receiver = add(*engine, pair, pair.receiver, {&plan});
  const Receiver* sender = add(*engine, pair, pair.sender);
  EngineRequest r = request_of(receiver, 300, 9, 1), busy = request_of(sender, 200, 9, 2, 200);
  auto decoding = engine->submit(busy);
  EnginePublication publication{.sender = sender,
                                .context = r.context,
                                .store = store->get(),
                                .options = {.cuts = plain_cuts({1, 2, 3, 4})}};
  auto first = engine->publish(publication), second = engine->publish(publication);
  ASSERT_TRUE(first.ok()) << first.status().message();
  EXPECT_EQ(*first, *second) << "once";
  auto published = (*first)->wait();
  ASSERT_TRUE(published.ok()) << published.status().message();
  EXPECT_FALSE(published->already);
  auto answer = (*decoding)->wait();
  ASSERT_TRUE(answer.ok()) << answer.status().message();
  expect_same(
      alone(pair, pair.sender, full_prefill_plan(pair.sender.identity, pair.shape(), "f32"), busy, nullptr),
      *answer, "beside it");
  // It is what publish() makes, to the byte.
  pair.publish_to(**other, r.context);
  auto mine = (*store)->open(published->key), theirs = (*other)->open(published->key);
  ASSERT_TRUE(mine.ok() && theirs.ok());
  ASSERT_EQ((*mine)->size(), (*theirs)->size());
  std::vector<std::byte> a(static_cast<size_t>((*mine)->size())), b(a.size());
  ASSERT_TRUE((*mine)->read(0, a).ok() && (*theirs)->read(0, b).ok());
  EXPECT_EQ(a, b);
  r.store = store->get();
  expect_same(alone(pair, pair.receiver, plan, r, r.store), answer_of(*engine, r), "from it");
  published = (*engine->publish(publication))->wait();
  ASSERT_TRUE(published.ok());
  EXPECT_TRUE(published->already);
  // Too large, and cancelled.
  publication.context = random_ids(900, kVocab, 3);
  auto cancelled = engine->publish(publication);
  ASSERT_TRUE(cancelled.ok()) << cancelled.status().message();
  (*cancelled)->cancel();
  auto ended = (*cancelled)->wait();
  EXPECT_TRUE(ended.ok() || ended.status().code() == Code::kExhausted);
  limits.cache_bytes = 100'000;
  engine = make_engine(*pair.backend, limits);
  publication.sender = add(*engine, pair, pair.sender);
  auto refused = engine->publish(publication);
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.status().message().find("gives publications"), std::string::npos)
      << refused.status().message();
}

/// A store that takes its time to be written to, at each of an entry's parts: so many ms, or until it is
/// free.
class SlowToWrite final : public Store {
 public:
  explicit SlowToWrite(Store& under, int most_ms = 200) : under_(under), most_ms_(most_ms) {}
  std::string url() const override { return "slow:"; }
  Status put(const std::string& key, const Produce& produce, Names names) override {
    return under_.put(
        key,
        [&](const Sink& sink) {
          return produce([&](std::span<const std::byte> bytes) {
            ++parts;
            for (int waited = 0; waited < most_ms_ && !free; ++waited) std::this_thread::sleep_for(1ms);
            return sink(bytes);
          });
        },
        names);
  }
  Result<std::unique_ptr<StoreObject>> open(const std::string& key) override { return under_.open(key); }
  Status remove(const std::string& key) override { return under_.remove(key); }
  std::atomic<int> parts{0};
  std::atomic<bool> free{false};

 private:
  Store& under_;
  const int most_ms_;
};
constexpr int kForEver = 1 << 30;

/// An entry that nobody waits for any more is not written to its end.
TEST(Engine, APublicationIsGivenUpBetweenItsParts) {
  Pair pair;
  auto store = open_store("file:" + fresh_folder("given_up"));
  const std::vector<int32_t> context = random_ids(300, kVocab, 1);
  auto parts = [&](const std::function<void(std::unique_ptr<Engine>&, PublicationTicket&)>& stop,
                   std::string_view says) {
    SlowToWrite slow(**store);
    auto engine = make_engine(*pair.backend, kLimits);
    auto ticket = engine->publish({.sender = add(*engine, pair, pair.sender),
                                   .context = context,
                                   .store = &slow,
                                   .options = {.cuts = plain_cuts({1, 2, 3, 4})}});
    EXPECT_TRUE(ticket.ok()) << ticket.status().message();
    if (!ticket.ok()) return 0;
    while (slow.parts == 0) std::this_thread::sleep_for(1ms);
    stop(engine, **ticket);
    slow.free = true;
    auto ended = (*ticket)->wait();
    if (says.empty()) {
      EXPECT_TRUE(ended.ok()) << ended.status().message();
    } else {
      EXPECT_FALSE(ended.ok()) << says;
      EXPECT_EQ(ended.status().code(), Code::kExhausted);
      EXPECT_NE(ended.status().message().find(says), std::string::npos) << ended.status().message();
      auto there = (*store)->list();
      EXPECT_TRUE(there.ok() && there->empty()) << says;
    }
    return slow.parts.load();
  };
  const int cancelled = parts([](auto&, PublicationTicket& ticket) { ticket.cancel(); }, "cancelled");
  const int closed = parts([](std::unique_ptr<Engine>& engine, auto&) { engine.reset(); }, "closed");
  const int all = parts([](auto&, auto&) {}, "");
  EXPECT_EQ(cancelled, 1) << "the one that it was in";
  EXPECT_LT(closed, all);
}

/// A store that hangs holds the publications behind it for as long as it is waited for; those to it end,
/// those to others are written, and what it took is given back when it lets go.
TEST(Engine, APublicationThatHangsHoldsTheOthersForAWhile) {
  Pair pair;
  auto store = open_store("file:" + fresh_folder("holds"));
  EngineLimits limits = kLimits;
  limits.publish_patience_ns = 1'500'000'000;
  SlowToWrite writes(**store, kForEver);
  FaultyStore looks_up(**store, Fault::kLookUpHangs);
  auto engine = make_engine(*pair.backend, limits);
  const Receiver* sender = add(*engine, pair, pair.sender);
  auto publish_to = [&](Store& to, uint64_t seed) {
    auto ticket = engine->publish({.sender = sender,
                                   .context = random_ids(200, kVocab, seed),
                                   .store = &to,
                                   .options = {.cuts = plain_cuts({2}), .only_new = true}});
    EXPECT_TRUE(ticket.ok()) << ticket.status().message();
    return *ticket;
  };
  std::vector<std::shared_ptr<PublicationTicket>> late{publish_to(writes, 1), publish_to(looks_up, 2),
                                                       publish_to(writes, 3)};
  auto right = publish_to(**store, 4);
  auto written = right->wait();
  EXPECT_TRUE(written.ok()) << written.status().message();
  for (auto& ticket : late) {
    auto ended = ticket->wait();
    ASSERT_FALSE(ended.ok());
    EXPECT_EQ(ended.status().code(), Code::kExhausted);
    EXPECT_TRUE(ended.status().message().starts_with("late: ")) << ended.status().message();
  }
  EngineStats stats = engine->stats();
  EXPECT_EQ(stats.published, 1);
  EXPECT_EQ(stats.publications_late, 3);
  EXPECT_EQ(stats.publications_open, 0);
  EXPECT_GT(stats.claimed_bytes, 0) << "what it may still read";
  EXPECT_EQ(writes.parts, 1) << "the third one was not tried";
  writes.free = true;
  looks_up.let_go();
  for (int i = 0; i < 10'000 && engine->stats().claimed_bytes > 0; ++i) std::this_thread::sleep_for(1ms);
  EXPECT_EQ(engine->stats().claimed_bytes, 0);
  EXPECT_TRUE(publish_to(writes, 5)->wait().ok()) << "it is well again";
}

/// An engine that is closed leaves a store that hangs to itself, whatever it hangs in, and needs nothing of
/// its models then; what the store was given goes when it lets go.
TEST(Engine, AStoreThatHangsHoldsNoEngineThatIsClosed) {
  struct Owned {
    std::unique_ptr<Store> under;
    std::unique_ptr<FaultyStore> faulty;
    std::unique_ptr<SlowToWrite> slow;
    std::unique_ptr<testing::LiveScript> shown;
    std::mutex mutex;
    std::condition_variable changed;
    bool hangs = false, free = false;
  };
  enum class In { kLookUp, kRead, kWrite, kShowing };
  for (const In in : {In::kLookUp, In::kRead, In::kWrite, In::kShowing}) {
    SCOPED_TRACE(static_cast<int>(in));
    auto owned = std::make_shared<Owned>();
    owned->under = std::move(open_store("file:" + fresh_folder("left"))).value();
    std::shared_ptr<Ticket> request;
    std::shared_ptr<PublicationTicket> publication;
    {
      auto pair = std::make_unique<Pair>();
      auto plan =
          std::make_unique<Plan>(pair->named(make_plan(pair->shape(), {2, 3}, "e-first", pair->options())));
      EngineLimits limits = kLimits;
      limits.close_patience_ns = 20'000'000;
      limits.patience_ns = 3'600'000'000'000;
      auto engine = make_engine(*pair->backend, limits);
      EngineRequest r = request_of(add(*engine, *pair, pair->receiver, {plan.get()}), 300, 9, 1);
      EnginePublication p{.sender = add(*engine, *pair, pair->sender),
                          .context = r.context,
                          .store_owner = owned,
                          .options = {.cuts = plain_cuts({1, 2, 3, 4})}};
      if (in == In::kLookUp || in == In::kRead) {
        pair->publish_to(*owned->under, r.context);
        owned->faulty = std::make_unique<FaultyStore>(
            *owned->under, in == In::kRead ? Fault::kHangs : Fault::kLookUpHangs, 1);
        r.store = owned->faulty.get();
        r.store_owner = owned;
        request = *engine->submit(r);
        while (!owned->faulty->hangs()) std::this_thread::sleep_for(1ms);
      } else if (in == In::kWrite) {
        owned->slow = std::make_unique<SlowToWrite>(*owned->under, kForEver);
        p.store = owned->slow.get();
        publication = *engine->publish(p);
        while (owned->slow->parts == 0) std::this_thread::sleep_for(1ms);
      } else {
        owned->shown = std::make_unique<testing::LiveScript>(*owned->under);
        owned->shown->before_append = [o = owned.get()] {
          std::unique_lock lock(o->mutex);
          o->hangs = true;
          o->changed.notify_all();
          o->changed.wait(lock, [&] { return o->free; });
        };
        p.store = owned->shown.get();
        p.options.live_rows = 64;
        publication = *engine->publish(p);
        std::unique_lock lock(owned->mutex);
        owned->changed.wait(lock, [&] { return owned->hangs; });
      }
    }
    if (request) {
      EXPECT_EQ(request->wait().status().code(), Code::kExhausted);
    }
    if (publication) {
      auto ended = publication->wait();
      ASSERT_FALSE(ended.ok());
      EXPECT_NE(ended.status().message().find("closed"), std::string::npos) << ended.status().message();
    }
    EXPECT_GT(owned.use_count(), 1) << "it is still in it";
    if (owned->faulty) owned->faulty->let_go();
    if (owned->slow) owned->slow->free = true;
    {
      std::lock_guard lock(owned->mutex);
      owned->free = true;
      owned->changed.notify_all();
    }
    for (int i = 0; i < 30'000 && owned.use_count() > 1; ++i) std::this_thread::sleep_for(1ms);
    EXPECT_EQ(owned.use_count(), 1);
  }
}

/// What a publication needs before it begins is made while requests go on.
TEST(Engine, RequestsDoNotWaitForAPublicationThatBegins) {
  if (!exact_rows()) GTEST_SKIP() << "models are wrapped on streams of host code";
  Pair pair;
  auto store = open_store("file:" + fresh_folder("begins"));
  MapSet maps = testing::make_maps(pair.shape(), 3, [](int64_t, const std::string&, std::vector<float>&) {});
  testing::set_pair(maps, pair.sender.identity, pair.receiver.identity);
  testing::BrokenModel model(*pair.sender.model);
  auto engine = make_engine(*pair.backend, kLimits);
  const Receiver* sender =
      *engine->add(std::move(Receiver::create("s", model, pair.sender.identity)).value());
  const Receiver* other = add(*engine, pair, pair.receiver);
  std::atomic<bool> answered{false};
  model.on_workspace = [&] {
    answer_of(*engine, request_of(other, 100, 9, 1));
    answered = true;
  };
  auto ticket = engine->publish({.sender = sender,
                                 .context = random_ids(100, kVocab, 2),
                                 .store = store->get(),
                                 .options = {.cuts = {{2, MapForm::kDiagonal}}, .maps = &maps}});
  EXPECT_TRUE(answered);
  ASSERT_TRUE(ticket.ok()) << ticket.status().message();
  auto published = (*ticket)->wait();
  EXPECT_TRUE(published.ok()) << published.status().message();
}

/// A device that is lost ends everything that needs it, publications too.
TEST(Engine, ALostDeviceEndsWhatNeedsIt) {
  if (!exact_rows()) GTEST_SKIP() << "kernels are broken on streams of host code";
  Pair pair;
  auto store = open_store("file:" + fresh_folder("device"));
  FaultyStore hangs(**store, Fault::kLookUpHangs);
  testing::BrokenModel model(*pair.receiver.model);
  model.fails = "layer";
  model.code = Code::kUnavailable;
  auto engine = make_engine(*pair.backend, kLimits);
  const Receiver* receiver =
      *engine->add(std::move(Receiver::create("r", model, pair.receiver.identity)).value());
  const Receiver* sender = add(*engine, pair, pair.sender);
  EnginePublication publication{.sender = sender,
                                .context = random_ids(100, kVocab, 2),
                                .store = &hangs,
                                .options = {.only_new = true}};
  auto first = engine->publish(publication);
  publication.context.push_back(1);
  std::atomic<int> ended{0};
  publication.on_end = [&] { ++ended; };
  auto second = engine->publish(publication);
  ASSERT_TRUE(first.ok() && second.ok());
  auto answer = (*engine->submit(request_of(receiver, 100, 9, 1)))->wait();
  ASSERT_FALSE(answer.ok());
  EXPECT_EQ(answer.status().code(), Code::kUnavailable);
  for (auto* ticket : {&first, &second}) {
    auto published = (**ticket)->wait();
    ASSERT_FALSE(published.ok());
    EXPECT_EQ(published.status().code(), Code::kUnavailable) << published.status().message();
  }
  engine->drain();
  EXPECT_EQ(engine->stats().publications_open, 0);
  auto refused = engine->publish(publication);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.status().code(), Code::kUnavailable);
  EXPECT_EQ(engine->submit(request_of(sender, 10, 9, 1)).status().code(), Code::kUnavailable);
  hangs.let_go();
  engine.reset();
  EXPECT_EQ(ended, 1);
}

/// A conversation: what another model has read of it comes by plan, the rest is read; and what a model has
/// read anew is published, whether its caches are still there or not.
TEST(Engine, AContextThatGrowsCostsItsNewTokens) {
  Pair pair;
  const Plan plan = pair.named(make_plan(pair.shape(), {2, 3}, "e-first", pair.options()));
  const std::vector<int32_t> talk = random_ids(500, kVocab, 5);
  auto turn = [&](int64_t n) { return std::vector<int32_t>(talk.begin(), talk.begin() + n); };
  std::vector<std::vector<std::byte>> entries[2];
  for (const bool kept : {true, false}) {
    SCOPED_TRACE(kept);
    const std::string folder = fresh_folder(kept ? "talk_kept" : "talk");
    auto store = open_store("file:" + folder);
    EngineLimits limits = kLimits;
    limits.prefix_cache = kept;
    auto engine = make_engine(*pair.backend, limits);
    const Receiver* receiver = add(*engine, pair, pair.receiver, {&plan});
    const Receiver* sender = add(*engine, pair, pair.sender);
    int64_t there = 0;
    for (int64_t n : {150, 310, 400}) {
      EngineRequest r = request_of(receiver, n, 9, 1);
      r.context = turn(n);
      r.store = store->get();
      const EngineAnswer answer = answer_of(*engine, r);
      // A look-up is not waited for for long, and a machine may be busy.
      const bool late = answer.miss.message().starts_with("late: ");
      // What the receiver has kept of a turn goes on where that is most of the next one, or more than the
      // sender has.
      EXPECT_EQ(answer.cached_tokens > 0, kept && there > 0);
      if (answer.cached_tokens == 0 && !late) {
        EXPECT_EQ(answer.cache, there > 0 ? CacheStatus::kHit : CacheStatus::kMiss) << answer.miss.message();
        EXPECT_EQ(answer.reused_tokens, there);
        EXPECT_EQ(answer.shorter.code(), there > 0 ? Code::kNotFound : Code::kOk) << answer.shorter.message();
        if (there > 0) {
          EngineRequest by_hand = r;
          by_hand.context = turn(there);
          by_hand.suffix.assign(talk.begin() + there, talk.begin() + n);
          by_hand.suffix.insert(by_hand.suffix.end(), r.suffix.begin(), r.suffix.end());
          expect_same(alone(pair, pair.receiver, plan, by_hand, r.store), answer, "by hand");
        }
      }
      EngineRequest asked = request_of(sender, n, 9, 2);
      asked.context = turn(n);
      answer_of(*engine, asked);
      auto ticket = engine->publish({.sender = sender,
                                     .context = turn(n),
                                     .store = store->get(),
                                     .options = {.cuts = plain_cuts({1, 2, 3, 4}), .only_new = true}});
      ASSERT_TRUE(ticket.ok()) << ticket.status().message();
      auto published = (*ticket)->wait();
      ASSERT_TRUE(published.ok()) << published.status().message();
      EXPECT_EQ(published->first, there);
      EXPECT_FALSE(published->already);
      auto object = (*store)->open(published->key);
      ASSERT_TRUE(object.ok());
      auto& bytes = entries[kept ? 0 : 1].emplace_back(static_cast<size_t>((*object)->size()));
      ASSERT_TRUE((*object)->read(0, bytes).ok());
      there = n / 64 * 64;
    }
    auto again = (*engine->publish({.sender = sender,
                                    .context = turn(400),
                                    .store = store->get(),
                                    .options = {.cuts = plain_cuts({1, 2}), .only_new = true}}))
                     ->wait();
    ASSERT_TRUE(again.ok());
    EXPECT_TRUE(again->already);
    EXPECT_EQ(again->after, 3u);
  }
  if (exact_rows()) {
    EXPECT_EQ(entries[0], entries[1]);
  }
}

/// Lets look-ups go on when so many have come.
class MeetingStore final : public Store {
 public:
  MeetingStore(Store& under, int expected) : under_(under), expected_(expected) {}
  std::string url() const override { return "meeting:"; }
  Status put(const std::string& key, const Produce& produce, Names names) override {
    return under_.put(key, produce, names);
  }
  Result<std::unique_ptr<StoreObject>> open(const std::string& key) override {
    {
      std::unique_lock lock(mutex_);
      ++came_;
      changed_.notify_all();
      if (!changed_.wait_for(lock, 60s, [&] { return came_ >= expected_; }))
        return error(Code::kIo, "it is alone");
    }
    return under_.open(key);
  }
  Status remove(const std::string& key) override { return under_.remove(key); }

 private:
  Store& under_;
  const int expected_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int came_ = 0;
};

/// Of several senders whose entries are there, the one whose plan promises the least loss; then the fastest.
TEST(Engine, TheBestSenderThatIsThereIsTaken) {
  Pair pair;
  std::vector<Pair::One> senders(3);
  for (size_t i = 0; i < senders.size(); ++i) {
    Pair::One& s = senders[i];
    s.checkpoint = std::make_unique<Checkpoint>(
        std::move(Checkpoint::random(tiny_config(Family::kLlama), 70 + i)).value());
    s.model = std::move(pair.backend->load(*s.checkpoint, {.dtype = DType::kF32})).value();
    s.identity = *s.checkpoint->identity();
  }
  std::vector<Plan> plans;
  for (const Pair::One& s : senders) {
    plans.push_back(pair.named(make_plan(pair.shape(), {2, 3}, "e-first", pair.options())));
    plans.back().sender = s.identity;
  }
  auto promise = [&](size_t i, double loss, int64_t ttft, double bound = kUnknown) {
    plans[i].variants[0].promise.quality_loss = loss;
    plans[i].variants[0].promise.ttft_ns = ttft;
    plans[i].variants[0].promise.loss_bound = bound;
  };
  const double any = kUnknown;
  int number = 0;
  auto answers = [&](std::vector<size_t> published, double limit) -> int {
    auto store = open_store("file:" + fresh_folder(fmt::format("senders{}", ++number)));
    EngineLimits limits = kLimits;
    limits.patience_ns = 60'000'000'000;  // a machine may be busy
    auto engine = make_engine(*pair.backend, limits);
    EngineRequest r =
        request_of(add(*engine, pair, pair.receiver, {&plans[0], &plans[1], &plans[2]}), 200, 9, 1);
    for (size_t i : published) {
      auto done = publish(*pair.backend, *senders[i].model, senders[i].identity, r.context, **store,
                          {.cuts = plain_cuts({2})});
      EXPECT_TRUE(done.ok()) << done.status().message();
    }
    r.store = store->get();
    r.loss_limit = limit;
    int within = 0;
    for (const Plan& plan : plans) {
      const Promise& p = plan.variants[0].promise;
      const double loss = std::isnan(p.loss_bound) ? p.quality_loss : p.loss_bound;
      within += std::isnan(limit) || loss <= limit ? 1 : 0;
    }
    MeetingStore meeting(**store, within);  // all look-ups are under way at a time
    r.store = &meeting;
    const EngineAnswer answer = answer_of(*engine, r);
    for (size_t i = 0; i < plans.size(); ++i) {
      if (answer.variant != &plans[i].variants[0]) continue;
      expect_same(alone(pair, pair.receiver, plans[i], r, store->get()), answer, fmt::format("sender {}", i));
      return static_cast<int>(i);
    }
    EXPECT_EQ(answer.cache, within > 0 ? CacheStatus::kMiss : CacheStatus::kUnused);
    EXPECT_EQ(answer.miss.ok(), within == 0);
    return -1;
  };
  promise(0, 2, 10);
  promise(1, 1, 30);
  promise(2, 1, 20);
  EXPECT_EQ(answers({0, 1, 2}, any), 2) << "the least loss, the fastest of two";
  EXPECT_EQ(answers({0, 1}, any), 1);
  EXPECT_EQ(answers({0}, any), 0);
  EXPECT_EQ(answers({}, any), -1);
  EXPECT_EQ(answers({0}, 1.5), -1) << "it promises too little";
  EXPECT_EQ(answers({0, 1, 2}, 0.5), -1) << "none promises enough";
  promise(2, 1, 20, 2.5);
  EXPECT_EQ(answers({0, 1, 2}, any), 1) << "the bound is what is promised";
  promise(1, kUnknown, 5);
  EXPECT_EQ(answers({0, 1, 2}, any), 0) << "an unknown loss is the last choice";
  EXPECT_EQ(answers({1}, any), 1);
  EXPECT_EQ(answers({1}, 100), -1) << "and within no limit";
}

/// Lost transfers become recomputation; with S = R that is the full prefill's answer, to the bit.
TEST(Engine, ALostTransferIsRecomputed) {
  Pair pair;
  auto store = open_store("file:" + fresh_folder("lost"));
  const EngineRequest asked = request_of(nullptr, 200, 9, 1);
  const auto context = asked.context;
  auto published = publish(*pair.backend, *pair.receiver.model, pair.receiver.identity, context, **store,
                           {.cuts = plain_cuts({1, 2, 3, 4})});
  ASSERT_TRUE(published.ok());
  const Plan exact = full_prefill_plan(pair.receiver.identity, pair.shape(), "f32");
  const Told expected = alone(pair, pair.receiver, exact, asked, nullptr);
  int repaired = 0, missed = 0;
  for (Fault fault : {Fault::kFails, Fault::kFlips, Fault::kHangs}) {
    for (int chunks : {1, 3}) {
      const auto options = pair.options(chunks);
      std::vector<Plan> plans{make_plan(pair.shape(), {2, 3}, "e-first", options),
                              make_plan(pair.shape(), {3, 4}, "kv-preload", options),
                              make_plan(pair.shape(), {0, -1}, "e-first", options),
                              make_restore_range_plan(pair.shape(), 1, 3, options),
                              make_select_plan(pair.shape(), 0.3, pair.options())};
      for (size_t i = 0; i < plans.size(); ++i) {
        plans[i].sender = plans[i].receiver = pair.receiver.identity;
        for (int from : {1, 2, 4}) {
          FaultyStore faulty(**store, fault, from);
          auto engine = make_engine(*pair.backend, kLimits);
          EngineRequest r = asked;
          r.receiver = add(*engine, pair, pair.receiver, {&plans[i]});
          r.store = &faulty;
          const EngineAnswer answer = answer_of(*engine, r);
          const std::string what = fmt::format("fault {} from read {}, {} chunks, plan {}",
                                               static_cast<int>(fault), from, chunks, i);
          expect_same(expected, answer, what);
          EXPECT_NE(answer.cache, CacheStatus::kHit) << what;
          EXPECT_EQ(answer.cache == CacheStatus::kRepaired, answer.repaired && answer.reused != nullptr)
              << what;
          EXPECT_FALSE(answer.miss.ok()) << what;
          repaired += answer.repaired ? 1 : 0;
          ++missed;
          // The engine is well: the next request is served, by the same model.
          EngineRequest next = asked;
          next.receiver = r.receiver;
          next.reuse = Reuse::kOff;
          expect_same(expected, answer_of(*engine, next), what + ", afterwards");
          faulty.let_go();
        }
      }
    }
  }
  EXPECT_GT(repaired, missed / 2) << "most faults come while the plan runs";
}

/// While nothing comes of a store, the device does what it would do without it.
TEST(Engine, TheFullPrefillRunsWhileAStoreHangs) {
  Pair pair;
  auto store = open_store("file:" + fresh_folder("stand_in"));
  const Plan plan = pair.named(make_plan(pair.shape(), {2, 3}, "e-first", pair.options(3)));
  const Plan exact = full_prefill_plan(pair.receiver.identity, pair.shape(), "f32");
  const EngineRequest asked = request_of(nullptr, 300, 9, 1);
  pair.publish_to(**store, asked.context);
  for (const Fault fault : {Fault::kLookUpHangs, Fault::kHangs}) {
    FaultyStore faulty(**store, fault, 1);
    EngineLimits limits = kLimits;
    limits.patience_ns = 60'000'000;
    limits.step_budget_ns = 60'000'000'000;  // whole ops
    limits.record_spans = true;
    auto engine = make_engine(*pair.backend, limits);
    EngineRequest r = asked;
    r.receiver = add(*engine, pair, pair.receiver, {&plan});
    r.reuse = Reuse::kOff;
    answer_of(*engine, r);  // it knows then that a full prefill takes less than its patience
    engine->take_spans();
    r.reuse = Reuse::kAuto;
    r.store = &faulty;
    const EngineAnswer answer = answer_of(*engine, r);
    const std::string what = fmt::format("fault {}", static_cast<int>(fault));
    EXPECT_EQ(engine->stats().stand_ins, 1) << what;
    EXPECT_EQ(answer.cache, CacheStatus::kMiss) << what;
    EXPECT_NE(answer.miss.message().find("late"), std::string::npos) << answer.miss.message();
    EXPECT_FALSE(answer.repaired) << what;
    EXPECT_EQ(answer.reused, nullptr) << what;
    EXPECT_EQ(answer.reused_tokens, 0) << what;
    expect_same(alone(pair, pair.receiver, exact, asked, nullptr), answer, what);
    // What it did while it waited is not done again: all rows went through each layer once.
    std::map<std::string, int> ran;
    for (const EngineSpan& s : engine->take_spans())
      if (s.request != 0 && s.stream == StreamKind::kCompute) ++ran[s.what];
    EXPECT_EQ(ran["head"], 1) << what;
    for (int64_t l = 0; l < pair.shape().layers; ++l)
      EXPECT_EQ(ran[fmt::format("prefill {}", l)], 1) << what << ", layer " << l;
    // Memory that the store may still write to stays; what the answer used is kept as the receiver's own.
    EngineRequest again = asked;
    again.receiver = r.receiver;
    again.reuse = Reuse::kExact;
    EXPECT_GT(answer_of(*engine, again).cached_tokens, 0) << what;
    faulty.let_go();
  }
}

TEST(Engine, AStoreThatAnswersInTimeIsUsedAllTheSame) {
  Pair pair;
  auto store = open_store("file:" + fresh_folder("stand_in_dropped"));
  const Plan plan = pair.named(make_plan(pair.shape(), {2, 3}, "e-first", pair.options(3)));
  const EngineRequest asked = request_of(nullptr, 300, 9, 1);
  pair.publish_to(**store, asked.context);
  const Told expected = alone(pair, pair.receiver, plan, asked, store->get());
  for (const Fault fault : {Fault::kLookUpHangs, Fault::kHangs}) {
    FaultyStore faulty(**store, fault, 1);
    EngineLimits limits = kLimits;
    limits.prefix_cache = false;
    limits.patience_ns = 2'000'000'000;
    auto engine = make_engine(*pair.backend, limits);
    EngineRequest r = asked;
    r.receiver = add(*engine, pair, pair.receiver, {&plan});
    r.reuse = Reuse::kOff;
    answer_of(*engine, r);  // one that has run knows how long a full prefill takes
    r.reuse = Reuse::kAuto;
    r.store = &faulty;
    auto ticket = engine->submit(r);
    ASSERT_TRUE(ticket.ok()) << ticket.status().message();
    while (engine->stats().stand_ins == 0 && !(*ticket)->done()) std::this_thread::sleep_for(1ms);
    faulty.let_go();
    auto answer = (*ticket)->wait();
    ASSERT_TRUE(answer.ok()) << answer.status().message();
    const std::string what = fmt::format("fault {}", static_cast<int>(fault));
    EXPECT_EQ(engine->stats().stand_ins, 1) << what;
    EXPECT_EQ(answer->cache, CacheStatus::kHit) << what << ": " << answer->miss.message();
    EXPECT_EQ(answer->reused, &plan.variants[0]) << what;
    expect_same(expected, *answer, what);
    engine->drain();
    EXPECT_EQ(engine->stats().claimed_bytes, 0) << what << ": its memory is back";
  }
}

/// One transfer of many that fails costs its own cells: what else is sent comes and is used.
TEST(Engine, WhatIsSentBesideALostTransferIsUsed) {
  Pair pair;
  auto store = open_store("file:" + fresh_folder("one_lost"));
  const Plan plan = pair.named(make_plan(pair.shape(), {2, 3}, "e-first", pair.options(3)));
  const Variant& v = plan.variants[0];
  EngineRequest asked = request_of(nullptr, 300, 9, 1);
  pair.publish_to(**store, asked.context);
  const Shape shape = pair.shape();
  auto bytes_of = [&](const Op& op) {
    const int64_t row = op.payload == Payload::kE ? shape.e_row() : shape.kv_row();
    return op_rows(op, v.chunks, 300, 9, 0).rows * row * 4;
  };
  std::vector<Op> transfers;
  int64_t all = 0;
  for (const Op& op : v.ops)
    if (op.kind == OpKind::kTransfer) {
      transfers.push_back(op);
      all += bytes_of(op);
    }
  ASSERT_EQ(transfers.size(), 12u);
  EngineLimits limits = kLimits;
  limits.patience_ns = 60'000'000'000;  // a machine may be busy
  for (size_t lost = 0; lost < transfers.size(); ++lost) {
    const int read = static_cast<int>(lost) + 1;  // the first one is the header's
    FaultyStore faulty(**store, Fault::kRestarts, read);
    auto engine = make_engine(*pair.backend, limits);
    EngineRequest r = asked;
    r.receiver = add(*engine, pair, pair.receiver, {&plan});
    r.store = &faulty;
    const EngineAnswer answer = answer_of(*engine, r);
    const Op& op = transfers[lost];
    // What lies below, of the same rows, need not come any more.
    int64_t below = 0;
    for (const Op& other : transfers)
      if (other.payload == Payload::kKv && other.chunk == op.chunk && other.layer < op.layer)
        below += bytes_of(other);
    const std::string what = fmt::format("transfer {}: layer {}, chunk {}", lost, op.layer, op.chunk);
    EXPECT_TRUE(answer.repaired) << what << ": " << answer.miss.message();
    EXPECT_EQ(answer.cache, CacheStatus::kRepaired) << what;
    EXPECT_EQ(engine->stats().entry_repairs, 1) << what;
    EXPECT_EQ(engine->stats().entry_misses, 0) << what;
    EXPECT_EQ(answer.transfers, 12) << what;
    EXPECT_GE(answer.lost_transfers, 1) << what;
    EXPECT_LE(answer.lost_transfers, 1 + op.layer) << what << ": itself, and what lies below";
    EXPECT_LE(answer.bytes_loaded, all - bytes_of(op)) << what;
    EXPECT_GE(answer.bytes_loaded, all - bytes_of(op) - below) << what;
    EXPECT_EQ(answer.reused, &v) << what;
  }
}

/// A repaired run is looked at by what it says; its keys only where they are the sender's.
TEST(Engine, AGateLooksAtARepairedRun) {
  Pair pair;
  auto store = open_store("file:" + fresh_folder("repaired_gate"));
  const Plan plan = pair.named(make_plan(pair.shape(), {2, 3}, "e-first", pair.options(3)));
  const Plan exact = full_prefill_plan(pair.receiver.identity, pair.shape(), "f32");
  EngineRequest asked = request_of(nullptr, 300, 9, 1);
  pair.publish_to(**store, asked.context);
  EngineLimits limits = kLimits;
  limits.patience_ns = 60'000'000'000;
  auto answer_at = [&](const Gate& gate, int lost_read) {
    FaultyStore faulty(**store, Fault::kRestarts, lost_read);
    auto engine = make_engine(*pair.backend, limits);
    EngineRequest r = asked;
    r.receiver = add(*engine, pair, pair.receiver, {&plan});
    r.store = &faulty;
    r.gates = {&gate};
    return answer_of(*engine, r);
  };
  // Reads: the header, E of three chunks, K and V of layers 0, 1 and 4, chunk by chunk.
  const int none = 1 << 20, of_layer_0 = 5, of_layer_4 = 11;
  const Gate wide = gate_at(plan, proxies(1e6, 1e6, 0)), strict = gate_at(plan, proxies(0, 0, 1));
  const EngineAnswer healthy = answer_at(wide, none);
  ASSERT_TRUE(healthy.gate.checked);
  EXPECT_FALSE(healthy.gate.repaired);
  for (const int lost : {of_layer_0, of_layer_4}) {
    const EngineAnswer answer = answer_at(wide, lost);
    EXPECT_TRUE(answer.repaired);
    EXPECT_TRUE(answer.gate.checked && answer.gate.repaired && !answer.gate.alarmed);
    EXPECT_FALSE(std::isnan(answer.gate.values[Proxy::kEntropy]));
    const double keys = answer.gate.values[Proxy::kKDeviation];
    if (lost == of_layer_0) {
      EXPECT_TRUE(std::isnan(keys) && std::isnan(answer.gate.thresholds[Proxy::kKDeviation]));
    } else {
      EXPECT_EQ(keys, healthy.gate.values[Proxy::kKDeviation]);
    }
    auto window = DriftWindow::make("profile");
    ASSERT_TRUE(window.ok());
    const GateReference& reference = *wide.reference(plan.variants[0]);
    window->add(reference.way, answer.gate);
    EXPECT_EQ(window->report(reference, 0.1).requests, 0) << "the profile has no such runs";
    window->add(reference.way, healthy.gate);
    EXPECT_EQ(window->report(reference, 0.1).requests, 1);
    const EngineAnswer alarmed = answer_at(strict, lost);
    EXPECT_TRUE(alarmed.gate.alarmed);
    expect_same(alone(pair, pair.receiver, exact, asked, nullptr), alarmed, "after the alarm");
  }
}

/// A kernel that fails ends its request, whoever else is in its step or its batch.
TEST(Engine, AFailedKernelIsItsRequestsError) {
  if (!exact_rows()) GTEST_SKIP() << "kernels are broken on streams of host code";
  Pair pair;
  const Plan exact = full_prefill_plan(pair.receiver.identity, pair.shape(), "f32");
  for (const char* fault : {"layer", "batch", "head"}) {
    testing::BrokenModel model(*pair.receiver.model);
    EngineLimits limits = kLimits;
    limits.prefix_cache = false;
    auto engine = make_engine(*pair.backend, limits);
    auto made = Receiver::create("broken", model, pair.receiver.identity);
    ASSERT_TRUE(made.ok()) << made.status().message();
    const Receiver* receiver = *engine->add(std::move(made).value());
    std::vector<EngineRequest> requests;
    for (uint64_t i = 0; i < 8; ++i)
      requests.push_back(request_of(receiver, 60 + 9 * static_cast<int64_t>(i), 4, 20 + i, 12));
    model.fails = fault;
    model.rows = 60 + 9 * 5 + 4;         // the whole of request 5, and of no other
    model.position = 60 + 9 * 5 + 6;     // decoded by it alone
    if (std::string(fault) == "head") {  // of any: all fail
      auto answer = (*engine->submit(requests[0]))->wait();
      ASSERT_FALSE(answer.ok());
      EXPECT_NE(answer.status().message().find("head"), std::string::npos) << answer.status().message();
      model.fails.clear();
    }
    // Others come to the same positions at other times: they decode where the fault is not.
    std::vector<std::shared_ptr<Ticket>> tickets;
    for (size_t i = 0; i < requests.size(); ++i) {
      if (std::string(fault) == "batch" && i < 5) requests[i].max_new_tokens = 3;
      tickets.push_back(*engine->submit(requests[i]));
    }
    for (size_t i = 0; i < requests.size(); ++i) {
      auto answer = tickets[i]->wait();
      const std::string what = fmt::format("{}, request {}", fault, i);
      if (i == 5 && std::string(fault) != "head") {
        ASSERT_FALSE(answer.ok()) << what;
        EXPECT_EQ(answer.status().code(), Code::kInternal);
        EXPECT_NE(answer.status().message().find("this kernel is broken"), std::string::npos);
        EXPECT_NE(answer.status().message().find(fault[0] == 'l' ? "prefill" : "token 4 of the answer"),
                  std::string::npos)
            << answer.status().message();
        continue;
      }
      ASSERT_TRUE(answer.ok()) << what << ": " << answer.status().message();
      expect_same(alone(pair, pair.receiver, exact, requests[i], nullptr), *answer, what);
    }
    engine->drain();
    EXPECT_EQ(engine->stats().failed, 1) << fault;
    EXPECT_EQ(engine->stats().claimed_bytes, 0) << fault;
  }
}

TEST(Engine, RefusesWhatCannotBe) {
  Pair pair;
  auto engine = make_engine(*pair.backend, {.cache_bytes = 1 << 20, .tokens = 512, .batch = 2, .queue = 4});
  const Receiver* receiver = add(*engine, pair, pair.receiver);
  auto refused = [&](EngineRequest r, Code code, const char* says) {
    auto ticket = engine->submit(std::move(r));
    ASSERT_FALSE(ticket.ok());
    EXPECT_EQ(ticket.status().code(), code) << ticket.status().message();
    EXPECT_NE(ticket.status().message().find(says), std::string::npos) << ticket.status().message();
  };
  refused(request_of(nullptr, 8, 1, 1), Code::kInvalidArgument, "none of this engine's");
  refused(request_of(receiver, 8, 0, 1), Code::kInvalidArgument, "no tokens");
  refused(request_of(receiver, 600, 1, 1), Code::kInvalidArgument, "takes 512 positions");
  refused(request_of(receiver, 8, 1, 1, 0), Code::kInvalidArgument, "at least one new token");
  EngineRequest outside = request_of(receiver, 8, 1, 1);
  outside.context[3] = 300;
  refused(outside, Code::kInvalidArgument, "context token 3 has id 300");
  engine = make_engine(*pair.backend, {.cache_bytes = 100'000, .tokens = 512});
  receiver = add(*engine, pair, pair.receiver);
  refused(request_of(receiver, 400, 1, 1), Code::kExhausted, "can never run");
  EXPECT_EQ(engine->stats().refused, 1);
  Plan other = make_plan(pair.shape(), {2, 3});
  std::vector<ReceiverPlan> plans{{&other, nullptr}};
  auto stranger = Receiver::create("r", *pair.receiver.model, pair.receiver.identity, plans);
  ASSERT_FALSE(stranger.ok());
  EXPECT_EQ(stranger.status().code(), Code::kMismatch);
}

TEST(Engine, StopTokensEndAnAnswerFromItsLeastLengthOn) {
  Pair pair;
  auto engine = make_engine(*pair.backend, kLimits);
  const Receiver* receiver = add(*engine, pair, pair.receiver);
  EngineRequest r = request_of(receiver, 100, 9, 1, 12);
  const EngineAnswer free = answer_of(*engine, r);
  r.stop_ids = {free.tokens[0], free.tokens[5]};
  EXPECT_TRUE(answer_of(*engine, r).tokens.empty());
  r.stop_ids = {free.tokens[5], 1'000'000};
  r.min_new_tokens = 5;  // where it is chosen
  const EngineAnswer stopped = answer_of(*engine, r);
  EXPECT_TRUE(stopped.stopped);
  EXPECT_TRUE(std::equal(stopped.tokens.begin(), stopped.tokens.end(), free.tokens.begin()));
  EXPECT_EQ(stopped.stop_token, free.tokens[5]);
  r.min_new_tokens = 9;
  const EngineAnswer later = answer_of(*engine, r);
  ASSERT_GE(later.tokens.size(), 9u);
  EXPECT_EQ(std::count(later.tokens.begin(), later.tokens.begin() + 9, free.tokens[5]), 0)
      << "before the least length it is not chosen at all";
  r.withheld_ids = std::exchange(r.stop_ids, {});
  const EngineAnswer withheld = answer_of(*engine, r);
  EXPECT_EQ(withheld.tokens.size(), 12u) << "what is only withheld ends nothing";
  EXPECT_EQ(std::count(withheld.tokens.begin(), withheld.tokens.begin() + 9, free.tokens[5]), 0);
}

TEST(Engine, RulesChangeWhatIsChosen) {
  Pair pair;
  auto engine = make_engine(*pair.backend, kLimits);
  const Receiver* receiver = add(*engine, pair, pair.receiver);
  EngineRequest r = request_of(receiver, 100, 9, 1, 24);
  r.sampling = {};  // greedy
  const EngineAnswer free = answer_of(*engine, r);
  r.rules = {.bias = {{7, 3.5f}}, .repetition = 1.6f, .frequency = 0.5f, .presence = 0.25f};
  std::vector<int32_t> seen = r.context, expected;
  seen.insert(seen.end(), r.suffix.begin(), r.suffix.end());
  r.on_logits = [&](int32_t token, std::span<const float> logits) {
    int32_t best = -1;
    float most = -INFINITY;
    for (int32_t t = 0; t < static_cast<int32_t>(logits.size()); ++t) {
      const auto times = static_cast<float>(std::count(expected.begin(), expected.end(), t));
      float x = logits[static_cast<size_t>(t)] + (t == 7 ? 3.5f : 0.0f);
      if (times > 0 || std::count(seen.begin(), seen.end(), t) > 0) x = x > 0 ? x / 1.6f : x * 1.6f;
      if (times > 0) x -= 0.5f * times + 0.25f;
      if (x > most) most = x, best = t;
    }
    expected.push_back(best);
    EXPECT_EQ(token, best) << "token " << expected.size();
  };
  EXPECT_EQ(answer_of(*engine, r).tokens, expected);
  EXPECT_NE(expected, free.tokens);
  r = request_of(receiver, 100, 9, 1, 12);
  r.sampling = {.temperature = 2, .seed = 5, .top_k = 1};
  EXPECT_EQ(answer_of(*engine, r).tokens,
            std::vector<int32_t>(free.tokens.begin(), free.tokens.begin() + 12));
  r.sampling = {.temperature = 2, .seed = 5};
  EXPECT_NE(answer_of(*engine, r).tokens,
            std::vector<int32_t>(free.tokens.begin(), free.tokens.begin() + 12));
  r.sampling.min_p = 1;
  EXPECT_EQ(answer_of(*engine, r).tokens,
            std::vector<int32_t>(free.tokens.begin(), free.tokens.begin() + 12));
  r.rules.bias = {{static_cast<int32_t>(kVocab), 1}};
  EXPECT_EQ(engine->submit(r).status().code(), Code::kInvalidArgument);
  r.rules = {};
  r.sampling.top_k = -1;
  EXPECT_EQ(engine->submit(r).status().code(), Code::kInvalidArgument);
}

TEST(Engine, ShowsTheLogitsThatTokensWereChosenFrom) {
  Pair pair;
  auto engine = make_engine(*pair.backend, kLimits);
  const Receiver* receiver = add(*engine, pair, pair.receiver);
  EngineRequest r = request_of(receiver, 100, 9, 1, 6);
  r.sampling = {};  // greedy
  std::vector<int32_t> shown, likeliest;
  std::vector<float> first;
  r.first_logits = true;
  r.on_logits = [&](int32_t token, std::span<const float> logits) {
    ASSERT_EQ(static_cast<int64_t>(logits.size()), kVocab);
    if (shown.empty()) first.assign(logits.begin(), logits.end());
    shown.push_back(token);
    likeliest.push_back(
        static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
  };
  const EngineAnswer answer = answer_of(*engine, r);
  EXPECT_EQ(shown, answer.tokens);
  EXPECT_EQ(likeliest, answer.tokens);
  EXPECT_EQ(first, answer.first_logits);
}

TEST(Engine, CancelledAndLateRequestsGiveTheirMemoryBack) {
  Pair pair;
  EngineLimits limits = kLimits;
  limits.prefix_cache = false;
  auto engine = make_engine(*pair.backend, limits);
  const Receiver* receiver = add(*engine, pair, pair.receiver);
  EngineRequest r = request_of(receiver, 300, 9, 1, 600);
  std::shared_ptr<Ticket> ticket;
  std::atomic<int> came{0};
  std::mutex made;
  std::unique_lock hold(made);
  r.on_token = [&](int32_t) {
    if (++came == 5) {
      std::lock_guard lock(made);
      ticket->cancel();
    }
  };
  ticket = *engine->submit(r);
  hold.unlock();
  auto answer = ticket->wait();
  ASSERT_FALSE(answer.ok());
  EXPECT_NE(answer.status().message().find("cancelled"), std::string::npos) << answer.status().message();
  EXPECT_LT(came, 600);
  r.on_token = {};
  r.time_limit_ns = 1;
  answer = (*engine->submit(r))->wait();
  ASSERT_FALSE(answer.ok());
  EXPECT_NE(answer.status().message().find("time limit"), std::string::npos) << answer.status().message();
  engine->drain();
  EXPECT_EQ(engine->stats().cancelled, 2);
  EXPECT_EQ(engine->stats().claimed_bytes, 0);
  EXPECT_GT(engine->stats().peak_bytes, 0);
}

/// Whoever is cancelled, or out of time, while his look-up hangs waits for it no longer, however patient the
/// engine is; it goes on to hang, and the engine ends all the same when it lets go.
TEST(Engine, ALookUpThatHangsHoldsNobodyWhoIsCancelledOrLate) {
  Pair pair;
  const Plan plan = pair.named(make_plan(pair.shape(), {2, 3}, "e-first", pair.options()));
  auto store = open_store("file:" + fresh_folder("hangs"));
  FaultyStore faulty(**store, Fault::kLookUpHangs);
  EngineLimits limits = kLimits;
  limits.patience_ns = 3'600'000'000'000;
  auto engine = make_engine(*pair.backend, limits);
  EngineRequest r = request_of(add(*engine, pair, pair.receiver, {&plan}), 256, 9, 1);
  r.store = &faulty;
  auto ticket = engine->submit(r);
  ASSERT_TRUE(ticket.ok());
  EngineRequest beside = r;
  beside.reuse = Reuse::kOff;
  EXPECT_EQ(answer_of(*engine, beside).cache, CacheStatus::kUnused);
  EXPECT_FALSE((*ticket)->done()) << "it waits for its look-up";
  (*ticket)->cancel();
  auto answer = (*ticket)->wait();
  EXPECT_NE(answer.status().message().find("cancelled"), std::string::npos) << answer.status().message();
  r.salt = "another";  // which it is not waited for
  r.time_limit_ns = 1'000'000;
  answer = (*engine->submit(r))->wait();
  EXPECT_NE(answer.status().message().find("time limit"), std::string::npos) << answer.status().message();
  engine->drain();
  EXPECT_EQ(engine->stats().cancelled, 2);
  EXPECT_EQ(answer_of(*engine, beside).cache, CacheStatus::kUnused);
  faulty.let_go();
}

/// Pieces are of whole ops where the budget allows, else of rows, and never of none.
TEST(PlanRun, APieceIsAnOpOrSomeOfItsRows) {
  Pair pair;
  auto receiver = Receiver::create("r", *pair.receiver.model, pair.receiver.identity);
  ASSERT_TRUE(receiver.ok());
  const auto tokens = random_ids(1000, kVocab, 1);
  const Variant& v = (*receiver)->exact().full_prefill;
  PlanRun whole(**receiver, -1, v, {0, 980, 20}, tokens), parts(**receiver, -1, v, {0, 980, 20}, tokens);
  auto piece = whole.next(1e18);
  ASSERT_TRUE(piece.has_value());
  EXPECT_EQ(piece->at.rows, 1000);
  EXPECT_EQ(parts.next(0)->at.rows, 64);
  EXPECT_EQ(parts.next(piece->flops / 2)->at.rows % 64, 0);
  EXPECT_LT(parts.next(piece->flops / 2)->at.rows, 1000);
}

TEST(BatchScheduler, LongStepsHaveLongBudgets) {
  EXPECT_EQ(step_budget_ns(30, 1, 10), 30);
  EXPECT_EQ(step_budget_ns(30, 1, 200), 200);
  EXPECT_EQ(step_budget_ns(30, 0.25, 200), 50);
  EXPECT_EQ(step_budget_ns(30, 0, 200), 30);
}

/// What waits between two tokens of others: pieces of one step, whose predicted work is the budget and, where
/// not even a block of rows of the last one fits, that block.
TEST(BatchScheduler, AStepsPiecesKeepItsBudget) {
  Pair pair;
  auto receiver = Receiver::create("r", *pair.receiver.model, pair.receiver.identity);
  ASSERT_TRUE(receiver.ok());
  const RowBytes& bytes = (*receiver)->row_bytes();
  constexpr int64_t kTokens = 1000;
  const auto tokens = random_ids(kTokens, kVocab, 1);
  auto workspace = pair.receiver.model->make_workspace(kTokens);
  auto stream = pair.backend->make_stream(StreamKind::kCompute, 1 << 14);
  ASSERT_TRUE(workspace.ok() && stream.ok());
  std::vector<std::unique_ptr<DeviceMemory>> memory;
  auto allocate = [&](int64_t size, MemoryKind kind = MemoryKind::kDevice) {
    memory.push_back(std::move(pair.backend->allocate(size, kind)).value());
    return memory.back()->data();
  };
  for (const double budget : {1e3, 1e6, 3e7, 1e9}) {
    std::vector<std::unique_ptr<PlanRun>> prompts;
    std::vector<PlanRun*> runs;
    std::vector<RunMemory> of;
    for (int i = 0; i < 4; ++i) {
      prompts.push_back(std::make_unique<PlanRun>(**receiver, -1, (*receiver)->exact().full_prefill,
                                                  RunShape{0, kTokens - 20, 20}, tokens));
      runs.push_back(prompts.back().get());
      RunMemory& m = of.emplace_back();
      for (int64_t l = 0; l < bytes.layers; ++l) m.caches.push_back(allocate(kTokens * bytes.kv));
      for (size_t h = 0; h < runs.back()->hidden_buffers(); ++h)
        m.hidden.push_back(allocate(kTokens * bytes.hidden));
      m.workspace = workspace->get();
      m.next = reinterpret_cast<int32_t*>(allocate(64, MemoryKind::kHost));
    }
    int steps = 0;
    double all = 0;
    std::vector<SequenceRows> storage(512);
    while (std::ranges::any_of(prompts, [](const auto& p) { return !p->finished(); })) {
      std::vector<ScheduledPiece> pieces;
      double left = budget;
      fill_step(runs, budget, storage.size(), [&](const ScheduledPiece& p) {
        EXPECT_TRUE(p.piece.flops <= left || p.piece.at.rows <= PlanRun::kBlock)
            << p.piece.flops << " of " << left << " for " << p.piece.at.rows << " rows";
        EXPECT_TRUE(pieces.empty() || left > 0);
        left -= p.piece.flops;
        all += p.piece.flops;
        runs[p.run]->issue(p.piece, **stream, of[p.run], storage[pieces.size()]);
        pieces.push_back(p);
      });
      ASSERT_FALSE(pieces.empty());
      ASSERT_TRUE((*stream)->synchronize().ok());
      for (const ScheduledPiece& p : pieces) runs[p.run]->complete(p.piece);
      ++steps;
    }
    EXPECT_GE(steps, static_cast<int>(
                         all / (budget + 64 * 5 * PlanRun::layer_flops(pair.receiver.model->config()))));
    memory.clear();
  }
}

/// While prompts stream in, every step decodes one token of those that are past their first.
TEST(Engine, EveryStepDecodesWhilePromptsStreamIn) {
  Pair pair;
  EngineLimits limits = kLimits;
  limits.step_budget_ns = 50'000;
  limits.prefix_cache = false;
  auto engine = make_engine(*pair.backend, limits);
  const Receiver* receiver = add(*engine, pair, pair.receiver);
  std::vector<std::shared_ptr<Ticket>> prompts;
  std::vector<int64_t> steps;
  EngineRequest decoding = request_of(receiver, 64, 4, 1, 300);
  decoding.on_token = [&](int32_t) {
    if (steps.empty())
      for (uint64_t i = 0; i < 6; ++i)
        prompts.push_back(*engine->submit(request_of(receiver, 900, 9, 10 + i, 2)));
    steps.push_back(engine->stats().steps);
  };
  answer_of(*engine, decoding);
  ASSERT_EQ(steps.size(), 300u);
  for (size_t i = 1; i < steps.size(); ++i) EXPECT_EQ(steps[i], steps[i - 1] + 1) << "token " << i;
  // The prompts have gone on beside it.
  const EngineStats stats = engine->stats();
  EXPECT_GT(stats.finished + stats.decoding, 1);
  for (auto& ticket : prompts) EXPECT_TRUE(ticket->wait().ok());
}

TEST(PrefixCache, FindsTheLongestBeginningAndEvictsTheOldest) {
  Pair pair;
  KvArena arena(*pair.backend, 1 << 20);
  const RowBytes bytes{2, 64, 64};
  auto range = [&](int64_t rows) {
    auto claim = arena.claim(bytes.cache(rows));
    EXPECT_TRUE(claim.ok());
    return std::move(arena.reserve(bytes, rows, std::move(claim).value())).value();
  };
  PrefixCache cache;
  auto a = random_ids(200, kVocab, 1), b = a;
  b[130] += 1;
  EXPECT_EQ(cache.find("s", a).rows, 0);
  ASSERT_NE(cache.insert("s", a, range(200)), nullptr);
  EXPECT_EQ(cache.insert("s", std::span(a).first(150), range(150)), nullptr) << "it is here already";
  EXPECT_EQ(cache.insert("s", std::span(a).first(63), range(63)), nullptr) << "no whole block";
  EXPECT_EQ(cache.find("s", a).rows, 199) << "the last token is computed";
  EXPECT_EQ(cache.find("s", std::span(a).first(150)).rows, 149);
  EXPECT_EQ(cache.find("s", std::span(a).first(60)).rows, 0);
  EXPECT_EQ(cache.find("s", b).rows, 130);
  EXPECT_EQ(cache.find("t", a).rows, 0);
  ASSERT_NE(cache.insert("s", b, range(200)), nullptr);
  EXPECT_EQ(cache.find("s", b).rows, 199);
  EXPECT_EQ(arena.claimed(), 2 * bytes.cache(200));
  // b was used last, a is held: nothing but b can go, whose beginning a still has.
  {
    auto held = cache.find("s", a);
    EXPECT_TRUE(cache.evict());
    EXPECT_FALSE(cache.evict());
    EXPECT_EQ(cache.find("s", b).rows, 130);
  }
  EXPECT_TRUE(cache.evict());
  EXPECT_EQ(cache.find("s", a).rows, 0);
  EXPECT_EQ(arena.claimed(), 0);
}

/// Many requests at random moments: mixed lengths, plans, receivers, contexts in common, questions, faults,
/// cancellations. What each gives is what it gives alone. Fewer of them where a device is simulated.
class BesideOthers : public ::testing::TestWithParam<DType> {};

TEST_P(BesideOthers, IsAsAlone) {
  const char* many = std::getenv("DROIDSPEAK_SEEDS");
  const int seeds = many != nullptr ? std::atoi(many) : exact_rows() ? 5 : 1;
  const int requests = exact_rows() ? 64 : 16;
  Pair pair(GetParam());
  auto store = open_store("file:" + fresh_folder("beside"));
  FaultyStore broken(**store, Fault::kFails, 40), slow(**store, Fault::kSlow, 0);
  const auto options = pair.options(2);
  std::vector<Plan> plans{pair.named(make_plan(pair.shape(), {2, 3}, "e-first", options)),
                          pair.named(make_restore_range_plan(pair.shape(), 1, 3, options)),
                          pair.named(make_select_plan(pair.shape(), 0.3, pair.options()))};
  const std::string dtype(dtype_name(GetParam()));
  const Plan exact_r = full_prefill_plan(pair.receiver.identity, pair.shape(), dtype);
  const Plan exact_s = full_prefill_plan(pair.sender.identity, pair.shape(), dtype);
  std::vector<std::vector<int32_t>> contexts;
  for (uint64_t i = 0; i < 4; ++i) {
    contexts.push_back(random_ids(90 + 70 * static_cast<int64_t>(i), kVocab, 50 + i));
    pair.publish_to(**store, contexts.back());
  }
  int other_tokens = 0;
  auto expect_alone = [&](const Told& expected, const EngineAnswer& answer, const std::string& what) {
    expect_same(expected, answer, what);
    other_tokens += answer.tokens != expected.tokens ? 1 : 0;
  };
  for (int seed = 0; seed < seeds; ++seed) {
    std::mt19937 random(static_cast<unsigned>(seed));
    auto below = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
    // Where memory comes in large steps, a few of them a request.
    const int64_t cache_bytes = std::max<int64_t>(4 << 20, 16 * pair.backend->range_step());
    EngineLimits limits{.cache_bytes = cache_bytes, .tokens = 600, .batch = 12};
    limits.step_budget_ns = below(2) == 0 ? 100'000 : 5'000'000;
    limits.prefix_cache = below(3) != 0;
    // One plan a receiver, so that a request's way is known; several receivers share a model.
    auto engine = make_engine(*pair.backend, limits);
    std::vector<const Receiver*> receivers;
    for (const Plan& plan : plans) receivers.push_back(add(*engine, pair, pair.receiver, {&plan}));
    receivers.push_back(add(*engine, pair, pair.sender));
    struct Sent {
      EngineRequest request;
      size_t receiver;
      std::shared_ptr<Ticket> ticket;
      bool cancelled = false;
    };
    std::vector<Sent> sent;
    for (int i = 0; i < requests; ++i) {
      Sent s;
      s.receiver = static_cast<size_t>(below(4));
      s.request = request_of(receivers[s.receiver], 0, 1 + below(80), random(), 1 + below(12));
      s.request.context = contexts[static_cast<size_t>(below(4))];
      if (below(4) == 0) s.request.context = random_ids(below(300), kVocab, random());
      const int how = below(8);
      s.request.store = how < 5 ? store->get() : how == 5 ? &slow : how == 6 ? &broken : nullptr;
      if (below(6) == 0) s.request.reuse = Reuse::kExact;
      auto ticket = engine->submit(s.request);
      ASSERT_TRUE(ticket.ok()) << ticket.status().message();
      s.ticket = *ticket;
      if (below(10) == 0) {
        if (below(2) == 0) std::this_thread::sleep_for(std::chrono::microseconds(below(2000)));
        s.ticket->cancel();
        s.cancelled = true;
      }
      if (below(3) == 0) std::this_thread::sleep_for(std::chrono::microseconds(below(1500)));
      sent.push_back(std::move(s));
    }
    for (size_t i = 0; i < sent.size(); ++i) {
      Sent& s = sent[i];
      auto answer = s.ticket->wait();
      const std::string what = fmt::format("seed {} request {} receiver {}", seed, i, s.receiver);
      if (!answer.ok()) {
        EXPECT_TRUE(s.cancelled) << what << ": " << answer.status().message();
        continue;
      }
      const bool sender = s.receiver == 3;
      const Pair::One& one = sender ? pair.sender : pair.receiver;
      const Plan& exact = sender ? exact_s : exact_r;
      // What the answer says of itself decides what it is to be like.
      if (answer->repaired) continue;  // its tiling is one of its own: ALostTransferIsRecomputed
      const bool reused = answer->cache == CacheStatus::kHit;
      const Told full = alone(pair, one, exact, s.request, nullptr);
      if (answer->cached_tokens > 0 && !sender && s.request.reuse == Reuse::kAuto) {
        // Of an exact cache, or of this way's.
        if (alike(full, *answer)) {
          expect_alone(full, *answer, what);
          continue;
        }
        expect_alone(alone(pair, one, plans[s.receiver], s.request, store->get()), *answer,
                     what + " from cache");
      } else if (reused) {
        expect_alone(alone(pair, one, plans[s.receiver], s.request, store->get()), *answer,
                     what + " by plan");
      } else {
        expect_alone(full, *answer, what);
      }
    }
    engine->drain();
    const EngineStats stats = engine->stats();
    EXPECT_EQ(stats.finished + stats.cancelled, requests);
    EXPECT_EQ(stats.failed, 0);
    EXPECT_EQ(stats.claimed_bytes, stats.prefix_bytes);
  }
  // Decoding goes on from the same rows: of f32, one answer at most was drawn so close.
  if (GetParam() == DType::kF32) {
    EXPECT_LE(other_tokens, exact_rows() ? 0 : 1);
  }
}
INSTANTIATE_TEST_SUITE_P(Types, BesideOthers, ::testing::Values(DType::kF32, DType::kBF16),
                         [](const auto& info) { return std::string(dtype_name(info.param)); });

/// Ten thousand requests leave nothing behind.
TEST(Engine, ASoakDoesNotGrow) {
  Pair pair;
  auto engine = make_engine(*pair.backend, {.cache_bytes = 2 << 20, .tokens = 128, .batch = 16});
  const Receiver* receiver = add(*engine, pair, pair.receiver);
  auto resident = [] {
    long pages = 0, ignored = 0;
    FILE* file = std::fopen("/proc/self/statm", "r");
    if (file == nullptr || std::fscanf(file, "%ld %ld", &ignored, &pages) != 2) pages = 0;
    if (file != nullptr) std::fclose(file);
    return pages * 4096L;
  };
  long after_warm_up = 0;
  constexpr int kRequests = 10'000;
  for (int i = 0; i < kRequests; ++i) {
    EngineRequest r = request_of(receiver, 20 + i % 70, 2, static_cast<uint64_t>(i), 2);
    r.first_logits = false;
    auto ticket = engine->submit(std::move(r));
    while (!ticket.ok() && ticket.status().code() == Code::kExhausted) {
      std::this_thread::sleep_for(1ms);
      r = request_of(receiver, 20 + i % 70, 2, static_cast<uint64_t>(i), 2);
      ticket = engine->submit(std::move(r));
    }
    ASSERT_TRUE(ticket.ok());
    if (i == kRequests / 5) {
      engine->drain();
      after_warm_up = resident();
    }
  }
  engine->drain();
  const EngineStats stats = engine->stats();
  EXPECT_EQ(stats.finished, kRequests);
  EXPECT_GT(stats.evictions, 100);
  EXPECT_EQ(stats.claimed_bytes, stats.prefix_bytes);
  EXPECT_LE(stats.peak_bytes, 2 << 20);
  EXPECT_LT(resident() - after_warm_up, 8L << 20);
}

}  // namespace
}  // namespace ds
