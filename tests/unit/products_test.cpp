// Products keep a row's bits whatever the number of rows, on libraries that do not. Not every machine has
// one: RowsDependent is one.
#include <gtest/gtest.h>
#include <omp.h>

#include <cstring>
#include <numeric>

#include "runtime/backends/cpu/matmul_internal.h"
#include "tests/unit/model_fixture.h"
#include "tests/unit/rows_dependent.h"
#include "tests/unit/take.h"

namespace ds::cpu {
namespace {

using ds::testing::take;
using Options = RowsDependent::Options;
constexpr const char* kAmx = "brg:avx512_core_amx_bf16";  // what oneDNN calls it
constexpr int64_t kMostRows = 150;

/// A product with weights and rows at random.
struct Multiplication {
  Multiplication(DType dtype, int64_t in, int64_t out, int64_t most_rows = kMostRows,
                 DType out_dtype = DType::kF32)
      : math(choose_math(detect_isa(), dtype)),
        in_row(in * dtype_size(active_dtype(math))),
        out_row(out * dtype_size(out_dtype)) {
    const Kernels kernels = select_kernels(detect_isa(), dtype, active_dtype(math));
    product = take(Product::make(math, kernels, dtype, in, out, most_rows, out_dtype));
    std::mt19937_64 generator(static_cast<uint64_t>(in + out));
    std::normal_distribution<float> normal;
    std::vector<float> w(static_cast<size_t>(in * out));
    for (float& v : w) v = normal(generator);
    packed = take(HostBuffer::make(product->packed_bytes(), "test"));
    HostBuffer joined;
    const PackedWeights::Part part{reinterpret_cast<const std::byte*>(w.data()), DType::kF32, out};
    EXPECT_TRUE(PackedWeights::pack(*product, {&part, 1}, joined, packed.data()).ok());
    weights = PackedWeights::view(packed.data());
    EXPECT_TRUE(product->settle(weights).ok());
    x.resize(static_cast<size_t>(most_rows * in_row));
    for (int64_t i = 0; i < most_rows * in; ++i) {
      const float value = normal(generator);
      const uint16_t half = f32_to_bf16(value);
      if (active_dtype(math) == DType::kF32)
        std::memcpy(x.data() + i * 4, &value, 4);
      else
        std::memcpy(x.data() + i * 2, &half, 2);
    }
  }

  /// Rows first .. first + rows - 1, with NaN behind the operands and where the results go.
  std::vector<std::byte> run(int64_t first, int64_t rows, bool allow_thin = true) {
    const int64_t room = rows > kExactRows ? kMaxPadding : 0;
    std::vector<std::byte> from(static_cast<size_t>((rows + room) * in_row), std::byte{0xff});
    std::vector<std::byte> to(static_cast<size_t>((rows + room) * out_row), std::byte{0xff});
    std::memcpy(from.data(), x.data() + first * in_row, static_cast<size_t>(rows * in_row));
    auto scratch = take(HostBuffer::make(product->scratch_bytes(), "test"));
    ProductRunner runner(product, allow_thin);
    EXPECT_TRUE(runner.run(weights, rows, from.data(), to.data(), scratch.data()).ok());
    to.resize(static_cast<size_t>(rows * out_row));
    return to;
  }

  /// Whether all rows have the bits that they have in one call of all of them, in calls of other numbers.
  ::testing::AssertionResult rows_keep_their_bits() {
    const auto all = run(0, kMostRows);
    for (int64_t rows : {1, 2, 17, 31, 32, 33, 100, 128, 149})
      for (int64_t first : {int64_t{0}, int64_t{1}, kMostRows - rows}) {
        if (first + rows > kMostRows) continue;
        const auto some = run(first, rows);
        if (std::memcmp(some.data(), all.data() + first * out_row, some.size()) != 0)
          return ::testing::AssertionFailure() << rows << " rows from row " << first << " on differ";
      }
    return ::testing::AssertionSuccess();
  }

  Math math;
  int64_t in_row, out_row;  // bytes
  std::shared_ptr<Product> product;
  HostBuffer packed;
  PackedWeights weights;
  std::vector<std::byte> x;
};

bool has_library() { return choose_math(detect_isa(), DType::kF32) != Math::kPortable; }
std::vector<DType> dtypes() {
  if (choose_math(detect_isa(), DType::kBF16) != Math::kPortable) return {DType::kF32, DType::kBF16};
  return {DType::kF32};
}

/// Sizes that no panel divides, more columns than a stripe has, and less than a panel.
constexpr std::pair<int64_t, int64_t> kShapes[] = {{100, 72}, {46, 58}, {1024, 1000}, {64, 17}};

class Products : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!has_library()) GTEST_SKIP() << "this machine has no AVX-512: its products are our own";
  }
};

