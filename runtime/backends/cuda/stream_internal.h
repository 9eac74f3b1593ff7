// Streams and events of the device, and how they meet the streams of host code (runtime/backends/host):
//
// - Recorded by a stream, waited for by a stream: cudaStreamWaitEvent.
// - Recorded by a stream, waited for by a host thread: cudaEventSynchronize, which sleeps.
// - Recorded by a host thread, waited for by a stream: cuStreamWaitValue32, on a flag in pinned memory.
// - Both by host threads: a futex.
// - A stream that waits before anybody has recorded waits for the flag too; whoever records then writes it, a
//   stream by cuStreamWriteValue32.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "runtime/backends/cuda/device_internal.h"
#include "runtime/backends/cuda/memory_internal.h"
#include "runtime/backends/host/stream_internal.h"

namespace ds::cuda {

class CudaEvent final : public host::HostEvent {
 public:
  static Result<std::unique_ptr<CudaEvent>> make(std::shared_ptr<Device> device);
  explicit CudaEvent(std::shared_ptr<Device> device) : device_(std::move(device)) {}
  ~CudaEvent() override;

  void reset() override;
  bool done() const override;
  int64_t time_ns() const override;
  void complete() override;     // recorded by a host thread
  void block() const override;  // of a host thread

  /// By a stream. After a failure it is complete, so that nobody waits for ever.
  Status record(cudaStream_t stream);
  Status wait(cudaStream_t stream);

 private:
  enum State : uint32_t { kPending, kOnDevice, kDone };  // 32 bits: waited on as a futex
  void complete_locked();
  void count(bool awaited);  // by the device: a stream waits for what nobody has recorded
  void settle();      // until the flag has the value that a stream of this generation writes, if one does
  void seen() const;  // complete, as of now

  std::shared_ptr<Device> device_;
  cudaEvent_t event_ = nullptr;
  Flag flag_;  // its value is this generation's
  mutable std::mutex mutex_;
  std::atomic<uint32_t> state_{kPending};
  bool counted_ = false;
  bool flag_awaited_ = false;    // a stream waits for the flag
  bool flag_on_device_ = false;  // a stream writes it, and records flag_written_ then
  cudaEvent_t flag_written_ = nullptr;
  int64_t enqueued_ns_ = 0;                               // not complete before
  mutable std::atomic<int64_t> seen_ns_{0}, time_ns_{0};  // complete by then, if not 0; what time_ns() says
};

/// Where what a device has made is to lie in the host's memory.
struct Delivery {
  void* to = nullptr;
  const std::byte* from = nullptr;
  int64_t bytes = 0;
  Delivery* next = nullptr;
};

/// Of kind kCopy or kCompute. One thread at a time enqueues; cancel() may come from any.
class CudaStream final : public CommandStream {
 public:
  static Result<std::unique_ptr<CudaStream>> make(std::shared_ptr<Device> device, StreamKind kind,
                                                  int64_t capacity);
  CudaStream(std::shared_ptr<Device> device, StreamKind kind, int64_t capacity, StagingArena arena);
  ~CudaStream() override;  // after what was enqueued has run

  StreamKind kind() const override { return kind_; }
  void fail(Status status) override;
  void wait(Event& event) override;
  void record(Event& event) override;
  void host(HostTask task) override;
  void begin_op(int64_t op) override { op_ = op; }
  int64_t failed_op() const override { return failed_op_; }
  void copy(std::byte* to, const std::byte* from, int64_t bytes) override;
  void cancel() override { skip_.store(true, std::memory_order_relaxed); }
  Status synchronize() override;

  // ---- for models

  /// Counts a command of kernels. False: it must not be enqueued (no room, cancelled, after a failure).
  bool begin();
  cudaStream_t handle() const { return stream_; }
  Device& device() const { return *device_; }

  /// Pinned memory for arguments, that kernels read; until synchronize().
  Result<std::byte*> stage(int64_t bytes);
  template <typename T>
  Result<T*> stage_copy(std::span<const T> values) {
    DS_ASSIGN(std::byte * at, stage(static_cast<int64_t>(values.size_bytes())));
    std::memcpy(at, values.data(), values.size_bytes());
    return reinterpret_cast<T*>(at);
  }
  /// Device memory to host memory of any kind, without making the caller wait.
  Status read_back(void* to, const std::byte* from, int64_t bytes);
  /// The time from the last mark on goes to a phase. `times` null: a first mark.
  Status mark(PhaseTimes* times, Phase phase);

 private:
  struct HostCall {
    CudaStream* stream;
    HostTask task;
    const Delivery* deliveries = nullptr;  // or these
  };
  struct Mark {
    cudaEvent_t event;
    PhaseTimes* times;
    Phase phase;
  };
  static void run_host_call(void* call);
  bool claim();
  HostCall& new_call();
  static void deliver(const Delivery* first);
  /// What has been read back so far lies where it belongs before what follows.
  void flush_deliveries();
  void add_marks();

  std::shared_ptr<Device> device_;
  StreamKind kind_;
  int64_t capacity_, enqueued_ = 0, op_ = -1, failed_op_ = -1;
  cudaStream_t stream_ = nullptr;
  StagingArena arena_;
  // Their addresses must not change while the stream runs; they are used again after synchronize().
  std::deque<HostCall> calls_;
  std::deque<Delivery> deliveries_;
  size_t used_calls_ = 0, used_deliveries_ = 0;
  Delivery *undelivered_ = nullptr, *last_delivery_ = nullptr;  // those that nothing enqueued delivers yet
  std::vector<Mark> marks_;
  size_t used_marks_ = 0;
  std::atomic<bool> skip_{false};
  std::mutex status_mutex_;
  Status status_;
  int64_t status_op_ = -1;
};

}  // namespace ds::cuda
