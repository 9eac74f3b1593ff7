// The dialect `scheduling`: see SchedulingDialect.td.
#pragma once

#include "dialects/plan/PlanDialect.h"  // streams, events, the interface of operations

#include "dialects/scheduling/SchedulingDialect.h.inc"
#include "dialects/scheduling/SchedulingEnums.h.inc"

#define GET_OP_CLASSES
#include "dialects/scheduling/SchedulingOps.h.inc"
