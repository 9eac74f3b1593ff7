#include "profiler/report.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "profiler/report_internal.h"
#include "profiler/task_notes.h"
#include "profiler/ways.h"
#include "runtime/trace/chart.h"
#include "runtime/trace/describe.h"
#include "runtime/trace/markup.h"

namespace ds {
namespace report {

std::string points_text(double points) { return std::isfinite(points) ? fmt::format("{:.1f}", points) : "–"; }

std::string mean_text(const Mean& mean) {
  std::string text = points_text(mean.value);
  if (std::isfinite(mean.value) && std::isfinite(mean.standard_error))
    text += fmt::format(" ± {:.1f}", mean.standard_error);
  return text;
}

std::string nats_text(const Mean& mean) {
  std::string text = std::isfinite(mean.value) ? ds::nats_text(mean.value) : "–";
  if (std::isfinite(mean.value) && std::isfinite(mean.standard_error))
    text += fmt::format(" ± {:.2g}", mean.standard_error);
  return text;
}

std::string table_row(const std::vector<std::string>& cells, std::string_view tag) {
  std::string out = "<tr>";
  for (const std::string& c : cells) out += html_cell(tag, c);
  return out + "</tr>\n";
}

std::string table(const std::vector<std::string>& head, const std::string& rows) {
  return "<div class=\"s\"><table>" + table_row(head, "th") + rows + "</table></div>\n";
}

std::string plural(int64_t count, std::string_view word) {
  return fmt::format("{} {}{}", format_count(count), word, count == 1 ? "" : "s");
}

}  // namespace report

namespace {

using namespace report;

/// "layers 7-11 (5 of 12)", "restored layers 4-11 (8 of 12) with diagonal maps", "full reuse".
std::string choice_text(const Quality& q, const WayScore& w) {
  if (w.way.is_full_reuse()) return "full reuse";
  const bool restored = w.way.restores();
  int64_t count = restored ? w.way.layers[0].size() : w.way.recomputed(q.layers);
  std::string text =
      fmt::format("{}{} {} ({} of {})", restored ? "restored " : "", count == 1 ? "layer" : "layers",
                  format_layer_set(w.way.layers), count, q.layers);
  bool usual = is_plain(w) || w.way.map == MapForm::kFull;
  return usual ? text : fmt::format("{} with {} maps", text, map_form_name(w.way.map));
}

std::string loss_text(const Quality& q, const WayScore& w) {
  double bound = q.loss_bound(w, kConfidence);
  std::string text = fmt::format("a loss of {} points", mean_text(w.loss));
  text += std::isfinite(bound) ? fmt::format(", at most {} with a confidence of 95 %", points_text(bound))
                               : "; how sure that is, the profile cannot say";
  if (std::isfinite(w.divergence.value))
    text += fmt::format("; a divergence of {} nats per token", nats_text(w.divergence));
  return text;
}

/// What of `among` is close; `noun`: what they are, one of them.
std::string close_sentence(const Quality& q, const WayList& among, std::string_view noun) {
  if (among.empty()) return "";
  const WayScore* close = smallest_close(q, among);
  if (!close) {
    const WayScore* least = *std::min_element(among.begin(), among.end(), [](const auto* a, const auto* b) {
      return a->loss.value < b->loss.value;
    });
    return fmt::format("Nothing that was scored is within {:g} point; the closest is {}: {}.", kCloseLoss,
                       choice_text(q, *least), loss_text(q, *least));
  }
  std::string text =
      close->way.is_full_reuse()
          ? fmt::format("Full reuse is within {:g} point by itself: {}.", kCloseLoss, loss_text(q, *close))
          : fmt::format("The smallest {} within {:g} point is {}: {}.", noun, kCloseLoss,
                        choice_text(q, *close), loss_text(q, *close));
  double bound = q.loss_bound(*close, kConfidence);
  if (!std::isfinite(bound) || bound <= kCloseLoss) return text;
  const WayScore* sure = smallest_close(q, among, true);
  return text +
         (sure ? fmt::format(" Below {:g} point with that confidence: {}.", kCloseLoss, choice_text(q, *sure))
               : fmt::format(" No {} is below {:g} point with that confidence.", noun, kCloseLoss));
}

/// "Without maps: nothing that was scored ...".
std::string said_of(std::string_view of, std::string sentence) {
  if (sentence.empty()) return "";
  sentence[0] = static_cast<char>(std::tolower(static_cast<unsigned char>(sentence[0])));
  return fmt::format("{}: {}", of, sentence);
}

/// With maps scored: what is close without them and with them, recomputed and restored.
std::vector<std::string> close_sentences(const Quality& q) {
  std::string groups = close_sentence(q, choices(q), "group");
  if (all_maps(q).empty()) return {groups};
  constexpr std::string_view kRestoring = "set of restored layers";
  return {
      said_of("Without maps", groups), said_of("With maps", close_sentence(q, aligned_groups(q), "group")),
      said_of("Restoring without maps, which recomputes no layer",
              close_sentence(q, restores(q, false), kRestoring)),
      said_of("Restoring with maps", close_sentence(q, restores(q, true), kRestoring)), twins_sentence(q)};
}

std::string key_sentences(const Quality& q) {
  const WayScore* own = q.find(Way::full_prefill());
  const WayScore* reuse = q.find(Way::full_reuse());
  std::string out = "<ul class=\"key\">\n";
  auto say = [&](const std::string& text) {
    if (!text.empty()) out += html_cell("li", escape_markup(text)) + "\n";
  };
  say(fmt::format("By itself, after a full prefill, the receiver scores {} of 100.",
                  own ? mean_text(own->score) : points_text(q.receiver_score)));
  say(fmt::format("Over the sender's cache alone (full reuse) it scores {}{}.",
                  reuse ? mean_text(reuse->score) : points_text(q.full_reuse_score),
                  reuse ? ": " + loss_text(q, *reuse) : ""));
  for (const std::string& sentence : close_sentences(q)) say(sentence);
  return out + "</ul>\n";
}

/// What a best-of-many choice owes to chance, at the size of the best group.
std::string flattery_hint(const Quality& q) {
  const WayScore* best = best_group(q);
  if (!best) return "";
  int64_t size = best->way.recomputed(q.layers);
  for (const Selection& s : q.selections) {
    if (s.chosen_on != "half" || s.layers != size) continue;
    constexpr double kNoticed = 0.05;  // what one digit shows
    std::string halves = fmt::format(
        "Of groups of {} the best scores {} on the half of the contexts that it was chosen on and {} on the "
        "other half; "
        "on all contexts, where it was chosen, {}.",
        plural(size, "layer"), points_text(s.chosen_score), points_text(s.other_score.value),
        points_text(best->score.value));
    return s.chosen_score - s.other_score.value >= kNoticed
               ? "The best of many flatters itself. " + halves + " Expect the lower."
               : "Choosing among many did not flatter the choice. " + halves;
  }
  return fmt::format(
      "{} was chosen among {} groups on the same data that it is scored on, which flatters it; the profile "
      "does not "
      "say by how much.",
      best->way.name(), std::ranges::count_if(choices(q), [](const WayScore* w) { return is_group(*w); }));
}

std::string no_spread_hint(const WayScore* best) {
  if (!best || best->loss.standard_error != 0 || best->contexts < 2) return "";
  // The rule of three: none in n means below 3 / n with a confidence of 95 %.
  return fmt::format(
      "{} lost the same on every context, so that its error is 0. With {} that leaves up to {:.0f} % of "
      "contexts, with a confidence of 95 %, on which it may differ.",
      best->way.name(), plural(best->contexts, "context"),
      std::min(100.0, 300.0 / static_cast<double>(best->contexts)));
}

std::string sentence(std::string text) {
  text[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(text[0])));
  return text + (text.back() == '?' ? "" : ".");
}

std::vector<std::string> hints(const Quality& q) {
  constexpr int64_t kFewContexts = 30;
  std::vector<std::string> out;
  if (q.contexts < kFewContexts)
    out.push_back(fmt::format("Only {}: errors are wide, and themselves rough. {} or more tell more.",
                              plural(q.contexts, "context"), kFewContexts));
  if (q.version == 1) {
    out.push_back(
        "± is one standard error. The profile is of version 1: errors are those of scores, not of losses "
        "paired by "
        "context, and every item is taken for a context of its own.");
  } else {
    out.push_back(
        "± is one standard error of a mean over contexts (questions about one context are not independent); "
        "losses "
        "are paired by context. Bounds are one-sided, Student's t, for one way looked at by itself.");
  }
  if (std::any_of(q.ways.begin(), q.ways.end(),
                  [](const WayScore& w) { return std::isfinite(w.divergence.value); }))
    out.push_back(
        "Divergences (nats per token of the reference answers, from the full prefill's distributions) tell "
        "ways "
        "apart with fewer contexts than scores do.");
  for (std::string& note : task_notes(q)) out.push_back(sentence(std::move(note)));
  out.push_back(flattery_hint(q));
  const WayScore* aligned = best_aligned(q);
  if (aligned)
    out.push_back(fmt::format(
        "{} was chosen among {} ways with maps on the same data that it is scored on, which flatters "
        "it; the profile does not say by how much.",
        aligned->way.name(), aligned_groups(q).size() + restores(q, true).size()));
  for (const WayScore* best : {smallest_close(q, choices(q)), aligned}) out.push_back(no_spread_hint(best));
  if (auto dropped = std::count_if(q.ways.begin(), q.ways.end(), [](const WayScore& w) { return w.dropped; }))
    out.push_back(
        fmt::format("Racing dropped {}: scored on fewer contexts than the others, shown, never chosen.",
                    plural(dropped, "way")));
  std::erase(out, "");
  return out;
}

std::string hint_list(const Quality& q) {
  std::string out = "<ul class=\"n\">\n";
  for (const std::string& hint : hints(q)) out += html_cell("li", escape_markup(hint)) + "\n";
  return out + "</ul>\n";
}

std::string input_text(const Quality::Input& input) {
  return fmt::format("{} ({:.12})", input.name, input.sha256);
}

std::string facts(const Quality& q) {
  std::string out = "<dl>";
  auto item = [&](std::string_view name, const std::string& value) {
    if (!value.empty()) out += fmt::format("<dt>{}</dt><dd>{}</dd>\n", name, escape_markup(value));
  };
  item("sender", fmt::format("{} ({:.12})", q.sender_name, q.sender_fingerprint));
  item("receiver", fmt::format("{} ({:.12})", q.receiver_name, q.receiver_fingerprint));
  item("layers", q.granularity > 1 ? fmt::format("{}, groups in steps of {}", q.layers, q.granularity)
                                   : std::to_string(q.layers));
  item("asked", q.version == 1
                    ? plural(q.items, "item")
                    : fmt::format("{} about {}", plural(q.items, "question"), plural(q.contexts, "context")));
  item("metric", q.metric);
  item("caches in", q.dtype);
  for (const Quality::Input& data : q.data) item("data", input_text(data));
  if (!q.prompt_template.name.empty()) item("prompt template", input_text(q.prompt_template));
  if (!q.maps.fingerprint.empty()) item("maps", fmt::format("{} ({:.12})", q.maps.name, q.maps.fingerprint));
  std::vector<std::string> work;
  for (const auto& [key, value] : q.cost.items()) {
    if (value.is_string()) work.push_back(fmt::format("{} {}", key, value.get<std::string>()));
    if (value.is_number()) work.push_back(fmt::format("{} {}", key, value.dump()));
  }
  item("work", fmt::format("{}", fmt::join(work, ", ")));
  return out + "</dl>\n";
}

std::string task_table(const Quality& q) {
  if (q.tasks.empty()) return "";
  const WayScore* columns[] = {q.find(Way::full_prefill()),
                               q.find(Way::full_reuse()),
                               best_group(q),
                               best_aligned(q),
                               q.find(Way::no_context()),
                               q.find(Way::other_document()),
                               q.find(Way::sender_alone())};
  std::vector<std::string> head{"task", "metric", "items", "contexts"};
  for (const WayScore* w : columns)
    if (w) head.push_back(w->way.name());
  std::string rows;
  for (size_t t = 0; t < q.tasks.size(); ++t) {
    const auto& task = q.tasks[t];
    std::vector<std::string> cells{escape_markup(task.name), escape_markup(task.metric),
                                   format_count(task.items), format_count(task.contexts)};
    for (const WayScore* w : columns)
      if (w) cells.push_back(t < w->tasks.size() ? mean_text(w->tasks[t]) : "–");
    rows += table_row(cells);
  }
  return table(head, rows);
}

/// "12.3 ± 1.0, 0.12": loss and divergence.
std::string both_text(const WayScore* w) {
  if (w == nullptr || w->dropped) return "–";
  return mean_text(w->loss) +
         (std::isfinite(w->divergence.value) ? fmt::format(", {}", ds::nats_text(w->divergence.value)) : "");
}

/// What the profile has found beside what one would recompute without it, as many layers each.
std::string heuristic_rows(const Quality& q, const WayList& chosen) {
  static constexpr std::string_view kNames[] = {"first", "last", "middle", "first and last"};
  std::string rows;
  for (const WayScore* w : chosen) {
    if (!w->way.is_group()) continue;
    const int64_t count = w->way.recomputed(q.layers);
    const int64_t blocks = (count + q.granularity - 1) / q.granularity;
    const std::vector<Heuristic> rules = heuristics(q.layers, q.granularity, blocks);
    std::vector<std::string> cells{std::to_string(count), escape_markup(w->way.name()), both_text(w)};
    bool any = false;
    for (std::string_view name : kNames) {
      auto rule =
          std::find_if(rules.begin(), rules.end(), [&](const Heuristic& h) { return h.name == name; });
      const WayScore* scored = nullptr;
      if (rule != rules.end()) {
        // Layers from the first on need no cut, so that there is none to map.
        scored = rule->way.can_align() ? q.find(rule->way.aligned(w->way.map)) : q.find(rule->way);
      }
      any = any || scored != nullptr;
      cells.push_back(both_text(scored));
    }
    if (any) rows += table_row(cells);
  }
  return rows;
}

std::string heuristic_section(const Quality& q) {
  WayList chosen = pareto_groups(q), aligned = pareto_aligned(q);
  chosen.insert(chosen.end(), aligned.begin(), aligned.end());
  const std::string rows = heuristic_rows(q, chosen);
  if (rows.empty()) return "";
  return fmt::format(
             "<h2>Beside rules of thumb</h2>\n<p>What one would recompute without a profile, as many layers "
             "each{}: loss in points, divergence in nats per token.</p>\n",
             aligned.empty() ? "" : ", with maps where the choice has any") +
         table({"layers", "chosen", "loss, divergence", "the first", "the last", "the middle ones",
                "first and last ones"},
               rows);
}

std::string selection_rows(const std::vector<const Selection*>& list, bool origins) {
  std::string rows;
  for (const Selection* s : list) {
    std::vector<std::string> cells;
    if (origins) cells = {escape_markup(s->chosen_on), escape_markup(s->scored_on)};
    cells.push_back(std::to_string(s->layers));
    if (origins) cells.push_back(escape_markup(s->group));
    cells.insert(cells.end(),
                 {points_text(s->chosen_score), mean_text(s->other_score), points_text(s->best_score),
                  points_text(s->best_score - s->other_score.value)});
    rows += table_row(cells);
  }
  return rows;
}

std::string halves_table(const std::vector<const Selection*>& list) {
  if (list.empty()) return "";
  return "<h3>Chosen on one half of the contexts, scored on the other (means over random halves)</h3>\n" +
         table({"layers", "where chosen", "on the other half", "best there", "given away"},
               selection_rows(list, false));
}

/// Who chooses a group of the best group's size by one task's data: what it scores on another's.
std::string task_matrix(const Quality& q, const std::vector<const Selection*>& list) {
  const WayScore* best = best_group(q);
  if (!best) return "";
  int64_t size = best->way.recomputed(q.layers);
  std::map<std::pair<std::string, std::string>, const Selection*> found;
  for (const Selection* s : list)
    if (s->layers == size) found[{s->chosen_on, s->scored_on}] = s;
  if (found.empty()) return "";
  std::vector<std::string> head{"chosen on \\ scored on"};
  for (const auto& to : q.tasks) head.push_back(escape_markup(to.name));
  std::string rows;
  for (const auto& from : q.tasks) {
    std::vector<std::string> cells{escape_markup(from.name)};
    for (const auto& to : q.tasks) {
      auto at = found.find({from.name, to.name});
      cells.push_back(at == found.end() ? ""
                                        : fmt::format("{} ({})", points_text(at->second->other_score.value),
                                                      points_text(at->second->best_score)));
    }
    rows += table_row(cells);
  }
  return fmt::format(
             "<h3>Chosen on one task, scored on another: groups of {} (in brackets: the best there)</h3>\n",
             plural(size, "layer")) +
         table(head, rows);
}

std::string selection_section(const Quality& q) {
  if (q.selections.empty()) return "";
  std::vector<const Selection*> halves, tasks, others;
  for (const Selection& s : q.selections) {
    bool by_task =
        std::any_of(q.tasks.begin(), q.tasks.end(), [&](const auto& t) { return t.name == s.chosen_on; });
    (s.chosen_on == "half" ? halves : by_task ? tasks : others).push_back(&s);
  }
  const std::vector<std::string> head{"chosen on",    "scored on", "layers",     "group",
                                      "where chosen", "there",     "best there", "given away"};
  std::string out = fmt::format(
      "<h2>Does the choice hold elsewhere?</h2>\n<p>The best group{} of each size, chosen on some "
      "data and scored on other: what it scores there, and what the best of that size there would "
      "have.</p>\n",
      all_maps(q).empty() ? "" : " without maps");
  out += halves_table(halves) + task_matrix(q, tasks);
  if (!others.empty()) out += "<h3>Chosen on another pair</h3>\n" + table(head, selection_rows(others, true));
  if (!tasks.empty())
    out += "<details><summary>By task, all sizes</summary>\n" + table(head, selection_rows(tasks, true)) +
           "</details>\n";
  return out;
}

std::string example_card(const Example& e) {
  std::string out =
      fmt::format("<div class=\"card\"><div class=\"n\">{}</div><div class=\"q\" dir=\"auto\">{}</div>\n",
                  escape_markup(e.task), escape_markup(e.question, true));
  for (const std::string& r : e.references)
    out += fmt::format("<div class=\"n\">expected: <span class=\"q\" dir=\"auto\">{}</span></div>\n",
                       escape_markup(r, true));
  out += "<table class=\"answers\">";
  for (const Example::Answer& a : e.answers)
    out += fmt::format("<tr><td>{}</td><td>{}</td><td class=\"q\" dir=\"auto\">{}</td></tr>\n",
                       escape_markup(a.way), points_text(a.score), escape_markup(a.text, true));
  return out + "</table></div>\n";
}

std::string example_section(const Quality& q) {
  constexpr size_t kMost = 10;
  if (q.examples.empty()) return "";
  std::string out =
      "<h2>Where reuse failed</h2>\n<p>Questions that full reuse answers worse than the full prefill, with "
      "every "
      "way's answer and its score.</p>\n<div class=\"cards\">\n";
  for (size_t i = 0; i < std::min(q.examples.size(), kMost); ++i) out += example_card(q.examples[i]);
  return out + "</div>\n";
}

std::string all_ways(const Quality& q) {
  auto any = [&](auto get) {
    return std::any_of(q.ways.begin(), q.ways.end(),
                       [&](const WayScore& w) { return std::isfinite(get(w)); });
  };
  bool exact = any([](const WayScore& w) { return w.exact.value; });
  bool divergence = any([](const WayScore& w) { return w.divergence.value; });
  std::vector<std::string> head{"way", "recomputed layers", "score", "loss", "loss, bound at 95 %"};
  if (exact) head.push_back("exact matches");
  if (divergence) head.push_back("divergence, nats per token");
  head.insert(head.end(), {"items", "contexts"});
  std::string rows, controls;
  int64_t others = 0;
  for (const WayScore& w : q.ways) {
    // What the sender computes is not the receiver's, and neither is a loss that a plan could have.
    bool sender = w.way.control != Control::kNone && w.way.control != Control::kReuseOnly;
    std::vector<std::string> cells{escape_markup(w.way.name()) + (w.dropped ? " (dropped)" : ""),
                                   sender ? "–" : std::to_string(w.way.recomputed(q.layers)),
                                   mean_text(w.score), mean_text(w.loss),
                                   points_text(sender ? std::nan("") : q.loss_bound(w, kConfidence))};
    if (exact) cells.push_back(mean_text(w.exact));
    if (divergence) cells.push_back(nats_text(w.divergence));
    cells.insert(cells.end(), {format_count(w.items), format_count(w.contexts)});
    (w.way.map_control.empty() ? rows : controls) += table_row(cells);
    others += !w.way.map_control.empty();
  }
  std::string out = fmt::format("<h2>All {}</h2>\n", plural(static_cast<int64_t>(q.ways.size()), "way")) +
                    table(head, rows);
  if (others == 0) return out;
  return out + fmt::format(
                   "<details><summary>{} with shuffled or another pair's maps: never chosen</summary>\n{}"
                   "</details>\n",
                   plural(others, "control"), table(head, controls));
}

constexpr std::string_view kStyle = R"x(
.key{font-size:16px;max-width:54em;padding-left:1.2em} .key li{margin-bottom:4px} ul.n{padding-left:1.4em}
.row{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(330px,100%),1fr));gap:8px 24px} .row.two{grid-template-columns:repeat(auto-fill,minmax(min(460px,100%),1fr))} .row figure{min-width:0} .row svg.chart{width:100%} figcaption{font-weight:bold;margin:8px 0 2px}
.row .legend svg.chart{width:22px} .cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(460px,100%),1fr));gap:12px} .card{min-width:0;border:1px solid var(--line);border-radius:6px;padding:8px 12px}
.q{white-space:pre-wrap;overflow-wrap:anywhere} div.q{font-weight:bold;max-height:12em;overflow:auto} .answers{width:100%} .answers td.q{text-align:left;width:100%}
)x";

}  // namespace

std::string quality_html(const Quality& q) {
  std::string out = html_begin(fmt::format("Quality of reuse: {} → {}", q.sender_name, q.receiver_name),
                               Theme::kLightAndDark, std::string(kChartStyle) + std::string(kStyle));
  return out + key_sentences(q) + hint_list(q) + facts(q) + task_table(q) + scores_section(q) +
         maps_section(q) + heuristic_section(q) + heat_section(q) + sensitivity_section(q) +
         selection_section(q) + gate_section(q) + example_section(q) + all_ways(q) + std::string(kHtmlEnd);
}

}  // namespace ds
