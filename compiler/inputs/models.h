// The two model folders, read and cross-checked.
#pragma once

#include <functional>
#include <string>

#include "plans/plan.h"
#include "runtime/model/checkpoint.h"
#include "runtime/model/config.h"
#include "support/status.h"

namespace ds {

struct ModelPair {
  ModelConfig
      config;  // the receiver's, with the positions that both have; the sender's shapes the same numbers
  ModelIdentity sender, receiver;
  int64_t shared_vocab = 0;  // Plan::shared_vocab
};

/// How the identity of an opened model is found.
using Identify = std::function<Result<ModelIdentity>(const Checkpoint&)>;

/// Reads both folders and the fingerprints of their weights: by `identify`, else by reading all weights.
/// kMismatch where the architectures differ: one line for each differing field, with both values. `options`
/// are for both.
Result<ModelPair> read_pair(const std::string& sender, const std::string& receiver,
                            const OpenOptions& options = {}, const Identify& identify = {});

}  // namespace ds
