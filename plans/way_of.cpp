#include "plans/way_of.h"

#include <algorithm>

namespace ds {
namespace {

/// Layers that every chunk has in this mode, or recomputed.
std::vector<LayerRange> in_every_chunk(const Variant& v, int32_t layers, Mode mode) {
  std::vector<LayerRange> ranges;
  for (int32_t l = 0; l < layers; ++l) {
    int32_t chunks = 0;
    for (const Tile& t : v.tiles)
      if ((t.mode == mode || t.mode == Mode::kRecompute) && t.first_layer <= l && l <= t.last_layer)
        chunks += t.last_chunk - t.first_chunk + 1;
    if (chunks != v.chunks) continue;  // tiles do not overlap
    if (!ranges.empty() && ranges.back().last == l - 1) {
      ranges.back().last = l;
    } else {
      ranges.push_back({l, l});
    }
  }
  return ranges;
}

Way without_maps(const Variant& v) {
  int32_t layers = 0;
  for (const Tile& t : v.tiles) layers = std::max(layers, t.last_layer + 1);
  for (size_t k = 0; k < kWayKinds; ++k) {
    Way way{static_cast<WayKind>(k)};
    const WayTraits& traits = traits_of(way.kind);
    if (!traits.mode || traits.mode == Mode::kLoad || traits.share != (v.select_share > 0)) continue;
    way.share = v.select_share;
    if (traits.share) return way;
    std::vector<LayerRange> runs = in_every_chunk(v, layers, *traits.mode);
    const bool all = runs.size() == 1 && runs[0].size() == layers;
    const bool fits = traits.layers == WayTraits::Layers::kAll   ? all
                      : traits.layers == WayTraits::Layers::kOne ? runs.size() == 1
                                                                 : runs.size() > 1;
    if (!fits) continue;
    if (traits.lists_layers()) way.layers = std::move(runs);
    return way;
  }
  return {WayKind::kFullReuse};
}

}  // namespace

Way way_of(const Variant& v) {
  Way way = without_maps(v);
  if (way.can_align()) way.map = v.map_form;
  return way;
}

}  // namespace ds
