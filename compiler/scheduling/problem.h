// A scheduling problem: operations that hold a stream for their whole time, and what waits for what.
//
// Apart from each other, in this order: check() (is the problem sound?), a solver (schedulers.h), verify()
// (does a schedule keep every rule?). verify() shares nothing with the solvers. All times are integer
// nanoseconds.
//
// Contention: while a task of class a runs beside tasks of other classes on other streams, it makes progress
// more slowly: at the rate of the *worst* of them (slowdowns do not add up). `duration_ns` is its time
// alone; its end follows from all starts and ends, see progress_per_ns().
//
// Hand-over: where a task waits for one of another stream, some time passes between that one's end and its
// own start (a thread that sleeps is woken up, the last block is copied to the device).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "support/status.h"

namespace ds {

/// What a task is to the simple strategies, which order loads by kind and layer.
enum class TaskRole : uint8_t { kLoadE = 0, kLoadKv = 1, kCompute = 2 };

struct Task {
  std::string name;  // for messages
  TaskRole role = TaskRole::kCompute;
  int32_t stream = 0;
  int32_t job = 0;
  int64_t duration_ns = 0;       // alone; 0 is allowed: it holds its stream for no time
  int64_t release_ns = 0;        // earliest start, counted like start times; its job's arrival holds besides
  std::vector<int32_t> after;    // tasks that must have ended before it starts
  int32_t layer = 0, chunk = 0;  // where it lies in the layer x token plane: for the strategies that ask
  int32_t contention = -1;       // index into Problem::classes; -1: neither slows nor is slowed
  int64_t handover_ns = 0;  // from its end to the earliest start of those on other streams that wait for it
};

/// From the end of `before` to the earliest start of `next`, which waits for it.
inline int64_t handover(const Task& before, const Task& next) {
  return before.stream == next.stream ? 0 : before.handover_ns;
}

struct Job {
  std::string name;
  int64_t arrival_ns = 0;
};

/// kMakespan: the time at which the last job ends. kSum: the sum over jobs of end less arrival (mean TTFT
/// times jobs). A job ends when its last task does.
enum class Objective : uint8_t { kMakespan = 0, kSum = 1 };

struct Problem {
  std::string name;
  Objective objective = Objective::kMakespan;
  std::vector<std::string> streams;
  std::vector<Job> jobs;  // at least one
  std::vector<Task> tasks;
  std::vector<std::string> classes;  // of contention
  /// [a * classes + b]: what takes a task of class a 1000 ns alone takes it 1000 + this beside one of class
  /// b. 0 to kMaxSlowdown; empty where there are no classes.
  std::vector<int64_t> slow_permille;
};

constexpr int64_t kMaxSlowdown = 1'000'000;
/// A task's work is its duration in millionths of a ns; this much of it is done per ns at a slowdown. A task
/// ends at the first whole ns at which all its work is done. Rounded up: 6 ns at two thirds of the speed
/// are 9.
constexpr int64_t progress_per_ns(int64_t slow_permille) {
  return (1'000'000'000 + 999 + slow_permille) / (1000 + slow_permille);
}

/// Can any task of the problem slow another one?
bool has_contention(const Problem& problem);

/// How an optimum was proven: a schedule meets the lower bound, or a search has left nothing out.
enum class Proof : uint8_t { kNone = 0, kBound = 1, kSearch = 2 };

struct Schedule {
  std::vector<int64_t> start_ns;  // per task
  std::vector<int64_t> end_ns;    // per task; start + duration where nothing slows it
  /// Waits that the strategy adds to the problem's (task, task it waits for), so that streams which only know
  /// waits and their own order keep it: "no kernel before the last load".
  std::vector<std::pair<int32_t, int32_t>> barriers;
  int64_t cost_ns = 0;          // the objective's value
  int64_t lower_bound_ns = 0;   // no schedule of this problem costs less
  bool proven_optimal = false;  // cost_ns == lower_bound_ns
  Proof proof = Proof::kNone;   // not kNone exactly where proven_optimal
};

/// What is wrong, and at which tasks (-1: none).
struct Fault {
  int32_t task = -1, other = -1;
  std::string message;
};

/// Sound: indices, no cycle, times not below zero, sums that fit 64 bits. Solvers rely on it.
std::optional<Fault> find_problem_fault(const Problem& problem);
Status check(const Problem& problem);  // kInvalidArgument with that message

/// A schedule keeps every rule: arrivals, releases, waits, one task at a time per stream, ends that follow
/// from the slowdowns.
std::optional<Fault> find_schedule_fault(const Problem& problem, const std::vector<int64_t>& start_ns,
                                         const std::vector<int64_t>& end_ns);
/// That, and the stated cost is the real one, and it is not below the stated bound. kInternal.
Status verify(const Problem& problem, const Schedule& schedule);

/// The objective's value of a schedule.
int64_t cost_of(const Problem& problem, const std::vector<int64_t>& end_ns);

/// What no schedule can beat: see bounds.cpp.
int64_t lower_bound(const Problem& problem);

}  // namespace ds
