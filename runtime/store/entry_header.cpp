#include "runtime/store/entry_header_internal.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>
#include <tuple>
#include <utility>

#include "plans/traits.h"
#include "support/json.h"

namespace ds {
namespace {

constexpr std::string_view kLayout = "token-major";
constexpr int64_t kMaxLayers = 1 << 16;
constexpr int64_t kMaxRow = 1 << 28;  // elements

constexpr size_t kFingerprint = 64;

}  // namespace

bool is_map(std::string_view text) {
  return text.size() > kFingerprint && text[kFingerprint] == '/' &&
         text.find_first_not_of("0123456789abcdef") == kFingerprint &&
         map_form_named(text.substr(kFingerprint + 1)).has_value();
}

std::string escaped(std::string_view bytes) {
  std::string text;
  for (char c : bytes) {
    auto u = static_cast<unsigned char>(c);
    if (u >= 32 && u < 127 && c != '\\' && c != '\'') {
      text += c;
    } else {
      text += fmt::format("\\x{:02x}", u);
    }
  }
  return text;
}

Status check_map(TensorKind kind, const std::string& map, Code code, const std::string& where) {
  if (kind == TensorKind::kE && is_map(map)) return ok_status();
  return error(code, "{}: 'map' is '{:.100}', expected {}", where, escaped(map),
               kind == TensorKind::kE ? "a fingerprint of 64 hexadecimal digits, '/' and a form of map"
                                      : "none: only E goes through maps");
}

Status check_shape(const Shape& s, const std::string& where) {
  auto bad = [&](std::string_view name, int64_t found, int64_t high) {
    return error(Code::kInvalidArgument, "{}: {} is {}, expected 1 to {}", where, name, found, high);
  };
  if (s.layers < 1 || s.layers > kMaxLayers) return bad("layers", s.layers, kMaxLayers);
  if (s.d_model < 1 || s.d_model > kMaxRow) return bad("d_model", s.d_model, kMaxRow);
  if (s.kv_heads < 1 || s.kv_heads > 1 << 13) return bad("kv_heads", s.kv_heads, 1 << 13);
  if (s.head_dim < 1 || s.head_dim > 1 << 13) return bad("head_dim", s.head_dim, 1 << 13);
  return ok_status();
}

namespace {

// Numbers of a shape under their names, so that writing, reading and comparing cannot forget one.
template <typename S>
auto shape_fields(S& s) {
  return std::array{
      std::pair{"layers", &s.layers}, std::pair{"d_model", &s.d_model},   std::pair{"ff", &s.ff},
      std::pair{"heads", &s.heads},   std::pair{"kv_heads", &s.kv_heads}, std::pair{"head_dim", &s.head_dim},
      std::pair{"vocab", &s.vocab}};
}

template <typename M>
auto sender_fields(M& m) {
  return std::array{std::pair{"name", &m.name}, std::pair{"fingerprint", &m.fingerprint},
                    std::pair{"config", &m.config}, std::pair{"weights", &m.weights},
                    std::pair{"tokenizer", &m.tokenizer}};
}

std::string header_json(const EntryHeader& h, const std::string& run) {
  nlohmann::json j;  // its objects keep their keys sorted
  j["layout"] = kLayout;
  if (!run.empty()) j["run"] = run;
  j["context"] = {{"tokens", h.identity.tokens},
                  {"tokens_sha256", h.identity.tokens_hash},
                  {"dtype", dtype_name(h.identity.dtype)}};
  if (h.identity.first > 0) {
    j["context"]["first"] = h.identity.first;
    j["context"]["before_sha256"] = h.identity.before;
  }
  if (h.identity.names.empty()) {
    j["context"]["salt_sha256"] = sha256_hex(h.identity.salt);
  } else {
    j["context"]["tenant"] = tenant_tag(h.identity.salt);
    j["context"]["names"] = fmt::format("{}", fmt::join(h.identity.names, ""));
  }
  if (h.is_signed) j["signed"] = "hmac-sha256";
  for (auto& [name, value] : sender_fields(h.sender)) j["sender"][name] = *value;
  for (auto& [name, value] : shape_fields(h.shape)) j["shape"][name] = *value;
  j["shape"]["family"] = h.shape.family;
  j["tensors"] = nlohmann::json::array();
  for (const EntryTensor& t : h.tensors) {
    nlohmann::json& item = j["tensors"].emplace_back();
    item = {{"kind", payload_name(t.kind)}, {"layer", t.layer}};
    if (!t.map.empty()) item["map"] = t.map;
    if (!run.empty()) continue;
    std::string digits;
    for (uint64_t checksum : t.checksums) digits += hex64(checksum);
    item["offset"] = t.offset;
    item["bytes"] = t.bytes;
    item["checksums"] = digits;
  }
  // A folder's name need not be UTF-8; it is for people only.
  return j.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace

std::string header_signature(const std::string& signing, std::string_view bytes) {
  Hmac mac(Hmac(signing).hex("droidspeak entry's header"));
  mac.update(bytes);
  const auto value = mac.value();
  return {reinterpret_cast<const char*>(value.data()), value.size()};
}

std::string header_bytes(const EntryHeader& h, const std::string* signing, const std::string& run) {
  const bool live = !run.empty();
  std::string json = header_json(h, run), bytes(live ? kLiveMagic : kEntryMagic);
  auto put = [&](const auto& v) { bytes.append(reinterpret_cast<const char*>(&v), sizeof v); };
  const bool mapped = std::any_of(h.tensors.begin(), h.tensors.end(), [](auto& t) { return !t.map.empty(); });
  put(live || !h.identity.names.empty() || h.is_signed ? kEntryVersion
      : h.identity.first > 0                           ? kChainedEntryVersion
      : mapped                                         ? kMappedEntryVersion
                                                       : kPlainEntryVersion);
  put(static_cast<uint64_t>(json.size()));
  bytes += json;
  put(checksum64(std::as_bytes(std::span(bytes.data(), bytes.size()))));
  if (signing != nullptr) bytes += header_signature(*signing, bytes);
  return bytes;
}

namespace {

template <typename T>
Status expect_field(std::string_view field, const T& found, const T& expected) {
  if (found == expected) return ok_status();
  return error(Code::kMismatch, "{} is '{}' there, expected '{}'", field, found, expected);
}

Result<EntryTensor> parse_tensor(const nlohmann::json& item, int64_t tokens, uint32_t version,
                                 const std::string& where, bool live) {
  DS_ASSIGN(JsonObject o, JsonObject::make(item, where));
  EntryTensor t;
  DS_ASSIGN(std::string kind, o.string("kind"));
  const std::optional<TensorKind> known = payload_named(kind);
  if (!known) {
    return error(Code::kCorrupt, "{}: 'kind' is '{:.40}', expected 'e' or 'kv'", where, escaped(kind));
  }
  t.kind = *known;
  DS_ASSIGN(int64_t layer, o.integer("layer", 0, kMaxLayers));
  t.layer = static_cast<int32_t>(layer);
  if (item.contains("map")) {
    if (version == kPlainEntryVersion)
      return error(Code::kCorrupt, "{}: it has a 'map', which version {} does not", where, version);
    DS_ASSIGN(t.map, o.string("map"));
    DS_TRY(check_map(t.kind, t.map, Code::kCorrupt, where));
  }
  if (live) return t;
  DS_ASSIGN(t.offset, o.integer("offset", 0, INT64_MAX / 2));
  DS_ASSIGN(t.bytes, o.integer("bytes", 1, INT64_MAX / 2));
  DS_ASSIGN(std::string digits, o.string("checksums"));
  int64_t blocks = checksum_blocks(tokens);
  if (static_cast<int64_t>(digits.size()) != 16 * blocks) {
    return error(Code::kCorrupt, "{}: 'checksums' has {} digits, expected 16 for each of {} blocks", where,
                 digits.size(), blocks);
  }
  for (size_t at = 0; at < digits.size(); at += 16) {
    uint64_t& checksum = t.checksums.emplace_back();
    auto [end, failure] = std::from_chars(digits.data() + at, digits.data() + at + 16, checksum, 16);
    if (failure != std::errc() || hex64(checksum) != digits.substr(at, 16)) {
      return error(Code::kCorrupt, "{}: 'checksums' holds '{}', expected 16 hexadecimal digits", where,
                   escaped(digits.substr(at, 16)));
    }
  }
  return t;
}

}  // namespace

Status compare(const Shape& found, const Shape& expected) {
  // Neither what a family is called nor how many tokens the sender knows is in any row.
  auto theirs = shape_fields(found), ours = shape_fields(expected);
  for (size_t i = 0; i < ours.size(); ++i) {
    if (ours[i].second == &expected.vocab) continue;
    DS_TRY(expect_field(ours[i].first, *theirs[i].second, *ours[i].second));
  }
  return ok_status();
}

Status compare(const EntryHeader& found, const EntryIdentity& identity, const Shape& shape) {
  DS_TRY(expect_field("sender fingerprint", found.sender.fingerprint, identity.sender));
  DS_TRY(expect_field("hash of the context's tokens", found.identity.tokens_hash, identity.tokens_hash));
  DS_TRY(expect_field("number of tokens", found.identity.tokens, identity.tokens));
  DS_TRY(expect_field("first token", found.identity.first, identity.first));
  DS_TRY(expect_field("hash of the tokens before it", found.identity.before, identity.before));
  if (found.identity.names.empty()) {
    DS_TRY(expect_field("hash of the tenant salt", found.tenant, sha256_hex(identity.salt)));
  } else {
    DS_TRY(expect_field("tag of the tenant's salt", found.tenant, tenant_tag(identity.salt)));
  }
  DS_TRY(expect_field("element type", dtype_name(found.identity.dtype), dtype_name(identity.dtype)));
  return compare(found.shape, shape);
}

namespace {

constexpr size_t kNameDigits = Store::kNameDigits;

Result<std::vector<std::string>> parse_names(const std::string& digits, int64_t tokens) {
  const auto blocks = static_cast<size_t>(checksum_blocks(tokens));
  if (digits.size() != kNameDigits * blocks ||
      digits.find_first_not_of("0123456789abcdef") != std::string::npos)
    return error(Code::kCorrupt,
                 "header: 'names' has {} characters, expected {} hexadecimal digits for each of {} blocks",
                 digits.size(), kNameDigits, blocks);
  std::vector<std::string> names;
  for (size_t at = 0; at < digits.size(); at += kNameDigits) names.push_back(digits.substr(at, kNameDigits));
  return names;
}

/// From JSON text whose checksum was right; `tensors_from` is where the header ends.
Result<EntryHeader> parse_header(std::string_view text, uint32_t version, int64_t tensors_from,
                                 int64_t object_size, const std::function<Status(EntryHeader&)>& check,
                                 bool live) {
  DS_ASSIGN(nlohmann::json json, parse_json(text, "header"));
  DS_ASSIGN(JsonObject o, JsonObject::make(json, "header"));
  EntryHeader h;

  DS_ASSIGN(std::string layout, o.string("layout"));
  if (layout != kLayout) {
    return error(Code::kUnsupported, "header: 'layout' is '{:.40}', this version reads '{}'", escaped(layout),
                 kLayout);
  }
  DS_ASSIGN(JsonObject sender, o.object("sender"));
  for (auto& [name, value] : sender_fields(h.sender)) {
    DS_ASSIGN(*value, sender.string(name));
  }
  DS_ASSIGN(JsonObject context, o.object("context"));
  DS_ASSIGN(h.identity.tokens, context.integer("tokens", 1, kMaxEntryTokens));
  DS_ASSIGN(h.identity.tokens_hash, context.string("tokens_sha256"));
  const bool newest = version >= kEntryVersion;
  const nlohmann::json& fields = json["context"];
  if (version == kChainedEntryVersion || (newest && fields.contains("first"))) {
    DS_ASSIGN(h.identity.first, context.integer("first", kChecksumRows, kMaxEntryTokens));
    if (h.identity.first % kChecksumRows != 0)
      return error(Code::kCorrupt, "header: 'first' is {}, expected a multiple of {}", h.identity.first,
                   kChecksumRows);
    DS_ASSIGN(h.identity.before, context.string("before_sha256"));
  }
  if (newest && fields.contains("names")) {
    DS_ASSIGN(std::string digits, context.string("names"));
    DS_ASSIGN(h.identity.names, parse_names(digits, h.identity.tokens));
    DS_ASSIGN(h.tenant, context.string("tenant"));
  } else {
    DS_ASSIGN(h.tenant, context.string("salt_sha256"));
  }
  if (newest && json.contains("signed")) {
    DS_ASSIGN(std::string how, o.string("signed"));
    if (how != "hmac-sha256")
      return error(Code::kUnsupported, "header: it is signed by '{:.40}', this version knows 'hmac-sha256'",
                   escaped(how));
    h.is_signed = true;
  }
  DS_ASSIGN(std::string dtype, context.string("dtype"));
  DS_ASSIGN(h.identity.dtype, parse_dtype(dtype));
  DS_ASSIGN(JsonObject shape_json, o.object("shape"));
  DS_ASSIGN(h.shape.family, shape_json.string("family"));
  for (auto& [name, value] : shape_fields(h.shape)) {
    DS_ASSIGN(*value, shape_json.integer(name, INT64_MIN, INT64_MAX));
  }
  DS_TRY(check_shape(h.shape, "header: shape"));
  if (h.shape.family.empty() || h.shape.vocab < 1 || h.shape.vocab > INT32_MAX)
    return error(Code::kCorrupt, "header: shape: family is '{:.40}', vocab {}; expected a name, and 1 to {}",
                 escaped(h.shape.family), h.shape.vocab, INT32_MAX);
  h.identity.sender = h.sender.fingerprint;
  DS_TRY(check(h));

  DS_ASSIGN(const nlohmann::json* list, o.array("tensors"));
  const int64_t most = version == kPlainEntryVersion ? 2 * h.shape.layers : kMaxEntryTensors;
  if (list->empty() || list->size() > static_cast<size_t>(most))
    return error(Code::kCorrupt, "header: {} tensors listed, expected 1 to {}", list->size(), most);
  int64_t end = tensors_from;
  for (size_t i = 0; i < list->size(); ++i) {
    std::string where = fmt::format("header: tensor {}", i);
    DS_ASSIGN(EntryTensor t, parse_tensor((*list)[i], h.identity.tokens, version, where, live));
    where += " " + tensor_name(t.kind, t.layer, t.map);
    if (t.layer >= h.shape.layers) {
      return error(Code::kCorrupt, "{}: layer {} is not one of the model's {}", where, t.layer,
                   h.shape.layers);
    }
    if (!h.tensors.empty() && !laid_out_before(h.tensors.back(), t)) {
      const EntryTensor& before = h.tensors.back();
      return error(Code::kCorrupt,
                   "{}: stands after {}, expected E first, then KV, each by layer and map, and once", where,
                   tensor_name(before.kind, before.layer, before.map));
    }
    int64_t bytes = h.identity.tokens * h.row_bytes(t.kind);
    if (live) {
      t.bytes = bytes;
      h.tensors.push_back(std::move(t));
      continue;
    }
    if (t.bytes != bytes) {
      return error(Code::kCorrupt, "{}: {} bytes, expected {} for {} tokens of {}", where, t.bytes, bytes,
                   h.identity.tokens, h.row_bytes(t.kind));
    }
    if (t.offset % kEntryAlignment != 0 || t.offset < end) {
      return error(Code::kCorrupt, "{}: at byte {}, expected a multiple of {} from {} on", where, t.offset,
                   kEntryAlignment, end);
    }
    if (t.offset > object_size || t.bytes > object_size - t.offset) {
      return error(Code::kCorrupt, "{}: {} bytes at byte {} do not fit into the object's {}; it is truncated",
                   where, t.bytes, t.offset, object_size);
    }
    end = t.offset + t.bytes;
    h.tensors.push_back(t);
  }
  if (!live && object_size != end) {
    return error(Code::kCorrupt, "the object has {} bytes, expected {} as its header says", object_size, end);
  }
  return h;
}

}  // namespace

bool laid_out_before(const EntryTensor& a, const EntryTensor& b) {
  return std::tie(a.kind, a.layer, a.map) < std::tie(b.kind, b.layer, b.map);
}

Status check_published(const EntryHeader& h) {
  const EntryIdentity& identity = h.identity;
  DS_TRY(check_shape(h.shape, "publishing an entry: shape"));
  if (identity.tokens < 1 || identity.tokens > kMaxEntryTokens) {
    return error(Code::kInvalidArgument, "publishing an entry: {} tokens, expected 1 to {}", identity.tokens,
                 kMaxEntryTokens);
  }
  if (identity.first < 0 || identity.first > kMaxEntryTokens || identity.first % kChecksumRows != 0 ||
      (identity.first == 0) != identity.before.empty()) {
    return error(Code::kInvalidArgument,
                 "publishing an entry: its first token is {} and the hash of those before it '{:.100}'; "
                 "expected a multiple of {} up to {} with a hash, or 0 without",
                 identity.first, escaped(identity.before), kChecksumRows, kMaxEntryTokens);
  }
  if (!identity.names.empty() &&
      identity.names.size() != static_cast<size_t>(checksum_blocks(identity.tokens)))
    return error(Code::kInvalidArgument,
                 "publishing an entry: {} names for {} tokens, expected one for every {}, or none",
                 identity.names.size(), identity.tokens, kChecksumRows);
  if (identity.sender != h.sender.fingerprint) {
    return error(Code::kInvalidArgument,
                 "publishing an entry: the identity names sender '{}', the model is '{}'", identity.sender,
                 h.sender.fingerprint);
  }
  if (h.tensors.empty()) return error(Code::kInvalidArgument, "publishing an entry: no tensors were given");
  if (h.tensors.size() > static_cast<size_t>(kMaxEntryTensors))
    return error(Code::kInvalidArgument, "publishing an entry: {} tensors, expected at most {}",
                 h.tensors.size(), kMaxEntryTensors);
  const EntryTensor* last = nullptr;
  for (const EntryTensor& t : h.tensors) {
    const std::string name = tensor_name(t.kind, t.layer, t.map);
    if (!t.map.empty())
      DS_TRY(check_map(t.kind, t.map, Code::kInvalidArgument, "publishing an entry: " + name));
    if (t.layer < 0 || t.layer >= h.shape.layers) {
      return error(Code::kInvalidArgument, "publishing an entry: {} is not a layer of the model's {}", name,
                   h.shape.layers);
    }
    if (last != nullptr && !laid_out_before(*last, t))
      return error(Code::kInvalidArgument, "publishing an entry: {} was given twice", name);
    last = &t;
  }
  return ok_status();
}

Status check_named(const EntryHeader& h, const ObjectRef& found, const std::string& name,
                   const Shape& shape) {
  const auto& names = h.identity.names;
  const auto at = static_cast<size_t>(found.index);
  if (found.index < 0 || at >= names.size() || names[at] != name)
    return error(Code::kMismatch, "name {} is '{}' there, expected '{}'", found.index,
                 at < names.size() ? names[at] : "", name);
  return compare(h.shape, shape);
}

Result<EntryHeader> read_header(std::string bytes, int64_t size, const ReadHeader& read,
                                const std::string* signing, Signature signature,
                                const std::function<Status(EntryHeader&)>& check, bool live) {
  auto corrupt = []<typename... A>(fmt::format_string<A...> format, A&&... args) {
    return error(Code::kCorrupt, format, std::forward<A>(args)...);
  };
  const auto have = static_cast<int64_t>(bytes.size());
  if (have < kEntryPrefix + 8)
    return corrupt("it has {} bytes, fewer than the {} of the smallest header", size, kEntryPrefix + 8);
  const std::string_view magic = live ? kLiveMagic : kEntryMagic;
  if (!bytes.starts_with(magic)) {
    return corrupt("it begins with '{}', expected '{}'; {} bytes in all",
                   escaped(bytes.substr(0, magic.size())), magic, size);
  }
  uint32_t version = 0;
  uint64_t length = 0;
  std::memcpy(&version, bytes.data() + 8, sizeof version);
  std::memcpy(&length, bytes.data() + 12, sizeof length);
  if (length > static_cast<uint64_t>(kMaxEntryJson) ||
      static_cast<int64_t>(length) > size - kEntryPrefix - 8) {
    return corrupt("its header claims {} bytes, expected at most {}", length,
                   std::min(kMaxEntryJson, size - kEntryPrefix - 8));
  }
  int64_t checked = kEntryPrefix + static_cast<int64_t>(length);
  const int64_t head = std::min(size, checked + 8 + kMaxSignature);  // which may hold no signature
  if (head > have) {
    bytes.resize(static_cast<size_t>(head));
    DS_TRY(read(bytes, have));
  }
  uint64_t stored = 0;
  std::memcpy(&stored, bytes.data() + checked, sizeof stored);
  uint64_t found = checksum64(std::as_bytes(std::span(bytes)).first(static_cast<size_t>(checked)));
  if (found != stored) {
    return corrupt("its header is damaged: checksum {} of {} bytes, expected {}", hex64(found), checked,
                   hex64(stored));
  }
  if (version < kPlainEntryVersion || version > kEntryVersion) {
    return error(Code::kUnsupported,
                 "it has format version {}, this version reads {} to {}; publish it again", version,
                 kPlainEntryVersion, kEntryVersion);
  }
  // Before a word of it is believed.
  const auto signed_end = static_cast<size_t>(checked + 8);
  const bool right_one = signature == Signature::kOfStore;
  if (right_one && signing != nullptr) {
    const std::string right = header_signature(*signing, std::string_view(bytes).substr(0, signed_end));
    const std::string_view given = std::string_view(bytes).substr(signed_end, kMaxSignature);
    auto raw = [](std::string_view text) {
      return std::span(reinterpret_cast<const unsigned char*>(text.data()), text.size());
    };
    if (!same_secret(raw(given), raw(right)))
      return error(Code::kMismatch,
                   "it is not signed by the store's key, so nothing of it is used; publish it again with "
                   "that key");
  }
  auto header = parse_header(std::string_view(bytes).substr(kEntryPrefix, static_cast<size_t>(length)),
                             version, checked + 8, size, check, live);
  if (right_one && header.ok() && header->is_signed && signing == nullptr)
    return error(Code::kMismatch,
                 "it is signed, and its rows can be checked only with the store's key; give that key");
  if (right_one && header.ok() && header->is_signed != (signing != nullptr))
    return corrupt("its signature is right, but its header does not speak of one");
  // Ill-typed or absurd values are the entry's fault here, not the caller's.
  if (!header.ok() && header.status().code() == Code::kInvalidArgument)
    return Status(Code::kCorrupt, header.status().message());
  return header;
}

std::string entry_map(std::string_view maps_fingerprint, MapForm form) {
  return form == MapForm::kNone ? "" : fmt::format("{}/{}", maps_fingerprint, map_form_name(form));
}

std::string tensor_name(TensorKind kind, int64_t layer, std::string_view map) {
  std::string name = fmt::format("{}({})", payload_name(kind), layer);
  if (map.empty()) return name;
  if (!is_map(map)) return fmt::format("{} through '{:.100}'", name, escaped(map));
  return fmt::format("{} through the {} map of {:.12}", name, map.substr(kFingerprint + 1), map);
}

int64_t EntryHeader::row_bytes(TensorKind kind) const {
  return payload_row(kind, shape) * dtype_size(identity.dtype);
}

const EntryTensor* EntryHeader::find(TensorKind kind, int32_t layer, std::string_view map) const {
  for (const EntryTensor& t : tensors) {
    if (t.kind == kind && t.layer == layer && t.map == map) return &t;
  }
  return nullptr;
}

}  // namespace ds
