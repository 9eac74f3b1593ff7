// A model with a fault, for tests of what becomes of one. Header only; on streams of host code.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "runtime/backends/backend.h"
#include "runtime/backends/host/stream_internal.h"

namespace ds::testing {

/// A model that computes as another one does, but for one fault.
class BrokenModel final : public DeviceModel {
 public:
  explicit BrokenModel(DeviceModel& model) : model_(model) {}

  std::string fails;             // "select", "align", "layer", "batch", "layer_selected", "head", "step"
  int64_t rows = 0;              // layer: only calls of so many rows; 0: all
  bool not_a_number = false;     // head and step succeed, with a logit that is none
  float number = std::nanf("");  // that logit
  int64_t after = 0;             // step: so many are right
  int64_t position = -1;         // "batch": where a sequence is at this one
  Code code = Code::kInternal;
  std::function<void()> on_workspace = {};  // when one is made

  const ModelConfig& config() const override { return model_.config(); }
  DType dtype() const override { return model_.dtype(); }
  int64_t weight_bytes() const override { return model_.weight_bytes(); }
  void set_profile(PhaseTimes* times) override { model_.set_profile(times); }

 protected:
  Result<std::unique_ptr<Workspace>> new_workspace(int64_t n) override {
    if (on_workspace) on_workspace();
    return model_.make_workspace(n);
  }
  Result<std::unique_ptr<DeviceMap>> new_map(const AlignmentMap& map) override {
    return model_.load_map(map);
  }
  void enqueue_embed(CommandStream& stream, const int32_t* ids, int64_t n, std::byte* hidden) override {
    model_.embed(stream, ids, n, hidden);
  }
  void enqueue_layer(CommandStream& stream, Workspace& w, const LayerCall& call) override {
    if (rows != 0 && call.rows != rows) return model_.layer(stream, w, call);
    fail_or(stream, "layer", [&] { model_.layer(stream, w, call); });
  }
  void enqueue_batch(CommandStream& stream, Workspace& w, int64_t layer, std::byte* hidden,
                     std::span<const SequenceRows> sequences) override {
    const bool there = std::any_of(sequences.begin(), sequences.end(),
                                   [&](const auto& s) { return s.position == position; });
    if (!there) return model_.layer_batch(stream, w, layer, hidden, sequences);
    fail_or(stream, "batch", [&] { model_.layer_batch(stream, w, layer, hidden, sequences); });
  }
  void enqueue_select(CommandStream& stream, Workspace& w, const SelectCall& call) override {
    fail_or(stream, "select", [&] { model_.select(stream, w, call); });
  }
  void enqueue_selected(CommandStream& stream, Workspace& w, const SelectedCall& call) override {
    fail_or(stream, "layer_selected", [&] { model_.layer_selected(stream, w, call); });
  }
  void enqueue_align(CommandStream& stream, Workspace& w, const DeviceMap& map, std::byte* hidden,
                     int64_t n) override {
    fail_or(stream, "align", [&] { model_.align(stream, w, map, hidden, n); });
  }
  void enqueue_head(CommandStream& stream, Workspace& w, const HeadCall& call) override {
    fail_or(stream, "head", [&] { model_.head(stream, w, call); });
    if (fails != "head" && not_a_number && after == 0) spoil(stream, call.logits);
  }
  void enqueue_step(CommandStream& stream, Workspace& w, const StepCall& call) override {
    const bool right = after > 0 && after-- > 1;
    if (right) return model_.step(stream, w, call);
    fail_or(stream, "step", [&] { model_.step(stream, w, call); });
    if (not_a_number) spoil(stream, call.logits);
  }
  void enqueue_logits(CommandStream& stream, Workspace& w, const std::byte* hidden,
                      std::span<const int64_t> of, float* logits) override {
    model_.logits_batch(stream, w, hidden, of, logits);
  }
  const DeviceModel& owner() const override { return model_; }

 private:
  template <typename Call>
  void fail_or(CommandStream& stream, const char* what, Call call) {
    if (fails != what) return call();
    static_cast<host::HostStream&>(stream).kernel([c = code] { return error(c, "this kernel is broken"); });
  }
  void spoil(CommandStream& stream, float* logits) {
    static_cast<host::HostStream&>(stream).kernel([logit = logits + 17, to = number] {
      *logit = to;
      return ok_status();
    });
  }
  DeviceModel& model_;
};

}  // namespace ds::testing
