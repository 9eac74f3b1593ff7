// ds-plan's actions, what they are asked, and how they find what they are asked for.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "plans/plan_file.h"
#include "plans/simulate.h"
#include "runtime/trace/draw.h"
#include "tools/tool.h"

namespace ds {

using Json = nlohmann::ordered_json;

struct PlanOptions {
  std::string file, output = "-", format, variant, record;
  std::vector<std::string> files;
  bool json = false, all_ops = false, all = false;
  std::string link_rate;
  int64_t context_length = 0, suffix_length = 0, waiting = 0;
};

struct LoadedPlan {
  Plan plan;
  std::string path, sha256;
  int64_t bytes = 0;
};

struct Selected {
  const Variant* variant;
  std::string why;
};

// plans.cpp
Result<LoadedPlan> load(const std::string& path);
Result<const Variant*> find_variant(const LoadedPlan& loaded, const std::string& name);
std::string json_text(const Json& json);
std::string drawn(const Picture& picture, const std::string& format);
/// --link-rate in bytes per second; 0: not given.
Result<int64_t> link_rate(const PlanOptions& options);
/// What is not given is taken from where `base` is tuned.
OperatingPoint point_of(const PlanOptions& options, int64_t rate, const Variant& base);
/// As the runtime selects.
Selected select(const Plan& plan, const OperatingPoint& at, int64_t waiting);

// A file each.
Status dump(const PlanOptions& options);
Status verify(const PlanOptions& options);
Status simulate(const PlanOptions& options);
Status explain(const PlanOptions& options);
Status diff(const PlanOptions& options, bool& differ);
Status trace(const PlanOptions& options);

}  // namespace ds
