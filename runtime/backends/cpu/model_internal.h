// A model on the CPU backend: packed weights (load.cpp), the workspace of one stream (workspace.cpp), and its
// calls (model.cpp, layer.cpp, select.cpp, maps.cpp).
#pragma once

#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "runtime/backends/backend.h"
#include "runtime/backends/cpu/attention_internal.h"
#include "runtime/backends/cpu/matmul_internal.h"
#include "runtime/backends/cpu/profile_internal.h"
#include "runtime/backends/cpu/weights_internal.h"
#include "runtime/backends/host/stream_internal.h"

namespace ds::cpu {

class CpuModel;

inline int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }
inline const float* or_null(const std::vector<float>& v) { return v.empty() ? nullptr : v.data(); }

/// Most rows that go through a layer at once: many enough that reading the weights costs nothing beside the
/// products, few enough that what lies between two products stays in the last-level cache.
inline constexpr int64_t kBlockRows = 512;

/// Most rows of one call of the product that makes logits.
inline constexpr int64_t kLogitRows = 32;

/// Ranks of low-rank maps are padded with zeros to a multiple of it: fewer shapes of products, and none that
/// a library may take for a vector.
inline constexpr int64_t kRankAlign = 16;

/// What the maps of one form and rank share. Full: one product [d_model] -> [d_model]; low-rank: down to
/// `rank` (padded), and up again.
struct MapProducts {
  int64_t rank = 0;  // 0: full
  std::shared_ptr<Product> first, second;
};

class CpuMap final : public DeviceMap {
 public:
  CpuMap(const CpuModel& model, int64_t shape);
  int64_t bytes() const override { return memory_.size(); }

 private:
  friend class CpuModel;
  PackedWeights first_, second_;  // of the products
  const float* scale_ = nullptr;  // [d_model]; null: none
  const float* bias_ = nullptr;   // [d_model]
  HostBuffer memory_;
};

class CpuWorkspace final : public Workspace {
 public:
  static Result<std::unique_ptr<CpuWorkspace>> make(const CpuModel& model, int64_t max_context);
  CpuWorkspace(const CpuModel& model, int64_t max_context, int64_t map_shapes);

 private:
  friend class CpuModel;
  struct Row {
    std::byte *hidden, *kv;  // kv: where its K and V go
    int64_t position;
  };
  std::vector<Row> rows_, query_rows_;        // of a block; query_rows_: those with a query
  std::vector<Attention::Segment> segments_;  // the latter, by sequence
  HostBuffer buffer_;
  // Rows of one block, with room for a product's padding. `active` elements unless f32 is said.
  std::byte* normed_ = nullptr;            // [rows][d_model]
  float* projected_ = nullptr;             // f32: K|V, then Q, then what is added to the hidden states
  std::byte* attended_ = nullptr;          // [rows][heads * head_dim]
  std::byte* gate_up_ = nullptr;           // [rows][2 * ff], or between a low-rank map's two products
  std::byte* activated_ = nullptr;         // [rows][ff]
  std::byte* scratch_ = nullptr;           // oneDNN's
  float *cos_ = nullptr, *sin_ = nullptr;  // f32 [max_context][head_dim / 2]
  float* deviation_ = nullptr;             // [max_context]: how far each token's K is off
  int32_t* order_ = nullptr;               // [max_context]: tokens, the chosen ones in front
  float* logits_ = nullptr;                // [vocab]: where nobody else wants them
  std::vector<std::pair<float, int32_t>> sorted_;  // of choose()
  std::unique_ptr<Attention> attention_;
  std::unique_ptr<ProductRunner> q_, kv_, o_, gate_up_product_, down_, head_;
  struct MapRunners {
    std::unique_ptr<ProductRunner> first, second;
  };
  std::vector<MapRunners> map_products_;  // as the model's, when this was made
};

class Loader;

class CpuModel final : public DeviceModel {
 public:
  static Result<std::unique_ptr<DeviceModel>> load(const Checkpoint& checkpoint, const LoadOptions& options,
                                                   Isa isa, int threads);

