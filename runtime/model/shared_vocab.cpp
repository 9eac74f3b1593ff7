#include "runtime/model/shared_vocab.h"

#include <algorithm>

#include "runtime/model/tokenizer.h"

namespace ds {

Result<int64_t> shared_vocabulary(const Checkpoint& sender, const Checkpoint& receiver) {
  const std::string file = "tokenizer.json";
  DS_ASSIGN(int64_t shared, check_same_ids(sender.folder_of(file), receiver.folder_of(file)));
  // Vocabularies padded to other sizes: rows that no token has, unless ids are given as such.
  const int64_t rows = sender.config().vocab, all = receiver.config().vocab;
  if (rows < all) shared = shared == 0 ? rows : std::min(shared, rows);
  return shared < all ? shared : 0;
}

Status check_sender_knows(std::span<const int32_t> context, int64_t shared, const std::string& sender,
                          const std::string& receiver) {
  if (shared == 0) return ok_status();
  for (size_t i = 0; i < context.size(); ++i) {
    if (context[i] < shared) continue;
    return error(Code::kMismatch,
                 "context token {} has id {}, which only the receiver '{}' knows: it shares the ids below {} "
                 "with the sender '{}', whose entries cannot have it",
                 i, context[i], receiver, shared, sender);
  }
  return ok_status();
}

}  // namespace ds
