// What ds-run, ds-publish and ds-profile share of chat templates: the options, and a request's text through
// the template.
#pragma once

#include <sys/stat.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "runtime/model/chat_template.h"
#include "runtime/model/tokenizer.h"
#include "support/file.h"
#include "tools/model_input.h"
#include "tools/open_options.h"
#include "tools/tool.h"

namespace ds {

struct ChatOptions {
  std::string use = "auto";  // auto, none, a folder or a file
  std::string system;
  std::string chat;   // a file, "-", or none
  int64_t time = -1;  // what templates take for now; -1: the clock's

  /// Whether something was asked for that only a template can do.
  bool asked() const { return !system.empty() || !chat.empty() || (use != "auto" && use != "none"); }
  std::optional<std::time_t> now() const {
    return time < 0 ? std::nullopt : std::optional<std::time_t>(time);
  }
};

/// `who`: "receiver" or "sender", whose template "auto" takes.
inline void add_template_options(CLI::App& app, ChatOptions& o, std::string_view who) {
  app.add_option(
         "--template", o.use,
         fmt::format(
             "chat template that texts go through: auto (the {}'s, where its folder has one), none, or "
             "that of another model's folder, or a .jinja file",
             who))
      ->capture_default_str();
  app.add_option(
         "--template-time", o.time,
         "seconds since 1970 that templates which write a date take for now: a prefix that was published on "
         "one day is then found on another; default: the clock")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 40));
}

/// The file that an option names, "-" for stdin.
inline std::string input_path(const std::string& option) { return option == "-" ? "/dev/stdin" : option; }

/// The template that the options name; none for "none", and for "auto" where `model` has none. Errors:
/// kInvalidArgument where --chat or --system need one, those of ChatTemplate::find().
inline Result<std::optional<ChatTemplate>> open_chat_template(const ChatOptions& o, const std::string& model,
                                                              const OpenOptions& open) {
  std::string folder = model;
  if (o.use != "none") {
    DS_ASSIGN(folder, folder_for("chat_template.jinja", model, open));
    if (!file_exists(folder + "/chat_template.jinja")) {
      DS_ASSIGN(folder, folder_for("tokenizer_config.json", model, open));
    }
  }
  std::optional<ChatTemplate> found;
  if (o.use == "auto") {
    DS_ASSIGN(found, ChatTemplate::find(folder));
  } else if (o.use != "none") {
    struct stat info {};
    if (stat(o.use.c_str(), &info) != 0)
      return error(Code::kNotFound,
                   "--template '{}': no such file or folder; expected auto, none, a model's folder or a "
                   "template's file",
                   o.use);
    if (S_ISDIR(info.st_mode)) {
      DS_ASSIGN(found, ChatTemplate::find(o.use));
      if (!found)
        return error(Code::kNotFound,
                     "--template '{}': the folder has no chat template (chat_template.jinja, or "
                     "'chat_template' in tokenizer_config.json)",
                     o.use);
    } else {
      DS_ASSIGN(ChatTemplate read, ChatTemplate::read(o.use, folder));
      found = std::move(read);
    }
  }
  if (!found && (!o.chat.empty() || !o.system.empty()))
    return error(
        Code::kInvalidArgument,
        "{} needs a chat template, and {}; name one with --template (a model's folder or a .jinja file)",
        o.chat.empty() ? "--system" : "--chat",
        o.use == "none" ? std::string("--template is none")
                        : fmt::format("'{}' has none (chat_template.jinja, or 'chat_template' in "
                                      "tokenizer_config.json)",
                                      folder));
  return found;
}

/// The conversation of --chat or --system, and of `prompt` as the user's message: after the messages of
/// --chat, where there are any.
inline Result<Conversation> read_conversation(const ChatOptions& o,
                                              const std::optional<std::string>& prompt) {
  if (o.chat.empty()) return Conversation::of(o.system, prompt.value_or(""));
  DS_ASSIGN(std::string json, read_text_file(input_path(o.chat)));
  std::vector<std::string> ignored;
  DS_ASSIGN(Conversation conversation, Conversation::parse(json, o.chat == "-" ? "stdin" : o.chat, &ignored));
  if (!ignored.empty())
    fmt::print(stderr, "note: --chat '{}': {} not looked at; options say how to answer\n", o.chat,
               fmt::join(ignored, ", "));
  if (!o.system.empty()) {
    if (conversation.messages[0].value("role", "") == "system")
      return error(Code::kInvalidArgument,
                   "--system: the conversation of --chat '{}' begins with a system message", o.chat);
    conversation.messages.insert(conversation.messages.begin(),
                                 nlohmann::ordered_json{{"role", "system"}, {"content", o.system}});
  }
  if (prompt) conversation.messages.push_back({{"role", "user"}, {"content", *prompt}});
  return conversation;
}

/// `ids` and the model's eos_token: with it answers through a template end, and generation_config.json often
/// leaves it out.
inline Result<std::vector<int32_t>> with_turn_end(std::vector<int32_t> ids, const Checkpoint& model,
                                                  const Tokenizer& tokenizer) {
  DS_ASSIGN(std::string eos, eos_token_text(model.folder_of("tokenizer_config.json")));
  int32_t id = eos.empty() ? -1 : tokenizer.token_id(eos);
  if (id >= 0 && std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(id);
  return ids;
}

/// A request's text in its two parts: what its context's entry was published for, and the rest.
struct RequestText {
  std::string context, prompt;
  bool templated = false;  // it says itself where special tokens stand
};

/// `prompt`: of --prompt or --prompt-file; none with --chat alone.
inline Result<RequestText> request_text(const ChatOptions& o,
                                        const std::optional<ChatTemplate>& chat_template, std::string context,
                                        const std::optional<std::string>& prompt) {
  if (!chat_template) return RequestText{std::move(context), prompt.value_or(""), false};
  DS_ASSIGN(Conversation conversation, read_conversation(o, prompt));
  RequestText out;
  out.templated = true;
  if (context.empty()) {
    DS_ASSIGN(out.prompt, chat_template->render(conversation, o.now()));
    return out;
  }
  DS_ASSIGN(ChatText text, chat_template->render_about(conversation, context, o.now()));
  if (text.shared == 0)
    fmt::print(stderr,
               "note: the template does not begin this conversation with what others about this context "
               "begin with, so "
               "that nothing of an entry can be reused\n");
  out.context = text.text.substr(0, text.shared);
  out.prompt = text.text.substr(text.shared);
  return out;
}

/// A request's tokens: of its text, or without one of the ids and files that `input` names.
inline Result<JoinedText> request_tokens(const LoadedModel& model, const std::optional<RequestText>& text,
                                         const RequestInput& input) {
  if (!text) return read_request(model, input);
  DS_ASSIGN(const Tokenizer* tokenizer, tokenizer_of(model));
  return join_text(*tokenizer, text->context, text->prompt, !text->templated);
}

}  // namespace ds
