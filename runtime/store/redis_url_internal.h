// What a URL of a Redis or Valkey store says.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "support/status.h"

namespace ds {

struct RedisHost {
  std::string name;
  int port = 6379;
  std::string text() const;  // "host:port", "[::1]:port"
  /// "host:port", "host", "[::1]:port", and "::1:port" as servers write it.
  static std::optional<RedisHost> parse(std::string_view text);
  bool operator==(const RedisHost&) const = default;
};

struct RedisOptions {
  std::vector<RedisHost> hosts;  // several: nodes of one cluster, tried one after the other
  bool tls = false;
  std::string user, password;
  int64_t db = 0;
  std::string prefix = "ds:";             // of every key
  int64_t ttl_s = 0;                      // of objects from their writing on; 0: none
  int64_t lease_s = 600;                  // for which a writer's parts outlive it; renewed while it writes
  int64_t grace_s = 10;                   // for which what has been replaced or removed can be read on
  double timeout_s = 5;                   // for connecting, and for a server that says nothing
  int64_t part_bytes = int64_t{1} << 20;  // of what is written; readers see it in the manifest
  std::string ca, certificate, key;       // TLS: files; "": the system's authorities, none of ours

  /// Without user, password and options.
  std::string url() const;
};

/// redis:// and rediss:// as open_store() has them. No message holds
/// anything of user or password.
Result<RedisOptions> parse_redis_url(const std::string& url);

}  // namespace ds
