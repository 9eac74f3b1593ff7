// Our own attention against one in double precision. Whatever lies behind the last key a row may see is not a
// number, and so is all of the output before a call: what is read or left out shows.
#include "runtime/backends/cuda/attention_internal.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace ds::cuda {
namespace {

int64_t group_of(const AttentionShape& s) { return s.heads / s.kv_heads; }

/// Device memory, or host memory that devices can read.
class Memory {
 public:
  explicit Memory(size_t bytes) : bytes_(std::max<size_t>(bytes, 16)) {
    EXPECT_EQ(cudaMalloc(&data_, bytes_), cudaSuccess);
  }
  Memory(Memory&& other) noexcept : data_(std::exchange(other.data_, nullptr)), bytes_(other.bytes_) {}
  ~Memory() {
    if (data_) cudaFree(data_);
  }
  template <typename T>
  static Memory of(const std::vector<T>& values) {
    Memory memory(values.size() * sizeof(T));
    memory.write(values);
    return memory;
  }
  template <typename T>
  void write(const std::vector<T>& values) {
    EXPECT_EQ(cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyDefault), cudaSuccess);
  }
  template <typename T>
  std::vector<T> read(size_t count) const {
    std::vector<T> values(count);
    EXPECT_EQ(cudaMemcpy(values.data(), data_, count * sizeof(T), cudaMemcpyDefault), cudaSuccess);
    return values;
  }
  template <typename T = std::byte>
  T* data() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  size_t bytes_;
};

std::vector<std::byte> encode(const std::vector<float>& values, DType dtype) {
  std::vector<std::byte> bytes(values.size() * static_cast<size_t>(dtype_size(dtype)));
  for (size_t i = 0; i < values.size(); ++i) {
    uint16_t narrow = f32_to_bf16(values[i]);
    if (dtype == DType::kBF16)
      std::memcpy(&bytes[2 * i], &narrow, 2);
    else
      std::memcpy(&bytes[4 * i], &values[i], 4);
  }
  return bytes;
}
std::vector<float> decode(const std::vector<std::byte>& bytes, DType dtype) {
  std::vector<float> values(bytes.size() / static_cast<size_t>(dtype_size(dtype)));
  for (size_t i = 0; i < values.size(); ++i) {
    uint16_t narrow = 0;
    if (dtype == DType::kBF16) {
      std::memcpy(&narrow, &bytes[2 * i], 2);
      values[i] = bf16_to_f32(narrow);
    } else {
      std::memcpy(&values[i], &bytes[4 * i], 4);
    }
  }
  return values;
}

/// Numbers that `dtype` holds exactly.
std::vector<float> random_values(size_t count, DType dtype, uint32_t seed) {
  std::mt19937 generator(seed);
  std::uniform_real_distribution<float> draw(-2, 2);
  std::vector<float> values(count);
  for (float& v : values)
    v = dtype == DType::kBF16 ? bf16_to_f32(f32_to_bf16(draw(generator))) : draw(generator);
  return values;
}

constexpr int64_t kGarbageRows = 70;  // behind the last key of every cache

/// Rows of [2][kv_heads][head_dim], and then rows that are no numbers.
struct Keys {
  std::vector<float> values;
  Memory memory;
  Keys(const AttentionShape& s, int64_t rows, uint32_t seed)
      : values(random_values(static_cast<size_t>(rows * 2 * s.kv_heads * s.head_dim), s.dtype, seed)),
        memory([&] {
          std::vector<float> all = values;
          all.resize(values.size() + static_cast<size_t>(kGarbageRows * 2 * s.kv_heads * s.head_dim),
                     std::numeric_limits<float>::quiet_NaN());
          return Memory::of(encode(all, s.dtype));
        }()) {}
};

/// One sequence of a call: its rows are at `positions`.
struct Sequence {
  const Keys* prefix = nullptr;
  int64_t prefix_rows = 0;
  const Keys* cache = nullptr;
  std::vector<int64_t> positions;
};

