// full-prefill: the receiver computes everything, as if there were no sender. Loses nothing by definition.
#include "compiler/policy/policy.h"

namespace ds {

Result<Choice> choose_full_prefill(const PolicyInput& in) {
  Choice c{.tiles = tiles_for_group({0, in.layers - 1}, in.layers)};
  DS_ASSIGN(c.promise.ttft_ns, in.predict_ttft_ns(c.tiles));
  return c;
}

}  // namespace ds