TEST_F(Products, OfThisMachineKeepTheirBits) {
  for (DType dtype : dtypes())
    for (auto [in, out] : kShapes) {
      Multiplication m(dtype, in, out);
      EXPECT_TRUE(m.rows_keep_their_bits()) << m.product->way() << " " << in << " -> " << out;
    }
}

/// Sums that are rounded to bf16 hide their order but for one in thousands: it is found all the same.
TEST_F(Products, FewRowsAreSummedInTheLibrarysOrderWhateverTheyAreRoundedTo) {
  if (dtypes().size() < 2) GTEST_SKIP() << "this machine has no bf16 products";
  for (int64_t in : {64, 512, 576, 896, 1024, 1100, 2048, 2816}) {
    Multiplication wide(DType::kBF16, in, 192), narrow(DType::kBF16, in, 192, kMostRows, DType::kBF16);
    EXPECT_EQ(wide.product->few_rows_depth(), narrow.product->few_rows_depth()) << in;
    EXPECT_TRUE(wide.rows_keep_their_bits()) << in;
    EXPECT_TRUE(narrow.rows_keep_their_bits()) << in;
    if (wide.product->way() == "brg:avx512_core_bf16") {
      EXPECT_GT(wide.product->few_rows_depth(), 0) << in;
    }
  }
}

TEST_F(Products, BlocksGiveWhatOneCallGives) {
  const RowsDependent amx({.implementation = kAmx});
  for (DType dtype : dtypes())
    for (auto [in, out] : kShapes)
      for (int threads : {1, 3}) {
        if (threads == 1 && in != 1024) continue;
        ThreadScope scope(threads);
        Multiplication plain(dtype, in, out);
        LibraryScope library(amx);
        Multiplication blocks(dtype, in, out);
        ASSERT_EQ(blocks.product->block_rows(), 32);
        EXPECT_EQ(blocks.product->way(), std::string(kAmx) + ", in blocks of 32 and 128 rows");
        EXPECT_EQ(blocks.product->layout(), plain.product->layout());  // files of packed weights serve both
        for (int64_t rows : {int64_t{1}, int64_t{32}, int64_t{70}, kMostRows}) {
          if (plain.product->block_rows() > 0) continue;  // this machine has it: the same twice
          const auto found = blocks.run(0, rows, false), expected = plain.run(0, rows, false);
          for (size_t i = 0; i < found.size(); i += 4) {
            float a, b;
            std::memcpy(&a, found.data() + i, 4);
            std::memcpy(&b, expected.data() + i, 4);
            ASSERT_NEAR(a, b, 1e-4 * std::sqrt(static_cast<double>(in)))
                << rows << " rows, element " << i / 4;
          }
        }
      }
}

TEST_F(Products, WithAmxAreBlocksWhateverIsFoundOut) {
  for (DType dtype : dtypes())
    for (auto [in, out] : kShapes) {
      RowsDependent amx({.implementation = kAmx, .by_number = true});
      LibraryScope library(amx);
      amx.awake = false;  // nothing to be seen while products are made
      Multiplication m(dtype, in, out);
      amx.awake = true;
      EXPECT_TRUE(m.rows_keep_their_bits()) << in << " -> " << out;
    }
}

TEST_F(Products, ThatDependOnTheNumberOfRowsAreFoundAndMadeOfBlocks) {
  const RowsDependent other({.implementation = "brg:other", .by_number = true});
  LibraryScope library(other);
  for (DType dtype : dtypes())
    for (auto [in, out] : kShapes) {
      Multiplication m(dtype, in, out);
      EXPECT_EQ(m.product->way(), "brg:other, in blocks of 32 and 128 rows");
      EXPECT_TRUE(m.rows_keep_their_bits()) << in << " -> " << out;
    }
  const RowsDependent large({.implementation = "brg:other", .by_number = true, .but_large = true});
  LibraryScope other_library(large);
  for (DType dtype : dtypes()) {
    Multiplication m(dtype, 1024, 1000);
    EXPECT_EQ(m.product->way(), "brg:other, in blocks of 32 rows");
    EXPECT_TRUE(m.rows_keep_their_bits());
  }
}

// The fake breaks the law where nothing is done about it: the tests above can fail.
TEST_F(Products, ThatHideItFromAllChecksBreakTheLaw) {
  for (DType dtype : dtypes()) {
    RowsDependent other({.implementation = "brg:other", .by_number = true});
    LibraryScope library(other);
    other.awake = false;
    Multiplication m(dtype, 1024, 1000);
    other.awake = true;
    EXPECT_EQ(m.product->way(), "brg:other");
    EXPECT_FALSE(m.rows_keep_their_bits());
  }
}

