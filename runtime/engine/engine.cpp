#include "runtime/engine/engine.h"

#include <algorithm>
#include <atomic>
#include <deque>
#include <list>
#include <map>
#include <optional>
#include <set>

#include "plans/traits.h"
#include "runtime/core/finite.h"
#include "runtime/engine/batch_scheduler.h"
#include "runtime/engine/plan_run.h"
#include "runtime/engine/prefix_cache.h"
#include "runtime/engine/transfer_service.h"
#include "runtime/model/identity.h"
#include "runtime/model/shared_vocab.h"
#include "support/clock.h"
#include "support/units.h"

namespace ds {
namespace {

constexpr int64_t kCommands = 1 << 15;
constexpr size_t kMostPieces = 512;  // of one step
// A link from which nothing comes for this share of a full prefill, or for this long, has failed a request.
constexpr double kPatience = 0.1;
constexpr int64_t kLeastPatienceNs = 20'000'000;

bool reads_entry(const Variant& variant) {
  return std::any_of(variant.ops.begin(), variant.ops.end(), is_transfer);
}

int64_t round_down(int64_t rows) { return rows / PrefixCache::kBlock * PrefixCache::kBlock; }

}  // namespace

Result<EngineAnswer> Ticket::wait() {
  std::unique_lock lock(mutex_);
  ended_.wait(lock, [&] { return result_.has_value(); });
  return *result_;
}

bool Ticket::done() const {
  std::lock_guard lock(mutex_);
  return result_.has_value();
}

void Ticket::cancel() {
  cancelled_ = true;
  if (wake_) wake_();
}

/// The part of a request that sessions know, over its tokens.
struct RequestView {
  explicit RequestView(const EngineRequest& r) {
    for (const EngineSegment& s : r.segments)
      segments.push_back({s.tokens, s.from, s.first_there, s.first_here, s.rows, s.rotation});
    request.context = r.context;
    request.entry = r.entry;
    request.segments = segments;
    request.suffix = r.suffix;
    request.salt = r.salt;
    request.link_rate = r.link_rate;
    request.max_new_tokens = r.max_new_tokens;
  }
  RequestView(const RequestView&) = delete;
  std::vector<Segment> segments;
  Request request;
};

/// What wakes the engine's thread; tickets may outlive the engine.
struct Wake {
  std::mutex mutex;
  std::condition_variable changed;
  bool set = false;
  void operator()() {
    std::lock_guard lock(mutex);
    set = true;
    changed.notify_one();
  }
  void wait(int64_t ns) {
    std::unique_lock lock(mutex);
    changed.wait_for(lock, std::chrono::nanoseconds(ns), [&] { return set; });
    set = false;
  }
};

struct Station;
struct LookUp;

/// A request while it is the engine's.
struct Active {
  static constexpr size_t kNoSlot = ~size_t{0};

  uint64_t id = 0;
  Station* station = nullptr;
  EngineRequest request;
  std::shared_ptr<Ticket> ticket;
  EngineAnswer answer;
  int64_t submitted_ns = 0, deadline_ns = 0;  // 0: none
  int64_t n = 0, m = 0;
  std::vector<int32_t> tokens;  // context, suffix, and the answer's so far
  size_t slot = kNoSlot;        // of EngineLoop::results

  enum class State : uint8_t { kQueued, kLookingUp, kComputing, kDraining, kDecoding } state = State::kQueued;
  Sequence sequence;
  std::shared_ptr<KvRange> hidden, positions;
  RunMemory memory;
  ArenaClaim claim;  // of what has not been reserved yet
  int64_t plan = -1;
  const Variant* variant = nullptr;
  std::unique_ptr<PlanRun> run;
  std::shared_ptr<Segments> segments;       // that its transfers read
  std::string kept_as;                      // PrefixCache's salt; empty: its caches are not kept
  std::shared_ptr<PrefixCache::Node> node;  // of its own range
  int64_t started_ns = 0;                   // of the run
  int64_t idle_since_ns = 0;                // it waits for its link; 0: it does not
  bool alone = false;                       // decodes in no batch: one has failed
  bool retry = false;                       // its last token was not decoded
  bool over = false;                        // it has its last token
  std::optional<Sampler> sampler;
  Choice choice;
  int32_t next = 0;  // the token chosen last
};

/// What a look-up has found, written by its thread.
struct LookUp {
  uint64_t id = 0;
  std::shared_ptr<Segments> segments;
  EntryHeader header;  // for a publication
  Status status;
  std::atomic<bool> done{false};
  int64_t start_ns = 0, end_ns = 0;
};

/// A publication while it is the engine's.
struct Publishing {
  uint64_t id = 0;
  EnginePublication asked;
  Station* station = nullptr;
  std::unique_ptr<Publication> work;
  std::unique_ptr<Workspace> workspace;  // of its own, where it maps
  std::shared_ptr<PublicationTicket> ticket;
  ArenaClaim claim;
  enum class State : uint8_t { kQueued, kLookingUp, kComputing, kWriting } state = State::kQueued;
  std::shared_ptr<LookUp> found;
  // Of the thread that writes.
  std::thread writer;
  std::atomic<bool> written{false};
  Result<Published> result = error(Code::kInternal, "nothing was published");
};

/// A receiver's share of the device.
struct Station {
  std::unique_ptr<Receiver> receiver;
  std::unique_ptr<Workspace> workspace;
  std::unique_ptr<DeviceMemory> hidden;  // a row for each of a batch
  std::unique_ptr<DeviceMemory> logits;  // [batch][vocab], where the host chooses
  std::vector<int32_t> ids;
  std::vector<int64_t> rows;            // 0, 1, ...
  std::vector<SequenceRows> sequences;  // [layers][batch]
  std::vector<Active*> batch;           // of the running step
};

struct EngineLoop {
  Backend& backend;
  const EngineLimits limits;
  std::shared_ptr<Wake> wake = std::make_shared<Wake>();
  std::unique_ptr<KvArena> arena;
  std::unique_ptr<CommandStream> compute;
  std::unique_ptr<Event> begun, ended;
  std::unique_ptr<TransferService> service;

  mutable std::mutex mutex;  // of what follows
  std::condition_variable idle;
  std::vector<std::unique_ptr<Station>> stations;
  std::deque<std::unique_ptr<Active>> submitted;
  EngineStats stats;
  int64_t open = 0;  // submitted and not ended
  bool closing = false;
  uint64_t next_id = 1;
  Status lost;  // the device is; nothing runs any more
  std::vector<EngineSpan> spans;
  std::deque<std::unique_ptr<Publishing>> publications;  // the first one is worked on

