// What every backend must do, on every element type it computes in. A backend joins by one line in setups().
//
// Rows are independent: on the CPU a row's K, V and output are the same to the bit however the rows are split
// into calls. That is what makes "S = R" exact there, so it is checked, not assumed. A device's libraries
// take other ways for other numbers of rows: there the same holds within rounding (Setup::exact_rows).
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <ostream>
#include <thread>

#include "runtime/backends/backends.h"
#include "tests/conformance/program.h"
#include "tests/conformance/reference.h"
#include "tests/unit/rows_dependent.h"

namespace ds::conformance {
namespace {

using testing::Values;

struct Setup {
  const char* name;
  Result<std::unique_ptr<Backend>> (*make)();
  DType dtype;
  double tolerance;  // of a layer's output: see difference()
  bool exact_rows = true;
  bool quick = false;  // the longest contexts are left out, and speeds: of a simulated device, or done before
  bool few_models() const { return quick && dtype == DType::kF32; }  // its slowest kernels
};

Result<std::unique_ptr<Backend>> cpu() { return make_cpu_backend({}); }
Result<std::unique_ptr<Backend>> cpu_one_thread() { return make_cpu_backend({.threads = 1}); }
Result<std::unique_ptr<Backend>> cpu_three_threads() { return make_cpu_backend({.threads = 3}); }
/// Without a device all tests are skipped.
Result<std::unique_ptr<Backend>> cuda() {
  return make_cuda_backend({.cache = testing::TempDir() + "ds-test-algorithms"});  // searched for once
}

bool simulated() { return kProgram.cuda_module != nullptr && *kProgram.cuda_module != '\0'; }
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
void PrintTo(const Setup& setup, std::ostream* out) { *out << setup.name; }

#define ASSERT_OK(expr)                                   \
  do {                                                    \
    const Status status_ = ::ds::detail::status_of(expr); \
    ASSERT_TRUE(status_.ok()) << status_.message();       \
  } while (0)

template <typename T>
T take(Result<T> result) {
  EXPECT_TRUE(result.ok()) << result.status().message();
  if (!result.ok()) std::abort();  // nothing after it means anything
  return std::move(result).value();
}

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

/// GQA ratios 1, 2, 3, 4, 7, 8 and 80; head_dim != d / heads, not a multiple of 16, and up to 256; sizes that
/// no vector divides. `some`: three of them, one of each way that kernels go.
std::vector<std::pair<std::string, ModelConfig>> models(bool some = false) {
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

/// Made once for all tests: they only read it.
const Checkpoint& checkpoint_of(const ModelConfig& config, DType stored, uint64_t seed) {
  static std::map<std::string, Checkpoint> made;
  std::string key = fmt::format("{} {} {}", config.canonical(), dtype_name(stored), seed);
  auto at = made.find(key);
  if (at == made.end()) at = made.emplace(key, take(make_checkpoint(config, stored, seed))).first;
  return at->second;
}

/// A model on a backend, with one compute stream and room for `capacity` tokens in one layer's cache.
struct Rig {
  Rig(const Setup& setup, const ModelConfig& config, int64_t capacity_, DType stored = DType::kBF16,
      uint64_t seed = 1)
      : dtype(setup.dtype),
        capacity(capacity_),
        checkpoint(checkpoint_of(config, stored, seed)),
        reference(take(Reference::load(checkpoint, dtype))),
        backend(take(setup.make())),
        model(take(backend->load(checkpoint, {.dtype = dtype}))),
        workspace(take(model->make_workspace(capacity_))),
        stream(take(backend->make_stream(StreamKind::kCompute, 4096))),
        hidden(take(backend->allocate(capacity_ * config.d_model * dtype_size(dtype)))),
        cache(take(backend->allocate(capacity_ * config.kv_row() * dtype_size(dtype)))),
        tolerance(setup.tolerance),
        exact_rows(setup.exact_rows) {}

  const ModelConfig& config() const { return model->config(); }
  int64_t hidden_row() const { return config().d_model * dtype_size(dtype); }
  int64_t cache_row() const { return config().kv_row() * dtype_size(dtype); }
  std::byte* hidden_at(int64_t row) const { return hidden->data() + row * hidden_row(); }

  // Device memory is none of the host's: what it holds is copied.
  std::vector<std::byte> read(const std::byte* from, int64_t bytes) const {
    std::vector<std::byte> data(static_cast<size_t>(bytes));
    stream->copy(data.data(), from, bytes);
    EXPECT_TRUE(stream->synchronize().ok());
    return data;
  }
  void write(std::byte* to, const std::vector<std::byte>& data) const {
    stream->copy(to, data.data(), static_cast<int64_t>(data.size()));
    EXPECT_TRUE(stream->synchronize().ok());
  }
  void write(std::byte* to, const std::vector<double>& values) const {
    std::vector<std::byte> data(values.size() * static_cast<size_t>(dtype_size(dtype)));
    from_doubles(values, dtype, data.data());
    write(to, data);
  }
  std::vector<double> read_values(const std::byte* from, int64_t elements) const {
    return to_doubles(read(from, elements * dtype_size(dtype)).data(), elements, dtype);
  }

  void fill(DeviceMemory& memory, int64_t elements, uint64_t seed) const {
    Random random(seed);
    std::vector<double> values(static_cast<size_t>(elements));
    for (double& v : values) v = random.normal();
    write(memory.data(), values);
  }
  void fill_hidden(uint64_t seed) const { fill(*hidden, capacity * config().d_model, seed); }
  void fill_cache(uint64_t seed) const { fill(*cache, capacity * config().kv_row(), seed); }
  std::vector<std::byte> hidden_bytes() const { return read(hidden->data(), hidden->size()); }
  std::vector<std::byte> cache_bytes() const { return read(cache->data(), cache->size()); }
  std::vector<double> hidden_values() const {
    return read_values(hidden->data(), capacity * config().d_model);
  }
  std::vector<double> cache_values() const {
    return read_values(cache->data(), capacity * config().kv_row());
  }

  /// Whether the rows in `found` are those in `expected`: to the bit, or within rounding where the backend
  /// promises no more.
  testing::AssertionResult same_rows(const std::vector<std::byte>& found,
                                     const std::vector<std::byte>& expected) const;

  /// Rows of `hidden` are those of the positions from 0 on.
  void enqueue(int64_t layer, int64_t position, int64_t rows, int64_t query_rows) const {
    model->layer(*stream, *workspace,
                 {.layer = layer,
                  .hidden = hidden_at(position),
                  .cache = cache->data(),
                  .position = position,
                  .rows = rows,
                  .query_rows = query_rows});
  }

  DType dtype;
  int64_t capacity;
  const Checkpoint& checkpoint;
  Reference reference;
  std::unique_ptr<Backend> backend;
  std::unique_ptr<DeviceModel> model;
  std::unique_ptr<Workspace> workspace;
  std::unique_ptr<CommandStream> stream;
  std::unique_ptr<DeviceMemory> hidden, cache;
  double tolerance;
  bool exact_rows;
};

/// Difference of the two, as a root mean square relative to that of `expected`; a single element that is off
/// by ten times as much counts too.
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

class Conformance : public testing::TestWithParam<Setup> {
 protected:
  void SetUp() override {
    if (kProgram.cuda_module == nullptr || simulated()) return;
    auto backend = GetParam().make();
    if (backend.status().code() == Code::kUnavailable) GTEST_SKIP() << backend.status().message();
  }
};
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

// ---- kernels against the reference

TEST_P(Conformance, LayerEqualsReference) {
  struct Span {
    int64_t position, rows, query_rows;
  };
  const Span spans[] = {{0, 1, 1},  {0, 5, 5},    {0, 67, 67}, {3, 130, 1},
                        {61, 7, 7}, {64, 65, 64}, {70, 9, 0},  {199, 1, 1}};
  for (const auto& [name, config] : models(GetParam().few_models())) {
    SCOPED_TRACE(name);
    Rig rig(GetParam(), config, 200);
    for (const Span& s : spans) {
      SCOPED_TRACE(fmt::format("position {} rows {} queries {}", s.position, s.rows, s.query_rows));
      int64_t layer = s.rows % 2;
      rig.fill_hidden(7);
      rig.fill_cache(8);
      auto hidden_before = rig.hidden_bytes(), cache_before = rig.cache_bytes();
      auto cache = rig.cache_values();
      auto all = rig.hidden_values();
      auto first = all.begin() + s.position * config.d_model;
      std::vector<double> hidden(first, first + s.rows * config.d_model);
      rig.enqueue(layer, s.position, s.rows, s.query_rows);
      ASSERT_OK(rig.stream->synchronize());
      rig.reference.layer(layer, hidden, cache, s.position, s.rows, s.query_rows);

      auto found = rig.read_values(rig.hidden_at(s.position), s.rows * config.d_model);
      EXPECT_LT(difference(found, hidden), GetParam().tolerance);
      EXPECT_LT(difference(rig.cache_values(), cache), GetParam().tolerance);
      // Rows without a query keep their hidden states, other cache rows theirs, to the bit.
      auto untouched = static_cast<size_t>((s.position + s.rows - s.query_rows) * rig.hidden_row());
      const auto hidden_after = rig.hidden_bytes(), cache_after = rig.cache_bytes();
      EXPECT_EQ(std::memcmp(hidden_after.data(), hidden_before.data(), untouched), 0);
      auto end = static_cast<size_t>((s.position + s.rows) * rig.hidden_row());
      EXPECT_EQ(
          std::memcmp(hidden_after.data() + end, hidden_before.data() + end, hidden_before.size() - end), 0);
      auto cache_first = static_cast<size_t>(s.position * rig.cache_row());
      auto cache_end = static_cast<size_t>((s.position + s.rows) * rig.cache_row());
      EXPECT_EQ(std::memcmp(cache_after.data(), cache_before.data(), cache_first), 0);
      EXPECT_EQ(std::memcmp(cache_after.data() + cache_end, cache_before.data() + cache_end,
                            cache_before.size() - cache_end),
                0);
    }
  }
}

TEST_P(Conformance, EmbedAndLogitsEqualReference) {
  for (DType stored : {DType::kBF16, DType::kF16, DType::kF32}) {
    for (const auto& [name, config] : models(GetParam().few_models())) {
      if (stored != DType::kBF16 && name != "llama" && name != "qwen2_ratio_7") continue;
      SCOPED_TRACE(fmt::format("{} stored as {}", name, dtype_name(stored)));
      Rig rig(GetParam(), config, 8, stored);
      const int32_t ids[] = {0, static_cast<int32_t>(config.vocab - 1), 17, 17, 3};
      rig.model->embed(*rig.stream, ids, 5, rig.hidden->data());
      std::vector<float> logits(static_cast<size_t>(config.vocab));
      rig.model->logits(*rig.stream, *rig.workspace, rig.hidden_at(2), logits.data());
      ASSERT_OK(rig.stream->synchronize());
      for (int64_t i = 0; i < 5; ++i)
        EXPECT_EQ(rig.read_values(rig.hidden_at(i), config.d_model), rig.reference.embed(ids[i]));
      auto expected = rig.reference.logits(rig.reference.embed(17));
      EXPECT_LT(difference(std::vector<double>(logits.begin(), logits.end()), expected),
                GetParam().tolerance);
    }
  }
}

TEST_P(Conformance, WholeModelEqualsReference) {
  for (const auto& [name, config] : models(GetParam().few_models())) {
    SCOPED_TRACE(name);
    constexpr int64_t kTokens = 37;
    Rig rig(GetParam(), config, kTokens, DType::kF32);
    std::vector<int32_t> ids(kTokens);
    Random random(3);
    for (int32_t& id : ids) id = static_cast<int32_t>(random.below(config.vocab));
    std::vector<double> hidden;
    for (int32_t id : ids) {
      auto row = rig.reference.embed(id);
      hidden.insert(hidden.end(), row.begin(), row.end());
    }
    auto second = take(rig.backend->allocate(rig.cache->size()));
    rig.model->embed(*rig.stream, ids.data(), kTokens, rig.hidden->data());
    for (int64_t l = 0; l < config.layers; ++l) {
      rig.model->layer(*rig.stream, *rig.workspace,
                       {.layer = l,
                        .hidden = rig.hidden->data(),
                        .cache = l == 0 ? rig.cache->data() : second->data(),
                        .position = 0,
                        .rows = kTokens,
                        .query_rows = l + 1 == config.layers ? 1 : kTokens});
      std::vector<double> cache(static_cast<size_t>(kTokens * config.kv_row()));
      rig.reference.layer(l, hidden, cache, 0, kTokens, kTokens);
    }
    std::vector<float> logits(static_cast<size_t>(config.vocab));
    rig.model->logits(*rig.stream, *rig.workspace, rig.hidden_at(kTokens - 1), logits.data());
    ASSERT_OK(rig.stream->synchronize());
    std::vector<double> last(hidden.end() - config.d_model, hidden.end());
    EXPECT_LT(difference(std::vector<double>(logits.begin(), logits.end()), rig.reference.logits(last)),
              3 * GetParam().tolerance);
  }
}

// ---- rows are independent, to the bit

TEST_P(Conformance, RowsDoNotDependOnHowTheyAreSplit) {
  // Lengths on both sides of what is processed at once, and of a tile of keys.
  for (int64_t length : {int64_t{1}, int64_t{63}, int64_t{200}, int64_t{1100}}) {
    for (const auto& [name, config] : models(GetParam().quick)) {
      if (length > 200 && ((name != "llama" && name != "qwen2_ratio_7") || GetParam().quick)) continue;
      SCOPED_TRACE(fmt::format("{} length {}", name, length));
      Rig rig(GetParam(), config, length);
      rig.fill_hidden(5);
      rig.enqueue(1, 0, length, length);
      ASSERT_OK(rig.stream->synchronize());
      auto hidden = rig.hidden_bytes(), cache = rig.cache_bytes();
      std::vector<std::vector<int64_t>> splits = {{length / 2, length - length / 2}, {}, {}};
      for (int64_t at = 0, step = 1; at < length; at += step, step = step * 2 + 1)
        splits[1].push_back(std::min(step, length - at));
      if (length <= 200) splits[2].assign(static_cast<size_t>(length), 1);  // as decoding does
      for (const auto& split : splits) {
        if (split.empty()) continue;
        rig.write(rig.cache->data(), std::vector<std::byte>(cache.size()));
        rig.fill_hidden(5);
        int64_t at = 0;
        for (int64_t rows : split) {
          if (rows > 0) rig.enqueue(1, at, rows, rows);
          at += rows;
        }
        ASSERT_OK(rig.stream->synchronize());
        EXPECT_TRUE(rig.same_rows(rig.cache_bytes(), cache))
            << "cache, split " << fmt::format("{}", fmt::join(split, ","));
        EXPECT_TRUE(rig.same_rows(rig.hidden_bytes(), hidden))
            << "hidden, split " << fmt::format("{}", fmt::join(split, ","));
      }
    }
  }
}

TEST_P(Conformance, QueryRowsDoNotDependOnTheirNumber) {
  for (const auto& [name, config] : models(GetParam().few_models())) {
    SCOPED_TRACE(name);
    constexpr int64_t kRows = 150;
    Rig rig(GetParam(), config, kRows);
    rig.fill_hidden(5);
    rig.enqueue(0, 0, kRows, kRows);
    ASSERT_OK(rig.stream->synchronize());
    auto hidden = rig.hidden_bytes(), cache = rig.cache_bytes();
    for (int64_t queries : {0, 1, 2, 13, 64, 149}) {
      rig.fill_hidden(5);
      rig.enqueue(0, 0, kRows, queries);
      ASSERT_OK(rig.stream->synchronize());
      EXPECT_TRUE(rig.same_rows(rig.cache_bytes(), cache)) << queries;
      const int64_t first = (kRows - queries) * rig.hidden_row();
      EXPECT_TRUE(rig.same_rows(rig.read(rig.hidden->data() + first, queries * rig.hidden_row()),
                                {hidden.begin() + first, hidden.end()}))
          << queries;
    }
  }
}

TEST_P(Conformance, RowsOfALargerModelDoNotDependOnHowTheyAreSplit) {
  // Products as deep and wide as those of real models, where a library could begin to split sums.
  ModelConfig config = shaped(Family::kLlama, 1024, 2816, 8, 2, 128);
  config.layers = 1;
  constexpr int64_t kRows = 600;
  Rig rig(GetParam(), config, kRows);
  rig.fill_hidden(5);
  rig.enqueue(0, 0, kRows, kRows);
  ASSERT_OK(rig.stream->synchronize());
  auto hidden = rig.hidden_bytes(), cache = rig.cache_bytes();
  rig.fill_hidden(5);
  int64_t at = 0;
  for (int64_t rows : {1, 2, 3, 4, 7, 9, 15, 17, 33, 50, 90, 130, 238, 1}) {
    rig.enqueue(0, at, rows, rows);
    at += rows;
  }
  ASSERT_EQ(at, kRows);
  ASSERT_OK(rig.stream->synchronize());
  EXPECT_TRUE(rig.same_rows(rig.cache_bytes(), cache));
  EXPECT_TRUE(rig.same_rows(rig.hidden_bytes(), hidden));
}

TEST_P(Conformance, TheSameCallTwiceGivesTheSameBits) {
  Rig rig(GetParam(), small(Family::kLlama), 300);
  rig.fill_hidden(5);
  rig.enqueue(0, 0, 300, 300);
  ASSERT_OK(rig.stream->synchronize());
  auto hidden = rig.hidden_bytes(), cache = rig.cache_bytes();
  for (int i = 0; i < 5; ++i) {
    rig.fill_hidden(5);
    rig.enqueue(0, 0, 300, 300);
    ASSERT_OK(rig.stream->synchronize());
    EXPECT_TRUE(rig.hidden_bytes() == hidden && rig.cache_bytes() == cache);
  }
}

// ---- batches: many sequences, each with a cache of its own

/// Ragged: on both sides of a tile of keys and of queries and of what is processed at once; K and V only.
std::vector<SequenceRows> ragged_batch() {
  return {{nullptr, 0, 1, 1},   {nullptr, 63, 1, 1},  {nullptr, 64, 1, 1},    {nullptr, 0, 90, 90},
          {nullptr, 70, 40, 1}, {nullptr, 17, 9, 0},  {nullptr, 5, 600, 333}, {nullptr, 199, 1, 1},
          {nullptr, 130, 3, 3}, {nullptr, 0, 17, 17}, {nullptr, 640, 2, 1}};
}

TEST_P(Conformance, BatchEqualsSingleCalls) {
  for (const auto& [name, config] : models(GetParam().few_models())) {
    if (GetParam().quick && name != "qwen2_ratio_7") continue;
    SCOPED_TRACE(name);
    constexpr int64_t kContext = 650;
    auto sequences = ragged_batch();
    int64_t rows = 0;
    for (const SequenceRows& s : sequences) rows += s.rows;
    auto count = static_cast<int64_t>(sequences.size());
    Rig rig(GetParam(), config, std::max(rows, count * kContext));  // a cache per sequence, one after another
    auto workspace = take(rig.model->make_workspace(kContext));
    rig.fill_hidden(5);
    rig.fill_cache(6);
    int64_t at = 0;
    for (int64_t i = 0; i < count; ++i) {
      SequenceRows& s = sequences[static_cast<size_t>(i)];
      s.cache = rig.cache->data() + i * kContext * rig.cache_row();
      rig.model->layer(*rig.stream, *workspace,
                       {.layer = 1,
                        .hidden = rig.hidden_at(at),
                        .cache = s.cache,
                        .position = s.position,
                        .rows = s.rows,
                        .query_rows = s.query_rows});
      at += s.rows;
    }
    ASSERT_OK(rig.stream->synchronize());
    auto hidden = rig.hidden_bytes(), cache = rig.cache_bytes();
    rig.fill_hidden(5);
    rig.fill_cache(6);
    rig.model->layer_batch(*rig.stream, *workspace, 1, rig.hidden->data(), sequences);
    ASSERT_OK(rig.stream->synchronize());
    EXPECT_TRUE(rig.same_rows(rig.hidden_bytes(), hidden));
    EXPECT_TRUE(rig.same_rows(rig.cache_bytes(), cache));
  }
}

TEST_P(Conformance, SharedPrefixEqualsOwnRows) {
  struct Tail {
    int64_t prefix_rows, position, rows, query_rows;
  };
  // Prefixes that end within a tile of keys and on its edge; tails of one tile of queries and of several.
  const Tail tails[] = {{150, 150, 3, 3},    {150, 150, 200, 200}, {150, 170, 130, 1}, {64, 64, 100, 100},
                        {150, 150, 90, 90},  {192, 192, 150, 150}, {37, 90, 1, 1},     {192, 192, 1, 1},
                        {192, 200, 120, 70}, {1, 1, 70, 70},       {0, 0, 80, 80}};
  constexpr int64_t kContext = 400, kPrefix = 192;
  constexpr auto kCount = static_cast<int64_t>(std::size(tails));
  for (const auto& [name, config] : models(GetParam().few_models())) {
    if (GetParam().quick && name != "qwen2_ratio_7") continue;
    SCOPED_TRACE(name);
    Rig rig(GetParam(), config, (kCount + 1) * kContext);
    auto workspace = take(rig.model->make_workspace(kContext));
    const int64_t row = rig.cache_row();
    std::byte* prefix = rig.cache->data() + kCount * kContext * row;
    rig.fill_cache(6);
    auto before = rig.cache_bytes();
    auto own = [&](int64_t i) { return rig.cache->data() + i * kContext * row; };
    // Each with the shared rows copied in front of its own.
    rig.fill_hidden(5);
    for (int64_t i = 0, at = 0; i < kCount; at += tails[i].rows, ++i) {
      rig.stream->copy(own(i), prefix, tails[i].prefix_rows * row);
      rig.model->layer(*rig.stream, *workspace,
                       {1, rig.hidden_at(at), own(i), tails[i].position, tails[i].rows, tails[i].query_rows});
    }
    ASSERT_OK(rig.stream->synchronize());
    auto hidden = rig.hidden_bytes(), cache = rig.cache_bytes();
    // Not copied. Behind what a sequence does not own lies NaN.
    rig.write(rig.cache->data(), before);
    std::vector<SequenceRows> sequences;
    for (int64_t i = 0; i < kCount; ++i) {
      const Tail& t = tails[i];
      std::vector<double> nan(static_cast<size_t>(t.prefix_rows * config.kv_row()), std::nan(""));
      rig.write(own(i), nan);
      sequences.push_back({own(i) + t.prefix_rows * row, t.position, t.rows, t.query_rows,
                           t.prefix_rows > 0 ? prefix : nullptr, t.prefix_rows});
    }
    rig.fill_hidden(5);
    rig.model->layer_batch(*rig.stream, *workspace, 1, rig.hidden->data(), sequences);
    ASSERT_OK(rig.stream->synchronize());
    EXPECT_TRUE(rig.same_rows(rig.hidden_bytes(), hidden));
    for (int64_t i = 0; i < kCount; ++i) {
      int64_t first = i * kContext + tails[i].prefix_rows, end = (i + 1) * kContext;
      EXPECT_TRUE(rig.same_rows(rig.read(rig.cache->data() + first * row, (end - first) * row),
                                {cache.begin() + first * row, cache.begin() + end * row}))
          << i;
    }
    EXPECT_EQ(std::memcmp(rig.read(prefix, kPrefix * row).data(), before.data() + kCount * kContext * row,
                          static_cast<size_t>(kPrefix * row)),
              0)
        << "a prefix is only read";
  }
}

TEST_P(Conformance, OneCacheMayBeInABatchTwice) {
  // Two pieces of one sequence, the second longer than a tile of queries: it reads what the first has
  // written.
  Rig rig(GetParam(), small(Family::kLlama), 300);
  rig.fill_hidden(5);
  rig.enqueue(0, 0, 300, 300);
  ASSERT_OK(rig.stream->synchronize());
  auto hidden = rig.hidden_bytes(), cache = rig.cache_bytes();
  rig.fill_hidden(5);
  rig.fill_cache(6);
  const SequenceRows pieces[] = {{rig.cache->data(), 0, 110, 110}, {rig.cache->data(), 110, 190, 190}};
  rig.model->layer_batch(*rig.stream, *rig.workspace, 0, rig.hidden->data(), pieces);
  ASSERT_OK(rig.stream->synchronize());
  EXPECT_TRUE(rig.same_rows(rig.hidden_bytes(), hidden));
  EXPECT_TRUE(rig.same_rows(rig.cache_bytes(), cache));
}

// ---- selected tokens

/// Runs, gaps, and both sides of a tile of keys and of what is processed at once: `count` of `length`
/// positions.
std::vector<int32_t> scattered(int64_t length, int64_t count) {
  Random random(static_cast<uint64_t>(length + count));
  std::vector<int32_t> all(static_cast<size_t>(length));
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<int32_t>(i);
  for (size_t i = 0; i + 1 < all.size(); ++i)
    std::swap(all[i], all[i + static_cast<size_t>(random.below(length - static_cast<int64_t>(i)))]);
  all.resize(static_cast<size_t>(count));
  std::sort(all.begin(), all.end());
  return all;
}

/// In the memory of the device.
std::unique_ptr<DeviceMemory> positions_memory(const Rig& rig, const std::vector<int32_t>& positions) {
  auto memory = take(rig.backend->allocate(static_cast<int64_t>(positions.size() * sizeof(int32_t))));
  rig.stream->copy(memory->data(), reinterpret_cast<const std::byte*>(positions.data()), memory->size());
  EXPECT_TRUE(rig.stream->synchronize().ok());
  return memory;
}

TEST_P(Conformance, SelectedRowsEqualSingleCalls) {
  for (const auto& [name, config] : models(GetParam().quick)) {
    for (auto [length, count] :
         {std::pair<int64_t, int64_t>{1, 1}, {200, 1}, {200, 37}, {200, 200}, {1300, 900}}) {
      if (length > 200 && ((name != "llama" && name != "qwen2_ratio_7") || GetParam().quick)) continue;
      SCOPED_TRACE(fmt::format("{}: {} of {}", name, count, length));
      Rig rig(GetParam(), config, length);
      auto positions = scattered(length, count);
      auto memory = positions_memory(rig, positions);
      for (bool queries : {true, false}) {
        rig.fill_hidden(5);
        rig.fill_cache(6);
        for (size_t i = 0; i < positions.size(); ++i)
          rig.model->layer(*rig.stream, *rig.workspace,
                           {.layer = 1,
                            .hidden = rig.hidden_at(static_cast<int64_t>(i)),
                            .cache = rig.cache->data(),
                            .position = positions[i],
                            .rows = 1,
                            .query_rows = queries ? 1 : 0});
        ASSERT_OK(rig.stream->synchronize());
        auto hidden = rig.hidden_bytes(), cache = rig.cache_bytes();
        rig.fill_hidden(5);
        rig.fill_cache(6);
        rig.model->layer_selected(*rig.stream, *rig.workspace,
                                  {.layer = 1,
                                   .hidden = rig.hidden->data(),
                                   .cache = rig.cache->data(),
                                   .positions = reinterpret_cast<const int32_t*>(memory->data()),
                                   .rows = count,
                                   .queries = queries});
        ASSERT_OK(rig.stream->synchronize());
        EXPECT_TRUE(rig.same_rows(rig.hidden_bytes(), hidden)) << queries;
        EXPECT_TRUE(rig.same_rows(rig.cache_bytes(), cache)) << queries;
      }
    }
  }
}

TEST_P(Conformance, RunsOfOneCacheInABatchEqualSingleCalls) {
  // As selected rows, said as sequences; more rows than are processed at once.
  const int64_t length = GetParam().quick ? 300 : 1300;
  Rig rig(GetParam(), small(Family::kLlama), length);
  std::vector<SequenceRows> runs;
  for (int32_t p : scattered(length, length * 9 / 13)) {
    if (!runs.empty() && runs.back().position + runs.back().rows == p) {
      ++runs.back().rows;
      ++runs.back().query_rows;
    } else {
      runs.push_back({rig.cache->data(), p, 1, 1});
    }
  }
  rig.fill_hidden(5);
  rig.fill_cache(6);
  int64_t at = 0;
  for (const SequenceRows& s : runs) {
    rig.model->layer(*rig.stream, *rig.workspace,
                     {0, rig.hidden_at(at), s.cache, s.position, s.rows, s.rows});
    at += s.rows;
  }
  ASSERT_OK(rig.stream->synchronize());
  auto hidden = rig.hidden_bytes(), cache = rig.cache_bytes();
  rig.fill_hidden(5);
  rig.fill_cache(6);
  rig.model->layer_batch(*rig.stream, *rig.workspace, 0, rig.hidden->data(), runs);
  ASSERT_OK(rig.stream->synchronize());
  EXPECT_TRUE(rig.same_rows(rig.hidden_bytes(), hidden));
  EXPECT_TRUE(rig.same_rows(rig.cache_bytes(), cache));
}

TEST_P(Conformance, SelectChoosesTheTokensWhoseKeysDeviateMost) {
  for (const auto& [name, config] : models(GetParam().few_models())) {
    for (auto [rows, count] :
         {std::pair<int64_t, int64_t>{1, 1}, {200, 30}, {200, 199}, {200, 200}, {1100, 160}}) {
      if (rows > 200 && ((name != "llama" && name != "qwen2_ratio_7") || GetParam().quick)) continue;
      SCOPED_TRACE(fmt::format("{}: {} of {}", name, count, rows));
      Rig rig(GetParam(), config, rows);
      auto memory = positions_memory(rig, std::vector<int32_t>(static_cast<size_t>(rows), -1));
      auto select = [&] {
        rig.model->select(*rig.stream, *rig.workspace,
                          {.layer = 1,
                           .hidden = rig.hidden->data(),
                           .cache = rig.cache->data(),
                           .rows = rows,
                           .count = count,
                           .positions = reinterpret_cast<int32_t*>(memory->data())});
        std::vector<int32_t> found(static_cast<size_t>(rows));
        rig.stream->copy(reinterpret_cast<std::byte*>(found.data()), memory->data(), memory->size());
        EXPECT_TRUE(rig.stream->synchronize().ok());
        found.resize(static_cast<size_t>(count));
        return found;
      };
      // The receiver's own K: nothing deviates, so that the first tokens are chosen.
      rig.fill_hidden(5);
      rig.enqueue(1, 0, rows, 0);
      ASSERT_OK(rig.stream->synchronize());
      auto own = rig.cache_values();
      std::vector<int32_t> first(static_cast<size_t>(count));
      for (size_t i = 0; i < first.size(); ++i) first[i] = static_cast<int32_t>(i);
      EXPECT_EQ(select(), first);

      // Others: an eighth of K differs, by an amount of its own; all of V does, which counts for nothing.
      rig.fill_hidden(5);
      rig.fill_cache(6);
      auto others = rig.cache_values();
      auto width = static_cast<size_t>(config.kv_row()), keys = width / 2;
      Random random(9);
      for (size_t r = 0; r < static_cast<size_t>(rows); ++r)
        for (size_t i = 0; i < keys; ++i)
          others[r * width + i] = own[r * width + i] + (i % 8 == 0 ? random.normal() : 0);
      rig.write(rig.cache->data(), others);
      others = rig.cache_values();  // as rounded
      std::vector<std::pair<float, int32_t>> deviation;
      for (size_t r = 0; r < static_cast<size_t>(rows); ++r) {
        float sum = 0;
        for (size_t i = 0; i < keys; ++i) {
          auto off = static_cast<float>(own[r * width + i]) - static_cast<float>(others[r * width + i]);
          volatile float square = off * off;
          sum += square;
        }
        deviation.push_back({-sum, static_cast<int32_t>(r)});
      }
      std::sort(deviation.begin(), deviation.end());
      std::vector<int32_t> expected;
      for (size_t i = 0; i < static_cast<size_t>(count); ++i) expected.push_back(deviation[i].second);
      std::sort(expected.begin(), expected.end());
      auto hidden = rig.hidden_bytes(), cache = rig.cache_bytes();
      EXPECT_EQ(select(), expected);
      EXPECT_TRUE(rig.cache_bytes() == cache) << "the cache is only read";
      auto row = static_cast<size_t>(rig.hidden_row());
      const auto after = rig.hidden_bytes();
      for (size_t i = 0; i < expected.size(); ++i) {
        EXPECT_EQ(
            std::memcmp(after.data() + i * row, hidden.data() + static_cast<size_t>(expected[i]) * row, row),
            0)
            << "row " << i;
      }
      // A key that is not a number is as far off as can be.
      others[static_cast<size_t>(rows / 2) * width] = std::numeric_limits<double>::quiet_NaN();
      rig.write(rig.cache->data(), others);
      rig.fill_hidden(5);
      auto found = select();
      EXPECT_TRUE(std::count(found.begin(), found.end(), static_cast<int32_t>(rows / 2)) == 1);
    }
  }
}

TEST_P(Conformance, ImpossibleSelectionsAreRefused) {
  Rig rig(GetParam(), small(Family::kLlama), 32);
  auto memory = positions_memory(rig, {0, 3, 3, 40});
  auto* positions = reinterpret_cast<int32_t*>(memory->data());
  auto hidden = rig.hidden_bytes();
  auto refused = [&](const char* what) {
    EXPECT_EQ(rig.stream->synchronize().code(), Code::kInvalidArgument) << what;
    EXPECT_TRUE(rig.hidden_bytes() == hidden) << what;
  };
  auto select = [&](const char* what, auto change) {
    SelectCall call{0, rig.hidden->data(), rig.cache->data(), 4, 2, positions};
    change(call);
    rig.model->select(*rig.stream, *rig.workspace, call);
    refused(what);
  };
  select("more than there are", [](SelectCall& c) { c.count = 5; });
  select("none", [](SelectCall& c) { c.count = 0; });
  select("past the workspace", [](SelectCall& c) { c.rows = 33; });
  select("no such layer", [](SelectCall& c) { c.layer = 2; });
  select("nowhere to write to", [](SelectCall& c) { c.positions = nullptr; });
  auto layer = [&](const char* what, auto change) {
    SelectedCall call{0, rig.hidden->data(), rig.cache->data(), positions, 2};
    change(call);
    rig.model->layer_selected(*rig.stream, *rig.workspace, call);
    refused(what);
  };
  if (rig.backend->host_visible()) {  // a device's own positions are not looked at before they are used
    layer("one position twice", [](SelectedCall& c) { c.rows = 3; });
    layer("a position past the workspace", [](SelectedCall& c) { c.positions += 2, c.rows = 2; });
  }
  layer("no rows", [](SelectedCall& c) { c.rows = 0; });
  layer("no cache", [](SelectedCall& c) { c.cache = nullptr; });
}

TEST_P(Conformance, BatchedLogitsEqualSingleOnes) {
  for (const auto& [name, config] : models(GetParam().few_models())) {
    SCOPED_TRACE(name);
    Rig rig(GetParam(), config, 80);
    rig.fill_hidden(5);
    std::vector<int64_t> rows;  // every number of rows up to 40, out of order
    for (int64_t i = 0; i < 40; ++i) rows.push_back((i * 37 + 11) % 80);
    auto vocab = static_cast<size_t>(config.vocab);
    std::vector<float> single(rows.size() * vocab);
    for (size_t i = 0; i < rows.size(); ++i)
      rig.model->logits(*rig.stream, *rig.workspace, rig.hidden_at(rows[i]), single.data() + i * vocab);
    ASSERT_OK(rig.stream->synchronize());
    for (size_t count = 1; count <= rows.size(); ++count) {
      // What lies behind the last row must stay as it is.
      std::vector<float> batch(count * vocab + 1, -1.0f);
      rig.model->logits_batch(*rig.stream, *rig.workspace, rig.hidden->data(), std::span(rows).first(count),
                              batch.data());
      ASSERT_OK(rig.stream->synchronize());
      if (rig.exact_rows) {
        EXPECT_EQ(std::memcmp(batch.data(), single.data(), count * vocab * sizeof(float)), 0) << count;
      } else {
        auto end = static_cast<int64_t>(count * vocab);
        EXPECT_LT(difference({batch.begin(), batch.begin() + end}, {single.begin(), single.begin() + end}),
                  rig.tolerance);
      }
      EXPECT_EQ(batch.back(), -1.0f) << count;
    }
  }
}

TEST_P(Conformance, NothingInABatchIsNoWork) {
  Rig rig(GetParam(), small(Family::kLlama), 16);
  rig.fill_hidden(5);
  auto hidden = rig.hidden_bytes();
  rig.model->layer_batch(*rig.stream, *rig.workspace, 0, rig.hidden->data(), {});
  rig.model->logits_batch(*rig.stream, *rig.workspace, rig.hidden->data(), {}, nullptr);
  ASSERT_OK(rig.stream->synchronize());
  EXPECT_TRUE(rig.hidden_bytes() == hidden);
}

TEST_P(Conformance, ImpossibleSequencesAreRefusedByNumber) {
  Rig rig(GetParam(), small(Family::kLlama), 32);
  const SequenceRows good{rig.cache->data(), 3, 4, 4};
  auto hidden = rig.hidden_bytes();
  auto expect_refused = [&](const char* what, auto change) {
    SequenceRows bad = good;
    change(bad);
    const SequenceRows batch[] = {good, bad};
    rig.model->layer_batch(*rig.stream, *rig.workspace, 0, rig.hidden->data(), batch);
    Status status = rig.stream->synchronize();
    EXPECT_EQ(status.code(), Code::kInvalidArgument) << what;
    EXPECT_NE(status.message().find("sequence 1 of 2"), std::string::npos) << status.message();
  };
  expect_refused("no rows", [](SequenceRows& s) { s.rows = s.query_rows = 0; });
  expect_refused("more queries than rows", [](SequenceRows& s) { s.query_rows = 5; });
  expect_refused("past the workspace", [](SequenceRows& s) { s.position = 29; });
  expect_refused("negative position", [](SequenceRows& s) { s.position = -1; });
  expect_refused("no cache", [](SequenceRows& s) { s.cache = nullptr; });
  expect_refused("no prefix", [](SequenceRows& s) { s.prefix_rows = 2; });
  expect_refused("begins within its prefix", [](SequenceRows& s) {
    s.prefix = s.cache;
    s.prefix_rows = 4;
  });
  EXPECT_TRUE(rig.hidden_bytes() == hidden) << "nothing of a refused batch runs";
}

// ---- maps of aligned cuts

/// Every form, low-rank ones of ranks on both sides of what is padded.
std::vector<AlignmentMap> maps(int64_t width) {
  std::vector<AlignmentMap> all = {make_map(MapForm::kFull, width, 0, 21),
                                   make_map(MapForm::kDiagonal, width, 0, 22)};
  for (int64_t rank : {int64_t{1}, int64_t{13}, width / 2, width})
    all.push_back(make_map(MapForm::kLowRank, width, rank, 23 + static_cast<uint64_t>(rank)));
  return all;
}

/// A rig whose workspace is made after its maps, with `rows` of context.
struct MapRig : Rig {
  MapRig(const Setup& setup, const ModelConfig& config, int64_t rows, const std::vector<AlignmentMap>& maps)
      : Rig(setup, config, rows) {
    for (const AlignmentMap& map : maps) loaded.push_back(take(model->load_map(map)));
    workspace = take(model->make_workspace(64));  // the rows of align() are no context's
  }
  std::vector<std::unique_ptr<DeviceMap>> loaded;
};

TEST_P(Conformance, AlignEqualsReference) {
  for (const auto& [name, config] : models(GetParam().few_models())) {
    const auto all = maps(config.d_model);
    constexpr int64_t kRows = 67;
    MapRig rig(GetParam(), config, kRows, all);
    for (size_t i = 0; i < all.size(); ++i) {
      SCOPED_TRACE(fmt::format("{} {} rank {}", name, map_form_name(all[i].form), all[i].rank));
      rig.fill_hidden(5);
      const auto before = rig.hidden_bytes();
      const auto x = rig.hidden_values();
      constexpr int64_t kFirst = 3, kCount = 61;
      rig.model->align(*rig.stream, *rig.workspace, *rig.loaded[i], rig.hidden_at(kFirst), kCount);
      ASSERT_OK(rig.stream->synchronize());
      std::vector<double> expected;
      for (int64_t r = kFirst; r < kFirst + kCount; ++r) {
        auto row =
            align(all[i], {x.begin() + r * config.d_model, x.begin() + (r + 1) * config.d_model}, rig.dtype);
        expected.insert(expected.end(), row.begin(), row.end());
      }
      auto found = rig.read_values(rig.hidden_at(kFirst), kCount * config.d_model);
      EXPECT_LT(difference(found, expected), GetParam().tolerance);
      // Rows beside them keep theirs.
      auto first = static_cast<size_t>(kFirst * rig.hidden_row());
      auto end = static_cast<size_t>((kFirst + kCount) * rig.hidden_row());
      const auto after = rig.hidden_bytes();
      EXPECT_EQ(std::memcmp(after.data(), before.data(), first), 0);
      EXPECT_EQ(std::memcmp(after.data() + end, before.data() + end, before.size() - end), 0);
      EXPECT_GE(rig.loaded[i]->bytes(), config.d_model * 4);
    }
  }
}

TEST_P(Conformance, AlignedRowsDoNotDependOnTheirNumber) {
  auto all = models(GetParam().few_models());
  if (!GetParam().quick) all.emplace_back("deep", shaped(Family::kLlama, 1100, 2310, 6, 2, 48));
  all.emplace_back("rank_above_ff", shaped(Family::kLlama, 112, 16, 14, 2, 16));
  if (!GetParam().quick) all.emplace_back("llama_1b", shaped(Family::kLlama, 2048, 512, 32, 8, 64));
  for (auto& [name, config] : all) {
    const bool large = config.d_model > 1000;
    if (large) config.layers = 1;
    const int64_t rows = large || name == "llama" ? 600 : 100;  // above what is processed at once
    const auto of_width = large
                              ? std::vector<AlignmentMap>{make_map(MapForm::kFull, config.d_model, 0, 3),
                                                          make_map(MapForm::kLowRank, config.d_model, 128, 4)}
                              : maps(config.d_model);
    MapRig rig(GetParam(), config, rows, of_width);
    for (size_t i = 0; i < of_width.size(); ++i) {
      rig.fill_hidden(5);
      rig.model->align(*rig.stream, *rig.workspace, *rig.loaded[i], rig.hidden->data(), rows);
      ASSERT_OK(rig.stream->synchronize());
      const auto whole = rig.hidden_bytes();
      for (int64_t step : {1, 2, 3, 7, 31, 32, 33, 64, 90}) {
        if (large && (step == 2 || step == 31)) continue;
        rig.fill_hidden(5);
        for (int64_t at = 0; at < rows; at += step)
          rig.model->align(*rig.stream, *rig.workspace, *rig.loaded[i], rig.hidden_at(at),
                           std::min(step, rows - at));
        ASSERT_OK(rig.stream->synchronize());
        EXPECT_TRUE(rig.same_rows(rig.hidden_bytes(), whole)) << fmt::format(
            "{} {} rank {} in steps of {}", name, map_form_name(of_width[i].form), of_width[i].rank, step);
      }
    }
  }
}

TEST_P(Conformance, MapsThatAddNothingKeepEveryBit) {
  const ModelConfig config = small(Family::kLlama);
  auto all = maps(config.d_model);
  for (AlignmentMap& map : all)
    for (auto* v : {&map.weight, &map.up, &map.down, &map.scale, &map.bias})
      std::fill(v->begin(), v->end(), 0.0f);
  MapRig rig(GetParam(), config, 50, all);
  rig.fill_hidden(5);
  auto values = rig.hidden_values();
  values[0] = -0.0;
  values[1] = 0.0;
  values[7] = 1e-40;  // subnormal
  rig.write(rig.hidden->data(), values);
  const auto before = rig.hidden_bytes();
  for (const auto& map : rig.loaded)
    rig.model->align(*rig.stream, *rig.workspace, *map, rig.hidden->data(), 50);
  ASSERT_OK(rig.stream->synchronize());
  EXPECT_TRUE(rig.hidden_bytes() == before);
}

TEST_P(Conformance, ImpossibleMapsAndAlignmentsAreRefused) {
  const ModelConfig config = small(Family::kLlama);
  const int64_t d = config.d_model;
  Rig rig(GetParam(), config, 8), other(GetParam(), config, 8);
  auto refused = [&](AlignmentMap map, Code code, const std::string& text) {
    auto loaded = rig.model->load_map(map);
    ASSERT_FALSE(loaded.ok()) << text;
    EXPECT_EQ(loaded.status().code(), code) << loaded.status().message();
    EXPECT_NE(loaded.status().message().find(text), std::string::npos) << loaded.status().message();
  };
  refused(make_map(MapForm::kFull, 24, 0, 1), Code::kMismatch, "width 24, the model's have 96");
  AlignmentMap map = make_map(MapForm::kFull, d, 0, 1);
  map.weight.pop_back();
  refused(map, Code::kInvalidArgument, "9215 numbers in its weight");
  map = make_map(MapForm::kLowRank, d, 5, 1);
  map.rank = 6;
  refused(map, Code::kInvalidArgument, "low-rank map of layer 1 of rank 6");
  map.form = MapForm::kNone;
  refused(map, Code::kInvalidArgument, "without a form");

  rig.fill_hidden(5);
  const auto before = rig.hidden_bytes();
  auto expect = [&](const std::string& text) {
    Status status = rig.stream->synchronize();
    EXPECT_EQ(status.code(), Code::kInvalidArgument);
    EXPECT_NE(status.message().find(text), std::string::npos) << status.message();
    EXPECT_TRUE(rig.hidden_bytes() == before);
  };
  auto full = take(rig.model->load_map(make_map(MapForm::kFull, d, 0, 1)));
  rig.model->align(*rig.stream, *rig.workspace, *full, rig.hidden->data(), 8);
  expect("loaded after the workspace was made");
  auto later = take(rig.model->make_workspace(8));
  auto foreign = take(other.model->load_map(make_map(MapForm::kDiagonal, d, 0, 1)));
  rig.model->align(*rig.stream, *later, *foreign, rig.hidden->data(), 8);
  expect("a map of another model");
  rig.model->align(*rig.stream, *other.workspace, *full, rig.hidden->data(), 8);
  expect("a workspace of another model");
  rig.model->align(*rig.stream, *later, *full, rig.hidden->data(), -1);
  expect("align -1 rows");
  rig.model->align(*rig.stream, *later, *full, nullptr, 8);
  expect("without hidden states");
  rig.model->align(*rig.stream, *later, *full, nullptr, 0);  // no rows, no work
  ASSERT_OK(rig.stream->synchronize());
  auto link = take(rig.backend->make_stream(StreamKind::kLink, 8));
  rig.model->align(*link, *later, *full, rig.hidden->data(), 8);
  EXPECT_NE(link->synchronize().message().find("link"), std::string::npos);
  EXPECT_TRUE(rig.hidden_bytes() == before);
}

// ---- profiles, and few rows

TEST_P(Conformance, ProfileCountsEveryPhaseAndChangesNothing) {
  const ModelConfig config = small(Family::kLlama);
  MapRig rig(GetParam(), config, 200, {make_map(MapForm::kFull, config.d_model, 0, 9)});
  rig.workspace = take(rig.model->make_workspace(200));
  auto run = [&] {
    const std::vector<int32_t> ids(100, 3);
    std::vector<float> logits(static_cast<size_t>(rig.config().vocab));
    rig.fill_hidden(5);
    rig.model->embed(*rig.stream, ids.data(), 100, rig.hidden->data());
    rig.enqueue(0, 0, 200, 200);
    rig.model->align(*rig.stream, *rig.workspace, *rig.loaded[0], rig.hidden->data(), 200);
    rig.model->logits(*rig.stream, *rig.workspace, rig.hidden_at(199), logits.data());
    EXPECT_TRUE(rig.stream->synchronize().ok());
    return std::pair(rig.hidden_bytes(), logits);
  };
  auto without = run();
  PhaseTimes times;
  rig.model->set_profile(&times);
  EXPECT_TRUE(run() == without);
  for (size_t i = 0; i < kPhases; ++i) {
    if (static_cast<Phase>(i) == Phase::kAttentionPack && !rig.backend->host_visible()) continue;
    EXPECT_GT(times.ns[i], 0) << kPhaseNames[i];
  }
  rig.model->set_profile(nullptr);
  PhaseTimes before = times;
  EXPECT_TRUE(run() == without);
  EXPECT_TRUE(std::equal(before.ns, before.ns + kPhases, times.ns));
}

TEST_P(Conformance, FewRowsEqualMany) {
  // Deep enough for products that are summed in several pieces; few rows may take another way than many.
  ModelConfig config = shaped(Family::kLlama, 1100, 2310, 6, 2, 48);
  config.layers = 1;
  constexpr int64_t kRows = 100;
  Rig rig(GetParam(), config, kRows);
  rig.fill_hidden(5);
  rig.enqueue(0, 0, kRows, kRows);
  ASSERT_OK(rig.stream->synchronize());
  auto hidden = rig.hidden_bytes(), cache = rig.cache_bytes();
  for (int64_t step : {1, 2, 3, 5, 7, 12, 31, 32, 33}) {
    rig.fill_hidden(5);
    rig.fill_cache(6);
    for (int64_t at = 0; at < kRows; at += step)
      rig.enqueue(0, at, std::min(step, kRows - at), std::min(step, kRows - at));
    ASSERT_OK(rig.stream->synchronize());
    EXPECT_TRUE(rig.same_rows(rig.hidden_bytes(), hidden)) << step;
    EXPECT_TRUE(rig.same_rows(rig.cache_bytes(), cache)) << step;
  }
}

// ---- tokens

TEST_P(Conformance, StepIsEmbedLayersAndHead) {
  for (const auto& [name, config] : models(GetParam().few_models())) {
    SCOPED_TRACE(name);
    constexpr int64_t kContext = 70, kSteps = 4;
    Rig rig(GetParam(), config, kContext + kSteps);
    auto second = take(rig.backend->allocate(rig.cache->size()));
    std::byte* const caches[] = {rig.cache->data(), second->data()};
    const auto vocab = static_cast<size_t>(config.vocab);
    auto run = [&](bool step) {
      rig.fill_cache(6);
      rig.fill(*second, rig.capacity * config.kv_row(), 7);
      std::vector<float> logits(kSteps * vocab);
      std::vector<int32_t> tokens;
      int32_t token = 5, next = -1;
      for (int64_t i = 0; i < kSteps; ++i, token = next) {
        float* to = logits.data() + static_cast<size_t>(i) * vocab;
        if (step) {
          rig.model->step(*rig.stream, *rig.workspace,
                          {token, kContext + i, rig.hidden->data(), caches, to, {}, &next});
        } else {
          rig.model->embed(*rig.stream, &token, 1, rig.hidden->data());
          for (int64_t l = 0; l < config.layers; ++l)
            rig.model->layer(*rig.stream, *rig.workspace,
                             {l, rig.hidden->data(), caches[l], kContext + i, 1, 1});
          rig.model->head(*rig.stream, *rig.workspace, {rig.hidden->data(), to, {}, &next});
        }
        EXPECT_TRUE(rig.stream->synchronize().ok());
        EXPECT_EQ(next, std::max_element(to, to + vocab) - to);
        tokens.push_back(next);
      }
      return std::pair(tokens, std::vector<double>(logits.begin(), logits.end()));
    };
    const auto [tokens, logits] = run(false);
    const auto [step_tokens, step_logits] = run(true);
    EXPECT_EQ(step_tokens, tokens);
    if (rig.exact_rows) {
      EXPECT_EQ(step_logits, logits);
    } else {
      EXPECT_LT(difference(step_logits, logits), rig.tolerance);
    }
  }
}

TEST_P(Conformance, HeadChoosesAsTheHostDoes) {
  Rig rig(GetParam(), small(Family::kLlama), 40);
  rig.fill_hidden(5);
  std::vector<float> logits(static_cast<size_t>(rig.config().vocab));
  std::vector<std::pair<float, int32_t>> scratch;
  int different = 0, last = -1;
  for (int i = 0; i < 40; ++i) {
    Choice choice;
    if (i > 0) choice = {0.3 + 0.05 * i, i % 3 == 0 ? 1.0 : 0.6, i * 0.0243};
    int32_t next = -1, alone = -1;
    rig.model->head(*rig.stream, *rig.workspace, {rig.hidden_at(i), logits.data(), choice, &next});
    rig.model->head(*rig.stream, *rig.workspace,
                    {.hidden = rig.hidden_at(i), .choice = choice, .next = &alone});
    ASSERT_OK(rig.stream->synchronize());
    EXPECT_EQ(next, choose(logits, choice, scratch)) << i;
    EXPECT_EQ(alone, next) << i;
    different += next != last;
    last = next;
  }
  EXPECT_GT(different, 10);
}

TEST_P(Conformance, ImpossibleStepsAreRefused) {
  Rig rig(GetParam(), small(Family::kLlama), 16);
  std::byte* const caches[] = {rig.cache->data(), rig.cache->data()};
  int32_t next = -1;
  auto refused = [&](const char* what, auto change) {
    StepCall call{3, 4, rig.hidden->data(), caches, nullptr, {}, &next};
    change(call);
    rig.model->step(*rig.stream, *rig.workspace, call);
    EXPECT_EQ(rig.stream->synchronize().code(), Code::kInvalidArgument) << what;
    EXPECT_EQ(next, -1) << what;
  };
  refused("a token outside the vocabulary", [](StepCall& c) { c.token = 301; });
  refused("past the workspace", [](StepCall& c) { c.position = 16; });
  refused("too few caches", [&](StepCall& c) { c.caches = c.caches.first(1); });
  refused("no row", [](StepCall& c) { c.hidden = nullptr; });
}

TEST_P(Conformance, ImpossibleHeadsAndTokensAreRefused) {
  Rig rig(GetParam(), small(Family::kLlama), 16), other(GetParam(), small(Family::kLlama), 16);
  rig.fill_hidden(5);
  const auto before = rig.hidden_bytes();
  int32_t next = -1;
  auto expect = [&](const std::string& text) {
    const Status status = rig.stream->synchronize();
    EXPECT_EQ(status.code(), Code::kInvalidArgument) << text;
    EXPECT_NE(status.message().find(text), std::string::npos) << status.message();
    EXPECT_EQ(next, -1) << text;
    EXPECT_TRUE(rig.hidden_bytes() == before) << text;
  };
  rig.model->head(*rig.stream, *rig.workspace, {.hidden = nullptr, .next = &next});
  expect("head without hidden states");
  rig.model->head(*rig.stream, *other.workspace, {.hidden = rig.hidden->data(), .next = &next});
  expect("in a workspace of another model");
  std::vector<float> logits(2 * 301, -7);
  const int64_t rows[] = {0, -1};
  rig.model->logits_batch(*rig.stream, *rig.workspace, rig.hidden->data(), rows, logits.data());
  expect("logits 1 of 2 of row -1");
  rig.model->logits_batch(*rig.stream, *rig.workspace, rig.hidden->data(), {rows, 1}, nullptr);
  expect("which nobody wants");
  rig.model->logits_batch(*rig.stream, *other.workspace, rig.hidden->data(), {rows, 1}, logits.data());
  expect("logits of hidden states, in a workspace of another model");
  EXPECT_EQ(logits, std::vector<float>(logits.size(), -7));
  const int32_t ids[] = {5, 301};
  rig.model->embed(*rig.stream, ids, 2, rig.hidden->data());
  expect("token 1 of 2 is 301");
  rig.model->embed(*rig.stream, ids, -1, rig.hidden->data());
  expect("embed -1 rows");
  rig.model->embed(*rig.stream, nullptr, 1, rig.hidden->data());
  expect("without tokens");
}

// ---- nothing later is seen

TEST_P(Conformance, LaterRowsAreNotSeen) {
  constexpr int64_t kRows = 170;
  for (const auto& [name, config] : models(GetParam().few_models())) {
    SCOPED_TRACE(name);
    Rig rig(GetParam(), config, 200);
    rig.fill_hidden(5);
    rig.enqueue(0, 0, kRows, kRows);
    ASSERT_OK(rig.stream->synchronize());
    auto hidden = rig.hidden_bytes();
    for (int64_t changed : {int64_t{1}, int64_t{64}, int64_t{100}, kRows - 1}) {
      rig.fill_hidden(5);
      // NaN would show in whatever reads it; and so it must in the changed row itself.
      std::vector<double> nan(static_cast<size_t>((200 - changed) * config.d_model), std::nan(""));
      rig.write(rig.hidden_at(changed), nan);
      std::vector<double> stale(static_cast<size_t>(200 * config.kv_row()), std::nan(""));
      rig.write(rig.cache->data(), stale);
      rig.enqueue(0, 0, changed, changed);
      ASSERT_OK(rig.stream->synchronize());
      const int64_t size = changed * rig.hidden_row();
      EXPECT_TRUE(rig.same_rows(rig.read(rig.hidden->data(), size), {hidden.begin(), hidden.begin() + size}))
          << changed;
    }
    // Within one call: other (finite) rows behind leave those before them as they are.
    rig.fill_hidden(5);
    std::vector<double> other(static_cast<size_t>(70 * config.d_model), 3.0);
    rig.write(rig.hidden_at(100), other);
    rig.enqueue(0, 0, kRows, kRows);
    ASSERT_OK(rig.stream->synchronize());
    auto size = static_cast<size_t>(100 * rig.hidden_row());
    const auto after = rig.hidden_bytes();
    EXPECT_EQ(std::memcmp(after.data(), hidden.data(), size), 0);
    EXPECT_NE(std::memcmp(after.data() + size, hidden.data() + size, static_cast<size_t>(rig.hidden_row())),
              0);
  }
}

TEST_P(Conformance, LongContext) {
  ModelConfig config = shaped(Family::kLlama, 32, 48, 2, 1, 16);
  config.layers = 1;
  const int64_t kTokens = GetParam().quick ? 1024 : 32768;
  Rig rig(GetParam(), config, kTokens);
  rig.fill_hidden(5);
  auto before = rig.hidden_values();
  rig.enqueue(0, 0, kTokens, kTokens);
  ASSERT_OK(rig.stream->synchronize());
  auto cache = rig.cache_values();
  // K and V are checked elsewhere; given them, single rows can be.
  for (int64_t row : {int64_t{0}, int64_t{64}, kTokens / 4 - 1, kTokens * 5 / 8, kTokens - 1}) {
    auto first = before.begin() + row * config.d_model;
    std::vector<double> hidden(first, first + config.d_model);
    auto rows = cache;
    rig.reference.layer(0, hidden, rows, row, 1, 1);
    auto found = rig.read_values(rig.hidden_at(row), config.d_model);
    EXPECT_LT(difference(found, hidden), GetParam().tolerance) << row;
  }
}

// ---- streams

struct Log {
  std::atomic<int> next{0};
  std::atomic<int> at[8] = {};
  static void call(void* context, int64_t argument) {
    auto* log = static_cast<Log*>(context);
    log->at[argument] = ++log->next;
  }
};

TEST_P(Conformance, StreamsKeepOrderAndMeetAtEvents) {
  auto backend = take(GetParam().make());
  auto link = take(backend->make_stream(StreamKind::kLink, 64));
  auto compute = take(backend->make_stream(StreamKind::kCompute, 64));
  auto a = take(backend->make_event()), b = take(backend->make_event()), c = take(backend->make_event());
  for (int round = 0; round < 200; ++round) {
    Log log;
    for (auto* event : {a.get(), b.get(), c.get()}) {
      event->reset();
      ASSERT_FALSE(event->done());
    }
    compute->wait(*a);  // enqueued before what it waits for
    compute->host({Log::call, &log, 2});
    compute->record(*b);
    link->host({Log::call, &log, 0});
    link->host({Log::call, &log, 1});
    link->record(*a);
    link->wait(*b);
    link->host({Log::call, &log, 3});
    link->record(*c);
    ASSERT_OK(link->synchronize());
    ASSERT_OK(compute->synchronize());
    for (int i = 0; i < 4; ++i) ASSERT_EQ(log.at[i].load(), i + 1) << "round " << round;
    ASSERT_TRUE(a->done() && b->done() && c->done());
    ASSERT_LE(a->time_ns(), b->time_ns());
    ASSERT_LE(b->time_ns(), c->time_ns());
  }
}

TEST_P(Conformance, EventTimesAreOfTheSteadyClock) {
  auto now = [] {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
  };
  auto backend = take(GetParam().make());
  auto link = take(backend->make_stream(StreamKind::kLink, 8));
  auto begin = take(backend->make_event()), end = take(backend->make_event());
  int64_t before = now();
  link->record(*begin);
  link->host(
      {[](void*, int64_t) { std::this_thread::sleep_for(std::chrono::milliseconds(20)); }, nullptr, 0});
  link->record(*end);
  EXPECT_LT(now() - before, 15'000'000) << "enqueuing must not wait for what is enqueued";
  ASSERT_OK(link->synchronize());
  EXPECT_GE(begin->time_ns(), before);
  EXPECT_GE(end->time_ns() - begin->time_ns(), 20'000'000);
  EXPECT_LE(end->time_ns(), now());
}

TEST_P(Conformance, TransfersRunWhileKernelsRun) {
  // The compute stream waits for a host task on the link that itself waits until kernels have run: only with
  // streams that are concurrent does this end.
  Rig rig(GetParam(), small(Family::kLlama), 64);
  rig.fill_hidden(5);
  auto link = take(rig.backend->make_stream(StreamKind::kLink, 8));
  auto kernels_ran = take(rig.backend->make_event()), transferred = take(rig.backend->make_event());
  struct Context {
    Event* kernels_ran;
    bool seen = false;
  } context{kernels_ran.get()};
  link->host({[](void* pointer, int64_t) {
                auto* c = static_cast<Context*>(pointer);
                for (int i = 0; i < 20000 && !c->kernels_ran->done(); ++i)
                  std::this_thread::sleep_for(std::chrono::milliseconds(1));
                c->seen = c->kernels_ran->done();
              },
              &context, 0});
  link->record(*transferred);
  rig.enqueue(0, 0, 64, 64);
  rig.stream->record(*kernels_ran);
  rig.stream->wait(*transferred);
  rig.enqueue(1, 0, 64, 64);
  ASSERT_OK(rig.stream->synchronize());
  ASSERT_OK(link->synchronize());
  EXPECT_TRUE(context.seen);
}

TEST_P(Conformance, CopiesRunInOrder) {
  auto backend = take(GetParam().make());
  auto stream = take(backend->make_stream(StreamKind::kCopy, 16));
  auto memory = take(backend->allocate(1 << 20));
  std::vector<std::byte> source(1 << 20, std::byte{7}), back(1 << 20);
  stream->copy(memory->data(), source.data(), 1 << 20);
  stream->copy(memory->data() + 10, memory->data() + 100, 5);
  stream->copy(back.data(), memory->data(), 1 << 20);
  stream->copy(back.data() + 1, back.data(), 0);
  ASSERT_OK(stream->synchronize());
  EXPECT_TRUE(back == source);
}

TEST_P(Conformance, CancelSkipsWorkButCompletesEvents) {
  Rig rig(GetParam(), small(Family::kLlama), 16);
  auto link = take(rig.backend->make_stream(StreamKind::kLink, 16));
  auto gate = take(rig.backend->make_event()), end = take(rig.backend->make_event());
  Log log;
  rig.fill_hidden(5);
  auto hidden = rig.hidden_bytes();
  rig.stream->wait(*gate);
  rig.enqueue(0, 0, 16, 16);
  rig.stream->host({Log::call, &log, 0});
  rig.stream->copy(rig.hidden->data(), rig.hidden->data() + 64, 64);
  rig.stream->record(*end);
  rig.stream->cancel();
  link->record(*gate);
  ASSERT_OK(rig.stream->synchronize());
  ASSERT_OK(link->synchronize());
  EXPECT_TRUE(end->done());
  if (rig.backend->host_visible()) {  // what a device has been given already runs
    EXPECT_EQ(log.at[0].load(), 0);
    EXPECT_TRUE(rig.hidden_bytes() == hidden);
  }
  rig.fill_hidden(5);
  log.at[0] = 0;
  rig.enqueue(0, 0, 16, 16);  // and works again after synchronize()
  rig.stream->host({Log::call, &log, 0});
  ASSERT_OK(rig.stream->synchronize());
  EXPECT_EQ(log.at[0].load(), 1);
  EXPECT_FALSE(rig.hidden_bytes() == hidden);
}

TEST_P(Conformance, FirstFailureIsReportedOnceAndNobodyHangs) {
  Rig rig(GetParam(), small(Family::kLlama), 32);
  auto other = take(rig.backend->make_stream(StreamKind::kCompute, 16));
  auto end = take(rig.backend->make_event());
  Log log;
  const int32_t ids[] = {5, -1};
  rig.model->embed(*rig.stream, ids, 2, rig.hidden->data());
  rig.stream->host({Log::call, &log, 0});
  rig.stream->record(*end);
  other->wait(*end);
  ASSERT_OK(other->synchronize());
  Status status = rig.stream->synchronize();
  EXPECT_EQ(status.code(), Code::kInvalidArgument);
  EXPECT_NE(status.message().find("-1"), std::string::npos) << status.message();
  EXPECT_EQ(log.at[0].load(), 0) << "work after a failure is skipped";
  EXPECT_TRUE(rig.stream->synchronize().ok()) << "a failure is reported once";
}

TEST_P(Conformance, ImpossibleCallsAreRefused) {
  Rig rig(GetParam(), small(Family::kLlama), 32);
  LayerCall good{.layer = 0,
                 .hidden = rig.hidden->data(),
                 .cache = rig.cache->data(),
                 .position = 0,
                 .rows = 4,
                 .query_rows = 4};
  auto expect_refused = [&](const char* what, auto change) {
    LayerCall call = good;
    change(call);
    rig.model->layer(*rig.stream, *rig.workspace, call);
    Status status = rig.stream->synchronize();
    EXPECT_EQ(status.code(), Code::kInvalidArgument) << what;
    EXPECT_NE(status.message().find("layer"), std::string::npos) << status.message();
  };
  expect_refused("layer below", [](LayerCall& c) { c.layer = -1; });
  expect_refused("layer above", [](LayerCall& c) { c.layer = 2; });
  expect_refused("no rows", [](LayerCall& c) { c.rows = c.query_rows = 0; });
  expect_refused("more queries than rows", [](LayerCall& c) { c.query_rows = 5; });
  expect_refused("past the workspace", [](LayerCall& c) { c.position = 29; });
  expect_refused("negative position", [](LayerCall& c) { c.position = -1; });
  expect_refused("no hidden states", [](LayerCall& c) { c.hidden = nullptr; });
  auto link = take(rig.backend->make_stream(StreamKind::kLink, 8));
  rig.model->layer(*link, *rig.workspace, good);
  Status status = link->synchronize();
  EXPECT_EQ(status.code(), Code::kInvalidArgument);
  EXPECT_NE(status.message().find("link"), std::string::npos) << status.message();
}

TEST_P(Conformance, MoreCommandsThanCapacityAreReported) {
  auto backend = take(GetParam().make());
  auto stream = take(backend->make_stream(StreamKind::kLink, 2));
  auto gate = take(backend->make_event()), late = take(backend->make_event());
  auto opener = take(backend->make_stream(StreamKind::kLink, 2));
  Log log;
  stream->wait(*gate);
  stream->host({Log::call, &log, 0});
  stream->host({Log::call, &log, 1});
  stream->record(*late);
  opener->record(*gate);
  ASSERT_OK(opener->synchronize());
  Status status = stream->synchronize();
  EXPECT_EQ(status.code(), Code::kInvalidArgument);
  EXPECT_NE(status.message().find("2 commands"), std::string::npos) << status.message();
  EXPECT_TRUE(late->done());
  EXPECT_FALSE(backend->make_stream(StreamKind::kLink, 0).ok());
}

TEST_P(Conformance, TwoModelsRunAtOnce) {
  Rig a(GetParam(), small(Family::kLlama), 130, DType::kBF16, 1),
      b(GetParam(), small(Family::kQwen3), 130, DType::kBF16, 2);
  a.fill_hidden(5);
  b.fill_hidden(5);
  a.enqueue(0, 0, 130, 130);
  ASSERT_OK(a.stream->synchronize());
  b.enqueue(0, 0, 130, 130);
  ASSERT_OK(b.stream->synchronize());
  auto alone_a = a.hidden_bytes(), alone_b = b.hidden_bytes();
  for (int i = 0; i < 5; ++i) {
    a.fill_hidden(5);
    b.fill_hidden(5);
    a.enqueue(0, 0, 130, 130);
    b.enqueue(0, 0, 130, 130);
    ASSERT_OK(a.stream->synchronize());
    ASSERT_OK(b.stream->synchronize());
    EXPECT_TRUE(a.hidden_bytes() == alone_a && b.hidden_bytes() == alone_b);
  }
}

// ---- memory, limits, messages

TEST_P(Conformance, MemoryIsZeroedAndAligned) {
  auto backend = take(GetParam().make());
  auto stream = take(backend->make_stream(StreamKind::kCopy, 8));
  for (int64_t bytes : {1, 63, 4096, 1 << 22}) {
    auto memory = take(backend->allocate(bytes));
    ASSERT_EQ(memory->size(), bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(memory->data()) % 64, 0u);
    std::vector<std::byte> zeros(static_cast<size_t>(bytes)), found(zeros.size(), std::byte{1});
    stream->copy(found.data(), memory->data(), bytes);
    ASSERT_OK(stream->synchronize());
    EXPECT_TRUE(found == zeros);
    std::fill(found.begin(), found.end(), std::byte{1});
    stream->copy(memory->data(), found.data(), bytes);  // freed memory is not zero
    ASSERT_OK(stream->synchronize());
    auto of_host = take(backend->allocate(bytes, MemoryKind::kHost));
    EXPECT_EQ(std::memcmp(of_host->data(), zeros.data(), zeros.size()), 0);
    std::memset(of_host->data(), 1, static_cast<size_t>(bytes));
  }
  auto nothing = take(backend->allocate(0));
  EXPECT_EQ(nothing->size(), 0);
  EXPECT_EQ(backend->allocate(-5).status().code(), Code::kInvalidArgument);
}

TEST_P(Conformance, TooMuchMemoryIsRefusedWithBothNumbers) {
  auto backend = take(GetParam().make());
  // Whose memory it is decides who may answer instead.
  const Code code = backend->host_visible() ? Code::kExhausted : Code::kDeviceMemory;
  auto refused = backend->allocate(int64_t{1} << 50);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.status().code(), code);
  EXPECT_NE(refused.status().message().find("needs"), std::string::npos) << refused.status().message();
  EXPECT_NE(refused.status().message().find("available"), std::string::npos) << refused.status().message();
  Rig rig(GetParam(), small(Family::kLlama), 16);
  auto workspace = rig.model->make_workspace(int64_t{1} << 30);
  ASSERT_FALSE(workspace.ok());
  EXPECT_EQ(workspace.status().code(), code) << workspace.status().message();
  EXPECT_EQ(rig.model->make_workspace(0).status().code(), Code::kInvalidArgument);
}

TEST_P(Conformance, UnsupportedIsRefusedByName) {
  auto backend = take(GetParam().make());
  for (int64_t head_dim : {int64_t{7}, int64_t{1024}}) {
    auto checkpoint = Checkpoint::random(shaped(Family::kLlama, 32, 32, 2, 1, head_dim), 1);
    ASSERT_OK(checkpoint);  // its own limits are wider
    auto refused = backend->load(*checkpoint, {.dtype = GetParam().dtype});
    ASSERT_FALSE(refused.ok());
    EXPECT_EQ(refused.status().code(), Code::kUnsupported);
    EXPECT_NE(refused.status().message().find(fmt::format("head_dim {}", head_dim)), std::string::npos)
        << refused.status().message();
  }
  auto checkpoint = take(Checkpoint::random(small(Family::kLlama), 1));
  auto refused = backend->load(checkpoint, {.dtype = DType::kF16});
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.status().code(), Code::kUnsupported);
}

TEST_P(Conformance, RandomModelsRun) {
  auto backend = take(GetParam().make());
  auto model = take(backend->load_random(small(Family::kQwen3), {.dtype = GetParam().dtype}, 7));
  auto workspace = take(model->make_workspace(4));
  auto stream = take(backend->make_stream(StreamKind::kCompute, 32));
  auto hidden = take(backend->allocate(4 * 96 * 4)), cache = take(backend->allocate(4 * 96 * 4));
  const int32_t ids[] = {1, 2, 3};
  std::vector<float> logits(301);
  model->embed(*stream, ids, 3, hidden->data());
  for (int64_t l = 0; l < 2; ++l)
    model->layer(*stream, *workspace, {l, hidden->data(), cache->data(), 0, 3, 3});
  model->logits(*stream, *workspace, hidden->data(), logits.data());
  ASSERT_OK(stream->synchronize());
  auto [low, high] = std::minmax_element(logits.begin(), logits.end());
  EXPECT_LT(*low, *high);
  EXPECT_TRUE(std::all_of(logits.begin(), logits.end(), [](float v) { return std::isfinite(v); }));
}

TEST_P(Conformance, LoadingReportsProgress) {
  auto backend = take(GetParam().make());
  auto checkpoint = take(Checkpoint::random(small(Family::kQwen2), 1));
  int64_t last = 0, whole = 0;
  int calls = 0;
  auto model = take(
      backend->load(checkpoint, {.dtype = GetParam().dtype, .progress = [&](int64_t done, int64_t total) {
                                   EXPECT_GE(done, last);
                                   EXPECT_LE(done, total);
                                   last = done;
                                   whole = total;
                                   ++calls;
                                 }}));
  EXPECT_GT(calls, 4);
  EXPECT_GT(whole, 0);
  EXPECT_EQ(last, whole);
  EXPECT_GE(model->weight_bytes(), whole);
  EXPECT_EQ(model->dtype(), GetParam().dtype);
  EXPECT_FALSE(backend->name().empty());
  EXPECT_NE(backend->description().find(std::string(backend->name())), std::string::npos);
}

// What kernels are held against must be what the machine does, and not a number: a layer cannot be faster
// than the product measured, nor slower by far than both allow. Wide, as other processes may run beside it.
TEST_P(Conformance, MeasuredSpeedsAreTheMachines) {
  auto backend = take(GetParam().make());
  EXPECT_EQ(backend->measure_matmul_flops(DType::kF16).status().code(), Code::kUnsupported);
  const double flops = take(backend->measure_matmul_flops(GetParam().dtype)),
               bandwidth = take(backend->measure_read_bandwidth());
  if (GetParam().quick) return;
  ModelConfig config = shaped(Family::kLlama, 1024, 4096, 8, 2, 128);
  config.layers = 1;
  constexpr int64_t kRows = 512;
  Rig rig(GetParam(), config, kRows);
  rig.fill_hidden(5);
  auto seconds = [&](int64_t rows) {
    double best = std::numeric_limits<double>::infinity();
    for (int i = 0; i < 6; ++i) {
      const auto begin = std::chrono::steady_clock::now();
      rig.enqueue(0, 0, rows, rows);
      EXPECT_TRUE(rig.stream->synchronize().ok());
      best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    }
    return best;
  };
  const double weights = 2 * 1024 * 1024 + 2.0 * 1024 * 256 + 3.0 * 1024 * 4096;
  EXPECT_LT(2 * weights * kRows / seconds(kRows), 8 * flops);
  EXPECT_GT(2 * weights * kRows / seconds(kRows), flops / 100);
  // One row reads all weights once; they may lie in a cache, but memory is not a hundred times slower.
  const double read = weights * static_cast<double>(dtype_size(GetParam().dtype)) / seconds(1);
  EXPECT_GT(read, bandwidth / 100);
  EXPECT_LT(read, bandwidth * 100);
}

}  // namespace
}  // namespace ds::conformance
