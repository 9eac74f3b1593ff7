// Checkpoints: the tiny models, safetensors files damaged in every way, identities, random weights.
#include "runtime/model/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "runtime/model/safetensors.h"
#include "support/file.h"
#include "support/hash.h"
#include "support/json.h"

namespace ds {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;

const std::string kModels = DS_SOURCE_DIR "/tests/golden/models/";

std::string slurp(const std::string& path) {
  Result<std::string> text = read_text_file(path);
  EXPECT_TRUE(text.ok()) << text.status().message();
  return text.ok() ? *text : "";
}

/// A safetensors file taken apart, to be put together again wrongly.
struct Parts {
  json header;
  std::string data;
  static Parts of(const std::string& file) {
    uint64_t length = 0;
    std::memcpy(&length, file.data(), 8);
    return {json::parse(file.substr(8, length)), file.substr(8 + length)};
  }
  std::string file() const { return with_length(header.dump().size()); }
  std::string with_length(uint64_t length) const {
    return std::string(reinterpret_cast<const char*>(&length), 8) + header.dump() + data;
  }
};

class CheckpointTest : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = ::testing::TempDir() + "/ds-checkpoint-" + std::to_string(getpid()) + "-" +
            ::testing::UnitTest::GetInstance()->current_test_info()->name();
    fs::remove_all(root_);
    fs::create_directories(root_);
  }
  void TearDown() override { fs::remove_all(root_); }

  /// A copy of a golden receiver that a test may damage.
  std::string copy(const std::string& model, const std::string& name = "model") {
    std::string to = root_ + "/" + name;
    fs::remove_all(to);
    fs::copy(kModels + model + "/receiver", to, fs::copy_options::recursive);
    return to;
  }
  static void write(const std::string& path, std::string_view text) {
    std::ofstream(path, std::ios::binary) << text;
  }
  static std::string weights(const std::string& folder) { return folder + "/model.safetensors"; }

  /// Opening `folder` must fail with `code`, naming every one of `parts`.
  static void expect_fails(const std::string& folder, Code code, const std::vector<std::string>& parts) {
    Result<Checkpoint> c = Checkpoint::open(folder);
    ASSERT_FALSE(c.ok());
    EXPECT_EQ(code_name(c.status().code()), code_name(code)) << c.status().message();
    for (const std::string& part : parts) EXPECT_THAT(c.status().message(), HasSubstr(part));
  }
  /// The same for a file put in place of llama's weights.
  void expect_file_fails(const std::string& file, Code code, const std::vector<std::string>& parts) {
    std::string folder = copy("llama");
    write(weights(folder), file);
    expect_fails(folder, code, parts);
  }
  static Parts llama() { return Parts::of(slurp(kModels + "llama/receiver/model.safetensors")); }

  std::string root_;
};

constexpr const char* kQ = "model.layers.1.self_attn.q_proj.weight";

TEST_F(CheckpointTest, OpensEveryGoldenModel) {
  const std::vector<std::tuple<std::string, DType, size_t>> models{
      {"llama/receiver", DType::kBF16, 48},   {"llama/sender", DType::kBF16, 48},
      {"llama2/receiver", DType::kF32, 39},   {"llama3/receiver", DType::kBF16, 38},
      {"mistral/receiver", DType::kBF16, 30}, {"qwen2/receiver", DType::kBF16, 51},
      {"qwen3/receiver", DType::kF16, 58},    {"biases/receiver", DType::kBF16, 67},
      {"qwen3bias/receiver", DType::kF32, 33}};
  for (const auto& [model, dtype, count] : models) {
    Result<Checkpoint> c = Checkpoint::open(kModels + model);
    ASSERT_TRUE(c.ok()) << c.status().message();
    std::vector<TensorSpec> specs = required_tensors(c->config());
    EXPECT_EQ(specs.size(), count) << model;
    for (const TensorSpec& spec : specs) {
      Result<TensorView> t = c->tensor(spec.name);
      ASSERT_TRUE(t.ok()) << t.status().message();
      EXPECT_EQ(t->shape, spec.shape) << spec.name;
      EXPECT_EQ(t->dtype, dtype) << spec.name;
      EXPECT_EQ(static_cast<int64_t>(t->data.size()), t->elements() * dtype_size(dtype)) << spec.name;
    }
    EXPECT_TRUE(c->check_finite().ok()) << model;
    EXPECT_TRUE(c->has("model.layers.0.mlp.up_proj.weight"));
    EXPECT_EQ(c->has("lm_head.weight"), !c->config().tied_embeddings);
    EXPECT_EQ(c->tensor("model.layers.99.mlp.up_proj.weight").status().code(), Code::kNotFound);
  }
  EXPECT_EQ(Checkpoint::open(kModels + "llama/receiver")->name(), "receiver");
  EXPECT_EQ(Checkpoint::open(kModels + "llama/receiver/")->name(), "receiver");
}

