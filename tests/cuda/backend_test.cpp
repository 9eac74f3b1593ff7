// The CUDA backend's host side: streams and events, memory, products' algorithms, models, and what it says
// when a device fails. On the simulated device, or on a real one.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

#include "runtime/backends/cuda/algorithms_internal.h"
#include "runtime/backends/cuda/backend_internal.h"
#include "runtime/backends/cuda/model_internal.h"
#include "support/clock.h"
#include "support/file.h"
#ifdef DS_SIMULATED_CUDA
#include "runtime/backends/cuda/simulated/simulated.h"
#endif

namespace ds::cuda {
namespace {

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

class CudaBackend : public testing::Test {
 protected:
  void SetUp() override {
#ifdef DS_SIMULATED_CUDA
    simulated::reset("memory=1GiB");
#else
    auto probe = make_backend({});
    if (!probe.ok()) GTEST_SKIP() << probe.status().message();
#endif
    folder_ = std::filesystem::temp_directory_path() /
              fmt::format("droidspeak-cuda-{}-{}", getpid(),
                          testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::remove_all(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  /// All backends of a test choose the same algorithms: the first one's, so that their bits are equal.
  CudaOptions kept(CudaOptions options = {}) const {
    options.cache = folder_.string();
    return options;
  }

  std::filesystem::path folder_;
};

ModelConfig small() {
  ModelConfig c;
  c.layers = 3;
  c.d_model = 64;
  c.ff = 96;
  c.heads = 4;
  c.kv_heads = 2;
  c.head_dim = 32;
  c.vocab = 131;
  c.max_positions = 4096;
  return c;
}

/// A model with a workspace, a stream and caches of all layers.
struct Rig {
  explicit Rig(const CudaOptions& options, DType dtype = DType::kBF16, int64_t context_ = 600)
      : context(context_),
        backend(take(make_backend(options))),
        model(take(backend->load_random(small(), {.dtype = dtype}, 5))),
        workspace(take(model->make_workspace(context))),
        stream(take(backend->make_stream(StreamKind::kCompute, 4096))) {
    const ModelConfig c = small();
    const int64_t element = dtype_size(dtype);
    hidden = take(backend->allocate(context * c.d_model * element));
    for (int64_t l = 0; l < c.layers; ++l) {
      caches.push_back(take(backend->allocate(context * c.kv_row() * element)));
      cache_data.push_back(caches.back()->data());
    }
  }

  /// All layers over rows of a prompt, then logits of the last.
  std::vector<float> prefill(int64_t rows, uint64_t seed) {
    std::vector<int32_t> ids(static_cast<size_t>(rows));
    for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>((i * 7 + seed * 31 + 3) % 131);
    model->embed(*stream, ids.data(), rows, hidden->data());
    for (int64_t l = 0; l < small().layers; ++l)
      model->layer(*stream, *workspace,
                   {.layer = l,
                    .hidden = hidden->data(),
                    .cache = cache_data[static_cast<size_t>(l)],
                    .position = 0,
                    .rows = rows,
                    .query_rows = l + 1 == small().layers ? 1 : rows});
    std::vector<float> logits(static_cast<size_t>(small().vocab));
    const int64_t row = small().d_model * dtype_size(model->dtype());
    model->logits(*stream, *workspace, hidden->data() + (rows - 1) * row, logits.data());
    const Status status = stream->synchronize();
    EXPECT_TRUE(status.ok()) << status.message();
    return logits;
  }

  struct Step {
    std::vector<float> logits = std::vector<float>(static_cast<size_t>(small().vocab));
    int32_t next = -1;
  };
  Step step(int32_t token, int64_t position, const Choice& choice = {}) {
    Step s;
    model->step(*stream, *workspace,
                {token, position, hidden->data(), cache_data, s.logits.data(), choice, &s.next});
    const Status status = stream->synchronize();
    EXPECT_TRUE(status.ok()) << status.message();
    return s;
  }
  /// The same, call by call.
  Step step_by_layers(int32_t token, int64_t position, const Choice& choice = {}) {
    Step s;
    model->embed(*stream, &token, 1, hidden->data());
    for (int64_t l = 0; l < small().layers; ++l)
      model->layer(*stream, *workspace,
                   {l, hidden->data(), cache_data[static_cast<size_t>(l)], position, 1, 1});
    model->head(*stream, *workspace, {hidden->data(), s.logits.data(), choice, &s.next});
    const Status status = stream->synchronize();
    EXPECT_TRUE(status.ok()) << status.message();
    return s;
  }
  std::vector<std::byte> cache_bytes(size_t layer) {
    std::vector<std::byte> bytes(static_cast<size_t>(caches[layer]->size()));
    stream->copy(bytes.data(), cache_data[layer], caches[layer]->size());
    EXPECT_TRUE(stream->synchronize().ok());
    return bytes;
  }

  int64_t context;
  std::unique_ptr<Backend> backend;
  std::unique_ptr<DeviceModel> model;
  std::unique_ptr<Workspace> workspace;
  std::unique_ptr<CommandStream> stream;
  std::unique_ptr<DeviceMemory> hidden;
  std::vector<std::unique_ptr<DeviceMemory>> caches;
  std::vector<std::byte*> cache_data;
};

// ---- what it says it is

TEST_F(CudaBackend, DescriptionNamesDeviceAndVersions) {
  auto backend = take(make_backend({}));
  const std::string text = backend->description();
  EXPECT_EQ(backend->name(), "cuda");
  EXPECT_FALSE(backend->host_visible());
  EXPECT_EQ(text.rfind("cuda: ", 0), 0u) << text;
  for (const char* part : {"sm_", "CUDA runtime 13.", "driver ", "cuBLASLt 13."})
    EXPECT_NE(text.find(part), std::string::npos) << text;
#ifdef DS_SIMULATED_CUDA
  EXPECT_NE(text.find("simulated"), std::string::npos) << text;
#endif
}

// ---- streams and events

struct Log {
  std::atomic<int> next{0};
  std::atomic<int> at[4] = {};
  static void call(void* context, int64_t argument) {
    auto* log = static_cast<Log*>(context);
    log->at[argument] = ++log->next;
  }
  static void slow(void* context, int64_t argument) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    call(context, argument);
  }
};

TEST_F(CudaBackend, EventsCrossBetweenAllKindsOfStreams) {
  auto backend = take(make_backend({}));
  for (StreamKind from : {StreamKind::kLink, StreamKind::kCopy, StreamKind::kCompute}) {
    for (StreamKind to : {StreamKind::kLink, StreamKind::kCopy, StreamKind::kCompute}) {
      for (bool wait_first : {false, true}) {
        SCOPED_TRACE(fmt::format("{} to {}, {}", stream_kind_name(from), stream_kind_name(to),
                                 wait_first ? "waits before the record" : "records first"));
        auto a = take(backend->make_stream(from, 8)), b = take(backend->make_stream(to, 8));
        auto there = take(backend->make_event()), here = take(backend->make_event());
        for (int round = 0; round < 20; ++round) {  // generations of the same events
          Log log;
          there->reset();
          here->reset();
          ASSERT_FALSE(there->done() || here->done());
          const int64_t begin = now_ns();
          auto record = [&] {
            a->host({Log::slow, &log, 0});
            a->record(*there);
          };
          auto wait = [&] {
            b->wait(*there);
            b->host({Log::call, &log, 1});
            b->record(*here);
          };
          if (wait_first) wait();
          record();
          if (!wait_first) wait();
          ASSERT_OK(b->synchronize());
          ASSERT_OK(a->synchronize());
          ASSERT_EQ(log.at[0], 1);
          ASSERT_EQ(log.at[1], 2);
          ASSERT_TRUE(there->done() && here->done());
          ASSERT_LE(begin, there->time_ns());
          ASSERT_LE(there->time_ns(), here->time_ns());
          ASSERT_LE(here->time_ns(), now_ns());
        }
      }
    }
  }
}

TEST_F(CudaBackend, AnEventThatIsDoneHoldsNobodyUp) {
  auto backend = take(make_backend({}));
  auto link = take(backend->make_stream(StreamKind::kLink, 8));
  auto compute = take(backend->make_stream(StreamKind::kCompute, 8));
  auto event = take(backend->make_event());
  link->record(*event);
  ASSERT_OK(link->synchronize());
  ASSERT_TRUE(event->done());
  Log log;
  compute->wait(*event);
  compute->host({Log::call, &log, 0});
  ASSERT_OK(compute->synchronize());
  EXPECT_EQ(log.at[0], 1);
}

TEST_F(CudaBackend, SeveralStreamsMayWaitForAnEventThatIsRecordedLater) {
  auto backend = take(make_backend({}));
  auto a = take(backend->make_stream(StreamKind::kCompute, 8)),
       b = take(backend->make_stream(StreamKind::kCopy, 8)),
       c = take(backend->make_stream(StreamKind::kLink, 8)),
       d = take(backend->make_stream(StreamKind::kCompute, 8));
  auto event = take(backend->make_event());
  for (int round = 0; round < 20; ++round) {
    Log log;
    event->reset();
    for (auto [stream, number] : {std::pair(a.get(), 1), {b.get(), 2}, {c.get(), 3}}) {
      stream->wait(*event);
      stream->host({Log::call, &log, number});
    }
    d->host({Log::slow, &log, 0});
    d->record(*event);
    for (auto* stream : {a.get(), b.get(), c.get(), d.get()}) ASSERT_OK(stream->synchronize());
    ASSERT_EQ(log.at[0], 1);
    ASSERT_EQ(log.next, 4);
  }
}

TEST_F(CudaBackend, TimesOfTheDeviceAreOfTheSteadyClock) {
  auto backend = take(make_backend({}));
  auto compute = take(backend->make_stream(StreamKind::kCompute, 8));
  auto begin = take(backend->make_event()), end = take(backend->make_event());
  const int64_t before = now_ns();
  compute->record(*begin);
  compute->host(
      {[](void*, int64_t) { std::this_thread::sleep_for(std::chrono::milliseconds(20)); }, nullptr, 0});
  compute->record(*end);
  ASSERT_OK(compute->synchronize());
  EXPECT_GE(begin->time_ns(), before);
  // How well the two clocks are known beside each other depends on how busy the machine is.
  EXPECT_GE(end->time_ns() - begin->time_ns(), 20'000'000 - 2'000'000);
  EXPECT_LE(end->time_ns(), now_ns());
}

TEST_F(CudaBackend, CancelSkipsWhatFollowsAndEventsComplete) {
  auto backend = take(make_backend({}));
  auto compute = take(backend->make_stream(StreamKind::kCompute, 16));
  auto link = take(backend->make_stream(StreamKind::kLink, 16));
  auto gate = take(backend->make_event()), end = take(backend->make_event());
  auto memory = take(backend->allocate(64));
  const std::vector<std::byte> ones(64, std::byte{1});
  Log log;
  compute->wait(*gate);
  compute->host({Log::call, &log, 0});  // has not started when it is cancelled
  compute->cancel();
  compute->host({Log::call, &log, 1});
  compute->copy(memory->data(), ones.data(), 64);
  compute->record(*end);
  link->record(*gate);
  ASSERT_OK(compute->synchronize());
  EXPECT_TRUE(end->done());
  EXPECT_EQ(log.next, 0);
  std::vector<std::byte> found(64, std::byte{2});
  compute->copy(found.data(), memory->data(), 64);
  compute->host({Log::call, &log, 0});
  ASSERT_OK(compute->synchronize());
  EXPECT_EQ(log.next, 1);
  EXPECT_EQ(found, std::vector<std::byte>(64));
}

TEST_F(CudaBackend, MoreCommandsThanCapacityAreReported) {
  auto backend = take(make_backend({}));
  for (StreamKind kind : {StreamKind::kCopy, StreamKind::kCompute}) {
    auto stream = take(backend->make_stream(kind, 2));
    auto late = take(backend->make_event());
    Log log;
    stream->host({Log::call, &log, 0});
    stream->host({Log::call, &log, 1});
    stream->record(*late);
    const Status status = stream->synchronize();
    EXPECT_EQ(status.code(), Code::kInvalidArgument);
    EXPECT_NE(status.message().find("more than 2 commands"), std::string::npos) << status.message();
    EXPECT_TRUE(late->done());
    late->reset();
    stream->record(*late);  // and from now on again
    ASSERT_OK(stream->synchronize());
    EXPECT_TRUE(late->done());
    EXPECT_FALSE(backend->make_stream(kind, 0).ok());
  }
}

TEST_F(CudaBackend, KernelsRunOnComputeStreamsOnly) {
  Rig rig(kept());
  for (StreamKind kind : {StreamKind::kLink, StreamKind::kCopy}) {
    auto stream = take(rig.backend->make_stream(kind, 8));
    const int32_t id = 3;
    rig.model->embed(*stream, &id, 1, rig.hidden->data());
    const Status status = stream->synchronize();
    EXPECT_EQ(status.code(), Code::kInvalidArgument);
    EXPECT_NE(status.message().find(fmt::format("embed enqueued on a {} stream", stream_kind_name(kind))),
              std::string::npos)
        << status.message();
  }
}

// ---- memory

TEST_F(CudaBackend, MemoryIsZeroedAndCopiesKeepOrder) {
  auto backend = take(make_backend({}));
  auto stream = take(backend->make_stream(StreamKind::kCopy, 64));
  for (int64_t bytes : {int64_t{1}, int64_t{63}, int64_t{1} << 20}) {
    auto memory = take(backend->allocate(bytes)), pinned = take(backend->allocate(bytes, MemoryKind::kHost));
    EXPECT_EQ(memory->size(), bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(memory->data()) % 64, 0u);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(pinned->data()) % 64, 0u);
    const auto size = static_cast<size_t>(bytes);
    std::vector<std::byte> found(size, std::byte{1}), data(size);
    stream->copy(found.data(), memory->data(), bytes);
    ASSERT_OK(stream->synchronize());
    EXPECT_EQ(found, std::vector<std::byte>(size));
    EXPECT_EQ(std::memcmp(pinned->data(), found.data(), size), 0);
    for (size_t i = 0; i < size; ++i) data[i] = static_cast<std::byte>(i * 7 + 1);
    std::memcpy(pinned->data(), data.data(), size);
    stream->copy(memory->data(), pinned->data(), bytes);
    auto second = take(backend->allocate(bytes));
    stream->copy(second->data(), memory->data(), bytes);
    stream->copy(found.data(), second->data(), bytes);
    ASSERT_OK(stream->synchronize());
    EXPECT_EQ(found, data);
  }
  EXPECT_EQ(take(backend->allocate(0))->size(), 0);
  EXPECT_EQ(backend->allocate(-5).status().code(), Code::kInvalidArgument);
}

TEST_F(CudaBackend, TooMuchMemoryIsRefusedWithBothNumbers) {
  auto backend = take(make_backend({}));
  auto refused = backend->allocate(int64_t{1} << 50);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.status().code(), Code::kDeviceMemory);
  for (const char* part : {"needs", "available"})
    EXPECT_NE(refused.status().message().find(part), std::string::npos) << refused.status().message();
  ModelConfig large = small();
  large.vocab = int64_t{1} << 40;
  auto model = backend->load_random(large, {}, 1);
  ASSERT_FALSE(model.ok());
  EXPECT_EQ(model.status().code(), Code::kDeviceMemory) << model.status().message();
  EXPECT_NE(model.status().message().find("weights of 'random-1'"), std::string::npos)
      << model.status().message();
  Rig rig(kept());
  auto workspace = rig.model->make_workspace(int64_t{1} << 30);
  ASSERT_FALSE(workspace.ok());
  EXPECT_EQ(workspace.status().code(), Code::kDeviceMemory) << workspace.status().message();
}

// ---- while a stream waits for the host

/// Records an event from a thread of its own, when it is told to.
struct Recorder {
  explicit Recorder(Backend& backend)
      : link(take(backend.make_stream(StreamKind::kLink, 4))), event(take(backend.make_event())) {}
  void record() {
    recorded = true;
    link->record(*event);
    EXPECT_TRUE(link->synchronize().ok());
  }
  /// So that a test that hangs fails instead.
  void record_late(std::thread& watchdog) {
    watchdog = std::thread([this] {
      for (int i = 0; i < 100 && !recorded; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(100));
      if (!recorded.exchange(true)) link->record(*event), late = true;
    });
  }
  std::unique_ptr<CommandStream> link;
  std::unique_ptr<Event> event;
  std::atomic<bool> recorded{false}, late{false};
};

#ifdef DS_SIMULATED_CUDA

TEST_F(CudaBackend, RequestsCallNothingThatMayWaitForTheDevice) {
  for (DType dtype : {DType::kBF16, DType::kF32}) {
    { Rig(kept(), dtype); }  // searches
    simulated::reset("memory=1GiB");
    Rig rig(kept(), dtype);
    const int64_t element = dtype_size(dtype), row = small().d_model * element;
    Recorder recorder(*rig.backend);
    const std::vector<int32_t> ids(550, 3);
    std::vector<float> logits(static_cast<size_t>(small().vocab) * 40);
    auto positions = take(rig.backend->allocate(600 * 4));
    std::vector<int64_t> rows(40);
    int32_t next = 0;
    CommandStream& on = *rig.stream;
    // All that a request may ask for, behind an event that is recorded when all of it has been enqueued.
    on.wait(*recorder.event);
    for (int64_t count : {300, 17, 1}) {
      rig.model->embed(on, ids.data(), count, rig.hidden->data());
      for (int64_t queries : {count, int64_t{1}, int64_t{0}})
        rig.model->layer(on, *rig.workspace, {0, rig.hidden->data(), rig.cache_data[0], 0, count, queries});
    }
    const SequenceRows sequences[] = {
        {rig.cache_data[1], 0, 90, 90},
        {rig.cache_data[2], 70, 40, 1, rig.cache_data[0], 64},
        {rig.cache_data[2] + 64 * small().kv_row() * element, 64, 3, 3, rig.cache_data[0], 64}};
    rig.model->layer_batch(on, *rig.workspace, 1, rig.hidden->data(), sequences);
    auto* chosen = reinterpret_cast<int32_t*>(positions->data());
    for (int64_t count : {int64_t{1}, int64_t{60}}) {
      rig.model->select(on, *rig.workspace, {1, rig.hidden->data(), rig.cache_data[1], 100, count, chosen});
      for (bool queries : {true, false})
        rig.model->layer_selected(on, *rig.workspace,
                                  {1, rig.hidden->data(), rig.cache_data[1], chosen, count, queries});
    }
    rig.model->logits_batch(on, *rig.workspace, rig.hidden->data(), rows, logits.data());
    for (int64_t position : {550, 551, 552, 200, 20})
      rig.model->step(on, *rig.workspace,
                      {3, position, rig.hidden->data(), rig.cache_data, logits.data(), {}, &next});
    rig.model->head(on, *rig.workspace, {rig.hidden->data() + row, logits.data(), {}, &next});
    EXPECT_EQ(simulated::calls_while_waiting(), std::vector<std::string>());
    recorder.record();
    ASSERT_OK(on.synchronize());
  }
}

TEST_F(CudaBackend, ArgumentsArePinnedOnlyWhileNobodyWaits) {
  auto backend = take(make_backend(kept()));
  ModelConfig narrow = small();
  narrow.d_model = 8;
  auto model = take(backend->load_random(narrow, {}, 5));
  auto stream = take(backend->make_stream(StreamKind::kCompute, 16));  // before any workspace
  auto workspace = take(model->make_workspace(64));                    // kernels are loaded with it
  constexpr int64_t kIds = 300'000;
  const std::vector<int32_t> ids(kIds, 3);
  auto hidden = take(backend->allocate(kIds * narrow.d_model * 2));
  {
    Recorder recorder(*backend);
    stream->wait(*recorder.event);
    for (int i = 0; i < 4; ++i) model->embed(*stream, ids.data(), kIds, hidden->data());
    EXPECT_EQ(simulated::calls_while_waiting(), std::vector<std::string>());
    recorder.record();
    const Status refused = stream->synchronize();
    EXPECT_EQ(refused.code(), Code::kExhausted);
    EXPECT_NE(refused.message().find("nobody has recorded"), std::string::npos) << refused.message();
  }
  // Nobody waits: as much as is asked for.
  for (int i = 0; i < 4; ++i) model->embed(*stream, ids.data(), kIds, hidden->data());
  ASSERT_OK(stream->synchronize());
}

TEST_F(CudaBackend, WhoGivesBackWaitsForNobody) {
  Rig rig(kept());
  rig.prefill(40, 1);
  for (int i = 0; i < 3; ++i) rig.step(5, 40 + i);
  const std::vector<int32_t> ids(40, 3);
  auto other = take(rig.backend->make_stream(StreamKind::kCompute, 64));
  auto memory = take(rig.backend->allocate(4096)),
       host = take(rig.backend->allocate(4096, MemoryKind::kHost));
  auto result = take(rig.backend->allocate(4096, MemoryKind::kHost));
  std::memset(host->data(), 7, 4096);
  const simulated::Live before = simulated::live();
  const int64_t calls[] = {simulated::calls("cudaDeviceSynchronize"), simulated::calls("cudaFree"),
                           simulated::calls("cudaFreeHost")};

  // A request that waits for the host, and then uses what is given back before that.
  Recorder recorder(*rig.backend);
  std::thread watchdog;
  recorder.record_late(watchdog);
  other->wait(*recorder.event);
  other->copy(memory->data(), host->data(), 4096);
  other->copy(result->data(), memory->data(), 4096);
  // What another request used, whose stream still works.
  rig.model->embed(*rig.stream, ids.data(), 40, rig.hidden->data());
  rig.model->layer(*rig.stream, *rig.workspace, {0, rig.hidden->data(), rig.cache_data[0], 0, 40, 40});
  rig.workspace.reset();
  rig.stream.reset();
  rig.hidden.reset();
  rig.caches.clear();
  memory.reset();
  host.reset();
  auto workspace = take(rig.model->make_workspace(64));  // the next request begins
  EXPECT_FALSE(recorder.late) << "giving back waited for the stream of another request";
  recorder.record();
  watchdog.join();
  ASSERT_OK(other->synchronize());
  EXPECT_EQ(result->data()[0], std::byte{7});
  EXPECT_EQ(result->data()[4095], std::byte{7});
  EXPECT_EQ(simulated::calls("cudaDeviceSynchronize"), calls[0]);
  EXPECT_EQ(simulated::calls("cudaFree"), calls[1]);
  EXPECT_EQ(simulated::calls("cudaFreeHost"), calls[2]);
  workspace.reset();
  for (int i = 0; i < 100 && simulated::live().device_bytes >= before.device_bytes; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_LT(simulated::live().device_bytes, before.device_bytes);
}

/// A range goes when all that streams were given has run: who gives it back waits for nobody, and unmapping,
/// which may wait for the device, is left until no stream waits for a thread.
TEST_F(CudaBackend, ARangeGoesWhenNothingUsesItAnyMore) {
  auto backend = take(make_backend({}));
  auto other = take(backend->make_stream(StreamKind::kCompute, 64));
  auto range = take(backend->reserve(int64_t{5} << 20));
  ASSERT_OK(range->commit(0, 4096));
  ASSERT_OK(range->commit((int64_t{5} << 20) - 4096, 4096));
  EXPECT_EQ(range->committed(), int64_t{4} << 20);
  auto host = take(backend->allocate(4096, MemoryKind::kHost)),
       result = take(backend->allocate(4096, MemoryKind::kHost));
  std::memset(host->data(), 7, 4096);
  const simulated::Live before = simulated::live();
  Recorder recorder(*backend);
  std::thread watchdog;
  recorder.record_late(watchdog);
  other->wait(*recorder.event);
  other->copy(range->data(), host->data(), 4096);
  other->copy(result->data(), range->data(), 4096);
  range.reset();
  for (int i = 0; i < 3; ++i) take(backend->allocate(100)).reset();  // what may go goes then
  EXPECT_FALSE(recorder.late) << "giving back waited";
  EXPECT_EQ(simulated::live().ranges, 1);
  EXPECT_EQ(simulated::calls_while_waiting(), std::vector<std::string>());
  recorder.record();
  watchdog.join();
  ASSERT_OK(other->synchronize());
  EXPECT_EQ(result->data()[0], std::byte{7});
  EXPECT_EQ(result->data()[4095], std::byte{7});
  for (int i = 0; i < 100 && simulated::live().ranges > 0; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    take(backend->allocate(100)).reset();
  }
  EXPECT_EQ(simulated::live().ranges, 0);
  const int64_t left = before.device_bytes - (int64_t{4} << 20);
  for (int i = 0; i < 100 && simulated::live().device_bytes > left; ++i)  // what was allocated meanwhile
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_EQ(simulated::live().device_bytes, left);
}

TEST_F(CudaBackend, PinnedMemoryIsPinnedOnce) {
  auto backend = take(make_backend({}));
  auto first = take(backend->allocate(int64_t{1} << 20, MemoryKind::kHost));
  std::memset(first->data(), 1, 1 << 20);
  first.reset();
  const int64_t calls = simulated::calls("cudaHostAlloc");
  for (int i = 0; i < 50 && simulated::calls("cudaHostAlloc") == calls; ++i) {
    auto again = take(backend->allocate(1'000'000, MemoryKind::kHost));
    EXPECT_EQ(again->size(), 1'000'000);
    EXPECT_TRUE(
        std::all_of(again->data(), again->data() + 1'000'000, [](std::byte b) { return b == std::byte{}; }));
    std::memset(again->data(), 1, 1'000'000);
  }
  // Each block went back before the next was asked for, but its way back is a stream's.
  EXPECT_LE(simulated::calls("cudaHostAlloc"), calls + 1);
}

#endif

// ---- algorithms of products

TEST_F(CudaBackend, BucketsOfRowsCoverEveryNumber) {
  int64_t last = -1;
  for (int64_t rows = 1; rows <= 8192; ++rows) {
    const int64_t bucket = row_bucket(rows);
    ASSERT_TRUE(bucket == last || bucket == last + 1) << rows;
    ASSERT_LE(rows, row_bucket_rows(bucket));
    ASSERT_TRUE(bucket == 0 || rows > row_bucket_rows(bucket - 1));
    last = bucket;
  }
}

std::string only_file(const std::filesystem::path& folder) {
  std::vector<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    files.push_back(entry.path().string());
  EXPECT_EQ(files.size(), 1u);
  return files.empty() ? "" : files[0];
}

TEST_F(CudaBackend, AlgorithmsAreKeptAndDamagedFilesReplaced) {
  const CudaOptions options = kept();
  auto open = [&] { return take(Device::open(options)); };
  const std::vector<float> first = Rig(options).prefill(77, 1);
  const std::string path = only_file(folder_);
  const std::string written = take(read_text_file(path));
  const size_t known = open()->algorithms().size();
  EXPECT_GT(known, 6u * 9u);
  EXPECT_EQ(open()->algorithms().reason(), "");

#ifdef DS_SIMULATED_CUDA
  std::vector<float> again;
  auto products = [&] {
    const int64_t before = simulated::calls("cublasLtMatmul");
    again = Rig(options).prefill(77, 1);
    return simulated::calls("cublasLtMatmul") - before;
  };
  const int64_t reused = products();
  EXPECT_EQ(again, first);
#else
  EXPECT_EQ(Rig(options).prefill(77, 1), first);
#endif
  EXPECT_EQ(take(read_text_file(path)), written) << "nothing new was found, nothing is written";

  auto damage = [&](const std::string& content, const char* reason) {
    SCOPED_TRACE(reason);
    ASSERT_OK(write_file_atomically(path, content));
    auto device = open();
    EXPECT_EQ(device->algorithms().size(), 0u);
    EXPECT_NE(device->algorithms().reason().find(reason), std::string::npos) << device->algorithms().reason();
#ifdef DS_SIMULATED_CUDA
    EXPECT_GT(products(), 2 * reused) << "they are searched again";
#else
    (void)Rig(options);
#endif
    EXPECT_EQ(open()->algorithms().size(), known);
    EXPECT_EQ(open()->algorithms().reason(), "");
  };
  damage(written.substr(0, written.size() / 2), path.c_str());
  std::string flipped = written;
  const size_t at = flipped.find("\"algorithm\": \"") + 20;
  flipped[at] = flipped[at] == '0' ? '1' : '0';
  damage(flipped, "checksum");
  std::string foreign = written;
  foreign.replace(foreign.find("cuBLASLt"), 8, "cuBLASXx");
  damage(foreign, "cuBLASXx");
  damage("{}", "format");
}

TEST_F(CudaBackend, AFolderThatCannotBeWrittenCostsNoModel) {
  std::ofstream(folder_) << "a file";
  const CudaOptions options{.cache = (folder_ / "below").string()};
  Rig rig(options);
  for (float v : rig.prefill(9, 1)) ASSERT_TRUE(std::isfinite(v));
}

TEST_F(CudaBackend, ProductsOfAnyShapeAndNumberOfRows) {
  auto device = take(Device::open({}));
  device->use();
  for (DType dtype : {DType::kBF16, DType::kF32}) {
    for (auto [in, out] : {std::pair<int64_t, int64_t>{64, 96}, {46, 58}, {7, 301}}) {
      for (bool add : {false, true}) {
        constexpr int64_t kRows = 64;
        SCOPED_TRACE(fmt::format("{} x {} {} {}", out, in, dtype_name(dtype), add));
        const ProductShape shape{.in = in, .out = out, .dtype = dtype, .out_dtype = dtype, .add = add};
        auto numbers = [&](int64_t count, uint32_t seed) {
          std::vector<float> values(static_cast<size_t>(count));
          for (float& v : values) {
            seed = seed * 1664525u + 1013904223u;
            v = bf16_to_f32(f32_to_bf16(static_cast<float>(static_cast<int32_t>(seed)) * 0x1p-31f));
          }
          return values;
        };
        const auto w = numbers(in * out, 1), x = numbers(in * kRows, 2), y = numbers(out * kRows, 3);
        auto upload = [&](const std::vector<float>& values) {
          auto buffer = take(DeviceBuffer::make(device, static_cast<int64_t>(values.size()) * 4, "numbers"));
          std::vector<uint16_t> halves;
          for (float v : values) halves.push_back(f32_to_bf16(v));
          const void* from = dtype == DType::kF32 ? static_cast<const void*>(values.data()) : halves.data();
          EXPECT_EQ(cudaMemcpy(buffer.data(), from, values.size() * static_cast<size_t>(dtype_size(dtype)),
                               cudaMemcpyHostToDevice),
                    cudaSuccess);
          return buffer;
        };
        auto dw = upload(w), dx = upload(x);
        auto workspace = take(DeviceBuffer::make(device, kProductWorkspace, "workspace"));
        auto product = take(Product::make(device, shape, kRows));
        const std::byte* weights[] = {dw.data()};
        cudaStream_t stream = nullptr;
        ASSERT_EQ(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), cudaSuccess);
        {
          auto scratch = upload(y);
          ASSERT_OK(product->search(stream, weights, dx.data(), scratch.data(), workspace.data()));
        }
        for (int64_t rows : {1, 2, 3, 31, 33, 64}) {
          auto dy = upload(y);
          ASSERT_OK(product->run(stream, dw.data(), dx.data(), dy.data(), rows, workspace.data()));
          ASSERT_EQ(cudaStreamSynchronize(stream), cudaSuccess);
          std::vector<std::byte> found(static_cast<size_t>(out * kRows * dtype_size(dtype)));
          ASSERT_EQ(cudaMemcpy(found.data(), dy.data(), found.size(), cudaMemcpyDeviceToHost), cudaSuccess);
          for (int64_t r = 0; r < kRows; ++r)
            for (int64_t o = 0; o < out; ++o) {
              const auto at = static_cast<size_t>(r * out + o);
              double expected = r >= rows || add ? static_cast<double>(y[at]) : 0;
              for (int64_t i = 0; r < rows && i < in; ++i)
                expected += static_cast<double>(w[static_cast<size_t>(o * in + i)]) *
                            static_cast<double>(x[static_cast<size_t>(r * in + i)]);
              float value = 0;
              if (dtype == DType::kF32) {
                std::memcpy(&value, found.data() + 4 * at, 4);
              } else {
                uint16_t half = 0;
                std::memcpy(&half, found.data() + 2 * at, 2);
                value = bf16_to_f32(half);
              }
              ASSERT_NEAR(value, expected, dtype == DType::kF32 ? 1e-4 : 0.01 + std::abs(expected) * 0.005)
                  << rows << " rows, row " << r << " element " << o;
            }
        }
        ASSERT_EQ(cudaStreamDestroy(stream), cudaSuccess);
      }
    }
  }
}

// ---- models

TEST_F(CudaBackend, AStepIsItsLayersToTheBit) {
  for (DType dtype : {DType::kBF16, DType::kF32}) {
    Rig a(kept(), dtype), b(kept(), dtype);
    EXPECT_EQ(a.prefill(250, 1), b.prefill(250, 1));
    for (int64_t i = 0; i < 20; ++i) {  // over the edge of what one graph does
      const Choice choice{.temperature = i % 3 == 0 ? 0.0 : 0.8, .top_p = 0.9, .at = 0.37};
      const auto token = static_cast<int32_t>((i * 13) % 131);
      Rig::Step one = a.step(token, 250 + i, choice), other = b.step_by_layers(token, 250 + i, choice);
      ASSERT_EQ(one.logits, other.logits) << i;
      ASSERT_EQ(one.next, other.next) << i;
      ASSERT_GE(one.next, 0);
    }
    for (size_t l = 0; l < a.caches.size(); ++l) EXPECT_EQ(a.cache_bytes(l), b.cache_bytes(l));
    EXPECT_EQ(static_cast<CudaWorkspace&>(*a.workspace).step_graphs(), 2u);
  }
}

TEST_F(CudaBackend, GraphsChangeNoBit) {
  Rig with(kept({.graphs = true})), without(kept({.graphs = false})), checked(kept({.check_kernels = true}));
  for (Rig* rig : {&with, &without, &checked}) rig->prefill(31, 2);
  for (int64_t i = 0; i < 12; ++i) {
    const auto token = static_cast<int32_t>((i * 29) % 131);
    const Rig::Step expected = without.step(token, 31 + i);
    for (Rig* rig : {&with, &checked}) {
      const Rig::Step found = rig->step(token, 31 + i);
      ASSERT_EQ(found.logits, expected.logits) << i;
      ASSERT_EQ(found.next, expected.next) << i;
    }
  }
  EXPECT_EQ(static_cast<CudaWorkspace&>(*with.workspace).step_graphs(), 1u);
  EXPECT_EQ(static_cast<CudaWorkspace&>(*without.workspace).step_graphs(), 0u);
}

TEST_F(CudaBackend, GraphsAreReplacedWhenThereAreTooMany) {
  Rig rig(kept(), DType::kBF16, 64), other(kept({.graphs = false}), DType::kBF16, 64);
  rig.prefill(20, 1);
  other.prefill(20, 1);
  const int64_t row = small().d_model * 2;
  for (int round = 0; round < 2; ++round)
    for (int64_t i = 0; i < static_cast<int64_t>(kStepGraphs) + 4; ++i) {  // each of its own hidden state
      for (int twice = 0; twice < 2; ++twice) {
        Rig::Step a, b;
        for (auto [r, s] : {std::pair(&rig, &a), {&other, &b}}) {
          r->model->step(*r->stream, *r->workspace,
                         {7, 20, r->hidden->data() + i * row, r->cache_data, s->logits.data(), {}, &s->next});
          ASSERT_OK(r->stream->synchronize());
        }
        ASSERT_EQ(a.logits, b.logits) << i;
      }
    }
  EXPECT_EQ(static_cast<CudaWorkspace&>(*rig.workspace).step_graphs(), kStepGraphs);
}

TEST_F(CudaBackend, StepsMayBeEnqueuedOneAfterAnother) {
  Rig a(kept()), b(kept());
  a.prefill(12, 3);
  b.prefill(12, 3);
  std::vector<Rig::Step> together(6);
  for (size_t i = 0; i < together.size(); ++i)
    a.model->step(*a.stream, *a.workspace,
                  {static_cast<int32_t>(i),
                   12 + static_cast<int64_t>(i),
                   a.hidden->data(),
                   a.cache_data,
                   together[i].logits.data(),
                   {},
                   &together[i].next});
  ASSERT_OK(a.stream->synchronize());
  for (size_t i = 0; i < together.size(); ++i) {
    const Rig::Step alone = b.step(static_cast<int32_t>(i), 12 + static_cast<int64_t>(i));
    EXPECT_EQ(together[i].logits, alone.logits) << i;
    EXPECT_EQ(together[i].next, alone.next) << i;
  }
}

TEST_F(CudaBackend, ResultsLieInHostMemoryWhenAnEventSaysSo) {
  Rig rig(kept());
  const std::vector<float> expected = rig.prefill(15, 4);
  auto link = take(rig.backend->make_stream(StreamKind::kLink, 8));
  auto ready = take(rig.backend->make_event());
  auto pinned = take(rig.backend->allocate(small().vocab * 4, MemoryKind::kHost));
  for (bool direct : {false, true}) {
    std::vector<float> logits(expected.size());
    struct Seen {
      const float* from;
      std::vector<float> values;
    } seen{direct ? reinterpret_cast<const float*>(pinned->data()) : logits.data(), {}};
    ready->reset();
    const int64_t row = small().d_model * 2;
    rig.model->logits(*rig.stream, *rig.workspace, rig.hidden->data() + 14 * row,
                      const_cast<float*>(seen.from));
    rig.stream->record(*ready);
    link->wait(*ready);
    link->host({[](void* context, int64_t) {
                  auto* s = static_cast<Seen*>(context);
                  s->values.assign(s->from, s->from + small().vocab);
                },
                &seen, 0});
    ASSERT_OK(link->synchronize());
    EXPECT_EQ(seen.values, expected) << direct;
    ASSERT_OK(rig.stream->synchronize());
  }
}

TEST_F(CudaBackend, OneTokenMoreIsLikeOneInThePrompt) {
  // Against another way through the same model: rounding differs, numbers do not.
  for (DType dtype : {DType::kBF16, DType::kF32}) {
    Rig a(kept(), dtype), b(kept(), dtype);
    const std::vector<float> whole = a.prefill(40, 0);
    b.prefill(39, 0);
    const Rig::Step step = b.step((39 * 7 + 3) % 131, 39);
    double off = 0, scale = 0;
    for (size_t i = 0; i < whole.size(); ++i) {
      off += std::pow(whole[i] - step.logits[i], 2);
      scale += std::pow(whole[i], 2);
    }
    EXPECT_GT(scale, 0);
    EXPECT_LT(std::sqrt(off / scale), dtype == DType::kF32 ? 1e-5 : 2e-2);
  }
}

TEST_F(CudaBackend, RequestsOfChangingLengthsTakeNoMoreMemory) {
  Rig rig(kept());
  auto run = [&](int64_t rows) {
    rig.prefill(rows, 1);
    for (int64_t i = 0; i < 2; ++i) rig.step(5, rows + i);
  };
  for (int64_t rows : {598, 300, 598, 200, 300, 200}) run(rows);  // every graph, the most that is staged
  size_t before = 0, after = 0, total = 0;
  ASSERT_EQ(cudaMemGetInfo(&before, &total), cudaSuccess);
#ifdef DS_SIMULATED_CUDA
  const simulated::Live live = simulated::live();
#endif
#ifdef DS_SIMULATED_CUDA
  constexpr int64_t kMost = 150;  // it is slow
#else
  constexpr int64_t kMost = 590;
#endif
  for (int64_t i = 0; i < 100; ++i) run(1 + (i * 167) % kMost);
  ASSERT_EQ(cudaMemGetInfo(&after, &total), cudaSuccess);
  EXPECT_EQ(after, before);
#ifdef DS_SIMULATED_CUDA
  const simulated::Live now = simulated::live();
  EXPECT_EQ(now.host_bytes, live.host_bytes);
  EXPECT_EQ(now.device_bytes, live.device_bytes);
  EXPECT_EQ(now.events, live.events);
  EXPECT_EQ(now.graphs, live.graphs);
  EXPECT_EQ(now.handles, live.handles);
  EXPECT_EQ(now.streams, live.streams);
#endif
}

TEST_F(CudaBackend, ProfilesCountPhasesAndChangeNothing) {
  Rig rig(kept());
  const std::vector<float> without = rig.prefill(50, 1);
  PhaseTimes times;
  rig.model->set_profile(&times);
  EXPECT_EQ(rig.prefill(50, 1), without);
  for (Phase phase : {Phase::kEmbed, Phase::kNorm, Phase::kQkv, Phase::kRope, Phase::kAttention, Phase::kO,
                      Phase::kGateUp, Phase::kSwiglu, Phase::kDown, Phase::kLogits})
    EXPECT_GT(times[phase], 0) << kPhaseNames[static_cast<size_t>(phase)];
  rig.model->set_profile(nullptr);
  const PhaseTimes before = times;
  EXPECT_EQ(rig.prefill(50, 1), without);
  EXPECT_TRUE(std::equal(before.ns, before.ns + kPhases, times.ns));
}

TEST_F(CudaBackend, BackendsLiveSideBySide) {
  auto a = std::make_unique<Rig>(kept());
  Rig b(kept());
  const auto expected = a->prefill(33, 1);
  EXPECT_EQ(b.prefill(33, 1), expected);
  // Destroyed while its stream still works.
  const std::vector<int32_t> ids(33, 3);
  a->model->embed(*a->stream, ids.data(), 33, a->hidden->data());
  a->model->layer(*a->stream, *a->workspace, {0, a->hidden->data(), a->cache_data[0], 0, 33, 33});
  a.reset();
  EXPECT_EQ(b.prefill(33, 1), expected);
}

TEST_F(CudaBackend, BandwidthAndProductsAreMeasured) {
  auto backend = take(make_backend({}));
  for (DType dtype : {DType::kBF16, DType::kF32}) EXPECT_GT(take(backend->measure_matmul_flops(dtype)), 1e8);
  EXPECT_EQ(backend->measure_matmul_flops(DType::kF16).status().code(), Code::kUnsupported);
  EXPECT_GT(take(backend->measure_read_bandwidth()), 1e5);
}

TEST_F(CudaBackend, DestroyedBackendsLeaveNothing) {
#ifdef DS_SIMULATED_CUDA
  { Rig(kept()).prefill(10, 1); }
  const simulated::Live live = simulated::live();
  EXPECT_EQ(live.device_bytes, 0);
  EXPECT_EQ(live.host_bytes, 0);
  EXPECT_EQ(live.streams + live.events + live.graphs + live.handles + live.allocations, 0);
#else
  GTEST_SKIP() << "only the simulated device tells";
#endif
}

// ---- what fails

#ifdef DS_SIMULATED_CUDA

void expect_refused(const char* device, const CudaOptions& options,
                    std::initializer_list<const char*> parts) {
  simulated::reset(device);
  auto refused = make_backend(options);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.status().code(), Code::kUnavailable) << refused.status().message();
  for (const char* part : parts)
    EXPECT_NE(refused.status().message().find(part), std::string::npos) << refused.status().message();
}

TEST_F(CudaBackend, MissingAndOldDevicesAreUnavailable) {
  expect_refused("devices=0", {}, {"cudaGetDeviceCount", "cudaErrorNoDevice", "nvidia-smi"});
  expect_refused("driver=12040", {},
                 {"cudaErrorInsufficientDriver", "CUDA 12.4", "CUDA 13.0", "newer driver"});
  expect_refused("devices=1", {.device = 3}, {"no CUDA device 3", "sees 1"});
}

TEST_F(CudaBackend, ADeviceThatIsLostFailsTheRequestAndNobodyHangs) {
  for (const char* fault : {"kernel:40", "cublasLtMatmul:20", "cudaLaunchKernel:30", "cudaEventRecord:12"}) {
    SCOPED_TRACE(fault);
    const std::string name(fault, std::string_view(fault).find(':'));
    simulated::reset("memory=1GiB");
    // As far as the request begins, everything works.
    int64_t before = 0;
    {
      Rig rig(kept());
      before = simulated::calls(name);
    }
    const int64_t number = before + std::atoi(fault + name.size() + 1);
    simulated::reset(fmt::format("memory=1GiB,fail={}:{}", name, number));
    Rig rig(kept());
    auto link = take(rig.backend->make_stream(StreamKind::kLink, 64));
    Status failed;
    for (int i = 0; i < 40 && failed.ok(); ++i) {
      auto end = take(rig.backend->make_event());
      Log log;
      const std::vector<int32_t> ids(9, 3);
      rig.model->embed(*rig.stream, ids.data(), 9, rig.hidden->data());
      for (int64_t l = 0; l < small().layers; ++l)
        rig.model->layer(*rig.stream, *rig.workspace,
                         {l, rig.hidden->data(), rig.cache_data[static_cast<size_t>(l)], 0, 9, 9});
      rig.stream->record(*end);
      link->wait(*end);
      ASSERT_OK(link->synchronize());  // an event is always completed
      EXPECT_TRUE(end->done());
      failed = rig.stream->synchronize();
    }
    ASSERT_FALSE(failed.ok());
    EXPECT_EQ(failed.code(), Code::kUnavailable) << failed.message();
    for (const char* part : {"cudaErrorIllegalAddress", "lost for this process"})
      EXPECT_NE(failed.message().find(part), std::string::npos) << failed.message();
    EXPECT_EQ(rig.backend->allocate(1 << 20).status().code(), Code::kUnavailable);
  }
  simulated::reset("memory=1GiB");
}

TEST_F(CudaBackend, CheckedKernelsAreNamedWhenTheyFail) {
  int64_t before = 0;
  {
    { Rig searched(kept()); }
    simulated::reset("memory=1GiB");
    Rig rig(kept({.check_kernels = true}));
    before = simulated::calls("kernel");
  }
  // Of a layer after embed: norm, product, then rope_scatter.
  simulated::reset(fmt::format("memory=1GiB,fail=kernel:{}", before + 3));
  Rig rig(kept({.check_kernels = true}));
  const std::vector<int32_t> ids(9, 3);
  rig.model->embed(*rig.stream, ids.data(), 9, rig.hidden->data());
  rig.model->layer(*rig.stream, *rig.workspace, {1, rig.hidden->data(), rig.cache_data[1], 0, 9, 9});
  const Status status = rig.stream->synchronize();
  EXPECT_EQ(status.code(), Code::kUnavailable);
  for (const char* part : {"layer 1", "9 rows", "rope_scatter"})
    EXPECT_NE(status.message().find(part), std::string::npos) << status.message();
  simulated::reset("memory=1GiB");
}

TEST_F(CudaBackend, RangesAreWholeWhereThereIsNoVirtualMemory) {
  simulated::reset("granule=0");
  auto backend = take(make_backend({}));
  EXPECT_EQ(backend->range_step(), 0);
  auto range = take(backend->reserve(1 << 20));
  EXPECT_EQ(range->committed(), range->size());
  ASSERT_OK(range->commit(5, 100));
  EXPECT_EQ(simulated::calls("cuMemCreate"), 0);
}

TEST_F(CudaBackend, MemoryThatARangeDoesNotGetIsNamed) {
  constexpr int64_t kMiB = int64_t{1} << 20;
  for (const char* device : {"memory=64MiB", "refuse=cuMemCreate:2"}) {
    simulated::reset(device);
    auto backend = take(make_backend({}));
    EXPECT_EQ(backend->range_step(), 2 * kMiB);
    auto range = take(backend->reserve(256 * kMiB));
    ASSERT_OK(range->commit(0, 1));
    const simulated::Live before = simulated::live();
    const Status refused = range->commit(0, 128 * kMiB);
    EXPECT_EQ(refused.code(), Code::kDeviceMemory) << refused.message();
    for (const char* part : {"needs 126.00 MiB", "are available"})
      EXPECT_NE(refused.message().find(part), std::string::npos) << refused.message();
    EXPECT_EQ(range->committed(), 2 * kMiB);
    EXPECT_EQ(simulated::live().device_bytes, before.device_bytes);
    ASSERT_OK(range->commit(20 * kMiB, 1));
    EXPECT_EQ(range->committed(), 4 * kMiB);
  }
  for (const char* call : {"cuMemCreate", "cuMemMap", "cuMemSetAccess"}) {
    simulated::reset(fmt::format("fail={}:1", call));
    auto backend = take(make_backend({}));
    auto range = take(backend->reserve(256 * kMiB));
    EXPECT_EQ(range->commit(0, 1).code(), Code::kUnavailable) << call;
    EXPECT_EQ(range->committed(), 0);
  }
  simulated::reset("refuse=cuMemAddressReserve:1");
  auto backend = take(make_backend({}));
  auto refused = backend->reserve(256 * kMiB);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.status().code(), Code::kExhausted);
  EXPECT_NE(refused.status().message().find("256.00 MiB of addresses"), std::string::npos)
      << refused.status().message();
}

TEST_F(CudaBackend, ASmallDeviceSaysWhatItLacks) {
  simulated::reset("memory=24MiB");
  auto backend = take(make_backend({}));
  auto model = take(backend->load_random(small(), {}, 1));
  auto workspace = model->make_workspace(600);
  ASSERT_FALSE(workspace.ok());
  EXPECT_EQ(workspace.status().code(), Code::kDeviceMemory);
  for (const char* part : {"workspace for a context of 600 tokens", "needs", "MiB are available"})
    EXPECT_NE(workspace.status().message().find(part), std::string::npos) << workspace.status().message();
}

#endif

}  // namespace
}  // namespace ds::cuda
