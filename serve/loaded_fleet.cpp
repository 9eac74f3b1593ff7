#include "serve/loaded_fleet.h"

#include <sys/stat.h>

#include <algorithm>

#include "plans/plan_file.h"
#include "plans/quality.h"
#include "runtime/backends/backends.h"
#include "runtime/model/identity.h"
#include "runtime/model/model_folder.h"
#include "runtime/model/verified.h"
#include "serve/registered_cuts.h"
#include "support/file.h"
#include "support/hash.h"
#include "support/units.h"

namespace ds {
namespace {

Result<std::optional<ChatTemplate>> open_template(const FleetModel& given, const Checkpoint& checkpoint) {
  std::string folder = checkpoint.folder_of("chat_template.jinja");
  if (!file_exists(folder + "/chat_template.jinja")) folder = checkpoint.folder_of("tokenizer_config.json");
  if (given.chat_template.empty()) return ChatTemplate::find(folder);
  struct stat info {};
  if (stat(given.chat_template.c_str(), &info) == 0 && S_ISDIR(info.st_mode)) {
    DS_ASSIGN(std::optional<ChatTemplate> found, ChatTemplate::find(given.chat_template));
    if (!found) return error(Code::kNotFound, "chat_template: the folder '{}' has none", given.chat_template);
    return found;
  }
  DS_ASSIGN(ChatTemplate read, ChatTemplate::read(given.chat_template, folder));
  return std::optional<ChatTemplate>(std::move(read));
}

/// Whether the template writes the text of a part, not what the list looks like.
bool template_reads_parts(const ChatTemplate& chat_template) {
  const std::string text = "parts are read";
  Conversation conversation;
  conversation.messages = nlohmann::ordered_json::array(
      {{{"role", "user"}, {"content", nlohmann::ordered_json::array({{{"type", "text"}, {"text", text}}})}}});
  auto rendered = chat_template.render(conversation);
  return rendered.ok() && rendered->find(text) != std::string::npos &&
         rendered->find("'type'") == std::string::npos && rendered->find("\"type\"") == std::string::npos;
}

}  // namespace

void WantedCuts::add(const MappedCuts& cuts) {
  if (cuts.maps != nullptr) {
    if (std::find(mapped.begin(), mapped.end(), cuts) == mapped.end()) mapped.push_back(cuts);
    return;
  }
  plain.insert(plain.end(), cuts.cuts.begin(), cuts.cuts.end());
  std::sort(plain.begin(), plain.end());
  plain.erase(std::unique(plain.begin(), plain.end()), plain.end());
}

ServedPlan* ServedModel::plan_of(const Variant* variant) const {
  for (ServedPlan* p : plans) {
    const auto& variants = p->plan.variants;
    if (variant >= variants.data() && variant < variants.data() + variants.size()) return p;
  }
  return nullptr;
}

LoadedFleet::LoadedFleet(Fleet fleet) : fleet_(std::move(fleet)) {}
LoadedFleet::~LoadedFleet() = default;

ServedModel* LoadedFleet::find(std::string_view name) const {
  for (const auto& m : models_)
    if (m->given.name == name) return m.get();
  return nullptr;
}

Tenant* LoadedFleet::tenant(std::string_view key) const {
  if (!has_keys()) return tenants_.front().get();
  const std::string hash = sha256_hex(key);
  auto bytes = [](const std::string& s) {
    return std::span(reinterpret_cast<const unsigned char*>(s.data()), s.size());
  };
  Tenant* found = nullptr;
  for (const auto& t : tenants_)
    if (same_secret(bytes(hash), bytes(t->given.key_sha256))) found = t.get();
  return found;
}

Status LoadedFleet::open_model(const FleetModel& given, const LoadFleetOptions& options) {
  auto m = std::make_unique<ServedModel>();
  m->given = given;
  DS_ASSIGN(Checkpoint checkpoint,
            Checkpoint::open(given.folder, {.base = given.base, .max_model_len = given.max_model_len}));
  m->checkpoint = std::make_unique<Checkpoint>(std::move(checkpoint));
  options.say(fmt::format("checking '{}' ({})", given.name, format_bytes(m->checkpoint->weight_bytes())));
  DS_ASSIGN(Verified verified, verify_checkpoint(*m->checkpoint, {options.cache, false, {}}));
  m->identity = std::move(verified.identity);
  m->end_ids = m->turn_ids = m->checkpoint->config().eos_token_ids;
  const std::string folder = m->checkpoint->folder_of("tokenizer.json");
  if (file_exists(folder + "/tokenizer.json")) {
    DS_ASSIGN(Tokenizer tokenizer, Tokenizer::load(folder));
    m->tokenizer = std::move(tokenizer);
    DS_ASSIGN(const std::string eos, eos_token_text(m->checkpoint->folder_of("tokenizer_config.json")));
    const int32_t id = eos.empty() ? -1 : m->tokenizer->token_id(eos);
    if (id >= 0 && std::find(m->turn_ids.begin(), m->turn_ids.end(), id) == m->turn_ids.end())
      m->turn_ids.push_back(id);
  }
  DS_ASSIGN(m->chat_template, open_template(given, *m->checkpoint));
  m->reads_parts = m->chat_template && template_reads_parts(*m->chat_template);
  m->positions = std::min(fleet_.tokens, m->checkpoint->config().max_positions);
  models_.push_back(std::move(m));
  return ok_status();
}

Status LoadedFleet::open_plan(const FleetPlan& given) {
  auto p = std::make_unique<ServedPlan>();
  p->given = given;
  DS_ASSIGN(p->plan, read_plan(given.file));
  if (!given.maps.empty()) {
    DS_ASSIGN(p->maps, MapSet::read(given.maps));
    DS_TRY(p->maps->check_plan(given.maps, p->plan));
  }
  if (!given.profile.empty()) {
    DS_ASSIGN(const Quality quality, Quality::read(given.profile));
    DS_TRY(quality.check_pair(given.profile, names_of_model(p->plan.sender), names_of_model(p->plan.receiver),
                              p->plan.shape.layers, "the plan's "));
    DS_ASSIGN(p->gate, Gate::create(p->plan, quality, given.profile, fleet_.false_alarms));
    DS_ASSIGN(const std::string bytes, read_text_file(given.profile));
    DS_ASSIGN(p->window, DriftWindow::make(sha256_hex(bytes), fleet_.window));
  }
  DS_TRY(attach(*p));
  plans_.push_back(std::move(p));
  return ok_status();
}

Status LoadedFleet::attach(ServedPlan& plan) {
  bool answers = false;
  std::vector<ServedModel*> receivers;
  for (auto& m : models_) {
    if (!same_model(plan.plan.receiver, m->identity)) continue;
    answers = true;
    receivers.push_back(m.get());
  }
  if (!answers) {
    std::vector<std::string> there;
    for (auto& m : models_)
      there.push_back(fmt::format("'{}' {:.12}", m->given.name, m->identity.fingerprint));
    return error(Code::kMismatch,
                 "it is for receiver '{}' (fingerprint {:.12}), and no model of the fleet is that one ({}); "
                 "compile it for one of them, or leave it out",
                 plan.plan.receiver.name, plan.plan.receiver.fingerprint, fmt::join(there, ", "));
  }
  DS_TRY(check_maps(plan.plan, plan.maps ? &*plan.maps : nullptr));
  MappedCuts cuts{published_cuts(plan.plan), nullptr};
  if (through_maps(cuts.cuts)) {
    if (!plan.maps)
      return error(Code::kInvalidArgument,
                   "the sender takes its hidden states through the maps '{}'; name the file as 'maps'",
                   plan.plan.maps.name);
    cuts.maps = &*plan.maps;
  }
  for (ServedModel* m : receivers) {
    m->plans.push_back(&plan);
    if (plan.gate) m->gates.push_back(&*plan.gate);
  }
  for (auto& m : models_) {
    if (!same_model(plan.plan.sender, m->identity)) continue;
    m->sends = true;
    m->wanted.add(cuts);
  }
  return ok_status();
}

Status LoadedFleet::load_weights(const LoadFleetOptions& options, std::vector<std::string>& broken) {
  BackendOptions on;
  on.name = fleet_.backend;
  on.cpu.threads = static_cast<int>(fleet_.threads);
  on.cuda.device = static_cast<int>(fleet_.device);
  on.cuda.cache = options.cache;
  DS_ASSIGN(backend_, make_backend(on));
  DS_ASSIGN(const DType dtype, parse_dtype(fleet_.dtype));
  constexpr int64_t kLeastCached = int64_t{256} << 20;
  for (auto at = models_.begin(); at != models_.end();) {
    ServedModel& m = **at;
    options.say(fmt::format("loading '{}'", m.given.name));
    LoadOptions load;
    load.dtype = dtype;
    if (m.checkpoint->weight_bytes() >= kLeastCached) load.weight_cache = options.cache;
    load.fingerprint = m.identity.fingerprint;
    auto loaded = backend_->load(*m.checkpoint, load);
    if (loaded.ok()) {
      m.model = std::move(loaded).value();
      ++at;
      continue;
    }
    broken.push_back(fmt::format("model '{}': {}", m.given.name, loaded.status().message()));
    if (!options.partial) return loaded.status();
    at = models_.erase(at);
  }
  return ok_status();
}

Status LoadedFleet::start_engine() {
  EngineLimits limits{.cache_bytes = fleet_.cache_bytes,
                      .tokens = 1,
                      .batch = fleet_.batch,
                      .queue = fleet_.queue,
                      .step_budget_ns = static_cast<int64_t>(fleet_.step_budget_ms * 1e6),
                      .step_budget_share = fleet_.step_budget_share,
                      .patience_ns = static_cast<int64_t>(fleet_.patience_ms * 1e6)};
  for (auto& m : models_) limits.tokens = std::max(limits.tokens, m->positions);
  DS_ASSIGN(engine_, Engine::create(*backend_, limits));
  // An engine takes the largest shape first.
  std::vector<ServedModel*> order;
  for (auto& m : models_) order.push_back(m.get());
  std::stable_sort(order.begin(), order.end(), [](const ServedModel* a, const ServedModel* b) {
    const ModelConfig &x = a->checkpoint->config(), &y = b->checkpoint->config();
    return std::pair(x.vocab, x.d_model) > std::pair(y.vocab, y.d_model);
  });
  for (ServedModel* m : order) {
    std::vector<ReceiverPlan> plans;
    for (const ServedPlan* p : m->plans) plans.push_back({&p->plan, p->maps ? &*p->maps : nullptr});
    auto receiver = Receiver::create(m->given.name, *m->model, m->identity, plans);
    if (!receiver.ok()) return receiver.status().with_context(fmt::format("model '{}'", m->given.name));
    DS_ASSIGN(m->receiver, engine_->add(std::move(receiver).value()));
  }
  return ok_status();
}

Result<std::unique_ptr<LoadedFleet>> LoadedFleet::load(Fleet given, const LoadFleetOptions& options) {
  std::unique_ptr<LoadedFleet> fleet(new LoadedFleet(std::move(given)));
  const Fleet& f = fleet->fleet_;
  std::vector<std::string> broken;
  Code code = Code::kInvalidArgument;
  auto note = [&](const std::string& what, const Status& status) {
    if (status.ok()) return;
    if (broken.empty()) code = status.code();
    broken.push_back(fmt::format("{}: {}", what, status.message()));
  };
  if (!f.store.empty()) {
    auto store = open_store(f.store);
    if (!store.ok()) return store.status().with_context(f.origin + ": store: url");
    fleet->store_ = std::move(*store);
    if (!f.store_key.empty()) {
      auto key = read_store_key(f.store_key);
      if (!key.ok()) return key.status().with_context(f.origin + ": store: key_file");
      fleet->store_->set_signing(std::move(*key));
    }
  }
  for (const FleetModel& m : f.models) note(fmt::format("model '{}'", m.name), fleet->open_model(m, options));
  for (const FleetPlan& p : f.plans) note(fmt::format("plan '{}'", p.file), fleet->open_plan(p));
  if (f.keys.empty()) {
    fleet->tenants_.push_back(std::make_unique<Tenant>());
  }
  for (const FleetKey& key : f.keys) {
    fleet->tenants_.push_back(std::make_unique<Tenant>());
    fleet->tenants_.back()->given = key;
  }
  auto refuse = [&] {
    return Status(code, fmt::format("{}: {}", f.origin, fmt::join(broken, fmt::format("\n{}: ", f.origin))));
  };
  if (!broken.empty() && (!options.partial || fleet->models_.empty())) return refuse();
  if (f.keys.empty() && !f.host.starts_with("127.") && f.host != "localhost" && f.host != "::1")
    options.say(fmt::format("note: without 'keys' whoever reaches {} is served", f.host));
  for (const auto& m : fleet->models_)
    if (m->given.publish && !m->sends && f.registered_s == 0)
      options.say(fmt::format("note: model '{}' is to publish and is no plan's sender: nothing is published",
                              m->given.name));
  if (!options.check_only) {
    if (Status status = fleet->load_weights(options, broken); !status.ok()) {
      if (broken.empty()) return status;
      code = status.code();
      return refuse();
    }
    if (fleet->models_.empty()) return refuse();
    DS_TRY(fleet->start_engine());
  }
  if (f.registered_s > 0) {
    fleet->registered_ = std::make_unique<RegisteredCuts>(*fleet, options.say);
    fleet->registered_->look();
    if (!options.check_only) DS_TRY(fleet->registered_->keep_looking());
  }
  fleet->left_out_ = std::move(broken);
  return fleet;
}

}  // namespace ds
