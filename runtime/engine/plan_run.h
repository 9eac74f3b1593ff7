// One request's way through its variant: which kernels may run now, and what is left to do when a transfer
// does not come.
//
// Kernels run in the plan's order. One over many rows can run in pieces, each at a multiple of 64 rows: on a
// backend whose rows are independent (the CPU) the bits are the same. Where a transfer is missing,
// damaged or late, the cells that have not come are recomputed from where the run stands: from the hidden
// states of the highest layer, at or below the first cell that is missing, that are there for the whole
// context; else from the embeddings. What comes of it is again a tiling: the layers below as the plan has
// them, R's own ones above.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "runtime/engine/prefix_cache.h"
#include "runtime/engine/receiver.h"
#include "runtime/engine/transfer_service.h"

namespace ds {

/// Where the caches of a request's positions are: rows 0 .. prefix_rows - 1 in `base`, which others read too,
/// the rest in `own`.
struct Sequence {
  std::shared_ptr<KvRange> own;
  int64_t own_first = 0;  // position of own's row 0
  std::shared_ptr<PrefixCache::Node> base;
  int64_t prefix_rows = 0;  // >= own_first; 0: no prefix

  /// For layer_batch(). `position` >= prefix_rows.
  SequenceRows rows(int64_t layer, int64_t position, int64_t rows, int64_t query_rows) const;
  /// Address of a position of the layer that `own` has.
  std::byte* at(int64_t layer, int64_t position) const;
};

/// Where a run computes: addresses of memory that is its request's.
struct RunMemory {
  std::vector<std::byte*> caches;        // by layer: of position prefix_rows
  std::vector<const std::byte*> prefix;  // by layer; empty: none
  std::vector<std::byte*> hidden;        // by hidden buffer: a row for every position from RunShape::first on
  std::byte* positions = nullptr;        // int32 for every context token; of a variant that selects
  Workspace* workspace = nullptr;
  float* logits = nullptr;  // of the first token, as in HeadCall
  int32_t* next = nullptr;
  Choice choice = {};
};

/// Which rows are computed: positions first .. n - 1 of the context and n .. n + m - 1 behind it.
struct RunShape {
  int64_t first = 0, n = 0, m = 0;
};

class PlanRun {
 public:
  static constexpr int64_t kBlock = 64;

  /// `plan`: of the receiver's; negative: its exact one. `first` > 0 (rows that a prefix has already) is for
  /// variants without transfers only. `tokens`: n + m ids, living as long as the run.
  PlanRun(const Receiver& receiver, int64_t plan, const Variant& variant, RunShape shape,
          std::span<const int32_t> tokens);

  /// How many hidden buffers it computes in.
  size_t hidden_buffers() const { return levels_.size(); }
  bool selects() const { return variant_->select_share > 0; }
  const Variant& variant() const { return *variant_; }

  /// Those of its transfers that may run and were not asked for yet, in the plan's order: not before what
  /// they overwrite has been read. `index` is what arrived() is told.
  std::vector<TransferJob> take_transfers(const RunMemory& memory, const std::shared_ptr<Segments>& segments,
                                          uint64_t owner, int64_t start_ns);
  void arrived(int32_t transfer);
  /// Rows that transfers may still write: of a layer's cache, or of a hidden buffer.
  struct Written {
    bool hidden = false;
    int64_t index = 0;  // of the layer, or of the buffer
    int64_t first = 0, rows = 0;
  };
  /// By index and row.
  std::vector<Written> being_written() const;
  /// What has not come is computed instead. Only while nothing that was issued runs, and no transfer.
  void lose_transfers() {
    if (awaits_transfers()) repair();
  }
  bool awaits_transfers() const;
  /// Whether a transfer was lost: what runs is not the variant any more, and its promise at least.
  bool repaired() const { return repaired_; }
  /// Whether nothing of a sender is in what was computed.
  bool exact() const { return exact_; }

  /// Of one row through one layer, but for its attention.
  static double layer_flops(const ModelConfig& config);

  /// Some rows of one kernel.
  struct Piece {
    size_t call = 0;
    OpRows at;
    double flops = 0;
  };
  /// The next piece: of whole kernels where they take `most_flops` at the most, else of fewer rows, but 64 at
  /// least. None: finished, or what it reads has not come.
  std::optional<Piece> next(double most_flops) const;
  /// Enqueues next()'s piece. `storage` lives until the stream has run.
  void issue(const Piece& piece, CommandStream& stream, const RunMemory& memory, SequenceRows& storage);
  /// A piece has run, in the order of issue.
  void complete(const Piece& piece);
  /// What was issued and not completed has not run.
  void rewind() { issued_ = done_; }
  bool finished() const { return done_.call == calls_.size(); }
  /// The op of the plan, for messages and records; -1: none of its.
  int32_t op(const Piece& piece) const { return calls_[piece.call].index; }
  /// "recompute 4.2": for messages and pictures.
  std::string label(const Piece& piece) const;
  std::string transfer_label(int32_t transfer) const;

 private:
  struct Call {
    Op op;               // of the plan, or one that repairs it
    int32_t index = -1;  // of the plan's; -1: it repairs
    OpRows at;
    std::vector<int32_t> transfers = {};  // that it waits for
    bool selected() const { return op.rows == Rows::kSelected; }
  };
  struct Transfer {
    int32_t op = 0;
    int64_t first = 0, rows = 0;
    int64_t needed_ns = 0;  // when its first reader could start, from the start of the run
    int32_t after = -1;     // kernels up to this op run before it
    bool there = false;
  };
  struct Cursor {
    size_t call = 0;
    int64_t rows = 0;  // of it
    bool operator==(const Cursor&) const = default;
  };

  void build();
  void set_needs();
  void repair();
  double flops(const Op& op, const OpRows& at) const;
  std::vector<int32_t>& levels_of(const Op& op);
  static bool divisible(const Call& call);
  int64_t blocks() const { return (shape_.n + kBlock - 1) / kBlock; }
  template <typename F>
  void for_blocks(int64_t first, int64_t end, F&& f) const;

  const Receiver& receiver_;
  const int64_t plan_;
  const Variant* variant_;
  const RunShape shape_;
  std::span<const int32_t> tokens_;
  std::vector<Call> calls_;
  std::vector<Transfer> transfers_;
  size_t asked_ = 0;  // transfers before it were
  Cursor issued_, done_;
  std::vector<std::vector<int32_t>> levels_;  // by hidden buffer and block: which layer these rows enter; -1
  std::vector<std::vector<bool>> made_;       // by layer and block: K and V are as the tiling has them
  bool repaired_ = false, exact_ = true;
};

}  // namespace ds
