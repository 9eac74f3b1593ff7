#include "compiler/scheduling/cost_model.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "plans/work.h"

namespace ds {
namespace {

double d(int64_t v) { return static_cast<double>(v); }

enum class QueryKind { kNone, kSome, kAll };
QueryKind kind_of(int64_t rows, int64_t query_rows) {
  return query_rows == 0 ? QueryKind::kNone : query_rows == rows ? QueryKind::kAll : QueryKind::kSome;
}

}  // namespace

double CostModel::roofline_ns(int64_t rows, int64_t query_rows, int64_t position) const {
  const Shape& s = shape_;
  double q_width = d(s.heads * s.head_dim), kv_width = d(s.kv_row());
  LayerWork work = layer_work(s, {position, rows, query_rows});
  double weights = d(s.d_model) * kv_width;
  if (query_rows > 0) weights += 2 * d(s.d_model) * q_width + 3 * d(s.d_model) * d(s.ff);
  double cache = query_rows > 0 ? d(position + rows) * kv_width : d(rows) * kv_width;
  double bytes = (weights + cache + 2 * d(rows) * d(s.d_model)) * d(dtype_size(machine_.dtype));
  double compute =
      work.matmul / machine_.matmul_flops_per_s + work.attention / machine_.attention_flops_per_s;
  return std::max(compute, bytes / machine_.memory_bytes_per_s) * 1e9 + d(machine_.op_overhead_ns);
}

double CostModel::layer_ns(int64_t rows, int64_t query_rows, int64_t position) const {
  QueryKind kind = kind_of(rows, query_rows);
  std::vector<LayerPoint> points;
  for (const LayerPoint& p : machine_.layer_points)
    if (kind_of(p.rows, p.query_rows) == kind) points.push_back(p);
  if (points.empty()) {
    // A call with some queries is K and V of all rows, and for the query rows the rest of a layer.
    if (kind == QueryKind::kSome && !machine_.layer_points.empty()) {
      int64_t begin = position + rows - query_rows;
      return std::max(1.0, layer_ns(rows, 0, position) + layer_ns(query_rows, query_rows, begin) -
                               layer_ns(query_rows, 0, begin));
    }
    return roofline_ns(rows, query_rows, position);
  }
  // Of each number of rows, the point whose position (then whose number of queries) is nearest.
  std::sort(points.begin(), points.end(), [&](const LayerPoint& a, const LayerPoint& b) {
    auto key = [&](const LayerPoint& p) {
      return std::tuple(p.rows, std::llabs(p.position - position), std::llabs(p.query_rows - query_rows),
                        p.position, p.query_rows);
    };
    return key(a) < key(b);
  });
  points.erase(std::unique(points.begin(), points.end(),
                           [](const LayerPoint& a, const LayerPoint& b) { return a.rows == b.rows; }),
               points.end());
  auto ratio = [&](const LayerPoint& p) { return d(p.ns) / roofline_ns(p.rows, p.query_rows, p.position); };
  double r = 0;
  if (rows <= points.front().rows) {
    r = ratio(points.front());
  } else if (rows >= points.back().rows) {
    r = ratio(points.back());
  } else {
    auto above =
        std::find_if(points.begin(), points.end(), [&](const LayerPoint& p) { return p.rows >= rows; });
    const LayerPoint &b = *above, &a = *(above - 1);
    double t = d(rows - a.rows) / d(b.rows - a.rows);
    r = ratio(a) + t * (ratio(b) - ratio(a));
  }
  return r * roofline_ns(rows, query_rows, position);
}

int64_t CostModel::transfer_bytes(const Op& op, const TunedPoint& at) const {
  return op_rows(op, at.chunks, at.tokens, 0).rows *
         (op.kind == OpKind::kTransferE ? shape_.e_row() : shape_.kv_row()) * dtype_size(machine_.dtype);
}

int64_t CostModel::duration_ns(const Op& op, const TunedPoint& at) const {
  auto [position, rows, query_rows] = op_rows(op, at.chunks, at.tokens, at.suffix);
  double ns = 0;
  switch (op.kind) {
    case OpKind::kTransferE:
    case OpKind::kTransferKv:
      ns = d(transfer_bytes(op, at)) / d(std::max<int64_t>(at.rate, 1)) * 1e9;
      break;
    case OpKind::kEmbed:
      ns = 2 * d(rows) * d(shape_.d_model) * d(dtype_size(machine_.dtype)) / machine_.memory_bytes_per_s *
               1e9 +
           d(machine_.op_overhead_ns);
      break;
    case OpKind::kRecompute:
    case OpKind::kSuffix:
    case OpKind::kPrefill:
      ns = layer_ns(rows, query_rows, position);
      break;
    case OpKind::kHead: {
      double weights = d(shape_.d_model) * d(shape_.vocab);
      ns = machine_.head_ns
               ? d(*machine_.head_ns)
               : std::max(2 * weights / machine_.matmul_flops_per_s,
                          weights * d(dtype_size(machine_.dtype)) / machine_.memory_bytes_per_s) *
                         1e9 +
                     d(machine_.op_overhead_ns);
      break;
    }
  }
  // An absurd input (one byte per second) must not leave the integers.
  return std::llround(std::clamp(ns, 1.0, 1e15));
}

}  // namespace ds
