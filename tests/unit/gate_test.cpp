// The gate: thresholds hold their rate, an alarm gives the full prefill's answer, and drift is told from
// chance.
#include "runtime/core/gate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

#include "plans/full_prefill.h"
#include "runtime/core/drift.h"
#include "runtime/core/publish.h"
#include "runtime/core/session.h"
#include "runtime/store/entry.h"
#include "support/file.h"
#include "support/json.h"
#include "support/kolmogorov.h"
#include "tests/unit/model_fixture.h"
#include "tests/unit/plan_builder.h"

namespace ds {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::make_plan;
using testing::plain_cuts;
using testing::random_ids;
using testing::tiny_config;
using testing::TinyModel;

std::vector<double> sorted(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values;
}

/// 1, 2, ..., n.
std::vector<double> ranks(int n) {
  std::vector<double> values;
  for (int i = 1; i <= n; ++i) values.push_back(i);
  return values;
}

WayScore score_of(Way way, std::vector<double> entropy, std::vector<double> margin) {
  WayScore w;
  w.way = std::move(way);
  w.entropy = std::move(entropy);
  w.margin = std::move(margin);
  return w;
}

// ---- proxies

TEST(Proxies, OfAFirstToken) {
  std::vector<float> flat(8, 3.5F);
  EXPECT_NEAR(first_token_proxies(flat)[Proxy::kEntropy], std::log(8), 1e-12);
  EXPECT_EQ(first_token_proxies(flat)[Proxy::kMargin], 0);
  EXPECT_TRUE(std::isnan(first_token_proxies(flat)[Proxy::kKDeviation]));
  // 1/2, 1/4, 1/8, 1/8, and one that cannot be.
  std::vector<float> halves = {std::log(0.125F), std::log(0.5F), -INFINITY, std::log(0.25F),
                               std::log(0.125F)};
  EXPECT_NEAR(first_token_proxies(halves)[Proxy::kEntropy], 1.75 * std::log(2), 1e-6);
  EXPECT_NEAR(first_token_proxies(halves)[Proxy::kMargin], 0.25, 1e-6);
  std::vector<float> large = {1e30F, -1e30F};
  EXPECT_EQ(first_token_proxies(large)[Proxy::kEntropy], 0);
  EXPECT_EQ(first_token_proxies(large)[Proxy::kMargin], 1);
  std::vector<float> one = {4};
  EXPECT_EQ(first_token_proxies(one)[Proxy::kMargin], 1);
  for (float bad : {NAN, INFINITY}) {
    std::vector<float> logits = {1, bad, 2};
    EXPECT_TRUE(std::isnan(first_token_proxies(logits)[Proxy::kEntropy]));
    EXPECT_TRUE(std::isnan(first_token_proxies(logits)[Proxy::kMargin]));
  }
}

/// What KeyDeviation is defined to be, from keys of whole contexts.
double expected_deviation(const std::vector<std::byte>& own, const std::vector<std::byte>& sent, int64_t n,
                          int64_t row, DType dtype) {
  auto at = [&](const std::vector<std::byte>& keys, int64_t i) {
    if (dtype == DType::kBF16) return bf16_to_f32(reinterpret_cast<const uint16_t*>(keys.data())[i]);
    return reinterpret_cast<const float*>(keys.data())[i];
  };
  double apart = 0, length = 0;
  auto add = [&](int64_t r) {
    for (int64_t e = r * row; e < r * row + row / 2; ++e) {
      apart += std::pow(static_cast<double>(at(own, e)) - at(sent, e), 2);
      length += std::pow(static_cast<double>(at(own, e)), 2);
    }
  };
  if (n <= 256) {
    for (int64_t r = 0; r < n; ++r) add(r);
  } else {
    for (int64_t block = 0; block < 4; ++block)
      for (int64_t r = 0; r < 64; ++r) add((n - 64) * block / 3 + r);
  }
  return std::sqrt(apart / length);
}

std::vector<std::byte> keys_of_layer_0(TinyModel& m, const std::vector<int32_t>& context) {
  auto n = static_cast<int64_t>(context.size());
  std::vector<std::byte> rows(
      static_cast<size_t>(n * m.model->config().kv_row() * dtype_size(m.model->dtype())));
  auto store = open_store("file:" + ::testing::TempDir() + "/ds_gate_keys" + std::to_string(getpid()));
  EXPECT_TRUE(publish(*m.backend, *m.model, m.identity, context, **store, {}).ok());
  EntryIdentity identity{m.identity.fingerprint, hash_tokens(context), "", n, m.model->dtype()};
  auto entry = EntryReader::open(**store, identity, m.model->config().shape());
  EXPECT_TRUE(entry.ok()) << entry.status().message();
  if (entry.ok()) {
    EXPECT_TRUE(entry->read_rows(TensorKind::kKv, 0, 0, n, rows.data()).ok());
  }
  return rows;
}

TEST(Keys, OfTheSameModelDoNotDeviateAndThoseOfAnotherByTheFormula) {
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    for (Family family : {Family::kLlama, Family::kQwen3}) {
      TinyModel receiver(tiny_config(family), 11, dtype), sender(tiny_config(family), 12, dtype);
      ASSERT_NE(receiver.model, nullptr);
      ASSERT_NE(sender.model, nullptr);
      auto keys = KeyDeviation::create(*receiver.backend, *receiver.model);
      ASSERT_TRUE(keys.ok()) << keys.status().message();
      auto workspace = receiver.model->make_workspace(1100);
      auto stream = receiver.backend->make_stream(StreamKind::kCompute, KeyDeviation::kCommands);
      ASSERT_TRUE(workspace.ok() && stream.ok());
      for (int64_t n : {1, 37, 256, 257, 300, 1033}) {
        auto context = random_ids(n, 300, static_cast<uint64_t>(n));
        auto own = keys_of_layer_0(receiver, context), sent = keys_of_layer_0(sender, context);
        auto same = (*keys)->measure(**stream, **workspace, context, own.data());
        ASSERT_TRUE(same.ok()) << same.status().message();
        EXPECT_EQ(*same, 0) << n;
        auto other = (*keys)->measure(**stream, **workspace, context, sent.data());
        ASSERT_TRUE(other.ok()) << other.status().message();
        EXPECT_GT(*other, 0.1);
        double expected = expected_deviation(own, sent, n, receiver.model->config().kv_row(), dtype);
        EXPECT_NEAR(*other, expected, 1e-12 * expected) << n;
      }
      EXPECT_THAT((*keys)->measure(**stream, **workspace, {}, nullptr).status().message(),
                  HasSubstr("the context has no tokens"));
    }
  }
}

