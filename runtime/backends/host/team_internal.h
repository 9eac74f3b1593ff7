// The OpenMP team of a compute stream.
//
// With the cores to itself a team's threads spin where a region ends (see support/brief_team.h), each on a
// core of its own. Beside others who compute, that is the worst that they can do: who spins holds a core
// until the end of a slice, while the thread that it waits for, or another process's, wants to run; short
// regions then take milliseconds. So it is looked at how long they wait for a core while they work, and where
// that is long they go to sleep at once. (What a core takes to wake up, before they work, tells nothing: on a
// virtual machine a tenth of a millisecond.)
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "support/clock.h"

namespace ds::host {

/// Lives on the stream's thread.
class Team {
 public:
  explicit Team(int threads);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  /// All that it works on goes through here. Cheap: now and then one thing is watched.
  template <typename F>
  void work(F on) {
    const bool watched = unseen_ns_ >= kUnseenNs;
    if (watched) watch();
    const int64_t begin = now_ns();
    on();
    const int64_t ns = now_ns() - begin;
    since_ns_ += ns;
    unseen_ns_ += ns;
    if (watched) seen(ns);
  }
  /// Whether its threads have to share their cores.
  bool crowded() const { return crowd_ != nullptr; }

 private:
  /// Threads of another team that do nothing: with them there are more than cores.
  class Crowd;
  struct Member {
    pid_t thread = 0;
    int file = -1;          // schedstat: how long it has waited for a core
    int64_t since_ns = 0;   // its count when the thing being watched began
    int64_t waited_ns = 0;  // in what has been watched
  };
  static constexpr int64_t kUnseenNs = 2'000'000, kAgainNs = 500'000'000;
  void begin();
  void place();
  void watch();
  void seen(int64_t ns);
  void judge();
  void change();  // from spinning to sleeping, or back

  const int threads_;
  std::vector<int> cores_;
  std::vector<Member> members_;
  int64_t unseen_ns_ = 0;        // worked since something was watched
  int64_t seen_ns_ = 0;          // worked while being watched, since it was judged
  int64_t since_ns_ = 0;         // worked since they have been crowded, or have not
  int64_t again_ns_ = kAgainNs;  // when they are to spin again
  int tight_ = 0;                // judgements, one after the other, that one waited long
  std::unique_ptr<Crowd> crowd_;
};

/// The cores that the calling thread may run on.
std::vector<int> own_cores();
/// The calling thread (0) or another one. Refused: it stays where it is, which is only slower.
void stay_on(std::span<const int> cores, pid_t thread = 0);

}  // namespace ds::host
