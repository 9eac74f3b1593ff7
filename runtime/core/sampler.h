// From logits to a token.
#pragma once

#include <cstdint>
#include <random>
#include <span>
#include <vector>

namespace ds {

struct Sampling {
  double temperature = 0;  // 0: greedy
  double top_p = 1;        // keep the smallest set of tokens whose probabilities sum to at least this
  uint64_t seed = 0;
};

/// Greedy (ties: the lowest id), or seeded sampling that gives the same tokens on every machine for equal
/// logits.
class Sampler {
 public:
  Sampler(const Sampling& sampling, int64_t vocab);
  int32_t choose(std::span<const float> logits);

 private:
  Sampling sampling_;
  std::mt19937_64 generator_;
  std::vector<std::pair<float, int32_t>> sorted_;  // reserved once: choosing allocates nothing
};

}  // namespace ds