// ---- thresholds

GateReference reference_of(std::vector<double> keys, std::vector<double> entropy,
                           std::vector<double> margin) {
  return {Way::group({1, 3}), {std::move(keys), std::move(entropy), std::move(margin)}};
}

bool alarms(const ProxyValues& thresholds, Proxy proxy, double value) {
  GateVerdict verdict;
  verdict.thresholds = thresholds;
  verdict.values[proxy] = value;
  return verdict.alarms(proxy);
}

/// Of n + 1 different values each is left out once: the share that alarms is the exact rate.
TEST(Thresholds, HoldTheirRateExactly) {
  for (int n : {9, 19, 20, 60, 99, 100, 299, 300}) {
    for (double rate : {0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.99}) {
      for (Proxy proxy : {Proxy::kEntropy, Proxy::kMargin}) {
        int alarmed = 0;
        bool possible = true;
        for (int left_out = 0; left_out <= n && possible; ++left_out) {
          std::vector<double> all = ranks(n + 1);
          double value = all[static_cast<size_t>(left_out)];
          all.erase(all.begin() + left_out);
          std::vector<double> none;
          auto thresholds =
              reference_of({}, proxy == Proxy::kEntropy ? all : none, proxy == Proxy::kMargin ? all : none)
                  .thresholds(rate, true, "q.json");
          possible = thresholds.ok();
          if (possible) alarmed += alarms(*thresholds, proxy, value) ? 1 : 0;
        }
        // On paper, in thousandths.
        int per_mille = static_cast<int>(std::lround(rate * 1000)), expected = per_mille * (n + 1) / 1000;
        EXPECT_EQ(possible, expected >= 1) << n << " " << rate;
        EXPECT_EQ(alarmed, possible ? expected : 0) << n << " " << rate;
      }
    }
  }
}

TEST(Thresholds, SharedByThreeHoldTheRateOfAnyAlarm) {
  std::mt19937_64 generator(5);
  std::normal_distribution<double> normal;
  struct Draw {
    const char* what;
    std::function<ProxyValues()> values;
  };
  auto independent = [&] {
    ProxyValues v;
    for (double& x : v.of) x = std::exp(2 * normal(generator));
    return v;
  };
  auto together = [&] {  // an unlikely request is unlikely in every way
    double strange = std::abs(normal(generator));
    ProxyValues v;
    v[Proxy::kKDeviation] = strange + 0.2 * normal(generator);
    v[Proxy::kEntropy] = strange;
    v[Proxy::kMargin] = -strange;
    return v;
  };
  auto ties = [&] {
    ProxyValues v;
    for (double& x : v.of) x = static_cast<double>(generator() % 5);
    return v;
  };
  for (const Draw& draw :
       {Draw{"independent", independent}, Draw{"together", together}, Draw{"ties", ties}}) {
    for (int n : {59, 119}) {
      constexpr int kTrials = 8'000;
      constexpr double kRate = 0.1;
      int alarmed = 0;
      for (int trial = 0; trial < kTrials; ++trial) {
        std::array<std::vector<double>, kProxies> samples;
        for (int i = 0; i < n; ++i) {
          ProxyValues v = draw.values();
          for (size_t p = 0; p < kProxies; ++p) samples[p].push_back(v.of[p]);
        }
        GateReference reference{{}, {sorted(samples[0]), sorted(samples[1]), sorted(samples[2])}};
        auto thresholds = reference.thresholds(kRate, true, "q.json");
        ASSERT_TRUE(thresholds.ok()) << thresholds.status().message();
        GateVerdict verdict{.thresholds = *thresholds};
        verdict.values = draw.values();
        alarmed += verdict.alarms(Proxy::kKDeviation) || verdict.alarms(Proxy::kEntropy) ||
                   verdict.alarms(Proxy::kMargin);
      }
      double rate = static_cast<double>(alarmed) / kTrials;
      double error = std::sqrt(kRate * (1 - kRate) / kTrials);
      EXPECT_LE(rate, kRate + 4 * error) << draw.what << " " << n;
      // And alarms are raised: independent proxies come close to the rate.
      if (draw.what == std::string("independent")) {
        EXPECT_GE(rate, 1 - std::pow(1 - kRate / 3, 3) - 4 * error) << n;
      }
    }
  }
}

