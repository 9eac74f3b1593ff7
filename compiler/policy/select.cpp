// select: a share of the tokens is recomputed, chosen at run time.
#include "compiler/policy/policy.h"

namespace ds {
namespace {

constexpr double kShares[] = {0.05, 0.1, 0.15, 0.2, 0.3, 0.5};

Tiling selected(const PolicyInput& in, double share) {
  auto top = static_cast<int32_t>(in.layers) - 1;
  Way way = Way::select(share);
  std::string what = way.name();
  return make_tiling(in, std::move(what),
                     {{Mode::kRecompute, 0, 0, 0, 0, false}, {Mode::kSelect, 1, top, 0, 0, false}}, 1,
                     std::move(way));
}

}  // namespace

Result<std::vector<Tiling>> draw_select(const PolicyInput& in) {
  if (in.layers < 2) {
    return error(Code::kInvalidArgument,
                 "policy 'select' compares K of layer 1, but the models have {} layer; expected 2 or more",
                 in.layers);
  }
  if (in.select_share) return std::vector<Tiling>{selected(in, *in.select_share)};
  DS_ASSIGN(std::vector<Tiling> all, draw_full_reuse(in));
  DS_ASSIGN(std::vector<Tiling> prefill, draw_full_prefill(in));
  all.push_back(std::move(prefill.front()));
  size_t whole = all.size();
  if (in.quality) {
    for (const WayScore& w : in.quality->ways)
      if (w.way.selects() && !w.dropped) all.push_back(selected(in, w.way.share));
  }
  if (all.size() > whole) return all;
  for (double share : kShares) all.push_back(selected(in, share));
  return all;
}

}  // namespace ds
