// config.json and generation_config.json: both styles of keys, defaults, RoPE, and everything that is
// refused.
#include "runtime/model/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "runtime/model/safetensors.h"
#include "support/json.h"

namespace ds {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

const std::string kModels = DS_SOURCE_DIR "/tests/golden/models/";

class ConfigTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "/ds-config-" + std::to_string(getpid()) + "-" +
              ::testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  void write(const std::string& name, std::string_view text) {
    std::ofstream(folder_ + "/" + name, std::ios::binary) << text;
  }
  Result<ModelConfig> read(const json& config) {
    write("config.json", config.dump());
    return ModelConfig::read(folder_);
  }
  static json golden(const std::string& model, const std::string& file = "config-v5.json") {
    Result<json> config = read_json_file(kModels + model + "/" + file);
    EXPECT_TRUE(config.ok()) << config.status().message();
    return config.ok() ? *config : json::object();
  }
  /// Reading `config` must fail with `code` and a message that has every one of `parts` and the file's name.
  void expect_refused(const json& config, Code code, std::vector<std::string> parts) {
    Result<ModelConfig> result = read(config);
    ASSERT_FALSE(result.ok()) << config.dump();
    EXPECT_EQ(code_name(result.status().code()), code_name(code)) << result.status().message();
    for (const std::string& part : parts) EXPECT_THAT(result.status().message(), HasSubstr(part));
    EXPECT_THAT(result.status().message(), HasSubstr("config.json"));
  }
  std::string folder_;
};

TEST_F(ConfigTest, KeysOfTransformers4And5GiveTheSame) {
  for (const char* model :
       {"llama", "llama2", "llama3", "mistral", "qwen2", "qwen3", "yarn", "biases", "qwen3bias"}) {
    Result<ModelConfig> old = read(golden(model, "config-v4.json"));
    Result<ModelConfig> now = read(golden(model, "config-v5.json"));
    ASSERT_TRUE(old.ok()) << old.status().message();
    ASSERT_TRUE(now.ok()) << now.status().message();
    EXPECT_EQ(old->canonical(), now->canonical()) << model;
    EXPECT_EQ(old->dtype, now->dtype) << model;
    EXPECT_EQ(old->eos_token_ids, now->eos_token_ids) << model;
    EXPECT_EQ(old->max_positions, now->max_positions) << model;
    EXPECT_THAT(architecture_differences(*old, *now), IsEmpty()) << model;
  }
}

TEST_F(ConfigTest, ReadsEveryField) {
  Result<ModelConfig> qwen = ModelConfig::read(kModels + "qwen3/receiver");
  ASSERT_TRUE(qwen.ok()) << qwen.status().message();
  EXPECT_EQ(qwen->family, Family::kQwen3);
  EXPECT_EQ(qwen->layers, 5);
  EXPECT_EQ(qwen->d_model, 32);
  EXPECT_EQ(qwen->ff, 48);
  EXPECT_EQ(qwen->heads, 6);
  EXPECT_EQ(qwen->kv_heads, 2);
  EXPECT_EQ(qwen->head_dim, 10);
  EXPECT_EQ(qwen->vocab, 180);
  EXPECT_EQ(qwen->max_positions, 1024);
  EXPECT_EQ(qwen->rms_norm_eps, 1e-6);
  EXPECT_EQ(qwen->rope.theta, 1e6);
  EXPECT_TRUE(qwen->qk_norm);
  EXPECT_FALSE(qwen->qkv_bias);
  EXPECT_FALSE(qwen->tied_embeddings);
  EXPECT_EQ(qwen->dtype, DType::kF16);
  EXPECT_THAT(qwen->eos_token_ids, ElementsAre(1));
  EXPECT_EQ(qwen->kv_row(), 40);
  EXPECT_EQ(qwen->shape().family, "qwen3");
  EXPECT_EQ(qwen->shape().kv_row(), 40);

  Result<ModelConfig> llama3 = ModelConfig::read(kModels + "llama3/receiver");
  ASSERT_TRUE(llama3.ok()) << llama3.status().message();
  EXPECT_EQ(llama3->rope.type, RopeConfig::Type::kLlama3);
  EXPECT_EQ(llama3->rope.factor, 8);
  EXPECT_EQ(llama3->rope.low_freq_factor, 1);
  EXPECT_EQ(llama3->rope.high_freq_factor, 4);
  EXPECT_EQ(llama3->rope.original_max_positions, 64);
  EXPECT_EQ(llama3->head_dim, 16);  // derived: the key is absent
  EXPECT_TRUE(llama3->tied_embeddings);

  Result<ModelConfig> qwen2 = ModelConfig::read(kModels + "qwen2/receiver");
  ASSERT_TRUE(qwen2.ok()) << qwen2.status().message();
  EXPECT_TRUE(qwen2->qkv_bias);
  EXPECT_EQ(qwen2->head_dim, 4);
}

TEST_F(ConfigTest, TheTrainedPairIsRead) {
  Result<ModelConfig> sender = ModelConfig::read(DS_SOURCE_DIR "/examples/pair/sender");
  Result<ModelConfig> receiver = ModelConfig::read(DS_SOURCE_DIR "/examples/pair/receiver");
  ASSERT_TRUE(sender.ok()) << sender.status().message();
  ASSERT_TRUE(receiver.ok()) << receiver.status().message();
  EXPECT_THAT(architecture_differences(*sender, *receiver), IsEmpty());
}

