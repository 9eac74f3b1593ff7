#include "runtime/core/sampler.h"

#include <algorithm>
#include <cmath>

namespace ds {

Sampler::Sampler(const Sampling& sampling, int64_t vocab) : sampling_(sampling), generator_(sampling.seed) {
  if (sampling_.temperature > 0) sorted_.reserve(static_cast<size_t>(vocab));
}

int32_t Sampler::choose(std::span<const float> logits) {
  if (sampling_.temperature <= 0) {
    return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  }
  sorted_.clear();
  for (size_t i = 0; i < logits.size(); ++i) sorted_.emplace_back(logits[i], static_cast<int32_t>(i));
  std::sort(sorted_.begin(), sorted_.end(), [](const auto& a, const auto& b) {
    return a.first != b.first ? a.first > b.first : a.second < b.second;
  });
  double best = sorted_.front().first, total = 0;
  auto weight = [&](float logit) { return std::exp((logit - best) / sampling_.temperature); };
  for (const auto& entry : sorted_) total += weight(entry.first);
  size_t kept = 0;
  double kept_weight = 0;
  while (kept < sorted_.size() && (kept == 0 || kept_weight < sampling_.top_p * total)) {
    kept_weight += weight(sorted_[kept++].first);
  }
  // 53 random bits: the same on every platform, which std::uniform_real_distribution does not promise.
  double at = static_cast<double>(generator_() >> 11) * 0x1p-53 * kept_weight;
  for (size_t i = 0; i < kept; ++i) {
    at -= weight(sorted_[i].first);
    if (at < 0) return sorted_[i].second;
  }
  return sorted_[kept - 1].second;
}

}  // namespace ds
