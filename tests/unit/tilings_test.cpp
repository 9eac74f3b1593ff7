// Tilings in several chunks, run for real: logits against transformers (tests/golden/models/README.md), the
// law that a sender equal to the receiver gives the full prefill, to the bit, and that how many entries a
// context is in is nothing that a bit shows.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <numeric>
#include <random>

#include "compiler/pipeline.h"
#include "compiler/policy/policy.h"
#include "plans/full_prefill.h"
#include "plans/plan_file.h"
#include "plans/published_kv.h"
#include "runtime/core/chain.h"
#include "runtime/core/publish.h"
#include "runtime/core/segments.h"
#include "runtime/core/session.h"
#include "runtime/core/variant_runner.h"
#include "runtime/model/safetensors.h"
#include "support/json.h"
#include "tests/unit/model_fixture.h"
#include "tests/unit/policy_plans.h"
#include "tests/unit/take.h"

namespace ds {
namespace {

using testing::compile_tiles;
using testing::random_ids;
using testing::take;
using testing::tiny_config;
using testing::TinyModel;

Mode mode_of(const std::string& name) {
  for (Mode mode : {Mode::kLoad, Mode::kRecompute, Mode::kRestore})
    if (mode_name(mode) == name) return mode;
  ADD_FAILURE() << "no mode '" << name << "'";
  return Mode::kLoad;
}

std::string fresh_folder(const std::string& name) {
  std::string folder = ::testing::TempDir() + "/ds_tilings_" + name + std::to_string(getpid());
  std::filesystem::remove_all(folder);
  return folder;
}

/// `selected`: filled with the positions that were chosen.
std::vector<float> run(Backend& backend, DeviceModel& model, const Plan& plan, const Request& request,
                       std::vector<int32_t>* selected = nullptr) {
  auto session = Session::create(
      backend, model, plan,
      {static_cast<int64_t>(request.context.size()), static_cast<int64_t>(request.suffix.size()), 1});
  EXPECT_TRUE(session.ok()) << session.status().message();
  if (!session.ok()) return {};
  auto answer = (*session)->run(request);
  EXPECT_TRUE(answer.ok()) << answer.status().message();
  if (!answer.ok()) return {};
  if (!request.full_prefill) {
    EXPECT_TRUE(answer->miss.ok()) << answer->miss.message();
  }
  if (selected) selected->assign((*session)->selected().begin(), (*session)->selected().end());
  auto logits = (*session)->first_logits();
  return {logits.begin(), logits.end()};
}

constexpr std::string_view kSchedulers[] = {"serial", "kv-preload", "e-first", "best", "cake", "two-pointer"};

/// A golden pair in f32, and what transformers computes with it.
class Tilings : public ::testing::TestWithParam<std::string> {
 protected:
  void open(const std::string& cases) {
    std::string folder = DS_SOURCE_DIR "/tests/golden/models/" + GetParam();
    auto made = testing::test_backend();
    ASSERT_TRUE(made.ok());
    backend_ = std::move(*made);
    for (int i = 0; i < 2; ++i) {
      auto checkpoint = Checkpoint::open(folder + (i == 0 ? "/sender" : "/receiver"));
      ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().message();
      auto model = backend_->load(*checkpoint, {.dtype = DType::kF32});
      ASSERT_TRUE(model.ok()) << model.status().message();
      models[i] = std::move(*model);
      identities[i] = *checkpoint->identity();
    }
    auto read = read_json_file(folder + "/" + cases + ".json");
    ASSERT_TRUE(read.ok()) << read.status().message();
    json_ = *read;
    auto file = SafetensorsFile::open(folder + "/" + cases + ".safetensors");
    ASSERT_TRUE(file.ok()) << file.status().message();
    for (const auto& c : json_["cases"]) {
      const auto& entry = file->entries().at(c["tensor"].get<std::string>());
      std::vector<float> want(static_cast<size_t>(models[1]->config().vocab));
      ASSERT_EQ(entry.data.size(), want.size() * sizeof(float));
      std::memcpy(want.data(), entry.data.data(), entry.data.size());
      want_.push_back(std::move(want));
    }
    tokens = json_["tokens"].get<std::vector<int32_t>>();
  }
  static float worst(const std::vector<float>& found, const std::vector<float>& want) {
    float worst = found.size() == want.size() ? 0 : INFINITY;
    for (size_t i = 0; i < want.size() && i < found.size(); ++i)
      worst = std::max(worst, std::abs(found[i] - want[i]));
    return worst;
  }

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<DeviceModel> models[2];
  ModelIdentity identities[2];
  nlohmann::json json_;
  std::vector<std::vector<float>> want_;  // logits, by case
  std::vector<int32_t> tokens;
};

TEST_P(Tilings, LogitsAgreeWithTransformersTo1e4) {
  ASSERT_NO_FATAL_FAILURE(open("tilings"));
  Backend& backend = *backend_;
  const auto* json = &json_;
  auto n = (*json)["context"].get<size_t>();
  auto chunks = (*json)["chunks"].get<int32_t>();
  const Shape shape = models[1]->config().shape();
  auto store = open_store("file:" + fresh_folder(GetParam()));
  ASSERT_TRUE(store.ok());
  Request request;
  request.context = std::span(tokens).first(n);
  request.suffix = std::span(tokens).subspan(n);
  request.store = store->get();
  std::vector<Cut> cuts;
  for (int32_t l = 1; l < shape.layers; ++l) cuts.push_back({l});
  ASSERT_TRUE(publish(backend, *models[0], identities[0], request.context, **store, {.cuts = cuts}).ok());
  int checked = 0;
  size_t index = 0;
  for (const auto& c : (*json)["cases"]) {
    std::vector<Tile> tiles;
    for (const auto& t : c["tiles"]) {
      tiles.push_back({mode_of(t["mode"].get<std::string>()), t["layers"][0].get<int32_t>(),
                       t["layers"][1].get<int32_t>(), t["chunks"][0].get<int32_t>(),
                       t["chunks"][1].get<int32_t>(), t["cut"].get<bool>()});
    }
    const std::vector<float>& want = want_[index++];
    for (std::string_view scheduler : kSchedulers) {
      SCOPED_TRACE(fmt::format("{}, {}", c["what"].get<std::string>(), scheduler));
      Plan plan = compile_tiles(tiles, chunks, scheduler, shape, identities[0], identities[1]);
      std::vector<float> found = run(backend, *models[1], plan, request);
      EXPECT_LT(worst(found, want), 1e-4f);
      ++checked;
    }
  }
  EXPECT_GE(checked, 78);
}

TEST_P(Tilings, SelectedTokensAndLogitsAgreeWithTransformers) {
  ASSERT_NO_FATAL_FAILURE(open("select"));
  const Shape shape = models[1]->config().shape();
  auto store = open_store("file:" + fresh_folder(GetParam() + "_select"));
  ASSERT_TRUE(store.ok());
  Request request;
  request.context = std::span(tokens).first(json_["context"].get<size_t>());
  request.suffix = std::span(tokens).subspan(request.context.size());
  request.store = store->get();
  ASSERT_TRUE(publish(*backend_, *models[0], identities[0], request.context, **store, {}).ok());
  const std::vector<Tile> tiles = {{Mode::kRecompute, 0, 0, 0, 0, false},
                                   {Mode::kSelect, 1, static_cast<int32_t>(shape.layers) - 1, 0, 0, false}};
  ASSERT_EQ(want_.size(), 3u);
  for (size_t i = 0; i < want_.size(); ++i) {
    auto share = json_["cases"][i]["share"].get<double>();
    for (std::string_view scheduler : kSchedulers) {
      SCOPED_TRACE(fmt::format("{}, {}", share, scheduler));
      Plan plan = compile_tiles(tiles, 1, scheduler, shape, identities[0], identities[1], share);
      std::vector<int32_t> selected;
      std::vector<float> found = run(*backend_, *models[1], plan, request, &selected);
      EXPECT_EQ(selected, json_["cases"][i]["rows"].get<std::vector<int32_t>>());
      EXPECT_LT(worst(found, want_[i]), 1e-4f);
      if (share < 1) continue;
      // All tokens: the receiver's own prefill, to the bit.
      request.full_prefill = true;
      const std::vector<float> full = run(*backend_, *models[1], plan, request, &selected);
      EXPECT_TRUE(found == full || (!testing::exact_rows() && worst(found, full) < 1e-5f));
      EXPECT_TRUE(selected.empty());
      request.full_prefill = false;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, Tilings, ::testing::Values("llama", "qwen2", "qwen3"));

/// A model, its own entry with E of every layer, and what its full prefill answers.
struct Law {
  explicit Law(DType dtype, int64_t layers = 5) : model(tiny_config(Family::kLlama, layers), 11, dtype) {
    shape = model.model->config().shape();
    context = random_ids(333, shape.vocab, 1);
    suffix = random_ids(3, shape.vocab, 2);
    auto opened = open_store("file:" + fresh_folder("law"));
    EXPECT_TRUE(opened.ok());
    store = std::move(*opened);
    std::vector<Cut> cuts;
    for (int32_t l = 1; l < shape.layers; ++l) cuts.push_back({l});
    EXPECT_TRUE(publish(*model.backend, *model.model, model.identity, context, *store, {.cuts = cuts}).ok());
    request.context = context;
    request.suffix = suffix;
    request.store = store.get();
    request.full_prefill = true;
    want = run(*model.backend, *model.model, full_prefill_plan(model.identity, shape, "bf16"), request);
    request.full_prefill = false;
  }
  void check(const std::vector<Tile>& tiles, int32_t chunks, std::string_view scheduler, double share = 0) {
    Plan plan = compile_tiles(tiles, chunks, scheduler, shape, model.identity, model.identity, share);
    auto found = run(*model.backend, *model.model, plan, request);
    ASSERT_EQ(found.size(), want.size());
    if (testing::exact_rows()) {
      EXPECT_EQ(std::memcmp(found.data(), want.data(), want.size() * sizeof(float)), 0);
      return;
    }
    float off = 0, most = 0;
    for (size_t i = 0; i < want.size(); ++i) {
      off = std::max(off, std::abs(found[i] - want[i]));
      most = std::max(most, std::abs(want[i]));
    }
    EXPECT_LT(off, (model.model->dtype() == DType::kF32 ? 1e-5f : 4e-2f) * most);
  }

  TinyModel model;
  Shape shape;
  std::vector<int32_t> context, suffix;
  std::unique_ptr<Store> store;
  Request request;
  std::vector<float> want;
};

TEST(TilingLaws, SenderIsReceiverGivesTheFullPrefillToTheBitHoweverMuchIsRestored) {
  for (DType dtype : {DType::kBF16, DType::kF32}) {
    Law law(dtype);
    ASSERT_FALSE(law.want.empty());
    auto top = static_cast<int32_t>(law.shape.layers) - 1;
    for (int32_t chunks : {1, 3}) {
      auto end = chunks - 1;
      for (int32_t first = 0; first <= top; ++first) {
        std::vector<Tile> tiles;
        if (first > 0) tiles.push_back({Mode::kLoad, 0, first - 1, 0, end, false});
        tiles.push_back({Mode::kRestore, first, top, 0, end, false});
        SCOPED_TRACE(fmt::format("layers {} to {} in {} chunks", first, top, chunks));
        for (std::string_view scheduler : {"serial", "e-first", "best"}) law.check(tiles, chunks, scheduler);
      }
      law.check({{Mode::kRestore, 0, 1, 0, end, false},
                 {Mode::kRecompute, 2, 3, 0, end, true},
                 {Mode::kLoad, 4, 4, 0, end, false}},
                chunks, "best");
    }
  }
}

TEST(TilingLaws, RestoredLayersThatTakeTurnsInAFewBuffersGiveTheFullPrefillToTheBit) {
  for (DType dtype : {DType::kBF16, DType::kF32}) {
    Law law(dtype, 13);
    ASSERT_FALSE(law.want.empty());
    for (int32_t chunks : {1, 3}) {
      const int32_t end = chunks - 1;
      // Tiles side by side that start and end at other layers share buffers; one above them has its own.
      std::vector<Tile> tiles = {{Mode::kLoad, 0, 0, 0, end, false}, {Mode::kRestore, 1, 12, 0, 0, false}};
      if (chunks > 1) {
        tiles = {{Mode::kLoad, 0, 1, 1, end, false},
                 {Mode::kRestore, 0, 12, 0, 0, false},
                 {Mode::kRestore, 2, 7, 1, end, false},
                 {Mode::kRestore, 8, 12, 1, end, false}};
        std::swap(tiles[0], tiles[1]);
      }
      for (std::string_view scheduler :
           {"serial", "kv-preload", "e-first", "kv-first", "best", "cake", "two-pointer"}) {
        SCOPED_TRACE(fmt::format("{} chunks, {}", chunks, scheduler));
        law.check(tiles, chunks, scheduler);
      }
    }
  }
}

TEST(TilingLaws, SenderIsReceiverGivesTheFullPrefillToTheBitWhateverTheShare) {
  for (DType dtype : {DType::kBF16, DType::kF32}) {
    Law law(dtype);
    ASSERT_FALSE(law.want.empty());
    auto top = static_cast<int32_t>(law.shape.layers) - 1;
    for (double share : {0.001, 0.15, 0.5, 1.0}) {
      SCOPED_TRACE(share);
      for (std::string_view scheduler : {"serial", "e-first", "best"})
        law.check({{Mode::kRecompute, 0, 0, 0, 0, false}, {Mode::kSelect, 1, top, 0, 0, false}}, 1, scheduler,
                  share);
    }
  }
}

TEST(TilingLaws, SenderIsReceiverGivesTheFullPrefillToTheBitWhateverTheTiling) {
  for (DType dtype : {DType::kBF16, DType::kF32}) {
    Law law(dtype);
    ASSERT_FALSE(law.want.empty());
    const auto layers = static_cast<int32_t>(law.shape.layers);
    for (int32_t chunks : {2, 5}) {
      for (LayerRange group :
           {LayerRange{}, LayerRange{1, 2}, LayerRange{0, 1}, LayerRange{layers - 1, layers - 1}}) {
        for (int32_t below = 0; below <= chunks; below += 2) {
          for (int32_t above = 0; above + below <= chunks; above += 2) {
            if (above > 0 && (group.empty() || group.last == layers - 1)) continue;
            SCOPED_TRACE(fmt::format("group {}, {} chunks, {} from the embeddings, {} to the top",
                                     format_layers(group), chunks, below, above));
            auto tiles = tiles_for_group(group, layers, chunks, below, above);
            law.check(tiles, chunks, below % 4 == 0 ? "best" : "cake");
          }
        }
      }
    }
  }
}

/// What a run leaves: the first token's logits, and every layer's cache.
struct Left {
  Status miss;
  int64_t bytes_read = 0;
  std::vector<float> logits;
  std::vector<std::byte> caches;
};

/// A plan's first variant, with this test's own memory: what an engine does for each of its requests.
Left run_variant(TinyModel& receiver, const Plan& plan, const Request& request) {
  Left left;
  Backend& backend = *receiver.backend;
  DeviceModel& model = *receiver.model;
  const Variant& variant = plan.variants[0];
  const auto n = static_cast<int64_t>(request.context.size()),
             m = static_cast<int64_t>(request.suffix.size());
  const int64_t element = dtype_size(model.dtype());
  const int64_t kv_row = plan.shape.kv_row() * element, hidden_row = plan.shape.e_row() * element;
  std::vector<std::unique_ptr<DeviceMemory>> owned;
  auto allocate = [&](int64_t bytes, MemoryKind kind = MemoryKind::kDevice) {
    auto memory = backend.allocate(bytes, kind);
    EXPECT_TRUE(memory.ok()) << memory.status().message();
    return owned.emplace_back(std::move(*memory))->data();
  };
  std::vector<std::byte*> caches, hidden;
  for (int64_t l = 0; l < plan.shape.layers; ++l) caches.push_back(allocate((n + m) * kv_row));
  for (const Buffer& b : variant.buffers)
    if (b.kind == BufferKind::kHidden) hidden.push_back(allocate((n + m) * hidden_row));
  auto workspace = model.make_workspace(n + m);
  auto runner = VariantRunner::create(backend, plan, std::max(kv_row, hidden_row), plan.shape.layers);
  auto segments = Segments::open(*request.store, request, plan, variant, "", model.dtype());
  EXPECT_TRUE(workspace.ok() && runner.ok());
  if (!segments.ok()) {
    left.miss = segments.status();
    return left;
  }
  std::vector<int32_t> ids(request.context.begin(), request.context.end());
  ids.insert(ids.end(), request.suffix.begin(), request.suffix.end());
  OpMemory memory;
  memory.caches = caches;
  memory.hidden = hidden;
  memory.workspace = workspace->get();
  memory.ids = ids.data();
  memory.positions = reinterpret_cast<int32_t*>(allocate(n * 4));
  memory.selected = reinterpret_cast<int32_t*>(allocate(n * 4, MemoryKind::kHost));
  memory.logits = reinterpret_cast<float*>(allocate(plan.shape.vocab * 4, MemoryKind::kHost));
  memory.next_id = reinterpret_cast<int32_t*>(allocate(4, MemoryKind::kHost));
  const OpCalls calls(model, variant, nullptr, memory, n, m);
  TransferInput input;
  input.segments = &*segments;
  auto ran = (*runner)->run(calls, input, left.miss);
  EXPECT_TRUE(ran.ok()) << ran.status().message();
  left.bytes_read = segments->bytes_read();
  left.logits.assign(memory.logits, memory.logits + plan.shape.vocab);
  std::byte* copied = allocate(plan.shape.layers * (n + m) * kv_row, MemoryKind::kHost);
  for (size_t l = 0; l < caches.size(); ++l)
    (*runner)->compute().copy(copied + static_cast<int64_t>(l) * (n + m) * kv_row, caches[l],
                              (n + m) * kv_row);
  EXPECT_TRUE((*runner)->compute().synchronize().ok());
  left.caches.assign(copied, copied + plan.shape.layers * (n + m) * kv_row);
  return left;
}

/// A context of a sender's in one entry, and in chains of several that go on from one another.
class Chains : public ::testing::TestWithParam<DType> {
 protected:
  static constexpr int64_t kContext = 64 * 9 + 21;
  Chains()
      : sender(tiny_config(Family::kLlama), 11, GetParam()),
        receiver(tiny_config(Family::kLlama), 12, GetParam()) {
    shape = receiver.model->config().shape();
    context = random_ids(kContext, shape.vocab, 1);
    suffix = random_ids(3, shape.vocab, 2);
    folder = fresh_folder("chains");
    auto opened = open_store("file:" + folder);
    EXPECT_TRUE(opened.ok());
    store = std::move(*opened);
    request.context = context;
    request.suffix = suffix;
    request.store = store.get();
    publish_from(0, kContext);
  }
  /// Tokens [from, end) of the context.
  std::string publish_from(int64_t from, int64_t end) {
    PublishOptions options;
    for (int32_t l = 1; l < shape.layers; ++l) options.cuts.push_back({l});
    options.first = from;
    auto published = publish(*sender.backend, *sender.model, sender.identity, tokens(end), *store, options);
    EXPECT_TRUE(published.ok()) << published.status().message();
    return published.ok() ? published->key : "";
  }
  std::span<const int32_t> tokens(int64_t end) const {
    return std::span(context).first(static_cast<size_t>(end));
  }
  /// Entries that meet at the given tokens, and the segments that name them.
  std::vector<Segment> chain(const std::vector<int64_t>& cuts) {
    std::vector<Segment> segments;
    for (size_t i = 0; i <= cuts.size(); ++i) {
      const int64_t from = i == 0 ? 0 : cuts[i - 1], end = i < cuts.size() ? cuts[i] : kContext;
      publish_from(from, end);
      segments.push_back({.tokens = tokens(end), .from = from, .first_here = from, .rows = end - from});
    }
    return segments;
  }
  std::vector<Plan> plans() const {
    return testing::plans_of_policies(shape, sender.identity, receiver.identity);
  }

  TinyModel sender, receiver;
  Shape shape;
  std::vector<int32_t> context, suffix;
  std::string folder;
  std::unique_ptr<Store> store;
  Request request;
};

TEST_P(Chains, OneEntryOrAChainOfThemGiveTheSameBits) {
  std::vector<std::vector<Segment>> chains = {chain({64}), chain({448}), chain({128, 192}),
                                              chain({64, 128, 192, 320, 448, 576})};
  std::mt19937_64 random(3);
  for (size_t entries : {2, 3, 7}) {
    std::vector<int64_t> cuts(9);
    std::iota(cuts.begin(), cuts.end(), 1);
    std::shuffle(cuts.begin(), cuts.end(), random);
    cuts.resize(entries - 1);
    std::sort(cuts.begin(), cuts.end());
    for (int64_t& cut : cuts) cut *= 64;
    chains.push_back(chain(cuts));
  }
  int compared = 0;
  for (const Plan& plan : plans()) {
    SCOPED_TRACE(plan.variants[0].why);
    request.segments = {};
    const Left whole = run_variant(receiver, plan, request);
    ASSERT_TRUE(whole.miss.ok()) << whole.miss.message();
    for (const auto& segments : chains) {
      request.segments = segments;
      const Left found = run_variant(receiver, plan, request);
      ASSERT_TRUE(found.miss.ok()) << found.miss.message();
      EXPECT_EQ(found.bytes_read, whole.bytes_read);
      EXPECT_EQ(std::memcmp(found.logits.data(), whole.logits.data(), whole.logits.size() * sizeof(float)),
                0);
      EXPECT_TRUE(found.caches == whole.caches) << segments.size() << " entries";
      ++compared;
    }
  }
  EXPECT_GE(compared, 100);
}

TEST_P(Chains, ASessionCountsADamagedEntryAsOneMiss) {
  const std::vector<Tile> tiles = {{Mode::kLoad, 0, 0, 0, 3, false},
                                   {Mode::kRecompute, 1, 3, 0, 3, true},
                                   {Mode::kLoad, 4, 4, 0, 3, false}};
  const Plan plan = compile_tiles(tiles, 4, "best", shape, sender.identity, receiver.identity);
  auto made = Session::create(*receiver.backend, *receiver.model, plan, {kContext, 3, 8});
  ASSERT_TRUE(made.ok()) << made.status().message();
  Session& session = **made;
  request.max_new_tokens = 8;
  auto run = [&](CacheStatus cache) {
    auto answer = session.run(request);
    EXPECT_TRUE(answer.ok()) << answer.status().message();
    if (!answer.ok()) return Answer{};
    EXPECT_EQ(answer->cache, cache) << answer->miss.message();
    return std::move(*answer);
  };
  const Answer whole = run(CacheStatus::kHit);
  const std::vector<float> logits(session.first_logits().begin(), session.first_logits().end());
  request.full_prefill = true;
  const Answer full = run(CacheStatus::kUnused);
  request.full_prefill = false;

  const auto segments = chain({192, 448});
  request.segments = segments;
  const Answer chained = run(CacheStatus::kHit);
  EXPECT_EQ(chained.tokens, whole.tokens);
  EXPECT_EQ(chained.bytes_loaded, whole.bytes_loaded);
  EXPECT_EQ(std::memcmp(session.first_logits().data(), logits.data(), logits.size() * sizeof(float)), 0);

  const std::string key = publish_from(192, 448);
  const std::string path = folder + "/" + key;
  ASSERT_TRUE(std::filesystem::exists(path));
  {
    // A byte of the last tensor, its last row.
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    const auto size = static_cast<std::streamoff>(std::filesystem::file_size(path));
    file.seekg(size - 1);
    const auto byte = static_cast<char>(file.get() ^ 1);
    file.seekp(size - 1);
    file.put(byte);
  }
  Answer missed = run(CacheStatus::kMiss);
  EXPECT_EQ(missed.miss.code(), Code::kCorrupt);
  EXPECT_NE(missed.miss.message().find(key), std::string::npos) << missed.miss.message();
  EXPECT_EQ(missed.variant, &plan.full_prefill);
  EXPECT_EQ(missed.tokens, full.tokens);
  ASSERT_TRUE(store->remove(key).ok());
  missed = run(CacheStatus::kMiss);
  EXPECT_EQ(missed.miss.code(), Code::kNotFound) << missed.miss.message();
  publish_from(192, 448);
  EXPECT_EQ(run(CacheStatus::kHit).tokens, whole.tokens);
}

/// What no request names is found by its tokens, as far as it agrees with them.
TEST_P(Chains, TheLongestChainIsFound) {
  ASSERT_TRUE(store->remove(publish_from(0, kContext)).ok());
  const std::vector<Tile> tiles = {{Mode::kLoad, 0, 0, 0, 3, false},
                                   {Mode::kRecompute, 1, 3, 0, 3, true},
                                   {Mode::kLoad, 4, 4, 0, 3, false}};
  const Plan plan = compile_tiles(tiles, 4, "best", shape, sender.identity, receiver.identity);
  std::vector<int32_t> grown = context;
  const std::vector<int32_t> more = random_ids(90, shape.vocab, 5);
  grown.insert(grown.end(), more.begin(), more.end());
  const auto all = static_cast<int64_t>(grown.size());
  auto session = Session::create(*receiver.backend, *receiver.model, plan, {all, 3, 4});
  ASSERT_TRUE(session.ok()) << session.status().message();
  request.max_new_tokens = 4;
  Code why = Code::kNotFound;  // there is no more
  bool lacks = false;          // of an entry, E
  /// Of the first `n` tokens, the first `there` ones by plan and the rest as a question.
  auto expect = [&](int64_t n, int64_t there, const std::string& salt = "") {
    SCOPED_TRACE(fmt::format("{} of {}", there, n));
    Request whole = request;
    whole.context = std::span(grown).first(static_cast<size_t>(n));
    whole.salt = salt;
    auto found = (*session)->run(whole);
    ASSERT_TRUE(found.ok()) << found.status().message();
    ASSERT_EQ(found->cache, there > 0 ? CacheStatus::kHit : CacheStatus::kMiss) << found->miss.message();
    EXPECT_EQ(found->reused_tokens, there);
    // Why it is no more: of what is gone, another tenant's, or never was, that it is not there.
    EXPECT_EQ(found->shorter.ok(), there == 0 || there == n) << found->shorter.message();
    if (!found->shorter.ok()) {
      EXPECT_EQ(found->shorter.code(), why) << found->shorter.message();
      if (why == Code::kNotFound && !lacks) {
        EXPECT_NE(found->shorter.message().find(fmt::format("from token {} on", there)), std::string::npos)
            << found->shorter.message();
      }
    }
    if (there == 0) {
      EXPECT_EQ(found->miss.code(), Code::kNotFound) << found->miss.message();
      EXPECT_EQ(found->variant, &plan.full_prefill);
      return;
    }
    const std::vector<float> logits((*session)->first_logits().begin(), (*session)->first_logits().end());
    // By hand: segments name what is there, all else is the question.
    Request by_hand = whole;
    by_hand.context = whole.context.first(static_cast<size_t>(there));
    std::vector<int32_t> rest(whole.context.begin() + there, whole.context.end());
    rest.insert(rest.end(), suffix.begin(), suffix.end());
    by_hand.suffix = rest;
    auto answer = (*session)->run(by_hand);
    ASSERT_TRUE(answer.ok()) << answer.status().message();
    EXPECT_EQ(answer->cache, CacheStatus::kHit) << answer->miss.message();
    EXPECT_EQ(answer->reused_tokens, there);
    EXPECT_EQ(found->tokens, answer->tokens);
    EXPECT_EQ(std::memcmp((*session)->first_logits().data(), logits.data(), logits.size() * sizeof(float)),
              0);
  };
  expect(kContext, 0);
  const std::string first = publish_from(0, 192), second = publish_from(192, 448),
                    third = publish_from(448, kContext);
  expect(kContext, kContext);
  expect(all, 576);  // whole blocks of it: the last one says more now
  expect(448, 448);  // ends with an entry
  expect(300, 256);  // in the middle of one
  expect(60, 0);     // no block at all
  expect(kContext, 0, "another tenant's");
  // Another way there, of fewer entries.
  const std::string other = publish_from(0, 448);
  auto chain_of = [&](int64_t n) {
    auto chain = find_chain(*store, std::span(grown).first(static_cast<size_t>(n)),
                            {sender.identity.fingerprint, shape, "", GetParam()});
    EXPECT_TRUE(chain.ok()) << chain.status().message();
    return std::move(*chain);
  };
  Chain chain = chain_of(all);
  ASSERT_EQ(chain.links.size(), 2u);
  EXPECT_EQ(chain.links[0].key, other);
  EXPECT_EQ(chain.links[1].key, third);
  EXPECT_EQ(chain.why.code(), Code::kNotFound) << "of the last block it has but a part";
  EXPECT_TRUE(chain_of(kContext).why.ok());
  {
    // Its header is not right any more: as if it were not there.
    std::fstream file(folder + "/" + other, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(40);
    file.put('\x01');
  }
  chain = chain_of(all);
  ASSERT_EQ(chain.links.size(), 3u);
  EXPECT_EQ(chain.links[0].key, first);
  EXPECT_EQ(chain.why.code(), Code::kCorrupt);
  why = Code::kCorrupt;
  expect(all, 576);
  why = Code::kNotFound;
  ASSERT_TRUE(store->remove(other).ok());
  ASSERT_TRUE(store->remove(second).ok());
  expect(all, 192);
  // One that lacks E of the plan's cut.
  PublishOptions options;
  options.first = 192;
  ASSERT_TRUE(publish(*sender.backend, *sender.model, sender.identity, tokens(448), *store, options).ok());
  lacks = true;
  expect(all, 192);
  ASSERT_TRUE(store->remove(first).ok());
  expect(all, 0);
  EXPECT_EQ(chain_of(0).why.code(), Code::kNotFound);
}

/// Of a context that grows only what is new is computed and stored, with the same bytes.
TEST_P(Chains, AGrowingContextPublishesItsNewTokens) {
  PublishOptions options;
  for (int32_t l = 1; l < shape.layers; ++l) options.cuts.push_back({l});
  auto bytes_of = [](const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
  };
  auto fresh = open_store("file:" + fresh_folder("grows"));
  ASSERT_TRUE(fresh.ok());
  const std::string there = fresh_folder("grows");
  auto grow = [&](int64_t n) {
    auto published = publish(*sender.backend, *sender.model, sender.identity, tokens(n), **fresh, options);
    EXPECT_TRUE(published.ok()) << published.status().message();
    return published.ok() ? *published : Published{};
  };
  options.only_new = true;
  const Published first = grow(200);
  EXPECT_EQ(first.first, 0);
  EXPECT_FALSE(first.already);
  const Published second = grow(430);
  EXPECT_EQ(second.first, 192) << "whole blocks of it";
  EXPECT_EQ(second.after, 1u);
  const Published third = grow(kContext);
  EXPECT_EQ(third.first, 384);
  EXPECT_EQ(third.after, 2u);
  EXPECT_EQ(bytes_of(there + "/" + first.key), bytes_of(folder + "/" + publish_from(0, 200)));
  EXPECT_EQ(bytes_of(there + "/" + second.key), bytes_of(folder + "/" + publish_from(192, 430)));
  EXPECT_EQ(bytes_of(there + "/" + third.key), bytes_of(folder + "/" + publish_from(384, kContext)));
  const Published again = grow(kContext);
  EXPECT_TRUE(again.already);
  EXPECT_EQ(again.after, 3u);
  EXPECT_EQ(again.key, third.key);
  // Entries for fewer cuts are not what is wanted.
  options.cuts = {{1}};
  EXPECT_TRUE(grow(kContext).already);
  options.cuts.clear();
  auto bare = open_store("file:" + fresh_folder("bare"));
  ASSERT_TRUE(publish(*sender.backend, *sender.model, sender.identity, tokens(200), **bare, options).ok());
  options.cuts = {{1}};
  auto anew = publish(*sender.backend, *sender.model, sender.identity, context, **bare, options);
  ASSERT_TRUE(anew.ok()) << anew.status().message();
  EXPECT_EQ(anew->first, 0);
  // Rows that are not right are no rows to go on from.
  ASSERT_TRUE((*fresh)->remove(third.key).ok());
  {
    std::fstream file(there + "/" + second.key, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(-1, std::ios::end);
    const auto at = file.tellg();
    const auto byte = static_cast<char>(file.get() ^ 1);
    file.seekp(at);
    file.put(byte);
  }
  options.cuts = {{1}};
  const Published whole = grow(kContext);
  EXPECT_EQ(whole.first, 384) << "the block that is not right is not one of those that it goes on from";
  {
    std::fstream file(there + "/" + first.key, std::ios::in | std::ios::out | std::ios::binary);
    // The last layer's first row.
    const int64_t size = 200 * shape.kv_row() * dtype_size(GetParam());
    file.seekg(-size, std::ios::end);
    const auto at = file.tellg();
    const auto byte = static_cast<char>(file.get() ^ 1);
    file.seekp(at);
    file.put(byte);
  }
  ASSERT_TRUE((*fresh)->remove(whole.key).ok());
  EXPECT_EQ(grow(kContext).first, 0);
}

/// Of layers whose K and V no plan reads nothing is stored, and the answer is the same; where a context
/// grows, too.
TEST_P(Chains, OnlyWhatPlansReadIsStored) {
  const std::vector<Tile> tiles = {{Mode::kRecompute, 0, 3, 0, 0, false}, {Mode::kLoad, 4, 4, 0, 0, false}};
  const Plan plan = compile_tiles(tiles, 1, "best", shape, sender.identity, receiver.identity);
  EXPECT_EQ(published_kv(plan), (std::vector<int32_t>{4}));
  auto session = Session::create(*receiver.backend, *receiver.model, plan, {kContext, 3, 1});
  ASSERT_TRUE(session.ok()) << session.status().message();
  auto fresh = open_store("file:" + fresh_folder("wanted"));
  PublishOptions options;
  options.cuts = published_cuts(plan);
  options.kv_layers = published_kv(plan);
  options.only_new = true;
  int64_t bytes = 0;
  for (const int64_t n : {int64_t{192}, kContext}) {
    auto published = publish(*sender.backend, *sender.model, sender.identity,
                             std::span(context).first(static_cast<size_t>(n)), **fresh, options);
    ASSERT_TRUE(published.ok()) << published.status().message();
    EXPECT_EQ(published->first, n == 192 ? 0 : 192);
    bytes += published->entry_bytes;
  }
  EXPECT_LT(bytes, 2 * kContext * shape.kv_row() * dtype_size(GetParam())) << "one layer of five";
  Request asked = request;
  asked.store = fresh->get();
  auto answer = (*session)->run(asked);
  ASSERT_TRUE(answer.ok()) << answer.status().message();
  EXPECT_EQ(answer->cache, CacheStatus::kHit) << answer->miss.message();
  EXPECT_EQ(answer->reused_tokens, kContext);
  const auto logits = (*session)->first_logits();
  const std::vector<float> some(logits.begin(), logits.end());
  // With all of it.
  options.kv_layers.clear();
  auto whole = publish(*sender.backend, *sender.model, sender.identity, context, **fresh, options);
  ASSERT_TRUE(whole.ok()) << whole.status().message();
  EXPECT_EQ(whole->first, 0) << "what has one layer is nothing to go on from";
  answer = (*session)->run(asked);
  ASSERT_TRUE(answer.ok()) << answer.status().message();
  const auto all = (*session)->first_logits();
  for (size_t i = 0; i < all.size(); ++i) EXPECT_NEAR(all[i], some[i], 1e-3f);
  if (testing::exact_rows()) {
    EXPECT_EQ(std::memcmp(all.data(), some.data(), some.size() * sizeof(float)), 0);
  }
  for (const std::vector<int32_t>& wrong : {std::vector<int32_t>{5}, std::vector<int32_t>{-1},
                                            std::vector<int32_t>{2, 1}, std::vector<int32_t>{1, 1}}) {
    options.kv_layers = wrong;
    EXPECT_EQ(
        publish(*sender.backend, *sender.model, sender.identity, context, **fresh, options).status().code(),
        Code::kInvalidArgument);
  }
}

/// Tells of every entry that is written.
class ToldStore final : public Store {
 public:
  ToldStore(Store& under, std::function<void()> written) : under_(under), written_(std::move(written)) {}
  std::string url() const override { return under_.url(); }
  Status put(const std::string& key, const Produce& produce, Names names) override {
    Status status = under_.put(key, produce, names);
    written_();
    return status;
  }
  Result<Found> find(Names keys, Names names) override { return under_.find(keys, names); }
  Result<std::unique_ptr<StoreObject>> open(const std::string& key) override { return under_.open(key); }
  Status remove(const std::string& key) override { return under_.remove(key); }

 private:
  Store& under_;
  std::function<void()> written_;
};

/// A sender that is still at work: what it has computed is there already, as if it had been published so.
TEST_P(Chains, EntriesAppearAsTheyAreComputed) {
  const std::vector<Tile> tiles = {{Mode::kRecompute, 0, 3, 0, 0, false}, {Mode::kLoad, 4, 4, 0, 0, false}};
  const Plan plan = compile_tiles(tiles, 1, "best", shape, sender.identity, receiver.identity);
  auto session = Session::create(*receiver.backend, *receiver.model, plan, {kContext, 3, 1});
  ASSERT_TRUE(session.ok()) << session.status().message();
  const std::string there = fresh_folder("appear");
  auto fresh = open_store("file:" + there);
  std::vector<int64_t> reused;
  ToldStore told(**fresh, [&] {
    Request asked = request;
    asked.store = fresh->get();
    auto answer = (*session)->run(asked);
    ASSERT_TRUE(answer.ok()) << answer.status().message();
    reused.push_back(answer->reused_tokens);
  });
  PublishOptions options;
  for (int32_t l = 1; l < shape.layers; ++l) options.cuts.push_back({l});
  options.every = 192;
  auto published = publish(*sender.backend, *sender.model, sender.identity, context, told, options);
  ASSERT_TRUE(published.ok()) << published.status().message();
  EXPECT_EQ(reused, (std::vector<int64_t>{192, 384, 576, kContext}));
  EXPECT_EQ(published->entries, 4u);
  auto all = (*fresh)->list();
  ASSERT_TRUE(all.ok() && all->size() == 4);
  auto bytes_of = [](const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
  };
  int64_t bytes = 0;
  for (int64_t from = 0; from < kContext; from += 192) {
    const std::string key = publish_from(from, std::min(from + 192, kContext));
    EXPECT_EQ(bytes_of(there + "/" + key), bytes_of(folder + "/" + key)) << from;
    bytes += static_cast<int64_t>(bytes_of(folder + "/" + key).size());
  }
  EXPECT_EQ(published->entry_bytes, bytes);
  // Behind what is there, and never in more entries than a chain may have.
  ASSERT_TRUE((*fresh)->remove(published->key).ok());
  options.only_new = true;
  options.every = 64;
  published = publish(*sender.backend, *sender.model, sender.identity, context, **fresh, options);
  ASSERT_TRUE(published.ok()) << published.status().message();
  EXPECT_EQ(published->first, 576);
  EXPECT_EQ(published->entries, 1u);
  options.only_new = false;
  const auto many = random_ids(64 * 32, shape.vocab, 9);
  options.every = 128;
  published = publish(*sender.backend, *sender.model, sender.identity, many, **fresh, options);
  ASSERT_TRUE(published.ok()) << published.status().message();
  EXPECT_EQ(published->entries, kLongestChain);
  options.only_new = true;
  published = publish(*sender.backend, *sender.model, sender.identity, many, **fresh, options);
  ASSERT_TRUE(published.ok()) << published.status().message();
  EXPECT_TRUE(published->already) << "all of it is there, in as many entries as there may be";
  options.only_new = false;
  options.every = 64;
  published = publish(*sender.backend, *sender.model, sender.identity, random_ids(64 * 40, shape.vocab, 9),
                      **fresh, options);
  ASSERT_TRUE(published.ok()) << published.status().message();
  EXPECT_LE(published->entries, kLongestChain);
  EXPECT_GE(published->entries, 10u);
  options.every = 100;
  auto refused = publish(*sender.backend, *sender.model, sender.identity, context, **fresh, options);
  EXPECT_EQ(refused.status().code(), Code::kInvalidArgument);
  EXPECT_NE(refused.status().message().find("every 100 tokens"), std::string::npos);
}

TEST_P(Chains, AnEntryGoesOnFromABlockOfChecksums) {
  PublishOptions options;
  options.cuts = {{1}};
  options.first = 576;
  auto last = publish(*sender.backend, *sender.model, sender.identity, context, *store, options);
  ASSERT_TRUE(last.ok()) << last.status().message();
  ASSERT_EQ(last->cuts.size(), 1u);
  EXPECT_EQ(last->cuts[0].bytes, (kContext - 576) * shape.d_model * dtype_size(GetParam()));
  for (int64_t first : {int64_t{-64}, int64_t{100}, int64_t{640}}) {
    options.first = first;
    auto refused = publish(*sender.backend, *sender.model, sender.identity, context, *store, options);
    EXPECT_EQ(refused.status().code(), Code::kInvalidArgument);
    EXPECT_NE(refused.status().message().find(fmt::format("begin at token {} of 597", first)),
              std::string::npos)
        << refused.status().message();
  }
}

TEST_P(Chains, RowsThatNoSegmentHasAreAMissWhereTheyAreNeeded) {
  // Chunk 0 is recomputed from the embeddings: nothing of it is sent.
  const std::vector<Tile> tiles = {{Mode::kRecompute, 0, 4, 0, 0, false}, {Mode::kLoad, 0, 4, 1, 3, false}};
  const Plan plan = compile_tiles(tiles, 4, "best", shape, sender.identity, receiver.identity);
  const int64_t second = chunk_begin(kContext, 4, 1);
  ASSERT_EQ(second, 128);
  const auto segments = chain({128, 320});
  request.segments = segments;
  const Left whole = run_variant(receiver, plan, request);
  ASSERT_TRUE(whole.miss.ok()) << whole.miss.message();
  request.segments = std::span(segments).subspan(1);
  const Left without_first = run_variant(receiver, plan, request);
  ASSERT_TRUE(without_first.miss.ok()) << without_first.miss.message();
  EXPECT_TRUE(without_first.caches == whole.caches);
  EXPECT_EQ(without_first.logits, whole.logits);
  request.segments = std::span(segments).first(2);
  const Left without_last = run_variant(receiver, plan, request);
  EXPECT_EQ(without_last.miss.code(), Code::kNotFound);
  EXPECT_NE(without_last.miss.message().find("no segment of source 0 has token 320"), std::string::npos)
      << without_last.miss.message();
}

TEST_P(Chains, SegmentsThatDoNotFitAreTheCallersFault) {
  const Plan plan =
      compile_tiles({{Mode::kLoad, 0, 4, 0, 0, false}}, 1, "best", shape, sender.identity, receiver.identity);
  auto session = Session::create(*receiver.backend, *receiver.model, plan, {kContext, 3, 1});
  ASSERT_TRUE(session.ok()) << session.status().message();
  const auto good = chain({192, 448});
  std::vector<int32_t> other = context;
  other[100] ^= 1;
  struct Case {
    const char* says;
    std::function<void(std::vector<Segment>&)> change;
    Code code = Code::kInvalidArgument;
  };
  const Case cases[] = {
      {"segment 1 of the request: its entry begins at token 100 of 448; expected a multiple of 64",
       [](auto& s) { s[1].from = 100; }},
      {"its entry begins at token 448 of 448", [](auto& s) { s[1].from = 448; }},
      {"it takes 257 rows from row 0 on; expected 1 or more of the 256", [](auto& s) { s[1].rows = 257; }},
      {"it takes 0 rows from row 0 on", [](auto& s) { s[1].rows = 0; }},
      {"it takes 256 rows from row -64 on", [](auto& s) { s[1].first_there = -64; }},
      {"it takes 9223372036854775807 rows", [](auto& s) { s[1].rows = INT64_MAX; }},
      {"it is 256 rows from token 576 on; expected 1 or more of the 597",
       [](auto& s) { s[1].first_here = 576; }},
      {"it begins at token 128 of the context, the one before it ends at 192; expected ascending segments",
       [](auto& s) { s[1].first_here = 128; }},
      {"it takes 150 rows from row 0 on, to token 192; expected multiples of 64",
       [](auto& s) { s[1].rows = 150; }},
      {"it takes 64 rows from row 32 on", [](auto& s) { s[1].first_there = 32, s[1].rows = 64; }},
      {"it takes 64 rows from row 0 on, to token 200",
       [](auto& s) { s[1].first_here = 200, s[1].rows = 64; }},
      {"its K is to be turned by 64 positions", [](auto& s) { s[1].rotation = 64; }, Code::kUnsupported},
      {"it takes rows of positions 256 and up to token 192; expected the same position",
       [](auto& s) { s[1].first_there = 64, s[1].rows = 192; }},
      {"at position 100, the context", [&](auto& s) { s[1].tokens = std::span(other).first(448); }},
  };
  for (const Case& c : cases) {
    std::vector<Segment> segments = good;
    c.change(segments);
    request.segments = segments;
    const Status status = (*session)->run(request).status();
    EXPECT_EQ(status.code(), c.code) << c.says;
    EXPECT_NE(status.message().find(c.says), std::string::npos) << c.says << "\n" << status.message();
  }
  request.segments = good;
  request.entry = context;
  EXPECT_NE((*session)->run(request).status().message().find("expected one of the two"), std::string::npos);
}

TEST_P(Chains, EverySourceIsReadFromItsOwnSegments) {
  TinyModel second(tiny_config(Family::kLlama), 13, GetParam());
  const std::vector<Tile> tiles = {{Mode::kLoad, 0, 0, 0, 3, false},
                                   {Mode::kRecompute, 1, 3, 0, 3, true},
                                   {Mode::kLoad, 4, 4, 0, 3, false}};
  Plan plan = compile_tiles(tiles, 4, "best", shape, sender.identity, receiver.identity);
  const Left one = run_variant(receiver, plan, request);
  ASSERT_TRUE(one.miss.ok()) << one.miss.message();

  plan.format_version = 5;
  plan.sources = sources_of(plan);
  plan.sources.push_back({SourceRule::kSegment, sender.identity, shape});
  for (Op& op : plan.variants[0].ops)
    if (op.payload == Payload::kKv && op.layer == 4) op.source = 1;
  ASSERT_TRUE(verify_plan(plan, "made").ok()) << verify_plan(plan, "made").message();
  // Without segments the request means the sender's entry, which is not that source's.
  const Left missed = run_variant(receiver, plan, request);
  EXPECT_EQ(missed.miss.code(), Code::kNotFound);
  EXPECT_NE(missed.miss.message().find("no segment of source 1 has token 0"), std::string::npos)
      << missed.miss.message();

  std::vector<Segment> segments = chain({192, 448});
  for (Segment s : chain({320})) {
    s.source = 1;
    segments.push_back(s);
  }
  request.segments = segments;
  const Left both = run_variant(receiver, plan, request);
  ASSERT_TRUE(both.miss.ok()) << both.miss.message();
  EXPECT_EQ(both.bytes_read, one.bytes_read);
  EXPECT_TRUE(both.caches == one.caches);
  EXPECT_EQ(both.logits, one.logits);

  // Another model's rows land in the layer whose transfers name it, and nowhere else.
  plan.sources[1].model = second.identity;
  ASSERT_TRUE(publish(*second.backend, *second.model, second.identity, context, *store, {}).ok());
  segments.resize(3);
  segments.push_back({.source = 1, .tokens = context, .rows = kContext});
  request.segments = segments;
  const Left other = run_variant(receiver, plan, request);
  ASSERT_TRUE(other.miss.ok()) << other.miss.message();
  const auto row = static_cast<size_t>(shape.kv_row() * dtype_size(GetParam()));
  const size_t layer = row * (kContext + suffix.size());
  EXPECT_TRUE(std::equal(one.caches.begin(), one.caches.begin() + static_cast<int64_t>(4 * layer),
                         other.caches.begin()));
  EntryReader theirs = take(EntryReader::open(
      *store, entry_identity(second.identity.fingerprint, context, 0, "", GetParam()), shape));
  std::vector<std::byte> rows(row * kContext);
  ASSERT_TRUE(theirs.read_rows(TensorKind::kKv, 4, 0, kContext, rows.data()).ok());
  EXPECT_TRUE(std::equal(rows.begin(), rows.end(), other.caches.begin() + static_cast<int64_t>(4 * layer)));

  // What stands before a segment is nothing to its rows; where it stands is.
  auto session = Session::create(*receiver.backend, *receiver.model, plan, {kContext, 3, 1});
  ASSERT_TRUE(session.ok()) << session.status().message();
  std::vector<int32_t> elsewhere = context;
  elsewhere[5] ^= 1;
  segments.back() = {.source = 1, .tokens = elsewhere, .from = 64, .first_here = 64, .rows = kContext - 64};
  request.segments = segments;
  EXPECT_TRUE(check_request(request, plan, {kContext, 3, 1}).ok());
  segments.back().source = 0;
  segments.erase(segments.begin(), segments.begin() + 3);
  request.segments = segments;
  Status status = check_request(request, plan, {kContext, 3, 1});
  EXPECT_NE(status.message().find("at position 5, the context"), std::string::npos) << status.message();
  segments.back().source = 2;
  status = check_request(request, plan, {kContext, 3, 1});
  EXPECT_EQ(status.code(), Code::kInvalidArgument);
  EXPECT_NE(status.message().find("segment 0 of the request is of source 2; the plan has 0 to 1"),
            std::string::npos)
      << status.message();
}

INSTANTIATE_TEST_SUITE_P(Types, Chains, ::testing::Values(DType::kF32, DType::kBF16),
                         [](const auto& info) { return std::string(dtype_name(info.param)); });

}  // namespace
}  // namespace ds
