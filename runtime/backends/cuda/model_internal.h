// A model on the device: its weights, what one stream needs to run it, and steps of decoding as graphs.
//
// A layer is nine launches: norm, q|k|v product, bias + RoPE + cache, attention, o product added to the
// hidden states, norm, gate|up product, SwiGLU, down product added to the hidden states.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "runtime/backends/backend.h"
#include "runtime/backends/cuda/attention_internal.h"
#include "runtime/backends/cuda/kernels_internal.h"
#include "runtime/backends/cuda/matmul_internal.h"
#include "runtime/backends/cuda/memory_internal.h"
#include "runtime/backends/cuda/stream_internal.h"
#include "runtime/backends/cuda/weights_internal.h"

namespace ds::cuda {

class CudaModel;

/// Most rows that go through a layer at once: what lies between two products grows with them, and products
/// have long reached their full rate. A workspace for shorter contexts does fewer at once, down to the least.
inline constexpr int64_t kMostBlockRows = 8192, kLeastBlockRows = 256;
/// Most rows of one product that makes logits.
inline constexpr int64_t kLogitRows = 32;
/// Ranks of low-rank maps are padded with zeros to a multiple of it: fewer shapes, and aligned rows.
inline constexpr int64_t kRankAlign = 16;
/// Steps are captured for so many keys at most: powers of two, from the least on.
inline constexpr int64_t kLeastStepKeys = 256;
/// Graphs that a workspace keeps: of every power of two up to a million keys, twice.
inline constexpr size_t kStepGraphs = 26;

class CudaMap final : public DeviceMap {
 public:
  CudaMap(const CudaModel& model, int64_t shape);
  int64_t bytes() const override { return memory_.size(); }

 private:
  friend class CudaModel;
  const std::byte *first_ = nullptr, *second_ = nullptr;  // full: first [d][d]; low-rank: down, up
  const float *scale_ = nullptr, *bias_ = nullptr;        // [d_model]; scale null: none
  DeviceBuffer memory_;
};

/// What differs from step to step, in device memory, so that a graph can be launched again.
struct StepState {
  int32_t token = 0, position = 0;
  Choice choice;
};

/// Where kernels go: a stream of ours, with profile and checks, or a stream that is being captured.
class Launcher {
 public:
  explicit Launcher(CudaStream& stream, PhaseTimes* times)
      : stream_(stream.handle()), owner_(&stream), times_(times) {}
  explicit Launcher(cudaStream_t captured) : stream_(captured) {}

  cudaStream_t stream() const { return stream_; }
  /// After a kernel was started: what starting it returned. Says kernel and shapes.
  template <typename... Args>
  Status started(cudaError_t raised, fmt::format_string<Args...> what, Args&&... args) {
    if (raised != cudaSuccess) return failure(raised, fmt::format(what, std::forward<Args>(args)...));
    if (owner_ == nullptr || !owner_->device().options().check_kernels) [[likely]]
      return ok_status();
    return check(cudaStreamSynchronize(stream_), what, std::forward<Args>(args)...);
  }
  Status multiply(Product& product, const std::byte* w, const std::byte* x, std::byte* y, int64_t rows,
                  std::byte* workspace) {
    DS_TRY(product.run(stream_, w, x, y, rows, workspace));
    return started(cudaSuccess, "product {} x {} of {} rows", product.shape().out, product.shape().in, rows);
  }
  /// The time since the last lap, or since begin(), is a phase's.
  Status begin() { return times_ == nullptr ? ok_status() : owner_->mark(nullptr, Phase::kEmbed); }
  Status lap(Phase phase) { return times_ == nullptr ? ok_status() : owner_->mark(times_, phase); }

