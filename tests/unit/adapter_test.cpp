// LoRA adapters: merged as PEFT merges them (tests/golden/adapters), as sender and receiver, damaged and
// wrong in every way, and what makes two of them the same model.
#include "runtime/model/adapter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <thread>

#include "plans/full_prefill.h"
#include "runtime/backends/backends.h"
#include "runtime/core/publish.h"
#include "runtime/core/session.h"
#include "runtime/model/safetensors.h"
#include "runtime/model/verified.h"
#include "support/hash.h"
#include "support/json.h"
#include "tests/unit/plan_builder.h"
#include "tests/unit/take.h"
#include "tests/unit/test_backend.h"

namespace ds {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using ::testing::HasSubstr;
using testing::take;

const std::string kAdapters = DS_SOURCE_DIR "/tests/golden/adapters/";
const std::string kModels = DS_SOURCE_DIR "/tests/golden/models/";

std::vector<float> floats(const TensorView& view) {
  std::vector<float> out(static_cast<size_t>(view.elements()));
  for (size_t i = 0; i < out.size(); ++i) {
    uint16_t half = 0;
    if (view.dtype == DType::kF32) {
      std::memcpy(&out[i], view.data.data() + i * 4, 4);
    } else {
      std::memcpy(&half, view.data.data() + i * 2, 2);
      out[i] = view.dtype == DType::kBF16 ? bf16_to_f32(half) : f16_to_f32(half);
    }
  }
  return out;
}

std::string digest(const TensorView& view) {
  const std::vector<float> values = floats(view);
  return sha256_hex(std::as_bytes(std::span(values)));
}

std::vector<float> floats(const SafetensorsFile& file, const std::string& name) {
  const SafetensorsEntry& entry = file.entries().at(name);
  return floats(TensorView{DType::kF32, entry.shape, entry.data});
}

json cases() { return *read_json_file(kAdapters + "cases.json"); }

class AdapterTest : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = ::testing::TempDir() + "/ds-adapter-" + std::to_string(getpid()) + "-" +
            ::testing::UnitTest::GetInstance()->current_test_info()->name();
    fs::remove_all(root_);
    fs::create_directories(root_);
  }
  void TearDown() override { fs::remove_all(root_); }

  struct Tensor {
    DType dtype;
    std::vector<int64_t> shape;
    std::vector<std::byte> data;
    std::vector<float> values() const { return floats(TensorView{dtype, shape, data}); }
    void set(const std::vector<float>& v) {
      dtype = DType::kF32;
      data.resize(v.size() * 4);
      std::memcpy(data.data(), v.data(), data.size());
    }
  };
  using Tensors = std::map<std::string, Tensor>;
  static Tensors tensors_of(const std::string& path) {
    Tensors out;
    auto file = SafetensorsFile::open(path);
    EXPECT_TRUE(file.ok()) << file.status().message();
    for (const auto& [name, entry] : file->entries())
      out[name] = {*parse_dtype(entry.dtype), entry.shape, {entry.data.begin(), entry.data.end()}};
    return out;
  }
  static void write_tensors(const std::string& path, const Tensors& tensors) {
    std::vector<NamedTensor> list;
    for (const auto& [name, t] : tensors) list.push_back({name, t.dtype, t.shape, t.data});
    ASSERT_TRUE(write_safetensors(path, list).ok());
  }

  /// A changed copy of a golden adapter whose base is found from anywhere.
  std::string changed(const std::string& adapter, const std::function<void(json&)>& config,
                      const std::function<void(Tensors&)>& tensors = {}) {
    const std::string to = root_ + "/" + adapter + "-" + std::to_string(count_++);
    fs::create_directories(to);
    json document = *read_json_file(kAdapters + adapter + "/adapter_config.json");
    document["base_model_name_or_path"] =
        fs::canonical(kAdapters + adapter + "/" + document["base_model_name_or_path"].get<std::string>());
    if (config) config(document);
    std::ofstream(to + "/adapter_config.json") << document.dump(1);
    Tensors file = tensors_of(kAdapters + adapter + "/adapter_model.safetensors");
    if (tensors) tensors(file);
    write_tensors(to + "/adapter_model.safetensors", file);
    return to;
  }

  static void expect_fails(const std::string& folder, Code code, const std::vector<std::string>& parts,
                           const OpenOptions& options = {}) {
    Result<Checkpoint> c = Checkpoint::open(folder, options);
    ASSERT_FALSE(c.ok()) << folder;
    EXPECT_EQ(code_name(c.status().code()), code_name(code)) << c.status().message();
    for (const std::string& part : parts) EXPECT_THAT(c.status().message(), HasSubstr(part));
  }

  std::string root_;
  int count_ = 0;
};

// ---- what PEFT computes

