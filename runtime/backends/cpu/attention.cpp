#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "runtime/backends/cpu/attention_internal.h"

namespace ds::cpu {
namespace {

/// Query rows per tile: enough to pay for reading the keys, few enough to stay in the cache with them.
constexpr int64_t kQueryRows = 64;

int64_t align(int64_t bytes) { return (bytes + 63) / 64 * 64; }
int64_t tile_tokens(const AttentionShape& s) { return std::max<int64_t>(1, kQueryRows / s.group()); }
int64_t tile_rows(const AttentionShape& s) {
  return (tile_tokens(s) * s.group() + kRowBlock - 1) / kRowBlock * kRowBlock;
}

struct Sizes {
  int64_t queries, tile, packed, o, maxima, sums, limits, joined;
  Sizes(const AttentionShape& s, int64_t max_context, int64_t most_queries) {
    int64_t element = dtype_size(s.active), depth = s.padded_dim();
    // A tile's last row-block may reach past the last query.
    queries = align((most_queries * s.heads + kRowBlock) * depth * element);
    tile = align(kKeyTile * depth * element);
    packed = (max_context + kKeyTile - 1) / kKeyTile * tile * s.kv_heads;
    o = align(tile_rows(s) * depth * 4);
    maxima = align(tile_rows(s) * 4);
    sums = align(tile_rows(s) * kSumLanes * 4);
    limits = align(tile_rows(s) * 4);
    joined = align(2 * kKeyTile * s.head_dim * dtype_size(s.hidden));
  }
  int64_t thread() const { return o + maxima + sums + limits + 2 * tile + joined; }
};

}  // namespace

int64_t Attention::scratch_bytes(const AttentionShape& shape, int64_t max_context, int64_t most_queries,
                                 int threads) {
  Sizes sizes(shape, max_context, most_queries);
  return sizes.queries + 2 * sizes.packed + threads * sizes.thread();
}

Result<Attention> Attention::make(const AttentionShape& shape, const Kernels& kernels, int64_t max_context,
                                  int64_t most_queries, int threads) {
  Attention a;
  a.shape_ = shape;
  a.kernels_ = kernels;
  a.max_context_ = max_context;
  Sizes sizes(shape, max_context, most_queries);
  a.tile_bytes_ = sizes.tile;
  a.tiles_ = (max_context + kKeyTile - 1) / kKeyTile;
  DS_ASSIGN(a.buffer_, HostBuffer::make(scratch_bytes(shape, max_context, most_queries, threads),
                                        "attention workspace"));
  std::byte* at = a.buffer_.data();
  auto take = [&](int64_t bytes) { return std::exchange(at, at + bytes); };
  a.queries_ = take(sizes.queries);
  a.keys_ = take(sizes.packed);
  a.values_ = take(sizes.packed);
  for (int t = 0; t < threads; ++t) {
    Scratch s;
    s.o = reinterpret_cast<float*>(take(sizes.o));
    s.maximum = reinterpret_cast<float*>(take(sizes.maxima));
    s.sum = reinterpret_cast<float*>(take(sizes.sums));
    s.limit = reinterpret_cast<int32_t*>(take(sizes.limits));
    s.keys = take(sizes.tile);
    s.values = take(sizes.tile);
    s.joined = take(sizes.joined);
    a.scratch_.push_back(s);
  }
  return a;
}

// [kv head][token][head of the group][padded_dim]: a tile of a kv head is one run of rows.
std::byte* Attention::query(int64_t tokens, int64_t token, int64_t head) const {
  int64_t group = shape_.group();
  int64_t row = (head / group * tokens + token) * group + head % group;
  return queries_ + row * shape_.padded_dim() * dtype_size(shape_.active);
}

KeyTileSource Attention::source(const Segment& s, int64_t head, int64_t tile, int64_t end,
                                const Scratch& scratch) const {
  int64_t width = shape_.head_dim * dtype_size(shape_.hidden), row = 2 * shape_.kv_heads * width;
  int64_t first = tile * kKeyTile, keys = std::min(kKeyTile, end - first);
  auto at = [&](int64_t key) {
    return (key < s.prefix_rows ? s.prefix + key * row : s.cache + (key - s.prefix_rows) * row) +
           head * width;
  };
  if (first >= s.prefix_rows || first + keys <= s.prefix_rows)
    return {.k = at(first), .v = at(first) + row / 2, .stride = row, .keys = keys};
  for (int64_t key = 0; key < keys; ++key) {
    std::memcpy(scratch.joined + 2 * key * width, at(first + key), static_cast<size_t>(width));
    std::memcpy(scratch.joined + (2 * key + 1) * width, at(first + key) + row / 2,
                static_cast<size_t>(width));
  }
  return {.k = scratch.joined, .v = scratch.joined + width, .stride = 2 * width, .keys = keys};
}

int64_t Attention::query_tiles(const Segment& segment) const {
  int64_t per_tile = tile_tokens(shape_);
  return (segment.tokens + per_tile - 1) / per_tile;
}

bool Attention::worth_threads(const Segment& s) const {
  return s.tokens * s.end() * shape_.heads * shape_.head_dim > (int64_t{1} << 20);
}

void Attention::run(std::span<Segment> segments, std::byte* out, LapTimer& timer) {
  int64_t queries = segments.back().at + segments.back().tokens;
  auto small = [&](const Segment& s) { return query_tiles(s) == 1; };
  auto alike = [](const Segment& a, const Segment& b) {
    return a.prefix_rows >= kKeyTile && a.prefix == b.prefix && a.prefix_rows == b.prefix_rows;
  };
  // Segments do not see each other's queries, so small ones may go in any order: by prefix, to pack it once.
  for (size_t i = 0; i < segments.size();) {
    size_t end = i;
    while (end < segments.size() && small(segments[end])) ++end;
    if (end == i) {
      run_packed(segments[i++], queries, out, timer);
      continue;
    }
    std::span run = segments.subspan(i, end - i);
    std::sort(run.begin(), run.end(), [](const Segment& a, const Segment& b) {
      return std::pair(a.prefix, a.prefix_rows) < std::pair(b.prefix, b.prefix_rows);
    });
    while (!run.empty()) {
      size_t count = 1;
      bool shared = run.size() > 1 && alike(run[0], run[1]);
      auto belongs = [&](size_t k) {
        return shared ? alike(run[0], run[k]) : k + 1 == run.size() || !alike(run[k], run[k + 1]);
      };
      while (count < run.size() && belongs(count)) ++count;
      run_small(run.first(count), shared, queries, out, timer);
      run = run.subspan(count);
    }
    i = end;
  }
}

/// Many tiles of queries read the same keys and values: packed once for all of them.
void Attention::run_packed(const Segment& s, int64_t queries, std::byte* out, LapTimer& timer) {
  if (s.cache != packed_cache_ || s.prefix != packed_prefix_) {
    // What the last segment packed of a prefix that is this one's too.
    bool shared = s.prefix != nullptr && s.prefix == packed_prefix_;
    int64_t common = std::min(s.prefix_rows, packed_prefix_rows_) / kKeyTile;
    packed_tiles_ = shared ? std::min(packed_tiles_, common) : 0;
    packed_cache_ = s.cache;
    packed_prefix_ = s.prefix;
    packed_prefix_rows_ = s.prefix_rows;
  }
  int64_t end = s.end(), tiles = (end + kKeyTile - 1) / kKeyTile, fresh = tiles - packed_tiles_;
  int64_t per_tile = tile_tokens(shape_), query_tiles = this->query_tiles(s);
#pragma omp parallel if (worth_threads(s))
  {
    const Scratch& scratch = scratch_[static_cast<size_t>(omp_get_thread_num())];
#pragma omp for schedule(static)
    for (int64_t i = 0; i < fresh * shape_.kv_heads; ++i)
      pack(s, i / fresh, packed_tiles_ + i % fresh, scratch);
#pragma omp master
    timer.lap(Phase::kAttentionPack);
    // The last queries see most keys: they go first, so that threads end together.
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < query_tiles * shape_.kv_heads; ++i) {
      int64_t token = (query_tiles - 1 - i / shape_.kv_heads) * per_tile;
      tile(s, i % shape_.kv_heads, queries, token, std::min(per_tile, s.tokens - token), tiles, scratch, out);
    }
  }
  packed_tiles_ = end / kKeyTile;  // a last, partial tile is packed again next time
  timer.lap(Phase::kAttention);
}