TEST(Thresholds, TooFewSamplesNameTheNumberNeededAndTheRateThatCanBeHad) {
  GateReference reference = reference_of(ranks(60), ranks(500), ranks(500));
  Status status = reference.thresholds(0.01, true, "q.json").status();
  EXPECT_EQ(status.code(), Code::kInfeasible);
  EXPECT_EQ(
      status.message(),
      "q.json: 60 samples of k_deviation for 'recompute 1-3', but false alarms at a rate of 1 %, shared "
      "by 3 proxies, need 299 of each; profile more contexts, or allow a higher rate (4.92 % with these)");
  EXPECT_TRUE(reference.thresholds(0.0492, true, "q.json").ok());
  EXPECT_FALSE(reference.thresholds(0.0491, true, "q.json").ok());
  // Without keys two proxies share it, and 199 are enough.
  auto two = reference.thresholds(0.01, false, "q.json");
  ASSERT_TRUE(two.ok()) << two.status().message();
  EXPECT_TRUE(std::isnan((*two)[Proxy::kKDeviation]));
  EXPECT_EQ((*two)[Proxy::kEntropy], 499);
  EXPECT_EQ((*two)[Proxy::kMargin], 2);
  EXPECT_TRUE(reference_of({}, ranks(199), ranks(199)).thresholds(0.01, true, "q").ok());
  EXPECT_THAT(reference_of({}, ranks(199), ranks(198)).thresholds(0.01, true, "q").status().message(),
              AllOf(HasSubstr("198 samples of margin"), HasSubstr("need 199"), HasSubstr("more questions"),
                    HasSubstr("(1.01 % with these)")));
  // The rate that is offered can be had, whatever the number.
  for (int n = 1; n < 400; ++n) {
    std::string text =
        reference_of(ranks(n), ranks(n), ranks(n)).thresholds(1e-9, true, "q").status().message();
    size_t at = text.find("rate (");
    ASSERT_NE(at, std::string::npos) << text;
    auto rate = parse_percent(text.substr(at + 6, text.find(" with") - at - 6));
    if (n == 1 || n == 2) continue;  // 150 % and 100 %: no rate
    ASSERT_TRUE(rate.ok()) << text;
    EXPECT_TRUE(reference_of(ranks(n), ranks(n), ranks(n)).thresholds(*rate, true, "q").ok()) << text;
  }
}

TEST(Thresholds, WhatIsNotANumberIsAnAlarmAndWhatIsNotLookedAtIsNone) {
  auto thresholds = reference_of({}, ranks(99), ranks(99)).thresholds(0.1, true, "q");
  ASSERT_TRUE(thresholds.ok());
  EXPECT_TRUE(alarms(*thresholds, Proxy::kEntropy, NAN));
  EXPECT_TRUE(alarms(*thresholds, Proxy::kMargin, NAN));
  EXPECT_FALSE(alarms(*thresholds, Proxy::kKDeviation, INFINITY));
  GateVerdict verdict{.thresholds = *thresholds};
  verdict.values[Proxy::kEntropy] = 3;
  verdict.values[Proxy::kMargin] = 1.5;
  EXPECT_EQ(gate_verdict_text(verdict), "margin 1.5 (alarm below 5), entropy 3 (alarm above 95)");
}

// ---- ways and gates of plans

Variant tiled(std::vector<Tile> tiles, int32_t chunks) {
  Variant v;
  v.name = "v0";
  v.chunks = chunks;
  v.tiles = std::move(tiles);
  return v;
}

