#include "compiler/scheduling/branch_and_bound.h"

#include <algorithm>
#include <bitset>
#include <unordered_map>

#include "compiler/scheduling/bounds.h"

namespace ds {
namespace {

constexpr size_t kMemory = 400'000;  // beginnings that are remembered

class Search {
 public:
  Search(const Problem& p, int64_t below, int64_t good_enough, int64_t max_nodes)
      : p_(p),
        n_(p.tasks.size()),
        sum_(p.objective == Objective::kSum),
        good_enough_(good_enough),
        max_nodes_(max_nodes),
        order_(topological_order(p)),
        ht_(heads_and_tails(p)) {
    result_.cost = below;
    start_.assign(n_, 0);
    end_.assign(n_, 0);
    head_.assign(n_, 0);
    open_.resize(n_);
    followers_.resize(n_);
    twin_.assign(n_, -1);
    stream_free_.assign(p.streams.size(), 0);
    size_t groups = sum_ ? p.jobs.size() : 1;
    group_end_.assign(groups, 0);
    for (size_t j = 0; j < p.jobs.size(); ++j) {
      int64_t& e = group_end_[sum_ ? j : 0];
      e = std::max(e, p.jobs[j].arrival_ns);
      if (sum_) arrivals_ += p.jobs[j].arrival_ns;
    }
    group_bound_ = group_end_;
    for (size_t i = 0; i < n_; ++i) {
      open_[i] = static_cast<int32_t>(p.tasks[i].after.size());
      for (int32_t w : p.tasks[i].after)
        followers_[static_cast<size_t>(w)].push_back(static_cast<int32_t>(i));
    }
    find_twins();
  }

  SearchResult run() {
    visit();
    result_.exhausted = !stopped_;
    return std::move(result_);
  }

 private:
  using Set = std::bitset<kSearchTasks>;
  struct Child {
    int64_t bound = 0, start = 0, tail = 0;
    size_t task = 0;
    auto key() const { return std::tuple(bound, start, -tail, task); }
  };

  size_t group_of(size_t i) const { return sum_ ? static_cast<size_t>(p_.tasks[i].job) : 0; }

  /// Jobs that are alike, task by task in the order of the problem, and stand apart from all others.
  void find_twins() {
    std::vector<std::vector<size_t>> tasks(p_.jobs.size());
    for (size_t i = 0; i < n_; ++i) {
      tasks[static_cast<size_t>(p_.tasks[i].job)].push_back(i);
      for (int32_t w : p_.tasks[i].after)
        if (p_.tasks[static_cast<size_t>(w)].job != p_.tasks[i].job) return;
    }
    auto alike = [&](size_t a, size_t b) {
      if (p_.jobs[a].arrival_ns != p_.jobs[b].arrival_ns || tasks[a].size() != tasks[b].size()) return false;
      for (size_t k = 0; k < tasks[a].size(); ++k) {
        const Task &s = p_.tasks[tasks[a][k]], &t = p_.tasks[tasks[b][k]];
        if (s.stream != t.stream || s.duration_ns != t.duration_ns || s.release_ns != t.release_ns ||
            s.handover_ns != t.handover_ns || s.after.size() != t.after.size())
          return false;
        for (size_t w = 0; w < s.after.size(); ++w) {
          auto place = [](const std::vector<size_t>& of, int32_t task) {
            return std::find(of.begin(), of.end(), static_cast<size_t>(task)) - of.begin();
          };
          if (place(tasks[a], s.after[w]) != place(tasks[b], t.after[w])) return false;
        }
      }
      return !tasks[a].empty();
    };
    for (size_t b = 1; b < p_.jobs.size(); ++b) {
      for (size_t a = b; a-- > 0;) {
        if (!alike(a, b)) continue;
        twin_[tasks[b][0]] = static_cast<int32_t>(tasks[a][0]);
        break;
      }
    }
  }

