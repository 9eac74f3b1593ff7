#include "compiler/inputs/models.h"

#include "runtime/model/tokenizer.h"

namespace ds {

Result<ModelPair> read_pair(const std::string& sender, const std::string& receiver,
                            const OpenOptions& options, const Identify& identify) {
  ModelPair pair;
  // An adapter has the config of its base, so that both are opened whole; that reads no weights.
  DS_ASSIGN(Checkpoint sender_files, Checkpoint::open(sender, options));
  DS_ASSIGN(Checkpoint receiver_files, Checkpoint::open(receiver, options));
  pair.config = receiver_files.config();
  DS_TRY(check_same_architecture(sender_files.config(), pair.config, sender, receiver));
  auto identity = [&](const Checkpoint& checkpoint) {
    return identify ? identify(checkpoint) : checkpoint.identity();
  };
  DS_ASSIGN(pair.receiver, identity(receiver_files));
  if (sender == receiver) {
    pair.sender = pair.receiver;
  } else {
    DS_ASSIGN(pair.sender, identity(sender_files));
  }
  const std::string tokenizer = "tokenizer.json";
  DS_TRY(check_same_ids(sender_files.folder_of(tokenizer), receiver_files.folder_of(tokenizer)));
  return pair;
}

}  // namespace ds
