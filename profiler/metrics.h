// Scores of answers, the same doubles as LongBench's evaluation gives (its metrics.py and eval.py with the
// packages rouge 1.0.1 and fuzzywuzzy 0.18.0).
//
// Where LongBench's numbers depend on how it was run, these are meant:
// - code_sim: fuzzywuzzy over Python's difflib. With the package python-Levenshtein installed fuzzywuzzy
// counts
//   edits instead, and many scores differ by some points.
// - rouge_l: without Python's limit on recursion, over which two sentences of together about a thousand words
//   (a text without full stops) score 0 there.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "support/status.h"

namespace ds {

enum class Metric : uint8_t {
  kQaF1,        // overlap of words, as multisets, without case, punctuation and articles
  kRougeL,      // ROUGE-L of the whole text (union of longest common subsequences by sentence), F1
  kCodeSim,     // the first line of code beside the answer: share of matching characters, in whole hundredths
  kExactMatch,  // equal but for white space around it
};
inline constexpr std::string_view kMetricNames[] = {"qa_f1", "rouge_l", "code_sim", "exact_match"};

std::string_view metric_name(Metric metric);
/// kInvalidArgument for an unknown name; lists the known ones.
Result<Metric> parse_metric(std::string_view name);

/// How well `prediction` (UTF-8; broken sequences count as U+FFFD) meets the best of `answers`, in [0, 1]; 0
/// without answers.
double score(Metric metric, std::string_view prediction, std::span<const std::string> answers);

/// LongBench's metric for one of its data sets in English or code ("hotpotqa", "lcc"); none for a data set
/// that it does not have, or scores by a metric that is not among ours.
std::optional<Metric> longbench_metric(std::string_view dataset);
/// Data sets of which LongBench scores only first_line() of a prediction: few-shot ones, where models go on
/// with the next example.
bool longbench_first_line(std::string_view dataset);
/// The first line that is not empty.
std::string_view first_line(std::string_view text);

/// A data set's score in points, 0 to 100, with two decimals: round(100 * sum / n, 2) of Python. NaN without
/// scores.
double points(std::span<const double> scores);
/// round(value, 2) of Python: the double nearest to the decimal that is nearest to the exact value, ties to
/// even.
double round_points(double value);

}  // namespace ds