TEST_F(ConfigTest, AbsentAndNullKeysTakeTheDefaultsOfTheClass) {
  json llama = {{"model_type", "llama"},  {"hidden_size", 64},        {"intermediate_size", 96},
                {"num_hidden_layers", 2}, {"num_attention_heads", 8}, {"vocab_size", 100}};
  Result<ModelConfig> c = read(llama);
  ASSERT_TRUE(c.ok()) << c.status().message();
  EXPECT_EQ(c->kv_heads, 8);
  EXPECT_EQ(c->head_dim, 8);
  EXPECT_EQ(c->rope, RopeConfig{});
  EXPECT_EQ(c->rms_norm_eps, 1e-6);
  EXPECT_EQ(c->max_positions, 2048);
  EXPECT_FALSE(c->tied_embeddings);
  EXPECT_EQ(c->dtype, DType::kF32);
  EXPECT_THAT(c->eos_token_ids, IsEmpty());

  for (const char* key : {"head_dim", "num_key_value_heads", "rope_scaling", "rope_parameters", "torch_dtype",
                          "quantization_config", "sliding_window", "layer_types", "eos_token_id"}) {
    llama[key] = nullptr;
  }
  Result<ModelConfig> with_null = read(llama);
  ASSERT_TRUE(with_null.ok()) << with_null.status().message();
  EXPECT_EQ(with_null->canonical(), c->canonical());

  json qwen3 = golden("qwen3");
  qwen3.erase("head_dim");
  Result<ModelConfig> q = read(qwen3);
  ASSERT_TRUE(q.ok()) << q.status().message();
  EXPECT_EQ(q->head_dim, 128);

  json mistral = golden("mistral");
  mistral.erase("num_key_value_heads");  // the class says 8, which 4 query heads cannot be
  expect_refused(mistral, Code::kInvalidArgument, {"num_attention_heads", "4", "8", "absent"});
  mistral["num_key_value_heads"] = nullptr;
  Result<ModelConfig> m = read(mistral);
  ASSERT_TRUE(m.ok()) << m.status().message();
  EXPECT_EQ(m->kv_heads, 4);
}

TEST_F(ConfigTest, FamilyFromArchitecturesAlone) {
  json config = golden("qwen2");
  config.erase("model_type");
  Result<ModelConfig> c = read(config);
  ASSERT_TRUE(c.ok()) << c.status().message();
  EXPECT_EQ(c->family, Family::kQwen2);
  config["model_type"] = "qwen2";
  config.erase("architectures");
  ASSERT_TRUE(read(config).ok());
  config.erase("model_type");
  expect_refused(config, Code::kCorrupt, {"model_type", "architectures"});
}

TEST_F(ConfigTest, InverseFrequenciesEqualTransformers) {
  for (const char* model : {"llama", "llama2", "llama3", "mistral", "qwen2", "qwen3", "yarn"}) {
    Result<ModelConfig> c = ModelConfig::read(kModels + model + "/receiver");
    ASSERT_TRUE(c.ok()) << c.status().message();
    Result<SafetensorsFile> expected = SafetensorsFile::open(kModels + model + "/expected.safetensors");
    ASSERT_TRUE(expected.ok()) << expected.status().message();
    auto bytes = expected->entries().at("rope.inverse_frequencies").data;
    std::vector<float> want(bytes.size() / 4);
    std::memcpy(want.data(), bytes.data(), bytes.size());
    std::vector<float> got = c->rope.inverse_frequencies(c->head_dim);
    ASSERT_EQ(got.size(), want.size()) << model;
    // The last bit is the power function's: two of them differ by it at most.
    for (size_t i = 0; i < got.size(); ++i)
      EXPECT_NEAR(got[i], want[i], 2.4e-7 * want[i]) << model << " " << i;
  }
}

TEST_F(ConfigTest, InverseFrequenciesOfRealShapes) {
  Result<json> cases = read_json_file(kModels + "rope.json");
  ASSERT_TRUE(cases.ok()) << cases.status().message();
  ASSERT_EQ(cases->size(), 8u);
  for (const json& c : *cases) {
    SCOPED_TRACE(c["rope_parameters"].dump());
    json config = golden("llama");
    config["head_dim"] = c["head_dim"];
    config["rope_parameters"] = c["rope_parameters"];
    Result<ModelConfig> read_back = read(config);
    ASSERT_TRUE(read_back.ok()) << read_back.status().message();
    std::vector<float> got = read_back->rope.inverse_frequencies(c["head_dim"]);
    const json& want = c["inverse_frequencies"];
    ASSERT_EQ(got.size(), want.size());
    for (size_t i = 0; i < got.size(); ++i) {
      EXPECT_NEAR(got[i], want[i].get<double>(), 2.4e-7 * want[i].get<double>()) << i;
    }
    EXPECT_FLOAT_EQ(read_back->rope.attention_scaling(), c["attention_scaling"].get<float>());
  }
}

TEST_F(ConfigTest, LinearScalingDividesFrequencies) {
  json config = golden("llama", "config-v4.json");
  std::vector<float> plain = read(config)->rope.inverse_frequencies(12);
  config["rope_scaling"] = {{"type", "linear"}, {"factor", 4.0}};
  Result<ModelConfig> c = read(config);
  ASSERT_TRUE(c.ok()) << c.status().message();
  std::vector<float> scaled = c->rope.inverse_frequencies(12);
  for (size_t i = 0; i < 6; ++i) EXPECT_EQ(scaled[i], plain[i] / 4);
  config["rope_scaling"]["factor"] = 1.0;
  EXPECT_EQ(read(config)->rope.type, RopeConfig::Type::kDefault);
}

TEST_F(ConfigTest, RopePrecedence) {
  json config = golden("llama");  // rope_parameters with theta 10000
  config["rope_theta"] = 77;      // loses against the dictionary
  EXPECT_EQ(read(config)->rope.theta, 10000);
  config["rope_parameters"] = {{"rope_type", "default"}};
  EXPECT_EQ(read(config)->rope.theta, 77);
  config["rope_scaling"] = {{"type", "linear"}, {"rope_type", "default"}, {"factor", 3}};
  EXPECT_EQ(read(config)->rope.type, RopeConfig::Type::kDefault);  // rope_type before type
  config["rope_scaling"] = json::object();
  EXPECT_EQ(read(config)->rope.theta, 77);
  json llama3 = golden("llama3");
  llama3["rope_parameters"].erase("original_max_position_embeddings");
  EXPECT_EQ(read(llama3)->rope.original_max_positions, 512);  // max_position_embeddings
}