TEST_F(CheckpointTest, TensorsHaveTheBytesOfTheFile) {
  Parts parts = llama();
  auto offsets = parts.header[kQ]["data_offsets"];
  std::string want = parts.data.substr(offsets[0], offsets[1].get<size_t>() - offsets[0].get<size_t>());
  Result<Checkpoint> c = Checkpoint::open(kModels + "llama/receiver");
  ASSERT_TRUE(c.ok());
  auto data = c->tensor(kQ)->data;
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(data.data()), data.size()), want);
}

TEST_F(CheckpointTest, MissingFiles) {
  expect_fails(root_ + "/nowhere", Code::kNotFound, {"nowhere'", "config.json"});
  std::string folder = copy("llama");
  fs::remove(weights(folder));
  expect_fails(folder, Code::kNotFound, {folder, "model.safetensors"});
  write(folder + "/pytorch_model.bin", "x");
  expect_fails(folder, Code::kUnsupported, {"pytorch_model.bin", "save_pretrained"});
  folder = copy("llama");
  write(folder + "/adapter_config.json", "{}");
  expect_fails(folder, Code::kUnsupported, {"adapter_config.json", "merge"});
  folder = copy("llama");
  fs::remove(weights(folder));
  fs::create_directory(weights(folder));
  expect_fails(folder, Code::kInvalidArgument, {"model.safetensors", "regular file"});
}

TEST_F(CheckpointTest, TruncatedAnywhere) {
  std::string whole = slurp(kModels + "llama/receiver/model.safetensors");
  uint64_t length = 0;
  std::memcpy(&length, whole.data(), 8);
  for (size_t size :
       {size_t{0}, size_t{1}, size_t{7}, size_t{8}, size_t{9}, size_t{8} + length / 2, size_t{8} + length - 1,
        size_t{8} + length, size_t{9} + length, whole.size() / 2, whole.size() - 2, whole.size() - 1}) {
    SCOPED_TRACE(size);
    expect_file_fails(whole.substr(0, size), Code::kCorrupt, {"model.safetensors"});
  }
  expect_file_fails(whole + "x", Code::kCorrupt, {"bytes of data"});
}

TEST_F(CheckpointTest, WrongHeaders) {
  Parts good = llama();
  uint64_t length = good.header.dump().size();
  for (uint64_t wrong : {uint64_t{0}, uint64_t{1}, length - 1, length + 1, uint64_t{99'999'999},
                         uint64_t{1} << 40, uint64_t{1} << 63, UINT64_MAX, UINT64_MAX - 7}) {
    SCOPED_TRACE(wrong);
    expect_file_fails(good.with_length(wrong), Code::kCorrupt, {"model.safetensors"});
  }
  Parts list = good;
  list.header = json::array({1});
  expect_file_fails(list.file(), Code::kCorrupt, {"header", "object"});
  expect_file_fails("GGUF" + std::string(100, '\0'), Code::kCorrupt, {"model.safetensors"});
}

