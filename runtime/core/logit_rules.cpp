#include "runtime/core/logit_rules.h"

#include <cmath>
#include <limits>

namespace ds {

Status check_rules(const LogitRules& rules, int64_t vocab) {
  for (const auto& [token, by] : rules.bias)
    if (token < 0 || token >= vocab || !std::isfinite(by))
      return error(Code::kInvalidArgument,
                   "the bias of token {} is {}; expected a number, and a token from 0 to {}", token, by,
                   vocab - 1);
  if (!(rules.repetition > 0) || !std::isfinite(rules.repetition) || !std::isfinite(rules.frequency) ||
      !std::isfinite(rules.presence))
    return error(Code::kInvalidArgument,
                 "the penalties are {} (repetition), {} (frequency) and {} (presence); expected numbers, the "
                 "first above 0",
                 rules.repetition, rules.frequency, rules.presence);
  return ok_status();
}

RuledLogits::RuledLogits(LogitRules rules, std::span<const int32_t> prompt) : rules_(std::move(rules)) {
  if (rules_.repetition == 1) return;
  for (int32_t token : prompt) seen_.try_emplace(token, 0);
}

void RuledLogits::add(int32_t token) { ++seen_[token]; }

void RuledLogits::apply(std::span<float> logits) const {
  for (const auto& [token, by] : rules_.bias) logits[static_cast<size_t>(token)] += by;
  for (const auto& [token, times] : seen_) {
    float& logit = logits[static_cast<size_t>(token)];
    logit = logit > 0 ? logit / rules_.repetition : logit * rules_.repetition;
    logit -= rules_.frequency * static_cast<float>(times);
    if (times > 0) logit -= rules_.presence;
  }
}

void mask(std::span<float> logits, std::span<const int32_t> tokens) {
  for (int32_t token : tokens)
    if (token >= 0 && static_cast<size_t>(token) < logits.size())
      logits[static_cast<size_t>(token)] = -std::numeric_limits<float>::infinity();
}

}  // namespace ds
