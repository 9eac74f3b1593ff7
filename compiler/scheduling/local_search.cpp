#include "compiler/scheduling/local_search.h"

#include <algorithm>
#include <numeric>

namespace ds {
namespace {

class LocalSearch {
 public:
  LocalSearch(const Problem& p, int64_t visits)
      : p_(p), simple_(!has_contention(p)), engine_(p), visits_(visits) {
    size_t n = p.tasks.size();
    followers_.resize(n);
    place_.resize(n);
    earliest_.resize(n);
    priorities_.rank.assign(n, 0);
    priorities_.turn.assign(n, 0);
    for (size_t i = 0; i < n; ++i) {
      const Task& t = p.tasks[i];
      earliest_[i] = std::max(t.release_ns, p.jobs[static_cast<size_t>(t.job)].arrival_ns);
      for (int32_t w : t.after) followers_[static_cast<size_t>(w)].push_back(static_cast<int32_t>(i));
    }
  }

  void run(int64_t good_enough, Times& times, int64_t& cost) {
    set_orders(times);
    if (!evaluate(current_)) return;  // another order of starts at one time: nothing to work on
    int64_t at = cost_of(p_, current_.end_ns);
    auto keep = [&] {
      if (at >= cost) return;
      cost = at;
      times = current_;
    };
    keep();
    std::vector<std::vector<int32_t>> best_orders = orders_;
    int64_t best = at;
    while (cost > good_enough && visits_ > 0) {
      if (descend(at)) {
        keep();
        continue;
      }
      if (at <= best) {
        best = at;
        best_orders = orders_;
      } else {
        orders_ = best_orders;
      }
      if (!shuffle()) return;
      at = cost_of(p_, current_.end_ns);
    }
  }

 private:
  struct Move {
    int32_t stream = 0;
    size_t from = 0, to = 0;
  };

  void set_orders(const Times& times) {
    orders_.assign(p_.streams.size(), {});
    for (size_t i = 0; i < p_.tasks.size(); ++i)
      orders_[static_cast<size_t>(p_.tasks[i].stream)].push_back(static_cast<int32_t>(i));
    std::vector<int32_t> place(p_.tasks.size());
    std::vector<int32_t> topological = topological_places();
    auto key = [&](int32_t i) {
      auto k = static_cast<size_t>(i);
      return std::tuple(times.start_ns[k], times.end_ns[k], topological[k]);
    };
    for (auto& order : orders_)
      std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return key(a) < key(b); });
  }

  std::vector<int32_t> topological_places() const {
    std::vector<int32_t> open(p_.tasks.size()), queue, place(p_.tasks.size());
    for (size_t i = 0; i < open.size(); ++i) {
      open[i] = static_cast<int32_t>(p_.tasks[i].after.size());
      if (open[i] == 0) queue.push_back(static_cast<int32_t>(i));
    }
    for (size_t k = 0; k < queue.size(); ++k) {
      place[static_cast<size_t>(queue[k])] = static_cast<int32_t>(k);
      for (int32_t f : followers_[static_cast<size_t>(queue[k])])
        if (--open[static_cast<size_t>(f)] == 0) queue.push_back(f);
    }
    return place;
  }

  /// Each task as early as the orders allow; false where they contradict the waits.
  bool evaluate(Times& times) {
    size_t n = p_.tasks.size();
    visits_ -= static_cast<int64_t>(n);
    for (const auto& order : orders_)
      for (size_t k = 0; k < order.size(); ++k)
        place_[static_cast<size_t>(order[k])] = static_cast<int32_t>(k);
    if (!simple_) {
      visits_ -= 15 * static_cast<int64_t>(n);  // the engine takes so much longer
      priorities_.turn = place_;
      return engine_.run(priorities_, times);
    }
    open_.resize(n);
    queue_.clear();
    times.start_ns = earliest_;
    times.end_ns.resize(n);
    for (size_t i = 0; i < n; ++i) {
      open_[i] = static_cast<int32_t>(p_.tasks[i].after.size()) + (place_[i] > 0 ? 1 : 0);
      if (open_[i] == 0) queue_.push_back(static_cast<int32_t>(i));
    }
    for (size_t k = 0; k < queue_.size(); ++k) {
      auto i = static_cast<size_t>(queue_[k]);
      int64_t end = times.end_ns[i] = times.start_ns[i] + p_.tasks[i].duration_ns;
      auto pass = [&](int32_t f) {
        auto j = static_cast<size_t>(f);
        times.start_ns[j] = std::max(times.start_ns[j], end + handover(p_.tasks[i], p_.tasks[j]));
        if (--open_[j] == 0) queue_.push_back(f);
      };
      for (int32_t f : followers_[i]) pass(f);
      const auto& order = orders_[static_cast<size_t>(p_.tasks[i].stream)];
      if (auto next = static_cast<size_t>(place_[i]) + 1; next < order.size()) pass(order[next]);
    }
    return queue_.size() == n;
  }