  const ModelConfig& config() const override { return config_; }
  DType dtype() const override { return dtype_; }
  int64_t weight_bytes() const override { return weights_.size() + shared_bytes_; }
  void set_profile(PhaseTimes* times) override { profile_ = times; }

 protected:
  Result<std::unique_ptr<Workspace>> new_workspace(int64_t max_context) override;
  Result<std::unique_ptr<DeviceMap>> new_map(const AlignmentMap& map) override;
  void enqueue_embed(CommandStream& stream, const int32_t* ids, int64_t rows, std::byte* hidden) override;
  void enqueue_layer(CommandStream& stream, Workspace& workspace, const LayerCall& call) override;
  void enqueue_batch(CommandStream& stream, Workspace& workspace, int64_t layer, std::byte* hidden,
                     std::span<const SequenceRows> sequences) override;
  void enqueue_select(CommandStream& stream, Workspace& workspace, const SelectCall& call) override;
  void enqueue_selected(CommandStream& stream, Workspace& workspace, const SelectedCall& call) override;
  void enqueue_align(CommandStream& stream, Workspace& workspace, const DeviceMap& map, std::byte* hidden,
                     int64_t rows) override;
  void enqueue_head(CommandStream& stream, Workspace& workspace, const HeadCall& call) override;
  void enqueue_logits(CommandStream& stream, Workspace& workspace, const std::byte* hidden,
                      std::span<const int64_t> rows, float* logits) override;
  void enqueue_step(CommandStream& stream, Workspace& workspace, const StepCall& call) override;

 private:
  friend class CpuWorkspace;
  struct Layer {
    PackedWeights q, kv, o, gate_up, down;
    std::vector<float> input_norm, post_norm;
    std::vector<float> q_bias, kv_bias;                  // empty: none
    std::vector<float> o_bias, gate_up_bias, down_bias;  // empty: none
    std::vector<float> q_norm, k_norm;                   // empty: none
  };

  Status load_weights(const Checkpoint& checkpoint, const LoadOptions& options);
  /// kCorrupt: a file that weights are mapped from was cut short; what was computed from them is nothing.
  Status intact() const {
    DS_TRY(base_weights_.intact());
    return weights_.intact();
  }
  Status list_weights(Loader& loader);
  int64_t planned_bytes() const;
  Status run_embed(const int32_t* ids, int64_t rows, std::byte* hidden) const;
  Status run_layer(CpuWorkspace& w, int64_t layer, std::byte* hidden,
                   std::span<const SequenceRows> sequences) const;
  Status run_select(CpuWorkspace& w, const SelectCall& call) const;
  Status run_selected(CpuWorkspace& w, const SelectedCall& call) const;
  /// One block: the rows that the workspace's lists name.
  Status run_block(CpuWorkspace& w, const Layer& layer) const;
  /// Index of the products of these maps, made where they are not there yet.
  Result<int64_t> map_products(int64_t rank);
  Status run_align(CpuWorkspace& w, const CpuMap& map, std::byte* hidden, int64_t rows) const;
  Status run_logits(CpuWorkspace& w, const std::byte* hidden, std::span<const int64_t> rows,
                    float* logits) const;
  Status run_head(CpuWorkspace& w, const HeadCall& call) const;
  Status run_step(CpuWorkspace& w, const StepCall& call) const;

  ModelConfig config_;
  DType dtype_ = DType::kBF16, active_ = DType::kBF16;
  Math math_ = Math::kPortable;
  int threads_ = 1;
  Kernels kernels_;
  float eps_ = 0;
  std::shared_ptr<Product> q_, kv_, o_, gate_up_, down_, head_;
  std::vector<Layer> layers_;
  const std::byte* embedding_ = nullptr;  // [vocab][d_model], hidden's dtype
  std::vector<float> final_norm_;
  PackedWeights head_weights_;
  Weights weights_;       // what the matrices and the embeddings point into
  Weights base_weights_;  // or into this: what an adapter leaves as it is in its base
  int64_t shared_bytes_ = 0;
  PhaseTimes* profile_ = nullptr;
  mutable std::mutex map_mutex_;  // of what follows
  std::vector<MapProducts> map_products_;
};

}  // namespace ds::cpu
