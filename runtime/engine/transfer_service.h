// One link for the transfers of all requests: what is needed first is read first.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "runtime/backends/backend.h"
#include "runtime/core/landing.h"
#include "runtime/core/link_estimate.h"
#include "runtime/core/segments.h"

namespace ds {

/// Rows of one tensor of an entry, for one request.
struct TransferJob {
  uint64_t owner = 0;  // the request's
  int32_t index = 0;   // among the owner's, as it likes
  std::shared_ptr<Segments> segments;
  int32_t source = 0;  // index into the plan's
  Payload payload = Payload::kKv;
  int32_t layer = 0;
  int64_t first = 0, rows = 0;
  std::string map;          // entry_map()
  std::byte* to = nullptr;  // memory of the rows; the owner's until the job is done or dropped
  int64_t needed_ns = 0;    // when its first reader could start, on now_ns()'s clock
  int64_t bytes = 0;
};

struct TransferDone {
  uint64_t owner = 0;
  int32_t index = 0;
  Status status;  // of the store or the entry
  int64_t start_ns = 0, end_ns = 0, bytes = 0;
};

/// Thread-safe. A thread of its own reads; look-ups have others, so that one that hangs delays no transfer,
/// and those of several senders take one round trip. What a sender has not computed yet waits beside the
/// link: nothing else waits for it.
class TransferService {
 public:
  /// `row_bytes` as in Landing::create(). `wake` is called, on one of its threads, when something is done.
  static Result<std::unique_ptr<TransferService>> create(Backend& backend, int64_t row_bytes,
                                                         std::function<void()> wake);
  /// What runs is ended as soon as the store lets go of it.
  ~TransferService();
  /// Begins nothing more. What runs then ends as soon as the store lets go of it: at_rest() tells.
  void stop();
  bool at_rest() const;
  /// Whether nothing that runs needs a store, or anything else, that it does not keep alive itself: objects
  /// outlive their stores, look-ups are given theirs.
  bool self_contained() const;

  void submit(TransferJob job);
  /// Runs `task` (a look-up in `store`) on a thread of the look-ups' as soon as one is idle, then wakes.
  /// `owner` keeps the store alive, where it is given.
  void look_up(const Store* store, std::shared_ptr<const void> owner, std::function<void()> task);
  /// When the oldest of that store's look-ups that run was begun, on now_ns()'s clock; 0: none runs.
  int64_t look_up_since_ns(const Store* store) const;
  /// Drops what the owner still waits for. What is being read goes on until the store's next part, and writes
  /// until then: reading() tells. No TransferDone comes of either.
  void cancel(uint64_t owner);
  /// Drops one transfer, if it has not begun; no TransferDone comes of it then. False: it has, or has ended.
  bool withdraw(uint64_t owner, int32_t index);
  /// Whether memory of the owner is still being written to.
  bool reading(uint64_t owner) const;
  /// What has ended since the last call, in order.
  std::vector<TransferDone> take_done();

  /// Bytes per second, of what was read so far; 0: nothing yet.
  int64_t rate() const;
  /// When bytes have come last, on now_ns()'s clock; 0: never.
  int64_t last_progress_ns() const { return progress_ns_.load(std::memory_order_relaxed); }
  int64_t bytes_read() const;
  int64_t busy_ns() const;  // of the link, in all

 private:
  TransferService() = default;
  static void serve(void* self, int64_t);
  /// With `mutex_` held: takes out of the queue. Who is given them lets go of them under no lock.
  template <typename F>
  std::vector<TransferJob> take_if(F&& meant);
  void serve();
  void serve_more();
  std::vector<TransferJob>::iterator next();  // mutex_ is held
  void look_ups();

  std::function<void()> wake_;
  std::unique_ptr<Landing> landing_;
  std::unique_ptr<CommandStream> stream_;  // the thread that reads

  mutable std::mutex mutex_;
  std::vector<TransferJob> queue_;
  bool serving_ = false;
  uint64_t current_ = 0;  // owner of what is being read; 0: none
  std::atomic<bool> current_cancelled_{false};
  std::vector<TransferDone> done_;
  std::vector<std::weak_ptr<Segments>> followed_;  // whose senders tell of more
  LinkEstimate estimate_;
  int64_t bytes_read_ = 0, busy_ns_ = 0;
  std::atomic<int64_t> progress_ns_{0};
  std::atomic<bool> stopping_{false};

  struct LookUpTask {
    const Store* store = nullptr;
    std::shared_ptr<const void> owner;
    int64_t start_ns = 0;
    std::function<void()> run;
  };
  static constexpr size_t kLookUpThreads = 8;
  std::condition_variable wanted_;
  std::deque<LookUpTask> look_ups_;
  std::list<LookUpTask> looking_up_;  // that run
  std::vector<std::thread> look_up_threads_;
};

}  // namespace ds
