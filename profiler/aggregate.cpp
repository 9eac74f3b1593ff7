#include "profiler/aggregate.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <random>

namespace ds {
namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();
/// Samples kept of a distribution; more are thinned out evenly, the ends kept.
constexpr size_t kSamples = 300;  // enough for one false alarm in a hundred by three proxies
constexpr size_t kExamples = 10;

std::vector<double> sorted_samples(std::vector<double> all) {
  std::erase_if(all, [](double x) { return !std::isfinite(x); });
  std::sort(all.begin(), all.end());
  if (all.size() <= kSamples) return all;
  std::vector<double> thinned;
  for (size_t i = 0; i < kSamples; ++i) thinned.push_back(all[i * (all.size() - 1) / (kSamples - 1)]);
  return thinned;
}

/// Of each number of recomputed layers the best group among `candidates` by the given scores.
std::map<int64_t, size_t> best_by_size(const std::vector<Way>& ways, const std::vector<size_t>& candidates,
                                       int64_t layers, const std::vector<double>& scores) {
  std::map<int64_t, size_t> best;
  for (size_t i : candidates) {
    if (std::isnan(scores[i])) continue;
    auto [at, fresh] = best.try_emplace(ways[i].recomputed(layers), i);
    if (!fresh && scores[i] > scores[at->second]) at->second = i;
  }
  return best;
}

struct Aggregation {
  const std::vector<Way>& ways;
  const std::vector<ContextRecord>& records;
  const AggregateOptions& options;
  Scores scores;
  std::vector<size_t> groups;   // contiguous, without maps, not dropped
  std::vector<size_t> aligned;  // groups and restored layers with this pair's maps, not dropped

  bool dropped(size_t way) const { return !options.dropped.empty() && options.dropped[way]; }

  WayScore score_of(size_t way) const {
    WayScore w;
    w.way = ways[way];
    std::tie(w.items, w.contexts) = scores.count(way);
    w.dropped = dropped(way);
    w.score = scores.mean(way, Scores::score);
    w.loss = scores.difference(0, way, Scores::score);
    w.exact = scores.mean(way, Scores::exact);
    w.divergence = scores.mean(way, Scores::divergence);
    for (size_t t = 0; t < scores.tasks().size(); ++t)
      w.tasks.push_back(scores.mean(way, Scores::score, {nullptr, static_cast<int64_t>(t)}));
    return w;
  }

  std::vector<double> all_scores(const ScorePart& part) const { return all_scores(groups, part); }
  std::vector<double> all_scores(const std::vector<size_t>& candidates, const ScorePart& part) const {
    std::vector<double> all(ways.size(), kNone);
    for (size_t i : candidates) all[i] = scores.mean(i, Scores::score, part).value;
    return all;
  }

  std::vector<double> samples(size_t way, double WayResult::*field) const {
    std::vector<double> all;
    for (const ContextRecord& r : records)
      for (const ItemRecord& item : r.items)
        if (item.ways[way].scored) all.push_back(item.ways[way].*field);
    return sorted_samples(std::move(all));
  }

