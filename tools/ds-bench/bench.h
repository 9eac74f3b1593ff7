// ds-bench's subcommands: one file each, registered in main.cpp.
#pragma once

#include <algorithm>
#include <functional>
#include <vector>

#include "tools/tool.h"

namespace ds {

/// Adds a subcommand to `app`; the result runs it, once parsed.
using Bench = std::function<Status()>;
Bench add_load(CLI::App& app);
Bench add_make_model(CLI::App& app);
Bench add_prefill(CLI::App& app);
Bench add_ttft(CLI::App& app);
Bench add_overlap(CLI::App& app);

inline double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  size_t n = v.size();
  return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

}  // namespace ds
