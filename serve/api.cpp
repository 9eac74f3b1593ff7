#include "serve/api.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <ctime>
#include <random>
#include <span>

#include "runtime/model/joined_text.h"
#include "runtime/store/entry.h"
#include "serve/chat_prompt.h"
#include "serve/openai_answer.h"
#include "serve/prompt_context.h"
#include "serve/status_page.h"
#include "support/hash.h"

namespace ds {
namespace {

using Json = nlohmann::ordered_json;
constexpr size_t kRecent = 32, kRememberedPublications = 256;
constexpr int64_t kMostPublications = 16;
constexpr std::chrono::milliseconds kMoment{100};

HttpReply reply(const Json& json) { return {.body = json_text(json)}; }

HttpReply reply(const ApiError& fault) {
  HttpReply out{.status = fault.status, .body = json_text(fault.json())};
  if (fault.retry_after > 0) out.headers.emplace_back("Retry-After", std::to_string(fault.retry_after));
  if (fault.status == 401) out.headers.emplace_back("WWW-Authenticate", "Bearer");
  return out;
}

std::string new_id() {
  static thread_local std::mt19937_64 random{std::random_device{}()};
  return fmt::format("{:016x}{:016x}", random(), random());
}

/// Of entries and cached beginnings: the tenant's own, and what the request adds to it.
std::string salt_of(const Tenant& tenant, const std::string& cache_salt) {
  if (cache_salt.empty()) return tenant.given.salt;
  return tenant.given.salt.empty() ? cache_salt : tenant.given.salt + "\n" + cache_salt;
}

}  // namespace

/// A request from when it was let in until it has ended or was given up.
class RunningRequest {
 public:
  RunningRequest(Api& api, Tenant& tenant, ServedModel& model, ApiRequest request, std::string id)
      : api_(api), tenant_(tenant), model_(model), request_(std::move(request)), id_(std::move(id)) {}
  RunningRequest(const RunningRequest&) = delete;
  ~RunningRequest() {
    const bool ended = generation_ == nullptr || generation_->done();
    if (!ended) generation_->cancel();
    api_.metrics_.request(model_.given.name, generation_ == nullptr ? "refused"
                                             : !ended               ? "cancelled"
                                             : failed_              ? "failed"
                                                                    : "ok");
    api_.leave(tenant_);
  }

  ApiFault begin(std::vector<std::vector<int32_t>> prompts) {
    const std::string salt = salt_of(tenant_, request_.cache_salt);
    if (ApiFault fault =
            Generation::start(api_.fleet_, {&model_, std::move(prompts), &request_, salt}, generation_))
      return fault;
    writer_ = std::make_unique<AnswerWriter>(request_, (request_.chat ? "chatcmpl-" : "cmpl-") + new_id(),
                                             model_.given.name, std::time(nullptr),
                                             model_.tokenizer ? &*model_.tokenizer : nullptr, *generation_);
    summaries_.resize(generation_->choices());
    return std::nullopt;
  }
  const ApiRequest& request() const { return request_; }
  Generation& generation() { return *generation_; }
  AnswerWriter& writer() { return *writer_; }
  const std::vector<AnswerSummary>& summaries() const { return summaries_; }

  /// What a piece's end means for everybody else; null where it is no end, or a failure.
  const AnswerSummary* note(const Piece& piece) {
    const AnswerSummary* summary = nullptr;
    if (piece.ended) {
      const FinishedChoice& end = generation_->finished(piece.choice);
      if (end.status.ok())
        summary = &noted(piece.choice, end);
      else
        failed_ = true;
    }
    writer_->count(piece, summary);
    return summary;
  }
  /// Of the choice that has failed.
  ApiError fault(size_t choice) const {
    const Status& status = generation_->finished(choice).status;
    api_.options_.log(fmt::format("request {} failed: {}", id_, status.message()));
    return ApiError::of(status);
  }

