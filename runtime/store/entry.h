// An entry: what one sender computed for one context, as one immutable object.
//
// Layout (little-endian; a byte with no meaning is zero and is not looked at when reading):
//     0   magic "DSENTRY1"
//     8   u32 version: 2; 3 where a tensor has been mapped; 4 where it goes on from what lies before it; 5
//         where it has names
//    12   u64 length of the JSON header, at most 16 MiB
//    20   JSON header, keys sorted: context, layout, sender, shape, tensors
//   20+L  u64 XXH3 of bytes 0 to 20+L
//         where it is signed: HMAC-SHA256 of bytes 0 to 28+L by the store's key (Store::set_signing)
//         zeros up to a multiple of 4096
//         tensors in plan order, E first, then K and V, each by layer (E of one layer by map, the plain one
//         first) and each at a multiple of 4096; zeros between them, none behind the last
// These rules up to the header's checksum hold for every version. Every 64 rows of a tensor have an XXH3 of
// their own in the header (16 hexadecimal digits each, in one text), so that a flipped bit in any byte with a
// meaning is noticed before a kernel reads it, whichever chunks are read in whichever order.
//
// A tensor of the header's list: kind, layer, offset, bytes, checksums; and, where the sender has taken its
// hidden states through a map of an aligned cut (runtime/model/maps.h) first, map: which one. Such E is
// another tensor than the plain one of its layer: an entry may hold both, and E for several receivers.
//
// Names (from version 5 on): one for each block of kChecksumRows tokens that the entry has rows of, the last
// one may be shorter; a keyed hash of all tokens up to the block's end (block_names()). With them a request
// finds entries that agree with a part of its tokens only. Instead of the salt's hash the header then has the
// tenant's tag, and "signed" where it is: checksums are the first 64 bits of an HMAC-SHA256 of the rows by
// the store's key then, since XXH3 is no obstacle for who wants rows of his own to have the right one.
//
// E of a layer: [n][d_model]; KV of a layer: [n][2][kv_heads][head_dim], K after RoPE, then V. Token-major,
// so that a chunk of tokens is one byte range.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "plans/plan.h"
#include "runtime/store/store.h"
#include "support/dtype.h"
#include "support/hash.h"
#include "support/status.h"

namespace ds {

inline constexpr uint32_t kEntryVersion = 5;         // newest that is read: an entry with names
inline constexpr uint32_t kChainedEntryVersion = 4;  // written where it goes on and has no names
inline constexpr uint32_t kMappedEntryVersion = 3;   // written where a tensor has been mapped
inline constexpr uint32_t kPlainEntryVersion = 2;    // oldest; still written where neither is so

/// Rows under one checksum. Chunks of a context begin at multiples of it (chunk_begin).
inline constexpr int64_t kChecksumRows = 64;

/// What an entry is for. All of it is in the key and again in the header (the salt as its SHA-256).
struct EntryIdentity {
  std::string sender;       // ModelIdentity::fingerprint
  std::string tokens_hash;  // SHA-256 of the token ids that it has rows of (little-endian int32)
  std::string salt;         // tenant salt, any bytes, may be empty
  int64_t tokens = 0;       // rows
  DType dtype = DType::kBF16;
  // An entry may go on from what the sender had read before (positions are absolute: its first row is token
  // `first`, K has been turned to there). 0 and "": it begins with the context.
  int64_t first = 0;                    // a multiple of kChecksumRows
  std::string before = {};              // chain_hash() of the tokens in front of it
  std::vector<std::string> names = {};  // of its blocks; none: it is found by its key only
  /// The tenant's tag, '-', and a hexadecimal HMAC-SHA256 under the salt of all of the above but the names.
  std::string key() const;
  /// What versions before 5 had: a SHA-256, the salt being a part of what is hashed.
  std::string old_key() const;
};

/// What names a tenant in keys and headers: a keyed hash of 16 digits, "" of who has no salt.
std::string tenant_tag(const std::string& salt);
std::string hash_tokens(std::span<const int32_t> ids);

/// Names a run of tokens so that a longer one is hashed from where a shorter one ended: hash of the hash of
/// all before and of kChecksumRows tokens (the last time: of those that are left). "" of none.
class ChainHash {
 public:
  /// Of the first `count` of `ids`, which go on from those of the last call: `count` is no less than there,
  /// and both are multiples of kChecksumRows but for the last call's.
  const std::string& up_to(std::span<const int32_t> ids, int64_t count);

