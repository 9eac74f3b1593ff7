#include "compiler/scheduling/variant_problem.h"

#include <algorithm>
#include <numeric>

#include "plans/traits.h"

namespace ds {
namespace {

TaskRole role_of(const Op& op) {
  if (!is_transfer(op)) return TaskRole::kCompute;
  return traits_of(op).buffer == BufferKind::kHidden ? TaskRole::kLoadE : TaskRole::kLoadKv;
}

}  // namespace

void apply_conditions(const Conditions& c, Problem& p) {
  auto load = [](const Task& t) { return t.role != TaskRole::kCompute; };
  int64_t loads = 0, loads_ns = 0;
  for (const Task& t : p.tasks)
    if (load(t)) ++loads, loads_ns += t.duration_ns;
  if (loads == 0) return;
  // Loads of a plan are about as long as each other: what one adds comes evenly while it runs.
  int64_t kernel_slow = c.kernel_slow_permille;
  if (loads_ns > 0) kernel_slow += std::min<int64_t>(1000 * loads * c.kernel_ns_per_load / loads_ns, 1000);
  if (kernel_slow > 0 || c.load_slow_permille > 0) {
    p.classes = {"kernel", "load"};
    p.slow_permille = {0, kernel_slow, c.load_slow_permille, 0};
  }
  for (Task& t : p.tasks) {
    t.release_ns = load(t) ? c.loads_ns : c.kernels_ns;
    t.handover_ns = load(t) ? c.load_handover_ns : c.kernel_handover_ns;
    if (!p.classes.empty()) t.contention = load(t) ? 1 : 0;
  }
}

Problem problem_of(const Variant& v, const Conditions& conditions) {
  Problem p;
  p.name = v.name;
  p.jobs = {Job{"request", 0}};
  for (const Stream& s : v.streams) p.streams.emplace_back(stream_kind_name(s.kind));
  for (const Op& op : v.ops) {
    Task t;
    t.name = op_label(op, v.chunks);
    t.role = role_of(op);
    t.stream = op.stream;
    t.duration_ns = op.duration_ns;
    t.after = op.waits;
    t.layer = op.layer;
    t.chunk = op.chunk;
    p.tasks.push_back(std::move(t));
  }
  apply_conditions(conditions, p);
  return p;
}

void apply_schedule(const Schedule& s, Variant& v) {
  for (auto [task, before] : s.barriers) v.ops[static_cast<size_t>(task)].waits.push_back(before);
  std::vector<int32_t> order(v.ops.size()), place(v.ops.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return s.start_ns[static_cast<size_t>(a)] < s.start_ns[static_cast<size_t>(b)];
  });
  for (size_t k = 0; k < order.size(); ++k) place[static_cast<size_t>(order[k])] = static_cast<int32_t>(k);
  std::vector<Op> ops;
  for (int32_t i : order) {
    Op op = std::move(v.ops[static_cast<size_t>(i)]);
    op.start_ns = s.start_ns[static_cast<size_t>(i)];
    op.duration_ns = s.end_ns[static_cast<size_t>(i)] - op.start_ns;
    for (int32_t& w : op.waits) w = place[static_cast<size_t>(w)];
    std::sort(op.waits.begin(), op.waits.end());
    op.waits.erase(std::unique(op.waits.begin(), op.waits.end()), op.waits.end());
    ops.push_back(std::move(op));
  }
  v.ops = std::move(ops);
  v.makespan_ns = s.cost_ns;
  v.lower_bound_ns = s.lower_bound_ns;
  v.proven_optimal = s.proven_optimal;
}

}  // namespace ds
