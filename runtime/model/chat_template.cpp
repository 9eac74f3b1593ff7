#include "runtime/model/chat_template.h"

#include <algorithm>
#include <filesystem>
#include <map>

#include "runtime/model/jinja/template.h"
#include "runtime/model/tokenizer_unicode_internal.h"
#include "support/file.h"

namespace ds {
namespace {

using Json = nlohmann::ordered_json;
constexpr int64_t kMostBytes = 64 << 20;
constexpr std::string_view kSpecialTokens[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                               "pad_token", "cls_token", "mask_token"};

/// An object; empty where there is no such file.
Result<Json> read_object(const std::string& path) {
  if (!file_exists(path)) return Json::object();
  DS_ASSIGN(std::string text, read_text_file(path, kMostBytes));
  DS_ASSIGN(Json json, parse_ordered_json(text, path));
  if (!json.is_object()) return error(Code::kCorrupt, "{}: expected a JSON object", path);
  return json;
}

/// A token is a text, or {"content": text, ...}; "" for null.
Result<std::string> token_text(const Json& value, const std::string& where) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_null()) return std::string();
  if (value.is_object() && value.contains("content") && value["content"].is_string())
    return value["content"].get<std::string>();
  return error(Code::kCorrupt, "{}: expected a text, or an object with the text 'content'", where);
}

Result<std::map<std::string, std::string>> special_tokens(const std::string& folder, const Json& config) {
  std::map<std::string, std::string> tokens;
  auto add = [&](const Json& from, const std::string& path) -> Status {
    for (std::string_view name : kSpecialTokens) {
      auto it = from.find(std::string(name));
      if (it == from.end()) continue;
      DS_ASSIGN(std::string text, token_text(*it, fmt::format("{}: {}", path, name)));
      if (text.empty()) {
        tokens.erase(std::string(name));
      } else {
        tokens[std::string(name)] = std::move(text);
      }
    }
    return ok_status();
  };
  DS_TRY(add(config, folder + "/tokenizer_config.json"));
  if (!config.contains("added_tokens_decoder")) {
    const std::string path = folder + "/special_tokens_map.json";
    DS_ASSIGN(Json map, read_object(path));
    DS_TRY(add(map, path));
  }
  return tokens;
}

Status refuse(const std::string& where, std::string_view expected) {
  return error(Code::kInvalidArgument, "{}: expected {}", where, expected);
}

/// As transformers does before a template sees a message.
Json prepared(const Json& message) {
  Json out = Json::object();
  for (const auto& [key, value] : message.items())
    if (!value.is_null()) out[key] = value;
  for (const char* name : {"reasoning_content", "thinking", "reasoning"}) {
    auto it = out.find(name);
    if (it == out.end()) continue;
    const Json reasoning = *it;
    Json aliased = Json::object();
    aliased["thinking"] = reasoning;
    for (const auto& [key, value] : out.items()) aliased[key] = value;
    aliased["reasoning_content"] = reasoning;
    return aliased;
  }
  return out;
}

/// Puts `context` before a message's text.
Status put_before(Json& message, std::string_view context, const std::string& where) {
  Json& content = message["content"];
  if (content.is_null()) {
    content = std::string(context);
  } else if (content.is_string()) {
    content = std::string(context) + content.get<std::string>();
  } else if (content.is_array()) {
    for (Json& part : content) {
      if (!part.is_object() || !part.contains("text") || !part["text"].is_string()) continue;
      part["text"] = std::string(context) + part["text"].get<std::string>();
      return ok_status();
    }
    content.insert(content.begin(), Json{{"type", "text"}, {"text", std::string(context)}});
  } else {
    return refuse(where + ": content", "a text or a list of parts");
  }
  return ok_status();
}

size_t first_of_user(const Json& messages) {
  for (size_t i = 0; i < messages.size(); ++i)
    if (messages[i].value("role", "") == "user") return i;
  return messages.size();
}

}  // namespace

