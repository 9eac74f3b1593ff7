#include "runtime/backends/cuda/device_internal.h"

#include <cudaTypedefs.h>

#include <cmath>

#include "runtime/backends/cuda/algorithms_internal.h"
#include "support/clock.h"
#include "support/units.h"

namespace ds::cuda {
namespace {

constexpr int kLeastMajor = 8;  // bf16 matrix units and asynchronous copies to shared memory

struct Meaning {
  Code code = Code::kInternal;
  std::string remedy;
};

std::string versions() {
  int runtime = 0, driver = 0;
  (void)cudaRuntimeGetVersion(&runtime);
  (void)cudaDriverGetVersion(&driver);
  return driver == 0 ? fmt::format("no driver is loaded; this was built with CUDA {}", version_text(runtime))
                     : fmt::format("the driver is for CUDA {}, this was built with CUDA {}",
                                   version_text(driver), version_text(runtime));
}

Meaning meaning_of(cudaError_t raised) {
  switch (raised) {
    case cudaErrorNoDevice:
      return {
          Code::kUnavailable,
          "there is no CUDA device: see whether nvidia-smi lists one and CUDA_VISIBLE_DEVICES hides it, or "
          "use --backend cpu"};
    case cudaErrorInsufficientDriver:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorCompatNotSupportedOnDevice:
    case cudaErrorCallRequiresNewerDriver:
    case cudaErrorUnsupportedPtxVersion:
      return {Code::kUnavailable,
              fmt::format("{}; install a newer driver, or use --backend cpu", versions())};
    case cudaErrorNoKernelImageForDevice:
      return {Code::kUnavailable, "this build has no code for this device; it needs sm_80 or newer"};
    case cudaErrorDevicesUnavailable:
    case cudaErrorInvalidDevice:
    case cudaErrorInitializationError:
    case cudaErrorSystemNotReady:
    case cudaErrorStartupFailure:
    case cudaErrorStubLibrary:
    case cudaErrorOperatingSystem:
      return {Code::kUnavailable,
              "the device cannot be used: another process may hold it alone (compute mode), or its driver is "
              "not ready; see nvidia-smi, or use --backend cpu"};
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorAssert:
    case cudaErrorContextIsDestroyed:
    case cudaErrorUnknown:
    case cudaErrorExternalDevice:
      return {
          Code::kUnavailable,
          "the device is lost for this process: end it and start again; where that recurs, see nvidia-smi "
          "-q for hardware errors, and let --check-kernels name the kernel"};
    case cudaErrorMemoryAllocation: {
      size_t free = 0, total = 0;
      (void)cudaMemGetInfo(&free, &total);
      return {
          Code::kDeviceMemory,
          fmt::format("{} of {} of device memory are available; end other processes on it, or use a smaller "
                      "model or shorter contexts",
                      format_bytes(static_cast<int64_t>(free)), format_bytes(static_cast<int64_t>(total)))};
    }
    case cudaErrorNotSupported:
      return {Code::kUnsupported, "this device or driver does not do it"};
    default:
      return {Code::kInternal, "this is a bug in droidspeak"};
  }
}

}  // namespace

// ---- errors

Status failure(cudaError_t raised, std::string_view what) {
  (void)cudaGetLastError();
  Meaning meaning = meaning_of(raised);
  return error(meaning.code, "{}: {} ({}): {}", what, cudaGetErrorName(raised), cudaGetErrorString(raised),
               meaning.remedy);
}

Status failure(cublasStatus_t raised, std::string_view what) {
  const std::string name =
      fmt::format("{}: {} ({})", what, cublasLtGetStatusName(raised), cublasLtGetStatusString(raised));
  // A device that is lost shows here as a failed execution.
  if (cudaError_t before = cudaPeekAtLastError();
      before != cudaSuccess && meaning_of(before).code == Code::kUnavailable)
    return failure(before, name);
  switch (raised) {
    case CUBLAS_STATUS_ALLOC_FAILED:
      return failure(cudaErrorMemoryAllocation, name);
    case CUBLAS_STATUS_NOT_INITIALIZED:
    case CUBLAS_STATUS_ARCH_MISMATCH:
      return error(Code::kUnavailable, "{}: cuBLASLt cannot use this device; {}", name, versions());
    case CUBLAS_STATUS_EXECUTION_FAILED:
      return error(Code::kUnavailable, "{}: the device may be lost for this process: end it and start again",
                   name);
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return error(Code::kUnsupported, "{}: cuBLASLt does not do this product on this device", name);
    default:
      return error(Code::kInternal, "{}: this is a bug in droidspeak", name);
  }
}

std::string version_text(int version) { return fmt::format("{}.{}", version / 1000, version % 1000 / 10); }

// ---- flags

namespace {

// A cache line each: threads poll and write them.
constexpr size_t kFlagBytes = 64, kSlabFlags = 1024;

}  // namespace

FlagPool::~FlagPool() {
  for (void* slab : slabs_) (void)cudaFreeHost(slab);
}

Result<Flag> FlagPool::take() {
  std::lock_guard lock(mutex_);
  if (free_.empty()) {
    void* slab = nullptr;
    DS_TRY(check(cudaHostAlloc(&slab, kFlagBytes * kSlabFlags, cudaHostAllocPortable | cudaHostAllocMapped),
                 "cudaHostAlloc of {} bytes of flags", kFlagBytes * kSlabFlags));
    slabs_.push_back(slab);
    for (size_t i = kSlabFlags; i-- > 0;) {
      Flag flag;
      flag.word = new (static_cast<std::byte*>(slab) + i * kFlagBytes) std::atomic<uint32_t>(0);
      free_.push_back(flag);
    }
  }
  Flag flag = free_.back();
  free_.pop_back();
  return flag;
}

void FlagPool::give_back(Flag flag) {
  std::lock_guard lock(mutex_);
  free_.push_back(flag);
}

// ---- the clock

namespace {

constexpr int64_t kOldNs = 2'000'000'000;  // drift by then: some microseconds
constexpr int kTries = 16;                 // at most; the shortest is the best
constexpr int64_t kShortNs = 20'000;       // short enough
constexpr int64_t kPatienceNs = 1'000'000;

}  // namespace

DeviceClock::~DeviceClock() {
  if (base_ != nullptr) (void)cudaEventDestroy(base_);
  if (next_ != nullptr) (void)cudaEventDestroy(next_);
  if (stream_ != nullptr) (void)cudaStreamDestroy(stream_);
}

Status DeviceClock::start() {
  int least = 0, greatest = 0;
  DS_TRY(check(cudaDeviceGetStreamPriorityRange(&least, &greatest), "cudaDeviceGetStreamPriorityRange"));
  DS_TRY(check(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, greatest),
               "cudaStreamCreateWithPriority of the clock"));
  DS_TRY(check(cudaEventCreateWithFlags(&base_, cudaEventDefault), "cudaEventCreateWithFlags of the clock"));
  DS_TRY(check(cudaEventCreateWithFlags(&next_, cudaEventDefault), "cudaEventCreateWithFlags of the clock"));
  DS_TRY(check(cudaEventRecord(base_, stream_), "cudaEventRecord of the clock"));
  DS_TRY(check(cudaEventSynchronize(base_), "cudaEventSynchronize of the clock"));
  base_ns_ = now_ns();  // whatever comes of the tries
  take_base();
  return ok_status();
}

