// How a prompt is cut for the engine: into a context, of which a sender may have computed a part, and the
// suffix that only the receiver reads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "runtime/store/entry.h"

namespace ds {

/// How many of a prompt's tokens are its context: the whole blocks that others may begin with, and so what is
/// published of it. Which of them are there is for the engine to find (find_chain()); of the last block of an
/// entry that ends within one nothing is.
inline int64_t shared_blocks(int64_t prompt_tokens) {
  return std::max<int64_t>(0, prompt_tokens - 1) / kChecksumRows * kChecksumRows;
}

}  // namespace ds
