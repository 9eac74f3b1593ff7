// The server without HTTP: fleet files, requests of OpenAI's API, texts as their tokens come, logprobs.
#include <fmt/ranges.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "serve/answer_text.h"
#include "serve/fleet.h"
#include "serve/generation.h"
#include "serve/openai_request.h"
#include "serve/prompt_context.h"
#include "support/hash.h"

namespace ds {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

Result<Fleet> fleet(const std::string& text) { return Fleet::parse(text, "fleet.json", "/srv/fleet"); }

TEST(FleetFile, ReadsAllOfItsFields) {
  auto read = fleet(R"({
    "version": 1,
    "listen": {"host": "0.0.0.0", "port": 9000, "connections": 64, "body": "1MiB", "idle": "10s", "write": "1min",
               "tls": {"certificate": "cert.pem", "private_key": "/etc/key.pem"}},
    "device": {"backend": "cpu", "threads": 4, "dtype": "f32"},
    "models": [{"name": "a", "folder": "models/a", "reuse": "approximate", "publish": true},
               {"name": "b", "folder": "/models/b-lora", "base": "models/b", "chat_template": "t.jinja", "tool_parser": "hermes", "max_model_len": 4096}],
    "plans": [{"file": "a.dsplan", "maps": "maps.safetensors", "profile": "quality.json"}],
    "store": {"url": "file:store", "key_file": "store.key", "registered": "5min"},
    "objectives": {"loss": 2.5, "ttft_ms": 400},
    "limits": {"cache": "2GiB", "tokens": 4096, "new_tokens": 512, "batch": 8, "queue": 16, "step_budget_ms": 10, "step_budget_share": 0.5, "request_s": 60},
    "gate": {"false_alarms": "2%", "window": 32, "on_drift": "exact"},
    "keys": [{"tenant": "red", "key_sha256": "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", "requests": 4}]
  })");
  ASSERT_TRUE(read.ok()) << read.status().message();
  const Fleet& f = *read;
  EXPECT_EQ(f.host, "0.0.0.0");
  EXPECT_EQ(f.port, 9000);
  EXPECT_EQ(f.connections, 64);
  EXPECT_EQ(f.body_bytes, 1 << 20);
  EXPECT_EQ(f.idle_s, 10);
  EXPECT_EQ(f.write_s, 60);
  EXPECT_EQ(f.certificate, "/srv/fleet/cert.pem");
  EXPECT_EQ(f.private_key, "/etc/key.pem");
  EXPECT_EQ(f.dtype, "f32");
  EXPECT_EQ(f.threads, 4);
  ASSERT_EQ(f.models.size(), 2u);
  EXPECT_EQ(f.models[0].folder, "/srv/fleet/models/a");
  EXPECT_TRUE(f.models[0].approximate && f.models[0].publish);
  EXPECT_EQ(f.models[1].folder, "/models/b-lora");
  EXPECT_EQ(f.models[1].base, "/srv/fleet/models/b");
  EXPECT_EQ(f.models[1].chat_template, "/srv/fleet/t.jinja");
  EXPECT_EQ(f.models[1].max_model_len, 4096);
  EXPECT_EQ(f.models[0].tools, ToolFormat::kNone);
  EXPECT_EQ(f.models[1].tools, ToolFormat::kHermes);
  EXPECT_FALSE(f.models[1].approximate || f.models[1].publish) << "approximate reuse is for who asks for it";
  ASSERT_EQ(f.plans.size(), 1u);
  EXPECT_EQ(f.plans[0].maps, "/srv/fleet/maps.safetensors");
  EXPECT_EQ(f.plans[0].profile, "/srv/fleet/quality.json");
  EXPECT_EQ(f.store, "file:/srv/fleet/store");
  EXPECT_EQ(f.store_key, "/srv/fleet/store.key");
  EXPECT_EQ(f.registered_s, 300);
  EXPECT_EQ(f.loss, 2.5);
  EXPECT_EQ(f.ttft_ms, 400);
  EXPECT_EQ(f.cache_bytes, int64_t{2} << 30);
  EXPECT_EQ(f.tokens, 4096);
  EXPECT_EQ(f.new_tokens, 512);
  EXPECT_EQ(f.batch, 8);
  EXPECT_EQ(f.queue, 16);
  EXPECT_EQ(f.step_budget_ms, 10);
  EXPECT_EQ(f.step_budget_share, 0.5);
  EXPECT_EQ(f.request_s, 60);
  EXPECT_EQ(f.false_alarms, 0.02);
  EXPECT_EQ(f.window, 32);
  EXPECT_TRUE(f.exact_on_drift);
  ASSERT_EQ(f.keys.size(), 1u);
  EXPECT_EQ(f.keys[0].salt, "red") << "tenants are apart without a word";
  EXPECT_EQ(f.keys[0].requests, 4);
}