  // The engine's thread's own.
  std::deque<std::unique_ptr<Active>> queue;
  std::list<std::unique_ptr<Active>> active;  // in the order in which they came
  std::vector<std::shared_ptr<LookUp>> look_ups;
  /// Memory that a transfer may still write to.
  struct Orphan {
    uint64_t id;
    Sequence sequence;
    std::shared_ptr<KvRange> hidden;
  };
  std::vector<Orphan> orphans;
  PrefixCache prefixes;
  ComputeEstimate speed;
  std::vector<size_t> free_slots;
  std::unique_ptr<DeviceMemory> results;                    // by slot: logits and a token
  int64_t result_bytes = 0, most_vocab = 0, row_bytes = 0;  // of the largest receiver
  Status publication_status;                                // of what was enqueued last
  std::vector<SequenceRows> storage;                        // of the running step's pieces
  std::vector<std::unique_ptr<Event>>
      marks;  // where spans are recorded: the step's begin, then each item's end
  std::vector<std::pair<float, int32_t>> scratch;
  std::thread thread;

  EngineLoop(Backend& b, const EngineLimits& l) : backend(b), limits(l) {}

  // ---- the outside

  Station* station_of(const Receiver* receiver) {
    for (auto& s : stations)
      if (s->receiver.get() == receiver) return s.get();
    return nullptr;
  }

  int64_t cache_rows(const Active& a) const { return a.n + a.m + a.request.max_new_tokens - 1; }

  Status check(const EngineRequest& r) {
    if (r.receiver == nullptr || station_of(r.receiver) == nullptr)
      return error(Code::kInvalidArgument, "the request's receiver is none of this engine's");
    const auto n = static_cast<int64_t>(r.context.size()), m = static_cast<int64_t>(r.suffix.size());
    const SessionLimits own{.context = n, .suffix = m, .new_tokens = r.max_new_tokens};
    const RequestView view(r);
    DS_TRY(check_request(view.request, r.receiver->exact(), own));
    const int64_t most = std::min(limits.tokens, r.receiver->model().config().max_positions);
    if (r.max_new_tokens > most || n + m > most - r.max_new_tokens + 1)
      return error(Code::kInvalidArgument,
                   "the request has {} context and {} prompt tokens and asks for {}; receiver '{}' takes {} "
                   "positions here; shorten one of them",
                   n, m, r.max_new_tokens, r.receiver->name(), most);
    if (r.time_limit_ns < 0)
      return error(Code::kInvalidArgument, "the time limit is {} ns; expected 0 (none) or more",
                   r.time_limit_ns);
    const RowBytes& bytes = r.receiver->row_bytes();
    const int64_t least = bytes.cache(n + m + r.max_new_tokens - 1) + (n + m) * bytes.hidden;
    if (least > limits.cache_bytes)
      return error(Code::kExhausted,
                   "the request needs {} of memory for caches, this engine has {} in all; it can never run "
                   "here: shorten it, or give the engine more",
                   format_bytes(least), format_bytes(limits.cache_bytes));
    return ok_status();
  }

  Result<std::shared_ptr<Ticket>> submit(EngineRequest request) {
    std::lock_guard lock(mutex);
    if (Status status = check(request); !status.ok()) {
      ++stats.refused;
      return status;
    }
    if (!lost.ok()) return lost;
    if (closing) return error(Code::kExhausted, "the engine is closing");
    if (static_cast<int64_t>(submitted.size()) + stats.waiting >= limits.queue) {
      ++stats.refused;
      return error(Code::kExhausted,
                   "{} requests wait already, which is this engine's limit; try again later", limits.queue);
    }
    auto a = std::make_unique<Active>();
    a->id = next_id++;
    a->ticket = std::make_shared<Ticket>();
    a->ticket->wake_ = [w = wake] { (*w)(); };
    a->submitted_ns = now_ns();
    if (request.time_limit_ns > 0) a->deadline_ns = a->submitted_ns + request.time_limit_ns;
    a->n = static_cast<int64_t>(request.context.size());
    a->m = static_cast<int64_t>(request.suffix.size());
    a->tokens.reserve(static_cast<size_t>(a->n + a->m + request.max_new_tokens));
    a->tokens = request.context;
    a->tokens.insert(a->tokens.end(), request.suffix.begin(), request.suffix.end());
    a->sampler.emplace(request.sampling);
    a->choice = a->sampler->next();
    a->station = station_of(request.receiver);
    a->request = std::move(request);
    auto ticket = a->ticket;
    submitted.push_back(std::move(a));
    ++stats.submitted;
    ++open;
    (*wake)();
    return ticket;
  }

  Result<std::shared_ptr<PublicationTicket>> publish(EnginePublication asked) {
    std::lock_guard lock(mutex);
    Station* station = asked.sender == nullptr ? nullptr : station_of(asked.sender);
    if (station == nullptr || asked.store == nullptr)
      return error(Code::kInvalidArgument,
                   "a publication needs a sender of this engine and a store; {} is there",
                   station == nullptr ? "no such sender" : "no store");
    if (!lost.ok()) return lost;
    if (closing) return error(Code::kExhausted, "the engine is closing");
    auto p = std::make_unique<Publishing>();
    DS_ASSIGN(p->work, Publication::create(backend, asked.sender->model(), asked.sender->identity(),
                                           asked.context, asked.options));
    if (p->work->maps()) {
      DS_ASSIGN(p->workspace,
                asked.sender->model().make_workspace(static_cast<int64_t>(asked.context.size())));
    }
    const auto most = static_cast<int64_t>(limits.publish_share * static_cast<double>(limits.cache_bytes));
    if (p->work->bytes() > most || static_cast<int64_t>(asked.context.size()) > limits.tokens)
      return error(
          Code::kExhausted,
          "publishing {} tokens takes {} of memory; this engine gives publications {} and contexts of {} "
          "tokens",
          asked.context.size(), format_bytes(p->work->bytes()), format_bytes(most), limits.tokens);
    for (const auto& other : publications)
      if (other->work->identity().key() == p->work->identity().key() && other->asked.store == asked.store &&
          other->asked.options.cuts == asked.options.cuts && !p->work->maps() && !other->ticket->cancelled_)
        return other->ticket;
    p->id = next_id++;
    p->asked = std::move(asked);
    p->station = station;
    p->ticket = std::make_shared<PublicationTicket>();
    auto ticket = p->ticket;
    publications.push_back(std::move(p));
    ++stats.publications_open;
    (*wake)();
    return ticket;
  }

  // ---- publications, on the engine's thread

  Publishing* publishing() {
    std::lock_guard lock(mutex);
    return publications.empty() ? nullptr : publications.front().get();
  }

  void end(Publishing& p, Result<Published> result) {
    if (p.writer.joinable()) p.writer.join();
    auto ticket = p.ticket;
    auto on_end = std::move(p.asked.on_end);
    {
      std::lock_guard lock(mutex);
      stats.published += result.ok() && !result->already ? 1 : 0;
      --stats.publications_open;
      std::erase_if(publications, [&](const auto& other) { return other.get() == &p; });
    }
    {
      std::lock_guard lock(ticket->mutex_);
      ticket->result_ = std::move(result);
      ticket->ended_.notify_all();
    }
    if (on_end) on_end();
  }

  /// Of a publication whose piece was not run: what it has kept is given up, which costs less than to know.
  void begin_again(Publishing& p) {
    auto work = Publication::create(backend, p.asked.sender->model(), p.asked.sender->identity(),
                                    p.asked.context, p.asked.options);
    if (!work.ok()) return end(p, work.status());
    p.work = std::move(work).value();
  }

