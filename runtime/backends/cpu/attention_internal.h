// Causal attention of a block of queries over a layer's cache, in tiles of keys with a running softmax.
// Memory for scores does not grow with the context; what is packed of the keys and values grows linearly.
#pragma once

#include <span>
#include <vector>

#include "runtime/backends/cpu/kernels_internal.h"
#include "runtime/backends/cpu/memory_internal.h"
#include "runtime/backends/cpu/profile_internal.h"
#include "support/status.h"

namespace ds::cpu {

struct AttentionShape {
  int64_t heads = 0, kv_heads = 0, head_dim = 0;
  DType hidden = DType::kF32, active = DType::kF32;
  int64_t group() const { return heads / kv_heads; }
  int64_t padded_dim() const { return (head_dim + kHeadAlign - 1) / kHeadAlign * kHeadAlign; }
};

class Attention {
 public:
  static int64_t scratch_bytes(const AttentionShape& shape, int64_t max_context, int64_t most_queries,
                               int threads);
  static Result<Attention> make(const AttentionShape& shape, const Kernels& kernels, int64_t max_context,
                                int64_t most_queries, int threads);

  /// Where the queries of the next run() belong: token t, head h -> padded_dim() active elements.
  std::byte* query(int64_t tokens, int64_t token, int64_t head) const;

  /// Packed keys and values are kept from one run() to the next of the same cache, for whole tiles; begin()
  /// forgets them.
  void begin() { packed_cache_ = packed_prefix_ = nullptr; }

  /// Queries of one sequence at positions first .. first + tokens - 1, or at `positions`, each over the cache
  /// rows up to its own.
  struct Segment {
    const std::byte* cache = nullptr;
    int64_t first = 0, tokens = 0;
    int64_t at = 0;                     // of its first query among all of the call
    const std::byte* prefix = nullptr;  // rows 0 .. prefix_rows - 1; those of `cache` follow them
    int64_t prefix_rows = 0;
    const int32_t* positions = nullptr;  // of the tokens, ascending; null: consecutive ones
    int64_t position(int64_t token) const { return positions ? positions[token] : first + token; }
    int64_t end() const { return position(tokens - 1) + 1; }  // keys that the last query sees
  };
  /// out is active, [tokens of all segments][heads * head_dim]. The last segment has the last queries; the
  /// order of the others may change.
  void run(std::span<Segment> segments, std::byte* out, LapTimer& timer);

 private:
  /// Running sums of rows, as TileAttention has them.
  struct Sums {
    float *o = nullptr, *maximum = nullptr, *sum = nullptr;
    int32_t* limit = nullptr;
  };
  struct Scratch {                 // of one thread
    Sums sums, shared;             // of a tile of queries; of rows of several segments, whose queries
    std::byte* queries = nullptr;  // are here
    std::byte *keys = nullptr, *values = nullptr;
    std::byte* joined = nullptr;  // one head's K and V of a tile that begins in a prefix and ends behind it
  };
  KeyTileSource source(const Segment& segment, int64_t head, int64_t tile, int64_t end,
                       const Scratch& scratch) const;
  int64_t query_tiles(const Segment& segment) const;
  bool worth_threads(const Segment& segment) const;
  void run_packed(const Segment& segment, int64_t queries, std::byte* out, LapTimer& timer);
  void run_small(std::span<const Segment> segments, int64_t queries, std::byte* out, LapTimer& timer);
  void run_shared(std::span<const Segment> segments, int64_t queries, std::byte* out, LapTimer& timer);
  /// One kv head of segments that share a prefix: over its `tiles` whole tiles, of which the first `packed`
  /// are packed, all of them at once.
  void share(std::span<const Segment> segments, int64_t head, int64_t queries, int64_t tiles, int64_t packed,
             const Scratch& scratch, std::byte* out) const;
  void pack(const Segment& segment, int64_t head, int64_t tile, const Scratch& scratch);
  struct Tile {
    const Segment& segment;
    int64_t token, count;  // its queries token .. token + count - 1
    int64_t head;          // of the kv heads
    int64_t queries;       // of the whole call
  };
  TileAttention of_rows(int64_t rows, const std::byte* q, const Sums& sums) const;
  void take_keys(TileAttention& t, const Segment& segment, int64_t head, int64_t tile, bool packed,
                 const Scratch& scratch) const;
  void clear(const Sums& sums, int64_t first, int64_t end) const;
  /// Over the tiles of keys from `from` on, of which those before `packed` are packed.
  void attend(const Tile& tile, int64_t from, int64_t packed, const Scratch& scratch) const;
  void finish(const Tile& tile, const Sums& sums, std::byte* out) const;
  void tile(const Tile& tile, int64_t packed, const Scratch& scratch, std::byte* out) const;

  AttentionShape shape_;
  Kernels kernels_;
  int64_t max_context_ = 0, tile_bytes_ = 0, tiles_ = 0;
  const std::byte *packed_cache_ = nullptr,
                  *packed_prefix_ = nullptr;  // whose first packed_tiles_ tiles are packed
  int64_t packed_tiles_ = 0, packed_prefix_rows_ = 0;
  HostBuffer buffer_;
  std::byte *queries_ = nullptr, *keys_ = nullptr, *values_ = nullptr;
  std::vector<Scratch> scratch_;
};

}  // namespace ds::cpu
