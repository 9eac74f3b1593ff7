#include "runtime/core/runnable.h"

#include <algorithm>

namespace ds {
namespace {

Status check_runnable(const Variant& v) {
  for (StreamKind kind : kPlanStreams) {
    const auto count = std::count(v.streams.begin(), v.streams.end(), Stream{kind});
    if (count <= 1) continue;
    return error(Code::kUnsupported,
                 "variant '{}' has {} {} streams; this runtime runs at most 1: their ops would run one after "
                 "another, although their times say side by side; compile the plan anew",
                 v.name, count, stream_kind_name(kind));
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
