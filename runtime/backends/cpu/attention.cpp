#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "runtime/backends/cpu/attention_internal.h"

namespace ds::cpu {
namespace {

/// Query rows per tile: enough to pay for reading the keys, few enough to stay in the cache with them.
constexpr int64_t kQueryRows = 64;
/// Of segments that share a prefix, so many at most go over it at once: their sums stay in the second cache.
constexpr int64_t kSharedRows = 256;

int64_t align(int64_t bytes) { return (bytes + 63) / 64 * 64; }
int64_t tile_tokens(const AttentionShape& s) { return std::max<int64_t>(1, kQueryRows / s.group()); }
int64_t padded_rows(int64_t rows) { return (rows + kRowBlock - 1) / kRowBlock * kRowBlock; }
int64_t tile_rows(const AttentionShape& s) { return padded_rows(tile_tokens(s) * s.group()); }
int64_t shared_rows(const AttentionShape& s) { return std::max(kSharedRows, tile_rows(s)); }

struct Sizes {
  int64_t queries, tile, packed, shared, joined;
  struct Sums {
    int64_t o, maxima, sums, limits;
    Sums(int64_t rows, int64_t depth)
        : o(align(rows * depth * 4)),
          maxima(align(rows * 4)),
          sums(align(rows * kSumLanes * 4)),
          limits(align(rows * 4)) {}
    int64_t all() const { return o + maxima + sums + limits; }
  } of_tile, of_shared;
  Sizes(const AttentionShape& s, int64_t max_context, int64_t most_queries)
      : of_tile(tile_rows(s), s.padded_dim()), of_shared(shared_rows(s), s.padded_dim()) {
    int64_t element = dtype_size(s.active), depth = s.padded_dim();
    // A tile's last row-block may reach past the last query.
    queries = align((most_queries * s.heads + kRowBlock) * depth * element);
    tile = align(kKeyTile * depth * element);
    packed = (max_context + kKeyTile - 1) / kKeyTile * tile * s.kv_heads;
    shared = align(shared_rows(s) * depth * element);
    joined = align(2 * kKeyTile * s.head_dim * dtype_size(s.hidden));
  }
  int64_t thread() const { return of_tile.all() + of_shared.all() + shared + 2 * tile + joined; }
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
  auto take_sums = [&](const Sizes::Sums& of) {
    Sums s;
    s.o = reinterpret_cast<float*>(take(of.o));
    s.maximum = reinterpret_cast<float*>(take(of.maxima));
    s.sum = reinterpret_cast<float*>(take(of.sums));
    s.limit = reinterpret_cast<int32_t*>(take(of.limits));
    return s;
  };
  for (int t = 0; t < threads; ++t) {
    Scratch s;
    s.sums = take_sums(sizes.of_tile);
    s.shared = take_sums(sizes.of_shared);
    s.queries = take(sizes.shared);
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
  return s.tokens * s.end() * shape_.heads * shape_.head_dim > (int64_t{1} << 16);
}

void Attention::run(std::span<Segment> segments, std::byte* out, LapTimer& timer) {
  int64_t queries = segments.back().at + segments.back().tokens;
  auto small = [&](const Segment& s) { return query_tiles(s) == 1; };
  auto alike = [](const Segment& a, const Segment& b) {
    return a.prefix_rows >= kKeyTile && a.prefix == b.prefix && a.prefix_rows == b.prefix_rows;
  };
  // Segments do not see each other's queries, so small ones may go in any order: by prefix, to read it once.
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
      if (shared)
        run_shared(run.first(count), queries, out, timer);
      else
        run_small(run.first(count), queries, out, timer);
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
      tile({s, token, std::min(per_tile, s.tokens - token), i % shape_.kv_heads, queries}, tiles, scratch,
           out);
    }
  }
  packed_tiles_ = end / kKeyTile;  // a last, partial tile is packed again next time
  timer.lap(Phase::kAttention);
}

/// One tile of queries each (decoding); a tile of keys is packed by its user, into its own cache.
void Attention::run_small(std::span<const Segment> segments, int64_t queries, std::byte* out,
                          LapTimer& timer) {
  bool many = segments.size() > 1 || worth_threads(segments[0]);
  auto count = static_cast<int64_t>(segments.size()) * shape_.kv_heads;
#pragma omp parallel for schedule(dynamic, 1) if (many)
  for (int64_t i = 0; i < count; ++i) {
    const Segment& s = segments[static_cast<size_t>(i / shape_.kv_heads)];
    tile({s, 0, s.tokens, i % shape_.kv_heads, queries}, 0,
         scratch_[static_cast<size_t>(omp_get_thread_num())], out);
  }
  timer.lap(Phase::kAttention);
}

/// As run_small(), of segments that share a prefix: whole tiles of it are read once for the rows of all of
/// them, or, where there are more rows or threads than one pass is for, packed once and read by parts of
/// them.
void Attention::run_shared(std::span<const Segment> segments, int64_t queries, std::byte* out,
                           LapTimer& timer) {
  const int64_t tiles = segments[0].prefix_rows / kKeyTile, heads = shape_.kv_heads;
  const auto count = static_cast<int64_t>(segments.size());
  const int64_t threads = omp_get_max_threads();
  int64_t tokens = 0;  // of the longest
  for (const Segment& s : segments) tokens = std::max(tokens, s.tokens);
  // Threads take heads in turn, and parts of heads where they would not end together.
  const int64_t wanted = heads % threads == 0 ? 1 : (4 * threads + heads - 1) / heads;
  const int64_t each = std::max<int64_t>(
      1, std::min((count + wanted - 1) / wanted, shared_rows(shape_) / (tokens * shape_.group())));
  const int64_t parts = (count + each - 1) / each, packed = parts > 1 ? tiles : 0;
  if (packed > 0) packed_cache_ = packed_prefix_ = nullptr;  // what was packed is overwritten
#pragma omp parallel
  {
    const Scratch& scratch = scratch_[static_cast<size_t>(omp_get_thread_num())];
#pragma omp for schedule(static)
    for (int64_t i = 0; i < packed * heads; ++i) pack(segments[0], i / packed, i % packed, scratch);
#pragma omp master
    timer.lap(Phase::kAttentionPack);
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < parts * heads; ++i) {
      const int64_t first = i / heads * each;
      share(segments.subspan(static_cast<size_t>(first), static_cast<size_t>(std::min(each, count - first))),
            i % heads, queries, tiles, packed, scratch, out);
    }
  }
  timer.lap(Phase::kAttention);
}

