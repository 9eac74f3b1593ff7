// restore: the sender's hidden states instead of its K and V.
#include <algorithm>

#include "compiler/policy/policy.h"

namespace ds {
namespace {

Tiling restored(const PolicyInput& in, Way way) {
  const LayerRange range = way.layers[0];
  std::vector<Tile> tiles;
  auto add = [&](Mode mode, int64_t first, int64_t last) {
    if (first <= last)
      tiles.push_back({mode, static_cast<int32_t>(first), static_cast<int32_t>(last), 0, 0, false});
  };
  add(Mode::kLoad, 0, range.first - 1);
  add(Mode::kRestore, range.first, range.last);
  add(Mode::kLoad, range.last + 1, in.layers - 1);
  std::string what = way.name();
  return make_tiling(in, std::move(what), std::move(tiles), 1, std::move(way));
}

}  // namespace

Result<std::vector<Tiling>> draw_restore(const PolicyInput& in) {
  if (in.recompute) {
    if (in.recompute->empty()) return draw_full_reuse(in);
    std::vector<Tiling> named;
    for (Way& way : in_all_forms(in, Way::restore(*in.recompute)))
      named.push_back(restored(in, std::move(way)));
    return named;
  }
  DS_ASSIGN(std::vector<Tiling> all, draw_full_reuse(in));
  DS_ASSIGN(std::vector<Tiling> prefill, draw_full_prefill(in));
  all.push_back(std::move(prefill.front()));
  std::vector<LayerRange> ranges;
  for (int64_t first = 0; first < in.layers; ++first) ranges.push_back({first, in.layers - 1});
  if (in.quality) {
    for (const WayScore& w : in.quality->ways) {
      if (!w.way.restores() || w.dropped || !w.way.map_control.empty()) continue;
      // A run is there once, however many forms it was scored in.
      if (std::find(ranges.begin(), ranges.end(), w.way.layers[0]) == ranges.end())
        ranges.push_back(w.way.layers[0]);
    }
  }
  for (const LayerRange& range : ranges)
    for (Way& way : in_all_forms(in, Way::restore(range))) all.push_back(restored(in, std::move(way)));
  return all;
}

}  // namespace ds
