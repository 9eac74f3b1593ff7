// The interpreter of chat templates against transformers' renderings (tests/golden/chat), its limits, and the
// choice of templates and shared texts.
#include "runtime/model/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <random>

#include "runtime/model/jinja/template.h"
#include "support/file.h"

namespace ds {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Json = nlohmann::ordered_json;

const std::string kGolden = std::string(DS_SOURCE_DIR) + "/tests/golden/chat/";

Json cases() {
  static const Json parsed = Json::parse(*read_text_file(kGolden + "cases.json"));
  return parsed;
}

Result<std::string> rendered(std::string_view source, const Json& variables = Json::object(),
                             jinja::RenderOptions options = {}) {
  DS_ASSIGN(jinja::Template t, jinja::Template::parse(source, "t"));
  return t.render(variables, options);
}

class Golden : public ::testing::Test {
 protected:
  void SetUp() override {
    setenv("TZ", "UTC", 1);
    tzset();
  }
};

TEST_F(Golden, EverySnippetIsRenderedAsJinja2RendersIt) {
  Json all = cases();
  jinja::RenderOptions options;
  options.now = all["now"].get<int64_t>();
  ASSERT_GT(all["snippets"].size(), 140u);
  for (const Json& c : all["snippets"]) {
    auto source = c["template"].get<std::string>();
    Result<std::string> text = rendered(source, all["variables"], options);
    if (c.contains("error")) {
      EXPECT_FALSE(text.ok()) << source << "\nexpected " << c["error"] << "\nfound " << *text;
      if (!text.ok()) {
        EXPECT_THAT(text.status().message(), HasSubstr("line ")) << source;
        EXPECT_NE(text.status().code(), Code::kInternal) << source;
      }
    } else {
      ASSERT_TRUE(text.ok()) << source << "\n" << text.status().message();
      EXPECT_EQ(*text, c["text"].get<std::string>()) << source;
    }
  }
}

TEST_F(Golden, EveryConversationIsRenderedAsTransformersRendersIt) {
  Json all = cases();
  std::string folder = ::testing::TempDir() + "chat_golden";
  std::filesystem::create_directories(folder);
  ASSERT_TRUE(write_file_atomically(folder + "/tokenizer_config.json",
                                    R"({"bos_token": "<s>", "eos_token": {"content": "</s>"}})")
                  .ok());
  int texts = 0;
  for (const auto& [name, expected] : all["rendered"].items()) {
    auto t = ChatTemplate::read(kGolden + "templates/" + name + ".jinja", folder);
    ASSERT_TRUE(t.ok()) << t.status().message();
    for (size_t i = 0; i < expected.size(); ++i) {
      auto conversation = Conversation::parse(all["conversations"][i].dump(), "case");
      ASSERT_TRUE(conversation.ok()) << conversation.status().message();
      Result<std::string> text = t->render(*conversation, all["now"].get<int64_t>());
      if (expected[i].is_null()) {
        EXPECT_FALSE(text.ok()) << name << " " << i << ": " << *text;
      } else {
        ASSERT_TRUE(text.ok()) << name << " " << i << ": " << text.status().message();
        EXPECT_EQ(*text, expected[i].get<std::string>()) << name << " " << i;
        ++texts;
      }
    }
  }
  EXPECT_GT(texts, 150);
}

TEST(Jinja, WhatIsNotDoneIsRefusedByNameWithItsLine) {
  for (auto [source, name] : std::initializer_list<std::pair<const char*, const char*>>{
           {"\n{% include 'x' %}", "include"},
           {"\n{% extends 'x' %}", "extends"},
           {"\n{% import 'x' as y %}", "import"},
           {"\n{% block x %}{% endblock %}", "block"},
           {"\n{% for x in y recursive %}{% endfor %}", "recursive"},
           {"\n{{ [1] | groupby('x') }}", "groupby"},
           {"\n{{ 'a' | urlencode }}", "urlencode"},
           {"\n{{ 9223372036854775807 + 1 }}", "64 bits"},
           {"\n{{ 99999999999999999999 }}", "64 bits"},
           {"\n{{ 'a'.encode() }}", "encode"},
           {"\n{{ lipsum() }}", "lipsum"},
           {"\n{{ '{:>5}'.format(1) }}", "format"},
           {"\n{{ '\\ud83d' }}", "half"}}) {
    Result<std::string> text = rendered(source);
    ASSERT_FALSE(text.ok()) << source;
    EXPECT_EQ(text.status().code(), Code::kUnsupported) << source << text.status().message();
    EXPECT_THAT(text.status().message(), AllOf(HasSubstr(name), HasSubstr("t, line 2: "))) << source;
  }
}

TEST(Jinja, HostileTemplatesEndWithinLimits) {
  auto repeated = [](const std::string& s, int n) {
    std::string out;
    for (int i = 0; i < n; ++i) out += s;
    return out;
  };
  const std::string deep = repeated("(", 5000) + "1" + repeated(")", 5000);
  for (const std::string& source : {
           std::string("{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"),
           std::string("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"),
           std::string("{% set ns = namespace(s='a') %}{% for i in range(100) %}{% set ns.s = ns.s + ns.s "
                       "%}{% endfor %}"),
           std::string("{{ 'a' * 1000000000000 }}"),
           std::string("{{ [0] * 1000000000 }}"),
           std::string("{% set ns = namespace(l=[]) %}{% for i in range(100000) %}{% set ns.l = [ns.l] %}{% "
                       "endfor %}"),
           std::string("{% set ns = namespace(l={}) %}{% for i in range(100000) %}{% set ns.l = {'a': ns.l} "
                       "%}{% endfor %}"),
           std::string("{% set ns = namespace(p=none) %}{% for i in range(100000) %}{% set ns.p = "
                       "namespace(p=ns.p) %}{% endfor %}"),
           std::string("{% set a = 'x' * 10000000 %}{% for i in range(10000) %}{{ a }}{% endfor %}"),
           std::string("{% set a = 'x' * 1000000 %}{{ a | replace('', a) }}"),
           std::string("{{ 'a' | center(100000000000) }}"),
           std::string("{{ '%1000000000d' % 1 }}"),
           "{{ " + deep + " }}",
           "{{ " + repeated("not ", 100000) + "1 }}",
           "{{ " + repeated("-", 100000) + "1 }}",
           "{{ a" + repeated(".b", 100000) + " }}",
           "{{ 1" + repeated(" + 1", 100000) + " }}",
           "{{ a" + repeated("|upper", 100000) + " }}",
           repeated("{% if 1 %}", 100000),
           "{{ " + repeated("[", 100000),
           "{{ " + repeated("1 if 1 else ", 100000) + "1 }}",
       }) {
    Result<std::string> text = rendered(source);
    ASSERT_FALSE(text.ok()) << source.substr(0, 80);
    EXPECT_THAT(text.status().code(), ::testing::AnyOf(Code::kExhausted, Code::kCorrupt))
        << source.substr(0, 80) << text.status().message();
  }
  // A namespace that holds itself is let go at the end.
  EXPECT_TRUE(rendered("{% set ns = namespace() %}{% set ns.me = [ns] %}ok").ok());
}

TEST(Jinja, MangledTemplatesNeverCrash) {
  Json all = cases();
  std::mt19937 random(3);
  std::vector<std::string> sources;
  for (const auto& [name, texts] : all["rendered"].items())
    sources.push_back(*read_text_file(kGolden + "templates/" + name + ".jinja"));
  Json variables = all["variables"];
  variables["messages"] = all["conversations"][8]["messages"];
  jinja::RenderOptions options;
  options.max_steps = 100'000;
  int parsed = 0;
  for (int i = 0; i < 3000; ++i) {
    std::string s = sources[random() % sources.size()];
    for (int edits = 1 + static_cast<int>(random() % 3); edits > 0; --edits) {
      size_t at = random() % s.size(), n = random() % 20;
      switch (random() % 3) {
        case 0:
          s.erase(at, n);
          break;
        case 1:
          s.insert(at, s.substr(random() % s.size(), n));
          break;
        default:
          s[at] = "{}%#-[]().|'\"\n ~+="[random() % 18];
      }
    }
    auto t = jinja::Template::parse(s, "t");
    if (!t.ok()) {
      EXPECT_NE(t.status().code(), Code::kInternal) << t.status().message();
      continue;
    }
    ++parsed;
    auto text = t->render(variables, options);
    if (!text.ok()) {
      EXPECT_NE(text.status().code(), Code::kInternal) << text.status().message();
    }
  }
  EXPECT_GT(parsed, 300);
}

class Folder : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "chat_folder_" +
              ::testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_ + "/additional_chat_templates");
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  void write(const std::string& name, std::string_view text) {
    ASSERT_TRUE(write_file_atomically(folder_ + "/" + name, text).ok());
  }
  /// What the folder's template makes of one message, or why it does not.
  std::string text(bool tools = false) {
    auto t = ChatTemplate::find(folder_);
    if (!t.ok()) return t.status().message();
    if (!*t) return "none";
    Conversation c = Conversation::of("", "hi");
    if (tools) c.tools = Json::array();
    auto r = (*t)->render(c);
    return r.ok() ? *r : r.status().message();
  }
  std::string folder_;
};

