// What the engine does, for those who foretell how long it takes.
#pragma once

#include "profiler/engine.h"

namespace ds {

/// Bytes of logits that are read back at once.
inline constexpr int64_t kLogitBytes = int64_t{64} << 20;

/// Kinds of maps that layers are restored with.
std::vector<MapKey> restored_with(const std::vector<Way>& ways);

/// Rows of questions and answers in a batch, at most.
int64_t rows_at_once(const ModelConfig& config, DType dtype, const ProfileEngineLimits& limits);

/// Logits -> log-probabilities, in place. Returns the index of the largest, the first of equals.
int64_t log_softmax(std::span<float> x);

/// Of q from p, both log-probabilities, in nats.
double divergence(std::span<const float> p, std::span<const float> q);

}  // namespace ds
