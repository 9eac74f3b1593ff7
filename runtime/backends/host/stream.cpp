#include <algorithm>
#include <system_error>

#include "runtime/backends/host/stream_internal.h"
#include "support/clock.h"
#include "support/short_slices.h"

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
  std::vector<int> cores;
  if (kind == StreamKind::kLink) cores = own_cores();
  if (cores.size() < 2 || threads < static_cast<int>(cores.size())) {
    threads_.emplace_back([this, threads] { run(threads); });
    return;
  }
  const size_t hands = std::min(cores.size(), kMostHands);
  for (size_t i = 0; i < hands; ++i) turns_.push_back(std::make_unique<std::binary_semaphore>(0));
  turns_.front()->release();
  try {
    for (size_t i = 0; i < hands; ++i)
      threads_.emplace_back([this, i, core = cores[i * cores.size() / hands]] { run_in_turn(i, core); });
  } catch (const std::system_error&) {
    end();
    throw;
  }
}

HostStream::~HostStream() {
  (void)synchronize();
  end();
}

void HostStream::end() {
  ring_[head_].kind = Kind::kStop;
  publish();
  for (std::thread& thread : threads_) thread.join();
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
  enqueued_.notify_all();
}

void HostStream::run(int threads) {
  if (kind_ == StreamKind::kCompute)
    team_.emplace(threads);
  else
    ask_for_short_slices();
  while (step()) {
  }
  team_.reset();
}

void HostStream::run_in_turn(size_t hand, int core) {
  stay_on(std::span(&core, 1));
  ask_for_short_slices();
  for (bool more = true; more;) {
    turns_[hand]->acquire();
    const int64_t end = now_ns() + kTurnNs;
    while ((more = step()) && now_ns() < end) {
    }
    turns_[(hand + 1) % turns_.size()]->release();
  }
}

template <typename Over, typename UntilOver>
void HostStream::sleep(const Over& over, const UntilOver& until_over) {
  if (kind_ != StreamKind::kCompute) return until_over();
  if (over()) return;
#pragma omp parallel
  until_over();
}

bool HostStream::step() {
  const Command& command = ring_[tail_];
  auto is_more = [&] { return enqueued_.load(std::memory_order_acquire) != taken_; };
  sleep(is_more, [&] {
    while (!is_more()) enqueued_.wait(taken_, std::memory_order_acquire);
  });
  HostEvent* event = nullptr;
  bool skip = skip_.load(std::memory_order_relaxed);
  switch (command.kind) {
    case Kind::kKernel: {
      if (skip) break;
      team_->work([&] {
        if (Status status = command.call(command.payload); !status.ok()) fail(std::move(status), command.op);
      });
      break;
    }
    case Kind::kHost: {
      HostTask task;
      std::memcpy(&task, command.payload, sizeof(task));
      if (!skip) task.call(task.context, task.argument);
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
      sleep([&] { return event->done(); }, [&] { event->block(); });
      break;
    case Kind::kRecord:
      std::memcpy(&event, command.payload, sizeof(event));
      event->complete();
      break;
    case Kind::kStop:
      return false;  // and stays there, for all hands
  }
  tail_ = tail_ + 1 == ring_.size() ? 0 : tail_ + 1;
  ++taken_;
  completed_.fetch_add(1, std::memory_order_release);
  completed_.notify_all();
  return true;
}

}  // namespace ds::host
