#include "plans/way_of.h"

#include <algorithm>

namespace ds {
namespace {

bool recomputed_in_every_chunk(const Variant& v, int32_t layer) {
  int32_t chunks = 0;
  for (const Tile& t : v.tiles)
    if (t.mode == Mode::kRecompute && t.first_layer <= layer && layer <= t.last_layer)
      chunks += t.last_chunk - t.first_chunk + 1;
  return chunks == v.chunks;  // tiles do not overlap
}

}  // namespace

Way way_of(const Variant& v) {
  int32_t layers = 0;
  for (const Tile& t : v.tiles) layers = std::max(layers, t.last_layer + 1);
  Way way;
  for (int32_t l = 0; l < layers; ++l) {
    if (!recomputed_in_every_chunk(v, l)) continue;
    if (!way.layers.empty() && way.layers.back().last == l - 1) {
      way.layers.back().last = l;
    } else {
      way.layers.push_back({l, l});
    }
  }
  if (way.layers.empty()) return {WayKind::kFullReuse};
  if (way.layers.size() == 1 && way.layers[0].size() == layers) return {WayKind::kFullPrefill};
  way.kind = way.layers.size() == 1 ? WayKind::kGroup : WayKind::kScattered;
  return way;
}

}  // namespace ds
