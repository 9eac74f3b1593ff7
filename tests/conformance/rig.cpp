#include "tests/conformance/rig.h"

#include <cmath>
#include <limits>
#include <map>

#include "tests/unit/rows_dependent.h"

namespace ds::conformance {

Result<std::unique_ptr<Backend>> cpu() { return make_cpu_backend({}); }

namespace {

Result<std::unique_ptr<Backend>> cpu_one_thread() { return make_cpu_backend({.threads = 1}); }
Result<std::unique_ptr<Backend>> cpu_three_threads() { return make_cpu_backend({.threads = 3}); }

}  // namespace

Result<std::unique_ptr<Backend>> cuda() {
  return make_cuda_backend({.cache = testing::TempDir() + "ds-test-algorithms"});  // searched for once
}

bool simulated() { return kProgram.cuda_module != nullptr && *kProgram.cuda_module != '\0'; }

namespace {

bool limited() { return *kProgram.max_isa != '\0'; }

/// What this program tests. Before anything asks oneDNN or opens the module: both read the environment once.
std::vector<Setup> setups() {
  if (kProgram.cuda_module != nullptr) {
    if (simulated()) setenv("DROIDSPEAK_CUDA_MODULE", kProgram.cuda_module, 1);
    return {{"cuda_f32", cuda, DType::kF32, 4e-6, false, simulated()},
            {"cuda_bf16", cuda, DType::kBF16, 1e-2, false, simulated()}};
  }
  if (limited()) {  // as on a machine that has no more
    setenv("ONEDNN_MAX_CPU_ISA", kProgram.max_isa, 1);
    return {{"cpu_f32", cpu, DType::kF32, 2e-6}, {"cpu3_bf16", cpu_three_threads, DType::kBF16, 6e-3}};
  }
  if (kProgram.blocks) {  // as on a machine with AMX, where oneDNN's rows depend on their number
    static const cpu::RowsDependent amx({.implementation = "brg:avx512_core_amx_bf16", .by_number = true});
    static const cpu::LibraryScope scope(amx);
    return {{"cpu_bf16", cpu, DType::kBF16, 6e-3, true, true}};
  }
  return {{"cpu_f32", cpu, DType::kF32, 2e-6},
          {"cpu_bf16", cpu, DType::kBF16, 6e-3},
          {"cpu1_bf16", cpu_one_thread, DType::kBF16, 6e-3},
          {"cpu3_f32", cpu_three_threads, DType::kF32, 2e-6}};
}

}  // namespace

void PrintTo(const Setup& setup, std::ostream* out) { *out << setup.name; }

ModelConfig small(Family family) {
  ModelConfig c;
  c.family = family;
  c.layers = 2;
  c.d_model = 96;
  c.ff = 160;
  c.heads = 4;
  c.kv_heads = 2;
  c.head_dim = 24;
  c.vocab = 301;
  c.max_positions = 65536;
  c.rms_norm_eps = 1e-5;
  c.qkv_bias = family == Family::kQwen2;
  c.qk_norm = family == Family::kQwen3;
  return c;
}

ModelConfig shaped(Family family, int64_t d, int64_t ff, int64_t heads, int64_t kv_heads, int64_t head_dim) {
  ModelConfig c = small(family);
  c.d_model = d;
  c.ff = ff;
  c.heads = heads;
  c.kv_heads = kv_heads;
  c.head_dim = head_dim;
  return c;
}

std::vector<std::pair<std::string, ModelConfig>> models(bool some) {
  std::vector<std::pair<std::string, ModelConfig>> all = {
      {"llama", small(Family::kLlama)},
      {"llama_no_gqa", shaped(Family::kLlama, 64, 128, 4, 4, 16)},
      {"llama_wide_heads", shaped(Family::kLlama, 72, 100, 8, 2, 64)},
      {"mistral_head_dim_128", shaped(Family::kMistral, 128, 200, 3, 1, 128)},
      {"mistral_head_dim_256", shaped(Family::kMistral, 128, 64, 2, 2, 256)},
      {"qwen2_ratio_7", shaped(Family::kQwen2, 112, 150, 14, 2, 16)},
      {"qwen2_ratio_8", shaped(Family::kQwen2, 64, 130, 8, 1, 80)},
      {"qwen3", shaped(Family::kQwen3, 80, 120, 4, 2, 32)},
      {"qwen3_ratio_80", shaped(Family::kQwen3, 46, 58, 80, 1, 6)},
      {"llama_biases_yarn", shaped(Family::kLlama, 70, 102, 4, 2, 18)},
  };
  all[0].second.rope = {.type = RopeConfig::Type::kLlama3,
                        .theta = 500000,
                        .factor = 8,
                        .low_freq_factor = 1,
                        .high_freq_factor = 4,
                        .original_max_positions = 64};
  all[1].second.rope = {.type = RopeConfig::Type::kLinear, .theta = 10000, .factor = 4};
  ModelConfig& biased = all.back().second;
  biased.qkv_bias = biased.o_bias = biased.mlp_bias = true;
  biased.rope = {.type = RopeConfig::Type::kYarn,
                 .theta = 10000,
                 .factor = 4,
                 .original_max_positions = 64,
                 .attention_factor = 1.25};
  all[2].second.tied_embeddings = true;
  all[5].second.tied_embeddings = true;
  if (some)
    std::erase_if(all, [](const auto& m) {
      return m.first != "llama" && m.first != "qwen2_ratio_7" && m.first != "qwen3";
    });
  return all;
}

const Checkpoint& checkpoint_of(const ModelConfig& config, DType stored, uint64_t seed) {
  static std::map<std::string, Checkpoint> made;
  std::string key = fmt::format("{} {} {}", config.canonical(), dtype_name(stored), seed);
  auto at = made.find(key);
  if (at == made.end()) at = made.emplace(key, take(make_checkpoint(config, stored, seed))).first;
  return at->second;
}

double difference(const std::vector<double>& found, const std::vector<double>& expected) {
  EXPECT_EQ(found.size(), expected.size());
  double worst = 0, squares = 0, scale = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    if (!std::isfinite(found[i])) return std::numeric_limits<double>::infinity();
    double off = std::abs(found[i] - expected[i]);
    worst = std::max(worst, off);
    squares += off * off;
    scale += expected[i] * expected[i];
  }
  double count = static_cast<double>(expected.size());
  return std::max(std::sqrt(squares / count), worst / 10) / std::sqrt(scale / count);
}