  /// Moves within the critical blocks of every job's last task.
  std::vector<Move> moves() {
    std::vector<int32_t> last(p_.jobs.size(), -1);
    for (size_t i = 0; i < p_.tasks.size(); ++i) {
      int32_t& l = last[static_cast<size_t>(p_.tasks[i].job)];
      if (l < 0 || current_.end_ns[i] > current_.end_ns[static_cast<size_t>(l)]) l = static_cast<int32_t>(i);
    }
    if (p_.objective == Objective::kMakespan) {
      int32_t longest = -1;
      for (int32_t l : last)
        if (l >= 0 && (longest < 0 || current_.end_ns[static_cast<size_t>(l)] >
                                          current_.end_ns[static_cast<size_t>(longest)]))
          longest = l;
      last = {longest};
    }
    std::vector<Move> out;
    for (int32_t l : last) {
      size_t length = 1;  // of the block that the path is in
      for (int32_t i = l; i >= 0;) {
        auto k = static_cast<size_t>(i);
        auto place = static_cast<size_t>(place_[k]);
        int32_t cause = -1;
        for (int32_t w : p_.tasks[k].after)
          if (current_.end_ns[static_cast<size_t>(w)] +
                  handover(p_.tasks[static_cast<size_t>(w)], p_.tasks[k]) ==
              current_.start_ns[k])
            cause = w;
        bool same_stream = cause >= 0 && p_.tasks[static_cast<size_t>(cause)].stream == p_.tasks[k].stream;
        if ((cause < 0 || same_stream) && place > 0) {
          int32_t before = orders_[static_cast<size_t>(p_.tasks[k].stream)][place - 1];
          if (current_.end_ns[static_cast<size_t>(before)] == current_.start_ns[k] &&
              current_.start_ns[k] > earliest_[k]) {
            ++length;
            i = before;
            continue;
          }
        }
        // The block ends here: positions place to place + length - 1.
        size_t end = place + length - 1;
        for (size_t x = place; x < end; ++x) {
          out.push_back({p_.tasks[k].stream, x + 1, place});
          if (x + 1 < end) out.push_back({p_.tasks[k].stream, x, end});
        }
        length = 1;
        i = cause;
      }
    }
    return out;
  }

  void apply(const Move& m) {
    auto& order = orders_[static_cast<size_t>(m.stream)];
    auto at = [&](size_t k) { return order.begin() + static_cast<std::ptrdiff_t>(k); };
    if (m.from > m.to) {
      std::rotate(at(m.to), at(m.from), at(m.from) + 1);
    } else {
      std::rotate(at(m.from), at(m.from) + 1, at(m.to) + 1);
    }
  }

  /// One move that lowers the cost; false: none does, or the visits are used up.
  bool descend(int64_t& cost) {
    std::vector<Move> all = moves();
    for (size_t k = all.size(); k > 1; --k) std::swap(all[k - 1], all[random(k)]);
    for (const Move& m : all) {
      if (visits_ <= 0) return false;
      apply(m);
      if (evaluate(trial_)) {
        int64_t c = cost_of(p_, trial_.end_ns);
        if (c < cost) {
          std::swap(trial_, current_);
          cost = c;
          return true;
        }
      }
      apply({m.stream, m.to, m.from});
    }
    if (!all.empty()) evaluate(current_);  // the places are those of the last trial
    return false;
  }

  /// A few neighbours change places. False: no change is possible.
  bool shuffle() {
    size_t changed = 0;
    for (int tries = 0; tries < 40 && changed < 3 && visits_ > 0; ++tries) {
      auto s = static_cast<int32_t>(random(orders_.size()));
      size_t size = orders_[static_cast<size_t>(s)].size();
      if (size < 2) continue;
      size_t x = random(size - 1);
      Move m{s, x + 1, x};
      apply(m);
      if (evaluate(trial_)) {
        ++changed;
      } else {
        apply({s, x, x + 1});
      }
    }
    return evaluate(current_) && changed > 0;
  }

  size_t random(size_t below) {  // xorshift
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return static_cast<size_t>(state_ % below);
  }

  const Problem& p_;
  bool simple_;
  Dispatcher engine_;
  int64_t visits_;
  uint64_t state_ = 0x9e3779b97f4a7c15;
  std::vector<std::vector<int32_t>> followers_, orders_;  // per task; per stream
  std::vector<int32_t> place_;                            // of each task in its stream's order
  std::vector<int64_t> earliest_;
  std::vector<int32_t> open_, queue_;
  Priorities priorities_;
  Times current_, trial_;
};

}  // namespace

void improve_orders(const Problem& p, int64_t good_enough, int64_t visits, Times& times, int64_t& cost) {
  if (p.tasks.size() < 2 || cost <= good_enough || visits < static_cast<int64_t>(p.tasks.size())) return;
  LocalSearch(p, visits).run(good_enough, times, cost);
}

}  // namespace ds
