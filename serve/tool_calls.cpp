#include "serve/tool_calls.h"

#include <algorithm>

#include "serve/openai_answer.h"
#include "support/json.h"

namespace ds {
namespace {

constexpr std::string_view kOpen = "<tool_call>", kClose = "</tool_call>", kPython = "<|python_tag|>",
                           kBlank = " \t\r\n";

/// Length of the longest end of `text` that `tag` begins with, and is more than.
size_t begun(std::string_view text, std::string_view tag) {
  size_t n = std::min(text.size(), tag.size() - 1);
  while (n > 0 && !text.ends_with(tag.substr(0, n))) --n;
  return n;
}

std::optional<ToolCall> call_of(std::string_view text) {
  auto json = parse_ordered_json(text, "a call");
  if (!json.ok() || !json->is_object() || !json->contains("name") || !(*json)["name"].is_string())
    return std::nullopt;
  ToolCall call{(*json)["name"].get<std::string>(), "{}"};
  for (const char* key : {"arguments", "parameters"})
    if (json->contains(key)) {
      const auto& arguments = (*json)[key];
      call.arguments = arguments.is_string() ? arguments.get<std::string>() : json_text(arguments);
    }
  return call;
}

/// Where the object ends that begins at text[0]; npos: it does not.
size_t object_end(std::string_view text) {
  int64_t depth = 0;
  bool quoted = false;
  for (size_t i = 0; i < text.size(); ++i) {
    if (quoted) {
      if (text[i] == '\\')
        ++i;
      else if (text[i] == '"')
        quoted = false;
      continue;
    }
    if (text[i] == '"') quoted = true;
    if (text[i] == '{') ++depth;
    if (text[i] == '}' && --depth == 0) return i + 1;
  }
  return text.npos;
}

}  // namespace

std::optional<ToolFormat> tool_format(std::string_view name) {
  if (name.empty()) return ToolFormat::kNone;
  if (name == "hermes") return ToolFormat::kHermes;
  if (name == "llama3_json") return ToolFormat::kLlama3;
  return std::nullopt;
}

ToolCallReader::Read ToolCallReader::push(std::string_view piece) {
  Read out;
  held_ += piece;
  switch (format_) {
    case ToolFormat::kNone:
      out.text = std::exchange(held_, {});
      break;
    case ToolFormat::kHermes:
      read_hermes(out, false);
      break;
    case ToolFormat::kLlama3:
      read_llama3(out, false);
      break;
  }
  return out;
}

ToolCallReader::Read ToolCallReader::finish() {
  Read out;
  if (format_ == ToolFormat::kHermes) read_hermes(out, true);
  if (format_ == ToolFormat::kLlama3) read_llama3(out, true);
  if (!called_) out.text += std::exchange(blank_, {});
  return out;
}

void ToolCallReader::show(Read& out, std::string_view text) {
  if (!shown_ && text.find_first_not_of(kBlank) == text.npos) {
    blank_ += text;
    return;
  }
  shown_ = true;
  out.text += std::exchange(blank_, {});
  out.text += text;
}

void ToolCallReader::add(Read& out, ToolCall call) {
  out.calls.push_back(std::move(call));
  called_ = true;
  shown_ = false;
  blank_.clear();
}

void ToolCallReader::read_hermes(Read& out, bool ended) {
  for (;;) {
    const size_t at = held_.find(inside_ ? kClose : kOpen);
    if (at == held_.npos && !(ended && inside_)) {
      const size_t keep = inside_ ? held_.size() : ended ? 0 : begun(held_, kOpen);
      show(out, std::string_view(held_).substr(0, held_.size() - keep));
      held_.erase(0, held_.size() - keep);
      return;
    }
    const std::string text = held_.substr(0, at);
    held_.erase(0, at == held_.npos ? at : at + (inside_ ? kClose : kOpen).size());
    if (!inside_) {
      show(out, text);
    } else if (auto call = call_of(text)) {
      add(out, std::move(*call));
    } else {
      show(out, kOpen);
      show(out, text);
      if (at != text.npos) show(out, kClose);
    }
    inside_ = !inside_;
  }
}

void ToolCallReader::read_llama3(Read& out, bool ended) {
  if (shown_) return show(out, std::exchange(held_, {}));
  const size_t first = std::min(held_.find_first_not_of(kBlank), held_.size());
  std::string_view text = std::string_view(held_).substr(first);
  const bool tagged = text.starts_with(kPython);
  if (!ended && !inside_) {
    inside_ = tagged || text.starts_with("{");
    if (!inside_ && !kPython.starts_with(text)) return show(out, std::exchange(held_, {}));
  }
  if (!ended) return;
  // All of it is calls, or none is.
  if (tagged) text.remove_prefix(kPython.size());
  std::vector<ToolCall> calls;
  bool good = true;
  while (good) {
    text.remove_prefix(std::min(text.find_first_not_of(std::string(kBlank) + ";"), text.size()));
    if (text.empty()) break;
    const size_t end = text.front() == '{' ? object_end(text) : text.npos;
    auto call = end == text.npos ? std::nullopt : call_of(text.substr(0, end));
    good = call.has_value();
    if (!good) break;
    calls.push_back(std::move(*call));
    text.remove_prefix(end);
  }
  if (!good || calls.empty()) return show(out, std::exchange(held_, {}));
  for (ToolCall& call : calls) add(out, std::move(call));
  held_.clear();
}

}  // namespace ds
