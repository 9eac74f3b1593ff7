// The functions of CUDA's runtime that the backend uses, with their own signatures, on the simulated device.
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <chrono>
#include <cstring>
#include <string_view>
#include <thread>

#include "runtime/backends/cuda/simulated/device_internal.h"
#include "runtime/backends/cuda/simulated/simt.h"

using namespace ds::cuda::simulated;

namespace ds::cuda::simulated {
namespace {

thread_local cudaError_t last_error = cudaSuccess;
thread_local int current_device = 0;

Device& device() { return Device::get(); }

/// The size of a block's shared memory that devices of this architecture give when asked.
size_t most_shared_bytes() { return size_t{device().config().sm >= 90 ? 227u : 163u} << 10; }

}  // namespace

cudaError_t note(cudaError_t error) {
  if (error != cudaSuccess && error != cudaErrorNotReady) last_error = error;
  return error;
}

cudaError_t enqueue_kernel(const void* kernel, const char* launch_text, dim3 grid, dim3 block,
                           size_t shared_bytes, cudaStream_t stream, std::function<void()> thread) {
  if (cudaError_t refused = device().enter("cudaLaunchKernel"); refused != cudaSuccess) return note(refused);
  CUstream_st* to = device().stream(stream);
  if (to == nullptr) return note(cudaErrorInvalidResourceHandle);
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > 1024 || block.z > 64 || grid.x == 0 || grid.y == 0 || grid.z == 0 ||
      grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    return note(cudaErrorInvalidConfiguration);
  if (shared_bytes > most_shared_bytes()) return note(cudaErrorInvalidValue);
  load_kernel(kernel, launch_text);
  KernelCall call{launch_text, grid, block, shared_bytes, std::move(thread)};
  return note(to->push([call = std::move(call), seed = device().next_seed()] {
    device().count_kernel();
    if (device().lost() == cudaSuccess) run_kernel(call, seed);
  }));
}

namespace {

bool overlaps(const std::byte* a, const std::byte* b, size_t bytes) { return a < b + bytes && b < a + bytes; }

/// Whether a copy of this kind between these is allowed; pageable: host memory that only the host knows.
cudaError_t check_copy(const void* to, const void* from, size_t bytes, cudaMemcpyKind kind, bool& pageable,
                       bool& to_device) {
  bool to_fits, from_fits;
  Memory at_to = device().find(to, bytes, to_fits), at_from = device().find(from, bytes, from_fits);
  if (to == nullptr || from == nullptr || !to_fits || !from_fits) return cudaErrorInvalidValue;
  to_device = at_to == Memory::kDevice;
  const bool from_device = at_from == Memory::kDevice;
  if (kind != cudaMemcpyDefault) {
    if (to_device != (kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice) ||
        from_device != (kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice))
      return cudaErrorInvalidValue;
  }
  pageable = at_to == Memory::kNone || at_from == Memory::kNone;
  return overlaps(static_cast<const std::byte*>(to), static_cast<const std::byte*>(from), bytes)
             ? cudaErrorInvalidValue
             : cudaSuccess;
}

cudaError_t create_stream(cudaStream_t* stream, unsigned flags, int priority) {
  // Blocking streams order themselves with the default stream, which is not simulated.
  if (stream == nullptr || flags != cudaStreamNonBlocking) return cudaErrorInvalidValue;
  device().add(*stream = new CUstream_st(priority));
  return cudaSuccess;
}

cudaError_t record(cudaEvent_t event, cudaStream_t stream, unsigned flags) {
  CUstream_st* on = device().stream(stream);
  if (event == nullptr || on == nullptr) return cudaErrorInvalidResourceHandle;
  if (on->capture != nullptr && (flags & cudaEventRecordExternal) == 0) {
    event->captured = on->capture;
    return on->push([] {});
  }
  if (on->capture != nullptr) {
    return on->push([event] {  // each time that the graph runs
      auto recording = std::make_shared<Recording>();
      recording->complete();
      event->latest = recording;
    });
  }
  event->captured = nullptr;
  auto recording = std::make_shared<Recording>();
  event->latest = recording;
  return on->push([recording] { recording->complete(); }, true);
}

cudaError_t wait_event(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
  CUstream_st* on = device().stream(stream);
  if (event == nullptr || on == nullptr) return cudaErrorInvalidResourceHandle;
  if (on->capture != nullptr && (flags & cudaEventWaitExternal) != 0)
    return on->push([event] {
      if (auto latest = event->latest.load()) latest->wait();
    });
  if (event->captured != on->capture) {  // one of both is not of this capture; forks are not simulated
    if (on->capture != nullptr) on->capture->broken = true;
    if (event->captured != nullptr) event->captured->broken = true;
    return cudaErrorStreamCaptureIsolation;
  }
  if (on->capture != nullptr) return on->push([] {});
  auto latest = event->latest.load();
  if (latest == nullptr) return cudaSuccess;  // never recorded: nothing to wait for
  return on->push([latest] { latest->wait(); }, true);
}

bool satisfied(uint32_t found, uint32_t value, unsigned flags) {
  switch (flags & 3u) {
    case CU_STREAM_WAIT_VALUE_GEQ:
      return static_cast<int32_t>(found - value) >= 0;
    case CU_STREAM_WAIT_VALUE_EQ:
      return found == value;
    case CU_STREAM_WAIT_VALUE_AND:
      return (found & value) != 0;
    default:
      return ~(found | value) != 0;
  }
}

CUresult stream_value(const char* function, cudaStream_t stream, CUdeviceptr address,
                      std::function<void(uint32_t*)> work) {
  auto* at = reinterpret_cast<uint32_t*>(address);
  if (device().enter(function) != cudaSuccess)
    return device().lost() != cudaSuccess ? CUDA_ERROR_ILLEGAL_ADDRESS : CUDA_ERROR_NOT_INITIALIZED;
  if (address % 4 != 0 || !in_readable_memory(at, 4)) return CUDA_ERROR_INVALID_VALUE;
  cudaError_t raised = enqueue(stream, [at, work = std::move(work)] { work(at); });
  return raised == cudaSuccess                      ? CUDA_SUCCESS
         : raised == cudaErrorInvalidResourceHandle ? CUDA_ERROR_INVALID_HANDLE
                                                    : CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
}

CUresult wait_value(CUstream stream, CUdeviceptr address, cuuint32_t value, unsigned flags) {
  // From now on, not from when it begins: whether that is before the next call of this thread is chance.
  device().count_waiting(1);
  CUresult result = stream_value("cuStreamWaitValue32", stream, address, [value, flags](uint32_t* at) {
    while (!satisfied(std::atomic_ref(*at).load(), value, flags) && device().lost() == cudaSuccess)
      std::this_thread::sleep_for(std::chrono::microseconds(20));
    device().count_waiting(-1);
  });
  if (result != CUDA_SUCCESS) device().count_waiting(-1);
  return result;
}

CUresult write_value(CUstream stream, CUdeviceptr address, cuuint32_t value, unsigned) {
  return stream_value("cuStreamWriteValue32", stream, address,
                      [value](uint32_t* at) { std::atomic_ref(*at).store(value); });
}

cudaError_t attribute(int* value, cudaDeviceAttr name) {
  const Config& config = device().config();
  switch (name) {
    case cudaDevAttrComputeCapabilityMajor:
      *value = config.sm / 10;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = config.sm % 10;
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = config.multiprocessors;
      break;
    case cudaDevAttrMaxThreadsPerBlock:
      *value = 1024;
      break;
    case cudaDevAttrWarpSize:
      *value = 32;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = 48 << 10;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(most_shared_bytes());
      break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = static_cast<int>(most_shared_bytes()) + 1024;
      break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = 2048;
      break;
    case cudaDevAttrL2CacheSize:
      *value = 50 << 20;
      break;
    case cudaDevAttrClockRate:
      *value = 1'000'000;
      break;
    case cudaDevAttrMemoryClockRate:
      *value = 1'000'000;
      break;
    case cudaDevAttrGlobalMemoryBusWidth:
      *value = 1024;
      break;
    case cudaDevAttrAsyncEngineCount:
      *value = 2;
      break;
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrCanMapHostMemory:
    case cudaDevAttrConcurrentKernels:
    case cudaDevAttrMemoryPoolsSupported:
    case cudaDevAttrCanUseHostPointerForRegisteredMem:
      *value = 1;
      break;
    case cudaDevAttrIntegrated:
    case cudaDevAttrPageableMemoryAccess:
    case cudaDevAttrEccEnabled:
      *value = 0;
      break;
    default:
      return cudaErrorInvalidValue;
  }
  return cudaSuccess;
}

void properties(cudaDeviceProp& p) {
  const Config& config = device().config();
  std::memset(&p, 0, sizeof p);
  std::strncpy(p.name, "simulated device", sizeof p.name - 1);
  p.uuid.bytes[0] = 's';
  p.totalGlobalMem = static_cast<size_t>(config.memory);
  p.sharedMemPerBlock = 48 << 10;
  p.sharedMemPerBlockOptin = most_shared_bytes();
  p.sharedMemPerMultiprocessor = most_shared_bytes() + 1024;
  p.regsPerBlock = p.regsPerMultiprocessor = 65536;
  p.warpSize = 32;
  p.maxThreadsPerBlock = 1024;
  p.maxThreadsPerMultiProcessor = 2048;
  p.maxThreadsDim[0] = p.maxThreadsDim[1] = 1024;
  p.maxThreadsDim[2] = 64;
  p.maxGridSize[0] = 0x7fffffff;
  p.maxGridSize[1] = p.maxGridSize[2] = 65535;
  p.major = config.sm / 10;
  p.minor = config.sm % 10;
  p.multiProcessorCount = config.multiprocessors;
  p.l2CacheSize = 50 << 20;
  p.memoryBusWidth = 1024;
  p.asyncEngineCount = 2;
  p.concurrentKernels = p.canMapHostMemory = p.unifiedAddressing = p.streamPrioritiesSupported = 1;
  p.canUseHostPointerForRegisteredMem = 1;
}

struct ErrorText {
  cudaError_t error;
  const char *name, *text;
};
constexpr ErrorText kErrors[] = {
#define DS_ERROR(name, text) \
  { name, #name, text }
    DS_ERROR(cudaSuccess, "no error"),
    DS_ERROR(cudaErrorInvalidValue, "invalid argument"),
    DS_ERROR(cudaErrorMemoryAllocation, "out of memory"),
    DS_ERROR(cudaErrorInvalidConfiguration, "invalid configuration argument"),
    DS_ERROR(cudaErrorInsufficientDriver, "CUDA driver version is insufficient for CUDA runtime version"),
    DS_ERROR(cudaErrorNoDevice, "no CUDA-capable device is detected"),
    DS_ERROR(cudaErrorInvalidDevice, "invalid device ordinal"),
    DS_ERROR(cudaErrorInvalidResourceHandle, "invalid resource handle"),
    DS_ERROR(cudaErrorNotReady, "device not ready"),
    DS_ERROR(cudaErrorIllegalAddress, "an illegal memory access was encountered"),
    DS_ERROR(cudaErrorNotPermitted, "operation not permitted"),
    DS_ERROR(cudaErrorNotSupported, "operation not supported"),
    DS_ERROR(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing"),
    DS_ERROR(cudaErrorStreamCaptureInvalidated, "operation failed due to a previous error during capture"),
    DS_ERROR(cudaErrorStreamCaptureIsolation, "dependency created on uncaptured work in another stream"),
    DS_ERROR(cudaErrorCapturedEvent,
             "operation not permitted on an event last recorded in a capturing stream"),
#undef DS_ERROR
};

}  // namespace
}  // namespace ds::cuda::simulated

#define DS_ENTER(function) \
  if (cudaError_t refused = Device::get().enter(#function); refused != cudaSuccess) return note(refused)
#define DS_MAY_WAIT(function) Device::get().may_wait(#function)
#define DS_NOT_IN_CAPTURE() \
  if (Device::get().forbidden_by_capture()) return note(cudaErrorStreamCaptureUnsupported)

extern "C" {

// ---- versions and errors

cudaError_t cudaDriverGetVersion(int* version) {
  *version = device().config().driver;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaGetLastError(void) {
  cudaError_t error = cudaPeekAtLastError();
  last_error = cudaSuccess;
  return error;
}
cudaError_t cudaPeekAtLastError(void) {
  return device().lost() != cudaSuccess ? device().lost() : last_error;
}
const char* cudaGetErrorName(cudaError_t error) {
  for (const ErrorText& e : kErrors)
    if (e.error == error) return e.name;
  return "unrecognized error code";
}
const char* cudaGetErrorString(cudaError_t error) {
  for (const ErrorText& e : kErrors)
    if (e.error == error) return e.text;
  return "unrecognized error code";
}

// ---- devices

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 0;
  DS_ENTER(cudaGetDeviceCount);
  *count = device().config().devices;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int number) {
  DS_ENTER(cudaSetDevice);
  if (number < 0 || number >= device().config().devices) return note(cudaErrorInvalidDevice);
  current_device = number;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* number) {
  DS_ENTER(cudaGetDevice);
  *number = current_device;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* found, int number) {
  DS_ENTER(cudaGetDeviceProperties);
  if (number < 0 || number >= device().config().devices) return note(cudaErrorInvalidDevice);
  properties(*found);
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr name, int number) {
  DS_ENTER(cudaDeviceGetAttribute);
  if (number < 0 || number >= device().config().devices) return note(cudaErrorInvalidDevice);
  return note(attribute(value, name));
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  DS_ENTER(cudaDeviceGetStreamPriorityRange);
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize(void) {
  DS_ENTER(cudaDeviceSynchronize);
  DS_MAY_WAIT(cudaDeviceSynchronize);
  DS_NOT_IN_CAPTURE();
  device().wait_for_all();
  return note(device().lost());
}

// ---- memory

cudaError_t cudaMalloc(void** data, size_t bytes) {
  DS_ENTER(cudaMalloc);
  DS_MAY_WAIT(cudaMalloc);
  DS_NOT_IN_CAPTURE();
  return note(device().allocate(data, bytes, Memory::kDevice));
}
cudaError_t cudaFree(void* data) {
  DS_ENTER(cudaFree);
  DS_MAY_WAIT(cudaFree);
  DS_NOT_IN_CAPTURE();
  return note(device().free(data, Memory::kDevice));
}
cudaError_t cudaMallocHost(void** data, size_t bytes) {
  DS_ENTER(cudaMallocHost);
  DS_MAY_WAIT(cudaMallocHost);
  DS_NOT_IN_CAPTURE();
  return note(device().allocate(data, bytes, Memory::kPinned));
}
cudaError_t cudaHostAlloc(void** data, size_t bytes, unsigned) {
  DS_ENTER(cudaHostAlloc);
  DS_MAY_WAIT(cudaHostAlloc);
  DS_NOT_IN_CAPTURE();
  return note(device().allocate(data, bytes, Memory::kPinned));
}
cudaError_t cudaFreeHost(void* data) {
  DS_ENTER(cudaFreeHost);
  DS_MAY_WAIT(cudaFreeHost);
  DS_NOT_IN_CAPTURE();
  return note(device().free(data, Memory::kPinned));
}
cudaError_t cudaHostGetDevicePointer(void** found, void* data, unsigned) {
  DS_ENTER(cudaHostGetDevicePointer);
  bool fits;
  if (device().find(data, 1, fits) != Memory::kPinned) return note(cudaErrorInvalidValue);
  *found = data;
  return cudaSuccess;
}
// The default pool keeps nothing, which is its default: what is freed can be had again at once.
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int number) {
  DS_ENTER(cudaDeviceGetDefaultMemPool);
  if (pool == nullptr || number < 0 || number >= device().config().devices)
    return note(cudaErrorInvalidDevice);
  static std::byte only;
  *pool = reinterpret_cast<cudaMemPool_t>(&only);
  return cudaSuccess;
}
cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, size_t) {
  DS_ENTER(cudaMemPoolTrimTo);
  return note(pool == nullptr ? cudaErrorInvalidValue : cudaSuccess);
}
cudaError_t cudaMallocAsync(void** data, size_t bytes, cudaStream_t stream) {
  DS_ENTER(cudaMallocAsync);
  if (device().stream(stream) == nullptr) return note(cudaErrorInvalidResourceHandle);
  return note(device().allocate(data, bytes, Memory::kDevice));
}
cudaError_t cudaFreeAsync(void* data, cudaStream_t stream) {
  DS_ENTER(cudaFreeAsync);
  CUstream_st* on = device().stream(stream);
  bool fits;
  if (on == nullptr) return note(cudaErrorInvalidResourceHandle);
  if (device().find(data, 1, fits) != Memory::kDevice) return note(cudaErrorInvalidValue);
  return note(on->push([data] { (void)device().release(data, Memory::kDevice); }));
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  DS_ENTER(cudaMemGetInfo);
  *free = device().free_bytes();
  *total = static_cast<size_t>(device().config().memory);
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* found, const void* data) {
  DS_ENTER(cudaPointerGetAttributes);
  bool fits;
  Memory memory = device().find(data, 1, fits);
  *found = {};
  found->type = memory == Memory::kDevice   ? cudaMemoryTypeDevice
                : memory == Memory::kPinned ? cudaMemoryTypeHost
                                            : cudaMemoryTypeUnregistered;
  found->device = memory == Memory::kNone ? -2 : 0;
  found->devicePointer = memory == Memory::kNone ? nullptr : const_cast<void*>(data);
  found->hostPointer = memory == Memory::kDevice ? nullptr : const_cast<void*>(data);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  DS_ENTER(cudaMemcpyAsync);
  CUstream_st* on = device().stream(stream);
  if (on == nullptr) return note(cudaErrorInvalidResourceHandle);
  if (bytes == 0) return cudaSuccess;
  bool pageable = false, to_device = false;
  if (cudaError_t raised = check_copy(to, from, bytes, kind, pageable, to_device); raised != cudaSuccess)
    return note(raised);
  if (pageable && on->capture == nullptr && to_device && bytes <= (64 << 10)) {
    // As CUDA does: taken now, put there later.
    auto* first = static_cast<const std::byte*>(from);
    return note(on->push(
        [to, taken = std::vector(first, first + bytes)] { std::memcpy(to, taken.data(), taken.size()); }));
  }
  cudaError_t raised = on->push([=] { std::memcpy(to, from, bytes); });
  if (pageable && on->capture == nullptr) on->wait();
  return note(raised != cudaSuccess ? raised : device().lost());
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  DS_ENTER(cudaMemcpy);
  DS_NOT_IN_CAPTURE();
  bool pageable = false, to_device = false;
  if (bytes == 0) return cudaSuccess;
  if (cudaError_t raised = check_copy(to, from, bytes, kind, pageable, to_device); raised != cudaSuccess)
    return note(raised);
  CUstream_st* on = device().stream(nullptr);
  on->push([=] { std::memcpy(to, from, bytes); });
  on->wait();
  return note(device().lost());
}
cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t stream) {
  DS_ENTER(cudaMemsetAsync);
  CUstream_st* on = device().stream(stream);
  if (on == nullptr) return note(cudaErrorInvalidResourceHandle);
  if (bytes != 0 && !in_readable_memory(data, bytes)) return note(cudaErrorInvalidValue);
  return note(on->push([=] { std::memset(data, value, bytes); }));
}
cudaError_t cudaMemset(void* data, int value, size_t bytes) {
  DS_ENTER(cudaMemset);
  DS_NOT_IN_CAPTURE();
  if (bytes != 0 && !in_readable_memory(data, bytes)) return note(cudaErrorInvalidValue);
  CUstream_st* on = device().stream(nullptr);
  on->push([=] { std::memset(data, value, bytes); });
  on->wait();
  return note(device().lost());
}

// ---- streams and events

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  DS_ENTER(cudaStreamCreateWithFlags);
  return note(create_stream(stream, flags, 0));
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int priority) {
  DS_ENTER(cudaStreamCreateWithPriority);
  return note(create_stream(stream, flags, priority));
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  DS_ENTER(cudaStreamDestroy);
  if (stream == nullptr || device().stream(stream) == nullptr) return note(cudaErrorInvalidResourceHandle);
  if (stream->capture != nullptr) device().end_capture(stream->capture);
  device().remove(stream);
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  DS_ENTER(cudaStreamSynchronize);
  CUstream_st* on = device().stream(stream);
  if (on == nullptr) return note(cudaErrorInvalidResourceHandle);
  if (on->capture != nullptr) {
    on->capture->broken = true;
    return note(cudaErrorStreamCaptureUnsupported);
  }
  on->wait();
  return note(device().lost());
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  DS_ENTER(cudaStreamQuery);
  CUstream_st* on = device().stream(stream);
  if (on == nullptr) return note(cudaErrorInvalidResourceHandle);
  if (on->capture != nullptr) {
    on->capture->broken = true;
    return note(cudaErrorStreamCaptureUnsupported);
  }
  return on->idle() ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
  DS_ENTER(cudaStreamWaitEvent);
  return note(wait_event(stream, event, flags));
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t call, void* data) {
  DS_ENTER(cudaLaunchHostFunc);
  CUstream_st* on = device().stream(stream);
  if (on == nullptr) return note(cudaErrorInvalidResourceHandle);
  if (call == nullptr) return note(cudaErrorInvalidValue);
  return note(on->push([call, data] {
    in_host_function = true;
    call(data);
    in_host_function = false;
  }));
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  DS_ENTER(cudaEventCreateWithFlags);
  if (event == nullptr) return note(cudaErrorInvalidValue);
  *event = new CUevent_st;
  (*event)->timed = (flags & cudaEventDisableTiming) == 0;
  ++device().events;
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  DS_ENTER(cudaEventDestroy);
  if (event == nullptr) return note(cudaErrorInvalidResourceHandle);
  delete event;
  --device().events;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  DS_ENTER(cudaEventRecord);
  return note(record(event, stream, 0));
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned flags) {
  DS_ENTER(cudaEventRecordWithFlags);
  return note(record(event, stream, flags));
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  DS_ENTER(cudaEventQuery);
  if (event == nullptr) return note(cudaErrorInvalidResourceHandle);
  if (event->captured != nullptr) return note(cudaErrorCapturedEvent);
  auto latest = event->latest.load();
  return latest == nullptr || latest->done != 0 ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  DS_ENTER(cudaEventSynchronize);
  if (event == nullptr) return note(cudaErrorInvalidResourceHandle);
  if (event->captured != nullptr) return note(cudaErrorCapturedEvent);
  if (auto latest = event->latest.load()) latest->wait();
  return note(device().lost());
}
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t start, cudaEvent_t end) {
  DS_ENTER(cudaEventElapsedTime);
  if (start == nullptr || end == nullptr || !start->timed || !end->timed)
    return note(cudaErrorInvalidResourceHandle);
  auto from = start->latest.load(), to = end->latest.load();
  if (from == nullptr || to == nullptr) return note(cudaErrorInvalidResourceHandle);
  if (from->done == 0 || to->done == 0) return cudaErrorNotReady;
  *ms = static_cast<float>(to->time_ns - from->time_ns) * 1e-6f;
  return cudaSuccess;
}

// ---- graphs

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  DS_ENTER(cudaStreamBeginCapture);
  CUstream_st* on = stream == nullptr ? nullptr : device().stream(stream);
  if (on == nullptr || on->capture != nullptr) return note(cudaErrorStreamCaptureUnsupported);
  on->capture = std::make_shared<Capture>();
  on->capture->mode = mode;
  on->capture->thread = std::this_thread::get_id();
  device().begin_capture(on->capture);
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  DS_ENTER(cudaStreamEndCapture);
  CUstream_st* on = stream == nullptr ? nullptr : device().stream(stream);
  if (graph != nullptr) *graph = nullptr;
  if (on == nullptr || on->capture == nullptr || graph == nullptr) return note(cudaErrorInvalidValue);
  std::shared_ptr<Capture> capture = std::move(on->capture);
  on->capture = nullptr;
  device().end_capture(capture);
  if (capture->broken) return note(cudaErrorStreamCaptureInvalidated);
  *graph = new CUgraph_st{std::move(capture->work)};
  ++device().graphs;
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  DS_ENTER(cudaStreamIsCapturing);
  CUstream_st* on = device().stream(stream);
  if (on == nullptr) return note(cudaErrorInvalidResourceHandle);
  *status = on->capture == nullptr ? cudaStreamCaptureStatusNone
            : on->capture->broken  ? cudaStreamCaptureStatusInvalidated
                                   : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long) {
  DS_ENTER(cudaGraphInstantiate);
  DS_MAY_WAIT(cudaGraphInstantiate);
  if (made == nullptr || graph == nullptr) return note(cudaErrorInvalidValue);
  *made = new CUgraphExec_st{std::make_shared<const std::vector<Work>>(graph->work)};
  ++device().graphs;
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  DS_ENTER(cudaGraphLaunch);
  CUstream_st* on = device().stream(stream);
  if (graph == nullptr || on == nullptr) return note(cudaErrorInvalidResourceHandle);
  return note(on->push([work = graph->work] {
    for (const Work& item : *work)
      if (device().lost() == cudaSuccess) item();
  }));
}
cudaError_t cudaGraphUpload(cudaGraphExec_t graph, cudaStream_t stream) {
  DS_ENTER(cudaGraphUpload);
  return graph == nullptr || device().stream(stream) == nullptr ? note(cudaErrorInvalidResourceHandle)
                                                                : cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  DS_ENTER(cudaGraphDestroy);
  if (graph == nullptr) return note(cudaErrorInvalidValue);
  delete graph;
  --device().graphs;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
  DS_ENTER(cudaGraphExecDestroy);
  if (graph == nullptr) return note(cudaErrorInvalidValue);
  delete graph;
  --device().graphs;
  return cudaSuccess;
}

// ---- kernels: launches themselves are simt.h's

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute name, int value) {
  DS_ENTER(cudaFuncSetAttribute);
  if (function == nullptr) return note(cudaErrorInvalidDeviceFunction);
  return note(name == cudaFuncAttributeMaxDynamicSharedMemorySize &&
                      (value < 0 || static_cast<size_t>(value) > most_shared_bytes())
                  ? cudaErrorInvalidValue
                  : cudaSuccess);
}

// ---- the driver

cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** found, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* status) {
  DS_ENTER(cudaGetDriverEntryPointByVersion);
  const std::string_view name = symbol;
  *found = name == "cuStreamWaitValue32"    ? reinterpret_cast<void*>(&wait_value)
           : name == "cuStreamWriteValue32" ? reinterpret_cast<void*>(&write_value)
                                            : virtual_memory_function(name);
  if (status != nullptr)
    *status = *found != nullptr ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;  // also where there is no such function: then that is null
}

}  // extern "C"