TEST_F(Folder, WhichTemplateIsTakenIsAsInTransformers) {
  EXPECT_EQ(text(), "none");
  write("tokenizer_config.json", R"({"chat_template": null})");
  EXPECT_EQ(text(), "none");
  write("chat_template.json", R"({"chat_template": "legacy"})");
  EXPECT_EQ(text(), "legacy");
  write("tokenizer_config.json", R"({"chat_template": "one"})");
  EXPECT_EQ(text(), "one");
  EXPECT_EQ(text(true), "one");
  write(
      "tokenizer_config.json",
      R"({"chat_template": [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]})");
  EXPECT_EQ(text(), "d");
  EXPECT_EQ(text(true), "t");
  write("tokenizer_config.json", R"({"chat_template": [{"name": "rag", "template": "r"}]})");
  EXPECT_THAT(text(), AllOf(HasSubstr("'default'"), HasSubstr("rag")));
  write("chat_template.jinja", "file");
  EXPECT_EQ(text(), "file");
  EXPECT_EQ(text(true), "file");
  write("additional_chat_templates/tool_use.jinja", "more");
  EXPECT_EQ(text(), "file");
  EXPECT_EQ(text(true), "more");
  write("chat_template.jinja", "a\n{% nosuch %}");
  EXPECT_THAT(text(), AllOf(HasSubstr("chat_template.jinja, line 2"), HasSubstr("nosuch")));
}