void Attention::share(std::span<const Segment> segments, int64_t head, int64_t queries, int64_t tiles,
                      int64_t packed, const Scratch& s, std::byte* out) const {
  const int64_t group = shape_.group(), depth = shape_.padded_dim(), row = depth * dtype_size(shape_.active);
  int64_t rows = 0;
  for (const Segment& segment : segments) {
    std::memcpy(s.queries + rows * row, query(queries, segment.at, head * group),
                static_cast<size_t>(segment.tokens * group * row));
    rows += segment.tokens * group;
  }
  const int64_t padded = padded_rows(rows);
  std::memset(s.queries + rows * row, 0, static_cast<size_t>((padded - rows) * row));
  clear(s.shared, 0, padded);
  std::fill_n(s.shared.limit, padded, static_cast<int32_t>(kKeyTile));  // all see all of it
  TileAttention t = of_rows(padded, s.queries, s.shared);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    take_keys(t, segments[0], head, tile, tile < packed, s);
    kernels_.attend(t);
  }
  int64_t at = 0;
  for (const Segment& segment : segments) {
    const int64_t own = segment.tokens * group;
    std::copy_n(s.shared.o + at * depth, own * depth, s.sums.o);
    std::copy_n(s.shared.maximum + at, own, s.sums.maximum);
    std::copy_n(s.shared.sum + at * kSumLanes, own * kSumLanes, s.sums.sum);
    clear(s.sums, own, padded_rows(own));
    const Tile tile{segment, 0, segment.tokens, head, queries};
    attend(tile, tiles, 0, s);
    finish(tile, s.sums, out);
    at += own;
  }
}

