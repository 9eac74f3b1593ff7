#include "runtime/backends/cuda/releases_internal.h"

#include <algorithm>
#include <iterator>
#include <tuple>
#include <utility>

#include "runtime/backends/cuda/device_internal.h"

namespace ds::cuda {

Status Releases::start(int device, const std::atomic<int>& awaited) {
  awaited_ = &awaited;
  DS_TRY(check(cudaStreamCreateWithFlags(&making_, cudaStreamNonBlocking),
               "cudaStreamCreateWithFlags for new memory"));
  DS_TRY(check(cudaStreamCreateWithFlags(&freeing_, cudaStreamNonBlocking),
               "cudaStreamCreateWithFlags for memory that is given back"));
  DS_TRY(check(cudaEventCreateWithFlags(&seen_, cudaEventDisableTiming), "cudaEventCreateWithFlags"));
  int pools = 0;
  DS_TRY(check(cudaDeviceGetAttribute(&pools, cudaDevAttrMemoryPoolsSupported, device),
               "cudaDeviceGetAttribute(cudaDevAttrMemoryPoolsSupported)"));
  return pools == 0
             ? ok_status()
             : check(cudaDeviceGetDefaultMemPool(&pool_, device), "cudaDeviceGetDefaultMemPool({})", device);
}

Releases::~Releases() {
  if (freeing_ != nullptr) (void)cudaStreamSynchronize(freeing_);
  for (const Pending& p : pending_) {
    p.release();
    if (p.gone != nullptr) (void)cudaEventDestroy(p.gone);
  }
  for (auto [bytes, data] : pinned_) (void)cudaFreeHost(data);
  for (cudaEvent_t event : events_) (void)cudaEventDestroy(event);
  if (seen_ != nullptr) (void)cudaEventDestroy(seen_);
  for (cudaStream_t stream : {making_, freeing_})
    if (stream != nullptr) (void)cudaStreamDestroy(stream);
}

void Releases::add(cudaStream_t stream) {
  std::lock_guard lock(mutex_);
  streams_.insert(stream);
}

void Releases::remove(cudaStream_t stream) {
  std::lock_guard lock(mutex_);
  streams_.erase(stream);
}

/// What is freed next goes behind all that streams were given so far.
void Releases::order_locked() {
  for (cudaStream_t stream : streams_)
    if (cudaEventRecord(seen_, stream) == cudaSuccess) (void)cudaStreamWaitEvent(freeing_, seen_, 0);
}

cudaError_t Releases::allocate(void** data, size_t bytes) {
  collect();
  cudaError_t raised = pool_ != nullptr ? cudaMallocAsync(data, bytes, making_) : cudaMalloc(data, bytes);
  if (raised != cudaSuccess) return raised;
  raised = zero(*data, bytes);
  if (raised != cudaSuccess) free(std::exchange(*data, nullptr));
  return raised;
}

cudaError_t Releases::zero(void* data, size_t bytes) {
  const cudaError_t raised = cudaMemsetAsync(data, 0, bytes, making_);
  // Streams of ours do not wait for that one.
  return raised == cudaSuccess ? cudaStreamSynchronize(making_) : raised;
}

void Releases::free(void* data) {
  if (pool_ == nullptr) return later([data] { (void)cudaFree(data); }, MayWait::kYes);
  std::lock_guard lock(mutex_);
  order_locked();
  (void)cudaFreeAsync(data, freeing_);
}

cudaError_t Releases::allocate_pinned(void** data, size_t bytes, size_t& got) {
  collect();
  {
    std::lock_guard lock(mutex_);
    if (auto at = pinned_.lower_bound(bytes); at != pinned_.end() && at->first <= 2 * bytes) {
      std::tie(got, *data) = *at;
      pinned_.erase(at);
      return cudaSuccess;
    }
  }
  got = bytes;
  return cudaHostAlloc(data, bytes, cudaHostAllocPortable | cudaHostAllocMapped);
}

void Releases::free_pinned(void* data, size_t bytes) {
  later([this, data, bytes] {
    std::lock_guard lock(mutex_);
    pinned_.emplace(bytes, data);
  });
}

void Releases::later(std::function<void()> release, MayWait waits) {
  {
    std::lock_guard lock(mutex_);
    order_locked();
    cudaEvent_t gone = nullptr;
    if (!events_.empty()) {
      gone = events_.back();
      events_.pop_back();
    } else if (cudaEventCreateWithFlags(&gone, cudaEventDisableTiming) != cudaSuccess) {
      gone = nullptr;  // a lost device: what is on it is lost, too
    }
    if (gone != nullptr) (void)cudaEventRecord(gone, freeing_);
    pending_.push_back({gone, std::move(release), waits});
  }
  collect();
}

void Releases::collect() {
  std::vector<Pending> gone;
  {
    std::lock_guard lock(mutex_);
    const bool calm = *awaited_ == 0;
    auto held = std::stable_partition(pending_.begin(), pending_.end(), [&](const Pending& p) {
      if (p.waits == MayWait::kYes && !calm) return true;
      return p.gone != nullptr && cudaEventQuery(p.gone) == cudaErrorNotReady;  // an error is an end, too
    });
    std::move(held, pending_.end(), std::back_inserter(gone));
    pending_.erase(held, pending_.end());
    for (const Pending& p : gone)
      if (p.gone != nullptr) events_.push_back(p.gone);
  }
  for (const Pending& p : gone) p.release();
}

void Releases::settle() {
  (void)cudaStreamSynchronize(freeing_);
  collect();
  if (pool_ != nullptr) (void)cudaMemPoolTrimTo(pool_, 0);
}

}  // namespace ds::cuda
