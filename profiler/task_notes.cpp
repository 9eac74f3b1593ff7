#include "profiler/task_notes.h"

#include <algorithm>
#include <cmath>

namespace ds {
namespace {

const Mean* of_task(const WayScore* w, size_t task) {
  return w != nullptr && task < w->tasks.size() && std::isfinite(w->tasks[task].value) ? &w->tasks[task]
                                                                                       : nullptr;
}

/// Is a above b by two standard errors of the difference? One that is not known counts as 0.
bool better(const Mean& a, const Mean& b) {
  auto known = [](double error) { return std::isnan(error) ? 0 : error; };
  return a.value - b.value > 2 * std::hypot(known(a.standard_error), known(b.standard_error));
}

std::string score_text(const Mean& m) {
  return std::isnan(m.standard_error) ? fmt::format("{:.1f}", m.value)
                                      : fmt::format("{:.1f} ± {:.1f}", m.value, m.standard_error);
}

}  // namespace

std::vector<std::string> task_notes(const Quality& q) {
  const WayScore *own = q.find(Way::full_prefill()), *without = q.find(Way::no_context()),
                 *sender = q.find(Way::sender_alone()), *reuse = q.find(Way::full_reuse()),
                 *other = q.find(Way::other_document());
  std::vector<std::string> notes;
  for (size_t t = 0; t < q.tasks.size(); ++t) {
    const std::string& name = q.tasks[t].name;
    const Mean *mine = of_task(own, t), *guessed = of_task(without, t), *theirs = of_task(sender, t),
               *reused = of_task(reuse, t), *foreign = of_task(other, t);
    if (mine == nullptr) continue;
    if (mine->value < kUselessScore) {
      notes.push_back(fmt::format(
          "task '{}' tells nothing: the receiver by itself scores {} of 100 there; is its prompt what the "
          "model was trained on?",
          name, score_text(*mine)));
    } else if (guessed != nullptr && !better(*mine, *guessed)) {
      notes.push_back(fmt::format(
          "task '{}' tells nothing of caches: the receiver scores {} with its context and {} without it",
          name, score_text(*mine), score_text(*guessed)));
    } else if (theirs != nullptr && !better(*mine, *theirs)) {
      notes.push_back(fmt::format(
          "task '{}' tells little of the pair: the receiver scores {} there, the sender by itself {}", name,
          score_text(*mine), score_text(*theirs)));
    } else if (reused != nullptr && foreign != nullptr && !better(*reused, *foreign)) {
      notes.push_back(fmt::format(
          "task '{}': the sender's cache tells the receiver no more than its cache of another document would "
          "({} and {})",
          name, score_text(*reused), score_text(*foreign)));
    }
  }
  return notes;
}

std::vector<const WayScore*> task_ways(const Quality& q) {
  std::vector<const WayScore*> ways{q.find(Way::full_prefill()), q.find(Way::full_reuse())};
  for (const auto* list : {&q.pareto, &q.pareto_aligned}) {
    if (list->empty()) continue;
    auto at = std::find_if(q.ways.begin(), q.ways.end(),
                           [&](const WayScore& w) { return w.way.name() == list->back(); });
    if (at != q.ways.end()) ways.push_back(&*at);
  }
  ways.push_back(q.find(Way::no_context()));
  ways.push_back(q.find(Way::other_document()));
  ways.push_back(q.find(Way::sender_alone()));
  std::erase(ways, nullptr);
  return ways;
}

std::string task_table_text(const Quality& q) {
  if (q.tasks.empty()) return "";
  const std::vector<const WayScore*> ways = task_ways(q);
  size_t width = 4;
  for (const QualityTask& t : q.tasks) width = std::max(width, t.name.size());
  std::string out = fmt::format("{:<{}} {:>6}", "task", width, "items");
  std::vector<size_t> columns;
  for (const WayScore* w : ways) {
    columns.push_back(std::max<size_t>(w->way.name().size(), 12));
    out += fmt::format("  {:>{}}", w->way.name(), columns.back());
  }
  out += "\n";
  for (size_t t = 0; t < q.tasks.size(); ++t) {
    out += fmt::format("{:<{}} {:>6}", q.tasks[t].name, width, q.tasks[t].items);
    for (size_t i = 0; i < ways.size(); ++i) {
      const Mean* m = of_task(ways[i], t);
      // A column counts letters; ± is one of two bytes.
      const std::string text = m == nullptr ? "-" : score_text(*m);
      const size_t bytes = columns[i] + (text.find("±") == std::string::npos ? 0 : 1);
      out += "  " + std::string(bytes - std::min(bytes, text.size()), ' ') + text;
    }
    out += "\n";
  }
  return out;
}

}  // namespace ds