TEST_F(CheckpointTest, WrongEntries) {
  const json huge = INT64_MAX;
  const std::vector<std::pair<json, std::vector<std::string>>> patches{
      {{{"data_offsets", {0, 1}}}, {"data_offsets", "hold 1 bytes", "expected 6144"}},
      {{{"data_offsets", {10, 4}}}, {"data_offsets", "[10, 4]"}},
      {{{"data_offsets", {-8, 4}}}, {"data_offsets", "-8"}},
      {{{"data_offsets", {0, huge}}}, {"data_offsets", "9223372036854775807"}},
      {{{"data_offsets", {0, UINT64_MAX}}}, {"data_offsets"}},
      {{{"data_offsets", {0, 1e18}}}, {"data_offsets"}},
      {{{"data_offsets", {0}}}, {"data_offsets"}},
      {{{"data_offsets", "0"}}, {"data_offsets"}},
      {{{"data_offsets", nullptr}}, {"data_offsets"}},
      {{{"shape", {huge, huge}}}, {"shape", "overflow"}},
      {{{"shape", {huge}}}, {"9223372036854775807"}},
      {{{"shape", {int64_t{1} << 32, int64_t{1} << 32}}}, {"shape", "overflow"}},
      {{{"shape", {-96, -32}}}, {"shape", "-96"}},
      {{{"shape", {96, 32.5}}}, {"shape"}},
      {{{"shape", "96"}}, {"shape"}},
      {{{"shape", std::vector<int>(100, 1)}}, {"shape", "100"}},
      {{{"dtype", "Q4_K"}}, {"Q4_K"}},
      {{{"dtype", 16}}, {"dtype"}},
      {{{"dtype", "F32"}}, {"data_offsets"}},
  };
  for (const auto& [patch, needed] : patches) {
    SCOPED_TRACE(patch.dump());
    Parts parts = llama();
    for (const auto& [key, value] : patch.items()) parts.header[kQ][key] = value;
    std::string folder = copy("llama");
    write(weights(folder), parts.file());
    Result<Checkpoint> c = Checkpoint::open(folder);
    ASSERT_FALSE(c.ok());
    EXPECT_THAT(c.status().code(), ::testing::AnyOf(Code::kCorrupt, Code::kInvalidArgument));
    EXPECT_THAT(c.status().message(), AllOf(HasSubstr("model.safetensors"), HasSubstr(kQ)));
    for (const std::string& part : needed) EXPECT_THAT(c.status().message(), HasSubstr(part));
  }
  Parts no_object = llama();
  no_object.header[kQ] = 3;
  expect_file_fails(no_object.file(), Code::kCorrupt, {kQ, "object"});
}

TEST_F(CheckpointTest, OverlapsAndHoles) {
  Parts parts = llama();
  constexpr const char* kOther = "model.layers.2.self_attn.q_proj.weight";
  parts.header[kQ]["data_offsets"] = parts.header[kOther]["data_offsets"];
  expect_file_fails(parts.file(), Code::kCorrupt, {"belong to no tensor"});
  parts = llama();
  parts.header.erase(kQ);
  expect_file_fails(parts.file(), Code::kCorrupt, {"belong to no tensor"});
  // Two tensors over the same bytes, with no hole: one grows into the next.
  parts = Parts{{{"a", {{"dtype", "U8"}, {"shape", {6}}, {"data_offsets", {0, 6}}}},
                 {"b", {{"dtype", "U8"}, {"shape", {6}}, {"data_offsets", {4, 10}}}}},
                "0123456789"};
  write(root_ + "/x.safetensors", parts.file());
  Status status = SafetensorsFile::open(root_ + "/x.safetensors").status();
  EXPECT_EQ(status.code(), Code::kCorrupt);
  EXPECT_THAT(status.message(), AllOf(HasSubstr("'b'"), HasSubstr("overlaps")));
}

TEST_F(CheckpointTest, MissingAndMisshapenTensors) {
  // Renamed, so that the file itself stays whole: one tensor is missing and one is unknown.
  Parts parts = llama();
  parts.header["renamed"] = parts.header[kQ];
  parts.header.erase(kQ);
  expect_file_fails(parts.file(), Code::kNotFound, {kQ, "48"});
  parts = llama();
  parts.header["renamed"] = parts.header["lm_head.weight"];
  parts.header.erase("lm_head.weight");
  expect_file_fails(parts.file(), Code::kNotFound, {"lm_head.weight", "tie_word_embeddings"});
  parts = llama();
  parts.header[kQ]["shape"] = {32, 96};
  expect_file_fails(parts.file(), Code::kMismatch, {kQ, "[32, 96]", "[96, 32]"});
  parts = llama();
  parts.header[kQ]["dtype"] = "I16";
  expect_file_fails(parts.file(), Code::kUnsupported, {kQ, "I16"});

  std::string folder = copy("llama");
  json config = json::parse(slurp(folder + "/config.json"));
  config["num_hidden_layers"] = 6;
  write(folder + "/config.json", config.dump());
  expect_fails(folder, Code::kNotFound, {"model.layers.5.input_layernorm.weight", "8 more"});
  config["num_hidden_layers"] = 4;
  write(folder + "/config.json", config.dump());
  expect_fails(folder, Code::kUnsupported, {"model.layers.4.", "4 layers"});
}

