// Hashes: SHA-256 where an identity must not collide, XXH3 where bytes are only checked for damage.
#pragma once

#include <xxhash.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace ds {

/// Lower-case hexadecimal SHA-256 (64 characters).
std::string sha256_hex(std::span<const std::byte> bytes);
inline std::string sha256_hex(std::string_view text) {
  return sha256_hex(std::as_bytes(std::span(text.data(), text.size())));
}

/// HMAC-SHA256 under one key, of one message after the other. Not thread-safe; allocates when it is made
/// only.
class Hmac {
 public:
  static constexpr size_t kBytes = 32;
  explicit Hmac(std::string_view key);  // any bytes, may be empty
  void reset();
  void update(std::span<const std::byte> bytes);
  void update(std::string_view text) { update(std::as_bytes(std::span(text.data(), text.size()))); }
  std::array<unsigned char, kBytes> value();  // of what came since reset(); then reset() is next
  /// Of one message: 2 * `bytes` lower-case hexadecimal digits, of the first `bytes` bytes.
  std::string hex(std::string_view message, size_t bytes = kBytes);

 private:
  struct Free {
    void operator()(void* context) const;
  };
  std::unique_ptr<void, Free> context_;
};

/// Equal, in a time that does not say where they differ.
bool same_secret(std::span<const unsigned char> a, std::span<const unsigned char> b);

/// XXH3-64 of the bytes, the checksum of entries' tensors.
uint64_t checksum64(std::span<const std::byte> bytes);

/// XXH3-64 fed piece by piece; equals checksum64 of the pieces put together.
class StreamingChecksum {
 public:
  StreamingChecksum() : state_(XXH3_createState()) { reset(); }
  void reset() { XXH3_64bits_reset(state_.get()); }
  void update(std::span<const std::byte> bytes);
  uint64_t value() const { return XXH3_64bits_digest(state_.get()); }

 private:
  struct Free {
    void operator()(XXH3_state_t* s) const { XXH3_freeState(s); }
  };
  std::unique_ptr<XXH3_state_t, Free> state_;
};

}  // namespace ds