std::vector<int64_t> run_of(int64_t first, int64_t count) {
  std::vector<int64_t> positions;
  for (int64_t i = 0; i < count; ++i) positions.push_back(first + i);
  return positions;
}

/// What attention of one head's query is over the keys up to `position`.
void reference(const AttentionShape& s, const Sequence& sequence, int64_t position, int64_t head,
               const float* q, double* out) {
  const int64_t d = s.head_dim, kv_head = head / group_of(s);
  auto key = [&](int64_t at) {
    bool shared = at < sequence.prefix_rows;
    const std::vector<float>& rows = (shared ? sequence.prefix : sequence.cache)->values;
    return &rows[static_cast<size_t>(((shared ? at : at - sequence.prefix_rows) * 2 * s.kv_heads + kv_head) *
                                     d)];
  };
  std::vector<double> scores;
  for (int64_t at = 0; at <= position; ++at) {
    double dot = 0;
    for (int64_t i = 0; i < d; ++i) dot += double{q[i]} * key(at)[i];
    scores.push_back(dot / std::sqrt(static_cast<double>(d)));
  }
  const double top = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  std::fill_n(out, d, 0.0);
  for (int64_t at = 0; at <= position; ++at) {
    const double weight = std::exp(scores[static_cast<size_t>(at)] - top);
    sum += weight;
    for (int64_t i = 0; i < d; ++i) out[i] += weight * key(at)[s.kv_heads * d + i];
  }
  for (int64_t i = 0; i < d; ++i) out[i] /= sum;
}

/// A call on the device: queries, segments, tiles and room for the results.
class Call {
 public:
  Call(const AttentionShape& shape, std::vector<Sequence> sequences)
      : shape_(shape), sequences_(std::move(sequences)), segments_(sequences_.size()) {
    for (size_t i = 0; i < sequences_.size(); ++i) {
      const Sequence& sequence = sequences_[i];
      const auto count = static_cast<int64_t>(sequence.positions.size());
      AttentionSegment& s = segments_[i];
      s.cache = sequence.cache->memory.data();
      s.prefix = sequence.prefix ? sequence.prefix->memory.data() : nullptr;
      s.prefix_rows = sequence.prefix_rows;
      s.first = sequence.positions[0];
      s.row = rows_;
      s.rows = count;
      s.keys = sequence.positions.back() + 1;
      keys_ = std::max(keys_, s.keys);
      for (int64_t row = 0; row < count; row += attention_tile_rows(shape))
        tiles_.push_back({.segment = static_cast<int32_t>(i),
                          .first_row = static_cast<int32_t>(row),
                          .rows = static_cast<int32_t>(std::min(attention_tile_rows(shape), count - row))});
      rows_ += count;
    }
    q_ = random_values(elements(), shape.dtype, 77);
    EXPECT_EQ(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), cudaSuccess);
  }
  ~Call() { cudaStreamDestroy(stream_); }

  size_t elements() const { return static_cast<size_t>(rows_ * shape_.heads * shape_.head_dim); }
  AttentionSegment& segment(size_t i) { return segments_[i]; }
  Sequence& sequence(size_t i) { return sequences_[i]; }
  int64_t tiles() const { return static_cast<int64_t>(tiles_.size()); }
  int64_t keys() const { return keys_; }
  cudaStream_t stream() const { return stream_; }
  const std::byte* q() const { return q_memory_->data(); }
  std::byte* out() const { return out_->data(); }

  /// Puts all on the device; then enqueue() may be called, or captured.
  void place(int64_t splits) {
    splits_ = splits;
    q_memory_.emplace(Memory::of(encode(q_, shape_.dtype)));
    out_.emplace(bytes() + kBehind);
    segment_memory_.emplace(Memory::of(segments_));
    tile_memory_.emplace(Memory::of(tiles_));
    scratch_.emplace(static_cast<size_t>(attention_scratch_bytes(shape_, tiles(), splits)));
    clear();
  }
  void clear() { out_->write(std::vector<uint8_t>(bytes() + kBehind, 0xff)); }
  cudaError_t enqueue() {
    return attend(stream_, shape_, q_memory_->data(), out_->data(), segment_memory_->data<AttentionSegment>(),
                  tile_memory_->data<AttentionTile>(), tiles(), splits_, scratch_->data());
  }
  std::vector<std::byte> results() {
    EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    std::vector<std::byte> all = out_->read<std::byte>(bytes() + kBehind);
    for (size_t i = bytes(); i < all.size(); ++i) EXPECT_EQ(all[i], std::byte{0xff}) << "behind the last row";
    all.resize(bytes());
    return all;
  }
  std::vector<std::byte> run(int64_t splits) {
    place(splits);
    EXPECT_EQ(enqueue(), cudaSuccess);
    return results();
  }

  void expect_right(const std::vector<std::byte>& results, const std::string& what) {
    const std::vector<float> found = decode(results, shape_.dtype);
    // Values up to 2. bf16: the probabilities and the result are each rounded to 8 bits.
    const double allowed = shape_.dtype == DType::kBF16 ? 0.012 : 1e-5;
    std::vector<double> expected(static_cast<size_t>(shape_.head_dim));
    size_t at = 0;
    for (const Sequence& sequence : sequences_)
      for (int64_t position : sequence.positions)
        for (int64_t head = 0; head < shape_.heads; ++head) {
          reference(shape_, sequence, position, head, &q_[at], expected.data());
          for (double value : expected) {
            const double distance = std::abs(found[at] - value);
            ASSERT_LE(distance, allowed)
                << what << ": position " << position << ", head " << head << ", element " << at << ": found "
                << found[at] << ", expected " << value;  // not for a NaN, which is no distance
            ASSERT_FALSE(std::isnan(distance)) << what << ": position " << position << ", head " << head;
            ++at;
          }
        }
  }

 private:
  static constexpr size_t kBehind = 256;
  size_t bytes() const { return elements() * static_cast<size_t>(dtype_size(shape_.dtype)); }

  AttentionShape shape_;
  std::vector<Sequence> sequences_;
  std::vector<AttentionSegment> segments_;
  std::vector<AttentionTile> tiles_;
  std::vector<float> q_;
  int64_t rows_ = 0, keys_ = 0, splits_ = 1;
  cudaStream_t stream_ = nullptr;
  std::optional<Memory> q_memory_, out_, segment_memory_, tile_memory_, scratch_;
};