Parts with_extra(Parts parts, const std::string& name, const std::string& bytes, const char* dtype,
                 std::vector<size_t> shape) {
  size_t at = parts.data.size();
  parts.header[name] = {{"dtype", dtype}, {"shape", shape}, {"data_offsets", {at, at + bytes.size()}}};
  parts.data += bytes;
  return parts;
}

TEST_F(CheckpointTest, ExtraTensors) {
  std::string folder = copy("llama");
  write(weights(folder),
        with_extra(llama(), "model.layers.0.self_attn.rotary_emb.inv_freq", std::string(24, 'x'), "F32", {6})
            .file());
  Result<Checkpoint> c = Checkpoint::open(folder);
  ASSERT_TRUE(c.ok()) << c.status().message();
  EXPECT_FALSE(c->has("model.layers.0.self_attn.rotary_emb.inv_freq"));
  // Without effect, and so without effect on the identity.
  EXPECT_EQ(c->identity()->weights, Checkpoint::open(kModels + "llama/receiver")->identity()->weights);

  std::string bias(96 * 2, '\0');
  expect_file_fails(with_extra(llama(), "model.layers.0.self_attn.q_proj.bias", bias, "BF16", {96}).file(),
                    Code::kUnsupported, {"q_proj.bias", "llama"});
  expect_file_fails(with_extra(llama(), "model.layers.0.mlp.experts", bias, "BF16", {96}).file(),
                    Code::kUnsupported, {"mlp.experts"});
}

TEST_F(CheckpointTest, TiedHeadInTheFile) {
  std::string folder = copy("llama3");
  Parts parts = Parts::of(slurp(weights(folder)));
  auto offsets = parts.header["model.embed_tokens.weight"]["data_offsets"];
  std::string head = parts.data.substr(offsets[0], offsets[1].get<size_t>() - offsets[0].get<size_t>());
  write(weights(folder), with_extra(parts, "lm_head.weight", head, "BF16", {256, 48}).file());
  Result<Checkpoint> c = Checkpoint::open(folder);
  ASSERT_TRUE(c.ok()) << c.status().message();
  EXPECT_FALSE(c->has("lm_head.weight"));
  // In another type: equal to what the narrower one can say.
  std::string wide(head.size() * 2, '\0'), narrow = head;
  for (size_t i = 0; i < head.size() / 2; ++i) {
    uint16_t bits;
    std::memcpy(&bits, head.data() + 2 * i, 2);
    // A little less than half a step of bf16 more: what training in f32 and saving in bf16 leaves.
    const float value = bf16_to_f32(bits) * 1.0015f;
    std::memcpy(wide.data() + 4 * i, &value, 4);
  }
  write(weights(folder), with_extra(parts, "lm_head.weight", wide, "F32", {256, 48}).file());
  Result<Checkpoint> other_type = Checkpoint::open(folder);
  ASSERT_TRUE(other_type.ok()) << other_type.status().message();
  EXPECT_EQ(other_type->identity()->fingerprint, c->identity()->fingerprint);
  const float off = 3;
  std::memcpy(wide.data() + 400, &off, 4);
  write(weights(folder), with_extra(parts, "lm_head.weight", wide, "F32", {256, 48}).file());
  expect_fails(folder, Code::kMismatch, {"lm_head.weight", "tie_word_embeddings"});
  head[100] ^= 1;
  write(weights(folder), with_extra(parts, "lm_head.weight", head, "BF16", {256, 48}).file());
  expect_fails(folder, Code::kMismatch, {"lm_head.weight", "tie_word_embeddings"});
}

TEST_F(CheckpointTest, TiedHeadInTheIndexOnly) {
  std::string folder = copy("llama3"), index = folder + "/model.safetensors.index.json";
  const std::string file = "model-00001-of-00002.safetensors";
  fs::rename(weights(folder), folder + "/" + file);
  json map;
  for (const TensorSpec& spec : required_tensors(*ModelConfig::read(folder))) map[spec.name] = file;
  // Named for a file that lacks it, and for one that is not there at all.
  for (const char* where : {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}) {
    map["lm_head.weight"] = where;
    write(index, json{{"weight_map", map}}.dump());
    Result<Checkpoint> c = Checkpoint::open(folder);
    ASSERT_TRUE(c.ok()) << c.status().message();
    EXPECT_EQ(c->identity()->weights, Checkpoint::open(kModels + "llama3/receiver")->identity()->weights);
  }
  // Without ties the head is missed.
  json config = json::parse(slurp(folder + "/config.json"));
  config["tie_word_embeddings"] = false;
  write(folder + "/config.json", config.dump());
  expect_fails(folder, Code::kNotFound, {"model-00002-of-00002.safetensors"});
}