void Attention::pack(const Segment& s, int64_t head, int64_t tile, const Scratch& scratch) {
  int64_t at = (head * tiles_ + tile) * tile_bytes_;
  KeyTileSource from = source(s, head, tile, s.end(), scratch);
  kernels_.pack_keys(from, shape_.head_dim, keys_ + at);
  kernels_.pack_values(from, shape_.head_dim, values_ + at);
}

void Attention::clear(const Sums& sums, int64_t first, int64_t end) const {
  const int64_t depth = shape_.padded_dim(), rows = end - first;
  std::fill_n(sums.o + first * depth, rows * depth, 0.0f);
  std::fill_n(sums.maximum + first, rows, -INFINITY);
  std::fill_n(sums.sum + first * kSumLanes, rows * kSumLanes, 0.0f);
}

TileAttention Attention::of_rows(int64_t rows, const std::byte* q, const Sums& sums) const {
  return {.rows = rows,
          .depth = shape_.padded_dim(),
          .q = q,
          .o = sums.o,
          .maximum = sums.maximum,
          .sum = sums.sum,
          .limit = sums.limit,
          .scale = static_cast<float>(M_LOG2E / std::sqrt(static_cast<double>(shape_.head_dim)))};
}

void Attention::take_keys(TileAttention& t, const Segment& segment, int64_t head, int64_t tile, bool packed,
                          const Scratch& s) const {
  const int64_t at = (head * tiles_ + tile) * tile_bytes_;
  t.k = keys_ + at;
  t.v = values_ + at;
  if (packed) return;
  const KeyTileSource from = source(segment, head, tile, segment.end(), s);
  kernels_.pack_keys(from, shape_.head_dim, s.keys);
  kernels_.pack_values(from, shape_.head_dim, s.values);
  t.k = s.keys;
  t.v = s.values;
}

void Attention::tile(const Tile& tile, int64_t packed, const Scratch& s, std::byte* out) const {
  clear(s.sums, 0, padded_rows(tile.count * shape_.group()));
  attend(tile, 0, packed, s);
  finish(tile, s.sums, out);
}

void Attention::attend(const Tile& tile, int64_t from, int64_t packed, const Scratch& s) const {
  const auto& [segment, token, count, head, queries] = tile;
  const int64_t group = shape_.group(), rows = padded_rows(count * group);
  TileAttention t = of_rows(rows, query(queries, segment.at + token, head * group), s.sums);
  const int64_t end = segment.position(token + count - 1) + 1;  // keys that the last query of this tile sees
  for (int64_t key = from * kKeyTile; key < end; key += kKeyTile) {
    // Rows that only fill the last row-block see what the last query sees.
    for (int64_t r = 0; r < rows; ++r)
      s.sums.limit[r] = static_cast<int32_t>(std::clamp<int64_t>(
          segment.position(token + std::min(r / group, count - 1)) + 1 - key, 0, kKeyTile));
    take_keys(t, segment, head, key / kKeyTile, key / kKeyTile < packed, s);
    kernels_.attend(t);
  }
}

void Attention::finish(const Tile& tile, const Sums& sums, std::byte* out) const {
  const auto& [segment, token, count, head, queries] = tile;
  const int64_t group = shape_.group(), depth = shape_.padded_dim(), element = dtype_size(shape_.active),
                width = shape_.heads * shape_.head_dim;
  for (int64_t r = 0; r < count * group; ++r) {
    int64_t at = (segment.at + token + r / group) * width + (head * group + r % group) * shape_.head_dim;
    float sum = 0;
    for (int64_t lane = 0; lane < kSumLanes; ++lane) sum += sums.sum[r * kSumLanes + lane];
    kernels_.scale(sums.o + r * depth, 1.0f / sum, shape_.head_dim, out + at * element);
  }
}

}  // namespace ds::cpu
