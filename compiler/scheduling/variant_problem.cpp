#include "compiler/scheduling/variant_problem.h"

#include <algorithm>
#include <numeric>

#include "plans/traits.h"

namespace ds {
namespace {

TaskRole role_of(OpKind kind) {
  switch (traits_of(kind).payload) {
    case Payload::kNone:
      return TaskRole::kCompute;
    case Payload::kE:
      return TaskRole::kLoadE;
    case Payload::kKv:
      return TaskRole::kLoadKv;
  }
  return TaskRole::kCompute;
}

}  // namespace

Problem problem_of(const Variant& v, const Releases& releases) {
  const bool loads = std::any_of(v.ops.begin(), v.ops.end(), is_transfer);
  Problem p;
  p.name = v.name;
  p.jobs = {Job{"request", 0}};
  for (const Stream& s : v.streams) p.streams.emplace_back(stream_kind_name(s.kind));
  for (const Op& op : v.ops) {
    Task t;
    t.name = op_label(op, v.chunks);
    t.role = role_of(op.kind);
    t.stream = op.stream;
    t.duration_ns = op.duration_ns;
    t.release_ns = !loads ? 0 : t.role == TaskRole::kCompute ? releases.kernels_ns : releases.loads_ns;
    t.after = op.waits;
    t.layer = op.layer;
    t.chunk = op.chunk;
    p.tasks.push_back(std::move(t));
  }
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
