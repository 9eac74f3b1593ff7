#include "support/kolmogorov.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <utility>
#include <vector>

namespace ds {
namespace {

/// The largest |i * m - j * n| where i of the n values of `a` and j of the m of `b` are at most some x: the
/// distance in units of 1 / (n * m), so that nothing is rounded.
int64_t largest_distance(std::span<const double> a, std::span<const double> b) {
  auto n = static_cast<int64_t>(a.size()), m = static_cast<int64_t>(b.size());
  int64_t largest = 0;
  for (int64_t i = 0, j = 0; i < n && j < m;) {
    double x = std::min(a[static_cast<size_t>(i)], b[static_cast<size_t>(j)]);
    while (i < n && a[static_cast<size_t>(i)] <= x) ++i;
    while (j < m && b[static_cast<size_t>(j)] <= x) ++j;
    largest = std::max(largest, std::abs(i * m - j * n));
  }
  return largest;
}

}  // namespace

KolmogorovSmirnov kolmogorov_smirnov(std::span<const double> a, std::span<const double> b) {
  if (a.size() < b.size()) std::swap(a, b);  // one row of cells is held: the shorter sample's
  auto n = static_cast<int64_t>(a.size()), m = static_cast<int64_t>(b.size());
  if (m == 0) return {};
  const int64_t distance = largest_distance(a, b);
  // outside[j]: of the paths from (0, 0) to (i, j), the share that touches a point that far off or farther.
  // A path to (i, j) comes from (i - 1, j) with probability i / (i + j).
  std::vector<double> outside(static_cast<size_t>(m) + 1, 0);
  for (int64_t i = 0; i <= n; ++i) {
    for (int64_t j = 0; j <= m; ++j) {
      double& here = outside[static_cast<size_t>(j)];
      if (std::abs(i * m - j * n) >= distance) {
        here = 1;
        continue;
      }
      if (i + j == 0) continue;
      auto total = static_cast<double>(i + j);
      here = static_cast<double>(i) / total * here;
      if (j > 0) here += static_cast<double>(j) / total * outside[static_cast<size_t>(j) - 1];
    }
  }
  return {static_cast<double>(distance) / (static_cast<double>(n) * static_cast<double>(m)),
          std::min(1.0, outside[static_cast<size_t>(m)])};
}

}  // namespace ds
