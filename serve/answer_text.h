// An answer's text as its tokens come.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "runtime/core/stop_text.h"
#include "runtime/model/tokenizer.h"

namespace ds {

/// What may be shown of an answer so far: characters that are not whole yet and what may become a stop text
/// are held back.
class AnswerText {
 public:
  AnswerText(const Tokenizer& tokenizer, bool skip_special, std::vector<std::string> stops,
             int64_t min_tokens)
      : decoder_(tokenizer, skip_special), stop_(std::move(stops)), min_tokens_(min_tokens) {}

  /// Stop texts count from the token behind the first `min_tokens` on.
  Result<std::string> push(int32_t token) {
    DS_ASSIGN(std::string piece, decoder_.push(token));
    if (++tokens_ <= min_tokens_) return piece;
    return stop_.push(piece);
  }
  Result<std::string> finish() {
    if (stopped()) return std::string();
    DS_ASSIGN(std::string rest, decoder_.finish());
    std::string shown = stop_.push(rest);
    return shown + stop_.finish();
  }
  /// The text that ended the answer; it is not part of it.
  const std::optional<std::string>& stopped() const { return stop_.stopped(); }

 private:
  StreamingDecoder decoder_;
  StopText stop_;
  int64_t min_tokens_ = 0, tokens_ = 0;
};

}  // namespace ds