TEST_F(AdapterTest, MergedTensorsHaveTheBitsOfPeft) {
  auto expected = take(SafetensorsFile::open(kAdapters + "expected.safetensors"));
  int exact = 0;
  for (const json& c : cases()) {
    const auto name = c["name"].get<std::string>();
    SCOPED_TRACE(name);
    auto checkpoint = Checkpoint::open(kAdapters + name);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status().message();
    EXPECT_EQ(checkpoint->name(), name);
    EXPECT_EQ(checkpoint->config().vocab, c["vocab"].get<int64_t>());
    EXPECT_EQ(checkpoint->config().tied_embeddings, c["tied"].get<bool>());
    ASSERT_NE(checkpoint->base(), nullptr);
    size_t changed = 0;
    for (const TensorSpec& spec : required_tensors(checkpoint->config())) {
      SCOPED_TRACE(spec.name);
      auto tensor = checkpoint->tensor(spec.name);
      ASSERT_TRUE(tensor.ok()) << tensor.status().message();
      EXPECT_EQ(tensor->shape, spec.shape);
      EXPECT_EQ(*checkpoint->shape(spec.name), spec.shape);
      auto found = c["sha256"].find(spec.name);
      if (found == c["sha256"].end()) {
        // The base's own bytes, where they lie. (A head that is no longer tied is the base's embeddings.)
        auto base = checkpoint->base()->tensor(
            checkpoint->base()->has(spec.name) ? spec.name : "model.embed_tokens.weight");
        ASSERT_TRUE(base.ok());
        if (checkpoint->adapter()->untouched(spec.name)) {
          EXPECT_EQ(tensor->data.data(), base->data.data());
        }
        EXPECT_EQ(digest(*tensor), digest(*base));
        continue;
      }
      ++changed;
      EXPECT_EQ(checkpoint->adapter()->untouched(spec.name), false);
      if (c["exact"].get<bool>()) {
        EXPECT_EQ(digest(*tensor), found->get<std::string>());
        ++exact;
      } else if (expected.entries().count(name + "." + spec.name) > 0) {
        const std::vector<float> got = floats(*tensor), want = floats(expected, name + "." + spec.name);
        ASSERT_EQ(got.size(), want.size());
        for (size_t i = 0; i < got.size(); ++i)
          ASSERT_NEAR(got[i], want[i], 4 * 0x1p-24 * std::abs(want[i])) << i;
        ++exact;
      }
    }
    EXPECT_EQ(changed, c["sha256"].size());
  }
  EXPECT_GE(exact, 60);
}

TEST_F(AdapterTest, LogitsAgreeWithPeftTo1e4InF32) {
  auto backend = take(testing::test_backend());
  auto expected = take(SafetensorsFile::open(kAdapters + "expected.safetensors"));
  for (const json& c : cases()) {
    const auto name = c["name"].get<std::string>();
    SCOPED_TRACE(name);
    auto checkpoint = take(Checkpoint::open(kAdapters + name));
    auto model = take(backend->load(checkpoint, {.dtype = DType::kF32, .progress = {}}));
    const json tokens = *read_json_file(kModels + c["base"].get<std::string>() + "/../cases.json");
    auto ids = tokens["tokens"].get<std::vector<int32_t>>();
    ids.resize(37);
    const Plan plan =
        full_prefill_plan(take(checkpoint.identity()), checkpoint.config().shape(), std::string("f32"));
    auto session = take(Session::create(*backend, *model, plan, {0, 37, 1}));
    Request request;
    request.suffix = ids;
    request.full_prefill = true;
    auto answer = session->run(request);
    ASSERT_TRUE(answer.ok()) << answer.status().message();
    auto got = session->first_logits();
    const std::vector<float> want = floats(expected, name + ".logits");
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(got[i], want[i], 1e-4) << i;
  }
}

TEST_F(AdapterTest, ARankOfOneIsAProductAndASum) {
  // By hand: W + (b a) * s, each step rounded; nothing is fused into the sum.
  const std::string module = "model.layers.1.self_attn.q_proj";
  const std::string folder = changed(
      "regex",
      [&](json& c) {
        c["r"] = 1;
        c["lora_alpha"] = 0.1;
        c["target_modules"] = {"model.layers.1.self_attn.q_proj"};
      },
      [&](Tensors& t) {
        t.clear();
        Tensor a{DType::kF32, {1, 32}, {}}, b{DType::kF32, {96, 1}, {}};
        std::vector<float> left(96), right(32);
        for (size_t i = 0; i < 96; ++i) left[i] = 0.37f + 0.013f * static_cast<float>(i);
        for (size_t j = 0; j < 32; ++j) right[j] = 1.1f - 0.07f * static_cast<float>(j);
        a.set(right);
        b.set(left);
        t["base_model.model." + module + ".lora_A.weight"] = a;
        t["base_model.model." + module + ".lora_B.weight"] = b;
      });
  auto checkpoint = take(Checkpoint::open(folder));
  const std::vector<float> base = floats(take(checkpoint.base()->tensor(module + ".weight")));
  const std::vector<float> got = floats(take(checkpoint.tensor(module + ".weight")));
  const Tensors file = tensors_of(folder + "/adapter_model.safetensors");
  const std::vector<float> a = file.at("base_model.model." + module + ".lora_A.weight").values();
  const std::vector<float> b = file.at("base_model.model." + module + ".lora_B.weight").values();
  for (size_t i = 0; i < 96; ++i) {
    for (size_t j = 0; j < 32; ++j) {
      volatile float product = b[i] * a[j];
      volatile float scaled = product * 0.1f;
      ASSERT_EQ(got[i * 32 + j], base[i * 32 + j] + scaled);
    }
  }
}

