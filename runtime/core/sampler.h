// Seeded choices: the same tokens on every machine for equal logits.
#pragma once

#include <cstdint>
#include <random>

#include "runtime/backends/choice.h"

namespace ds {

struct Sampling {
  double temperature = 0;  // 0: greedy
  double top_p = 1;        // as in Choice
  uint64_t seed = 0;
  int32_t top_k = 0;  // as in Choice
  double min_p = 0;   // as in Choice
};

class Sampler {
 public:
  explicit Sampler(const Sampling& sampling) : sampling_(sampling), generator_(sampling.seed) {}

  /// How the next token is chosen.
  Choice next() {
    if (sampling_.temperature <= 0) return {};
    // 53 random bits: the same on every platform, which std::uniform_real_distribution does not promise.
    return {sampling_.temperature, sampling_.top_p, static_cast<double>(generator_() >> 11) * 0x1p-53,
            sampling_.top_k, sampling_.min_p};
  }

 private:
  Sampling sampling_;
  std::mt19937_64 generator_;
};

}  // namespace ds
