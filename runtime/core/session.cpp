#include "runtime/core/session.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "plans/traits.h"
#include "runtime/model/identity.h"
#include "runtime/model/shared_vocab.h"
#include "support/clock.h"

namespace ds {
namespace {

constexpr int64_t kNoDeadline = int64_t{1} << 61;  // 73 years: sums do not overflow

/// Which of a variant's hidden buffers `buffer` is, counting from 0.
int64_t hidden_index(const Variant& variant, int32_t buffer) {
  return std::count_if(variant.buffers.begin(), variant.buffers.begin() + buffer,
                       [](const Buffer& b) { return b.kind == BufferKind::kHidden; });
}

/// A compute stream's failure, with what was being computed.
Status failed_in(const Variant& variant, int64_t op, const Status& status) {
  if (op < 0 || op >= static_cast<int64_t>(variant.ops.size()))
    return status.with_context(fmt::format("variant '{}'", variant.name));
  const Op& of = variant.ops[static_cast<size_t>(op)];
  return status.with_context(fmt::format("variant '{}', op {} ({}){}", variant.name, op,
                                         op_label(of, variant.chunks),
                                         of.layer < 0 ? "" : fmt::format(", layer {}", of.layer)));
}

/// A model of finite weights gives finite logits. What else comes is no answer, and choosing from it would
/// hide that.
Status check_finite(std::span<const float> logits, int64_t token, const Variant& variant) {
  auto finite = [](float x) {
    uint32_t bits = 0;
    std::memcpy(&bits, &x, sizeof(bits));
    return (bits & 0x7f800000u) != 0x7f800000u;
  };
  int bad = 0;  // without a branch: the vocabulary is read at the speed of memory
  for (float x : logits) bad += finite(x) ? 0 : 1;
  if (bad == 0) return ok_status();
  const auto first = std::find_if_not(logits.begin(), logits.end(), finite);
  return error(
      Code::kInternal,
      "the logits of token {} of the answer are not numbers: {} of {} are not finite, the first is that "
      "of id {} ({}){}",
      token, bad, logits.size(), first - logits.begin(), *first,
      std::none_of(variant.ops.begin(), variant.ops.end(), is_transfer)
          ? "; a kernel is broken, or the model overflows: see whether --dtype f32 answers"
          : fmt::format("; variant '{}' has reused a sender's entry: see whether the full prefill "
                        "(--mode full-prefill) answers, then publish the entry again",
                        variant.name));
}

std::vector<const Variant*> all_variants(const Plan& plan) {
  std::vector<const Variant*> all{&plan.full_prefill};
  for (const Variant& v : plan.variants) all.push_back(&v);
  return all;
}

}  // namespace

/// One transfer op, ready to be called by the link stream.
struct Session::Transfer {
  Session* session = nullptr;
  EntryReader* entry = nullptr;
  LandingRows rows;
  std::byte* to = nullptr;
  Event* ended = nullptr;  // that it records; null: its stream does
};

std::string_view cache_status_name(CacheStatus status) {
  return status == CacheStatus::kHit ? "hit" : status == CacheStatus::kMiss ? "miss" : "unused";
}

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
  if (!plain_cuts) DS_TRY(check_maps(plan, maps));
  std::unique_ptr<Session> session(new Session(backend, model, plan, limits, plain_cuts));
  if (!plain_cuts && maps != nullptr) DS_TRY(session->load_maps(*maps));
  DS_TRY(session->reserve());
  return session;
}

/// Before the workspace, which is then made with room for them.
Status Session::load_maps(const MapSet& maps) {
  for (const Variant& v : plan_.variants) {
    if (!v.aligns()) continue;
    for (const Op& op : v.ops) {
      if (op.kind != OpKind::kAlign) continue;
      std::unique_ptr<DeviceMap>& map = maps_[{op.layer, v.map_form}];
      if (map) continue;
      DS_ASSIGN(map, model_.load_map(*maps.find(op.layer, v.map_form)));
    }
  }
  return ok_status();
}

