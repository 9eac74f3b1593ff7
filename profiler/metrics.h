// Scores of answers, the same doubles as LongBench's evaluation gives (its metrics.py and eval.py with the
// packages rouge 1.0.1 and fuzzywuzzy 0.18.0).
//
// Where LongBench's numbers depend on how it was run, these are meant:
// - code_sim: fuzzywuzzy over Python's difflib. With the package python-Levenshtein installed fuzzywuzzy
// counts
//   edits instead, and many scores differ by some points.
// - rouge_l and rouge_l_zh: without Python's limit on recursion, over which two sentences of together about a
//   thousand words (a text without full stops; Chinese ones are none) score 0 there.
// - classification: by each item's own classes; eval.py takes those of the file's last line for all.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "support/status.h"

namespace ds {

class Jieba;

enum class Metric : uint8_t {
  kQaF1,        // overlap of words, as multisets, without case, punctuation and articles
  kRougeL,      // ROUGE-L of the whole text (union of longest common subsequences by sentence), F1
  kCodeSim,     // the first line of code beside the answer: share of matching characters, in whole hundredths
  kExactMatch,  // equal but for white space around it
  kClassification,  // the class that is named, shared with other classes named beside it
  kRetrieval,       // share of the numbers in a text that are the answer's ("Paragraph 7")
  kRetrievalZh,     // the same for "段落7"
  kCount,           // share of the numbers in a text that are the answer
  kQaF1Zh,          // qa_f1 over words of Chinese text
  kRougeLZh,        // rouge_l over words of Chinese text
};
inline constexpr std::string_view kMetricNames[] = {
    "qa_f1",     "rouge_l",      "code_sim", "exact_match", "classification",
    "retrieval", "retrieval_zh", "count",    "qa_f1_zh",    "rouge_l_zh"};

std::string_view metric_name(Metric metric);
/// kInvalidArgument for an unknown name; lists the known ones.
Result<Metric> parse_metric(std::string_view name);

/// Whether a metric cuts Chinese text into words.
bool needs_words(Metric metric);

/// What some metrics ask for beside answers.
struct MetricInputs {
  std::span<const std::string> classes = {};  // kClassification: the names of all classes
  const Jieba* words = nullptr;               // not null where needs_words()
};

/// How well `prediction` (UTF-8; broken sequences count as U+FFFD) meets the best of `answers`, in [0, 1]; 0
/// without answers, and for an answer that check_answers() refuses.
double score(Metric metric, std::string_view prediction, std::span<const std::string> answers,
             const MetricInputs& inputs = {});

/// kInvalidArgument, with the field's name first, where answers or classes are not what the metric needs:
/// classes for kClassification, a paragraph's number in each answer for kRetrieval and kRetrievalZh.
Status check_answers(Metric metric, std::span<const std::string> answers,
                     std::span<const std::string> classes);

/// The first line that is not empty.
std::string_view first_line(std::string_view text);

/// A data set's score in points, 0 to 100, with two decimals: round(100 * sum / n, 2) of Python. NaN without
/// scores.
double points(std::span<const double> scores);
/// round(value, 2) of Python: the double nearest to the decimal that is nearest to the exact value, ties to
/// even.
double round_points(double value);

}  // namespace ds
