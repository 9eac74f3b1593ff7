#include "runtime/backends/cuda/stream_internal.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "support/clock.h"

namespace ds::cuda {

// ---- events

Result<std::unique_ptr<CudaEvent>> CudaEvent::make(std::shared_ptr<Device> device) {
  device->use();
  auto event = std::make_unique<CudaEvent>(device);
  DS_TRY(check(cudaEventCreateWithFlags(&event->event_, cudaEventBlockingSync), "cudaEventCreateWithFlags"));
  DS_TRY(check(cudaEventCreateWithFlags(&event->flag_written_, cudaEventDisableTiming),
               "cudaEventCreateWithFlags"));
  DS_ASSIGN(event->flag_, device->flags().take());
  ++event->flag_.value;
  return event;
}

CudaEvent::~CudaEvent() {
  device_->use();
  if (event_ != nullptr && state_.load(std::memory_order_acquire) == kOnDevice)
    (void)cudaEventSynchronize(event_);
  if (flag_.word != nullptr) {
    settle();
    device_->flags().give_back(flag_);
  }
  for (cudaEvent_t event : {event_, flag_written_})
    if (event != nullptr) (void)cudaEventDestroy(event);
}

void CudaEvent::count(bool awaited) {
  if (counted_ != awaited) device_->count_awaited(awaited ? 1 : -1);
  counted_ = awaited;
}

void CudaEvent::settle() {
  count(false);
  // Otherwise a write that comes late could take back that of the next generation.
  if (flag_on_device_) (void)cudaEventSynchronize(flag_written_);
  // Nobody may have recorded what is waited for: those waits are over.
  flag_.word->store(flag_.value, std::memory_order_release);
  flag_awaited_ = flag_on_device_ = false;
}

void CudaEvent::reset() {
  std::lock_guard lock(mutex_);
  settle();
  ++flag_.value;
  seen_ns_.store(0, std::memory_order_relaxed);
  time_ns_.store(0, std::memory_order_relaxed);
  state_.store(kPending, std::memory_order_release);
}

void CudaEvent::seen() const {
  int64_t none = 0;
  seen_ns_.compare_exchange_strong(none, now_ns(), std::memory_order_relaxed);
}

bool CudaEvent::done() const {
  const uint32_t state = state_.load(std::memory_order_acquire);
  if (state != kOnDevice) return state == kDone;
  if (seen_ns_.load(std::memory_order_relaxed) != 0) return true;
  if (cudaEventQuery(event_) == cudaErrorNotReady) return false;  // an error is an end, too
  seen();
  return true;
}

int64_t CudaEvent::time_ns() const {
  int64_t time = time_ns_.load(std::memory_order_relaxed);
  if (time != 0) return time;
  const int64_t seen = seen_ns_.load(std::memory_order_relaxed);
  time = std::clamp(device_->clock().time_ns(event_), enqueued_ns_,
                    std::max(enqueued_ns_, seen != 0 ? seen : now_ns()));
  time_ns_.store(time, std::memory_order_relaxed);
  return time;
}

void CudaEvent::complete_locked() {
  count(false);
  time_ns_.store(now_ns(), std::memory_order_relaxed);
  state_.store(kDone, std::memory_order_release);
  state_.notify_all();
  // Last: what it lets run may end, and be asked for, at once.
  flag_.word->store(flag_.value, std::memory_order_release);
}

void CudaEvent::complete() {
  std::lock_guard lock(mutex_);
  complete_locked();
}

void CudaEvent::block() const {
  uint32_t state = kPending;
  while ((state = state_.load(std::memory_order_acquire)) == kPending)
    state_.wait(kPending, std::memory_order_acquire);
  if (state != kOnDevice) return;
  (void)cudaEventSynchronize(event_);  // an error is an end, too; the stream reports it
  seen();
}

Status CudaEvent::record(cudaStream_t stream) {
  std::lock_guard lock(mutex_);
  enqueued_ns_ = now_ns();
  Status status = check(cudaEventRecord(event_, stream), "cudaEventRecord");
  // Last, so that nothing that waits is done before the event is.
  if (status.ok() && flag_awaited_) {
    status = device_->write_flag(stream, flag_);
    if (status.ok()) status = check(cudaEventRecord(flag_written_, stream), "cudaEventRecord");
    flag_on_device_ = status.ok();
  }
  if (!status.ok()) {
    complete_locked();
    return status;
  }
  count(false);
  state_.store(kOnDevice, std::memory_order_release);
  state_.notify_all();
  return status;
}

Status CudaEvent::wait(cudaStream_t stream) {
  std::lock_guard lock(mutex_);
  switch (state_.load(std::memory_order_acquire)) {
    case kDone:
      return ok_status();
    case kOnDevice:
      return check(cudaStreamWaitEvent(stream, event_, 0), "cudaStreamWaitEvent");
    default:
      flag_awaited_ = true;
      count(true);
      return device_->wait_flag(stream, flag_);
  }
}

// ---- streams

namespace {

// What every stream has for arguments, and for each command that it may hold; the most of the latter.
constexpr int64_t kComputeStaging = int64_t{4} << 20, kCopyStaging = int64_t{64} << 10;
constexpr int64_t kCommandStaging = 512, kMostCommandStaging = int64_t{8} << 20;

}  // namespace

CudaStream::CudaStream(std::shared_ptr<Device> device, StreamKind kind, int64_t capacity, StagingArena arena)
    : device_(std::move(device)), kind_(kind), capacity_(capacity), arena_(std::move(arena)) {}

Result<std::unique_ptr<CudaStream>> CudaStream::make(std::shared_ptr<Device> device, StreamKind kind,
                                                     int64_t capacity) {
  device->use();
  // Nothing can be pinned later, while the device waits for what the same thread records.
  const int64_t bytes = kind == StreamKind::kCompute
                            ? kComputeStaging + std::min(capacity * kCommandStaging, kMostCommandStaging) +
                                  device->staging_bytes()
                            : kCopyStaging;
  DS_ASSIGN(StagingArena arena, StagingArena::make(device, bytes));
  auto stream = std::make_unique<CudaStream>(std::move(device), kind, capacity, std::move(arena));
  DS_TRY(check(cudaStreamCreateWithFlags(&stream->stream_, cudaStreamNonBlocking),
               "cudaStreamCreateWithFlags of a {} stream", stream_kind_name(kind)));
  stream->device_->releases().add(stream->stream_);
  return stream;
}

CudaStream::~CudaStream() {
  if (stream_ == nullptr) return;
  (void)synchronize();
  device_->releases().remove(stream_);
  for (const Mark& mark : marks_) (void)cudaEventDestroy(mark.event);
  (void)cudaStreamDestroy(stream_);
}

bool CudaStream::claim() {
  if (enqueued_ < capacity_) {
    ++enqueued_;
    return true;
  }
  fail(error(Code::kInvalidArgument,
             "{} stream: more than {} commands enqueued; make the stream with a larger capacity",
             stream_kind_name(kind_), capacity_));
  return false;
}

void CudaStream::fail(Status status) {
  std::lock_guard lock(status_mutex_);
  if (status_.ok()) {
    status_ = std::move(status);
    status_op_ = op_;
  }
  skip_.store(true, std::memory_order_relaxed);
}

bool CudaStream::begin() {
  device_->use();
  return claim() && !skip_.load(std::memory_order_relaxed);
}

void CudaStream::wait(Event& event) {
  device_->use();
  if (!claim()) return;
  if (Status status = static_cast<CudaEvent&>(event).wait(stream_); !status.ok()) fail(std::move(status));
}

void CudaStream::record(Event& event) {
  device_->use();
  auto& cuda_event = static_cast<CudaEvent&>(event);
  // Refused for want of room, which synchronize() reports: whoever waits for the event must not hang.
  if (!claim()) return cuda_event.complete();
  flush_deliveries();
  if (Status status = cuda_event.record(stream_); !status.ok()) fail(std::move(status));
}

CudaStream::HostCall& CudaStream::new_call() {
  if (used_calls_ == calls_.size()) calls_.emplace_back();
  HostCall& call = calls_[used_calls_++];
  call = {.stream = this, .task = {}};
  return call;
}

void CudaStream::run_host_call(void* pointer) {
  const auto& call = *static_cast<const HostCall*>(pointer);
  if (call.deliveries != nullptr)
    deliver(call.deliveries);
  else if (!call.stream->skip_.load(std::memory_order_relaxed))
    call.task.call(call.task.context, call.task.argument);
}

void CudaStream::host(HostTask task) {
  device_->use();
  if (!claim() || skip_.load(std::memory_order_relaxed)) return;
  flush_deliveries();
  HostCall& call = new_call();
  call.task = task;
  if (Status status =
          check(cudaLaunchHostFunc(stream_, run_host_call, &call), "cudaLaunchHostFunc of a host task");
      !status.ok())
    fail(std::move(status));
}

void CudaStream::copy(std::byte* to, const std::byte* from, int64_t bytes) {
  device_->use();
  if (!claim() || bytes == 0 || skip_.load(std::memory_order_relaxed)) return;
  flush_deliveries();
  if (Status status = check(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault, stream_),
                            "cudaMemcpyAsync of {} bytes", bytes);
      !status.ok())
    fail(std::move(status));
}

