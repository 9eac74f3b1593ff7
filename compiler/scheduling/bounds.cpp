// Lower bounds of scheduling problems.
//
// Every task has a head (no schedule starts it earlier) and a tail (at least so much follows its end). A head
// is the longest path up to the task, and at least the work of its ancestors on any one stream; a tail
// likewise. Each stream by itself, with heads and tails, is a one-machine problem whose preemptive optimum
// (Jackson: run the released task with the longest tail) is a bound of the whole.
#include <algorithm>
#include <numeric>
#include <queue>

#include "compiler/scheduling/heads_tails.h"
#include "compiler/scheduling/problem.h"

namespace ds {
namespace {

using Bits = std::vector<uint64_t>;

std::vector<int32_t> topological_order(const Problem& p) {
  std::vector<int32_t> open(p.tasks.size(), 0), order;
  std::vector<std::vector<int32_t>> followers(p.tasks.size());
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

/// Raises heads by the work of the ancestors (`before[i]`: direct predecessors) on each stream: they all end
/// before i starts, and none starts before the earliest of their own heads.
void raise_heads(const Problem& p, const std::vector<int32_t>& order,
                 const std::vector<std::vector<int32_t>>& before, std::vector<int64_t>& head) {
  size_t n = p.tasks.size(), words = (n + 63) / 64;
  Bits ancestors(n * words, 0);  // one row of bits per task
  for (int32_t id : order) {
    auto i = static_cast<size_t>(id);
    for (int32_t w : before[i]) {
      auto b = static_cast<size_t>(w);
      head[i] = std::max(head[i], head[b] + p.tasks[b].duration_ns);
      for (size_t k = 0; k < words; ++k) ancestors[i * words + k] |= ancestors[b * words + k];
      ancestors[i * words + b / 64] |= uint64_t{1} << (b % 64);
    }
    std::vector<int64_t> work(p.streams.size(), 0), first(p.streams.size(), INT64_MAX);
    for (size_t a = 0; a < n; ++a) {
      if ((ancestors[i * words + a / 64] >> (a % 64) & 1) == 0) continue;
      auto s = static_cast<size_t>(p.tasks[a].stream);
      work[s] += p.tasks[a].duration_ns;
      first[s] = std::min(first[s], head[a]);
    }
    for (size_t s = 0; s < work.size(); ++s)
      if (first[s] != INT64_MAX) head[i] = std::max(head[i], first[s] + work[s]);
  }
}

/// Jackson's preemptive schedule of the tasks on one stream: the largest end plus tail.
int64_t one_machine_bound(const Problem& p, std::vector<int32_t> tasks, const std::vector<int64_t>& head,
                          const std::vector<int64_t>& tail) {
  std::sort(tasks.begin(), tasks.end(), [&](int32_t a, int32_t b) {
    return std::pair(head[static_cast<size_t>(a)], a) < std::pair(head[static_cast<size_t>(b)], b);
  });
  std::priority_queue<std::pair<int64_t, int32_t>> released;  // by tail
  std::vector<int64_t> left(p.tasks.size());
  for (int32_t t : tasks) left[static_cast<size_t>(t)] = p.tasks[static_cast<size_t>(t)].duration_ns;
  int64_t now = 0, bound = 0;
  size_t next = 0;
  while (next < tasks.size() || !released.empty()) {
    if (released.empty()) now = std::max(now, head[static_cast<size_t>(tasks[next])]);
    while (next < tasks.size() && head[static_cast<size_t>(tasks[next])] <= now) {
      released.push({tail[static_cast<size_t>(tasks[next])], tasks[next]});
      ++next;
    }
    auto [q, t] = released.top();
    int64_t until = next < tasks.size() ? head[static_cast<size_t>(tasks[next])] : INT64_MAX;
    int64_t run = std::min(left[static_cast<size_t>(t)], until - now);
    now += run;
    left[static_cast<size_t>(t)] -= run;
    if (left[static_cast<size_t>(t)] == 0) {
      released.pop();
      bound = std::max(bound, now + q);
    }
  }
  return bound;
}

/// Earliest possible end of the last of these jobs' tasks.
int64_t makespan_bound(const Problem& p, const HeadsTails& ht, int32_t job) {
  int64_t bound = 0;
  std::vector<std::vector<int32_t>> by_stream(p.streams.size());
  for (size_t i = 0; i < p.tasks.size(); ++i) {
    if (job >= 0 && p.tasks[i].job != job) continue;
    bound = std::max(bound, ht.head[i] + p.tasks[i].duration_ns + ht.tail[i]);
    by_stream[static_cast<size_t>(p.tasks[i].stream)].push_back(static_cast<int32_t>(i));
  }
  for (auto& tasks : by_stream)
    bound = std::max(bound, one_machine_bound(p, std::move(tasks), ht.head, ht.tail));
  for (size_t j = 0; j < p.jobs.size(); ++j)
    if (job < 0 || static_cast<size_t>(job) == j) bound = std::max(bound, p.jobs[j].arrival_ns);
  return bound;
}

}  // namespace

HeadsTails heads_and_tails(const Problem& p) {
  HeadsTails ht;
  size_t n = p.tasks.size();
  std::vector<int32_t> order = topological_order(p);
  std::vector<std::vector<int32_t>> before(n), behind(n);
  ht.head.resize(n);
  for (size_t i = 0; i < n; ++i) {
    before[i] = p.tasks[i].after;
    for (int32_t w : before[i]) behind[static_cast<size_t>(w)].push_back(static_cast<int32_t>(i));
    ht.head[i] = std::max(p.tasks[i].release_ns, p.jobs[static_cast<size_t>(p.tasks[i].job)].arrival_ns);
  }
  ht.tail.assign(n, 0);
  raise_heads(p, order, before, ht.head);
  std::reverse(order.begin(), order.end());
  raise_heads(p, order, behind, ht.tail);
  return ht;
}

std::vector<int64_t> tails(const Problem& p) {
  std::vector<int32_t> order = topological_order(p);
  std::vector<int64_t> tail(p.tasks.size(), 0);
  for (auto it = order.rbegin(); it != order.rend(); ++it) {
    auto i = static_cast<size_t>(*it);
    for (int32_t w : p.tasks[i].after) {
      int64_t& t = tail[static_cast<size_t>(w)];
      t = std::max(t, tail[i] + p.tasks[i].duration_ns);
    }
  }
  return tail;
}

int64_t lower_bound(const Problem& p) {
  HeadsTails ht = heads_and_tails(p);
  if (p.objective == Objective::kMakespan) return makespan_bound(p, ht, -1);

  // Sum over jobs: each job by itself; and on each stream some job is the last one, which then ends no
  // earlier than all work on that stream has been done.
  std::vector<int64_t> alone(p.jobs.size());
  int64_t sum = 0;
  for (size_t j = 0; j < p.jobs.size(); ++j) {
    alone[j] = makespan_bound(p, ht, static_cast<int32_t>(j)) - p.jobs[j].arrival_ns;
    sum += alone[j];
  }
  int64_t bound = sum;
  for (size_t s = 0; s < p.streams.size(); ++s) {
    std::vector<int32_t> tasks;
    std::vector<int64_t> least_tail(p.jobs.size(), INT64_MAX);
    for (size_t i = 0; i < p.tasks.size(); ++i) {
      if (static_cast<size_t>(p.tasks[i].stream) != s) continue;
      tasks.push_back(static_cast<int32_t>(i));
      int64_t& t = least_tail[static_cast<size_t>(p.tasks[i].job)];
      t = std::min(t, ht.tail[i]);
    }
    if (tasks.empty()) continue;
    int64_t all_done = one_machine_bound(p, tasks, ht.head, std::vector<int64_t>(p.tasks.size(), 0));
    int64_t best = INT64_MAX;
    for (size_t j = 0; j < p.jobs.size(); ++j) {
      if (least_tail[j] == INT64_MAX) continue;  // not on this stream, so not last on it
      int64_t last = all_done + least_tail[j] - p.jobs[j].arrival_ns;
      best = std::min(best, sum - alone[j] + std::max(alone[j], last));
    }
    bound = std::max(bound, best);
  }
  return bound;
}

}  // namespace ds