TEST_F(Folder, SpecialTokensAreWrittenOrObjects) {
  write("chat_template.jinja", "{{ bos_token }}|{{ eos_token }}|{{ pad_token is defined }}");
  write("tokenizer_config.json",
        R"({"bos_token": {"content": "<b>"}, "eos_token": "<e>", "pad_token": null})");
  EXPECT_EQ(text(), "<b>|<e>|False");
  EXPECT_EQ(*eos_token_text(folder_), "<e>");
  write("special_tokens_map.json", R"({"eos_token": "<m>", "pad_token": {"content": "<p>"}})");
  EXPECT_EQ(text(), "<b>|<m>|True");
  write("tokenizer_config.json", R"({"bos_token": "<b>", "eos_token": "<e>", "added_tokens_decoder": {}})");
  EXPECT_EQ(text(), "<b>|<e>|False");
}

TEST(ConversationText, ListsAndRequestsAreRead) {
  std::vector<std::string> ignored;
  auto c =
      Conversation::parse(R"({"model": "m", "messages": [{"role": "user", "content": "x"}], "temperature": 1,
                                   "chat_template_kwargs": {"enable_thinking": false}})",
                          "f.json", &ignored);
  ASSERT_TRUE(c.ok()) << c.status().message();
  EXPECT_THAT(ignored, ElementsAre("model", "temperature"));
  EXPECT_EQ(c->variables["enable_thinking"], false);
  for (const char* bad :
       {"{}", "[]", "3", "[1]", R"([{"content": "x"}])", R"({"messages": [{"role": "u"}], "tools": 1})", "[",
        R"({"messages": [{"role": "u"}], "tools": ["x"]})"}) {
    auto refused = Conversation::parse(bad, "f.json");
    ASSERT_FALSE(refused.ok()) << bad;
    EXPECT_THAT(refused.status().message(), HasSubstr("f.json")) << bad;
  }
}

