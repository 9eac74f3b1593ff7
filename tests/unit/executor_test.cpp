// The laws that hold for every tiling (docs/design.md), and what a request does when its entry is not
// there or not right. Sender and receiver go through publish -> store -> run, as in production.
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

#include "plans/full_prefill.h"
#include "runtime/core/publish.h"
#include "runtime/core/session.h"
#include "runtime/model/identity.h"
#include "runtime/store/entry.h"
#include "tests/unit/aligned_plans.h"
#include "tests/unit/broken_model.h"
#include "tests/unit/model_fixture.h"
#include "tests/unit/plan_builder.h"

namespace ds {
namespace {

using testing::BrokenModel;
using testing::exact_rows;
using testing::make_plan;
using testing::plain_cuts;
using testing::random_ids;
using testing::tiny_config;
using testing::TinyModel;

Plan plan_for(const TinyModel& sender, const TinyModel& receiver, LayerRange group,
              const std::string& schedule) {
  testing::PlanOptions options;
  options.dtype = std::string(dtype_name(receiver.model->dtype()));
  options.element_bytes = dtype_size(receiver.model->dtype());
  Plan plan = make_plan(receiver.model->config().shape(), group, schedule, options);
  plan.sender = sender.identity;
  plan.receiver = receiver.identity;
  return plan;
}

std::string fresh_folder(const std::string& name) {
  std::string folder = ::testing::TempDir() + "/ds_executor_" + name + std::to_string(getpid());
  std::filesystem::remove_all(folder);
  return folder;
}

/// Logits of the first token; `answer` gets the rest.
std::vector<float> run_request(TinyModel& m, const Plan& plan, Request request, Answer* answer = nullptr) {
  auto session = Session::create(*m.backend, *m.model, plan,
                                 {static_cast<int64_t>(request.context.size()),
                                  static_cast<int64_t>(request.suffix.size()), request.max_new_tokens});
  EXPECT_TRUE(session.ok()) << session.status().message();
  if (!session.ok()) return {};
  auto result = (*session)->run(request);
  EXPECT_TRUE(result.ok()) << result.status().message();
  if (!result.ok()) return {};
  if (answer != nullptr) {
    *answer = std::move(result).value();
    answer->variant = nullptr;  // the plan may not live on
  }
  auto logits = (*session)->first_logits();
  return {logits.begin(), logits.end()};
}

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  double worst = 0, scale = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    worst = std::max(worst, std::abs(static_cast<double>(a[i]) - b[i]));
    scale = std::max(scale, std::abs(static_cast<double>(b[i])));
    if (!std::isfinite(a[i])) return INFINITY;
  }
  EXPECT_GT(scale, 0.05) << "logits so flat that nothing can differ";
  return worst / scale;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

struct Case {
  Family family;
  DType dtype;
};

class Laws : public ::testing::TestWithParam<Case> {};

TEST_P(Laws, SenderIsReceiverGivesTheFullPrefill) {
  TinyModel model(tiny_config(GetParam().family), 11, GetParam().dtype);
  ASSERT_NE(model.model, nullptr);
  const int64_t vocab = model.model->config().vocab;
  struct Length {
    int64_t n, m;
  };
  for (Length length : {Length{1, 1}, Length{37, 1}, Length{101, 23}, Length{257, 5}}) {
    auto context = random_ids(length.n, vocab, 1), suffix = random_ids(length.m, vocab, 2);
    Request request;
    request.context = context;
    request.suffix = suffix;
    request.full_prefill = true;
    Plan full = full_prefill_plan(model.identity, model.model->config().shape(), "");
    auto expected = run_request(model, full, request);
    auto store = open_store("file:" + fresh_folder("laws"));
    ASSERT_TRUE(store.ok());
    PublishOptions publish_options{.cuts = plain_cuts({1, 2, 3, 4})};
    ASSERT_TRUE(
        publish(*model.backend, *model.model, model.identity, context, **store, publish_options).ok());
    for (LayerRange group : {LayerRange{}, LayerRange{0, 4}, LayerRange{0, 1}, LayerRange{3, 4},
                             LayerRange{4, 4}, LayerRange{2, 2}, LayerRange{1, 3}, LayerRange{0, 0}}) {
      for (const char* schedule : {"e-first", "kv-preload", "serial"}) {
        Plan plan = plan_for(model, model, group, schedule);
        request.full_prefill = false;
        request.store = store->get();
        request.receiver = &model.identity;
        Answer answer;
        auto logits = run_request(model, plan, request, &answer);
        std::string what =
            fmt::format("group {} {} n={} m={}", format_layers(group), schedule, length.n, length.m);
        EXPECT_TRUE(answer.miss.ok()) << what << ": " << answer.miss.message();
        const double allowed = exact_rows() ? 0 : GetParam().dtype == DType::kF32 ? 1e-5 : 4e-2;
        EXPECT_LE(largest_difference(logits, expected), allowed) << what;
      }
    }
  }
}

/// An entry serves every request that begins as its context does, and no row behind that is used.
TEST_P(Laws, TheBeginningOfAnEntryGivesTheFullPrefill) {
  TinyModel model(tiny_config(GetParam().family), 11, GetParam().dtype);
  ASSERT_NE(model.model, nullptr);
  const int64_t vocab = model.model->config().vocab;
  const auto entry = random_ids(257, vocab, 1), suffix = random_ids(9, vocab, 2);
  auto store = open_store("file:" + fresh_folder("beginning"));
  ASSERT_TRUE(store.ok());
  ASSERT_TRUE(
      publish(*model.backend, *model.model, model.identity, entry, **store, {.cuts = plain_cuts({2})}).ok());
  for (size_t n : {256, 255, 193, 192, 100, 64, 1}) {
    Request request;
    request.context = std::span(entry).first(n);
    request.suffix = suffix;
    request.full_prefill = true;
    Plan plan = plan_for(model, model, {2, 3}, "e-first");
    const auto expected = run_request(model, plan, request);
    request.full_prefill = false;
    request.store = store->get();
    request.receiver = &model.identity;
    const double allowed = exact_rows() ? 0 : GetParam().dtype == DType::kF32 ? 1e-5 : 4e-2;
    Answer answer;
    // Found by its whole blocks, unless the request says what it was published for.
    auto logits = run_request(model, plan, request, &answer);
    EXPECT_EQ(answer.cache, n < 64 ? CacheStatus::kMiss : CacheStatus::kHit) << answer.miss.message();
    EXPECT_EQ(answer.reused_tokens, static_cast<int64_t>(n) / 64 * 64);
    EXPECT_LE(largest_difference(logits, expected), allowed) << n;
    request.entry = entry;
    logits = run_request(model, plan, request, &answer);
    EXPECT_EQ(answer.cache, CacheStatus::kHit) << n << ": " << answer.miss.message();
    EXPECT_EQ(answer.reused_tokens, static_cast<int64_t>(n));
    EXPECT_LE(largest_difference(logits, expected), allowed) << n;
  }
}

TEST_P(Laws, AllRecomputedIsTheFullPrefillToTheBitWhateverTheSender) {
  TinyModel receiver(tiny_config(GetParam().family), 11, GetParam().dtype);
  TinyModel sender(tiny_config(GetParam().family), 12, GetParam().dtype);
  ASSERT_NE(sender.model, nullptr);
  auto context = random_ids(77, 300, 3), suffix = random_ids(9, 300, 4);
  auto store = open_store("file:" + fresh_folder("all"));
  ASSERT_TRUE(
      publish(*sender.backend, *sender.model, sender.identity, context, **store, {.cuts = plain_cuts({2})})
          .ok());
  Request request;
  request.context = context;
  request.suffix = suffix;
  request.store = store->get();
  Plan plan = plan_for(sender, receiver, {0, 4}, "e-first");
  auto recomputed = run_request(receiver, plan, request);
  request.full_prefill = true;
  auto full = run_request(receiver, plan, request);
  EXPECT_TRUE(same_bits(recomputed, full));
  // A sender that matters: reuse of another model's cache must show, or this test compares nothing.
  request.full_prefill = false;
  Plan reuse = plan_for(sender, receiver, {2, 3}, "e-first");
  EXPECT_GT(largest_difference(run_request(receiver, reuse, request), full), 0.01);
}

TEST_P(Laws, RecomputedCellsNeverSeeLaterTokens) {
  TinyModel model(tiny_config(GetParam().family), 11, GetParam().dtype);
  ASSERT_NE(model.model, nullptr);
  auto one = random_ids(65, 300, 5), two = one;
  const int64_t changed = 40;
  for (size_t i = changed; i < two.size(); ++i) two[i] = (two[i] + 1 + static_cast<int32_t>(i)) % 300;
  auto store = open_store("file:" + fresh_folder("causal"));
  std::vector<std::vector<std::byte>> rows[2];
  int which = 0;
  for (const auto& ids : {one, two}) {
    ASSERT_TRUE(
        publish(*model.backend, *model.model, model.identity, ids, **store, {.cuts = plain_cuts({3})}).ok());
    EntryIdentity identity{model.identity.fingerprint, hash_tokens(ids), "", 65, GetParam().dtype};
    auto entry = EntryReader::open(**store, identity, model.model->config().shape());
    ASSERT_TRUE(entry.ok()) << entry.status().message();
    for (const EntryTensor& tensor : entry->header().tensors) {
      std::vector<std::byte> bytes(static_cast<size_t>(tensor.bytes));
      ASSERT_TRUE(entry->read_rows(tensor.kind, tensor.layer, 0, 65, bytes.data()).ok());
      rows[which].push_back(std::move(bytes));
    }
    ++which;
  }
  ASSERT_EQ(rows[0].size(), 6u);
  for (size_t t = 0; t < rows[0].size(); ++t) {
    size_t before = rows[0][t].size() / 65 * changed;
    EXPECT_EQ(std::memcmp(rows[0][t].data(), rows[1][t].data(), before), 0)
        << "tensor " << t << " saw a later token";
    EXPECT_NE(std::memcmp(rows[0][t].data() + before, rows[1][t].data() + before, rows[0][t].size() - before),
              0);
  }
}

TEST_P(Laws, DecodingFromTheMixedCacheEqualsDecodingAfterAFullPrefill) {
  TinyModel model(tiny_config(GetParam().family), 11, GetParam().dtype);
  ASSERT_NE(model.model, nullptr);
  auto context = random_ids(50, 300, 6), suffix = random_ids(4, 300, 7);
  auto store = open_store("file:" + fresh_folder("decode"));
  ASSERT_TRUE(
      publish(*model.backend, *model.model, model.identity, context, **store, {.cuts = plain_cuts({1})})
          .ok());
  Request request;
  request.context = context;
  request.suffix = suffix;
  request.store = store->get();
  request.max_new_tokens = 12;
  Plan plan = plan_for(model, model, {1, 3}, "e-first");
  Answer reused, full;
  run_request(model, plan, request, &reused);
  request.full_prefill = true;
  run_request(model, plan, request, &full);
  EXPECT_EQ(reused.tokens.size(), 12u);
  EXPECT_EQ(reused.tokens, full.tokens);
}

INSTANTIATE_TEST_SUITE_P(
    Families, Laws,
    ::testing::Values(Case{Family::kLlama, DType::kF32}, Case{Family::kLlama, DType::kBF16},
                      Case{Family::kQwen2, DType::kF32}, Case{Family::kQwen3, DType::kBF16},
                      Case{Family::kMistral, DType::kBF16}),
    [](const auto& info) {
      return std::string(family_name(info.param.family)) + "_" + std::string(dtype_name(info.param.dtype));
    });

/// A published entry of another model, and what becomes of a request when it is not as it should be.
class Misses : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fresh_folder("misses");
    auto store = open_store("file:" + folder_);
    ASSERT_TRUE(store.ok());
    store_ = std::move(store).value();
    ASSERT_TRUE(publish(*sender_.backend, *sender_.model, sender_.identity, context_, *store_,
                        {.cuts = plain_cuts({2})})
                    .ok());
    for (auto& e : std::filesystem::directory_iterator(folder_)) {
      if (e.is_regular_file()) file_ = e.path();
    }
    ASSERT_FALSE(file_.empty());
    plan_ = plan_for(sender_, receiver_, {2, 3}, "e-first");
    Request request = make_request();
    request.full_prefill = true;
    full_ = run_request(receiver_, plan_, request);
  }
  Request make_request() {
    Request request;
    request.context = context_;
    request.suffix = suffix_;
    request.store = store_.get();
    request.receiver = &receiver_.identity;
    return request;
  }
  void expect_miss(const Request& request, Code code, const std::string& reason) {
    Answer answer;
    auto logits = run_request(receiver_, plan_, request, &answer);
    EXPECT_EQ(answer.cache, CacheStatus::kMiss);
    EXPECT_EQ(code_name(answer.miss.code()), code_name(code)) << answer.miss.message();
    EXPECT_NE(answer.miss.message().find(reason), std::string::npos) << answer.miss.message();
    EXPECT_TRUE(same_bits(logits, full_)) << "a miss must give the full prefill's answer";
  }

  TinyModel sender_{tiny_config(Family::kLlama), 12, DType::kBF16};
  TinyModel receiver_{tiny_config(Family::kLlama), 11, DType::kBF16};
  std::vector<int32_t> context_ = random_ids(90, 300, 8), suffix_ = random_ids(6, 300, 9);
  std::unique_ptr<Store> store_;
  std::string folder_;
  std::filesystem::path file_;
  Plan plan_;
  std::vector<float> full_;
};

