// A checkpoint's identity, remembered between starts so that its weights need not be read again.
#pragma once

#include <functional>
#include <string>

#include "plans/plan.h"
#include "runtime/model/checkpoint.h"
#include "support/status.h"

namespace ds {

struct VerifyOptions {
  std::string cache;                                          // folder to remember in; empty: nowhere
  bool reread = false;                                        // read the weights although they are remembered
  std::function<void(int64_t done, int64_t total)> progress;  // bytes; may be empty
};

struct Verified {
  ModelIdentity identity;
  bool remembered = false;  // the weights were not read
  ModelIdentity base;       // of an adapter; empty where nothing is remembered, or for a model by itself
};

/// As Checkpoint::verify(), but where `cache` remembers the very files (device, inode, size, times of
/// modification and of change) the weights are taken as they were found then. A file that is written to,
/// replaced or copied has another stamp, and one that changed in the last two seconds is not remembered: its
/// clock may not tell the next change from this one. Where a folder's model has become another, the packed
/// weights of the one before are removed from `cache`. An adapter's files and its base's are remembered
/// apart: a new adapter of a known base costs reading the adapter.
Result<Verified> verify_checkpoint(const Checkpoint& checkpoint, const VerifyOptions& options);

}  // namespace ds
