// What the objects of a Redis or Valkey store are made of: keys, manifests, parts (redis_store.cpp).
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "runtime/store/redis_client_internal.h"
#include "runtime/store/store.h"
#include "support/status.h"

namespace ds {

inline constexpr size_t kManifestFixed = 48;  // bytes of a manifest's numbers
/// Of an object, in its manifest: what a reader asks for first (runtime/store/entry.cpp) comes with the
/// look-up.
inline constexpr int64_t kMostHead = 64 << 10;
inline constexpr int64_t kMostObject = int64_t{1} << 50, kMostParts = 1 << 20, kLeastPart = 4096,
                         kMostPart = 64 << 20;

/// What there is of an object, and its first bytes.
struct RedisManifest {
  int64_t bytes = 0, part_bytes = 0;
  uint64_t generation = 0;
  int64_t written_s = 0;
  uint32_t names = 0;
  uint32_t head_bytes = 0;
  std::string head;

  int64_t parts() const { return (bytes - head_bytes + part_bytes - 1) / part_bytes; }
  int64_t name_parts() const {
    const int64_t all = int64_t{names} * static_cast<int64_t>(Store::kNameDigits);
    return (all + part_bytes - 1) / part_bytes;
  }
  std::string text() const;
  /// `text` may end behind the numbers. kCorrupt.
  static Result<RedisManifest> parse(std::string_view text);
};

/// A key, or what stands in front of it, without memory of its own.
class KeyText {
 public:
  template <typename... A>
  explicit KeyText(fmt::format_string<A...> format, A&&... args) {
    size_ = std::min(text_.size(),
                     fmt::format_to_n(text_.data(), text_.size(), format, std::forward<A>(args)...).size);
  }
  operator std::string_view() const { return {text_.data(), size_}; }  // NOLINT: it is one
  std::string string() const { return {text_.data(), size_}; }

 private:
  std::array<char, 400> text_;  // prefix 100, key 200, the rest 40
  size_t size_ = 0;
};

/// Of one object, all in one slot.
struct RedisKeys {
  std::string object;  // the manifest's
  RedisKeys(const RedisOptions& o, std::string_view key) : object(fmt::format("{}{{{}}}", o.prefix, key)) {}
  KeyText part(uint64_t generation, int64_t i) const {
    return KeyText("{}:{:016x}:{}", object, generation, i);
  }
  KeyText names(uint64_t generation, int64_t i) const {
    return KeyText("{}:{:016x}:n:{}", object, generation, i);
  }
  /// The records of one that is still being written (redis_live.cpp).
  std::string live(uint64_t generation) const { return fmt::format("{}:{:016x}:live", object, generation); }
  std::string used() const { return object + ":used"; }
  std::string pin() const { return object + ":pin"; }
  std::string readers() const { return object + ":readers"; }
};

int64_t seconds_now();
uint64_t random_number();
Status check_reply(const Reply& reply);

/// Reads the parts of what the manifest says. `lasting`: it is told to the server that somebody reads it.
std::unique_ptr<StoreObject> open_redis_object(std::shared_ptr<RedisClient> client, const std::string& key,
                                               RedisManifest manifest, bool lasting = true);

}  // namespace ds
