#include "serve/chat_prompt.h"

namespace ds {
namespace {

void join_parts(nlohmann::ordered_json& messages) {
  for (auto& message : messages) {
    if (!message.is_object() || !message.contains("content") || !message["content"].is_array()) continue;
    std::string text;
    for (const auto& part : message["content"]) {
      if (!text.empty()) text += '\n';
      text += part["text"].get<std::string>();
    }
    message["content"] = text;
  }
}

}  // namespace

ApiFault render_chat(const ServedModel& model, nlohmann::ordered_json conversation, std::string& out) {
  if (!model.chat_template)
    return ApiError{
        400,
        fmt::format("model '{}' has no chat template (chat_template.jinja, or 'chat_template' in "
                    "tokenizer_config.json): ask /v1/completions, or have its operator name one as "
                    "'chat_template' in the fleet file",
                    model.given.name),
        "invalid_request_error", "messages", "no_chat_template"};
  if (!model.reads_parts) join_parts(conversation["messages"]);
  auto parsed = Conversation::parse(
      conversation.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace), "the request");
  if (!parsed.ok()) return ApiError::of_field("messages", parsed.status().message());
  auto text = model.chat_template->render(*parsed);
  if (!text.ok())
    return ApiError{
        400, fmt::format("the chat template of model '{}': {}", model.given.name, text.status().message()),
        "invalid_request_error", "messages", "chat_template_error"};
  out = std::move(*text);
  return std::nullopt;
}

}  // namespace ds
