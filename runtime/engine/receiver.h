// A model that answers, and the plans by which it reuses what others have computed. Immutable; an engine has
// many.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "plans/plan.h"
#include "runtime/backends/backend.h"
#include "runtime/core/op_calls.h"
#include "runtime/engine/kv_arena.h"
#include "runtime/model/maps.h"
#include "support/status.h"

namespace ds {

/// One sender's plan for a receiver, with the maps that it names where it needs them (check_maps()).
struct ReceiverPlan {
  const Plan* plan = nullptr;
  const MapSet* maps = nullptr;
};

class Receiver {
 public:
  /// `model` and the plans outlive the receiver; maps are copied. `name` is for people. Errors: kMismatch (a
  /// plan of another shape, or for another receiver), and those of check_maps().
  static Result<std::unique_ptr<Receiver>> create(std::string name, DeviceModel& model,
                                                  const ModelIdentity& identity,
                                                  std::span<const ReceiverPlan> plans = {});

  const std::string& name() const { return name_; }
  DeviceModel& model() const { return model_; }
  const ModelIdentity& identity() const { return identity_; }
  /// The full prefill, for requests without a plan.
  const Plan& exact() const { return exact_; }
  size_t plans() const { return plans_.size(); }
  const Plan& plan(size_t i) const { return *plans_[i].plan; }
  /// The same, for who may outlive both the receiver and that plan.
  const std::shared_ptr<const Plan>& own_plan(size_t i) const { return plans_[i].own; }
  const DeviceMaps& maps(size_t plan) const { return plans_[plan].maps; }
  /// Which E of the entry a variant reads: entry_map() of the plan's maps.
  const std::string& entry_map(size_t plan, MapForm form) const {
    return plans_[plan].entry_maps[static_cast<size_t>(form)];
  }
  const RowBytes& row_bytes() const { return row_bytes_; }

 private:
  Receiver(std::string name, DeviceModel& model, const ModelIdentity& identity)
      : name_(std::move(name)), model_(model), identity_(identity) {}
  struct Loaded {
    const Plan* plan = nullptr;
    std::shared_ptr<const Plan> own;
    DeviceMaps maps;
    std::string entry_maps[kMapForms];
  };

  std::string name_;
  DeviceModel& model_;
  ModelIdentity identity_;
  Plan exact_;
  std::vector<Loaded> plans_;
  RowBytes row_bytes_;
};

}  // namespace ds
