#include "tools/ds-bench/serve_models.h"

#include <random>

#include "compiler/compile.h"
#include "compiler/scheduling/cost_model.h"
#include "runtime/core/publish.h"
#include "tools/ds-bench/measured_machine.h"
#include "tools/ds-bench/rounds.h"
#include "tools/ds-bench/synthetic_pair.h"

namespace ds {

void add_serve_models(CLI::App& cmd, ServeModelOptions& o) {
  add_random_model(cmd, o.model);
  cmd.add_option("--sender", o.sender_folder,
                 "folder of the model that has read the contexts; default: random weights")
      ->check(CLI::ExistingDirectory);
  cmd.add_option("--receiver", o.receiver_folders, "folder of one that answers (repeatable), with --sender")
      ->check(CLI::ExistingDirectory);
  auto count = [&](const char* name, int64_t& to, const char* help, int64_t most) {
    cmd.add_option(name, to, help)->capture_default_str()->check(CLI::Range(int64_t{1}, most));
  };
  count("--receivers", o.receivers, "models that answer, of random weights", 64);
  count("--context-length", o.context, "tokens of a context", 1 << 20);
  count("--suffix-length", o.suffix, "tokens of a question", 65536);
  cmd.add_option("--link-rate", o.link_rate, "of the store; default: a multiple of break-even");
  cmd.add_option("--link-times", o.link_times, "which one")->capture_default_str();
  cmd.add_option("--slo-loss", o.slo_loss, "points that may be lost, of the synthetic profile's 30")
      ->capture_default_str();
  cmd.add_option("--step-budget-ms", o.step_budget_ms, "of plan ops beside decoding, at least")
      ->capture_default_str();
  cmd.add_option("--step-budget-share", o.step_budget_share, "of decoding's own time, where that is more")
      ->capture_default_str();
  cmd.add_option("--cache-gib", o.cache_gib, "memory for caches")->capture_default_str();
  cmd.add_option("--machine", o.machine, "machine.json of this shape; default: measured here");
  cmd.add_option("--calibrate-s", o.calibrate_s, "seconds to measure the machine for")->capture_default_str();
}

Result<std::unique_ptr<ServeModels::One>> ServeModels::load_folder(const std::string& folder) {
  DS_ASSIGN(LoadedModel model, load_model(folder, {}, o_.model.on, o_.model.dtype, {}, loaded_.backend));
  loaded_.backend = model.backend;
  auto one = std::make_unique<One>();
  one->checkpoint = std::move(model.checkpoint);
  one->model = std::move(model.model);
  one->identity = std::move(model.identity);
  return one;
}

Status ServeModels::load_models() {
  if (o_.sender_folder.empty() != o_.receiver_folders.empty())
    return error(Code::kInvalidArgument, "{} without {}: name both, or neither for random weights",
                 o_.sender_folder.empty() ? "--receiver" : "--sender",
                 o_.sender_folder.empty() ? "--sender" : "--receiver");
  if (!o_.sender_folder.empty()) {
    DS_ASSIGN(loaded_.dtype, running_dtype(o_.model.dtype));
    DS_ASSIGN(auto sender, load_folder(o_.sender_folder));
    const std::string canonical = sender->model->config().canonical();
    for (const std::string& folder : o_.receiver_folders) {
      DS_ASSIGN(auto one, load_folder(folder));
      if (one->model->config().canonical() != canonical)
        return error(Code::kMismatch, "receiver '{}' has another architecture than sender '{}'; {} and {}",
                     folder, o_.sender_folder, one->model->config().canonical(), canonical);
      receivers_.push_back(std::move(one));
    }
    checkpoint_ = std::move(sender->checkpoint);
    loaded_.model = std::move(sender->model);
    sender_ = std::move(sender->identity);
    return ok_status();
  }
  DS_ASSIGN(ModelConfig config, preset_config(o_.model.shape));
  DS_ASSIGN(loaded_, load_random_model(o_.model, config));
  sender_ = synthetic_inputs(config, std::nullopt).pair.sender;
  ProgressBar bar("loading receivers");
  for (int64_t r = 0; r < o_.receivers; ++r) {
    auto one = std::make_unique<One>();
    DS_ASSIGN(one->model,
              loaded_.backend->load_random(config, {loaded_.dtype}, 100 + static_cast<uint64_t>(r)));
    const std::string name = fmt::format("receiver {}", r);
    one->identity = {.name = name,
                     .fingerprint = sha256_hex(name + config.canonical()),
                     .config = sha256_hex(config.canonical()),
                     .weights = sha256_hex(name),
                     .tokenizer = ""};
    receivers_.push_back(std::move(one));
    bar.update(r + 1, o_.receivers);
  }
  return ok_status();
}

Result<std::unique_ptr<ServeModels>> ServeModels::load(const ServeModelOptions& o, bool in_turns) {
  std::unique_ptr<ServeModels> models(new ServeModels(o));
  ServeModels& m = *models;
  DS_TRY(m.load_models());
  const ModelConfig& config = m.loaded_.model->config();
  DS_ASSIGN(MachineModel machine,
            measured_machine(o.model, m.loaded_, o.machine, {o.context}, o.suffix, o.calibrate_s));
  CostModel costs(machine, config.shape());
  m.even_ = static_cast<double>(o.context * config.kv_row() * dtype_size(m.loaded_.dtype)) /
            costs.layer_ns(o.context, o.context, 0) * 1e9;
  m.rate_ = o.link_times * m.even_;
  if (!o.link_rate.empty()) {
    DS_ASSIGN(m.rate_, parse_rate(o.link_rate));
  }
  CompileInputs inputs = synthetic_inputs(config, machine);
  CompileOptions options;
  options.slo_loss = o.slo_loss;
  options.context_lengths = std::to_string(o.context);
  options.link_rates = fmt::format("{}B/s", std::llround(m.rate_));
  options.suffix_length = o.suffix;
  options.compiler_version = kVersion;
  for (size_t r = 0; r < m.receivers_.size(); ++r) {
    One& one = *m.receivers_[r];
    inputs.pair.sender =
        in_turns ? m.receivers_[(r + m.receivers_.size() - 1) % m.receivers_.size()]->identity : m.sender_;
    inputs.pair.receiver = one.identity;
    DS_ASSIGN(CompileOutput out, compile(inputs, options));
    one.plan = std::move(*out.plan);
  }
  DS_TRY(m.folder_.make("ds-serve"));
  DS_ASSIGN(auto store, open_store("file:" + m.folder_.path + "/store"));
  m.store_ = shape_link(std::move(store), {m.rate_, 0});
  return models;
}

std::string ServeModels::plan_text() const {
  const Variant* v = select_variant(plan(0), o_.context, std::llround(rate_));
  return v == nullptr ? "none"
                      : fmt::format("{}, {} of {} layers recomputed", v->way, recomputed_layers(*v),
                                    plan(0).shape.layers);
}

std::vector<int32_t> ServeModels::ids(int64_t count, uint64_t seed) const {
  std::mt19937_64 random(seed);
  std::vector<int32_t> out(static_cast<size_t>(count));
  for (auto& id : out)
    id = static_cast<int32_t>(random() % static_cast<uint64_t>(loaded_.model->config().vocab));
  return out;
}

Status ServeModels::publish_contexts(int64_t count) {
  std::vector<const Plan*> plans;
  for (const auto& r : receivers_) plans.push_back(&r->plan);
  // Past the link, whose rate is for reading.
  DS_ASSIGN(auto store, open_store("file:" + folder_.path + "/store"));
  ProgressBar bar("publishing contexts");
  for (int64_t c = 0; c < count; ++c) {
    contexts_.push_back(ids(o_.context, 1 + static_cast<uint64_t>(c)));
    DS_ASSIGN([[maybe_unused]] Published entry, publish(*loaded_.backend, *loaded_.model, sender_,
                                                        contexts_.back(), *store, {.cuts = cuts_of(plans)}));
    bar.update(c + 1, count);
  }
  return ok_status();
}

Result<std::unique_ptr<Engine>> ServeModels::make_engine(int64_t tokens, int64_t batch, bool spans) {
  EngineLimits limits{.cache_bytes = static_cast<int64_t>(o_.cache_gib * 0x1p30),
                      .tokens = tokens,
                      .batch = batch,
                      .queue = 1 << 20,
                      .step_budget_ns = std::llround(o_.step_budget_ms * 1e6),
                      .step_budget_share = o_.step_budget_share,
                      .record_spans = spans};
  DS_ASSIGN(auto engine, Engine::create(*loaded_.backend, limits));
  served_.clear();
  for (const auto& r : receivers_) {
    std::vector<ReceiverPlan> plans{{&r->plan, nullptr}};
    DS_ASSIGN(auto receiver, Receiver::create(r->identity.name, *r->model, r->identity, plans));
    DS_ASSIGN(const Receiver* added, engine->add(std::move(receiver)));
    served_.push_back(added);
  }
  return engine;
}

Result<std::unique_ptr<Engine>> ServeModels::make_warm_engine(int64_t tokens, int64_t batch, bool spans) {
  DS_ASSIGN(auto engine, make_engine(tokens, batch, spans));
  EngineRequest warm;
  warm.receiver = served_[0];
  warm.suffix = ids(std::min(o_.context, tokens), 99);
  warm.reuse = Reuse::kOff;
  DS_ASSIGN(auto ticket, engine->submit(std::move(warm)));
  if (auto answer = ticket->wait(); !answer.ok()) return answer.status();
  return engine;
}

}  // namespace ds
