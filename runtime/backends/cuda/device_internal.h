// The device that a backend works on: what it is, what its errors mean, and what its streams, events, memory
// and models share. Everything that is made on it keeps it alive.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/backends/backends.h"
#include "runtime/backends/cuda/releases_internal.h"
#include "runtime/backends/cuda/virtual_memory_internal.h"
#include "support/status.h"

namespace ds::cuda {

// ---- errors

/// What a failed call of CUDA's means: "WHAT: NAME (TEXT)" and what to do. No device, a driver that is too
/// old, and a device that is lost for this process (an illegal address, a hardware fault) are kUnavailable,
/// too little memory kDeviceMemory; others, which are bugs here, kInternal. Forgets an error that can be
/// forgotten.
Status failure(cudaError_t raised, std::string_view what);
Status failure(cublasStatus_t raised, std::string_view what);

/// `what` says function and shapes; it is only formatted after a failure.
template <typename... Args>
Status check(cudaError_t raised, fmt::format_string<Args...> what, Args&&... args) {
  if (raised == cudaSuccess) [[likely]]
    return ok_status();
  return failure(raised, fmt::format(what, std::forward<Args>(args)...));
}
template <typename... Args>
Status check(cublasStatus_t raised, fmt::format_string<Args...> what, Args&&... args) {
  if (raised == CUBLAS_STATUS_SUCCESS) [[likely]]
    return ok_status();
  return failure(raised, fmt::format(what, std::forward<Args>(args)...));
}

std::string version_text(int version);  // 13010 -> "13.1"

// ---- what it is

struct DeviceInfo {
  int index = 0;
  std::string name;
  int major = 0, minor = 0;  // compute capability
  int multiprocessors = 0;
  int64_t memory = 0;           // bytes
  int runtime = 0, driver = 0;  // 1000 * major + 10 * minor
  int64_t cublas_lt = 0;        // 10000 * major + 100 * minor + patch
  std::string sm() const { return fmt::format("sm_{}{}", major, minor); }
};

// ---- flags

/// A word of pinned host memory that host threads and the device's front end write and wait for: how an event
/// that a host thread completes reaches streams. Its value only grows (cyclically).
struct Flag {
  std::atomic<uint32_t>* word = nullptr;
  uint32_t value = 0;  // that is being waited for
};

/// Gives flags out of slabs that are kept, so that an old wait never sees foreign memory.
class FlagPool {
 public:
  ~FlagPool();
  Result<Flag> take();
  void give_back(Flag flag);  // the word holds flag.value

 private:
  std::mutex mutex_;
  std::vector<void*> slabs_;
  std::vector<Flag> free_;
};

// ---- the clock

/// Times of CUDA events on the steady clock: by their distance to one whose time on it is known. That time is
/// when the host saw it complete, so that whatever a host thread caused comes out later than its cause.
class DeviceClock {
 public:
  ~DeviceClock();
  Status start();
  /// The base is taken again where it is old, as the two clocks drift apart; some tens of microseconds then.
  /// For a thread that has just waited for the device.
  void refresh();
  /// steady_clock nanoseconds at which `event` completed.
  int64_t time_ns(cudaEvent_t event);

 private:
  bool take_base();
  std::mutex mutex_;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t base_ = nullptr, next_ = nullptr;
  int64_t base_ns_ = 0;
};

// ---- pinned memory

/// Which host memory copies may go straight to and from.
class PinnedRanges {
 public:
  void add(const std::byte* data, int64_t bytes);
  void remove(const std::byte* data);
  bool contains(const void* data, int64_t bytes) const;

 private:
  mutable std::mutex mutex_;
  std::map<uintptr_t, uintptr_t> ends_;  // by beginning
};

class Algorithms;

class Device {
 public:
  /// kUnavailable: no driver, one too old, no such device, or one that lacks what the kernels need.
  static Result<std::shared_ptr<Device>> open(const CudaOptions& options);
  ~Device();

  const DeviceInfo& info() const { return info_; }
  const CudaOptions& options() const { return options_; }
  cublasLtHandle_t cublas_lt() const { return lt_; }
  /// Makes it the calling thread's device. Before every call of CUDA's that has no stream or event.
  void use() const;

  /// Bytes that can be allocated now, and in all.
  struct Memory {
    int64_t free = 0, total = 0;
  };
  Result<Memory> memory() const;
  /// kDeviceMemory where `bytes` more are not to be had.
  Status check_memory(int64_t bytes, std::string_view what);
  Status exhausted(int64_t bytes, std::string_view what) const;

  /// What `stream` does next waits until the flag holds its value, or writes that into it.
  Status wait_flag(cudaStream_t stream, const Flag& flag) const;
  Status write_flag(cudaStream_t stream, const Flag& flag) const;

  /// Streams wait for so many events that nobody has recorded yet. Until that is none, a call that waits for
  /// the device may wait for ever: the same thread may be the one that records.
  int awaited() const { return awaited_.load(); }
  void count_awaited(int more) { awaited_ += more; }

  /// Pinned memory for arguments that streams made from now on begin with, besides what all of them do: what
  /// a workspace says that a request needs.
  int64_t staging_bytes() const { return staging_bytes_.load(); }
  void need_staging(int64_t bytes);

  FlagPool& flags() { return flags_; }
  DeviceClock& clock() { return clock_; }
  PinnedRanges& pinned() { return pinned_; }
  const VirtualMemory& virtual_memory() const { return virtual_memory_; }
  Releases& releases() { return releases_; }
  Algorithms& algorithms() { return *algorithms_; }

 private:
  Device() = default;
  Status start();

  CudaOptions options_;
  DeviceInfo info_;
  cublasLtHandle_t lt_ = nullptr;
  void *wait_value_ = nullptr, *write_value_ = nullptr;  // the driver's
  FlagPool flags_;
  DeviceClock clock_;
  PinnedRanges pinned_;
  std::unique_ptr<Algorithms> algorithms_;
  std::atomic<int> awaited_{0};
  std::atomic<int64_t> staging_bytes_{0};
  VirtualMemory virtual_memory_;
  Releases releases_;  // last: what it still holds goes first
};

}  // namespace ds::cuda
