// In place of cuDNN's attention: the same contract, by plain loops. As in cuDNN, probabilities are rounded to
// bf16 before they weigh V, and their sum is not.
#include <algorithm>
#include <cmath>
#include <vector>

#include "runtime/backends/cuda/attention_internal.h"
#include "runtime/backends/cuda/simulated/simulated.h"

namespace ds::cuda {
namespace {

float element(const std::byte* data, int64_t at) {
  return bf16_to_f32(reinterpret_cast<const uint16_t*>(data)[at]);
}

struct Run {
  AttentionShape shape;
  const std::byte *q, *kv;
  std::byte* out;

  /// Keys 0 .. keys - 1, for one row and head.
  void row(int64_t row, int64_t head, int64_t keys, std::vector<float>& weights,
           std::vector<float>& sums) const {
    const int64_t d = shape.head_dim, kv_row = 2 * shape.kv_heads * d;
    const int64_t q_at = (row * shape.heads + head) * d, k_at = head / (shape.heads / shape.kv_heads) * d;
    const float scale = 1.0f / std::sqrt(static_cast<float>(d));
    float top = -INFINITY, sum = 0;
    weights.resize(static_cast<size_t>(keys));
    for (int64_t key = 0; key < keys; ++key) {
      float dot = 0;
      for (int64_t i = 0; i < d; ++i) dot += element(q, q_at + i) * element(kv, key * kv_row + k_at + i);
      weights[static_cast<size_t>(key)] = dot * scale;
      top = std::max(top, dot * scale);
    }
    sums.assign(static_cast<size_t>(d), 0.0f);
    for (int64_t key = 0; key < keys; ++key) {
      const float weight = std::exp(weights[static_cast<size_t>(key)] - top);
      const float rounded = bf16_to_f32(f32_to_bf16(weight));
      sum += weight;
      for (int64_t i = 0; i < d; ++i)
        sums[static_cast<size_t>(i)] += rounded * element(kv, key * kv_row + shape.kv_heads * d + k_at + i);
    }
    for (int64_t i = 0; i < d; ++i)
      reinterpret_cast<uint16_t*>(out)[q_at + i] = f32_to_bf16(sums[static_cast<size_t>(i)] / sum);
  }
  void all(const LibraryLengths& lengths) const {
    std::vector<float> weights, sums;
    for (int64_t i = 0; i < lengths.rows; ++i)
      for (int64_t head = 0; head < shape.heads; ++head)
        row(i, head, lengths.keys - lengths.rows + i + 1, weights, sums);
  }
};

class Simulated final : public LibraryAttention {
 public:
  Simulated(const AttentionShape& shape, int64_t max_context, int64_t max_rows)
      : shape_(shape), max_context_(max_context), max_rows_(max_rows) {}
  int64_t workspace_bytes() const override {
    return kPlanBytes + static_cast<int64_t>(sizeof(LibraryLengths));
  }
  int64_t least_rows() const override { return 32; }  // so that small tests come here too

  Status run(cudaStream_t stream, const std::byte* q, std::byte* out, const AttentionSegment& segment,
             std::byte* workspace) override {
    if (cudaError_t raised = simulated::enter("cudnnBackendExecute"); raised != cudaSuccess)
      return error(Code::kUnavailable, "the library's attention: {}", cudaGetErrorString(raised));
    const int64_t row = shape_.heads * shape_.head_dim * 2,
                  kv_row = 2 * shape_.kv_heads * shape_.head_dim * 2;
    if (segment.prefix_rows != 0 || segment.positions || segment.rows < 1 || segment.rows > max_rows_ ||
        segment.keys < segment.rows || segment.keys > max_context_)
      return error(
          Code::kInternal,
          "the library's attention: found {} rows, {} keys, {} prefix rows; expected 1 to {} rows, as "
          "many keys up to {}, no prefix and no positions",
          segment.rows, segment.keys, segment.prefix_rows, max_rows_, max_context_);
    const Run run{shape_, q + segment.row * row, segment.cache, out + segment.row * row};
    const int64_t tiles = (segment.keys + kLibraryKeyTile - 1) / kLibraryKeyTile;
    auto readable = [](const std::byte* data, int64_t bytes) {
      return simulated::in_device_memory(data, static_cast<size_t>(bytes));
    };
    if (!readable(run.q, segment.rows * row) || !readable(run.out, segment.rows * row) ||
        !readable(run.kv, tiles * kLibraryKeyTile * kv_row) || !readable(workspace, workspace_bytes()) ||
        reinterpret_cast<uintptr_t>(workspace) % 256 != 0)
      return error(
          Code::kInternal,
          "the library's attention, {} rows and {} keys: q, out, the cache or the workspace of {} bytes "
          "is not all in device memory (the cache in tiles of {} rows), or not aligned",
          segment.rows, segment.keys, workspace_bytes(), kLibraryKeyTile);
    auto* lengths = reinterpret_cast<LibraryLengths*>(workspace + kPlanBytes);
    cudaError_t raised = write_lengths(stream, shape_, segment, lengths);
    if (raised == cudaSuccess) raised = simulated::enqueue(stream, [run, lengths] { run.all(*lengths); });
    if (raised != cudaSuccess)
      return error(Code::kInternal, "the library's attention, {} rows and {} keys: {}", segment.rows,
                   segment.keys, cudaGetErrorString(raised));
    return ok_status();
  }

 private:
  static constexpr int64_t kPlanBytes = 512;
  AttentionShape shape_;
  int64_t max_context_, max_rows_;
};

}  // namespace

Result<std::unique_ptr<LibraryAttention>> LibraryAttention::make(const AttentionShape& shape,
                                                                 int64_t max_context, int64_t max_rows, int,
                                                                 std::string& why) {
  if (max_context < 1 || max_rows < 1)
    return error(Code::kInvalidArgument,
                 "the library's attention: found {} keys and {} rows; expected at least 1", max_context,
                 max_rows);
  why = shape.dtype != DType::kBF16 ? fmt::format("it is used for bf16, not {}", dtype_name(shape.dtype))
        : shape.head_dim % 8 != 0   ? fmt::format("head_dim {} is not a multiple of 8", shape.head_dim)
                                    : "";
  if (!why.empty()) return std::unique_ptr<LibraryAttention>();
  return std::unique_ptr<LibraryAttention>(std::make_unique<Simulated>(shape, max_context, max_rows));
}

std::string library_attention_version() { return "a simulated cuDNN"; }

Result<std::string> plan_library_attention(const AttentionShape&, int64_t, int64_t, const std::string&, int) {
  return error(Code::kUnavailable, "planning cuDNN's attention: it is simulated");
}

}  // namespace ds::cuda