TEST(Ways, AreTheLayersThatEveryTokenGetsRecomputed) {
  constexpr Mode kLoad = Mode::kLoad, kRecompute = Mode::kRecompute;
  for (LayerRange group : {LayerRange{0, 2}, LayerRange{2, 2}, LayerRange{3, 4}, LayerRange{1, 3}})
    EXPECT_EQ(way_of(make_plan(testing::small_shape(5), group).variants[0]), Way::group(group));
  EXPECT_EQ(way_of(make_plan(testing::small_shape(5), {}).variants[0]), Way::full_reuse());
  EXPECT_EQ(way_of(make_plan(testing::small_shape(5), {0, 4}).variants[0]), Way::full_prefill());
  EXPECT_EQ(way_of(full_prefill_variant(5)), Way::full_prefill());
  // Stairs: two chunks through all layers, one from a cut.
  Variant stairs =
      tiled({{kRecompute, 0, 4, 0, 1, false}, {kLoad, 0, 1, 2, 2, false}, {kRecompute, 2, 4, 2, 2, true}}, 3);
  EXPECT_EQ(way_of(stairs), Way::group({2, 4}));
  // A split along the tokens promises what full reuse does.
  EXPECT_EQ(way_of(tiled({{kRecompute, 0, 4, 0, 0, false}, {kLoad, 0, 4, 1, 2, false}}, 3)),
            Way::full_reuse());
  Way scattered = way_of(tiled({{kLoad, 0, 0, 0, 0, false},
                                {kRecompute, 1, 1, 0, 0, true},
                                {kLoad, 2, 2, 0, 0, false},
                                {kRecompute, 3, 4, 0, 0, true}},
                               1));
  EXPECT_EQ(scattered.name(), "scattered 1,3-4");
  EXPECT_EQ(way_of(testing::make_restore_plan(testing::small_shape(5), 3).variants[0]), Way::restore({3, 3}));
  EXPECT_EQ(way_of(testing::make_select_plan(testing::small_shape(5), 0.15).variants[0]), Way::select(0.15));
}

TEST(Ways, WithoutANameOfTheirOwnListTheirLayers) {
  auto restored = [](std::vector<LayerRange> layers) {
    return Way{.mode = Mode::kRestore, .layers = std::move(layers)}.name();
  };
  EXPECT_EQ(restored({{1, 2}}), "restore 1-2");
  EXPECT_EQ(restored({{1, 2}, {5, 5}}), "restore 1-2,5");
  EXPECT_NE(restored({{1, 2}, {5, 5}}), restored({{1, 2}, {4, 5}}));
  // What has the sender's K and V everywhere is full reuse, wherever one says so.
  EXPECT_EQ((Way{.layers = {{1, 2}}}.name()), "full reuse");
  // A profile scores no such way, so a variant promises what its first mode with a name does.
  EXPECT_EQ(way_of(tiled({{Mode::kLoad, 0, 0, 0, 0, false},
                          {Mode::kRestore, 1, 1, 0, 0, false},
                          {Mode::kLoad, 2, 2, 0, 0, false},
                          {Mode::kRestore, 3, 4, 0, 0, false}},
                         1)),
            Way::full_reuse());
}

Quality quality_for(const Plan& plan, std::vector<Way> ways) {
  Quality q;
  q.sender_fingerprint = plan.sender.fingerprint;
  q.receiver_fingerprint = plan.receiver.fingerprint;
  q.layers = plan.shape.layers;
  q.k_deviation = ranks(99);
  for (Way& way : ways) q.ways.push_back(score_of(std::move(way), ranks(99), ranks(99)));
  return q;
}

TEST(Gates, LookAtKeysOnlyWhereTheSendersAreLoadedForEveryToken) {
  Plan plan = make_plan(testing::small_shape(5), {2, 4});
  plan.variants.push_back(plan.variants[0]);
  plan.variants[1].tiles = {{Mode::kRecompute, 0, 4, 0, 0, false},
                            {Mode::kLoad, 0, 1, 1, 1, false},
                            {Mode::kRecompute, 2, 4, 1, 1, true}};
  plan.variants[1].chunks = 2;
  plan.variants.push_back(make_plan(testing::small_shape(5), {0, 1}).variants[0]);
  plan.variants.push_back(make_plan(testing::small_shape(5), {0, 4}).variants[0]);
  Quality quality = quality_for(plan, {Way::group({2, 4}), Way::group({0, 1})});
  auto gate = Gate::create(plan, quality, "q.json", 0.06);
  ASSERT_TRUE(gate.ok()) << gate.status().message();
  const ProxyValues* band = gate->thresholds(plan.variants[0]);
  ASSERT_NE(band, nullptr);
  EXPECT_EQ((*band)[Proxy::kKDeviation], 98);  // 2 % each: the second of 100
  EXPECT_EQ((*band)[Proxy::kMargin], 2);
  for (size_t i : {1, 2}) {
    const ProxyValues* at = gate->thresholds(plan.variants[i]);
    ASSERT_NE(at, nullptr);
    EXPECT_TRUE(std::isnan((*at)[Proxy::kKDeviation]));
    EXPECT_EQ((*at)[Proxy::kEntropy], 97);  // 3 % each
  }
  EXPECT_EQ(gate->reference(plan.variants[1])->way, Way::group({2, 4}));
  // Nothing is reused, or it is not a variant of this plan.
  EXPECT_EQ(gate->thresholds(plan.variants[3]), nullptr);
  EXPECT_EQ(gate->thresholds(plan.full_prefill), nullptr);
  Variant copy = plan.variants[0];
  EXPECT_EQ(gate->reference(copy), nullptr);
}

