#include "compiler/inputs/models.h"

#include <algorithm>

#include "runtime/model/shared_vocab.h"

namespace ds {

Result<ModelPair> read_pair(const std::string& sender, const std::string& receiver,
                            const OpenOptions& options, const Identify& identify) {
  ModelPair pair;
  // An adapter has the config of its base, so that both are opened whole; that reads no weights.
  DS_ASSIGN(const Checkpoint theirs, Checkpoint::open(sender, options));
  DS_ASSIGN(const Checkpoint ours, Checkpoint::open(receiver, options));
  pair.config = ours.config();
  DS_TRY(check_same_architecture(theirs.config(), pair.config, sender, receiver));
  // Nothing is reused beyond what the sender can read.
  pair.config.max_positions = std::min(pair.config.max_positions, theirs.config().max_positions);
  DS_ASSIGN(pair.shared_vocab, shared_vocabulary(theirs, ours));
  auto identity = [&](const Checkpoint& checkpoint) {
    return identify ? identify(checkpoint) : checkpoint.identity();
  };
  DS_ASSIGN(pair.receiver, identity(ours));
  if (sender == receiver) {
    pair.sender = pair.receiver;
  } else {
    DS_ASSIGN(pair.sender, identity(theirs));
  }
  return pair;
}

}  // namespace ds