bool DeviceClock::take_base() {
  int64_t shortest = INT64_MAX;
  for (int i = 0; i < kTries && shortest > kShortNs; ++i) {
    const int64_t begin = now_ns();
    if (cudaEventRecord(next_, stream_) != cudaSuccess) break;
    cudaError_t state = cudaErrorNotReady;
    int64_t end = begin;
    while ((state = cudaEventQuery(next_)) == cudaErrorNotReady && end - begin < kPatienceNs) end = now_ns();
    end = now_ns();
    // A device that is busy or lost: the old base is better than one that is not known.
    if (state != cudaSuccess) break;
    if (end - begin >= shortest) continue;
    shortest = end - begin;
    std::swap(base_, next_);
    base_ns_ = end;
  }
  return shortest != INT64_MAX;
}

void DeviceClock::refresh() {
  std::lock_guard lock(mutex_);
  if (now_ns() - base_ns_ > kOldNs) take_base();
}

int64_t DeviceClock::time_ns(cudaEvent_t event) {
  std::lock_guard lock(mutex_);
  float ms = 0;
  if (cudaEventElapsedTime(&ms, base_, event) != cudaSuccess) return now_ns();
  return base_ns_ + std::llround(static_cast<double>(ms) * 1e6);
}

// ---- pinned memory

void PinnedRanges::add(const std::byte* data, int64_t bytes) {
  std::lock_guard lock(mutex_);
  const auto begin = reinterpret_cast<uintptr_t>(data);
  ends_[begin] = begin + static_cast<uintptr_t>(bytes);
}

void PinnedRanges::remove(const std::byte* data) {
  std::lock_guard lock(mutex_);
  ends_.erase(reinterpret_cast<uintptr_t>(data));
}

bool PinnedRanges::contains(const void* data, int64_t bytes) const {
  std::lock_guard lock(mutex_);
  const auto begin = reinterpret_cast<uintptr_t>(data);
  auto after = ends_.upper_bound(begin);
  return after != ends_.begin() && begin + static_cast<uintptr_t>(bytes) <= std::prev(after)->second;
}

// ---- the device

Result<std::shared_ptr<Device>> Device::open(const CudaOptions& options) {
  std::shared_ptr<Device> device(new Device);
  device->options_ = options;
  DS_TRY(device->start().with_context("the cuda backend cannot start"));
  return device;
}