TEST_F(ConfigTest, EndOfTextIds) {
  json config = golden("llama");
  config["eos_token_id"] = 7;
  EXPECT_THAT(read(config)->eos_token_ids, ElementsAre(7));
  write("generation_config.json", R"({"eos_token_id": [5, 9]})");
  EXPECT_THAT(read(config)->eos_token_ids, ElementsAre(5, 9));
  write("generation_config.json", R"({"do_sample": true})");
  EXPECT_THAT(read(config)->eos_token_ids, ElementsAre(7));
  for (const char* bad : {R"({"eos_token_id": "7"})", R"({"eos_token_id": [-1]})", R"({"eos_token_id": 1e3})",
                          R"({"eos_token_id": 99999999999})", R"({"eos_token_id": 18446744073709551615})"}) {
    write("generation_config.json", bad);
    Result<ModelConfig> c = read(config);
    ASSERT_FALSE(c.ok()) << bad;
    EXPECT_EQ(c.status().code(), Code::kInvalidArgument);
    EXPECT_THAT(c.status().message(), HasSubstr("generation_config.json"));
  }
  write("generation_config.json", "{");
  EXPECT_EQ(read(config).status().code(), Code::kCorrupt);
}

struct Refusal {
  const char* model;
  const char* patch;  // merged into config.json (RFC 7396)
  std::vector<std::string> parts;
};

TEST_F(ConfigTest, RefusesByNameWhatItDoesNotDo) {
  const std::vector<Refusal> refusals{
      {"llama", R"({"model_type": "gemma2"})", {"model_type", "gemma2", "llama, mistral, qwen2, qwen3"}},
      {"llama", R"({"model_type": "qwen3_moe"})", {"model_type", "qwen3_moe"}},
      {"llama",
       R"({"architectures": ["LlamaForSequenceClassification"]})",
       {"LlamaForSequenceClassification"}},
      {"llama", R"({"architectures": ["MistralForCausalLM"]})", {"architectures", "MistralForCausalLM"}},
      {"mistral", R"({"attention_bias": true})", {"attention_bias", "mistral"}},
      {"qwen3", R"({"mlp_bias": true})", {"mlp_bias", "true", "llama only", "qwen3"}},
      {"llama", R"({"hidden_act": "gelu"})", {"hidden_act", "gelu", "silu"}},
      {"llama",
       R"({"quantization_config": {"quant_method": "awq", "bits": 4}})",
       {"quantization_config", "awq"}},
      {"llama", R"({"text_config": {"hidden_size": 3}})", {"text_config", "multi-modal"}},
      {"llama", R"({"num_local_experts": 8})", {"num_local_experts", "8", "mixture"}},
      {"qwen2", R"({"num_experts": 60})", {"num_experts", "60"}},
      {"llama", R"({"attn_logit_softcapping": 50.0})", {"attn_logit_softcapping", "50"}},
      {"llama", R"({"final_logit_softcapping": 30.0})", {"final_logit_softcapping", "30"}},
      {"llama", R"({"logits_scaling": 8.0})", {"logits_scaling"}},
      {"llama", R"({"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}})", {"auto_map", "modeling_x"}},
      {"llama", R"({"dtype": "float8_e4m3fn"})", {"dtype", "float8_e4m3fn"}},
      {"llama", R"({"partial_rotary_factor": 0.5})", {"partial_rotary_factor", "0.5"}},
      {"llama", R"({"rope_parameters": {"partial_rotary_factor": 0.5}})", {"partial_rotary_factor", "0.5"}},
      {"llama",
       R"({"rope_parameters": {"rope_type": "dynamic"}})",
       {"dynamic", "how long a request is", "yarn"}},
      {"llama", R"({"rope_parameters": null, "rope_scaling": {"type": "longrope"}})", {"'type'", "longrope"}},
      {"llama", R"({"rope_scaling": {"type": "mrope", "mrope_section": [1]}})", {"mrope"}},
      {"llama", R"({"rope_scaling": {"type": "default", "mrope_section": [1]}})", {"mrope_section"}},
      {"qwen2", R"({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}})", {"full_attention"}},
      {"mistral",
       R"({"sliding_window": 128})",
       {"sliding_window", "128", "4096", "max_position_embeddings", "--max-model-len 128"}},
      {"llama", R"({"sliding_window": 128})", {"sliding_window", "128"}},
      {"qwen2",
       R"({"use_sliding_window": true, "sliding_window": 64, "max_window_layers": 2, "layer_types": null})",
       {"use_sliding_window", "64", "1024"}},
      {"qwen3",
       R"({"layer_types": ["full_attention", "full_attention", "sliding_attention"]})",
       {"layer_types", "sliding_attention", "layer 2", "no window is stated"}},
      {"qwen3",
       R"({"layer_types": ["full_attention", "full_attention", "full_attention", "full_attention",
                           "sliding_attention"], "use_sliding_window": true, "sliding_window": 1000})",
       {"layer_types", "1000", "1024", "--max-model-len 1000"}},
      {"llama", R"({"layer_types": ["chunked_attention"]})", {"layer_types", "chunked_attention"}},
      {"llama", R"({"use_qk_norm": true})", {"use_qk_norm"}},
  };
  for (const Refusal& r : refusals) {
    SCOPED_TRACE(r.patch);
    json config = golden(r.model);
    config.merge_patch(json::parse(r.patch));
    expect_refused(config, Code::kUnsupported, r.parts);
  }
  json mistral = golden("mistral");
  mistral.erase("sliding_window");  // the class's default of 4096 against 32768 positions
  mistral["max_position_embeddings"] = 32768;
  expect_refused(mistral, Code::kUnsupported, {"sliding_window", "absent", "4096"});
}