// ---- as sender and receiver

class AdapterPair : public AdapterTest {
 protected:
  struct Model {
    std::unique_ptr<Checkpoint> checkpoint;
    std::unique_ptr<DeviceModel> model;
    ModelIdentity identity;
  };
  Model load(const std::string& folder, DType dtype) {
    Model m;
    m.checkpoint = std::make_unique<Checkpoint>(take(Checkpoint::open(folder)));
    m.model = take(backend_->load(*m.checkpoint, {.dtype = dtype, .progress = {}}));
    m.identity = take(m.checkpoint->identity());
    return m;
  }
  struct Answer {
    Status miss;
    std::vector<float> logits;
  };
  /// By a plan that recomputes layers 2 and 3 of five; `by_plan` false: by a full prefill.
  Answer ask(const Model& sender, const Model& receiver, DType dtype, bool by_plan) {
    const std::string dtype_text(dtype_name(dtype));
    Plan plan =
        testing::make_plan(receiver.model->config().shape(), {2, 3}, "e-first", {.dtype = dtype_text});
    plan.sender = sender.identity;
    plan.receiver = receiver.identity;
    std::vector<int32_t> ids(140);
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>((i * 37 + 11) % 200);
    auto store = take(open_store("file:" + root_ + "/store-" + std::to_string(count_++)));
    Request request;
    request.context = std::span(ids).first(130);
    request.suffix = std::span(ids).subspan(130);
    request.full_prefill = !by_plan;
    request.receiver = &receiver.identity;
    if (by_plan) {
      PublishOptions options;
      options.cuts = published_cuts(plan);
      auto published = publish(*backend_, *sender.model, sender.identity, request.context, *store, options);
      EXPECT_TRUE(published.ok()) << published.status().message();
      request.store = store.get();
    }
    auto session = take(Session::create(*backend_, *receiver.model, plan, {130, 10, 1}));
    auto answer = session->run(request);
    EXPECT_TRUE(answer.ok()) << answer.status().message();
    auto logits = session->first_logits();
    return {answer.ok() ? answer->miss : answer.status(), {logits.begin(), logits.end()}};
  }
  std::unique_ptr<Backend> backend_ = take(testing::test_backend());
};

TEST_F(AdapterPair, BaseToAdapterAndAdapterToAdapter) {
  const Model base = load(kModels + "llama/receiver", DType::kF32),
              a = load(kAdapters + "patterns", DType::kF32), b = load(kAdapters + "regex", DType::kF32);
  for (const auto& [sender, receiver] : {std::pair(&base, &a), {&a, &base}, {&a, &b}}) {
    const Answer by_plan = ask(*sender, *receiver, DType::kF32, true),
                 full = ask(*sender, *receiver, DType::kF32, false);
    EXPECT_TRUE(by_plan.miss.ok()) << by_plan.miss.message();
    EXPECT_NE(by_plan.logits, full.logits) << "reuse approximates between models that differ";
  }
}

TEST_F(AdapterPair, WithOneAdapterOnBothSidesReuseIsTheFullPrefillToTheBit) {
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    const Model model = load(kAdapters + "patterns", dtype);
    const Answer by_plan = ask(model, model, dtype, true), full = ask(model, model, dtype, false);
    EXPECT_TRUE(by_plan.miss.ok()) << by_plan.miss.message();
    EXPECT_EQ(by_plan.logits, full.logits);
  }
}

// ---- packed weights kept between starts

