#include "plans/critical_path.h"

#include <algorithm>

namespace ds {

std::vector<CriticalStep> critical_path(const Variant& v, const std::vector<OpTime>& times) {
  std::vector<int32_t> before(v.ops.size(), -1), last_on(v.streams.size(), -1);
  int32_t at = -1;
  for (size_t i = 0; i < v.ops.size(); ++i) {
    if (times[i].start_ns < 0) continue;
    auto s = static_cast<size_t>(v.ops[i].stream);
    before[i] = last_on[s];
    last_on[s] = static_cast<int32_t>(i);
    if (at < 0 || times[i].end_ns > times[static_cast<size_t>(at)].end_ns) at = static_cast<int32_t>(i);
  }
  auto end = [&](int32_t i) { return times[static_cast<size_t>(i)].end_ns; };
  std::vector<CriticalStep> path;
  while (at >= 0) {
    // Both kinds of predecessor have smaller indices, so that this ends.
    CriticalStep step{at, HeldBy::kStart, 0, 0};
    int32_t from = -1;
    for (int32_t w : v.ops[static_cast<size_t>(at)].waits) {
      if (times[static_cast<size_t>(w)].start_ns < 0) continue;
      if (from < 0 || end(w) > end(from) || (end(w) == end(from) && w < from)) from = w;
    }
    if (from >= 0) step.by = HeldBy::kWait;
    if (int32_t b = before[static_cast<size_t>(at)]; b >= 0 && (from < 0 || end(b) > end(from))) {
      from = b;
      step.by = HeldBy::kStream;
    }
    int64_t ready = from >= 0 ? end(from) : 0;
    int64_t start = std::max(times[static_cast<size_t>(at)].start_ns, ready);
    step.gap_ns = start - ready;
    step.time_ns = end(at) - start;
    path.push_back(step);
    at = from;
  }
  std::reverse(path.begin(), path.end());
  return path;
}

CriticalShares critical_shares(const Variant& v, const std::vector<CriticalStep>& path) {
  CriticalShares shares;
  for (const CriticalStep& step : path) {
    auto stream = static_cast<size_t>(v.ops[static_cast<size_t>(step.op)].stream);
    shares.stream_ns[static_cast<size_t>(v.streams[stream].kind)] += step.time_ns;
    shares.gap_ns += step.gap_ns;
  }
  return shares;
}

int64_t schedule_lower_bound_ns(const Variant& v, const std::vector<OpTime>& times) {
  auto takes = [&](size_t i) { return times[i].end_ns - times[i].start_ns; };
  std::vector<int64_t> head(v.ops.size(), 0), tail(v.ops.size(), 0);
  int64_t bound = 0;
  for (size_t i = 0; i < v.ops.size(); ++i) {
    for (int32_t w : v.ops[i].waits) {
      auto from = static_cast<size_t>(w);
      head[i] = std::max(head[i], head[from] + takes(from));
    }
    bound = std::max(bound, head[i] + takes(i));
  }
  for (size_t i = v.ops.size(); i-- > 0;) {
    for (int32_t w : v.ops[i].waits) {
      auto from = static_cast<size_t>(w);
      tail[from] = std::max(tail[from], takes(i) + tail[i]);
    }
  }
  for (size_t s = 0; s < v.streams.size(); ++s) {
    int64_t before = INT64_MAX, busy = 0, behind = INT64_MAX;
    for (size_t i = 0; i < v.ops.size(); ++i) {
      if (static_cast<size_t>(v.ops[i].stream) != s) continue;
      before = std::min(before, head[i]);
      behind = std::min(behind, tail[i]);
      busy += takes(i);
    }
    if (before != INT64_MAX) bound = std::max(bound, before + busy + behind);
  }
  return bound;
}

}  // namespace ds
