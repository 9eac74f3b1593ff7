// The memory of all sequences of an engine, within a budget of bytes.
//
// Every sequence has virtually contiguous caches: for each layer a range of addresses for its longest length,
// of which memory is what its rows need (vAttention's way). Kernels, transfers and plans keep plain
// addresses, and what many sequences begin with is SequenceRows::prefix. A block table would cut transfers
// into pieces of a block.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "runtime/backends/backend.h"
#include "support/status.h"

namespace ds {

/// Of one model: what its caches and hidden states take per token.
struct RowBytes {
  int64_t layers = 0;
  int64_t kv = 0;      // of one layer
  int64_t hidden = 0;  // of one buffer
  int64_t cache(int64_t rows) const { return rows * layers * kv; }
  bool operator==(const RowBytes&) const = default;
};

class KvArena;

/// Bytes of an arena's budget, given back when it goes.
class ArenaClaim {
 public:
  ArenaClaim() = default;
  ArenaClaim(ArenaClaim&& other) noexcept;
  ArenaClaim& operator=(ArenaClaim&& other) noexcept;
  ~ArenaClaim();
  int64_t bytes() const { return bytes_; }
  /// Gives back all but `bytes`.
  void shrink(int64_t bytes);
  /// To `bytes` at least. kExhausted as KvArena::claim(), and nothing has changed.
  Status grow(int64_t bytes);
  /// `bytes` of it, at most all, as a claim of their own.
  ArenaClaim split(int64_t bytes);

 private:
  friend class KvArena;
  ArenaClaim(KvArena* arena, int64_t bytes) : arena_(arena), bytes_(bytes) {}
  KvArena* arena_ = nullptr;
  int64_t bytes_ = 0;
};

/// The caches of one sequence: `rows()` rows for each layer, of which those that were committed are memory.
class KvRange {
 public:
  KvRange() = default;
  KvRange(KvRange&&) = default;
  KvRange& operator=(KvRange&&) = default;
  ~KvRange();

  /// Address of the layer's row 0.
  std::byte* layer(int64_t l) { return memory_->data() + l * stride_; }
  int64_t rows() const { return rows_; }
  const RowBytes& row_bytes() const { return bytes_; }
  /// Makes rows 0 to `rows` - 1 of every layer memory. kExhausted, kDeviceMemory: the system has none left.
  Status commit(int64_t rows);
  /// Copies `rows` rows of `from` from `from_first` on to `first`, all of them committed, through `stream`,
  /// which is then waited for.
  Status copy_rows(CommandStream& stream, KvRange& from, int64_t from_first, int64_t first, int64_t rows);

  ArenaClaim claim;

 private:
  friend class KvArena;
  KvArena* arena_ = nullptr;  // that takes it back
  std::unique_ptr<GrowingMemory> memory_;
  RowBytes bytes_;
  int64_t rows_ = 0, stride_ = 0, committed_rows_ = 0;
};

/// Thread-safe. Outlives its ranges and claims. Ranges that were given back are kept as they are, as long as
/// nobody claims their bytes: the next sequence meets no page fault.
class KvArena {
 public:
  /// `budget`: bytes.
  KvArena(Backend& backend, int64_t budget) : backend_(backend), budget_(budget) {}

  int64_t budget() const { return budget_; }
  int64_t claimed() const;
  int64_t peak() const;  // most that was claimed at a time
  /// kExhausted: says how much is claimed already. Whoever may wait for others to finish asks again.
  Result<ArenaClaim> claim(int64_t bytes);
  /// A range for `rows` rows at the most, none committed. `claim` is what its memory counts against.
  Result<std::shared_ptr<KvRange>> reserve(const RowBytes& bytes, int64_t rows, ArenaClaim claim);

 private:
  friend class ArenaClaim;
  Status take(int64_t bytes);
  void give_back(int64_t bytes);
  friend class KvRange;
  void keep(KvRange& range);

  Backend& backend_;
  const int64_t budget_;
  mutable std::mutex mutex_;
  int64_t claimed_ = 0, peak_ = 0;
  std::vector<KvRange> idle_;  // given back last: last
  int64_t idle_bytes_ = 0;
};

}  // namespace ds