  int64_t earliest(size_t i) const {
    const Task& t = p_.tasks[i];
    int64_t at = std::max({now_, stream_free_[static_cast<size_t>(t.stream)], t.release_ns,
                           p_.jobs[static_cast<size_t>(t.job)].arrival_ns});
    for (int32_t w : t.after)
      at = std::max(at, end_[static_cast<size_t>(w)] + handover(p_.tasks[static_cast<size_t>(w)], t));
    return at;
  }

  struct Undo {
    int64_t now, stream_free, group_end, group_bound;
  };
  Undo place(size_t i, int64_t at) {
    const Task& t = p_.tasks[i];
    auto s = static_cast<size_t>(t.stream);
    size_t g = group_of(i);
    Undo undo{now_, stream_free_[s], group_end_[g], group_bound_[g]};
    placed_[i] = true;
    ++count_;
    start_[i] = now_ = at;
    end_[i] = stream_free_[s] = at + t.duration_ns;
    group_end_[g] = std::max(group_end_[g], end_[i]);
    group_bound_[g] = std::max(group_bound_[g], end_[i] + ht_.tail[i]);
    for (int32_t f : followers_[i]) --open_[static_cast<size_t>(f)];
    return undo;
  }
  void take_back(size_t i, const Undo& undo) {
    size_t g = group_of(i);
    for (int32_t f : followers_[i]) ++open_[static_cast<size_t>(f)];
    group_bound_[g] = undo.group_bound;
    group_end_[g] = undo.group_end;
    stream_free_[static_cast<size_t>(p_.tasks[i].stream)] = undo.stream_free;
    now_ = undo.now;
    --count_;
    placed_[i] = false;
  }

  int64_t cost_so_far() const {
    int64_t cost = -arrivals_;
    for (int64_t e : group_end_) cost += e;
    return cost;
  }

  /// No completion of this beginning costs less.
  int64_t bound() {
    size_t groups = group_bound_.size(), streams = p_.streams.size();
    std::vector<int64_t> ends = group_bound_;
    by_group_.resize(groups * streams);
    for (auto& list : by_group_) list.clear();
    totals_.assign(streams, std::vector<StreamWork>(groups, {INT64_MAX, -1, INT64_MAX}));
    for (int32_t id : order_) {
      auto i = static_cast<size_t>(id);
      if (placed_[i]) continue;
      const Task& t = p_.tasks[i];
      auto s = static_cast<size_t>(t.stream);
      int64_t head = std::max({ht_.head[i], now_, stream_free_[s]});
      for (int32_t w : t.after) {
        auto b = static_cast<size_t>(w);
        head = std::max(
            head, (placed_[b] ? end_[b] : head_[b] + p_.tasks[b].duration_ns) + handover(p_.tasks[b], t));
      }
      head_[i] = head;
      size_t g = group_of(i);
      ends[g] = std::max(ends[g], head + t.duration_ns + ht_.tail[i]);
      by_group_[g * streams + s].push_back({head, t.duration_ns, ht_.tail[i]});
      if (!sum_) continue;
      StreamWork& all = totals_[s][g];
      all = {std::min(all.head, head), std::max<int64_t>(all.work, 0) + t.duration_ns,
             std::min(all.tail, ht_.tail[i])};
    }
    if (!sum_ && ends[0] >= result_.cost) return ends[0];
    for (size_t g = 0; g < groups; ++g)
      for (size_t s = 0; s < streams; ++s)
        ends[g] = std::max(ends[g], one_machine_bound(by_group_[g * streams + s]));
    return sum_ ? sum_of_ends_bound(ends, totals_) - arrivals_ : ends[0];
  }

