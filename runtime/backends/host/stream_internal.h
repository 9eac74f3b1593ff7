// Streams of host code: a thread each, fed through a ring of commands that is sized when it is made. The CPU
// backend's are all of this kind; a device's backend runs its link streams so.
//
// Threads: a compute stream is one thread and its OpenMP team, as many as the backend was given (all cores by
// default, and then each has its own). While the stream waits its whole team sleeps; between the regions of a
// kernel it spins, and others keep no team (team_internal.h). A link stream is one thread more, with
// short slices: it runs as soon as it has something to do, and gets no more time than others. Where compute
// leaves a core free the system places it; where it does not, it is several threads, each on a core of its
// own, that take turns of a millisecond: matrix products are split evenly, so that a thread that always loses
// time on the same core makes all others wait for that one, and the loss counts as often as there are
// threads. (One thread that moved from core to core would wait for the end of a slice on each; only who wakes
// up there runs at once.)
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <semaphore>
#include <thread>
#include <type_traits>
#include <vector>

#include "runtime/backends/backend.h"
#include "runtime/backends/host/team_internal.h"

namespace ds::host {

class HostEvent : public Event {
 public:
  void reset() override { done_.store(0, std::memory_order_relaxed); }
  bool done() const override { return done_.load(std::memory_order_acquire) != 0; }
  int64_t time_ns() const override { return time_ns_; }

  virtual void complete();
  void block() const override;  // until complete()

 private:
  std::atomic<uint32_t> done_{0};  // 32 bits: waited on as a futex
  int64_t time_ns_ = 0;
};

/// What a command does on the stream's thread; `payload` is what was given to push(). Its failure, if any, is
/// kept by the stream.
using CommandCall = Status (*)(const void* payload);

class HostStream final : public CommandStream {
 public:
  static constexpr size_t kPayload = 120;

  /// kExhausted: the system gives no thread more.
  static Result<std::unique_ptr<CommandStream>> make(StreamKind kind, int64_t capacity, int threads);
  HostStream(StreamKind kind, int64_t capacity, int threads);
  ~HostStream() override;  // after what was enqueued has run

  StreamKind kind() const override { return kind_; }
  void wait(Event& event) override;
  void record(Event& event) override;
  void host(HostTask task) override;
  void copy(std::byte* to, const std::byte* from, int64_t bytes) override;
  void begin_op(int64_t op) override { op_ = op; }
  int64_t failed_op() const override { return failed_op_; }
  void cancel() override { skip_.store(true, std::memory_order_relaxed); }
  Status synchronize() override;

  void fail(Status status) override { fail(std::move(status), op_); }  // of the op that was begun last

  /// A kernel, of compute streams: `work() -> Status` runs on the stream's thread.
  template <typename Work>
  void kernel(const Work& work) {
    push(
        Kind::kKernel, [](const void* payload) { return (*static_cast<const Work*>(payload))(); }, work);
  }

 private:
  enum class Kind : uint8_t { kKernel, kHost, kCopy, kWait, kRecord, kStop };
  struct Copy {
    std::byte* to;
    const std::byte* from;
    int64_t bytes;
  };
  struct Command {
    Kind kind = Kind::kStop;
    int64_t op = -1;
    CommandCall call = nullptr;
    alignas(8) std::byte payload[kPayload];
  };

  template <typename P>
  void push(Kind kind, CommandCall call, const P& payload) {
    static_assert(std::is_trivially_copyable_v<P> && sizeof(P) <= kPayload);
    Command* slot = claim();
    if (slot == nullptr) return;
    slot->kind = kind;
    slot->op = op_;
    slot->call = call;
    std::memcpy(slot->payload, &payload, sizeof(P));
    publish();
  }
  void fail(Status status, int64_t op);
  Command* claim();
  void publish();
  void end();
  void run(int threads);
  void run_in_turn(size_t hand, int core);
  /// The next command, when it is there; false: it is the last one.
  bool step();
  /// Until it is over. A compute stream's whole team sleeps and wakes at once: left alone, its threads would
  /// spin for a while, and whoever is to run on their cores meanwhile (what is waited for, most likely) would
  /// wait for the end of a slice.
  template <typename Over, typename UntilOver>
  void sleep(const Over& over, const UntilOver& until_over);

  StreamKind kind_;
  int64_t capacity_;
  int64_t op_ = -1;            // that was begun last
  int64_t failed_op_ = -1;     // of what synchronize() has returned last
  std::vector<Command> ring_;  // capacity and one for kStop
  size_t head_ = 0;            // next slot to fill
  // Whose turn it is: those of a link stream that has no core to itself; none: one thread does all.
  static constexpr size_t kMostHands = 8;
  static constexpr int64_t kTurnNs = 1'000'000;
  std::vector<std::unique_ptr<std::binary_semaphore>> turns_;
  size_t tail_ = 0;  // next slot to take, and how many have been: of the thread whose turn it is
  uint32_t taken_ = 0;
  std::optional<Team> team_;                       // a compute stream's
  alignas(64) std::atomic<uint32_t> enqueued_{0};  // counts, wrapping; 32 bits: waited on as futexes
  alignas(64) std::atomic<uint32_t> completed_{0};
  std::atomic<bool> skip_{false};  // after a failure or cancel(), until synchronize()
  std::mutex status_mutex_;
  Status status_;
  int64_t status_op_ = -1;
  std::vector<std::thread> threads_;
};

}  // namespace ds::host