TEST(FleetFile, LittleIsEnough) {
  auto read = fleet(R"({"models": [{"name": "a", "folder": "a"}]})");
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_EQ(read->host, "127.0.0.1");
  EXPECT_EQ(read->port, 8000);
  EXPECT_TRUE(std::isnan(read->loss));
  EXPECT_TRUE(read->keys.empty());
}

TEST(FleetFile, NamesWhatIsWrong) {
  const std::string model = R"("models": [{"name": "a", "folder": "a"}])";
  const std::pair<std::string, std::vector<std::string>> wrong[] = {
      {"", {"fleet.json", "empty"}},
      {"{}", {"'models' is empty"}},
      {R"({"model": []})", {"unknown key 'model'", "models"}},
      {R"({"models": [{"name": "a"}]})", {"models[0]", "'folder' is missing"}},
      {R"({"models": [{"name": "a", "folder": "a", "reuse": "some"}]})",
       {"models[0]", "'reuse' is 'some'", "approximate"}},
      {R"({"models": [{"name": "a", "folder": "a", "tool_parser": "gpt"}]})",
       {"models[0]", "'tool_parser' is 'gpt'", "hermes"}},
      {R"({"models": [{"name": "a", "folder": "a"}, {"name": "a", "folder": "b"}]})",
       {"two models are named 'a'"}},
      {"{" + model + R"(, "listen": {"port": 70000}})", {"listen", "'port' is 70000"}},
      {"{" + model + R"(, "listen": {"body": "10"}})", {"listen: body"}},
      {"{" + model + R"(, "listen": {"tls": {"certificate": "c"}}})", {"listen: tls", "private_key"}},
      {"{" + model + R"(, "plans": [{"file": "p"}]})", {"'plans'", "no 'store'"}},
      {R"({"models": [{"name": "a", "folder": "a", "publish": true}]})", {"'a' is to publish", "no 'store'"}},
      {R"({"models": [{"name": "a", "folder": "a", "publish_live": true}]})",
       {"'publish_live' without 'publish'"}},
      {"{" + model + R"(, "store": {"url": "file:s", "registered": "0.5s"}})",
       {"store", "'registered' is '0.5s'", "expected 1s to 1d"}},
      {"{" + model + R"(, "store": {"url": "file:s", "registered": true}})",
       {"store", "'registered' is true"}},
      {"{" + model + R"(, "store": {"url": "file:s", "registered": "60s"}})",
       {"'registered'", "no model has 'publish'"}},
      {"{" + model + R"(, "limits": {"cache": 5}})", {"limits", "'cache' is 5"}},
      {"{" + model + R"(, "gate": {"on_drift": "panic"}})", {"gate", "'on_drift' is 'panic'"}},
      {"{" + model + R"(, "gate": {"window": 3}})", {"gate", "'window' is 3"}},
      {"{" + model + R"(, "device": {"dtype": "f16"}})", {"device", "'dtype' is 'f16'"}},
      {"{" + model + R"(, "keys": [{"tenant": "t"}]})", {"keys[0]", "key_sha256"}},
      {"{" + model + R"(, "keys": [{"tenant": "t", "key_sha256": "secret"}]})", {"keys[0]", "SHA-256"}},
      {"{" + model + R"(, "version": 2})", {"version 2", "newer"}},
  };
  for (const auto& [text, says] : wrong) {
    auto read = fleet(text);
    ASSERT_FALSE(read.ok()) << text;
    EXPECT_THAT(read.status().message(), HasSubstr("fleet.json"));
    for (const std::string& word : says) EXPECT_THAT(read.status().message(), HasSubstr(word)) << text;
  }
  EXPECT_THAT(
      fleet("{" + model + R"(, "keys": [{"tenant": "t", "key_sha256": "secret"}]})").status().message(),
      ::testing::Not(HasSubstr("secret")))
      << "what may be a key is not printed";
}

