// How a token is chosen from logits.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace ds {

struct Choice {
  double temperature = 0;  // 0: greedy (ties: the lowest id)
  double top_p = 1;        // keep the smallest set of tokens whose probabilities sum to at least this
  double at = 0;           // in [0, 1): where in what is kept, the most probable first, ties by id
};

/// `scratch`: made as large as the logits where it is not, and not at all for greedy choices.
int32_t choose(std::span<const float> logits, const Choice& choice,
               std::vector<std::pair<float, int32_t>>& scratch);

}  // namespace ds
