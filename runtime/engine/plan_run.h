// One request's way through its variant: which kernels may run now, and what is left to do when a transfer
// does not come.
//
// Kernels run in the plan's order. One over many rows can run in pieces, each at a multiple of 64 rows: on a
// backend whose rows are independent (the CPU) the bits are the same. Where a transfer is missing, damaged or
// late, its cells are recomputed, block by block of 64 rows: from the nearest hidden states below them that
// are there or are coming, else from the embeddings. What else is sent goes on. What comes of it is again a
// tiling (plan_repair.cpp).
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
  size_t hidden_buffers() const { return held_.size(); }
  bool selects() const { return variant_->select_share > 0; }
  const Variant& variant() const { return *variant_; }

  /// Those of its transfers that may run and were not asked for yet, in the plan's order: not before what
  /// they overwrite has been read. `index` is what arrived() is told.
  std::vector<TransferJob> take_transfers(const RunMemory& memory, const std::shared_ptr<Segments>& segments,
                                          uint64_t owner, int64_t start_ns);
  void arrived(int32_t transfer);
  /// It does not come, and is not written to any more. False: the run does without it as it is; else
  /// repair().
  bool lost(int32_t transfer);
  /// None of those that have not come will; none is written to any more.
  void lose_transfers();
  /// What was lost is computed instead. Only while nothing that was issued runs. False: nothing was missing.
  bool repair();
  /// Where a repair takes all of what is sent: where tokens are selected. Then lose_transfers(), not lost().
  bool all_or_nothing() const { return all_or_nothing_; }
  /// Those asked for that repair() has made needless: lost() of those that their caller takes back.
  std::vector<int32_t> needless() const;
  /// Rows of a layer's cache, or of a hidden buffer, that what is left to do builds on. Nothing writes to
  /// them.
  struct Kept {
    bool hidden = false;
    int64_t index = 0;  // of the layer, or of the buffer
    int64_t first = 0, rows = 0;
  };
  std::vector<Kept> kept() const;
  /// Whether any K and V are there, the receiver's or sent.
  bool has_cells() const;
  bool awaits_transfers() const;
  /// Whether a transfer was lost: what runs is not the variant any more, and its promise at least.
  bool repaired() const { return repaired_; }
  int64_t transfers() const { return static_cast<int64_t>(transfers_.size()); }
  int64_t lost_transfers() const;
  /// Whether nothing of a sender is in what was computed.
  bool exact() const { return exact_; }
  /// Whether any K and V of this layer, of the context, were computed by the receiver.
  bool computes(int64_t layer) const;

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
    size_t after = 0;       // so many calls run before it
    enum class State : uint8_t { kPlanned, kAsked, kThere, kLost } state = State::kPlanned;
    bool needed = true;
    bool comes() const { return state == State::kPlanned || state == State::kAsked; }
  };
  /// K and V of a block of rows in a layer.
  struct Cell {
    bool own = false;  // R computes them; else they are sent
    bool made = false;
    int32_t base = 0;  // own and made: at which layer the hidden states were that they were computed from
  };
  /// Hidden states of a block of rows in a buffer.
  struct Held {
    int32_t level = -1;  // the layer that they enter; -1: none
    int32_t base = -1;   // the layer at which they were sent; 0: the embeddings
    int32_t sent = -1;   // they are S's, of this layer, and have to be mapped yet
  };
  struct Repair;
  struct Cursor {
    size_t call = 0;
    int64_t rows = 0;  // of it
    bool operator==(const Cursor&) const = default;
  };

  void build();
  void set_needs();
  const Op& op_of(const Transfer& t) const { return variant_->ops[static_cast<size_t>(t.op)]; }
  static bool hidden(const Op& op);
  double flops(const Op& op, const OpRows& at) const;
  std::vector<Held>& held_by(const Op& op);
  static bool divisible(const Call& call);
  /// Blocks are of up to 64 rows, between multiples of 64: the context's, then those behind it.
  size_t context_blocks() const { return static_cast<size_t>((shape_.n + kBlock - 1) / kBlock); }
  size_t blocks() const { return block_of(shape_.n + shape_.m - 1) + 1; }
  size_t block_of(int64_t position) const;
  int64_t begin_of(size_t block) const;
  /// Calls f with each block that lies in rows first .. end - 1.
  template <typename F>
  void for_blocks(int64_t first, int64_t end, F&& f) const {
    for (size_t b = block_of(first); first < end && b < cells_[0].size() && begin_of(b) < end; ++b)
      if (begin_of(b) >= first && begin_of(b + 1) <= end) f(b);
  }

  const Receiver& receiver_;
  const int64_t plan_;
  const Variant* variant_;
  const RunShape shape_;
  std::span<const int32_t> tokens_;
  std::vector<Call> calls_;
  std::vector<Transfer> transfers_;
  Cursor issued_, done_;
  std::vector<int32_t> buffers_;          // hidden ones: index into the variant's
  std::vector<std::vector<Held>> held_;   // by hidden buffer and block
  std::vector<std::vector<Cell>> cells_;  // by layer and block
  bool all_or_nothing_ = false;
  bool missing_ = false;  // something was lost that repair() has not seen to
  bool repaired_ = false, exact_ = true;
};

}  // namespace ds
