// Schedules against exhaustive searches that share nothing with the solvers: one over all orders, and one
// that steps through time a nanosecond at a time, for slowdowns.
#include <gtest/gtest.h>

#include <map>

#include "compiler/scheduling/schedulers.h"
#include "tests/unit/schedule_problems.h"

namespace ds {
namespace {

/// The optimum by trying every order of all tasks that keeps the waits, each started as early as that order
/// allows. Some such order gives an optimal schedule, since all costs only grow with start times.
class Orders {
 public:
  explicit Orders(const Problem& p) : p_(p), end_(p.tasks.size(), -1), free_(p.streams.size(), 0) {}
  int64_t optimum() {
    extend(0);
    return best_;
  }

 private:
  void extend(size_t placed) {
    if (placed == p_.tasks.size()) best_ = std::min(best_, cost_of(p_, end_));
    for (size_t i = 0; i < p_.tasks.size(); ++i) {
      const Task& t = p_.tasks[i];
      if (end_[i] >= 0) continue;
      int64_t& free = free_[static_cast<size_t>(t.stream)];
      int64_t was = free, at = std::max({t.release_ns, p_.jobs[static_cast<size_t>(t.job)].arrival_ns, free});
      bool ready = true;
      for (int32_t w : t.after) {
        ready = ready && end_[static_cast<size_t>(w)] >= 0;
        const Task& before = p_.tasks[static_cast<size_t>(w)];
        at =
            std::max(at, end_[static_cast<size_t>(w)] + (before.stream == t.stream ? 0 : before.handover_ns));
      }
      if (!ready) continue;
      free = end_[i] = at + t.duration_ns;
      extend(placed + 1);
      end_[i] = -1;
      free = was;
    }
  }

  const Problem& p_;
  std::vector<int64_t> end_, free_;
  int64_t best_ = INT64_MAX;
};

/// The optimum over all schedules that start tasks at whole nanoseconds, by stepping through time: at each
/// nanosecond every free stream starts any task that may start, or nothing.
class Clock {
 public:
  Clock(const Problem& p, int64_t horizon) : p_(p), horizon_(horizon) {
    start_.assign(p.tasks.size(), -1);
    end_.assign(p.tasks.size(), -1);
    work_.assign(p.tasks.size(), 0);
    for (size_t i = 0; i < p.tasks.size(); ++i) work_[i] = p.tasks[i].duration_ns * 1'000'000;
    for (const Task& t : p.tasks)
      last_release_ = std::max({last_release_, t.release_ns, p.jobs[static_cast<size_t>(t.job)].arrival_ns});
  }
  int64_t optimum() {
    at_time(0);
    return best_;
  }

 private:
  bool running(size_t i) const { return start_[i] >= 0 && end_[i] < 0; }

  bool may_start(size_t i, int64_t now) const {
    const Task& t = p_.tasks[i];
    if (start_[i] >= 0 || now < t.release_ns || now < p_.jobs[static_cast<size_t>(t.job)].arrival_ns)
      return false;
    for (int32_t w : t.after)
      if (end_[static_cast<size_t>(w)] < 0) return false;
    for (size_t k = 0; k < p_.tasks.size(); ++k)
      if (running(k) && p_.tasks[k].stream == t.stream) return false;
    return true;
  }

  void at_time(int64_t now) {
    // What all jobs cost at least that are not done yet; those that are done cost what they do.
    std::vector<int64_t> ends(p_.tasks.size()), job(p_.jobs.size(), 0);
    bool all = true, idle = true;
    for (size_t i = 0; i < p_.tasks.size(); ++i) {
      all = all && end_[i] >= 0;
      idle = idle && !running(i);
      ends[i] = end_[i] >= 0 ? end_[i] : now;
      int64_t& e = job[static_cast<size_t>(p_.tasks[i].job)];
      e = std::max(e, end_[i] >= 0 ? end_[i] : INT64_MAX);
    }
    if (cost_of(p_, ends) >= best_) return;
    if (all) best_ = cost_of(p_, ends);
    if (all || now > horizon_) return;
    // The same state later is no better once everything has been released.
    std::vector<int64_t> state = {now < last_release_ ? now : -1};
    for (size_t i = 0; i < p_.tasks.size(); ++i)
      state.insert(state.end(), {start_[i] < 0 ? -1 : end_[i] < 0 ? 0 : 1, work_[i]});
    if (p_.objective == Objective::kSum) state.insert(state.end(), job.begin(), job.end());
    auto [at, fresh] = seen_.insert({state, now});
    if (!fresh && at->second <= now) return;
    at->second = now;
    choose(now, 0, now < last_release_ || !idle);
  }