  /// What the first publication waits for.
  void watch_publication() {
    Publishing* p = publishing();
    if (p == nullptr) return;
    if (p->ticket->cancelled_ && p->state != Publishing::State::kWriting)
      return end(*p, error(Code::kExhausted, "the publication was cancelled"));
    switch (p->state) {
      case Publishing::State::kQueued:
        p->found = std::make_shared<LookUp>();
        p->state = Publishing::State::kLookingUp;
        service->look_up([found = p->found, store = p->asked.store, identity = p->work->identity(),
                          shape = p->asked.sender->model().config().shape()] {
          auto entry = EntryReader::open(*store, identity, shape);
          if (entry.ok()) found->header = entry->header();
          found->status = entry.status();
          found->done.store(true, std::memory_order_release);
        });
        break;
      case Publishing::State::kLookingUp:
        if (!p->found->done.load(std::memory_order_acquire)) break;
        if (p->found->status.ok() && p->work->same(p->found->header)) {
          Published there;
          there.key = p->work->identity().key();
          there.already = true;
          return end(*p, std::move(there));
        }
        // Requests' memory goes first: it waits until there is some.
        if (auto claim = arena->claim(p->work->bytes()); claim.ok()) {
          p->claim = std::move(claim).value();
          p->state = Publishing::State::kComputing;
        }
        break;
      case Publishing::State::kComputing:
        if (!p->work->done()) break;
        p->state = Publishing::State::kWriting;
        p->writer = std::thread([p, w = wake] {
          p->result = p->work->write(*p->asked.store);
          p->written.store(true, std::memory_order_release);
          (*w)();
        });
        break;
      case Publishing::State::kWriting:
        if (p->written.load(std::memory_order_acquire)) end(*p, std::move(p->result));
        break;
    }
  }

  // ---- endings

  void end(Active& a, Result<EngineAnswer> result, int64_t EngineStats::*count) {
    service->cancel(a.id);
    if (service->reading(a.id)) orphans.push_back({a.id, a.sequence, a.hidden});
    if (a.slot != Active::kNoSlot) free_slots.push_back(a.slot);
    a.run.reset();
    a.node.reset();
    a.sequence = {};
    a.hidden.reset();
    a.positions.reset();
    a.claim = {};
    auto ticket = a.ticket;
    auto on_end = std::move(a.request.on_end);
    {
      std::lock_guard lock(mutex);
      ++(stats.*count);
    }
    {
      std::lock_guard lock(ticket->mutex_);
      ticket->result_ = std::move(result);
      ticket->ended_.notify_all();
    }
    if (on_end) on_end();
    std::lock_guard lock(mutex);
    if (--open == 0) idle.notify_all();
  }

  void fail(Active& a, Status status) { end(a, std::move(status), &EngineStats::failed); }

  /// Whether the request was ended from outside, by its own clock or by its caller.
  bool stop(Active& a) {
    if (a.ticket->cancelled_) {
      end(a, error(Code::kExhausted, "the request was cancelled after {} tokens", a.answer.tokens.size()),
          &EngineStats::cancelled);
      return true;
    }
    if (a.deadline_ns != 0 && now_ns() > a.deadline_ns) {
      end(a,
          error(Code::kExhausted, "the request's time limit of {} ms has passed after {} tokens",
                a.request.time_limit_ns / 1'000'000, a.answer.tokens.size()),
          &EngineStats::cancelled);
      return true;
    }
    return false;
  }

  // ---- beginnings

  std::string exact_salt(const Active& a) const {
    return fmt::format("exact\n{}\n{}", a.request.receiver->identity().fingerprint, a.request.salt);
  }
  std::string plan_salt(const Active& a, size_t plan, const Variant& v) const {
    const Plan& p = a.request.receiver->plan(plan);
    return fmt::format("reused\n{}\n{}\n{}\n{}\n{}\n{}", a.request.receiver->identity().fingerprint,
                       p.sender.fingerprint, v.policy, v.way, p.maps.fingerprint, a.request.salt);
  }

  /// Claims memory, of finished caches where there is none else.
  bool take(Active& a, int64_t bytes) {
    for (;;) {
      if (auto claim = arena->claim(bytes); claim.ok()) {
        a.claim = std::move(claim).value();
        return true;
      }
      if (!prefixes.evict()) return false;
    }
  }

  int64_t run_bytes(const Active& a, const Variant& v, int64_t first) const {
    const RowBytes& bytes = a.request.receiver->row_bytes();
    const auto hidden =
        std::max<int64_t>(1, std::count_if(v.buffers.begin(), v.buffers.end(),
                                           [](const Buffer& b) { return b.kind == BufferKind::kHidden; }));
    return hidden * (a.n + a.m - first) * bytes.hidden +
           (v.select_share > 0 ? a.n * static_cast<int64_t>(sizeof(int32_t)) : 0);
  }

  /// Whether somebody is computing what this request begins with: when that is there, it costs its suffix.
  bool comes(const Active& a) const {
    if (!limits.prefix_cache || a.request.reuse == Reuse::kOff || a.n < PrefixCache::kBlock) return false;
    return std::any_of(active.begin(), active.end(), [&](const auto& other) {
      return (other->state == Active::State::kComputing || other->state == Active::State::kLookingUp) &&
             !other->kept_as.empty() && other->request.receiver == a.request.receiver &&
             other->request.reuse == a.request.reuse && other->request.store == a.request.store &&
             other->request.salt == a.request.salt && other->request.context == a.request.context;
    });
  }

