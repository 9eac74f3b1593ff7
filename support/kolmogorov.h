// Whether two samples come from one distribution: the two-sample Kolmogorov-Smirnov test.
#pragma once

#include <span>

namespace ds {

struct KolmogorovSmirnov {
  double statistic = 0;  // the largest distance between the two empirical distribution functions, 0 to 1
  double p = 1;          // P(a distance of at least that), both samples from one distribution
};

/// Two-sided; `p` is exact where no value occurs twice, and no smaller than the true one where some do (the
/// test is conservative then). Both samples ascending and not empty. The time is that of one pass over
/// a.size() * b.size() cells: of all orders in which two such samples can be merged, each as likely as any
/// other, `p` is the share whose path leaves the strip of that distance (Hodges 1957), summed without
/// cancellation (Viehmann 2021, arXiv 2102.08037).
KolmogorovSmirnov kolmogorov_smirnov(std::span<const double> a, std::span<const double> b);

}  // namespace ds
