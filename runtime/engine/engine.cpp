#include "runtime/engine/engine_internal.h"

#include "plans/traits.h"
#include "runtime/core/request.h"
#include "support/clock.h"
#include "support/units.h"

namespace ds {
namespace {

constexpr int64_t kCommands = 1 << 15;
constexpr int64_t kWatchNs = 2'500'000;  // how often what may come late is looked at

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

Station* EngineLoop::station_of(const Receiver* receiver) const {
  for (const auto& s : stations)
    if (s->receiver.get() == receiver) return s.get();
  return nullptr;
}

int64_t EngineLoop::cache_rows(const Active& a) const { return a.n + a.m + a.request.max_new_tokens - 1; }

Status EngineLoop::check(const EngineRequest& r) {
  if (r.receiver == nullptr || station_of(r.receiver) == nullptr)
    return error(Code::kInvalidArgument, "the request's receiver is none of this engine's");
  const auto n = static_cast<int64_t>(r.context.size()), m = static_cast<int64_t>(r.suffix.size());
  const SessionLimits own{.context = n, .suffix = m, .new_tokens = r.max_new_tokens};
  const RequestView view(r);
  DS_TRY(check_request(view.request, r.receiver->exact(), own));
  for (const Gate* gate : r.gates) {
    size_t i = 0;
    while (i < r.receiver->plans() && (gate == nullptr || &gate->plan() != &r.receiver->plan(i))) ++i;
    if (i == r.receiver->plans())
      return error(
          Code::kInvalidArgument,
          "one of the request's {} gates was made for another plan than the {} of receiver '{}'; make "
          "one for this plan",
          r.gates.size(), r.receiver->plans(), r.receiver->name());
  }
  const int64_t most = std::min(limits.tokens, r.receiver->model().config().max_positions);
  if (r.max_new_tokens > most || n + m > most - r.max_new_tokens + 1)
    return error(Code::kInvalidArgument,
                 "the request has {} context and {} prompt tokens and asks for {}; receiver '{}' takes {} "
                 "positions here; shorten one of them",
                 n, m, r.max_new_tokens, r.receiver->name(), most);
  DS_TRY(check_rules(r.rules, r.receiver->model().config().vocab));
  if (r.sampling.top_k < 0 || !(r.sampling.min_p >= 0 && r.sampling.min_p <= 1))
    return error(Code::kInvalidArgument, "top_k is {} and min_p {}; expected 0 or more, and 0 to 1",
                 r.sampling.top_k, r.sampling.min_p);
  if (r.time_limit_ns < 0)
    return error(Code::kInvalidArgument, "the time limit is {} ns; expected 0 (none) or more",
                 r.time_limit_ns);
  const RowBytes& bytes = r.receiver->row_bytes();
  const int64_t least =
      arena->needs(bytes, n + m + r.max_new_tokens - 1) + arena->needs({1, bytes.hidden, 0}, n + m);
  if (least > limits.cache_bytes)
    return error(Code::kExhausted,
                 "the request needs {} of memory for caches, this engine has {} in all; it can never run "
                 "here: shorten it, or give the engine more",
                 format_bytes(least), format_bytes(limits.cache_bytes));
  return ok_status();
}

Result<std::shared_ptr<Ticket>> EngineLoop::submit(EngineRequest request) {
  std::lock_guard lock(mutex);
  if (Status status = check(request); !status.ok()) {
    ++stats.refused;
    return status;
  }
  if (!lost.ok()) return lost;
  if (closing) return error(Code::kExhausted, "the engine is closing");
  if (static_cast<int64_t>(submitted.size()) + stats.waiting >= limits.queue) {
    ++stats.refused;
    return error(Code::kExhausted, "{} requests wait already, which is this engine's limit; try again later",
                 limits.queue);
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
  if (request.rules.any()) a->rules.emplace(request.rules, a->tokens);
  a->station = station_of(request.receiver);
  a->request = std::move(request);
  auto ticket = a->ticket;
  submitted.push_back(std::move(a));
  ++stats.submitted;
  ++open;
  (*wake)();
  return ticket;
}

Status EngineLoop::open_for(const ModelConfig& config) {
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

void EngineLoop::loop() {
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
    const bool timed = std::any_of(queue.begin(), queue.end(), [](const auto& a) { return a->deadline_ns; });
    const bool publishes = publishing() != nullptr;
    wake->wait(watching || timed || publishes || !orphans.empty() || !left.empty() ? kWatchNs
                                                                                   : int64_t{1} << 40);
  }
  close();
}

void EngineLoop::close() {
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
  service->stop();
  std::vector<Publishing*> open;
  {
    std::lock_guard lock(mutex);
    for (const auto& p : publications) open.push_back(p.get());
  }
  for (Publishing* p : open) {
    p->closing = true;
    if (p->showing) p->showing->stop();
  }
  const int64_t until = now_ns() + limits.close_patience_ns;
  auto at_rest = [&] {
    return service->at_rest() && std::ranges::all_of(open, &Publishing::at_rest) &&
           std::ranges::all_of(left, [](const auto& p) { return p->at_rest(); });
  };
  while (!at_rest() && now_ns() < until) wake->wait(kWatchNs);
  for (Publishing* p : open) {
    Result<Published> result = closed;
    if (p->writer.joinable() && p->written) result = std::move(p->result);  // it may be there all the same
    end(*p, std::move(result));
  }
}

bool Remains::at_rest() const {
  return (!service || service->at_rest()) &&
         std::ranges::all_of(publications, [](const auto& p) { return p->at_rest(); });
}

bool Remains::self_contained() const {
  return (!service || service->self_contained()) && std::ranges::all_of(publications, [](const auto& p) {
           return p->at_rest() || p->asked.store_owner != nullptr;
         });
}

void EngineLoop::report() {
  std::lock_guard lock(mutex);
  stats.waiting = static_cast<int64_t>(queue.size());
  stats.running = static_cast<int64_t>(active.size());
  stats.decoding = std::count_if(active.begin(), active.end(),
                                 [](const auto& a) { return a->state == Active::State::kDecoding; });
  stats.prefix_bytes = prefixes.bytes();
  stats.evictions = prefixes.evictions();
}

namespace {

Status check_limits(const EngineLimits& l) {
  struct Limit {
    const char* what;
    double found, least, most;
  };
  auto d = [](int64_t value) { return static_cast<double>(value); };
  constexpr double kAny = 0x1p63;
  for (const Limit& limit :
       {Limit{"bytes for caches", d(l.cache_bytes), 1, kAny},
        Limit{"tokens of a sequence", d(l.tokens), 1, kAny},
        Limit{"requests of a batch", d(l.batch), 1, 4096}, Limit{"requests that wait", d(l.queue), 1, kAny},
        Limit{"ns of a step's budget", d(l.step_budget_ns), 1, kAny},
        Limit{"times decoding's time of a step's budget", l.step_budget_share, 0, 1000},
        Limit{"ns of patience", d(l.patience_ns), 1, kAny},
        Limit{"ns of patience with publications", d(l.publish_patience_ns), 1, kAny},
        Limit{"ns of patience at the end", d(l.close_patience_ns), 0, kAny},
        Limit{"of the budgets for publications", l.publish_share, 0, 1}})
    if (!(limit.found >= limit.least && limit.found <= limit.most))
      return error(Code::kInvalidArgument, "engine limits: {} {}; expected {}", limit.found, limit.what,
                   limit.most < kAny ? fmt::format("{} to {}", limit.least, limit.most)
                                     : fmt::format("at least {}", limit.least));
  return ok_status();
}

}  // namespace

Result<std::unique_ptr<Engine>> Engine::create(Backend& backend, const EngineLimits& limits) {
  DS_TRY(check_limits(limits));
  std::unique_ptr<Engine> engine(new Engine());
  engine->loop_ = std::make_unique<EngineLoop>(backend, limits);
  EngineLoop& loop = *engine->loop_;
  loop.arena = std::make_unique<KvArena>(backend, limits.cache_bytes, limits.tokens);
  DS_ASSIGN(loop.compute, backend.make_stream(StreamKind::kCompute, kCommands));
  DS_ASSIGN(loop.stepped, backend.make_event());
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
  if (receiver->plans() > 0) {
    DS_ASSIGN(station->keys, KeyDeviation::create(loop.backend, receiver->model()));
  }
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
  auto remains = std::make_unique<Remains>();
  remains->arena = std::move(loop_->arena);
  remains->orphans = std::move(loop_->orphans);
  remains->publications = std::move(loop_->left);
  remains->service = std::move(loop_->service);
  const bool leaves = !remains->at_rest() && remains->self_contained();
  if (!leaves) remains->service.reset(), remains->publications.clear();
  loop_.reset();  // its ranges are the arena's
  if (!leaves) return;
  try {
    std::thread([of_stores = std::move(remains)] {}).detach();
  } catch (const std::system_error&) {
  }
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
  stats.committed_bytes = loop_->arena->committed();
  if (loop_->service) {
    stats.link_bytes = loop_->service->bytes_read();
    stats.link_busy_ns = loop_->service->busy_ns();
    stats.link_rate = loop_->service->rate();
  }
  return stats;
}

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
