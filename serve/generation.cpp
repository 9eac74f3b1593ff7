#include "serve/generation.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "plans/simulate.h"
#include "runtime/core/sampler.h"
#include "serve/prompt_context.h"
#include "support/units.h"

namespace ds {
namespace {

/// The full prefill of so many tokens, as the plan's machine would take for it; 0: not known.
int64_t predicted_prefill_ns(const ServedModel& model, int64_t tokens) {
  for (const ServedPlan* p : model.plans) {
    const int64_t ns = predicted_ttft_ns(p->plan, p->plan.full_prefill, {tokens - 1, 1, kNoLimit - 1});
    if (ns > 0) return ns;
  }
  return 0;
}

ReuseChoice choose_reuse(const LoadedFleet& fleet, const ServedModel& model, const ApiRequest& request,
                         int64_t tokens) {
  switch (request.reuse) {
    case Reuse::kOff:
      return {Reuse::kOff, "the request has reuse: off"};
    case Reuse::kExact:
      return {Reuse::kExact, "the request has reuse: exact"};
    case Reuse::kAuto:
      break;
  }
  if (!model.given.approximate) return {Reuse::kExact, "the fleet file allows this model exact reuse only"};
  if (fleet.store() == nullptr || model.plans.empty())
    return {Reuse::kExact, "the fleet file has no plan for this model"};
  if (fleet.fleet().exact_on_drift && model.drifted)
    return {Reuse::kExact, "the last requests are not like the profile's (drift)"};
  const double ttft_ms = request.slo_ttft_ms.value_or(fleet.fleet().ttft_ms);
  const int64_t predicted = ttft_ms > 0 ? predicted_prefill_ns(model, tokens) : 0;
  if (predicted > 0 && static_cast<double>(predicted) <= ttft_ms * 1e6)
    return {Reuse::kExact, fmt::format("a full prefill is predicted to take {}, within the objective",
                                       format_ns(predicted))};
  return {};
}

}  // namespace

TokenLogprob TokenLogprob::of(int32_t token, std::span<const float> logits, int64_t top) {
  const float most = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (float x : logits) sum += std::exp(static_cast<double>(x - most));
  const double norm = static_cast<double>(most) + std::log(sum);
  TokenLogprob out{token, static_cast<double>(logits[static_cast<size_t>(token)]) - norm, {}};
  std::vector<int32_t> ids(logits.size());
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>(i);
  const auto count = std::min<size_t>(static_cast<size_t>(top), ids.size());
  std::partial_sort(ids.begin(), ids.begin() + static_cast<int64_t>(count), ids.end(),
                    [&](int32_t a, int32_t b) {
                      const float x = logits[static_cast<size_t>(a)], y = logits[static_cast<size_t>(b)];
                      return x > y || (x == y && a < b);
                    });
  for (size_t i = 0; i < count; ++i)
    out.top.emplace_back(ids[i], static_cast<double>(logits[static_cast<size_t>(ids[i])]) - norm);
  return out;
}

ApiFault Generation::start(LoadedFleet& fleet, Options options, std::shared_ptr<Generation>& out) {
  out = std::make_shared<Generation>();
  if (ApiFault fault = out->submit(fleet, options)) {
    out->cancel();
    out.reset();
    return fault;
  }
  return std::nullopt;
}

Generation::~Generation() = default;

ApiFault Generation::submit(LoadedFleet& fleet, const Options& options) {
  const ApiRequest& request = *options.request;
  ServedModel& model = *options.model;
  const Fleet& limits = fleet.fleet();
  prompts_ = options.prompts;
  n_ = request.n;
  asked_stops_ = request.stop_ids;
  // A stop text that is a special token's is never part of a text: its id ends the answer.
  for (const std::string& stop : request.stops) {
    const int32_t id = model.tokenizer ? model.tokenizer->token_id(stop) : -1;
    if (id < 0) continue;
    auto text = model.tokenizer->decode({&id, 1}, true);
    if (text.ok() && text->empty()) asked_stops_.push_back(id);
  }
  const int64_t vocab = model.checkpoint->config().vocab;
  for (const auto& [id, by] : request.rules.bias)
    if (id >= vocab)
      return ApiError::of_field(
          "logit_bias", fmt::format("token id {} is outside the model's vocabulary 0-{}", id, vocab - 1));
  std::vector<int64_t> contexts, new_tokens;
  for (const auto& ids : prompts_) {
    const auto tokens = static_cast<int64_t>(ids.size());
    if (tokens == 0)
      return ApiError::of_field(request.chat ? "messages" : "prompt",
                                "the prompt has no tokens; at least one is needed to answer from");
    for (int32_t id : ids)
      if (id < 0 || id >= vocab)
        return ApiError::of_field(
            "prompt", fmt::format("token id {} is outside the model's vocabulary 0-{}", id, vocab - 1));
    // The last token is not read itself.
    const int64_t left = std::min(model.positions - tokens + 1, limits.new_tokens);
    const int64_t wanted = request.max_tokens.value_or(request.chat ? std::max<int64_t>(1, left) : 16);
    if (wanted > left && (request.max_tokens || left < 1)) {
      return ApiError{
          400,
          fmt::format(
              "This model's maximum context length is {} tokens. However, you requested {} tokens ({} in the "
              "messages, {} in the completion, of which this server gives {} at the most). Please reduce the "
              "length of the messages or completion.",
              model.positions, tokens + wanted, tokens, wanted, limits.new_tokens),
          "invalid_request_error", request.chat ? "messages" : "prompt", "context_length_exceeded"};
    }
    new_tokens.push_back(std::min(wanted, left));
    const RowBytes& bytes = model.receiver->row_bytes();
    const int64_t least = bytes.cache(tokens + new_tokens.back() - 1) + tokens * bytes.hidden;
    if (least > limits.cache_bytes)
      return ApiError{400,
                      fmt::format("the request needs {} of memory for caches and this server has {} in all; "
                                  "shorten it, or lower max_tokens",
                                  format_bytes(least), format_bytes(limits.cache_bytes)),
                      "invalid_request_error", "max_tokens", "context_length_exceeded"};
  }
  reuse_ = choose_reuse(fleet, model, request, static_cast<int64_t>(prompts_[0].size()));
  for (const auto& ids : prompts_) contexts.push_back(shared_blocks(static_cast<int64_t>(ids.size())));
  choices_.resize(prompts_.size() * static_cast<size_t>(n_));
  for (size_t c = 0; c < choices_.size(); ++c) {
    Open& open = choices_[c];
    open.waiting.choice = c;
    if (model.tokenizer)
      open.text.emplace(*model.tokenizer, request.skip_special_tokens, request.stops, request.min_tokens);
    auto ticket = fleet.engine().submit(
        engine_request(fleet, options, c, contexts[prompt_of(c)], new_tokens[prompt_of(c)]));
    if (!ticket.ok()) {
      if (ticket.status().code() == Code::kExhausted)
        return ApiError{429, ticket.status().message(), "rate_limit_error", "", "rate_limit_exceeded", 1};
      return ApiError::of(ticket.status());
    }
    std::lock_guard lock(mutex_);
    open.ticket = std::move(ticket).value();
  }
  return std::nullopt;
}

EngineRequest Generation::engine_request(LoadedFleet& fleet, const Options& options, size_t choice,
                                         int64_t context, int64_t new_tokens) {
  const ApiRequest& request = *options.request;
  const ServedModel& model = *options.model;
  const auto& ids = prompts_[prompt_of(choice)];
  EngineRequest r;
  r.receiver = model.receiver;
  r.context.assign(ids.begin(), ids.begin() + context);
  r.suffix.assign(ids.begin() + context, ids.end());
  r.store = fleet.store().get();
  r.store_owner = fleet.store();
  r.salt = options.salt;
  r.reuse = reuse_.reuse;
  // The operator's word holds: a request may ask for less loss, not for more.
  r.loss_limit = fleet.fleet().loss;
  if (request.slo_loss && !(r.loss_limit < *request.slo_loss)) r.loss_limit = *request.slo_loss;
  if (reuse_.reuse == Reuse::kAuto) r.gates = model.gates;
  r.time_limit_ns = static_cast<int64_t>(fleet.fleet().request_s * 1e9);
  r.sampling.temperature = request.temperature;
  r.sampling.top_p = request.top_p;
  r.sampling.top_k = static_cast<int32_t>(request.top_k);
  r.sampling.min_p = request.min_p;
  r.rules = request.rules;
  static thread_local std::mt19937_64 random{std::random_device{}()};
  r.sampling.seed = request.seed ? *request.seed + choice : random();
  r.max_new_tokens = new_tokens;
  r.min_new_tokens = request.min_tokens;
  // As vLLM: what does not end the answer is withheld by min_tokens all the same.
  (request.ignore_eos ? r.withheld_ids : r.stop_ids) = request.chat ? model.turn_ids : model.end_ids;
  r.stop_ids.insert(r.stop_ids.end(), asked_stops_.begin(), asked_stops_.end());
  Open* open = &choices_[choice];
  auto self = shared_from_this();
  if (request.logprobs)
    r.on_logits = [self, open, top = *request.logprobs](int32_t token, std::span<const float> logits) {
      TokenLogprob found = TokenLogprob::of(token, logits, top);
      std::lock_guard lock(self->mutex_);
      open->waiting.logprobs.push_back(std::move(found));
    };
  // Who is woken finds the lock free.
  r.is_last = [self, open](int32_t token) {
    bool over = false;
    {
      std::lock_guard lock(self->mutex_);
      open->waiting.tokens.push_back(token);
      if (open->text) {
        auto text = open->text->push(token);
        if (text.ok())
          open->waiting.text += *text;
        else
          open->decoding = text.status();
      }
      over = !open->decoding.ok() || (open->text && open->text->stopped());
    }
    self->changed_.notify_one();
    return over;
  };
  r.on_end = [self, open] {
    {
      std::lock_guard lock(self->mutex_);
      open->ended = true;
    }
    self->changed_.notify_one();
  };
  return r;
}

void Generation::finish(Open& open, Piece& piece) {
  FinishedChoice& out = open.finished.emplace();
  auto answer = open.ticket->wait();
  out.status = answer.ok() ? open.decoding : answer.status();
  if (!out.status.ok()) return;
  out.answer = std::move(answer).value();
  out.finish_reason = "length";
  if (open.text) {
    auto rest = open.text->finish();
    if (!rest.ok()) {
      out.status = rest.status();
      return;
    }
    piece.text += *rest;
    if (open.text->stopped()) {
      out.finish_reason = "stop";
      out.stop_reason = *open.text->stopped();
    }
  }
  if (out.answer.stopped) {
    out.finish_reason = "stop";
    if (std::find(asked_stops_.begin(), asked_stops_.end(), out.answer.stop_token) != asked_stops_.end())
      out.stop_reason = out.answer.stop_token;
  }
}

std::optional<Piece> Generation::next(std::chrono::milliseconds most) {
  std::unique_lock lock(mutex_);
  Open* found = nullptr;
  auto look = [&] {
    for (size_t i = 0; i < choices_.size() && found == nullptr; ++i) {
      Open& open = choices_[(next_ + i) % choices_.size()];
      if (open.finished) continue;
      if (open.ended || !open.waiting.tokens.empty()) found = &open;
    }
    return found != nullptr;
  };
  if (!changed_.wait_for(lock, most, look)) return std::nullopt;
  const size_t choice = found->waiting.choice;
  next_ = choice + 1;
  Piece piece = std::move(found->waiting);
  found->waiting = {};
  found->waiting.choice = choice;
  if (found->ended) {
    finish(*found, piece);
    piece.ended = true;
    ++taken_;
  }
  return piece;
}

void Generation::cancel() {
  std::vector<std::shared_ptr<Ticket>> tickets;
  {
    std::lock_guard lock(mutex_);
    for (Open& open : choices_)
      if (open.ticket) tickets.push_back(open.ticket);
  }
  for (const auto& ticket : tickets) ticket->cancel();
}

}  // namespace ds
