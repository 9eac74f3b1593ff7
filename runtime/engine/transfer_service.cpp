#include "runtime/engine/transfer_service.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "support/clock.h"

namespace ds {

Result<std::unique_ptr<TransferService>> TransferService::create(Backend& backend, int64_t row_bytes,
                                                                 std::function<void()> wake) {
  std::unique_ptr<TransferService> service(new TransferService());
  service->wake_ = std::move(wake);
  DS_ASSIGN(service->landing_, Landing::create(backend, row_bytes));
  DS_ASSIGN(service->stream_, backend.make_stream(StreamKind::kLink, 16));
  try {
    while (service->look_up_threads_.size() < kLookUpThreads)
      service->look_up_threads_.emplace_back([s = service.get()] { s->look_ups(); });
  } catch (const std::system_error& e) {
    return error(Code::kExhausted, "starting the threads of look-ups: {}", e.what());
  }
  return service;
}

TransferService::~TransferService() {
  stop();
  for (std::thread& thread : look_up_threads_) thread.join();
  if (stream_) (void)stream_->synchronize();
}

void TransferService::stop() {
  // Who tells of more is told to be silent, and what is followed is let go of, while no lock is held that who
  // tells may want.
  std::vector<TransferJob> dropped;
  std::vector<std::weak_ptr<Segments>> followed;
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    dropped = std::exchange(queue_, {});
    followed = std::exchange(followed_, {});
    look_ups_.clear();
    current_cancelled_ = true;
    wanted_.notify_all();
  }
  for (const auto& weak : followed)
    if (auto segments = weak.lock()) segments->when_more({});
}

bool TransferService::at_rest() const {
  std::lock_guard lock(mutex_);
  return stopping_ && !serving_ && looking_up_.empty();
}

bool TransferService::self_contained() const {
  std::lock_guard lock(mutex_);
  return std::all_of(looking_up_.begin(), looking_up_.end(),
                     [](const LookUpTask& task) { return task.owner != nullptr; });
}

void TransferService::submit(TransferJob job) {
  if (job.segments->live()) {
    // Without a pointer to it, which might be the last: what is followed is let go of under no lock.
    const auto same = [&](const std::weak_ptr<Segments>& w) {
      return !w.owner_before(job.segments) && !job.segments.owner_before(w);
    };
    bool fresh = false;
    {
      std::lock_guard lock(mutex_);
      std::erase_if(followed_, [](const auto& w) { return w.expired(); });
      fresh = std::none_of(followed_.begin(), followed_.end(), same);
      if (fresh) followed_.push_back(job.segments);
    }
    if (fresh) job.segments->when_more([this] { serve_more(); });
  }
  {
    std::lock_guard lock(mutex_);
    queue_.push_back(std::move(job));
  }
  serve_more();
}

/// Of what waits for no sender, what is needed first; of equals, what came first.
std::vector<TransferJob>::iterator TransferService::next() {
  auto best = queue_.end();
  for (auto at = queue_.begin(); at != queue_.end(); ++at) {
    if (best != queue_.end() && at->needed_ns >= best->needed_ns) continue;
    if (at->segments->ready(at->source, {at->payload, at->layer, at->first, at->rows, at->map})) best = at;
  }
  return best;
}

void TransferService::serve_more() {
  std::lock_guard lock(mutex_);
  if (serving_ || stopping_ || next() == queue_.end()) return;
  serving_ = true;
  stream_->host({&TransferService::serve, this, 0});
}

void TransferService::look_up(const Store* store, std::shared_ptr<const void> owner,
                              std::function<void()> task) {
  std::lock_guard lock(mutex_);
  if (stopping_) return;
  look_ups_.push_back({store, std::move(owner), 0, std::move(task)});
  wanted_.notify_one();
}

int64_t TransferService::look_up_since_ns(const Store* store) const {
  std::lock_guard lock(mutex_);
  for (const LookUpTask& task : looking_up_)  // the oldest one first
    if (task.store == store) return task.start_ns;
  return 0;
}