TEST(Gates, SayWhatTheProfileLacks) {
  Plan plan = make_plan(testing::small_shape(5), {2, 4});
  Quality quality = quality_for(plan, {Way::group({1, 3}), Way::full_reuse(), Way::group({2, 3})});
  quality.ways[2].dropped = true;
  Status status = Gate::create(plan, quality, "q.json", 0.1).status();
  EXPECT_EQ(status.code(), Code::kNotFound);
  EXPECT_EQ(
      status.message(),
      "the gate for variant 'v0': q.json: no score for 'recompute 2-4', which the gate needs; ways with "
      "samples: recompute 1-3, full reuse; profile that way with this version of ds-profile");
  quality = quality_for(plan, {Way::group({2, 4})});
  quality.ways[0].margin.clear();
  EXPECT_THAT(
      Gate::create(plan, quality, "q.json", 0.1).status().message(),
      HasSubstr("no samples of the first token's entropy and margin for 'recompute 2-4', which the gate "
                "needs; ways with samples: none"));
  quality = quality_for(plan, {Way::group({2, 4})});
  EXPECT_THAT(Gate::create(plan, quality, "q.json", 0.01).status().message(),
              AllOf(HasSubstr("the gate for variant 'v0': q.json: 99 samples of k_deviation"),
                    HasSubstr("need 299")));
  for (double rate : {0.0, 1.0, -0.5, std::nan("")}) {
    status = Gate::create(plan, quality, "q.json", rate).status();
    EXPECT_EQ(status.code(), Code::kInvalidArgument);
    EXPECT_THAT(status.message(), HasSubstr("expected more than 0 % and less than 100 %"));
  }
}

// ---- requests

class GatedRequests : public ::testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    ASSERT_NE(receiver_.model, nullptr);
    folder_ = ::testing::TempDir() + "/ds_gate" + std::to_string(getpid());
    std::filesystem::remove_all(folder_);
    auto store = open_store("file:" + folder_);
    ASSERT_TRUE(store.ok());
    store_ = std::move(*store);
    ASSERT_TRUE(publish(*sender_.backend, *sender_.model, sender_.identity, context_, *store_,
                        {.cuts = plain_cuts({2})})
                    .ok());
    plan_ = plan_for({2, 3});
    request_.context = context_;
    request_.suffix = suffix_;
    request_.store = store_.get();
    request_.receiver = &receiver_.identity;
    request_.max_new_tokens = 6;
  }
  Plan plan_for(LayerRange group) {
    testing::PlanOptions options;
    options.dtype = std::string(dtype_name(GetParam()));
    options.element_bytes = dtype_size(GetParam());
    Plan plan = make_plan(receiver_.model->config().shape(), group, "e-first", options);
    plan.sender = sender_.identity;
    plan.receiver = receiver_.identity;
    return plan;
  }
  /// A gate whose samples of each proxy are all one number: below or above it is an alarm.
  Gate gate_at(const Plan& plan, double keys, double entropy, double margin) {
    Quality quality = quality_for(plan, {way_of(plan.variants[0])});
    quality.k_deviation.assign(99, keys);
    quality.ways[0].entropy.assign(99, entropy);
    quality.ways[0].margin.assign(99, margin);
    auto gate = Gate::create(plan, quality, "q.json", 0.1);
    EXPECT_TRUE(gate.ok()) << gate.status().message();
    return std::move(gate).value();
  }
  struct Ran {
    Answer answer;
    std::vector<float> logits;
    std::vector<int32_t> streamed;
    int64_t checks = 0, alarms = 0;
  };
  Ran run(const Plan& plan, Request request) {
    Ran ran;
    auto session = Session::create(*receiver_.backend, *receiver_.model, plan, {400, 6, 6});
    EXPECT_TRUE(session.ok()) << session.status().message();
    if (!session.ok()) return ran;
    request.on_token = [&](int32_t token) { ran.streamed.push_back(token); };
    auto answer = (*session)->run(request);
    EXPECT_TRUE(answer.ok()) << answer.status().message();
    if (!answer.ok()) return ran;
    ran.answer = std::move(*answer);
    ran.logits.assign((*session)->first_logits().begin(), (*session)->first_logits().end());
    ran.checks = (*session)->gate_checks();
    ran.alarms = (*session)->gate_alarms();
    return ran;
  }
  static bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
  }

  TinyModel sender_{tiny_config(Family::kLlama), 12, GetParam()};
  TinyModel receiver_{tiny_config(Family::kLlama), 11, GetParam()};
  std::vector<int32_t> context_ = random_ids(333, 300, 8), suffix_ = random_ids(6, 300, 9);
  std::string folder_;
  std::unique_ptr<Store> store_;
  Plan plan_;
  Request request_;
};

