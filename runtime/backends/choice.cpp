#include "runtime/backends/choice.h"

#include <algorithm>
#include <cmath>

namespace ds {

int32_t choose(std::span<const float> logits, const Choice& choice,
               std::vector<std::pair<float, int32_t>>& sorted) {
  if (choice.temperature <= 0)
    return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  sorted.clear();
  for (size_t i = 0; i < logits.size(); ++i) sorted.emplace_back(logits[i], static_cast<int32_t>(i));
  std::sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) {
    return a.first != b.first ? a.first > b.first : a.second < b.second;
  });
  const double best = sorted.front().first;
  double total = 0;
  auto weight = [&](float logit) { return std::exp((logit - best) / choice.temperature); };
  for (const auto& entry : sorted) total += weight(entry.first);
  size_t kept = 0;
  double kept_weight = 0;
  while (kept < sorted.size() && (kept == 0 || kept_weight < choice.top_p * total))
    kept_weight += weight(sorted[kept++].first);
  double at = choice.at * kept_weight;
  for (size_t i = 0; i < kept; ++i) {
    at -= weight(sorted[i].first);
    if (at < 0) return sorted[i].second;
  }
  return sorted[kept - 1].second;
}

}  // namespace ds
