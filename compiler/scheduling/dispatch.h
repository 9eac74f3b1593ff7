// The engine of all schedulers: goes through time, and whenever a stream is free starts what may start, by
// rank. It knows every rule of a problem: releases, waits, hand-overs, slowdowns.
#pragma once

#include <cstdint>
#include <queue>
#include <string>
#include <vector>

#include "compiler/scheduling/problem.h"

namespace ds {

struct Times {
  std::vector<int64_t> start_ns, end_ns;  // per task
};

/// What the engine decides by. `turn` and `phase` may be empty: all the same.
struct Priorities {
  std::vector<int64_t> rank;  // per task: of those that may start on a free stream, the smallest does
  /// Per task: a stream starts nothing of a later turn before all it has of earlier turns. It may idle
  /// meanwhile. (One turn per job keeps jobs in order, one per task fixes the whole order.)
  std::vector<int32_t> turn;
  /// Per task: nothing starts, on any stream, before all of earlier phases has ended.
  std::vector<int32_t> phase;
};

/// Holds what can be prepared for a problem, so that many runs are cheap. The problem must outlive it.
class Dispatcher {
 public:
  explicit Dispatcher(const Problem& problem);

  /// False where it gets stuck: turns or phases contradict the waits.
  /// O(t log t) and, with slowdowns, a factor of streams^2.
  bool run(const Priorities& priorities, Times& times);
  /// How many tasks could not start, after run() was false.
  const std::string& stuck() const { return stuck_; }

 private:
  struct Entry {
    int32_t phase = 0, turn = 0;
    int64_t rank = 0;
    int32_t task = 0;
    auto operator<=>(const Entry&) const = default;
  };
  template <class T>
  using MinHeap = std::priority_queue<T, std::vector<T>, std::greater<>>;
  struct Stream {
    MinHeap<Entry> available;
    std::vector<int32_t> turns;  // of all its tasks, sorted: the k-th start is of turn turns[k]
    size_t started = 0;
    int32_t running = -1;
    int64_t end = 0;    // of what runs, if no rate changes
    __int128 left = 0;  // of its work, where there is contention
    int64_t rate = 0;   // progress per ns, likewise
  };
  void make_available(int32_t task);
  bool may_start(const Entry& entry, const Stream& stream) const;
  bool start_next(Stream& stream, Times& times);
  void finish(int32_t task);
  void update_rates();

  const Problem& problem_;
  bool contention_ = false;
  std::vector<int32_t> first_follower_, followers_;  // of task i: [first[i], first[i + 1])
  std::vector<int32_t> waits_;                       // per task: for how many
  std::vector<int64_t> earliest_;                    // per task: release and arrival

  // Of the run.
  const Priorities* priorities_ = nullptr;
  int64_t now_ = 0;
  size_t ended_ = 0;
  std::vector<int32_t> open_;
  std::vector<int64_t> ready_;   // per task: earliest_, or when the last of what it waits for is handed over
  std::vector<int32_t> phases_;  // sorted
  std::vector<Stream> streams_;
  MinHeap<std::pair<int64_t, int32_t>> unreleased_;  // nothing but time is missing
  std::string stuck_;
};

}  // namespace ds