 private:
  const AnswerSummary& noted(size_t choice, const FinishedChoice& end) {
    AnswerSummary& s = summaries_[choice] = AnswerSummary::of(model_, *generation_, choice);
    api_.metrics_.answered(model_, s, end.answer);
    const double ttft_ms = request_.slo_ttft_ms.value_or(api_.fleet_.fleet().ttft_ms);
    if (ttft_ms > 0 && static_cast<double>(s.ttft_ns) > ttft_ms * 1e6) api_.metrics_.objective_missed("ttft");
    if (end.answer.cache == CacheStatus::kMiss && api_.options_.log_requests)
      api_.options_.log(
          fmt::format("request {}: the entry of its context: {}", id_, end.answer.miss.message()));
    api_.watch_drift(model_, end.answer);
    if (choice % static_cast<size_t>(request_.n) == 0)
      api_.publish(model_, generation_->prompts()[generation_->prompt_of(choice)],
                   salt_of(tenant_, request_.cache_salt));
    Json line = {{"time", std::time(nullptr)},
                 {"id", id_},
                 {"model", model_.given.name},
                 {"kind", request_.chat ? "chat" : "completion"},
                 {"prompt_tokens", s.prompt_tokens},
                 {"cached_tokens", s.cached_tokens},
                 {"generated_tokens", s.new_tokens},
                 {"finish_reason", end.finish_reason},
                 {"duration_ms", static_cast<double>(s.end_ns) / 1e6}};
    line.update(s.json());
    if (api_.options_.log_requests) {
      Json with = line;
      if (!tenant_.given.tenant.empty()) with["tenant"] = tenant_.given.tenant;
      api_.options_.log(json_text(with));
    }
    std::lock_guard lock(api_.mutex_);
    api_.recent_.push_front(std::move(line));
    if (api_.recent_.size() > kRecent) api_.recent_.pop_back();
    return s;
  }

  Api& api_;
  Tenant& tenant_;
  ServedModel& model_;
  const ApiRequest request_;
  const std::string id_;
  std::shared_ptr<Generation> generation_;
  std::unique_ptr<AnswerWriter> writer_;
  std::vector<AnswerSummary> summaries_;  // by choice
  bool failed_ = false;
};

namespace {

class AnswerStream : public EventStream {
 public:
  explicit AnswerStream(std::unique_ptr<RunningRequest> running)
      : running_(std::move(running)), opened_(running_->generation().choices()) {}

  bool next(std::string& out) override {
    if (over_) return false;
    auto piece = running_->generation().next(kMoment);
    if (!piece) return true;
    AnswerWriter& writer = running_->writer();
    const AnswerSummary* summary = running_->note(*piece);
    if (piece->ended && summary == nullptr) {
      out += sse_event(running_->fault(piece->choice).json());
    } else {
      if (!opened_[piece->choice]) {
        opened_[piece->choice] = true;
        const Json opening = writer.opening(piece->choice);
        if (!opening.is_null()) out += sse_event(opening);
      }
      const ApiRequest& request = running_->request();
      // Text that is held back is no chunk yet.
      if (!piece->text.empty() || piece->ended || request.return_token_ids || request.logprobs)
        out += sse_event(writer.chunk(*piece, summary));
    }
    if (running_->generation().done()) {
      if (running_->request().include_usage) out += sse_event(writer.usage_chunk());
      out += "data: [DONE]\n\n";
      over_ = true;
    }
    return true;
  }

