// The arena: caches that grow where they are, and a budget that counts what becomes memory, whatever steps a
// backend's memory comes in.
#include "runtime/engine/kv_arena.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "tests/unit/take.h"
#include "tests/unit/test_backend.h"

namespace ds {
namespace {

using testing::take;

constexpr int64_t kMiB = int64_t{1} << 20;

/// The CPU's memory, as if it came in large steps, and were so much in all.
class SteppedBackend final : public Backend {
 public:
  SteppedBackend(int64_t step, int64_t memory) : step_(step), left(memory) {}
  std::string_view name() const override { return "stepped"; }
  std::string description() const override { return "stepped"; }
  bool host_visible() const override { return true; }
  Result<std::unique_ptr<DeviceMemory>> allocate(int64_t bytes, MemoryKind kind) override {
    return under_->allocate(bytes, kind);
  }
  int64_t range_step() const override { return step_; }
  Result<std::unique_ptr<GrowingMemory>> reserve(int64_t bytes) override {
    if (step_ == 0) return Backend::reserve(bytes);
    DS_ASSIGN(auto range, under_->reserve((bytes + step_ - 1) / step_ * step_));
    return std::unique_ptr<GrowingMemory>(std::make_unique<Range>(*this, std::move(range)));
  }
  Result<std::unique_ptr<Event>> make_event() override { return under_->make_event(); }
  Result<double> measure_read_bandwidth() override { return under_->measure_read_bandwidth(); }

 protected:
  int64_t max_head_dim() const override { return INT64_MAX; }
  Result<std::unique_ptr<DeviceModel>> new_model(const Checkpoint& c, const LoadOptions& o) override {
    return under_->load(c, o);
  }
  Result<std::unique_ptr<DeviceModel>> new_random_model(const ModelConfig& c, const LoadOptions& o,
                                                        uint64_t seed) override {
    return under_->load_random(c, o, seed);
  }
  Result<std::unique_ptr<CommandStream>> new_stream(StreamKind kind, int64_t capacity) override {
    return under_->make_stream(kind, capacity);
  }
  Result<double> time_matmul_flops(DType dtype) override { return under_->measure_matmul_flops(dtype); }

 private:
  class Range final : public GrowingMemory {
   public:
    Range(SteppedBackend& of, std::unique_ptr<GrowingMemory> range)
        : of_(of), range_(std::move(range)), there_(static_cast<size_t>(range_->size() / of.step_)) {}
    ~Range() override { of_.left += committed(); }
    std::byte* data() override { return range_->data(); }
    int64_t size() const override { return range_->size(); }
    int64_t committed() const override { return of_.step_ * std::count(there_.begin(), there_.end(), true); }

   protected:
    Status commit_range(int64_t offset, int64_t bytes) override {
      const int64_t step = of_.step_;
      for (int64_t i = offset / step; i * step < offset + bytes; ++i) {
        if (there_[static_cast<size_t>(i)]) continue;
        if (of_.left < step)
          return error(Code::kDeviceMemory, "needs {} bytes, {} are available", step, of_.left);
        DS_TRY(range_->commit(i * step, step));
        there_[static_cast<size_t>(i)] = true;
        of_.left -= step;
      }
      return ok_status();
    }

   private:
    SteppedBackend& of_;
    std::unique_ptr<GrowingMemory> range_;
    std::vector<bool> there_;
  };

  const int64_t step_;
  std::unique_ptr<Backend> under_ = take(make_cpu_backend({.threads = 1}));