/// One tile of queries each (decoding). Whole tiles of a prefix that all of them share are packed once; a
/// tile of keys that only one of them uses is packed by its user, into its own cache.
void Attention::run_small(std::span<const Segment> segments, bool shared, int64_t queries, std::byte* out,
                          LapTimer& timer) {
  const int64_t packed = shared ? segments[0].prefix_rows / kKeyTile : 0;
  if (shared) packed_cache_ = packed_prefix_ = nullptr;  // what was packed is overwritten
  bool many = segments.size() > 1 || worth_threads(segments[0]);
  auto count = static_cast<int64_t>(segments.size()) * shape_.kv_heads;
#pragma omp parallel if (many)
  {
    const Scratch& scratch = scratch_[static_cast<size_t>(omp_get_thread_num())];
#pragma omp for schedule(static)
    for (int64_t i = 0; i < packed * shape_.kv_heads; ++i) pack(segments[0], i / packed, i % packed, scratch);
#pragma omp master
    timer.lap(Phase::kAttentionPack);
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < count; ++i) {
      const Segment& s = segments[static_cast<size_t>(i / shape_.kv_heads)];
      tile(s, i % shape_.kv_heads, queries, 0, s.tokens, packed, scratch, out);
    }
  }
  timer.lap(Phase::kAttention);
}