TEST_F(Products, BlocksAreSmallerWhereRowsDependOnTheirPlace) {
  for (auto [by_place, rows] : {std::pair<int64_t, int64_t>{16, 16}, {8, 1}, {32, 32}}) {
    const RowsDependent amx({.implementation = kAmx, .by_number = true, .by_place = by_place});
    LibraryScope library(amx);
    for (DType dtype : dtypes()) {
      Multiplication m(dtype, 256, 300);
      EXPECT_EQ(m.product->block_rows(), rows) << "places from " << by_place << " on differ";
      EXPECT_TRUE(m.rows_keep_their_bits());
    }
  }
}

TEST_F(Products, AreTheSameWhateverTheyWereMadeFor) {
  const RowsDependent amx({.implementation = kAmx, .by_number = true});
  LibraryScope library(amx);
  for (DType dtype : dtypes()) {
    Multiplication few(dtype, 512, 300, 5), many(dtype, 512, 300, kMostRows);
    EXPECT_EQ(few.product->way(), many.product->way());
    few.x = many.x;
    const auto a = few.run(0, 5), b = many.run(0, kMostRows);
    EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size()), 0);
  }
}

// ---- a whole model

struct Answer {
  std::vector<std::byte> caches;
  std::vector<float> logits;
  bool operator==(const Answer&) const = default;
};

/// A prefill in chunks of these lengths.
Answer prefill(const ds::testing::TinyModel& model, const std::vector<int64_t>& chunks) {
  const ModelConfig& c = model.model->config();
  const int64_t tokens = std::accumulate(chunks.begin(), chunks.end(), int64_t{0}),
                row = c.kv_row() * dtype_size(model.model->dtype());
  auto workspace = take(model.model->make_workspace(tokens));
  auto stream = take(model.backend->make_stream(StreamKind::kCompute, 4096));
  auto hidden = take(model.backend->allocate(tokens * c.d_model * 4)),
       caches = take(model.backend->allocate(c.layers * tokens * row));
  const auto ids = ds::testing::random_ids(tokens, c.vocab, 3);
  Answer answer;
  answer.logits.resize(static_cast<size_t>(c.vocab));
  for (int64_t at = 0, i = 0; at < tokens; at += chunks[static_cast<size_t>(i++)]) {
    const int64_t rows = chunks[static_cast<size_t>(i)];
    model.model->embed(*stream, ids.data() + at, rows, hidden->data());
    for (int64_t l = 0; l < c.layers; ++l)
      model.model->layer(*stream, *workspace,
                         {.layer = l,
                          .hidden = hidden->data(),
                          .cache = caches->data() + l * tokens * row,
                          .position = at,
                          .rows = rows,
                          .query_rows = rows});
    if (at + rows == tokens)
      model.model->logits(*stream, *workspace,
                          hidden->data() + (rows - 1) * c.d_model * dtype_size(model.model->dtype()),
                          answer.logits.data());
  }
  EXPECT_TRUE(stream->synchronize().ok());
  answer.caches.assign(caches->data(), caches->data() + caches->size());
  return answer;
}

const std::vector<int64_t> kOne = {203}, kSeveral = {64, 1, 33, 70, 2, 1, 32}, kTokens(203, 1);

TEST_F(Products, OfAModelGiveOneAnswerInAnyChunks) {
  for (DType dtype : dtypes())
    for (Options options : {Options{}, Options{.implementation = kAmx, .by_number = true},
                            Options{.implementation = "brg:other", .by_number = true},
                            Options{.implementation = kAmx, .by_number = true, .by_place = 1}}) {
      const RowsDependent dependent(options);
      LibraryScope library(dependent);
      const ds::testing::TinyModel model(ds::testing::tiny_config(Family::kLlama, 2), 4, dtype);
      const Answer one = prefill(model, kOne);
      EXPECT_TRUE(one == prefill(model, kSeveral));
      EXPECT_TRUE(one == prefill(model, kTokens));
    }
}

TEST_F(Products, OfAModelThatHideItGiveOtherAnswers) {
  for (DType dtype : dtypes()) {
    RowsDependent other({.implementation = "brg:other", .by_number = true});
    LibraryScope library(other);
    other.awake = false;
    const ds::testing::TinyModel model(ds::testing::tiny_config(Family::kLlama, 2), 4, dtype);
    other.awake = true;
    EXPECT_FALSE(prefill(model, kOne) == prefill(model, kSeveral));
  }
}

TEST_F(Products, AreNamedInTheDescription) {
  auto description = [] { return take(ds::testing::test_backend())->description(); };
  EXPECT_NE(description().find("products: brg:avx512_core"), std::string::npos) << description();
  const RowsDependent amx({.implementation = kAmx});
  LibraryScope library(amx);
  if (dtypes().size() < 2) return;
  EXPECT_NE(description().find("products: brg:avx512_core_amx_bf16, in blocks of 32 and 128 rows"),
            std::string::npos)
      << description();
}

}  // namespace
}  // namespace ds::cpu