Status Device::start() {
  int count = 0;
  DS_TRY(check(cudaGetDeviceCount(&count), "cudaGetDeviceCount"));
  if (count == 0) return failure(cudaErrorNoDevice, "cudaGetDeviceCount");
  if (options_.device < 0 || options_.device >= count)
    return error(Code::kUnavailable, "there is no CUDA device {}: this process sees {}, numbered from 0",
                 options_.device, count);
  info_.index = options_.device;
  DS_TRY(check(cudaRuntimeGetVersion(&info_.runtime), "cudaRuntimeGetVersion"));
  DS_TRY(check(cudaDriverGetVersion(&info_.driver), "cudaDriverGetVersion"));
  DS_TRY(check(cudaSetDevice(info_.index), "cudaSetDevice({})", info_.index));
  cudaDeviceProp properties{};
  DS_TRY(
      check(cudaGetDeviceProperties(&properties, info_.index), "cudaGetDeviceProperties({})", info_.index));
  info_.name = properties.name;
  info_.major = properties.major;
  info_.minor = properties.minor;
  info_.multiprocessors = properties.multiProcessorCount;
  info_.memory = static_cast<int64_t>(properties.totalGlobalMem);
  if (info_.major < kLeastMajor)
    return error(Code::kUnavailable,
                 "device {} is {}, {}; the kernels need sm_{}0 or newer; use --backend cpu", info_.index,
                 info_.name, info_.sm(), kLeastMajor);
  for (auto [name, to] :
       {std::pair("cuStreamWaitValue32", &wait_value_), std::pair("cuStreamWriteValue32", &write_value_)}) {
    cudaDriverEntryPointQueryResult found{};
    DS_TRY(check(cudaGetDriverEntryPointByVersion(name, to, 11070, cudaEnableDefault, &found),
                 "cudaGetDriverEntryPointByVersion({})", name));
    if (found != cudaDriverEntryPointSuccess || *to == nullptr)
      return error(Code::kUnavailable, "the driver has no {}: {}; install a newer driver", name, versions());
  }
  info_.cublas_lt = static_cast<int64_t>(cublasLtGetVersion());
  DS_TRY(check(cublasLtCreate(&lt_), "cublasLtCreate"));
  DS_TRY(clock_.start());
  DS_TRY(releases_.start(info_.index, awaited_));
  virtual_memory_.start(info_.index);
  algorithms_ = std::make_unique<Algorithms>(info_, options_.cache);
  return ok_status();
}

Device::~Device() {
  if (lt_ != nullptr) use();  // it was found
  if (lt_ != nullptr) (void)cublasLtDestroy(lt_);
}

void Device::use() const {
  // What the calling thread's is for this library; asking CUDA costs more than this.
  thread_local int current = -1;
  if (current == info_.index) return;
  if (cudaSetDevice(info_.index) == cudaSuccess) current = info_.index;
}

Result<Device::Memory> Device::memory() const {
  use();
  size_t free = 0, total = 0;
  DS_TRY(check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo"));
  return Memory{static_cast<int64_t>(free), static_cast<int64_t>(total)};
}

Status Device::check_memory(int64_t bytes, std::string_view what) {
  DS_ASSIGN(Memory now, memory());
  if (bytes <= now.free) return ok_status();
  // What was given back may not be free yet.
  if (awaited() == 0) releases_.settle();
  DS_ASSIGN(now, memory());
  return bytes <= now.free ? ok_status() : exhausted(bytes, what);
}

void Device::need_staging(int64_t bytes) {
  int64_t most = staging_bytes_.load();
  while (most < bytes && !staging_bytes_.compare_exchange_weak(most, bytes)) {
  }
}

Status Device::exhausted(int64_t bytes, std::string_view what) const {
  DS_ASSIGN(Memory now, memory());
  return error(Code::kDeviceMemory, "{}: needs {} of device memory, {} of {} are available on {}", what,
               format_bytes(bytes), format_bytes(now.free), format_bytes(now.total), info_.name);
}

namespace {

// Host memory of ours has the same address on the device (unified addressing).
CUdeviceptr address(const Flag& flag) { return reinterpret_cast<CUdeviceptr>(flag.word); }

}  // namespace

Status Device::wait_flag(cudaStream_t stream, const Flag& flag) const {
  auto call = reinterpret_cast<PFN_cuStreamWaitValue32_v11070>(wait_value_);
  return check(runtime_error(call(stream, address(flag), flag.value, CU_STREAM_WAIT_VALUE_GEQ)),
               "cuStreamWaitValue32");
}

Status Device::write_flag(cudaStream_t stream, const Flag& flag) const {
  auto call = reinterpret_cast<PFN_cuStreamWriteValue32_v11070>(write_value_);
  return check(runtime_error(call(stream, address(flag), flag.value, CU_STREAM_WRITE_VALUE_DEFAULT)),
               "cuStreamWriteValue32");
}

}  // namespace ds::cuda