 private:
  cudaStream_t stream_;
  CudaStream* owner_ = nullptr;
  PhaseTimes* times_ = nullptr;
};

/// Attention of one block of rows, as it is started.
struct AttentionWork {
  const AttentionSegment* segments = nullptr;  // of our own kernel, device-readable; so are the tiles
  const AttentionTile* tiles = nullptr;
  int64_t tile_count = 0, splits = 1;
  std::span<const AttentionSegment> library = {};  // a call of the library's each
};

/// Rows that go through a layer together.
struct Block {
  std::byte* hidden = nullptr;
  int64_t rows = 0;
  RowPlaces places = {};
  int64_t queries = 0;  // rows with a query: the last ones, unless `gather` says which
  RowPlaces query_places = {};
  const int32_t* gather = nullptr;  // [queries], device-readable
  AttentionWork attention = {};
};

class CudaWorkspace final : public Workspace {
 public:
  static Result<std::unique_ptr<CudaWorkspace>> make(const CudaModel& model, int64_t max_context);
  CudaWorkspace(const CudaModel& model, int64_t max_context, std::vector<int64_t> map_ranks);
  ~CudaWorkspace() override;  // what streams still use of it goes when they have run

  const std::string& library_attention() const { return library_why_; }  // "": used; else why it is not
  size_t step_graphs() const;                                            // that have been captured

 private:
  friend class CudaModel;
  /// One token at up to `keys` positions, over certain caches.
  struct StepGraph {
    std::byte* hidden = nullptr;
    std::vector<std::byte*> caches;
    int64_t keys = 0;
    const AttentionSegment* segments = nullptr;  // by layer, in device memory
    cudaGraphExec_t graph = nullptr;             // null: its kernels have run, but are not captured yet
    uint64_t used = 0;                           // when it last was
  };
  struct MapProducts {
    std::unique_ptr<Product> first, second;
  };
  /// Query rows of a block that lie side by side.
  struct Run {
    int64_t row = 0, query = 0, rows = 0;
  };

  /// Bytes of arguments that a request over the whole context takes.
  int64_t request_staging() const;
  void discard(StepGraph& step);  // once it has run
  Status allocate();
  Status make_tables();
  Status make_products();

  std::shared_ptr<Device> device_;
  const CudaModel& model_;
  const std::vector<int64_t> map_ranks_;  // the model's, when this was made
  int64_t block_rows_ = 0;
  DeviceBuffer buffer_;
  // Rows of one block, in the compute dtype unless something else is said.
  std::byte* normed_ = nullptr;     // [rows][d_model]
  std::byte* projected_ = nullptr;  // [rows][q|k|v], then [rows][gate|up]; aligned cuts: f32 [rows][d_model]
  std::byte* q_ = nullptr;          // [rows][heads * head_dim]
  std::byte* attended_ = nullptr;   // [rows][heads * head_dim], then [rows][ff]; between a map's products
  std::byte* compact_ = nullptr;    // [rows][d_model]: hidden states of rows with a query, side by side
  std::byte* product_workspace_ = nullptr;
  std::byte* attention_scratch_ = nullptr;
  int64_t attention_scratch_bytes_ = 0;
  float *cos_ = nullptr, *sin_ = nullptr;  // f32 [max_context][head_dim / 2]
  float* deviation_ = nullptr;             // [max_context]: how far each token's K is off
  float* logits_ = nullptr;                // [kLogitRows][vocab]
  StepState* state_ = nullptr;
  int32_t* next_ = nullptr;
  AttentionTile* one_tile_ = nullptr;          // of one row
  AttentionSegment* step_segments_ = nullptr;  // [kStepGraphs][layers]
  std::unique_ptr<Product> qkv_, q_product_, kv_, o_, gate_up_, down_, head_;
  std::vector<MapProducts> map_products_;  // of these ranks
  std::unique_ptr<LibraryAttention> library_;
  DeviceBuffer library_workspace_;
  std::string library_why_;
  // Of the block that is being enqueued.
  std::vector<RowTarget> targets_, query_targets_;
  std::vector<int32_t> gather_;
  std::vector<Run> runs_;
  std::vector<AttentionSegment> segments_, own_segments_;
  std::vector<AttentionTile> tiles_;
  cudaStream_t side_ = nullptr;  // to capture and search on
  std::vector<StepGraph> graphs_;
  uint64_t steps_ = 0;
};

class CudaModel final : public DeviceModel {
 public:
  static Result<std::unique_ptr<DeviceModel>> load(std::shared_ptr<Device> device,
                                                   const Checkpoint& checkpoint, const LoadOptions& options);
  static Result<std::unique_ptr<DeviceModel>> load_random(std::shared_ptr<Device> device,
                                                          const ModelConfig& config,
                                                          const LoadOptions& options, uint64_t seed);

