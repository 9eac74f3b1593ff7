// Scores against what Python's packages and LongBench's rules give (tests/golden/metrics), to the last bit.
#include "profiler/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <vector>

#include "profiler/jieba.h"
#include "profiler/longbench.h"
#include "profiler/python_text_internal.h"
#include "runtime/model/tokenizer_unicode_internal.h"
#include "support/json.h"

namespace ds {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

/// A dictionary and a model of made-up words and numbers, in the form of the package jieba.
constexpr const char* kSmallJieba = DS_SOURCE_DIR "/tests/golden/metrics/jieba";

const json& golden() {
  static const json value = [] {
    Result<json> read = read_json_file(DS_SOURCE_DIR "/tests/golden/metrics/expectations.json");
    EXPECT_TRUE(read.ok()) << read.status().message();
    return read.ok() ? *read : json();
  }();
  return value;
}

std::string from_hex(const std::string& text) {
  std::string bytes;
  for (size_t i = 0; i + 1 < text.size(); i += 2)
    bytes += static_cast<char>(std::stoi(text.substr(i, 2), nullptr, 16));
  return bytes;
}

std::string encode(std::u32string_view text) {
  std::string bytes;
  for (char32_t c : text) unicode::append_char(bytes, c);
  return bytes;
}

/// Scores a case by each metric; equal doubles, not close ones.
void expect_scores(const json& a_case, const std::string& prediction,
                   const std::vector<std::string>& answers) {
  const json& expected = a_case[2];
  ASSERT_EQ(expected.size(), 4u);  // those that any text can be scored by
  for (size_t m = 0; m < expected.size(); ++m)
    EXPECT_EQ(score(static_cast<Metric>(m), prediction, answers), expected[m].get<double>())
        << kMetricNames[m] << " of " << a_case.dump();
}

TEST(Metrics, AreThoseOfLongBench) {
  ASSERT_GE(golden()["cases"].size(), 1000u);
  for (const json& c : golden()["cases"])
    expect_scores(c, c[0].get<std::string>(), c[1].get<std::vector<std::string>>());
}

/// Rows of [metric, prediction, answers, classes, score].
void expect_rows(const json& rows, const Jieba* words, size_t at_least) {
  ASSERT_GE(rows.size(), at_least);
  for (const json& row : rows) {
    Result<Metric> metric = parse_metric(row[0].get<std::string>());
    ASSERT_TRUE(metric.ok()) << row;
    const auto answers = row[2].get<std::vector<std::string>>(),
               classes = row[3].get<std::vector<std::string>>();
    EXPECT_EQ(score(*metric, row[1].get<std::string>(), answers, {classes, words}), row[4].get<double>())
        << row;
  }
}

TEST(Metrics, OfClassesAndNumbersAreThoseOfLongBench) { expect_rows(golden()["others"], nullptr, 400); }

std::shared_ptr<const Jieba> load_jieba(const std::string& folder) {
  auto jieba = Jieba::load(folder);
  EXPECT_TRUE(jieba.ok()) << jieba.status().message();
  return jieba.ok() ? *jieba : nullptr;
}

void expect_cuts(const json& rows, const Jieba& jieba) {
  ASSERT_GE(rows.size(), 30u);
  for (const json& row : rows) {
    const std::u32string text = python::decode(row[0].get<std::string>());
    std::vector<std::string> words;
    for (std::u32string_view word : jieba.cut(text)) words.push_back(encode(word));
    EXPECT_EQ(words, row[1].get<std::vector<std::string>>()) << row;
  }
}

TEST(ChineseWords, AreThoseOfJiebaByAMadeUpDictionary) {
  auto jieba = load_jieba(kSmallJieba);
  ASSERT_TRUE(jieba);
  expect_cuts(golden()["small_cuts"], *jieba);
  expect_rows(golden()["small_chinese"], jieba.get(), 100);
}

TEST(ChineseWords, AreThoseOfJieba) {
  const std::string folder = Jieba::find_folder("");
  if (access((folder + "/dict.txt").c_str(), R_OK) != 0)
    GTEST_SKIP() << "'" << folder << "' is not there: apt-get install python3-jieba";
  auto jieba = load_jieba(folder);
  ASSERT_TRUE(jieba);
  ASSERT_EQ(jieba->sha256(), golden()["jieba"][0].get<std::string>()) << "another version than 0.42.1";
  expect_cuts(golden()["cuts"], *jieba);
  expect_rows(golden()["chinese"], jieba.get(), 100);
}

TEST(ChineseWords, SayWhatIsMissingOrDamaged) {
  namespace fs = std::filesystem;
  EXPECT_EQ(Jieba::find_folder("x"), "x");
  auto missing = Jieba::load("/nowhere");
  ASSERT_FALSE(missing.ok());
  EXPECT_EQ(missing.status().code(), Code::kNotFound);
  EXPECT_THAT(missing.status().message(), HasSubstr("install Debian's python3-jieba"));
  const fs::path folder = fs::temp_directory_path() / fmt::format("ds-jieba-{}", getpid());
  auto damaged = [&](const std::string& file, const std::string& text) {
    fs::remove_all(folder);
    fs::copy(kSmallJieba, folder, fs::copy_options::recursive);
    std::ofstream(folder / file) << text;
    auto read = Jieba::load(folder);
    EXPECT_FALSE(read.ok());
    EXPECT_EQ(read.ok() ? Code::kOk : read.status().code(), Code::kCorrupt);
    return read.ok() ? "" : read.status().message();
  };
  EXPECT_THAT(damaged("dict.txt", "a 3 n\nb\n"),
              HasSubstr("dict.txt:2: found 'b', expected a word and how often"));
  EXPECT_THAT(damaged("dict.txt", "a -3 n\n"), HasSubstr("dict.txt:1: found 'a -3 n'"));
  EXPECT_THAT(damaged("dict.txt", ""), HasSubstr("no word occurs"));
  EXPECT_THAT(damaged("finalseg/prob_start.py", "import os"), HasSubstr("prob_start.py': found no table"));
  EXPECT_THAT(damaged("finalseg/prob_start.py", "P={'B': 'x'}"), HasSubstr("expected a logarithm"));
  EXPECT_THAT(damaged("finalseg/prob_trans.py", "P={'X': {}}"), HasSubstr("found state 'X'"));
  EXPECT_THAT(damaged("finalseg/prob_trans.py", "P={'B': 3}"), HasSubstr("expected a table by state"));
  EXPECT_THAT(damaged("finalseg/prob_emit.py", "P={'B': {'ab': -1}}"), HasSubstr("expected one character"));
  EXPECT_THAT(damaged("finalseg/prob_emit.py", "P={'B': {'a': -1"), HasSubstr("prob_emit.py"));
  fs::remove_all(folder);
}

TEST(Metrics, SayWhichAnswersTheyCannotScore) {
  const std::vector<std::string> none, classes = {"City"}, paragraph = {"Paragraph 3"}, zh = {"段落3"},
                                       text = {"the clerk"};
  EXPECT_TRUE(check_answers(Metric::kQaF1, text, none).ok());
  EXPECT_TRUE(check_answers(Metric::kClassification, text, classes).ok());
  EXPECT_TRUE(check_answers(Metric::kRetrieval, paragraph, none).ok());
  EXPECT_TRUE(check_answers(Metric::kRetrievalZh, zh, none).ok());
  EXPECT_THAT(check_answers(Metric::kClassification, text, none).message(),
              HasSubstr("all_classes: found none, expected the names of all classes"));
  EXPECT_THAT(check_answers(Metric::kRetrieval, zh, none).message(),
              HasSubstr("answers[0]: found '段落3', expected one like 'Paragraph 7'"));
  EXPECT_THAT(check_answers(Metric::kRetrievalZh, text, none).message(),
              HasSubstr("expected one like '段落7'"));
  EXPECT_EQ(score(Metric::kRetrieval, "3", text), 0);
}

TEST(LongBench, KnowsItsDataSets) {
  EXPECT_EQ(longbench_metric("dureader"), Metric::kRougeLZh);
  EXPECT_EQ(longbench_metric("multifieldqa_zh"), Metric::kQaF1Zh);
  EXPECT_EQ(longbench_metric("trec"), Metric::kClassification);
  EXPECT_EQ(longbench_metric("passage_count"), Metric::kCount);
  EXPECT_EQ(longbench_metric("hotpotqa_e"), Metric::kQaF1);
  EXPECT_EQ(longbench_task("2wikimqa_e")->name, "2wikimqa");
  EXPECT_EQ(longbench_task("notes"), nullptr);
  EXPECT_EQ(longbench_task("_e"), nullptr);
  EXPECT_TRUE(longbench_first_line("lsht"));
  EXPECT_TRUE(longbench_first_line("trec_e"));
  EXPECT_FALSE(longbench_first_line("lcc"));
  // pred.py asks through the model's chat template, but for these.
  for (const char* plain : {"trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"})
    EXPECT_FALSE(longbench_task(plain)->chat) << plain;
  for (const char* chat : {"narrativeqa", "gov_report", "vcsum", "passage_count"})
    EXPECT_TRUE(longbench_task(chat)->chat) << chat;
}

TEST(Metrics, TakeBrokenUtf8ForReplacementCharacters) {
  ASSERT_GE(golden()["broken"].size(), 100u);
  for (const json& c : golden()["broken"])
    expect_scores(c, from_hex(c[0].get<std::string>()), {from_hex(c[1][0].get<std::string>())});
}

TEST(Metrics, CutToTheFirstLine) {
  for (const json& c : golden()["first_line"])
    EXPECT_EQ(first_line(c[0].get<std::string>()), c[1].get<std::string>()) << c;
  EXPECT_TRUE(longbench_first_line("samsum"));
  EXPECT_FALSE(longbench_first_line("hotpotqa"));
}

TEST(Metrics, RoundPointsAsPythonDoes) {
  ASSERT_GE(golden()["points"].size(), 50u);
  for (const json& c : golden()["points"])
    EXPECT_EQ(points(c[0].get<std::vector<double>>()), c[1].get<double>()) << c;
  EXPECT_TRUE(std::isnan(points({})));
  EXPECT_EQ(round_points(0.125), 0.12);  // exact ties go to the even digit
  EXPECT_EQ(round_points(0.375), 0.38);
  EXPECT_EQ(round_points(2.675), 2.67);  // the double is below the tie
}

/// Code points in `ranges` that Python's Unicode knows: what came later is allowed to differ.
std::vector<bool> set_of(const json& ranges) {
  std::vector<bool> set(0x110000);
  for (const json& range : ranges)
    for (size_t c = range[0].get<size_t>(); c <= range[1].get<size_t>(); ++c) set[c] = true;
  return set;
}

TEST(PythonText, HasPythonsWordsAndSpaces) {
  std::vector<bool> words = set_of(golden()["words"]), spaces = set_of(golden()["spaces"]),
                    digits = set_of(golden()["digits"]), assigned = set_of(golden()["assigned"]);
  for (size_t c = 0; c < assigned.size(); ++c) {
    if (!assigned[c]) continue;
    EXPECT_EQ(python::is_word(static_cast<char32_t>(c)), words[c]) << std::hex << c;
    EXPECT_EQ(python::is_space(static_cast<char32_t>(c)), spaces[c]) << std::hex << c;
    EXPECT_EQ(python::is_digit(static_cast<char32_t>(c)), digits[c]) << std::hex << c;
  }
}

TEST(ChineseWords, LoseThePunctuationThatLongBenchDrops) {
  auto jieba = load_jieba(kSmallJieba);
  ASSERT_TRUE(jieba);
  const std::vector<bool> dropped = set_of(golden()["zh_punctuation"]);
  for (char32_t c = 0x21; c < 0x10000; ++c) {
    if (python::is_space(c) || (c >= 0xD800 && c < 0xE000)) continue;
    const std::string text = encode({&c, 1});
    EXPECT_EQ(score(Metric::kQaF1Zh, text, std::vector{text}, {{}, jieba.get()}), dropped[c] ? 0 : 1)
        << std::hex << static_cast<uint32_t>(c);
  }
}

TEST(PythonText, HasPythonsLowerCase) {
  std::vector<bool> changing(0x110000), assigned = set_of(golden()["assigned"]);
  for (const json& c : golden()["lower"]) {
    std::u32string text = python::decode(c[0].get<std::string>());
    EXPECT_EQ(encode(python::lower(text)), c[1].get<std::string>());
    for (char32_t x : text) changing[x] = true;
  }
  for (char32_t c = 0; c < 0x110000; ++c) {
    if (!assigned[c] || changing[c]) continue;
    EXPECT_TRUE(python::lower({&c, 1}) == std::u32string(1, c)) << std::hex << static_cast<uint32_t>(c);
  }
}

TEST(PythonText, SplitsAndStrips) {
  using Pieces = std::vector<std::u32string_view>;
  EXPECT_TRUE(python::split(U" a\u3000b\x1c") == (Pieces{U"a", U"b"}));
  EXPECT_TRUE(python::split(U"") == Pieces());
  EXPECT_TRUE(python::split(U"", U'.') == Pieces{U""});
  EXPECT_TRUE(python::split(U".a..", U'.') == (Pieces{U"", U"a", U"", U""}));
  EXPECT_TRUE(python::strip(U"\u2003 a b\n") == U"a b");
  EXPECT_TRUE(python::strip(U" \n") == U"");
}

TEST(Metrics, HaveNames) {
  for (std::string_view name : kMetricNames) {
    Result<Metric> metric = parse_metric(name);
    ASSERT_TRUE(metric.ok());
    EXPECT_EQ(metric_name(*metric), name);
  }
  Result<Metric> unknown = parse_metric("bleu");
  ASSERT_FALSE(unknown.ok());
  EXPECT_EQ(unknown.status().code(), Code::kInvalidArgument);
  EXPECT_THAT(unknown.status().message(),
              HasSubstr("unknown metric 'bleu'; expected one of qa_f1, rouge_l, code_sim, exact_match"));
}

}  // namespace
}  // namespace ds
