// Whether a profile can tell that a promise is kept.
#pragma once

#include <cstdint>
#include <optional>

#include "plans/quality.h"

namespace ds {

/// A mean that keeps a limit, but not by enough for its error.
struct Doubt {
  Mean mean;
  double limit = 0;
  int64_t contexts = 0;    // that the mean is over
  int64_t would_tell = 0;  // contexts; 0: no number would
};

/// The rule: in doubt is a mean whose standard error exceeds the limit, or that exceeds it together with one
/// standard error: then the true value is above the limit with a probability of more than 16 %. As many
/// contexts would tell as make 1.645 standard errors fit between mean and limit (95 %, one-sided; errors fall
/// with the root of the number); a mean below 0 counts as 0 there. nullopt: no doubt, or an error that is not
/// known.
std::optional<Doubt> doubt_of(const Mean& mean, int64_t contexts, double limit);

}  // namespace ds
