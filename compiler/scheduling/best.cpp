#include <algorithm>
#include <numeric>
#include <optional>

#include "compiler/scheduling/bounds.h"
#include "compiler/scheduling/branch_and_bound.h"
#include "compiler/scheduling/local_search.h"
#include "compiler/scheduling/ranks.h"
#include "compiler/scheduling/schedulers.h"

namespace ds {
namespace {

// Work limits, in tasks visited, so that a result never depends on how fast the machine is. Together some
// tens of milliseconds.
constexpr int64_t kOrderVisits = 1'000'000;
constexpr int64_t kSearchVisits = 1'000'000;
/// Above what the busiest stream needs: no other order is tried where many problems are compared.
constexpr double kGoodEnough = 0.002;

/// The problem backward in time, without releases and slowdowns: only orders are taken from it.
Problem reversed(const Problem& p) {
  Problem r{.name = p.name, .streams = p.streams, .jobs = p.jobs, .tasks = std::vector<Task>(p.tasks.size())};
  for (Job& j : r.jobs) j.arrival_ns = 0;
  for (size_t i = 0; i < p.tasks.size(); ++i) {
    const Task& t = p.tasks[i];
    r.tasks[i].stream = t.stream;
    r.tasks[i].job = t.job;
    r.tasks[i].duration_ns = t.duration_ns;
    r.tasks[i].handover_ns = t.handover_ns;
    for (int32_t w : t.after) r.tasks[static_cast<size_t>(w)].after.push_back(static_cast<int32_t>(i));
  }
  return r;
}

/// Loads ranked by one, kernels by the other.
std::vector<int64_t> mix(const Problem& p, const std::vector<int64_t>& loads,
                         const std::vector<int64_t>& kernels) {
  std::vector<int64_t> rank(p.tasks.size());
  for (size_t i = 0; i < p.tasks.size(); ++i)
    rank[i] = p.tasks[i].role == TaskRole::kCompute ? kernels[i] : loads[i];
  return rank;
}

std::vector<std::vector<int32_t>> job_orders(const Problem& p) {
  std::vector<std::vector<int32_t>> orders = {jobs_by_arrival(p)};
  if (p.jobs.size() < 2) return orders;
  std::vector<int64_t> work(p.jobs.size(), 0);
  for (const Task& t : p.tasks) work[static_cast<size_t>(t.job)] += t.duration_ns;
  orders.push_back(orders[0]);
  std::stable_sort(orders[1].begin(), orders[1].end(), [&](int32_t a, int32_t b) {
    return work[static_cast<size_t>(a)] < work[static_cast<size_t>(b)];
  });
  return orders;
}

class Best {
 public:
  Best(const Problem& p, bool thorough)
      : p_(p), thorough_(thorough), bound_(thorough ? lower_bound(p) : 0), forward_(p) {}

  Result<Schedule> run() {
    if (!thorough_) simple();
    // Where jobs wait for each other, and the simple orders get stuck, others do not.
    if (thorough_ || !found_) families();
    bool searched = false;
    for (int round = 0; thorough_ && round < 4 && found_ && !done(); ++round)
      if (!there_and_back()) break;
    if (thorough_ && found_ && !searched && !done()) {
      improve_orders(p_, bound_, kOrderVisits, times_, cost_);
      if (!done() && p_.tasks.size() <= kSearchTasks) searched = search();
    }
    if (!found_) return error(Code::kInternal, "no schedule for '{}': {}", p_.name, forward_.stuck());
    Schedule s;
    s.start_ns = std::move(times_.start_ns);
    s.end_ns = std::move(times_.end_ns);
    s.lower_bound_ns = searched ? cost_ : bound_;
    if (thorough_ && cost_ == s.lower_bound_ns) s.proof = cost_ == bound_ ? Proof::kBound : Proof::kSearch;
    return s;
  }

 private:
  bool done() const { return found_ && cost_ == bound_; }

  bool offer(const Priorities& by) {
    if (!forward_.run(by, trial_)) return false;
    int64_t cost = cost_of(p_, trial_.end_ns);
    if (found_ && cost >= cost_) return false;
    found_ = true;
    cost_ = cost;
    std::swap(times_, trial_);
    return true;
  }

  /// e-first, and kv-first where that leaves something to be wished for.
  void simple() {
    std::vector<int32_t> turns = job_turns(p_, jobs_by_arrival(p_));
    if (offer({rank_loads(p_, TaskRole::kLoadE), turns, {}}) &&
        static_cast<double>(cost_) <= static_cast<double>(busy_bound(p_)) * (1 + kGoodEnough))
      return;
    offer({rank_loads(p_, TaskRole::kLoadKv), turns, {}});
  }

  void families() {
    backward_problem_ = reversed(p_);
    backward_.emplace(backward_problem_);
    std::vector<int64_t> e_first = rank_loads(p_, TaskRole::kLoadE),
                         kv_first = rank_loads(p_, TaskRole::kLoadKv);
    std::vector<int64_t> by_tail = rank_by_descending(tails(p_));
    // Backward in time; knows, unlike tails, that kernels share a stream.
    std::vector<int64_t> by_reverse = e_first;
    if (backward_->run({rank_by_descending(tails(backward_problem_)), {}, {}}, trial_))
      by_reverse = rank_by_descending(trial_.end_ns);
    std::vector<int64_t> ranks[] = {
        e_first, mix(p_, e_first, by_tail), kv_first,   mix(p_, kv_first, by_tail),
        by_tail, mix(p_, by_tail, e_first), by_reverse, mix(p_, by_reverse, by_tail)};
    auto orders = job_orders(p_);
    for (auto& rank : ranks) {
      for (const auto& jobs : orders) {
        if (done()) return;
        offer({rank, p_.jobs.size() > 1 ? job_turns(p_, jobs) : std::vector<int32_t>(), {}});
      }
      if (p_.jobs.size() > 1 && !done()) offer({std::move(rank), {}, {}});
    }
  }

  /// Everything as late as the best schedule's order allows, then as early as the order found by that allows.
  bool there_and_back() {
    if (!backward_->run({rank_by_descending(times_.end_ns), {}, {}}, trial_)) return false;
    return offer({rank_by_descending(trial_.end_ns), {}, {}});
  }

  /// True: nothing costs less than what has been found.
  bool search() {
    if (has_contention(p_)) return false;
    auto nodes = kSearchVisits / static_cast<int64_t>(p_.tasks.size());
    SearchResult r = branch_and_bound(p_, found_ ? cost_ : INT64_MAX, bound_, nodes);
    if (r.found) {
      found_ = true;
      cost_ = r.cost;
      times_ = std::move(r.times);
    }
    return r.exhausted;
  }

  const Problem& p_;
  bool thorough_;
  int64_t bound_;
  Dispatcher forward_;
  Problem backward_problem_;
  std::optional<Dispatcher> backward_;
  Times times_, trial_;
  int64_t cost_ = 0;
  bool found_ = false;
};

}  // namespace

Result<Schedule> schedule_best(const Problem& p, bool thorough) { return Best(p, thorough).run(); }

}  // namespace ds
