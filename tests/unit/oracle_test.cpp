// Logits against transformers in float32: full prefills and mixed caches of small models of all families.
// What is expected, and how it was made: tests/golden/models/README.md.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>

#include "runtime/core/publish.h"
#include "runtime/core/session.h"
#include "runtime/model/safetensors.h"
#include "support/json.h"
#include "tests/unit/plan_builder.h"
#include "tests/unit/test_backend.h"

namespace ds {
namespace {

class Oracle : public ::testing::TestWithParam<std::string> {
 protected:
  struct Model {
    std::unique_ptr<Checkpoint> checkpoint;
    std::unique_ptr<DeviceModel> model;
    ModelIdentity identity;
  };

  void SetUp() override {
    folder_ = DS_SOURCE_DIR "/tests/golden/models/" + GetParam();
    auto backend = testing::test_backend();
    ASSERT_TRUE(backend.ok()) << backend.status().message();
    backend_ = std::move(backend).value();
    auto cases = read_json_file(folder_ + "/cases.json");
    ASSERT_TRUE(cases.ok()) << cases.status().message();
    cases_ = *cases;
    tokens_ = cases_["tokens"].get<std::vector<int32_t>>();
    auto file = SafetensorsFile::open(folder_ + "/expected.safetensors");
    ASSERT_TRUE(file.ok()) << file.status().message();
    expected_ = std::make_unique<SafetensorsFile>(std::move(file).value());
  }

  Model load(const std::string& which, DType dtype) {
    Model m;
    auto checkpoint = Checkpoint::open(folder_ + "/" + which);
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status().message();
    if (!checkpoint.ok()) return m;
    m.checkpoint = std::make_unique<Checkpoint>(std::move(checkpoint).value());
    auto model = backend_->load(*m.checkpoint, {.dtype = dtype, .progress = {}});
    EXPECT_TRUE(model.ok()) << model.status().message();
    if (model.ok()) m.model = std::move(model).value();
    auto identity = m.checkpoint->identity();
    if (identity.ok()) m.identity = *identity;
    return m;
  }

  std::vector<float> expected(const std::string& tensor) const {
    const SafetensorsEntry& entry = expected_->entries().at(tensor);
    std::vector<float> values(entry.data.size() / sizeof(float));
    std::memcpy(values.data(), entry.data.data(), entry.data.size());
    return values;
  }

  std::string folder_;
  std::unique_ptr<Backend> backend_;
  nlohmann::json cases_;
  std::vector<int32_t> tokens_;
  std::unique_ptr<SafetensorsFile> expected_;
};

TEST_P(Oracle, LogitsAgreeTo1e4InF32) {
  Model receiver = load("receiver", DType::kF32), sender;
  if (std::filesystem::exists(folder_ + "/sender")) sender = load("sender", DType::kF32);
  ASSERT_NE(receiver.model, nullptr);
  std::string store_folder = ::testing::TempDir() + "/ds_oracle_" + GetParam() + std::to_string(getpid());
  std::filesystem::remove_all(store_folder);
  auto store = open_store("file:" + store_folder);
  ASSERT_TRUE(store.ok());
  const int64_t layers = receiver.model->config().layers;
  int checked = 0;
  for (const auto& c : cases_["cases"]) {
    auto n = c["context"].get<int64_t>(), m = c["suffix"].get<int64_t>();
    bool full = c["mode"] == "full-prefill";
    std::string group_text = c["recompute"].get<std::string>();
    auto group = parse_layers(group_text, layers);
    ASSERT_TRUE(group.ok()) << group.status().message();
    auto context = std::span<const int32_t>(tokens_).first(static_cast<size_t>(n));
    Request request;
    request.context = context;
    request.suffix =
        std::span<const int32_t>(tokens_).subspan(static_cast<size_t>(n), static_cast<size_t>(m));
    request.full_prefill = full;
    Plan plan = testing::make_plan(receiver.model->config().shape(), *group, "e-first");
    if (!full) {
      ASSERT_NE(sender.model, nullptr);
      plan.sender = sender.identity;
      plan.receiver = receiver.identity;
      PublishOptions publish_options;
      publish_options.cuts = published_cuts(plan);
      auto published = publish(*backend_, *sender.model, sender.identity, context, **store, publish_options);
      ASSERT_TRUE(published.ok()) << published.status().message();
      request.store = store->get();
      request.receiver = &receiver.identity;
    }
    auto session = Session::create(*backend_, *receiver.model, plan, {n, m, 1});
    ASSERT_TRUE(session.ok()) << session.status().message();
    auto answer = (*session)->run(request);
    ASSERT_TRUE(answer.ok()) << answer.status().message();
    ASSERT_TRUE(answer->miss.ok()) << answer->miss.message();
    auto want = expected(c["tensor"].get<std::string>());
    auto got = (*session)->first_logits();
    ASSERT_EQ(got.size(), want.size());
    double worst = 0;
    for (size_t i = 0; i < want.size(); ++i)
      worst = std::max(worst, std::abs(static_cast<double>(got[i]) - want[i]));
    EXPECT_LT(worst, 1e-4) << c.dump();
    ++checked;
  }
  EXPECT_GE(checked, 7);
}

TEST_P(Oracle, Bf16StaysNear) {
  Model receiver = load("receiver", DType::kBF16);
  ASSERT_NE(receiver.model, nullptr);
  for (const auto& c : cases_["cases"]) {
    if (c["mode"] != "full-prefill") continue;
    auto n = c["context"].get<int64_t>(), m = c["suffix"].get<int64_t>();
    Request request;
    request.context = std::span<const int32_t>(tokens_).first(static_cast<size_t>(n));
    request.suffix =
        std::span<const int32_t>(tokens_).subspan(static_cast<size_t>(n), static_cast<size_t>(m));
    request.full_prefill = true;
    Plan plan = testing::make_plan(receiver.model->config().shape(), {}, "e-first");
    auto session = Session::create(*backend_, *receiver.model, plan, {n, m, 1});
    ASSERT_TRUE(session.ok()) << session.status().message();
    ASSERT_TRUE((*session)->run(request).ok());
    auto want = expected(c["tensor"].get<std::string>());
    auto got = (*session)->first_logits();
    double error = 0, norm = 0;
    for (size_t i = 0; i < want.size(); ++i) {
      error += std::pow(static_cast<double>(got[i]) - want[i], 2);
      norm += std::pow(static_cast<double>(want[i]), 2);
    }
    EXPECT_LT(std::sqrt(error / norm), 0.1)
        << "bf16 has 8 bits; a wrong kernel is off by far more: " << c.dump();
  }
}

INSTANTIATE_TEST_SUITE_P(Models, Oracle,
                         ::testing::Values("llama", "llama2", "llama3", "mistral", "qwen2", "qwen3", "yarn",
                                           "biases", "qwen3bias", "grown"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace ds