  /// Chosen on one half of the contexts, scored on the other, over many splits.
  void select_by_halves(std::vector<Selection>& out) const {
    if (records.size() < 4) return;
    std::mt19937_64 random(options.seed);
    std::map<int64_t, std::array<std::vector<double>, 3>> seen;  // by size: chosen, other, best there
    for (int64_t split = 0; split < options.splits; ++split) {
      std::vector<size_t> order(records.size());
      for (size_t i = 0; i < order.size(); ++i) order[i] = i;
      for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random() % i]);
      std::vector<bool> half(records.size()), other(records.size(), true);
      for (size_t i = 0; i < order.size() / 2; ++i) half[order[i]] = true;
      for (size_t i = 0; i < half.size(); ++i) other[i] = !half[i];
      std::vector<double> here = all_scores({&half}), there = all_scores({&other});
      auto best_there = best_by_size(ways, groups, options.layers, there);
      for (auto [size, way] : best_by_size(ways, groups, options.layers, here)) {
        if (std::isnan(there[way])) continue;
        seen[size][0].push_back(here[way]);
        seen[size][1].push_back(there[way]);
        seen[size][2].push_back(there[best_there.at(size)]);
      }
    }
    auto mean = [](const std::vector<double>& v) {
      double sum = 0;
      for (double x : v) sum += x;
      return sum / static_cast<double>(v.size());
    };
    for (const auto& [size, v] : seen) {
      Selection s{.chosen_on = "half", .scored_on = "other half", .layers = size};
      s.chosen_score = mean(v[0]);
      // Splits share their contexts: their spread is no standard error.
      s.other_score = {mean(v[1]), kNone};
      s.best_score = mean(v[2]);
      out.push_back(std::move(s));
    }
  }

  void select_by_task(std::vector<Selection>& out) const {
    if (scores.tasks().size() < 2) return;
    for (size_t from = 0; from < scores.tasks().size(); ++from) {
      std::vector<double> here = all_scores({nullptr, static_cast<int64_t>(from)});
      for (size_t to = 0; to < scores.tasks().size(); ++to) {
        if (to == from) continue;
        ScorePart there{nullptr, static_cast<int64_t>(to)};
        std::vector<double> other = all_scores(there);
        auto best = best_by_size(ways, groups, options.layers, other);
        for (auto [size, way] : best_by_size(ways, groups, options.layers, here)) {
          Selection s{scores.tasks()[from].name, scores.tasks()[to].name, size,
                      format_layer_set(ways[way].layers)};
          s.chosen_score = here[way];
          s.other_score = scores.mean(way, Scores::score, there);
          s.best_score = other[best.at(size)];
          out.push_back(std::move(s));
        }
      }
    }
  }

  /// The other pair's best group of each size, here.
  void select_by_pair(std::vector<Selection>& out) const {
    const Quality& other = *options.other_pair;
    std::map<int64_t, const WayScore*> chosen;
    for (const WayScore& w : other.ways) {
      if (!w.way.is_group() || w.way.map != MapForm::kNone || w.dropped) continue;
      auto [at, fresh] = chosen.try_emplace(w.way.recomputed(other.layers), &w);
      if (!fresh && w.score.value > at->second->score.value) at->second = &w;
    }
    std::vector<double> here = all_scores({});
    auto best = best_by_size(ways, groups, options.layers, here);
    for (const auto& [size, w] : chosen) {
      auto at = std::find(ways.begin(), ways.end(), w->way);
      if (at == ways.end() || !best.contains(size)) continue;
      auto way = static_cast<size_t>(at - ways.begin());
      if (std::isnan(here[way])) continue;
      Selection s{fmt::format("pair {} to {}", other.sender_name, other.receiver_name), "this pair", size,
                  format_layer_set(w->way.layers)};
      s.chosen_score = w->score.value;
      s.other_score = scores.mean(way, Scores::score);
      s.best_score = here[best.at(size)];
      out.push_back(std::move(s));
    }
  }

  /// Where reuse costs most: the questions with the largest fall from full prefill to full reuse, tasks in
  /// turn.
  std::vector<Example> examples(const std::vector<std::string>& chosen) const {
    struct Candidate {
      double fall = 0;
      const ItemRecord* item = nullptr;
    };
    std::map<std::string, std::vector<Candidate>> by_task;
    for (const ContextRecord& r : records)
      for (const ItemRecord& item : r.items) {
        double fall = item.ways[0].score - item.ways[1].score;
        if (item.ways[1].scored && fall > 0) by_task[item.task].push_back({fall, &item});
      }
    for (auto& [task, list] : by_task)
      std::stable_sort(list.begin(), list.end(),
                       [](const Candidate& a, const Candidate& b) { return a.fall > b.fall; });
    std::vector<Example> out;
    for (size_t round = 0; out.size() < kExamples; ++round) {
      bool any = false;
      for (const auto& [task, list] : by_task) {
        if (round >= list.size() || out.size() >= kExamples) continue;
        any = true;
        const ItemRecord& item = *list[round].item;
        Example e{task, item.question, item.references, {}};
        for (size_t i = 0; i < ways.size(); ++i) {
          bool shown = i < 2 || ways[i].control == Control::kSenderAlone ||
                       ways[i].control == Control::kNoContext || ways[i].control == Control::kOtherDocument ||
                       std::find(chosen.begin(), chosen.end(), ways[i].name()) != chosen.end();
          if (shown && item.ways[i].scored)
            e.answers.push_back({ways[i].name(), item.ways[i].text, 100 * item.ways[i].score});
        }
        out.push_back(std::move(e));
      }
      if (!any) break;
    }
    return out;
  }
};

}  // namespace

Scores::Scores(const std::vector<Way>& ways, const std::vector<ContextRecord>& records)
    : ways_(ways), records_(records) {
  std::map<std::string, QualityTask> by_name;
  for (const ContextRecord& r : records) {
    std::map<std::string, bool> in_context;
    for (const ItemRecord& item : r.items) {
      QualityTask& t = by_name[item.task];
      t.name = item.task;
      t.metric = metric_name(item.metric);
      ++t.items;
      in_context[item.task] = true;
    }
    for (const auto& [name, unused] : in_context) ++by_name[name].contexts;
  }
  for (auto& [name, t] : by_name) tasks_.push_back(std::move(t));
  for (const ContextRecord& r : records) {
    std::vector<size_t> tasks;
    for (const ItemRecord& item : r.items) {
      auto at = std::find_if(tasks_.begin(), tasks_.end(),
                             [&](const QualityTask& t) { return t.name == item.task; });
      tasks.push_back(static_cast<size_t>(at - tasks_.begin()));
    }
    task_of_.push_back(std::move(tasks));
  }
}