testing::AssertionResult Rig::same_rows(const std::vector<std::byte>& found,
                                        const std::vector<std::byte>& expected) const {
  if (found == expected) return testing::AssertionSuccess();
  if (exact_rows || found.size() != expected.size()) return testing::AssertionFailure() << "bits differ";
  const auto count = static_cast<int64_t>(found.size()) / dtype_size(dtype);
  const double off =
      difference(to_doubles(found.data(), count, dtype), to_doubles(expected.data(), count, dtype));
  if (off < tolerance) return testing::AssertionSuccess();
  return testing::AssertionFailure() << "off by " << off << ", allowed " << tolerance;
}

void Conformance::SetUp() {
  if (kProgram.cuda_module == nullptr || simulated()) return;
  auto backend = GetParam().make();
  if (backend.status().code() == Code::kUnavailable) GTEST_SKIP() << backend.status().message();
}

namespace {

INSTANTIATE_TEST_SUITE_P(Backends, Conformance, testing::ValuesIn(setups()),
                         [](const auto& info) { return std::string(info.param.name); });

/// For programs that limit the instruction set, and for no other.
class LimitedInstructionSet : public testing::TestWithParam<std::string> {};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(LimitedInstructionSet);
INSTANTIATE_TEST_SUITE_P(Limits, LimitedInstructionSet,
                         testing::ValuesIn(std::vector<std::string>(limited() ? 1 : 0, kProgram.max_isa)),
                         [](const auto& info) { return info.param; });

TEST_P(LimitedInstructionSet, IsTheMost) {
  std::string description = take(cpu())->description();
  auto has = [&](const char* what) { return description.find(what) != std::string::npos; };
  EXPECT_FALSE(has("with bf16")) << description;
  EXPECT_TRUE(GetParam() == "AVX512_CORE" || !has("AVX-512")) << description;
  EXPECT_TRUE(GetParam() != "SSE41" || has("no vector extension")) << description;
}

/// For the program whose products are made of blocks of rows, and for no other.
class BlocksOfRows : public testing::TestWithParam<bool> {};
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(BlocksOfRows);
INSTANTIATE_TEST_SUITE_P(Blocks, BlocksOfRows,
                         testing::ValuesIn(std::vector<bool>(kProgram.blocks ? 1 : 0, true)));

TEST_P(BlocksOfRows, AreWhatProductsAreMadeOf) {
  const std::string description = take(cpu())->description();
  if (description.find("with bf16") == std::string::npos) GTEST_SKIP() << description;
  EXPECT_NE(description.find("in blocks of 32 and 128 rows"), std::string::npos) << description;
}

}  // namespace
}  // namespace ds::conformance
