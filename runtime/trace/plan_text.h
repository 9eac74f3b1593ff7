// A plan as a person reads it: header, a picture of the layers, a picture of the time, and the ops.
#pragma once

#include <string>

#include "plans/plan.h"

namespace ds {

struct TextOptions {
  std::string origin;                // the file's name, as given
  int64_t file_bytes = -1;           // -1: not known, not shown
  std::string sha256;                // of the file; "": not shown
  const Variant* variant = nullptr;  // show this one in full; nullptr: the first
  size_t max_ops = 400;              // how many ops are listed at most
};

/// UTF-8, lines of at most about 110 columns.
std::string plan_to_text(const Plan& plan, const TextOptions& options);

}  // namespace ds