class Attention : public testing::Test {
 protected:
  void SetUp() override {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) GTEST_SKIP() << "no device";
  }
};

struct Case {
  int64_t group, kv_heads, head_dim;
};
class AttentionShapes : public Attention, public testing::WithParamInterface<std::tuple<Case, DType>> {
 protected:
  AttentionShape shape() const {
    auto [c, dtype] = GetParam();
    return {.heads = c.group * c.kv_heads, .kv_heads = c.kv_heads, .head_dim = c.head_dim, .dtype = dtype};
  }
};

// One row at the end of its own keys, an odd number of rows behind a prefix that ends within a tile of keys,
// rows from the beginning on, and one row that sees only itself.
TEST_P(AttentionShapes, RowsOfManySequences) {
  const AttentionShape s = shape();
  Keys prefix(s, 41, 1), one(s, 100, 2), behind(s, 100, 3), long_run(s, 23, 4), first(s, 1, 5);
  Call call(s, {{.cache = &one, .positions = run_of(99, 1)},
                {.prefix = &prefix, .prefix_rows = 41, .cache = &behind, .positions = run_of(136, 5)},
                {.cache = &long_run, .positions = run_of(0, 23)},
                {.cache = &first, .positions = run_of(0, 1)}});
  for (int64_t splits : {1, 3}) call.expect_right(call.run(splits), fmt::format("{} splits", splits));
}

