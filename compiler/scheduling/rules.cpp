// Does a schedule keep every rule? Everything is computed anew from starts and ends; nothing here is used by,
// or taken from, a solver.
#include <algorithm>
#include <map>
#include <numeric>

#include "compiler/scheduling/problem.h"

namespace ds {
namespace {

const Task& task(const Problem& p, int32_t i) { return p.tasks[static_cast<size_t>(i)]; }

std::optional<Fault> find_wait_fault(const Problem& p, const std::vector<int64_t>& start,
                                     const std::vector<int64_t>& end) {
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
    if (end[i] < start[i] || end[i] - start[i] < t.duration_ns) {
      return Fault{static_cast<int32_t>(i), -1,
                   fmt::format("'{}' starts at {} and ends at {}, but takes {} even alone", t.name, start[i],
                               end[i], t.duration_ns)};
    }
    for (int32_t w : t.after) {
      int64_t before = end[static_cast<size_t>(w)], passes = handover(task(p, w), t);
      if (before + passes <= start[i]) continue;
      std::string less = passes > 0 ? fmt::format(" and is handed over within {}", passes) : "";
      return Fault{static_cast<int32_t>(i), w,
                   fmt::format("'{}' starts at {}, but waits for '{}', which ends at {}{}", t.name, start[i],
                               task(p, w).name, before, less)};
    }
  }
  return std::nullopt;
}

/// One task at a time: sorted by start, each ends before the next one starts. What takes no time stands
/// first.
std::optional<Fault> find_stream_fault(const Problem& p, const std::vector<int64_t>& start,
                                       const std::vector<int64_t>& end) {
  std::vector<int32_t> order(p.tasks.size());
  std::iota(order.begin(), order.end(), 0);
  auto key = [&](int32_t i) {
    auto k = static_cast<size_t>(i);
    return std::tuple(p.tasks[k].stream, start[k], end[k], i);
  };
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return key(a) < key(b); });
  for (size_t k = 1; k < order.size(); ++k) {
    auto a = static_cast<size_t>(order[k - 1]), b = static_cast<size_t>(order[k]);
    if (p.tasks[a].stream != p.tasks[b].stream || end[a] <= start[b]) continue;
    return Fault{order[k], order[k - 1],
                 fmt::format("'{}' starts at {} on stream '{}', which '{}' holds from {} to {}",
                             p.tasks[b].name, start[b], p.streams[static_cast<size_t>(p.tasks[b].stream)],
                             p.tasks[a].name, start[a], end[a])};
  }
  return std::nullopt;
}