  /// False: there is no memory for it now.
  bool start(Active& a) {
    const Receiver& receiver = *a.request.receiver;
    const bool prefixes_on = limits.prefix_cache && a.request.reuse != Reuse::kOff;
    PrefixCache::Hit hit;
    if (prefixes_on) {
      hit = prefixes.find(exact_salt(a), a.tokens);
      a.kept_as = exact_salt(a);
    }
    int64_t waiting = static_cast<int64_t>(queue.size()) - 1;
    a.answer.waiting = waiting;
    a.answer.link_rate = a.request.link_rate > 0 ? a.request.link_rate : service->rate();
    a.answer.rate_source = a.request.link_rate > 0  ? RateSource::kGiven
                           : a.answer.link_rate > 0 ? RateSource::kMeasured
                                                    : RateSource::kUnknown;
    const int64_t rate = a.answer.link_rate > 0 ? a.answer.link_rate : kNoLimit - 1;
    a.plan = -1;
    a.variant = &receiver.exact().full_prefill;
    if (a.request.reuse == Reuse::kAuto && hit.rows < a.n) {
      for (size_t i = 0; i < receiver.plans() && a.plan < 0; ++i) {
        const Variant* v = select_variant(receiver.plan(i), a.n, rate, waiting);
        if (v == nullptr || !reads_entry(*v)) continue;
        a.plan = static_cast<int64_t>(i);
        a.variant = v;
      }
      if (a.plan >= 0 && prefixes_on) {
        // An approximate cache that goes further than the exact one.
        const std::string salt = plan_salt(a, static_cast<size_t>(a.plan), *a.variant);
        if (auto other = prefixes.find(salt, a.tokens); other.rows > hit.rows) {
          hit = std::move(other);
          a.kept_as = salt;
        }
      }
      // What a prefix leaves to compute is less than what a plan moves and recomputes.
      if (a.plan >= 0 && (a.request.store == nullptr || 2 * hit.rows >= a.n)) {
        a.plan = -1;
        a.variant = &receiver.exact().full_prefill;
      }
    }
    // Sequences of one context share exactly it, whatever else their questions have in common, so that
    // kernels read it once for all of them.
    if (hit.rows > a.n) hit.rows = std::max(a.n, round_down(hit.rows));
    const int64_t first = a.plan >= 0 ? 0 : hit.rows;
    const RowBytes& bytes = receiver.row_bytes();
    const Variant& exact = receiver.exact().full_prefill;
    int64_t needed = bytes.cache(cache_rows(a) - first) +
                     std::max(run_bytes(a, *a.variant, first), run_bytes(a, exact, first));
    if (needed > limits.cache_bytes && a.plan >= 0) {  // the plan's buffers are too much
      a.plan = -1;
      a.variant = &exact;
      needed = bytes.cache(cache_rows(a)) + run_bytes(a, exact, 0);
    }
    if (!take(a, needed)) return false;
    a.slot = free_slots.back();
    free_slots.pop_back();
    a.answer.queue_ns = now_ns() - a.submitted_ns;
    if (a.plan >= 0) {
      a.answer.cache = CacheStatus::kMiss;
      if (prefixes_on) a.kept_as = plan_salt(a, static_cast<size_t>(a.plan), *a.variant);
      look_up(a);
      return true;
    }
    if (first > 0) {
      a.sequence.base = std::move(hit.node);
      a.sequence.prefix_rows = a.sequence.own_first = first;
      a.answer.cached_tokens = first;
    }
    compute_from(a, first);
    return true;
  }

  int64_t patience(const Active& a) const {
    const ModelConfig& c = a.request.receiver->model().config();
    const double per_token = static_cast<double>(c.layers) * PlanRun::layer_flops(c);
    if (!speed.known()) return 5 * kLeastPatienceNs;
    return std::max(kLeastPatienceNs,
                    static_cast<int64_t>(kPatience * static_cast<double>(speed.ns(
                                                         static_cast<double>(a.n + a.m) * per_token))));
  }

  void look_up(Active& a) {
    a.state = Active::State::kLookingUp;
    a.started_ns = now_ns();
    const Receiver& receiver = *a.request.receiver;
    const Plan& plan = receiver.plan(static_cast<size_t>(a.plan));
    if (Status known =
            check_sender_knows(a.request.context, plan.shared_vocab, plan.sender.name, plan.receiver.name);
        !known.ok())
      return miss(a, std::move(known));
    // Where one hangs already, this one would, too.
    if (const int64_t since = service->look_up_since_ns(); since != 0 && a.started_ns - since > patience(a))
      return miss(a, error(Code::kExhausted, "late: a look-up of another request has taken {} ms so far",
                           (a.started_ns - since) / 1'000'000));
    auto found = std::make_shared<LookUp>();
    found->id = a.id;
    found->start_ns = a.started_ns;
    look_ups.push_back(found);
    // It has tokens of its own: it may outlive the request.
    auto asked = std::make_shared<EngineRequest>();
    asked->context = a.request.context;
    asked->entry = a.request.entry;
    asked->segments = a.request.segments;
    asked->salt = a.request.salt;
    service->look_up([found, asked, store = a.request.store, &plan, variant = a.variant,
                      dtype = receiver.model().dtype()] {
      const RequestView view(*asked);
      auto segments = Segments::open(*store, view.request, plan, *variant, dtype);
      if (segments.ok())
        found->segments = std::make_shared<Segments>(std::move(segments).value());
      else
        found->status = segments.status();
      found->end_ns = now_ns();
      found->done.store(true, std::memory_order_release);
    });
  }

  void miss(Active& a, Status why) {
    a.answer.miss = std::move(why);
    a.answer.lost_ns = now_ns() - a.started_ns;
    a.plan = -1;
    a.variant = &a.request.receiver->exact().full_prefill;
    if (!a.kept_as.empty()) a.kept_as = exact_salt(a);
    compute_from(a, 0);
  }

  /// Makes memory and a run of a.variant, and sends for its transfers.
  void compute_from(Active& a, int64_t first) {
    if (Status status = try_compute(a, first); !status.ok()) {
      failed.emplace_back(&a, std::move(status));
    }
  }
  std::vector<std::pair<Active*, Status>> failed;  // ended at the next chance

  Status try_compute(Active& a, int64_t first) {
    const Receiver& receiver = *a.request.receiver;
    const RowBytes& bytes = receiver.row_bytes();
    a.run = std::make_unique<PlanRun>(receiver, a.plan, *a.variant, RunShape{first, a.n, a.m}, a.tokens);
    a.started_ns = now_ns();
    const int64_t rows = a.n + a.m - first, cache = bytes.cache(cache_rows(a) - first);
    const int64_t beside = run_bytes(a, *a.variant, first);
    // Addresses for the longest sequence, so that others may go on from it: they cost nothing where memory
    // comes as rows do.
    const bool grows = backend.host_visible();
    const int64_t most = grows ? limits.tokens : cache_rows(a) - first;
    a.claim.shrink(cache + beside);
    DS_ASSIGN(a.hidden, arena->reserve({static_cast<int64_t>(a.run->hidden_buffers()), bytes.hidden, 0},
                                       grows ? limits.tokens : rows, {}));
    DS_TRY(a.hidden->commit(rows));
    if (a.run->selects()) {
      DS_ASSIGN(a.positions, arena->reserve({1, static_cast<int64_t>(sizeof(int32_t)), 0},
                                            grows ? limits.tokens : a.n, {}));
      DS_TRY(a.positions->commit(a.n));
      a.memory.positions = a.positions->layer(0);
    }
    a.hidden->claim = a.claim.split(beside);
    DS_ASSIGN(a.sequence.own, arena->reserve(bytes, most, std::move(a.claim)));
    DS_TRY(a.sequence.own->commit(rows));
    a.memory.workspace = a.station->workspace.get();
    a.memory.logits = logits_of(a.slot);
    a.memory.next = next_of(a.slot);
    a.memory.choice = a.choice;
    set_addresses(a);
    a.state = Active::State::kComputing;
    a.idle_since_ns = 0;
    return ok_status();
  }

  void set_addresses(Active& a) {
    RunMemory& memory = a.memory;
    memory.caches.clear();
    memory.prefix.clear();
    memory.hidden.clear();
    const Sequence& sequence = a.sequence;
    for (int64_t l = 0; l < a.request.receiver->row_bytes().layers; ++l) {
      memory.caches.push_back(sequence.at(l, sequence.prefix_rows));
      if (sequence.prefix_rows > 0) memory.prefix.push_back(sequence.base->range().layer(l));
    }
    for (size_t i = 0; i < a.run->hidden_buffers(); ++i)
      memory.hidden.push_back(a.hidden->layer(static_cast<int64_t>(i)));
  }

