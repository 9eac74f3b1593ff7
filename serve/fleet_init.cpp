#include "serve/fleet_init.h"

#include <filesystem>

#include "plans/plan_file.h"
#include "plans/quality.h"
#include "runtime/model/identity.h"
#include "runtime/model/maps.h"
#include "runtime/model/model_folder.h"
#include "serve/fleet.h"

namespace ds {
namespace {

std::string absolute(const std::string& path) {
  std::error_code failure;
  auto out = std::filesystem::absolute(path, failure).lexically_normal();
  return failure ? path : out.string();
}

}  // namespace

Result<nlohmann::ordered_json> make_fleet(const FleetInit& init) {
  using Json = nlohmann::ordered_json;
  Json models = Json::array(), plans = Json::array();
  for (const std::string& given : init.models) {
    const size_t equals = given.find('=');
    const std::string folder = equals == given.npos ? given : given.substr(equals + 1);
    DS_ASSIGN(const std::string found, find_model_folder(folder));
    models.push_back({{"name", equals == given.npos ? model_name(folder) : given.substr(0, equals)},
                      {"folder", absolute(found)},
                      {"reuse", init.approximate ? "approximate" : "exact"},
                      {"publish", init.publish}});
  }
  std::vector<Plan> read;
  for (const std::string& file : init.plans) {
    DS_ASSIGN(Plan plan, read_plan(file));
    read.push_back(std::move(plan));
    plans.push_back({{"file", absolute(file)}});
  }
  for (const std::string& file : init.maps) {
    DS_ASSIGN(const MapSet maps, MapSet::read(file));
    const std::string fingerprint = maps.fingerprint();
    bool used = false;
    for (size_t i = 0; i < read.size(); ++i)
      if (read[i].maps.fingerprint == fingerprint) {
        plans[i]["maps"] = absolute(file);
        used = true;
      }
    if (!used)
      return error(Code::kMismatch, "--maps '{}': no plan that was given names these maps; leave it out",
                   file);
  }
  for (const std::string& file : init.profiles) {
    DS_ASSIGN(const Quality quality, Quality::read(file));
    bool used = false;
    for (size_t i = 0; i < read.size(); ++i)
      if (quality
              .check_pair(file, names_of_model(read[i].sender), names_of_model(read[i].receiver),
                          read[i].shape.layers)
              .ok()) {
        plans[i]["profile"] = absolute(file);
        used = true;
      }
    if (!used) return error(Code::kMismatch, "--profile '{}': it is of no plan's pair; leave it out", file);
  }
  Json fleet = {{"version", kFleetVersion},
                {"listen", {{"host", "127.0.0.1"}, {"port", 8000}}},
                {"models", std::move(models)}};
  if (!plans.empty()) fleet["plans"] = std::move(plans);
  if (!init.store.empty()) {
    fleet["store"] = {{"url", init.store.starts_with("file:") && !init.store.starts_with("file://") &&
                                      !init.store.starts_with("file:~")
                                  ? "file:" + absolute(init.store.substr(5))
                                  : init.store}};
    if (!init.store_key.empty()) fleet["store"]["key_file"] = absolute(init.store_key);
    if (init.registered) fleet["store"]["registered"] = "60s";
  }
  // What is written is what is read.
  DS_TRY(Fleet::parse(fleet.dump(), "the new fleet", ""));
  return fleet;
}

}  // namespace ds