void CudaStream::deliver(const Delivery* first) {
  for (const Delivery* d = first; d != nullptr; d = d->next)
    std::memcpy(d->to, d->from, static_cast<size_t>(d->bytes));
}

void CudaStream::flush_deliveries() {
  if (undelivered_ == nullptr) return;
  HostCall& call = new_call();
  call.deliveries = std::exchange(undelivered_, nullptr);
  if (Status status =
          check(cudaLaunchHostFunc(stream_, run_host_call, &call), "cudaLaunchHostFunc of results' delivery");
      !status.ok())
    fail(std::move(status));
}

Result<std::byte*> CudaStream::stage(int64_t bytes) { return arena_.take(bytes); }

Status CudaStream::read_back(void* to, const std::byte* from, int64_t bytes) {
  auto* direct = static_cast<std::byte*>(to);
  const bool staged = !device_->pinned().contains(to, bytes);
  if (staged) {
    DS_ASSIGN(direct, stage(bytes));
  }
  DS_TRY(check(cudaMemcpyAsync(direct, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, stream_),
               "cudaMemcpyAsync of {} bytes to the host", bytes));
  if (!staged) return ok_status();
  // By synchronize(), or in the stream's order before whatever lets others see it.
  if (used_deliveries_ == deliveries_.size()) deliveries_.emplace_back();
  Delivery& delivery = deliveries_[used_deliveries_++];
  delivery = {to, direct, bytes};
  (undelivered_ == nullptr ? undelivered_ : last_delivery_->next) = &delivery;
  last_delivery_ = &delivery;
  return ok_status();
}

