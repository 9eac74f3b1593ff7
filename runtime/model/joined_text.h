// Two texts read as one: a context that a sender has read and published, and the prompt that a receiver reads
// behind it.
//
// A model reads the text as a whole, and tokens do not respect the border: "twelve site" + "s are closed" has
// the token "▁sites" across it, a normalizer composes "e" + U+0301, a SentencePiece tokenizer puts a space
// before a text that stands alone. So the whole text is encoded, and what can be reused of the context's
// caches are the tokens on which the context alone and the whole text agree; all behind them is the suffix.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "runtime/model/tokenizer.h"
#include "support/status.h"

namespace ds {

/// The ids of a text that a model is to go on from, as a context or as a prompt.
///
/// `add_special` puts before it what the tokenizer's template does (BOS), unless the text begins with just
/// that already: it stands there once. What the template puts behind a text (EOS) is never added: it would
/// end a text that an answer, or the rest of the prompt, is to continue. Without `add_special` nothing is
/// added; a rendered chat template is such a text, for it says itself what stands where.
///
/// kInvalidArgument: text is not UTF-8.
Result<std::vector<int32_t>> text_ids(const Tokenizer& tokenizer, std::string_view text,
                                      bool add_special = true);

struct JoinedText {
  std::vector<int32_t> entry;  // the context by itself: what its entry was published for
  std::vector<int32_t> ids;    // context and prompt as one text: what the receiver reads
  int64_t shared = 0;          // of ids, the first, which are those of `entry` too; less than all of them

  /// The rows of the entry that can be reused, and what only the receiver reads: at least one token.
  std::span<const int32_t> context() const { return std::span(ids).first(static_cast<size_t>(shared)); }
  std::span<const int32_t> suffix() const { return std::span(ids).subspan(static_cast<size_t>(shared)); }
};

/// Both parts through text_ids(); either may be empty. kInvalidArgument: one is not UTF-8, or together they
/// have no tokens.
Result<JoinedText> join_text(const Tokenizer& tokenizer, std::string_view context, std::string_view prompt,
                             bool add_special = true);

/// How many of the first ids are those of `entry`, at most all but the last: one token has to be read to
/// answer from.
int64_t shared_tokens(std::span<const int32_t> entry, std::span<const int32_t> ids);

}  // namespace ds
