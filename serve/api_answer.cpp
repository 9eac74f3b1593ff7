// Answers: a request while it runs, its stream, and what its end means for metrics, drift and publications.
#include <algorithm>
#include <chrono>
#include <ctime>
#include <random>

#include "runtime/store/entry.h"
#include "serve/api_internal.h"
#include "serve/prompt_context.h"
#include "serve/registered_cuts.h"
#include "support/hash.h"

namespace ds {
namespace {

using Json = nlohmann::ordered_json;
constexpr size_t kRecent = 32, kRememberedPublications = 256;
constexpr int64_t kMostPublications = 16;
constexpr std::chrono::milliseconds kMoment{100};

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
    writer_ = std::make_unique<AnswerWriter>(
        request_, (request_.chat ? "chatcmpl-" : "cmpl-") + new_id(), model_.given.name, std::time(nullptr),
        model_.tokenizer ? &*model_.tokenizer : nullptr, model_.given.tools, *generation_);
    summaries_.resize(generation_->choices());
    return std::nullopt;
  }
  const ApiRequest& request() const { return request_; }
  Generation& generation() { return *generation_; }
  AnswerWriter& writer() { return *writer_; }
  const std::vector<AnswerSummary>& summaries() const { return summaries_; }

  /// What a piece's end means for everybody else; null where it is no end, or a failure. Of the piece's text
  /// calls of tools are taken out.
  const AnswerSummary* note(Piece& piece) {
    writer_->take_calls(piece);
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
    if (!s.reason.empty() && api_.options_.log_requests)
      api_.options_.log(
          fmt::format("request {}: the entry of its context: {}{}", id_, end.answer.miss.message(),
                      s.transfers > 0 ? fmt::format("; {} of {} transfers are lost, and computed instead",
                                                    s.lost_transfers, s.transfers)
                                      : ""));
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
      if (!piece->text.empty() || !piece->calls.empty() || piece->ended || request.return_token_ids ||
          request.logprobs)
        out += writer.event(*piece, summary);
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
  // Where calls are looked for, what marks them may be special tokens.
  if (request.has_tools && model->given.tools != ToolFormat::kNone) request.skip_special_tokens = false;
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
  if (!model.given.publish || tokens == 0) return;
  WantedCuts wanted = model.wanted;
  const RegisteredCuts* registered = fleet_.registered();
  const bool anybody = registered != nullptr && registered->add_to(model, wanted);
  if (!model.sends && !anybody) return;
  EnginePublication publication;
  publication.sender = model.receiver;
  publication.context.assign(prompt.begin(), prompt.begin() + tokens);
  publication.store = fleet_.store().get();
  publication.store_owner = fleet_.store();
  publication.options.cuts = std::move(wanted.plain);
  publication.options.more = std::move(wanted.mapped);
  publication.options.salt = salt;
  publication.options.only_new = true;  // a conversation grows
  publication.options.live_rows = model.given.publish_live ? kLiveRows : 0;
  const std::string name =
      sha256_hex(fmt::format("{}\n{}\n{}\n{}", model.given.name, salt, hash_tokens(publication.context),
                             registered == nullptr ? 0 : registered->version()));
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

}  // namespace ds