TEST_F(Folder, WhatPromptsAboutOneContextShare) {
  const std::string context = "  Line one.\nLine two.\n";
  for (const char* name : {"ledger", "letter", "thought", "oneline", "lines"}) {
    auto t = ChatTemplate::read(kGolden + "templates/" + name + ".jinja", folder_);
    ASSERT_TRUE(t.ok()) << t.status().message();
    write("tokenizer_config.json", R"({"bos_token": "<s>", "eos_token": "</s>"})");
    t = ChatTemplate::read(kGolden + "templates/" + name + ".jinja", folder_);
    auto shared = t->shared_text(Conversation::of("Be brief.", ""), context, 0);
    ASSERT_TRUE(shared.ok()) << name << ": " << shared.status().message();
    EXPECT_THAT(*shared, ::testing::EndsWith("Line one.\nLine two.\n")) << name;
    EXPECT_THAT(*shared, HasSubstr("Be brief.")) << name;
    for (const char* prompt : {"What?", "\nWhat now?", "  30 who? "}) {
      auto chat = t->render_about(Conversation::of("Be brief.", prompt), context, 0);
      ASSERT_TRUE(chat.ok()) << chat.status().message();
      EXPECT_EQ(chat->text.substr(0, chat->shared), *shared) << name << " " << prompt;
      EXPECT_EQ(chat->text, *t->render(Conversation::of("Be brief.", context + prompt), 0)) << name;
    }
  }
}

TEST_F(Folder, TextsThatDoNotBeginWithTheContextShareNothing) {
  // The preface stands in the last question only, as in Mistral's templates: a second turn begins otherwise.
  write("tokenizer_config.json", R"({"bos_token": "<s>", "eos_token": "</s>"})");
  auto t = ChatTemplate::read(kGolden + "templates/strict.jinja", folder_);
  auto turns =
      Conversation::parse(R"([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "one?"},
      {"role": "assistant", "content": "1"}, {"role": "user", "content": "two?"}])",
                          "c");
  auto chat = t->render_about(*turns, "Text. ");
  ASSERT_TRUE(chat.ok()) << chat.status().message();
  EXPECT_EQ(chat->shared, 0u);
  write("chat_template.jinja", "{{ messages[-1].content | upper }}");
  auto upper = ChatTemplate::find(folder_);
  EXPECT_THAT((*upper)->shared_text(Conversation::of("", ""), "Some text").status().message(),
              HasSubstr("does not write a user's text as it is"));
  EXPECT_THAT((*upper)
                  ->render_about(*Conversation::parse(R"([{"role": "system", "content": "x"}])", "c"), "y")
                  .status()
                  .message(),
              HasSubstr("no message of the user"));
}

TEST_F(Folder, AContextStandsBeforeTheFirstTextOfParts) {
  write("chat_template.jinja", "{{ messages[0].content | tojson }}");
  auto t = ChatTemplate::find(folder_);
  auto parts = Conversation::parse(
      R"([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "it?"}]}])", "c");
  Json shown = Json::parse((*t)->render_about(*parts, "What is ", 0).value().text, nullptr, false);
  EXPECT_EQ(shown[1]["text"], "What is it?");
}

}  // namespace
}  // namespace ds
