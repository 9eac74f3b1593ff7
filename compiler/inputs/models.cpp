#include "compiler/inputs/models.h"

#include "runtime/model/tokenizer.h"

namespace ds {

Result<ModelPair> read_pair(const std::string& sender, const std::string& receiver,
                            const Identify& identify) {
  ModelPair pair;
  DS_ASSIGN(ModelConfig sender_config, ModelConfig::read(sender));
  DS_ASSIGN(pair.config, ModelConfig::read(receiver));
  DS_TRY(check_same_architecture(sender_config, pair.config, sender, receiver));
  auto identity = [&](const std::string& folder) -> Result<ModelIdentity> {
    DS_ASSIGN(Checkpoint checkpoint, Checkpoint::open(folder));
    return identify ? identify(checkpoint) : checkpoint.identity();
  };
  DS_ASSIGN(pair.receiver, identity(receiver));
  if (sender == receiver) {
    pair.sender = pair.receiver;
  } else {
    DS_ASSIGN(pair.sender, identity(sender));
  }
  DS_TRY(check_same_ids(sender, receiver));
  return pair;
}

}  // namespace ds
