// Which of a profile's ways the page about it holds up, and beside which.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#include "profiler/report_internal.h"

namespace ds::report {
namespace {

constexpr double kNoticed = 2;  // standard errors

bool counts(const WayScore& w) { return !w.dropped && std::isfinite(w.loss.value); }

template <typename Is>
WayList list(const Quality& q, Is is) {
  WayList out;
  for (const WayScore& w : q.ways)
    if (counts(w) && is(w)) out.push_back(&w);
  return out;
}

WayList named(const Quality& q, const std::vector<std::string>& names) {
  WayList out;
  for (const std::string& name : names)
    for (const WayScore& w : q.ways)
      if (w.way.name() == name) out.push_back(&w);
  return out;
}

int64_t restored(const Way& way) { return way.restores() ? way.layers[0].size() : 0; }

}  // namespace

bool is_group(const WayScore& w) { return w.way.is_group() && !w.way.layers.empty(); }
bool is_plain(const WayScore& w) { return w.way.map == MapForm::kNone; }
bool is_aligned(const WayScore& w) { return !is_plain(w) && w.way.map_control.empty(); }

WayList choices(const Quality& q) {
  return list(q, [&](const WayScore& w) {
    bool reuses = w.way.is_full_reuse() || w.way.is_group();
    return reuses && is_plain(w) && w.way.recomputed(q.layers) < q.layers;
  });
}

WayList aligned_groups(const Quality& q) {
  return list(q, [](const WayScore& w) { return is_group(w) && is_aligned(w); });
}

WayList restores(const Quality& q, bool aligned) {
  return list(q,
              [&](const WayScore& w) { return w.way.restores() && (aligned ? is_aligned(w) : is_plain(w)); });
}

const WayScore* smallest_close(const Quality& q, const WayList& among, bool surely) {
  const WayScore* best = nullptr;
  auto rank = [&](const WayScore& w) {
    return std::tuple(w.way.recomputed(q.layers), restored(w.way), w.loss.value);
  };
  for (const WayScore* w : among) {
    double loss = surely ? q.loss_bound(*w, kConfidence) : w->loss.value;
    if (loss <= kCloseLoss && (!best || rank(*w) < rank(*best))) best = w;
  }
  return best;
}

std::map<int64_t, const WayScore*> best_of_sizes(const Quality& q, const WayList& among) {
  std::map<int64_t, const WayScore*> best;
  for (const WayScore* w : among) {
    auto [at, fresh] = best.try_emplace(w->way.recomputed(q.layers), w);
    if (!fresh && w->loss.value < at->second->loss.value) at->second = w;
  }
  return best;
}

WayList pareto_groups(const Quality& q) { return named(q, q.pareto); }
WayList pareto_aligned(const Quality& q) { return named(q, q.pareto_aligned); }

const WayScore* best_group(const Quality& q) {
  const WayScore* close = smallest_close(q, choices(q));
  if (close && close->way.is_group()) return close;
  WayList pareto = pareto_groups(q);
  return pareto.empty() ? nullptr : pareto.back();
}

const WayScore* best_aligned(const Quality& q) {
  WayList all = aligned_groups(q), restored = restores(q, true), pareto = pareto_aligned(q);
  all.insert(all.end(), restored.begin(), restored.end());
  if (const WayScore* close = smallest_close(q, all)) return close;
  return pareto.empty() ? nullptr : pareto.back();
}

std::string MapsUsed::name() const {
  std::string text(map_form_name(form));
  return control.empty() ? text : fmt::format("{} ({})", text, control);
}

std::vector<MapsUsed> all_maps(const Quality& q) {
  std::vector<MapsUsed> out;
  for (bool controls : {false, true})
    for (const WayScore& w : q.ways) {
      if (is_plain(w) || w.way.is_scattered() || w.way.map_control.empty() == controls) continue;
      if (std::find(out.begin(), out.end(), maps_used(w.way)) == out.end()) out.push_back(maps_used(w.way));
    }
  return out;
}

WayList ways_with(const Quality& q, const MapsUsed& maps) {
  return list(
      q, [&](const WayScore& w) { return maps_used(w.way) == maps && (is_group(w) || w.way.restores()); });
}

Mean Twins::won() const {
  return {plain->loss.value - aligned->loss.value,
          std::hypot(plain->loss.standard_error, aligned->loss.standard_error)};
}

int Twins::sign() const {
  Mean mean = won();
  if (!(std::abs(mean.value) > kNoticed * mean.standard_error)) return 0;  // an unknown error: 0
  return mean.value > 0 ? 1 : -1;
}

std::vector<Twins> twins_of(const Quality& q, const WayList& aligned) {
  std::vector<Twins> out;
  for (const WayScore* w : aligned) {
    const WayScore* plain = q.find(w->way.aligned(MapForm::kNone));
    if (plain && counts(*plain)) out.push_back({plain, w});
  }
  return out;
}

}  // namespace ds::report
