// The sender's side: prefill a context and put its caches, and the hidden states at the cuts, into a store.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "runtime/backends/backend.h"
#include "runtime/store/store.h"
#include "support/status.h"

namespace ds {

struct PublishOptions {
  std::vector<int32_t> cuts;                                    // layers whose E is stored, in [1, layers)
  std::string salt;                                             // tenant salt
  std::function<void(int64_t layer, int64_t layers)> progress;  // may be empty
};

struct Published {
  std::string key;
  int64_t entry_bytes = 0;
  int64_t prefill_ns = 0, write_ns = 0;
};

/// Runs `model` (the sender, of identity `sender`) over `context` and writes one entry, atomically. Errors:
/// kInvalidArgument (no tokens, ids outside the vocabulary, more positions than the model has, cuts outside
/// the layers), kExhausted (memory, disk), kIo.
Result<Published> publish(Backend& backend, DeviceModel& model, const ModelIdentity& sender,
                          std::span<const int32_t> context, Store& store, const PublishOptions& options);

}  // namespace ds