 private:
  std::unique_ptr<RunningRequest> running_;
  std::vector<bool> opened_;
  bool over_ = false;
};

}  // namespace

Api::Api(LoadedFleet& fleet, ApiOptions options)
    : fleet_(fleet), options_(std::move(options)), metrics_(fleet), started_s_(std::time(nullptr)) {}

Api::~Api() = default;

HttpReply Api::handle(const HttpCall& call) {
  HttpReply out = route(call);
  static constexpr std::string_view kPaths[] = {"/",
                                                "/health",
                                                "/status",
                                                "/metrics",
                                                "/v1/models",
                                                "/v1/completions",
                                                "/v1/chat/completions",
                                                "/tokenize",
                                                "/detokenize"};
  const bool known = std::find(std::begin(kPaths), std::end(kPaths), call.path) != std::end(kPaths);
  metrics_.http(known ? call.path : "other", out.status);
  return out;
}

HttpReply Api::route(const HttpCall& call) {
  const bool get = call.method == "GET", post = call.method == "POST";
  if (get && call.path == "/health") return health();
  if (get && call.path == "/metrics")
    return {.type = "text/plain; version=0.0.4; charset=utf-8", .body = metrics_.text()};
  if (get && call.path == "/status") return status();
  if (get && call.path == "/")
    return {.type = "text/html; charset=utf-8", .body = std::string(status_page())};
  Tenant* tenant = fleet_.tenant(call.key);
  if (tenant == nullptr)
    return reply(ApiError{401,
                          call.key.empty()
                              ? "no API key was given; expected the header 'Authorization: Bearer KEY'"
                              : "the API key is none of this server's",
                          "authentication_error", "", "invalid_api_key"});
  if (get && call.path == "/v1/models") return list_models();
  if (post && call.path == "/v1/completions") return answer(call, *tenant, false);
  if (post && call.path == "/v1/chat/completions") return answer(call, *tenant, true);
  if (post && call.path == "/tokenize") return tokenize(call);
  if (post && call.path == "/detokenize") return detokenize(call);
  if (get && call.path.starts_with("/v1/models/")) {
    ServedModel* model = nullptr;
    if (ApiFault fault = find_model(call.path.substr(11), model)) return reply(*fault);
    const Json all = Json::parse(list_models().body);
    for (const Json& one : all["data"])
      if (one["id"] == model->given.name) return reply(one);
  }
  return reply(ApiError{404, fmt::format("{} {} is not served here", call.method, call.path),
                        "invalid_request_error", "", "not_found"});
}

HttpReply Api::health() const {
  std::lock_guard lock(mutex_);
  if (draining_) return {.status = 503, .body = R"({"status":"draining"})"};
  return {.body = R"({"status":"ok"})"};
}

HttpReply Api::list_models() const {
  Json data = Json::array();
  for (const auto& m : fleet_.models())
    data.push_back({{"id", m->given.name},
                    {"object", "model"},
                    {"created", started_s_},
                    {"owned_by", "droidspeak"},
                    {"root", m->identity.name},
                    {"parent", nullptr},
                    {"max_model_len", m->positions}});
  return reply(Json{{"object", "list"}, {"data", std::move(data)}});
}

ApiFault Api::find_model(const std::string& name, ServedModel*& out) const {
  if (name.empty() && fleet_.models().size() == 1) {
    out = fleet_.models().front().get();
    return std::nullopt;
  }
  if (name.empty())
    return ApiError::of_field("model", "'model' is missing; GET /v1/models lists those that are served");
  out = fleet_.find(name);
  if (out != nullptr) return std::nullopt;
  return ApiError{
      404, fmt::format("The model `{}` does not exist; GET /v1/models lists those that are served.", name),
      "invalid_request_error", "model", "model_not_found"};
}

ApiFault Api::prompt_ids(const ServedModel& model, const ApiRequest& request,
                         std::vector<std::vector<int32_t>>& out) const {
  auto encode = [&](const std::string& text, bool add_special) -> ApiFault {
    const char* field = request.chat ? "messages" : "prompt";
    if (!model.tokenizer)
      return ApiError::of_field(
          field, fmt::format("model '{}' has no tokenizer.json to read text with; give token ids",
                             model.given.name));
    auto ids = text_ids(*model.tokenizer, text, add_special);
    if (!ids.ok()) return ApiError::of_field(field, ids.status().message());
    out.push_back(std::move(*ids));
    return std::nullopt;
  };
  if (request.chat) {
    std::string text;
    if (ApiFault fault = render_chat(model, request.conversation, text)) return fault;
    return encode(text, request.add_special_tokens);
  }
  for (const Prompt& prompt : request.prompts) {
    if (prompt.is_ids)
      out.push_back(prompt.ids);
    else if (ApiFault fault = encode(prompt.text, request.add_special_tokens))
      return fault;
  }
  return std::nullopt;
}

HttpReply Api::tokenize(const HttpCall& call) {
  Json body;
  if (ApiFault fault = parse_body(call.body, body)) return reply(*fault);
  Fields f(body);
  ServedModel* model = nullptr;
  if (ApiFault fault = find_model(f.text("model").value_or(""), model)) return reply(*fault);
  ApiRequest request;
  request.chat = f.has("messages");
  request.add_special_tokens = f.boolean("add_special_tokens").value_or(!request.chat);
  const bool strings = f.boolean("return_token_strs").value_or(false);
  if (request.chat) {
    ApiRequest chat;
    chat.chat = true;
    if (ApiFault fault = parse_request(call.body, chat)) return reply(*fault);
    request.conversation = std::move(chat.conversation);
  } else {
    if (!f.has("prompt")) f.fail("prompt", "'prompt' or 'messages' is missing");
    request.prompts.push_back({f.text("prompt").value_or(""), {}, false});
  }
  if (f.fault()) return reply(*f.fault());
  std::vector<std::vector<int32_t>> ids;
  if (ApiFault fault = prompt_ids(*model, request, ids)) return reply(*fault);
  Json out = {{"count", ids[0].size()},
              {"max_model_len", model->positions},
              {"tokens", ids[0]},
              {"token_strs", nullptr}};
  if (strings) {
    out["token_strs"] = Json::array();
    for (int32_t id : ids[0]) {
      auto text = model->tokenizer->decode({&id, 1}, false);
      out["token_strs"].push_back(text.ok() ? *text : "");
    }
  }
  return reply(out);
}

HttpReply Api::detokenize(const HttpCall& call) {
  Json body;
  if (ApiFault fault = parse_body(call.body, body)) return reply(*fault);
  Fields f(body);
  ServedModel* model = nullptr;
  if (ApiFault fault = find_model(f.text("model").value_or(""), model)) return reply(*fault);
  if (!f.has("tokens"))
    return reply(ApiError::of_field("tokens", "'tokens' is missing; expected a list of token ids"));
  auto ids = token_ids(f.at("tokens"));
  if (!ids) return reply(ApiError::of_field("tokens", "'tokens' is no list of token ids"));
  if (!model->tokenizer)
    return reply(
        ApiError::of_field("model", fmt::format("model '{}' has no tokenizer.json", model->given.name)));
  auto text = model->tokenizer->decode(*ids, false);
  if (!text.ok()) return reply(ApiError::of(text.status()));
  return reply(Json{{"prompt", *text}});
}

bool Api::enter(Tenant& tenant, HttpReply& refusal) {
  std::lock_guard lock(mutex_);
  if (draining_) {
    refusal = reply(ApiError{503, "the server is shutting down; ask again, or ask another replica",
                             "server_error", "", "unavailable", 1});
    return false;
  }
  if (tenant.given.requests > 0 && tenant.running >= tenant.given.requests) {
    refusal = reply(ApiError{
        429,
        fmt::format("{} requests of this API key run already, which is its limit", tenant.given.requests),
        "rate_limit_error", "", "rate_limit_exceeded", 1});
    return false;
  }
  ++tenant.running;
  ++running_;
  return true;
}

void Api::leave(Tenant& tenant) {
  std::lock_guard lock(mutex_);
  --tenant.running;
  if (--running_ == 0) idle_.notify_all();
}

void Api::drain() {
  std::unique_lock lock(mutex_);
  draining_ = true;
  idle_.wait(lock, [&] { return running_ == 0; });
}

HttpReply Api::answer(const HttpCall& call, Tenant& tenant, bool chat) {
  ApiRequest request;
  request.chat = chat;
  if (ApiFault fault = parse_request(call.body, request)) return reply(*fault);
  ServedModel* model = nullptr;
  if (ApiFault fault = find_model(request.model, model)) return reply(*fault);
  if (!request.stops.empty() && !model->tokenizer)
    return reply(ApiError::of_field(
        "stop",
        fmt::format("model '{}' has no tokenizer.json to read the answer's text with; give stop_token_ids",
                    model->given.name)));
  std::vector<std::vector<int32_t>> prompts;
  if (ApiFault fault = prompt_ids(*model, request, prompts)) return reply(*fault);
  HttpReply refusal;
  if (!enter(tenant, refusal)) return refusal;
  const bool stream = request.stream;
  auto running = std::make_unique<RunningRequest>(*this, tenant, *model, std::move(request), call.id);
  if (ApiFault fault = running->begin(std::move(prompts))) return reply(*fault);
  if (stream) {
    HttpReply out{.type = "text/event-stream"};
    out.headers.emplace_back("Cache-Control", "no-cache");
    out.stream = std::make_shared<AnswerStream>(std::move(running));
    return out;
  }
  auto looked = std::chrono::steady_clock::now();
  while (!running->generation().done()) {
    auto piece = running->generation().next(kMoment);
    // What nobody waits for any more is no answer; the connection is closed behind it.
    if (const auto now = std::chrono::steady_clock::now(); now - looked >= kMoment) {
      looked = now;
      if (call.gone && call.gone()) return {.status = 499};
    }
    if (!piece) continue;
    const AnswerSummary* summary = running->note(*piece);
    if (piece->ended && summary == nullptr) return reply(running->fault(piece->choice));
    running->writer().add(*piece);
  }
  return reply(running->writer().whole(running->summaries()));
}

void Api::watch_drift(ServedModel& model, const EngineAnswer& answer) {
  if (!answer.gate.checked) return;
  ServedPlan* plan = model.plan_of(answer.gate.variant);
  if (plan == nullptr || !plan->window) return;
  const GateReference* reference = plan->gate->reference(*answer.gate.variant);
  if (reference == nullptr) return;
  std::lock_guard lock(plan->mutex);
  const DriftReport::State before = plan->drift.state;
  plan->window->add(reference->way, answer.gate);
  plan->drift = plan->window->report(*reference, plan->gate->false_alarms());
  if (plan->drift.state == before) return;
  if (plan->drift.state == DriftReport::State::kDrifted) {
    model.drifted = true;
    options_.log(fmt::format("plan '{}', model '{}': {}{}", plan->given.file, model.given.name,
                             plan->drift.text(),
                             fleet_.fleet().exact_on_drift ? "; it answers by itself from now on" : ""));
  } else if (before == DriftReport::State::kDrifted) {
    model.drifted = false;
    options_.log(
        fmt::format("plan '{}', model '{}': {}", plan->given.file, model.given.name, plan->drift.text()));
  }
}

void Api::publish(const ServedModel& model, const std::vector<int32_t>& prompt, const std::string& salt) {
  const int64_t tokens = shared_blocks(static_cast<int64_t>(prompt.size()));
  if (!model.given.publish || !model.sends || tokens == 0) return;
  EnginePublication publication;
  publication.sender = model.receiver;
  publication.context.assign(prompt.begin(), prompt.begin() + tokens);
  publication.store = fleet_.store();
  publication.options.cuts = model.plain_cuts.cuts;
  publication.options.more = model.mapped;
  publication.options.salt = salt;
  publication.options.only_new = true;  // a conversation grows
  const std::string name =
      sha256_hex(model.given.name + "\n" + salt + "\n" + hash_tokens(publication.context));
  {
    std::lock_guard lock(mutex_);
    if (std::find(published_.begin(), published_.end(), name) != published_.end()) return;
    published_.push_front(name);
    if (published_.size() > kRememberedPublications) published_.pop_back();
  }
  // What finds no room now is published when it is asked for again.
  auto forget = [&] {
    std::lock_guard lock(mutex_);
    std::erase(published_, name);
  };
  if (fleet_.engine().stats().publications_open >= kMostPublications) return forget();
  auto ticket = fleet_.engine().publish(std::move(publication));
  if (ticket.ok()) return;
  forget();
  options_.log(fmt::format("model '{}': publishing {} tokens: {}", model.given.name, tokens,
                           ticket.status().message()));
}

HttpReply Api::status() const {
  Json models = Json::array(), plans = Json::array(), recent = Json::array();
  auto number = [](double x) { return std::isnan(x) ? Json() : Json(x); };
  for (const auto& m : fleet_.models()) {
    Json names = Json::array();
    for (const ServedPlan* p : m->plans) names.push_back(p->plan.sender.name);
    models.push_back({{"name", m->given.name},
                      {"reuse", m->given.approximate ? "approximate" : "exact"},
                      {"senders", names},
                      {"publishes", m->given.publish},
                      {"chat", m->chat_template.has_value()},
                      {"max_model_len", m->positions},
                      {"drifted", m->drifted.load()}});
  }
  for (const auto& p : fleet_.plans()) {
    Json variants = Json::array();
    for (const Variant& v : p->plan.variants)
      variants.push_back({{"name", v.name},
                          {"way", v.way},
                          {"tokens", {v.tokens_min, v.tokens_max == kNoLimit ? Json() : Json(v.tokens_max)}},
                          {"loss", number(v.promise.quality_loss)},
                          {"loss_bound", number(v.promise.loss_bound)},
                          {"ttft_ms", static_cast<double>(v.promise.ttft_ns) / 1e6}});
    Json one = {{"sender", p->plan.sender.name},
                {"receiver", p->plan.receiver.name},
                {"variants", variants},
                {"gate", p->gate.has_value()}};
    std::lock_guard lock(p->mutex);
    one["drift"] = p->gate ? Json(p->drift.text()) : Json();
    one["drifted"] = p->drift.state == DriftReport::State::kDrifted;
    plans.push_back(std::move(one));
  }
  const EngineStats s = fleet_.engine().stats();
  const Json engine = {{"submitted", s.submitted},
                       {"finished", s.finished},
                       {"failed", s.failed},
                       {"cancelled", s.cancelled},
                       {"refused", s.refused},
                       {"waiting", s.waiting},
                       {"running", s.running},
                       {"decoding", s.decoding},
                       {"steps", s.steps},
                       {"published", s.published},
                       {"publications_open", s.publications_open},
                       {"entry_hits", s.entry_hits},
                       {"entry_misses", s.entry_misses},
                       {"gate_checks", s.gate_checks},
                       {"gate_alarms", s.gate_alarms},
                       {"prompt_tokens", s.prompt_tokens},
                       {"cached_tokens", s.cached_tokens},
                       {"new_tokens", s.new_tokens},
                       {"link_bytes", s.link_bytes},
                       {"link_rate", s.link_rate},
                       {"claimed_bytes", s.claimed_bytes},
                       {"peak_bytes", s.peak_bytes},
                       {"prefix_bytes", s.prefix_bytes},
                       {"evictions", s.evictions}};
  std::lock_guard lock(mutex_);
  for (const Json& line : recent_) recent.push_back(line);
  return reply(Json{{"time", std::time(nullptr)},
                    {"started", started_s_},
                    {"draining", draining_},
                    {"left_out", fleet_.left_out()},
                    {"cache_bytes", fleet_.fleet().cache_bytes},
                    {"models", models},
                    {"plans", plans},
                    {"engine", engine},
                    {"recent", recent}});
}

}  // namespace ds
