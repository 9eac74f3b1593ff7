// What the parts of a profile's run share of its folder.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "profiler/profile_run.h"
#include "support/json.h"

namespace ds {

std::string record_path(const std::string& folder, int64_t index, std::string_view extension);
Result<ContextRecord> read_record(const std::string& path, size_t ways);

/// Fields in which two runs differ that must not.
std::vector<std::string> differences(const nlohmann::json& a, const nlohmann::json& b,
                                     std::initializer_list<std::string_view> may_differ);
/// Of a run's ways what a budget chooses.
Status read_chosen(const JsonObject& root, int64_t layers, WayOptions& ways);
/// What aligned ways a run has.
Status read_align(const JsonObject& root, WayOptions& ways);

}  // namespace ds