TEST_F(AdapterPair, AdaptersOfOneBaseShareItsPackedWeights) {
  const std::string cache = root_ + "/cache", base_folder = kModels + "llama/receiver";
  auto backend = take(make_cpu_backend({}));
  struct Loaded {
    LoadReport report;
    std::vector<float> logits;
    int64_t bytes = 0;
  };
  auto load = [&](const std::string& folder, DType dtype, const std::string& where) {
    Loaded out;
    auto checkpoint = take(Checkpoint::open(folder));
    const Verified verified = take(verify_checkpoint(checkpoint, {where, false, {}}));
    LoadOptions options{.dtype = dtype};
    options.weight_cache = where;
    options.fingerprint = verified.identity.fingerprint;
    options.base_fingerprint = verified.base.fingerprint;
    options.report = &out.report;
    auto model = take(backend->load(checkpoint, options));
    out.bytes = model->weight_bytes();
    std::vector<int32_t> ids(20);
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>((i * 37 + 11) % 200);
    const Plan plan =
        full_prefill_plan(verified.identity, checkpoint.config().shape(), std::string(dtype_name(dtype)));
    auto session = take(Session::create(*backend, *model, plan, {0, 20, 1}));
    Request request;
    request.suffix = ids;
    request.full_prefill = true;
    EXPECT_TRUE(session->run(request).ok());
    auto logits = session->first_logits();
    out.logits.assign(logits.begin(), logits.end());
    return out;
  };
  auto files = [&] {
    std::map<std::string, int64_t> sizes;
    for (const auto& entry : fs::directory_iterator(cache))
      if (entry.path().extension() == ".weights")
        sizes[entry.path().string()] = static_cast<int64_t>(entry.file_size());
    return sizes;
  };
  const DType dtype = DType::kBF16;
  const Loaded base = load(base_folder, dtype, ""), plain = load(kAdapters + "patterns", dtype, ""),
               other = load(kAdapters + "regex", dtype, "");
  EXPECT_NE(plain.logits, base.logits);
  EXPECT_NE(plain.logits, other.logits);
  EXPECT_EQ(plain.report.shared_bytes, 0);
  // The adapter comes first: the base's file is written with it, and then found by the base.
  const Loaded first = load(kAdapters + "patterns", dtype, cache);
  EXPECT_EQ(first.report.weight_cache, WeightCacheStatus::kWritten) << first.report.reason;
  ASSERT_EQ(files().size(), 2u);
  EXPECT_EQ(load(base_folder, dtype, cache).report.weight_cache, WeightCacheStatus::kHit);
  EXPECT_EQ(load(base_folder, dtype, cache).logits, base.logits);
  const Loaded second = load(kAdapters + "patterns", dtype, cache);
  EXPECT_EQ(second.report.weight_cache, WeightCacheStatus::kHit) << second.report.reason;
  const Loaded third = load(kAdapters + "regex", dtype, cache);
  EXPECT_EQ(files().size(), 3u) << "one for the base, one for what each adapter changes";
  EXPECT_EQ(first.logits, plain.logits);
  EXPECT_EQ(second.logits, plain.logits);
  EXPECT_EQ(third.logits, other.logits);
  for (const Loaded* l : {&first, &second, &third}) {
    EXPECT_EQ(l->bytes > base.bytes * 9 / 10 && l->bytes < base.bytes * 11 / 10, true) << l->bytes;
    EXPECT_GT(l->report.shared_bytes, base.bytes / 3);
  }
  // Damage in the base's file is found by the adapter too: it is packed anew.
  for (const auto& [path, size] : files()) {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(size - 9);
    file.put('\x5a');
  }
  EXPECT_EQ(load(kAdapters + "patterns", dtype, cache).logits, plain.logits);
  EXPECT_EQ(load(base_folder, dtype, cache).logits, base.logits);
  EXPECT_EQ(load(base_folder, dtype, cache).report.weight_cache, WeightCacheStatus::kHit);
  // One that changes most of the weights has a file of its own for all of them.
  EXPECT_EQ(load(kAdapters + "all-linear", dtype, cache).report.shared_bytes, 0);
}

// ---- identity

TEST_F(AdapterTest, BaseAndAdaptersAreDifferentModels) {
  std::map<std::string, std::string> seen;  // fingerprint -> folder
  for (const std::string& folder :
       {kModels + "llama/receiver", kModels + "llama/sender", kAdapters + "patterns", kAdapters + "regex"}) {
    const ModelIdentity identity = take(take(Checkpoint::open(folder)).identity());
    EXPECT_TRUE(seen.emplace(identity.fingerprint, folder).second)
        << folder << " is as " << seen[identity.fingerprint];
  }
  const ModelIdentity on_other_base =
      take(take(Checkpoint::open(kAdapters + "regex", {.base = kModels + "llama/sender"})).identity());
  EXPECT_EQ(seen.count(on_other_base.fingerprint), 0u);
}

TEST_F(AdapterTest, WhatDoesNotMatterDoesNotCount) {
  const std::string first = take(take(Checkpoint::open(kAdapters + "regex")).identity()).fingerprint;
  auto of = [&](const std::function<void(json&)>& config, const std::function<void(Tensors&)>& tensors = {}) {
    const std::string folder = changed("regex", config, tensors);
    auto c = Checkpoint::open(folder);
    EXPECT_TRUE(c.ok()) << c.status().message();
    return c.ok() ? take(c->identity()).fingerprint : "";
  };
  EXPECT_EQ(of({}), first);
  EXPECT_EQ(of([](json& c) {
              c["lora_dropout"] = 0.3;
              c["revision"] = "main";
              c["inference_mode"] = false;
              c["new_in_some_version"] = nullptr;
              c.erase("peft_version");
            }),
            first);
  EXPECT_EQ(of([](json& c) {  // the same modules and the same scaling, said otherwise
              c["target_modules"] = {"layers.0.self_attn.q_proj", "layers.0.self_attn.o_proj",
                                     "layers.4.self_attn.q_proj", "layers.4.self_attn.o_proj"};
              c["lora_alpha"] = 1;
              c["alpha_pattern"] = {{".*", 3.0}};
              c["rank_pattern"] = {{"o_proj", 2}};
            }),
            first);
  EXPECT_EQ(of({},
               [](Tensors& t) {
                 Tensors renamed;
                 for (auto& [name, tensor] : t) {
                   std::string n = name;
                   n.insert(n.rfind(".weight"), ".default");
                   renamed[n] = tensor;
                 }
                 t = renamed;
               }),
            first);
  EXPECT_NE(of([](json& c) { c["lora_alpha"] = 4; }), first);
  EXPECT_NE(of([](json& c) { c["use_rslora"] = true; }), first);
  EXPECT_NE(of({}, [](Tensors& t) { t.begin()->second.data[0] ^= std::byte{1}; }), first);
}

