// ds-profile's actions: one file each, registered in main.cpp.
#pragma once

#include <functional>

#include "tools/tool.h"

namespace ds {

inline constexpr const char* kJiebaHelp =
    "folder of the Python package jieba, whose dictionary cuts Chinese answers into words; default: "
    "$DROIDSPEAK_JIEBA, else where Debian's python3-jieba puts it";

/// Adds an action to `app`; the result runs it, once parsed.
using Action = std::function<Status()>;
Action add_run(CLI::App& app);  // what the tool does without an action's name
Action add_fit(CLI::App& app);
Action add_merge(CLI::App& app);
Action add_score(CLI::App& app);
Action add_report(CLI::App& app);

}  // namespace ds