std::string case_name(const testing::TestParamInfo<std::tuple<Case, DType>>& info) {
  auto [c, dtype] = info.param;
  return fmt::format("{}x{}x{}{}", c.group, c.kv_heads, c.head_dim, dtype_name(dtype));
}
INSTANTIATE_TEST_SUITE_P(All, AttentionShapes,
                         testing::Combine(testing::Values(Case{1, 2, 64}, Case{1, 1, 128}, Case{2, 2, 32},
                                                          Case{2, 1, 6}, Case{2, 1, 24}, Case{2, 1, 256},
                                                          Case{4, 2, 128}, Case{4, 1, 80}, Case{4, 1, 66},
                                                          Case{7, 1, 64}, Case{7, 1, 128}, Case{8, 1, 32},
                                                          Case{8, 1, 96}, Case{8, 1, 256}, Case{8, 1, 6}),
                                          testing::Values(DType::kBF16, DType::kF32)),
                         case_name);

class AttentionTypes : public Attention, public testing::WithParamInterface<DType> {
 protected:
  AttentionShape shape(int64_t heads, int64_t kv_heads, int64_t head_dim) const {
    return {.heads = heads, .kv_heads = kv_heads, .head_dim = head_dim, .dtype = GetParam()};
  }
};
INSTANTIATE_TEST_SUITE_P(All, AttentionTypes, testing::Values(DType::kBF16, DType::kF32),
                         [](const auto& info) { return std::string(dtype_name(info.param)); });

// A group that is larger than a block's rows is shared by several blocks.
TEST_P(AttentionTypes, GroupsOfAnySize) {
  const AttentionShape s = shape(71, 1, 32);
  Keys keys(s, 90, 1);
  Call call(s, {{.cache = &keys, .positions = run_of(87, 3)}});
  for (int64_t splits : {1, 2}) call.expect_right(call.run(splits), fmt::format("{} splits", splits));
}

// Decoding and a question behind many keys, in few and in many splits, of which some have no keys.
TEST_P(AttentionTypes, SplitsAgree) {
  const AttentionShape s = shape(8, 2, 64);
  Keys keys(s, 1500, 1), shared(s, 700, 2);
  Call call(s, {{.cache = &keys, .positions = run_of(1499, 1)},
                {.prefix = &shared, .prefix_rows = 700, .cache = &keys, .positions = run_of(1001, 19)},
                {.cache = &keys, .positions = run_of(10, 1)}});
  const std::vector<std::byte> whole = call.run(1);
  call.expect_right(whole, "1 split");
  const std::vector<float> expected = decode(whole, s.dtype);
  for (int64_t splits : {2, 24, 128}) {
    const std::vector<std::byte> results = call.run(splits);
    EXPECT_TRUE(call.run(splits) == results) << splits << " splits, again";
    const std::vector<float> found = decode(results, s.dtype);
    for (size_t i = 0; i < found.size(); ++i) {
      const float allowed = s.dtype == DType::kBF16 ? 0.01f : 2e-6f;
      ASSERT_NEAR(found[i], expected[i], allowed) << splits << " splits, element " << i;
    }
  }
  call.expect_right(call.run(24), "24 splits");
}

// Large scores: all weight is on few keys, and the running maximum changes often.
TEST_P(AttentionTypes, SteepScores) {
  const AttentionShape s = shape(4, 1, 64);
  Keys keys(s, 300, 1);
  for (size_t row = 0; row < 300; ++row)  // powers of two: bf16 holds the products
    for (size_t d = 0; d < 64; ++d) keys.values[row * 128 + d] *= static_cast<float>(1 << row % 4);
  keys.memory.write(encode(keys.values, s.dtype));
  Call call(s,
            {{.cache = &keys, .positions = run_of(299, 1)}, {.cache = &keys, .positions = run_of(250, 30)}});
  for (int64_t splits : {1, 3}) call.expect_right(call.run(splits), fmt::format("{} splits", splits));
}

