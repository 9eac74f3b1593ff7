#include "plans/published_kv.h"

#include <set>

#include "plans/traits.h"

namespace ds {

std::vector<int32_t> published_kv(const Plan& plan) {
  std::set<int32_t> layers;
  for (const Variant& variant : plan.variants)
    for (const Op& op : variant.ops)
      if (is_transfer(op) && op.payload == Payload::kKv && op.source == 0) layers.insert(op.layer);
  return {layers.begin(), layers.end()};
}

}  // namespace ds
