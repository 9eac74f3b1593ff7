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
  if (v.select_share > 0) return Way::select(v.select_share);
  Way way;
  way.layers = in_every_chunk(v, layers, Mode::kRecompute);
  if (way.layers.empty()) {
    way.layers = in_every_chunk(v, layers, Mode::kRestore);
    if (way.layers.size() == 1) return Way::restore(way.layers[0]);
    return {WayKind::kFullReuse};
  }
  if (way.layers.size() == 1 && way.layers[0].size() == layers) return {WayKind::kFullPrefill};
  way.kind = way.layers.size() == 1 ? WayKind::kGroup : WayKind::kScattered;
  return way;
}

}  // namespace

Way way_of(const Variant& v) {
  Way way = without_maps(v);
  if (way.can_align()) way.map = v.map_form;
  return way;
}

}  // namespace ds