template <typename F>
std::vector<TransferJob> TransferService::take_if(F&& meant) {
  const auto kept =
      std::stable_partition(queue_.begin(), queue_.end(), [&](const TransferJob& j) { return !meant(j); });
  std::vector<TransferJob> taken(std::make_move_iterator(kept), std::make_move_iterator(queue_.end()));
  queue_.erase(kept, queue_.end());
  return taken;
}

void TransferService::cancel(uint64_t owner) {
  std::vector<TransferJob> dropped;  // when nothing is locked any more
  std::lock_guard lock(mutex_);
  dropped = take_if([&](const TransferJob& j) { return j.owner == owner; });
  std::erase_if(done_, [&](const TransferDone& d) { return d.owner == owner; });
  if (current_ == owner) current_cancelled_ = true;
}

bool TransferService::withdraw(uint64_t owner, int32_t index) {
  std::vector<TransferJob> dropped;  // as in cancel()
  std::lock_guard lock(mutex_);
  dropped = take_if([&](const TransferJob& j) { return j.owner == owner && j.index == index; });
  return !dropped.empty();
}

bool TransferService::reading(uint64_t owner) const {
  std::lock_guard lock(mutex_);
  return current_ == owner;
}

std::vector<TransferDone> TransferService::take_done() {
  std::lock_guard lock(mutex_);
  return std::exchange(done_, {});
}

int64_t TransferService::rate() const {
  std::lock_guard lock(mutex_);
  return estimate_.rate();
}

int64_t TransferService::bytes_read() const {
  std::lock_guard lock(mutex_);
  return bytes_read_;
}

int64_t TransferService::busy_ns() const {
  std::lock_guard lock(mutex_);
  return busy_ns_;
}

void TransferService::serve(void* self, int64_t) { static_cast<TransferService*>(self)->serve(); }

/// One transfer a call, so that the stream's thread may take its cores in turn.
void TransferService::serve() {
  TransferJob job;
  {
    std::lock_guard lock(mutex_);
    const auto first = next();
    if (first == queue_.end()) {
      serving_ = false;
      return;
    }
    job = std::move(*first);
    queue_.erase(first);
    current_ = job.owner;
    current_cancelled_ = false;
  }
  const int64_t start = now_ns();
  const LandingRows rows{job.payload, job.layer, job.first, job.rows, job.map};
  Status status = job.segments->read(*landing_, job.source, rows, job.to, [this]() -> Status {
    progress_ns_.store(now_ns(), std::memory_order_relaxed);
    if (!current_cancelled_ && !stopping_) return ok_status();
    return error(Code::kExhausted, "the transfer was cancelled");
  });
  // A transfer is there when its copies are.
  if (Status copies = landing_->synchronize(); status.ok()) status = std::move(copies);
  const int64_t end = now_ns();
  {
    std::lock_guard lock(mutex_);
    busy_ns_ += end - start;
    if (status.ok()) {
      progress_ns_.store(end, std::memory_order_relaxed);
      bytes_read_ += job.bytes;
      estimate_.add(job.bytes, end - start);
    }
    const bool cancelled = current_cancelled_.exchange(false);
    current_ = 0;
    if (!cancelled) done_.push_back({job.owner, job.index, std::move(status), start, end, job.bytes});
    if (stopping_ || next() == queue_.end())
      serving_ = false;
    else
      stream_->host({&TransferService::serve, this, 0});
  }
  job.segments.reset();
  wake_();
}

void TransferService::look_ups() {
  std::list<LookUpTask>::iterator at;
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      wanted_.wait(lock, [&] { return stopping_ || !look_ups_.empty(); });
      if (stopping_) return;
      at = looking_up_.insert(looking_up_.end(), std::move(look_ups_.front()));
      look_ups_.pop_front();
      at->start_ns = now_ns();
    }
    at->run();
    at->run = {};
    std::shared_ptr<const void> owner;  // let go of under no lock
    {
      std::lock_guard lock(mutex_);
      owner = std::move(at->owner);
      looking_up_.erase(at);
    }
    wake_();
  }
}

}  // namespace ds
