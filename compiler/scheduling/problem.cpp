#include "compiler/scheduling/problem.h"

#include <algorithm>
#include <numeric>

namespace ds {
namespace {

const std::string& stream_name(const Problem& p, const Task& t) {
  return p.streams[static_cast<size_t>(t.stream)];
}

bool index_ok(int32_t i, size_t size) { return i >= 0 && static_cast<size_t>(i) < size; }

}  // namespace

std::optional<Fault> find_problem_fault(const Problem& p) {
  if (p.jobs.empty()) return Fault{-1, -1, fmt::format("problem '{}' has no job", p.name)};
  // Starting each task after the end of all others is a schedule: if that fits 64 bits, every schedule does.
  int64_t horizon = 0;
  auto add = [&](int64_t ns) {
    return !__builtin_add_overflow(horizon, ns, &horizon) && horizon < INT64_MAX / 4;
  };
  for (const Job& job : p.jobs) {
    if (job.arrival_ns < 0)
      return Fault{-1, -1, fmt::format("job '{}' arrives at {}, before time 0", job.name, job.arrival_ns)};
    if (!add(job.arrival_ns))
      return Fault{-1, -1, fmt::format("job '{}': times do not fit 64 bits", job.name)};
  }
  std::vector<int32_t> open(p.tasks.size(), 0);
  std::vector<std::vector<int32_t>> followers(p.tasks.size());
  for (size_t i = 0; i < p.tasks.size(); ++i) {
    const Task& t = p.tasks[i];
    auto at = static_cast<int32_t>(i);
    auto fault = [&](int32_t other, std::string message) {
      return Fault{at, other, fmt::format("'{}' (task {}) {}", t.name, i, message)};
    };
    if (!index_ok(t.stream, p.streams.size()))
      return fault(-1, fmt::format("is on stream {}, but there are {}", t.stream, p.streams.size()));
    if (!index_ok(t.job, p.jobs.size()))
      return fault(-1, fmt::format("belongs to job {}, but there are {}", t.job, p.jobs.size()));
    if (t.duration_ns < 0)
      return fault(-1, fmt::format("takes {} ns, expected nothing below zero", t.duration_ns));
    if (t.release_ns < 0) return fault(-1, fmt::format("is released at {}, before time 0", t.release_ns));
    if (!add(t.duration_ns) || !add(t.release_ns))
      return fault(-1, "has times whose sum does not fit 64 bits");
    for (int32_t w : t.after) {
      if (!index_ok(w, p.tasks.size()))
        return fault(-1, fmt::format("waits for task {}, but there are {}", w, p.tasks.size()));
      followers[static_cast<size_t>(w)].push_back(at);
      ++open[i];
    }
  }
  std::vector<int32_t> ready;
  for (size_t i = 0; i < open.size(); ++i)
    if (open[i] == 0) ready.push_back(static_cast<int32_t>(i));
  size_t done = 0;
  while (!ready.empty()) {
    int32_t i = ready.back();
    ready.pop_back();
    ++done;
    for (int32_t f : followers[static_cast<size_t>(i)])
      if (--open[static_cast<size_t>(f)] == 0) ready.push_back(f);
  }
  if (done < p.tasks.size()) {
    auto i = static_cast<int32_t>(std::find_if(open.begin(), open.end(), [](int32_t n) { return n > 0; }) -
                                  open.begin());
    return Fault{i, -1,
                 fmt::format("'{}' (task {}) is part of or behind a cycle of waits",
                             p.tasks[static_cast<size_t>(i)].name, i)};
  }
  return std::nullopt;
}

Status check(const Problem& p) {
  if (auto fault = find_problem_fault(p)) return Status(Code::kInvalidArgument, fault->message);
  return ok_status();
}

std::optional<Fault> find_schedule_fault(const Problem& p, const std::vector<int64_t>& start) {
  if (start.size() != p.tasks.size())
    return Fault{-1, -1, fmt::format("{} start times for {} tasks", start.size(), p.tasks.size())};
  for (size_t i = 0; i < p.tasks.size(); ++i) {
    const Task& t = p.tasks[i];
    const Job& job = p.jobs[static_cast<size_t>(t.job)];
    if (start[i] < job.arrival_ns) {
      return Fault{static_cast<int32_t>(i), -1,
                   fmt::format("'{}' starts at {}, but its job '{}' arrives at {}", t.name, start[i],
                               job.name, job.arrival_ns)};
    }
    if (start[i] < t.release_ns) {
      return Fault{static_cast<int32_t>(i), -1,
                   fmt::format("'{}' starts at {}, but is released at {}", t.name, start[i], t.release_ns)};
    }
    for (int32_t w : t.after) {
      const Task& before = p.tasks[static_cast<size_t>(w)];
      int64_t end = start[static_cast<size_t>(w)] + before.duration_ns;
      if (end > start[i]) {
        return Fault{static_cast<int32_t>(i), w,
                     fmt::format("'{}' starts at {}, but waits for '{}', which ends at {}", t.name, start[i],
                                 before.name, end)};
      }
    }
  }
  // One task at a time: sorted by start, each ends before the next one starts. What takes no time stands
  // first.
  std::vector<int32_t> order(p.tasks.size());
  std::iota(order.begin(), order.end(), 0);
  auto key = [&](int32_t i) {
    const Task& t = p.tasks[static_cast<size_t>(i)];
    return std::tuple(t.stream, start[static_cast<size_t>(i)], t.duration_ns, i);
  };
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return key(a) < key(b); });
  for (size_t k = 1; k < order.size(); ++k) {
    auto a = static_cast<size_t>(order[k - 1]), b = static_cast<size_t>(order[k]);
    if (p.tasks[a].stream != p.tasks[b].stream) continue;
    int64_t end = start[a] + p.tasks[a].duration_ns;
    if (end > start[b]) {
      return Fault{
          order[k], order[k - 1],
          fmt::format("'{}' starts at {} on stream '{}', which '{}' holds from {} to {}", p.tasks[b].name,
                      start[b], stream_name(p, p.tasks[b]), p.tasks[a].name, start[a], end)};
    }
  }
  return std::nullopt;
}

int64_t cost_of(const Problem& p, const std::vector<int64_t>& start) {
  std::vector<int64_t> end(p.jobs.size());
  for (size_t j = 0; j < p.jobs.size(); ++j) end[j] = p.jobs[j].arrival_ns;
  for (size_t i = 0; i < p.tasks.size(); ++i) {
    int64_t& e = end[static_cast<size_t>(p.tasks[i].job)];
    e = std::max(e, start[i] + p.tasks[i].duration_ns);
  }
  int64_t cost = 0;
  for (size_t j = 0; j < p.jobs.size(); ++j) {
    cost = p.objective == Objective::kSum ? cost + end[j] - p.jobs[j].arrival_ns : std::max(cost, end[j]);
  }
  return cost;
}

Status verify(const Problem& p, const Schedule& s) {
  if (auto fault = find_schedule_fault(p, s.start_ns))
    return error(Code::kInternal, "schedule of '{}' is wrong: {}", p.name, fault->message);
  int64_t cost = cost_of(p, s.start_ns);
  if (cost != s.cost_ns || s.cost_ns < s.lower_bound_ns ||
      s.proven_optimal != (s.cost_ns == s.lower_bound_ns)) {
    return error(Code::kInternal,
                 "schedule of '{}' states cost {}, bound {}, optimal {}; its start times cost {}", p.name,
                 s.cost_ns, s.lower_bound_ns, s.proven_optimal, cost);
  }
  return ok_status();
}

}  // namespace ds
