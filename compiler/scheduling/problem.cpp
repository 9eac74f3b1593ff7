// Is a problem sound?
#include "compiler/scheduling/problem.h"

#include <algorithm>

namespace ds {
namespace {

bool index_ok(int64_t i, size_t size) { return i >= 0 && static_cast<size_t>(i) < size; }

std::optional<Fault> find_table_fault(const Problem& p) {
  size_t n = p.classes.size();
  if (p.slow_permille.size() != n * n) {
    return Fault{-1, -1,
                 fmt::format("{} slowdowns for {} classes, expected {}", p.slow_permille.size(), n, n * n)};
  }
  for (size_t i = 0; i < n * n; ++i) {
    int64_t slow = p.slow_permille[i];
    if (slow >= 0 && slow <= kMaxSlowdown) continue;
    return Fault{-1, -1,
                 fmt::format("'{}' beside '{}' is slowed by {} permille, expected 0 to {}", p.classes[i / n],
                             p.classes[i % n], slow, kMaxSlowdown)};
  }
  return std::nullopt;
}

}  // namespace

bool has_contention(const Problem& p) {
  return std::any_of(p.slow_permille.begin(), p.slow_permille.end(), [](int64_t s) { return s > 0; });
}

std::optional<Fault> find_problem_fault(const Problem& p) {
  if (p.jobs.empty()) return Fault{-1, -1, fmt::format("problem '{}' has no job", p.name)};
  if (auto fault = find_table_fault(p)) return fault;
  // Starting each task after the end of all others, at its slowest, is longer than any schedule needs: if
  // that fits 64 bits, every schedule does.
  int64_t worst = 0;
  for (int64_t slow : p.slow_permille) worst = std::max(worst, slow);
  __int128 horizon = 0;
  auto add = [&](__int128 ns) { return (horizon += ns) < INT64_MAX / 4; };
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
    if (t.contention != -1 && !index_ok(t.contention, p.classes.size()))
      return fault(-1, fmt::format("is of class {}, but there are {}", t.contention, p.classes.size()));
    if (t.duration_ns < 0)
      return fault(-1, fmt::format("takes {} ns, expected nothing below zero", t.duration_ns));
    if (t.release_ns < 0) return fault(-1, fmt::format("is released at {}, before time 0", t.release_ns));
    if (t.handover_ns < 0)
      return fault(-1,
                   fmt::format("is handed over within {} ns, expected nothing below zero", t.handover_ns));
    if (!add(static_cast<__int128>(t.duration_ns) * 1'000'000 / progress_per_ns(worst) + 1) ||
        !add(t.release_ns) || !add(t.handover_ns))
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

}  // namespace ds
