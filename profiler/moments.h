// Fits the maps of one aligned cut in closed form, from weighted sums over tokens.
//
// With x the sender's hidden states that enter a layer and y the receiver's, of d elements each, r = y - x:
//   minimise  sum w |r - x B - b|^2 + lambda |B|^2,  w = 2 / (|x|^2 + |y|^2) of each token
// What reads hidden states is RMSNorm, to which an error is as large as it is beside the token's own norm;
// and some models have massive activations (Sun et al., arXiv 2402.17762): tokens, the first of a context
// above all, whose norm is a hundred times the others'. Unweighted, one of them outweighs its whole context.
// Both norms are in w so that none counts for more than 4 without a map, whichever model it is massive in.
// Massive tokens then count ten times: nearly every token attends to them, and one among hundreds would be
// left to the penalty, which does them more harm than having no map at all. The penalty pulls towards B = 0,
// the plain cut, not towards 0: what the data say nothing about stays as it was. Whether there is to be a map
// at all is decided on held-out contexts. The last bits depend on the CPU and the number of threads, as
// OpenBLAS's products do; so does a file's fingerprint.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "runtime/model/maps.h"
#include "support/status.h"

namespace ds {

/// A token is massive where its norm, in either model, is more than so many times the median of its context.
inline constexpr double kMassiveNorm = 10;
/// As how many others it then counts.
inline constexpr double kMassiveCount = 10;

/// What each token of a context counts.
struct TokenWeights {
  std::vector<double> weight;  // w; 0 where both norms are 0
  std::vector<char> massive;
};
/// Rows of x and r of one whole context, [rows][d].
TokenWeights weigh_tokens(std::span<const double> x, std::span<const double> r, int64_t d);

/// Weighted sums over tokens, in f64. 2 d^2 + O(d) numbers: 16 d^2 bytes (268 MB for d = 4096).
struct CutMoments {
  explicit CutMoments(int64_t d);
  /// Rows of x and r, [rows][d], and the weight of each.
  void add(std::span<const double> x, std::span<const double> r, std::span<const double> weights);
  CutMoments& operator+=(const CutMoments& other);

  int64_t d = 0, tokens = 0;
  int64_t contexts = 0, massive_tokens = 0;  // counted by the caller
  double weight = 0;                         // their sum
  std::vector<double> xx, xr;                // [d][d]: x^T x (the upper triangle), x^T r
  std::vector<double> sx, sr;                // [d]
};

/// Tokens of held-out contexts, on which maps are tried: of each context at most so many ordinary and so many
/// massive ones, evenly spaced, each of which stands for those between.
class HeldOut {
 public:
  HeldOut(int64_t d, int64_t most) : d_(d), most_(most) {}
  /// One context; x and y as floats hold them.
  void add(std::span<const double> x, std::span<const double> r, const TokenWeights& weights);
  /// Bytes for so many contexts, of `most` tokens each.
  static int64_t bytes(int64_t d, int64_t most, int64_t contexts) { return 2 * 4 * d * most * contexts; }

  struct Row {
    double weight = 0;  // the token's, times how many it stands for
    bool massive = false;
    size_t context = 0;
  };
  int64_t tokens() const { return tokens_; }  // that the rows stand for
  int64_t contexts() const { return contexts_; }
  const std::vector<Row>& rows() const { return rows_; }
  const std::vector<float>& x() const { return x_; }  // [rows][d]
  const std::vector<float>& y() const { return y_; }

 private:
  int64_t d_, most_, tokens_ = 0, contexts_ = 0;
  std::vector<Row> rows_;
  std::vector<float> x_, y_;
};

/// Fewest tokens that a fit is made of, in multiples of d: with fewer than d the system is singular, with few
/// more its noise is as large as what it tells.
inline constexpr int64_t kTokensPerWidth = 2;
/// Powers of ten that ridges are, as shares of the mean variance of x: those tried at first, and how far the
/// search goes on where the best one stands at the end.
inline constexpr int kRidgePowers[] = {-8, 2}, kRidgeLimits[] = {-12, 6};
/// Errors that differ by less than this share count as equal.
inline constexpr double kAlike = 1e-4;
/// With one held-out context there is no standard error: a map must then be better by this share.
inline constexpr double kLeastGain = 0.1;

struct FitRequest {
  int64_t layer = 0;
  std::vector<MapForm> forms;  // in the order of MapForm
  int64_t rank = 0;            // of low-rank maps: 1 to d
  bool control = false;        // maps of a control are made whatever they are worth
};

struct LayerMaps {
  std::vector<AlignmentMap> maps;   // of the forms asked for, but those of
  std::vector<PlainLayer> plain;    // whose best map is no better than none: the layer stays plain
  std::vector<std::string> limits;  // maps whose ridge stands at the limit of the search
};

/// The maps of one layer. Of each form are tried: the plain cut (B = 0, b = 0), a bias alone (B = 0), and B
/// with each ridge; the one with the least error on `rows` is taken, of equally good ones the most penalised.
/// A form whose best does not beat the plain cut by more than the standard error of the difference over
/// contexts (kLeastGain with one context) stays plain. The maps are then fitted on `fit` and `held_out`
/// together; their errors are those on `rows` before that. kInfeasible: too few tokens (says how many are
/// needed), or hidden states that span fewer than d directions. kCorrupt: sums that are not finite.
Result<LayerMaps> fit_maps(const FitRequest& request, CutMoments fit, CutMoments held_out,
                           const HeldOut& rows);

/// Bytes that fit_maps() needs for a while, beside its arguments.
int64_t fit_scratch_bytes(int64_t d, int64_t rows);

}  // namespace ds