TEST_F(CheckpointTest, SnapshotsOfTheHubsCache) {
  const std::string root = root_ + "/models--some-org--some-model", first = root + "/snapshots/0a1b2c";
  fs::create_directories(root + "/blobs");
  fs::create_directories(root + "/snapshots");
  fs::rename(copy("llama"), first);
  const std::string fingerprint = Checkpoint::open(kModels + "llama/receiver")->identity()->fingerprint;
  for (const std::string& given : {root, root + "/", first}) {
    Result<Checkpoint> c = Checkpoint::open(given);
    ASSERT_TRUE(c.ok()) << c.status().message();
    EXPECT_EQ(c->identity()->fingerprint, fingerprint);
    EXPECT_EQ(c->name(), "some-model");
    EXPECT_EQ(fs::weakly_canonical(c->folder()), fs::weakly_canonical(first));
  }
  // Of several, the one that refs/main names.
  fs::rename(copy("qwen2"), root + "/snapshots/3d4e5f");
  expect_fails(root, Code::kUnsupported, {"2 snapshots", "snapshots/0a1b2c", "snapshots/3d4e5f"});
  fs::create_directories(root + "/refs");
  write(root + "/refs/main", "3d4e5f\n");
  Result<Checkpoint> c = Checkpoint::open(root);
  ASSERT_TRUE(c.ok()) << c.status().message();
  EXPECT_EQ(c->config().family, Family::kQwen2);
  write(root + "/refs/main", "../../../elsewhere");
  expect_fails(root, Code::kUnsupported, {"2 snapshots"});
  expect_fails(root_, Code::kUnsupported, {"cache of the Hugging Face Hub", "models--some-org--some-model"});
  fs::remove_all(root + "/snapshots");
  fs::create_directories(root + "/snapshots");
  expect_fails(root, Code::kNotFound, {"without any snapshot", "some-org/some-model"});
}

TEST_F(CheckpointTest, SaysWhatAFolderIsThatIsNone) {
  ::setenv("HF_HUB_CACHE", (root_ + "/hub").c_str(), 1);
  expect_fails("meta-llama/Llama-3.1-8B", Code::kNotFound,
               {"looks like the name of a model on the Hugging Face Hub", "nothing is downloaded",
                "hf download meta-llama/Llama-3.1-8B"});
  fs::create_directories(root_ + "/hub/models--meta-llama--Llama-3.1-8B/snapshots");
  expect_fails("meta-llama/Llama-3.1-8B", Code::kNotFound,
               {"has been downloaded", root_ + "/hub/models--meta-llama--Llama-3.1-8B"});
  ::unsetenv("HF_HUB_CACHE");
  for (const char* path : {"/a/b", "./a/b", "a/b/c", "~/a", "a b/c"}) {
    Status status = Checkpoint::open(path).status();
    EXPECT_EQ(status.code(), Code::kNotFound);
    EXPECT_THAT(status.message(), ::testing::Not(HasSubstr("Hub"))) << path;
  }
  expect_fails("", Code::kNotFound, {"empty"});

  write(root_ + "/model-Q4_K_M.gguf", "GGUF....");
  write(root_ + "/renamed.bin", "GGUF....");
  write(root_ + "/notes.txt", "x");
  expect_fails(root_ + "/model-Q4_K_M.gguf", Code::kUnsupported, {"GGUF", "Hugging Face folder"});
  expect_fails(root_ + "/renamed.bin", Code::kUnsupported, {"GGUF"});
  expect_fails(root_ + "/notes.txt", Code::kUnsupported, {"is a file"});
  expect_fails(root_, Code::kUnsupported, {"model-Q4_K_M.gguf", "GGUF"});
  std::string folder = copy("llama");
  for (const char* name : {"model.safetensors", "config.json"})
    expect_fails(folder + "/" + name, Code::kUnsupported, {"one file of a model", "'" + folder + "'"});

  std::string empty = root_ + "/empty";
  fs::create_directories(empty + "/final");
  expect_fails(empty, Code::kNotFound, {"has no config.json", "Hugging Face folder"});
  write(empty + "/final/config.json", "{}");
  expect_fails(empty, Code::kNotFound, {"there is one in", "empty/final'"});
  write(empty + "/params.json", "{}");
  expect_fails(empty, Code::kUnsupported, {"params.json"});

  for (const char* name : {"config.json", "model.safetensors", "tokenizer.json"}) {
    std::string pointers = copy("llama");
    write(pointers + "/" + name,
          "version https://git-lfs.github.com/spec/v1\noid "
          "sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2"
          "ca24d17e2393\nsize 12345\n");
    expect_fails(pointers, Code::kCorrupt, {std::string("/") + name, "Git LFS", "git lfs pull"});
  }
}