  void send_for(Active& a) {
    if (a.segments == nullptr) return;
    for (TransferJob& job : a.run->take_transfers(a.memory, a.segments, a.id, a.started_ns))
      service->submit(std::move(job));
  }

  // ---- between steps

  Active* find(uint64_t id) {
    for (auto& a : active)
      if (a->id == id) return a.get();
    return nullptr;
  }

  void collect() {
    std::erase_if(orphans, [&](const Orphan& o) { return !service->reading(o.id); });
    {
      std::lock_guard lock(mutex);
      for (auto& a : submitted) queue.push_back(std::move(a));
      submitted.clear();
    }
    for (TransferDone& done : service->take_done()) {
      Active* a = find(done.owner);
      if (a == nullptr || a->run == nullptr) continue;
      a->idle_since_ns = 0;
      if (limits.record_spans)
        record({a->id, StreamKind::kLink, a->run->transfer_label(done.index), done.start_ns, done.end_ns});
      if (done.status.ok()) {
        a->run->arrived(done.index);
        a->answer.bytes_loaded += done.bytes;
        a->answer.link_ns += done.end_ns - done.start_ns;
      } else {
        lose(*a, std::move(done.status));
      }
    }
    std::erase_if(look_ups, [&](const std::shared_ptr<LookUp>& l) {
      Active* a = find(l->id);
      if (a == nullptr || a->state != Active::State::kLookingUp) return true;
      if (!l->done.load(std::memory_order_acquire)) {
        const int64_t waited = now_ns() - l->start_ns;
        if (waited < patience(*a)) return false;
        miss(*a, error(Code::kExhausted, "late: the look-up of the entry has taken {} ms so far",
                       waited / 1'000'000));
        return true;
      }
      a->answer.lookup_ns = l->end_ns - l->start_ns;
      if (!l->status.ok()) {
        miss(*a, l->status);
        return true;
      }
      compute_from(*a, 0);
      if (a->state != Active::State::kComputing) return true;
      a->segments = l->segments;
      send_for(*a);
      return true;
    });
    for (auto at = active.begin(); at != active.end();) {
      Active& a = **at;
      watch(a);
      at = stop(a) ? active.erase(at) : std::next(at);
    }
    end_failed();
    watch_publication();
    std::erase_if(queue, [&](std::unique_ptr<Active>& a) { return stop(*a); });
  }

  void end_failed() {
    for (auto& [a, status] : std::exchange(failed, {})) {
      fail(*a, std::move(status));
      std::erase_if(active, [a = a](const auto& x) { return x.get() == a; });
    }
  }

  /// A run that waits for a link from which nothing comes goes on without it.
  void watch(Active& a) {
    if (a.state == Active::State::kDraining) {
      if (service->reading(a.id)) {
        if (now_ns() - a.idle_since_ns < kLeastPatienceNs) return;
        if (Status status = leave_memory(a); !status.ok()) {
          failed.emplace_back(&a, std::move(status));
          return;
        }
      }
      a.run->lose_transfers();
      a.state = Active::State::kComputing;
      a.idle_since_ns = 0;
      return;
    }
    if (a.state != Active::State::kComputing || a.run == nullptr || !a.run->awaits_transfers() ||
        a.run->next(1)) {
      a.idle_since_ns = 0;
      return;
    }
    if (a.idle_since_ns == 0) a.idle_since_ns = now_ns();
    const int64_t since = std::max(a.idle_since_ns, service->last_progress_ns());
    if (now_ns() - since < patience(a)) return;
    lose(a, error(Code::kExhausted, "late: nothing has come over the link for {} ms",
                  (now_ns() - since) / 1'000'000));
  }

  /// What has not come of the run's transfers will not.
  void lose(Active& a, Status why) {
    if (a.state != Active::State::kComputing || !a.run->awaits_transfers()) return;
    a.answer.miss = std::move(why);
    a.answer.lost_ns = now_ns() - a.started_ns;
    service->cancel(a.id);
    // What is being read is written to the run's memory until the store lets go of it.
    a.state = Active::State::kDraining;
    a.idle_since_ns = now_ns();
  }

  /// A store that hangs may still write to this memory, at any time: the run goes on with a copy.
  Status leave_memory(Active& a) {
    Orphan left{a.id, a.sequence, a.hidden};
    const RowBytes& bytes = a.request.receiver->row_bytes();
    const int64_t rows = a.n + a.m;
    ArenaClaim claim = std::move(left.sequence.own->claim);
    DS_ASSIGN(a.sequence.own, arena->reserve(bytes, left.sequence.own->rows(), std::move(claim)));
    DS_TRY(a.sequence.own->commit(rows));
    DS_TRY(a.sequence.own->copy_rows(*compute, *left.sequence.own, 0, 0, rows));
    claim = std::move(left.hidden->claim);
    DS_ASSIGN(a.hidden, arena->reserve(left.hidden->row_bytes(), left.hidden->rows(), std::move(claim)));
    DS_TRY(a.hidden->commit(rows));
    DS_TRY(a.hidden->copy_rows(*compute, *left.hidden, 0, 0, rows));
    set_addresses(a);
    orphans.push_back(std::move(left));
    return ok_status();
  }