void Attention::pack(const Segment& s, int64_t head, int64_t tile, const Scratch& scratch) {
  int64_t at = (head * tiles_ + tile) * tile_bytes_;
  KeyTileSource from = source(s, head, tile, s.end(), scratch);
  kernels_.pack_keys(from, shape_.head_dim, keys_ + at);
  kernels_.pack_values(from, shape_.head_dim, values_ + at);
}

void Attention::tile(const Segment& segment, int64_t head, int64_t queries, int64_t token, int64_t count,
                     int64_t packed, const Scratch& s, std::byte* out) const {
  int64_t group = shape_.group(), depth = shape_.padded_dim();
  int64_t rows = (count * group + kRowBlock - 1) / kRowBlock * kRowBlock;
  std::fill_n(s.o, rows * depth, 0.0f);
  std::fill_n(s.maximum, rows, -INFINITY);
  std::fill_n(s.sum, rows * kSumLanes, 0.0f);
  TileAttention t{.rows = rows,
                  .depth = depth,
                  .q = query(queries, segment.at + token, head * group),
                  .o = s.o,
                  .maximum = s.maximum,
                  .sum = s.sum,
                  .limit = s.limit,
                  .scale = static_cast<float>(M_LOG2E / std::sqrt(static_cast<double>(shape_.head_dim)))};
  int64_t end = segment.position(token + count - 1) + 1;  // keys that the last query of this tile sees
  for (int64_t key = 0; key < end; key += kKeyTile) {
    // Rows that only fill the last row-block see what the last query sees.
    for (int64_t r = 0; r < rows; ++r)
      s.limit[r] = static_cast<int32_t>(std::clamp<int64_t>(
          segment.position(token + std::min(r / group, count - 1)) + 1 - key, 0, kKeyTile));
    int64_t at = (head * tiles_ + key / kKeyTile) * tile_bytes_;
    t.k = keys_ + at;
    t.v = values_ + at;
    if (key / kKeyTile >= packed) {
      KeyTileSource from = source(segment, head, key / kKeyTile, segment.end(), s);
      kernels_.pack_keys(from, shape_.head_dim, s.keys);
      kernels_.pack_values(from, shape_.head_dim, s.values);
      t.k = s.keys;
      t.v = s.values;
    }
    kernels_.attend(t);
  }
  int64_t element = dtype_size(shape_.active), width = shape_.heads * shape_.head_dim;
  for (int64_t r = 0; r < count * group; ++r) {
    int64_t at = (segment.at + token + r / group) * width + (head * group + r % group) * shape_.head_dim;
    float sum = 0;
    for (int64_t lane = 0; lane < kSumLanes; ++lane) sum += s.sum[r * kSumLanes + lane];
    kernels_.scale(s.o + r * depth, 1.0f / sum, shape_.head_dim, out + at * element);
  }
}

}  // namespace ds::cpu
