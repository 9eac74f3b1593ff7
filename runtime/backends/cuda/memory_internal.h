// Memory of the device, and pinned memory of the host.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/backends/cuda/device_internal.h"

namespace ds::cuda {

/// Kernels that read tiles of the cache (attention, the library's in particular) may read past its last row,
/// and throw away what they find there: behind every allocation lies room for the largest tile, zeroed, as
/// what is thrown away must be numbers. In a range it is whoever commits that leaves it (kCacheTileRows).
inline constexpr int64_t kSlack = int64_t{2} << 20;

/// Zeroed, 256-byte aligned. Freed once streams have done all that they were given; nobody waits for that.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(DeviceBuffer&& other) noexcept;
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept;
  ~DeviceBuffer();

  /// kDeviceMemory with needed and available bytes; `what` names it there.
  static Result<DeviceBuffer> make(std::shared_ptr<Device> device, int64_t bytes, std::string_view what);

  std::byte* data() const { return data_; }
  int64_t size() const { return size_; }

 private:
  std::shared_ptr<Device> device_;
  std::byte* data_ = nullptr;
  int64_t size_ = 0;
};

/// Pinned memory of the host, zeroed; kernels can read and write it under the same address.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  PinnedBuffer(PinnedBuffer&& other) noexcept;
  PinnedBuffer& operator=(PinnedBuffer&& other) noexcept;
  ~PinnedBuffer();

  static Result<PinnedBuffer> make(std::shared_ptr<Device> device, int64_t bytes, std::string_view what);

  std::byte* data() const { return data_; }
  int64_t size() const { return size_; }

 private:
  std::shared_ptr<Device> device_;
  std::byte* data_ = nullptr;
  int64_t size_ = 0;
  size_t block_ = 0;  // bytes that were pinned
};

/// Pinned memory for small things of one stream: taken piece by piece, all given back at once. It grows when
/// more is taken than ever before, but not while a stream waits for what nobody has recorded; it never
/// shrinks.
class StagingArena {
 public:
  static Result<StagingArena> make(std::shared_ptr<Device> device, int64_t bytes);
  /// 64-byte aligned. kDeviceMemory: the host has no more memory to pin; kExhausted: none must be pinned now.
  Result<std::byte*> take(int64_t bytes);
  void reset();

 private:
  std::shared_ptr<Device> device_;
  std::vector<PinnedBuffer> chunks_;
  size_t chunk_ = 0;
  int64_t used_ = 0;  // of chunk_
};

/// As a DeviceMemory.
Result<std::unique_ptr<DeviceMemory>> allocate(std::shared_ptr<Device> device, int64_t bytes,
                                               MemoryKind kind);
/// Of a device with virtual memory.
Result<std::unique_ptr<GrowingMemory>> reserve(std::shared_ptr<Device> device, int64_t bytes);

}  // namespace ds::cuda
