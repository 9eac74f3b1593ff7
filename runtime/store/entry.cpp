#include "runtime/store/entry.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstring>
#include <tuple>
#include <utility>

#include "runtime/store/entry_header_internal.h"
#include "runtime/store/live_entry.h"

namespace ds {
namespace {

constexpr int64_t kMaxFirstRead = 64 << 10;

static_assert(std::endian::native == std::endian::little,
              "entries are read and written as they lie in memory");

}  // namespace

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

namespace {

/// HMAC fills a key up with zeros, and hashes one that is longer than its block: a salt whose key would be
/// another one's as well is hashed first.
Hmac keyed_by(const std::string& salt) {
  constexpr size_t kBlock = 64;
  return Hmac(salt.size() <= kBlock && !salt.ends_with('\0') ? salt : sha256_hex("droidspeak salt\n" + salt));
}

}  // namespace

std::string tenant_tag(const std::string& salt) {
  return salt.empty() ? "" : keyed_by(salt).hex("droidspeak tenant", 8);
}

std::vector<std::string> block_names(const std::string& sender_fingerprint, std::span<const int32_t> tokens,
                                     int64_t first, const std::string& salt, DType dtype) {
  Hmac mac(keyed_by(salt).hex(fmt::format("droidspeak names\nsender {}:{}\ndtype {}\n",
                                          sender_fingerprint.size(), sender_fingerprint, dtype_name(dtype))));
  const auto n = static_cast<int64_t>(tokens.size());
  std::vector<std::string> names;
  ChainHash chain;
  for (int64_t end = first; end < n;) {
    end = std::min(end + kChecksumRows, n);
    names.push_back(mac.hex(chain.up_to(tokens, end), Store::kNameDigits / 2));
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
  return (tag.empty() ? "" : tag + "-") + keyed_by(salt).hex(identity_text(*this, ""));
}

std::string EntryIdentity::old_key() const {
  return sha256_hex(identity_text(*this, fmt::format("salt {}:{}\n", salt.size(), salt)));
}

Result<int64_t> write_entry(Store& store, const EntryIdentity& identity, const ModelIdentity& sender,
                            const Shape& shape, std::vector<EntrySource> sources) {
  EntryHeader h;
  h.identity = identity;
  h.sender = sender;
  h.shape = shape;
  const std::string* signing = store.signing().get();
  h.is_signed = signing != nullptr;
  std::sort(sources.begin(), sources.end(), [](const EntrySource& a, const EntrySource& b) {
    return std::tie(a.kind, a.layer, a.map) < std::tie(b.kind, b.layer, b.map);
  });
  for (const EntrySource& s : sources) h.tensors.push_back({.kind = s.kind, .layer = s.layer, .map = s.map});
  DS_TRY(check_published(h));
  BlockChecksum checksum(signing);
  for (size_t i = 0; i < sources.size(); ++i) {
    const EntrySource& s = sources[i];
    EntryTensor& t = h.tensors[i];
    t.bytes = identity.tokens * h.row_bytes(s.kind);
    if (static_cast<int64_t>(s.data.size()) != t.bytes) {
      return error(Code::kInvalidArgument, "publishing an entry: {} has {} bytes, expected {}",
                   tensor_name(s.kind, s.layer, s.map), s.data.size(), t.bytes);
    }
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
  for (int64_t start = kEntryAlignment;; start = align_entry(static_cast<int64_t>(header.size()))) {
    int64_t at = start;
    for (EntryTensor& t : h.tensors) {
      t.offset = at;
      at = align_entry(at + t.bytes);
    }
    header = header_bytes(h, signing);
    if (static_cast<int64_t>(header.size()) <= start) break;
  }
  if (static_cast<int64_t>(header.size()) > kEntryPrefix + kMaxEntryJson + 8 + kMaxSignature) {
    return error(Code::kInvalidArgument, "publishing an entry: its header would have {} bytes, more than {}",
                 header.size(), kMaxEntryJson);
  }

  int64_t written = 0;
  Status status = store.put(
      identity.key(),
      [&](const Store::Sink& sink) -> Status {
        static constexpr std::array<std::byte, kEntryAlignment> kZeros{};
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
  DS_ASSIGN(EntryReader reader,
            open_object(
                store, (*ref)->key, std::move(*object),
                [&](EntryHeader& header) { return compare(header, identity, shape); }, Signature::kOfStore));
  store.touch((*ref)->key);
  reader.header_.identity.salt = identity.salt;  // which is not in the header
  return reader;
}

Result<EntryReader> EntryReader::open_named(Store& store, const ObjectRef& found, const std::string& name,
                                            const Shape& shape) {
  DS_TRY(check_shape(shape, "opening an entry: shape"));
  auto object = store.open(found);
  if (!object.ok()) return object.status().with_context("opening a part of the sender's chain");
  auto reader = open_object(
      store, found.key, std::move(*object),
      [&](EntryHeader& header) -> Status { return check_named(header, found, name, shape); },
      Signature::kOfStore);
  if (reader.ok()) store.touch(found.key);
  return reader;
}

Result<EntryReader> EntryReader::open_live(Store& store, const ObjectRef& found, const std::string& name,
                                           const Shape& shape) {
  EntryReader reader;
  DS_ASSIGN(reader.live_, LiveEntry::open(store, found, name, shape));
  reader.where_ = fmt::format("live entry '{}' in '{}'", found.key, store.url());
  reader.header_ = reader.live_->header();
  reader.signing_ = reader.live_->signing();
  return reader;
}

bool EntryReader::ready(TensorKind kind, int32_t layer, int64_t rows, std::string_view map) const {
  const EntryTensor* tensor = header_.find(kind, layer, map);
  return live_ == nullptr || tensor == nullptr || live_->ready(index_of(tensor), rows);
}

void EntryReader::when_more(std::function<void()> tell) {
  if (live_ != nullptr) live_->when_more(std::move(tell));
}

uint64_t EntryReader::checksum(const EntryTensor& tensor, int64_t block) const {
  return live_ != nullptr ? live_->checksum(index_of(&tensor), block)
                          : tensor.checksums[static_cast<size_t>(block)];
}

Status EntryReader::read_bytes(const EntryTensor& tensor, int64_t at, std::span<std::byte> out,
                               const StoreObject::Arrived& arrived, const std::function<Status()>& go_on) {
  Status status = live_ != nullptr ? live_->read(index_of(&tensor), at, out, arrived, go_on)
                                   : object_->read_by_parts(tensor.offset + at, out, arrived);
  return status.ok() ? status : status.with_context(where_);
}

Result<EntryReader> EntryReader::open_any(Store& store, const std::string& key) {
  DS_ASSIGN(auto object, store.open(key));
  return open_object(
      store, key, std::move(object), [](EntryHeader&) { return ok_status(); }, Signature::kOfStore);
}

Result<std::vector<std::string>> entry_names(Store& store, const std::string& key) {
  DS_ASSIGN(auto object, store.open(key));
  DS_ASSIGN(EntryReader reader,
            EntryReader::open_object(
                store, key, std::move(object), [](EntryHeader&) { return ok_status(); }, Signature::kAny));
  return reader.header().identity.names;
}

Result<EntryReader> EntryReader::open_object(Store& store, const std::string& key,
                                             std::unique_ptr<StoreObject> object, const Check& check,
                                             Signature signature) {
  EntryReader reader;
  reader.where_ = fmt::format("entry '{}' in '{}'", key, store.url());
  reader.object_ = std::move(object);

  int64_t size = reader.object_->size();
  // Nearly every header fits the first read; it takes at most 1/256 of the object, but for small ones.
  int64_t have = std::min(size, std::clamp(align_entry(size / 256), kEntryAlignment, kMaxFirstRead));
  std::string bytes(static_cast<size_t>(have), '\0');
  auto read = [&](std::string& to, int64_t from) {
    return reader.object_->read(from,
                                std::as_writable_bytes(std::span(to)).subspan(static_cast<size_t>(from)));
  };
  if (Status s = read(bytes, 0); !s.ok()) return s.with_context(reader.where_);
  auto header = read_header(std::move(bytes), size, read, store.signing().get(), signature, check);
  if (!header.ok()) return header.status().with_context(reader.where_);
  if (signature == Signature::kOfStore) reader.signing_ = store.signing();
  reader.header_ = std::move(*header);
  return reader;
}

Status EntryReader::verify() {
  constexpr int64_t kMostBytes = 16 << 20;
  std::vector<std::byte> rows;
  Cursor cursor;
  const int64_t tokens = header_.identity.tokens;
  for (const EntryTensor& t : header_.tensors) {
    // What a header says of rows costs nothing in a file with holes.
    const int64_t row = header_.row_bytes(t.kind), most = std::max<int64_t>(1, kMostBytes / row);
    for (int64_t at = 0; at < tokens; at += most) {
      const int64_t count = std::min(most, tokens - at);
      rows.resize(static_cast<size_t>(count * row));
      DS_TRY(read_rows(cursor, t.kind, t.layer, at, count, rows.data(), {}, t.map));
    }
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
      const uint64_t expected = checksum(*tensor, block);
      if (cursor.checksum_->value() != expected) {
        return error(Code::kCorrupt, "{} is damaged: checksum {} of rows {} to {}, expected {}",
                     tensor_name(kind, layer, tensor->map), hex64(cursor.checksum_->value()),
                     block * kChecksumRows, block_end / row - 1, hex64(expected));
      }
    }
    return go_on ? go_on() : ok_status();
  };
  std::span<std::byte> target(out, static_cast<size_t>(rows * row));
  DS_TRY(read_bytes(*tensor, first * row, target, std::ref(arrived), go_on));
  if (first + rows == end_row_ && whole) {
    std::array<std::byte, 32 << 10> unused;
    while (at < block_end) {
      auto rest = std::span(unused).first(std::min(unused.size(), static_cast<size_t>(block_end - at)));
      DS_TRY(read_bytes(*tensor, at, rest, std::ref(arrived), go_on));
    }
  }
  if (whole) cursor.open_ = tensor;
  cursor.open_at_ = at;
  return ok_status();
}

}  // namespace ds
