// A scheduling problem: operations that hold a stream for their whole time, and what waits for what.
//
// Apart from each other, in this order: check() (is the problem sound?), a solver (schedulers.h), verify()
// (does a schedule keep every rule?). verify() shares nothing with the solvers. All times are integer
// nanoseconds.
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
  int64_t duration_ns = 0;     // 0 is allowed: it holds its stream for no time
  int64_t release_ns = 0;      // earliest start, counted like start times; its job's arrival holds besides
  std::vector<int32_t> after;  // tasks that must have ended before it starts
};

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
};

struct Schedule {
  std::vector<int64_t> start_ns;  // per task
  /// Waits that the strategy adds to the problem's (task, task it waits for), so that streams which only know
  /// waits and their own order keep it: "no kernel before the last load".
  std::vector<std::pair<int32_t, int32_t>> barriers;
  int64_t cost_ns = 0;          // the objective's value
  int64_t lower_bound_ns = 0;   // no schedule of this problem costs less
  bool proven_optimal = false;  // cost_ns == lower_bound_ns
};

/// What is wrong, and at which tasks (-1: none).
struct Fault {
  int32_t task = -1, other = -1;
  std::string message;
};

/// Sound: indices, no cycle, times not below zero, sums that fit 64 bits. Solvers rely on it.
std::optional<Fault> find_problem_fault(const Problem& problem);
Status check(const Problem& problem);  // kInvalidArgument with that message

/// A schedule keeps every rule: arrivals, releases, waits, one task at a time per stream.
std::optional<Fault> find_schedule_fault(const Problem& problem, const std::vector<int64_t>& start_ns);
/// That, and the stated cost is the real one, and it is not below the stated bound. kInternal.
Status verify(const Problem& problem, const Schedule& schedule);

/// The objective's value of a schedule.
int64_t cost_of(const Problem& problem, const std::vector<int64_t>& start_ns);

/// What no schedule can beat: see bounds.cpp.
int64_t lower_bound(const Problem& problem);

}  // namespace ds
