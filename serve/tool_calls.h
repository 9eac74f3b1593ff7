// Calls of tools, as models write them into their answers.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace ds {

enum class ToolFormat : uint8_t {
  kNone,    // calls are text like other text
  kHermes,  // <tool_call>{"name": ..., "arguments": {...}}</tool_call>, any number; Hermes 2 Pro, Qwen 2.5
            // and 3
  kLlama3,  // an answer that is {"name": ..., "parameters": {...}}, several with ';' between; Llama 3.1
            // and 3.2
};
/// By the names that vLLM gives them, "hermes" and "llama3_json"; nullopt: there is none of that name.
std::optional<ToolFormat> tool_format(std::string_view name);

struct ToolCall {
  std::string name, arguments;  // JSON
};

/// Takes an answer's text piece by piece; it does not matter how it is cut. A call is given once it is whole;
/// what looks like one and is none is text. White space around calls is nobody's.
class ToolCallReader {
 public:
  struct Read {
    std::string text;
    std::vector<ToolCall> calls;
  };
  explicit ToolCallReader(ToolFormat format) : format_(format) {}
  Read push(std::string_view piece);
  /// The answer's end.
  Read finish();

 private:
  void read_hermes(Read& out, bool ended);
  void read_llama3(Read& out, bool ended);
  void show(Read& out, std::string_view text);
  void add(Read& out, ToolCall call);

  ToolFormat format_;
  std::string held_;     // what may become a call
  std::string blank_;    // white space that calls may follow
  bool inside_ = false;  // of <tool_call>; of an answer that began as a call
  bool shown_ = false;   // text, since the beginning or the last call
  bool called_ = false;
};

}  // namespace ds