  void admit() {
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

  // ---- a step

  struct Item {
    Publishing* publishing = nullptr;
    Station* station = nullptr;  // a batch that decodes
    Active* one = nullptr;       // or one request
    std::optional<PlanRun::Piece> piece;
    size_t first = 0, count = 0;  // of the station's batch
  };

  float* logits_of(size_t slot) {
    return reinterpret_cast<float*>(results->data() + static_cast<int64_t>(slot) * result_bytes);
  }
  int32_t* next_of(size_t slot) { return reinterpret_cast<int32_t*>(logits_of(slot) + most_vocab); }

  /// One more token for each of batch[first .. first + count).
  void decode(Station& s, size_t first, size_t count) {
    DeviceModel& model = s.receiver->model();
    const int64_t layers = model.config().layers, width = s.receiver->row_bytes().hidden;
    std::byte* hidden = s.hidden->data() + static_cast<int64_t>(first) * width;
    for (size_t i = first; i < first + count; ++i) {
      Active& a = *s.batch[i];
      s.ids[i] = a.next;
      const auto position = static_cast<int64_t>(a.tokens.size()) - 1;
      for (int64_t l = 0; l < layers; ++l)
        s.sequences[static_cast<size_t>(l * limits.batch) + i] = a.sequence.rows(l, position, 1, 1);
    }
    model.embed(*compute, s.ids.data() + first, static_cast<int64_t>(count), hidden);
    for (int64_t l = 0; l < layers; ++l)
      model.layer_batch(*compute, *s.workspace, l, hidden,
                        std::span(s.sequences).subspan(static_cast<size_t>(l * limits.batch) + first, count));
    if (s.logits) {
      model.logits_batch(
          *compute, *s.workspace, hidden, std::span(s.rows).first(count),
          reinterpret_cast<float*>(s.logits->data()) + static_cast<int64_t>(first) * model.config().vocab);
    } else {
      for (size_t i = first; i < first + count; ++i) {
        Active& a = *s.batch[i];
        model.head(*compute, *s.workspace,
                   {s.hidden->data() + static_cast<int64_t>(i) * width, nullptr, a.choice, next_of(a.slot)});
      }
    }
  }

  bool step() {
    std::vector<Item> items;
    auto mark = [&] {  // what comes before it belongs to the item that was begun last
      if (!limits.record_spans) return;
      marks[items.size()]->reset();
      compute->record(*marks[items.size()]);
    };
    auto begin = [&](Item item) {
      mark();
      compute->begin_op(static_cast<int64_t>(items.size()));
      items.push_back(std::move(item));
    };
    std::vector<Station*> decoding;
    for (auto& a : active) a->station->batch.clear();
    for (auto& a : active) {
      if (a->state != Active::State::kDecoding) continue;
      if (Status status =
              a->sequence.own->commit(static_cast<int64_t>(a->tokens.size()) - a->sequence.own_first);
          !status.ok()) {
        failed.emplace_back(a.get(), std::move(status));
        continue;
      }
      if (!a->retry) a->choice = a->sampler->next();
      if (a->station->batch.empty()) decoding.push_back(a->station);
      a->station->batch.push_back(a.get());
    }
    end_failed();
    for (Station* s : decoding) {
      // Those of a batch that failed go one by one, so that the fault is found and nobody else's.
      std::stable_partition(s->batch.begin(), s->batch.end(), [](const Active* a) { return !a->alone; });
      const auto together = static_cast<size_t>(
          std::count_if(s->batch.begin(), s->batch.end(), [](const Active* a) { return !a->alone; }));
      if (together > 0) {
        begin({.station = s, .first = 0, .count = together});
        decode(*s, 0, together);
      }
      for (size_t i = together; i < s->batch.size(); ++i) {
        begin({.station = s, .first = i, .count = 1});
        decode(*s, i, 1);
      }
    }
    std::vector<PlanRun*> runs;
    std::vector<Active*> of;
    for (auto& a : active)
      if (a->state == Active::State::kComputing) {
        runs.push_back(a->run.get());
        of.push_back(a.get());
      }
    double flops = 0;
    begun->reset();
    ended->reset();
    compute->begin_op(-1);
    compute->record(*begun);
    fill_step(runs, speed.flops(limits.step_budget_ns), kMostPieces, [&](const ScheduledPiece& p) {
      Active& a = *of[p.run];
      begin({.one = &a, .piece = p.piece});
      a.run->issue(p.piece, *compute, a.memory, storage[items.size() - 1]);
      flops += p.piece.flops;
    });
    const bool decodes = !decoding.empty();
    if (Publishing* p = publishing();
        p != nullptr && p->state == Publishing::State::kComputing && !p->work->done() && flops == 0) {
      begin({.publishing = p});
      const double share = decodes ? limits.publish_share : 1;
      const double per_row = PlanRun::layer_flops(p->asked.sender->model().config());
      const double rows = share * speed.flops(limits.step_budget_ns) / per_row;
      const auto most = std::max<int64_t>(
          PlanRun::kBlock, std::min(rows, 1e9) < 1e9 ? round_down(static_cast<int64_t>(rows)) : 1 << 30);
      const int64_t left = p->work->rows_left();
      publication_status =
          p->work->enqueue(most, *compute, p->workspace ? *p->workspace : *p->station->workspace);
      flops = per_row * static_cast<double>(std::min(most, left));
    }
    mark();
    compute->begin_op(-1);
    compute->record(*ended);
    const int64_t start = now_ns();
    Status status = compute->synchronize();
    if (items.empty()) return false;
    const int64_t busy = now_ns() - start;
    {
      std::lock_guard lock(mutex);
      ++stats.steps;
      stats.compute_busy_ns += busy;
    }
    if (limits.record_spans && status.ok()) record_step(items);
    if (status.ok()) speed.add(flops, ended->time_ns() - begun->time_ns());
    settle(items, std::move(status));
    return true;
  }

  void record(EngineSpan span) {
    std::lock_guard lock(mutex);
    spans.push_back(std::move(span));
  }

  void record_step(const std::vector<Item>& items) {
    for (size_t i = 0; i < items.size(); ++i) {
      const Item& item = items[i];
      record({item.one != nullptr          ? item.one->id
              : item.publishing != nullptr ? item.publishing->id
                                           : 0,
              StreamKind::kCompute,
              item.one != nullptr          ? item.one->run->label(*item.piece)
              : item.publishing != nullptr ? "publish"
                                           : fmt::format("decode {}", item.count),
              marks[i]->time_ns(), marks[i + 1]->time_ns()});
    }
  }

  void settle(std::vector<Item>& items, Status status) {
    // Work before the failure has run, what comes after it has not.
    size_t ran = items.size();
    if (!status.ok()) {
      const int64_t op = compute->failed_op();
      if (is_device_failure(status.code()) || op < 0) return give_up(std::move(status));
      ran = static_cast<size_t>(op);
    }
    for (size_t i = 0; i < ran; ++i) {
      Item& item = items[i];
      if (item.station != nullptr) {
        decoded(*item.station, item.first, item.count);
      } else if (item.publishing != nullptr) {
        if (!publication_status.ok()) end(*item.publishing, std::exchange(publication_status, {}));
      } else {
        item.one->run->complete(*item.piece);
        item.one->answer.compute_ns += speed.ns(item.piece->flops);
      }
    }
    for (size_t i = ran; i < items.size(); ++i)
      if (items[i].one != nullptr) items[i].one->run->rewind();
    if (ran + 1 < items.size() && items.back().publishing != nullptr) begin_again(*items.back().publishing);
    if (ran < items.size()) {
      Item& item = items[ran];
      if (item.one != nullptr) {
        failed.emplace_back(
            item.one, status.with_context(fmt::format("variant '{}', op {} ({})", item.one->variant->name,
                                                      item.one->run->op(*item.piece),
                                                      item.one->run->label(*item.piece))));
      } else if (item.publishing != nullptr) {
        end(*item.publishing,
            status.with_context(fmt::format("publishing, layer {}", item.publishing->work->layer())));
      } else if (item.count == 1) {
        Active& a = *item.station->batch[item.first];
        failed.emplace_back(
            &a, status.with_context(fmt::format("token {} of the answer", a.answer.tokens.size() + 1)));
      } else {
        for (size_t i = item.first; i < item.first + item.count; ++i) item.station->batch[i]->alone = true;
      }
      // A token that was not decoded is chosen as it would have been.
      for (size_t i = ran; i < items.size(); ++i)
        if (items[i].station != nullptr)
          for (size_t k = items[i].first; k < items[i].first + items[i].count; ++k)
            items[i].station->batch[k]->retry = true;
    }
    for (auto& a : active) {
      if (a->state != Active::State::kComputing) continue;
      if (a->run->finished())
        first_token(*a);
      else
        send_for(*a);  // to where something was read
    }
    finish_ended();
    end_failed();
  }

  void give_up(Status status) {
    {
      std::lock_guard lock(mutex);
      lost = status;
    }
    for (auto& a : active) failed.emplace_back(a.get(), status);
    end_failed();
    for (auto& a : std::exchange(queue, {})) fail(*a, status);
  }

  void first_token(Active& a) {
    const int64_t vocab = a.request.receiver->model().config().vocab;
    const std::span<const float> logits(logits_of(a.slot), static_cast<size_t>(vocab));
    if (Status status = check_finite(logits, static_cast<int64_t>(a.answer.tokens.size()) + 1, *a.variant);
        !status.ok()) {
      failed.emplace_back(&a, std::move(status));
      return;
    }
    if (a.request.first_logits) a.answer.first_logits.assign(logits.begin(), logits.end());
    if (a.plan >= 0 && a.answer.miss.ok()) a.answer.cache = CacheStatus::kHit;
    a.answer.repaired = a.run->repaired();
    a.answer.variant = a.variant;
    a.answer.ttft_ns = now_ns() - a.submitted_ns;
    if (a.run->repaired()) a.kept_as = a.run->exact() && !a.kept_as.empty() ? exact_salt(a) : "";
    a.run.reset();
    a.segments.reset();
    a.hidden.reset();
    a.positions.reset();
    // Others that begin as this one did need not wait for its end.
    if (!a.kept_as.empty() && a.sequence.base == nullptr) {
      a.node = prefixes.insert(a.kept_as, a.tokens, a.sequence.own);
      if (a.node != nullptr) {
        a.sequence.base = a.node;
        a.sequence.prefix_rows = a.n > 0 ? a.n : round_down(a.m);
      }
    }
    a.state = Active::State::kDecoding;
    next_token(a, *next_of(a.slot));
  }

  void decoded(Station& s, size_t first, size_t count) {
    const auto vocab = static_cast<size_t>(s.receiver->model().config().vocab);
    for (size_t i = first; i < first + count; ++i) {
      Active& a = *s.batch[i];
      int32_t token = 0;
      if (s.logits) {
        const std::span<const float> logits(reinterpret_cast<const float*>(s.logits->data()) + i * vocab,
                                            vocab);
        if (Status status =
                check_finite(logits, static_cast<int64_t>(a.answer.tokens.size()) + 1, *a.variant);
            !status.ok()) {
          failed.emplace_back(&a, std::move(status));
          continue;
        }
        token = choose(logits, a.choice, scratch);
      } else {
        token = *next_of(a.slot);
      }
      next_token(a, token);
    }
  }

  void next_token(Active& a, int32_t token) {
    const EngineRequest& r = a.request;
    a.retry = false;
    if (std::find(r.stop_ids.begin(), r.stop_ids.end(), token) != r.stop_ids.end()) {
      a.answer.stopped = true;
      a.answer.stop_token = token;
      a.over = true;
      return;
    }
    a.answer.tokens.push_back(token);
    a.answer.token_ns.push_back(now_ns() - a.submitted_ns);
    a.tokens.push_back(token);
    a.next = token;
    if (r.on_token) r.on_token(token);
    if (r.is_last && r.is_last(token)) {
      a.answer.ended_by_caller = true;
      a.over = true;
    }
    if (static_cast<int64_t>(a.answer.tokens.size()) >= r.max_new_tokens) a.over = true;
  }

  void finish_ended() {
    for (auto at = active.begin(); at != active.end();) {
      Active& a = **at;
      if (!a.over) {
        ++at;
        continue;
      }
      a.answer.decode_ns = now_ns() - a.submitted_ns - a.answer.ttft_ns;
      keep(a);
      {
        std::lock_guard lock(mutex);
        stats.prompt_tokens += a.n + a.m;
        stats.cached_tokens += a.answer.cached_tokens;
        stats.new_tokens += static_cast<int64_t>(a.answer.tokens.size());
        stats.entry_hits += a.answer.cache == CacheStatus::kHit ? 1 : 0;
        stats.entry_misses += a.answer.cache == CacheStatus::kMiss ? 1 : 0;
        stats.repaired += a.answer.repaired ? 1 : 0;
      }
      EngineAnswer answer = std::move(a.answer);
      end(a, std::move(answer), &EngineStats::finished);
      at = active.erase(at);
    }
  }

  /// Keeps the finished request's caches for those that begin as it did.
  void keep(Active& a) {
    if (a.kept_as.empty()) return;
    // Of the last token nothing was computed yet; where it is a stop token, it is not among them.
    const int64_t rows = static_cast<int64_t>(a.tokens.size()) - (a.answer.stopped ? 0 : 1);
    const auto tokens = std::span<const int32_t>(a.tokens).first(static_cast<size_t>(rows));
    const RowBytes& bytes = a.request.receiver->row_bytes();
    KvRange& own = *a.sequence.own;
    if (a.node != nullptr) {
      own.claim.shrink(bytes.cache(rows));
      prefixes.replace(a.node, tokens);  // who reads of it reads what is before
      return;
    }
    if (a.sequence.base == nullptr) return;  // all of it is here already
    const int64_t first = a.sequence.own_first;
    if (rows <= first) return;
    // A conversation's next turn: what it read goes on where it ended, if nobody else reads that.
    auto base = a.sequence.base;
    a.sequence.base.reset();
    KvRange& range = base->range();
    const bool grows = PrefixCache::sole(base) && rows <= range.rows();
    if (grows) {
      own.claim.shrink(bytes.cache(rows - first));
      if (!range.claim.grow(bytes.cache(rows)).ok() || !range.commit(rows).ok()) return;
      if (!range.copy_rows(*compute, own, 0, first, rows - first).ok()) return;
      prefixes.replace(base, tokens);
      return;
    }
    // Another branch: a copy of what both begin with.
    auto claim = arena->claim(bytes.cache(rows));
    if (!claim.ok()) return;
    auto copy =
        arena->reserve(bytes, backend.host_visible() ? limits.tokens : rows, std::move(claim).value());
    if (!copy.ok() || !(*copy)->commit(rows).ok()) return;
    if (!(*copy)->copy_rows(*compute, range, 0, 0, first).ok()) return;
    if (!(*copy)->copy_rows(*compute, own, 0, first, rows - first).ok()) return;
    prefixes.insert(a.kept_as, tokens, *copy);
  }

  // ---- the thread

  /// With the first receiver: what depends on its shape, and the thread.
  Status open_for(const ModelConfig& config) {
    const Shape shape = config.shape();
    row_bytes = std::max(shape.kv_row(), shape.e_row()) * static_cast<int64_t>(sizeof(float));
    most_vocab = config.vocab;
    result_bytes = (most_vocab * static_cast<int64_t>(sizeof(float)) + 4 + 63) / 64 * 64;
    DS_ASSIGN(results, backend.allocate(limits.batch * result_bytes, MemoryKind::kHost));
    DS_ASSIGN(service, TransferService::create(backend, row_bytes, [w = wake] { (*w)(); }));
    try {
      thread = std::thread([this] { loop(); });
    } catch (const std::system_error& e) {
      return error(Code::kExhausted, "starting the engine's thread: {}", e.what());
    }
    return ok_status();
  }

  void loop() {
    for (;;) {
      collect();
      {
        std::lock_guard lock(mutex);
        if (closing) break;
      }
      admit();
      const bool ran = step();
      report();
      if (ran) continue;
      const bool watching = std::any_of(active.begin(), active.end(),
                                        [](const auto& a) { return a->state != Active::State::kDecoding; });
      const bool timed =
          std::any_of(queue.begin(), queue.end(), [](const auto& a) { return a->deadline_ns; });
      const bool publishes = publishing() != nullptr;
      wake->wait(watching || timed || publishes || !orphans.empty() ? kLeastPatienceNs / 8
                                                                    : int64_t{1} << 40);
    }
    const Status closed = error(Code::kExhausted, "the engine was closed");
    for (auto& a : active) fail(*a, closed);
    active.clear();
    for (auto& a : queue) fail(*a, closed);
    queue.clear();
    std::deque<std::unique_ptr<Active>> late;
    {
      std::lock_guard lock(mutex);
      late.swap(submitted);
    }
    for (auto& a : late) fail(*a, closed);
    while (Publishing* p = publishing()) end(*p, closed);
  }

  void report() {
    std::lock_guard lock(mutex);
    stats.waiting = static_cast<int64_t>(queue.size());
    stats.running = static_cast<int64_t>(active.size());
    stats.decoding = std::count_if(active.begin(), active.end(),
                                   [](const auto& a) { return a->state == Active::State::kDecoding; });
    stats.prefix_bytes = prefixes.bytes();
    stats.evictions = prefixes.evictions();
  }
};

Result<std::unique_ptr<Engine>> Engine::create(Backend& backend, const EngineLimits& limits) {
  if (limits.cache_bytes < 1 || limits.tokens < 1 || limits.batch < 1 || limits.batch > 4096 ||
      limits.queue < 1 || limits.step_budget_ns < 1 ||
      !(limits.publish_share >= 0 && limits.publish_share <= 1))
    return error(Code::kInvalidArgument,
                 "engine limits: {} bytes for caches, {} tokens, a batch of {} (1 to 4096), a queue of {}, a "
                 "step budget of {} ns; all at least 1; and a share of {} for publications, 0 to 1",
                 limits.cache_bytes, limits.tokens, limits.batch, limits.queue, limits.step_budget_ns,
                 limits.publish_share);
  std::unique_ptr<Engine> engine(new Engine());
  engine->loop_ = std::make_unique<EngineLoop>(backend, limits);
  EngineLoop& loop = *engine->loop_;
  loop.arena = std::make_unique<KvArena>(backend, limits.cache_bytes);
  DS_ASSIGN(loop.compute, backend.make_stream(StreamKind::kCompute, kCommands));
  DS_ASSIGN(loop.begun, backend.make_event());
  DS_ASSIGN(loop.ended, backend.make_event());
  for (size_t i = static_cast<size_t>(limits.batch); i-- > 0;) loop.free_slots.push_back(i);
  loop.storage.resize(kMostPieces + static_cast<size_t>(limits.batch));
  for (size_t i = 0; limits.record_spans && i <= loop.storage.size(); ++i) {
    DS_ASSIGN(auto mark, backend.make_event());
    loop.marks.push_back(std::move(mark));
  }
  return engine;
}

Result<const Receiver*> Engine::add(std::unique_ptr<Receiver> receiver) {
  EngineLoop& loop = *loop_;
  auto station = std::make_unique<Station>();
  const ModelConfig& config = receiver->model().config();
  const int64_t batch = loop.limits.batch, tokens = std::min(loop.limits.tokens, config.max_positions);
  DS_ASSIGN(station->workspace, receiver->model().make_workspace(tokens));
  DS_ASSIGN(station->hidden, loop.backend.allocate(batch * receiver->row_bytes().hidden));
  if (loop.backend.host_visible()) {
    DS_ASSIGN(
        station->logits,
        loop.backend.allocate(batch * config.vocab * static_cast<int64_t>(sizeof(float)), MemoryKind::kHost));
  }
  station->ids.resize(static_cast<size_t>(batch));
  station->sequences.resize(static_cast<size_t>(config.layers * batch));
  for (int64_t i = 0; i < batch; ++i) station->rows.push_back(i);
  station->receiver = std::move(receiver);
  std::lock_guard lock(loop.mutex);
  if (!loop.thread.joinable()) DS_TRY(loop.open_for(config));
  const RowBytes& bytes = station->receiver->row_bytes();
  if (config.vocab > loop.most_vocab || std::max(bytes.hidden, bytes.kv) > loop.row_bytes)
    return error(Code::kUnsupported,
                 "receiver '{}' has a vocabulary of {} and rows of {} bytes, more than this engine's first "
                 "receiver ({}, {}); add the largest one first",
                 station->receiver->name(), config.vocab, std::max(bytes.hidden, bytes.kv), loop.most_vocab,
                 loop.row_bytes);
  const Receiver* added = station->receiver.get();
  loop.stations.push_back(std::move(station));
  return added;
}

Engine::~Engine() {
  if (!loop_->thread.joinable()) return;
  {
    std::lock_guard lock(loop_->mutex);
    loop_->closing = true;
  }
  (*loop_->wake)();
  loop_->thread.join();
  loop_->service.reset();  // what is being read ends before its memory goes
}

Result<std::shared_ptr<Ticket>> Engine::submit(EngineRequest request) {
  return loop_->submit(std::move(request));
}

EngineStats Engine::stats() const {
  EngineStats stats;
  {
    std::lock_guard lock(loop_->mutex);
    stats = loop_->stats;
  }
  stats.claimed_bytes = loop_->arena->claimed();
  stats.peak_bytes = loop_->arena->peak();
  if (loop_->service) {
    stats.link_bytes = loop_->service->bytes_read();
    stats.link_busy_ns = loop_->service->busy_ns();
    stats.link_rate = loop_->service->rate();
  }
  return stats;
}

Result<Published> PublicationTicket::wait() {
  std::unique_lock lock(mutex_);
  ended_.wait(lock, [&] { return result_.has_value(); });
  return *result_;
}

void PublicationTicket::cancel() { cancelled_ = true; }

Result<std::shared_ptr<PublicationTicket>> Engine::publish(EnginePublication publication) {
  return loop_->publish(std::move(publication));
}

std::vector<EngineSpan> Engine::take_spans() {
  std::lock_guard lock(loop_->mutex);
  return std::exchange(loop_->spans, {});
}

void Engine::drain() {
  std::unique_lock lock(loop_->mutex);
  loop_->idle.wait(lock, [&] { return loop_->open == 0; });
}

}  // namespace ds