 private:
  int64_t done_ = 0;
  std::string hash_;
};
std::string chain_hash(std::span<const int32_t> ids);

/// The names of a sender's rows of `tokens`: one for each block of kChecksumRows tokens from token `first` on
/// (a multiple of it), the last one may be shorter. Who does not know the salt can neither make nor guess
/// one.
std::vector<std::string> block_names(const std::string& sender_fingerprint, std::span<const int32_t> tokens,
                                     int64_t first, const std::string& salt, DType dtype);

/// Of the entry that a sender publishes once it has read `tokens`, of those from token `first` on.
EntryIdentity entry_identity(const std::string& sender_fingerprint, std::span<const int32_t> tokens,
                             int64_t first, const std::string& salt, DType dtype);

/// An entry has a tensor for each layer of a payload that plans send; its name there is payload_name().
using TensorKind = Payload;

/// How an entry names the map that E went through: MapSet's fingerprint "/" the form; "" without a form.
std::string entry_map(std::string_view maps_fingerprint, MapForm form);
/// "e(3)", "e(3) through the full map of 0123456789ab", for messages.
std::string tensor_name(TensorKind kind, int64_t layer, std::string_view map = {});

struct EntryTensor {
  TensorKind kind = TensorKind::kKv;
  int32_t layer = 0;
  int64_t offset = 0;               // in the object, multiple of 4096
  int64_t bytes = 0;                // tokens * row_bytes
  std::vector<uint64_t> checksums;  // XXH3-64, one for every kChecksumRows rows
  std::string map;                  // entry_map(); "": as the sender has it
};

struct EntryHeader {
  EntryIdentity identity;
  ModelIdentity sender;  // for people: which model
  Shape shape;           // the sender's
  std::string tenant;    // tenant_tag(); before version 5 the salt's SHA-256
  bool is_signed = false;
  std::vector<EntryTensor> tensors;  // E first, then KV, each by layer and map
  int64_t row_bytes(TensorKind kind) const;
  const EntryTensor* find(TensorKind kind, int32_t layer,
                          std::string_view map = {}) const;  // nullptr: not in this entry
};

/// One tensor to publish; `data` holds tokens * row_bytes bytes.
struct EntrySource {
  TensorKind kind = TensorKind::kKv;
  int32_t layer = 0;
  std::span<const std::byte> data;
  std::string map = {};  // entry_map(), of E only
};

/// Writes an entry atomically (E first, then KV by layer, whatever the order given). Returns its size in
/// bytes. Errors: kInvalidArgument (no tensors, one twice, a layer outside the shape, a wrong size, a map
/// that is none, a first token that is no multiple of kChecksumRows or without a hash of those before it),
/// and those of Store::put.
Result<int64_t> write_entry(Store& store, const EntryIdentity& identity, const ModelIdentity& sender,
                            const Shape& shape, std::vector<EntrySource> tensors);

/// What stands for a block of rows in a header: an XXH3-64, or with a store's key the first 64 bits of an
/// HMAC-SHA256.
class BlockChecksum {
 public:
  explicit BlockChecksum(const std::string* signing = nullptr);
  void reset();
  void update(std::span<const std::byte> bytes);
  uint64_t value();

 private:
  StreamingChecksum plain_;
  std::optional<Hmac> keyed_;
};

class LiveEntry;
enum class Signature : uint8_t;  // whether a header must be signed as the store wants it

/// An open entry. Every fault is a Status that names what was found and expected; the caller counts it as a
/// miss.
class EntryReader {
 public:
  /// Looks the entry up, in one look-up and one read (two for a header that is long beside its tensors), and
  /// checks all of its header and its size. kNotFound; kCorrupt; kMismatch: it is for something other than
  /// `identity` or `shape` (whose family and vocabulary may be others), the message names the field;
  /// kUnsupported: written by a newer version; kIo.
  ///
  /// Of a store whose entries are signed (Store::set_signing), kMismatch is also: not signed, or by another
  /// key.
  static Result<EntryReader> open(Store& store, const EntryIdentity& identity, const Shape& shape);

