#include "runtime/store/entry.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <charconv>
#include <cstring>
#include <tuple>
#include <utility>

#include "plans/traits.h"
#include "support/json.h"

namespace ds {
namespace {

static_assert(std::endian::native == std::endian::little,
              "entries are read and written as they lie in memory");

constexpr std::string_view kMagic = "DSENTRY1";
constexpr std::string_view kLayout = "token-major";
constexpr int64_t kAlignment = 4096;
constexpr int64_t kPrefix = 20;  // magic, version, length of the JSON
constexpr int64_t kMaxJson = int64_t{16} << 20;
constexpr int64_t kMaxSignature = Hmac::kBytes;
constexpr int64_t kMaxFirstRead = 64 << 10;
// Bounds that keep every product of sizes below 2^63: rows < 2^32 bytes, tensors < 2^62, and no more than
// kMaxTensors are laid out in sums that are checked one by one.
constexpr int64_t kMaxTensors = 1 << 17;
constexpr int64_t kMaxTokens = int64_t{1} << 30;
constexpr int64_t kMaxLayers = 1 << 16;
constexpr int64_t kMaxRow = 1 << 28;  // elements

int64_t align(int64_t at) { return (at + kAlignment - 1) / kAlignment * kAlignment; }

int64_t row_bytes_of(const Shape& shape, DType dtype, TensorKind kind) {
  return payload_row(kind, shape) * dtype_size(dtype);
}

bool laid_out_before(const EntryTensor& a, const EntryTensor& b) {
  return std::tie(a.kind, a.layer, a.map) < std::tie(b.kind, b.layer, b.map);
}

constexpr size_t kFingerprint = 64;

/// Is it a text that entry_map() makes of a form?
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

/// Of a tensor that has a map.
Status check_map(TensorKind kind, const std::string& map, Code code, const std::string& where) {
  if (kind == TensorKind::kE && is_map(map)) return ok_status();
  return error(code, "{}: 'map' is '{:.100}', expected {}", where, escaped(map),
               kind == TensorKind::kE ? "a fingerprint of 64 hexadecimal digits, '/' and a form of map"
                                      : "none: only E goes through maps");
}

std::string hex64(uint64_t v) { return fmt::format("{:016x}", v); }

int64_t checksum_blocks(int64_t tokens) { return (tokens + kChecksumRows - 1) / kChecksumRows; }

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

std::string header_json(const EntryHeader& h) {
  nlohmann::json j;  // its objects keep their keys sorted
  j["layout"] = kLayout;
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
    std::string digits;
    for (uint64_t checksum : t.checksums) digits += hex64(checksum);
    j["tensors"].push_back({{"kind", payload_name(t.kind)},
                            {"layer", t.layer},
                            {"offset", t.offset},
                            {"bytes", t.bytes},
                            {"checksums", digits}});
    if (!t.map.empty()) j["tensors"].back()["map"] = t.map;
  }
  // A folder's name need not be UTF-8; it is for people only.
  return j.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string header_signature(const std::string& signing, std::string_view bytes) {
  Hmac mac(Hmac(signing).hex("droidspeak entry's header"));
  mac.update(bytes);
  const auto value = mac.value();
  return {reinterpret_cast<const char*>(value.data()), value.size()};
}

/// All bytes before the first tensor but for the zeros: prefix, JSON, checksum, signature.
std::string header_bytes(const EntryHeader& h, const std::string* signing) {
  std::string json = header_json(h), bytes(kMagic);
  auto put = [&](const auto& v) { bytes.append(reinterpret_cast<const char*>(&v), sizeof v); };
  const bool mapped = std::any_of(h.tensors.begin(), h.tensors.end(), [](auto& t) { return !t.map.empty(); });
  put(!h.identity.names.empty() || h.is_signed ? kEntryVersion
      : h.identity.first > 0                   ? kChainedEntryVersion
      : mapped                                 ? kMappedEntryVersion
                                               : kPlainEntryVersion);
  put(static_cast<uint64_t>(json.size()));
  bytes += json;
  put(checksum64(std::as_bytes(std::span(bytes.data(), bytes.size()))));
  if (signing != nullptr) bytes += header_signature(*signing, bytes);
  return bytes;
}

template <typename T>
Status expect_field(std::string_view field, const T& found, const T& expected) {
  if (found == expected) return ok_status();
  return error(Code::kMismatch, "{} is '{}' there, expected '{}'", field, found, expected);
}

Result<EntryTensor> parse_tensor(const nlohmann::json& item, int64_t tokens, uint32_t version,
                                 const std::string& where) {
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
  DS_ASSIGN(t.offset, o.integer("offset", 0, INT64_MAX / 2));
  DS_ASSIGN(t.bytes, o.integer("bytes", 1, INT64_MAX / 2));
  if (item.contains("map")) {
    if (version == kPlainEntryVersion)
      return error(Code::kCorrupt, "{}: it has a 'map', which version {} does not", where, version);
    DS_ASSIGN(t.map, o.string("map"));
    DS_TRY(check_map(t.kind, t.map, Code::kCorrupt, where));
  }
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
                                 int64_t object_size, const std::function<Status(EntryHeader&)>& check) {
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
  DS_ASSIGN(h.identity.tokens, context.integer("tokens", 1, kMaxTokens));
  DS_ASSIGN(h.identity.tokens_hash, context.string("tokens_sha256"));
  const bool newest = version >= kEntryVersion;
  const nlohmann::json& fields = json["context"];
  if (version == kChainedEntryVersion || (newest && fields.contains("first"))) {
    DS_ASSIGN(h.identity.first, context.integer("first", kChecksumRows, kMaxTokens));
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
  const int64_t most = version == kPlainEntryVersion ? 2 * h.shape.layers : kMaxTensors;
  if (list->empty() || list->size() > static_cast<size_t>(most))
    return error(Code::kCorrupt, "header: {} tensors listed, expected 1 to {}", list->size(), most);
  int64_t end = tensors_from;
  for (size_t i = 0; i < list->size(); ++i) {
    std::string where = fmt::format("header: tensor {}", i);
    DS_ASSIGN(EntryTensor t, parse_tensor((*list)[i], h.identity.tokens, version, where));
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
    if (t.bytes != bytes) {
      return error(Code::kCorrupt, "{}: {} bytes, expected {} for {} tokens of {}", where, t.bytes, bytes,
                   h.identity.tokens, h.row_bytes(t.kind));
    }
    if (t.offset % kAlignment != 0 || t.offset < end) {
      return error(Code::kCorrupt, "{}: at byte {}, expected a multiple of {} from {} on", where, t.offset,
                   kAlignment, end);
    }
    if (t.offset > object_size || t.bytes > object_size - t.offset) {
      return error(Code::kCorrupt, "{}: {} bytes at byte {} do not fit into the object's {}; it is truncated",
                   where, t.bytes, t.offset, object_size);
    }
    end = t.offset + t.bytes;
    h.tensors.push_back(t);
  }
  if (object_size != end) {
    return error(Code::kCorrupt, "the object has {} bytes, expected {} as its header says", object_size, end);
  }
  return h;
}

}  // namespace

std::string entry_map(std::string_view maps_fingerprint, MapForm form) {
  return form == MapForm::kNone ? "" : fmt::format("{}/{}", maps_fingerprint, map_form_name(form));
}

std::string tensor_name(TensorKind kind, int64_t layer, std::string_view map) {
  std::string name = fmt::format("{}({})", payload_name(kind), layer);
  if (map.empty()) return name;
  if (!is_map(map)) return fmt::format("{} through '{:.100}'", name, escaped(map));
  return fmt::format("{} through the {} map of {:.12}", name, map.substr(kFingerprint + 1), map);
}

std::string hash_tokens(std::span<const int32_t> ids) { return sha256_hex(std::as_bytes(ids)); }

const std::string& ChainHash::up_to(std::span<const int32_t> ids, int64_t count) {
  for (; done_ < count; done_ = std::min(done_ + kChecksumRows, count)) {
    auto block =
        ids.subspan(static_cast<size_t>(done_), static_cast<size_t>(std::min(kChecksumRows, count - done_)));
    std::string bytes = hash_;
    bytes.append(reinterpret_cast<const char*>(block.data()), block.size_bytes());
    hash_ = sha256_hex(bytes);
  }
  return hash_;
}

std::string chain_hash(std::span<const int32_t> ids) {
  return ChainHash().up_to(ids, static_cast<int64_t>(ids.size()));
}

EntryIdentity entry_identity(const std::string& sender_fingerprint, std::span<const int32_t> tokens,
                             int64_t first, const std::string& salt, DType dtype) {
  const auto at = static_cast<size_t>(first);
  return {sender_fingerprint,
          hash_tokens(tokens.subspan(at)),
          salt,
          static_cast<int64_t>(tokens.size()) - first,
          dtype,
          first,
          chain_hash(tokens.first(at)),
          block_names(sender_fingerprint, tokens, first, salt, dtype)};
}

std::string tenant_tag(const std::string& salt) {
  return salt.empty() ? "" : Hmac(salt).hex("droidspeak tenant", 8);
}

std::vector<std::string> block_names(const std::string& sender_fingerprint, std::span<const int32_t> tokens,
                                     int64_t first, const std::string& salt, DType dtype) {
  Hmac mac(Hmac(salt).hex(fmt::format("droidspeak names\nsender {}:{}\ndtype {}\n", sender_fingerprint.size(),
                                      sender_fingerprint, dtype_name(dtype))));
  const auto n = static_cast<int64_t>(tokens.size());
  std::vector<std::string> names;
  ChainHash chain;
  for (int64_t end = first; end < n;) {
    end = std::min(end + kChecksumRows, n);
    names.push_back(mac.hex(chain.up_to(tokens, end), kNameDigits / 2));
  }
  return names;
}

namespace {

/// Lengths in front, so that no two identities have the same text.
std::string identity_text(const EntryIdentity& i, const std::string& salt) {
  std::string text =
      fmt::format("droidspeak entry\nsender {}:{}\ntokens {} {}:{}\n{}dtype {}\n", i.sender.size(), i.sender,
                  i.tokens, i.tokens_hash.size(), i.tokens_hash, salt, dtype_name(i.dtype));
  if (i.first > 0) text += fmt::format("after {} {}:{}\n", i.first, i.before.size(), i.before);
  return text;
}

}  // namespace

std::string EntryIdentity::key() const {
  const std::string tag = tenant_tag(salt);
  return (tag.empty() ? "" : tag + "-") + Hmac(salt).hex(identity_text(*this, ""));
}

std::string EntryIdentity::old_key() const {
  return sha256_hex(identity_text(*this, fmt::format("salt {}:{}\n", salt.size(), salt)));
}

int64_t EntryHeader::row_bytes(TensorKind kind) const { return row_bytes_of(shape, identity.dtype, kind); }

const EntryTensor* EntryHeader::find(TensorKind kind, int32_t layer, std::string_view map) const {
  for (const EntryTensor& t : tensors) {
    if (t.kind == kind && t.layer == layer && t.map == map) return &t;
  }
  return nullptr;
}

Result<int64_t> write_entry(Store& store, const EntryIdentity& identity, const ModelIdentity& sender,
                            const Shape& shape, std::vector<EntrySource> sources) {
  EntryHeader h;
  h.identity = identity;
  h.sender = sender;
  h.shape = shape;
  DS_TRY(check_shape(shape, "publishing an entry: shape"));
  if (identity.tokens < 1 || identity.tokens > kMaxTokens) {
    return error(Code::kInvalidArgument, "publishing an entry: {} tokens, expected 1 to {}", identity.tokens,
                 kMaxTokens);
  }
  if (identity.first < 0 || identity.first > kMaxTokens || identity.first % kChecksumRows != 0 ||
      (identity.first == 0) != identity.before.empty()) {
    return error(Code::kInvalidArgument,
                 "publishing an entry: its first token is {} and the hash of those before it '{:.100}'; "
                 "expected a multiple of {} up to {} with a hash, or 0 without",
                 identity.first, escaped(identity.before), kChecksumRows, kMaxTokens);
  }
  if (!identity.names.empty() &&
      identity.names.size() != static_cast<size_t>(checksum_blocks(identity.tokens)))
    return error(Code::kInvalidArgument,
                 "publishing an entry: {} names for {} tokens, expected one for every {}, or none",
                 identity.names.size(), identity.tokens, kChecksumRows);
  const std::string* signing = store.signing().get();
  h.is_signed = signing != nullptr;
  BlockChecksum checksum(signing);
  if (identity.sender != sender.fingerprint) {
    return error(Code::kInvalidArgument,
                 "publishing an entry: the identity names sender '{}', the model is '{}'", identity.sender,
                 sender.fingerprint);
  }
  if (sources.empty()) return error(Code::kInvalidArgument, "publishing an entry: no tensors were given");
  std::sort(sources.begin(), sources.end(), [](const EntrySource& a, const EntrySource& b) {
    return std::tie(a.kind, a.layer, a.map) < std::tie(b.kind, b.layer, b.map);
  });
  if (sources.size() > static_cast<size_t>(kMaxTensors))
    return error(Code::kInvalidArgument, "publishing an entry: {} tensors, expected at most {}",
                 sources.size(), kMaxTensors);
  for (const EntrySource& s : sources) {
    std::string name = tensor_name(s.kind, s.layer, s.map);
    if (!s.map.empty())
      DS_TRY(check_map(s.kind, s.map, Code::kInvalidArgument, "publishing an entry: " + name));
    if (s.layer < 0 || s.layer >= shape.layers) {
      return error(Code::kInvalidArgument, "publishing an entry: {} is not a layer of the model's {}", name,
                   shape.layers);
    }
    if (const EntryTensor* last = h.tensors.empty() ? nullptr : &h.tensors.back();
        last != nullptr && last->kind == s.kind && last->layer == s.layer && last->map == s.map) {
      return error(Code::kInvalidArgument, "publishing an entry: {} was given twice", name);
    }
    int64_t bytes = identity.tokens * h.row_bytes(s.kind);
    if (static_cast<int64_t>(s.data.size()) != bytes) {
      return error(Code::kInvalidArgument, "publishing an entry: {} has {} bytes, expected {}", name,
                   s.data.size(), bytes);
    }
    EntryTensor& t = h.tensors.emplace_back(EntryTensor{s.kind, s.layer, 0, bytes, {}, s.map});
    const auto block = static_cast<size_t>(kChecksumRows * h.row_bytes(s.kind));
    for (size_t at = 0; at < s.data.size(); at += block) {
      checksum.reset();
      checksum.update(s.data.subspan(at, std::min(block, s.data.size() - at)));
      t.checksums.push_back(checksum.value());
    }
  }

  // Offsets depend on the length of the header, which depends on the digits of the offsets: lay out from a
  // guess and again until it fits. A larger start never makes offsets smaller, so this ends.
  std::string header;
  for (int64_t start = kAlignment;; start = align(static_cast<int64_t>(header.size()))) {
    int64_t at = start;
    for (EntryTensor& t : h.tensors) {
      t.offset = at;
      at = align(at + t.bytes);
    }
    header = header_bytes(h, signing);
    if (static_cast<int64_t>(header.size()) <= start) break;
  }
  if (static_cast<int64_t>(header.size()) > kPrefix + kMaxJson + 8 + kMaxSignature) {
    return error(Code::kInvalidArgument, "publishing an entry: its header would have {} bytes, more than {}",
                 header.size(), kMaxJson);
  }

  int64_t written = 0;
  Status status = store.put(
      identity.key(),
      [&](const Store::Sink& sink) -> Status {
        static constexpr std::array<std::byte, kAlignment> kZeros{};
        auto append = [&](std::span<const std::byte> bytes) {
          written += static_cast<int64_t>(bytes.size());
          return sink(bytes);
        };
        DS_TRY(append(std::as_bytes(std::span(header.data(), header.size()))));
        for (size_t i = 0; i < sources.size(); ++i) {
          DS_TRY(append(std::span(kZeros).first(static_cast<size_t>(h.tensors[i].offset - written))));
          DS_TRY(append(sources[i].data));
        }
        return ok_status();
      },
      identity.names);
  if (!status.ok()) return status.with_context(fmt::format("publishing an entry to '{}'", store.url()));
  return written;
}

BlockChecksum::BlockChecksum(const std::string* signing) {
  if (signing != nullptr) keyed_.emplace(Hmac(*signing).hex("droidspeak entry's rows"));
}

void BlockChecksum::reset() { keyed_ ? keyed_->reset() : plain_.reset(); }

void BlockChecksum::update(std::span<const std::byte> bytes) {
  keyed_ ? keyed_->update(bytes) : plain_.update(bytes);
}

uint64_t BlockChecksum::value() {
  if (!keyed_) return plain_.value();
  const auto bytes = keyed_->value();
  uint64_t first = 0;
  std::memcpy(&first, bytes.data(), sizeof first);
  return first;
}

Result<EntryReader> EntryReader::open(Store& store, const EntryIdentity& identity, const Shape& shape) {
  DS_TRY(check_shape(shape, "opening an entry: shape"));
  const std::string keys[] = {identity.key(), identity.old_key()};
  constexpr std::string_view kLooking = "looking for the sender's entry";
  auto found = store.find(keys, {});
  if (!found.ok()) return found.status().with_context(kLooking);
  const auto ref =
      std::find_if(found->keys.begin(), found->keys.end(), [](auto& r) { return r.has_value(); });
  if (ref == found->keys.end())
    return error(Code::kNotFound, "{}: no object '{}' in store '{}'", kLooking, keys[0], store.url());
  auto object = store.open(**ref);
  if (!object.ok()) return object.status().with_context(kLooking);
  DS_ASSIGN(EntryReader reader, open_object(store, (*ref)->key, std::move(*object), [&](EntryHeader& header) {
              return compare(header, identity, shape);
            }));
  store.touch((*ref)->key);
  reader.header_.identity.salt = identity.salt;  // which is not in the header
  return reader;
}

Result<EntryReader> EntryReader::open_named(Store& store, const ObjectRef& found, const std::string& name,
                                            const Shape& shape) {
  DS_TRY(check_shape(shape, "opening an entry: shape"));
  auto object = store.open(found);
  if (!object.ok()) return object.status().with_context("opening a part of the sender's chain");
  auto reader = open_object(store, found.key, std::move(*object), [&](EntryHeader& header) -> Status {
    const auto& names = header.identity.names;
    const auto at = static_cast<size_t>(found.index);
    if (found.index < 0 || at >= names.size() || names[at] != name)
      return error(Code::kMismatch, "name {} is '{}' there, expected '{}'", found.index,
                   at < names.size() ? names[at] : "", name);
    return compare(header.shape, shape);
  });
  if (reader.ok()) store.touch(found.key);
  return reader;
}

Result<EntryReader> EntryReader::open_any(Store& store, const std::string& key) {
  DS_ASSIGN(auto object, store.open(key));
  return open_object(store, key, std::move(object), [](EntryHeader&) { return ok_status(); });
}

Result<std::vector<std::string>> entry_names(Store& store, const std::string& key) {
  DS_ASSIGN(auto object, store.open(key));
  DS_ASSIGN(EntryReader reader, EntryReader::open_object(
                                    store, key, std::move(object), [](EntryHeader&) { return ok_status(); },
                                    EntryReader::Signature::kAny));
  return reader.header().identity.names;
}

Result<EntryReader> EntryReader::open_object(Store& store, const std::string& key,
                                             std::unique_ptr<StoreObject> object, const Check& check,
                                             Signature signature) {
  EntryReader reader;
  reader.where_ = fmt::format("entry '{}' in '{}'", key, store.url());
  auto corrupt = [&]<typename... A>(fmt::format_string<A...> format, A&&... args) {
    return error(Code::kCorrupt, "{}: {}", reader.where_, fmt::format(format, std::forward<A>(args)...));
  };
  reader.object_ = std::move(object);

  int64_t size = reader.object_->size();
  if (size < kPrefix + 8) {
    return corrupt("it has {} bytes, fewer than the {} of the smallest header", size, kPrefix + 8);
  }
  // Nearly every header fits the first read; it takes at most 1/256 of the object, but for small ones.
  int64_t have = std::min(size, std::clamp(align(size / 256), kAlignment, kMaxFirstRead));
  std::string bytes(static_cast<size_t>(have), '\0');
  auto read = [&](int64_t from) {
    return reader.object_->read(from,
                                std::as_writable_bytes(std::span(bytes)).subspan(static_cast<size_t>(from)));
  };
  if (Status s = read(0); !s.ok()) return s.with_context(reader.where_);
  if (!bytes.starts_with(kMagic)) {
    return corrupt("it begins with '{}', expected '{}'; {} bytes in all",
                   escaped(bytes.substr(0, kMagic.size())), kMagic, size);
  }
  uint32_t version = 0;
  uint64_t length = 0;
  std::memcpy(&version, bytes.data() + 8, sizeof version);
  std::memcpy(&length, bytes.data() + 12, sizeof length);
  if (length > static_cast<uint64_t>(kMaxJson) || static_cast<int64_t>(length) > size - kPrefix - 8) {
    return corrupt("its header claims {} bytes, expected at most {}", length,
                   std::min(kMaxJson, size - kPrefix - 8));
  }
  int64_t checked = kPrefix + static_cast<int64_t>(length);
  const int64_t head = std::min(size, checked + 8 + kMaxSignature);  // which may hold no signature
  if (head > have) {
    bytes.resize(static_cast<size_t>(head));
    if (Status s = read(have); !s.ok()) return s.with_context(reader.where_);
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
                 "{}: it has format version {}, this version reads {} to {}; publish it again", reader.where_,
                 version, kPlainEntryVersion, kEntryVersion);
  }
  // Before a word of it is believed.
  const std::string* signing = store.signing().get();
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
                   "{}: it is not signed by the store's key, so nothing of it is used; publish it again with "
                   "that key",
                   reader.where_);
    reader.signing_ = store.signing();
  }
  auto header = parse_header(std::string_view(bytes).substr(kPrefix, static_cast<size_t>(length)), version,
                             checked + 8, size, check);
  if (right_one && header.ok() && header->is_signed && signing == nullptr)
    return error(Code::kMismatch,
                 "{}: it is signed, and its rows can be checked only with the store's key; give that key",
                 reader.where_);
  if (right_one && header.ok() && header->is_signed != (signing != nullptr))
    return corrupt("its signature is right, but its header does not speak of one");
  if (!header.ok()) {
    // Ill-typed or absurd values are the entry's fault here, not the caller's.
    Code code = header.status().code() == Code::kInvalidArgument ? Code::kCorrupt : header.status().code();
    return Status(code, header.status().message()).with_context(reader.where_);
  }
  reader.header_ = std::move(*header);
  return reader;
}

