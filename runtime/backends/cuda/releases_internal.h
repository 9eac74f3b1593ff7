// What is given back while streams may still use it: memory of the device, pinned memory, graphs. It goes
// once all that streams were given so far has run, and nobody waits for that: cudaFree, cudaFreeHost and
// cudaDeviceSynchronize would wait for every stream, of other requests too, and for ever where one of them
// waits for the thread that frees.
#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <vector>

#include "support/status.h"

namespace ds::cuda {

class Releases {
 public:
  Releases() = default;
  Releases(const Releases&) = delete;
  /// Waits for all that is still to go.
  ~Releases();
  /// Once, for the calling thread's device. `awaited`: Device::awaited().
  Status start(int device, const std::atomic<int>& awaited);

  /// Streams that may use what is given back. One is taken out once what it was given has run.
  void add(cudaStream_t stream);
  void remove(cudaStream_t stream);

  /// Memory of the device, zeroed; the caller waits until it is. From the device's pool, where it has one.
  cudaError_t allocate(void** data, size_t bytes);
  void free(void* data);
  /// Memory that nothing uses yet; the caller waits until it is.
  cudaError_t zero(void* data, size_t bytes);
  /// Pinned memory of the host, of at least so many bytes: `got`. Blocks are kept for whoever asks next, as
  /// both to pin and to unpin memory may wait for the device.
  cudaError_t allocate_pinned(void** data, size_t bytes, size_t& got);
  void free_pinned(void* data, size_t bytes);
  /// Whether a release may wait for all that streams were given: not while one waits for a thread.
  enum class MayWait : bool { kNo, kYes };
  /// Calls `release`, on some thread that allocates or gives back, or at the end.
  void later(std::function<void()> release, MayWait waits = MayWait::kNo);

  /// Waits until what was given back is free, for somebody who lacks memory.
  void settle();

 private:
  struct Pending {
    cudaEvent_t gone;  // recorded behind all that may use it
    std::function<void()> release;
    MayWait waits;
  };
  void order_locked();
  void collect();

  const std::atomic<int>* awaited_ = nullptr;
  std::mutex mutex_;
  cudaStream_t making_ = nullptr, freeing_ = nullptr;
  cudaMemPool_t pool_ = nullptr;  // null: the device has none
  cudaEvent_t seen_ = nullptr;
  std::set<cudaStream_t> streams_;
  std::vector<cudaEvent_t> events_;  // to use again
  std::vector<Pending> pending_;
  std::multimap<size_t, void*> pinned_;  // free blocks, by size
};

}  // namespace ds::cuda
