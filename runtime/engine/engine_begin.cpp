// How a request begins: what of it is there already, by which plan it runs, in which memory.
#include <cmath>

#include "runtime/engine/engine_internal.h"

#include "plans/traits.h"
#include "runtime/model/shared_vocab.h"
#include "support/clock.h"

namespace ds {
namespace {

bool reads_entry(const Variant& variant) {
  return std::any_of(variant.ops.begin(), variant.ops.end(), is_transfer);
}

/// Points; NaN: not known.
double promised_loss(const Variant& v) {
  return std::isnan(v.promise.loss_bound) ? v.promise.quality_loss : v.promise.loss_bound;
}

/// Whether x promises less loss than y; one that promises nothing loses most.
bool less_loss(const Variant& x, const Variant& y) {
  const double a = promised_loss(x), b = promised_loss(y);
  return std::isnan(b) ? !std::isnan(a) : a < b;
}

/// Selected positions.
constexpr RowBytes kPositions{1, static_cast<int64_t>(sizeof(int32_t)), 0};

/// The least loss, then the most of the context, then the soonest.
bool better(const Candidate& x, const Candidate& y) {
  if (less_loss(*x.variant, *y.variant) || less_loss(*y.variant, *x.variant))
    return less_loss(*x.variant, *y.variant);
  return x.tokens != y.tokens ? x.tokens > y.tokens : x.variant->promise.ttft_ns < y.variant->promise.ttft_ns;
}

}  // namespace

std::string EngineLoop::exact_salt(const Receiver& receiver, const std::string& salt) {
  return fmt::format("exact\n{}\n{}", receiver.identity().fingerprint, salt);
}

std::string EngineLoop::plan_salt(const Active& a, size_t plan, const Variant& v) const {
  const Plan& p = a.request.receiver->plan(plan);
  return fmt::format("reused\n{}\n{}\n{}\n{}\n{}\n{}", a.request.receiver->identity().fingerprint,
                     p.sender.fingerprint, v.policy, v.way, p.maps.fingerprint, a.request.salt);
}

std::vector<Candidate> EngineLoop::candidates(const Active& a, int64_t rate, int64_t waiting) const {
  const Receiver& receiver = *a.request.receiver;
  std::vector<Candidate> all;
  for (size_t i = 0; i < receiver.plans(); ++i) {
    const Variant* v = select_variant(receiver.plan(i), a.n, rate, waiting);
    if (v == nullptr || !reads_entry(*v)) continue;
    if (std::isnan(a.request.loss_limit) || promised_loss(*v) <= a.request.loss_limit) all.push_back({i, v});
  }
  std::stable_sort(all.begin(), all.end(), better);
  return all;
}

bool EngineLoop::take(Active& a, int64_t bytes) {
  for (;;) {
    if (auto claim = arena->claim(bytes); claim.ok()) {
      a.claim = std::move(claim).value();
      return true;
    }
    if (!prefixes.evict()) return false;
  }
}

int64_t EngineLoop::run_bytes(const Active& a, const Variant& v, int64_t first) const {
  const auto hidden =
      std::max<int64_t>(1, std::count_if(v.buffers.begin(), v.buffers.end(),
                                         [](const Buffer& b) { return b.kind == BufferKind::kHidden; }));
  return arena->needs({hidden, a.request.receiver->row_bytes().hidden, 0}, a.n + a.m - first) +
         (v.select_share > 0 ? arena->needs(kPositions, a.n) : 0);
}

void EngineLoop::reuse(Active& a, size_t plan, const Variant& v, int64_t rows) {
  a.reused = &v;
  a.reused_rows = rows;
  const auto& gates = a.request.gates;
  const auto of = std::find_if(gates.begin(), gates.end(),
                               [&](const Gate* g) { return &g->plan() == &a.request.receiver->plan(plan); });
  a.gate = of == gates.end() || (*of)->thresholds(v) == nullptr ? nullptr : *of;
}

int64_t EngineLoop::shared_rows(const Active& a, const PrefixCache::Hit& hit) {
  const bool goes_on = hit.node != nullptr && hit.rows == hit.node->rows();
  return hit.rows > a.n && !goes_on ? std::max(a.n, round_down(hit.rows)) : hit.rows;
}

bool EngineLoop::comes(const Active& a) const {
  if (!limits.prefix_cache || a.request.reuse == Reuse::kOff || a.n < PrefixCache::kBlock) return false;
  return std::any_of(active.begin(), active.end(), [&](const auto& other) {
    return (other->state == Active::State::kComputing || other->state == Active::State::kLookingUp) &&
           !other->kept_as.empty() && other->request.receiver == a.request.receiver &&
           other->request.reuse == a.request.reuse && other->request.store == a.request.store &&
           other->request.salt == a.request.salt &&
           same_number(other->request.loss_limit, a.request.loss_limit) &&
           other->request.context == a.request.context;
  });
}

bool EngineLoop::start(Active& a) {
  const Receiver& receiver = *a.request.receiver;
  const bool prefixes_on = limits.prefix_cache && a.request.reuse != Reuse::kOff;
  PrefixCache::Hit hit;
  if (prefixes_on) {
    hit = prefixes.find(exact_salt(receiver, a.request.salt), a.tokens);
    a.kept_as = exact_salt(receiver, a.request.salt);
  }
  int64_t waiting = static_cast<int64_t>(queue.size()) - 1;
  a.answer.waiting = waiting;
  a.answer.link_rate = a.request.link_rate > 0 ? a.request.link_rate : service->rate();
  a.answer.rate_source = a.request.link_rate > 0  ? RateSource::kGiven
                         : a.answer.link_rate > 0 ? RateSource::kMeasured
                                                  : RateSource::kUnknown;
  const int64_t rate = a.answer.link_rate > 0 ? a.answer.link_rate : kNoLimit - 1;
  a.candidates.clear();
  a.plan = -1;
  a.variant = &receiver.exact().full_prefill;
  a.reused = nullptr;
  a.gate = nullptr;
  if (a.request.reuse == Reuse::kAuto && hit.rows < a.n) {
    a.candidates = candidates(a, rate, waiting);
    for (const Candidate& c : a.candidates) {
      if (!prefixes_on) break;
      // An approximate cache that goes further than the exact one.
      const std::string salt = plan_salt(a, c.plan, *c.variant);
      if (auto other = prefixes.find(salt, a.tokens); other.rows > hit.rows) {
        hit = std::move(other);
        a.kept_as = salt;
        reuse(a, c.plan, *c.variant, std::min(hit.rows, a.n));
      }
    }
    // What a prefix leaves to compute is less than what a plan moves and recomputes.
    if (a.request.store == nullptr || 2 * hit.rows >= a.n) a.candidates.clear();
  }
  hit.rows = shared_rows(a, hit);
  const RowBytes& bytes = receiver.row_bytes();
  const Variant& exact = receiver.exact().full_prefill;
  const int64_t caches = arena->needs(bytes, cache_rows(a)), all = caches + run_bytes(a, exact, 0);
  std::erase_if(a.candidates, [&](const Candidate& c) {  // whose buffers are too much
    return caches + run_bytes(a, *c.variant, 0) > limits.cache_bytes;
  });
  if (!a.candidates.empty()) hit = {};
  int64_t first = hit.rows;
  int64_t needed = arena->needs(bytes, cache_rows(a) - first) + run_bytes(a, exact, first);
  for (const Candidate& c : a.candidates) needed = std::max(needed, caches + run_bytes(a, *c.variant, 0));
  // An alarm computes what the prefix has, too.
  if (a.gate != nullptr) needed = std::max(needed, all);
  if (!take(a, needed)) {
    if (hit.node == nullptr || !active.empty()) return false;
    // What holds the memory is the prefix itself.
    hit = {};
    first = 0;
    a.reused = nullptr;
    a.gate = nullptr;
    if (prefixes_on) a.kept_as = exact_salt(receiver, a.request.salt);
    if (!take(a, all)) return false;
  }
  a.slot = free_slots.back();
  free_slots.pop_back();
  a.answer.queue_ns = now_ns() - a.submitted_ns;
  if (!a.candidates.empty()) {
    const Candidate& best = a.candidates.front();
    a.answer.cache = CacheStatus::kMiss;
    if (prefixes_on) a.kept_as = plan_salt(a, best.plan, *best.variant);
    look_up(a);
    return true;
  }
  compute_behind(a, std::move(hit.node), first);
  return true;
}

void EngineLoop::compute_behind(Active& a, std::shared_ptr<PrefixCache::Node> prefix, int64_t rows) {
  if (rows > 0) {
    a.sequence.base = std::move(prefix);
    a.sequence.prefix_rows = a.sequence.own_first = rows;
    a.answer.cached_tokens = rows;
  }
  compute_from(a, rows);
}

bool EngineLoop::go_on(Active& a, int64_t rows) {
  if (a.kept_as.empty()) return false;
  std::string exact = exact_salt(*a.request.receiver, a.request.salt);
  PrefixCache::Hit hit = prefixes.find(exact, a.tokens);
  if (hit.rows <= rows) return false;
  a.kept_as = std::move(exact);
  const int64_t shared = shared_rows(a, hit);
  compute_behind(a, std::move(hit.node), shared);
  return true;
}

void EngineLoop::look_up(Active& a) {
  a.state = Active::State::kLookingUp;
  a.started_ns = now_ns();
  for (Candidate& c : a.candidates) c.found = look_up(a, c);
}

std::shared_ptr<LookUp> EngineLoop::look_up(const Active& a, const Candidate& candidate) {
  auto found = std::make_shared<LookUp>();
  found->start_ns = found->end_ns = a.started_ns;
  const Receiver& receiver = *a.request.receiver;
  const Plan& plan = receiver.plan(candidate.plan);
  found->status =
      check_sender_knows(a.request.context, plan.shared_vocab, plan.sender.name, plan.receiver.name);
  // Where one hangs already, this one would, too.
  const int64_t since = service->look_up_since_ns(a.request.store);
  if (found->status.ok() && since != 0 && a.started_ns - since > patience(a))
    found->status = error(Code::kExhausted, "late: a look-up of another request has taken {} ms so far",
                          (a.started_ns - since) / 1'000'000);
  if (!found->status.ok()) {
    found->done = true;
    return found;
  }
  // It has all of its own: it may outlive the request, and the engine.
  auto asked = std::make_shared<EngineRequest>();
  asked->context = a.request.context;
  asked->entry = a.request.entry;
  asked->segments = a.request.segments;
  asked->salt = a.request.salt;
  auto look = [found, asked, store = a.request.store, owner = a.request.store_owner,
               plan = receiver.own_plan(candidate.plan), variant = candidate.variant - plan.variants.data(),
               map = receiver.entry_map(candidate.plan, candidate.variant->sent_form()),
               dtype = receiver.model().dtype()] {
    const RequestView view(*asked);
    auto segments =
        Segments::open(*store, view.request, *plan, plan->variants[static_cast<size_t>(variant)], map, dtype);
    if (segments.ok()) {
      // What is read of it keeps the store, too.
      using Held = std::pair<std::shared_ptr<const void>, Segments>;
      auto held = std::make_shared<Held>(owner, std::move(segments).value());
      found->segments = std::shared_ptr<Segments>(held, &held->second);
    } else {
      found->status = segments.status();
    }
    found->end_ns = now_ns();
    found->done.store(true, std::memory_order_release);
  };
  service->look_up(a.request.store, a.request.store_owner, std::move(look));
  return found;
}

bool EngineLoop::settled(const Active& a, Candidate& c) const {
  if (c.tokens > 0 || !c.why.ok()) return true;
  const int64_t waited = now_ns() - a.started_ns;
  const LookUp& found = *c.found;
  if (!found.done.load(std::memory_order_acquire)) {
    if (waited < patience(a)) return false;
    c.why =
        error(Code::kExhausted, "late: the look-up of the entry has taken {} ms so far", waited / 1'000'000);
    return true;
  }
  c.why = found.status;
  if (!c.why.ok()) return true;
  const int64_t rate = a.answer.link_rate > 0 ? a.answer.link_rate : kNoLimit - 1;
  auto variant =
      found.segments->variant(a.request.receiver->plan(c.plan), *c.variant, a.n, rate, a.answer.waiting);
  if (!variant.ok()) {
    c.why = variant.status();
  } else if (*variant != c.variant && promised_loss(**variant) > a.request.loss_limit) {
    c.why =
        error(Code::kNotFound,
              "the sender has published {} of the context's {} tokens, and for so few the plan promises a "
              "loss of {:.2f} points, more than the request's {:.2f}",
              found.segments->tokens(), a.n, promised_loss(**variant), a.request.loss_limit);
  } else if (const int64_t bytes =
                 arena->needs(a.request.receiver->row_bytes(), cache_rows(a)) + run_bytes(a, **variant, 0);
             bytes > a.claim.bytes()) {
    c.why = error(Code::kExhausted, "variant '{}' needs {} of memory, {} were taken for the request",
                  (*variant)->name, bytes, a.claim.bytes());
  } else {
    c.variant = *variant;
    c.tokens = found.segments->tokens();
  }
  return true;
}

void EngineLoop::take_best(Active& a) {
  const Candidate* best = nullptr;
  const Candidate* coming = nullptr;  // the best one
  for (Candidate& c : a.candidates) {
    if (!settled(a, c)) {
      if (coming == nullptr) coming = &c;
    } else if (c.why.ok() && (best == nullptr || better(c, *best))) {
      best = &c;
    }
  }
  // Of as little loss it may have more of the context.
  if (coming != nullptr && (best == nullptr || !less_loss(*best->variant, *coming->variant))) return;
  if (best == nullptr) return miss(a, a.candidates.front().why);
  const Candidate c = *best;
  a.stand_in.reset();
  if (go_on(a, c.tokens - 1)) {
    a.answer.cache = CacheStatus::kUnused;
    return;
  }
  a.answer.lookup_ns = c.found->end_ns - c.found->start_ns;
  a.plan = static_cast<int64_t>(c.plan);
  a.variant = c.variant;
  // What the sender has comes by its plan, the rest is read as the question is.
  a.m += a.n - c.tokens;
  a.n = c.tokens;
  a.answer.reused_tokens = c.tokens;
  a.answer.shorter = c.found->segments->shorter();
  a.answer.live = c.found->segments->live();
  if (!a.kept_as.empty()) a.kept_as = plan_salt(a, c.plan, *c.variant);
  reuse(a, c.plan, *c.variant, a.n);
  compute_from(a, 0);
  if (a.state != Active::State::kComputing) return;
  a.segments = c.found->segments;
  send_for(a);
}

void EngineLoop::compute_from(Active& a, int64_t first) {
  if (Status status = try_compute(a, first); !status.ok()) {
    failed.emplace_back(&a, std::move(status));
  }
}

Status EngineLoop::try_compute(Active& a, int64_t first) {
  a.run =
      std::make_unique<PlanRun>(*a.request.receiver, a.plan, *a.variant, RunShape{first, a.n, a.m}, a.tokens);
  a.started_ns = now_ns();
  const int64_t cache = arena->needs(a.request.receiver->row_bytes(), cache_rows(a) - first);
  // Else what an alarm would need, until it is known.
  if (a.gate == nullptr) a.claim.shrink(cache + run_bytes(a, *a.variant, first));
  DS_TRY(make_memory(a, a, first, a.claim));
  a.state = Active::State::kComputing;
  a.idle_since_ns = 0;
  return ok_status();
}

Status EngineLoop::make_memory(const Active& a, Work& w, int64_t first, ArenaClaim& claim) {
  const RowBytes& bytes = a.request.receiver->row_bytes();
  const int64_t rows = a.n + a.m - first, most = cache_rows(a) - first;
  DS_ASSIGN(w.hidden,
            arena->reserve({static_cast<int64_t>(w.run->hidden_buffers()), bytes.hidden, 0}, rows, {}));
  DS_TRY(commit(*w.hidden, rows));
  if (w.run->selects()) {
    DS_ASSIGN(w.positions, arena->reserve(kPositions, a.n, {}));
    DS_TRY(commit(*w.positions, a.n));
    w.memory.positions = w.positions->layer(0);
  }
  w.hidden->claim = claim.split(run_bytes(a, w.run->variant(), first));
  DS_ASSIGN(w.sequence.own, arena->reserve(bytes, most, claim.split(arena->needs(bytes, most))));
  DS_TRY(commit(*w.sequence.own, rows));
  w.memory.workspace = a.station->workspace.get();
  w.memory.logits = logits_of(a.slot);
  w.memory.next = next_of(a.slot);
  w.memory.choice = wants_logits(a) ? Choice{} : a.choice;
  set_addresses(a, w);
  return ok_status();
}

Status EngineLoop::commit(KvRange& range, int64_t rows) {
  for (;;) {
    Status status = range.commit(rows);
    const bool lacks = status.code() == Code::kDeviceMemory || status.code() == Code::kExhausted;
    if (!lacks || !prefixes.evict()) return status;
  }
}

void EngineLoop::set_addresses(const Active& a, Work& w) {
  RunMemory& memory = w.memory;
  memory.caches.clear();
  memory.prefix.clear();
  memory.hidden.clear();
  const Sequence& sequence = w.sequence;
  for (int64_t l = 0; l < a.request.receiver->row_bytes().layers; ++l) {
    memory.caches.push_back(sequence.at(l, sequence.prefix_rows));
    if (sequence.prefix_rows > 0) memory.prefix.push_back(sequence.base->range().layer(l));
  }
  for (size_t i = 0; i < w.run->hidden_buffers(); ++i)
    memory.hidden.push_back(w.hidden->layer(static_cast<int64_t>(i)));
}

void EngineLoop::send_for(Active& a) {
  if (a.segments == nullptr) return;
  for (TransferJob& job : a.run->take_transfers(a.memory, a.segments, a.id, a.started_ns))
    service->submit(std::move(job));
}

void EngineLoop::admit() {
  for (auto at = queue.begin(); at != queue.end() && !free_slots.empty();) {
    if (comes(**at)) {
      ++at;
      continue;
    }
    if (!start(**at)) break;
    active.push_back(std::move(*at));
    at = queue.erase(at);
  }
  end_failed();
}

}  // namespace ds
