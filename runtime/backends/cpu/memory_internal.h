// Memory of the CPU backend: whole pages, zeroed and touched when made, so that a request meets no page
// fault.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

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

/// Bytes that can be taken now: free or reclaimable memory of the machine, or less where a control group
/// limits it.
int64_t available_memory();
/// kExhausted when `bytes` more are not to be had.
Status check_memory(int64_t bytes, std::string_view what);
/// Cores that this process may use: its affinity, or less where a control group limits it.
int usable_cores();

}  // namespace ds::cpu