  /// Has a beginning with the same tasks been visited that is at least as good in all that the rest can see?
  bool known_to_be_no_better() {
    std::vector<int64_t> state = {now_};
    for (int64_t f : stream_free_) state.push_back(std::max(f, now_));
    state.insert(state.end(), group_end_.begin(), group_end_.end());
    for (size_t i = 0; i < n_; ++i) {
      if (!placed_[i]) {
        int64_t ready = -1;
        for (int32_t w : p_.tasks[i].after)
          if (placed_[static_cast<size_t>(w)])
            ready = std::max(ready, end_[static_cast<size_t>(w)] +
                                        handover(p_.tasks[static_cast<size_t>(w)], p_.tasks[i]));
        if (ready >= 0) state.push_back(std::max(ready, now_));
      }
    }
    auto& seen = memory_[placed_];
    for (const std::vector<int64_t>& s : seen) {
      bool no_worse = true;
      for (size_t k = 0; k < s.size() && no_worse; ++k) no_worse = s[k] <= state[k];
      if (no_worse) return true;
    }
    if (remembered_ < kMemory) {
      ++remembered_;
      seen.push_back(std::move(state));
    }
    return false;
  }

  void visit() {
    if (count_ == n_) {
      int64_t cost = cost_so_far();
      if (cost >= result_.cost) return;
      result_.found = true;
      result_.cost = cost;
      result_.times = {start_, end_};
      return;
    }
    if (result_.nodes == max_nodes_) stopped_ = true;
    if (stopped_ || result_.cost <= good_enough_) return;
    ++result_.nodes;
    if (known_to_be_no_better()) return;

    std::vector<Child> children;
    for (size_t i = 0; i < n_; ++i) {
      if (placed_[i] || open_[i] > 0 || (twin_[i] >= 0 && !placed_[static_cast<size_t>(twin_[i])])) continue;
      children.push_back({0, earliest(i), ht_.tail[i], i});
    }
    auto fits_before = [&](const Child& other, const Child& c) {
      const Task& t = p_.tasks[other.task];
      if (other.task == c.task || other.start + t.duration_ns > c.start) return false;
      // Both at one time and without length: the first of the problem stays.
      return other.start < c.start || p_.tasks[c.task].duration_ns > 0 || other.task < c.task;
    };
    std::vector<Child> kept;
    for (const Child& c : children) {
      if (!std::any_of(children.begin(), children.end(), [&](const Child& o) { return fits_before(o, c); }))
        kept.push_back(c);
    }
    for (Child& c : kept) {
      Undo undo = place(c.task, c.start);
      c.bound = bound();
      take_back(c.task, undo);
    }
    std::sort(kept.begin(), kept.end(), [](const Child& a, const Child& b) { return a.key() < b.key(); });
    for (const Child& c : kept) {
      if (c.bound >= result_.cost) break;
      Undo undo = place(c.task, c.start);
      visit();
      take_back(c.task, undo);
    }
  }

  const Problem& p_;
  size_t n_;
  bool sum_;
  int64_t good_enough_, max_nodes_, arrivals_ = 0;
  std::vector<int32_t> order_;
  HeadsTails ht_;
  std::vector<std::vector<int32_t>> followers_;
  std::vector<int32_t> twin_;  // per task: one that must be placed before, or -1

  Set placed_;
  size_t count_ = 0;
  int64_t now_ = 0;  // the latest start
  std::vector<int32_t> open_;
  std::vector<int64_t> start_, end_, head_, stream_free_;
  std::vector<int64_t> group_end_, group_bound_;  // per job (kSum) or of all

  std::unordered_map<Set, std::vector<std::vector<int64_t>>> memory_;
  size_t remembered_ = 0;
  std::vector<std::vector<StreamWork>> by_group_, totals_;
  bool stopped_ = false;
  SearchResult result_;
};

}  // namespace

SearchResult branch_and_bound(const Problem& p, int64_t below, int64_t good_enough, int64_t max_nodes) {
  if (p.tasks.size() > kSearchTasks || has_contention(p)) return {};
  return Search(p, below, good_enough, max_nodes).run();
}

}  // namespace ds