// A tenant's name with a request's salt in it would be another tenant's with that salt.
TEST(FleetFile, ATenantIsOneLine) {
  const auto read =
      fleet(R"({"models": [{"name": "a", "folder": "a"}], "keys": [{"tenant": "red\nx", "key_sha256": ")" +
            std::string(64, '0') + R"("}]})");
  ASSERT_FALSE(read.ok());
  EXPECT_THAT(read.status().message(), HasSubstr("'tenant' has several lines"));
}

TEST(FleetFile, SecretsAreTheirOwnersOnly) {
  const std::string folder = ::testing::TempDir() + "/ds_serve_secrets" + std::to_string(getpid());
  std::filesystem::create_directories(folder);
  std::ofstream(folder + "/key") << "a key\nsomething else\n";
  const std::string text =
      R"({"models": [{"name": "a", "folder": "a"}], "keys": [{"tenant": "t", "key_file": "key", "salt_file": "key"}]})";
  chmod((folder + "/key").c_str(), 0644);
  auto read = Fleet::parse(text, "fleet.json", folder);
  ASSERT_FALSE(read.ok());
  EXPECT_THAT(read.status().message(), HasSubstr("chmod 600"));
  chmod((folder + "/key").c_str(), 0600);
  read = Fleet::parse(text, "fleet.json", folder);
  ASSERT_TRUE(read.ok()) << read.status().message();
  EXPECT_EQ(read->keys[0].key_sha256, sha256_hex(std::string_view("a key")));
  EXPECT_EQ(read->keys[0].salt, "a key");
  std::filesystem::remove_all(folder);
}

ApiRequest request(const std::string& body, bool chat = false) {
  ApiRequest out;
  out.chat = chat;
  ApiFault fault = parse_request(body, out);
  EXPECT_FALSE(fault) << body << ": " << (fault ? fault->message : "");
  return out;
}

ApiError fault_of(const std::string& body, bool chat = false) {
  ApiRequest out;
  out.chat = chat;
  ApiFault fault = parse_request(body, out);
  EXPECT_TRUE(fault) << body;
  return fault.value_or(ApiError{});
}

TEST(ApiRequests, PromptsAreTextsOrIds) {
  EXPECT_EQ(request(R"({"prompt": "a"})").prompts[0].text, "a");
  EXPECT_THAT(request(R"({"prompt": [1, 2]})").prompts[0].ids, ElementsAre(1, 2));
  const auto texts = request(R"({"prompt": ["a", "b"]})").prompts;
  ASSERT_EQ(texts.size(), 2u);
  EXPECT_EQ(texts[1].text, "b");
  const auto lists = request(R"({"prompt": [[1], [2, 3]]})").prompts;
  ASSERT_EQ(lists.size(), 2u);
  EXPECT_TRUE(lists[1].is_ids);
  EXPECT_THAT(lists[1].ids, ElementsAre(2, 3));
  for (const char* prompt :
       {"null", "5", "{}", R"([1, "a"])", R"(["a", 1])", "[-1]", "[1.5]", "[4294967296]", "[[[1]]]"})
    EXPECT_EQ(fault_of(fmt::format(R"({{"prompt": {}}})", prompt)).param, "prompt") << prompt;
}

TEST(ApiRequests, DefaultsAreOpenAIs) {
  const ApiRequest r = request(
      R"({"prompt": "a", "max_tokens": null, "stop": null, "logprobs": null, "stream": null, "seed": null})");
  EXPECT_FALSE(r.max_tokens || r.seed || r.logprobs || r.stream || r.slo_loss);
  EXPECT_EQ(r.temperature, 1);
  EXPECT_EQ(r.n, 1);
  EXPECT_EQ(r.reuse, Reuse::kAuto);
  EXPECT_TRUE(r.add_special_tokens);
}