 public:
  int64_t left;
};

std::shared_ptr<KvRange> range(KvArena& arena, const RowBytes& bytes, int64_t rows) {
  return take(arena.reserve(bytes, rows, take(arena.claim(arena.needs(bytes, rows)))));
}

/// Rows stay where they are, with what is in them, while the sequence grows; behind them is as much memory as
/// kernels may read.
TEST(KvArena, ASequenceGrowsWhereItIs) {
  auto backend = take(testing::test_backend());
  auto stream = take(backend->make_stream(StreamKind::kCopy, 256));
  for (const RowBytes bytes : {RowBytes{5, 256, 64}, RowBytes{3, 24 << 10, 64}}) {
    constexpr int64_t kRows = 700;
    KvArena arena(*backend, 256 * kMiB, 1000);
    auto r = range(arena, bytes, kRows);
    EXPECT_GE(r->rows(), kRows);
    std::byte* const first = r->layer(0);
    int64_t there = 0;
    for (int64_t rows : {1, 2, 130, 131, 512, 700}) {
      ASSERT_TRUE(r->commit(rows).ok());
      EXPECT_EQ(r->layer(0), first);
      const int64_t readable = (rows + kCacheTileRows - 1) / kCacheTileRows * kCacheTileRows;
      for (int64_t l = 0; l < bytes.layers; ++l) {
        std::vector<std::byte> found(static_cast<size_t>(readable * bytes.kv), std::byte{1});
        stream->copy(found.data(), r->layer(l), readable * bytes.kv);
        ASSERT_TRUE(stream->synchronize().ok());
        const auto behind = found.begin() + there * bytes.kv;
        EXPECT_TRUE(std::all_of(found.begin(), behind, [&](std::byte b) { return b == std::byte(l + 7); }));
        EXPECT_TRUE(std::all_of(behind, found.end(), [](std::byte b) { return b == std::byte{0}; }));
        std::fill(found.begin(), found.begin() + rows * bytes.kv, std::byte(l + 7));
        stream->copy(r->layer(l), found.data(), rows * bytes.kv);
        ASSERT_TRUE(stream->synchronize().ok());
      }
      there = rows;
    }
    EXPECT_EQ(r->commit(r->rows() + 1).code(), Code::kInvalidArgument);
    // And from range to range.
    auto other = range(arena, bytes, 20);
    ASSERT_TRUE(other->commit(20).ok());
    ASSERT_TRUE(other->copy_rows(*stream, *r, 690, 3, 10).ok());
    std::vector<std::byte> found(static_cast<size_t>(10 * bytes.kv));
    stream->copy(found.data(), other->layer(2) + 3 * bytes.kv, 10 * bytes.kv);
    ASSERT_TRUE(stream->synchronize().ok());
    EXPECT_TRUE(std::ranges::all_of(found, [](std::byte b) { return b == std::byte{9}; }));
  }
}

/// Of large steps the budget counts every one: what is memory has been claimed, at every length, and what is
/// claimed in the end is no more than the steps that the rows lie in.
TEST(KvArena, WhatIsClaimedIsWhatBecomesMemory) {
  std::mt19937 random(3);
  for (int64_t step : {int64_t{0}, 2 * kMiB}) {
    for (int i = 0; i < (step == 0 ? 8 : 60); ++i) {
      SteppedBackend backend(step, int64_t{4} << 30);
      auto below = [&](int n) { return 1 + static_cast<int64_t>(random() % static_cast<unsigned>(n)); };
      const RowBytes bytes{below(12), 16 * below(500), 64};
      const int64_t rows = below(step == 0 ? 300 : 3000), used = 1 + (rows - 1) / below(9);
      KvArena arena(backend, int64_t{2} << 30, 4000);
      SCOPED_TRACE(fmt::format("step {}, {} layers of rows of {} bytes, {} of {} rows", step, bytes.layers,
                               bytes.kv, used, rows));
      auto r = range(arena, bytes, rows);
      EXPECT_EQ(arena.committed(), step == 0 ? arena.claimed() : 0);
      for (int64_t at = 1; at <= used; at = std::min(at + below(200), std::max(used, at + 1))) {
        ASSERT_TRUE(r->commit(at).ok());
        EXPECT_LE(arena.committed(), arena.claimed());
      }
      EXPECT_GE(arena.committed(), bytes.cache(used));
      r->settle(used);
      EXPECT_LE(arena.committed(), arena.claimed());
      // Nowhere near the memory of a step for each layer where the layers are short.
      if (used == rows) {
        EXPECT_LE(arena.claimed(),
                  (bytes.cache(rows) + bytes.layers * (192 * bytes.kv + (64 << 10))) * 5 / 4 + 2 * kMiB);
      }
      r.reset();
      EXPECT_EQ(arena.claimed(), 0);
    }
  }
}

/// A range that was given back serves the next sequence of its kind, unless it is more memory than that one
/// has claimed; and it is the first that goes when others claim memory, or when the system has none.
TEST(KvArena, IdleRangesServeAndGiveWay) {
  SteppedBackend backend(2 * kMiB, 64 * kMiB);
  const RowBytes bytes{4, 16 << 10, 64};  // a step has 128 rows
  KvArena arena(backend, 128 * kMiB, 2000);
  auto r = range(arena, bytes, 600);
  ASSERT_TRUE(r->commit(500).ok());
  const int64_t large = arena.committed();
  EXPECT_EQ(large, 4 * 5 * 2 * kMiB);
  std::byte* const at = r->layer(0);
  r.reset();
  EXPECT_EQ(arena.claimed(), 0);
  EXPECT_EQ(arena.committed(), large) << "it is kept";
  auto same = range(arena, bytes, 550);
  EXPECT_EQ(same->layer(0), at);
  same.reset();
  EXPECT_EQ(backend.left, 64 * kMiB - large);
  // The device has 24 MiB left, the budget says 88: what is idle goes.
  RowBytes other = bytes;
  other.layers = 5;
  auto more = range(arena, other, 600);
  Status status = more->commit(600);
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(backend.left, 64 * kMiB - arena.committed());
  EXPECT_EQ(arena.committed(), 5 * 6 * 2 * kMiB);
  // And when there is nothing left at all, it says so, and what is there stays.
  RowBytes third = bytes;
  third.layers = 1;
  auto last = range(arena, third, 700);
  ASSERT_TRUE(last->commit(60).ok());
  const int64_t before = arena.committed();
  backend.left = 0;
  status = last->commit(600);
  EXPECT_EQ(status.code(), Code::kDeviceMemory);
  EXPECT_NE(status.message().find("available"), std::string::npos) << status.message();
  EXPECT_EQ(arena.committed(), before);
  EXPECT_TRUE(last->commit(60).ok());
}

TEST(KvArena, ASmallSequenceTakesNoLargeRange) {
  SteppedBackend backend(2 * kMiB, int64_t{1} << 30);
  const RowBytes bytes{2, 16 << 10, 64};
  KvArena arena(backend, int64_t{1} << 30, 8192);
  auto large = range(arena, bytes, 1500), small = range(arena, bytes, 600);
  EXPECT_EQ(large->rows(), 8192);
  EXPECT_EQ(small->rows(), 8192);
  ASSERT_TRUE(large->commit(1500).ok() && small->commit(600).ok());
  std::byte *const large_at = large->layer(0), *const small_at = small->layer(0);
  small.reset();
  large.reset();
  auto again = range(arena, bytes, 600);
  EXPECT_EQ(again->layer(0), small_at);
  auto another = range(arena, bytes, 600);
  EXPECT_NE(another->layer(0), large_at);
}

TEST(KvArena, HoldsToItsBudget) {
  auto backend = take(testing::test_backend());
  KvArena arena(*backend, 1000);
  auto a = arena.claim(600);
  ASSERT_TRUE(a.ok());
  auto refused = arena.claim(500);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.status().code(), Code::kExhausted);
  EXPECT_TRUE(a->grow(1000).ok());
  EXPECT_FALSE(a->grow(1001).ok());
  EXPECT_EQ(a->bytes(), 1000);
  {
    ArenaClaim part = a->split(300);
    EXPECT_EQ(arena.claimed(), 1000);
  }
  EXPECT_EQ(arena.claimed(), 700);
  a->shrink(100);
  EXPECT_EQ(arena.claimed(), 100);
  EXPECT_EQ(arena.peak(), 1000);
}

}  // namespace
}  // namespace ds
