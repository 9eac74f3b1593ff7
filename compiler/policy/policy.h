// Policies draw the tiles: WHAT is loaded and what is recomputed. When anything runs is not theirs to say;
// they only ask what a tiling would cost.
//
// A new policy is a new file with one function, and one line in policy.cpp's table.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "compiler/inputs/quality.h"
#include "compiler/scheduling/cost_model.h"
#include "plans/plan.h"
#include "support/status.h"

namespace ds {

struct PolicyInput {
  int64_t layers = 0;
  std::optional<LayerRange> recompute;  // a group that the user fixed
  const Quality* quality = nullptr;     // may be absent
  std::optional<double> slo_loss;       // points
  std::optional<int64_t> slo_ttft_ns;
  TunedPoint point;
  std::function<Result<int64_t>(const std::vector<Tile>&)> predict_ttft_ns;
};

struct Choice {
  std::vector<Tile> tiles;
  Promise promise;
};

/// kInfeasible lists the Pareto front. Same input, same choice.
using Policy = Result<Choice> (*)(const PolicyInput& input);

Result<Choice> choose_full_prefill(const PolicyInput& input);
Result<Choice> choose_full_reuse(const PolicyInput& input);
Result<Choice> choose_droidspeak(const PolicyInput& input);

/// kInvalidArgument names the policies that there are.
Result<Policy> find_policy(std::string_view name);
std::vector<std::string_view> policy_names();

/// The tiling "load below, recompute `group` from a cut, load above"; an empty group loads everything.
std::vector<Tile> tiles_for_group(const LayerRange& group, int64_t layers);

}  // namespace ds
