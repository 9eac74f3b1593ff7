// What of a store is kept: a budget, a time to live, a quota for each tenant.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/store/store.h"

namespace ds {

struct KeepOptions {
  int64_t most_bytes = -1;         // of all objects; -1: no such limit
  int64_t most_tenant_bytes = -1;  // of each tenant's
  int64_t ttl_s = -1;              // since it was written
  int64_t idle_s = -1;             // since it was used
  int64_t now_s = 0;               // seconds since 1970
  bool dry_run = false;            // says what would go
};

/// The tenant that a key belongs to (tenant_tag()); "" : none.
std::string key_tenant(const std::string& key);

struct Collected {
  std::vector<ObjectInfo> evicted;  // the first to go first
  int64_t kept = 0, kept_bytes = 0;
  int64_t in_use = 0;      // that should have gone, but somebody reads them
  int64_t dead = 0;        // of those that were being written, which dead writers had left
  int64_t bytes_over = 0;  // of the budget, that pins and readers keep from being met
};

/// Evicts what is too old, then of each tenant that has too much, then of all, what has not been used for the
/// longest. Pinned objects stay, and count. What dead writers have left goes as well. Errors: those of
/// Store::list() and Store::evict().
Result<Collected> collect(Store& store, const KeepOptions& options);

}  // namespace ds
