#include "compiler/scheduling/dispatch.h"

#include <algorithm>

namespace ds {

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

bool Dispatcher::may_start(const Entry& e, const Stream& s) const {
  if (!s.turns.empty() && e.turn != s.turns[s.started]) return false;
  if (phases_.empty()) return true;
  auto lower = std::lower_bound(phases_.begin(), phases_.end(), e.phase) - phases_.begin();
  return ended_ >= static_cast<size_t>(lower);
}

bool Dispatcher::start_next(Stream& s, Times& times) {
  if (s.available.empty() || !may_start(s.available.top(), s)) return false;
  const Entry e = s.available.top();
  s.available.pop();
  auto i = static_cast<size_t>(e.task);
  ++s.started;
  times.start_ns[i] = now_;
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
  ended_ = 0;
  open_ = waits_;
  ready_ = earliest_;
  phases_ = priorities.phase;
  std::sort(phases_.begin(), phases_.end());
  streams_.assign(p.streams.size(), {});
  unreleased_ = {};
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
  return false;
}

}  // namespace ds
