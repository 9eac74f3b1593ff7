// What benches of the engine serve: a sender, receivers with their plans, contexts in a store behind a link.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "runtime/engine/engine.h"
#include "tools/ds-bench/bench.h"
#include "tools/host.h"

namespace ds {

struct ServeModelOptions {
  RandomModelOptions model{.shape = "llama:layers=12,d=1024,ff=2816,heads=16,kv=4,vocab=32000", .repeats = 1};
  std::string sender_folder;  // with receiver_folders: these models, instead of random ones
  std::vector<std::string> receiver_folders;
  int64_t receivers = 3, context = 1024, suffix = 16;
  double slo_loss = 4, link_times = 4, calibrate_s = 20, step_budget_ms = 30, step_budget_share = 1,
         cache_gib = 2;
  std::string link_rate, machine;
  const std::string& what() const { return sender_folder.empty() ? model.shape : sender_folder; }
  size_t count() const {
    return receiver_folders.empty() ? static_cast<size_t>(receivers) : receiver_folders.size();
  }
};
void add_serve_models(CLI::App& cmd, ServeModelOptions& o);

class ServeModels {
 public:
  /// Loads the models, measures the machine, and compiles a plan for each receiver: from the sender, or with
  /// `in_turns` from the receiver before it. Plans are chosen by a synthetic profile: what they take is
  /// measured here, what they lose is not.
  static Result<std::unique_ptr<ServeModels>> load(const ServeModelOptions& o, bool in_turns = false);

  size_t receivers() const { return receivers_.size(); }
  const Plan& plan(size_t receiver) const { return receivers_[receiver]->plan; }
  /// "recompute 4-8, 5 of 12 layers recomputed": of the first receiver.
  std::string plan_text() const;
  std::string description() const { return backend().description(); }
  Backend& backend() const { return *loaded_.backend; }
  std::vector<int32_t> ids(int64_t count, uint64_t seed) const;
  /// Random ones, of which the sender publishes entries.
  Status publish_contexts(int64_t count);
  const std::vector<std::vector<int32_t>>& contexts() const { return contexts_; }
  Store& store() const { return *store_; }
  double rate() const { return rate_; }  // of its link, bytes per second
  double break_even() const { return even_; }
  /// With all receivers, which are served() then.
  Result<std::unique_ptr<Engine>> make_engine(int64_t tokens, int64_t batch, bool spans = false);
  const std::vector<const Receiver*>& served() const { return served_; }
  /// An engine that has answered, so that it knows the device.
  Result<std::unique_ptr<Engine>> make_warm_engine(int64_t tokens, int64_t batch, bool spans = false);

 private:
  explicit ServeModels(const ServeModelOptions& o) : o_(o) {}
  struct One {
    std::unique_ptr<Checkpoint> checkpoint;  // of a folder
    std::unique_ptr<DeviceModel> model;
    ModelIdentity identity;
    Plan plan;
  };
  Status load_models();
  Result<std::unique_ptr<One>> load_folder(const std::string& folder);

  const ServeModelOptions o_;
  TemporaryFolder folder_;
  RandomModel loaded_;  // the sender
  std::unique_ptr<Checkpoint> checkpoint_;
  ModelIdentity sender_;
  std::vector<std::unique_ptr<One>> receivers_;
  std::vector<const Receiver*> served_;  // of the engine made last
  std::unique_ptr<Store> store_;
  std::vector<std::vector<int32_t>> contexts_;
  double rate_ = 0, even_ = 0;
};

}  // namespace ds
