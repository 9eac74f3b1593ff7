#include "support/hash.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/params.h>
#ifdef __x86_64__
// The widest vectors of this machine; xxhash.h alone means SSE2, at half the speed.
#include <xxh_x86dispatch.h>
#endif

namespace ds {

namespace {

std::string hex_of(std::span<const unsigned char> bytes) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string text;
  for (unsigned char b : bytes) {
    text += kHex[b >> 4];
    text += kHex[b & 15];
  }
  return text;
}

}  // namespace

std::string sha256_hex(std::span<const std::byte> bytes) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned size = 0;
  EVP_Digest(bytes.data(), bytes.size(), digest, &size, EVP_sha256(), nullptr);
  return hex_of({digest, size});
}

Hmac::Hmac(std::string_view key) {
  static EVP_MAC* const mac = EVP_MAC_fetch(nullptr, "HMAC", nullptr);
  context_.reset(EVP_MAC_CTX_new(mac));
  char digest[] = "SHA256";
  const OSSL_PARAM params[] = {OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, digest, 0),
                               OSSL_PARAM_construct_end()};
  // A key of no bytes is one as well; a null pointer would mean that none is set.
  EVP_MAC_init(static_cast<EVP_MAC_CTX*>(context_.get()),
               reinterpret_cast<const unsigned char*>(key.empty() ? "" : key.data()), key.size(), params);
}

void Hmac::Free::operator()(void* context) const { EVP_MAC_CTX_free(static_cast<EVP_MAC_CTX*>(context)); }

void Hmac::reset() { EVP_MAC_init(static_cast<EVP_MAC_CTX*>(context_.get()), nullptr, 0, nullptr); }

void Hmac::update(std::span<const std::byte> bytes) {
  EVP_MAC_update(static_cast<EVP_MAC_CTX*>(context_.get()),
                 reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size());
}

std::array<unsigned char, Hmac::kBytes> Hmac::value() {
  std::array<unsigned char, kBytes> out{};
  size_t size = 0;
  EVP_MAC_final(static_cast<EVP_MAC_CTX*>(context_.get()), out.data(), &size, out.size());
  return out;
}

std::string Hmac::hex(std::string_view message, size_t bytes) {
  reset();
  update(message);
  const auto out = value();
  return hex_of(std::span(out).first(bytes));
}

bool same_secret(std::span<const unsigned char> a, std::span<const unsigned char> b) {
  return a.size() == b.size() && CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

uint64_t checksum64(std::span<const std::byte> bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

void StreamingChecksum::update(std::span<const std::byte> bytes) {
  XXH3_64bits_update(state_.get(), bytes.data(), bytes.size());
}

}  // namespace ds