TEST_F(ConfigTest, HarmlessKeysAreAccepted) {
  const std::vector<std::pair<const char*, const char*>> harmless{
      {"llama", R"({"pretraining_tp": 4})"},
      {"llama", R"({"attention_dropout": 0.1})"},
      {"llama", R"({"num_local_experts": 0, "quantization_config": null, "attn_logit_softcapping": null})"},
      {"llama", R"({"partial_rotary_factor": 1.0, "rope_parameters": {"partial_rotary_factor": 1}})"},
      {"mistral", R"({"sliding_window": 4096})"},
      {"mistral", R"({"attention_bias": false, "mlp_bias": false})"},
      {"qwen2", R"({"attention_bias": true})"},
      {"qwen2", R"({"use_sliding_window": false, "sliding_window": 16, "max_window_layers": 1})"},
      {"qwen2",
       R"({"use_sliding_window": true, "sliding_window": 16, "max_window_layers": 4, "layer_types": null})"},
      {"qwen2", R"({"use_sliding_window": true, "sliding_window": null, "max_window_layers": 0})"},
      {"qwen3",
       R"({"layer_types": ["full_attention", "full_attention", "full_attention", "full_attention",
                           "sliding_attention"], "use_sliding_window": true, "sliding_window": 1024})"},
      {"llama", R"({"some_key_of_a_tool": {"a": 1}})"},
  };
  for (const auto& [model, patch] : harmless) {
    json config = golden(model);
    config.merge_patch(json::parse(patch));
    if (json::parse(patch).contains("sliding_window") && json::parse(patch)["sliding_window"].is_null()) {
      config["sliding_window"] = nullptr;  // merge_patch removes instead
    }
    Result<ModelConfig> c = read(config);
    EXPECT_TRUE(c.ok()) << patch << ": " << c.status().message();
  }
}

TEST_F(ConfigTest, RefusesImpossibleNumbers) {
  const std::vector<std::pair<const char*, std::vector<std::string>>> bad{
      {R"({"num_hidden_layers": 0})", {"num_hidden_layers", "0"}},
      {R"({"num_hidden_layers": -3})", {"num_hidden_layers", "-3"}},
      {R"({"num_hidden_layers": 1000000000000})", {"num_hidden_layers", "1000000000000"}},
      {R"({"hidden_size": 1e30})", {"hidden_size"}},
      {R"({"hidden_size": 32.5})", {"hidden_size", "32.5"}},
      {R"({"hidden_size": "32"})", {"hidden_size", "\"32\""}},
      {R"({"vocab_size": 18446744073709551615})", {"vocab_size"}},
      {R"({"intermediate_size": 0})", {"intermediate_size"}},
      {R"({"num_key_value_heads": 3})", {"num_attention_heads", "8", "3"}},
      {R"({"num_key_value_heads": 0})", {"num_key_value_heads"}},
      {R"({"head_dim": 13})", {"13", "even"}},
      {R"({"head_dim": 0})", {"head_dim"}},
      {R"({"head_dim": null, "hidden_size": 33})", {"hidden_size", "33", "8"}},
      {R"({"rms_norm_eps": -1})", {"rms_norm_eps"}},
      {R"({"rms_norm_eps": "small"})", {"rms_norm_eps"}},
      {R"({"max_position_embeddings": 0})", {"max_position_embeddings"}},
      {R"({"tie_word_embeddings": 1})", {"tie_word_embeddings"}},
      {R"({"rope_parameters": {"rope_theta": 0}})", {"rope_theta"}},
      {R"({"rope_parameters": {"rope_type": "linear", "factor": -2}})", {"factor"}},
      {R"({"rope_parameters": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4, "high_freq_factor": 4}})",
       {"high_freq_factor", "low_freq_factor"}},
      {R"({"layer_types": ["full_attention"]})", {"layer_types", "1", "5"}},
  };
  for (const auto& [patch, parts] : bad) {
    SCOPED_TRACE(patch);
    json config = golden("llama");
    config.merge_patch(json::parse(patch));
    expect_refused(config, Code::kInvalidArgument, parts);
  }
  for (const char* key :
       {"num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size"}) {
    json config = golden("llama");
    config.erase(key);
    expect_refused(config, Code::kCorrupt, {key, "missing"});
  }
  json incomplete = golden("llama3");
  incomplete["rope_parameters"].erase("factor");
  expect_refused(incomplete, Code::kCorrupt, {"rope_parameters", "factor", "missing"});
}

TEST_F(ConfigTest, BadFilesNeverCrash) {
  EXPECT_EQ(ModelConfig::read(folder_).status().code(), Code::kNotFound);
  EXPECT_EQ(ModelConfig::read("").status().code(), Code::kNotFound);
  write("config.json", "");
  EXPECT_EQ(ModelConfig::read(folder_).status().code(), Code::kCorrupt);
  write("config.json", "[1, 2]");
  EXPECT_EQ(ModelConfig::read(folder_).status().code(), Code::kCorrupt);
  write("config.json", std::string(100000, '['));
  EXPECT_EQ(ModelConfig::read(folder_).status().code(), Code::kCorrupt);
  write("config.json", R"({"model_type": NaN})");
  EXPECT_EQ(ModelConfig::read(folder_).status().code(), Code::kCorrupt);
  write("config.json", "{\"model_type\": \"\xff\xfe\"}");
  EXPECT_FALSE(ModelConfig::read(folder_).ok());
  std::string whole = golden("llama3").dump();
  for (size_t length = 0; length < whole.size(); length += 9) {
    write("config.json", whole.substr(0, length));
    EXPECT_EQ(ModelConfig::read(folder_).status().code(), Code::kCorrupt) << length;
  }
  // Every key with a value of every wrong kind: read or refused, never a crash.
  json config = golden("llama3");
  for (const auto& [key, value] : config.items()) {
    for (const json& wrong :
         {json(nullptr), json(true), json(-1), json(1e300), json("text"), json::array({1, "a"}),
          json::array(), json{{"a", json::array()}}, json(UINT64_MAX)}) {
      json changed = config;
      changed[key] = wrong;
      Result<ModelConfig> result = read(changed);
      if (!result.ok()) {
        EXPECT_THAT(result.status().message(), HasSubstr("config.json"));
      }
    }
  }
}

