// How long `best` takes, with its bound, on requests of real size; the counters say how good the result is.
#include <benchmark/benchmark.h>

#include "compiler/scheduling/schedulers.h"
#include "tests/unit/schedule_problems.h"

namespace ds {
namespace {

/// Layers first to last - 1 of `layers` are recomputed, in `chunks`; loads take load_us each, kernels from
/// 100 us upward.
void BM_Grid(benchmark::State& state) {
  Problem p = grid_problem({.layers = static_cast<int>(state.range(0)),
                            .chunks = static_cast<int>(state.range(1)),
                            .first = static_cast<int>(state.range(2)),
                            .last = static_cast<int>(state.range(3)),
                            .load_ns = state.range(4) * 1000});
  for (auto _ : state) {
    auto s = schedule(p, "best");
    if (!s.ok()) return state.SkipWithError(s.status().message().c_str());
    state.counters["tasks"] = static_cast<double>(p.tasks.size());
    state.counters["gap_percent"] =
        100.0 * static_cast<double>(s->cost_ns - s->lower_bound_ns) / static_cast<double>(s->lower_bound_ns);
  }
}
BENCHMARK(BM_Grid)
    ->ArgNames({"layers", "chunks", "first", "last", "load_us"})
    ->Args({80, 16, 16, 48, 50})
    ->Args({80, 16, 16, 48, 400})
    ->Args({80, 16, 48, 80, 100})
    ->Args({1000, 64, 100, 600, 50})
    ->Unit(benchmark::kMillisecond);

/// Small problems of several requests, most of which only the search can prove.
void BM_Requests(benchmark::State& state) {
  std::mt19937 rng(5);
  std::vector<Problem> problems;
  for (int k = 0; k < 40; ++k) {
    problems.push_back(random_problem(
        rng,
        {.tasks = static_cast<int>(state.range(0)), .jobs = 3, .objective = Objective::kSum, .longest = 50}));
  }
  double proven = 0;
  for (auto _ : state) {
    proven = 0;
    for (const Problem& p : problems) proven += schedule(p, "best")->proven_optimal ? 1 : 0;
  }
  state.counters["proven"] = proven;
  state.counters["of"] = static_cast<double>(problems.size());
}
BENCHMARK(BM_Requests)->ArgName("tasks")->Arg(12)->Arg(24)->Arg(48)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace ds
