#include "runtime/store/registered_plans.h"

#include <algorithm>
#include <array>

#include "plans/plan_file.h"
#include "support/hash.h"

namespace ds {
namespace {

constexpr std::string_view kPrefix = "plan-", kMagic = "DSPLANR1";
constexpr size_t kFront = kMagic.size() + Hmac::kBytes;
constexpr int64_t kMostBytes = int64_t{64} << 20;

std::array<unsigned char, Hmac::kBytes> seal(const Store& store, std::span<const std::byte> file) {
  if (store.signing() == nullptr) return {};
  Hmac mac(Hmac(*store.signing()).hex("droidspeak registered plan"));
  mac.update(file);
  return mac.value();
}

std::string key_of(std::span<const std::byte> file) { return std::string(kPrefix) + sha256_hex(file); }

}  // namespace

bool is_registered_plan(std::string_view key) { return key.starts_with(kPrefix); }

Result<std::string> register_plan(Store& store, std::span<const std::byte> file, const std::string& origin) {
  if (static_cast<int64_t>(file.size()) > kMostBytes)
    return error(Code::kInvalidArgument, "plan '{}' has {} bytes; {} at the most can be registered", origin,
                 file.size(), kMostBytes);
  DS_TRY(parse_plan(file, origin));
  const std::string key = key_of(file);
  const auto sealed = seal(store, file);
  DS_TRY(store.put(key, [&](const Store::Sink& sink) -> Status {
    DS_TRY(sink(std::as_bytes(std::span(kMagic))));
    DS_TRY(sink(std::as_bytes(std::span(sealed))));
    return sink(file);
  }));
  DS_TRY(store.pin(key, true));
  return key;
}

Result<Plan> registered_plan(Store& store, const std::string& key) {
  const std::string where = fmt::format("registered plan '{}' in '{}'", key, store.url());
  auto object = store.open(key);
  if (!object.ok()) return object.status().with_context(where);
  const int64_t size = (*object)->size();
  if (size < static_cast<int64_t>(kFront) || size > kMostBytes + static_cast<int64_t>(kFront))
    return error(Code::kCorrupt, "{}: it has {} bytes, expected {} to {}", where, size, kFront,
                 kMostBytes + static_cast<int64_t>(kFront));
  std::vector<std::byte> bytes(static_cast<size_t>(size));
  if (Status s = (*object)->read(0, bytes); !s.ok()) return s.with_context(where);
  const auto magic = std::as_bytes(std::span(kMagic));
  const auto file = std::span<const std::byte>(bytes).subspan(kFront);
  if (!std::equal(magic.begin(), magic.end(), bytes.begin()) || key_of(file) != key)
    return error(Code::kCorrupt, "{}: it is damaged, or something else; remove it and register it again",
                 where);
  const auto right = seal(store, file);
  const std::span given(reinterpret_cast<const unsigned char*>(bytes.data()) + magic.size(), Hmac::kBytes);
  if (store.signing() != nullptr && !same_secret(given, right))
    return error(Code::kMismatch,
                 "{}: it is not signed by the store's key, so nothing of it is used; register it again with "
                 "that key",
                 where);
  return parse_plan(file, where);
}

Result<std::vector<std::string>> registered_keys(Store& store) {
  DS_ASSIGN(const std::vector<ObjectInfo> all, store.list(kPrefix));
  std::vector<std::string> keys;
  for (const ObjectInfo& object : all) keys.push_back(object.key);
  return keys;
}

Result<std::vector<RegisteredPlan>> registered_plans(Store& store) {
  DS_ASSIGN(const std::vector<std::string> keys, registered_keys(store));
  std::vector<RegisteredPlan> plans;
  for (const std::string& key : keys) plans.push_back({key, registered_plan(store, key)});
  return plans;
}

}  // namespace ds