  /// Opens what Store::find() has found by a name, in one read as above. What it is for is known only as far
  /// as `name`, the one that was asked for, says it, which covers sender, tenant, element type and all tokens
  /// up to its block's end; so kMismatch is: that is not its name, or another shape.
  static Result<EntryReader> open_named(Store& store, const ObjectRef& found, const std::string& name,
                                        const Shape& shape);
  /// Follows what Store::find_live() has found by a name: an entry whose sender is still computing it. Reads
  /// wait for the rows that they ask for; kNotFound: the sender has died; kExhausted: it is silent
  /// (runtime/store/live_entry.h). Errors as open_named().
  static Result<EntryReader> open_live(Store& store, const ObjectRef& found, const std::string& name,
                                       const Shape& shape);
  bool live() const { return live_ != nullptr; }
  /// Whether the first `rows` rows of a tensor can be read without waiting for the sender.
  bool ready(TensorKind kind, int32_t layer, int64_t rows, std::string_view map = {}) const;
  /// Has `tell` called, by another thread, whenever ready() may say something else; until the next call.
  void when_more(std::function<void()> tell);

  /// Opens an entry whatever it is for, to look at it.
  static Result<EntryReader> open_any(Store& store, const std::string& key);

  const EntryHeader& header() const { return header_; }
  /// kNotFound: the entry has no such tensor.
  Status has(TensorKind kind, int32_t layer, std::string_view map = {}) const;
  /// Reads and verifies every row. Errors as read_rows().
  Status verify();
  /// Rows [first, first + rows) of a tensor into `out`. Every block of kChecksumRows rows that lies in them
  /// whole (the last one of a tensor may be shorter) is verified as it arrives: kCorrupt. kNotFound: the
  /// entry has no such tensor. kInvalidArgument: no such rows. Allocates nothing when it succeeds. One thread
  /// at a time; several, where each has a cursor of its own.
  ///
  /// `go_on`, where given, is asked before the read and after each of its parts (256 KiB of a file, 4 ms of a
  /// shaped link); its failure ends the read, which returns it. `map`: which E of the layer is meant.
  Status read_rows(TensorKind kind, int32_t layer, int64_t first, int64_t rows, std::byte* out,
                   const std::function<Status()>& go_on = {}, std::string_view map = {}) {
    return read_rows(cursor_, kind, layer, first, rows, out, go_on, map);
  }
  /// Only the first `rows` rows of the tensors will be read: where that is inside a block of checksums, a
  /// read that ends there goes on to the block's end, so that these rows are verified as well.
  void end_at(int64_t rows) { end_row_ = rows; }
  class Cursor;
  Status read_rows(Cursor& cursor, TensorKind kind, int32_t layer, int64_t first, int64_t rows,
                   std::byte* out, const std::function<Status()>& go_on = {}, std::string_view map = {});
  /// Bytes of tensors read so far (not those of the header).
  int64_t bytes_read() const { return bytes_read_; }

  /// The block that a read ended in, so that one read going on from it is verified too.
  class Cursor {
    friend class EntryReader;
    const EntryTensor* open_ = nullptr;
    int64_t open_at_ = 0;                    // byte of the tensor
    std::optional<BlockChecksum> checksum_;  // made by the first read
  };

 private:
  friend Result<std::vector<std::string>> entry_names(Store& store, const std::string& key);
  using Check = std::function<Status(EntryHeader& found)>;
  /// Reads the header; `check` says whether it is the right one, before its tensors are read.
  static Result<EntryReader> open_object(Store& store, const std::string& key,
                                         std::unique_ptr<StoreObject> object, const Check& check,
                                         Signature signature);

  size_t index_of(const EntryTensor* tensor) const {
    return static_cast<size_t>(tensor - header_.tensors.data());
  }
  uint64_t checksum(const EntryTensor& tensor, int64_t block) const;
  Status read_bytes(const EntryTensor& tensor, int64_t at, std::span<std::byte> out,
                    const StoreObject::Arrived& arrived, const std::function<Status()>& go_on);

  std::unique_ptr<StoreObject> object_;  // or
  std::shared_ptr<LiveEntry> live_;
  std::string where_;  // for messages
  EntryHeader header_;
  Cursor cursor_;
  int64_t end_row_ = 0;                         // end_at(); 0: the tensors' own ends
  int64_t bytes_read_ = 0;                      // added to atomically
  std::shared_ptr<const std::string> signing_;  // the key, of an entry that is signed
};

/// What Store::put() has been given as an entry's names, from its header, whoever has signed it: an index
/// that several make is the same for all, and who opens an entry checks it. None: it has none. Errors of
/// open_any().
Result<std::vector<std::string>> entry_names(Store& store, const std::string& key);

}  // namespace ds
