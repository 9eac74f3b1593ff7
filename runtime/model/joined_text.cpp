#include "runtime/model/joined_text.h"

#include <algorithm>
#include <string>

namespace ds {

Result<std::vector<int32_t>> text_ids(const Tokenizer& tokenizer, std::string_view text, bool add_special) {
  DS_ASSIGN(std::vector<int32_t> ids, tokenizer.encode(text, false));
  if (!add_special) return ids;
  const std::span<const int32_t> before = tokenizer.prefix();
  if (ids.size() < before.size() || !std::equal(before.begin(), before.end(), ids.begin()))
    ids.insert(ids.begin(), before.begin(), before.end());
  return ids;
}

int64_t shared_tokens(std::span<const int32_t> entry, std::span<const int32_t> ids) {
  if (ids.empty()) return 0;
  const auto all_but_last = ids.first(ids.size() - 1);
  return std::mismatch(all_but_last.begin(), all_but_last.end(), entry.begin(), entry.end()).first -
         all_but_last.begin();
}

Result<JoinedText> join_text(const Tokenizer& tokenizer, std::string_view context, std::string_view prompt,
                             bool add_special) {
  JoinedText joined;
  if (!context.empty()) {
    Result<std::vector<int32_t>> entry = text_ids(tokenizer, context, add_special);
    if (!entry.ok()) return entry.status().with_context("the context");
    joined.entry = std::move(*entry);
  }
  // Said of the prompt's own bytes, not of the whole text's.
  if (Status readable = check_utf8(prompt); !readable.ok()) return readable.with_context("the prompt");
  DS_ASSIGN(joined.ids, text_ids(tokenizer, std::string(context).append(prompt), add_special));
  if (joined.ids.empty())
    return error(Code::kInvalidArgument,
                 "context and prompt have no tokens; at least one is needed to answer from");
  joined.shared = shared_tokens(joined.entry, joined.ids);
  return joined;
}

}  // namespace ds