TEST_F(ConfigTest, Yarn) {
  Result<ModelConfig> c = ModelConfig::read(kModels + "yarn/receiver");
  ASSERT_TRUE(c.ok()) << c.status().message();
  EXPECT_EQ(c->rope.type, RopeConfig::Type::kYarn);
  EXPECT_EQ(c->rope.factor, 4);
  EXPECT_EQ(c->rope.original_max_positions, 64);
  EXPECT_EQ(c->rope.beta_fast, 8);
  EXPECT_EQ(c->rope.beta_slow, 1);
  EXPECT_NEAR(c->rope.attention_factor, (0.15 * std::log(4) + 1) / (0.05 * std::log(4) + 1), 1e-12);
  EXPECT_EQ(c->max_positions, 256);

  // As Qwen2.5's documentation has it: 'rope_scaling' is added, max_position_embeddings stays.
  json qwen = golden("qwen2", "config-v4.json");  // 1024 positions
  qwen["rope_scaling"] = {{"type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 1024}};
  Result<ModelConfig> stretched = read(qwen);
  ASSERT_TRUE(stretched.ok()) << stretched.status().message();
  EXPECT_EQ(stretched->max_positions, 4096);
  EXPECT_EQ(stretched->rope.factor, 4);
  qwen["rope_scaling"].erase("original_max_position_embeddings");  // max_position_embeddings, as transformers
  EXPECT_EQ(read(qwen)->canonical(), stretched->canonical());
  qwen["max_position_embeddings"] = 8192;
  qwen["rope_scaling"]["original_max_position_embeddings"] = 1024;
  EXPECT_EQ(read(qwen)->max_positions, 8192);
  EXPECT_EQ(read(qwen)->rope.factor, 4);  // what is stated counts
  qwen["rope_scaling"]["factor"] = nullptr;
  EXPECT_EQ(read(qwen)->rope.factor, 8);

  // It is part of the identity, and of what a pair must share.
  Result<ModelConfig> plain = read(golden("qwen2"));
  EXPECT_NE(stretched->canonical(), plain->canonical());
  EXPECT_THAT(architecture_differences(*plain, *stretched),
              ElementsAre("rope_type: sender default, receiver yarn", "factor: sender none, receiver 4",
                          "original_max_position_embeddings: sender none, receiver 1024",
                          "beta_fast: sender none, receiver 32", "beta_slow: sender none, receiver 1",
                          "truncate: sender none, receiver true",
                          ::testing::StartsWith("attention_factor: sender none, receiver 1.138")));
  ModelConfig other = *stretched;
  other.rope.attention_factor = 1;
  EXPECT_THAT(architecture_differences(*stretched, other),
              ElementsAre(::testing::StartsWith("attention_factor: sender 1.138")));

  for (const auto& [patch, part] : std::initializer_list<std::pair<const char*, const char*>>{
           {R"({"beta_fast": 1, "beta_slow": 2})", "beta_fast"},
           {R"({"factor": -1})", "factor"},
           {R"({"attention_factor": 0})", "attention factor"},
           {R"({"mscale": -90, "mscale_all_dim": 1})", "attention factor"},
           {R"({"rope_theta": 1})", "rope_theta"}}) {
    json bad = golden("yarn");
    bad["rope_parameters"].merge_patch(json::parse(patch));
    expect_refused(bad, Code::kInvalidArgument, {"rope_parameters", part});
  }
}

TEST_F(ConfigTest, MaxModelLen) {
  json mistral = golden("mistral");  // 4096 positions
  mistral["sliding_window"] = 1024;
  write("config.json", mistral.dump());
  EXPECT_EQ(ModelConfig::read(folder_).status().code(), Code::kUnsupported);
  EXPECT_EQ(ModelConfig::read(folder_, 1025).status().code(), Code::kUnsupported);
  for (int64_t n : {1024, 1000, 1}) {
    Result<ModelConfig> c = ModelConfig::read(folder_, n);
    ASSERT_TRUE(c.ok()) << c.status().message();
    EXPECT_EQ(c->max_positions, n);
  }
  Result<ModelConfig> more = ModelConfig::read(folder_, 4097);
  EXPECT_EQ(more.status().code(), Code::kInvalidArgument);
  EXPECT_THAT(more.status().message(),
              ::testing::AllOf(HasSubstr("--max-model-len is 4097"), HasSubstr("4096")));
  // How many positions are used is no part of a model: it neither changes frequencies nor identities.
  write("config.json", golden("yarn").dump());
  EXPECT_EQ(ModelConfig::read(folder_, 64)->canonical(), ModelConfig::read(folder_)->canonical());
  json llama3 = golden("llama3");
  llama3["rope_parameters"].erase("original_max_position_embeddings");
  write("config.json", llama3.dump());
  EXPECT_EQ(ModelConfig::read(folder_, 64)->rope, ModelConfig::read(folder_)->rope);
}

TEST_F(ConfigTest, Biases) {
  Result<ModelConfig> c = ModelConfig::read(kModels + "biases/receiver");
  ASSERT_TRUE(c.ok()) << c.status().message();
  EXPECT_TRUE(c->qkv_bias && c->o_bias && c->mlp_bias);
  Result<ModelConfig> qwen3 = ModelConfig::read(kModels + "qwen3bias/receiver");
  ASSERT_TRUE(qwen3.ok()) << qwen3.status().message();
  EXPECT_TRUE(qwen3->qkv_bias && qwen3->o_bias && !qwen3->mlp_bias);
  Result<ModelConfig> qwen2 = ModelConfig::read(kModels + "qwen2/receiver");
  EXPECT_TRUE(qwen2->qkv_bias && !qwen2->o_bias && !qwen2->mlp_bias);
}

TEST_F(ConfigTest, WhatIsComputedCountsNotWhatItIsCalled) {
  json llama = golden("llama"), mistral = llama;
  mistral["model_type"] = "mistral";
  mistral["architectures"] = {"MistralForCausalLM"};
  mistral["sliding_window"] = nullptr;
  Result<ModelConfig> a = read(llama), b = read(mistral);
  ASSERT_TRUE(a.ok() && b.ok()) << b.status().message();
  EXPECT_THAT(architecture_differences(*a, *b), IsEmpty());
  EXPECT_NE(a->canonical(), b->canonical());  // two models still

  // A Qwen2 that somebody has saved as a Llama: its output projection has biases of zeros.
  json qwen = golden("qwen2"), as_llama = qwen;
  as_llama["model_type"] = "llama";
  as_llama["architectures"] = {"LlamaForCausalLM"};
  as_llama["attention_bias"] = true;
  Result<ModelConfig> q = read(qwen), l = read(as_llama);
  ASSERT_TRUE(q.ok() && l.ok()) << l.status().message();
  EXPECT_TRUE(l->o_bias);
  EXPECT_THAT(architecture_differences(*q, *l), IsEmpty());
  as_llama["attention_bias"] = false;
  EXPECT_THAT(architecture_differences(*q, *read(as_llama)),
              ElementsAre("attention_bias: sender true, receiver false"));

  json early = llama;
  early["architectures"] = {"LLaMAForCausalLM"};
  EXPECT_EQ(read(early)->canonical(), a->canonical());
  early.erase("model_type");
  EXPECT_EQ(read(early)->family, Family::kLlama);
}

TEST_F(ConfigTest, VocabulariesMayDiffer) {
  json more = golden("llama");
  more["vocab_size"] = 264;
  Result<ModelConfig> a = read(golden("llama")), b = read(more);
  EXPECT_THAT(architecture_differences(*a, *b), IsEmpty());
  EXPECT_NE(a->canonical(), b->canonical());
}

TEST_F(ConfigTest, CanonicalTextsStay) {
  // Profiles, maps and entries out there name models by the hash of these texts.
  EXPECT_EQ(read(golden("qwen2"))->canonical(),
            "model_type=qwen2\nnum_hidden_layers=4\nhidden_size=56\nintermediate_size=48\n"
            "num_attention_heads=14\nnum_key_value_heads=2\nhead_dim=4\nvocab_size=168\nrms_norm_eps=1e-06\n"
            "attention_bias=true\nuse_qk_norm=false\nrope_type=default\nrope_theta=1000000\nfactor=none\n"
            "low_freq_factor=none\nhigh_freq_factor=none\noriginal_max_position_embeddings=none\n"
            "tie_word_embeddings=false\n");
  EXPECT_THAT(read(golden("llama3"))->canonical(),
              HasSubstr("rope_type=llama3\nrope_theta=5000\nfactor=8\nlow_freq_factor=1\nhigh_freq_factor=4\n"
                        "original_max_position_embeddings=64\ntie_word_embeddings=true\n"));
}

TEST_F(ConfigTest, DifferencesNameEveryField) {
  Result<ModelConfig> a = read(golden("llama"));
  json other = golden("llama");
  other.merge_patch(json::parse(R"({"num_key_value_heads": 4, "hidden_size": 64, "tie_word_embeddings": true,
    "rope_parameters": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4},
    "max_position_embeddings": 99, "dtype": "float32", "eos_token_id": 4})"));
  Result<ModelConfig> b = read(other);
  ASSERT_TRUE(a.ok() && b.ok()) << b.status().message();
  EXPECT_THAT(
      architecture_differences(*a, *b),
      ElementsAre("hidden_size: sender 32, receiver 64", "num_key_value_heads: sender 2, receiver 4",
                  "rope_type: sender default, receiver llama3", "factor: sender none, receiver 8",
                  "low_freq_factor: sender none, receiver 1", "high_freq_factor: sender none, receiver 4",
                  "original_max_position_embeddings: sender none, receiver 99"));
  EXPECT_NE(a->canonical(), b->canonical());
  Result<ModelConfig> qwen = read(golden("qwen3"));
  EXPECT_THAT(architecture_differences(*a, *qwen),
              ::testing::Contains("use_qk_norm: sender false, receiver true"));
  ModelConfig tied = *a;
  tied.tied_embeddings = true;  // another model, but the same caches
  EXPECT_NE(tied.canonical(), a->canonical());
  EXPECT_THAT(architecture_differences(*a, tied), IsEmpty());
}

// The numbers of configs that are published, each in the notation of the transformers that wrote it.
struct Published {
  const char* what;
  const char* config;
  // What must be read from it; "" in `refused`: it loads.
  int64_t kv_heads, head_dim, positions;
  double theta;
  RopeConfig::Type rope;
  DType dtype;
  const char* refused = "";
};

TEST_F(ConfigTest, PublishedConfigsOfTransformers3To5) {
  using Type = RopeConfig::Type;
  const Published published[] = {
      {"Llama 1, converted before transformers had the class",
       R"({"architectures": ["LLaMAForCausalLM"], "bos_token_id": 0, "eos_token_id": 1, "hidden_act": "silu",
           "hidden_size": 4096, "intermediate_size": 11008, "initializer_range": 0.02, "max_sequence_length": 2048,
           "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32, "pad_token_id": -1,
           "rms_norm_eps": 1e-06, "torch_dtype": "float16", "transformers_version": "4.27.0.dev0",
           "use_cache": true, "vocab_size": 32000})",
       32, 128, 2048, 1e4, Type::kDefault, DType::kF16},
      {"Llama 2 7B, 4.31",
       R"({"_name_or_path": "x", "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
           "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 11008,
           "max_position_embeddings": 4096, "model_type": "llama", "num_attention_heads": 32,
           "num_hidden_layers": 32, "num_key_value_heads": 32, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
           "rope_scaling": null, "tie_word_embeddings": false, "torch_dtype": "float16", "use_cache": true,
           "vocab_size": 32000})",
       32, 128, 4096, 1e4, Type::kDefault, DType::kF16},
      {"a Llama 2 stretched to 32k, linear, 4.31's 'type'",
       R"({"architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 11008,
           "max_position_embeddings": 32768, "model_type": "llama", "num_attention_heads": 32,
           "num_hidden_layers": 32, "num_key_value_heads": 32, "rms_norm_eps": 1e-05,
           "rope_scaling": {"factor": 8.0, "type": "linear"}, "torch_dtype": "float16", "vocab_size": 32000})",
       32, 128, 32768, 1e4, Type::kLinear, DType::kF16},
      {"Llama 3.1 8B, 4.42",
       R"({"architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
           "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "hidden_act": "silu",
           "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": false,
           "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
           "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0,
           "high_freq_factor": 4.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"},
           "rope_theta": 500000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16", "vocab_size": 128256})",
       8, 128, 131072, 5e5, Type::kLlama3, DType::kBF16},
      {"the same, saved again by a trainer with transformers 5",
       R"({"architectures": ["LlamaForCausalLM"], "attention_bias": false, "dtype": "bfloat16", "head_dim": 128,
           "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336, "layer_types": null,
           "max_position_embeddings": 131072, "mlp_bias": false, "model_type": "llama", "num_attention_heads": 32,
           "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
           "rope_parameters": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 8192, "rope_theta": 500000.0, "rope_type": "llama3"},
           "tie_word_embeddings": false, "transformers_version": "5.0.0", "unsloth_fixed": true,
           "use_cache": false, "vocab_size": 128264})",
       8, 128, 131072, 5e5, Type::kLlama3, DType::kBF16},
      {"Mistral 7B v0.1, its window binds",
       R"({"architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
           "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 32768,
           "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
           "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096, "torch_dtype": "bfloat16",
           "vocab_size": 32000})",
       8, 128, 4096, 1e4, Type::kDefault, DType::kBF16, "--max-model-len 4096"},
      {"Mistral 7B v0.3",
       R"({"architectures": ["MistralForCausalLM"], "attention_dropout": 0.0, "hidden_act": "silu",
           "hidden_size": 4096, "intermediate_size": 14336, "max_position_embeddings": 32768,
           "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
           "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "sliding_window": null, "torch_dtype": "bfloat16",
           "vocab_size": 32768})",
       8, 128, 32768, 1e6, Type::kDefault, DType::kBF16},
      {"Qwen2.5 7B: a window as long as the model, which is off",
       R"({"architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu", "hidden_size": 3584,
           "intermediate_size": 18944, "max_position_embeddings": 131072, "max_window_layers": 28,
           "model_type": "qwen2", "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4,
           "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 131072, "tie_word_embeddings": false,
           "torch_dtype": "bfloat16", "use_mrope": false, "use_sliding_window": false, "vocab_size": 152064})",
       4, 128, 131072, 1e6, Type::kDefault, DType::kBF16},
      {"a Qwen2.5 with its window on, from a layer that it does not have",
       R"({"architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu", "hidden_size": 896,
           "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 24,
           "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
           "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 4096, "tie_word_embeddings": true,
           "torch_dtype": "bfloat16", "use_sliding_window": true, "vocab_size": 151936})",
       2, 64, 32768, 1e6, Type::kDefault, DType::kBF16},
      {"the same, saved by transformers 5, which lists the layers",
       R"({"architectures": ["Qwen2ForCausalLM"], "dtype": "bfloat16", "hidden_act": "silu", "hidden_size": 896,
           "intermediate_size": 4864, "layer_types": ["full_attention", "full_attention"],
           "max_position_embeddings": 32768, "max_window_layers": 2, "model_type": "qwen2",
           "num_attention_heads": 14, "num_hidden_layers": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
           "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"}, "sliding_window": null,
           "tie_word_embeddings": true, "use_sliding_window": true, "vocab_size": 151936})",
       2, 64, 32768, 1e6, Type::kDefault, DType::kBF16},
      {"a Qwen2.5 whose window is as long as the model",
       R"({"architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu", "hidden_size": 896,
           "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 21,
           "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
           "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": true,
           "torch_dtype": "bfloat16", "use_sliding_window": true, "vocab_size": 151936})",
       2, 64, 32768, 1e6, Type::kDefault, DType::kBF16},
      {"a Qwen2.5 with YaRN, whose window is now too short",
       R"({"architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu", "hidden_size": 896,
           "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 21,
           "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
           "rms_norm_eps": 1e-06, "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768,
           "type": "yarn"}, "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": true,
           "torch_dtype": "bfloat16", "use_sliding_window": true, "vocab_size": 151936})",
       2, 64, 32768, 1e6, Type::kYarn, DType::kBF16, "--max-model-len 32768"},
      {"Qwen2.5 7B with YaRN by hand, as its documentation says",
       R"({"architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu", "hidden_size": 3584,
           "intermediate_size": 18944, "max_position_embeddings": 32768, "max_window_layers": 28,
           "model_type": "qwen2", "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4,
           "rms_norm_eps": 1e-06, "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 32768,
           "type": "yarn"}, "rope_theta": 1000000.0, "sliding_window": 131072, "torch_dtype": "bfloat16",
           "use_sliding_window": false, "vocab_size": 152064})",
       4, 128, 131072, 1e6, Type::kYarn, DType::kBF16},
      {"Qwen3 0.6B, 4.51",
       R"({"architectures": ["Qwen3ForCausalLM"], "attention_bias": false, "head_dim": 128, "hidden_act": "silu",
           "hidden_size": 1024, "intermediate_size": 3072, "max_position_embeddings": 40960,
           "max_window_layers": 28, "model_type": "qwen3", "num_attention_heads": 16, "num_hidden_layers": 28,
           "num_key_value_heads": 8, "rms_norm_eps": 1e-06, "rope_scaling": null, "rope_theta": 1000000,
           "sliding_window": null, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
           "use_sliding_window": false, "vocab_size": 151936})",
       8, 128, 40960, 1e6, Type::kDefault, DType::kBF16},
      {"a distillation of DeepSeek over Qwen's 1.5B, window on paper only",
       R"({"architectures": ["Qwen2ForCausalLM"], "bos_token_id": 151643, "eos_token_id": 151643,
           "hidden_act": "silu", "hidden_size": 1536, "intermediate_size": 8960, "max_position_embeddings": 131072,
           "max_window_layers": 21, "model_type": "qwen2", "num_attention_heads": 12, "num_hidden_layers": 28,
           "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 10000, "sliding_window": 4096,
           "tie_word_embeddings": false, "torch_dtype": "bfloat16", "use_mrope": false,
           "use_sliding_window": false, "vocab_size": 151936})",
       2, 128, 131072, 1e4, Type::kDefault, DType::kBF16},
  };
  for (const Published& p : published) {
    SCOPED_TRACE(p.what);
    write("config.json", p.config);
    Result<ModelConfig> c = ModelConfig::read(folder_);
    if (*p.refused != '\0') {
      EXPECT_EQ(c.status().code(), Code::kUnsupported);
      EXPECT_THAT(c.status().message(), HasSubstr(p.refused));
      c = ModelConfig::read(folder_, p.positions);
    }
    EXPECT_TRUE(c.ok()) << c.status().message();
    if (!c.ok()) continue;
    EXPECT_EQ(c->kv_heads, p.kv_heads);
    EXPECT_EQ(c->head_dim, p.head_dim);
    EXPECT_EQ(c->max_positions, p.positions);
    EXPECT_EQ(c->rope.theta, p.theta);
    EXPECT_EQ(c->rope.type, p.rope);
    EXPECT_EQ(c->dtype, p.dtype);
  }
}