Status Session::reserve() {
  const Shape& shape = plan_.shape;
  int64_t element = dtype_size(model_.dtype());
  hidden_row_ = shape.e_row() * element;
  kv_row_ = shape.kv_row() * element;
  for (size_t form = 0; form < kMapForms && !plain_cuts_; ++form)
    entry_maps_[form] = entry_map(plan_.maps.fingerprint, static_cast<MapForm>(form));
  int64_t rows = limits_.context + limits_.suffix;
  for (int64_t l = 0; l < shape.layers; ++l) {
    DS_ASSIGN(auto cache, backend_.allocate((rows + limits_.new_tokens - 1) * kv_row_));
    caches_.push_back(std::move(cache));
  }
  size_t hidden = 1, ops = 1, waits = 0;
  bool selects = false;
  for (const Variant* v : all_variants(plan_)) {
    hidden = std::max(hidden, static_cast<size_t>(hidden_index(*v, static_cast<int32_t>(v->buffers.size()))));
    ops = std::max(ops, v->ops.size());
    selects = selects || v->select_share > 0;
    size_t all = 0;
    for (const Op& op : v->ops) all += op.waits.size();
    waits = std::max(waits, all);
  }
  for (size_t i = 0; i < hidden; ++i) {
    DS_ASSIGN(auto memory, backend_.allocate(rows * hidden_row_));
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
  // Per op: its waits, two events, itself; a select op copies besides. Decoding enqueues embed, the layers
  // and logits per token.
  int64_t capacity = static_cast<int64_t>(3 * ops + waits) + shape.layers + 8 + KeyDeviation::kCommands;
  DS_ASSIGN(landing_, Landing::create(backend_, std::max(hidden_row_, kv_row_)));
  DS_ASSIGN(link_, backend_.make_stream(StreamKind::kLink, capacity));
  DS_ASSIGN(compute_, backend_.make_stream(StreamKind::kCompute, capacity));
  for (size_t i = 0; i < ops; ++i) {
    DS_ASSIGN(auto begun, backend_.make_event());
    DS_ASSIGN(auto ended, backend_.make_event());
    begun_.push_back(std::move(begun));
    ended_.push_back(std::move(ended));
  }
  transfers_.resize(ops);
  ids_.resize(static_cast<size_t>(rows));
  for (const auto& cache : caches_) step_caches_.push_back(cache->data());
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

Status Session::check(const Request& request) const {
  auto n = static_cast<int64_t>(request.context.size()), m = static_cast<int64_t>(request.suffix.size());
  if (m < 1)
    return error(Code::kInvalidArgument, "the prompt has no tokens; at least one is needed to answer from");
  if (n + m > limits_.context + limits_.suffix || request.max_new_tokens > limits_.new_tokens) {
    return error(Code::kInvalidArgument,
                 "the request has {} context and {} prompt tokens and asks for {}; this session was made for "
                 "{}, {} and {}",
                 n, m, request.max_new_tokens, limits_.context, limits_.suffix, limits_.new_tokens);
  }
  if (request.gate != nullptr && &request.gate->plan() != &plan_)
    return error(Code::kInvalidArgument,
                 "the request's gate was made for another plan than this session's; make one for this plan");
  if (request.link_rate < 0 || request.waiting < 0) {
    return error(Code::kInvalidArgument,
                 "the link rate is {} B/s and {} requests wait; expected 0 or more of each",
                 request.link_rate, request.waiting);
  }
  if (request.link_deadline_ns < 0) {
    return error(Code::kInvalidArgument, "the deadline for transfers is {} ns; expected 0 (none) or more",
                 request.link_deadline_ns);
  }
  if (request.max_new_tokens < 1)
    return error(Code::kInvalidArgument, "at least one new token must be asked for");
  if (!request.entry.empty() &&
      (request.entry.size() < request.context.size() ||
       !std::equal(request.context.begin(), request.context.end(), request.entry.begin()))) {
    return error(Code::kInvalidArgument,
                 "the request's {} context tokens are not the first of the {} tokens of its entry",
                 request.context.size(), request.entry.size());
  }
  for (auto part : {request.context, request.suffix}) {
    for (size_t i = 0; i < part.size(); ++i) {
      if (part[i] < 0 || part[i] >= plan_.shape.vocab) {
        return error(Code::kInvalidArgument, "{} token {} has id {}, outside the model's vocabulary 0-{}",
                     part.data() == request.context.data() ? "context" : "prompt", i, part[i],
                     plan_.shape.vocab - 1);
      }
    }
  }
  return ok_status();
}

void Session::run_transfer(void* context, int64_t) {
  auto& t = *static_cast<Transfer*>(context);
  Session& s = *t.session;
  if (!s.transfer_failed_.load(std::memory_order_acquire)) {
    auto in_time = [&t]() -> Status {
      if (t.session->deadline_ns_ == 0 || now_ns() <= t.session->deadline_ns_) return ok_status();
      return error(Code::kExhausted, "late: the deadline for transfers passed while {} of layer {} was read",
                   tensor_kind_name(t.rows.kind), t.rows.layer);
    };
    if (Status status = s.landing_->read(*t.entry, t.rows, t.to, in_time); !status.ok()) {
      s.transfer_status_ = std::move(status);
      s.transfer_failed_.store(true, std::memory_order_release);
      s.compute_->cancel();
    }
  }
  if (t.ended != nullptr) s.landing_->record(*t.ended);
}

void Session::enqueue(const Variant& variant, const Request& request, EntryReader* entry) {
  auto n = static_cast<int64_t>(request.context.size()), m = static_cast<int64_t>(request.suffix.size());
  for (size_t i = 0; i < variant.ops.size(); ++i) {
    begun_[i]->reset();
    ended_[i]->reset();
  }
  auto hidden = [&](const Op& op, int64_t row) {
    return hidden_[static_cast<size_t>(hidden_index(variant, op.buffer))]->data() + row * hidden_row_;
  };
  auto suffix_row = [&](const Op& op) {
    return variant.buffers[static_cast<size_t>(op.buffer)].with_context ? n : 0;
  };
  for (size_t i = 0; i < variant.ops.size(); ++i) {
    const Op& op = variant.ops[i];
    bool on_link = variant.streams[static_cast<size_t>(op.stream)].kind == StreamKind::kLink;
    CommandStream& stream = on_link ? *link_ : *compute_;
    for (int32_t w : op.waits) {
      if (variant.ops[static_cast<size_t>(w)].stream != op.stream)
        stream.wait(*ended_[static_cast<size_t>(w)]);
    }
    stream.begin_op(static_cast<int64_t>(i));
    stream.record(*begun_[i]);
    auto [first, rows, queries] = op_rows(op, variant.chunks, n, m, variant.select_share);
    // Buffers without context rows begin with the suffix.
    int64_t row = op.rows == Rows::kSuffix ? suffix_row(op) : first;
    std::byte* cache = op.layer < 0 ? nullptr : caches_[static_cast<size_t>(op.layer)]->data();
    switch (op.kind) {
      case OpKind::kTransferE:
      case OpKind::kTransferKv: {
        bool e = op.kind == OpKind::kTransferE;
        Transfer& t = transfers_[i];
        t = {this, entry, {e ? TensorKind::kE : TensorKind::kKv, op.layer, first, rows}};
        t.to = e ? hidden(op, first) : cache + first * kv_row_;
        if (e) t.rows.map = entry_maps_[static_cast<size_t>(variant.sent_form())];
        if (landing_->staged()) t.ended = ended_[i].get();
        stream.host({&run_transfer, &transfers_[i], 0});
        break;
      }
      case OpKind::kEmbed:
        if (rows > 0) model_.embed(stream, ids_.data() + first, rows, hidden(op, row));
        break;
      case OpKind::kSelect:
        selected_count_ = selected_rows(variant.select_share, n);
        if (rows > 0) {
          auto* positions = reinterpret_cast<int32_t*>(positions_->data());
          model_.select(stream, *workspace_,
                        {op.layer, hidden(op, 0), cache, rows, selected_count_, positions});
          stream.copy(reinterpret_cast<std::byte*>(selected_), positions_->data(),
                      selected_count_ * static_cast<int64_t>(sizeof(int32_t)));
        }
        break;
      case OpKind::kRecompute:
        if (op.rows == Rows::kSelected) {
          if (rows > 0) {
            model_.layer_selected(stream, *workspace_,
                                  {op.layer, hidden(op, 0), cache,
                                   reinterpret_cast<const int32_t*>(positions_->data()), rows, queries > 0});
          }
          break;
        }
        [[fallthrough]];
      case OpKind::kSuffix:
      case OpKind::kPrefill:
        if (rows > 0)
          model_.layer(stream, *workspace_, {op.layer, hidden(op, row), cache, first, rows, queries});
        break;
      case OpKind::kAlign:
        if (plain_cuts_) break;
        model_.align(stream, *workspace_, *maps_.at({op.layer, variant.map_form}), hidden(op, first), rows);
        break;
      case OpKind::kHead:
        model_.head(stream, *workspace_, {hidden(op, row + m - 1), first_logits_, first_choice_, next_id_});
        break;
    }
    if (!on_link || !landing_->staged()) stream.record(*ended_[i]);
    stream.begin_op(-1);
  }
}

Result<bool> Session::execute(const Variant& variant, const Request& request, EntryReader* entry,
                              int64_t start, Answer& answer, Status& miss) {
  transfer_failed_.store(false, std::memory_order_relaxed);
  transfer_status_ = {};
  selected_count_ = 0;
  enqueue(variant, request, entry);
  // The link first: its failure cancels the compute stream, and both must be idle before memory is used
  // again.
  Status link = link_->synchronize();
  if (Status copies = landing_->synchronize(); link.ok()) link = std::move(copies);
  // A fault of the store or the entry is a miss. One of the device or a kernel is none, even beside a miss:
  // it would never be seen if a full prefill covered it.
  if (Status compute = compute_->synchronize(); !compute.ok())
    return failed_in(variant, compute_->failed_op(), compute);
  DS_TRY(link);
  if (transfer_failed_.load(std::memory_order_acquire)) {
    miss = transfer_status_;
    return false;
  }
  DS_TRY(check_finite(first_logits(), 1, variant));
  answer.variant = &variant;
  answer.link_ns = answer.compute_ns = 0;
  answer.op_times.resize(variant.ops.size());
  for (size_t i = 0; i < variant.ops.size(); ++i) {
    answer.op_times[i] = {begun_[i]->time_ns() - start, ended_[i]->time_ns() - start};
    (is_transfer(variant.ops[i]) ? answer.link_ns : answer.compute_ns) +=
        ended_[i]->time_ns() - begun_[i]->time_ns();
  }
  return true;
}

/// Fills answer.gate from first_logits_ and the caches; both streams are idle.
Status Session::check_gate(const Gate& gate, const Variant& variant, int64_t n, Answer& answer) {
  const ProxyValues* thresholds = gate.thresholds(variant);
  if (thresholds == nullptr) return ok_status();
  const int64_t start = now_ns();
  GateVerdict& verdict = answer.gate;
  verdict.checked = true;
  verdict.variant = &variant;
  verdict.thresholds = *thresholds;
  verdict.values = first_token_proxies(first_logits());
  if (!std::isnan((*thresholds)[Proxy::kKDeviation])) {
    auto context = std::span<const int32_t>(ids_).first(static_cast<size_t>(n));
    DS_ASSIGN(verdict.values[Proxy::kKDeviation],
              key_deviation_->measure(*compute_, *workspace_, context, caches_[0]->data()));
  }
  for (double& value : verdict.values.of) value = profile_precision(value);
  for (size_t p = 0; p < kProxies; ++p) verdict.alarmed |= verdict.alarms(static_cast<Proxy>(p));
  verdict.gate_ns = now_ns() - start;
  ++gate_checks_;
  gate_alarms_ += verdict.alarmed ? 1 : 0;
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
  DS_TRY(check(request));
  Answer answer;
  answer.tokens.reserve(static_cast<size_t>(request.max_new_tokens));
  size_t most_ops = begun_.size();
  answer.op_times.reserve(most_ops);
  Sampler sampler(request.sampling);
  first_choice_ = sampler.next();
  auto n = static_cast<int64_t>(request.context.size());

  const int64_t start = now_ns();
  deadline_ns_ = request.link_deadline_ns == 0 ? 0 : start + std::min(request.link_deadline_ns, kNoDeadline);
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
  if (wants_entry && request.store != nullptr) {
    answer.cache = CacheStatus::kMiss;
    if (request.receiver != nullptr && !same_model(plan_.receiver, *request.receiver)) {
      miss = error(Code::kMismatch,
                   "the plan is for receiver '{}' (fingerprint {:.12}), this model is '{}' ({:.12}): {}",
                   plan_.receiver.name, plan_.receiver.fingerprint, request.receiver->name,
                   request.receiver->fingerprint,
                   same_model(plan_.sender, *request.receiver)
                       ? "it is the plan's sender; the plan's receiver answers"
                       : "weights or config differ; compile a plan for it");
    } else if (Status known = check_sender_knows(request.context, plan_.shared_vocab, plan_.sender.name,
                                                 plan_.receiver.name);
               !known.ok()) {
      miss = std::move(known);
    } else {
      const std::span<const int32_t> published = request.entry.empty() ? request.context : request.entry;
      EntryIdentity identity{plan_.sender.fingerprint, hash_tokens(published), request.salt,
                             static_cast<int64_t>(published.size()), model_.dtype()};
      auto entry = EntryReader::open(*request.store, identity, plan_.shape);
      if (entry.ok()) entry->end_at(n);
      answer.lookup_ns = now_ns() - start;
      miss = entry.status();
      if (entry.ok()) {
        auto ran = execute(*variant, request, &*entry, start, answer, miss);
        if (!ran.ok()) return ran.status();
        answer.bytes_loaded = entry->bytes_read();
        done = *ran;
        if (done) {
          answer.cache = CacheStatus::kHit;
          link_estimate_.add(answer.bytes_loaded, answer.link_ns);
        }
      }
    }
  } else if (variant != nullptr && !wants_entry) {
    DS_TRY(execute(*variant, request, nullptr, start, answer, miss));
    done = true;
  }
  if (done && request.gate != nullptr) DS_TRY(check_gate(*request.gate, *variant, n, answer));
  if (!done || answer.gate.alarmed) {
    if (!miss.ok() || answer.gate.alarmed) {
      answer.miss = miss;
      answer.lost_ns = now_ns() - start;
    }
    Status none;  // without transfers there is nothing to miss
    DS_TRY(execute(plan_.full_prefill, request, nullptr, start, answer, none));
  }
  int32_t token = *next_id_;
  answer.ttft_ns = now_ns() - start;

  const std::span<const int32_t> stops = request.stop_ids;
  for (int64_t position = n + static_cast<int64_t>(request.suffix.size());; ++position) {
    if (std::find(stops.begin(), stops.end(), token) != stops.end()) {
      answer.stopped = true;
      answer.stop_token = token;
      break;
    }
    answer.tokens.push_back(token);
    if (request.on_token) request.on_token(token);
    if (request.is_last && request.is_last(token)) {
      answer.ended_by_caller = true;
      break;
    }
    if (static_cast<int64_t>(answer.tokens.size()) >= request.max_new_tokens) break;
    model_.step(*compute_, *workspace_,
                {.token = token,
                 .position = position,
                 .hidden = hidden_[0]->data(),
                 .caches = step_caches_,
                 .logits = step_logits_,
                 .choice = sampler.next(),
                 .next = next_id_});
    const auto number = static_cast<int64_t>(answer.tokens.size()) + 1;
    if (Status status = compute_->synchronize(); !status.ok())
      return status.with_context(fmt::format("token {} of the answer", number));
    if (step_logits_ != nullptr)
      DS_TRY(check_finite({step_logits_, first_logits().size()}, number, *answer.variant));
    token = *next_id_;
  }
  answer.decode_ns = now_ns() - start - answer.ttft_ns;
  return answer;
}

}  // namespace ds
