// The driver's virtual memory on the simulated device: ranges of addresses, memory, and what is mapped where.
// Simpler than CUDA's: memory is mapped as a whole, and once.
#include <cuda.h>
#include <sys/mman.h>

#include <cstring>
#include <iterator>

#include "runtime/backends/cuda/simulated/device_internal.h"

namespace ds::cuda::simulated {
namespace {

Device& device() { return Device::get(); }

CUresult result(cudaError_t error) { return static_cast<CUresult>(error); }

}  // namespace

cudaError_t Device::reserve(uintptr_t& at, size_t bytes) {
  std::lock_guard lock(mutex_);
  const size_t granule = config_.granule;
  if (bytes == 0 || bytes % granule != 0) return cudaErrorInvalidValue;
  // Nobody may touch what lies before and behind it.
  const size_t mapped_bytes = bytes + 2 * granule;
  void* mapped = mmap(nullptr, mapped_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) return cudaErrorMemoryAllocation;
  at = (reinterpret_cast<uintptr_t>(mapped) / granule + 1) * granule;
  ranges_[at] = {bytes, mapped, mapped_bytes};
  return cudaSuccess;
}

cudaError_t Device::free_range(uintptr_t at, size_t bytes) {
  std::lock_guard lock(mutex_);
  const auto found = ranges_.find(at);
  if (found == ranges_.end() || found->second.bytes != bytes || !found->second.parts.empty())
    return cudaErrorInvalidValue;
  munmap(found->second.mapped, found->second.mapped_bytes);
  ranges_.erase(found);
  return cudaSuccess;
}

cudaError_t Device::create(uint64_t& handle, size_t bytes) {
  const size_t free = free_bytes();
  std::lock_guard lock(mutex_);
  if (bytes == 0 || bytes % config_.granule != 0) return cudaErrorInvalidValue;
  if (bytes > free) return cudaErrorMemoryAllocation;
  physical_[handle = ++handles_made_] = {bytes};
  return cudaSuccess;
}

/// With mutex_ held.
void Device::drop_unused(uint64_t handle) {
  const auto found = physical_.find(handle);
  if (found->second.released && !found->second.mapped) physical_.erase(found);
}

cudaError_t Device::release_handle(uint64_t handle) {
  std::lock_guard lock(mutex_);
  const auto found = physical_.find(handle);
  if (found == physical_.end() || found->second.released) return cudaErrorInvalidValue;
  found->second.released = true;
  drop_unused(handle);
  return cudaSuccess;
}

/// The range that has all of it; null: none. With mutex_ held.
Device::Range* Device::range_of(uintptr_t at, size_t bytes) {
  const auto next = ranges_.upper_bound(at);
  if (next == ranges_.begin()) return nullptr;
  auto& [start, range] = *std::prev(next);
  return at - start < range.bytes && bytes <= range.bytes - (at - start) ? &range : nullptr;
}

cudaError_t Device::map(uintptr_t at, size_t bytes, uint64_t handle) {
  std::lock_guard lock(mutex_);
  Range* range = range_of(at, bytes);
  const auto found = physical_.find(handle);
  if (range == nullptr || at % config_.granule != 0 || found == physical_.end() ||
      found->second.bytes != bytes || found->second.mapped || found->second.released)
    return cudaErrorInvalidValue;
  const auto behind = range->parts.lower_bound(at);
  if (behind != range->parts.end() && behind->first < at + bytes) return cudaErrorInvalidValue;
  if (behind != range->parts.begin())
    if (const auto& [before, part] = *std::prev(behind); before + part.bytes > at)
      return cudaErrorInvalidValue;
  range->parts[at] = {bytes, handle};
  found->second.mapped = true;
  return cudaSuccess;
}

template <typename F>
cudaError_t Device::each_part(uintptr_t at, size_t bytes, F on) {
  std::lock_guard lock(mutex_);
  Range* range = range_of(at, bytes);
  if (range == nullptr) return cudaErrorInvalidValue;
  for (const uintptr_t end = at + bytes; at < end;) {
    const auto part = range->parts.find(at);
    if (part == range->parts.end() || part->second.bytes > end - at) return cudaErrorInvalidValue;
    at += part->second.bytes;
    if (cudaError_t e = on(*range, part); e != cudaSuccess) return e;
  }
  return cudaSuccess;
}

cudaError_t Device::set_access(uintptr_t at, size_t bytes) {
  return each_part(at, bytes, [](Range&, auto part) {
    auto* data = reinterpret_cast<void*>(part->first);
    if (mprotect(data, part->second.bytes, PROT_READ | PROT_WRITE) != 0) return cudaErrorMemoryAllocation;
    if (!part->second.accessible) std::memset(data, 0xff, part->second.bytes);  // as what is allocated
    part->second.accessible = true;
    return cudaSuccess;
  });
}

cudaError_t Device::unmap(uintptr_t at, size_t bytes) {
  return each_part(at, bytes, [this](Range& range, auto part) {
    // At once, whoever uses it: the driver does not wait, either.
    auto* data = reinterpret_cast<void*>(part->first);
    mprotect(data, part->second.bytes, PROT_NONE);
    madvise(data, part->second.bytes, MADV_DONTNEED);
    physical_.at(part->second.handle).mapped = false;
    drop_unused(part->second.handle);
    range.parts.erase(part);
    return cudaSuccess;
  });
}

/// Whether all of it can be accessed. With mutex_ held.
bool Device::accessible(const Range& range, uintptr_t at, size_t bytes) {
  const uintptr_t end = at + bytes;
  while (at < end) {
    const auto next = range.parts.upper_bound(at);
    if (next == range.parts.begin()) return false;
    const auto& [start, part] = *std::prev(next);
    if (at >= start + part.bytes || !part.accessible) return false;
    at = start + part.bytes;
  }
  return true;
}

// ---- the driver's functions

namespace {

#define DS_DRIVER(function) \
  if (cudaError_t refused = device().enter(#function); refused != cudaSuccess) return result(refused)

/// Memory of a device that there is.
bool meant(const CUmemAllocationProp* p) {
  return p != nullptr && p->type == CU_MEM_ALLOCATION_TYPE_PINNED &&
         p->location.type == CU_MEM_LOCATION_TYPE_DEVICE && p->location.id >= 0 &&
         p->location.id < device().config().devices;
}

CUresult get_device(CUdevice* found, int number) {
  DS_DRIVER(cuDeviceGet);
  if (number < 0 || number >= device().config().devices) return CUDA_ERROR_INVALID_DEVICE;
  *found = number;
  return CUDA_SUCCESS;
}

CUresult get_attribute(int* value, CUdevice_attribute attribute, CUdevice) {
  DS_DRIVER(cuDeviceGetAttribute);
  if (attribute != CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED) return CUDA_ERROR_INVALID_VALUE;
  *value = device().config().granule > 0 ? 1 : 0;
  return CUDA_SUCCESS;
}

CUresult granularity(size_t* bytes, const CUmemAllocationProp* p, CUmemAllocationGranularity_flags) {
  DS_DRIVER(cuMemGetAllocationGranularity);
  if (!meant(p)) return CUDA_ERROR_INVALID_VALUE;
  *bytes = device().config().granule;
  return CUDA_SUCCESS;
}

CUresult address_reserve(CUdeviceptr* at, size_t bytes, size_t, CUdeviceptr, unsigned long long) {
  DS_DRIVER(cuMemAddressReserve);
  uintptr_t found = 0;
  const cudaError_t raised = device().reserve(found, bytes);
  *at = found;
  return result(raised);
}

CUresult address_free(CUdeviceptr at, size_t bytes) {
  DS_DRIVER(cuMemAddressFree);
  return result(device().free_range(at, bytes));
}

CUresult create(CUmemGenericAllocationHandle* handle, size_t bytes, const CUmemAllocationProp* p,
                unsigned long long) {
  DS_DRIVER(cuMemCreate);
  device().may_wait("cuMemCreate");
  if (!meant(p)) return CUDA_ERROR_INVALID_VALUE;
  uint64_t made = 0;
  const cudaError_t raised = device().create(made, bytes);
  *handle = made;
  return result(raised);
}

CUresult release(CUmemGenericAllocationHandle handle) {
  DS_DRIVER(cuMemRelease);
  return result(device().release_handle(handle));
}

CUresult map(CUdeviceptr at, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle,
             unsigned long long) {
  DS_DRIVER(cuMemMap);
  return offset != 0 ? CUDA_ERROR_INVALID_VALUE : result(device().map(at, bytes, handle));
}

CUresult set_access(CUdeviceptr at, size_t bytes, const CUmemAccessDesc* access, size_t count) {
  DS_DRIVER(cuMemSetAccess);
  if (count != 1 || access->flags != CU_MEM_ACCESS_FLAGS_PROT_READWRITE ||
      access->location.type != CU_MEM_LOCATION_TYPE_DEVICE)
    return CUDA_ERROR_INVALID_VALUE;
  return result(device().set_access(at, bytes));
}

CUresult unmap(CUdeviceptr at, size_t bytes) {
  DS_DRIVER(cuMemUnmap);
  device().may_wait("cuMemUnmap");
  return result(device().unmap(at, bytes));
}

#undef DS_DRIVER

}  // namespace

void* virtual_memory_function(std::string_view name) {
  const std::pair<std::string_view, void*> functions[] = {
      {"cuDeviceGet", reinterpret_cast<void*>(&get_device)},
      {"cuDeviceGetAttribute", reinterpret_cast<void*>(&get_attribute)},
      {"cuMemGetAllocationGranularity", reinterpret_cast<void*>(&granularity)},
      {"cuMemAddressReserve", reinterpret_cast<void*>(&address_reserve)},
      {"cuMemAddressFree", reinterpret_cast<void*>(&address_free)},
      {"cuMemCreate", reinterpret_cast<void*>(&create)},
      {"cuMemRelease", reinterpret_cast<void*>(&release)},
      {"cuMemMap", reinterpret_cast<void*>(&map)},
      {"cuMemSetAccess", reinterpret_cast<void*>(&set_access)},
      {"cuMemUnmap", reinterpret_cast<void*>(&unmap)},
  };
  for (const auto& [known, function] : functions)
    if (known == name) return function;
  return nullptr;
}

}  // namespace ds::cuda::simulated
