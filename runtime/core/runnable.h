// Whether this runtime runs a plan as its times say.
#pragma once

#include "plans/plan.h"
#include "support/status.h"

namespace ds {

/// A session has one link stream and one compute stream. kUnsupported: a variant with another stream of one
/// of these kinds, whose ops would run one after another although their times say side by side.
Status check_runnable(const Plan& plan);

}  // namespace ds
