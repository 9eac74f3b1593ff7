// Tilings in several chunks, run for real: logits against transformers (tests/golden/models/README.md), and
// the law that a sender equal to the receiver gives the full prefill, to the bit.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <numeric>

#include "compiler/pipeline.h"
#include "compiler/policy/policy.h"
#include "plans/full_prefill.h"
#include "plans/plan_file.h"
#include "runtime/core/publish.h"
#include "runtime/core/session.h"
#include "runtime/model/safetensors.h"
#include "support/json.h"
#include "tests/unit/model_fixture.h"

namespace ds {
namespace {

using testing::random_ids;
using testing::tiny_config;
using testing::TinyModel;

/// Through the compiler's own phases.
Plan compile_tiles(const std::vector<Tile>& tiles, int32_t chunks, std::string_view scheduler,
                   const Shape& shape, const ModelIdentity& sender, const ModelIdentity& receiver,
                   double share = 0) {
  Plan head = full_prefill_plan(receiver, shape, "f32");
  head.sender = sender;
  ChosenVariant chosen, whole;
  chosen.variant.name = "v0";
  chosen.variant.policy = "test";
  chosen.variant.tiles = tiles;
  chosen.variant.chunks = chunks;
  chosen.variant.select_share = share;
  chosen.variant.tuned_tokens = 200;
  chosen.variant.tuned_suffix = 5;
  chosen.variant.tuned_rate = 1000;
  whole = chosen;
  whole.fallback = true;
  whole.variant.name = whole.variant.policy = "full-prefill";
  whole.variant.tiles = head.full_prefill.tiles;
  whole.variant.chunks = 1;
  whole.variant.select_share = 0;
  PipelineOptions options;
  options.scheduler = scheduler;
  options.machine = MachineModel::stand_in(DType::kF32);
  auto made = run_pipeline(head, std::vector<ChosenVariant>{chosen, whole}, options);
  EXPECT_TRUE(made.ok()) << made.status().message();
  return made.ok() ? std::move(*made->plan) : head;
}

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
  explicit Law(DType dtype) : model(tiny_config(Family::kLlama), 11, dtype) {
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

}  // namespace
}  // namespace ds
