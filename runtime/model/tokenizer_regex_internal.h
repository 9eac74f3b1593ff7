// The patterns of tokenizer.json: written for Oniguruma (Ruby syntax), matched with PCRE2.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "support/status.h"

namespace ds {

/// A part of a text, as offsets in bytes; `match` says whether a pattern matched it.
struct Span {
  size_t begin = 0, end = 0;
  bool match = false;
};

/// Rewrites an Oniguruma pattern for PCRE2 (UTF and UCP), spelling out what the two read differently: \s, \w,
/// \d, \p{..} (newer Unicode), \h, \v, ^, $, intervals. What would still differ is refused (kUnsupported); a
/// pattern that cannot be read is kCorrupt. `where` names file and key.
Result<std::string> translate_pattern(std::string_view pattern, const std::string& where);

/// A literal or a regular expression. Safe to use from several threads.
class Pattern {
 public:
  static Result<Pattern> literal(std::string text, const std::string& where);
  static Result<Pattern> regex(std::string_view pattern, const std::string& where);

  /// Spans that cover all of `text` (valid UTF-8) in order, matches and what is between them; one empty span
  /// for an empty text. kExhausted where matching needs too much work or memory.
  Status split(std::string_view text, std::vector<Span>& out) const;
  /// `text` with every match replaced.
  Result<std::string> replace(std::string_view text, std::string_view content) const;
  size_t literal_size() const { return literal_.size(); }  // 0: a regular expression
  /// Equal for two patterns that match alike because they are written alike.
  std::string canonical() const { return literal_.empty() ? "regex " + regex_ : "text " + literal_; }

 private:
  std::string literal_, regex_, where_;
  std::shared_ptr<const void> code_;  // pcre2_code
};

}  // namespace ds
