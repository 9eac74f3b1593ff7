// The weights of a model on the device: one allocation, matrices [out][in] in the compute type, packed as the
// products read them (q|k|v, gate|up), vectors in f32.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "runtime/backends/cuda/memory_internal.h"
#include "runtime/model/checkpoint.h"

namespace ds::cuda {

struct LayerWeights {
  const std::byte *qkv = nullptr, *o = nullptr, *gate_up = nullptr, *down = nullptr;
  const float *input_norm = nullptr, *post_norm = nullptr;
  const float *q_bias = nullptr, *k_bias = nullptr, *v_bias = nullptr;           // null: none
  const float *o_bias = nullptr, *gate_up_bias = nullptr, *down_bias = nullptr;  // null: none
  const float *q_norm = nullptr, *k_norm = nullptr;                              // null: none
};

/// Arrays begin at multiples of it.
inline constexpr int64_t kArrayAlign = 256;
inline int64_t aligned(int64_t bytes) { return (bytes + kArrayAlign - 1) / kArrayAlign * kArrayAlign; }

class Weights {
 public:
  static Result<Weights> load(std::shared_ptr<Device> device, const Checkpoint& checkpoint,
                              const LoadOptions& options);
  /// Drawn on the device: matrices and biases normal with 1/sqrt(fan in), norms one.
  static Result<Weights> random(std::shared_ptr<Device> device, const ModelConfig& config,
                                const LoadOptions& options, uint64_t seed);

  const std::vector<LayerWeights>& layers() const { return layers_; }
  const std::byte* embedding() const { return embedding_; }  // [vocab][d_model]
  const std::byte* head() const { return head_; }            // the same where they are tied
  const float* final_norm() const { return final_norm_; }
  int64_t bytes() const { return buffer_.size(); }

 private:
  /// A tensor of the checkpoint and where it goes.
  struct Place {
    std::string name;
    int64_t rows = 0, columns = 0;  // columns 0: a vector of `rows`
    int64_t offset = 0;
    DType dtype = DType::kBF16;
    int64_t elements() const { return rows * std::max<int64_t>(columns, 1); }
    int64_t bytes() const { return elements() * dtype_size(dtype); }
  };
  static Result<Weights> make(std::shared_ptr<Device> device, const ModelConfig& config, DType dtype,
                              std::string_view name);
  int64_t lay_out(const ModelConfig& config, DType dtype);

  std::vector<Place> places_;
  std::vector<LayerWeights> layers_;
  const std::byte *embedding_ = nullptr, *head_ = nullptr;
  const float* final_norm_ = nullptr;
  DeviceBuffer buffer_;
};

}  // namespace ds::cuda
