// Memory of the CPU backend: whole pages, zeroed and touched when made, so that a request meets no page
// fault.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "support/status.h"

namespace ds::cpu {

class HostBuffer {
 public:
  HostBuffer() = default;
  HostBuffer(HostBuffer&& other) noexcept;
  HostBuffer& operator=(HostBuffer&& other) noexcept;
  ~HostBuffer();

  /// kExhausted with needed and available bytes, before anything is taken; `what` names it in the message.
  static Result<HostBuffer> make(int64_t bytes, std::string_view what);

  std::byte* data() const { return data_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }
  int64_t size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  int64_t size_ = 0;
};

/// Addresses, of which memory is what has been committed.
class HostRange {
 public:
  HostRange() = default;
  HostRange(HostRange&& other) noexcept;
  HostRange& operator=(HostRange&& other) noexcept;
  ~HostRange();

  static Result<HostRange> reserve(int64_t bytes);
  /// As GrowingMemory::commit(), in steps of kStep bytes; all of them touched.
  Status commit(int64_t offset, int64_t bytes);

  std::byte* data() const { return data_; }
  int64_t size() const { return size_; }
  int64_t committed() const { return committed_; }

  /// Small enough that a short sequence wastes little of each layer, large enough for few calls.
  static constexpr int64_t kStep = int64_t{64} << 10;

 private:
  std::byte* data_ = nullptr;
  int64_t size_ = 0, committed_ = 0;
  std::vector<bool> there_;  // by step
};

/// Bytes that can be taken now: free or reclaimable memory of the machine, or less where a control group
/// limits it.
int64_t available_memory();
/// kExhausted when `bytes` more are not to be had.
Status check_memory(int64_t bytes, std::string_view what);
/// Cores that this process may use: its affinity, or less where a control group limits it.
int usable_cores();

}  // namespace ds::cpu