Result<Conversation> Conversation::parse(std::string_view json, const std::string& origin,
                                         std::vector<std::string>* ignored) {
  DS_ASSIGN(Json root, parse_ordered_json(json, origin));
  Conversation out;
  if (root.is_array()) {
    out.messages = std::move(root);
  } else if (root.is_object()) {
    for (auto& [key, value] : root.items()) {
      if (key == "messages") {
        out.messages = std::move(value);
      } else if (key == "tools" || key == "documents") {
        if (!value.is_array() && !value.is_null()) return refuse(origin + ": " + key, "a list of objects");
        for (const Json& item : value)
          if (!item.is_object()) return refuse(origin + ": " + key, "a list of objects");
        (key == "tools" ? out.tools : out.documents) = std::move(value);
      } else if (key == "chat_template_kwargs") {
        if (!value.is_object()) return refuse(origin + ": " + key, "an object");
        out.variables = std::move(value);
      } else if (key == "add_generation_prompt") {
        if (!value.is_boolean()) return refuse(origin + ": " + key, "true or false");
        out.add_generation_prompt = value.get<bool>();
      } else if (ignored != nullptr) {
        ignored->push_back(key);
      }
    }
  }
  if (!out.messages.is_array() || out.messages.empty())
    return refuse(
        origin,
        "a list of messages, [{\"role\": \"user\", \"content\": \"...\"}, ...], or an object with one "
        "in 'messages'");
  for (size_t i = 0; i < out.messages.size(); ++i) {
    const Json& message = out.messages[i];
    if (!message.is_object() || !message.contains("role") || !message["role"].is_string())
      return refuse(fmt::format("{}: message {}", origin, i + 1), "an object with the text 'role'");
  }
  return out;
}

Conversation Conversation::of(std::string_view system, std::string_view user) {
  Conversation out;
  if (!system.empty()) out.messages.push_back({{"role", "system"}, {"content", std::string(system)}});
  out.messages.push_back({{"role", "user"}, {"content", std::string(user)}});
  return out;
}

struct ChatTemplate::Impl {
  std::map<std::string, jinja::Template> templates;  // by name
  std::map<std::string, std::string> tokens;         // by "bos_token", ...
  std::string where;                                 // for messages

  Status add(const std::string& name, std::string_view source, std::string origin) {
    DS_ASSIGN(jinja::Template parsed, jinja::Template::parse(source, std::move(origin)));
    templates.insert_or_assign(name, std::move(parsed));
    return ok_status();
  }
  Status add_file(const std::string& name, const std::string& path) {
    DS_ASSIGN(std::string source, read_text_file(path, kMostBytes));
    return add(name, source, path);
  }
  Status add_value(const Json& value, const std::string& where) {
    if (value.is_string()) return add("default", value.get<std::string>(), where);
    if (!value.is_array())
      return error(Code::kCorrupt, "{}: expected a text or a list of named templates", where);
    for (const Json& item : value) {
      if (!item.is_object() || !item.contains("name") || !item["name"].is_string() ||
          !item.contains("template") || !item["template"].is_string())
        return error(Code::kCorrupt, "{}: expected objects with the texts 'name' and 'template'", where);
      auto name = item["name"].get<std::string>();
      DS_TRY(add(name, item["template"].get<std::string>(), fmt::format("{} '{}'", where, name)));
    }
    return ok_status();
  }
};

