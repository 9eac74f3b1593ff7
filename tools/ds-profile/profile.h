// ds-profile's actions: one file each, registered in main.cpp.
#pragma once

#include <functional>

#include "tools/tool.h"

namespace ds {

/// Adds an action to `app`; the result runs it, once parsed.
using Action = std::function<Status()>;
Action add_run(CLI::App& app);  // what the tool does without an action's name
Action add_fit(CLI::App& app);
Action add_merge(CLI::App& app);
Action add_score(CLI::App& app);
Action add_report(CLI::App& app);

}  // namespace ds
