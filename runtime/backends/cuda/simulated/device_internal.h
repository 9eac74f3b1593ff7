// What the simulated device consists of: memory, streams, events, graphs. Behind CUDA's own functions
// (runtime.cpp, blas.cpp).
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "runtime/backends/cuda/simulated/simulated.h"

namespace ds::cuda::simulated {

using Work = std::function<void()>;

/// What a launch has put on a stream.
struct KernelCall {
  const char* text;
  dim3 grid, block;
  size_t shared_bytes;
  std::function<void()> thread;
};
void run_kernel(const KernelCall& call, uint64_t seed);

/// One cudaEventRecord.
struct Recording {
  std::atomic<uint32_t> done{0};
  int64_t time_ns = 0;
  void complete();
  void wait() const { done.wait(0); }
};

/// What a stream collects instead of running it.
struct Capture {
  cudaStreamCaptureMode mode;
  std::thread::id thread;
  bool broken = false;
  std::vector<Work> work;
};

enum class Memory : uint8_t { kNone, kDevice, kPinned };

class Device {
 public:
  static Device& get();

  /// Every function of the runtime begins so: counts, faults, and refuses what cannot be done now.
  cudaError_t enter(const char* function);
  cudaError_t lose(cudaError_t error);  // from now on every call fails with it
  cudaError_t lost() const { return lost_.load(); }
  const Config& config() const { return config_; }
  void reset(std::string_view text);

  cudaError_t allocate(void** data, size_t bytes, Memory memory);
  cudaError_t free(void* data, Memory memory);     // once all streams have run
  cudaError_t release(void* data, Memory memory);  // at once
  /// Where `data` lies; `fits`: whether all `bytes` do.
  Memory find(const void* data, size_t bytes, bool& fits) const;
  size_t free_bytes() const;

  // Virtual memory (virtual_memory.cpp); sizes and addresses are multiples of the granule.
  cudaError_t reserve(uintptr_t& at, size_t bytes);
  cudaError_t free_range(uintptr_t at, size_t bytes);
  cudaError_t create(uint64_t& handle, size_t bytes);
  cudaError_t release_handle(uint64_t handle);
  cudaError_t map(uintptr_t at, size_t bytes, uint64_t handle);
  cudaError_t set_access(uintptr_t at, size_t bytes);  // of whole parts
  cudaError_t unmap(uintptr_t at, size_t bytes);       // of whole parts

  void add(CUstream_st* stream);
  void remove(CUstream_st* stream);
  void wait_for_all();
  CUstream_st* stream(cudaStream_t given);  // 0: the default one; null: not one of ours

  /// Whether a capture forbids what waits or allocates; the capture is then broken.
  bool forbidden_by_capture();
  void begin_capture(const std::shared_ptr<Capture>& capture);
  void end_capture(const std::shared_ptr<Capture>& capture);

  /// Streams that wait for a value that a thread is to write; and what may wait for the device meanwhile.
  void count_waiting(int more) { waiting_ += more; }
  void may_wait(const std::string& what);
  void load(const void* kernel, const std::string& name);
  std::vector<std::string> calls_while_waiting() const;

  void count_kernel();
  int64_t calls(const std::string& function) const;
  uint64_t next_seed() { return config_.seed + 0x9e3779b97f4a7c15u * ++seeds_; }
  Live live() const;
  std::atomic<int> events{0}, graphs{0}, handles{0};

 private:
  Device() { configure(""); }
  void configure(std::string_view text);
  void* take_kept(size_t inside);  // null: none of that size is kept
  /// Addresses, of which those of parts are memory; only what is accessible may be touched.
  struct Range {
    struct Part {
      size_t bytes;
      uint64_t handle;
      bool accessible = false;
    };
    size_t bytes;
    void* mapped;
    size_t mapped_bytes;
    std::map<uintptr_t, Part> parts = {};
  };
  Range* range_of(uintptr_t at, size_t bytes);
  /// Of all that lies there, whole parts: on(range, part), which may take the part out.
  template <typename F>
  cudaError_t each_part(uintptr_t at, size_t bytes, F on);
  static bool accessible(const Range& range, uintptr_t at, size_t bytes);
  void drop_unused(uint64_t handle);

  Config config_;
  std::atomic<cudaError_t> lost_{cudaSuccess};
  std::atomic<uint64_t> seeds_{0};
  mutable std::mutex mutex_;
  struct Allocation {
    size_t bytes;
    Memory memory;
    void* mapped;
    size_t mapped_bytes;
  };
  std::map<uintptr_t, Allocation> allocations_;
  std::map<uintptr_t, Range> ranges_;
  struct Physical {
    size_t bytes;
    bool mapped = false, released = false;
  };
  std::map<uint64_t, Physical> physical_;  // memory for ranges, by handle
  uint64_t handles_made_ = 0;
  std::multimap<size_t, void*> kept_;  // freed, by the size between their guards
  size_t kept_bytes_ = 0;
  std::set<CUstream_st*> streams_;
  CUstream_st* default_stream_ = nullptr;
  std::vector<std::shared_ptr<Capture>> captures_;
  std::map<std::string, int64_t> calls_;
  std::atomic<int> waiting_{0};
  std::vector<std::string> while_waiting_;
  std::set<const void*> loaded_;
};

/// Whether this thread is in a host function of a stream, which must not call CUDA.
extern thread_local bool in_host_function;

/// One of the driver's functions for virtual memory; null: no such.
void* virtual_memory_function(std::string_view name);

/// Records an error for cudaGetLastError().
cudaError_t note(cudaError_t error);

}  // namespace ds::cuda::simulated

/// Runs what is put into it, in order, on a thread of its own.
struct CUstream_st {
 public:
  explicit CUstream_st(int priority);
  ~CUstream_st();  // after what it holds has run

  /// `always`: also once the device is lost.
  cudaError_t push(ds::cuda::simulated::Work work, bool always = false);
  void wait();
  bool idle();

  std::shared_ptr<ds::cuda::simulated::Capture> capture;
  const int priority;

 private:
  struct Item {
    ds::cuda::simulated::Work work;
    bool always;
  };
  void run(uint64_t seed);

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Item> items_;
  bool busy_ = false, stop_ = false;
  std::thread thread_;
};

struct CUevent_st {
  std::atomic<std::shared_ptr<ds::cuda::simulated::Recording>> latest;  // null: never recorded
  std::shared_ptr<ds::cuda::simulated::Capture> captured;  // where it was recorded last, if in a capture
  bool timed = true;
};

struct CUgraph_st {
  std::vector<ds::cuda::simulated::Work> work;
};
struct CUgraphExec_st {
  std::shared_ptr<const std::vector<ds::cuda::simulated::Work>> work;
};