TEST_F(Misses, HitFirst) {
  Answer answer;
  auto logits = run_request(receiver_, plan_, make_request(), &answer);
  EXPECT_EQ(answer.cache, CacheStatus::kHit);
  EXPECT_FALSE(same_bits(logits, full_));
  // E at the cut, KV of the three reuse layers; 90 tokens, bf16.
  EXPECT_EQ(answer.bytes_loaded, 90 * 2 * (64 + 3 * 2 * 2 * 16));
}

TEST_F(Misses, NoStore) {
  Request request = make_request();
  request.store = nullptr;
  Answer answer;
  auto logits = run_request(receiver_, plan_, request, &answer);
  EXPECT_EQ(answer.cache, CacheStatus::kUnused) << "nobody looked anywhere: nothing was missed";
  EXPECT_TRUE(answer.miss.ok()) << answer.miss.message();
  EXPECT_EQ(answer.lost_ns, 0);
  EXPECT_TRUE(same_bits(logits, full_));
}

TEST_F(Misses, NoEntry) {
  std::filesystem::remove(file_);
  expect_miss(make_request(), Code::kNotFound, "");
}

TEST_F(Misses, OtherTokens) {
  context_[3] = (context_[3] + 1) % 300;
  Request request = make_request();
  request.full_prefill = true;
  full_ = run_request(receiver_, plan_, request);
  expect_miss(make_request(), Code::kNotFound, "");
}

