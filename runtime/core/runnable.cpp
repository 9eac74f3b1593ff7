#include "runtime/core/runnable.h"

#include <array>

namespace ds {
namespace {

Status check_runnable(const Variant& v) {
  std::array<int64_t, 3> count{};  // by StreamKind
  for (const Stream& s : v.streams) ++count[static_cast<size_t>(s.kind)];
  constexpr std::array<int64_t, 3> kMost = {1, 0, 1};
  for (size_t kind = 0; kind < count.size(); ++kind) {
    if (count[kind] <= kMost[kind]) continue;
    return error(Code::kUnsupported,
                 "variant '{}' has {} {} stream{}; this runtime runs at most {}: its ops would run one after "
                 "another, although their times say side by side; compile the plan anew",
                 v.name, count[kind], stream_kind_name(static_cast<StreamKind>(kind)),
                 count[kind] == 1 ? "" : "s", kMost[kind]);
  }
  return ok_status();
}

}  // namespace

Status check_runnable(const Plan& plan) {
  DS_TRY(check_runnable(plan.full_prefill));
  for (const Variant& v : plan.variants) DS_TRY(check_runnable(v));
  return ok_status();
}

}  // namespace ds
