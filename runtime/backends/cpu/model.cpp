// A model as streams call it: what is enqueued, and what needs no layer (embeddings, the head, a step's
// order).
#include <algorithm>
#include <cstring>

#include "runtime/backends/cpu/model_internal.h"

namespace ds::cpu {
namespace {

template <typename Work>
void on(CommandStream& stream, Work work) {
  static_cast<host::HostStream&>(stream).kernel(work);
}

}  // namespace

void CpuModel::enqueue_embed(CommandStream& stream, const int32_t* ids, int64_t rows, std::byte* hidden) {
  on(stream, [=, this] { return run_embed(ids, rows, hidden); });
}

void CpuModel::enqueue_layer(CommandStream& stream, Workspace& workspace, const LayerCall& call) {
  on(stream, [this, w = static_cast<CpuWorkspace*>(&workspace), call] {
    const SequenceRows sequence{call.cache, call.position, call.rows, call.query_rows};
    return run_layer(*w, call.layer, call.hidden, {&sequence, 1});
  });
}

void CpuModel::enqueue_batch(CommandStream& stream, Workspace& workspace, int64_t layer, std::byte* hidden,
                             std::span<const SequenceRows> sequences) {
  on(stream, [=, this, w = static_cast<CpuWorkspace*>(&workspace)] {
    return run_layer(*w, layer, hidden, sequences);
  });
}

void CpuModel::enqueue_select(CommandStream& stream, Workspace& workspace, const SelectCall& call) {
  on(stream, [this, w = static_cast<CpuWorkspace*>(&workspace), call] { return run_select(*w, call); });
}

void CpuModel::enqueue_selected(CommandStream& stream, Workspace& workspace, const SelectedCall& call) {
  on(stream, [this, w = static_cast<CpuWorkspace*>(&workspace), call] { return run_selected(*w, call); });
}

void CpuModel::enqueue_align(CommandStream& stream, Workspace& workspace, const DeviceMap& map,
                             std::byte* hidden, int64_t rows) {
  on(stream, [=, this, w = static_cast<CpuWorkspace*>(&workspace), m = static_cast<const CpuMap*>(&map)] {
    return run_align(*w, *m, hidden, rows);
  });
}

void CpuModel::enqueue_head(CommandStream& stream, Workspace& workspace, const HeadCall& call) {
  on(stream, [this, w = static_cast<CpuWorkspace*>(&workspace), call] { return run_head(*w, call); });
}

void CpuModel::enqueue_logits(CommandStream& stream, Workspace& workspace, const std::byte* hidden,
                              std::span<const int64_t> rows, float* logits) {
  on(stream,
     [=, this, w = static_cast<CpuWorkspace*>(&workspace)] { return run_logits(*w, hidden, rows, logits); });
}

void CpuModel::enqueue_step(CommandStream& stream, Workspace& workspace, const StepCall& call) {
  on(stream, [this, w = static_cast<CpuWorkspace*>(&workspace), call] { return run_step(*w, call); });
}

Status CpuModel::run_embed(const int32_t* ids, int64_t rows, std::byte* hidden) const {
  LapTimer timer(profile_);
  int64_t row = config_.d_model * dtype_size(dtype_);
  for (int64_t i = 0; i < rows; ++i)
    std::memcpy(hidden + i * row, embedding_ + ids[i] * row, static_cast<size_t>(row));
  timer.lap(Phase::kEmbed);
  return intact();
}

Status CpuModel::run_head(CpuWorkspace& w, const HeadCall& call) const {
  static constexpr int64_t kFirst = 0;
  float* logits = call.logits != nullptr ? call.logits : w.logits_;
  DS_TRY(run_logits(w, call.hidden, {&kFirst, 1}, logits));
  if (call.next != nullptr)
    *call.next = choose({logits, static_cast<size_t>(config_.vocab)}, call.choice, w.sorted_);
  return ok_status();
}

Status CpuModel::run_step(CpuWorkspace& w, const StepCall& call) const {
  DS_TRY(run_embed(&call.token, 1, call.hidden));
  for (int64_t l = 0; l < config_.layers; ++l) {
    SequenceRows sequence{call.caches[static_cast<size_t>(l)], call.position};
    DS_TRY(run_layer(w, l, call.hidden, {&sequence, 1}));
  }
  return run_head(w, {call.hidden, call.logits, call.choice, call.next});
}

Status CpuModel::run_logits(CpuWorkspace& w, const std::byte* hidden, std::span<const int64_t> rows,
                            float* logits) const {
  LapTimer timer(profile_);
  int64_t d = config_.d_model, active = dtype_size(active_);
  while (!rows.empty()) {
    auto count = std::min(static_cast<int64_t>(rows.size()), kLogitRows);
    for (int64_t i = 0; i < count; ++i)
      kernels_.norm(hidden + rows[i] * d * dtype_size(dtype_), final_norm_.data(), eps_, d,
                    w.normed_ + i * d * active);
    DS_TRY(w.head_->run(head_weights_, count, w.normed_, reinterpret_cast<std::byte*>(logits), w.scratch_)
               .with_context("logits"));
    logits += count * config_.vocab;
    rows = rows.subspan(static_cast<size_t>(count));
  }
  timer.lap(Phase::kLogits);
  return intact();
}

}  // namespace ds::cpu
