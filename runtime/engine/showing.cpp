#include "runtime/engine/showing.h"

#include <system_error>
#include <utility>

namespace ds {

Result<std::unique_ptr<Showing>> Showing::begin(Publication& work, Store& store, int64_t rows,
                                                std::function<void()> wake) {
  std::unique_ptr<Showing> showing(new Showing(work, rows));
  try {
    showing->thread_ =
        std::thread([s = showing.get(), &store, wake = std::move(wake)] { s->run(store, wake); });
  } catch (const std::system_error& e) {
    return error(Code::kExhausted, "starting a thread that shows a publication: {}", e.what());
  }
  return showing;
}

Showing::~Showing() {
  stop();
  thread_.join();
}

void Showing::tell(const Publication::Progress& progress) {
  if (progress.layer == told_.layer && progress.row - told_.row < rows_) return;
  told_ = progress;
  std::lock_guard lock(mutex_);
  next_ = progress;
  changed_.notify_all();
}

void Showing::finish() {
  std::unique_lock lock(mutex_);
  finishing_ = true;
  changed_.notify_all();
  changed_.wait(lock, [&] { return ended_; });
}

void Showing::stop() {
  std::lock_guard lock(mutex_);
  stopping_ = true;
  changed_.notify_all();
}

bool Showing::ended() const {
  std::lock_guard lock(mutex_);
  return ended_;
}

void Showing::run(Store& store, const std::function<void()>& wake) {
  std::unique_lock lock(mutex_);
  if (!stopping_) {
    lock.unlock();
    work_.go_live(store);
    lock.lock();
  }
  for (;;) {
    changed_.wait(lock, [&] { return stopping_ || finishing_ || next_; });
    const auto progress = std::exchange(next_, std::nullopt);
    const bool stopping = stopping_;
    if (!stopping && !progress) break;
    lock.unlock();
    stopping ? work_.hide() : work_.show(*progress);
    lock.lock();
    if (stopping) break;
  }
  ended_ = true;
  changed_.notify_all();
  lock.unlock();
  wake();
}

}  // namespace ds
