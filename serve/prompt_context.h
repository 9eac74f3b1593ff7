// How a prompt is cut for the engine: into a context, which a sender may have computed, and the suffix that
// only the receiver reads.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "runtime/store/entry.h"
#include "serve/loaded_fleet.h"

namespace ds {

/// How many of a prompt's tokens are its context; fewer than all of them. The longest entry of any of the
/// model's senders with which the prompt begins, or else whole blocks of tokens. `store` null: no entry is
/// looked for. What cannot be read is not there: the engine says what it misses.
int64_t context_tokens(const ServedModel& model, Store* store, std::span<const int32_t> prompt,
                       const std::string& salt);

/// The whole blocks of a prompt that others may begin with, and so what is published of it.
int64_t shared_blocks(int64_t prompt_tokens);

}  // namespace ds
