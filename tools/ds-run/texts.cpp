// A request's texts: context and prompt through the template, what ends an answer, how long it may be.
#include <algorithm>

#include "tools/ds-run/run.h"

namespace ds {

Result<Texts> read_texts(const RunOptions& o) {
  Texts out;
  std::optional<std::string> prompt;
  if (!o.prompt_file.empty()) {
    DS_ASSIGN(prompt, read_text_file(input_path(o.prompt_file)));
  } else if (!o.prompt.empty()) {
    prompt = o.prompt;
  }
  if (o.ids()) {
    out.prompt = prompt.value_or("");
    return out;
  }
  DS_ASSIGN(std::optional<ChatTemplate> chat_template, open_chat_template(o.chat, o.receiver, o.open));
  std::string context;
  if (!o.context.empty()) {
    DS_ASSIGN(context, read_text_file(input_path(o.context)));
  }
  DS_ASSIGN(out.request, request_text(o.chat, chat_template, std::move(context), prompt));
  return out;
}

Status render(const RunOptions& o, const RequestText& text) {
  if (!o.json) {
    fmt::print("{}{}", text.context, text.prompt);
    return ok_status();
  }
  nlohmann::ordered_json out = {{"text", text.context + text.prompt},
                                {"context_bytes", text.context.size()},
                                {"templated", text.templated},
                                {"context_tokens", nullptr},
                                {"token_ids", nullptr}};
  DS_ASSIGN(const std::string folder, folder_for("tokenizer.json", o.receiver, o.open));
  if (file_exists(folder + "/tokenizer.json")) {
    DS_ASSIGN(Tokenizer tokenizer, Tokenizer::load(folder));
    DS_ASSIGN(JoinedText joined, join_text(tokenizer, text.context, text.prompt, !text.templated));
    out["context_tokens"] = joined.shared;
    out["token_ids"] = joined.ids;
  }
  fmt::print("{}\n", out.dump(2));
  return ok_status();
}

Result<std::vector<int32_t>> asked_stop_ids(const RunOptions& o, const LoadedModel& loaded) {
  std::vector<int32_t> ids = o.stop_ids;
  for (const std::string& stop : o.stops) {
    const int32_t id = loaded.tokenizer ? loaded.tokenizer->token_id(stop) : -1;
    if (id < 0) continue;
    DS_ASSIGN(std::string text, loaded.tokenizer->decode({&id, 1}, true));
    if (text.empty()) ids.push_back(id);
  }
  return ids;
}

int64_t new_tokens(const RunOptions& o, int64_t positions, int64_t read) {
  constexpr int64_t kNewTokens = 64;
  if (o.max_new_tokens) return *o.max_new_tokens;
  // The last token is not read itself. Without a position left the session says so.
  int64_t left = std::clamp<int64_t>(positions - read + 1, 1, kNewTokens);
  if (left < kNewTokens)
    fmt::print(stderr, "note: {} new token{} at most: the model has {} positions, {} are read\n", left,
               left == 1 ? "" : "s", positions, read);
  return left;
}

}  // namespace ds