/// Every task ends at the first ns at which its work is done: between two neighbouring starts or ends
/// nobody's rate changes, so the progress of whatever runs there is rate times length.
std::optional<Fault> find_end_fault(const Problem& p, const std::vector<int64_t>& start,
                                    const std::vector<int64_t>& end) {
  auto wrong = [&](size_t i, int32_t other, const std::string& why) {
    return Fault{static_cast<int32_t>(i), other,
                 fmt::format("'{}' runs from {} to {}, but {}", p.tasks[i].name, start[i], end[i], why)};
  };
  if (!has_contention(p)) {
    for (size_t i = 0; i < p.tasks.size(); ++i) {
      if (end[i] - start[i] == p.tasks[i].duration_ns) continue;
      return wrong(i, -1,
                   fmt::format("takes {} and nothing slows it: it ends at {}", p.tasks[i].duration_ns,
                               start[i] + p.tasks[i].duration_ns));
    }
    return std::nullopt;
  }
  // At a time: who leaves, who enters.
  std::map<int64_t, std::pair<std::vector<int32_t>, std::vector<int32_t>>> events;
  for (size_t i = 0; i < p.tasks.size(); ++i) {
    if (start[i] == end[i]) continue;
    events[start[i]].second.push_back(static_cast<int32_t>(i));
    events[end[i]].first.push_back(static_cast<int32_t>(i));
  }
  std::vector<__int128> done(p.tasks.size(), 0);
  std::vector<int64_t> last_rate(p.tasks.size(), progress_per_ns(0));
  std::vector<int32_t> beside(p.tasks.size(), -1);  // who slowed it last
  std::vector<int32_t> running;
  for (auto it = events.begin(); it != events.end(); ++it) {
    for (int32_t gone : it->second.first) std::erase(running, gone);
    running.insert(running.end(), it->second.second.begin(), it->second.second.end());
    if (std::next(it) == events.end()) break;
    int64_t length = std::next(it)->first - it->first;
    for (int32_t a : running) {
      int64_t slow = 0;
      for (int32_t b : running) {
        int32_t ca = task(p, a).contention, cb = task(p, b).contention;
        if (ca < 0 || cb < 0 || task(p, a).stream == task(p, b).stream) continue;
        int64_t s = p.slow_permille[static_cast<size_t>(ca) * p.classes.size() + static_cast<size_t>(cb)];
        if (s > slow) beside[static_cast<size_t>(a)] = b;
        slow = std::max(slow, s);
      }
      last_rate[static_cast<size_t>(a)] = progress_per_ns(slow);
      done[static_cast<size_t>(a)] += static_cast<__int128>(length) * progress_per_ns(slow);
    }
  }
  for (size_t i = 0; i < p.tasks.size(); ++i) {
    __int128 work = static_cast<__int128>(p.tasks[i].duration_ns) * 1'000'000;
    if (done[i] < work)
      return wrong(i, beside[i],
                   fmt::format("its work of {} ns is not done by then", p.tasks[i].duration_ns));
    if (start[i] < end[i] && done[i] - last_rate[i] >= work)
      return wrong(i, beside[i], fmt::format("its work of {} ns is done earlier", p.tasks[i].duration_ns));
    if (p.tasks[i].duration_ns == 0 && start[i] != end[i]) return wrong(i, -1, "takes no time");
  }
  return std::nullopt;
}

}  // namespace

std::optional<Fault> find_schedule_fault(const Problem& p, const std::vector<int64_t>& start,
                                         const std::vector<int64_t>& end) {
  if (start.size() != p.tasks.size() || end.size() != p.tasks.size()) {
    return Fault{-1, -1,
                 fmt::format("{} starts and {} ends for {} tasks", start.size(), end.size(), p.tasks.size())};
  }
  if (auto fault = find_wait_fault(p, start, end)) return fault;
  if (auto fault = find_stream_fault(p, start, end)) return fault;
  return find_end_fault(p, start, end);
}

int64_t cost_of(const Problem& p, const std::vector<int64_t>& end) {
  std::vector<int64_t> last(p.jobs.size());
  for (size_t j = 0; j < p.jobs.size(); ++j) last[j] = p.jobs[j].arrival_ns;
  for (size_t i = 0; i < p.tasks.size(); ++i) {
    int64_t& e = last[static_cast<size_t>(p.tasks[i].job)];
    e = std::max(e, end[i]);
  }
  int64_t cost = 0;
  for (size_t j = 0; j < p.jobs.size(); ++j) {
    cost = p.objective == Objective::kSum ? cost + last[j] - p.jobs[j].arrival_ns : std::max(cost, last[j]);
  }
  return cost;
}

Status verify(const Problem& p, const Schedule& s) {
  if (auto fault = find_schedule_fault(p, s.start_ns, s.end_ns))
    return error(Code::kInternal, "schedule of '{}' is wrong: {}", p.name, fault->message);
  int64_t cost = cost_of(p, s.end_ns);
  if (cost != s.cost_ns || s.cost_ns < s.lower_bound_ns ||
      s.proven_optimal != (s.cost_ns == s.lower_bound_ns) || s.proven_optimal != (s.proof != Proof::kNone)) {
    return error(Code::kInternal, "schedule of '{}' states cost {}, bound {}, optimal {}; its times cost {}",
                 p.name, s.cost_ns, s.lower_bound_ns, s.proven_optimal, cost);
  }
  return ok_status();
}

}  // namespace ds
