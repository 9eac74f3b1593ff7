// What the maps of aligned cuts add, as the page about a profile says it.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "profiler/report_internal.h"
#include "runtime/trace/markup.h"

namespace ds::report {
namespace {

/// All ways with this pair's maps that have a twin without.
std::vector<Twins> own_twins(const Quality& q) {
  std::vector<Twins> out;
  for (const MapsUsed& maps : all_maps(q))
    if (maps.control.empty())
      for (const Twins& t : twins_of(q, ways_with(q, maps))) out.push_back(t);
  return out;
}

int64_t count_signs(const std::vector<Twins>& twins, int sign) {
  return std::count_if(twins.begin(), twins.end(), [&](const Twins& t) { return t.sign() == sign; });
}

/// Those that maps hurt, most first.
std::vector<Twins> hurt(const Quality& q) {
  std::vector<Twins> out = own_twins(q);
  std::erase_if(out, [](const Twins& t) { return t.sign() >= 0; });
  std::stable_sort(out.begin(), out.end(),
                   [](const Twins& a, const Twins& b) { return a.won().value < b.won().value; });
  return out;
}

std::string hurt_list(const Quality& q) {
  std::vector<Twins> all = hurt(q);
  if (all.empty()) return "";
  std::vector<std::string> head{"maps hurt", "loss without", "loss with", "won by the maps"};
  std::string rows;
  for (const Twins& t : all)
    rows += table_row({escape_markup(t.aligned->way.name()), mean_text(t.plain->loss),
                       mean_text(t.aligned->loss), mean_text(t.won())});
  return "<h3>Where maps hurt</h3>\n" + table(head, rows);
}

/// The group's layers, and the form of its maps where there are several.
std::string cell_name(const WayScore* w, bool form) {
  if (!w) return "–";
  std::string text = format_layer_set(w->way.layers);
  return form ? fmt::format("{} ({})", text, map_form_name(w->way.map)) : text;
}

std::string loss_cell(const WayScore* w) { return w ? mean_text(w->loss) : "–"; }

std::string won_cell(const WayScore* plain, const WayScore* aligned) {
  if (!plain || !aligned) return "–";
  Twins twins{plain, aligned};
  return mean_text(twins.won()) + (twins.sign() < 0 ? " (worse)" : "");
}

WayList groups_only(WayList ways) {
  std::erase_if(ways, [](const WayScore* w) { return !is_group(*w); });
  return ways;
}

const WayScore* at_size(const std::map<int64_t, const WayScore*>& best, int64_t size) {
  auto found = best.find(size);
  return found == best.end() ? nullptr : found->second;
}

std::vector<MapsUsed> own_forms(const Quality& q) {
  std::vector<MapsUsed> forms = all_maps(q);
  std::erase_if(forms, [](const MapsUsed& m) { return !m.control.empty(); });
  return forms;
}

std::string size_table(const Quality& q) {
  auto plain = best_of_sizes(q, groups_only(choices(q))), aligned = best_of_sizes(q, aligned_groups(q));
  bool forms = own_forms(q).size() > 1;
  std::string rows;
  for (int64_t size = 1; size < q.layers; ++size) {
    const WayScore *without = at_size(plain, size), *with = at_size(aligned, size);
    if (!with) continue;
    rows += table_row({std::to_string(size), cell_name(without, false), loss_cell(without),
                       cell_name(with, forms), loss_cell(with), won_cell(without, with)});
  }
  if (rows.empty()) return "";
  return "<h3>The best group of each size</h3>\n" +
         table({"layers", "without maps", "loss", "with maps", "loss", "won by maps"}, rows);
}

/// Columns: the loss without maps, then with each form, then what the best form wins.
std::string form_columns(const Quality& q, std::string_view first, std::string_view heading,
                         const std::vector<std::pair<std::string, std::vector<const WayScore*>>>& lines) {
  std::vector<std::string> head{std::string(first), "loss without maps"};
  for (const MapsUsed& maps : own_forms(q)) head.push_back(fmt::format("loss with {} maps", maps.name()));
  head.push_back("won by maps");
  std::string rows;
  for (const auto& [name, ways] : lines) {
    std::vector<std::string> cells{name};
    const WayScore* best = nullptr;
    for (size_t i = 0; i < ways.size(); ++i) {
      cells.push_back(loss_cell(ways[i]));
      if (i > 0 && ways[i] && (!best || ways[i]->loss.value < best->loss.value)) best = ways[i];
    }
    cells.push_back(won_cell(ways[0], best));
    rows += table_row(cells);
  }
  return rows.empty() ? "" : fmt::format("<h3>{}</h3>\n", heading) + table(head, rows);
}

std::string restore_table(const Quality& q) {
  std::vector<std::pair<std::string, std::vector<const WayScore*>>> lines;
  std::set<std::string> seen;
  for (const WayScore* w : restores(q, true)) {
    std::string layers = format_layer_set(w->way.layers);
    if (!seen.insert(layers).second) continue;
    std::vector<const WayScore*> ways{q.find(w->way.aligned(MapForm::kNone))};
    for (const MapsUsed& maps : own_forms(q)) ways.push_back(q.find(w->way.aligned(maps.form)));
    lines.emplace_back(layers, std::move(ways));
  }
  return form_columns(q, "restored", "Restored layers, which recompute none", lines);
}

std::string form_table(const Quality& q) {
  std::vector<MapsUsed> forms = own_forms(q);
  if (forms.size() < 2) return "";
  std::vector<std::map<int64_t, const WayScore*>> best{best_of_sizes(q, groups_only(choices(q)))};
  for (const MapsUsed& maps : forms) best.push_back(best_of_sizes(q, groups_only(ways_with(q, maps))));
  std::vector<std::pair<std::string, std::vector<const WayScore*>>> lines;
  for (int64_t size = 1; size < q.layers; ++size) {
    std::vector<const WayScore*> ways;
    for (const auto& by_size : best) ways.push_back(at_size(by_size, size));
    if (std::any_of(ways.begin() + 1, ways.end(), [](const WayScore* w) { return w != nullptr; }))
      lines.emplace_back(std::to_string(size), std::move(ways));
  }
  return form_columns(q, "layers", "The best group of each size, by form of the maps", lines);
}

double mean_won(const std::vector<Twins>& twins) {
  double sum = 0;
  for (const Twins& t : twins) sum += t.won().value;
  return sum / static_cast<double>(twins.size());  // NaN of none
}

/// What this pair's maps win of the very ways that a control was scored on, which may be few.
std::string own_there(const Quality& q, const MapsUsed& control, const WayList& ways) {
  if (control.control.empty()) return "";
  WayList own;
  for (const WayScore* w : ways)
    if (const WayScore* found = q.find(w->way.aligned(control.form))) own.push_back(found);
  return points_text(mean_won(twins_of(q, own)));
}

/// A line for each kind of maps; controls have nothing that could be taken for a choice.
std::string kinds_table(const Quality& q) {
  std::string rows;
  for (const MapsUsed& maps : all_maps(q)) {
    WayList ways = ways_with(q, maps), groups = groups_only(ways), restored = ways;
    std::erase_if(restored, [](const WayScore* w) { return is_group(*w); });
    std::vector<Twins> twins = twins_of(q, ways);
    auto close = [&](const WayList& among) {
      return maps.control.empty() ? cell_name(smallest_close(q, among), false) : std::string("a control");
    };
    rows += table_row({escape_markup(maps.name()), format_count(static_cast<int64_t>(ways.size())),
                       points_text(mean_won(twins)), own_there(q, maps, ways),
                       format_count(count_signs(twins, 1)), format_count(count_signs(twins, -1)),
                       close(groups), close(restored)});
  }
  return "<h3>By kind of maps</h3>\n" +
         table({"maps", "ways", "won, mean", "this pair's maps there", "helped", "hurt",
                fmt::format("smallest group within {:g} point", kCloseLoss),
                fmt::format("restored layers within {:g} point", kCloseLoss)},
               rows);
}

}  // namespace

std::string twins_sentence(const Quality& q) {
  constexpr size_t kNamed = 4;
  std::vector<Twins> twins = own_twins(q), worse = hurt(q);
  if (twins.empty()) return "";
  std::string text = fmt::format(
      "Of {} scored with maps and without, maps help {} and hurt {} by more than two standard errors",
      plural(static_cast<int64_t>(twins.size()), "way"), count_signs(twins, 1),
      worse.empty() ? "none" : std::to_string(worse.size()));
  std::vector<std::string> names;
  for (size_t i = 0; i < std::min(kNamed, worse.size()); ++i)
    names.push_back(fmt::format("{} (a loss of {} instead of {})", worse[i].aligned->way.name(),
                                points_text(worse[i].aligned->loss.value),
                                points_text(worse[i].plain->loss.value)));
  if (worse.size() > kNamed) names.push_back(fmt::format("{} more", worse.size() - kNamed));
  return text + (names.empty() ? "." : fmt::format(": {}.", fmt::join(names, ", ")));
}

std::string maps_section(const Quality& q) {
  if (all_maps(q).empty()) return "";
  constexpr double kBeyondTwo = 0.0228;  // of a normal distribution, on one side
  double by_chance = kBeyondTwo * static_cast<double>(own_twins(q).size());
  std::string out =
      "<h2>What maps add</h2>\n<p>A map takes the sender's hidden states that enter a layer to the "
      "receiver's, before the receiver runs on them. Maps that were fitted to a wrong order of tokens or for "
      "another pair, and scattered layers, are controls: shown, never chosen.</p>\n";
  out += maps_chart(q) + kinds_table(q);
  out += fmt::format(
      "<p class=\"n\">Won: the loss without maps less that with them, of the same layers; its error takes "
      "the "
      "two losses for independent, which they are not: both are of the same questions. Helped, hurt: by more "
      "than two standard errors; by chance alone {} would be.</p>\n",
      by_chance < 1 ? "less than one of this pair's ways each"
                    : fmt::format("about {:.0f} of this pair's ways each", by_chance));
  return out + hurt_list(q) + size_table(q) + form_table(q) + restore_table(q);
}

}  // namespace ds::report