TEST_P(GatedRequests, AnAlarmGivesTheFullPrefillsAnswerAndNoneTheUngatedOne) {
  Ran ungated = run(plan_, request_);
  Request whole = request_;
  whole.full_prefill = true;
  Ran full = run(plan_, whole);
  ASSERT_FALSE(same_bits(ungated.logits, full.logits));
  EXPECT_FALSE(ungated.answer.gate.checked);

  Gate wide = gate_at(plan_, 1e6, 1e6, 0);
  request_.gate = &wide;
  Ran passed = run(plan_, request_);
  EXPECT_TRUE(passed.answer.gate.checked);
  EXPECT_FALSE(passed.answer.gate.alarmed);
  EXPECT_TRUE(same_bits(passed.logits, ungated.logits));
  EXPECT_EQ(passed.answer.tokens, ungated.answer.tokens);
  EXPECT_EQ(passed.answer.variant, &plan_.variants[0]);
  EXPECT_EQ(passed.answer.lost_ns, 0);
  EXPECT_EQ(passed.checks, 1);
  EXPECT_EQ(passed.alarms, 0);
  const ProxyValues seen = passed.answer.gate.values;
  ProxyValues expected = first_token_proxies(ungated.logits);
  EXPECT_EQ(seen[Proxy::kEntropy], profile_precision(expected[Proxy::kEntropy]));
  EXPECT_EQ(seen[Proxy::kMargin], profile_precision(expected[Proxy::kMargin]));
  EXPECT_GT(seen[Proxy::kKDeviation], 0.1);

  // A little beyond what was seen passes, a little less alarms, for each proxy by itself.
  const double above = 1 + 1e-4, below = 1 - 1e-4;
  struct Case {
    const char* what;
    double keys, entropy, margin;
    bool alarmed;
  };
  const double k = seen[Proxy::kKDeviation], e = seen[Proxy::kEntropy], m = seen[Proxy::kMargin];
  for (const Case& c : {Case{"equal", k, e, m, false}, Case{"wider", k * above, e * above, m * below, false},
                        Case{"keys", k * below, e, m, true}, Case{"entropy", k, e * below, m, true},
                        Case{"margin", k, e, m * above, true}}) {
    Gate gate = gate_at(plan_, c.keys, c.entropy, c.margin);
    request_.gate = &gate;
    Ran ran = run(plan_, request_);
    EXPECT_EQ(ran.answer.gate.alarmed, c.alarmed) << c.what;
    EXPECT_EQ(ran.alarms, c.alarmed ? 1 : 0);
    EXPECT_EQ(ran.answer.gate.alarms(Proxy::kKDeviation), c.what == std::string("keys"));
    EXPECT_EQ(ran.answer.gate.alarms(Proxy::kEntropy), c.what == std::string("entropy"));
    EXPECT_EQ(ran.answer.gate.alarms(Proxy::kMargin), c.what == std::string("margin"));
    const Ran& like = c.alarmed ? full : ungated;
    EXPECT_TRUE(same_bits(ran.logits, like.logits)) << c.what;
    EXPECT_EQ(ran.answer.tokens, like.answer.tokens) << c.what;
    EXPECT_EQ(ran.streamed, like.streamed) << c.what << ": a token was shown before the verdict";
    EXPECT_EQ(ran.answer.cache, CacheStatus::kHit);
    EXPECT_TRUE(ran.answer.miss.ok());
    EXPECT_EQ(ran.answer.bytes_loaded, ungated.answer.bytes_loaded);
    EXPECT_EQ(ran.answer.gate.variant, &plan_.variants[0]);
    EXPECT_EQ(ran.answer.variant, c.alarmed ? &plan_.full_prefill : &plan_.variants[0]);
    EXPECT_EQ(ran.answer.op_times.size(), ran.answer.variant->ops.size());
    EXPECT_EQ(ran.answer.lost_ns > 0, c.alarmed);
    EXPECT_GT(ran.answer.gate.gate_ns, 0);
    if (c.alarmed) {
      EXPECT_GE(ran.answer.lost_ns, ran.answer.gate.gate_ns);
    }
  }
}

TEST_P(GatedRequests, KeysThatAreNotLoadedAreNotLookedAt) {
  Plan bottom = plan_for({0, 1});
  Gate gate = gate_at(bottom, 0, 1e6, 0);
  request_.gate = &gate;
  Ran ran = run(bottom, request_);
  EXPECT_EQ(ran.answer.cache, CacheStatus::kHit) << ran.answer.miss.message();
  EXPECT_TRUE(ran.answer.gate.checked);
  EXPECT_FALSE(ran.answer.gate.alarmed);
  EXPECT_TRUE(std::isnan(ran.answer.gate.values[Proxy::kKDeviation]));
}

TEST_P(GatedRequests, WhereNothingIsReusedThereIsNothingToLookAt) {
  Gate gate = gate_at(plan_, 0, 0, 1e6);
  request_.gate = &gate;
  request_.full_prefill = true;
  EXPECT_FALSE(run(plan_, request_).answer.gate.checked);
  request_.full_prefill = false;
  request_.salt = "nobody's";
  Ran missed = run(plan_, request_);
  EXPECT_EQ(missed.answer.cache, CacheStatus::kMiss);
  EXPECT_FALSE(missed.answer.gate.checked);
  EXPECT_EQ(missed.checks, 0);
}

TEST_P(GatedRequests, AGateOfAnotherPlanIsRefused) {
  Plan copy = plan_;
  Gate gate = gate_at(copy, 0, 0, 0);
  request_.gate = &gate;
  auto session = Session::create(*receiver_.backend, *receiver_.model, plan_, {400, 6, 6});
  ASSERT_TRUE(session.ok());
  EXPECT_THAT((*session)->run(request_).status().message(), HasSubstr("made for another plan"));
}

