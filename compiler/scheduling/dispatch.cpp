#include "compiler/scheduling/dispatch.h"

#include <algorithm>

namespace ds {
namespace {

constexpr size_t kOvertaken = 16;  // at most so many are passed at once, lest each start looks at all

}  // namespace

Dispatcher::Dispatcher(const Problem& p) : problem_(p), contention_(has_contention(p)) {
  size_t n = p.tasks.size();
  waits_.resize(n);
  earliest_.resize(n);
  first_follower_.assign(n + 1, 0);
  for (size_t i = 0; i < n; ++i) {
    const Task& t = p.tasks[i];
    waits_[i] = static_cast<int32_t>(t.after.size());
    earliest_[i] = std::max(t.release_ns, p.jobs[static_cast<size_t>(t.job)].arrival_ns);
    for (int32_t w : t.after) ++first_follower_[static_cast<size_t>(w) + 1];
  }
  for (size_t i = 0; i < n; ++i) first_follower_[i + 1] += first_follower_[i];
  followers_.resize(static_cast<size_t>(first_follower_[n]));
  std::vector<int32_t> next(first_follower_.begin(), first_follower_.end() - 1);
  for (size_t i = 0; i < n; ++i)
    for (int32_t w : p.tasks[i].after)
      followers_[static_cast<size_t>(next[static_cast<size_t>(w)]++)] = static_cast<int32_t>(i);
  if (!has_holds(p)) return;
  released_by_.resize(n);
  own_holds_.resize(n);
  for (size_t i = 0; i < n; ++i) {
    own_holds_[i].first = static_cast<int32_t>(holds_.size());
    for (const Hold& h : p.tasks[i].holds) {
      std::vector<int32_t> until = h.until;
      until.push_back(static_cast<int32_t>(i));
      std::sort(until.begin(), until.end());
      until.erase(std::unique(until.begin(), until.end()), until.end());
      for (int32_t u : until)
        released_by_[static_cast<size_t>(u)].push_back(static_cast<int32_t>(holds_.size()));
      holds_.push_back({h.pool, h.amount, static_cast<int32_t>(until.size()), 0});
    }
    own_holds_[i].second = static_cast<int32_t>(holds_.size());
  }
}

void Dispatcher::make_available(int32_t id) {
  auto i = static_cast<size_t>(id);
  if (ready_[i] > now_) {
    unreleased_.push({ready_[i], id});
    return;
  }
  streams_[static_cast<size_t>(problem_.tasks[i].stream)].available.push(
      {priorities_->phase.empty() ? 0 : priorities_->phase[i],
       priorities_->turn.empty() ? 0 : priorities_->turn[i], priorities_->rank[i], id});
}

bool Dispatcher::fits(int32_t id) const {
  if (own_holds_.empty()) return true;
  auto [first, last] = own_holds_[static_cast<size_t>(id)];
  for (int32_t k = first; k < last; ++k) {
    // Two holds of one pool stand next to each other or not; either way their sum must fit.
    const HoldState& h = holds_[static_cast<size_t>(k)];
    int64_t amount = 0;
    for (int32_t m = first; m < last; ++m)
      if (holds_[static_cast<size_t>(m)].pool == h.pool) amount += holds_[static_cast<size_t>(m)].amount;
    auto pool = static_cast<size_t>(h.pool);
    if (amount > problem_.pools[pool].capacity - used_[pool]) return false;
  }
  return true;
}

bool Dispatcher::may_start(const Entry& e, const Stream& s) const {
  if (!s.turns.empty() && e.turn != s.turns[s.started]) return false;
  if (phases_.empty()) return true;
  auto lower = std::lower_bound(phases_.begin(), phases_.end(), e.phase) - phases_.begin();
  return ended_ >= static_cast<size_t>(lower);
}

bool Dispatcher::start_next(Stream& s, Times& times) {
  std::vector<Entry> passed;
  bool found = false;
  Entry e;
  while (!s.available.empty() && !found) {
    e = s.available.top();
    if (!may_start(e, s)) break;
    found = fits(e.task);
    if (!found && (!priorities_->overtake || passed.size() == kOvertaken)) break;
    s.available.pop();
    if (!found) passed.push_back(e);
  }
  for (const Entry& back : passed) s.available.push(back);
  if (!found) return false;
  auto i = static_cast<size_t>(e.task);
  ++s.started;
  ++started_;
  times.start_ns[i] = now_;
  if (!own_holds_.empty()) {
    for (int32_t k = own_holds_[i].first; k < own_holds_[i].second; ++k) {
      const HoldState& h = holds_[static_cast<size_t>(k)];
      used_[static_cast<size_t>(h.pool)] += h.amount;
    }
  }
  int64_t duration = problem_.tasks[i].duration_ns;
  if (duration == 0) {
    times.end_ns[i] = now_;
    finish(e.task);
    return true;
  }
  s.running = e.task;
  s.end = now_ + duration;
  s.left = static_cast<__int128>(duration) * 1'000'000;
  return true;
}

void Dispatcher::finish(int32_t id) {
  auto i = static_cast<size_t>(id);
  ++ended_;
  if (!released_by_.empty()) {
    for (int32_t k : released_by_[i]) {
      HoldState& h = holds_[static_cast<size_t>(k)];
      if (--h.open == 0) used_[static_cast<size_t>(h.pool)] -= h.amount;
    }
  }
  for (int32_t k = first_follower_[i]; k < first_follower_[i + 1]; ++k) {
    int32_t f = followers_[static_cast<size_t>(k)];
    if (int64_t passes = handover(problem_.tasks[i], problem_.tasks[static_cast<size_t>(f)]); passes > 0)
      ready_[static_cast<size_t>(f)] = std::max(ready_[static_cast<size_t>(f)], now_ + passes);
    if (--open_[static_cast<size_t>(f)] == 0) make_available(f);
  }
}

void Dispatcher::update_rates() {
  auto class_of = [&](const Stream& s) {
    return s.running < 0 ? -1 : problem_.tasks[static_cast<size_t>(s.running)].contention;
  };
  for (Stream& s : streams_) {
    if (s.running < 0) continue;
    int64_t slow = 0;
    int32_t own = class_of(s);
    for (const Stream& o : streams_) {
      int32_t other = class_of(o);
      if (&o == &s || own < 0 || other < 0) continue;
      slow = std::max(slow, problem_.slow_permille[static_cast<size_t>(own) * problem_.classes.size() +
                                                   static_cast<size_t>(other)]);
    }
    s.rate = progress_per_ns(slow);
    s.end = now_ + static_cast<int64_t>((s.left + s.rate - 1) / s.rate);
  }
}

bool Dispatcher::run(const Priorities& priorities, Times& times) {
  const Problem& p = problem_;
  size_t n = p.tasks.size();
  priorities_ = &priorities;
  now_ = 0;
  ended_ = started_ = 0;
  open_ = waits_;
  ready_ = earliest_;
  phases_ = priorities.phase;
  std::sort(phases_.begin(), phases_.end());
  streams_.assign(p.streams.size(), {});
  used_.assign(p.pools.size(), 0);
  unreleased_ = {};
  for (HoldState& h : holds_) h.open = h.waits;
  times.start_ns.assign(n, 0);
  times.end_ns.assign(n, 0);
  if (!priorities.turn.empty()) {
    for (size_t i = 0; i < n; ++i)
      streams_[static_cast<size_t>(p.tasks[i].stream)].turns.push_back(priorities.turn[i]);
    for (Stream& s : streams_) std::sort(s.turns.begin(), s.turns.end());
  }
  for (size_t i = 0; i < n; ++i)
    if (open_[i] == 0) make_available(static_cast<int32_t>(i));
  while (ended_ < n) {
    while (!unreleased_.empty() && unreleased_.top().first <= now_) {
      int32_t id = unreleased_.top().second;
      unreleased_.pop();
      make_available(id);
    }
    // What takes no time may let others start at once, on any stream.
    for (bool again = true; again;) {
      again = false;
      for (Stream& s : streams_)
        while (s.running < 0 && start_next(s, times)) again = true;
    }
    if (contention_) update_rates();
    int64_t next = unreleased_.empty() ? INT64_MAX : unreleased_.top().first;
    for (const Stream& s : streams_)
      if (s.running >= 0) next = std::min(next, s.end);
    if (next == INT64_MAX) break;
    if (contention_) {
      for (Stream& s : streams_)
        if (s.running >= 0) s.left -= static_cast<__int128>(s.rate) * (next - now_);
    }
    now_ = next;
    for (Stream& s : streams_) {
      if (s.running < 0 || s.end != now_) continue;
      int32_t id = s.running;
      s.running = -1;
      times.end_ns[static_cast<size_t>(id)] = now_;
      finish(id);
    }
  }
  if (ended_ == n) return true;
  stuck_ = fmt::format("{} of {} tasks cannot start", n - ended_, n);
  for (const Stream& s : streams_) {
    if (s.available.empty()) continue;
    int32_t id = s.available.top().task;
    for (const Hold& h : p.tasks[static_cast<size_t>(id)].holds) {
      const Pool& pool = p.pools[static_cast<size_t>(h.pool)];
      if (h.amount <= pool.capacity - used_[static_cast<size_t>(h.pool)]) continue;
      stuck_ = fmt::format(
          "at {} '{}' needs {} of pool '{}', where {} of {} are taken until tasks end that "
          "cannot start",
          now_, p.tasks[static_cast<size_t>(id)].name, h.amount, pool.name,
          used_[static_cast<size_t>(h.pool)], pool.capacity);
      return false;
    }
  }
  return false;
}

}  // namespace ds
