// How a request ends: its memory back, its caches kept, its ticket told.
#include "runtime/engine/engine_internal.h"

#include "support/clock.h"

namespace ds {

void EngineLoop::end(Active& a, Result<EngineAnswer> result, int64_t EngineStats::*count) {
  service->cancel(a.id);
  if (service->reading(a.id) &&
      std::none_of(orphans.begin(), orphans.end(), [&](const Orphan& o) { return o.id == a.id; }))
    orphans.push_back({a.id, a.sequence, a.hidden});
  if (a.slot != Active::kNoSlot) free_slots.push_back(a.slot);
  a.run.reset();
  a.stand_in.reset();
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

void EngineLoop::fail(Active& a, Status status) { end(a, std::move(status), &EngineStats::failed); }

bool EngineLoop::stop(Active& a) {
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

void EngineLoop::end_failed() {
  for (auto& [a, status] : std::exchange(failed, {})) {
    fail(*a, std::move(status));
    std::erase_if(active, [a = a](const auto& x) { return x.get() == a; });
  }
}

void EngineLoop::give_up(Status status) {
  {
    std::lock_guard lock(mutex);
    lost = status;
  }
  for (auto& a : active) failed.emplace_back(a.get(), status);
  end_failed();
  for (auto& a : std::exchange(queue, {})) fail(*a, status);
  end_publications(status);
}

void EngineLoop::finish_ended() {
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
      stats.entry_repairs += a.answer.cache == CacheStatus::kRepaired ? 1 : 0;
    }
    EngineAnswer answer = std::move(a.answer);
    end(a, std::move(answer), &EngineStats::finished);
    at = active.erase(at);
  }
}

void EngineLoop::keep(Active& a) {
  if (a.kept_as.empty()) return;
  // Of the last token nothing was computed yet; where it is a stop token, it is not among them.
  const int64_t rows = static_cast<int64_t>(a.tokens.size()) - (a.answer.stopped ? 0 : 1);
  const auto tokens = std::span<const int32_t>(a.tokens).first(static_cast<size_t>(rows));
  const RowBytes& bytes = a.request.receiver->row_bytes();
  KvRange& own = *a.sequence.own;
  if (a.node != nullptr) {
    own.settle(rows);
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
    own.settle(rows - first);
    if (!range.claim.grow(range.needs(rows)).ok() || !range.commit(rows).ok()) return;
    if (!range.copy_rows(*compute, own, 0, first, rows - first).ok()) return;
    prefixes.replace(base, tokens);
    return;
  }
  // Another branch: a copy of what both begin with.
  auto claim = arena->claim(arena->needs(bytes, rows));
  if (!claim.ok()) return;
  auto copy = arena->reserve(bytes, rows, std::move(claim).value());
  if (!copy.ok() || !(*copy)->commit(rows).ok()) return;
  if (!(*copy)->copy_rows(*compute, range, 0, 0, first).ok()) return;
  if (!(*copy)->copy_rows(*compute, own, 0, first, rows - first).ok()) return;
  prefixes.insert(a.kept_as, tokens, *copy);
}

}  // namespace ds
