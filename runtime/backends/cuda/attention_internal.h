// Attention of rows at the end of, or among, what the caches hold. Two ways:
//  - the library's (cuDNN): long runs of queries of one sequence in bf16, at the tensor cores' full rate;
//  - our own kernel, for all else: few queries (decoding, a question) split over the keys so that all
//    multiprocessors read the cache together, many sequences behind a shared prefix, selected tokens, f32.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "support/dtype.h"
#include "support/status.h"

namespace ds::cuda {

struct AttentionShape {
  int64_t heads = 0, kv_heads = 0, head_dim = 0;
  DType dtype = DType::kBF16;
};

inline constexpr int64_t kMaxHeadDim = 256;

/// Query rows row .. row + rows - 1 (of q and of out) of one sequence. Row i is at the position
/// first + (first_at ? *first_at : 0) + i, or positions[i] where these are given, and sees the keys of all
/// positions up to its own.
struct AttentionSegment {
  const std::byte* cache = nullptr;   // [..][2][kv_heads][head_dim]; its row 0 is position prefix_rows
  const std::byte* prefix = nullptr;  // positions 0 .. prefix_rows - 1
  int64_t prefix_rows = 0;
  const int32_t* positions = nullptr;  // device memory, ascending
  const int32_t* first_at = nullptr;   // device memory
  int64_t first = 0;
  int64_t row = 0, rows = 0;
  int64_t keys = 0;  // no row sees more; with first_at or positions: an upper bound, known beforehand
};

// ---- our own kernel

/// A piece of work of one thread block: some query rows of a segment. Made on the host, read on the device.
struct AttentionTile {
  int32_t segment = 0;
  int32_t first_row = 0;  // within the segment
  int32_t rows = 0;
};

/// Query rows (of all heads of a group together) that one block works on.
int64_t attention_tile_rows(const AttentionShape& shape);
/// Key splits that fill `multiprocessors`; 1: none are needed.
int64_t attention_splits(const AttentionShape& shape, int64_t tiles, int64_t keys, int multiprocessors);
/// Bytes of scratch for `tiles` tiles in `splits` splits: what each split has found, to be joined.
int64_t attention_scratch_bytes(const AttentionShape& shape, int64_t tiles, int64_t splits);
/// The same of any call that is split as attention_splits() says.
int64_t attention_most_scratch_bytes(const AttentionShape& shape, int multiprocessors);

/// q, out: [rows][heads][head_dim]. `segments` and `tiles` are device-readable.
cudaError_t attend(cudaStream_t stream, const AttentionShape& shape, const std::byte* q, std::byte* out,
                   const AttentionSegment* segments, const AttentionTile* tiles, int64_t tile_count,
                   int64_t splits, std::byte* scratch);

// ---- the library's

/// What the library reads from device memory in place of lengths that it would otherwise be built for. In
/// elements, each on a 16-byte boundary; q_offsets and kv_offsets say where a sequence begins and ends, so
/// that nothing outside it is written.
struct LibraryLengths {
  alignas(16) int32_t rows = 0;
  alignas(16) int32_t keys = 0;
  alignas(16) int32_t q_offsets[2] = {};
  alignas(16) int32_t kv_offsets[2] = {};
};
/// `lengths`, device memory, as `segment` says when the kernel runs.
cudaError_t write_lengths(cudaStream_t stream, const AttentionShape& shape, const AttentionSegment& segment,
                          LibraryLengths* lengths);

/// Graphs of one model's attention, built once for contexts up to a length; lengths are read from device
/// memory, so that nothing is built in a request.
class LibraryAttention {
 public:
  virtual ~LibraryAttention() = default;
  /// Null without an error: the library does not do this shape on this device, or is not there; `why` says
  /// which. Takes up to a second for each of a handful of graphs.
  static Result<std::unique_ptr<LibraryAttention>> make(const AttentionShape& shape, int64_t max_context,
                                                        int64_t max_rows, int device, std::string& why);
  virtual int64_t workspace_bytes() const = 0;
  /// Fewest rows for which it is worth while; fewer go to our own kernel.
  virtual int64_t least_rows() const = 0;
  /// One segment without a prefix and without positions of its own; at most max_rows rows, max_context keys.
  /// `workspace`: workspace_bytes(), 256-byte aligned, of this stream only. Any thread may call. The last
  /// keys are read in whole tiles: kLibraryKeyTile rows of the cache from a multiple of it on must be
  /// readable, and hold numbers (memory that was zeroed and then only held caches does).
  virtual Status run(cudaStream_t stream, const std::byte* q, std::byte* out, const AttentionSegment& segment,
                     std::byte* workspace) = 0;
};
inline constexpr int64_t kLibraryKeyTile = 128;
std::string library_attention_version();  // "cuDNN 9.19.0"; "" where it is not there, or was built without

/// Whether the library would do this on a device that need not be here: builds the graph for `rows` rows for
/// the device that `properties` describes (JSON, as cuDNN writes it), of compute capability sm / 10. sm % 10.
/// Gives the name of the library's plan.
Result<std::string> plan_library_attention(const AttentionShape& shape, int64_t max_context, int64_t rows,
                                           const std::string& properties, int sm);

}  // namespace ds::cuda
