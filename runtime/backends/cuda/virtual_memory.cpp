#include "runtime/backends/cuda/virtual_memory_internal.h"

namespace ds::cuda {
namespace {

CUdeviceptr address(std::byte* data) { return reinterpret_cast<CUdeviceptr>(data); }

}  // namespace

template <typename F>
bool VirtualMemory::find(const char* name, int version, F& function) {
  void* at = nullptr;
  cudaDriverEntryPointQueryResult found{};
  const cudaError_t raised =
      cudaGetDriverEntryPointByVersion(name, &at, static_cast<unsigned>(version), cudaEnableDefault, &found);
  if (raised != cudaSuccess) (void)cudaGetLastError();  // without it there is another way
  function = reinterpret_cast<F>(at);
  return raised == cudaSuccess && found == cudaDriverEntryPointSuccess && at != nullptr;
}

void VirtualMemory::start(int device) {
  PFN_cuDeviceGet_v2000 get = nullptr;
  PFN_cuDeviceGetAttribute_v2000 attribute = nullptr;
  PFN_cuMemGetAllocationGranularity_v10020 granularity = nullptr;
  if (!find("cuDeviceGet", 2000, get) || !find("cuDeviceGetAttribute", 2000, attribute) ||
      !find("cuMemGetAllocationGranularity", 10020, granularity) ||
      !find("cuMemAddressReserve", 10020, reserve_) || !find("cuMemAddressFree", 10020, free_) ||
      !find("cuMemCreate", 10020, create_) || !find("cuMemRelease", 10020, release_) ||
      !find("cuMemMap", 10020, map_) || !find("cuMemUnmap", 10020, unmap_) ||
      !find("cuMemSetAccess", 10020, set_access_))
    return;
  CUdevice number = 0;
  int there = 0;
  if (get(&number, device) != CUDA_SUCCESS ||
      attribute(&there, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, number) != CUDA_SUCCESS ||
      there == 0)
    return;
  properties_.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  properties_.location = {CU_MEM_LOCATION_TYPE_DEVICE, device};
  size_t bytes = 0;
  if (granularity(&bytes, &properties_, CU_MEM_ALLOC_GRANULARITY_MINIMUM) == CUDA_SUCCESS)
    granule_ = static_cast<int64_t>(bytes);
}

cudaError_t VirtualMemory::reserve(std::byte** data, int64_t bytes) const {
  CUdeviceptr at = 0;
  const CUresult raised = reserve_(&at, static_cast<size_t>(bytes), 0, 0, 0);
  *data = reinterpret_cast<std::byte*>(at);
  return runtime_error(raised);
}

void VirtualMemory::free(std::byte* data, int64_t bytes) const {
  (void)free_(address(data), static_cast<size_t>(bytes));
}

cudaError_t VirtualMemory::map(std::byte* at, int64_t bytes) const {
  const auto size = static_cast<size_t>(bytes);
  CUmemGenericAllocationHandle memory{};
  CUresult raised = create_(&memory, size, &properties_, 0);
  if (raised != CUDA_SUCCESS) return runtime_error(raised);
  raised = map_(address(at), size, 0, memory, 0);
  (void)release_(memory);  // it lives as long as it is mapped
  if (raised != CUDA_SUCCESS) return runtime_error(raised);
  const CUmemAccessDesc access{.location = properties_.location, .flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE};
  raised = set_access_(address(at), size, &access, 1);
  if (raised != CUDA_SUCCESS) unmap(at, bytes);
  return runtime_error(raised);
}

void VirtualMemory::unmap(std::byte* at, int64_t bytes) const {
  (void)unmap_(address(at), static_cast<size_t>(bytes));
}

}  // namespace ds::cuda
