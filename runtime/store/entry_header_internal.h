// The header of an entry, and of one that is still being written: as text, and read back.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "runtime/store/entry.h"

namespace ds {

inline constexpr std::string_view kEntryMagic = "DSENTRY1";
/// Of a live one (live_entry_internal.h): the same, but its tensors have neither places nor checksums yet.
inline constexpr std::string_view kLiveMagic = "DSLIVE01";
inline constexpr int64_t kEntryAlignment = 4096;
inline constexpr int64_t kEntryPrefix = 20;  // magic, version, length of the JSON
inline constexpr int64_t kMaxEntryJson = int64_t{16} << 20;
inline constexpr int64_t kMaxSignature = Hmac::kBytes;
// Bounds that keep every product of sizes below 2^63: rows < 2^32 bytes, tensors < 2^62, and no more than
// kMaxEntryTensors are laid out in sums that are checked one by one.
inline constexpr int64_t kMaxEntryTensors = 1 << 17;
inline constexpr int64_t kMaxEntryTokens = int64_t{1} << 30;

constexpr int64_t align_entry(int64_t at) {
  return (at + kEntryAlignment - 1) / kEntryAlignment * kEntryAlignment;
}
constexpr int64_t checksum_blocks(int64_t tokens) { return (tokens + kChecksumRows - 1) / kChecksumRows; }
inline std::string hex64(uint64_t v) { return fmt::format("{:016x}", v); }
/// For messages: what is no plain character is spelled out.
std::string escaped(std::string_view bytes);
/// Is it a text that entry_map() makes of a form?
bool is_map(std::string_view text);
/// Of a tensor that has a map.
Status check_map(TensorKind kind, const std::string& map, Code code, const std::string& where);
Status check_shape(const Shape& shape, const std::string& where);
bool laid_out_before(const EntryTensor& a, const EntryTensor& b);
/// What somebody wants to publish: all but the tensors' bytes, in the right order. kInvalidArgument.
Status check_published(const EntryHeader& h);
/// Whether it is what a look-up by that name has meant. kMismatch.
Status check_named(const EntryHeader& h, const ObjectRef& found, const std::string& name, const Shape& shape);
/// kMismatch names the field.
Status compare(const Shape& found, const Shape& expected);
Status compare(const EntryHeader& found, const EntryIdentity& identity, const Shape& shape);

/// By the store's key.
std::string header_signature(const std::string& signing, std::string_view bytes);
/// All bytes before the first tensor but for the zeros: prefix, JSON, checksum, signature. `run`: of an entry
/// that is still being written, what no other one has.
std::string header_bytes(const EntryHeader& h, const std::string* signing, const std::string& run = {});

/// What reads the bytes from one on up to another into their place.
using ReadHeader = std::function<Status(std::string& bytes, int64_t from)>;
enum class Signature : uint8_t { kOfStore, kAny };
/// A header, whole and signed as it should be; `check` says whether it is the right one, before its tensors
/// are looked at. `bytes`: the first of the object's `size`; `read` brings more where they are not enough.
/// `live`: of an entry that is still being written, where `size` is the header's own. Errors of
/// EntryReader::open(), without where it is.
Result<EntryHeader> read_header(std::string bytes, int64_t size, const ReadHeader& read,
                                const std::string* signing, Signature signature,
                                const std::function<Status(EntryHeader&)>& check, bool live = false);

}  // namespace ds
