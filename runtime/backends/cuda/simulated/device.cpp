#include <omp.h>
#include <sys/mman.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>

#include "runtime/backends/cuda/simulated/device_internal.h"

namespace ds::cuda::simulated {

thread_local bool in_host_function = false;

namespace {

constexpr size_t kPage = 4096, kGranule = 256;
constexpr size_t kMostKept = 512 << 20;

[[noreturn]] void refuse(std::string_view text) {
  std::fprintf(
      stderr,
      "DROIDSPEAK_SIMULATED_CUDA: '%.*s'; expected devices=N, memory=SIZE, driver=VERSION, sm=80 or 90, "
      "multiprocessors=N, seed=N, granule=SIZE, fail=FUNCTION:N, refuse=FUNCTION:N\n",
      static_cast<int>(text.size()), text.data());
  std::exit(2);
}

int64_t bytes_of(const std::string& text) {
  char* end = nullptr;
  int64_t count = std::strtoll(text.c_str(), &end, 10);
  std::string unit = end;
  for (auto [name, shift] : {std::pair{"", 0}, {"B", 0}, {"KiB", 10}, {"MiB", 20}, {"GiB", 30}})
    if (unit == name && end != text.c_str()) return count << shift;
  refuse(text);
}

Config parse(std::string_view text) {
  Config config;
  while (!text.empty()) {
    std::string_view part = text.substr(0, text.find(','));
    text.remove_prefix(std::min(text.size(), part.size() + 1));
    size_t equals = part.find('=');
    if (equals == std::string_view::npos) refuse(part);
    std::string_view name = part.substr(0, equals);
    std::string value(part.substr(equals + 1));
    if (name == "devices")
      config.devices = std::atoi(value.c_str());
    else if (name == "memory")
      config.memory = bytes_of(value);
    else if (name == "driver")
      config.driver = std::atoi(value.c_str());
    else if (name == "sm")
      config.sm = std::atoi(value.c_str());
    else if (name == "multiprocessors")
      config.multiprocessors = std::atoi(value.c_str());
    else if (name == "seed")
      config.seed = std::strtoull(value.c_str(), nullptr, 10);
    else if (name == "granule")
      config.granule = static_cast<size_t>(bytes_of(value));
    else if ((name == "fail" || name == "refuse") && value.find(':') != std::string::npos) {
      (name == "fail" ? config.fail : config.refuse) = value.substr(0, value.find(':'));
      (name == "fail" ? config.fail_at : config.refuse_at) = std::atoll(value.c_str() + value.find(':') + 1);
    } else
      refuse(part);
  }
  return config;
}

}  // namespace

void Recording::complete() {
  time_ns = std::chrono::steady_clock::now().time_since_epoch().count();
  done.store(1);
  done.notify_all();
}

Device& Device::get() {
  static auto* device = new Device;  // streams may end after static objects do
  return *device;
}

void Device::configure(std::string_view text) {
  const char* environment = std::getenv("DROIDSPEAK_SIMULATED_CUDA");
  config_ = parse(text.empty() && environment != nullptr ? environment : text);
}

void Device::reset(std::string_view text) {
  std::set<CUstream_st*> streams;
  {
    std::lock_guard lock(mutex_);
    streams.swap(streams_);
    default_stream_ = nullptr;
  }
  for (CUstream_st* stream : streams) delete stream;
  std::lock_guard lock(mutex_);
  for (auto& [data, allocation] : allocations_) munmap(allocation.mapped, allocation.mapped_bytes);
  allocations_.clear();
  for (auto& [at, range] : ranges_) munmap(range.mapped, range.mapped_bytes);
  ranges_.clear();
  physical_.clear();
  for (auto& [inside, mapped] : kept_) munmap(mapped, inside + 2 * kPage);
  kept_.clear();
  kept_bytes_ = 0;
  captures_.clear();
  calls_.clear();
  while_waiting_.clear();
  loaded_.clear();
  waiting_ = 0;
  lost_ = cudaSuccess;
  seeds_ = 0;
  events = graphs = handles = 0;
  (void)note(cudaSuccess);
  configure(text);
}

cudaError_t Device::enter(const char* function) {
  std::lock_guard lock(mutex_);
  int64_t count = ++calls_[function];
  if (in_host_function) return cudaErrorNotPermitted;
  if (config_.driver < CUDART_VERSION) return cudaErrorInsufficientDriver;
  if (config_.devices == 0) return cudaErrorNoDevice;
  if (config_.fail == function && count == config_.fail_at) lost_ = cudaErrorIllegalAddress;
  if (lost_ == cudaSuccess && config_.refuse == function && count == config_.refuse_at)
    return cudaErrorMemoryAllocation;
  return lost_;
}

cudaError_t Device::lose(cudaError_t error) {
  cudaError_t none = cudaSuccess;
  lost_.compare_exchange_strong(none, error);
  return lost_;
}

void Device::may_wait(const std::string& what) {
  std::lock_guard lock(mutex_);
  if (waiting_ > 0) while_waiting_.push_back(what);
}

void Device::load(const void* kernel, const std::string& name) {
  {
    std::lock_guard lock(mutex_);
    if (!loaded_.insert(kernel).second) return;
  }
  may_wait("load of " + name);
}

std::vector<std::string> Device::calls_while_waiting() const {
  std::lock_guard lock(mutex_);
  return while_waiting_;
}

void Device::count_kernel() {
  std::lock_guard lock(mutex_);
  if (++calls_["kernel"] == config_.fail_at && config_.fail == "kernel") lost_ = cudaErrorIllegalAddress;
}

int64_t Device::calls(const std::string& function) const {
  std::lock_guard lock(mutex_);
  auto found = calls_.find(function);
  return found == calls_.end() ? 0 : found->second;
}

// ---- memory

cudaError_t Device::allocate(void** data, size_t bytes, Memory memory) {
  if (data == nullptr) return cudaErrorInvalidValue;
  *data = nullptr;
  if (bytes == 0) return cudaSuccess;
  const size_t rounded = (bytes + kGranule - 1) / kGranule * kGranule;
  if (memory == Memory::kDevice && (bytes > free_bytes() || rounded > free_bytes()))
    return cudaErrorMemoryAllocation;
  // As near to the page behind, which nobody may touch, as the alignment allows.
  const size_t inside = (rounded + kPage - 1) / kPage * kPage, mapped_bytes = inside + 2 * kPage;
  void* mapped = take_kept(inside);
  if (mapped == nullptr)
    mapped = mmap(nullptr, mapped_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) return cudaErrorMemoryAllocation;
  std::byte* first = static_cast<std::byte*>(mapped) + kPage;
  if (mprotect(first, inside, PROT_READ | PROT_WRITE) != 0) return cudaErrorMemoryAllocation;
  *data = first + inside - rounded;
  std::memset(first, 0xff, inside);  // not a number, in every type
  std::lock_guard lock(mutex_);
  allocations_[reinterpret_cast<uintptr_t>(*data)] = {rounded, memory, mapped, mapped_bytes};
  return cudaSuccess;
}

cudaError_t Device::free(void* data, Memory memory) {
  if (data == nullptr) return cudaSuccess;
  wait_for_all();  // as CUDA does
  return release(data, memory);
}

cudaError_t Device::release(void* data, Memory memory) {
  std::lock_guard lock(mutex_);
  auto found = allocations_.find(reinterpret_cast<uintptr_t>(data));
  if (found == allocations_.end() || found->second.memory != memory) return cudaErrorInvalidValue;
  const auto [bytes, kind, mapped, mapped_bytes] = found->second;
  allocations_.erase(found);
  // Nobody may touch it, but its pages stay: new ones from the kernel would cost more than all that tests do
  // with them.
  const size_t inside = mapped_bytes - 2 * kPage;
  if (kept_bytes_ + inside > kMostKept || mprotect(mapped, mapped_bytes, PROT_NONE) != 0) {
    munmap(mapped, mapped_bytes);
  } else {
    kept_.emplace(inside, mapped);
    kept_bytes_ += inside;
  }
  return cudaSuccess;
}

void* Device::take_kept(size_t inside) {
  std::lock_guard lock(mutex_);
  auto found = kept_.find(inside);
  if (found == kept_.end()) return nullptr;
  void* mapped = found->second;
  kept_.erase(found);
  kept_bytes_ -= inside;
  return mapped;
}

Memory Device::find(const void* data, size_t bytes, bool& fits) const {
  std::lock_guard lock(mutex_);
  auto at = reinterpret_cast<uintptr_t>(data);
  auto next = allocations_.upper_bound(at);
  fits = true;
  if (const auto after = ranges_.upper_bound(at); after != ranges_.begin()) {
    const auto& [start, range] = *std::prev(after);
    if (at - start < range.bytes) {
      fits = accessible(range, at, bytes);
      return Memory::kDevice;
    }
  }
  if (next == allocations_.begin()) return Memory::kNone;
  const auto& [start, allocation] = *std::prev(next);
  if (at - start >= allocation.bytes) return Memory::kNone;
  fits = bytes <= allocation.bytes - (at - start);
  return allocation.memory;
}

size_t Device::free_bytes() const {
  std::lock_guard lock(mutex_);
  auto left = static_cast<size_t>(config_.memory);
  for (const auto& [data, allocation] : allocations_)
    if (allocation.memory == Memory::kDevice) left -= std::min(left, allocation.bytes);
  for (const auto& [handle, memory] : physical_) left -= std::min(left, memory.bytes);
  return left;
}

// ---- streams

void Device::add(CUstream_st* stream) {
  std::lock_guard lock(mutex_);
  streams_.insert(stream);
}

void Device::remove(CUstream_st* stream) {
  std::lock_guard lock(mutex_);
  streams_.erase(stream);
}

CUstream_st* Device::stream(cudaStream_t given) {
  std::lock_guard lock(mutex_);
  if (given == nullptr || given == cudaStreamLegacy) {
    if (default_stream_ == nullptr) streams_.insert(default_stream_ = new CUstream_st(0));
    return default_stream_;
  }
  return streams_.contains(given) ? given : nullptr;
}

void Device::wait_for_all() {
  std::set<CUstream_st*> streams;
  {
    std::lock_guard lock(mutex_);
    streams = streams_;
  }
  for (CUstream_st* stream : streams) stream->wait();
}

bool Device::forbidden_by_capture() {
  std::lock_guard lock(mutex_);
  bool forbidden = false;
  for (const auto& capture : captures_) {
    if (capture->mode == cudaStreamCaptureModeRelaxed) continue;
    if (capture->mode == cudaStreamCaptureModeThreadLocal && capture->thread != std::this_thread::get_id())
      continue;
    forbidden = capture->broken = true;
  }
  return forbidden;
}

void Device::begin_capture(const std::shared_ptr<Capture>& capture) {
  std::lock_guard lock(mutex_);
  captures_.push_back(capture);
}

void Device::end_capture(const std::shared_ptr<Capture>& capture) {
  std::lock_guard lock(mutex_);
  std::erase(captures_, capture);
}

Live Device::live() const {
  std::lock_guard lock(mutex_);
  Live live;
  for (const auto& [data, allocation] : allocations_) {
    (allocation.memory == Memory::kDevice ? live.device_bytes : live.host_bytes) +=
        static_cast<int64_t>(allocation.bytes);
    ++live.allocations;
  }
  for (const auto& [handle, memory] : physical_) {
    live.device_bytes += static_cast<int64_t>(memory.bytes);
    ++live.allocations;
  }
  live.ranges = static_cast<int>(ranges_.size());
  live.streams = static_cast<int>(streams_.size()) - (default_stream_ != nullptr ? 1 : 0);
  live.events = events;
  live.graphs = graphs;
  live.handles = handles;
  return live;
}

void reset(std::string_view text) { Device::get().reset(text); }
Live live() { return Device::get().live(); }
int64_t calls(std::string_view function) { return Device::get().calls(std::string(function)); }
cudaError_t enter(const char* function) { return Device::get().enter(function); }
std::vector<std::string> calls_while_waiting() { return Device::get().calls_while_waiting(); }
void load_kernel(const void* kernel, const std::string& name) { Device::get().load(kernel, name); }

bool in_device_memory(const void* data, size_t bytes) {
  bool fits;
  return Device::get().find(data, bytes, fits) == Memory::kDevice && fits;
}
bool in_readable_memory(const void* data, size_t bytes) {
  bool fits;
  return Device::get().find(data, bytes, fits) != Memory::kNone && fits;
}

cudaError_t enqueue(cudaStream_t stream, std::function<void()> work) {
  CUstream_st* to = Device::get().stream(stream);
  return to == nullptr ? cudaErrorInvalidResourceHandle : to->push(std::move(work));
}

}  // namespace ds::cuda::simulated