TEST_F(CheckpointTest, FindsNotANumberAnywhere) {
  struct Bad {
    const char* model;
    std::vector<uint8_t> bytes;
    const char* shown;
  };
  const std::vector<Bad> bads{{"llama", {0xc0, 0x7f}, "nan"},        {"llama", {0x80, 0xff}, "-inf"},
                              {"qwen3", {0x00, 0x7c}, "inf"},        {"qwen3", {0x01, 0xfe}, "nan"},
                              {"llama2", {0, 0, 0x80, 0x7f}, "inf"}, {"llama2", {1, 0, 0x80, 0xff}, "nan"}};
  for (const Bad& bad : bads) {
    std::string folder = copy(bad.model);
    Parts parts = Parts::of(slurp(weights(folder)));
    for (const char* name :
         {"model.embed_tokens.weight", "model.layers.2.mlp.down_proj.weight", "model.norm.weight"}) {
      int64_t elements = 1;
      for (const json& n : parts.header[name]["shape"]) elements *= n.get<int64_t>();
      for (int64_t index : {int64_t{0}, elements / 3, elements - 1}) {
        Parts changed = parts;
        size_t at = parts.header[name]["data_offsets"][0].get<size_t>() + index * bad.bytes.size();
        for (size_t i = 0; i < bad.bytes.size(); ++i) changed.data[at + i] = static_cast<char>(bad.bytes[i]);
        write(weights(folder), changed.file());
        Result<Checkpoint> c = Checkpoint::open(folder);
        ASSERT_TRUE(c.ok()) << c.status().message();
        Status status = c->check_finite();
        EXPECT_EQ(status.code(), Code::kCorrupt);
        EXPECT_THAT(status.message(), AllOf(HasSubstr(name), HasSubstr(bad.shown),
                                            HasSubstr("element " + std::to_string(index) + ",")));
      }
    }
  }
}

TEST_F(CheckpointTest, MisalignedTensorsAreCopied) {
  // A header of odd length: valid, and every tensor lies at an odd address.
  for (const char* model : {"llama", "llama2"}) {
    std::string folder = copy(model);
    Parts parts = Parts::of(slurp(weights(folder)));
    std::string header = parts.header.dump();
    while (header.size() % 4 != 1) header += ' ';
    uint64_t length = header.size();
    write(weights(folder), std::string(reinterpret_cast<const char*>(&length), 8) + header + parts.data);
    Result<Checkpoint> c = Checkpoint::open(folder);
    ASSERT_TRUE(c.ok()) << c.status().message();
    Checkpoint moved = std::move(*c);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(moved.tensor(kQ)->data.data()) % 4, 0u);
    EXPECT_TRUE(moved.check_finite().ok());
    EXPECT_EQ(moved.identity()->weights,
              Checkpoint::open(kModels + model + "/receiver")->identity()->weights);
  }
}

TEST_F(CheckpointTest, ShardsAreOneModel) {
  std::string sharded = kModels + "mistral/receiver";
  Result<Checkpoint> c = Checkpoint::open(sharded);
  ASSERT_TRUE(c.ok()) << c.status().message();
  // The same tensors in one file, in another order.
  std::string folder = copy("mistral");
  std::vector<NamedTensor> tensors;
  std::vector<TensorSpec> specs = required_tensors(c->config());
  for (auto spec = specs.rbegin(); spec != specs.rend(); ++spec) {
    TensorView t = *c->tensor(spec->name);
    tensors.push_back({spec->name, t.dtype, t.shape, t.data});
  }
  ASSERT_TRUE(write_safetensors(weights(folder), tensors).ok());
  Result<Checkpoint> single = Checkpoint::open(folder);
  ASSERT_TRUE(single.ok()) << single.status().message();
  EXPECT_EQ(single->identity()->fingerprint, c->identity()->fingerprint);
}

