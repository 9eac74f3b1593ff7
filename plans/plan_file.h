// Reading, writing and verifying plan files.
#pragma once

#include <cstddef>
#include <span>
#include <string>

#include "plans/plan.h"
#include "support/status.h"

namespace ds {

/// Reads and fully verifies a plan: FlatBuffers verifier, format version, then verify_plan(). `origin` names
/// the file in messages. Errors: kCorrupt (empty, truncated, wrong magic - printed escaped, with the size),
/// kUnsupported (newer format: states both versions and what to do), kCorrupt with the op index for semantic
/// faults.
Result<Plan> parse_plan(std::span<const std::byte> bytes, const std::string& origin);
Result<Plan> read_plan(const std::string& path);

/// FlatBuffers bytes; the same plan always gives the same bytes.
std::string serialize_plan(const Plan& plan);

/// Semantic rules that the executor relies on and does not check again (plans/README.md lists them): indices,
/// ranges, waits acyclic, every read has a writer that happens before it, no two unordered writes, sizes.
/// Messages say variant, op index, found, expected, remedy.
Status verify_plan(const Plan& plan, const std::string& origin);

}  // namespace ds