using ds::cuda::simulated::Device;

CUstream_st::CUstream_st(int priority) : priority(priority) {
  thread_ = std::thread([this, seed = Device::get().next_seed()] { run(seed); });
}

CUstream_st::~CUstream_st() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

cudaError_t CUstream_st::push(ds::cuda::simulated::Work work, bool always) {
  if (capture != nullptr) {
    if (capture->broken) return cudaErrorStreamCaptureInvalidated;
    capture->work.push_back(std::move(work));
    return cudaSuccess;
  }
  {
    std::lock_guard lock(mutex_);
    items_.push_back({std::move(work), always});
  }
  changed_.notify_all();
  return cudaSuccess;
}

void CUstream_st::wait() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return items_.empty() && !busy_; });
}

bool CUstream_st::idle() {
  std::lock_guard lock(mutex_);
  return items_.empty() && !busy_;
}

void CUstream_st::run(uint64_t seed) {
  omp_set_num_threads(1);  // products of several streams run beside each other
  std::mt19937_64 random(seed);
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return stop_ || !items_.empty(); });
    if (items_.empty()) return;
    Item item = std::move(items_.front());
    items_.pop_front();
    busy_ = true;
    lock.unlock();
    // Nothing but waiting says which of two streams is ahead.
    if (random() % 16 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % 200));
    if (item.always || Device::get().lost() == cudaSuccess) item.work();
    item.work = nullptr;
    lock.lock();
    busy_ = false;
    changed_.notify_all();
  }
}
