#include "compiler/inputs/models.h"

#include <algorithm>

#include "runtime/model/tokenizer.h"

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
  const std::string tokenizer = "tokenizer.json";
  DS_ASSIGN(pair.shared_vocab, check_same_ids(theirs.folder_of(tokenizer), ours.folder_of(tokenizer)));
  // Vocabularies padded to other sizes: rows that no token has, unless ids are given as such.
  const int64_t rows = theirs.config().vocab, all = pair.config.vocab;
  if (rows < all) pair.shared_vocab = pair.shared_vocab == 0 ? rows : std::min(pair.shared_vocab, rows);
  if (pair.shared_vocab >= all) pair.shared_vocab = 0;
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