TEST_P(AttentionTypes, SelectedPositions) {
  const AttentionShape s = shape(4, 2, 64);
  Keys keys(s, 260, 1);
  Call call(s, {{.cache = &keys, .positions = run_of(30, 2)},
                {.cache = &keys, .positions = {0,  1,  5,  15, 16, 17, 31,  63,  64,  65,  66,  90, 91,
                                               92, 93, 94, 95, 96, 97, 120, 127, 128, 129, 200, 255}}});
  std::vector<int32_t> positions;
  for (int64_t position : call.sequence(1).positions) positions.push_back(static_cast<int32_t>(position));
  Memory memory = Memory::of(positions);
  call.segment(1).positions = memory.data<int32_t>();
  call.segment(1).first = 7;  // not read
  for (int64_t splits : {1, 4}) call.expect_right(call.run(splits), fmt::format("{} splits", splits));
}

// Decoding as it is replayed: only *first_at changes, and what was known beforehand is an upper bound.
TEST_P(AttentionTypes, GraphsReplayWithAnotherLength) {
  const AttentionShape s = shape(8, 2, 128);
  Keys prefix(s, 100, 1), keys(s, 500, 2);
  for (int64_t splits : {1, 5}) {
    Call call(s, {{.prefix = &prefix, .prefix_rows = 100, .cache = &keys, .positions = {599}}});
    Memory first_at = Memory::of(std::vector<int32_t>{0});
    call.segment(0).first_at = first_at.data<int32_t>();
    call.segment(0).first = 3;
    call.place(splits);
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t program = nullptr;
    ASSERT_EQ(cudaStreamBeginCapture(call.stream(), cudaStreamCaptureModeThreadLocal), cudaSuccess);
    ASSERT_EQ(call.enqueue(), cudaSuccess);
    ASSERT_EQ(cudaStreamEndCapture(call.stream(), &graph), cudaSuccess);
    ASSERT_EQ(cudaGraphInstantiate(&program, graph, 0), cudaSuccess);
    for (int32_t at : {0, 60, 61, 96, 97, 252, 596}) {
      first_at.write(std::vector<int32_t>{at});
      call.clear();
      call.sequence(0).positions = {at + 3};
      ASSERT_EQ(cudaGraphLaunch(program, call.stream()), cudaSuccess);
      call.expect_right(call.results(), fmt::format("{} splits, position {}", splits, at + 3));
    }
    EXPECT_EQ(cudaGraphExecDestroy(program), cudaSuccess);
    EXPECT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  }
}

// cuDNN's attention, or what stands for it on a simulated device, where it is there: rows at the end of a
// cache, somewhere among a call's rows. Nothing but them is written.
TEST_F(Attention, OfTheLibrary) {
  const AttentionShape s{.heads = 8, .kv_heads = 2, .head_dim = 64};
  std::string why;
  auto made = LibraryAttention::make(s, 700, 600, 0, why);
  ASSERT_TRUE(made.ok()) << made.status().message();
  if (!*made) GTEST_SKIP() << why;
  LibraryAttention& library = **made;
  const int64_t rows = library.least_rows() + 3;
  Keys keys(s, 700, 1);
  Memory workspace(static_cast<size_t>(library.workspace_bytes()));
  for (int64_t first : {int64_t{0}, 700 - rows}) {
    Call call(s, {{.cache = &keys, .positions = run_of(40, 2)},
                  {.cache = &keys, .positions = run_of(first, rows)},
                  {.cache = &keys, .positions = run_of(99, 1)}});
    std::vector<std::byte> expected = call.run(1);
    call.clear();
    Status run = library.run(call.stream(), call.q(), call.out(), call.segment(1), workspace.data());
    ASSERT_TRUE(run.ok()) << run.message();
    std::vector<std::byte> found = call.results();
    const size_t row = static_cast<size_t>(s.heads * s.head_dim * 2), begin = 2 * row;
    const size_t end = begin + static_cast<size_t>(rows) * row;
    for (size_t i = 0; i < found.size(); ++i) {
      if (i < begin || i >= end) {
        ASSERT_EQ(found[i], std::byte{0xff}) << "outside of its rows, byte " << i;
        found[i] = expected[i];
      }
    }
    call.expect_right(found, fmt::format("{} rows from position {}", rows, first));
  }
}