template <typename Get>
Mean Scores::mean_of(Get get, const ScorePart& part) const {
  struct Sum {
    double sum = 0;
    int64_t n = 0;
  };
  std::vector<Sum> by_task(tasks_.size());
  auto each = [&](auto visit) {
    for (size_t c = 0; c < records_.size(); ++c) {
      if (part.contexts && !(*part.contexts)[c]) continue;
      for (size_t i = 0; i < records_[c].items.size(); ++i) {
        size_t task = task_of_[c][i];
        if (part.task >= 0 && task != static_cast<size_t>(part.task)) continue;
        double value = get(records_[c].items[i]);
        if (std::isfinite(value)) visit(c, task, value);
      }
    }
  };
  each([&](size_t, size_t task, double value) {
    by_task[task].sum += value;
    ++by_task[task].n;
  });
  double total = 0, used = 0;
  for (const Sum& s : by_task) {
    if (s.n == 0) continue;
    total += s.sum / static_cast<double>(s.n);
    ++used;
  }
  if (used == 0) return {kNone, kNone};
  // Linearised: the mean is a sum over contexts of their items' weighted deviations.
  std::vector<double> by_context(records_.size(), 0);
  std::vector<bool> present(records_.size());
  each([&](size_t c, size_t task, double value) {
    const Sum& s = by_task[task];
    auto n = static_cast<double>(s.n);
    by_context[c] += (value - s.sum / n) / (n * used);
    present[c] = true;
  });
  double squares = 0;
  for (double x : by_context) squares += x * x;
  auto contexts = static_cast<double>(std::count(present.begin(), present.end(), true));
  double error = contexts > 1 ? std::sqrt(squares * contexts / (contexts - 1)) : kNone;
  return {total / used, error};
}

Mean Scores::mean(size_t way, Value value, const ScorePart& part) const {
  return mean_of(
      [&](const ItemRecord& item) { return item.ways[way].scored ? value(item.ways[way]) : kNone; }, part);
}

Mean Scores::difference(size_t a, size_t b, Value value, const ScorePart& part) const {
  return mean_of(
      [&](const ItemRecord& item) {
        const WayResult &x = item.ways[a], &y = item.ways[b];
        return x.scored && y.scored ? value(x) - value(y) : kNone;
      },
      part);
}

std::pair<int64_t, int64_t> Scores::count(size_t way) const {
  int64_t items = 0, contexts = 0;
  for (const ContextRecord& r : records_) {
    int64_t here = std::count_if(r.items.begin(), r.items.end(),
                                 [&](const ItemRecord& item) { return item.ways[way].scored; });
    items += here;
    contexts += here > 0;
  }
  return {items, contexts};
}

void aggregate(const std::vector<Way>& ways, std::vector<ContextRecord> records,
               const AggregateOptions& options, Quality& q) {
  std::sort(records.begin(), records.end(),
            [](const ContextRecord& a, const ContextRecord& b) { return a.index < b.index; });
  Aggregation a{ways, records, options, Scores(ways, records), {}, {}};
  for (size_t i = 0; i < ways.size(); ++i) {
    if (a.dropped(i)) continue;
    const Way& way = ways[i];
    if (way.is_group() && way.map == MapForm::kNone) a.groups.push_back(i);
    if ((way.is_group() || way.restores()) && way.map != MapForm::kNone && way.map_control.empty())
      a.aligned.push_back(i);
  }
  q.layers = options.layers;
  q.tasks = a.scores.tasks();
  q.contexts = static_cast<int64_t>(records.size());
  q.items = 0;
  for (const QualityTask& t : q.tasks) q.items += t.items;
  bool one_metric = std::all_of(q.tasks.begin(), q.tasks.end(),
                                [&](const QualityTask& t) { return t.metric == q.tasks[0].metric; });
  q.metric = one_metric && !q.tasks.empty() ? q.tasks[0].metric : "average";
  q.ways.clear();
  for (size_t i = 0; i < ways.size(); ++i) q.ways.push_back(a.score_of(i));
  q.receiver_score = q.ways[0].score.value;
  q.full_reuse_score = q.ways[1].score.value;

  std::vector<size_t> sampled{0, 1};
  auto list_pareto = [&](const std::vector<size_t>& candidates, std::vector<std::string>& list) {
    list.clear();
    double best = q.full_reuse_score;
    for (auto [size, way] : best_by_size(ways, candidates, options.layers, a.all_scores(candidates, {}))) {
      if (q.ways[way].score.value <= best) continue;
      best = q.ways[way].score.value;
      list.push_back(ways[way].name());
      sampled.push_back(way);
    }
  };
  list_pareto(a.groups, q.pareto);
  list_pareto(a.aligned, q.pareto_aligned);
  for (size_t i = 0; i < ways.size(); ++i)
    if ((ways[i].restores() && ways[i].map == MapForm::kNone) || ways[i].selects()) sampled.push_back(i);
  for (size_t i : sampled) {
    q.ways[i].entropy = a.samples(i, &WayResult::entropy);
    q.ways[i].margin = a.samples(i, &WayResult::margin);
  }
  std::vector<double> deviations;
  for (const ContextRecord& r : records) deviations.push_back(r.k_deviation);
  q.k_deviation = sorted_samples(std::move(deviations));
  q.selections.clear();
  a.select_by_halves(q.selections);
  a.select_by_task(q.selections);
  if (options.other_pair) a.select_by_pair(q.selections);
  std::vector<std::string> shown = q.pareto;
  shown.insert(shown.end(), q.pareto_aligned.begin(), q.pareto_aligned.end());
  q.examples = a.examples(shown);
}

}  // namespace ds
