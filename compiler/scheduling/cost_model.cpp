#include "compiler/scheduling/cost_model.h"

#include <algorithm>
#include <cmath>
#include <tuple>

#include "plans/traits.h"
#include "plans/work.h"

namespace ds {
namespace {

double d(int64_t v) { return static_cast<double>(v); }

auto size_of(const LayerPoint& p) { return std::tuple(p.rows, p.query_rows, p.position); }

/// The time at which the roofline says `x`, between two points of the roofline and the clock.
double between(double x, double x0, double ns0, double x1, double ns1) {
  return x1 > x0 ? ns0 + (ns1 - ns0) * (x - x0) / (x1 - x0) : ns0;
}

}  // namespace

double CostModel::Rooflines::at(double rows, double position) const {
  double keys = position + rows, pairs = rows * keys - rows * (rows - 1) / 2;
  return std::max(per_row * rows + per_pair * pairs,
                  weights + memory_per_row * rows + memory_per_key * keys) +
         overhead;
}

CostModel::CostModel(MachineModel machine, const Shape& shape) : machine_(std::move(machine)), shape_(shape) {
  double element_ns = d(dtype_size(machine_.dtype)) * 1e9 / machine_.memory_bytes_per_s;
  double dm = d(shape.d_model), kv = d(shape.kv_row()), q = d(shape.heads * shape.head_dim);
  LayerWork none = layer_work(shape, {0, 1, 0}), all = layer_work(shape, {0, 1, 1});
  without_ = {.per_row = none.matmul * 1e9 / machine_.matmul_flops_per_s,
              .per_pair = 0,
              .overhead = d(machine_.op_overhead_ns),
              .weights = dm * kv * element_ns,
              .memory_per_row = (kv + 2 * dm) * element_ns,
              .memory_per_key = 0};
  with_queries_ = {.per_row = all.matmul * 1e9 / machine_.matmul_flops_per_s,
                   .per_pair = all.attention * 1e9 / machine_.attention_flops_per_s,
                   .overhead = d(machine_.op_overhead_ns),
                   .weights = (dm * kv + 2 * dm * q + 3 * dm * d(shape.ff)) * element_ns,
                   .memory_per_row = 2 * dm * element_ns,
                   .memory_per_key = kv * element_ns};
  fill(none_, false);
  fill(all_, true);
  for (const LayerPoint& p : machine_.layer_points) {
    measured_to_ = std::max(measured_to_, p.position + p.rows);
    if (p.query_rows > 0 && p.query_rows < p.rows) some_.push_back(p);
  }
  std::sort(some_.begin(), some_.end(),
            [](const LayerPoint& a, const LayerPoint& b) { return size_of(a) < size_of(b); });
}

void CostModel::fill(Table& table, bool queries) {
  table.queries = queries;
  std::vector<LayerPoint> points;
  for (const LayerPoint& p : machine_.layer_points)
    if (p.query_rows == (queries ? p.rows : 0)) points.push_back(p);
  std::sort(points.begin(), points.end(),
            [](const LayerPoint& a, const LayerPoint& b) { return size_of(a) < size_of(b); });
  for (size_t i = 0; i < points.size(); ++i) {
    for (size_t k = 0; k < i; ++k)  // a call that is no smaller takes no less
      if (points[k].position <= points[i].position) points[i].ns = std::max(points[i].ns, points[k].ns);
    double rows = d(points[i].rows), position = d(points[i].position);
    if (table.lines.empty() || table.lines.back().rows != rows)
      table.lines.push_back({rows, roofline(queries, rows, 0), i, i});
    table.lines.back().end = i + 1;
    table.points.push_back({position, roofline(queries, rows, position), d(points[i].ns)});
  }
}

Cost CostModel::on_line(const Table& table, const Line& line, double position) const {
  const Point *first = &table.points[line.begin], *last = &table.points[line.end - 1];
  // K and V alone cost the same at every position.
  bool beyond = table.queries && (position < first->position || position > last->position);
  if (position <= first->position || position >= last->position) {
    const Point& p = position <= first->position ? *first : *last;
    if (position == p.position) return {p.ns, CostSource::kMeasured};
    return {p.ns / p.roofline * roofline(table.queries, line.rows, position),
            beyond ? CostSource::kExtrapolated : CostSource::kInterpolated};
  }
  const Point* b = first + 1;  // lines are short
  while (b->position < position) ++b;
  if (b->position == position) return {b->ns, CostSource::kMeasured};
  const Point& a = b[-1];
  double x = roofline(table.queries, line.rows, position);
  return {between(x, a.roofline, a.ns, b->roofline, b->ns), CostSource::kInterpolated};
}

Cost CostModel::look_up(const Table& table, double rows, double position) const {
  auto b = std::lower_bound(table.lines.begin(), table.lines.end(), rows,
                            [](const Line& line, double r) { return line.rows < r; });
  if (b != table.lines.end() && b->rows == rows) return on_line(table, *b, position);
  if (b == table.lines.begin() || b == table.lines.end()) {
    bool above = b != table.lines.begin();
    const Line& line = above ? table.lines.back() : *b;
    // As many keys per row as the call has on average.
    double at = above ? position + (rows - line.rows) / 2 : position;
    Cost near = on_line(table, line, at);
    return {near.ns / roofline(table.queries, line.rows, at) * roofline(table.queries, rows, position),
            CostSource::kExtrapolated};
  }
  // How far from one line to the other does not depend on the position: so times grow with it as the lines
  // do.
  Cost low = on_line(table, b[-1], position), high = on_line(table, *b, position);
  return {between(roofline(table.queries, rows, 0), b[-1].roofline, low.ns, b->roofline,
                  std::max(low.ns, high.ns)),
          std::max({low.source, high.source, CostSource::kInterpolated})};
}

Cost CostModel::layer(int64_t rows, int64_t query_rows, int64_t position) const {
  if (query_rows == 0 || query_rows == rows) {
    const Table& table = query_rows == 0 ? none_ : all_;
    if (table.lines.empty()) return {roofline(table.queries, d(rows), d(position)), CostSource::kModelled};
    return look_up(table, d(rows), d(position));
  }
  auto measured =
      std::lower_bound(some_.begin(), some_.end(), std::tuple(rows, query_rows, position),
                       [](const LayerPoint& p, const std::tuple<int64_t, int64_t, int64_t>& size) {
                         return size_of(p) < size;
                       });
  if (measured != some_.end() && size_of(*measured) == std::tuple(rows, query_rows, position))
    return {d(measured->ns), CostSource::kMeasured};
  // K and V of all rows, and for the query rows the rest of a layer.
  int64_t begin = position + rows - query_rows;
  Cost kv = layer(rows, 0, position), whole = layer(query_rows, query_rows, begin),
       less = layer(query_rows, 0, begin);
  return {std::max(kv.ns + whole.ns - less.ns, kv.ns), std::max({kv.source, whole.source, less.source})};
}

Cost CostModel::align(int64_t rows, MapForm form, int64_t rank) const {
  const double flops = map_flops(form, shape_.d_model, rank);
  const AlignPoint* nearest = nullptr;
  for (const AlignPoint& p : machine_.align) {
    if (p.form == form && (!nearest || std::abs(p.rank - rank) < std::abs(nearest->rank - rank)))
      nearest = &p;
  }
  if (!nearest) {
    double moved = 2 * d(rows) * d(shape_.d_model) * d(dtype_size(machine_.dtype));
    return {(d(rows) * flops / machine_.matmul_flops_per_s + moved / machine_.memory_bytes_per_s) * 1e9 +
                d(machine_.op_overhead_ns),
            CostSource::kModelled};
  }
  double ns = d(nearest->ns) + nearest->row_ns * d(rows - 1);
  if (nearest->rank == rank) return {ns, CostSource::kInterpolated};
  return {ns * flops / map_flops(form, shape_.d_model, nearest->rank), CostSource::kExtrapolated};
}

int64_t CostModel::transfer_bytes(const Op& op, const TunedPoint& at) const {
  return op_rows(op, at.chunks, at.tokens, 0, at.share).rows * payload_row(op.payload, shape_) *
         dtype_size(machine_.dtype);
}

Cost CostModel::duration(const Op& op, const TunedPoint& at) const {
  auto [position, rows, query_rows] = op_rows(op, at.chunks, at.tokens, at.suffix, at.share);
  const MachineModel& m = machine_;
  switch (traits_of(op).cost) {
    case CostCurve::kLink: {
      // The store reads while the link delivers: the slower of the two decides.
      double bytes = d(transfer_bytes(op, at)), ns = bytes / d(std::max<int64_t>(at.rate, 1)) * 1e9;
      if (m.read_bytes_per_s > 0) ns = std::max(ns, d(m.read_latency_ns) + bytes / m.read_bytes_per_s * 1e9);
      return {ns, CostSource::kMeasured};
    }
    case CostCurve::kEmbed:
      if (m.embed_ns) return {d(*m.embed_ns) + m.embed_row_ns * d(rows - 1), CostSource::kInterpolated};
      return {2 * d(rows) * d(shape_.d_model) * d(dtype_size(m.dtype)) / m.memory_bytes_per_s * 1e9 +
                  d(m.op_overhead_ns),
              CostSource::kModelled};
    case CostCurve::kLayer:
      return rows > 0 ? layer(rows, query_rows, position) : Cost{0, CostSource::kMeasured};
    case CostCurve::kMap:
      return rows > 0 ? align(rows, at.map_form, at.map_rank) : Cost{0, CostSource::kMeasured};
    case CostCurve::kHead: {
      if (m.head_ns) return {d(*m.head_ns), CostSource::kMeasured};
      double weights = d(shape_.d_model) * d(shape_.vocab);
      return {std::max(2 * weights / m.matmul_flops_per_s,
                       weights * d(dtype_size(m.dtype)) / m.memory_bytes_per_s) *
                      1e9 +
                  d(m.op_overhead_ns),
              CostSource::kModelled};
    }
  }
  return {};
}

int64_t CostModel::duration_ns(const Op& op, const TunedPoint& at) const {
  // An absurd input (one byte per second) must not leave the integers.
  return std::llround(std::clamp(duration(op, at).ns, 1.0, 1e15));
}

Coverage CostModel::coverage(const Variant& variant, const TunedPoint& at) const {
  Coverage c;
  c.measured_to = measured_to_;
  for (const Op& op : variant.ops)
    if (!is_transfer(op)) c.add(duration(op, at));
  return c;
}

Coverage& Coverage::operator+=(const Coverage& other) {
  for (size_t i = 0; i < ns.size(); ++i) ns[i] += other.ns[i];
  measured_to = std::max(measured_to, other.measured_to);
  return *this;
}

std::string Coverage::note() const {
  double all = ns[0] + ns[1] + ns[2] + ns[3];
  if (all <= 0) return "";
  auto percent = [&](double part) { return 100 * part / all; };
  double extrapolated = percent(ns[2]), modelled = percent(ns[3]);
  std::string text = fmt::format("times: {:.0f} % from measured points", percent(ns[0] + ns[1]));
  if (extrapolated >= 0.5)
    text +=
        fmt::format(", {:.0f} % extrapolated beyond {} positions", extrapolated, format_count(measured_to));
  if (modelled >= 0.5) text += fmt::format(", {:.0f} % modelled without measurement", modelled);
  return text;
}

}  // namespace ds
