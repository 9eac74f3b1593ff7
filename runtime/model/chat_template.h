// Chat templates of model folders: a conversation becomes the text that the model was trained to go on from.
//
// The text is that of transformers' apply_chat_template (5.23): jinja/template.h interprets the template, and
// what that function does to messages before it is done here too: keys that are null are left out, and
// reasoning is known to the template as `reasoning_content` and `thinking`, whichever of the names
// `reasoning_content`, `thinking` and `reasoning` a message has it under. Arguments of tool calls are handed
// on as they are: most templates want an object there, not OpenAI's JSON in a string.
#pragma once

#include <ctime>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "support/json.h"
#include "support/status.h"

namespace ds {

struct Conversation {
  nlohmann::ordered_json messages = nlohmann::ordered_json::array();  // objects: role, content, ...
  nlohmann::ordered_json tools, documents;                            // lists, or null
  nlohmann::ordered_json variables =
      nlohmann::ordered_json::object();  // further ones: {"enable_thinking": false}
  bool add_generation_prompt = true;

  /// A list of messages, or an object as a request of OpenAI's API: "messages", and optionally "tools",
  /// "documents", "chat_template_kwargs" (`variables`), "add_generation_prompt". Other keys are put into
  /// `ignored`. `origin` names the text in messages. Errors: kCorrupt (not JSON), kInvalidArgument.
  static Result<Conversation> parse(std::string_view json, const std::string& origin,
                                    std::vector<std::string>* ignored = nullptr);
  /// A system message, unless it is empty, and one of the user.
  static Conversation of(std::string_view system, std::string_view user);
};

/// What several prompts about one context have in common.
struct ChatText {
  std::string text;   // the rendered conversation
  size_t shared = 0;  // its first bytes are shared_text(); 0: the template does not begin with it here
};

class ChatTemplate {
 public:
  /// The templates of a model folder; none where it has none. As transformers chooses: chat_template.jinja
  /// and additional_chat_templates/NAME.jinja, where there is any of these files; else "chat_template" of
  /// tokenizer_config.json, a text or a list of {"name", "template"}; else that of chat_template.json.
  /// Special tokens (bos_token, ...) are those of tokenizer_config.json, and of special_tokens_map.json where
  /// the former has no "added_tokens_decoder". Errors: kIo, kCorrupt, kInvalidArgument.
  static Result<std::optional<ChatTemplate>> find(const std::string& folder);
  /// A template from a file of its own, with the special tokens of `folder`.
  static Result<ChatTemplate> read(const std::string& path, const std::string& folder);
  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;
  ~ChatTemplate();

  /// By the template "tool_use", where there is one and the conversation has tools, else by "default". `now`:
  /// for templates that write a date; none: the clock's. Errors name file and line: kInvalidArgument (what
  /// the template raises; no messages), kNotFound (no template "default"), kCorrupt (no template),
  /// kUnsupported (what the interpreter does not do), kExhausted (past its limits).
  Result<std::string> render(const Conversation& conversation, std::optional<std::time_t> now = {}) const;

  /// The text with which every conversation begins that has `conversation`'s messages before the first of the
  /// user and its tools, and in which that message's text begins with `context`: all up to the context's end.
  /// Where the template writes a date it holds for that day only. kInvalidArgument: the template does not
  /// write the context as it is.
  Result<std::string> shared_text(const Conversation& conversation, std::string_view context,
                                  std::optional<std::time_t> now = {}) const;
  /// The conversation with `context` put before the text of the user's first message. kInvalidArgument where
  /// it has none.
  Result<ChatText> render_about(const Conversation& conversation, std::string_view context,
                                std::optional<std::time_t> now = {}) const;

 private:
  struct Impl;
  explicit ChatTemplate(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// The text of "eos_token" of a model folder, by the same files; empty: it names none. A token that ends an
/// answer, though generation_config.json may not list it. Errors: kIo, kCorrupt.
Result<std::string> eos_token_text(const std::string& folder);

}  // namespace ds
