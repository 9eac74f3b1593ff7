// Between steps: what has come over the link, what has not, and who ends.
#include "runtime/engine/engine_internal.h"

#include "runtime/store/live.h"
#include "support/clock.h"

namespace ds {
namespace {

// A link from which nothing comes for this share of a full prefill, or for this long, has failed a request:
// with a dead store a first token is to come within 1.1 full prefills.
constexpr double kPatience = 0.08;
// After so much of that, a device that has nothing else to do begins with what it would do if nothing came.
constexpr int64_t kStandInPart = 4;
// A store that is well lets go of a read that was cancelled at its next part: within this part of
// patience_ns.
constexpr int64_t kLetGo = 4;

}  // namespace

int64_t EngineLoop::patience(const Active& a) const {
  const ModelConfig& c = a.request.receiver->model().config();
  const double per_token = static_cast<double>(c.layers) * PlanRun::layer_flops(c);
  if (!speed.known()) return 5 * limits.patience_ns;
  return std::max(limits.patience_ns,
                  static_cast<int64_t>(
                      kPatience * static_cast<double>(speed.ns(static_cast<double>(a.n + a.m) * per_token))));
}

// A sender that computes what is waited for is slower than any link; but not slower than this machine, by
// much.
int64_t EngineLoop::sender_patience(const Active& a) const {
  const ModelConfig& c = a.request.receiver->model().config();
  const double flops =
      static_cast<double>(a.n + a.m) * static_cast<double>(c.layers) * PlanRun::layer_flops(c);
  const int64_t most = kLiveSilenceS * 1'000'000'000;
  return std::max(patience(a),
                  speed.known() ? std::min(2 * static_cast<int64_t>(speed.ns(flops)), most) : most);
}

void EngineLoop::miss(Active& a, Status why) {
  count_lost(a, std::move(why));
  a.answer.reused_tokens = 0;
  a.plan = -1;
  a.variant = &a.request.receiver->exact().full_prefill;
  a.reused = nullptr;
  a.gate = nullptr;
  if (a.stand_in == nullptr && go_on(a, 0)) return;
  if (!a.kept_as.empty()) a.kept_as = exact_salt(*a.request.receiver, a.request.salt);
  if (a.stand_in == nullptr) return compute_from(a, 0);
  if (service->reading(a.id)) orphans.push_back({a.id, a.sequence, a.hidden});
  static_cast<Work&>(a) = std::move(*std::exchange(a.stand_in, nullptr));
  a.segments.reset();
  a.claim = {};
  a.idle_since_ns = 0;
  a.state = Active::State::kComputing;
}

Work* EngineLoop::stand_in(Active& a) {
  if (a.stand_in != nullptr) return a.stand_in.get();
  int64_t since = a.started_ns;
  if (a.state == Active::State::kComputing) {
    if (a.idle_since_ns == 0 || a.run->has_cells() || a.answer.bytes_loaded > 0 || a.segments->live())
      return nullptr;
    since = std::max(a.idle_since_ns, service->last_progress_ns());
  } else if (a.state != Active::State::kLookingUp) {
    return nullptr;
  }
  if (now_ns() - since < patience(a) / kStandInPart) return nullptr;
  const Receiver& receiver = *a.request.receiver;
  // Of what the receiver has itself, it would go on from there.
  if (!a.kept_as.empty() && prefixes.find(exact_salt(receiver, a.request.salt), a.tokens).rows > 0)
    return nullptr;
  const Variant& v = receiver.exact().full_prefill;
  auto claim = arena->claim(arena->needs(receiver.row_bytes(), cache_rows(a)) + run_bytes(a, v, 0));
  if (!claim.ok()) return nullptr;
  auto w = std::make_unique<Work>();
  w->run = std::make_unique<PlanRun>(receiver, -1, v, RunShape{0, a.n, a.m}, a.tokens);
  if (!make_memory(a, *w, 0, *claim).ok()) return nullptr;
  {
    std::lock_guard lock(mutex);
    ++stats.stand_ins;
  }
  a.stand_in = std::move(w);
  return a.stand_in.get();
}

Active* EngineLoop::find(uint64_t id) {
  for (auto& a : active)
    if (a->id == id) return a.get();
  return nullptr;
}

void EngineLoop::collect() {
  std::erase_if(orphans, [&](const Orphan& o) { return !service->reading(o.id); });
  {
    std::lock_guard lock(mutex);
    for (auto& a : submitted) queue.push_back(std::move(a));
    submitted.clear();
  }
  for (TransferDone& done : service->take_done()) {
    Active* a = find(done.owner);
    if (a == nullptr || a->run == nullptr) continue;
    a->stand_in.reset();  // its store answers
    if (limits.record_spans)
      record({a->id, StreamKind::kLink, a->run->transfer_label(done.index), done.start_ns, done.end_ns});
    if (done.status.ok()) {
      a->idle_since_ns = 0;
      a->run->arrived(done.index);
      a->answer.bytes_loaded += done.bytes;
      a->answer.link_ns += done.end_ns - done.start_ns;
    } else if (a->run->all_or_nothing()) {
      lose(*a, std::move(done.status));
    } else if (a->run->lost(done.index)) {
      count_lost(*a, std::move(done.status));
    }
  }
  for (auto& a : active)
    if (a->state == Active::State::kComputing) repair(*a);
  for (auto& a : active)
    if (a->state == Active::State::kLookingUp) take_best(*a);
  for (auto& a : active) watch(*a);
  end_failed();  // before others end: it names requests by their address
  std::erase_if(active, [&](const std::unique_ptr<Active>& a) { return stop(*a); });
  watch_publication();
  std::erase_if(queue, [&](std::unique_ptr<Active>& a) { return stop(*a); });
}

void EngineLoop::watch(Active& a) {
  if (a.state == Active::State::kDraining) {
    if (service->reading(a.id)) {
      if (now_ns() - a.idle_since_ns < limits.patience_ns / kLetGo) return;
      if (Status status = leave_memory(a); !status.ok()) {
        failed.emplace_back(&a, std::move(status));
        return;
      }
    }
    a.run->lose_transfers();
    a.run->repair();
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
  if (now_ns() - since < (a.segments != nullptr && a.segments->live() ? sender_patience(a) : patience(a)))
    return;
  Status late = error(Code::kExhausted, "late: nothing has come over the link for {} ms",
                      (now_ns() - since) / 1'000'000);
  if (a.stand_in == nullptr) return lose(a, std::move(late));
  service->cancel(a.id);
  miss(a, std::move(late));
}

void EngineLoop::count_lost(Active& a, Status why) {
  if (!a.answer.miss.ok()) return;
  a.answer.miss = std::move(why);
  a.answer.lost_ns = now_ns() - a.started_ns;
}

void EngineLoop::repair(Active& a) {
  if (!a.run->repair()) return;
  for (int32_t transfer : a.run->needless())
    if (service->withdraw(a.id, transfer)) a.run->lost(transfer);
  send_for(a);  // to where the rows are not read any more
}

void EngineLoop::lose(Active& a, Status why) {
  if (a.state != Active::State::kComputing) return;
  count_lost(a, std::move(why));
  service->cancel(a.id);
  // What is being read is written to the run's memory until the store lets go of it.
  a.state = Active::State::kDraining;
  a.idle_since_ns = now_ns();
}

Status EngineLoop::leave_memory(Active& a) {
  Orphan left{a.id, a.sequence, a.hidden};
  const RowBytes& bytes = a.request.receiver->row_bytes();
  const int64_t rows = a.n + a.m;
  ArenaClaim claim = std::move(left.sequence.own->claim);
  DS_ASSIGN(a.sequence.own, arena->reserve(bytes, left.sequence.own->rows(), std::move(claim)));
  DS_TRY(commit(*a.sequence.own, rows));
  claim = std::move(left.hidden->claim);
  DS_ASSIGN(a.hidden, arena->reserve(left.hidden->row_bytes(), left.hidden->rows(), std::move(claim)));
  DS_TRY(commit(*a.hidden, rows));
  for (const PlanRun::Kept& kept : a.run->kept()) {
    KvRange &to = kept.hidden ? *a.hidden : *a.sequence.own,
            &from = kept.hidden ? *left.hidden : *left.sequence.own;
    const int64_t row = to.row_bytes().kv;
    compute->copy(to.layer(kept.index) + kept.first * row, from.layer(kept.index) + kept.first * row,
                  kept.rows * row);
  }
  DS_TRY(compute->synchronize());
  set_addresses(a, a);
  orphans.push_back(std::move(left));
  return ok_status();
}

}  // namespace ds
