// What a profile's scores by task say of the tasks themselves.
#pragma once

#include <string>
#include <vector>

#include "plans/quality.h"

namespace ds {

/// Below so many points, of the receiver by itself, a task's scores show no loss.
inline constexpr double kUselessScore = 5;

/// Tasks that tell nothing of caches, or little, a sentence each: the receiver by itself scores below
/// kUselessScore; or no better than without the context; or no better than the sender alone. No better: by
/// less than two standard errors of the difference, the two scores taken for independent. What the profile
/// does not say is not judged.
std::vector<std::string> task_notes(const Quality& quality);

/// The ways that people compare tasks by: the receiver by itself, full reuse, the last of each Pareto list,
/// no context, the sender alone; those that the profile has.
std::vector<const WayScore*> task_ways(const Quality& quality);

/// Their scores as a table, a line for each task; empty where there are no tasks.
std::string task_table_text(const Quality& quality);

}  // namespace ds