Status CudaStream::mark(PhaseTimes* times, Phase phase) {
  if (used_marks_ == marks_.size()) {
    cudaEvent_t event = nullptr;
    DS_TRY(
        check(cudaEventCreateWithFlags(&event, cudaEventDefault), "cudaEventCreateWithFlags of a profile"));
    marks_.push_back({event, nullptr, phase});
  }
  Mark& mark = marks_[used_marks_];
  mark.times = times;
  mark.phase = phase;
  DS_TRY(check(cudaEventRecord(mark.event, stream_), "cudaEventRecord of a profile"));
  ++used_marks_;
  return ok_status();
}

void CudaStream::add_marks() {
  for (size_t i = 1; i < used_marks_; ++i) {
    const Mark& mark = marks_[i];
    float ms = 0;
    if (mark.times != nullptr && cudaEventElapsedTime(&ms, marks_[i - 1].event, mark.event) == cudaSuccess)
      (*mark.times)[mark.phase] += std::llround(static_cast<double>(ms) * 1e6);
  }
}

Status CudaStream::synchronize() {
  device_->use();
  Status ran =
      check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize of a {} stream", stream_kind_name(kind_));
  if (ran.ok()) {
    deliver(undelivered_);
    add_marks();
    device_->clock().refresh();
  }
  used_calls_ = used_deliveries_ = used_marks_ = 0;
  undelivered_ = nullptr;
  enqueued_ = 0;
  arena_.reset();
  std::lock_guard lock(status_mutex_);
  skip_.store(false, std::memory_order_relaxed);
  failed_op_ = std::exchange(status_op_, -1);
  Status first = std::exchange(status_, Status());
  return first.ok() ? ran : first;
}

}  // namespace ds::cuda