TEST(PresetTest, NamesAndLayers) {
  Result<ModelConfig> one = preset_config("llama-1b");
  ASSERT_TRUE(one.ok());
  EXPECT_EQ(one->layers, 16);
  EXPECT_EQ(one->heads * one->head_dim, one->d_model);
  Result<ModelConfig> eight = preset_config("llama-8b:4");
  ASSERT_TRUE(eight.ok());
  EXPECT_EQ(eight->layers, 4);
  EXPECT_EQ(eight->heads * eight->head_dim, eight->d_model);
  for (const char* bad :
       {"", "llama", "llama-8b:", "llama-8b:0", "llama-8b:33", "llama-8b:4x", "llama-8b:-1"}) {
    EXPECT_EQ(preset_config(bad).status().code(), Code::kInvalidArgument) << bad;
  }
}

TEST(PresetTest, SpelledOut) {
  Result<ModelConfig> c =
      preset_config("llama:layers=6,d=512,ff=1408,heads=8,kv=2,vocab=1000,positions=4096");
  ASSERT_TRUE(c.ok()) << c.status().message();
  Shape expected{"llama", 6, 512, 1408, 8, 2, 64, 1000};
  EXPECT_EQ(c->shape(), expected);
  EXPECT_EQ(c->max_positions, 4096);
  c = preset_config("llama:d=2048");
  ASSERT_TRUE(c.ok()) << c.status().message();
  EXPECT_EQ(c->ff, 5632);
  EXPECT_EQ(c->kv_heads, 4);
  EXPECT_EQ(c->head_dim, 128);
  auto message = [](const char* name) { return preset_config(name).status().message(); };
  EXPECT_THAT(message("llama:depth=3"), HasSubstr("'depth=3' is not understood"));
  EXPECT_THAT(message("llama:layers"), HasSubstr("'layers' is not understood"));
  EXPECT_THAT(message("llama:layers=0"), HasSubstr("layers is '0', expected 1 to 1024"));
  EXPECT_THAT(message("llama:d=12x"), HasSubstr("d is '12x'"));
  EXPECT_THAT(message("llama:d=99999999999999999999"), HasSubstr("expected 1 to 65536"));
  EXPECT_THAT(message("llama:d=512,d=512"), HasSubstr("'d' is given twice"));
  EXPECT_THAT(message("llama:d=1000,heads=7"), HasSubstr("no even head_dim"));
  EXPECT_THAT(message("llama:head_dim=63"), HasSubstr("head_dim 63 is odd"));
  EXPECT_THAT(message("llama:heads=16,kv=3"), HasSubstr("16 heads are no multiple of 3 kv heads"));
}

}  // namespace
}  // namespace ds