TEST_F(CheckpointTest, DamagedIndex) {
  std::string folder = copy("mistral");
  std::string path = folder + "/model.safetensors.index.json";
  const json good = json::parse(slurp(path));
  const std::string norm = "model.norm.weight";
  write(path, "");
  expect_fails(folder, Code::kCorrupt, {"index.json"});
  write(path, good.dump().substr(0, 300));
  expect_fails(folder, Code::kCorrupt, {"index.json"});
  write(path, "{}");
  expect_fails(folder, Code::kCorrupt, {"index.json", "weight_map"});
  for (const json& name :
       {json("../receiver/x"), json("/etc/passwd"), json(""), json(".."), json(3), json(nullptr)}) {
    json bad = good;
    bad["weight_map"][norm] = name;
    write(path, bad.dump());
    expect_fails(folder, Code::kCorrupt, {"index.json", norm});
  }
  json bad = good;
  bad["weight_map"][norm] = "model-00009-of-00003.safetensors";
  write(path, bad.dump());
  expect_fails(folder, Code::kNotFound, {"model-00009-of-00003.safetensors", "index.json"});
  bad = good;
  for (auto& [name, file] : bad["weight_map"].items()) {
    if (file != good["weight_map"][norm]) {
      bad["weight_map"][norm] = file;
      break;
    }
  }
  write(path, bad.dump());
  expect_fails(folder, Code::kCorrupt, {norm, "index.json"});
  write(path, good.dump());
  fs::remove(folder + "/model-00002-of-00003.safetensors");
  expect_fails(folder, Code::kNotFound, {"model-00002-of-00003.safetensors"});
  fs::copy(folder + "/model-00001-of-00003.safetensors", folder + "/model-00002-of-00003.safetensors");
  expect_fails(folder, Code::kCorrupt, {"model-00002-of-00003.safetensors"});
}

TEST_F(CheckpointTest, IdentityCoversWeightsConfigAndTokenizer) {
  std::string folder = copy("llama");
  ModelIdentity first = *Checkpoint::open(folder)->identity();
  EXPECT_EQ(first.name, "model");
  EXPECT_EQ(first.fingerprint.size(), 64u);
  EXPECT_EQ(first.tokenizer, "");
  EXPECT_EQ(*Checkpoint::open(folder)->identity(), first);
  // The folder's name is for people only.
  EXPECT_EQ(Checkpoint::open(copy("llama", "elsewhere"))->identity()->fingerprint, first.fingerprint);

  Parts parts = llama();
  parts.data[parts.header[kQ]["data_offsets"][0].get<size_t>()] ^= 1;  // one bit of one weight
  write(weights(folder), parts.file());
  ModelIdentity flipped = *Checkpoint::open(folder)->identity();
  EXPECT_NE(flipped.weights, first.weights);
  EXPECT_EQ(flipped.config, first.config);
  EXPECT_NE(flipped.fingerprint, first.fingerprint);

  folder = copy("llama");
  write(folder + "/tokenizer.json", "{\"a\": 1}");
  ModelIdentity tokenizer = *Checkpoint::open(folder)->identity();
  EXPECT_EQ(tokenizer.weights, first.weights);
  EXPECT_EQ(tokenizer.tokenizer, sha256_hex(std::string_view("{\"a\": 1}")));
  EXPECT_NE(tokenizer.fingerprint, first.fingerprint);

  folder = copy("llama");
  json config = json::parse(slurp(folder + "/config.json"));
  config["rope_parameters"]["rope_theta"] = 10001;
  write(folder + "/config.json", config.dump());
  ModelIdentity rope = *Checkpoint::open(folder)->identity();
  EXPECT_EQ(rope.weights, first.weights);
  EXPECT_NE(rope.config, first.config);
  EXPECT_NE(rope.fingerprint, first.fingerprint);

  // Two tensors of one shape with their names exchanged: the same bytes, another model.
  parts = llama();
  std::swap(parts.header["model.layers.1.mlp.up_proj.weight"],
            parts.header["model.layers.1.mlp.gate_proj.weight"]);
  folder = copy("llama");
  write(weights(folder), parts.file());
  EXPECT_NE(Checkpoint::open(folder)->identity()->weights, first.weights);
}

