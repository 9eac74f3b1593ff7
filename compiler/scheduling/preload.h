// What serial and kv-preload share: jobs one after another, all loads of a job before its first kernel.
#pragma once

#include <string_view>

#include "compiler/scheduling/problem.h"

namespace ds {

Result<Schedule> schedule_preloaded(const Problem& problem, TaskRole first, std::string_view name);

}  // namespace ds
