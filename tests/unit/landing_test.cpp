// Tensors of an entry, landed in the memory that kernels read: by one thread and by several, whole and in
// parts, and what is damaged, late or missing.
#include "runtime/core/landing.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <thread>

#include "runtime/backends/host/stream_internal.h"
#include "tests/unit/take.h"
#include "tests/unit/test_backend.h"

namespace ds {
namespace {

constexpr int64_t kTokens = 1000;  // several blocks, the last one of a few rows

class Landings : public ::testing::TestWithParam<int> {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "/ds_landing_" + std::to_string(getpid());
    std::filesystem::remove_all(folder_);
    shape_ = {.family = "llama",
              .layers = 2,
              .d_model = 8192,
              .ff = 64,
              .heads = 64,
              .kv_heads = 32,
              .head_dim = 128,
              .vocab = 100};
    identity_ = {.sender = std::string(64, 'a'), .tokens_hash = std::string(64, 'b'), .tokens = kTokens};
    kv_row_ = shape_.kv_row() * 2;
    std::mt19937_64 random(1);
    for (auto& bytes : data_) {
      std::vector<uint64_t> words(static_cast<size_t>(kTokens * kv_row_ / 8));
      for (uint64_t& w : words) w = random();
      auto raw = std::as_bytes(std::span(words));
      bytes.assign(raw.begin(), raw.end());
    }
    store_ = testing::take(open_store("file:" + folder_));
    (void)testing::take(write_entry(*store_, identity_, {.fingerprint = identity_.sender}, shape_,
                                    {{TensorKind::kKv, 0, data_[0]}, {TensorKind::kKv, 1, data_[1]}}));
    backend_ = testing::take(testing::test_backend());
    memory_ = testing::take(backend_->allocate(kTokens * kv_row_));
    landing_ = testing::take(Landing::create(*backend_, kv_row_, GetParam()));
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  /// What lies in device memory, after all that was read is there.
  std::vector<std::byte> landed(int64_t bytes) {
    EXPECT_TRUE(landing_->synchronize().ok());
    auto stream = testing::take(backend_->make_stream(StreamKind::kCopy, 4));
    std::vector<std::byte> found(static_cast<size_t>(bytes));
    stream->copy(found.data(), memory_->data(), bytes);
    EXPECT_TRUE(stream->synchronize().ok());
    return found;
  }

  std::string folder_;
  Shape shape_;
  EntryIdentity identity_;
  int64_t kv_row_ = 0;
  std::vector<std::byte> data_[2];
  std::unique_ptr<Store> store_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<DeviceMemory> memory_;
  std::unique_ptr<Landing> landing_;
};

TEST_P(Landings, EveryRowLandsWhereItBelongs) {
  EXPECT_EQ(landing_->staged(), !backend_->host_visible());
  EntryReader entry = testing::take(EntryReader::open(*store_, identity_, shape_));
  int64_t bytes = 0;
  for (auto [first, rows] :
       {std::pair<int64_t, int64_t>{0, kTokens}, {64, 500}, {100, 333}, {999, 1}, {5, 0}}) {
    for (int32_t layer : {0, 1}) {
      Status status = landing_->read(entry, {TensorKind::kKv, layer, first, rows}, memory_->data());
      ASSERT_TRUE(status.ok()) << status.message();
      const auto begin = data_[layer].begin() + first * kv_row_;
      EXPECT_TRUE(landed(rows * kv_row_) == std::vector<std::byte>(begin, begin + rows * kv_row_))
          << first << " " << rows;
      bytes += rows * kv_row_;
    }
  }
  EXPECT_EQ(entry.bytes_read(), bytes);
}

TEST_P(Landings, AnEventSaysWhenAllIsThere) {
  if (!landing_->staged()) GTEST_SKIP() << "what is read straight is there when read() returns";
  EntryReader entry = testing::take(EntryReader::open(*store_, identity_, shape_));
  auto event = testing::take(backend_->make_event());
  auto stream = testing::take(backend_->make_stream(StreamKind::kCompute, 8));
  std::vector<std::byte> found(data_[0].size());
  stream->wait(*event);  // enqueued before anything is read
  ASSERT_TRUE(landing_->read(entry, {TensorKind::kKv, 0, 0, kTokens}, memory_->data()).ok());
  landing_->record(*event);
  ASSERT_TRUE(stream->synchronize().ok());
  stream->copy(found.data(), memory_->data(), static_cast<int64_t>(found.size()));
  ASSERT_TRUE(stream->synchronize().ok());
  EXPECT_TRUE(found == data_[0]);
  EXPECT_TRUE(landing_->synchronize().ok());
}

TEST_P(Landings, DamageIsFoundWhoeverReadsIt) {
  const std::string path = folder_ + "/" + identity_.key();
  std::string file;
  for (const auto& found : std::filesystem::recursive_directory_iterator(folder_))
    if (found.is_regular_file()) file = found.path();
  ASSERT_FALSE(file.empty()) << path;
  EntryReader entry = testing::take(EntryReader::open(*store_, identity_, shape_));
  const EntryTensor* tensor = entry.header().find(TensorKind::kKv, 1);
  ASSERT_NE(tensor, nullptr);
  {
    std::fstream out(file, std::ios::in | std::ios::out | std::ios::binary);
    out.seekp(tensor->offset + 700 * kv_row_ + 5);
    out.put(static_cast<char>(~std::to_integer<int>(data_[1][static_cast<size_t>(700 * kv_row_ + 5)])));
  }
  Status status = landing_->read(entry, {TensorKind::kKv, 1, 0, kTokens}, memory_->data());
  EXPECT_EQ(status.code(), Code::kCorrupt) << status.message();
  EXPECT_NE(status.message().find("kv(1)"), std::string::npos) << status.message();
  // The landing goes on: a miss is not its end.
  ASSERT_TRUE(landing_->read(entry, {TensorKind::kKv, 0, 0, kTokens}, memory_->data()).ok());
  EXPECT_TRUE(landed(kTokens * kv_row_) == data_[0]);
}

TEST_P(Landings, ItEndsWhenToldTo) {
  EntryReader entry = testing::take(EntryReader::open(*store_, identity_, shape_));
  std::atomic<int> asked{0};
  Status status = landing_->read(entry, {TensorKind::kKv, 0, 0, kTokens}, memory_->data(), [&]() -> Status {
    return ++asked > 3 ? error(Code::kExhausted, "late") : ok_status();
  });
  EXPECT_EQ(status.code(), Code::kExhausted) << status.message();
  EXPECT_EQ(landing_->read(entry, {TensorKind::kE, 1, 0, 1}, memory_->data()).code(), Code::kNotFound);
  EXPECT_TRUE(landing_->synchronize().ok());
}

/// The CPU backend as if its memory were a device's, at the end of a slow link.
class SlowBackend final : public Backend {
 public:
  static constexpr auto kCopyTime = std::chrono::milliseconds(25);
  struct Watched final : host::HostEvent {
    explicit Watched(SlowBackend& of) : of(of) {}
    bool done() const override { return ++of.asked, HostEvent::done(); }
    void block() const override { ++of.blocked, HostEvent::block(); }
    SlowBackend& of;
  };
  std::atomic<int> asked{0}, blocked{0};  // whether a copy is done; until it is
  explicit SlowBackend(Backend& backend) : backend_(backend) {}
  std::string_view name() const override { return "slow"; }
  std::string description() const override { return "slow"; }
  bool host_visible() const override { return false; }
  Result<std::unique_ptr<DeviceMemory>> allocate(int64_t bytes, MemoryKind kind) override {
    return backend_.allocate(bytes, kind);
  }
  Result<std::unique_ptr<Event>> make_event() override {
    return std::unique_ptr<Event>(std::make_unique<Watched>(*this));
  }
  Result<double> measure_read_bandwidth() override { return backend_.measure_read_bandwidth(); }