TEST_F(Attention, WhatTheLibraryDoesNot) {
  if (library_attention_version().empty()) GTEST_SKIP() << "no library";
  std::string why;
  auto f32 = LibraryAttention::make({.heads = 8, .kv_heads = 2, .head_dim = 64, .dtype = DType::kF32}, 700,
                                    600, 0, why);
  ASSERT_TRUE(f32.ok());
  EXPECT_EQ(*f32, nullptr);
  EXPECT_FALSE(why.empty());
  EXPECT_FALSE(LibraryAttention::make({.heads = 8, .kv_heads = 2, .head_dim = 64}, 0, 600, 0, why).ok());
}

// A row's result is the same to the bit whatever else the call does, as long as it is tiled and split alike.
TEST_P(AttentionTypes, RowsDoNotDependOnOtherSegments) {
  const AttentionShape s = shape(4, 2, 64);
  Keys keys(s, 300, 1), other(s, 200, 2);
  const Sequence mine{.cache = &keys, .positions = run_of(250, 40)};
  Call alone(s, {mine}), among(s, {mine, {.cache = &other, .positions = run_of(0, 33)}});
  for (int64_t splits : {1, 3}) {
    const std::vector<std::byte> expected = alone.run(splits);
    std::vector<std::byte> found = among.run(splits);
    ASSERT_LT(expected.size(), found.size());
    found.resize(expected.size());
    EXPECT_TRUE(found == expected) << splits << " splits";
  }
}

TEST(AttentionSplits, FillTheDevice) {
  const AttentionShape s{.heads = 32, .kv_heads = 8, .head_dim = 128};
  EXPECT_EQ(attention_tile_rows(s), 16);
  EXPECT_EQ(attention_splits(s, 1, 64, 132), 1) << "few keys";
  EXPECT_EQ(attention_splits(s, 40, 32768, 132), 1) << "blocks enough";
  EXPECT_EQ(attention_splits(s, 0, 32768, 132), 1);
  for (int64_t tiles : {1, 2, 3, 4, 7, 16, 20, 30, 33, 200}) {
    for (int64_t keys : {1, 1000, 4096, 8192, 32768, 131072}) {
      const int64_t splits = attention_splits(s, tiles, keys, 132), blocks = tiles * 8 * splits;
      ASSERT_GE(splits, 1);
      ASSERT_LE(splits * 4, std::max<int64_t>((keys + 63) / 64, 4)) << "at least four runs of keys each";
      ASSERT_LE(attention_scratch_bytes(s, tiles, splits), attention_most_scratch_bytes(s, 132));
      if (keys >= 32768 && blocks < 264) {
        EXPECT_GE(blocks, 0.75 * 264) << tiles << " tiles, " << keys << " keys, " << splits << " splits";
      }
    }
  }
  EXPECT_EQ(attention_scratch_bytes(s, 4, 1), 0);
  EXPECT_GT(attention_scratch_bytes(s, 4, 2), 4 * 8 * 2 * 64 * 128 * 4);
}

TEST(AttentionSplits, WhatIsNotDone) {
  auto refused = [](AttentionShape s, int64_t splits = 1) {
    return attend(nullptr, s, nullptr, nullptr, nullptr, nullptr, 1, splits, nullptr) ==
           cudaErrorInvalidValue;
  };
  EXPECT_TRUE(refused({.heads = 4, .kv_heads = 4, .head_dim = 258}));
  EXPECT_TRUE(refused({.heads = 4, .kv_heads = 4, .head_dim = 63}));
  EXPECT_TRUE(refused({.heads = 5, .kv_heads = 4, .head_dim = 64}));
  EXPECT_TRUE(refused({.heads = 4, .kv_heads = 4, .head_dim = 64, .dtype = DType::kF16}));
  EXPECT_TRUE(refused({.heads = 4, .kv_heads = 4, .head_dim = 64}, 2)) << "splits without scratch";
}

}  // namespace
}  // namespace ds::cuda
