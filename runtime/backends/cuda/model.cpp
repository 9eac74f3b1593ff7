// A model as streams call it: loading, what is enqueued, what needs no layer (embeddings, the head), and a
// first run of every kernel.
#include <algorithm>

#include "runtime/backends/cuda/model_internal.h"

namespace ds::cuda {
namespace {

/// Runs `work(stream)` -> Status, where kernels can be enqueued now. The context is only formatted for a
/// failure.
template <typename Work, typename... Args>
void on(CommandStream& stream, Work work, fmt::format_string<Args...> context, Args&&... args) {
  auto& ours = static_cast<CudaStream&>(stream);
  if (!ours.begin()) return;
  if (Status status = work(ours); !status.ok())
    ours.fail(status.with_context(fmt::format(context, std::forward<Args>(args)...)));
}

}  // namespace

// ---- loading

CudaModel::CudaModel(std::shared_ptr<Device> device, const ModelConfig& config, DType dtype, Weights weights)
    : device_(std::move(device)),
      config_(config),
      dtype_(dtype),
      eps_(static_cast<float>(config.rms_norm_eps)),
      weights_(std::move(weights)) {}

Result<std::unique_ptr<DeviceModel>> CudaModel::load(std::shared_ptr<Device> device,
                                                     const Checkpoint& checkpoint,
                                                     const LoadOptions& options) {
  // Packed weights are read from their files at every start: that is bound by the link to the device.
  if (options.report != nullptr) *options.report = {};
  auto weights = Weights::load(device, checkpoint, options);
  if (!weights.ok())
    return weights.status().with_context(fmt::format("loading '{}' on the cuda backend", checkpoint.name()));
  return std::unique_ptr<DeviceModel>(
      new CudaModel(std::move(device), checkpoint.config(), options.dtype, std::move(*weights)));
}

Result<std::unique_ptr<DeviceModel>> CudaModel::load_random(std::shared_ptr<Device> device,
                                                            const ModelConfig& config,
                                                            const LoadOptions& options, uint64_t seed) {
  if (options.report != nullptr) *options.report = {};
  DS_ASSIGN(Weights weights, Weights::random(device, config, options, seed));
  ModelConfig drawn = config;
  drawn.dtype = DType::kBF16;  // as Checkpoint::random() says
  return std::unique_ptr<DeviceModel>(
      new CudaModel(std::move(device), drawn, options.dtype, std::move(weights)));
}

Result<std::unique_ptr<Workspace>> CudaModel::new_workspace(int64_t max_context) {
  DS_ASSIGN(std::unique_ptr<CudaWorkspace> workspace, CudaWorkspace::make(*this, max_context));
  return std::unique_ptr<Workspace>(std::move(workspace));
}

// ---- enqueuing

void CudaModel::enqueue_embed(CommandStream& stream, const int32_t* ids, int64_t rows, std::byte* hidden) {
  on(
      stream, [&](CudaStream& ours) { return run_embed(ours, ids, rows, hidden); }, "embed");
}

void CudaModel::enqueue_layer(CommandStream& stream, Workspace& workspace, const LayerCall& call) {
  auto& w = static_cast<CudaWorkspace&>(workspace);
  on(
      stream, [&](CudaStream& ours) { return run_layer(ours, w, call); }, "layer {}, {} rows", call.layer,
      call.rows);
}

void CudaModel::enqueue_batch(CommandStream& stream, Workspace& workspace, int64_t layer, std::byte* hidden,
                              std::span<const SequenceRows> sequences) {
  auto& w = static_cast<CudaWorkspace&>(workspace);
  on(
      stream, [&](CudaStream& ours) { return run_batch(ours, w, layer, hidden, sequences); },
      "layer {}, {} sequences", layer, sequences.size());
}

void CudaModel::enqueue_select(CommandStream& stream, Workspace& workspace, const SelectCall& call) {
  auto& w = static_cast<CudaWorkspace&>(workspace);
  on(
      stream, [&](CudaStream& ours) { return run_select(ours, w, call); }, "select at layer {}", call.layer);
}

void CudaModel::enqueue_selected(CommandStream& stream, Workspace& workspace, const SelectedCall& call) {
  auto& w = static_cast<CudaWorkspace&>(workspace);
  on(
      stream, [&](CudaStream& ours) { return run_selected(ours, w, call); }, "layer {}, {} selected rows",
      call.layer, call.rows);
}

void CudaModel::enqueue_align(CommandStream& stream, Workspace& workspace, const DeviceMap& map,
                              std::byte* hidden, int64_t rows) {
  auto& w = static_cast<CudaWorkspace&>(workspace);
  auto& m = static_cast<const CudaMap&>(map);
  on(
      stream, [&](CudaStream& ours) { return run_align(ours, w, m, hidden, rows); }, "align");
}

void CudaModel::enqueue_head(CommandStream& stream, Workspace& workspace, const HeadCall& call) {
  auto& w = static_cast<CudaWorkspace&>(workspace);
  on(
      stream, [&](CudaStream& ours) { return run_head(ours, w, call); }, "head");
}

void CudaModel::enqueue_logits(CommandStream& stream, Workspace& workspace, const std::byte* hidden,
                               std::span<const int64_t> rows, float* logits) {
  auto& w = static_cast<CudaWorkspace&>(workspace);
  on(
      stream, [&](CudaStream& ours) { return run_logits(ours, w, hidden, rows, logits); }, "logits");
}

void CudaModel::enqueue_step(CommandStream& stream, Workspace& workspace, const StepCall& call) {
  auto& w = static_cast<CudaWorkspace&>(workspace);
  on(
      stream, [&](CudaStream& ours) { return run_step(ours, w, call); }, "a step at position {}",
      call.position);
}

// ---- running: kernels go to the stream

Status CudaModel::run_embed(CudaStream& stream, const int32_t* ids, int64_t rows, std::byte* hidden) const {
  Launcher on(stream, profile_);
  DS_TRY(on.begin());
  DS_ASSIGN(const int32_t* staged, stream.stage_copy(std::span(ids, static_cast<size_t>(rows))));
  DS_TRY(on.started(
      cuda::embed(on.stream(), dtype_, staged, rows, weights_.embedding(), config_.d_model, hidden),
      "embed of {} rows of {}", rows, config_.d_model));
  return on.lap(Phase::kEmbed);
}

Status CudaModel::run_head_product(Launcher& on, CudaWorkspace& w, const std::byte* hidden,
                                   const int64_t* index, int64_t rows) const {
  DS_TRY(run_norm(on, hidden, index, weights_.final_norm(), rows, w.normed_));
  return on.multiply(*w.head_, weights_.head(), w.normed_, reinterpret_cast<std::byte*>(w.logits_), rows,
                     w.product_workspace_);
}

Status CudaModel::run_head(CudaStream& stream, CudaWorkspace& w, const HeadCall& call) const {
  Launcher on(stream, profile_);
  DS_TRY(on.begin());
  DS_TRY(run_head_product(on, w, call.hidden, nullptr, 1));
  const auto* logits = reinterpret_cast<const std::byte*>(w.logits_);
  if (call.logits != nullptr) DS_TRY(stream.read_back(call.logits, logits, config_.vocab * 4));
  if (call.next != nullptr) {
    DS_ASSIGN(const Choice* choice, stream.stage_copy(std::span(&call.choice, 1)));
    DS_TRY(on.started(choose_token(on.stream(), w.logits_, config_.vocab, choice, w.next_),
                      "choose_token of {}", config_.vocab));
    DS_TRY(stream.read_back(call.next, reinterpret_cast<const std::byte*>(w.next_), sizeof(int32_t)));
  }
  return on.lap(Phase::kLogits);
}

Status CudaModel::run_logits(CudaStream& stream, CudaWorkspace& w, const std::byte* hidden,
                             std::span<const int64_t> rows, float* logits) const {
  Launcher on(stream, profile_);
  DS_TRY(on.begin());
  DS_ASSIGN(const int64_t* index, stream.stage_copy(rows));
  const auto all = static_cast<int64_t>(rows.size());
  for (int64_t at = 0; at < all; at += kLogitRows) {
    const int64_t count = std::min(kLogitRows, all - at);
    DS_TRY(run_head_product(on, w, hidden, index + at, count));
    DS_TRY(stream.read_back(logits + at * config_.vocab, reinterpret_cast<const std::byte*>(w.logits_),
                            count * config_.vocab * 4));
  }
  return on.lap(Phase::kLogits);
}

Status CudaModel::warm_up(CudaWorkspace& w) const {
  // CUDA loads a kernel when it is first started, and may wait for the device to be idle then: that would be
  // for ever where the device waits for an event that the same thread is to record later.
  const int64_t most = std::min(w.max_context(), w.block_rows_);
  const int64_t rows = std::min<int64_t>(most, w.library_ != nullptr ? w.library_->least_rows() : 17);
  const int64_t few = std::min<int64_t>(most, 3), layers = config_.layers;
  DS_ASSIGN(auto stream, CudaStream::make(device_, StreamKind::kCompute, 64));
  DS_ASSIGN(DeviceBuffer memory,
            DeviceBuffer::make(device_, aligned(rows * cache_row()) + aligned(rows * hidden_row()) + rows * 4,
                               "a first run of the kernels"));
  std::byte *cache = memory.data(), *hidden = cache + aligned(rows * cache_row());
  auto* positions = reinterpret_cast<int32_t*>(hidden + aligned(rows * hidden_row()));
  const std::vector<int32_t> ids(static_cast<size_t>(rows), 0);
  const std::vector<std::byte*> caches(static_cast<size_t>(layers), cache);
  const std::vector<int64_t> index(static_cast<size_t>(few), 0);
  std::vector<float> logits(static_cast<size_t>(few * config_.vocab));
  int32_t next = 0;
  DS_TRY(run_embed(*stream, ids.data(), rows, hidden));
  DS_TRY(run_layer(*stream, w, {0, hidden, cache, 0, rows, rows}));
  for (int64_t queries : {few, int64_t{1}, int64_t{0}})
    DS_TRY(run_layer(*stream, w, {0, hidden, cache, 0, few, queries}));
  const SequenceRows sequences[] = {{cache, 0, few, 1}, {cache, 0, 1, 1}};
  if (rows > few) DS_TRY(run_batch(*stream, w, 0, hidden, sequences));
  DS_TRY(run_select(*stream, w, {0, hidden, cache, rows, (rows + 1) / 2, positions}));
  DS_TRY(run_selected(*stream, w, {0, hidden, cache, positions, (rows + 1) / 2, true}));
  Launcher on(*stream, nullptr);
  DS_TRY(on.started(align_rows(on.stream(), dtype_, hidden, reinterpret_cast<float*>(w.projected_), w.logits_,
                               w.logits_, 1, std::min(config_.d_model, config_.vocab)),
                    "align_rows"));
  DS_TRY(run_logits(*stream, w, hidden, index, logits.data()));
  DS_TRY(run_head(*stream, w, {hidden, logits.data(), {}, &next}));
  DS_TRY(run_step(*stream, w, {0, 0, hidden, caches, logits.data(), {}, &next}));
  // As over a full context, in as many splits.
  DS_TRY(run_step_kernels(on, w, hidden, caches, w.max_context(), w.graphs_.front().segments));
  DS_TRY(stream->synchronize());
  w.graphs_.clear();
  return ok_status();
}

}  // namespace ds::cuda