TEST(ApiRequests, FieldsAreRead) {
  const ApiRequest r = request(
      R"({"model": "m", "prompt": "a", "max_tokens": 5, "max_completion_tokens": 7, "min_tokens": 2, "n": 3, "temperature": 0.5,
    "top_p": 0.9, "seed": -1, "stop": ["x", "yz"], "stop_token_ids": [4], "ignore_eos": true, "stream": true,
    "stream_options": {"include_usage": true, "continuous_usage_stats": true}, "return_token_ids": true, "logprobs": 2,
    "top_k": 40, "min_p": 0.05, "presence_penalty": -1, "frequency_penalty": 0.5, "repetition_penalty": 1.25, "logit_bias": {"5": -100, "17": 1.5},
    "reuse": "exact", "slo_loss": 1.5, "slo_ttft_ms": 20, "cache_salt": "s", "nobody_knows": [1]})");
  EXPECT_EQ(r.model, "m");
  EXPECT_EQ(r.max_tokens, 7) << "the newer name counts";
  EXPECT_EQ(r.min_tokens, 2);
  EXPECT_EQ(r.n, 3);
  EXPECT_EQ(r.temperature, 0.5);
  EXPECT_EQ(r.top_p, 0.9);
  EXPECT_EQ(r.top_k, 40);
  EXPECT_EQ(r.min_p, 0.05);
  EXPECT_EQ(r.rules.presence, -1);
  EXPECT_EQ(r.rules.frequency, 0.5f);
  EXPECT_EQ(r.rules.repetition, 1.25f);
  EXPECT_THAT(r.rules.bias, ElementsAre(std::pair(5, -100.0f), std::pair(17, 1.5f)));
  EXPECT_EQ(r.seed, UINT64_MAX);
  EXPECT_THAT(r.stops, ElementsAre("x", "yz"));
  EXPECT_THAT(r.stop_ids, ElementsAre(4));
  EXPECT_TRUE(r.ignore_eos && r.stream && r.include_usage && r.continuous_usage && r.return_token_ids);
  EXPECT_EQ(r.logprobs, 2);
  EXPECT_EQ(r.reuse, Reuse::kExact);
  EXPECT_EQ(r.slo_loss, 1.5);
  EXPECT_EQ(r.slo_ttft_ms, 20);
  EXPECT_EQ(r.cache_salt, "s");
  EXPECT_THAT(request(R"({"prompt": "a", "stop": "x"})").stops, ElementsAre("x"));
}

// Salts that crash a validator: any text, and nothing that is none.
TEST(ApiRequests, ACacheSaltIsAnyText) {
  const auto body = [](const std::string& salt) {
    return R"({"prompt": "a", "cache_salt": ")" + salt + "\"}";
  };
  for (int b = 0; b < 256; ++b) {
    const std::string salt = "s" + std::string(1, static_cast<char>(b)) + "z";
    if (b < 32 || b == '"' || b == '\\' || b > 127) {
      const ApiError fault = fault_of(body(salt));
      EXPECT_EQ(fault.status, 400) << b;
      EXPECT_LT(fault.message.size(), 1000u);
    } else {
      EXPECT_EQ(request(body(salt)).cache_salt, salt) << b;
    }
    if (b > 127) continue;
    EXPECT_EQ(request(body(fmt::format("s\\u{:04x}z", b))).cache_salt, salt) << b;
  }
  for (const std::string& salt :
       {std::string(), std::string(1 << 20, 's'), std::string("\xf0\x9f\x98\x80"), std::string("../../etc")})
    EXPECT_EQ(request(body(salt)).cache_salt, salt);
  for (const char* salt :
       {"\\ud800", "\\udc00\\ud800", "\\u00", "\xc0\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xe2\x82"})
    EXPECT_EQ(fault_of(body(salt)).status, 400) << salt;
}

