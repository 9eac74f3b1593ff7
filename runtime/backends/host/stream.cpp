#include <omp.h>
#include <sched.h>

#include <system_error>

#include "runtime/backends/host/stream_internal.h"
#include "support/clock.h"

namespace ds::host {

void HostEvent::complete() {
  time_ns_ = now_ns();
  done_.store(1, std::memory_order_release);
  done_.notify_all();
}

void HostEvent::block() const { done_.wait(0, std::memory_order_acquire); }

Result<std::unique_ptr<CommandStream>> HostStream::make(StreamKind kind, int64_t capacity, int threads) {
  try {
    return std::unique_ptr<CommandStream>(std::make_unique<HostStream>(kind, capacity, threads));
  } catch (const std::system_error& e) {
    return error(Code::kExhausted, "starting the thread of a {} stream: {}", stream_kind_name(kind),
                 e.what());
  }
}

HostStream::HostStream(StreamKind kind, int64_t capacity, int threads)
    : kind_(kind), capacity_(capacity), ring_(static_cast<size_t>(capacity) + 1) {
  cpu_set_t set;
  if (kind == StreamKind::kLink && sched_getaffinity(0, sizeof set, &set) == 0 && threads >= CPU_COUNT(&set))
    for (int core = 0; core < CPU_SETSIZE; ++core)
      if (CPU_ISSET(core, &set)) cores_.push_back(core);
  thread_ = std::thread([this, threads] { run(threads); });
}

HostStream::~HostStream() {
  (void)synchronize();
  ring_[head_].kind = Kind::kStop;
  publish();
  thread_.join();
}

void HostStream::wait(Event& event) { push(Kind::kWait, nullptr, static_cast<HostEvent*>(&event)); }

void HostStream::record(Event& event) {
  auto* host_event = static_cast<HostEvent*>(&event);
  uint32_t before = enqueued_.load(std::memory_order_relaxed);
  push(Kind::kRecord, nullptr, host_event);
  // Refused for want of room, which synchronize() reports: whoever waits for the event must not hang.
  if (enqueued_.load(std::memory_order_relaxed) == before) host_event->complete();
}

void HostStream::host(HostTask task) { push(Kind::kHost, nullptr, task); }

void HostStream::copy(std::byte* to, const std::byte* from, int64_t bytes) {
  push(Kind::kCopy, nullptr, Copy{to, from, bytes});
}

Status HostStream::synchronize() {
  uint32_t target = enqueued_.load(std::memory_order_relaxed);
  for (uint32_t at = completed_.load(std::memory_order_acquire); at != target;
       at = completed_.load(std::memory_order_acquire))
    completed_.wait(at, std::memory_order_acquire);
  std::lock_guard lock(status_mutex_);
  skip_.store(false, std::memory_order_relaxed);
  failed_op_ = std::exchange(status_op_, -1);
  return std::exchange(status_, Status());
}

void HostStream::fail(Status status, int64_t op) {
  std::lock_guard lock(status_mutex_);
  if (status_.ok()) {
    status_ = std::move(status);
    status_op_ = op;
  }
  skip_.store(true, std::memory_order_relaxed);
}

HostStream::Command* HostStream::claim() {
  uint32_t pending = enqueued_.load(std::memory_order_relaxed) - completed_.load(std::memory_order_acquire);
  if (pending >= capacity_) {
    fail(error(Code::kInvalidArgument,
               "{} stream: more than {} commands enqueued; make the stream with a larger capacity",
               stream_kind_name(kind_), capacity_));
    return nullptr;
  }
  return &ring_[head_];
}

void HostStream::publish() {
  head_ = head_ + 1 == ring_.size() ? 0 : head_ + 1;
  enqueued_.fetch_add(1, std::memory_order_release);
  enqueued_.notify_one();
}

void HostStream::take_next_core() {
  if (cores_.empty()) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cores_[core_++ % cores_.size()], &set);
  (void)sched_setaffinity(0, sizeof set, &set);  // refused: it stays where it is, which is only slower
}

void HostStream::run(int threads) {
  if (kind_ == StreamKind::kCompute) {
    omp_set_dynamic(0);  // libraries share work out by the number of threads that they ask for
    omp_set_num_threads(threads);
  }
  size_t tail = 0;
  for (uint32_t next = 0;; ++next) {
    while (enqueued_.load(std::memory_order_acquire) == next) enqueued_.wait(next, std::memory_order_acquire);
    const Command& command = ring_[tail];
    tail = tail + 1 == ring_.size() ? 0 : tail + 1;
    HostEvent* event = nullptr;
    bool skip = skip_.load(std::memory_order_relaxed);
    switch (command.kind) {
      case Kind::kKernel:
        if (!skip)
          if (Status status = command.call(command.payload); !status.ok())
            fail(std::move(status), command.op);
        break;
      case Kind::kHost: {
        HostTask task;
        std::memcpy(&task, command.payload, sizeof(task));
        if (skip) break;
        take_next_core();
        task.call(task.context, task.argument);
        break;
      }
      case Kind::kCopy: {
        Copy copy;
        std::memcpy(&copy, command.payload, sizeof(copy));
        if (!skip) std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.bytes));
        break;
      }
      case Kind::kWait:
        std::memcpy(&event, command.payload, sizeof(event));
        event->block();
        break;
      case Kind::kRecord:
        std::memcpy(&event, command.payload, sizeof(event));
        event->complete();
        break;
      case Kind::kStop:
        return;
    }
    completed_.fetch_add(1, std::memory_order_release);
    completed_.notify_all();
  }
}

}  // namespace ds::host
