#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>

#include "compiler/policy/policy.h"

namespace ds {
namespace {

/// Profiles of deep models hold thousands of groups; a longer list than this is thinned out.
constexpr size_t kManyGroups = 64;

bool is_group(const WayScore& w, MapForm form) {
  return w.way.is_group() && w.way.map == form && w.way.map_control.empty() && !w.dropped;
}

/// Of each number of layers the group that loses least, and the one that loses least of those from layer 0
/// (which need no cut): in link and compute time groups of one size hardly differ. Of equal scores the lower
/// divergence counts. `by_divergence`: those that diverge least, too.
std::vector<LayerRange> best_of_each_size(const Quality& quality, MapForm form, bool by_divergence) {
  auto known = [](double nats) { return std::isnan(nats) ? HUGE_VAL : nats; };
  auto better_score = [&](const WayScore& a, const WayScore& b) {
    return std::pair(-a.score.value, known(a.divergence.value)) <
           std::pair(-b.score.value, known(b.divergence.value));
  };
  auto closer = [&](const WayScore& a, const WayScore& b) {
    return known(a.divergence.value) < known(b.divergence.value);
  };
  std::map<std::tuple<int64_t, bool, bool>, const WayScore*> best;
  for (const WayScore& w : quality.ways) {
    if (!is_group(w, form)) continue;
    const LayerRange& group = w.way.layers[0];
    for (bool closest : {false, true}) {
      if (closest && !by_divergence) continue;
      auto [at, fresh] = best.try_emplace({group.size(), group.first == 0, closest}, &w);
      if (!fresh && (closest ? closer(w, *at->second) : better_score(w, *at->second))) at->second = &w;
    }
  }
  std::vector<LayerRange> groups;
  for (const auto& [key, w] : best)
    if (std::find(groups.begin(), groups.end(), w->way.layers[0]) == groups.end())
      groups.push_back(w->way.layers[0]);
  return groups;
}

/// The groups that a policy may recompute, besides none and all, from plain and aligned cuts.
Result<std::vector<Way>> groups_of(const PolicyInput& in) {
  if (in.recompute) return in_all_forms(in, way_of(*in.recompute, in.layers));
  if (!in.quality) {
    return error(Code::kInvalidArgument,
                 "policy 'droidspeak' needs to know which layers: give --recompute A-B, or --quality with "
                 "--slo-loss, --slo-divergence or --slo-ttft-ms");
  }
  std::vector<Way> ways;
  // Plain groups that start from the embeddings take part whatever the cuts are.
  std::vector<MapForm> forms = in.forms;
  if (forms.empty() || forms.front() != MapForm::kNone) forms.insert(forms.begin(), MapForm::kNone);
  for (MapForm form : forms) {
    std::vector<LayerRange> groups;
    for (const WayScore& w : in.quality->ways)
      if (is_group(w, form)) groups.push_back(w.way.layers[0]);
    if (groups.size() > kManyGroups) groups = best_of_each_size(*in.quality, form, in.by_divergence);
    std::erase_if(groups, [&](const LayerRange& g) { return g.size() == in.layers; });
    for (const LayerRange& g : groups) {
      std::vector<Way> offered = in_all_forms(in, Way::group(g));
      Way way = Way::group(g).aligned(form);
      if (std::find(offered.begin(), offered.end(), way) != offered.end()) ways.push_back(std::move(way));
    }
  }
  return ways;
}

LayerRange group_of(const PolicyInput& in, const Way& way) {
  if (way.is_full_prefill()) return {0, in.layers - 1};
  return way.layers.empty() ? LayerRange{} : way.layers[0];
}

std::string name_of(const Way& way, int32_t chunks) {
  std::string name = way.name();
  if (chunks > 1) name += fmt::format(" in {} chunks", chunks);
  return name;
}

Tiling band(const PolicyInput& in, const Way& way, int32_t chunks) {
  return make_tiling(in, name_of(way, chunks), tiles_for_group(group_of(in, way), in.layers, chunks), chunks,
                     way);
}

}  // namespace

Result<std::vector<Tiling>> draw_droidspeak(const PolicyInput& in) {
  DS_ASSIGN(std::vector<Way> ways, groups_of(in));
  std::vector<Tiling> all;
  if (!in.recompute) {
    all.push_back(band(in, Way::full_reuse(), 1));
    all.push_back(band(in, Way::full_prefill(), 1));
  }
  for (const Way& way : ways) {
    // Without a cut there is nothing to wait for, so chunks would only cost.
    bool cut = !way.sent_layers().empty();
    for (int32_t chunks : in.chunks)
      if (chunks == 1 || cut) all.push_back(band(in, way, chunks));
  }
  return all;
}

Result<std::vector<Tiling>> draw_balanced(const PolicyInput& in) {
  DS_ASSIGN(std::vector<Tiling> all, draw_droidspeak(in));
  std::vector<Way> bases;
  for (const Tiling& t : all)
    if (t.chunks == 1 && !t.way.is_full_prefill()) bases.push_back(t.way);
  for (const Way& way : bases) {
    const LayerRange group = group_of(in, way);
    for (int32_t chunks : in.chunks) {
      // Coarse stairs are there at twice the number of chunks too.
      if (chunks < 8 && chunks != in.chunks.back()) continue;
      auto stair = [&](int32_t from_embeddings, int32_t to_top) {
        std::string name = name_of(way, 1);
        name += from_embeddings > 0
                    ? fmt::format(", {} of {} chunks from the embeddings", from_embeddings, chunks)
                    : fmt::format(", {} of {} chunks to the top", to_top, chunks);
        all.push_back(make_tiling(in, std::move(name),
                                  tiles_for_group(group, in.layers, chunks, from_embeddings, to_top), chunks,
                                  way));
      };
      for (int32_t k = 1; k < chunks; ++k) {
        stair(k, 0);
        if (!group.empty() && group.last + 1 < in.layers) stair(0, k);
      }
    }
  }
  // Restored layers compute least of all; with maps they may lose little. Those that the profile has scored
  // compete.
  if (in.quality && !in.recompute) {
    DS_ASSIGN(std::vector<Tiling> restored, draw_restore(in));
    for (Tiling& t : restored)
      if (t.way.restores() && !std::isnan(t.loss)) all.push_back(std::move(t));
  }
  return all;
}

Result<std::vector<Tiling>> draw_cake(const PolicyInput& in) {
  int32_t chunks = in.chunks.back();
  std::vector<Tiling> all;
  for (int32_t k = 0; k < chunks; ++k) {
    int32_t parts = k == 0 ? 1 : chunks;
    all.push_back(make_tiling(in, k == 0 ? "full reuse" : fmt::format("compute {} of {} chunks", k, chunks),
                              tiles_for_group({}, in.layers, parts, k, 0), parts, Way::full_reuse()));
  }
  all.push_back(band(in, Way::full_prefill(), 1));
  return all;
}

}  // namespace ds
