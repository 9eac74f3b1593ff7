// Calls of tools are found in answers however these come in pieces, and nothing that is none is taken away.
#include "serve/tool_calls.h"

#include <gtest/gtest.h>

namespace ds {
namespace {

struct Found {
  std::string text;
  std::vector<std::pair<std::string, std::string>> calls;
  bool operator==(const Found&) const = default;
};

void PrintTo(const Found& f, std::ostream* out) {
  *out << "text '" << f.text << "'";
  for (const auto& [name, arguments] : f.calls) *out << ", " << name << "(" << arguments << ")";
}

/// `cuts`: where the text is cut.
Found read(ToolFormat format, const std::string& text, const std::vector<size_t>& cuts) {
  ToolCallReader reader(format);
  Found out;
  auto take = [&](const ToolCallReader::Read& part) {
    out.text += part.text;
    for (const ToolCall& call : part.calls) out.calls.emplace_back(call.name, call.arguments);
  };
  size_t at = 0;
  for (size_t cut : cuts) {
    take(reader.push(text.substr(at, cut - at)));
    at = cut;
  }
  take(reader.push(text.substr(at)));
  take(reader.finish());
  return out;
}

void expect(ToolFormat format, const std::string& text, const Found& found) {
  std::vector<size_t> all;
  for (size_t i = 1; i < text.size(); ++i) {
    EXPECT_EQ(read(format, text, {i}), found) << "cut at " << i << ": " << text;
    all.push_back(i);
  }
  EXPECT_EQ(read(format, text, {}), found) << text;
  EXPECT_EQ(read(format, text, all), found) << "cut everywhere: " << text;
}

const std::string kWeather = R"({"name": "weather", "arguments": {"city": "Zürich", "days": 3}})",
                  kWeatherArguments = R"({"city":"Zürich","days":3})";

TEST(ToolCalls, Hermes) {
  const ToolFormat f = ToolFormat::kHermes;
  expect(f, "just text, 1 < 2 <tool> <tool_call", {"just text, 1 < 2 <tool> <tool_call", {}});
  expect(f, "\n text", {"\n text", {}});
  expect(f, " \n", {" \n", {}});
  expect(f, "<tool_call>\n" + kWeather + "\n</tool_call>", {"", {{"weather", kWeatherArguments}}});
  expect(f,
         "\n\n<tool_call>" + kWeather + "</tool_call>\n<tool_call>\n" + R"({"name": "time"})" +
             "\n</tool_call>\n",
         {"", {{"weather", kWeatherArguments}, {"time", "{}"}}});
  expect(f, "I look.\n<tool_call>" + kWeather + "</tool_call> Done.",
         {"I look.\n Done.", {{"weather", kWeatherArguments}}});
  expect(f, "<tool_call>" + kWeather, {"", {{"weather", kWeatherArguments}}});  // cut off behind it
  for (const std::string none :
       {"<tool_call>{\"name\": 5}</tool_call>", "<tool_call>no JSON</tool_call>!",
        "<tool_call>{\"name\": \"wea", "a <tool_call></tool_call> b", "<tool_call>[]</tool_call>"})
    expect(f, none, {none, {}});
  expect(f, "<tool_call>broken</tool_call><tool_call>" + kWeather + "</tool_call>",
         {"<tool_call>broken</tool_call>", {{"weather", kWeatherArguments}}});
}

TEST(ToolCalls, Llama3) {
  const ToolFormat f = ToolFormat::kLlama3;
  const std::string call = R"({"name": "say", "parameters": {"text": "a } \" { b"}})",
                    arguments = R"({"text":"a } \" { b"})";
  expect(f, call, {"", {{"say", arguments}}});
  expect(f, " <|python_tag|>" + call + "; " + kWeather + "\n",
         {"", {{"say", arguments}, {"weather", kWeatherArguments}}});
  for (const std::string none : {"The call is {\"name\": \"x\"}", "{\"name\": \"x\"} and more", "{\"a\": 1}",
                                 "{", "", " ", "<|python", "<|pythons|>"})
    expect(f, none, {none, {}});
}

TEST(ToolCalls, NoFormat) {
  const std::string text = "<tool_call>" + kWeather + "</tool_call>";
  expect(ToolFormat::kNone, text, {text, {}});
  EXPECT_EQ(tool_format("hermes"), ToolFormat::kHermes);
  EXPECT_EQ(tool_format("llama3_json"), ToolFormat::kLlama3);
  EXPECT_EQ(tool_format(""), ToolFormat::kNone);
  EXPECT_FALSE(tool_format("Hermes"));
}

}  // namespace
}  // namespace ds
