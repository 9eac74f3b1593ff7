// What a request changes in the logits that its tokens are chosen from.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "support/status.h"

namespace ds {

/// As in vLLM: the bias is added first, then come the penalties, repetition before the others.
struct LogitRules {
  std::vector<std::pair<int32_t, float>> bias;  // of a token, what is added
  /// Of tokens of the prompt or the answer logits above 0 are divided by it, others multiplied; above 0.
  float repetition = 1;
  float frequency = 0;  // taken off for each time that the answer has the token
  float presence = 0;   // taken off where the answer has it

  bool any() const { return !bias.empty() || repetition != 1 || frequency != 0 || presence != 0; }
};

/// kInvalidArgument: a token outside the vocabulary, a number that is none.
Status check_rules(const LogitRules& rules, int64_t vocab);

/// The rules of one request, and what they have to remember of its tokens.
class RuledLogits {
 public:
  RuledLogits(LogitRules rules, std::span<const int32_t> prompt);
  /// The answer's next token.
  void add(int32_t token);
  void apply(std::span<float> logits) const;

 private:
  LogitRules rules_;
  std::unordered_map<int32_t, int64_t> seen_;  // tokens that were there: how often in the answer
};

/// Tokens that cannot be chosen; those outside the logits cannot anyway.
void mask(std::span<float> logits, std::span<const int32_t> tokens);

}  // namespace ds
