// A pair of models that exists in numbers only, for measurements that need no checkpoints.
#pragma once

#include <algorithm>
#include <cmath>

#include "compiler/compile.h"
#include "support/hash.h"

namespace ds {

/// A profile as a deep pair has one. Every layer is worth a share of the loss of full reuse, most of all a
/// little above the middle; a group saves its layers' shares, and pays for its cut, the more the higher it
/// lies. Of each size (about 40 of them) the best group is kept.
inline Quality synthetic_quality(int64_t layers) {
  constexpr double kReceiver = 70, kFullReuse = 40, kCut = 4;
  Quality q;
  q.layers = layers;
  q.metric = "synthetic";
  q.items = q.contexts = 1;
  q.receiver_score = kReceiver;
  q.full_reuse_score = kFullReuse;
  auto add = [&](Way way, double score) {
    WayScore w;
    w.way = std::move(way);
    w.items = w.contexts = 1;
    w.score = {score, 0};
    w.loss = {kReceiver - score, 0};
    q.ways.push_back(std::move(w));
  };
  add(Way::full_reuse(), kFullReuse);
  std::vector<double> until(static_cast<size_t>(layers) + 1, 0);  // shares of the layers below
  for (size_t l = 0; l < static_cast<size_t>(layers); ++l) {
    double x = (static_cast<double>(l) + 0.5) / static_cast<double>(layers) - 0.55;
    until[l + 1] = until[l] + std::exp(-x * x / 0.03);
  }
  for (double& share : until) share /= until.back();
  int64_t step = (layers + 39) / 40;
  for (int64_t size = step; size < layers; size += step) {
    LayerRange best;
    double best_score = -1;
    for (int64_t first = 0; first + size <= layers; ++first) {
      double saved = until[static_cast<size_t>(first + size)] - until[static_cast<size_t>(first)];
      double cut = first == 0 ? 0 : kCut * static_cast<double>(first) / static_cast<double>(layers);
      double score = std::clamp(kReceiver - (kReceiver - kFullReuse) * (1 - saved) - cut, 0.0, 100.0);
      if (score <= best_score) continue;
      best = {first, first + size - 1};
      best_score = score;
    }
    add(Way::group(best), best_score);
  }
  return q;
}

/// Sender and receiver of one shape; `machine` absent: the compiler's stand-in.
inline CompileInputs synthetic_inputs(const ModelConfig& config, std::optional<MachineModel> machine) {
  auto identity = [&](const char* name) {
    return ModelIdentity{.name = name,
                         .fingerprint = sha256_hex(std::string(name) + config.canonical()),
                         .config = sha256_hex(config.canonical()),
                         .weights = sha256_hex(name),
                         .tokenizer = ""};
  };
  CompileInputs in{.pair = {config, identity("sender"), identity("receiver")},
                   .quality = synthetic_quality(config.layers),
                   .machine = std::move(machine),
                   .files = {}};
  in.files.push_back({"sender", "sender", in.pair.sender.fingerprint});
  in.files.push_back({"receiver", "receiver", in.pair.receiver.fingerprint});
  return in;
}

}  // namespace ds