INSTANTIATE_TEST_SUITE_P(Types, GatedRequests, ::testing::Values(DType::kF32, DType::kBF16),
                         [](const auto& info) { return std::string(dtype_name(info.param)); });

// ---- drift

TEST(KolmogorovSmirnov, IsScipys) {
  auto json = read_json_file(DS_SOURCE_DIR "/tests/golden/gate/ks.json");
  ASSERT_TRUE(json.ok()) << json.status().message();
  ASSERT_GT(json->size(), 30u);
  for (const auto& c : *json) {
    auto a = c["a"].get<std::vector<double>>(), b = c["b"].get<std::vector<double>>();
    std::string what = fmt::format("{} {} {}", c["what"].get<std::string>(), a.size(), b.size());
    double statistic = c["statistic"], p = c["p"];
    for (const KolmogorovSmirnov& ks : {kolmogorov_smirnov(a, b), kolmogorov_smirnov(b, a)}) {
      EXPECT_NEAR(ks.statistic, statistic, 1e-14) << what;
      EXPECT_NEAR(ks.p, p, 1e-9 * p) << what;
    }
  }
}

GateVerdict verdict_of(double keys, double entropy, double margin, bool alarmed = false) {
  GateVerdict verdict;
  verdict.checked = true;
  verdict.alarmed = alarmed;
  for (size_t p = 0; p < kProxies; ++p) verdict.thresholds.of[p] = 0;
  verdict.values[Proxy::kKDeviation] = keys;
  verdict.values[Proxy::kEntropy] = entropy;
  verdict.values[Proxy::kMargin] = margin;
  return verdict;
}

class Drift : public ::testing::Test {
 protected:
  void SetUp() override {
    path_ = ::testing::TempDir() + "/ds_drift" + std::to_string(getpid()) + ".json";
    std::filesystem::remove(path_);
    for (auto& samples : reference_.samples) {
      for (int i = 0; i < 300; ++i) samples.push_back(profile_precision(draw()));
      std::sort(samples.begin(), samples.end());
    }
  }
  double draw() { return std::exp(normal_(generator_)); }
  DriftWindow window(int64_t requests = 64) {
    auto made = DriftWindow::make("a1", requests);
    EXPECT_TRUE(made.ok());
    return std::move(made).value();
  }
  DriftWindow parsed(const std::string& text, Status& status, int64_t requests = 64) {
    auto json = parse_json(text, "w.json");
    EXPECT_TRUE(json.ok()) << text;
    auto back = DriftWindow::parse(*json, "w.json", "a1", requests);
    status = back.status();
    return back.ok() ? std::move(back).value() : window();
  }

  std::mt19937_64 generator_{3};
  std::normal_distribution<double> normal_;
  GateReference reference_{Way::group({1, 3}), {}};
  Way way_ = Way::group({1, 3});
  std::string path_;
};

TEST_F(Drift, IsToldFromChance) {
  DriftWindow alike = window(), other = window();
  for (int i = 0; i < 64; ++i) {
    if (i == 5) {
      EXPECT_EQ(alike.report(reference_).text(), "too few requests yet (5 of 16)");
    }
    alike.add(way_, verdict_of(draw(), draw(), draw()));
    other.add(way_, verdict_of(draw(), 2.5 * draw(), draw(), i % 8 == 0));
  }
  DriftReport report = alike.report(reference_);
  EXPECT_EQ(report.state, DriftReport::State::kInLine);
  EXPECT_EQ(report.text(), "in line with the profile (64 requests, 0 % alarms)");
  report = other.report(reference_);
  EXPECT_EQ(report.state, DriftReport::State::kDrifted);
  EXPECT_FALSE(report.tests[0].drifted);
  EXPECT_TRUE(report.tests[1].drifted);
  EXPECT_FALSE(report.tests[2].drifted);
  EXPECT_THAT(report.text(), AllOf(HasSubstr("drifted: entropy (p = "),
                                   HasSubstr("), profile again (64 requests, 12.5 % alarms)")));
  // Another way has a window of its own.
  GateReference elsewhere{Way::group({2, 3}), reference_.samples};
  EXPECT_EQ(other.report(elsewhere).state, DriftReport::State::kTooFew);
}

TEST_F(Drift, HoldsItsLevel) {
  int drifted = 0;
  constexpr int kTrials = 1500;
  constexpr double kLevel = 0.2;
  for (int trial = 0; trial < kTrials; ++trial) {
    GateReference reference{way_, {}};
    for (auto& samples : reference.samples) {
      for (int i = 0; i < 80; ++i) samples.push_back(draw());
      std::sort(samples.begin(), samples.end());
    }
    DriftWindow requests = window(32);
    for (int i = 0; i < 32; ++i) requests.add(way_, verdict_of(draw(), draw(), draw()));
    drifted += requests.report(reference, kLevel).state == DriftReport::State::kDrifted ? 1 : 0;
  }
  double rate = static_cast<double>(drifted) / kTrials;
  EXPECT_LE(rate, kLevel + 4 * std::sqrt(kLevel * (1 - kLevel) / kTrials));
  EXPECT_GE(rate, kLevel / 3);
}

