#include "compiler/scheduling/list_schedule.h"

#include <algorithm>
#include <numeric>
#include <queue>

namespace ds {

PartialSchedule empty_schedule(const Problem& p) {
  return {std::vector<int64_t>(p.tasks.size(), -1), std::vector<int64_t>(p.streams.size(), 0)};
}

void list_schedule(const Problem& p, const std::vector<int32_t>& tasks, const std::vector<int64_t>& rank,
                   int64_t not_before, PartialSchedule& partial) {
  using Entry = std::pair<int64_t, int32_t>;
  using Heap = std::priority_queue<Entry, std::vector<Entry>, std::greater<>>;
  struct Queues {
    Heap waiting;    // by the time at which they can start
    Heap available;  // by rank
  };
  std::vector<Queues> queues(p.streams.size());
  std::vector<int64_t> ready(p.tasks.size(), not_before);
  std::vector<int32_t> open(p.tasks.size(), 0);
  std::vector<std::vector<int32_t>> followers(p.tasks.size());
  for (int32_t id : tasks) {
    auto i = static_cast<size_t>(id);
    const Task& t = p.tasks[i];
    ready[i] = std::max({ready[i], t.release_ns, p.jobs[static_cast<size_t>(t.job)].arrival_ns});
    for (int32_t w : t.after) {
      auto b = static_cast<size_t>(w);
      if (partial.start_ns[b] >= 0) {
        ready[i] = std::max(ready[i], partial.start_ns[b] + p.tasks[b].duration_ns);
      } else {
        followers[b].push_back(id);
        ++open[i];
      }
    }
  }
  for (int32_t id : tasks) {
    auto i = static_cast<size_t>(id);
    if (open[i] == 0) queues[static_cast<size_t>(p.tasks[i].stream)].waiting.push({ready[i], id});
  }
  for (size_t placed = 0; placed < tasks.size(); ++placed) {
    // The stream that can start something first; decisions come in the order of time, so none is taken before
    // all that could take part in it is known.
    size_t stream = 0;
    int64_t when = INT64_MAX;
    for (size_t s = 0; s < queues.size(); ++s) {
      int64_t t = !queues[s].available.empty() ? partial.stream_free[s]
                  : !queues[s].waiting.empty()
                      ? std::max(partial.stream_free[s], queues[s].waiting.top().first)
                      : INT64_MAX;
      if (t < when) {
        when = t;
        stream = s;
      }
    }
    Queues& q = queues[stream];
    while (!q.waiting.empty() && q.waiting.top().first <= when) {
      int32_t id = q.waiting.top().second;
      q.waiting.pop();
      q.available.push({rank[static_cast<size_t>(id)], id});
    }
    auto i = static_cast<size_t>(q.available.top().second);
    q.available.pop();
    int64_t end = when + p.tasks[i].duration_ns;
    partial.start_ns[i] = when;
    partial.stream_free[stream] = end;
    for (int32_t f : followers[i]) {
      auto k = static_cast<size_t>(f);
      ready[k] = std::max(ready[k], end);
      if (--open[k] == 0) queues[static_cast<size_t>(p.tasks[k].stream)].waiting.push({ready[k], f});
    }
  }
}

std::vector<int32_t> tasks_of(const Problem& p, int32_t job) {
  std::vector<int32_t> tasks;
  for (size_t i = 0; i < p.tasks.size(); ++i)
    if (p.tasks[i].job == job) tasks.push_back(static_cast<int32_t>(i));
  return tasks;
}

std::vector<int32_t> tasks_of(const Problem& p, int32_t job, bool loads) {
  std::vector<int32_t> tasks = tasks_of(p, job);
  std::erase_if(tasks, [&](int32_t i) {
    return (p.tasks[static_cast<size_t>(i)].role != TaskRole::kCompute) != loads;
  });
  return tasks;
}

std::vector<int32_t> jobs_by_arrival(const Problem& p) {
  std::vector<int32_t> jobs(p.jobs.size());
  std::iota(jobs.begin(), jobs.end(), 0);
  std::stable_sort(jobs.begin(), jobs.end(), [&](int32_t a, int32_t b) {
    return p.jobs[static_cast<size_t>(a)].arrival_ns < p.jobs[static_cast<size_t>(b)].arrival_ns;
  });
  return jobs;
}

std::vector<int64_t> rank_loads(const Problem& p, TaskRole first) {
  std::vector<int64_t> rank(p.tasks.size());
  auto n = static_cast<int64_t>(p.tasks.size());
  for (size_t i = 0; i < p.tasks.size(); ++i) {
    bool behind = p.tasks[i].role != TaskRole::kCompute && p.tasks[i].role != first;
    rank[i] = static_cast<int64_t>(i) + (behind ? n : 0);
  }
  return rank;
}

}  // namespace ds
