// An entry: what one sender computed for one context, as one immutable object.
//
// Layout: a self-describing header (magic "DSENTRY1", version, header length, JSON header, XXH3 of the
// header), then tensors at 4 KiB-aligned offsets in plan order, E first, then K/V by layer. E of a layer:
// [n][d_model]; KV of a layer: [n][2][kv_heads][head_dim], K after RoPE. Token-major, so that a chunk of
// tokens is one byte range.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "plans/plan.h"
#include "runtime/store/store.h"
#include "support/dtype.h"
#include "support/hash.h"
#include "support/status.h"

namespace ds {

/// What an entry is for. All of it is in the key and again in the header.
struct EntryIdentity {
  std::string sender;       // ModelIdentity::fingerprint
  std::string tokens_hash;  // SHA-256 of the context's token ids (little-endian int32)
  std::string salt;         // tenant salt, may be empty
  int64_t tokens = 0;       // n
  DType dtype = DType::kBF16;
  std::string key() const;  // hexadecimal SHA-256 of all of the above
};
std::string hash_tokens(std::span<const int32_t> ids);

enum class TensorKind : uint8_t { kE = 0, kKv = 1 };

struct EntryTensor {
  TensorKind kind = TensorKind::kKv;
  int32_t layer = 0;
  int64_t offset = 0;     // in the object, multiple of 4096
  int64_t bytes = 0;      // tokens * row_bytes
  uint64_t checksum = 0;  // XXH3-64
};

struct EntryHeader {
  EntryIdentity identity;
  ModelIdentity sender;  // for people: which model
  Shape shape;
  std::vector<EntryTensor> tensors;
  int64_t row_bytes(TensorKind kind) const;
  const EntryTensor* find(TensorKind kind, int32_t layer) const;
};

/// One tensor to publish; `data` holds tokens * row_bytes bytes.
struct EntrySource {
  TensorKind kind = TensorKind::kKv;
  int32_t layer = 0;
  std::span<const std::byte> data;
};

/// Writes an entry atomically (E first, then KV by layer, whatever the order given). Returns its size in
/// bytes.
Result<int64_t> write_entry(Store& store, const EntryIdentity& identity, const ModelIdentity& sender,
                            const Shape& shape, std::vector<EntrySource> tensors);

/// An open entry. Every fault is a Status that names what was found and expected; the caller counts it as a
/// miss.
class EntryReader {
 public:
  /// Looks the entry up and checks its header against `identity` and `shape`: kNotFound, kCorrupt, kMismatch.
  static Result<EntryReader> open(Store& store, const EntryIdentity& identity, const Shape& shape);

  const EntryHeader& header() const { return header_; }
  /// Rows [first, first + rows) of a tensor into `out`. Tensors read front to back are verified against their
  /// checksum with the last row: kCorrupt. kNotFound: the entry has no such tensor. Allocates nothing. One
  /// thread.
  Status read_rows(TensorKind kind, int32_t layer, int64_t first, int64_t rows, std::byte* out);
  int64_t bytes_read() const { return bytes_read_; }

 private:
  struct Progress {
    int64_t next_row = 0;
    StreamingChecksum checksum;
  };
  Store* store_ = nullptr;
  std::string key_;
  EntryHeader header_;
  std::vector<Progress> progress_;  // per tensor
  int64_t bytes_read_ = 0;
};

}  // namespace ds