 protected:
  int64_t max_head_dim() const override { return INT64_MAX; }  // the other one says which
  Result<std::unique_ptr<DeviceModel>> new_model(const Checkpoint& c, const LoadOptions& o) override {
    return backend_.load(c, o);
  }
  Result<std::unique_ptr<DeviceModel>> new_random_model(const ModelConfig& c, const LoadOptions& o,
                                                        uint64_t seed) override {
    return backend_.load_random(c, o, seed);
  }
  Result<double> time_matmul_flops(DType dtype) override { return backend_.measure_matmul_flops(dtype); }
  Result<std::unique_ptr<CommandStream>> new_stream(StreamKind kind, int64_t capacity) override {
    struct Slow final : CommandStream {
      std::unique_ptr<CommandStream> to;
      StreamKind kind() const override { return to->kind(); }
      void fail(Status status) override { to->fail(std::move(status)); }
      void wait(Event& event) override { to->wait(event); }
      void record(Event& event) override { to->record(event); }
      void host(HostTask task) override { to->host(task); }
      void cancel() override { to->cancel(); }
      Status synchronize() override { return to->synchronize(); }
      void copy(std::byte* at, const std::byte* from, int64_t bytes) override {
        to->host({[](void*, int64_t) { std::this_thread::sleep_for(kCopyTime); }, nullptr, 0});
        to->copy(at, from, bytes);
      }
    };
    auto slow = std::make_unique<Slow>();
    DS_ASSIGN(slow->to, backend_.make_stream(kind, std::min<int64_t>(capacity, 4096)));
    return std::unique_ptr<CommandStream>(std::move(slow));
  }

 private:
  Backend& backend_;
};

TEST_P(Landings, AReaderThatWaitsForASlowDeviceSleeps) {
  if (!backend_->host_visible()) GTEST_SKIP() << "the slow device is made of the host";
  SlowBackend slow(*backend_);
  auto landing = testing::take(Landing::create(slow, kv_row_, GetParam()));
  ASSERT_TRUE(landing->staged());
  EntryReader entry = testing::take(EntryReader::open(*store_, identity_, shape_));
  for (int i = 0; i < 8; ++i)
    ASSERT_TRUE(landing->read(entry, {TensorKind::kKv, 0, 0, kTokens}, memory_->data()).ok());
  EXPECT_TRUE(landing->synchronize().ok());
  // 32 blocks, through 4 or 10 places.
  EXPECT_GE(slow.blocked, 20);
  EXPECT_LE(slow.asked, 64) << "it asks again and again";
  std::vector<std::byte> found(memory_->data(), memory_->data() + kTokens * kv_row_);
  EXPECT_TRUE(found == data_[0]);
}

INSTANTIATE_TEST_SUITE_P(Threads, Landings, ::testing::Values(1, 4));

}  // namespace
}  // namespace ds