TEST_F(AdapterTest, IdentitiesAreRememberedByFiles) {
  const std::string cache = root_ + "/cache";
  auto verify = [&](const std::string& folder, const OpenOptions& options = {}) {
    auto checkpoint = take(Checkpoint::open(folder, options));
    int64_t read = 0;
    auto verified = take(verify_checkpoint(
        checkpoint, {cache, false, [&](int64_t done, int64_t) { read = std::max(read, done); }}));
    EXPECT_EQ(verified.identity, take(checkpoint.identity()));
    EXPECT_EQ(verified.remembered, read == 0 && verified.remembered);
    return std::pair(verified.remembered, read);
  };
  EXPECT_FALSE(verify(kAdapters + "regex").first);
  EXPECT_TRUE(verify(kAdapters + "regex").first);
  // A second adapter of the same base: its own file is read, not the base's.
  EXPECT_EQ(verify(kAdapters + "patterns"), std::pair(false, int64_t{0}));
  EXPECT_TRUE(verify(kModels + "llama/receiver").first);
  EXPECT_FALSE(verify(kAdapters + "regex", {.base = kModels + "llama/sender"}).first);
  EXPECT_TRUE(verify(kAdapters + "regex").first) << "on its own base it is remembered still";
  // The same file with another config is another model.
  const std::string copy = changed("regex", {});
  fs::remove(copy + "/adapter_model.safetensors");
  fs::create_symlink(kAdapters + "regex/adapter_model.safetensors", copy + "/adapter_model.safetensors");
  EXPECT_FALSE(verify(copy).first);
  EXPECT_TRUE(verify(copy).first);
  json config = *read_json_file(copy + "/adapter_config.json");
  config["lora_alpha"] = 17;
  std::ofstream(copy + "/adapter_config.json") << config;
  EXPECT_FALSE(verify(copy).first);
}

// ---- the base

TEST_F(AdapterTest, WhereTheBaseIs) {
  auto folder = [&](const json& base) {
    return changed("regex", [&](json& c) { c["base_model_name_or_path"] = base; });
  };
  const std::string model = kModels + "llama/receiver";
  EXPECT_TRUE(Checkpoint::open(folder(fs::absolute(model).string())).ok());
  expect_fails(folder("meta-llama/Llama-3.2-1B"), Code::kNotFound, {"meta-llama/Llama-3.2-1B", "--base DIR"});
  EXPECT_TRUE(Checkpoint::open(folder("meta-llama/Llama-3.2-1B"), {.base = model}).ok());
  expect_fails(folder("/nowhere/base"), Code::kNotFound, {"/nowhere/base", "--base DIR"});
  expect_fails(folder(nullptr), Code::kNotFound, {"names no base", "--base DIR"});
  EXPECT_TRUE(Checkpoint::open(folder(nullptr), {.base = model}).ok());
  expect_fails(folder(nullptr), Code::kNotFound, {"--base '/nowhere'"}, {.base = "/nowhere"});
  expect_fails(folder(nullptr), Code::kUnsupported, {"an adapter itself"}, {.base = kAdapters + "regex"});
  expect_fails(folder(root_), Code::kNotFound, {"the base of the adapter", "config.json"});

  const std::string here = fs::current_path();
  const std::string relative = folder("the-base");
  fs::current_path(root_);
  expect_fails(relative, Code::kNotFound, {"the-base"});
  fs::create_directory_symlink(model, "the-base");
  EXPECT_TRUE(Checkpoint::open(relative).ok()) << "from the working directory, as PEFT reads it";
  fs::create_directory_symlink(model, relative + "/the-base");
  EXPECT_TRUE(Checkpoint::open(relative).ok()) << "one folder, found twice";
  fs::remove(relative + "/the-base");
  fs::create_directory_symlink(kModels + "llama/sender", relative + "/the-base");
  expect_fails(relative, Code::kInvalidArgument, {"both", "--base"});
  fs::current_path(here);
  EXPECT_TRUE(Checkpoint::open(relative).ok()) << "beside the adapter's files";
}

