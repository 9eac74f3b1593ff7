#include "runtime/backends/choice.h"

#include <algorithm>
#include <cmath>

namespace ds {
namespace {

using Tokens = std::vector<std::pair<float, int32_t>>;

bool before(const Tokens::value_type& a, const Tokens::value_type& b) {
  return a.first != b.first ? a.first > b.first : a.second < b.second;
}

/// Tokens in their order, sorted as far as they are asked for: few of many are.
class Sorted {
 public:
  explicit Sorted(Tokens& tokens) : tokens_(tokens) {}
  const Tokens::value_type& operator[](size_t i) {
    while (i >= sorted_) {
      const size_t more = std::min(tokens_.size(), std::max<size_t>(64, sorted_ * 8));
      const auto begin = tokens_.begin() + static_cast<int64_t>(sorted_),
                 end = tokens_.begin() + static_cast<int64_t>(more);
      if (end != tokens_.end()) std::nth_element(begin, end, tokens_.end(), before);
      std::sort(begin, end, before);
      sorted_ = more;
    }
    return tokens_[i];
  }

 private:
  Tokens& tokens_;
  size_t sorted_ = 0;
};

}  // namespace

int32_t choose(std::span<const float> logits, const Choice& choice, Tokens& kept) {
  const auto most = std::max_element(logits.begin(), logits.end());
  const double best = *most;
  if (choice.temperature <= 0 || !std::isfinite(best)) return static_cast<int32_t>(most - logits.begin());
  auto weight = [&](float logit) { return std::exp((logit - best) / choice.temperature); };
  kept.clear();
  double total = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    const double w = weight(logits[i]);
    if (!(w > 0) || w < choice.min_p) continue;
    kept.emplace_back(logits[i], static_cast<int32_t>(i));
    total += w;
  }
  if (choice.top_k > 0 && static_cast<size_t>(choice.top_k) < kept.size()) {
    const auto last = kept.begin() + choice.top_k - 1;
    std::nth_element(kept.begin(), last, kept.end(), before);
    std::erase_if(kept, [least = last->first](const auto& token) { return token.first < least; });
    total = 0;
    for (const auto& token : kept) total += weight(token.first);
  }
  Sorted sorted(kept);
  size_t count = kept.size();
  if (choice.top_p < 1) {
    const double asked = choice.top_p * total;
    total = 0;
    count = 0;
    while (count < kept.size() && (count == 0 || total < asked)) total += weight(sorted[count++].first);
  }
  double at = choice.at * total;
  for (size_t i = 0; i < count; ++i) {
    at -= weight(sorted[i].first);
    if (at < 0) return sorted[i].second;
  }
  return sorted[count - 1].second;
}

}  // namespace ds
