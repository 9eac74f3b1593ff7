// Prompt templates: how an item becomes the shared context and what only the receiver sees.
//
//   {"schema": "droidspeak.prompts", "version": 1,
//    "tasks": {"notes_qa": {"prompt": "{context}\nQuestion: {input}\nAnswer:", "max_new_tokens": 8,
//                           "metric": "qa_f1", "answer_prefix": " ", "stop": ["\n"]},
//              "*": {"prompt": "{context}\n\n{input}"}}}
//
// `prompt` has {context} once and {input} at most once, after it; {{ and }} are braces, as in Python's
// str.format, so that LongBench's own prompts can be used as they are. All up to and including {context} is
// the shared text.
// "*" is for the tasks that are not listed. LongBench's own dataset2prompt.json, a prompt by task, is read as
// it is.
#pragma once

#include <ctime>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "profiler/dataset.h"
#include "runtime/model/chat_template.h"
#include "support/json.h"

namespace ds {

inline constexpr int64_t kPromptsVersion = 1;

struct PromptTemplate {
  std::string before_context, before_input, after_input;
  bool has_input = false;        // without {input}, before_input is all that follows {context}
  int64_t max_new_tokens = 64;   // 0: LongBench's prompts, which say nothing of it
  std::optional<Metric> metric;  // of items that name none
  /// Between the prompt and a reference answer. None: a space, but none where white space or Chinese text
  /// ends the prompt.
  std::optional<std::string> answer_prefix = " ";
  std::vector<std::string> stop;   // a generated text ends before the first of them
  std::optional<bool> first_line;  // only the first line is scored; not given: as LongBench does for the task
  std::optional<bool> chat;  // through the model's chat template; not given: as LongBench does for the task
};

/// One item's texts. The receiver reads `context` + `suffix`; the sender has read `context`.
struct Prompt {
  std::string context, suffix;  // neither is empty
  bool templated = false;       // through a chat template, which says itself where special tokens stand
};

/// kInvalidArgument (with the item's place) where nothing would follow the context.
Result<Prompt> render(const PromptTemplate& prompt, const Item& item);

/// The item's first answer as it would go on from its prompt.
std::string reference_text(const PromptTemplate& prompt, const Prompt& text, const Item& item);

/// Whether a task's prompt is meant for the model's chat template: LongBench leaves it out for few-shot and
/// code tasks.
bool wants_chat(const PromptTemplate& prompt, std::string_view task);

/// The part of a generated text that is scored: up to the first stop string, then the first line where asked.
std::string_view cut_answer(const PromptTemplate& prompt, std::string_view task, std::string_view text);

class PromptTemplates {
 public:
  /// "{context}{input}" and 64 new tokens for every task.
  static const PromptTemplates& builtin();
  /// Errors name file and key: kNotFound, kIo, kCorrupt, kMismatch (another schema), kUnsupported (a newer
  /// version), kInvalidArgument (unknown keys, bad values, placeholders).
  static Result<PromptTemplates> read(const std::string& path);

  /// How many new tokens an answer has at most: a number, for all tasks; or a file with a number by task, as
  /// LongBench's dataset2maxlen.json, which goes before the templates' own. It is part of sha256() from then
  /// on. Errors: those of files; kInvalidArgument for what is no number of tokens.
  Status set_max_new_tokens(const std::string& number_or_file);

  /// From now on prompts that are meant for it (wants_chat()) are the user's message in `chat_template`,
  /// after the system message `system` where that is not empty; `now` is the date for templates that write
  /// one. It is part of sha256(). Errors: those of rendering a first message.
  Status set_chat(std::shared_ptr<const ChatTemplate> chat_template, std::string system,
                  std::optional<std::time_t> now);
  /// One item's texts, through the chat template where one is set. Errors name the item.
  Result<Prompt> render(const PromptTemplate& prompt, const Item& item) const;

  const std::string& name() const { return name_; }      // the path, or "builtin"
  const std::string& sha256() const { return sha256_; }  // of the file's bytes, or of the built-in text
  /// A data set of LongBench-E ("hotpotqa_e") has its task's prompt. kNotFound where neither the task nor "*"
  /// is listed.
  Result<const PromptTemplate*> find(std::string_view task) const;
  /// The template's metric, else LongBench's: what read_dataset() asks for.
  std::optional<Metric> metric(std::string_view task) const;

 private:
  std::string name_, sha256_;
  std::map<std::string, PromptTemplate, std::less<>> tasks_;
  std::shared_ptr<const ChatTemplate> chat_;  // null: none
  std::string system_;
  std::optional<std::time_t> now_;
  const PromptTemplate* listed(std::string_view task) const;
  static Result<PromptTemplates> parse(std::string name, std::string_view text);
  static Result<PromptTemplates> parse_longbench(std::string name, const nlohmann::json& prompts);
};

/// kInvalidArgument where a task of `data` has no max_new_tokens: says what to give.
Status check_max_new_tokens(const PromptTemplates& prompts, const std::vector<Dataset>& data);

}  // namespace ds