  const ModelConfig& config() const override { return config_; }
  DType dtype() const override { return dtype_; }
  int64_t weight_bytes() const override { return weights_.bytes(); }
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
  friend class CudaWorkspace;
  CudaModel(std::shared_ptr<Device> device, const ModelConfig& config, DType dtype, Weights weights);

  int64_t q_size() const { return config_.heads * config_.head_dim; }
  int64_t kv_size() const { return config_.kv_heads * config_.head_dim; }
  int64_t hidden_row() const { return config_.d_model * dtype_size(dtype_); }  // bytes
  int64_t cache_row() const { return config_.kv_row() * dtype_size(dtype_); }
  AttentionShape attention_shape() const {
    return {config_.heads, config_.kv_heads, config_.head_dim, dtype_};
  }
  /// An upper bound of the keys that steps share a graph up to.
  int64_t step_keys(const CudaWorkspace& w, int64_t keys) const;

  Status run_embed(CudaStream& stream, const int32_t* ids, int64_t rows, std::byte* hidden) const;
  Status run_layer(CudaStream& stream, CudaWorkspace& w, const LayerCall& call) const;
  Status run_batch(CudaStream& stream, CudaWorkspace& w, int64_t layer, std::byte* hidden,
                   std::span<const SequenceRows> sequences) const;
  /// The block that the workspace's lists hold.
  Status run_listed(Launcher& on, CudaStream& stream, CudaWorkspace& w, int64_t layer,
                    std::byte* hidden) const;
  Status run_select(CudaStream& stream, CudaWorkspace& w, const SelectCall& call) const;
  Status run_selected(CudaStream& stream, CudaWorkspace& w, const SelectedCall& call) const;
  Status run_align(CudaStream& stream, CudaWorkspace& w, const CudaMap& map, std::byte* hidden,
                   int64_t rows) const;
  Status run_head(CudaStream& stream, CudaWorkspace& w, const HeadCall& call) const;
  Status run_logits(CudaStream& stream, CudaWorkspace& w, const std::byte* hidden,
                    std::span<const int64_t> rows, float* logits) const;
  Status run_step(CudaStream& stream, CudaWorkspace& w, const StepCall& call) const;

  /// Who does the attention of w.segments_, and in which pieces.
  Result<AttentionWork> plan_attention(CudaStream& stream, CudaWorkspace& w) const;
  Status run_block(Launcher& on, CudaWorkspace& w, int64_t layer, const Block& block) const;
  Status run_norm(Launcher& on, const std::byte* x, const int64_t* index, const float* weight, int64_t rows,
                  std::byte* out) const;
  /// A row's logits, of the one that `normed_` begins with or of several.
  Status run_head_product(Launcher& on, CudaWorkspace& w, const std::byte* hidden, const int64_t* index,
                          int64_t rows) const;
  /// The kernels of a step, which reads w.state_.
  Status run_step_kernels(Launcher& on, CudaWorkspace& w, std::byte* hidden,
                          std::span<std::byte* const> caches, int64_t keys,
                          const AttentionSegment* segments) const;
  /// The graph of such steps, or a place for it, the longest unused one's.
  Result<CudaWorkspace::StepGraph*> step_graph(CudaStream& stream, CudaWorkspace& w, const StepCall& call,
                                               int64_t keys) const;
  /// Every kernel once, over memory that nobody needs.
  Status warm_up(CudaWorkspace& w) const;
  Status capture(CudaWorkspace& w, CudaWorkspace::StepGraph& step) const;

  std::shared_ptr<Device> device_;
  ModelConfig config_;
  DType dtype_ = DType::kBF16;
  float eps_ = 0;
  Weights weights_;
  PhaseTimes* profile_ = nullptr;
  mutable std::mutex map_mutex_;    // of what follows
  std::vector<int64_t> map_ranks_;  // padded; 0: full
};

}  // namespace ds::cuda