TEST_F(Misses, IdsThatOnlyTheReceiverKnows) {
  // As a plan says it for a fine-tune with tokens of its own.
  plan_.shared_vocab = *std::max_element(context_.begin(), context_.end());
  expect_miss(make_request(), Code::kMismatch, "which only the receiver");
  plan_.shared_vocab += 1;
  Request request = make_request();
  Answer answer;
  run_request(receiver_, plan_, request, &answer);
  EXPECT_EQ(answer.cache, CacheStatus::kHit) << answer.miss.message();
}

TEST_F(Misses, OtherSalt) {
  Request request = make_request();
  request.salt = "another tenant";
  expect_miss(request, Code::kNotFound, "");
}

/// The block of 64 rows that the last one used lies in is verified whole; what lies behind it is not read.
TEST_F(Misses, DamageWhereTheBeginningOfAnEntryEnds) {
  const auto whole = context_;
  Request request = make_request();
  request.entry = whole;
  request.context = std::span(whole).first(70);
  Answer answer;
  run_request(receiver_, plan_, request, &answer);
  ASSERT_EQ(answer.cache, CacheStatus::kHit) << answer.miss.message();
  // Rows 0 to 89 of E at the cut and of KV of three layers: the last block goes on to row 89.
  EXPECT_EQ(answer.bytes_loaded, 90 * 2 * (64 + 3 * 2 * 2 * 16));
  // The object ends with the last layer's last row.
  std::fstream file(file_, std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(-1, std::ios::end);
  file.put('\x55');
  file.close();
  full_.clear();
  Request alone = request;
  alone.full_prefill = true;
  full_ = run_request(receiver_, plan_, alone);
  expect_miss(request, Code::kCorrupt, "damaged");
  // A request that ends before that block never sees it.
  request.context = std::span(whole).first(64);
  run_request(receiver_, plan_, request, &answer);
  EXPECT_EQ(answer.cache, CacheStatus::kHit) << answer.miss.message();
}

TEST_F(Misses, ContextThatIsNotTheBeginningOfItsEntry) {
  auto session = Session::create(*receiver_.backend, *receiver_.model, plan_, {90, 6, 1});
  ASSERT_TRUE(session.ok());
  auto other = context_;
  other[5] = (other[5] + 1) % 300;
  Request request = make_request();
  for (std::span<const int32_t> entry :
       {std::span<const int32_t>(other), std::span<const int32_t>(context_).first(89)}) {
    request.entry = entry;
    auto refused = (*session)->run(request);
    ASSERT_FALSE(refused.ok());
    EXPECT_EQ(refused.status().code(), Code::kInvalidArgument);
    EXPECT_NE(refused.status().message().find("not the first of"), std::string::npos);
  }
}

/// A tokenizer saved again in other bytes makes no other model.
TEST_F(Misses, NotForATokenizerThatWasSavedAgain) {
  plan_.receiver = receiver_.identity;
  ModelIdentity again = receiver_.identity;
  again.tokenizer = sha256_hex(std::string("other bytes"));
  again.fingerprint = identity_fingerprint(again.config, again.weights, again.tokenizer);
  plan_.receiver.fingerprint = identity_fingerprint(again.config, again.weights, plan_.receiver.tokenizer);
  ASSERT_NE(again.fingerprint, plan_.receiver.fingerprint);
  Request request = make_request();
  request.receiver = &again;
  Answer answer;
  run_request(receiver_, plan_, request, &answer);
  EXPECT_EQ(answer.cache, CacheStatus::kHit) << answer.miss.message();
  again.weights = sha256_hex(std::string("other weights"));
  again.fingerprint = identity_fingerprint(again.config, again.weights, again.tokenizer);
  expect_miss(request, Code::kMismatch, "weights or config");
}

TEST_F(Misses, OtherReceiver) {
  plan_.receiver.fingerprint = std::string(64, 'a');
  expect_miss(make_request(), Code::kMismatch, "receiver");
}

TEST_F(Misses, OtherSender) {
  plan_.sender.fingerprint = std::string(64, 'b');
  expect_miss(make_request(), Code::kNotFound, "");
}

TEST_F(Misses, EntryWithoutTheCut) {
  plan_ = plan_for(sender_, receiver_, {3, 3}, "e-first");
  expect_miss(make_request(), Code::kNotFound, "3");
}

TEST_F(Misses, TornAndDamaged) {
  std::ifstream in(file_, std::ios::binary);
  std::string good((std::istreambuf_iterator<char>(in)), {});
  auto put = [&](const std::string& bytes) {
    std::ofstream(file_, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  };
  for (size_t size : {size_t{0}, size_t{7}, size_t{100}, good.size() / 2, good.size() - 1}) {
    put(good.substr(0, size));
    expect_miss(make_request(), Code::kCorrupt, "");
  }
  // One flipped bit in what the plan reads: E of layer 2 is the first tensor, KV of layer 0 the next.
  for (size_t at : {size_t{3}, size_t{9}, size_t{30}, size_t{4096 + 5}, size_t{4096 + 90 * 128 - 1}}) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 4);
    put(bad);
    Answer answer;
    auto logits = run_request(receiver_, plan_, make_request(), &answer);
    EXPECT_EQ(answer.cache, CacheStatus::kMiss) << "bit flipped in byte " << at;
    EXPECT_TRUE(same_bits(logits, full_)) << "bit flipped in byte " << at;
  }
  put(good);
  Answer answer;
  run_request(receiver_, plan_, make_request(), &answer);
  EXPECT_EQ(answer.cache, CacheStatus::kHit);
}

