// Fits the maps of one aligned cut in closed form, from sums over tokens: hidden states are seen once and not
// kept.
//
// With x the sender's hidden states that enter a layer and y the receiver's, of d elements each, r = y - x:
//   minimise  sum |r - x B - b|^2 + lambda |B|^2
// The penalty pulls towards B = 0, the plain cut, not towards 0: what the data say nothing about stays as it
// was, and where sender and receiver are the same model the map is the identity exactly. The last bits depend
// on the CPU and the number of threads, as OpenBLAS's products do; so does a file's fingerprint.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/model/maps.h"
#include "support/status.h"

namespace ds {

/// Sums over tokens, in f64. 2 d^2 + O(d) numbers: 16 d^2 bytes (268 MB for d = 4096).
struct CutMoments {
  explicit CutMoments(int64_t d);
  /// Rows of x and r, [rows][d].
  void add(std::span<const double> x, std::span<const double> r, int64_t rows);
  CutMoments& operator+=(const CutMoments& other);

  int64_t d = 0, tokens = 0, contexts = 0;  // contexts: counted by the caller
  std::vector<double> xx, xr;               // [d][d]: x^T x (the upper triangle), x^T r
  std::vector<double> sx, sr;               // [d]
  double rr = 0, yy = 0;                    // sums of squares
};

/// Fewest tokens that a fit is made of, in multiples of d: with fewer than d the system is singular, with few
/// more its noise is as large as what it tells.
inline constexpr int64_t kTokensPerWidth = 2;

/// Of each form a map for `layer`: full, low-rank (of rank `rank`, 1 to d) and diagonal, in the order of
/// MapForm. The ridge is the one, of a grid from 1e-8 to 100 times the variance, whose full map is best on
/// `held_out`; the maps are then fitted on both together. Errors are those on `held_out` before that.
/// kInfeasible: too few tokens (says how many are needed), or hidden states that span fewer than d
/// directions. kCorrupt: sums that are not finite.
Result<std::vector<AlignmentMap>> fit_maps(int64_t layer, int64_t rank, const CutMoments& fit,
                                           const CutMoments& held_out);

}  // namespace ds
