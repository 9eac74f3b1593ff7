// The artefact of aligned cuts: for each layer maps that take the sender's hidden states entering it to the
// receiver's. A safetensors file; ds-profile writes it, ds-compile names it in a plan, the runtime applies
// it.
//
//   layers.L.full.weight      F32 [d][d]   y = x + W x + b
//   layers.L.full.bias        F32 [d]
//   layers.L.low-rank.up      F32 [d][r]   y = x + U D x + s * x + b
//   layers.L.low-rank.down    F32 [r][d]
//   layers.L.low-rank.scale   F32 [d]
//   layers.L.low-rank.bias    F32 [d]
//   layers.L.diagonal.scale   F32 [d]      y = x + s * x + b
//   layers.L.diagonal.bias    F32 [d]
//
// `__metadata__`: format "droidspeak.maps", version, and as JSON texts `pair`, `shape`, `data`, `statistics`
// and, of maps that were no better than the plain cut and are not here, `plain`.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "plans/plan.h"
#include "support/dtype.h"
#include "support/status.h"

namespace ds {

inline constexpr int64_t kMapsVersion = 1;

/// Errors are mean squared distances to the receiver's hidden states as shares of their variance, each
/// token's weighed by 2 / (|x|^2 + |y|^2), on contexts that the fit did not see: 0 is exact, 1 no better than
/// their mean. *Ordinary*: of the tokens that are not massive. NaN: not known.
struct MapFit {
  int64_t tokens = 0, contexts = 0;                    // fitted on
  int64_t held_out_tokens = 0, held_out_contexts = 0;  // of them, those the ridge was chosen on
  int64_t massive_tokens = 0;                          // of all
  // Penalty on W, as a share of the mean variance of the sender's hidden states; NaN: W is 0, and only the
  // bias is fitted.
  double ridge = 0;
  double error = 0, ordinary_error = 0;              // with the map
  double plain_error = 0, plain_ordinary_error = 0;  // without one: the plain cut
  double gain_stderr = 0;  // standard error over held-out contexts of plain_error - error
  bool operator==(const MapFit& o) const {
    return tokens == o.tokens && contexts == o.contexts && held_out_tokens == o.held_out_tokens &&
           held_out_contexts == o.held_out_contexts && massive_tokens == o.massive_tokens &&
           same_number(ridge, o.ridge) && same_number(error, o.error) &&
           same_number(ordinary_error, o.ordinary_error) && same_number(plain_error, o.plain_error) &&
           same_number(plain_ordinary_error, o.plain_ordinary_error) &&
           same_number(gain_stderr, o.gain_stderr);
  }
};

/// A form of a layer for which a map was fitted and is not kept: it was no better than the plain cut.
struct PlainLayer {
  int64_t layer = 0;
  MapForm form = MapForm::kFull;
  MapFit fit;  // of the best map
  bool operator==(const PlainLayer&) const = default;
};

/// One map. Vectors that its form has no use for are empty.
struct AlignmentMap {
  int64_t layer = 0;
  MapForm form = MapForm::kFull;
  int64_t rank = 0;             // low-rank: r
  std::vector<float> weight;    // full: [d][d], row o makes element o
  std::vector<float> up, down;  // low-rank: [d][r] and [r][d]
  std::vector<float> scale;     // low-rank and diagonal: [d]
  std::vector<float> bias;      // [d]
  MapFit fit;
  /// FLOP per token.
  int64_t flops() const;
  bool operator==(const AlignmentMap&) const = default;
};

/// The maps of one pair, sorted by layer and form, each once.
struct MapSet {
  std::string sender_name, sender_fingerprint, receiver_name, receiver_fingerprint;
  int64_t layers = 0, d_model = 0;
  std::string dtype;            // what the hidden states were computed in
  std::vector<InputFile> data;  // what it was fitted on: role "fit"
  std::vector<AlignmentMap> maps;
  std::vector<PlainLayer>
      plain;  // sorted alike; layers that have no map of a form were not fitted, or are here

  const AlignmentMap* find(int64_t layer, MapForm form) const;  // nullptr: there is none
  /// SHA-256 over the identities, the shape and every number of every map; not over names and statistics.
  std::string fingerprint() const;

  /// Errors: kNotFound, kIo; kCorrupt and kMismatch (no file of maps), kUnsupported (a newer version); a
  /// tensor of a wrong shape or type, NaN or infinite numbers are kCorrupt. Each names file and tensor.
  static Result<MapSet> read(const std::string& path);
  Status write(const std::string& path) const;
  /// kMismatch where the maps are of another pair or shape: which field, found and expected.
  Status check_pair(const std::string& path, const ModelIdentity& sender, const ModelIdentity& receiver,
                    int64_t layers, int64_t d_model) const;
  /// kMismatch where they are not those that a plan names.
  Status check_plan(const std::string& path, const Plan& plan) const;
};

}  // namespace ds
