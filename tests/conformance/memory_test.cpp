// Memory, loading, limits and their messages, measured speeds.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "tests/conformance/rig.h"

namespace ds::conformance {
namespace {

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

TEST_P(Conformance, AReservedRangeBecomesMemoryWhereItIsCommitted) {
  auto backend = take(GetParam().make());
  auto stream = take(backend->make_stream(StreamKind::kCopy, 8));
  constexpr int64_t kBytes = 5 << 20, kPart = 100'000;
  auto range = take(backend->reserve(kBytes));
  EXPECT_GE(range->size(), kBytes);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(range->data()) % 64, 0u);
  ASSERT_OK(range->commit(0, 0));
  // From two places, in turns; what was written stays.
  std::vector<std::byte> ones(kPart, std::byte{1}), found(kPart);
  for (int64_t at : {int64_t{0}, kBytes - kPart, kPart, kBytes - 2 * kPart}) {
    ASSERT_OK(range->commit(at, kPart));
    stream->copy(found.data(), range->data() + at, kPart);
    ASSERT_OK(stream->synchronize());
    if (at == 0) {
      EXPECT_TRUE(found == std::vector<std::byte>(kPart)) << "zeroed";
    }
    stream->copy(range->data() + at, ones.data(), kPart);
    ASSERT_OK(stream->synchronize());
  }
  ASSERT_OK(range->commit(0, 2 * kPart));
  stream->copy(found.data(), range->data() + kPart, kPart);
  ASSERT_OK(stream->synchronize());
  EXPECT_TRUE(found == ones);
  EXPECT_GE(range->committed(), 4 * kPart);
  EXPECT_LE(range->committed(), range->size());
  for (auto [at, bytes] :
       {std::pair{int64_t{-1}, int64_t{1}}, {range->size(), int64_t{1}}, {int64_t{0}, int64_t{-1}}})
    EXPECT_EQ(range->commit(at, bytes).code(), Code::kInvalidArgument);
  EXPECT_EQ(backend->reserve(-5).status().code(), Code::kInvalidArgument);
}

/// What is memory is so once, in the backend's steps, and no more than was asked for.
TEST_P(Conformance, ARangeIsCommittedInSteps) {
  auto backend = take(GetParam().make());
  const int64_t step = backend->range_step(), most = 16 * std::max<int64_t>(step, 4096);
  auto range = take(backend->reserve(most));
  if (step == 0) {
    EXPECT_EQ(range->committed(), range->size());
    return;
  }
  EXPECT_EQ(range->committed(), 0);
  EXPECT_EQ(range->size() % step, 0);
  auto expect = [&](int64_t offset, int64_t bytes, int64_t steps) {
    ASSERT_OK(range->commit(offset, bytes));
    EXPECT_EQ(range->committed(), steps * step) << offset << " " << bytes;
  };
  expect(5 * step + 1, 1, 1);
  expect(5 * step, step, 1);
  expect(6 * step - 1, 2, 2);
  expect(2 * step, 1, 3);
  expect(2 * step - 1, 5 * step, 6);  // overlaps both
  expect(0, range->size(), range->size() / step);
  expect(3, step, range->size() / step);
}

TEST_P(Conformance, ARangeThatCannotBeMemoryStaysAsItIs) {
  auto backend = take(GetParam().make());
  if (backend->range_step() == 0) GTEST_SKIP() << "ranges are memory at once";
  auto stream = take(backend->make_stream(StreamKind::kCopy, 8));
  auto range = take(backend->reserve(int64_t{1} << 40));  // addresses cost nothing
  ASSERT_OK(range->commit(100, 100));
  std::vector<std::byte> ones(100, std::byte{1}), found(100);
  stream->copy(range->data() + 100, ones.data(), 100);
  ASSERT_OK(stream->synchronize());
  const int64_t before = range->committed();
  const Status refused = range->commit(0, range->size());
  EXPECT_EQ(refused.code(), backend->host_visible() ? Code::kExhausted : Code::kDeviceMemory);
  for (const char* part : {"needs", "available"})
    EXPECT_NE(refused.message().find(part), std::string::npos) << refused.message();
  EXPECT_EQ(range->committed(), before);
  ASSERT_OK(range->commit(0, 300));
  stream->copy(found.data(), range->data() + 100, 100);
  ASSERT_OK(stream->synchronize());
  EXPECT_TRUE(found == ones);
}

/// Whoever gives a range back need not wait for streams that use it yet; and the next one is zeroed.
TEST_P(Conformance, ARangeThatIsGivenBackIsUsedToTheEnd) {
  auto backend = take(GetParam().make());
  auto stream = take(backend->make_stream(StreamKind::kCopy, 64));
  constexpr int64_t kBytes = 3 << 20;
  std::vector<std::byte> zeros(kBytes), found(kBytes);
  auto given = take(backend->allocate(kBytes, MemoryKind::kHost)),
       back = take(backend->allocate(kBytes, MemoryKind::kHost));
  for (int i = 1; i < 6; ++i) {
    std::memset(given->data(), i, kBytes);
    auto range = take(backend->reserve(kBytes));
    ASSERT_OK(range->commit(0, kBytes));
    stream->copy(found.data(), range->data(), kBytes);
    ASSERT_OK(stream->synchronize());
    EXPECT_TRUE(found == zeros) << i;
    stream->copy(range->data(), given->data(), kBytes);
    stream->copy(back->data(), range->data(), kBytes);
    if (backend->host_visible()) ASSERT_OK(stream->synchronize());  // its streams are host code
    range.reset();
    ASSERT_OK(stream->synchronize());
    EXPECT_EQ(std::memcmp(back->data(), given->data(), kBytes), 0) << i;
  }
}

/// Kernels take caches in ranges as they take any, of which no more is memory than their rows' tiles.
TEST_P(Conformance, KernelsRunInRanges) {
  auto backend = take(GetParam().make());
  const int64_t element = dtype_size(GetParam().dtype), row = small(Family::kLlama).kv_row() * element;
  constexpr int64_t kRows = 300;
  auto model = take(backend->load_random(small(Family::kLlama), {.dtype = GetParam().dtype}, 7));
  auto workspace = take(model->make_workspace(kRows));
  auto stream = take(backend->make_stream(StreamKind::kCompute, 64));
  auto hidden = take(backend->allocate(kRows * 96 * element));
  std::vector<int32_t> ids(kRows, 5);
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i * 7 % 301);
  std::vector<float> logits[2];
  for (const bool grows : {false, true}) {
    auto whole = take(backend->allocate(kRows * row));
    auto range = take(backend->reserve(64 * std::max<int64_t>(backend->range_step(), 1 << 16)));
    std::byte* cache = grows ? range->data() : whole->data();
    logits[grows].resize(301);
    for (int64_t at : {int64_t{0}, int64_t{129}, int64_t{200}}) {  // a prompt, then more of it, in two parts
      const int64_t end = at == 0 ? 129 : at == 129 ? 200 : kRows;
      const int64_t tiles = (end + kCacheTileRows - 1) / kCacheTileRows * kCacheTileRows;
      if (grows) ASSERT_OK(range->commit(0, tiles * row));
      model->embed(*stream, ids.data() + at, end - at, hidden->data());
      model->layer(*stream, *workspace, {0, hidden->data(), cache, at, end - at, end - at});
      model->logits(*stream, *workspace, hidden->data() + (end - at - 1) * 96 * element,
                    logits[grows].data());
      ASSERT_OK(stream->synchronize());
    }
  }
  EXPECT_EQ(logits[0], logits[1]);
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
