// The calibration's parts: layers (calibrate.cpp), what does not depend on the size of a call
// (calibrate_machine.cpp), the store and transfers beside kernels (calibrate_store.cpp).
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <thread>

#include "runtime/core/calibrate.h"
#include "runtime/store/entry.h"
#include "support/clock.h"

namespace ds::calibration {

inline int64_t median(std::vector<int64_t> v) {
  std::nth_element(v.begin(), v.begin() + static_cast<int64_t>(v.size() / 2), v.end());
  return v[v.size() / 2];
}

inline double d(int64_t v) { return static_cast<double>(v); }

/// Permille by which `slower` exceeds `alone`.
inline int64_t excess(double slower, double alone) {
  return std::clamp<int64_t>(std::llround(1000 * (slower / alone - 1)), 0, 1'000'000);
}

class Calibrator {
 public:
  Calibrator(Backend& backend, DeviceModel& model, const CalibrationOptions& options, Calibration done)
      : backend_(backend),
        model_(model),
        config_(model.config()),
        options_(options),
        result_(std::move(done)),
        started_(now_ns() - result_.spent_ns) {}

  Result<Calibration> run();

 private:
  bool stopped() const { return options_.stop != nullptr && options_.stop->load(); }
  int64_t spent() const { return now_ns() - started_; }

  Status step_done();

  Status reserve();

  /// Touches all memory and leaves ordinary numbers in the caches, so that no call is the first to see a
  /// page.
  Status warm_up();

  LayerCall call(int64_t layer, const CallSize& size) {
    return {layer,         hidden_->data(), caches_[static_cast<size_t>(layer)]->data(),
            size.position, size.rows,       size.query_rows};
  }

  /// Mean nanoseconds per call of one pass over `count` layers, going on where the last pass ended: by the
  /// time a layer's turn comes again, its weights have left the caches if a request would find them gone.
  Result<int64_t> pass(const CallSize& size, int64_t count);

  Event& event(int64_t i) {
    Event& e = *events_[static_cast<size_t>(i)];
    e.reset();
    return e;
  }
  int64_t events_at(int64_t i) const { return events_[static_cast<size_t>(i)]->time_ns(); }

  /// From the nearest thing known: the matrix products' rate, and somewhat more for all the rest.
  int64_t expected_ns(const CallSize& s) const;

  /// Other work on a shared machine, or a change of clock, slows everything for a while. Points of such a
  /// while are taken again as long as there is time.
  Status measure_disturbed_again();

  Status measure_layer(const CallSize& size, int64_t allowed_ns);

  /// Of ordinary numbers, before the workspace that they need room in.
  Status load_maps();

  // ---- what does not depend on the size of a call

  /// Nanoseconds of what `enqueue` puts on the compute stream.
  template <typename F>
  Result<int64_t> once(F enqueue) {
    Event &begin = event(0), &end = event(1);
    compute_->record(begin);
    enqueue();
    compute_->record(end);
    DS_TRY(compute_->synchronize());
    return std::max<int64_t>(events_at(1) - events_at(0), 1);
  }

  /// The median of some, after one that is not counted.
  template <typename F>
  Result<int64_t> timed(int repeats, F enqueue) {
    std::vector<int64_t> times;
    for (int i = 0; i <= repeats; ++i) {
      DS_ASSIGN(int64_t ns, once(enqueue));
      if (i > 0) times.push_back(ns);
    }
    return median(times);
  }

  Status measure_machine(MachineTimes& m);

  /// A line through the times of few rows and of many. The layer before it, on the same rows, pushes the map
  /// out of the caches and leaves the threads awake, as between the kernels of a request.
  Status measure_align(MachineTimes& m);

  /// What a call costs more at a great position is attention.
  Status measure_attention(MachineTimes& m);

  Status measure_wakeup(MachineTimes& m);

  /// A real entry of this model's shape in the store: look-up, reads, and reads beside kernels.
  Status measure_store(MachineTimes& m);

  Status measure_entry(MachineTimes& m, const EntryIdentity& identity, const Shape& shape);

  Status measure_contention(MachineTimes& m, std::function<Status(int64_t)> read);

  Backend& backend_;
  DeviceModel& model_;
  const ModelConfig& config_;
  const CalibrationOptions& options_;
  Calibration result_;
  int64_t started_;
  int64_t longest_ = 0, element_ = 0, next_layer_ = 0;
  std::unique_ptr<DeviceMemory> hidden_;
  std::vector<std::unique_ptr<DeviceMemory>> caches_;
  std::vector<std::pair<AlignTime, std::unique_ptr<DeviceMap>>> maps_;
  std::unique_ptr<Workspace> workspace_;
  std::unique_ptr<CommandStream> compute_, link_;
  std::vector<std::unique_ptr<Event>> events_;
  std::vector<int32_t> ids_;
  std::vector<float> logits_;
};

}  // namespace ds::calibration
