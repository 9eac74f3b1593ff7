// Scheduling problems for tests: the paper's figure, random ones, and grids as large as real requests.
#pragma once

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "compiler/scheduling/problem.h"

namespace ds {

/// Figure 13, layers counted from 1: A recomputes 4-10 and arrives at 0, B recomputes 1-3 and arrives at 2.
/// E takes `e_ns`, all else 1.
inline Problem figure_13(bool whole_entry, int64_t e_ns = 1) {
  Problem p{.name = "figure 13", .objective = Objective::kSum, .streams = {"link", "compute"}};
  auto job = [&](std::string name, int64_t arrival, int first, int last) {
    auto j = static_cast<int32_t>(p.jobs.size());
    p.jobs.push_back({name, arrival});
    auto add = [&](TaskRole role, int layer, std::vector<int32_t> after) {
      p.tasks.push_back({.name = fmt::format("{} {}", name, layer),
                         .role = role,
                         .stream = role == TaskRole::kCompute,
                         .job = j,
                         .duration_ns = role == TaskRole::kLoadE ? e_ns : 1,
                         .after = std::move(after),
                         .layer = layer});
      return static_cast<int32_t>(p.tasks.size()) - 1;
    };
    std::vector<int32_t> before;
    if (first > 1) before = {add(TaskRole::kLoadE, first, {})};
    for (int l = 1; l <= 10; ++l)
      if (whole_entry || l < first || l > last) add(TaskRole::kLoadKv, l, {});
    for (int l = first; l <= last; ++l) before = {add(TaskRole::kCompute, l, before)};
  };
  job("A", 0, 4, 10);
  job("B", 2, 1, 3);
  return p;
}

struct RandomKind {
  int tasks = 7, jobs = 1;
  Objective objective = Objective::kMakespan;
  int streams = 2;      // the last one computes
  int64_t longest = 5;  // duration
  bool contention = false, handovers = false;
};

inline Problem random_problem(std::mt19937& rng, const RandomKind& kind) {
  auto draw = [&](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(rng);
  };
  Problem p{.name = "random", .objective = kind.objective};
  for (int s = 0; s < kind.streams; ++s)
    p.streams.push_back(s + 1 == kind.streams ? "compute" : s == 0 ? "link" : "copy");
  for (int j = 0; j < kind.jobs; ++j) p.jobs.push_back({fmt::format("job {}", j), draw(0, 6)});
  if (kind.contention) {
    p.classes = {"copy", "gemm", "norm"};
    for (int i = 0; i < 9; ++i) p.slow_permille.push_back(draw(0, 2) == 0 ? 0 : draw(1, 2000));
  }
  for (int i = 0; i < kind.tasks; ++i) {
    Task t{.name = fmt::format("t{}", i),
           .job = static_cast<int32_t>(draw(0, kind.jobs - 1)),
           .duration_ns = draw(0, kind.longest),
           .release_ns = draw(0, 3) == 0 ? draw(0, 8) : 0,
           .layer = static_cast<int32_t>(draw(0, 2)),
           .chunk = static_cast<int32_t>(draw(0, 2))};
    t.role = static_cast<TaskRole>(draw(0, 2));
    t.stream = t.role == TaskRole::kCompute ? kind.streams - 1
                                            : static_cast<int32_t>(draw(0, std::max(0, kind.streams - 2)));
    if (kind.contention) t.contention = static_cast<int32_t>(draw(-1, 2));
    if (kind.handovers) t.handover_ns = draw(0, 3);
    for (int b = 0; b < i; ++b) {
      const Task& before = p.tasks[static_cast<size_t>(b)];
      bool load_after_kernel = t.role != TaskRole::kCompute && before.role == TaskRole::kCompute;
      if (before.job == t.job && !load_after_kernel && draw(0, 2) == 0) t.after.push_back(b);
    }
    p.tasks.push_back(std::move(t));
  }
  return p;
}

/// A request over layers x chunks: layers first to last - 1 are recomputed chunk by chunk from E of layer
/// `first` (kernel (l, c) waits for (l - 1, c) and (l, c - 1)), KV of all others is loaded, the suffix goes
/// up through all layers, then the head.
struct Grid {
  int layers = 80, chunks = 16, first = 16, last = 48;
  int64_t load_ns = 50'000, kernel_ns = 100'000, suffix_ns = 30'000;
};

inline Problem grid_problem(const Grid& g) {
  Problem p{.name = "grid", .streams = {"link", "compute"}, .jobs = {{"request", 0}}};
  p.tasks.reserve(static_cast<size_t>(g.layers) * static_cast<size_t>(g.chunks + 1) + 64);
  auto add = [&](TaskRole role, int layer, int chunk, int64_t ns, std::vector<int32_t> after) {
    p.tasks.push_back({.name = fmt::format("{} {}.{}", static_cast<int>(role), layer, chunk),
                       .role = role,
                       .stream = role == TaskRole::kCompute,
                       .duration_ns = ns,
                       .after = std::move(after),
                       .layer = layer,
                       .chunk = chunk});
    return static_cast<int32_t>(p.tasks.size()) - 1;
  };
  std::vector<std::vector<int32_t>> needs(static_cast<size_t>(g.layers));  // of each suffix kernel
  std::vector<int32_t> below;                                              // kernel or E of each chunk
  for (int c = 0; c < g.chunks && g.first < g.last; ++c)
    below.push_back(add(TaskRole::kLoadE, g.first, c, g.load_ns, {}));
  for (int l = 0; l < g.layers; ++l) {
    if (l >= g.first && l < g.last) continue;
    for (int c = 0; c < g.chunks; ++c)
      needs[static_cast<size_t>(l)].push_back(add(TaskRole::kLoadKv, l, c, g.load_ns, {}));
  }
  for (int l = g.first; l < g.last; ++l) {
    for (int c = 0; c < g.chunks; ++c) {
      int32_t& b = below[static_cast<size_t>(c)];
      std::vector<int32_t> after = {b};
      if (c > 0) after.push_back(below[static_cast<size_t>(c) - 1]);
      b = add(TaskRole::kCompute, l, c, g.kernel_ns * (8 + c) / 8, after);
    }
    needs[static_cast<size_t>(l)] = {below.back()};
  }
  int32_t suffix = -1;
  for (int l = 0; l < g.layers; ++l) {
    std::vector<int32_t> after = needs[static_cast<size_t>(l)];
    if (suffix >= 0) after.push_back(suffix);
    suffix = add(TaskRole::kCompute, l, g.chunks, g.suffix_ns, after);
  }
  add(TaskRole::kCompute, g.layers, g.chunks, g.suffix_ns, {suffix});
  return p;
}

}  // namespace ds
