// A fleet file from model folders and plans.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "support/status.h"

namespace ds {

struct FleetInit {
  std::vector<std::string> models;  // "NAME=FOLDER", or a folder, whose own name counts
  std::vector<std::string> plans, maps, profiles;
  std::string store, store_key;
  bool approximate = false, publish = false, registered = false;
};

/// The fleet as JSON, with absolute paths. A file of maps or a profile goes to the plans that it is of.
/// Errors: kInvalidArgument (two of a name, no model), kMismatch (maps or a profile of no plan), those of
/// reading.
Result<nlohmann::ordered_json> make_fleet(const FleetInit& init);

}  // namespace ds
