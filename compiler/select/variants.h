// For which context lengths, link rates and loads each tiling is taken.
#pragma once

#include <cstdint>
#include <vector>

#include "compiler/select/choose.h"
#include "support/status.h"

namespace ds {

/// Where tilings are tried: every length with every rate. Ascending, neither empty.
struct Grid {
  std::vector<int64_t> tokens, rates;
  int64_t suffix = 1;
};

/// A tiling and its half-open ranges; the outermost are open. `tuned` is the grid point in their middle.
struct PlacedVariant {
  size_t tiling = 0;
  Point tuned;
  int64_t tokens_min = 1, tokens_max = kNoLimit, rate_min = 0, rate_max = kNoLimit;
  int64_t load_min = 0, load_max = kNoLimit;
  double regret = 0;  // Variant::regret, over the grid points and the edges between neighbours
};

/// Neighbouring points share a tiling where that costs each of them less than this share of its time, and a
/// context is cut into fewer parts: a variant, or an operation, that gains less is not worth its bytes.
inline constexpr double kWorthAVariant = 0.01;

/// Where two neighbouring rates' tilings are both worse than the best by more than this between them, a rate
/// is added there; up to three between two given ones.
inline constexpr double kTolerated = 0.10;

inline constexpr size_t kManyVariants = 32;

/// Covers every length, rate and load exactly once. Edges lie where the tilings on both sides are equally
/// good (bisected between grid points). Loads are told apart only where no tiling does for both: where one
/// waits, a tiling that is good enough beside the best stays, so that most variants hold for every load.
/// Where more than `most` come of it, both shares above are raised by a fifth at a time until they fit, as
/// far as the objective allows. kInfeasible: at some grid point nothing keeps the objective.
Result<std::vector<PlacedVariant>> place_variants(Chooser& chooser, const Grid& grid,
                                                  size_t most = kManyVariants);

}  // namespace ds
