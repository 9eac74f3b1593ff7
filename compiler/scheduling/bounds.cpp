// Lower bounds of scheduling problems. Slowdowns can only add to them, and are left out but for one bound of
// the makespan. While stream b runs beside stream a, a loses at least a share c of its time (its tasks' least
// slowdown). Within a makespan M of which a idles I, b runs beside it for T_b - I at least:
// M >= W_a + c (T_b - I) + I, which grows with I, and a idles before its first task and behind its last.
//
// Every task has a head (no schedule starts it earlier) and a tail (at least so much follows its end). A head
// is the longest path up to the task, and at least the work of its ancestors on any one stream; a tail
// likewise. Each stream by itself, with heads and tails, is a one-machine problem whose preemptive optimum
// (Jackson: run the released task with the longest tail) is a bound of the whole.
//
// Sum over jobs: each job has a bound by itself; and on each stream, the k-th job that is through with it is
// so no earlier than the k-th under the rule of shortest remaining work, which gets k jobs through before any
// other rule does, for every k. Both hold for the sorted ends, so the larger of the two does, for every k.
#include "compiler/scheduling/bounds.h"

#include <algorithm>
#include <bit>
#include <queue>

namespace ds {
namespace {

using Neighbours = std::vector<std::vector<int32_t>>;

/// Of neighbours in either direction of time.
int64_t between(const Problem& p, size_t a, size_t b, bool backward) {
  return backward ? handover(p.tasks[b], p.tasks[a]) : handover(p.tasks[a], p.tasks[b]);
}

/// Longest paths: raises heads by what lies directly `before` each task.
void raise_by_paths(const Problem& p, const std::vector<int32_t>& order, const Neighbours& before,
                    bool backward, std::vector<int64_t>& head) {
  for (int32_t id : order) {
    auto i = static_cast<size_t>(id);
    for (int32_t w : before[i]) {
      auto b = static_cast<size_t>(w);
      head[i] = std::max(head[i], head[b] + p.tasks[b].duration_ns + between(p, b, i, backward));
    }
  }
}

/// And by the work of the ancestors on each stream: they all end before i starts, and none starts before the
/// earliest of their own heads.
void raise_by_work(const Problem& p, const std::vector<int32_t>& order, const Neighbours& before,
                   bool backward, std::vector<int64_t>& head) {
  size_t n = p.tasks.size(), words = (n + 63) / 64, streams = p.streams.size();
  std::vector<uint64_t> rows(n * words, 0);  // one row of bits per task: its ancestors
  std::vector<int64_t> work(n * streams, 0), first(n * streams, INT64_MAX);
  for (int32_t id : order) {
    auto i = static_cast<size_t>(id);
    uint64_t* row = &rows[i * words];
    auto add = [&](size_t a) {
      work[i * streams + static_cast<size_t>(p.tasks[a].stream)] += p.tasks[a].duration_ns;
    };
    for (size_t k = 0; k < before[i].size(); ++k) {
      auto b = static_cast<size_t>(before[i][k]);
      const uint64_t* other = &rows[b * words];
      head[i] = std::max(head[i], head[b] + p.tasks[b].duration_ns + between(p, b, i, backward));
      if (k == 0) {
        std::copy_n(other, words, row);
        std::copy_n(&work[b * streams], streams, &work[i * streams]);
      } else {
        for (size_t w = 0; w < words; ++w) {
          for (uint64_t fresh = other[w] & ~row[w]; fresh != 0; fresh &= fresh - 1)
            add(w * 64 + static_cast<size_t>(std::countr_zero(fresh)));
          row[w] |= other[w];
        }
      }
      if ((row[b / 64] >> (b % 64) & 1) == 0) add(b);
      row[b / 64] |= uint64_t{1} << (b % 64);
      for (size_t s = 0; s < streams; ++s)
        first[i * streams + s] = std::min(first[i * streams + s], first[b * streams + s]);
      int64_t& f = first[i * streams + static_cast<size_t>(p.tasks[b].stream)];
      f = std::min(f, head[b]);
    }
    for (size_t s = 0; s < streams; ++s) {
      int64_t f = first[i * streams + s];
      if (f != INT64_MAX) head[i] = std::max(head[i], f + work[i * streams + s]);
    }
  }
}

/// Ends under the rule of shortest remaining work, ascending.
std::vector<int64_t> ends_by_shortest_remaining(std::vector<StreamWork> jobs) {
  std::sort(jobs.begin(), jobs.end(),
            [](const StreamWork& a, const StreamWork& b) { return a.head < b.head; });
  std::priority_queue<int64_t, std::vector<int64_t>, std::greater<>> remaining;
  std::vector<int64_t> ends;
  int64_t now = 0;
  size_t next = 0;
  while (next < jobs.size() || !remaining.empty()) {
    if (remaining.empty()) now = std::max(now, jobs[next].head);
    for (; next < jobs.size() && jobs[next].head <= now; ++next) remaining.push(jobs[next].work);
    int64_t left = remaining.top(), until = next < jobs.size() ? jobs[next].head : INT64_MAX;
    int64_t run = std::min(left, until - now);
    remaining.pop();
    now += run;
    if (run == left) {
      ends.push_back(now);
    } else {
      remaining.push(left - run);
    }
  }
  return ends;
}

}  // namespace

std::vector<int32_t> topological_order(const Problem& p) {
  std::vector<int32_t> open(p.tasks.size(), 0), order;
  Neighbours followers(p.tasks.size());
  for (size_t i = 0; i < p.tasks.size(); ++i) {
    for (int32_t w : p.tasks[i].after) {
      followers[static_cast<size_t>(w)].push_back(static_cast<int32_t>(i));
      ++open[i];
    }
  }
  for (size_t i = 0; i < p.tasks.size(); ++i)
    if (open[i] == 0) order.push_back(static_cast<int32_t>(i));
  for (size_t k = 0; k < order.size(); ++k) {
    for (int32_t f : followers[static_cast<size_t>(order[k])])
      if (--open[static_cast<size_t>(f)] == 0) order.push_back(f);
  }
  return order;
}

int64_t one_machine_bound(std::vector<StreamWork>& tasks) {
  std::sort(tasks.begin(), tasks.end(), [](const StreamWork& a, const StreamWork& b) {
    return std::pair(a.head, b.tail) < std::pair(b.head, a.tail);
  });
  std::priority_queue<std::pair<int64_t, int64_t>> released;  // tail, work left
  int64_t now = 0, bound = 0;
  size_t next = 0;
  while (next < tasks.size() || !released.empty()) {
    if (released.empty()) now = std::max(now, tasks[next].head);
    for (; next < tasks.size() && tasks[next].head <= now; ++next)
      released.push({tasks[next].tail, tasks[next].work});
    auto [tail, left] = released.top();
    int64_t until = next < tasks.size() ? tasks[next].head : INT64_MAX;
    int64_t run = std::min(left, until - now);
    released.pop();
    now += run;
    if (run == left) {
      bound = std::max(bound, now + tail);
    } else {
      released.push({tail, left - run});
    }
  }
  return bound;
}

int64_t sum_of_ends_bound(const std::vector<int64_t>& alone,
                          const std::vector<std::vector<StreamWork>>& on_stream) {
  int64_t sum = 0;
  for (int64_t a : alone) sum += a;
  int64_t bound = sum;
  for (const std::vector<StreamWork>& stream : on_stream) {
    std::vector<StreamWork> jobs;
    std::vector<int64_t> ends;  // by themselves, of the jobs that are on this stream
    int64_t tail = INT64_MAX, rest = sum;
    for (size_t j = 0; j < stream.size(); ++j) {
      if (stream[j].work < 0) continue;
      jobs.push_back(stream[j]);
      ends.push_back(alone[j]);
      tail = std::min(tail, stream[j].tail);
      rest -= alone[j];
    }
    if (jobs.size() < 2) continue;
    std::sort(ends.begin(), ends.end());
    std::vector<int64_t> through = ends_by_shortest_remaining(jobs);
    int64_t kth = rest;
    for (size_t k = 0; k < ends.size(); ++k) kth += std::max(ends[k], through[k] + tail);
    // Some job is the last one on this stream: it has its own tail behind all work.
    int64_t last = INT64_MAX;
    for (size_t j = 0; j < stream.size(); ++j) {
      if (stream[j].work >= 0)
        last = std::min(last, std::max<int64_t>(0, through.back() + stream[j].tail - alone[j]));
    }
    bound = std::max({bound, kth, sum + last});
  }
  return bound;
}

HeadsTails heads_and_tails(const Problem& p) {
  HeadsTails ht;
  size_t n = p.tasks.size();
  std::vector<int32_t> order = topological_order(p);
  Neighbours before(n), behind(n);
  ht.head.resize(n);
  for (size_t i = 0; i < n; ++i) {
    before[i] = p.tasks[i].after;
    for (int32_t w : before[i]) behind[static_cast<size_t>(w)].push_back(static_cast<int32_t>(i));
    ht.head[i] = std::max(p.tasks[i].release_ns, p.jobs[static_cast<size_t>(p.tasks[i].job)].arrival_ns);
  }
  ht.tail.assign(n, 0);
  auto raise = n <= kAncestorLimit ? raise_by_work : raise_by_paths;
  raise(p, order, before, false, ht.head);
  std::reverse(order.begin(), order.end());
  // A task may have others of later jobs behind it; only its own job's end counts for the sum.
  if (p.objective == Objective::kSum) {
    for (size_t i = 0; i < n; ++i)
      std::erase_if(behind[i],
                    [&](int32_t b) { return p.tasks[static_cast<size_t>(b)].job != p.tasks[i].job; });
  }
  raise(p, order, behind, true, ht.tail);
  return ht;
}

std::vector<int64_t> tails(const Problem& p) {
  std::vector<int32_t> order = topological_order(p);
  std::vector<int64_t> tail(p.tasks.size(), 0);
  for (auto it = order.rbegin(); it != order.rend(); ++it) {
    auto i = static_cast<size_t>(*it);
    for (int32_t w : p.tasks[i].after) {
      int64_t& t = tail[static_cast<size_t>(w)];
      t = std::max(t,
                   handover(p.tasks[static_cast<size_t>(w)], p.tasks[i]) + p.tasks[i].duration_ns + tail[i]);
    }
  }
  return tail;
}

namespace {

/// The bound of the makespan by what each stream does, and by what that loses beside another one.
int64_t stream_bound(const Problem& p, const HeadsTails& ht) {
  const size_t streams = p.streams.size();
  struct Use {
    int64_t work = 0, head = INT64_MAX, tail = INT64_MAX;
    std::vector<int32_t> classes;
  };
  std::vector<Use> use(streams);
  for (size_t i = 0; i < p.tasks.size(); ++i) {
    const Task& t = p.tasks[i];
    if (t.duration_ns == 0) continue;
    Use& u = use[static_cast<size_t>(t.stream)];
    u.work += t.duration_ns;
    u.head = std::min(u.head, ht.head[i]);
    u.tail = std::min(u.tail, ht.tail[i]);
    if (std::find(u.classes.begin(), u.classes.end(), t.contention) == u.classes.end())
      u.classes.push_back(t.contention);
  }
  int64_t bound = 0;
  for (const Use& a : use) {
    if (a.classes.empty()) continue;
    bound = std::max(bound, a.work + a.head + a.tail);
    for (const Use& b : use) {
      if (&a == &b || b.classes.empty()) continue;
      int64_t least = INT64_MAX;
      for (int32_t x : a.classes)
        for (int32_t y : b.classes)
          least = std::min(
              least,
              x < 0 || y < 0
                  ? 0
                  : p.slow_permille[static_cast<size_t>(x) * p.classes.size() + static_cast<size_t>(y)]);
      const int64_t idle = a.head + a.tail, lost = 1'000'000 - progress_per_ns(least);
      const __int128 beside = std::max<int64_t>(0, b.work - idle);
      bound = std::max(bound, a.work + idle + static_cast<int64_t>(beside * lost / 1'000'000));
    }
  }
  return bound;
}

}  // namespace

int64_t busy_bound(const Problem& p) {
  if (p.objective != Objective::kMakespan) return 0;
  HeadsTails ht{{}, std::vector<int64_t>(p.tasks.size(), 0)};
  for (const Task& t : p.tasks)
    ht.head.push_back(std::max(t.release_ns, p.jobs[static_cast<size_t>(t.job)].arrival_ns));
  return stream_bound(p, ht);
}

int64_t lower_bound(const Problem& p) {
  HeadsTails ht = heads_and_tails(p);
  size_t jobs = p.jobs.size(), streams = p.streams.size();
  bool sum = p.objective == Objective::kSum;
  // Whose end is asked for: each job's, or that of all together.
  size_t groups = sum ? jobs : 1;
  std::vector<int64_t> ends(groups, 0);
  for (size_t j = 0; j < jobs; ++j) ends[sum ? j : 0] = std::max(ends[sum ? j : 0], p.jobs[j].arrival_ns);
  std::vector<std::vector<StreamWork>> by_group(groups * streams);
  std::vector<std::vector<StreamWork>> totals(streams,
                                              std::vector<StreamWork>(groups, {INT64_MAX, -1, INT64_MAX}));
  for (size_t i = 0; i < p.tasks.size(); ++i) {
    size_t g = sum ? static_cast<size_t>(p.tasks[i].job) : 0, s = static_cast<size_t>(p.tasks[i].stream);
    int64_t work = p.tasks[i].duration_ns;
    ends[g] = std::max(ends[g], ht.head[i] + work + ht.tail[i]);
    by_group[g * streams + s].push_back({ht.head[i], work, ht.tail[i]});
    StreamWork& t = totals[s][g];
    t = {std::min(t.head, ht.head[i]), std::max<int64_t>(t.work, 0) + work, std::min(t.tail, ht.tail[i])};
  }
  for (size_t g = 0; g < groups; ++g)
    for (size_t s = 0; s < streams; ++s)
      ends[g] = std::max(ends[g], one_machine_bound(by_group[g * streams + s]));
  if (!sum) return has_contention(p) ? std::max(ends[0], stream_bound(p, ht)) : ends[0];
  int64_t bound = sum_of_ends_bound(ends, totals);
  for (const Job& job : p.jobs) bound -= job.arrival_ns;
  return bound;
}

}  // namespace ds