TEST_F(Drift, ManyQuestionsAboutOneContextAreNone) {
  DriftWindow requests = window();
  for (int i = 0; i < 64; ++i) requests.add(way_, verdict_of(1.25, draw(), draw()));
  DriftReport report = requests.report(reference_);
  EXPECT_EQ(report.state, DriftReport::State::kInLine);
  EXPECT_EQ(report.tests[0].values, 1);
  EXPECT_FALSE(report.tests[0].tested);
}

TEST_F(Drift, KeepsTheLastRequestsAndOnlyThoseThatWereLookedAt) {
  DriftWindow requests = window(16), last = window(16);
  for (int i = 0; i < 40; ++i) {
    requests.add(way_, verdict_of(i, i, i, i % 2 == 0));
    if (i >= 24) last.add(way_, verdict_of(i, i, i, i % 2 == 0));
    requests.add(way_, GateVerdict());
  }
  EXPECT_EQ(requests, last);
  EXPECT_EQ(requests.report(reference_).requests, 16);
  EXPECT_EQ(requests.report(reference_).alarms, 8);
}

TEST_F(Drift, SurvivesItsFile) {
  DriftWindow requests = window();
  GateVerdict no_keys = verdict_of(NAN, 0.1, NAN, true);  // a margin that is not a number
  no_keys.thresholds[Proxy::kKDeviation] = NAN;
  requests.add(way_, no_keys);
  for (int i = 0; i < 20; ++i)
    requests.add(i % 2 == 0 ? way_ : Way::full_reuse(), verdict_of(draw(), draw(), draw()));
  Status status;
  EXPECT_EQ(parsed(requests.to_json().dump(), status), requests);
  EXPECT_TRUE(status.ok()) << status.message();
  // A shorter window keeps the last requests.
  for (int i = 0; i < 40; ++i) requests.add(way_, verdict_of(i, i, i));
  DriftWindow shorter = parsed(requests.to_json().dump(), status, 16);
  EXPECT_EQ(shorter.report(reference_).requests, 16);

  // Through the file, one request at a time; what is not there is empty.
  DriftWindow expected = window();
  for (int i = 0; i < 3; ++i) {
    expected.add(way_, verdict_of(i, i, i));
    auto updated = update_drift_window(path_, "a1", 64, way_, verdict_of(i, i, i));
    ASSERT_TRUE(updated.ok()) << updated.status().message();
    EXPECT_EQ(*updated, expected);
  }
  auto read = DriftWindow::read(path_, "a1", 64);
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_EQ(*read, expected);
}

TEST_F(Drift, DamagedAndForeignFilesAreErrorsAndStayAsTheyAre) {
  DriftWindow requests = window();
  requests.add(way_, verdict_of(1, 2, 3));
  const std::string good = requests.to_json().dump();
  auto with = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    return at == std::string::npos ? text : text.replace(at, from.size(), to);
  };
  struct Case {
    std::string text;
    Code code;
    std::string says;
  };
  for (const Case& c : {
           Case{"", Code::kCorrupt, "is empty"},
           Case{good.substr(0, good.size() / 2), Code::kCorrupt, "is not valid JSON"},
           Case{"[1]", Code::kCorrupt, "expected a JSON object"},
           Case{with("gate_window", "quality"), Code::kMismatch, "expected 'droidspeak.gate_window'"},
           Case{with("\"version\":1", "\"version\":2"), Code::kUnsupported, "found version 2"},
           Case{with("\"a1\"", "\"b2\""), Code::kMismatch,
                "profile_sha256 is b2..., but this profile has a1..."},
           Case{with("\"alarm\":false", "\"alarm\":3"), Code::kInvalidArgument, "window[0]"},
           Case{with("\"entropy\"", "\"entropie\""), Code::kInvalidArgument, "unknown key 'entropie'"},
           Case{with("\"requests\":64", "\"requests\":1"), Code::kInvalidArgument, "'requests' is 1"},
           Case{with("\"ways\":[", "\"ways\":[{\"way\":\"recompute 1-3\",\"window\":[]},"),
                Code::kInvalidArgument, "for the second time"},
       }) {
    std::ofstream(path_, std::ios::binary) << c.text;
    auto updated = update_drift_window(path_, "a1", 64, way_, verdict_of(1, 2, 3));
    EXPECT_THAT(updated.status().message(), AllOf(HasSubstr(path_), HasSubstr(c.says)));
    EXPECT_EQ(code_name(updated.status().code()), code_name(c.code)) << updated.status().message();
    EXPECT_EQ(*read_text_file(path_), c.text);
  }
  EXPECT_THAT(DriftWindow::make("a1", 15).status().message(),
              HasSubstr("a window of 15 requests; expected 16 to 4096"));
}

}  // namespace
}  // namespace ds