TEST(ApiRequests, WhatIsWrongIsNamed) {
  const std::pair<const char*, const char*> wrong[] = {
      {R"("n": 9)", "n"},
      {R"("n": 1.5)", "n"},
      {R"("max_tokens": 0)", "max_tokens"},
      {R"("max_completion_tokens": "5")", "max_completion_tokens"},
      {R"("temperature": -0.1)", "temperature"},
      {R"("temperature": "hot")", "temperature"},
      {R"("top_p": 0)", "top_p"},
      {R"("top_p": 1.1)", "top_p"},
      {R"("seed": 1.5)", "seed"},
      {R"("seed": 18446744073709551615)", "seed"},
      {R"("stop": "")", "stop"},
      {R"("stop": [""])", "stop"},
      {R"("stop": {})", "stop"},
      {R"("stop_token_ids": ["a"])", "stop_token_ids"},
      {R"("stream": 1)", "stream"},
      {R"("stream_options": [])", "stream_options"},
      {R"("stream_options": {"include_usage": 1})", "stream_options"},
      {R"("logprobs": 21)", "logprobs"},
      {R"("echo": true)", "echo"},
      {R"("top_k": -2)", "top_k"},
      {R"("min_p": 1.5)", "min_p"},
      {R"("frequency_penalty": 2.5)", "frequency_penalty"},
      {R"("presence_penalty": "x")", "presence_penalty"},
      {R"("repetition_penalty": 0)", "repetition_penalty"},
      {R"("length_penalty": 2)", "length_penalty"},
      {R"("logit_bias": {"5": 101})", "logit_bias"},
      {R"("logit_bias": {"-5": 1})", "logit_bias"},
      {R"("logit_bias": {"5x": 1})", "logit_bias"},
      {R"("logit_bias": {"5": "1"})", "logit_bias"},
      {R"("logit_bias": [[5, 1]])", "logit_bias"},
      {R"("best_of": 2)", "best_of"},
      {R"("suffix": "x")", "suffix"},
      {R"("response_format": {"type": "json_object"})", "response_format"},
      {R"("reuse": "maybe")", "reuse"},
      {R"("reuse": 1)", "reuse"},
      {R"("slo_loss": -1)", "slo_loss"},
      {R"("cache_salt": 5)", "cache_salt"}};
  for (const auto& [field, name] : wrong) {
    const ApiError fault = fault_of(fmt::format(R"({{"prompt": "a", {}}})", field));
    EXPECT_EQ(fault.param, name) << field;
    EXPECT_EQ(fault.status, 400);
    EXPECT_THAT(fault.message, HasSubstr(name));
  }
  for (const char* body : {"", "{", "[]", "3", "\"a\"", "{\"prompt\": \"\xff\"}"})
    EXPECT_EQ(fault_of(body).status, 400) << body;
  EXPECT_FALSE(
      request(
          R"({"prompt": "a", "top_k": -1, "frequency_penalty": 0, "repetition_penalty": 1.0, "logit_bias": {}})")
          .rules.any());
  request(
      R"({"prompt": "a", "best_of": 1, "length_penalty": 1.0, "echo": false, "suffix": null, "response_format": {"type": "text"}})");
}

TEST(ApiRequests, Conversations) {
  const ApiRequest r =
      request(R"({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [
      {"type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}}, {"type": "function", "function": {"name": "g", "arguments": "no JSON"}}]}],
      "tools": [{"type": "function"}], "chat_template_kwargs": {"enable_thinking": false}, "logprobs": true, "top_logprobs": 3})",
              true);
  EXPECT_EQ(r.conversation["messages"][1]["tool_calls"][0]["function"]["arguments"]["x"], 1)
      << "templates want the object";
  EXPECT_EQ(r.conversation["messages"][1]["tool_calls"][1]["function"]["arguments"], "no JSON");
  EXPECT_EQ(r.conversation["tools"].size(), 1u);
  EXPECT_EQ(r.conversation["chat_template_kwargs"]["enable_thinking"], false);
  EXPECT_EQ(r.logprobs, 3);
  EXPECT_TRUE(r.has_tools);
  EXPECT_FALSE(r.add_special_tokens) << "a template says itself where special tokens stand";
  EXPECT_FALSE(
      request(R"({"messages": [{"role": "user", "content": "a"}], "tools": [{}], "tool_choice": "none"})",
              true)
          .conversation.contains("tools"));
  for (const char* body : {"{}", R"({"messages": []})", R"({"messages": "a"})", R"({"messages": [{}]})",
                           R"({"messages": [{"role": "user", "content": 5}]})",
                           R"({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})"})
    EXPECT_EQ(fault_of(body, true).param, "messages") << body;
  EXPECT_EQ(fault_of(R"({"messages": [{"role": "user"}], "tool_choice": "required"})", true).param,
            "tool_choice");
  EXPECT_EQ(fault_of(R"({"messages": [{"role": "user"}], "top_logprobs": 3})", true).param, "top_logprobs");
}

