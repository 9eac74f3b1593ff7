// What the parts of the page about a profile share. Each part is "" where the profile has no data for it.
#pragma once

#include <string>

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
/// Nats: "0.0123".
std::string nats_text(double nats);

/// Full reuse and the groups that were not dropped and whose loss is known; a group of all layers is a full
/// prefill and no choice.
std::vector<const WayScore*> choices(const Quality& q);
/// Of choices(): the one with the fewest layers whose loss is at most kCloseLoss, then the smaller loss.
/// `surely`: whose bound is. nullptr: none.
const WayScore* smallest_close(const Quality& q, bool surely = false);
/// The profile's Pareto list.
std::vector<const WayScore*> pareto_groups(const Quality& q);
/// What the page holds up as the best group: smallest_close() if it is a group, else the last of
/// pareto_groups(), else nullptr.
const WayScore* best_group(const Quality& q);
const WayScore* find_way(const Quality& q, WayKind kind);

std::string scores_section(const Quality& q);
std::string heat_section(const Quality& q);
std::string sensitivity_section(const Quality& q);
std::string gate_section(const Quality& q);

}  // namespace ds::report