TEST_F(AdapterTest, TokenizerAndTemplatesAreItsOwnOrTheBases) {
  const std::string folder = changed("regex", {});
  auto checkpoint = take(Checkpoint::open(folder));
  EXPECT_EQ(checkpoint.folder_of("tokenizer.json"), checkpoint.base()->folder());
  const ModelIdentity before = take(checkpoint.identity());
  std::ofstream(folder + "/tokenizer.json") << "{}";
  EXPECT_EQ(checkpoint.folder_of("tokenizer.json"), folder);
  EXPECT_EQ(checkpoint.folder_of("chat_template.jinja"), checkpoint.base()->folder());
  EXPECT_NE(take(checkpoint.identity()).tokenizer, before.tokenizer);
}

// ---- what is wrong, by name

TEST_F(AdapterTest, SettingsThatAreNotDoneAreRefusedByName) {
  auto fails = [&](const char* key, const json& value, Code code, const std::vector<std::string>& parts) {
    SCOPED_TRACE(key);
    expect_fails(changed("regex", [&](json& c) { c[key] = value; }), code, parts);
  };
  fails("peft_type", "IA3", Code::kUnsupported, {"IA3", "LORA"});
  fails("peft_type", 3, Code::kInvalidArgument, {"peft_type"});
  fails("task_type", "SEQ_CLS", Code::kUnsupported, {"SEQ_CLS", "CAUSAL_LM"});
  for (const char* key :
       {"alora_invocation_tokens", "layer_replication", "target_parameters", "trainable_token_indices"})
    fails(key, json::array({1}), Code::kUnsupported, {key});
  for (const char* key :
       {"arrow_config", "use_bdlora", "monteclora_config", "kasa_config", "megatron_config"})
    fails(key, {{"a", 1}}, Code::kUnsupported, {key});
  fails("use_qalora", true, Code::kUnsupported, {"use_qalora"});
  for (const char* init : {"pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "mica"})
    fails("init_lora_weights", init, Code::kUnsupported, {init, "path_initial_model_for_weight_conversion"});
  fails("bias", "some", Code::kUnsupported, {"'bias'", "some"});
  fails("r", 0, Code::kInvalidArgument, {"r"});
  fails("r", "eight", Code::kInvalidArgument, {"r"});
  fails("lora_alpha", "x", Code::kInvalidArgument, {"lora_alpha"});
  fails("rank_pattern", {{"q_proj", 1.5}}, Code::kCorrupt, {"rank_pattern", "q_proj"});
  fails("rank_pattern", {{"(", 2}}, Code::kCorrupt, {"rank_pattern", "regular expression"});
  fails("target_modules", "(", Code::kCorrupt, {"target_modules", "regular expression"});
  fails("target_modules", json::array({3}), Code::kCorrupt, {"target_modules"});
  for (const json& init : {json(true), json(false), json("gaussian"), json("eva"), json(nullptr)})
    EXPECT_TRUE(Checkpoint::open(changed("regex", [&](json& c) { c["init_lora_weights"] = init; })).ok())
        << init;
  // transformers' layers are nn.Linear, for which PEFT itself sets this to false.
  EXPECT_TRUE(Checkpoint::open(changed("regex", [&](json& c) { c["fan_in_fan_out"] = true; })).ok());
}

TEST_F(AdapterTest, WhichModulesAreTargeted) {
  // Each names q and o of layers 0 and 4, and nothing else, as PEFT reads it.
  const json o0 = "model.layers.0.self_attn.o_proj", o4 = "model.layers.4.self_attn.o_proj";
  const std::vector<std::function<void(json&)>> same{
      [](json& c) {
        c["target_modules"] = {"q_proj", "self_attn.o_proj"};
        c["layers_to_transform"] = {0, 4};
      },
      [](json& c) {
        c["target_modules"] = {"q_proj", "o_proj"};
        c["layers_to_transform"] = {4, 0};
        c["layers_pattern"] = {"h", "layers"};
      },
      [&](json& c) {  // in full: not limited to the layer that the other is limited to
        c["target_modules"] = {"q_proj", o0, o4, "model.layers.4.self_attn.q_proj"};
        c["layers_to_transform"] = 0;
      },
      [](json& c) {
        c["target_modules"] = "all-linear";
        c["exclude_modules"] = ".*(layers.[123].*|mlp.*|[kv]_proj)";
      },
      [](json& c) {
        c["target_modules"] = "model.layers.[04].self_attn.[qkvo]_proj";
        c["exclude_modules"] = {"k_proj", "self_attn.v_proj"};
      },
  };
  for (const auto& config : same) {
    auto checkpoint = Checkpoint::open(changed("regex", config));
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status().message();
  }
  expect_fails(changed("regex",
                       [](json& c) {
                         c["target_modules"] = {"q_proj", "o_proj"};
                         c["layers_to_transform"] = {0, 4};
                         c["layers_pattern"] = "blocks";
                       }),
               Code::kMismatch, {"target_modules"});
  // A pattern must match the whole name, the end of a name a whole word.
  expect_fails(changed("regex", [](json& c) { c["target_modules"] = ".*self_attn"; }), Code::kMismatch,
               {"target_modules"});
  expect_fails(changed("regex", [](json& c) { c["target_modules"] = {"proj"}; }), Code::kMismatch,
               {"target_modules"});
}

TEST_F(AdapterTest, FilesThatDoNotBelongTogether) {
  const std::string q0 = "base_model.model.model.layers.0.self_attn.q_proj";
  // The config names more or less than the file has.
  expect_fails(changed("regex", [](json& c) { c["target_modules"] = "all-linear"; }), Code::kCorrupt,
               {"lacks lora_A", "target_modules"});
  expect_fails(changed("regex",
                       [](json& c) {
                         c["target_modules"] = {"o_proj"};
                         c["layers_to_transform"] = {0, 4};
                       }),
               Code::kMismatch, {q0, "target_modules"});
  expect_fails(changed("regex", [](json& c) { c["exclude_modules"] = {"q_proj"}; }), Code::kMismatch, {q0});
  expect_fails(changed("regex", [](json& c) { c["exclude_modules"] = ".*layers.0.*q_proj"; }),
               Code::kMismatch, {q0});
  expect_fails(changed("regex", [](json& c) { c["modules_to_save"] = {"lm_head"}; }), Code::kCorrupt,
               {"lacks the weight of 'lm_head'", "modules_to_save"});
  expect_fails(changed("regex", [](json& c) { c["use_dora"] = true; }), Code::kCorrupt,
               {"use_dora", "lora_magnitude_vector"});
  expect_fails(changed("regex", [](json& c) { c["lora_bias"] = true; }), Code::kCorrupt, {"lora_bias"});
  expect_fails(changed("bias", {},
                       [](Tensors& t) { t.erase("base_model.model.model.layers.3.self_attn.v_proj.bias"); }),
               Code::kCorrupt, {"layers.3.self_attn.v_proj", "bias"});
  // The file.
  auto file = [&](const std::function<void(Tensors&)>& change, Code code,
                  const std::vector<std::string>& parts) {
    expect_fails(changed("regex", {}, change), code, parts);
  };
  file([&](Tensors& t) { t.erase(q0 + ".lora_B.weight"); }, Code::kCorrupt,
       {"layers.0.self_attn.q_proj", "lora_B"});
  file([&](Tensors& t) { t.erase(q0 + ".lora_B.weight"), t.erase(q0 + ".lora_A.weight"); }, Code::kCorrupt,
       {"lacks lora_A and lora_B of 'model.layers.0.self_attn.q_proj'"});
  file([&](Tensors& t) { t.clear(); }, Code::kCorrupt, {"no tensors"});
  for (const char* name :
       {"other.weight", "base_model.model.q.lora_A.a.b.weight", "base_model.model.x.lora_E.q",
        "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta",
        "base_model.model.q.original_module.weight.x"})
    file([&](Tensors& t) { t[name] = t.begin()->second; }, Code::kUnsupported, {name});
  for (const char* name :
       {"base_model.model.model.layers.5.mlp.up_proj.weight", "base_model.model.score.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.bias",
        "base_model.model.model.layers.0.mlp.experts.lora_A.weight",
        "base_model.model.model.norm.lora_A.weight"})
    file([&](Tensors& t) { t[name] = t.begin()->second; }, Code::kUnsupported, {name});
  file(
      [&](Tensors& t) {
        t.erase(q0 + ".lora_A.weight");
        t[q0 + ".lora_A.second.weight"] = t.begin()->second;
        t.erase(q0 + ".lora_B.weight");
        t[q0 + ".lora_B.third.weight"] = t.begin()->second;
      },
      Code::kUnsupported, {"two adapters"});
  file([&](Tensors& t) { t[q0 + ".lora_A.default.weight"] = t[q0 + ".lora_A.weight"]; }, Code::kCorrupt,
       {q0 + ".lora_A.weight", "same part"});
  // Shapes.
  file(
      [&](Tensors& t) {
        t[q0 + ".lora_A.weight"].shape = {4, 16};
      },
      Code::kMismatch, {q0 + ".lora_A.weight", "[4, 16]", "[2, 32]", "llama/receiver"});
  file([&](Tensors& t) { t[q0 + ".lora_B.weight"].shape = {192}; }, Code::kMismatch, {"[192]", "[96, 2]"});
  expect_fails(changed("regex", [](json& c) { c["r"] = 8; }), Code::kMismatch, {"r is 8"});
  expect_fails(changed("regex", {}), Code::kMismatch, {"[2, 96]", "[2, 56]"},
               {.base = kModels + "qwen2/receiver"});
  expect_fails(changed("saved", {},
                       [](Tensors& t) {
                         t["base_model.model.model.norm.weight"].shape = {4, 8};
                       }),
               Code::kMismatch, {"model.norm.weight", "[4, 8]", "[32]"});
  expect_fails(changed("resized", {}, [](Tensors& t) { t.erase("base_model.model.lm_head.weight"); }),
               Code::kMismatch, {"[164, 32]", "[160, 32]"});
  // Missing and damaged.
  std::string folder = changed("regex", {});
  fs::resize_file(folder + "/adapter_model.safetensors", 900);
  expect_fails(folder, Code::kCorrupt, {"adapter_model.safetensors"});
  fs::remove(folder + "/adapter_model.safetensors");
  expect_fails(folder, Code::kNotFound, {"adapter_model.safetensors"});
  std::ofstream(folder + "/adapter_model.bin") << "x";
  expect_fails(folder, Code::kUnsupported, {"adapter_model.bin", "save_pretrained"});
  std::ofstream(folder + "/adapter_config.json") << "{";
  expect_fails(folder, Code::kCorrupt, {"adapter_config.json"});
}

TEST_F(AdapterTest, EmbeddingsThatAreTied) {
  const std::string e = "base_model.model.model.embed_tokens.weight", h = "base_model.model.lm_head.weight";
  auto bytes = [](const Checkpoint& c, const char* name) { return digest(take(c.tensor(name))); };
  // Saved twice, as PEFT does after resizing: still tied. Saved twice and different: one of them was lost.
  auto twice = take(Checkpoint::open(changed("resized-tied", {}, [&](Tensors& t) { t[h] = t[e]; })));
  EXPECT_TRUE(twice.config().tied_embeddings);
  EXPECT_EQ(twice.config().vocab, 258);
  expect_fails(changed("resized-tied", {},
                       [&](Tensors& t) {
                         t[h] = t[e];
                         t[h].data[0] ^= std::byte{1};
                       }),
               Code::kMismatch, {"lm_head", "embed_tokens", "modules_to_save"});
  // Trained apart: both are as the file has them.
  auto apart = take(Checkpoint::open(changed(
      "resized-tied",
      [](json& c) {
        c["modules_to_save"] = {"embed_tokens", "lm_head"};
      },
      [&](Tensors& t) {
        t[h] = t[e];
        t[h].data[0] ^= std::byte{1};
      })));
  EXPECT_FALSE(apart.config().tied_embeddings);
  EXPECT_NE(bytes(apart, "lm_head.weight"), bytes(apart, "model.embed_tokens.weight"));
  // Only the embeddings were trained: the head keeps the base's, unless PEFT was asked to keep them tied.
  auto save = [&](bool tie) {
    return changed(
        "resized-tied",
        [&](json& c) {
          c["modules_to_save"] = {"embed_tokens"};
          c["ensure_weight_tying"] = tie;
        },
        [&](Tensors& t) {
          t[e].shape[0] = 256;
          t[e].data.resize(256 * 48 * 2);
        });
  };
  auto alone = take(Checkpoint::open(save(false)));
  EXPECT_FALSE(alone.config().tied_embeddings);
  EXPECT_EQ(bytes(alone, "lm_head.weight"), bytes(*alone.base(), "model.embed_tokens.weight"));
  auto kept = take(Checkpoint::open(save(true)));
  EXPECT_TRUE(kept.config().tied_embeddings);
  EXPECT_NE(bytes(kept, "model.embed_tokens.weight"), bytes(*kept.base(), "model.embed_tokens.weight"));
}

TEST_F(AdapterTest, NumbersThatAreNotFinite) {
  const std::string q0 = "base_model.model.model.layers.0.self_attn.q_proj";
  auto with = [&](float value, size_t at) {
    return take(Checkpoint::open(changed("regex", {}, [&](Tensors& t) {
      for (const char* part : {".lora_A.weight", ".lora_B.weight"}) {
        std::vector<float> values = t[q0 + part].values();
        values[at] = value;
        t[q0 + part].set(values);
      }
    })));
  };
  for (float value : {NAN, INFINITY}) {
    const Checkpoint c = with(value, 5);
    const Status status = c.check_finite();
    EXPECT_EQ(status.code(), Code::kCorrupt);
    EXPECT_THAT(status.message(), HasSubstr(q0 + ".lora_A.weight"));
    EXPECT_THAT(status.message(), HasSubstr("element 5"));
    EXPECT_EQ(c.verify({}).status().code(), Code::kCorrupt);
    EXPECT_EQ(verify_checkpoint(c, {root_ + "/cache", false, {}}).status().code(), Code::kCorrupt);
  }
  const Checkpoint overflows = with(1e30f, 0);
  EXPECT_TRUE(overflows.check_finite().ok());
  const Status status = overflows.tensor("model.layers.0.self_attn.q_proj.weight").status();
  EXPECT_EQ(status.code(), Code::kCorrupt);
  EXPECT_THAT(status.message(), HasSubstr("model.layers.0.self_attn.q_proj.weight"));
}

}  // namespace
}  // namespace ds
