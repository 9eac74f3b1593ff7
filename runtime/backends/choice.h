// How a token is chosen from logits.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace ds {

/// Of the tokens that are kept by `min_p` and by `top_k`, `top_p` keeps the most probable ones.
struct Choice {
  double temperature = 0;  // 0: greedy (ties: the lowest id)
  double top_p = 1;        // keep the smallest set of tokens whose probabilities sum to at least this
  double at = 0;           // in [0, 1): where in what is kept, the most probable first, ties by id
  int32_t top_k = 0;       // keep so many, and those as probable as the last of them; 0: all
  double min_p = 0;        // keep what is at least this times as probable as the most probable
};

/// `scratch`: made as large as the logits where it is not, and not at all for greedy choices.
int32_t choose(std::span<const float> logits, const Choice& choice,
               std::vector<std::pair<float, int32_t>>& scratch);

}  // namespace ds
