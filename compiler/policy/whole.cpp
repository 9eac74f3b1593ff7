// full-prefill and full-reuse: the two ends of the scale.
#include "compiler/policy/policy.h"

namespace ds {

Result<std::vector<Tiling>> draw_full_prefill(const PolicyInput& in) {
  LayerRange all{0, in.layers - 1};
  return std::vector<Tiling>{
      make_tiling(in, "full prefill", tiles_for_group(all, in.layers), 1, Way::full_prefill())};
}

Result<std::vector<Tiling>> draw_full_reuse(const PolicyInput& in) {
  return std::vector<Tiling>{
      make_tiling(in, "full reuse", tiles_for_group({}, in.layers), 1, Way::full_reuse())};
}

}  // namespace ds