Status EntryReader::verify() {
  constexpr int64_t kRows = 16 * kChecksumRows;
  std::vector<std::byte> rows;
  Cursor cursor;
  const int64_t tokens = header_.identity.tokens;
  for (const EntryTensor& t : header_.tensors)
    for (int64_t at = 0; at < tokens; at += kRows) {
      const int64_t count = std::min(kRows, tokens - at);
      rows.resize(static_cast<size_t>(count * header_.row_bytes(t.kind)));
      DS_TRY(read_rows(cursor, t.kind, t.layer, at, count, rows.data(), {}, t.map));
    }
  return ok_status();
}

Status EntryReader::has(TensorKind kind, int32_t layer, std::string_view map) const {
  if (header_.find(kind, layer, map) != nullptr) return ok_status();
  return error(Code::kNotFound, "{}: it has no {}; publish it again with the plan that asks for it{}", where_,
               tensor_name(kind, layer, map), map.empty() ? "" : " and that plan's file of maps");
}

Status EntryReader::read_rows(Cursor& cursor, TensorKind kind, int32_t layer, int64_t first, int64_t rows,
                              std::byte* out, const std::function<Status()>& go_on, std::string_view map) {
  DS_TRY(has(kind, layer, map));
  const EntryTensor* tensor = header_.find(kind, layer, map);
  int64_t tokens = header_.identity.tokens, row = header_.row_bytes(kind);
  if (first < 0 || rows < 0 || first > tokens || rows > tokens - first) {
    return error(Code::kInvalidArgument, "{}: {} rows from row {} on of {} were asked for, it has {} rows",
                 where_, rows, first, tensor_name(kind, layer, map), tokens);
  }
  if (rows == 0) return ok_status();
  if (go_on) DS_TRY(go_on());
  if (!cursor.checksum_) cursor.checksum_.emplace(signing_.get());
  // Blocks are hashed as they pass; rows in front of the first whole one are only copied.
  const int64_t block_bytes = kChecksumRows * row;
  int64_t at = first * row, block_end = (at + block_bytes - 1) / block_bytes * block_bytes;
  bool whole = std::exchange(cursor.open_, nullptr) == tensor &&
               cursor.open_at_ == at;  // the block at `at` from its beginning
  block_end = std::min(block_end, tensor->bytes);
  auto arrived = [&](std::span<const std::byte> part) -> Status {
    std::atomic_ref(bytes_read_) += static_cast<int64_t>(part.size());
    while (!part.empty()) {
      if (at == block_end) {
        block_end = std::min(at + block_bytes, tensor->bytes);
        whole = true;
        cursor.checksum_->reset();
      }
      auto piece = part.first(std::min(part.size(), static_cast<size_t>(block_end - at)));
      if (whole) cursor.checksum_->update(piece);
      at += static_cast<int64_t>(piece.size());
      part = part.subspan(piece.size());
      if (at < block_end || !whole) continue;
      int64_t block = (block_end - 1) / block_bytes;
      uint64_t expected = tensor->checksums[static_cast<size_t>(block)];
      if (cursor.checksum_->value() != expected) {
        return error(Code::kCorrupt, "{} is damaged: checksum {} of rows {} to {}, expected {}",
                     tensor_name(kind, layer, tensor->map), hex64(cursor.checksum_->value()),
                     block * kChecksumRows, block_end / row - 1, hex64(expected));
      }
    }
    return go_on ? go_on() : ok_status();
  };
  std::span<std::byte> target(out, static_cast<size_t>(rows * row));
  if (Status s = object_->read_by_parts(tensor->offset + first * row, target, std::ref(arrived)); !s.ok())
    return s.with_context(where_);
  if (first + rows == end_row_ && whole) {
    std::array<std::byte, 32 << 10> unused;
    while (at < block_end) {
      auto rest = std::span(unused).first(std::min(unused.size(), static_cast<size_t>(block_end - at)));
      if (Status s = object_->read_by_parts(tensor->offset + at, rest, std::ref(arrived)); !s.ok())
        return s.with_context(where_);
    }
  }
  if (whole) cursor.open_ = tensor;
  cursor.open_at_ = at;
  return ok_status();
}

}  // namespace ds