  /// Streams `s` and later still have to choose at this time.
  /// `pass_on`: something will have changed by the next nanosecond.
  void choose(int64_t now, size_t s, bool pass_on) {
    if (s == p_.streams.size()) {
      if (pass_on) pass(now);
      return;
    }
    choose(now, s + 1, pass_on);
    for (size_t i = 0; i < p_.tasks.size(); ++i) {
      if (static_cast<size_t>(p_.tasks[i].stream) != s || !may_start(i, now)) continue;
      start_[i] = now;
      if (work_[i] == 0) {
        end_[i] = now;
        choose(now, 0, true);  // its end may let others start, here or on another stream
      } else {
        choose(now, s + 1, true);
      }
      start_[i] = end_[i] = -1;
    }
  }

  void pass(int64_t now) {
    std::vector<int64_t> work = work_, end = end_;
    for (size_t a = 0; a < p_.tasks.size(); ++a) {
      if (!running(a)) continue;
      int64_t slow = 0;
      for (size_t b = 0; b < p_.tasks.size(); ++b) {
        int32_t ca = p_.tasks[a].contention, cb = p_.tasks[b].contention;
        if (a == b || !running(b) || ca < 0 || cb < 0) continue;
        slow = std::max(
            slow, p_.slow_permille[static_cast<size_t>(ca) * p_.classes.size() + static_cast<size_t>(cb)]);
      }
      work[a] = std::max<int64_t>(0, work_[a] - (1'000'000'000 + 999 + slow) / (1000 + slow));
      if (work[a] == 0) end[a] = now + 1;
    }
    std::swap(work, work_);
    std::swap(end, end_);
    at_time(now + 1);
    std::swap(work, work_);
    std::swap(end, end_);
  }

  const Problem& p_;
  int64_t horizon_;
  std::vector<int64_t> start_, end_, work_;
  std::map<std::vector<int64_t>, int64_t> seen_;  // states, when first
  int64_t last_release_ = 0;
  int64_t best_ = INT64_MAX;
};

struct Tally {
  int problems = 0, optimal = 0, proven = 0;
};

void compare(const Problem& p, int64_t optimum, Tally& tally) {
  ++tally.problems;
  auto s = schedule(p, "best");  // verifies
  ASSERT_TRUE(s.ok()) << s.status().message();
  ASSERT_LE(lower_bound(p), optimum);
  ASSERT_LE(s->lower_bound_ns, optimum);
  ASSERT_GE(s->cost_ns, optimum);
  if (s->proven_optimal) {
    ASSERT_EQ(s->cost_ns, optimum);
  }
  tally.optimal += s->cost_ns == optimum;
  tally.proven += s->proven_optimal;
}

TEST(ScheduleOracle, OrdersOfSmallProblems) {
  std::mt19937 rng(7);
  Tally tally;
  for (int round = 0; round < 1600; ++round) {
    RandomKind kind{.tasks = 3 + round % 6, .jobs = 1 + round / 6 % 3, .streams = 2 + round % 2};
    kind.objective = round % 4 < 2 ? Objective::kMakespan : Objective::kSum;
    Problem p = random_problem(rng, kind);
    SCOPED_TRACE(fmt::format("round {}", round));
    ASSERT_NO_FATAL_FAILURE(compare(p, Orders(p).optimum(), tally));
  }
  // Such problems are searched to the end, all of them.
  EXPECT_EQ(tally.proven, tally.problems);
}

TEST(ScheduleOracle, OrdersOfSmallProblemsWithHandovers) {
  std::mt19937 rng(11);
  Tally tally;
  for (int round = 0; round < 600; ++round) {
    RandomKind kind{.tasks = 3 + round % 6, .jobs = 1 + round / 6 % 3, .streams = 2 + round % 2};
    kind.objective = round % 4 < 2 ? Objective::kMakespan : Objective::kSum;
    kind.handovers = true;
    Problem p = random_problem(rng, kind);
    SCOPED_TRACE(fmt::format("round {}", round));
    ASSERT_NO_FATAL_FAILURE(compare(p, Orders(p).optimum(), tally));
  }
  EXPECT_EQ(tally.proven, tally.problems);
}

TEST(ScheduleOracle, TimesOfSmallProblemsWithSlowdowns) {
  std::mt19937 rng(9);
  Tally tally;
  for (int round = 0; round < 400; ++round) {
    RandomKind kind{.tasks = 3 + round % 3, .jobs = 1 + round % 2, .longest = 3, .contention = true};
    kind.streams = 2 + round % 2;
    kind.objective = round % 4 < 2 ? Objective::kMakespan : Objective::kSum;
    Problem p = random_problem(rng, kind);
    SCOPED_TRACE(fmt::format("round {}", round));
    ASSERT_NO_FATAL_FAILURE(compare(p, Clock(p, 60).optimum(), tally));
  }
  // Nothing is searched, and idling on purpose never tried: not all, but most.
  EXPECT_GT(tally.optimal, tally.problems * 8 / 10);
  EXPECT_GT(tally.proven, tally.problems / 2);
}

/// Every change of a right schedule that breaks a rule is seen.
TEST(ScheduleOracle, VerifySeesEveryMutation) {
  std::mt19937 rng(10);
  int shifted = 0, swapped = 0, ends = 0;
  for (int round = 0; round < 200; ++round) {
    RandomKind kind{.tasks = 8, .jobs = 1 + round % 2, .contention = round % 4 == 1};
    kind.handovers = round % 5 == 0;
    Problem p = random_problem(rng, kind);
    auto s = schedule(p, "best");
    ASSERT_TRUE(s.ok()) << s.status().message();
    ASSERT_TRUE(verify(p, *s).ok());
    auto wrong = [&](const Schedule& bad) { return !verify(p, bad).ok(); };
    for (size_t i = 0; i < p.tasks.size(); ++i) {
      // The end alone; the start alone; both, to before the job arrives, a wait has ended, or time 0.
      Schedule bad = *s;
      ++bad.end_ns[i];
      EXPECT_TRUE(wrong(bad));
      bad = *s;
      --bad.end_ns[i];
      EXPECT_TRUE(wrong(bad));
      if (p.tasks[i].duration_ns > 0 && !has_contention(p)) {
        bad = *s;
        ++bad.start_ns[i];
        EXPECT_TRUE(wrong(bad));
        ++ends;
      }
      int64_t earliest = p.jobs[static_cast<size_t>(p.tasks[i].job)].arrival_ns;
      earliest = std::max(earliest, p.tasks[i].release_ns);
      for (int32_t w : p.tasks[i].after) {
        const Task& before = p.tasks[static_cast<size_t>(w)];
        earliest = std::max(earliest, s->end_ns[static_cast<size_t>(w)] +
                                          (before.stream == p.tasks[i].stream ? 0 : before.handover_ns));
      }
      bad = *s;
      bad.start_ns[i] = earliest - 1;
      bad.end_ns[i] += bad.start_ns[i] - s->start_ns[i];
      EXPECT_TRUE(wrong(bad)) << p.tasks[i].name;
      ++shifted;
      // Two tasks of a stream at once.
      for (size_t k = 0; k < i; ++k) {
        if (p.tasks[k].stream != p.tasks[i].stream || p.tasks[k].duration_ns == 0 ||
            p.tasks[i].duration_ns == 0)
          continue;
        bad = *s;
        bad.start_ns[i] = s->start_ns[k];
        bad.end_ns[i] = s->start_ns[k] + (s->end_ns[i] - s->start_ns[i]);
        EXPECT_TRUE(wrong(bad));
        ++swapped;
      }
    }
    Schedule bad = *s;
    --bad.cost_ns;
    EXPECT_TRUE(wrong(bad));
    bad = *s;
    bad.lower_bound_ns = bad.cost_ns + 1;
    bad.proven_optimal = false;
    bad.proof = Proof::kNone;
    EXPECT_TRUE(wrong(bad));
    bad = *s;
    bad.proven_optimal = !bad.proven_optimal;
    EXPECT_TRUE(wrong(bad));
    bad = *s;
    bad.proof = bad.proven_optimal ? Proof::kNone : Proof::kSearch;
    EXPECT_TRUE(wrong(bad));
    bad = *s;
    bad.start_ns.pop_back();
    EXPECT_TRUE(wrong(bad));
  }
  EXPECT_GT(shifted, 1000);
  EXPECT_GT(swapped, 1000);
  EXPECT_GT(ends, 500);
}

}  // namespace
}  // namespace ds
