// Which token ids a sender and a receiver both know.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "runtime/model/checkpoint.h"
#include "support/status.h"

namespace ds {

/// The id from which on only the receiver knows any, by the tokenizers of both (tokens that its training has
/// added) and by the rows of their embeddings; 0: the sender knows all of its vocabulary. Errors: those of
/// check_same_ids().
Result<int64_t> shared_vocabulary(const Checkpoint& sender, const Checkpoint& receiver);

/// No sender can have read a context with ids that it does not have: kMismatch names the first one.
/// `shared`: as above; the names are for the message.
Status check_sender_knows(std::span<const int32_t> context, int64_t shared, const std::string& sender,
                          const std::string& receiver);

}  // namespace ds
