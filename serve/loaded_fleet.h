// A fleet ready to answer: its models on a device, their plans, the store, and the engine that runs them.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/backends/backend.h"
#include "runtime/core/drift.h"
#include "runtime/core/gate.h"
#include "runtime/core/publish.h"
#include "runtime/engine/engine.h"
#include "runtime/model/chat_template.h"
#include "runtime/model/checkpoint.h"
#include "runtime/model/maps.h"
#include "runtime/model/tokenizer.h"
#include "runtime/store/store.h"
#include "serve/fleet.h"
#include "support/status.h"

namespace ds {

class RegisteredCuts;

/// What of a sender's hidden states is published.
struct WantedCuts {
  std::vector<Cut> plain;          // without maps, ascending
  std::vector<MappedCuts> mapped;  // those of plans with maps
  void add(const MappedCuts& cuts);
};

/// A plan of the fleet, with what belongs to it.
struct ServedPlan {
  FleetPlan given;
  Plan plan;
  std::optional<MapSet> maps;
  std::optional<Gate> gate;
  // Of its gate's last requests.
  mutable std::mutex mutex;
  std::optional<DriftWindow> window;
  DriftReport drift;
};

struct ServedModel {
  FleetModel given;
  std::unique_ptr<Checkpoint> checkpoint;
  ModelIdentity identity;
  std::optional<Tokenizer> tokenizer;         // none: the folder has no tokenizer.json
  std::optional<ChatTemplate> chat_template;  // none: it has none
  bool reads_parts = false;                   // the template knows content that is a list of parts
  std::unique_ptr<DeviceModel> model;
  const Receiver* receiver = nullptr;  // of the engine
  std::vector<ServedPlan*> plans;      // as the receiver counts them
  std::vector<const Gate*> gates;
  bool sends = false;             // it is the sender of a plan of the fleet
  WantedCuts wanted;              // by those plans
  std::vector<int32_t> end_ids;   // that end an answer
  std::vector<int32_t> turn_ids;  // that end an answer through the template
  int64_t positions = 0;          // context, prompt and answer together
  std::atomic<bool> drifted{false};

  /// The plan that a variant of the receiver's is of; null: the full prefill.
  ServedPlan* plan_of(const Variant* variant) const;
};

/// Who asks.
struct Tenant {
  FleetKey given;
  std::atomic<int64_t> running{0};
};

struct LoadFleetOptions {
  bool partial = false;     // leaves out what is broken
  bool check_only = false;  // reads and checks everything, and loads nothing
  std::string cache;        // folder of packed weights and known identities; "": none
  std::function<void(const std::string&)> say = [](const std::string&) {};
};

class LoadedFleet {
 public:
  /// Errors name the model or the plan that is broken, all of them; with `partial` they are left_out(), and
  /// it is an error if nothing is left.
  static Result<std::unique_ptr<LoadedFleet>> load(Fleet fleet, const LoadFleetOptions& options);
  ~LoadedFleet();

  const Fleet& fleet() const { return fleet_; }
  const std::vector<std::unique_ptr<ServedModel>>& models() const { return models_; }
  const std::vector<std::unique_ptr<ServedPlan>>& plans() const { return plans_; }
  const std::vector<std::string>& left_out() const { return left_out_; }
  ServedModel* find(std::string_view name) const;  // null: there is none
  /// The tenant of an API key; null: there is none of that key. Without keys in the fleet everybody is the
  /// same one.
  Tenant* tenant(std::string_view key) const;
  bool has_keys() const { return !fleet_.keys.empty(); }
  const std::shared_ptr<Store>& store() const { return store_; }
  Engine& engine() const { return *engine_; }
  /// Null: the fleet file does not ask for plans that are registered in the store.
  const RegisteredCuts* registered() const { return registered_.get(); }
  Backend& backend() const { return *backend_; }

 private:
  explicit LoadedFleet(Fleet fleet);
  Status open_model(const FleetModel& given, const LoadFleetOptions& options);
  Status open_plan(const FleetPlan& given);
  Status attach(ServedPlan& plan);
  Status load_weights(const LoadFleetOptions& options, std::vector<std::string>& broken);
  Status start_engine();

  Fleet fleet_;
  std::vector<std::string> left_out_;
  std::shared_ptr<Backend> backend_;
  std::shared_ptr<Store> store_;  // the engine keeps it while it hangs
  std::vector<std::unique_ptr<ServedModel>> models_;
  std::vector<std::unique_ptr<ServedPlan>> plans_;
  std::vector<std::unique_ptr<Tenant>> tenants_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<RegisteredCuts> registered_;  // goes first, then the engine
};

}  // namespace ds
