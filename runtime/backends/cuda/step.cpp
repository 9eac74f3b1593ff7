// A step of decoding as a graph: captured once per caches and power of two of keys, launched again with a new
// state.
#include <algorithm>
#include <bit>

#include "runtime/backends/cuda/model_internal.h"

namespace ds::cuda {

int64_t CudaModel::step_keys(const CudaWorkspace& w, int64_t keys) const {
  const auto power = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(keys)));
  return std::min(std::max(power, kLeastStepKeys), w.max_context());
}

Status CudaModel::run_step_kernels(Launcher& on, CudaWorkspace& w, std::byte* hidden,
                                   std::span<std::byte* const> caches, int64_t keys,
                                   const AttentionSegment* segments) const {
  DS_TRY(on.started(
      cuda::embed(on.stream(), dtype_, &w.state_->token, 1, weights_.embedding(), config_.d_model, hidden),
      "embed of 1 row of {}", config_.d_model));
  DS_TRY(on.lap(Phase::kEmbed));
  Block b;
  b.hidden = hidden;
  b.rows = b.queries = 1;
  b.attention.tiles = w.one_tile_;
  b.attention.tile_count = 1;
  b.attention.splits = attention_splits(attention_shape(), 1, keys, device_->info().multiprocessors);
  for (int64_t l = 0; l < config_.layers; ++l) {
    b.places = {.cache = caches[static_cast<size_t>(l)], .first_at = &w.state_->position};
    b.attention.segments = segments + l;
    if (Status status = run_block(on, w, l, b); !status.ok())
      return status.with_context(fmt::format("layer {}", l));
  }
  DS_TRY(run_head_product(on, w, hidden, nullptr, 1));
  DS_TRY(on.started(choose_token(on.stream(), w.logits_, config_.vocab, &w.state_->choice, w.next_),
                    "choose_token of {}", config_.vocab));
  return on.lap(Phase::kLogits);
}

Result<CudaWorkspace::StepGraph*> CudaModel::step_graph(CudaStream& stream, CudaWorkspace& w,
                                                        const StepCall& call, int64_t keys) const {
  for (CudaWorkspace::StepGraph& step : w.graphs_) {
    if (step.hidden != call.hidden || step.keys != keys ||
        !std::equal(step.caches.begin(), step.caches.end(), call.caches.begin(), call.caches.end()))
      continue;
    step.used = ++w.steps_;
    // What runs for the first time may have to be loaded, which no capture allows.
    // And to make a graph takes memory, which may wait for the device.
    if (step.graph == nullptr && device_->options().graphs && device_->awaited() == 0)
      DS_TRY(capture(w, step));
    return &step;
  }
  const int64_t layers = config_.layers;
  if (w.graphs_.size() < kStepGraphs) {
    auto& step = w.graphs_.emplace_back();
    step.segments = w.step_segments_ + static_cast<int64_t>(w.graphs_.size() - 1) * layers;
  } else {
    auto oldest = std::min_element(w.graphs_.begin(), w.graphs_.end(),
                                   [](const auto& a, const auto& b) { return a.used < b.used; });
    w.discard(*oldest);
    std::swap(*oldest, w.graphs_.back());
  }
  CudaWorkspace::StepGraph& step = w.graphs_.back();
  step.hidden = call.hidden;
  step.caches.assign(call.caches.begin(), call.caches.end());
  step.keys = keys;
  step.used = ++w.steps_;
  w.segments_.clear();
  for (std::byte* cache : call.caches)
    w.segments_.push_back({.cache = cache, .first_at = &w.state_->position, .rows = 1, .keys = keys});
  DS_ASSIGN(const AttentionSegment* staged,
            stream.stage_copy(std::span<const AttentionSegment>(w.segments_)));
  DS_TRY(check(
      cudaMemcpyAsync(const_cast<AttentionSegment*>(step.segments), staged,
                      w.segments_.size() * sizeof(AttentionSegment), cudaMemcpyHostToDevice, stream.handle()),
      "cudaMemcpyAsync of {} segments", w.segments_.size()));
  return &step;
}

Status CudaModel::capture(CudaWorkspace& w, CudaWorkspace::StepGraph& step) const {
  DS_TRY(check(cudaStreamBeginCapture(w.side_, cudaStreamCaptureModeRelaxed), "cudaStreamBeginCapture"));
  Launcher on(w.side_);
  Status status = run_step_kernels(on, w, step.hidden, step.caches, step.keys, step.segments);
  cudaGraph_t graph = nullptr;
  Status ended = check(cudaStreamEndCapture(w.side_, &graph), "cudaStreamEndCapture");
  if (status.ok()) status = std::move(ended);
  if (status.ok())
    status = check(cudaGraphInstantiate(&step.graph, graph, 0), "cudaGraphInstantiate of a step's kernels");
  if (graph != nullptr) (void)cudaGraphDestroy(graph);
  return status.with_context("capturing a step");
}

Status CudaModel::run_step(CudaStream& stream, CudaWorkspace& w, const StepCall& call) const {
  Launcher on(stream, profile_);
  DS_TRY(on.begin());
  const int64_t keys = step_keys(w, call.position + 1);
  DS_ASSIGN(CudaWorkspace::StepGraph * step, step_graph(stream, w, call, keys));
  const StepState state{call.token, static_cast<int32_t>(call.position), call.choice};
  DS_ASSIGN(const StepState* staged, stream.stage_copy(std::span(&state, 1)));
  DS_TRY(check(cudaMemcpyAsync(w.state_, staged, sizeof(state), cudaMemcpyHostToDevice, stream.handle()),
               "cudaMemcpyAsync of a step's state"));
  if (step->graph != nullptr && profile_ == nullptr && !device_->options().check_kernels)
    DS_TRY(check(cudaGraphLaunch(step->graph, stream.handle()), "cudaGraphLaunch of a step"));
  else
    DS_TRY(run_step_kernels(on, w, call.hidden, call.caches, keys, step->segments));
  if (call.logits != nullptr)
    DS_TRY(stream.read_back(call.logits, reinterpret_cast<const std::byte*>(w.logits_), config_.vocab * 4));
  if (call.next != nullptr)
    DS_TRY(stream.read_back(call.next, reinterpret_cast<const std::byte*>(w.next_), sizeof(int32_t)));
  return ok_status();
}

}  // namespace ds::cuda
