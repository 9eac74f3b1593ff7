// Stores as tools are given them: a URL, and the key that their entries are signed by.
#pragma once

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "runtime/store/store.h"
#include "support/status.h"

namespace ds {

/// Where a store may be, for an option's help.
inline constexpr const char* kStoreUrls =
    "file:PATH (a folder), or redis://[user:password@]host[:port][/db] (a Redis or Valkey server, or any "
    "node of "
    "a cluster; rediss:// with TLS)";

inline void add_store_key_option(CLI::App& app, std::string& path) {
  app.add_option(
      "--store-key", path,
      "file with a secret of 32 bytes or more (mode 0600): entries are signed by it, and those that "
      "are not are never used. Make one with: head -c 32 /dev/urandom > FILE; chmod 600 FILE");
}

/// `key_path` "": entries are not signed.
inline Result<std::unique_ptr<Store>> open_signed_store(const std::string& url, const std::string& key_path) {
  DS_ASSIGN(std::unique_ptr<Store> store, open_store(url));
  if (!key_path.empty()) {
    DS_ASSIGN(auto key, read_store_key(key_path));
    store->set_signing(std::move(key));
  }
  return store;
}

/// Enough of a key to find it by, the tenant's tag in front of it.
inline std::string short_key(const std::string& key) {
  const size_t dash = key.find('-');
  return key.substr(0, dash == key.npos ? 16 : dash + 17);
}

}  // namespace ds
