// Quantiles of Student's t, for bounds on means of few samples.
#pragma once

#include <cstdint>

namespace ds {

/// The t that a Student's variable with `freedom` >= 1 degrees of freedom stays below with probability `p`,
/// 0 < p < 1. NaN for other arguments.
double student_quantile(double p, int64_t freedom);

}  // namespace ds
