#include "runtime/core/session.h"

#include <algorithm>

#include "plans/traits.h"
#include "runtime/core/finite.h"
#include "runtime/core/runnable.h"
#include "runtime/model/identity.h"
#include "runtime/model/shared_vocab.h"
#include "support/clock.h"

namespace ds {
namespace {

constexpr int64_t kNoDeadline = int64_t{1} << 61;  // 73 years: sums do not overflow

std::vector<const Variant*> all_variants(const Plan& plan) {
  std::vector<const Variant*> all{&plan.full_prefill};
  for (const Variant& v : plan.variants) all.push_back(&v);
  return all;
}

}  // namespace

Status check_maps(const Plan& plan, const MapSet* maps) {
  for (const Variant& v : plan.variants) {
    if (!v.aligns()) continue;
    const std::string form(map_form_name(v.map_form));
    if (maps == nullptr)
      return error(
          Code::kInvalidArgument,
          "variant '{}' takes the sender's hidden states through {} maps, which were not given; give the "
          "file of maps '{}' (fingerprint {:.12}) with --maps, or run with --plain-cuts, for which the "
          "plan's promise does not hold",
          v.name, form, plan.maps.name, plan.maps.fingerprint);
    if (maps->d_model != plan.shape.d_model)
      return error(Code::kMismatch, "the maps are for hidden states of width {}, the plan is for {}",
                   maps->d_model, plan.shape.d_model);
    for (const Op& op : v.ops)
      if (op.kind == OpKind::kAlign && maps->find(op.layer, v.map_form) == nullptr)
        return error(
            Code::kNotFound,
            "the maps have no {} map of layer {}, which variant '{}' needs; the plan was compiled with '{}' "
            "(fingerprint {:.12})",
            form, op.layer, v.name, plan.maps.name, plan.maps.fingerprint);
  }
  return ok_status();
}

Session::Session(Backend& backend, DeviceModel& model, const Plan& plan, const SessionLimits& limits,
                 bool plain_cuts)
    : backend_(backend), model_(model), plan_(plan), limits_(limits), plain_cuts_(plain_cuts) {}

Session::~Session() = default;

Result<std::unique_ptr<Session>> Session::create(Backend& backend, DeviceModel& model, const Plan& plan,
                                                 const SessionLimits& limits, const MapSet* maps,
                                                 bool plain_cuts) {
  Shape has = model.config().shape();
  has.family = plan.shape.family;  // the numbers decide
  if (!(has == plan.shape)) {
    return error(
        Code::kMismatch,
        "the plan is for {} layers, d_model {}, {}/{} heads of {}, ff {}, vocabulary {}; the receiver has {} "
        "layers, d_model {}, {}/{} heads of {}, ff {}, vocabulary {}; compile a plan for this receiver",
        plan.shape.layers, plan.shape.d_model, plan.shape.heads, plan.shape.kv_heads, plan.shape.head_dim,
        plan.shape.ff, plan.shape.vocab, has.layers, has.d_model, has.heads, has.kv_heads, has.head_dim,
        has.ff, has.vocab);
  }
  if (limits.context < 0 || limits.suffix < 1 || limits.new_tokens < 1) {
    return error(Code::kInvalidArgument,
                 "session limits: context {} (>= 0), suffix {} (>= 1), new tokens {} (>= 1)", limits.context,
                 limits.suffix, limits.new_tokens);
  }
  int64_t total = limits.context + limits.suffix + limits.new_tokens - 1;
  if (total > model.config().max_positions) {
    return error(Code::kInvalidArgument,
                 "context, prompt and new tokens come to {} positions ({} + {} + {} - 1), the model has {}; "
                 "shorten one "
                 "of them",
                 total, limits.context, limits.suffix, limits.new_tokens, model.config().max_positions);
  }
  DS_TRY(check_runnable(plan));
  if (!plain_cuts) DS_TRY(check_maps(plan, maps));
  std::unique_ptr<Session> session(new Session(backend, model, plan, limits, plain_cuts));
  if (!plain_cuts && maps != nullptr) {
    DS_ASSIGN(session->maps_, load_maps(model, plan, *maps));
  }
  DS_TRY(session->reserve());
  return session;
}

Status Session::reserve() {
  const Shape& shape = plan_.shape;
  const int64_t element = dtype_size(model_.dtype());
  const int64_t hidden_row = shape.e_row() * element, kv_row = shape.kv_row() * element;
  for (size_t form = 0; form < kMapForms && !plain_cuts_; ++form)
    entry_maps_[form] = entry_map(plan_.maps.fingerprint, static_cast<MapForm>(form));
  int64_t rows = limits_.context + limits_.suffix;
  for (int64_t l = 0; l < shape.layers; ++l) {
    DS_ASSIGN(auto cache, backend_.allocate((rows + limits_.new_tokens - 1) * kv_row));
    cache_rows_.push_back(cache->data());
    caches_.push_back(std::move(cache));
  }
  size_t hidden = 1;
  bool selects = false;
  for (const Variant* v : all_variants(plan_)) {
    hidden = std::max(hidden, static_cast<size_t>(hidden_index(*v, static_cast<int32_t>(v->buffers.size()))));
    selects = selects || v->select_share > 0;
  }
  for (size_t i = 0; i < hidden; ++i) {
    DS_ASSIGN(auto memory, backend_.allocate(rows * hidden_row));
    hidden_rows_.push_back(memory->data());
    hidden_.push_back(std::move(memory));
  }
  if (selects) {
    DS_ASSIGN(positions_, backend_.allocate(rows * static_cast<int64_t>(sizeof(int32_t))));
  }
  const int64_t logits_bytes = shape.vocab * static_cast<int64_t>(sizeof(float));
  // Logits of further tokens lie in the host's memory anyway, or would have to be fetched.
  const int64_t logits = backend_.host_visible() ? 2 * logits_bytes : logits_bytes;
  DS_ASSIGN(results_, backend_.allocate(logits + (1 + (selects ? rows : 0)) * 4, MemoryKind::kHost));
  first_logits_ = reinterpret_cast<float*>(results_->data());
  if (backend_.host_visible()) step_logits_ = first_logits_ + shape.vocab;
  next_id_ = reinterpret_cast<int32_t*>(results_->data() + logits);
  selected_ = next_id_ + 1;
  DS_ASSIGN(workspace_, model_.make_workspace(rows + limits_.new_tokens));
  DS_ASSIGN(key_deviation_, KeyDeviation::create(backend_, model_));
  // Decoding enqueues embed, the layers and logits per token.
  DS_ASSIGN(runner_, VariantRunner::create(backend_, plan_, std::max(hidden_row, kv_row),
                                           shape.layers + 8 + KeyDeviation::kCommands));
  ids_.resize(static_cast<size_t>(rows));
  return ok_status();
}

Status Session::warm_up() {
  constexpr int64_t kLongEnough =
      100'000'000;  // what is this slow does not care about a first run's microseconds
  const int64_t longest = limits_.context + limits_.suffix;
  std::vector<int32_t> ids(static_cast<size_t>(longest), 0);
  for (int64_t rows = std::min<int64_t>(longest, 16);; rows = std::min(2 * rows, longest)) {
    Request request;
    request.context = std::span(ids).first(static_cast<size_t>(rows - 1));
    request.suffix = std::span(ids).subspan(static_cast<size_t>(rows - 1), 1);
    request.full_prefill = true;
    DS_ASSIGN(Answer answer, run(request));
    if (rows == longest || answer.ttft_ns > kLongEnough) return ok_status();
  }
}

Result<Segments> Session::open_segments(const Request& request, const Variant& variant) const {
  if (request.receiver != nullptr && !same_model(plan_.receiver, *request.receiver)) {
    return error(Code::kMismatch,
                 "the plan is for receiver '{}' (fingerprint {:.12}), this model is '{}' ({:.12}): {}",
                 plan_.receiver.name, plan_.receiver.fingerprint, request.receiver->name,
                 request.receiver->fingerprint,
                 same_model(plan_.sender, *request.receiver)
                     ? "it is the plan's sender; the plan's receiver answers"
                     : "weights or config differ; compile a plan for it");
  }
  DS_TRY(check_sender_knows(request.context, plan_.shared_vocab, plan_.sender.name, plan_.receiver.name));
  return Segments::open(*request.store, request, plan_, variant,
                        entry_maps_[static_cast<size_t>(variant.sent_form())], model_.dtype());
}

Result<bool> Session::execute(const Variant& variant, const Request& request, Segments* segments,
                              int64_t start, Answer& answer, Status& miss) {
  OpMemory memory;
  memory.caches = cache_rows_;
  memory.hidden = hidden_rows_;
  memory.workspace = workspace_.get();
  memory.ids = ids_.data();
  if (positions_) memory.positions = reinterpret_cast<int32_t*>(positions_->data());
  memory.selected = selected_;
  memory.logits = first_logits_;
  memory.next_id = next_id_;
  memory.choice = first_choice_;
  const OpCalls calls(model_, variant, plain_cuts_ ? nullptr : &maps_, memory,
                      static_cast<int64_t>(request.context.size()),
                      static_cast<int64_t>(request.suffix.size()));
  TransferInput input;
  input.segments = segments;
  input.map = entry_maps_[static_cast<size_t>(variant.sent_form())];
  if (request.link_deadline_ns > 0)
    input.deadline_ns = start + std::min(request.link_deadline_ns, kNoDeadline);
  selected_count_ = calls.selected();
  DS_ASSIGN(const bool there, runner_->run(calls, input, miss));
  if (!there) return false;
  DS_TRY(check_finite(first_logits(), 1, variant));
  answer.variant = &variant;
  answer.link_ns = answer.compute_ns = 0;
  answer.op_times.resize(variant.ops.size());
  for (size_t i = 0; i < variant.ops.size(); ++i) {
    const OpTime time = runner_->time(i);
    answer.op_times[i] = {time.start_ns - start, time.end_ns - start};
    (is_transfer(variant.ops[i]) ? answer.link_ns : answer.compute_ns) += time.end_ns - time.start_ns;
  }
  return true;
}

/// Fills answer.gate from first_logits_ and the caches; both streams are idle.
Status Session::check_gate(const Gate& gate, const Variant& variant, int64_t n, Answer& answer) {
  DS_ASSIGN(answer.gate, gate.look(variant, first_logits(), [&] {
    return key_deviation_->measure(runner_->compute(), *workspace_,
                                   std::span<const int32_t>(ids_).first(static_cast<size_t>(n)),
                                   caches_[0]->data());
  }));
  gate_checks_ += answer.gate.checked ? 1 : 0;
  gate_alarms_ += answer.gate.alarmed ? 1 : 0;
  return ok_status();
}

Result<Answer> Session::run(const Request& request) {
  if (running_.exchange(true, std::memory_order_acquire))
    return error(
        Code::kInvalidArgument,
        "this session is answering another request: it takes one at a time; wait for its answer, or make "
        "a session for every thread");
  struct Running {  // also where on_token throws
    std::atomic<bool>& flag;
    ~Running() { flag.store(false, std::memory_order_release); }
  } running{running_};
  return answer(request);
}

Result<Answer> Session::answer(const Request& request) {
  DS_TRY(check_request(request, plan_, limits_));
  Answer answer;
  answer.tokens.reserve(static_cast<size_t>(request.max_new_tokens));
  answer.op_times.reserve(runner_->most_ops());
  Sampler sampler(request.sampling);
  first_choice_ = sampler.next();
  auto n = static_cast<int64_t>(request.context.size());

  const int64_t start = now_ns();
  std::copy(request.context.begin(), request.context.end(), ids_.begin());
  std::copy(request.suffix.begin(), request.suffix.end(), ids_.begin() + n);

  answer.waiting = request.waiting;
  answer.link_rate = request.link_rate > 0 ? request.link_rate : link_estimate_.rate();
  answer.rate_source = request.link_rate > 0  ? RateSource::kGiven
                       : answer.link_rate > 0 ? RateSource::kMeasured
                                              : RateSource::kUnknown;
  const int64_t rate = answer.link_rate > 0 ? answer.link_rate : kNoLimit - 1;
  const Variant* variant = request.full_prefill ? nullptr : select_variant(plan_, n, rate, request.waiting);
  bool wants_entry = variant != nullptr && std::any_of(variant->ops.begin(), variant->ops.end(), is_transfer);
  Status miss;
  bool done = false;
  int64_t reused = n;
  if (wants_entry && request.store != nullptr) {
    answer.cache = CacheStatus::kMiss;
    auto segments = open_segments(request, *variant);
    answer.lookup_ns = now_ns() - start;
    miss = segments.status();
    if (segments.ok()) {
      auto found = segments->variant(plan_, *variant, n, rate, request.waiting);
      miss = found.status();
      if (found.ok()) variant = *found;
    }
    if (miss.ok()) {
      // What the sender has of the context comes by plan, the rest is read as the question is.
      reused = segments->tokens();
      Request covered = request;
      covered.context = std::span(ids_).first(static_cast<size_t>(reused));
      covered.suffix = std::span(ids_).subspan(
          covered.context.size(), request.context.size() + request.suffix.size() - covered.context.size());
      DS_ASSIGN(done, execute(*variant, covered, &*segments, start, answer, miss));
      answer.bytes_loaded = segments->bytes_read();
      if (done) {
        answer.cache = CacheStatus::kHit;
        answer.reused_tokens = reused;
        answer.shorter = segments->shorter();
        answer.live = segments->live();
        // What waited for the sender says nothing of the link.
        if (!answer.live) link_estimate_.add(answer.bytes_loaded, answer.link_ns);
      }
    }
  } else if (variant != nullptr && !wants_entry) {
    DS_TRY(execute(*variant, request, nullptr, start, answer, miss));
    done = true;
  }
  if (done && request.gate != nullptr) DS_TRY(check_gate(*request.gate, *variant, reused, answer));
  if (!done || answer.gate.alarmed) {
    if (!miss.ok() || answer.gate.alarmed) {
      answer.miss = miss;
      answer.lost_ns = now_ns() - start;
    }
    Status none;  // without transfers there is nothing to miss
    DS_TRY(execute(plan_.full_prefill, request, nullptr, start, answer, none));
  }
  answer.ttft_ns = now_ns() - start;
  DS_TRY(decode(request, sampler, answer));
  answer.decode_ns = now_ns() - start - answer.ttft_ns;
  return answer;
}

Status Session::decode(const Request& request, Sampler& sampler, Answer& answer) {
  const std::span<const int32_t> stops = request.stop_ids;
  int32_t token = *next_id_;
  for (auto position = static_cast<int64_t>(request.context.size() + request.suffix.size());; ++position) {
    if (std::find(stops.begin(), stops.end(), token) != stops.end()) {
      answer.stopped = true;
      answer.stop_token = token;
      return ok_status();
    }
    answer.tokens.push_back(token);
    if (request.on_token) request.on_token(token);
    if (request.is_last && request.is_last(token)) {
      answer.ended_by_caller = true;
      return ok_status();
    }
    if (static_cast<int64_t>(answer.tokens.size()) >= request.max_new_tokens) return ok_status();
    model_.step(runner_->compute(), *workspace_,
                {.token = token,
                 .position = position,
                 .hidden = hidden_rows_[0],
                 .caches = cache_rows_,
                 .logits = step_logits_,
                 .choice = sampler.next(),
                 .next = next_id_});
    const auto number = static_cast<int64_t>(answer.tokens.size()) + 1;
    if (Status status = runner_->compute().synchronize(); !status.ok())
      return status.with_context(fmt::format("token {} of the answer", number));
    if (step_logits_ != nullptr)
      DS_TRY(check_finite({step_logits_, first_logits().size()}, number, *answer.variant));
    token = *next_id_;
  }
}

}  // namespace ds
