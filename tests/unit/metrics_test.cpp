// Scores against what Python's packages and LongBench's rules give (tests/golden/metrics), to the last bit.
#include "profiler/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "profiler/python_text_internal.h"
#include "runtime/model/tokenizer_unicode_internal.h"
#include "support/json.h"

namespace ds {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

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
  ASSERT_EQ(expected.size(), std::size(kMetricNames));
  for (size_t m = 0; m < expected.size(); ++m)
    EXPECT_EQ(score(static_cast<Metric>(m), prediction, answers), expected[m].get<double>())
        << kMetricNames[m] << " of " << a_case.dump();
}

TEST(Metrics, AreThoseOfLongBench) {
  ASSERT_GE(golden()["cases"].size(), 1000u);
  for (const json& c : golden()["cases"])
    expect_scores(c, c[0].get<std::string>(), c[1].get<std::vector<std::string>>());
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
                    assigned = set_of(golden()["assigned"]);
  for (size_t c = 0; c < assigned.size(); ++c) {
    if (!assigned[c]) continue;
    EXPECT_EQ(python::is_word(static_cast<char32_t>(c)), words[c]) << std::hex << c;
    EXPECT_EQ(python::is_space(static_cast<char32_t>(c)), spaces[c]) << std::hex << c;
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

TEST(Metrics, KnowLongBenchsDataSets) {
  EXPECT_EQ(longbench_metric("hotpotqa"), Metric::kQaF1);
  EXPECT_EQ(longbench_metric("gov_report"), Metric::kRougeL);
  EXPECT_EQ(longbench_metric("repobench-p"), Metric::kCodeSim);
  EXPECT_EQ(longbench_metric("trec"), std::nullopt);      // scored by classes
  EXPECT_EQ(longbench_metric("dureader"), std::nullopt);  // Chinese, cut into words by another package
  EXPECT_EQ(longbench_metric("notes_qa"), std::nullopt);
}

}  // namespace
}  // namespace ds
