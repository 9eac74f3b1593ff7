// What the parts of the page about a profile share. Each part is "" where the profile has no data for it.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "plans/quality.h"

namespace ds::report {

/// Losses up to this many points count as none to speak of.
inline constexpr double kCloseLoss = 1;
/// Of error bars: as many standard errors hold 95 % of a normal distribution.
inline constexpr double kBar = 1.96;
inline constexpr double kConfidence = 0.95;

/// "93.4"; "–" where it is not known.
std::string points_text(double points);
/// "93.4 ± 1.2", "93.4".
std::string mean_text(const Mean& mean);
/// Nats: "0.0123 ± 0.002"; "–" where they are not known.
std::string nats_text(const Mean& mean);

/// Of markup.
std::string table_row(const std::vector<std::string>& cells, std::string_view tag = "td");
std::string table(const std::vector<std::string>& head, const std::string& rows);
/// "1 layer", "3 layers".
std::string plural(int64_t count, std::string_view word);

bool is_group(const WayScore& w);
/// Without maps; with maps of this pair. Controls (Way::map_control) are neither, so that nothing takes them
/// for something that a plan could do.
bool is_plain(const WayScore& w);
bool is_aligned(const WayScore& w);

using WayList = std::vector<const WayScore*>;

/// Full reuse and the groups without maps that were not dropped and whose loss is known; a group of all
/// layers is a full prefill and no choice.
WayList choices(const Quality& q);
/// The same of groups with maps.
WayList aligned_groups(const Quality& q);
/// Restored layers that were not dropped and whose loss is known.
WayList restores(const Quality& q, bool aligned);
/// Of `among`: the one with the fewest recomputed layers whose loss is at most kCloseLoss; then with the
/// fewest restored ones, then the smallest loss. `surely`: whose bound is. nullptr: none.
const WayScore* smallest_close(const Quality& q, const WayList& among, bool surely = false);
/// Of each number of recomputed layers the one with the smallest loss.
std::map<int64_t, const WayScore*> best_of_sizes(const Quality& q, const WayList& among);
/// The profile's Pareto lists.
WayList pareto_groups(const Quality& q);
WayList pareto_aligned(const Quality& q);
/// What the page holds up as the best group: smallest_close() if it is a group, else the last of
/// pareto_groups(), else nullptr. best_aligned(): the same of groups and restored layers with maps.
const WayScore* best_group(const Quality& q);
const WayScore* best_aligned(const Quality& q);

/// Whose maps, and of which form.
struct MapsUsed {
  MapForm form = MapForm::kNone;
  std::string control;  // as Way::map_control
  bool operator==(const MapsUsed&) const = default;
  /// "full", "full (shuffled)".
  std::string name() const;
};
inline MapsUsed maps_used(const Way& way) { return {way.map, way.map_control}; }
/// In the profile's order, this pair's before controls; scattered sets, which are controls by themselves, do
/// not count. Empty: a profile without maps.
std::vector<MapsUsed> all_maps(const Quality& q);
/// Groups and restored layers with these maps that were not dropped and whose loss is known.
WayList ways_with(const Quality& q, const MapsUsed& maps);

/// A way with maps beside the same way without.
struct Twins {
  const WayScore *plain = nullptr, *aligned = nullptr;
  /// Points that the maps win (below 0: lose). The error takes the two losses for independent: which errors
  /// they share, the profile does not say.
  Mean won() const;
  /// By more than two standard errors: +1 the maps win, -1 they lose, else 0.
  int sign() const;
};
std::vector<Twins> twins_of(const Quality& q, const WayList& aligned);

std::string scores_section(const Quality& q);
/// What maps add: a chart with the controls, and tables.
std::string maps_section(const Quality& q);
std::string maps_chart(const Quality& q);
/// "Of 77 ways, 50 lose less with maps ..."; with every way that loses more.
std::string twins_sentence(const Quality& q);
std::string heat_section(const Quality& q);
std::string sensitivity_section(const Quality& q);
std::string gate_section(const Quality& q);

}  // namespace ds::report