const std::string kTokenizer = DS_SOURCE_DIR "/tests/golden/tokenizers/llama2";

struct Shown {
  std::vector<std::string> pieces;
  std::string all;
};

/// The text of `text`'s tokens, as an answer shows it.
Shown show(const std::string& text, std::vector<std::string> stops, int64_t min_tokens = 0) {
  auto tokenizer = Tokenizer::load(kTokenizer);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  AnswerText answer(*tokenizer, true, std::move(stops), min_tokens);
  const std::vector<int32_t> ids = *tokenizer->encode(text, false);
  Shown out;
  for (int32_t id : ids) {
    out.pieces.push_back(*answer.push(id));
    if (answer.stopped()) break;
  }
  out.pieces.push_back(*answer.finish());
  for (const std::string& piece : out.pieces) {
    EXPECT_TRUE(check_utf8(piece).ok()) << "a piece is whole characters";
    out.all += piece;
  }
  return out;
}

TEST(AnswerTexts, CharactersAreShownWhole) {
  const std::string text = "naïve 𝄞 日本語 ɸ🙂 end";
  const Shown shown = show(text, {});
  EXPECT_EQ(shown.all, text);
  EXPECT_GT(std::count(shown.pieces.begin(), shown.pieces.end(), ""), 1)
      << "some tokens end within a character";
}

TEST(AnswerTexts, StopTextsLieAcrossTokens) {
  const std::string text = "The answer is 42, said the computer.\n\nQuestion: why?";
  EXPECT_EQ(show(text, {"er.\n\nQue"}).all, "The answer is 42, said the comput");
  EXPECT_EQ(show(text, {"swer is 42, s"}).all, "The an");
  EXPECT_EQ(show(text, {"said the computers"}).all, text) << "what looked like one and was none is shown";
  EXPECT_EQ(show(text, {"Question", "computer"}).all, "The answer is 42, said the ") << "which comes first";
  EXPECT_EQ(show("日本語です", {"語で"}).all, "日本");
  for (const std::string& piece : show(text, {"er.\n\nQue"}).pieces)
    EXPECT_THAT(piece, ::testing::Not(HasSubstr("er."))) << "held back until it is known";
}

TEST(AnswerTexts, StopTextsWaitForTheLeastLength) {
  EXPECT_EQ(show("one two one two one two", {"two"}).all, "one ");
  auto tokenizer = Tokenizer::load(kTokenizer);
  const auto least = static_cast<int64_t>(tokenizer->encode("one two", false)->size());
  EXPECT_EQ(show("one two one two one two", {"two"}, least).all, "one two one ");
}

TEST(Logprobs, AreThoseOfTheSoftmax) {
  const std::vector<float> logits = {1, 3, 2, 3, -40};
  const TokenLogprob found = TokenLogprob::of(2, logits, 3);
  double sum = 0;
  for (float x : logits) sum += std::exp(static_cast<double>(x));
  EXPECT_NEAR(found.logprob, 2 - std::log(sum), 1e-9);
  ASSERT_EQ(found.top.size(), 3u);
  EXPECT_EQ(found.top[0].first, 1);
  EXPECT_EQ(found.top[1].first, 3) << "of equals the first";
  EXPECT_EQ(found.top[2].first, 2);
  EXPECT_EQ(TokenLogprob::of(0, logits, 20).top.size(), 5u);
  EXPECT_TRUE(TokenLogprob::of(0, logits, 0).top.empty());
}

TEST(Prompts, WholeBlocksMayBeShared) {
  EXPECT_EQ(shared_blocks(0), 0);
  EXPECT_EQ(shared_blocks(64), 0) << "one token is read to answer from";
  EXPECT_EQ(shared_blocks(65), 64);
  EXPECT_EQ(shared_blocks(200), 192);
}

}  // namespace
}  // namespace ds
