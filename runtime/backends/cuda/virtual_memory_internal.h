// The driver's virtual memory: addresses that are reserved at once and become memory part by part.
#pragma once

#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace ds::cuda {

/// A driver's error, as the runtime counts it: the numbers of those that both can give are the same.
inline cudaError_t runtime_error(CUresult raised) { return static_cast<cudaError_t>(raised); }

/// One device's. Where the driver or the device has none of it, granule() is 0, and nothing else is called.
class VirtualMemory {
 public:
  /// Once, for the calling thread's device.
  void start(int device);

  /// What ranges, and all that is mapped into them, are multiples of.
  int64_t granule() const { return granule_; }
  cudaError_t reserve(std::byte** data, int64_t bytes) const;
  /// Only once nothing is mapped there any more.
  void free(std::byte* data, int64_t bytes) const;
  /// New memory, which nobody has zeroed, at addresses of a range that are none yet.
  cudaError_t map(std::byte* at, int64_t bytes) const;
  /// What one map() has put there, once no stream uses it: the driver waits for none. It may wait for all.
  void unmap(std::byte* at, int64_t bytes) const;

 private:
  template <typename F>
  static bool find(const char* name, int version, F& function);

  int64_t granule_ = 0;
  CUmemAllocationProp properties_{};
  PFN_cuMemAddressReserve_v10020 reserve_ = nullptr;
  PFN_cuMemAddressFree_v10020 free_ = nullptr;
  PFN_cuMemCreate_v10020 create_ = nullptr;
  PFN_cuMemRelease_v10020 release_ = nullptr;
  PFN_cuMemMap_v10020 map_ = nullptr;
  PFN_cuMemUnmap_v10020 unmap_ = nullptr;
  PFN_cuMemSetAccess_v10020 set_access_ = nullptr;
};

}  // namespace ds::cuda
