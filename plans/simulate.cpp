#include "plans/simulate.h"

#include <algorithm>
#include <cmath>

#include "plans/critical_path.h"
#include "plans/limits.h"
#include "plans/traits.h"
#include "plans/work.h"

namespace ds {
namespace {

int64_t element_bytes(const Plan& plan) { return plan.dtype == "f32" ? 4 : 2; }

double wire_ns(int64_t bytes, int64_t rate) {
  return static_cast<double>(bytes) * 1e9 / static_cast<double>(rate);
}

/// What an op's duration is taken to be in proportion to.
double work(const Plan& plan, const Variant& v, const Op& op, const OperatingPoint& at) {
  OpRows rows = op_rows(op, v.chunks, at.tokens, at.suffix, v.select_share);
  auto d = static_cast<double>(plan.shape.d_model);
  const auto row_count = static_cast<double>(rows.rows);
  switch (traits_of(op).cost) {
    case CostCurve::kLink:
      break;
    case CostCurve::kEmbed:
      return row_count * d;
    case CostCurve::kMap:
      // A plan does not say the rank of its maps; that a map is in proportion to its rows is what counts
      // here.
      return row_count *
             map_flops(v.map_form == MapForm::kLowRank ? MapForm::kFull : v.map_form, plan.shape.d_model, 0);
    case CostCurve::kHead:
      return d * static_cast<double>(plan.shape.vocab);
    case CostCurve::kLayer: {
      LayerWork layer = layer_work(plan.shape, rows);
      return layer.matmul + layer.attention;
    }
  }
  return 0;
}

/// From the end of a transfer (a kernel) to the start of an op that another stream has held back for it: the
/// least, as predicted; 0 where there is none.
struct Handovers {
  int64_t transfer_ns = 0, kernel_ns = 0;
  int64_t after(const Op& op) const { return is_transfer(op) ? transfer_ns : kernel_ns; }
};

Handovers handovers_of(const Variant& v) {
  Handovers least{INT64_MAX, INT64_MAX};
  std::vector<int64_t> free(v.streams.size(), 0);
  auto end = [](const Op& op) { return op.start_ns + op.duration_ns; };
  for (const Op& op : v.ops) {
    int64_t& at = free[static_cast<size_t>(op.stream)];
    const Op* last = nullptr;
    for (int32_t w : op.waits)
      if (const Op& before = v.ops[static_cast<size_t>(w)]; last == nullptr || end(before) > end(*last))
        last = &before;
    if (last != nullptr && last->stream != op.stream && op.start_ns > at) {
      int64_t& known = is_transfer(*last) ? least.transfer_ns : least.kernel_ns;
      known = std::min(known, op.start_ns - end(*last));
    }
    at = end(op);
  }
  if (least.transfer_ns == INT64_MAX) least.transfer_ns = 0;
  if (least.kernel_ns == INT64_MAX) least.kernel_ns = 0;
  return least;
}

}  // namespace

OperatingPoint tuned_point(const Variant& v) { return {v.tuned_tokens, v.tuned_suffix, v.tuned_rate}; }

int64_t transfer_bytes(const Plan& plan, const Variant& v, const Op& op, int64_t tokens) {
  return op_rows(op, v.chunks, tokens, 0, v.select_share).rows * payload_row(op.payload, plan.shape) *
         element_bytes(plan);
}

Result<Simulation> simulate_variant(const Plan& plan, const Variant& v, const OperatingPoint& point,
                                    double compute_speed) {
  if (point.tokens < 1 || point.tokens > kMaxTokens || point.suffix < 1 || point.suffix > kMaxTokens ||
      point.rate < 0) {
    return error(Code::kInvalidArgument,
                 "cannot simulate {} context tokens, {} suffix tokens at {} B/s; expected 1 to {} tokens of "
                 "each and a rate "
                 "of 0 or more",
                 point.tokens, point.suffix, point.rate, kMaxTokens);
  }
  if (!(compute_speed > 0)) {
    return error(Code::kInvalidArgument, "cannot simulate kernels {} times as fast; expected more than 0",
                 compute_speed);
  }
  if (v.makespan_ns == 0 || v.tuned_tokens == 0) {
    return error(Code::kInvalidArgument,
                 "variant '{}' has no predicted times, so that there is nothing to scale; compile the plan "
                 "with a machine "
                 "model",
                 v.name);
  }
  OperatingPoint tuned = tuned_point(v);
  // A chunk that is empty at the tuned length has no duration to scale: the others' speed stands in.
  double all_work = 0, all_ns = 0;
  bool sends = false;
  for (const Op& op : v.ops) {
    if (is_transfer(op)) {
      sends = true;
      continue;
    }
    all_work += work(plan, v, op, tuned);
    all_ns += static_cast<double>(op.duration_ns);
  }
  double ns_per_work = all_work > 0 ? all_ns / all_work : 0;
  if (sends && (point.rate == 0 || tuned.rate == 0)) {
    return error(
        Code::kInvalidArgument,
        "cannot simulate transfers of variant '{}' at a link rate of {} B/s (tuned for {} B/s); give a rate",
        v.name, point.rate, tuned.rate);
  }

  Simulation sim;
  sim.point = point;
  sim.streams.resize(v.streams.size());
  for (size_t s = 0; s < v.streams.size(); ++s) sim.streams[s].kind = v.streams[s].kind;
  // What a stream begins with starts when the entry has been found and the link has answered, wherever that
  // is not for an op of another stream.
  std::vector<int64_t> free(v.streams.size(), -1);
  for (const Op& op : v.ops)
    if (int64_t& at = free[static_cast<size_t>(op.stream)]; at < 0) at = op.waits.empty() ? op.start_ns : 0;
  const Handovers handovers = handovers_of(v);
  auto prefill = [&](int64_t n) {
    const LayerWork layer = layer_work(plan.shape, {0, n, n});
    return layer.matmul + layer.attention;
  };
  const double sender = v.live ? prefill(point.tokens) / prefill(tuned.tokens) : 1;
  constexpr double kMaxNs = 9e18 / 4;
  for (const Op& op : v.ops) {
    double duration = static_cast<double>(op.duration_ns);
    if (is_transfer(op)) {
      int64_t bytes = transfer_bytes(plan, v, op, point.tokens);
      double before = wire_ns(transfer_bytes(plan, v, op, tuned.tokens), tuned.rate);
      double now = wire_ns(bytes, point.rate);
      if (point != tuned)
        duration = duration >= before ? now + (duration - before) : duration * (now / before);
      if (bytes > INT64_MAX / 2 - sim.bytes) {
        return error(Code::kInvalidArgument, "variant '{}' would move more than 2^62 bytes for {} tokens",
                     v.name, point.tokens);
      }
      sim.bytes += bytes;
    } else {
      double before = work(plan, v, op, tuned), now = work(plan, v, op, point);
      if (point != tuned) duration = before > 0 ? duration * (now / before) : ns_per_work * now;
      duration /= compute_speed;
    }
    auto s = static_cast<size_t>(op.stream);
    OpTime time{free[s], 0};
    for (int32_t w : op.waits) {
      const Op& before = v.ops[static_cast<size_t>(w)];
      const int64_t passes = before.stream == op.stream ? 0 : handovers.after(before);
      time.start_ns = std::max(time.start_ns, sim.ops[static_cast<size_t>(w)].end_ns + passes);
    }
    // What a live sender is waited for comes later or earlier with the context's length.
    if (v.live && is_transfer(op))
      time.start_ns =
          std::max<int64_t>(time.start_ns, std::llround(static_cast<double>(op.start_ns) * sender));
    if (!(duration < kMaxNs) || static_cast<double>(time.start_ns) + duration > kMaxNs) {
      return error(Code::kInvalidArgument,
                   "variant '{}' would take more than 70 years at {} B/s; give a higher rate", v.name,
                   point.rate);
    }
    int64_t whole = point == tuned && compute_speed == 1 ? op.duration_ns : std::llround(duration);
    time.end_ns = time.start_ns + whole;
    free[s] = time.end_ns;
    sim.streams[s].busy_ns += whole;
    sim.ttft_ns = std::max(sim.ttft_ns, time.end_ns);
    sim.ops.push_back(time);
  }
  sim.lower_bound_ns = schedule_lower_bound_ns(v, sim.ops);
  for (StreamUse& s : sim.streams) s.idle_ns = sim.ttft_ns - s.busy_ns;
  return sim;
}

int64_t predicted_ttft_ns(const Plan& plan, const Variant& variant, const OperatingPoint& point) {
  auto simulation = simulate_variant(plan, variant, point);
  return simulation.ok() ? simulation->ttft_ns : 0;
}

}  // namespace ds
