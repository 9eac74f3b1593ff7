// The memory of all sequences of an engine, within a budget of bytes of device memory.
//
// Every sequence has virtually contiguous caches: for each layer a range of addresses for its longest length,
// of which memory is what its rows need (vAttention's way). Kernels, transfers and plans keep plain
// addresses, and what many sequences begin with is SequenceRows::prefix. A block table would cut transfers
// into pieces of a block.
//
// Memory comes in steps of the backend's (Backend::range_step()). Small ones, a CPU's pages, cost little and
// are not counted. Where they are large (2 MiB on CUDA devices), a layer of a short sequence is a part of
// one: its layers then lie close together and share steps, and only a sequence whose layers fill several of
// them has addresses to grow. What is claimed is what becomes memory, steps and all.
#pragma once

#include <atomic>
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

/// Where the rows of a range lie, and what memory they are.
struct KvLayout {
  RowBytes bytes;
  int64_t rows = 0;    // most
  int64_t stride = 0;  // from layer to layer
  int64_t step = 0;    // that memory is counted in; 0: it is counted by rows
  bool whole = false;  // all of it is memory, from the beginning on
  bool operator==(const KvLayout&) const = default;
  int64_t size() const { return bytes.layers * stride; }
  /// Rows of each layer that are committed where `rows` are asked for: some ahead, since a call into the
  /// system costs more than a page, and whole tiles of kCacheTileRows.
  int64_t committed_rows(int64_t rows) const;
  /// Of the budget, for so many rows.
  int64_t needs(int64_t rows) const;
};

/// The caches of one sequence: `rows()` rows for each layer, of which those that were committed are memory.
class KvRange {
 public:
  KvRange() = default;
  KvRange(KvRange&&) = default;
  KvRange& operator=(KvRange&&) = default;
  ~KvRange();

  /// Address of the layer's row 0.
  std::byte* layer(int64_t l) { return memory_->data() + l * layout_.stride; }
  int64_t rows() const { return layout_.rows; }
  const RowBytes& row_bytes() const { return layout_.bytes; }
  /// Of the arena's budget, where it has so many rows.
  int64_t needs(int64_t rows) const { return layout_.needs(rows); }
  /// Makes rows 0 to `rows` - 1 of every layer memory, in place of idle ranges where there is none else.
  /// kExhausted, kDeviceMemory: the system has none left.
  Status commit(int64_t rows);
  /// It keeps to `rows` rows from now on: what else it has claimed is given back, as far as it is no memory.
  void settle(int64_t rows);
  /// Copies `rows` rows of `from` from `from_first` on to `first`, all of them committed, through `stream`,
  /// which is then waited for.
  Status copy_rows(CommandStream& stream, KvRange& from, int64_t from_first, int64_t first, int64_t rows);

  ArenaClaim claim;

 private:
  friend class KvArena;
  KvArena* arena_ = nullptr;  // that takes it back
  Status commit_to(int64_t committed_rows);
  std::unique_ptr<GrowingMemory> memory_;
  KvLayout layout_;
  int64_t committed_rows_ = 0;
};

/// Thread-safe. Outlives its ranges and claims. Ranges that were given back are kept as they are, as long as
/// nobody claims their bytes: the next sequence meets no page fault.
class KvArena {
 public:
  /// `budget`: bytes. `longest`: rows that a sequence may grow to.
  KvArena(Backend& backend, int64_t budget, int64_t longest = 0)
      : backend_(backend), budget_(budget), longest_(longest) {}

  int64_t budget() const { return budget_; }
  int64_t claimed() const;
  /// Bytes that are memory, idle ranges' among them.
  int64_t committed() const { return committed_.load(std::memory_order_relaxed); }
  /// Bytes to claim for caches of `rows` rows.
  int64_t needs(const RowBytes& bytes, int64_t rows) const { return layout(bytes, rows).needs(rows); }
  int64_t peak() const;  // most that was claimed at a time
  /// kExhausted: says how much is claimed already. Whoever may wait for others to finish asks again.
  Result<ArenaClaim> claim(int64_t bytes);
  /// A range for `rows` rows, or more where addresses cost nothing; none committed. `claim` is what its
  /// memory counts against.
  Result<std::shared_ptr<KvRange>> reserve(const RowBytes& bytes, int64_t rows, ArenaClaim claim);

 private:
  friend class ArenaClaim;
  Status take(int64_t bytes);
  void give_back(int64_t bytes);
  friend class KvRange;
  KvLayout layout(const RowBytes& bytes, int64_t rows) const;
  void keep(KvRange& range);
  bool drop_idle();  // false: there was none

  Backend& backend_;
  const int64_t budget_, longest_;
  std::atomic<int64_t> committed_{0};
  mutable std::mutex mutex_;
  int64_t claimed_ = 0, peak_ = 0;
  std::vector<KvRange> idle_;  // given back last: last
  int64_t idle_bytes_ = 0;
};

}  // namespace ds
