// Tiny random models, loaded and ready, for tests that run requests.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <vector>

#include "runtime/backends/backend.h"
#include "runtime/model/checkpoint.h"
#include "tests/unit/test_backend.h"

namespace ds::testing {

inline ModelConfig tiny_config(Family family, int64_t layers = 5) {
  ModelConfig c;
  c.family = family;
  c.layers = layers;
  c.d_model = 64;
  c.ff = 96;
  c.heads = 4;
  c.kv_heads = 2;
  c.head_dim = family == Family::kQwen3 ? 32 : 16;  // Qwen3: not d_model / heads
  c.vocab = 300;
  c.max_positions = 65536;
  c.rms_norm_eps = 1e-5;
  c.qkv_bias = family == Family::kQwen2;
  c.qk_norm = family == Family::kQwen3;
  if (family == Family::kLlama) {
    c.rope.type = RopeConfig::Type::kLlama3;
    c.rope.theta = 500000;
    c.rope.factor = 8;
    c.rope.original_max_positions = 64;
  }
  return c;
}

struct TinyModel {
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Checkpoint> checkpoint;
  std::unique_ptr<DeviceModel> model;
  ModelIdentity identity;

  TinyModel(const ModelConfig& config, uint64_t seed, DType dtype) {
    auto made = test_backend();
    auto random = Checkpoint::random(config, seed);
    if (!made.ok() || !random.ok()) {
      ADD_FAILURE() << made.status().message() << random.status().message();
      return;
    }
    backend = std::move(made).value();
    checkpoint = std::make_unique<Checkpoint>(std::move(random).value());
    auto loaded = backend->load(*checkpoint, {.dtype = dtype, .progress = {}});
    if (!loaded.ok()) {
      ADD_FAILURE() << loaded.status().message();
      return;
    }
    model = std::move(loaded).value();
    auto id = checkpoint->identity();
    if (id.ok()) identity = *id;
  }
};

/// Cuts at these layers without maps.
inline std::vector<Cut> plain_cuts(const std::vector<int32_t>& layers) {
  std::vector<Cut> cuts;
  for (int32_t layer : layers) cuts.push_back({layer});
  return cuts;
}

inline std::vector<int32_t> random_ids(int64_t count, int64_t vocab, uint64_t seed) {
  std::mt19937_64 generator(seed);
  std::vector<int32_t> ids(static_cast<size_t>(count));
  for (auto& id : ids) id = static_cast<int32_t>(generator() % static_cast<uint64_t>(vocab));
  return ids;
}

}  // namespace ds::testing
