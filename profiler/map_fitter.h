// Runs sender and receiver over contexts, layer by layer side by side, and fits the maps of aligned cuts to
// what enters each layer.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "profiler/moments.h"
#include "runtime/backends/backend.h"
#include "runtime/model/maps.h"
#include "support/status.h"

namespace ds {

struct FitOptions {
  std::vector<MapForm> forms = {MapForm::kFull};
  int64_t rank = 0;       // of low-rank maps; 0: an eighth of the width
  bool plain = false;     // layers that cannot be fitted are left out, not an error
  bool shuffled = false;  // also maps fitted to tokens in a wrong order: a control
};

class MapFitter {
 public:
  /// Both models of one shape and dtype, loaded by `backend`; all outlive it. `contexts`: how many will be
  /// added, of at most `most_tokens` each. One of five is held out to choose the ridge on. kInvalidArgument:
  /// fewer than two contexts, a rank beyond the width. kExhausted.
  static Result<std::unique_ptr<MapFitter>> create(Backend& backend, DeviceModel& sender,
                                                   DeviceModel& receiver, const FitOptions& options,
                                                   int64_t contexts, int64_t most_tokens);
  /// `progress` (may be empty): layers of this context that are done. kCorrupt: hidden states that are not
  /// finite, with model and layer.
  Status add(std::span<const int32_t> context, const std::function<void(int64_t layers)>& progress = {});

  struct Fitted {
    std::vector<AlignmentMap> maps, shuffled;  // sorted by layer and form
    std::vector<PlainLayer> plain;             // whose maps are no better than none
    std::vector<std::string> left_out;         // why layers were, where FitOptions::plain allows it
    std::vector<std::string> limits;           // LayerMaps::limits
  };
  /// Once, after all contexts; the sums of a layer are freed when it is fitted. `progress` (may be empty):
  /// layers that are. The shuffled control has the maps that `maps` has, whatever they are worth. Errors:
  /// those of fit_maps(), for the first layer that has one.
  Result<Fitted> fit(const std::function<void(int64_t layers)>& progress = {});

  /// Bytes that a fit needs beside the models: sums and held-out tokens of all layers, what solving one of
  /// them takes, and hidden states.
  static int64_t memory_bytes(const ModelConfig& config, const FitOptions& options, int64_t contexts,
                              int64_t most_tokens);

 private:
  MapFitter(Backend& backend, DeviceModel& sender, DeviceModel& receiver, const FitOptions& options)
      : backend_(backend), sender_(sender), receiver_(receiver), options_(options) {}
  struct Sums {
    CutMoments fit, held_out;
    HeldOut rows;
  };
  struct Side {
    DeviceModel* model = nullptr;
    const char* name = "";
    std::unique_ptr<Workspace> workspace;
    std::unique_ptr<DeviceMemory> hidden, cache;
    std::vector<double> rows;  // what enters the layer at work
  };
  Status read(Side& side, int64_t layer, int64_t rows);

  Backend& backend_;
  DeviceModel &sender_, &receiver_;
  FitOptions options_;
  int64_t contexts_ = 0, added_ = 0, most_tokens_ = 0;
  std::vector<Sums> cuts_, shuffled_;  // by layer - 1
  Side s_, r_;
  std::vector<std::byte> host_;
  std::vector<double> residual_;
  std::unique_ptr<CommandStream> stream_;
};

}  // namespace ds