TEST_F(CheckpointTest, RandomWeights) {
  ModelConfig config = *ModelConfig::read(kModels + "qwen3/receiver");
  Result<Checkpoint> a = Checkpoint::random(config, 7), b = Checkpoint::random(config, 7),
                     other = Checkpoint::random(config, 8);
  ASSERT_TRUE(a.ok() && b.ok() && other.ok());
  EXPECT_TRUE(a->check_finite().ok());
  EXPECT_EQ(a->identity()->fingerprint, b->identity()->fingerprint);
  EXPECT_NE(a->identity()->fingerprint, other->identity()->fingerprint);
  EXPECT_EQ(a->config().dtype, DType::kBF16);
  for (const TensorSpec& spec : required_tensors(config)) {
    Result<TensorView> t = a->tensor(spec.name);
    ASSERT_TRUE(t.ok()) << t.status().message();
    EXPECT_EQ(t->shape, spec.shape);
    ASSERT_EQ(static_cast<int64_t>(t->data.size()), t->elements() * 2);
    const auto* p = reinterpret_cast<const uint16_t*>(t->data.data());
    double sum = 0, squares = 0, n = static_cast<double>(t->elements());
    for (int64_t i = 0; i < t->elements(); ++i) {
      double v = bf16_to_f32(p[i]);
      sum += v;
      squares += v * v;
    }
    if (spec.name.ends_with("norm.weight")) {
      EXPECT_EQ(sum, n) << spec.name;
    } else {
      double scale = 1 / std::sqrt(static_cast<double>(spec.shape[1]));
      EXPECT_NEAR(std::sqrt(squares / n), scale, 0.1 * scale) << spec.name;
      EXPECT_NEAR(sum / n, 0, 0.15 * scale) << spec.name;
    }
  }
  // Matrices differ from one another and so do their rows.
  auto gate = a->tensor("model.layers.0.mlp.gate_proj.weight")->data,
       up = a->tensor("model.layers.0.mlp.up_proj.weight")->data;
  EXPECT_NE(std::memcmp(gate.data(), up.data(), gate.size()), 0);
  EXPECT_NE(std::memcmp(gate.data(), gate.data() + 64, 64), 0);
}

TEST_F(CheckpointTest, WriterRoundTrip) {
  std::string path = root_ + "/out.safetensors";
  const std::vector<float> logits{1.5f, -2, 3};
  const std::vector<uint16_t> half{1, 2, 3, 4, 5};
  std::vector<NamedTensor> tensors{{"logits", DType::kF32, {3}, std::as_bytes(std::span(logits))},
                                   {"odd", DType::kBF16, {5, 1}, std::as_bytes(std::span(half))},
                                   {"none", DType::kF16, {0, 7}, {}},
                                   {"scalar", DType::kF32, {}, std::as_bytes(std::span(logits).first(1))}};
  ASSERT_TRUE(write_safetensors(path, tensors).ok());
  Result<SafetensorsFile> file = SafetensorsFile::open(path);
  ASSERT_TRUE(file.ok()) << file.status().message();
  ASSERT_EQ(file->entries().size(), 4u);
  for (const NamedTensor& t : tensors) {
    const SafetensorsEntry& entry = file->entries().at(t.name);
    EXPECT_EQ(entry.dtype, safetensors_dtype(t.dtype));
    EXPECT_EQ(entry.shape, t.shape);
    ASSERT_EQ(entry.data.size(), t.data.size());
    if (!t.data.empty()) {
      EXPECT_EQ(std::memcmp(entry.data.data(), t.data.data(), t.data.size()), 0);
    }
  }
  tensors[0].shape = {4};
  EXPECT_EQ(write_safetensors(path, tensors).code(), Code::kInvalidArgument);
  tensors[0].shape = {INT64_MAX, 3};
  EXPECT_EQ(write_safetensors(path, tensors).code(), Code::kInvalidArgument);
  tensors[0] = tensors[1];
  EXPECT_EQ(write_safetensors(path, tensors).code(), Code::kInvalidArgument);
  EXPECT_TRUE(SafetensorsFile::open(path).ok());  // failures left the old file
  EXPECT_EQ(write_safetensors(root_ + "/no/such/folder/x", {}).code(), Code::kNotFound);
}

}  // namespace
}  // namespace ds
