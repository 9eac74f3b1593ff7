// The tokenizer against the package `tokenizers` (tests/golden/tokenizers), its speed on ugly texts,
// streaming, and every way a tokenizer.json can be broken.
#include "runtime/model/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <random>
#include <thread>

#include "runtime/model/joined_text.h"
#include "runtime/model/tokenizer_regex_internal.h"
#include "runtime/model/tokenizer_steps_internal.h"
#include "support/json.h"

namespace ds {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Lt;

const std::string kFolder = DS_SOURCE_DIR "/tests/golden/tokenizers/";

json read_fixture(const std::string& name) {
  Result<json> value = read_json_file(kFolder + name);
  EXPECT_TRUE(value.ok()) << value.status().message();
  return value.ok() ? value.value() : json();
}

Tokenizer load(const std::string& name) {
  Result<Tokenizer> t = Tokenizer::load(kFolder + name);
  EXPECT_TRUE(t.ok()) << t.status().message();
  return std::move(t).value();
}

/// Text with everything but plain ASCII escaped.
std::string shown(std::string_view text) {
  return json(text.substr(0, 200)).dump(-1, ' ', true, json::error_handler_t::replace);
}

std::string stream(const Tokenizer& tokenizer, const std::vector<int32_t>& ids, bool skip) {
  StreamingDecoder decoder(tokenizer, skip);
  std::string out;
  for (int32_t id : ids) {
    Result<std::string> part = decoder.push(id);
    EXPECT_TRUE(part.ok()) << part.status().message();
    out += part.value();
  }
  return out + decoder.finish().value();
}

// ------------------------------------------------------------------------------------- equal to the package

class Golden : public ::testing::TestWithParam<std::string> {};

TEST_P(Golden, EncodesAndDecodesAsThePackage) {
  Tokenizer tokenizer = load(GetParam());
  json corpus = read_fixture("corpus.json"), expected = read_fixture(GetParam() + "/expected.json");
  EXPECT_EQ(tokenizer.vocab_size(), expected["vocab_size"].get<int64_t>());
  auto before = expected["before"].get<std::vector<int32_t>>(),
       after = expected["after"].get<std::vector<int32_t>>();
  auto stride = expected["stride"].get<size_t>();
  auto check_decode = [&](const std::vector<int32_t>& ids, const json& entry, const std::string& text) {
    std::string keep = entry.value("keep", text);
    std::string skip = entry.value("skip", keep);
    EXPECT_EQ(shown(tokenizer.decode(ids, false).value()), shown(keep)) << json(ids);
    EXPECT_EQ(shown(tokenizer.decode(ids, true).value()), shown(skip)) << json(ids);
    EXPECT_EQ(shown(stream(tokenizer, ids, false)), shown(keep)) << json(ids);
    EXPECT_EQ(shown(stream(tokenizer, ids, true)), shown(skip)) << json(ids);
  };
  size_t cases = 0;
  for (size_t i = 0; i < corpus.size(); i += stride) {
    const json& entry = expected["cases"][cases++];
    auto text = corpus[i].get<std::string>();
    auto want = entry["ids"].get<std::vector<int32_t>>();
    Result<std::vector<int32_t>> plain = tokenizer.encode(text, false),
                                 special = tokenizer.encode(text, true);
    ASSERT_TRUE(plain.ok()) << plain.status().message();
    EXPECT_EQ(*plain, want) << shown(text);
    std::vector<int32_t> around = before;
    around.insert(around.end(), want.begin(), want.end());
    around.insert(around.end(), after.begin(), after.end());
    EXPECT_EQ(special.value(), around) << shown(text);
    check_decode(want, entry, text);
  }
  EXPECT_EQ(cases, expected["cases"].size());
  EXPECT_GT(cases, 80u);
  for (const json& entry : expected["decodes"])
    check_decode(entry["ids"].get<std::vector<int32_t>>(), entry, "");
}

INSTANTIATE_TEST_SUITE_P(All, Golden,
                         ::testing::Values("llama3", "qwen2", "gpt2", "gpt2-prefix", "deepseek", "gpt4o",
                                           "llama2", "mistral", "gemma", "unknowns", "unknowns-fused"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(Steps, Normalizers) {
  const json steps = read_fixture("steps.json");
  EXPECT_GT(steps["normalizers"].size(), 10u);
  for (const json& fixture : steps["normalizers"]) {
    Result<Normalizer> step = Normalizer::read(fixture["step"], "step");
    ASSERT_TRUE(step.ok()) << step.status().message();
    for (size_t i = 0; i < fixture["results"].size(); ++i) {
      const json &input = steps["texts"][i], &want = fixture["results"][i];
      auto text = input.get<std::string>();
      bool at_start = true;
      ASSERT_TRUE(step->apply(text, at_start).ok());
      EXPECT_EQ(shown(text), shown(want.get<std::string>())) << fixture["step"] << input;
    }
  }
}

TEST(Steps, PreTokenizers) {
  const json steps = read_fixture("steps.json");
  EXPECT_GT(steps["pre_tokenizers"].size(), 10u);
  for (const json& fixture : steps["pre_tokenizers"]) {
    Result<PreTokenizer> step = PreTokenizer::read(fixture["step"], "step");
    ASSERT_TRUE(step.ok()) << step.status().message();
    for (size_t i = 0; i < fixture["results"].size(); ++i) {
      const json &input = steps["texts"][i], &want = fixture["results"][i];
      auto text = input.get<std::string>();
      TextPool pool;
      std::vector<Piece> pieces = {{text, true}};
      ASSERT_TRUE(step->apply(pieces, pool).ok());
      json got = json::array();
      for (const Piece& p : pieces) {
        if (!p.text.empty()) got.push_back(p.text);
      }
      EXPECT_EQ(got.dump(-1, ' ', true), want.dump(-1, ' ', true)) << fixture["step"] << input;
    }
  }
}

TEST(Steps, Decoders) {
  const json steps = read_fixture("steps.json");
  EXPECT_GT(steps["decoders"].size(), 10u);
  for (const json& fixture : steps["decoders"]) {
    Result<Decoder> step = Decoder::read(fixture["step"], "step");
    ASSERT_TRUE(step.ok()) << step.status().message();
    for (size_t i = 0; i < fixture["results"].size(); ++i) {
      const json &input = steps["tokens"][i], &want = fixture["results"][i];
      Decoder::Run run(step.value());
      std::string text;
      for (const json& token : input) ASSERT_TRUE(run.feed(token.get_ref<const std::string&>(), text).ok());
      ASSERT_TRUE(run.finish(text).ok());
      EXPECT_EQ(shown(text), shown(want.get<std::string>())) << fixture["step"] << input;
    }
  }
}

TEST(Unicode, NamedRangesOfUtf8) {
  EXPECT_EQ(unicode::valid_utf8_prefix("a\xC3\xA9\xE6\x97\xA5\xF0\x9F\x98\x80"), 10u);
  for (std::string_view bad : {"a\xC3", "a\xC0\x80", "a\xE0\x80\x80", "a\xED\xA0\x80", "a\xF4\x90\x80\x80",
                               "a\xF5", "a\x80", "a\xF0\x9F\x98", "a\xFF"}) {
    EXPECT_EQ(unicode::valid_utf8_prefix(bad), 1u) << shown(bad);
  }
  std::string out;
  EXPECT_EQ(unicode::append_lossy(out, "x\xE6\x97\xE6\x97\xA5\xF0\x9F", false), 6u);
  EXPECT_EQ(out, "x\uFFFD\u65E5");
  EXPECT_EQ(unicode::append_lossy(out, "\xF0\x9F", true), 2u);
  EXPECT_EQ(out, "x\uFFFD\u65E5\uFFFD");
}

// ----------------------------------------------------------------------------------------------- the
// interface

TEST(Tokenizer, TokenIds) {
  Tokenizer t = load("llama3");
  int32_t bos = t.token_id("<|begin_of_text|>");
  EXPECT_GT(bos, 0);
  EXPECT_EQ(t.token_id("no such token"), -1);
  EXPECT_EQ(t.token_id(""), -1);
  EXPECT_EQ(t.encode("", true).value(), std::vector<int32_t>{bos});
  EXPECT_TRUE(t.encode("", false).value().empty());
  EXPECT_EQ(t.decode({}, true).value(), "");
}

TEST(Tokenizer, RefusesTextThatIsNotUtf8) {
  Tokenizer t = load("qwen2");
  for (std::string_view bad : {"\xFF", "abc\xC3", "\xED\xA0\x80", "\xC0\xAF", "ok\xF4\x90\x80\x80"}) {
    Result<std::vector<int32_t>> r = t.encode(bad, true);
    ASSERT_FALSE(r.ok());
    EXPECT_EQ(r.status().code(), Code::kInvalidArgument);
    EXPECT_THAT(r.status().message(), HasSubstr("not UTF-8"));
  }
}

TEST(Tokenizer, AnIdThatNoTokenHasIsNothing) {
  for (const char* name : {"qwen2", "llama2", "unknowns"}) {
    Tokenizer t = load(name);
    const std::vector<int32_t> ids = t.encode("the \U0001F600 end", false).value();
    for (int32_t id : {-1, INT32_MIN, static_cast<int32_t>(t.vocab_size()), INT32_MAX}) {
      // Everywhere, inside a character too.
      for (size_t at = 0; at <= ids.size(); ++at) {
        std::vector<int32_t> more = ids;
        more.insert(more.begin() + static_cast<ptrdiff_t>(at), id);
        EXPECT_EQ(t.decode(more, true).value(), t.decode(ids, true).value()) << name << id;
        EXPECT_EQ(stream(t, more, true), t.decode(ids, true).value()) << name << id;
      }
      EXPECT_EQ(t.decode(std::vector<int32_t>{id}, false).value(), "");
    }
  }
}

// --------------------------------------------------------------------------------- a context and a prompt

/// Where characters begin.
std::vector<size_t> cuts_of(const std::string& text) {
  std::vector<size_t> cuts;
  for (size_t at = 0; at <= text.size(); ++at) {
    if (at == text.size() || (static_cast<unsigned char>(text[at]) & 0xC0) != 0x80) cuts.push_back(at);
  }
  return cuts;
}

/// Whatever the cut, what is read are the package's ids of the whole text, with one BOS and no EOS.
TEST_P(Golden, ATextIsReadAsAWholeWhereverItIsCut) {
  Tokenizer tokenizer = load(GetParam());
  json corpus = read_fixture("corpus.json"), expected = read_fixture(GetParam() + "/expected.json");
  const auto before = expected["before"].get<std::vector<int32_t>>();
  EXPECT_THAT(tokenizer.prefix(), ::testing::ElementsAreArray(before));
  const auto stride = expected["stride"].get<size_t>();
  int64_t cuts = 0, across = 0;
  for (size_t i = 0; i < corpus.size(); i += stride) {
    const auto text = corpus[i].get<std::string>();
    const auto ids = expected["cases"][i / stride]["ids"].get<std::vector<int32_t>>();
    std::vector<int32_t> want = before;
    // A BOS that is written there is the one.
    const bool written = ids.size() >= before.size() && std::equal(before.begin(), before.end(), ids.begin());
    if (written) want.clear();
    want.insert(want.end(), ids.begin(), ids.end());
    for (size_t cut : cuts_of(text)) {
      if (cut % 3 != i % 3 && cut != 0 && cut != text.size()) continue;
      const std::string context = text.substr(0, cut), prompt = text.substr(cut);
      Result<JoinedText> joined = join_text(tokenizer, context, prompt);
      if (want.empty()) {
        ASSERT_FALSE(joined.ok());
        continue;
      }
      ASSERT_TRUE(joined.ok()) << joined.status().message();
      ++cuts;
      EXPECT_EQ(joined->ids, want) << shown(context) << " + " << shown(prompt);
      if (context.empty()) {
        EXPECT_TRUE(joined->entry.empty());
      } else {
        EXPECT_EQ(joined->entry, text_ids(tokenizer, context).value());
      }
      // As many as agree, and one is left to answer from.
      const auto shared = static_cast<size_t>(joined->shared);
      ASSERT_LT(shared, want.size());
      ASSERT_LE(shared, joined->entry.size());
      EXPECT_TRUE(std::equal(want.begin(), want.begin() + joined->shared, joined->entry.begin()));
      if (shared + 1 < want.size() && shared < joined->entry.size()) {
        EXPECT_NE(want[shared], joined->entry[shared]);
      }
      EXPECT_EQ(joined->context().size() + joined->suffix().size(), want.size());
      across += shared < joined->entry.size() && shared + 1 < want.size() ? 1 : 0;
      if (!ids.empty()) {
        EXPECT_EQ(join_text(tokenizer, context, prompt, false).value().ids, ids) << shown(text);
      }
    }
  }
  EXPECT_GT(cuts, 700);
  EXPECT_GT(across, 30);  // tokens that lie across a border
}

TEST(JoinedText, WhatIsSharedIsWhatNothingBehindItChanges) {
  // "twelve site" + "s are closed": no space comes between, and what has become "▁sites" is read anew.
  Tokenizer llama = load("llama2");
  JoinedText joined = join_text(llama, "It lists twelve site", "s are closed").value();
  EXPECT_EQ(joined.ids, llama.encode("It lists twelve sites are closed", true).value());
  EXPECT_EQ(llama.decode(joined.ids, true).value(), "It lists twelve sites are closed");
  EXPECT_EQ(joined.ids.size() - joined.suffix().size(), joined.entry.size());
  EXPECT_EQ(llama.decode(joined.suffix(), true).value(), "s are closed");
  // "th" + "e": another token lies there, and what comes before it stays.
  joined = join_text(llama, "It lists th", "e sites").value();
  EXPECT_EQ(joined.ids, llama.encode("It lists the sites", true).value());
  EXPECT_LT(joined.shared, static_cast<int64_t>(joined.entry.size()));
  EXPECT_EQ(llama.decode(joined.context(), true).value(), "It lists");
  EXPECT_EQ(llama.decode(llama.encode("s are closed", false).value(), true).value(), "s are closed");

  // A normalizer composes over the border.
  Tokenizer qwen = load("qwen2");
  joined = join_text(qwen, "cafe", "\u0301 noir").value();
  EXPECT_EQ(joined.ids, qwen.encode("caf\u00e9 noir", false).value());
  // An added token lies across it.
  joined = join_text(qwen, "hello <|im_", "end|>").value();
  EXPECT_EQ(qwen.decode(joined.context(), false).value(), "hello");
  EXPECT_EQ(qwen.decode(joined.suffix(), false).value(), " <|im_end|>");
  EXPECT_EQ(joined.ids.back(), qwen.token_id("<|im_end|>"));
}

TEST(JoinedText, BosStandsOnceAndEosNowhere) {
  Tokenizer llama3 = load("llama3");
  const int32_t bos = llama3.token_id("<|begin_of_text|>");
  auto bos_of = [&](const JoinedText& joined) {
    return std::pair(std::count(joined.entry.begin(), joined.entry.end(), bos),
                     std::count(joined.ids.begin(), joined.ids.end(), bos));
  };
  EXPECT_EQ(bos_of(join_text(llama3, "a text", " and more").value()), std::pair(1L, 1L));
  EXPECT_EQ(bos_of(join_text(llama3, "<|begin_of_text|>a text", " and more").value()), std::pair(1L, 1L));
  EXPECT_EQ(bos_of(join_text(llama3, "<|begin_of_text|>a text", " more", false).value()), std::pair(1L, 1L));
  EXPECT_EQ(bos_of(join_text(llama3, "a text", " and more", false).value()), std::pair(0L, 0L));
  EXPECT_EQ(bos_of(join_text(llama3, "", "<|begin_of_text|>").value()), std::pair(0L, 1L));
  // Written half here and half there it is still the only one.
  EXPECT_EQ(bos_of(join_text(llama3, "<|begin_of", "_text|>a").value()), std::pair(1L, 1L));
  // With nothing but BOS, the one token is read.
  JoinedText nothing = join_text(llama3, "", "").value();
  EXPECT_THAT(nothing.ids, ElementsAre(bos));
  EXPECT_EQ(nothing.shared, 0);

  Tokenizer gemma = load("gemma");  // its template ends texts with </s>
  JoinedText joined = join_text(gemma, "the", " the").value();
  const int32_t eos = gemma.token_id("</s>");
  EXPECT_EQ(gemma.encode("the", true).value().back(), eos);
  EXPECT_EQ(std::count(joined.entry.begin(), joined.entry.end(), eos), 0);
  EXPECT_EQ(std::count(joined.ids.begin(), joined.ids.end(), eos), 0);
}

TEST(JoinedText, SaysWhichPartIsNotUtf8) {
  Tokenizer t = load("qwen2");
  EXPECT_THAT(join_text(t, "a\xFF", "b").status().message(), HasSubstr("the context: the text is not UTF-8"));
  EXPECT_THAT(join_text(t, "a", "bc\xFF").status().message(),
              HasSubstr("the prompt: the text is not UTF-8: byte 2 of 3"));
  // Two halves of a character: neither of them is a text.
  EXPECT_FALSE(join_text(t, "caf\xC3", "\xA9").ok());
  EXPECT_THAT(join_text(t, "", "").status().message(), HasSubstr("no tokens"));
}

TEST(Tokenizer, StreamsTextAsSoonAsItIsCertain) {
  Tokenizer t = load("gpt2");
  std::vector<int32_t> ids = t.encode("caf\u00e9 \U0001F600!", false).value();
  StreamingDecoder decoder(t);
  std::string all;
  for (int32_t id : ids) {
    std::string part = decoder.push(id).value();
    EXPECT_EQ(unicode::valid_utf8_prefix(part), part.size());
    all += part;
    // What is held back is less than one character.
    EXPECT_LE(t.decode(ids, true).value().size(), all.size() + 64);
  }
  EXPECT_EQ(all, "caf\u00e9 \U0001F600!");
  EXPECT_EQ(decoder.finish().value(), "");
  // A character that is never finished comes out as U+FFFD, and the decoder starts again.
  std::vector<int32_t> emoji = t.encode("\U0001F600", false).value();
  ASSERT_GT(emoji.size(), 1u);
  EXPECT_EQ(decoder.push(emoji[0]).value(), "");
  EXPECT_EQ(decoder.finish().value(), "\uFFFD");
  EXPECT_EQ(stream(t, emoji, true), "\U0001F600");

  // SentencePiece's style: the first space goes, others stay, and words come out one by one.
  Tokenizer llama = load("llama2");
  StreamingDecoder words(llama);
  std::vector<int32_t> two = llama.encode("the the", false).value();
  std::string first = words.push(two[0]).value();
  EXPECT_FALSE(first.empty());
  EXPECT_NE(first[0], ' ');
}

TEST(Tokenizer, ManyThreadsAtOnce) {
  Tokenizer t = load("qwen2");
  auto corpus = read_fixture("corpus.json").get<std::vector<std::string>>();
  std::vector<std::vector<int32_t>> want;
  for (const std::string& text : corpus) want.push_back(t.encode(text, true).value());
  std::vector<std::thread> threads;
  std::atomic<int> wrong = 0;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (size_t k = 0; k < corpus.size(); ++k) wrong += t.encode(corpus[k], true).value() != want[k];
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

// -------------------------------------------------------------------------------------------------------
// speed

double seconds(const std::function<void()>& work) {
  auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::string repeated(std::string_view text, size_t bytes) {
  std::string out;
  while (out.size() < bytes) out += text;
  return out;
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr double kBound = 60;
#else
constexpr double kBound = 4;
#endif

class UglyTexts : public ::testing::TestWithParam<std::string> {};

TEST_P(UglyTexts, TakeLinearTime) {
  Tokenizer t = load(GetParam());
  std::string mixed;
  for (const auto& text : read_fixture("corpus.json").get<std::vector<std::string>>()) mixed += text + " ";
  std::string ordered = "a";  // marks whose canonical order is the reverse of how they stand
  ordered += repeated("\u0301", 50000) + repeated("\u0327", 50000);
  // Takes 20 to 100 ms each on one core; anything quadratic takes 10 s and more.
  for (const std::string& text :
       {repeated("a", 100000), repeated(" ", 100000), repeated("\n", 100000), repeated(" \n", 100000),
        repeated("1", 100000), repeated("\u65e5", 100000), repeated("'", 100000), repeated("<", 100000),
        repeated("<|", 100000), repeated("<s>", 100000), repeated("ab ", 100000), repeated(mixed, 1000000),
        repeated("\r\n\t ", 100000), repeated("a'", 100000), repeated("A", 100000), ordered}) {
    std::vector<int32_t> ids;
    double taken = seconds([&] { ids = t.encode(text, false).value(); });
    EXPECT_THAT(taken, Lt(kBound)) << shown(text.substr(0, 20));
    taken = seconds([&] { (void)t.decode(ids, false).value(); });
    EXPECT_THAT(taken, Lt(kBound)) << shown(text.substr(0, 20));
    taken = seconds([&] { (void)stream(t, ids, false); });
    EXPECT_THAT(taken, Lt(kBound)) << shown(text.substr(0, 20));
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, UglyTexts, ::testing::Values("llama3", "qwen2", "llama2", "unknowns"),
                         [](const auto& info) { return info.param; });

// ------------------------------------------------------------------------------------------------- broken
// files

class BrokenTokenizer : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "/ds-tokenizer-" + std::to_string(getpid()) + "-" +
              ::testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::create_directories(folder_);
    good_ =
        R"({"version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null, "post_processor": null,
      "decoder": null, "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}})"_json;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  Result<Tokenizer> load_text(std::string_view text) {
    std::ofstream(folder_ + "/tokenizer.json", std::ios::binary) << text;
    return Tokenizer::load(folder_);
  }
  /// Loading the good file with `value` at the JSON pointer `at` fails with this code, naming file and key.
  void refuse(const std::string& at, const json& value, Code code, const std::vector<std::string>& parts) {
    json file = good_;
    file[json::json_pointer(at)] = value;
    Result<Tokenizer> r = load_text(file.dump());
    ASSERT_FALSE(r.ok()) << at << " " << value;
    EXPECT_EQ(code_name(r.status().code()), code_name(code)) << r.status().message();
    EXPECT_THAT(r.status().message(), HasSubstr("tokenizer.json"));
    for (const std::string& part : parts) EXPECT_THAT(r.status().message(), HasSubstr(part));
  }

  std::string folder_;
  json good_;
};

TEST_F(BrokenTokenizer, TheGoodFileIsGood) {
  Result<Tokenizer> t = load_text(good_.dump());
  ASSERT_TRUE(t.ok()) << t.status().message();
  EXPECT_THAT(t->encode("abba", true).value(), ElementsAre(2, 1, 0));
}

TEST_F(BrokenTokenizer, MissingEmptyAndTruncated) {
  Result<Tokenizer> r = Tokenizer::load(folder_ + "/nowhere");
  ASSERT_FALSE(r.ok());
  EXPECT_EQ(r.status().code(), Code::kNotFound);
  EXPECT_THAT(r.status().message(), HasSubstr("tokenizer.json"));
  r = load_text("");
  ASSERT_FALSE(r.ok());
  EXPECT_EQ(r.status().code(), Code::kCorrupt);
  for (std::string_view text : {"null", "[]", "3", "\"x\"", "{}", "{\"model\":null}", "{\"model\":[]}",
                                "{\"model\":{}}", "\xFF\xFE", "{\"model\":{\"vocab\":{},\"merges\":{}}}"}) {
    EXPECT_FALSE(load_text(text).ok()) << text;
  }
  std::ifstream in(kFolder + "llama2/tokenizer.json", std::ios::binary);
  std::string whole((std::istreambuf_iterator<char>(in)), {});
  for (size_t size = 0; size + 2 < whole.size(); size += 97) {
    EXPECT_FALSE(load_text(whole.substr(0, size)).ok()) << size;
  }
}

TEST_F(BrokenTokenizer, Model) {
  refuse("/model/type", "Unigram", Code::kUnsupported, {"model", "Unigram"});
  refuse("/model/type", "WordPiece", Code::kUnsupported, {"model", "WordPiece"});
  refuse("/model/dropout", 0.1, Code::kUnsupported, {"dropout"});
  refuse("/model/continuing_subword_prefix", "##", Code::kUnsupported, {"continuing_subword_prefix"});
  refuse("/model/end_of_word_suffix", "</w>", Code::kUnsupported, {"end_of_word_suffix"});
  refuse("/model/byte_fallback", 3, Code::kInvalidArgument, {"model", "byte_fallback"});
  refuse("/model/vocab/b", 0, Code::kCorrupt, {"vocab", "id 0", "'a'", "'b'"});
  for (const json& id : {json(-1), json(1.5), json("1"), json(nullptr), json(int64_t{1} << 40),
                         json(UINT64_MAX), json(5000000)}) {
    refuse("/model/vocab/b", id, Code::kCorrupt, {"vocab", "'b'", "expected an integer"});
  }
  refuse("/model/merges/0", "a c", Code::kCorrupt, {"merges[0]", "no token 'c'"});
  refuse("/model/merges/0", "b a", Code::kCorrupt, {"merges[0]", "no token 'ba'"});
  refuse("/model/merges/0", json{"a", "c"}, Code::kCorrupt, {"merges[0]", "no token 'c'"});
  for (const json& merge :
       {json("ab"), json("a b c"), json("a"), json(7), json{"a"}, json{"a", "b", "a"}, json{"a", 1}}) {
    refuse("/model/merges/0", merge, Code::kCorrupt, {"merges[0]", "expected"});
  }
  refuse("/model/merges", "a b", Code::kInvalidArgument, {"merges"});
  refuse("/version", "2.0", Code::kUnsupported, {"version", "2.0"});

  json file = good_;
  file["model"]["unk_token"] = "<unk>";  // not in the vocabulary: matters only when it is needed
  Result<Tokenizer> t = load_text(file.dump());
  ASSERT_TRUE(t.ok());
  EXPECT_TRUE(t->encode("ab", false).ok());
  Result<std::vector<int32_t>> unknown = t->encode("abc", false);
  ASSERT_FALSE(unknown.ok());
  EXPECT_THAT(unknown.status().message(), HasSubstr("<unk>"));
}

TEST_F(BrokenTokenizer, AddedTokens) {
  auto token = [](const json& id, const json& content) {
    return json{{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
                {"rstrip", false}, {"normalized", false}, {"special", true}};
  };
  refuse("/added_tokens", json{{"id", 3}}, Code::kInvalidArgument, {"added_tokens"});
  refuse("/added_tokens/0", 5, Code::kCorrupt, {"added_tokens[0]"});
  refuse("/added_tokens/0", token(7, "<x>"), Code::kCorrupt,
         {"added_tokens[0]", "'<x>'", "id 7", "expected 3"});
  refuse("/added_tokens/0", token(1, "a"), Code::kCorrupt, {"added_tokens[0]", "'a'", "expected 0"});
  refuse("/added_tokens/0", token(-1, "<x>"), Code::kInvalidArgument, {"added_tokens[0]", "id"});
  refuse("/added_tokens/0", token(1e30, "<x>"), Code::kInvalidArgument, {"added_tokens[0]", "id"});
  refuse("/added_tokens/0", token(3, 3), Code::kInvalidArgument, {"added_tokens[0]", "content"});
  json incomplete = token(3, "<x>");
  incomplete.erase("lstrip");
  refuse("/added_tokens/0", incomplete, Code::kCorrupt, {"added_tokens[0]", "lstrip"});
  refuse("/added_tokens", json::array({token(3, "<x>"), token(3, "<y>")}), Code::kCorrupt,
         {"added_tokens[1]", "'<y>'", "expected 4"});
}

TEST_F(BrokenTokenizer, StepsThatAreNotDone) {
  for (const char* type :
       {"Lowercase", "BertNormalizer", "Precompiled", "Nmt", "StripAccents", "ByteLevel", "Bogus"}) {
    refuse("/normalizer", {{"type", type}}, Code::kUnsupported, {"normalizer", type, "supported"});
  }
  for (const char* type :
       {"BertPreTokenizer", "Punctuation", "CharDelimiterSplit", "UnicodeScripts", "Bogus"}) {
    refuse("/pre_tokenizer", {{"type", type}}, Code::kUnsupported, {"pre_tokenizer", type, "supported"});
  }
  for (const char* type : {"RobertaProcessing", "BertProcessing", "Bogus"}) {
    refuse("/post_processor", {{"type", type}}, Code::kUnsupported, {"post_processor", type, "supported"});
  }
  for (const char* type : {"WordPiece", "CTC", "BPEDecoder", "Bogus"}) {
    refuse("/decoder", {{"type", type}}, Code::kUnsupported, {"decoder", type, "supported"});
  }
  for (const char* key : {"/normalizer", "/pre_tokenizer", "/post_processor", "/decoder"}) {
    refuse(key, json::object(), Code::kCorrupt, {std::string(key).substr(1), "type"});
    refuse(key, 5, Code::kCorrupt, {std::string(key).substr(1)});
    refuse(key, {{"type", 5}}, Code::kInvalidArgument, {std::string(key).substr(1), "type"});
    refuse(key, {{"type", "Sequence"}}, Code::kCorrupt, {std::string(key).substr(1)});
    const char* list = key[1] == 'n'   ? "normalizers"
                       : key[1] == 'd' ? "decoders"
                       : key[2] == 'r' ? "pretokenizers"
                                       : "processors";
    json deep = {{"type", "Sequence"}, {list, json::array()}};
    for (int i = 0; i < 60; ++i) deep = {{"type", "Sequence"}, {list, json::array({deep})}};
    refuse(key, deep, Code::kUnsupported, {std::string(key).substr(1), "nested"});
  }
  refuse("/normalizer", {{"type", "Prepend"}}, Code::kCorrupt, {"normalizer", "prepend"});
  refuse("/normalizer", {{"type", "Replace"}, {"pattern", "x"}, {"content", ""}}, Code::kCorrupt,
         {"pattern"});
  refuse("/normalizer", {{"type", "Replace"}, {"pattern", {{"String", ""}}}, {"content", ""}},
         Code::kUnsupported, {"empty pattern"});
  refuse("/pre_tokenizer",
         {{"type", "Split"}, {"pattern", {{"String", "x"}}}, {"behavior", "Sideways"}, {"invert", false}},
         Code::kCorrupt, {"behavior", "Sideways"});
  refuse("/pre_tokenizer", {{"type", "Metaspace"}, {"replacement", "ab"}}, Code::kCorrupt, {"replacement"});
  refuse("/pre_tokenizer", {{"type", "Metaspace"}, {"replacement", "_"}, {"prepend_scheme", "second"}},
         Code::kCorrupt, {"prepend_scheme"});
  refuse("/decoder", {{"type", "Strip"}, {"content", " "}, {"start", -1}, {"stop", 0}},
         Code::kInvalidArgument, {"start"});
  json a_template = {{"type", "TemplateProcessing"},
                     {"single", json::array({{{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}}})},
                     {"special_tokens", json::object()}};
  refuse("/post_processor", a_template, Code::kCorrupt, {"special_tokens", "<s>"});
  a_template["special_tokens"]["<s>"] = {{"id", "<s>"}, {"ids", {77}}, {"tokens", {"<s>"}}};
  refuse("/post_processor", a_template, Code::kCorrupt, {"special_tokens", "ids", "77"});
  a_template["single"] = json::array({{{"Sequence", {{"id", "B"}, {"type_id", 0}}}}});
  refuse("/post_processor", a_template, Code::kCorrupt, {"single[0]", "'B'"});
}

TEST_F(BrokenTokenizer, Patterns) {
  auto split = [](const std::string& pattern) {
    return json{
        {"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}};
  };
  for (const char* pattern : {"(", ")", "(()", "[a", "[", "\\", "a\\", "[b-a]", "\\x{", "\\x{110000}",
                              "\\uD800", "\\u12", "\\pL", "(?#"}) {
    refuse("/pre_tokenizer", split(pattern), Code::kCorrupt, {"pre_tokenizer", "pattern", "at byte"});
  }
  // Read differently by the two engines, or not at all: refused, not guessed.
  for (const char* pattern : {"(?m)a",
                              "(?x)a",
                              "a(?i)b",
                              "(?<name>a)",
                              "\\1",
                              "\\k<n>",
                              "\\g<1>",
                              "\\K",
                              "\\R",
                              "\\X",
                              "\\G",
                              "[[:alpha:]]",
                              "[a[b]]",
                              "[a&&b]",
                              "[]a]",
                              "[^]a]",
                              "[\\W]",
                              "[\\P{L}]",
                              "\\p{Han}",
                              "\\p{}",
                              "\\p{Alpha}",
                              "a{2}+",
                              "a{2}?",
                              "(?~a)",
                              "(?i:ss)",
                              "(?i:\xC3\xA9)",
                              "(?i:[\xC3\xA9])",
                              "(?i:\\p{Lu})",
                              "\\xFF",
                              "(?i:fl)",
                              "*",
                              "a{1,99999}",
                              "(?<=a+)b",
                              "\\Q",
                              "\\cA"}) {
    refuse("/pre_tokenizer", split(pattern), Code::kUnsupported, {"pre_tokenizer", "pattern"});
  }
  refuse("/pre_tokenizer", split(repeated("(a{1000}){1000}", 100000)), Code::kUnsupported, {"pattern"});
  refuse("/pre_tokenizer", split(std::string(5000, '(') + "a" + std::string(5000, ')')), Code::kUnsupported,
         {"pattern"});
  // Exponential work ends in an error, not in a hang.
  json file = good_;
  file["pre_tokenizer"] = split("(?:a|a|aa)+(?=c)");
  Result<Tokenizer> t = load_text(file.dump());
  ASSERT_TRUE(t.ok()) << t.status().message();
  Result<std::vector<int32_t>> ids = t->encode(std::string(3000, 'a') + "b", false);
  ASSERT_FALSE(ids.ok());
  EXPECT_EQ(ids.status().code(), Code::kExhausted);
}

// ------------------------------------------------------------------------ files beside tokenizer.json

class Beside : public BrokenTokenizer {
 protected:
  void put(const std::string& name, const json& value) {
    std::ofstream(folder_ + "/" + name, std::ios::binary)
        << (value.is_string() ? value.get<std::string>() : value.dump());
  }
  void remove(const std::string& name) { std::filesystem::remove(folder_ + "/" + name); }
  /// With good_ and this file beside it.
  void refuse_file(const std::string& name, const json& value, Code code,
                   const std::vector<std::string>& parts) {
    put(name, value);
    Result<Tokenizer> r = load_text(good_.dump());
    ASSERT_FALSE(r.ok()) << name << " " << value;
    EXPECT_EQ(code_name(r.status().code()), code_name(code)) << r.status().message();
    EXPECT_THAT(r.status().message(), HasSubstr(name));
    for (const std::string& part : parts) EXPECT_THAT(r.status().message(), HasSubstr(part));
    remove(name);
  }
};

TEST_F(Beside, AddedTokensAsTransformersReadsThem) {
  const json fixtures = read_fixture("beside.json");
  EXPECT_GT(fixtures.size(), 15u);
  for (const json& fixture : fixtures) {
    SCOPED_TRACE(fixture["name"].get<std::string>());
    for (const char* name : {"tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"})
      remove(name);
    for (const auto& [name, value] : fixture["files"].items()) put(name, value);
    Result<Tokenizer> t =
        load_text(read_fixture(fixture["base"].get<std::string>() + "/tokenizer.json").dump());
    ASSERT_TRUE(t.ok()) << t.status().message();
    EXPECT_EQ(t->vocab_size(), fixture["vocab_size"].get<int64_t>());
    for (const auto& [content, id] : fixture["added"].items())
      EXPECT_EQ(t->token_id(content), id.get<int32_t>());
    for (const json& c : fixture["cases"]) {
      const auto ids = c["ids"].get<std::vector<int32_t>>();
      EXPECT_EQ(t->encode(c["text"].get<std::string>(), true).value(), ids) << c["text"];
      EXPECT_EQ(shown(t->decode(ids, true).value()), shown(c["skip"].get<std::string>())) << c["text"];
    }
  }
}

/// As version 4 of transformers reads it; version 5 cannot.
TEST_F(Beside, SpecialTokensListedWithFlags) {
  put("special_tokens_map.json", {{"additional_special_tokens",
                                   {{{"content", "<x>"},
                                     {"lstrip", true},
                                     {"rstrip", false},
                                     {"normalized", false},
                                     {"single_word", false}},
                                    "<y>"}}});
  Result<Tokenizer> t = load_text(good_.dump());
  ASSERT_TRUE(t.ok()) << t.status().message();
  EXPECT_EQ(t->token_id("<x>"), 3);
  EXPECT_EQ(t->token_id("<y>"), 4);
  EXPECT_THAT(t->encode("a  <x>b<y>", true).value(), ElementsAre(0, 3, 1, 4));
  EXPECT_EQ(t->decode(std::vector<int32_t>{0, 3, 1, 4}, true).value(), "a b");
}

TEST_F(Beside, BosAndEosThatOnlyTheConfigurationAsksFor) {
  good_["model"]["vocab"]["<s>"] = 3;
  good_["model"]["vocab"]["</s>"] = 4;
  auto ids = [&](const json& config) {
    put("tokenizer_config.json", config);
    Result<Tokenizer> t = load_text(good_.dump());
    EXPECT_TRUE(t.ok()) << t.status().message();
    return std::pair(t->encode("ab", true).value(), text_ids(*t, "ab").value());
  };
  using Ids = std::vector<int32_t>;
  const json named = {{"bos_token", "<s>"}, {"eos_token", "</s>"}};
  auto with = [&](const json& more) {
    json config = named;
    config.update(more);
    return config;
  };
  EXPECT_EQ(ids(named), std::pair(Ids{2}, Ids{2}));
  EXPECT_EQ(ids(with({{"add_bos_token", true}})), std::pair(Ids{3, 2}, Ids{3, 2}));
  // What ends a text is not for one that goes on.
  EXPECT_EQ(ids(with({{"add_bos_token", true}, {"add_eos_token", true}})),
            std::pair(Ids{3, 2, 4}, Ids{3, 2}));
  EXPECT_EQ(ids(with({{"add_bos_token", false}, {"add_eos_token", nullptr}})), std::pair(Ids{2}, Ids{2}));
  EXPECT_EQ(ids({{"add_bos_token", true}, {"bos_token", nullptr}}), std::pair(Ids{2}, Ids{2}));
  // A template that puts something there has decided.
  good_["post_processor"] = {
      {"type", "TemplateProcessing"},
      {"single",
       {{{"SpecialToken", {{"id", "</s>"}, {"type_id", 0}}}}, {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}},
      {"special_tokens", {{"</s>", {{"id", "</s>"}, {"ids", {4}}, {"tokens", {"</s>"}}}}}}};
  EXPECT_EQ(ids(with({{"add_bos_token", true}})), std::pair(Ids{4, 2}, Ids{4, 2}));
  EXPECT_EQ(ids(with({{"add_bos_token", false}})), std::pair(Ids{4, 2}, Ids{4, 2}));
}

TEST_F(Beside, MalformedFiles) {
  for (const char* name : {"tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"}) {
    for (const json& text : {json(""), json("{"), json("[1"), json("\"x"), json("\xFF")})
      refuse_file(name, text.get<std::string>().empty() ? json(" ") : text, Code::kCorrupt, {});
    refuse_file(name, json::array({1}), Code::kCorrupt, {});
    refuse_file(name, json(3), Code::kCorrupt, {});
  }
  const std::string config = "tokenizer_config.json";
  refuse_file(config, {{"added_tokens_decoder", 3}}, Code::kCorrupt, {"added_tokens_decoder"});
  for (const char* id : {"x", "-1", "1.5", "", "99999999999", "3 "})
    refuse_file(config, {{"added_tokens_decoder", {{id, {{"content", "<x>"}}}}}}, Code::kCorrupt,
                {"added_tokens_decoder", "expected the id"});
  refuse_file(config, {{"added_tokens_decoder", {{"3", "<x>"}}}}, Code::kCorrupt,
              {"added_tokens_decoder: 3"});
  refuse_file(config, {{"added_tokens_decoder", {{"3", {{"lstrip", true}}}}}}, Code::kCorrupt, {"content"});
  refuse_file(config, {{"added_tokens_decoder", {{"3", {{"content", 5}}}}}}, Code::kInvalidArgument,
              {"content"});
  refuse_file(config, {{"added_tokens_decoder", {{"3", {{"content", "<x>"}, {"lstrip", "yes"}}}}}},
              Code::kInvalidArgument, {"lstrip"});
  refuse_file(config, {{"pad_token", 5}}, Code::kCorrupt, {"pad_token", "expected a token"});
  refuse_file(config, {{"eos_token", {{"id", 5}}}}, Code::kCorrupt, {"eos_token", "content"});
  refuse_file(config, {{"extra_special_tokens", "<x>"}}, Code::kCorrupt,
              {"extra_special_tokens", "expected a list"});
  refuse_file(config, {{"additional_special_tokens", {"<x>", 5}}}, Code::kCorrupt,
              {"additional_special_tokens[1]"});
  refuse_file(config, {{"add_bos_token", "yes"}}, Code::kInvalidArgument, {"add_bos_token"});
  refuse_file(config, {{"split_special_tokens", true}}, Code::kUnsupported, {"split_special_tokens"});
  const std::string added = "added_tokens.json";
  for (const json& id : {json("3"), json(-1), json(1.5), json(nullptr), json(uint64_t{1} << 63)})
    refuse_file(added, {{"<x>", id}}, id.is_null() ? Code::kCorrupt : Code::kInvalidArgument, {"<x>"});
  refuse_file(added, {{"<x>", 3}, {"<y>", 3}}, Code::kCorrupt, {"id 3", "<x>", "<y>"});

  // Damaged anywhere they are refused by name or read, never more.
  const std::string whole =
      json({{"added_tokens_decoder", {{"3", {{"content", "<x>"}, {"lstrip", true}, {"special", true}}}}},
            {"bos_token", "<x>"},
            {"extra_special_tokens", {"<y>", "<z>"}},
            {"add_bos_token", true}})
          .dump();
  std::mt19937 random(5);
  for (int round = 0; round < 300; ++round) {
    std::string damaged = whole;
    for (size_t n = 1 + random() % 3; n > 0; --n)
      damaged[random() % damaged.size()] = static_cast<char>(32 + random() % 95);
    put(config, damaged);
    Result<Tokenizer> t = load_text(good_.dump());
    if (!t.ok()) {
      EXPECT_THAT(t.status().message(), HasSubstr(config)) << damaged;
      continue;
    }
    Result<std::vector<int32_t>> ids = t->encode("ab<x>b<y>", true);
    EXPECT_TRUE(ids.ok() && t->decode(*ids, false).ok()) << damaged;
  }
  remove(config);

  // A vocabulary whose next free id is not free.
  good_["model"]["vocab"] = {{"a", 0}, {"b", 1}, {"ab", 3}};
  put(added, {{"<x>", 9}});
  Result<Tokenizer> r = load_text(good_.dump());
  ASSERT_FALSE(r.ok());
  EXPECT_EQ(r.status().code(), Code::kCorrupt);
  EXPECT_THAT(r.status().message(), HasSubstr("'<x>'"));
  EXPECT_THAT(r.status().message(), HasSubstr("'ab'"));
}

// ----------------------------------------------------------------------------------- two tokenizers, same
// ids

class SameIds : public BrokenTokenizer {
 protected:
  /// How `changed` compares with `file`.
  IdsComparison compare(const json& file, const json& changed) {
    Result<Tokenizer> a = load_text(file.dump()), b = load_text(changed.dump());
    EXPECT_TRUE(a.ok() && b.ok()) << a.status().message() << b.status().message();
    return compare_ids(*a, "A", *b, "B");
  }
};

/// As trainers and other versions write the same tokenizer again.
TEST_F(SameIds, HoweverAFileIsWritten) {
  for (const char* name : {"llama3", "qwen2", "gpt2", "llama2", "mistral", "gemma", "unknowns"}) {
    SCOPED_TRACE(name);
    const json file = read_fixture(std::string(name) + "/tokenizer.json");
    json again = file;
    again["padding"] = {{"strategy", "BatchLongest"}, {"direction", "Left"}, {"pad_id", 2},
                        {"pad_type_id", 0},           {"pad_token", "</s>"}, {"pad_to_multiple_of", nullptr}};
    again["truncation"] = {
        {"direction", "Right"}, {"max_length", 4}, {"strategy", "LongestFirst"}, {"stride", 0}};
    again["decoder"] = nullptr;
    again["model"]["type"] = "BPE";
    for (json& merge : again["model"]["merges"]) {
      if (merge.is_array()) {
        merge = merge[0].get<std::string>() + " " + merge[1].get<std::string>();
      } else {
        const auto text = merge.get<std::string>();
        merge = {text.substr(0, text.find(' ')), text.substr(text.find(' ') + 1)};
      }
    }
    if (again["normalizer"].is_null()) {
      again["normalizer"] = {{"type", "Sequence"}, {"normalizers", json::array()}};
    } else {
      again["normalizer"] = {{"type", "Sequence"}, {"normalizers", {again["normalizer"]}}};
    }
    for (json& token : again["added_tokens"]) token["special"] = !token["special"].get<bool>();
    const IdsComparison found = compare(file, again);
    EXPECT_TRUE(found.same()) << found.difference;
  }
}

TEST_F(SameIds, NamesTheFirstThingThatDiffers) {
  const json file = read_fixture("llama2/tokenizer.json");
  auto differs = [&](const std::function<void(json&)>& change, const std::vector<std::string>& parts) {
    json changed = file;
    change(changed);
    const IdsComparison found = compare(file, changed);
    EXPECT_FALSE(found.agree());
    for (const std::string& part : parts) EXPECT_THAT(found.difference, HasSubstr(part));
  };
  differs([](json& f) { f["normalizer"]["normalizers"].erase(0); },
          {"normalizer 1", "Prepend", "in 'A'", "in 'B'"});
  differs(
      [](json& f) {
        f["pre_tokenizer"] = {{"type", "WhitespaceSplit"}};
      },
      {"pre-tokenizer 1", "none in 'A'", "WhitespaceSplit in 'B'"});
  differs([](json& f) { f["model"]["ignore_merges"] = true; },
          {"the model", "not merged; unknown characters are bytes in 'B'"});
  differs([](json& f) { f["model"]["byte_fallback"] = false; }, {"the model", "'<unk>'"});
  differs([](json& f) { std::swap(f["model"]["merges"][3], f["model"]["merges"][4]); }, {"merge 4:"});
  differs([](json& f) { f["model"]["merges"].erase(7); }, {"merge 8:"});
  differs([](json& f) { f["post_processor"] = nullptr; }, {"before a text", "[1] in 'A'", "[] in 'B'"});
  differs([](json& f) { f["added_tokens"].back()["lstrip"] = true; },
          {"token 767 'long added token'", "added in 'A'", "added, lstrip in 'B'"});
  differs([](json& f) { f["added_tokens"].back()["content"] = "other"; },
          {"token 767", "'long added token' in 'A'", "'other' in 'B'"});
  differs(
      [](json& f) {
        auto& vocab = f["model"]["vocab"];
        std::swap(vocab["\u2581the"], vocab["\u2581"]);
      },
      {"token "});
  differs(
      [](json& f) {
        f["added_tokens"].erase(f["added_tokens"].size() - 2);
        f["added_tokens"].back()["id"] = 766;
      },
      {"long added token"});
  // Where every byte is a token nothing is unknown, whatever it would be.
  json changed = file;
  changed["model"]["unk_token"] = nullptr;
  changed["model"]["fuse_unk"] = false;
  EXPECT_TRUE(compare(file, changed).same());
}

TEST_F(SameIds, TokensThatOnlyOneKnows) {
  const json file = read_fixture("llama2/tokenizer.json");
  json more = file;
  for (int i = 0; i < 2; ++i) {
    json token = file["added_tokens"].back();
    token["id"] = 768 + i;
    token["content"] = "<|extra_" + std::to_string(i) + "|>";
    more["added_tokens"].push_back(token);
  }
  IdsComparison found = compare(file, more);
  EXPECT_TRUE(found.agree()) << found.difference;
  EXPECT_FALSE(found.same());
  EXPECT_TRUE(found.only_a.empty());
  ASSERT_EQ(found.only_b.size(), 2u);
  EXPECT_EQ(found.only_b[1].id, 769);
  EXPECT_EQ(found.only_b[1].content, "<|extra_1|>");
  found = compare(more, file);
  EXPECT_TRUE(found.agree());
  EXPECT_EQ(found.only_a.size(), 2u);
}

/// Of folders, with what stands beside their files.
TEST_F(SameIds, OfFolders) {
  const std::string other = folder_ + "/other";
  std::filesystem::create_directories(other);
  ASSERT_TRUE(load_text(good_.dump()).ok());
  EXPECT_TRUE(check_same_ids(folder_, other).ok());  // nothing to compare with
  std::ofstream(other + "/tokenizer.json") << good_.dump(2);
  EXPECT_TRUE(check_same_ids(folder_, other).ok());
  std::ofstream(other + "/added_tokens.json") << R"({"<x>": 3})";
  auto shared = check_same_ids(folder_, other);  // of tokens that both know nothing differs
  ASSERT_TRUE(shared.ok()) << shared.status().message();
  EXPECT_EQ(*shared, 3);  // which only the second knows
  shared = check_same_ids(other, folder_);
  ASSERT_TRUE(shared.ok()) << shared.status().message();
  EXPECT_EQ(*shared, 0);
  std::ofstream(folder_ + "/added_tokens.json") << R"({"<y>": 3})";
  const Status status = check_same_ids(folder_, other).status();
  EXPECT_EQ(status.code(), Code::kMismatch);
  EXPECT_THAT(status.message(), HasSubstr("different tokenizers"));
  EXPECT_THAT(status.message(), HasSubstr("token 3: '<y>' in '" + folder_ + "', '<x>' in '" + other + "'"));
  std::ofstream(other + "/tokenizer.json") << "{";
  EXPECT_EQ(check_same_ids(folder_, other).status().code(), Code::kCorrupt);
  // The same bytes are the same, whether this version can read them or not.
  std::ofstream(folder_ + "/tokenizer.json") << "{";
  std::ofstream(folder_ + "/added_tokens.json") << R"({"<x>": 3})";
  EXPECT_TRUE(check_same_ids(folder_, other).ok());
}

/// Bytes and values of good files changed at random: loading and using them fails cleanly or works.
TEST_F(BrokenTokenizer, RandomDamage) {
  std::mt19937 random(7);
  auto below = [&](size_t n) { return std::uniform_int_distribution<size_t>(0, n - 1)(random); };
  auto corpus = read_fixture("corpus.json").get<std::vector<std::string>>();
  size_t loaded = 0, refused = 0;
  auto try_file = [&](std::string_view text) {
    Result<Tokenizer> t = load_text(text);
    (t.ok() ? loaded : refused)++;
    if (!t.ok()) {
      EXPECT_THAT(t.status().message(), HasSubstr("tokenizer.json"));
      return;
    }
    for (int i = 0; i < 5; ++i) {
      Result<std::vector<int32_t>> ids = t->encode(corpus[below(corpus.size())], true);
      if (!ids.ok()) continue;
      EXPECT_TRUE(t->decode(*ids, false).ok());
    }
  };
  for (const char* name : {"llama3", "llama2", "mistral", "unknowns"}) {
    json good = read_fixture(std::string(name) + "/tokenizer.json");
    std::string text = good.dump();
    for (int round = 0; round < 40; ++round) {
      std::string damaged = text;
      for (size_t n = 1 + below(4); n > 0; --n) {
        // The steps stand before the vocabulary in few bytes: damage them as often as the rest.
        size_t at = below(2) == 0 ? below(damaged.size()) : below(std::min<size_t>(damaged.size(), 3000));
        if (below(2) == 0) {
          damaged[at] = static_cast<char>(below(256));
        } else {
          damaged.erase(at, 1 + below(20));
        }
      }
      try_file(damaged);
    }
    // Whole values replaced by others of any kind.
    json flat = good.flatten();
    std::vector<std::string> keys;
    for (const auto& [key, value] : flat.items()) {
      if (key.find("/model/vocab") == std::string::npos && key.find("/model/merges") == std::string::npos)
        keys.push_back(key);
    }
    const std::vector<json> values = {nullptr,        true,    false, 0,          -1,    1e300,
                                      1ull << 62,     "",      "x",   "Sequence", "<s>", json::array(),
                                      json::object(), "\u2581"};
    for (int round = 0; round < 120; ++round) {
      json damaged = good;
      damaged[json::json_pointer(keys[below(keys.size())])] = values[below(values.size())];
      try_file(damaged.dump());
    }
  }
  EXPECT_GT(loaded, 20u);
  EXPECT_GT(refused, 100u);
}

}  // namespace
}  // namespace ds