ChatTemplate::ChatTemplate(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;
ChatTemplate::~ChatTemplate() = default;

Result<std::optional<ChatTemplate>> ChatTemplate::find(const std::string& folder) {
  auto impl = std::make_unique<Impl>();
  impl->where = folder;
  const std::string config_path = folder + "/tokenizer_config.json";
  DS_ASSIGN(Json config, read_object(config_path));
  const std::string alone = folder + "/chat_template.jinja", legacy = folder + "/chat_template.json";
  if (file_exists(alone)) DS_TRY(impl->add_file("default", alone));
  std::error_code ignored;
  for (const auto& entry :
       std::filesystem::directory_iterator(folder + "/additional_chat_templates", ignored))
    if (entry.path().extension() == ".jinja")
      DS_TRY(impl->add_file(entry.path().stem().string(), entry.path().string()));
  if (impl->templates.empty() && config.contains("chat_template") && !config["chat_template"].is_null())
    DS_TRY(impl->add_value(config["chat_template"], config_path + ": chat_template"));
  if (impl->templates.empty()) {
    DS_ASSIGN(Json json, read_object(legacy));
    if (json.contains("chat_template") && !json["chat_template"].is_null())
      DS_TRY(impl->add_value(json["chat_template"], legacy + ": chat_template"));
  }
  if (impl->templates.empty()) return std::optional<ChatTemplate>();
  DS_ASSIGN(impl->tokens, special_tokens(folder, config));
  return std::optional<ChatTemplate>(ChatTemplate(std::move(impl)));
}

Result<ChatTemplate> ChatTemplate::read(const std::string& path, const std::string& folder) {
  auto impl = std::make_unique<Impl>();
  impl->where = path;
  DS_TRY(impl->add_file("default", path));
  DS_ASSIGN(Json config, read_object(folder + "/tokenizer_config.json"));
  DS_ASSIGN(impl->tokens, special_tokens(folder, config));
  return ChatTemplate(std::move(impl));
}

Result<std::string> ChatTemplate::render(const Conversation& conversation,
                                         std::optional<std::time_t> now) const {
  if (conversation.messages.empty())
    return error(Code::kInvalidArgument, "a conversation without messages; at least one is needed");
  const bool tools = !conversation.tools.is_null();
  auto chosen = tools ? impl_->templates.find("tool_use") : impl_->templates.end();
  if (chosen == impl_->templates.end()) chosen = impl_->templates.find("default");
  if (chosen == impl_->templates.end()) {
    std::vector<std::string_view> names;
    for (const auto& [name, t] : impl_->templates) names.push_back(name);
    return error(Code::kNotFound, "'{}' has chat templates, but none that is called 'default'; found {}",
                 impl_->where, fmt::join(names, ", "));
  }
  Json variables = Json::object();
  for (const auto& [name, text] : impl_->tokens) variables[name] = text;
  Json& messages = variables["messages"] = Json::array();
  for (const Json& message : conversation.messages) messages.push_back(prepared(message));
  variables["tools"] = conversation.tools;
  variables["documents"] = conversation.documents;
  variables["add_generation_prompt"] = conversation.add_generation_prompt;
  for (const auto& [name, value] : conversation.variables.items()) variables[name] = value;
  jinja::RenderOptions options;
  options.now = now;
  return chosen->second.render(variables, options);
}

Result<std::string> ChatTemplate::shared_text(const Conversation& conversation, std::string_view context,
                                              std::optional<std::time_t> now) const {
  // Two prompts that agree in no character: what their texts have in common comes from before them.
  Conversation begun = conversation;
  const size_t first = first_of_user(conversation.messages);
  begun.messages.erase(begun.messages.begin() + static_cast<int64_t>(first), begun.messages.end());
  begun.add_generation_prompt = true;
  std::string texts[2];
  for (size_t i = 0; i < 2; ++i) {
    Conversation asked = begun;
    asked.messages.push_back(
        {{"role", "user"}, {"content", std::string(context) + (i == 0 ? "What is it?" : "30 of them!")}});
    DS_ASSIGN(texts[i], render(asked, now));
  }
  size_t size = static_cast<size_t>(
      std::mismatch(texts[0].begin(), texts[0].end(), texts[1].begin(), texts[1].end()).first -
      texts[0].begin());
  std::string shared = texts[0].substr(0, size);
  // A template may take white space from a message's begin, no more.
  size_t begin = 0;
  while (begin < context.size()) {
    size_t next = begin;
    char32_t c = unicode::next_char(context, next);
    if (!unicode::is_white_space(c) && !(c >= 0x1C && c <= 0x1F)) break;
    begin = next;
  }
  if (!std::string_view(shared).ends_with(context.substr(begin)))
    return error(Code::kInvalidArgument,
                 "{}: the template does not write a user's text as it is, so what several prompts about a "
                 "context have "
                 "in common cannot be told; use another template, or none (--template none)",
                 impl_->where);
  return shared;
}

Result<ChatText> ChatTemplate::render_about(const Conversation& conversation, std::string_view context,
                                            std::optional<std::time_t> now) const {
  ChatText out;
  const size_t first = first_of_user(conversation.messages);
  if (first == conversation.messages.size())
    return error(Code::kInvalidArgument,
                 "the conversation has no message of the user in whose beginning the context could stand");
  Conversation about = conversation;
  DS_TRY(put_before(about.messages[first], context, fmt::format("message {}", first + 1)));
  DS_ASSIGN(out.text, render(about, now));
  DS_ASSIGN(std::string shared, shared_text(conversation, context, now));
  if (out.text.starts_with(shared)) out.shared = shared.size();
  return out;
}

Result<std::string> eos_token_text(const std::string& folder) {
  DS_ASSIGN(Json config, read_object(folder + "/tokenizer_config.json"));
  DS_ASSIGN(auto tokens, special_tokens(folder, config));
  auto it = tokens.find("eos_token");
  return it == tokens.end() ? std::string() : it->second;
}

}  // namespace ds
