// quality.json: how well the receiver answers with each group of layers recomputed. Schema: schemas.md.
#pragma once

#include <string>
#include <vector>

#include "support/status.h"
#include "support/units.h"

namespace ds {

struct GroupScore {
  LayerRange group;
  double score = 0;           // points, 0 to 100
  double standard_error = 0;  // points; 0: not stated
};

struct Quality {
  std::string sender_name, sender_fingerprint, receiver_name, receiver_fingerprint;
  int64_t layers = 0;
  std::string metric;
  int64_t items = 0;
  double receiver_score = 0;    // with the receiver's own full prefill
  double full_reuse_score = 0;  // nothing recomputed
  std::vector<GroupScore> groups;

  /// Points that a group costs: receiver_score less its score (below 0 by chance). NaN: it was not measured.
  /// The empty group is full reuse, all layers are the full prefill.
  double loss(const LayerRange& group) const;

  /// Errors: kNotFound, kCorrupt, kUnsupported (a newer version), kInvalidArgument; each names file and
  /// field.
  static Result<Quality> read(const std::string& path);
  /// kMismatch where the profile is not of this pair: says which field, found and expected.
  Status check_pair(const std::string& path, const std::string& sender_fingerprint,
                    const std::string& receiver_fingerprint, int64_t layers) const;
};

}  // namespace ds
