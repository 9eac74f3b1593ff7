#include "runtime/core/finite.h"

#include <algorithm>
#include <cstring>

#include "plans/traits.h"

namespace ds {

Status check_finite(std::span<const float> logits, int64_t token, const Variant& variant) {
  auto finite = [](float x) {
    uint32_t bits = 0;
    std::memcpy(&bits, &x, sizeof(bits));
    return (bits & 0x7f800000u) != 0x7f800000u;
  };
  int bad = 0;  // without a branch: the vocabulary is read at the speed of memory
  for (float x : logits) bad += finite(x) ? 0 : 1;
  if (bad == 0) return ok_status();
  const auto first = std::find_if_not(logits.begin(), logits.end(), finite);
  return error(
      Code::kInternal,
      "the logits of token {} of the answer are not numbers: {} of {} are not finite, the first is that "
      "of id {} ({}){}",
      token, bad, logits.size(), first - logits.begin(), *first,
      std::none_of(variant.ops.begin(), variant.ops.end(), is_transfer)
          ? "; a kernel is broken, or the model overflows: see whether --dtype f32 answers"
          : fmt::format("; variant '{}' has reused a sender's entry: see whether the full prefill "
                        "(--mode full-prefill) answers, then publish the entry again",
                        variant.name));
}

}  // namespace ds
