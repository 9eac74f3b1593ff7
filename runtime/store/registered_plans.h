// Plans that readers of a store have registered there, so that who publishes into it, on another machine,
// knows what of an entry anybody reads. Each is an object of its own, pinned, found by its key and by no
// name:
//     0   magic "DSPLANR1"
//     8   HMAC-SHA256 of the plan by the store's key (Store::set_signing); zeros where it has none
//    40   the plan's file
// and its key is "plan-" and the SHA-256 of that file.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "plans/plan.h"
#include "runtime/store/store.h"
#include "support/status.h"

namespace ds {

bool is_registered_plan(std::string_view key);

/// Registers a plan file's bytes, verified; the same again changes nothing. Returns its key. Errors: those of
/// parse_plan() (`origin` names the file) and of Store::put() and Store::pin().
Result<std::string> register_plan(Store& store, std::span<const std::byte> file, const std::string& origin);

/// Verified as a file is. kNotFound; kMismatch: not signed by the store's key; kCorrupt, kUnsupported, kIo.
Result<Plan> registered_plan(Store& store, const std::string& key);

/// The keys of all of a store, in their order. Errors: those of Store::list().
Result<std::vector<std::string>> registered_keys(Store& store);

struct RegisteredPlan {
  std::string key;
  Result<Plan> plan;
};
/// All of a store. Errors: those of Store::list().
Result<std::vector<RegisteredPlan>> registered_plans(Store& store);

}  // namespace ds
