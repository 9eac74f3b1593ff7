// Our own attention: FlashAttention-2's running softmax, with the keys split over thread blocks (flash
// decoding) and the splits joined by a second kernel.
//
// A block works on one kv head of one tile. Its rows are query rows times the heads of the group, packed, so
// that all heads that share K and V read them once: packed row p is query row p / group, head p % group. In
// bf16 the products are the tensor cores'; where few rows are packed (decoding) the four warps share the rows
// and divide the keys, else each has 16 rows of its own.
#include <algorithm>
#include <cmath>

#include "runtime/backends/cuda/attention_internal.h"
#include "runtime/backends/cuda/simt_internal.h"

namespace ds::cuda {
namespace {

constexpr int kBlockThreads = 128, kWarps = kBlockThreads / 32;
constexpr int kBlockRows = 64;  // packed rows of a block
constexpr int kMostSplits = 128;
constexpr float kLog2E = 1.4426950408889634f;

struct AttendCall {
  const std::byte* q = nullptr;
  std::byte* out = nullptr;
  const AttentionSegment* segments = nullptr;
  const AttentionTile* tiles = nullptr;
  float* scratch = nullptr;
  int heads = 0, kv_heads = 0, group = 0, head_dim = 0;
  int chunks = 1;        // blocks that share a tile's packed rows: more than 1 for groups above kBlockRows
  int scratch_rows = 0;  // packed rows of a block's share of the scratch
  int splits = 1;
  float scale = 0;  // of scores, in units of log2: log2(e) / sqrt(head_dim)
};

/// Keys of a tile, in shared memory, of the bf16 kernel: two stages of K and V take at most 68 KiB, so that
/// two blocks fit into a multiprocessor.
constexpr int key_tile(int dim) { return dim > 128 ? 32 : 64; }
/// Keys between which splits are cut, one for all kernels.
constexpr int kSplitKeys = 64;

int64_t group_of(const AttentionShape& s) { return s.heads / s.kv_heads; }
int64_t chunks_of(const AttentionShape& s) { return (group_of(s) + kBlockRows - 1) / kBlockRows; }
int64_t scratch_rows_of(const AttentionShape& s) {
  return std::min<int64_t>(kBlockRows, attention_tile_rows(s) * group_of(s));
}

// A split's share of the scratch: [scratch_rows][2] maximum and sum, then [scratch_rows][width] of what is
// accumulated, not yet divided.
constexpr int scratch_width(int head_dim) { return (head_dim + 3) / 4 * 4; }
constexpr int64_t scratch_floats(int rows, int head_dim) {
  return int64_t{rows} * (4 + scratch_width(head_dim));  // 4: 16-byte alignment for any number of rows
}

/// What a block does: packed rows first .. first + rows - 1 of a tile, keys begin .. end - 1 of its segment.
struct Work {
  const std::byte *prefix, *cache;
  int prefix_rows;
  const int32_t* positions;  // of the tile's query rows; null: start, start + 1, ...
  int64_t start;
  int64_t row;  // of q and of out, that of the tile's first query row
  int first, rows;
  int keys;        // that the tile's last row sees: no other sees more
  int begin, end;  // none: begin >= end
};

DS_DEVICE int64_t position_of(const Work& w, int row) {
  return w.positions ? w.positions[row] : w.start + row;
}

/// Keys that packed row `p` of the tile sees: all up to its own position. 0 behind the last row.
DS_DEVICE int limit_of(const Work& w, const AttendCall& c, int p) {
  return p < w.rows ? static_cast<int>(position_of(w, (w.first + p) / c.group)) + 1 : 0;
}

/// Splits that a length of `keys` really has: whole runs of kSplitKeys, as even as they come.
DS_DEVICE int split_keys(int keys, int splits) {
  int runs = (keys + kSplitKeys - 1) / kSplitKeys;
  return (runs + splits - 1) / splits * kSplitKeys;
}

DS_DEVICE Work work_of(const AttendCall& c, int tile_chunk, int split) {
  const AttentionTile tile = c.tiles[tile_chunk / c.chunks];
  const AttentionSegment& s = c.segments[tile.segment];
  Work w;
  w.prefix = s.prefix;
  w.cache = s.cache;
  w.prefix_rows = static_cast<int>(s.prefix_rows);
  w.positions = s.positions ? s.positions + tile.first_row : nullptr;
  w.start = s.first + (s.first_at ? *s.first_at : 0) + tile.first_row;
  w.row = s.row + tile.first_row;
  w.first = tile_chunk % c.chunks * kBlockRows;
  w.rows = min(tile.rows * c.group - w.first, kBlockRows);
  w.keys = static_cast<int>(position_of(w, tile.rows - 1)) + 1;
  const int size = split_keys(w.keys, c.splits);
  w.begin = split * size;
  w.end = min(w.begin + size, w.keys);
  return w;
}

/// Elements of q or out before those of packed row `p`.
DS_DEVICE int64_t row_at(const Work& w, const AttendCall& c, int p, int kv_head) {
  int packed = w.first + p;
  int64_t head = (w.row + packed / c.group) * c.heads + kv_head * c.group + packed % c.group;
  return head * c.head_dim;
}

/// K of a key and of the block's kv head; its V is kv_heads * head_dim elements further.
template <typename T>
DS_DEVICE const T* key_at(const Work& w, const AttendCall& c, int key, int kv_head) {
  const std::byte* rows = key < w.prefix_rows ? w.prefix : w.cache;
  int64_t row = key < w.prefix_rows ? key : key - w.prefix_rows;
  return reinterpret_cast<const T*>(rows) + (row * 2 * c.kv_heads + kv_head) * c.head_dim;
}

DS_DEVICE float* scratch_at(const AttendCall& c, int tile_chunk, int kv_head, int split) {
  int64_t index = (int64_t{tile_chunk} * c.kv_heads + kv_head) * c.splits + split;
  return c.scratch + index * scratch_floats(c.scratch_rows, c.head_dim);
}

/// 2^(a - b), where b may be the maximum of no scores at all (then a is too, and there is nothing to weigh).
DS_DEVICE float weight_of(float a, float b) { return b == -INFINITY ? 0.0f : exp2_approx(a - b); }

DS_DEVICE uint32_t pack_bf16(float low, float high) {
  __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &pair, sizeof bits);
  return bits;
}

// ---- bf16

/// 16 bytes of a row into shared memory; zeros where `valid` is false and behind the row's end. Rows that are
/// not 16-byte aligned (head_dim not a multiple of 8) go by 4 bytes, at once.
DS_DEVICE void load_16(__nv_bfloat16* to, const __nv_bfloat16* row, int column, int head_dim, bool valid) {
  if (head_dim % 8 == 0) {
    bool inside = valid && column < head_dim;
    copy_async_16(to, inside ? row + column : row, inside);
    return;
  }
  uint4 bits = {0, 0, 0, 0};
  const auto* from = reinterpret_cast<const uint32_t*>(row);
  if (valid) {
    if (column < head_dim) bits.x = from[column / 2];
    if (column + 2 < head_dim) bits.y = from[column / 2 + 1];
    if (column + 4 < head_dim) bits.z = from[column / 2 + 2];
    if (column + 6 < head_dim) bits.w = from[column / 2 + 3];
  }
  *reinterpret_cast<uint4*>(to) = bits;
}

template <int kDim>
struct Tiling {
  static constexpr int kKeys = key_tile(kDim);
  // 16 bytes between rows put any eight of them, as ldmatrix reads, into different banks.
  static constexpr int kStride = kDim + 8;
  static constexpr int kStage = 2 * kKeys * kStride;  // elements: K, then V
  static constexpr int kOutStride = kDim + 8;         // floats: the same for the fragments of the result
  // Queries lie in the second stage until they are in registers; wide heads leave none for them, so that they
  // stay in shared memory, behind the stages.
  static constexpr bool kQueriesStay = kDim > 128;
  static constexpr int kQueriesAt = kQueriesStay ? 2 * kStage : kStage;
  static constexpr int kInBytes = std::max(2 * kStage, kQueriesAt + kBlockRows * kStride) * 2;
  static constexpr int kOutBytes = kBlockRows * (kOutStride + 2) * 4;  // at the end, over all that was read
  static constexpr int kSharedBytes = std::max(kInBytes, kOutBytes);
};

template <int kDim>
DS_DEVICE void load_queries(const Work& w, const AttendCall& c, int kv_head, __nv_bfloat16* to, int rows) {
  const auto* q = reinterpret_cast<const __nv_bfloat16*>(c.q);
  for (int i = threadIdx.x; i < rows * (kDim / 8); i += kBlockThreads) {
    int p = i / (kDim / 8), column = i % (kDim / 8) * 8;
    bool valid = p < w.rows;
    load_16(to + p * Tiling<kDim>::kStride + column, q + row_at(w, c, valid ? p : 0, kv_head), column,
            c.head_dim, valid);
  }
}

/// K and V of keys first .. first + kKeys - 1; zeros from the end of the block's keys on, whatever lies
/// there: 0 times a NaN is no 0.
template <int kDim>
DS_DEVICE void load_keys(const Work& w, const AttendCall& c, int kv_head, int first, __nv_bfloat16* k) {
  constexpr int kKeys = Tiling<kDim>::kKeys, kStride = Tiling<kDim>::kStride;
  __nv_bfloat16* v = k + kKeys * kStride;
  DS_UNROLL_BY(4)
  for (int i = 0; i < kKeys * (kDim / 8) / kBlockThreads; ++i) {
    int at = i * kBlockThreads + threadIdx.x, key = at / (kDim / 8), column = at % (kDim / 8) * 8;
    bool valid = first + key < w.end;
    const auto* row = key_at<__nv_bfloat16>(w, c, valid ? first + key : w.begin, kv_head);
    load_16(k + key * kStride + column, row, column, c.head_dim, valid);
    load_16(v + key * kStride + column, row + c.kv_heads * c.head_dim, column, c.head_dim, valid);
  }
}

/// What one warp has of 16 packed rows, in the layout of mma's results: a thread has row lane / 4 (elements 0
/// and 1) and the row 8 below (2 and 3), of each 8 columns the two from lane % 4 * 2 on.
template <int kDim>
struct Rows16 {
  static constexpr int kHeld = Tiling<kDim>::kQueriesStay ? 1 : kDim / 16;
  uint32_t q[kHeld][4];
  const __nv_bfloat16* q_at;  // where this thread reads its part from shared memory
  float o[kDim / 8][4];
  float maximum[2], sum[2];  // of scores in units of log2; the sum is this thread's columns' only
  int limit[2];              // keys that the row sees
  int least, most;           // of all 16 rows
};

template <int kDim>
DS_DEVICE void begin_rows(Rows16<kDim>& r, const Work& w, const AttendCall& c, const __nv_bfloat16* q,
                          int row0) {
  const int lane = threadIdx.x % 32;
  r.q_at = q + (row0 + lane % 16) * Tiling<kDim>::kStride + lane / 16 * 8;
  if constexpr (!Tiling<kDim>::kQueriesStay) {
    DS_UNROLL
    for (int d = 0; d < kDim / 16; ++d) ldmatrix(r.q[d], r.q_at + d * 16);
  }
  DS_UNROLL
  for (int n = 0; n < kDim / 8; ++n) {
    DS_UNROLL
    for (int e = 0; e < 4; ++e) r.o[n][e] = 0;
  }
  DS_UNROLL
  for (int h = 0; h < 2; ++h) {
    r.maximum[h] = -INFINITY;
    r.sum[h] = 0;
    r.limit[h] = limit_of(w, c, row0 + h * 8 + lane / 4);
  }
  // Rows are in order of position; rows behind the last see nothing and weigh nothing.
  r.least = limit_of(w, c, row0);
  r.most = limit_of(w, c, max(0, min(row0 + 15, w.rows - 1)));
  if (row0 >= w.rows) r.most = 0;
}

/// Keys first .. first + kKeys - 1, at `k` and `v` in shared memory, for 16 rows.
template <int kDim, int kKeys>
DS_DEVICE void attend_keys(Rows16<kDim>& r, float scale, int first, const __nv_bfloat16* k,
                           const __nv_bfloat16* v) {
  constexpr int kStride = Tiling<kDim>::kStride;
  const int lane = threadIdx.x % 32, matrix = lane / 8;
  float s[kKeys / 8][4];
  DS_UNROLL
  for (int n = 0; n < kKeys / 8; ++n) {
    DS_UNROLL
    for (int e = 0; e < 4; ++e) s[n][e] = 0;
  }
  const __nv_bfloat16* k_at = k + (matrix / 2 * 8 + lane % 8) * kStride + matrix % 2 * 8;
  DS_UNROLL
  for (int d = 0; d < kDim / 16; ++d) {
    uint32_t(&q)[4] = r.q[d % Rows16<kDim>::kHeld];
    if constexpr (Tiling<kDim>::kQueriesStay) ldmatrix(q, r.q_at + d * 16);
    DS_UNROLL
    for (int n = 0; n < kKeys / 16; ++n) {
      uint32_t b[4];
      ldmatrix(b, k_at + n * 16 * kStride + d * 16);
      mma_16x8x16(s[2 * n], q, {b[0], b[1]});
      mma_16x8x16(s[2 * n + 1], q, {b[2], b[3]});
    }
  }
  if (first + kKeys > r.least) {
    DS_UNROLL
    for (int n = 0; n < kKeys / 8; ++n) {
      DS_UNROLL
      for (int e = 0; e < 4; ++e)
        if (first + n * 8 + lane % 4 * 2 + e % 2 >= r.limit[e / 2]) s[n][e] = -INFINITY;
    }
  }
  DS_UNROLL
  for (int h = 0; h < 2; ++h) {
    float top = -INFINITY;
    DS_UNROLL
    for (int n = 0; n < kKeys / 8; ++n) top = fmaxf(top, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
    top = fmaxf(r.maximum[h], top * scale);
    float shrink = weight_of(r.maximum[h], top), base = top == -INFINITY ? 0.0f : top;
    r.maximum[h] = top;
    r.sum[h] *= shrink;
    DS_UNROLL
    for (int n = 0; n < kKeys / 8; ++n) {
      DS_UNROLL
      for (int e = 2 * h; e < 2 * h + 2; ++e) {
        s[n][e] = exp2_approx(s[n][e] * scale - base);
        r.sum[h] += s[n][e];
      }
    }
    DS_UNROLL
    for (int n = 0; n < kDim / 8; ++n) {
      r.o[n][2 * h] *= shrink;
      r.o[n][2 * h + 1] *= shrink;
    }
  }
  const __nv_bfloat16* v_at = v + (matrix % 2 * 8 + lane % 8) * kStride + matrix / 2 * 8;
  DS_UNROLL
  for (int n = 0; n < kKeys / 16; ++n) {
    const float(&low)[4] = s[2 * n], (&high)[4] = s[2 * n + 1];
    uint32_t p[4] = {pack_bf16(low[0], low[1]), pack_bf16(low[2], low[3]), pack_bf16(high[0], high[1]),
                     pack_bf16(high[2], high[3])};
    DS_UNROLL
    for (int d = 0; d < kDim / 16; ++d) {
      uint32_t b[4];
      ldmatrix_transposed(b, v_at + n * 16 * kStride + d * 16);
      mma_16x8x16(r.o[2 * d], p, {b[0], b[1]});
      mma_16x8x16(r.o[2 * d + 1], p, {b[2], b[3]});
    }
  }
}

/// 16 rows to shared memory: o as [..][kOutStride] and, behind it, [..][2] maximum and sum.
template <int kDim>
DS_DEVICE void store_rows(const Rows16<kDim>& r, float* o, float* stats, int row0) {
  const int lane = threadIdx.x % 32;
  DS_UNROLL
  for (int h = 0; h < 2; ++h) {
    int row = row0 + h * 8 + lane / 4;
    float sum = r.sum[h];
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    if (lane % 4 == 0) {
      stats[row * 2] = r.maximum[h];
      stats[row * 2 + 1] = sum;
    }
    DS_UNROLL
    for (int n = 0; n < kDim / 8; ++n)
      *reinterpret_cast<float2*>(o + row * Tiling<kDim>::kOutStride + n * 8 + lane % 4 * 2) = {
          r.o[n][2 * h], r.o[n][2 * h + 1]};
  }
}

/// The rows of a block, each in `kParts` parts that lie kPartRows rows apart, to the output or the scratch.
template <int kDim, int kParts, int kPartRows>
DS_DEVICE void finish_rows(const Work& w, const AttendCall& c, int kv_head, const float* o,
                           const float* stats, float* scratch) {
  const int width = scratch_width(c.head_dim);
  auto* out = reinterpret_cast<__nv_bfloat16*>(c.out);
  for (int i = threadIdx.x; i < w.rows * (kDim / 2); i += kBlockThreads) {
    int p = i / (kDim / 2), column = i % (kDim / 2) * 2;
    if (column >= width) continue;
    float top = -INFINITY, sum = 0, x = 0, y = 0;
    DS_UNROLL
    for (int part = 0; part < kParts; ++part) top = fmaxf(top, stats[(part * kPartRows + p) * 2]);
    DS_UNROLL
    for (int part = 0; part < kParts; ++part) {
      int row = part * kPartRows + p;
      float weight = weight_of(stats[row * 2], top);
      float2 v = *reinterpret_cast<const float2*>(o + row * Tiling<kDim>::kOutStride + column);
      sum += weight * stats[row * 2 + 1];
      x += weight * v.x;
      y += weight * v.y;
    }
    if (scratch) {
      if (column == 0) *reinterpret_cast<float2*>(scratch + p * 2) = {top, sum};
      *reinterpret_cast<float2*>(scratch + c.scratch_rows * 4 + p * width + column) = {x, y};
    } else if (column < c.head_dim) {
      uint32_t bits = pack_bf16(x / sum, y / sum);
      *reinterpret_cast<uint32_t*>(out + row_at(w, c, p, kv_head) + column) = bits;
    }
  }
}

/// All keys of a block. kRowWarps: warps that have rows of their own; the others share rows and divide keys.
template <int kDim, int kRowWarps>
DS_DEVICE void attend_block(const Work& w, const AttendCall& c, int kv_head, __nv_bfloat16* shared,
                            float* scratch) {
  using T = Tiling<kDim>;
  constexpr int kWarpKeys = std::max(16, T::kKeys * kRowWarps / kWarps);
  constexpr int kParts = T::kKeys / kWarpKeys;
  const int warp = threadIdx.x / 32, row0 = warp % kRowWarps * 16, part = warp / kRowWarps;
  load_keys<kDim>(w, c, kv_head, w.begin, shared);
  load_queries<kDim>(w, c, kv_head, shared + T::kQueriesAt, kRowWarps * 16);
  copy_async_commit();
  copy_async_wait<0>();
  __syncthreads();
  Rows16<kDim> rows;
  begin_rows(rows, w, c, shared + T::kQueriesAt, row0);
  __syncthreads();
  const int tiles = (w.end - w.begin + T::kKeys - 1) / T::kKeys;
  for (int tile = 0; tile < tiles; ++tile) {
    int first = w.begin + tile * T::kKeys;
    if (tile + 1 < tiles) {
      load_keys<kDim>(w, c, kv_head, first + T::kKeys, shared + (tile + 1) % 2 * T::kStage);
      copy_async_commit();
      copy_async_wait<1>();
    } else {
      copy_async_wait<0>();
    }
    __syncthreads();
    int skip = part * kWarpKeys;
    if (part < kParts && first + skip < rows.most) {
      const __nv_bfloat16* k = shared + tile % 2 * T::kStage + skip * T::kStride;
      attend_keys<kDim, kWarpKeys>(rows, c.scale, first + skip, k, k + T::kKeys * T::kStride);
    }
    __syncthreads();  // the stage is free again
  }
  auto* o = reinterpret_cast<float*>(shared);
  float* stats = o + kBlockRows * T::kOutStride;
  constexpr int kPartRows = kRowWarps * 16;
  if (part < kParts) store_rows(rows, o, stats, part * kPartRows + row0);
  __syncthreads();
  finish_rows<kDim, kParts, kPartRows>(w, c, kv_head, o, stats, scratch);
}

/// Grid: tiles and their chunks, kv heads, splits. Blocks that read the same keys are neighbours.
template <int kDim>
DS_KERNEL DS_THREADS(kBlockThreads) attend_bf16(AttendCall c) {
  DS_DYNAMIC_SHARED(shared);
  const int tile_chunk = blockIdx.x, kv_head = blockIdx.y, split = blockIdx.z;
  const Work w = work_of(c, tile_chunk, split);
  if (w.rows <= 0 || w.begin >= w.end) return;
  float* scratch = c.splits > 1 ? scratch_at(c, tile_chunk, kv_head, split) : nullptr;
  auto* tiles = reinterpret_cast<__nv_bfloat16*>(shared);
  if (w.rows <= 16)
    attend_block<kDim, 1>(w, c, kv_head, tiles, scratch);
  else
    attend_block<kDim, kWarps>(w, c, kv_head, tiles, scratch);
}

// ---- f32

/// Each warp takes a packed row at a time, each thread a key of 32 for the scores and then every 32nd column.
/// Simple, for the laws and for tests.
DS_KERNEL DS_THREADS(kBlockThreads) attend_f32(AttendCall c) {
  DS_SHARED float queries[kWarps][kMaxHeadDim];
  const int tile_chunk = blockIdx.x, kv_head = blockIdx.y, split = blockIdx.z;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const Work w = work_of(c, tile_chunk, split);
  if (w.rows <= 0 || w.begin >= w.end) return;
  const int width = scratch_width(c.head_dim);
  float* scratch = c.splits > 1 ? scratch_at(c, tile_chunk, kv_head, split) : nullptr;
  float* query = queries[warp];
  for (int p = warp; p < w.rows; p += kWarps) {
    const int64_t at = row_at(w, c, p, kv_head);
    const int end = min(w.end, limit_of(w, c, p));
    __syncwarp();
    for (int d = lane; d < c.head_dim; d += 32) query[d] = reinterpret_cast<const float*>(c.q)[at + d];
    __syncwarp();
    float top = -INFINITY, sum = 0, o[kMaxHeadDim / 32] = {};
    for (int first = w.begin; first < end; first += 32) {
      const int keys = min(32, end - first);
      const float* k = key_at<float>(w, c, first + min(lane, keys - 1), kv_head);
      float score = 0;
      DS_UNROLL_BY(4)
      for (int d = 0; d < c.head_dim; d += 2) {
        float2 pair = *reinterpret_cast<const float2*>(k + d);
        score += query[d] * pair.x;
        score += query[d + 1] * pair.y;
      }
      score = lane < keys ? score * c.scale : -INFINITY;
      const float next = fmaxf(top, warp_max(score)), shrink = weight_of(top, next);
      const float probability = exp2_approx(score - next);
      top = next;
      sum = sum * shrink + probability;
      DS_UNROLL
      for (int i = 0; i < kMaxHeadDim / 32; ++i) o[i] *= shrink;
      DS_UNROLL_BY(1)
      for (int key = 0; key < keys; ++key) {
        const float* v = key_at<float>(w, c, first + key, kv_head) + int64_t{c.kv_heads} * c.head_dim;
        const float share = __shfl_sync(0xffffffffu, probability, key);
        DS_UNROLL
        for (int i = 0; i < kMaxHeadDim / 32; ++i)
          if (lane + 32 * i < c.head_dim) o[i] += share * v[lane + 32 * i];
      }
    }
    sum = warp_sum(sum);
    if (scratch && lane == 0) *reinterpret_cast<float2*>(scratch + p * 2) = {top, sum};
    DS_UNROLL
    for (int i = 0; i < kMaxHeadDim / 32; ++i) {
      const int d = lane + 32 * i;
      if (scratch && d < width) scratch[c.scratch_rows * 4 + p * width + d] = o[i];
      if (!scratch && d < c.head_dim) reinterpret_cast<float*>(c.out)[at + d] = o[i] / sum;
    }
  }
}

// ---- joining

DS_DEVICE void store_2(__nv_bfloat16* to, float x, float y) {
  *reinterpret_cast<uint32_t*>(to) = pack_bf16(x, y);
}
DS_DEVICE void store_2(float* to, float x, float y) { *reinterpret_cast<float2*>(to) = {x, y}; }

/// The splits of one packed row of a tile, in an order that does not change. Grid: tiles and their chunks, kv
/// heads, packed rows. Each warp adds every fourth split, then the four are added.
template <typename T>
DS_KERNEL DS_THREADS(kBlockThreads) join_splits(AttendCall c) {
  DS_SHARED float weights[kMostSplits], parts[kWarps][kMaxHeadDim];
  const int tile_chunk = blockIdx.x, kv_head = blockIdx.y, p = blockIdx.z;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, width = scratch_width(c.head_dim);
  const Work w = work_of(c, tile_chunk, 0);
  if (p >= w.rows) return;
  const int size = split_keys(w.keys, c.splits), splits = (w.keys + size - 1) / size;  // those that have keys
  const int64_t stride = scratch_floats(c.scratch_rows, c.head_dim);
  const float* stats = scratch_at(c, tile_chunk, kv_head, 0) + p * 2;
  float top = -INFINITY, sum = 0;
  for (int split = lane; split < splits; split += 32) top = fmaxf(top, stats[split * stride]);
  top = warp_max(top);
  for (int split = lane; split < splits; split += 32) {
    float weight = weight_of(stats[split * stride], top);
    sum += weight * stats[split * stride + 1];
    if (warp == 0) weights[split] = weight;
  }
  sum = warp_sum(sum);
  __syncthreads();
  const float* o = scratch_at(c, tile_chunk, kv_head, 0) + c.scratch_rows * 4 + p * width;
  for (int d = lane * 4; d < width; d += 128) {
    float4 total = {0, 0, 0, 0};
    DS_UNROLL_BY(4)
    for (int split = warp; split < splits; split += kWarps) {
      float4 v = *reinterpret_cast<const float4*>(o + split * stride + d);
      float weight = weights[split];
      total.x += weight * v.x;
      total.y += weight * v.y;
      total.z += weight * v.z;
      total.w += weight * v.w;
    }
    *reinterpret_cast<float4*>(&parts[warp][d]) = total;
  }
  __syncthreads();
  T* out = reinterpret_cast<T*>(c.out) + row_at(w, c, p, kv_head);
  for (int d = static_cast<int>(threadIdx.x) * 2; d < c.head_dim; d += 2 * kBlockThreads) {
    float x = 0, y = 0;
    DS_UNROLL
    for (int part = 0; part < kWarps; ++part) {
      x += parts[part][d];
      y += parts[part][d + 1];
    }
    store_2(out + d, x / sum, y / sum);
  }
}

// ---- the library's lengths

DS_KERNEL DS_THREADS(32) store_lengths(LibraryLengths value, int64_t first, const int32_t* first_at,
                                       int kv_row, LibraryLengths* lengths) {
  if (threadIdx.x != 0) return;
  value.keys = static_cast<int32_t>(first + (first_at ? *first_at : 0) + value.rows);
  value.kv_offsets[1] = value.keys * kv_row;
  *lengths = value;
}

// ---- the host's side

template <int kDim>
cudaError_t launch_bf16(cudaStream_t stream, dim3 grid, const AttendCall& call) {
  return launch(attend_bf16<kDim>, grid, kBlockThreads, Tiling<kDim>::kSharedBytes, stream, call);
}

cudaError_t launch_attend(cudaStream_t stream, DType dtype, dim3 grid, const AttendCall& call) {
  if (dtype == DType::kF32) return launch(attend_f32, grid, kBlockThreads, 0, stream, call);
  if (call.head_dim <= 32) return launch_bf16<32>(stream, grid, call);
  if (call.head_dim <= 64) return launch_bf16<64>(stream, grid, call);
  if (call.head_dim <= 96) return launch_bf16<96>(stream, grid, call);
  if (call.head_dim <= 128) return launch_bf16<128>(stream, grid, call);
  return launch_bf16<256>(stream, grid, call);
}

}  // namespace

int64_t attention_tile_rows(const AttentionShape& shape) {
  return std::max<int64_t>(1, kBlockRows / group_of(shape));
}

/// Two blocks fit into a multiprocessor.
constexpr int64_t slots_of(int multiprocessors) { return 2 * int64_t{multiprocessors}; }
constexpr int64_t kMostWaves = 2;

int64_t attention_splits(const AttentionShape& shape, int64_t tiles, int64_t keys, int multiprocessors) {
  const int64_t slots = slots_of(multiprocessors), blocks = tiles * chunks_of(shape) * shape.kv_heads;
  // A split of fewer than four runs of keys costs more to join than it saves.
  const int64_t runs = (keys + kSplitKeys - 1) / kSplitKeys;
  const int64_t most = std::clamp<int64_t>(runs / 4, 1, kMostSplits);
  if (blocks == 0 || blocks >= slots) return 1;
  // The fewest splits that fill their waves of blocks, two at most, nearly as well as can be.
  auto fullness = [&](int64_t splits) {
    const int64_t total = blocks * splits, waves = (total + slots - 1) / slots;
    return static_cast<double>(total) / static_cast<double>(waves * slots);
  };
  double best = 0;
  for (int64_t splits = 1; splits <= most && blocks * splits <= kMostWaves * slots; ++splits)
    best = std::max(best, fullness(splits));
  int64_t splits = 1;
  while (fullness(splits) < 0.9 * best) ++splits;
  return splits;
}

int64_t attention_scratch_bytes(const AttentionShape& shape, int64_t tiles, int64_t splits) {
  if (splits <= 1) return 0;
  const int64_t each =
      scratch_floats(static_cast<int>(scratch_rows_of(shape)), static_cast<int>(shape.head_dim)) * 4;
  return tiles * chunks_of(shape) * shape.kv_heads * splits * each;
}

int64_t attention_most_scratch_bytes(const AttentionShape& shape, int multiprocessors) {
  const int64_t each =
      scratch_floats(static_cast<int>(scratch_rows_of(shape)), static_cast<int>(shape.head_dim)) * 4;
  return kMostWaves * slots_of(multiprocessors) * each;
}

cudaError_t attend(cudaStream_t stream, const AttentionShape& shape, const std::byte* q, std::byte* out,
                   const AttentionSegment* segments, const AttentionTile* tiles, int64_t tile_count,
                   int64_t splits, std::byte* scratch) {
  const bool known = shape.dtype == DType::kBF16 || shape.dtype == DType::kF32;
  if (!known || shape.kv_heads <= 0 || shape.heads % shape.kv_heads != 0 || shape.head_dim <= 0 ||
      shape.head_dim % 2 != 0 || shape.head_dim > kMaxHeadDim || splits < 1 || splits > kMostSplits ||
      (splits > 1 && !scratch))
    return cudaErrorInvalidValue;
  if (tile_count == 0) return cudaSuccess;
  AttendCall call{.q = q, .out = out, .segments = segments, .tiles = tiles};
  call.scratch = reinterpret_cast<float*>(scratch);
  call.heads = static_cast<int>(shape.heads);
  call.kv_heads = static_cast<int>(shape.kv_heads);
  call.group = static_cast<int>(group_of(shape));
  call.head_dim = static_cast<int>(shape.head_dim);
  call.chunks = static_cast<int>(chunks_of(shape));
  call.scratch_rows = static_cast<int>(scratch_rows_of(shape));
  call.splits = static_cast<int>(splits);
  call.scale = kLog2E / std::sqrt(static_cast<float>(shape.head_dim));
  const dim3 grid(static_cast<unsigned>(tile_count * call.chunks), static_cast<unsigned>(shape.kv_heads),
                  static_cast<unsigned>(splits));
  cudaError_t launched = launch_attend(stream, shape.dtype, grid, call);
  if (launched != cudaSuccess || splits == 1) return launched;
  const dim3 rows(grid.x, grid.y, static_cast<unsigned>(call.scratch_rows));
  return shape.dtype == DType::kF32
             ? launch(join_splits<float>, rows, kBlockThreads, 0, stream, call)
             : launch(join_splits<__nv_bfloat16>, rows, kBlockThreads, 0, stream, call);
}

cudaError_t write_lengths(cudaStream_t stream, const AttentionShape& shape, const AttentionSegment& segment,
                          LibraryLengths* lengths) {
  LibraryLengths value;
  value.rows = static_cast<int32_t>(segment.rows);
  value.q_offsets[1] = static_cast<int32_t>(segment.rows * shape.heads * shape.head_dim);
  const int kv_row = static_cast<int>(2 * shape.kv_heads * shape.head_dim);
  return launch(store_lengths, 1, 32, 0, stream, value, segment.first, segment.first_at, kv_row, lengths);
}

}  // namespace ds::cuda