TEST_F(Misses, Late) {
  // The entry has 46 kB and needs over a second on this link.
  auto slow = shape_link(std::move(store_), {40'000, 0});
  Request request = make_request();
  request.store = slow.get();
  request.link_deadline_ns = 200'000'000;
  expect_miss(request, Code::kExhausted, "late");
  request.link_deadline_ns = 1;
  expect_miss(request, Code::kExhausted, "late");
}

TEST_F(Misses, InTime) {
  Request request = make_request();
  request.link_deadline_ns = INT64_MAX;
  Answer answer;
  run_request(receiver_, plan_, request, &answer);
  EXPECT_EQ(answer.cache, CacheStatus::kHit);
}

TEST_F(Misses, ASessionGoesOnAfterAMiss) {
  auto session = Session::create(*receiver_.backend, *receiver_.model, plan_, {90, 6, 4});
  ASSERT_TRUE(session.ok());
  Request good = make_request(), bad = make_request();
  bad.salt = "x";
  auto first = (*session)->run(good);
  ASSERT_TRUE(first.ok());
  std::vector<float> hit((*session)->first_logits().begin(), (*session)->first_logits().end());
  for (int i = 0; i < 3; ++i) {
    auto missed = (*session)->run(bad);
    ASSERT_TRUE(missed.ok());
    EXPECT_EQ(missed->cache, CacheStatus::kMiss);
    std::vector<float> logits((*session)->first_logits().begin(), (*session)->first_logits().end());
    EXPECT_TRUE(same_bits(logits, full_));
    ASSERT_TRUE((*session)->run(good).ok());
    logits.assign((*session)->first_logits().begin(), (*session)->first_logits().end());
    EXPECT_TRUE(same_bits(logits, hit));
  }
}

TEST_F(Misses, BadRequestsAreErrors) {
  auto session = Session::create(*receiver_.backend, *receiver_.model, plan_, {90, 6, 4});
  ASSERT_TRUE(session.ok());
  Request request = make_request();
  request.suffix = {};
  EXPECT_EQ((*session)->run(request).status().code(), Code::kInvalidArgument);
  request = make_request();
  std::vector<int32_t> outside = {5, 300};
  request.suffix = outside;
  auto status = (*session)->run(request).status();
  EXPECT_NE(status.message().find("prompt token 1 has id 300"), std::string::npos) << status.message();
  auto long_context = random_ids(200, 300, 1);
  request = make_request();
  request.context = long_context;
  EXPECT_EQ((*session)->run(request).status().code(), Code::kInvalidArgument);
  request = make_request();
  request.max_new_tokens = 5;
  EXPECT_EQ((*session)->run(request).status().code(), Code::kInvalidArgument);
  Plan other = plan_;
  other.shape.d_model = 128;
  EXPECT_EQ(Session::create(*receiver_.backend, *receiver_.model, other, {90, 6, 4}).status().code(),
            Code::kMismatch);
  EXPECT_EQ(Session::create(*receiver_.backend, *receiver_.model, plan_, {70000, 6, 4}).status().code(),
            Code::kInvalidArgument);
}

/// Ways that reuse an entry that is all right, by a model that is not.
class Faults : public Misses {
 protected:
  void SetUp() override {
    if (!testing::exact_rows()) GTEST_SKIP() << "kernels are broken on streams of host code";
    Misses::SetUp();
  }
  /// Runs `plan_` and then a full prefill, in one session.
  Status run(BrokenModel& model, const MapSet* maps = nullptr, int64_t new_tokens = 1) {
    auto session = Session::create(*receiver_.backend, model, plan_, {90, 6, new_tokens}, maps);
    EXPECT_TRUE(session.ok()) << session.status().message();
    if (!session.ok()) return ok_status();
    Request request = make_request();
    request.max_new_tokens = new_tokens;
    tokens_ = 0;
    request.on_token = [&](int32_t) { ++tokens_; };
    auto answer = (*session)->run(request);
    // The session lives on: a way without the fault answers.
    request = make_request();
    request.full_prefill = true;
    auto full = (*session)->run(request);
    full_works_ =
        full.ok() && same_bits({(*session)->first_logits().begin(), (*session)->first_logits().end()}, full_);
    return answer.status();
  }
  /// The fault is the request's: it is told with its op, and no full prefill covers it.
  void expect_fault(const Status& status, const std::vector<std::string>& parts) {
    EXPECT_EQ(code_name(status.code()), code_name(Code::kInternal)) << status.message();
    for (const std::string& part : parts)
      EXPECT_NE(status.message().find(part), std::string::npos) << status.message() << "\nexpected: " << part;
    EXPECT_EQ(tokens_, 0);
    EXPECT_TRUE(full_works_);
  }
  int tokens_ = 0;
  bool full_works_ = false;
};

TEST_F(Faults, ALayerThatIsBrokenForTheContextAlone) {
  BrokenModel model(*receiver_.model);
  model.fails = "layer";
  model.rows = 90;
  expect_fault(run(model), {"variant 'v0', op ", "(recompute 2), layer 2: this kernel is broken"});
}

TEST_F(Faults, ALayerThatIsBrokenForTheSuffixAlone) {
  BrokenModel model(*receiver_.model);
  model.fails = "layer";
  model.rows = 6;
  expect_fault(run(model), {"variant 'v0', op ", "(suffix 0), layer 0: this kernel is broken"});
}

TEST_F(Faults, Select) {
  plan_ = testing::make_select_plan(plan_.shape, 0.25);
  plan_.sender = sender_.identity;
  plan_.receiver = receiver_.identity;
  for (const char* kernel : {"select", "layer_selected"}) {
    BrokenModel model(*receiver_.model);
    EXPECT_TRUE(run(model).ok());
    model.fails = kernel;
    expect_fault(run(model), {"variant 'v0', op ", ", layer 1: this kernel is broken"});
  }
}

TEST_F(Faults, Align) {
  MapSet maps = testing::make_maps(plan_.shape, 4, [](int64_t, const std::string&, std::vector<float>&) {});
  testing::set_pair(maps, sender_.identity, receiver_.identity);
  plan_ =
      testing::with_aligned_cuts(plan_, MapForm::kDiagonal, MapSide::kReceiver, {"maps", maps.fingerprint()});
  BrokenModel model(*receiver_.model);
  EXPECT_TRUE(run(model, &maps).ok());
  model.fails = "align";
  expect_fault(run(model, &maps), {"variant 'v0', op ", "(align 2), layer 2: this kernel is broken"});
}

TEST_F(Faults, AKernelBesideAMissIsNotCoveredByIt) {
  // The last byte, which is K and V of layer 4: damaged, and known to be only when the kernel has long run.
  const auto size = static_cast<std::streamoff>(std::filesystem::file_size(file_));
  std::fstream file(file_, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(size - 1);
  const char last = static_cast<char>(file.get());
  file.seekp(size - 1);
  file.put(static_cast<char>(last ^ 1));
  file.close();
  store_ = shape_link(std::move(store_), {400'000, 0});
  expect_miss(make_request(), Code::kCorrupt, "kv(4)");
  BrokenModel model(*receiver_.model);
  model.fails = "layer";
  model.rows = 90;
  expect_fault(run(model), {"variant 'v0', op ", "(recompute 2), layer 2: this kernel is broken"});
}

TEST_F(Faults, AFirstLogitThatIsNoNumberIsAnError) {
  for (float number : {std::nanf(""), INFINITY, -INFINITY}) {
    BrokenModel model(*receiver_.model);
    model.not_a_number = true;
    model.number = number;
    auto session = Session::create(*receiver_.backend, model, plan_, {90, 6, 1});
    ASSERT_TRUE(session.ok());
    for (bool full : {false, true}) {
      Request request = make_request();
      request.full_prefill = full;
      request.on_token = [](int32_t) { ADD_FAILURE() << "a token was chosen"; };
      Status status = (*session)->run(request).status();
      EXPECT_EQ(status.code(), Code::kInternal);
      for (std::string part :
           {"token 1 of the answer", "1 of 300", "id 17", full ? "--dtype f32" : "variant 'v0'"})
        EXPECT_NE(status.message().find(part), std::string::npos) << status.message();
    }
  }
}

TEST_F(Faults, ALaterLogitThatIsNoNumberIsAnErrorToo) {
  for (bool fails : {false, true}) {
    BrokenModel model(*receiver_.model);
    model.after = 3;  // tokens 2 and 3 are right
    model.not_a_number = !fails;
    if (fails) model.fails = "step";
    Status status = run(model, nullptr, 9);
    EXPECT_EQ(status.code(), Code::kInternal);
    EXPECT_NE(status.message().find("token 4 of the answer"), std::string::npos) << status.message();
    EXPECT_EQ(tokens_, 3);
  }
}

TEST_F(Misses, ASecondThreadInOneSessionIsRefusedAndHarmsNothing) {
  auto session = Session::create(*receiver_.backend, *receiver_.model, plan_, {90, 6, 8});
  ASSERT_TRUE(session.ok());
  Request request = make_request();
  request.max_new_tokens = 8;
  const std::vector<int32_t> alone = (*session)->run(request)->tokens;
  Status again;  // by the request's own callback
  std::atomic<bool> go{false}, stop{false};
  std::atomic<int> refused{0};
  std::thread second([&] {
    while (!go) std::this_thread::yield();
    Request other = make_request();
    other.full_prefill = true;
    while (!stop) {
      Status status = (*session)->run(other).status();
      if (status.ok()) continue;  // between two requests of the first
      EXPECT_EQ(status.code(), Code::kInvalidArgument) << status.message();
      EXPECT_NE(status.message().find("one at a time"), std::string::npos) << status.message();
      ++refused;
    }
  });
  request.on_token = [&](int32_t) {
    go = true;
    again = (*session)->run(make_request()).status();
    if (refused == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  };
  auto answer = (*session)->run(request);
  stop = true;
  second.join();
  ASSERT_TRUE(answer.ok()) << answer.status().message();
  EXPECT_EQ(answer->tokens, alone);
  EXPECT_EQ(again.code(), Code::kInvalidArgument);
  EXPECT_GT(refused, 0);
  EXPECT_TRUE((*session)->run(make_request()).ok()) << "afterwards it is free again";
}

TEST(Streams, WhatWouldNotRunSideBySideIsRefused) {
  TinyModel model(tiny_config(Family::kLlama), 11, DType::kBF16);
  ASSERT_NE(model.model, nullptr);
  const Plan plan = plan_for(model, model, {1, 3}, "e-first");
  auto refused = [&](StreamKind more, bool whole) {
    Plan other = plan;
    (whole ? other.full_prefill : other.variants[0]).streams.push_back({more});
    auto session = Session::create(*model.backend, *model.model, other, {90, 6, 1});
    return session.ok() ? Status() : session.status();
  };
  for (bool whole : {false, true}) {
    Status compute = refused(StreamKind::kCompute, whole);
    EXPECT_EQ(compute.code(), Code::kUnsupported);
    EXPECT_NE(compute.message().find("has 2 compute streams; this runtime runs at most 1"), std::string::npos)
        << compute.message();
  }
  EXPECT_EQ(refused(StreamKind::kLink, false).code(), Code::kUnsupported);
  EXPECT_TRUE(refused(StreamKind::kLink, true).ok()) << "the full prefill has none of its own";
  EXPECT_TRUE(Session::create(*model.backend, *model.model, plan, {90, 6, 1}).ok());
}

TEST(Choice, ByLengthLinkAndLoad) {
  TinyModel model(tiny_config(Family::kLlama), 11, DType::kBF16);
  ASSERT_NE(model.model, nullptr);
  auto context = random_ids(2000, 300, 6), suffix = random_ids(4, 300, 7);
  auto files = open_store("file:" + fresh_folder("choice"));
  ASSERT_TRUE(
      publish(*model.backend, *model.model, model.identity, context, **files, {.cuts = plain_cuts({1})})
          .ok());
  // Full reuse above 10 MB/s, a group below; under load full reuse everywhere.
  Plan plan = plan_for(model, model, {}, "e-first"), group = plan_for(model, model, {1, 3}, "e-first");
  for (Variant& v : plan.variants) v.tuned_rate = 0, v.tuned_tokens = 0, v.tuned_suffix = 0;
  plan.variants.push_back(group.variants[0]);
  plan.variants.push_back(plan.variants[0]);
  plan.variants[0].name = "fast";
  plan.variants[0].rate_min = 10'000'000;
  plan.variants[0].load_max = 1;
  plan.variants[1].name = "slow";
  plan.variants[1].rate_max = 10'000'000;
  plan.variants[1].load_max = 1;
  plan.variants[2].name = "loaded";
  plan.variants[2].load_min = 1;
  constexpr double kRate = 4e6;
  auto store = shape_link(std::move(*files), {kRate, 0});
  auto session = Session::create(*model.backend, *model.model, plan, {2000, 4, 1});
  ASSERT_TRUE(session.ok()) << session.status().message();
  Request request;
  request.context = context;
  request.suffix = suffix;
  request.store = store.get();
  auto runs = [&](const char* variant, RateSource source) {
    auto answer = (*session)->run(request);
    ASSERT_TRUE(answer.ok()) << answer.status().message();
    EXPECT_EQ(answer->variant->name, variant);
    EXPECT_EQ(answer->rate_source, source);
    EXPECT_EQ(answer->waiting, request.waiting);
    EXPECT_TRUE(answer->miss.ok()) << answer->miss.message();
  };
  EXPECT_EQ((*session)->measured_link_rate(), 0);
  runs("fast", RateSource::kUnknown);  // nothing known: as fast as can be
  // The transfers of that request showed what the link does.
  EXPECT_NEAR(static_cast<double>((*session)->measured_link_rate()), kRate, 0.1 * kRate);
  runs("slow", RateSource::kMeasured);
  request.waiting = 3;
  runs("loaded", RateSource::kMeasured);
  request.waiting = 0;
  request.link_rate = 1'000'000'000;
  runs("fast", RateSource::kGiven);
  request.waiting = -1;
  EXPECT_EQ((*session)->run(request).status().code(), Code::kInvalidArgument);
}

TEST(Choice, AnEstimateFollowsTheLinkAndIgnoresTrifles) {
  LinkEstimate link;
  EXPECT_EQ(link.rate(), 0);
  link.add(1000, 1);  // too little to say anything
  EXPECT_EQ(link.rate(), 0);
  link.add(100 << 20, 1'000'000'000);
  EXPECT_EQ(link.rate(), 100 << 20);
  link.add(1 << 20, 1'000'000'000);  // a short hiccup counts for little
  EXPECT_GT(link.rate(), 45 << 20);
  for (int i = 0; i < 20; ++i) link.add(64 << 20, 6'400'000'000);  // a tenth of the rate, for long
  EXPECT_NEAR(static_cast<double>(link.rate()), static_cast<double>(10 << 20), 1 << 20);
  link.add(1 << 30, 0);  // no time: not a rate
  EXPECT_NEAR(static_cast<double>(link.rate()), static_cast<double>(10 << 20), 1 << 20);
}

// OpenMP reads these when a program starts: the law of S = R once more, in programs of their own.
TEST(Threads, FewerThanAskedForChangeNoAnswer) {
  const std::string self = std::filesystem::read_symlink("/proc/self/exe").string();
  for (const char* setting : {"OMP_THREAD_LIMIT=1", "OMP_DYNAMIC=true"}) {
    const std::string command =
        fmt::format("GTEST_OUTPUT= {} '{}' --gtest_filter='*SenderIsReceiver*/llama_f32'", setting, self);
    EXPECT_EQ(std::system(command.c_str()), 0) << command;
  }
}

TEST(Sampling, GreedyAndSeeded) {
  std::vector<float> logits = {0.1f, 2.0f, 1.9f, -3.0f, 2.0f};
  std::vector<std::pair<float, int32_t>> scratch;
  auto choose_by = [&](Sampler& sampler) { return choose(logits, sampler.next(), scratch); };
  Sampler greedy({});
  EXPECT_EQ(choose_by(greedy), 1) << "a tie goes to the lowest id";
  Sampling sampling{.temperature = 1, .top_p = 1, .seed = 42};
  Sampler one(sampling), two(sampling);
  std::vector<int> counts(5);
  for (int i = 0; i < 20000; ++i) {
    int32_t token = choose_by(one);
    ASSERT_EQ(token, choose_by(two)) << "the same seed, the same tokens";
    ++counts[static_cast<size_t>(token)];
  }
  double total = 0;
  for (float l : logits) total += std::exp(l);
  for (size_t i = 0; i < 5; ++i) EXPECT_NEAR(counts[i] / 20000.0, std::exp(logits[i]) / total, 0.015) << i;
  Sampler narrow({.temperature = 1, .top_p = 0.5, .seed = 1});  // 1 and 4 hold 0.63 together, 1 alone 0.32
  for (int i = 0; i < 1000; ++i) {
    int32_t token = choose_by(narrow);
    EXPECT_TRUE(token == 1 || token == 4) << token;
  }
}

}  // namespace
}  // namespace ds
