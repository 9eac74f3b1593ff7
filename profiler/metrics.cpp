#include "profiler/metrics.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "profiler/jieba.h"
#include "profiler/python_text_internal.h"

namespace ds {
namespace {

using python::decode;
using Text = std::u32string_view;
using Texts = std::vector<Text>;

// ---- qa_f1 ----

bool is_punctuation(char32_t c) {  // string.punctuation: of ASCII only
  return c > 0x20 && c < 0x7F && (c == '_' || !python::is_word(c));
}

/// Replaces the words a, an and the by spaces. A word ends where letters and digits end: a combining mark
/// ends it.
void drop_articles(std::u32string& text) {
  std::u32string out;
  for (size_t at = 0; at < text.size();) {
    size_t begin = at;
    while (at < text.size() && python::is_word(text[at])) ++at;
    Text word = Text(text).substr(begin, at - begin);
    if (word == U"a" || word == U"an" || word == U"the") {
      out += U' ';
    } else {
      out += word;
    }
    if (at < text.size()) out += text[at++];
  }
  text = std::move(out);
}

std::u32string normalized(Text text) {
  std::u32string out = python::lower(text);
  std::erase_if(out, is_punctuation);
  drop_articles(out);
  return out;
}

/// Of words as multisets.
template <class Word>
double f1(const std::vector<Word>& predicted, const std::vector<Word>& expected) {
  std::unordered_map<Word, int64_t> left;
  for (const Word& word : expected) ++left[word];
  int64_t same = 0;
  for (const Word& word : predicted) {
    auto it = left.find(word);
    if (it != left.end() && it->second-- > 0) ++same;
  }
  if (same == 0) return 0;
  double precision = static_cast<double>(same) / static_cast<double>(predicted.size());
  double recall = static_cast<double>(same) / static_cast<double>(expected.size());
  return (2 * precision * recall) / (precision + recall);
}

double qa_f1(Text prediction, Text answer) {
  std::u32string p = normalized(prediction), a = normalized(answer);
  return f1(python::split(p), python::split(a));
}

// ---- qa_f1_zh ----

/// Of ASCII and of Chinese text, as LongBench lists them: a full stop of full width is not among them.
bool is_punctuation_zh(char32_t c) {
  static constexpr std::pair<char32_t, char32_t> kRanges[] = {
      {0x2013, 0x2014}, {0x2018, 0x2019}, {0x201B, 0x201F}, {0x2026, 0x2027}, {0x3001, 0x3003},
      {0x300B, 0x3011}, {0x3014, 0x301F}, {0x3030, 0x3030}, {0x303E, 0x303F}, {0xFE4F, 0xFE4F},
      {0xFF01, 0xFF0D}, {0xFF0F, 0xFF0F}, {0xFF1A, 0xFF20}, {0xFF3B, 0xFF40}, {0xFF5B, 0xFF64}};
  auto within = [c](const auto& range) { return range.first <= c && c <= range.second; };
  return is_punctuation(c) || std::any_of(std::begin(kRanges), std::end(kRanges), within);
}

std::vector<std::u32string> words_zh(Text text, const Jieba& jieba) {
  std::vector<std::u32string> words;
  for (Text word : jieba.cut(text)) {
    std::u32string kept = python::lower(word);
    std::erase_if(kept, [](char32_t c) { return is_punctuation_zh(c) || python::is_space(c); });
    if (!kept.empty()) words.push_back(std::move(kept));
  }
  return words;
}

double qa_f1_zh(Text prediction, Text answer, const Jieba& jieba) {
  return f1(words_zh(prediction, jieba), words_zh(answer, jieba));
}

// ---- rouge_l ----

/// Words as numbers, equal ones equal.
class Words {
 public:
  int32_t number(Text word) {
    return numbers_.try_emplace(word, static_cast<int32_t>(numbers_.size())).first->second;
  }

 private:
  std::unordered_map<Text, int32_t> numbers_;
};

using Sentence = std::vector<int32_t>;

/// What lies between full stops, if anything does: a sentence of white space has one word, the empty one.
std::vector<Sentence> sentences(Text text, Words& words) {
  std::vector<Sentence> out;
  for (Text piece : python::split(text, U'.')) {
    if (piece.empty()) continue;
    Sentence& sentence = out.emplace_back();
    for (Text word : python::split(piece)) sentence.push_back(words.number(word));
    if (sentence.empty()) sentence.push_back(words.number(Text()));
  }
  return out;
}

/// Adds the words of a longest common subsequence of x and y to `common`. Which one, where there are several,
/// matters, since words count once: from the end, a common word is taken; else y loses its last word, unless
/// only x losing its last keeps the length.
void add_common(const Sentence& x, const Sentence& y, std::unordered_set<int32_t>& common) {
  // One bit per cell of the table says which way to go: long texts without a full stop are square in memory.
  std::vector<bool> shorten_x(x.size() * y.size());
  std::vector<int32_t> above(y.size() + 1), row(y.size() + 1);
  for (size_t i = 0; i < x.size(); ++i) {
    for (size_t j = 0; j < y.size(); ++j) {
      if (x[i] == y[j]) {
        row[j + 1] = above[j] + 1;
      } else {
        row[j + 1] = std::max(above[j + 1], row[j]);
        shorten_x[i * y.size() + j] = above[j + 1] > row[j];
      }
    }
    std::swap(above, row);
  }
  for (size_t i = x.size(), j = y.size(); i > 0 && j > 0;) {
    if (x[i - 1] == y[j - 1]) {
      common.insert(x[i - 1]);
      --i, --j;
    } else if (shorten_x[(i - 1) * y.size() + j - 1]) {
      --i;
    } else {
      --j;
    }
  }
}

double distinct(const std::vector<Sentence>& sentences) {
  std::unordered_set<int32_t> words;
  for (const Sentence& s : sentences) words.insert(s.begin(), s.end());
  return static_cast<double>(words.size());
}

double rouge_l(Text prediction, Text answer) {
  Words words;
  std::vector<Sentence> predicted = sentences(prediction, words), expected = sentences(answer, words);
  if (predicted.empty() || expected.empty()) return 0;  // the package throws, LongBench counts 0
  std::unordered_set<int32_t> common;
  for (const Sentence& e : expected)
    for (const Sentence& p : predicted) add_common(e, p, common);
  double shared = static_cast<double>(common.size());
  double recall = shared / distinct(expected), precision = shared / distinct(predicted);
  return 2.0 * ((precision * recall) / (precision + recall + 1e-8));
}

// ---- rouge_l_zh ----

std::u32string spaced(Text text, const Jieba& jieba) {
  std::u32string out;
  for (Text word : jieba.cut(text)) {
    if (!out.empty()) out += U' ';
    out += word;
  }
  return out;
}

double rouge_l_zh(Text prediction, Text answer, const Jieba& jieba) {
  return rouge_l(spaced(prediction, jieba), spaced(answer, jieba));
}

// ---- code_sim ----

/// difflib.SequenceMatcher: the longest common block, then the same to its left and right. In texts of 200
/// characters and more, characters that make up over a hundredth of `b` begin no block.
class BlockMatcher {
 public:
  BlockMatcher(Text a, Text b) : a_(a), b_(b), starts_(a.size()), row_(b.size() + 1), above_(b.size() + 1) {
    std::unordered_map<char32_t, std::vector<size_t>> places;
    for (size_t j = 0; j < b.size(); ++j) places[b[j]].push_back(j);
    if (b.size() >= 200)
      std::erase_if(places, [&](const auto& place) { return place.second.size() > b.size() / 100 + 1; });
    places_ = std::move(places);
    for (size_t i = 0; i < a.size(); ++i) {
      auto it = places_.find(a[i]);
      starts_[i] = it == places_.end() ? nullptr : &it->second;
    }
  }

  /// Characters in all blocks.
  size_t matches() {
    std::vector<Range> open = {{0, a_.size(), 0, b_.size()}};
    size_t total = 0;
    while (!open.empty()) {
      Range r = open.back();
      open.pop_back();
      Block block = longest(r);
      if (block.size == 0) continue;
      total += block.size;
      if (r.a < block.a && r.b < block.b) open.push_back({r.a, block.a, r.b, block.b});
      size_t a = block.a + block.size, b = block.b + block.size;
      if (a < r.a_end && b < r.b_end) open.push_back({a, r.a_end, b, r.b_end});
    }
    return total;
  }

 private:
  struct Range {
    size_t a, a_end, b, b_end;
  };
  struct Block {
    size_t a, b, size;
  };

  /// The first of the longest blocks that begin and end with rare characters, then as far as it goes.
  Block longest(const Range& r) {
    Block best{r.a, r.b, 0};
    for (size_t i = r.a; i < r.a_end; ++i) {
      // row_[j + 1]: length of the block that ends at a[i] and b[j].
      if (starts_[i]) {
        auto j = std::lower_bound(starts_[i]->begin(), starts_[i]->end(), r.b);
        for (; j != starts_[i]->end() && *j < r.b_end; ++j) {
          size_t length = row_[*j + 1] = above_[*j] + 1;
          touched_.push_back(*j + 1);
          if (length > best.size) best = {i + 1 - length, *j + 1 - length, length};
        }
      }
      next_row();
    }
    next_row();
    while (best.a > r.a && best.b > r.b && a_[best.a - 1] == b_[best.b - 1]) --best.a, --best.b, ++best.size;
    while (best.a + best.size < r.a_end && best.b + best.size < r.b_end &&
           a_[best.a + best.size] == b_[best.b + best.size]) {
      ++best.size;
    }
    return best;
  }

  void next_row() {
    for (size_t j : touched_above_) above_[j] = 0;
    touched_above_.clear();
    std::swap(above_, row_);
    std::swap(touched_above_, touched_);
  }

  Text a_, b_;
  std::unordered_map<char32_t, std::vector<size_t>> places_;
  std::vector<const std::vector<size_t>*> starts_;  // by character of a: where b has it; nullptr: nowhere
  std::vector<size_t> row_, above_, touched_, touched_above_;
};

/// fuzz.ratio: whole percents, half to even.
double ratio_percent(Text a, Text b) {
  if (a == b) return 100;
  if (a.empty() || b.empty()) return 0;
  double matches = static_cast<double>(BlockMatcher(a, b).matches());
  return std::nearbyint(100 * (2.0 * matches / static_cast<double>(a.size() + b.size())));
}

Text without_leading_newlines(Text text) {
  text.remove_prefix(std::min(text.find_first_not_of(U'\n'), text.size()));
  return text;
}

/// The first line without signs of Markdown or a comment; empty without such a line.
Text code_line(Text text) {
  for (Text line : python::split(without_leading_newlines(text), U'\n'))
    if (line.find(U'`') == Text::npos && line.find(U'#') == Text::npos && line.find(U"//") == Text::npos)
      return line;
  return {};
}

double code_sim(Text prediction, Text answer) { return ratio_percent(code_line(prediction), answer) / 100; }

double exact_match(Text prediction, Text answer) {
  return python::strip(prediction) == python::strip(answer) ? 1 : 0;
}

// ---- classification ----

double classification(Text prediction, Text answer, std::span<const std::u32string> classes) {
  Texts named;
  for (const std::u32string& name : classes)
    if (prediction.find(name) != Text::npos) named.push_back(name);
  // Classes within the right one's name do not count against it. Removing one while walking over the list
  // passes over the next, as in LongBench.
  for (size_t i = 0; i < named.size(); ++i) {
    const Text name = named[i];
    if (name != answer && answer.find(name) != Text::npos)
      named.erase(std::find(named.begin(), named.end(), name));
  }
  const bool right = std::find(named.begin(), named.end(), answer) != named.end();
  return right ? 1.0 / static_cast<double>(named.size()) : 0;
}

// ---- retrieval, count ----

/// Runs of decimal digits, of any script.
Texts numbers(Text text) {
  Texts found;
  for (size_t at = 0; at < text.size(); ++at) {
    const size_t begin = at;
    while (at < text.size() && python::is_digit(text[at])) ++at;
    if (at > begin) found.push_back(text.substr(begin, at - begin));
  }
  return found;
}

double share_of_numbers(Text prediction, Text number) {
  const Texts found = numbers(prediction);
  if (found.empty()) return 0;
  return static_cast<double>(std::count(found.begin(), found.end(), number)) /
         static_cast<double>(found.size());
}

Text paragraph_word(Metric metric) { return metric == Metric::kRetrieval ? U"Paragraph " : U"\u6BB5\u843D"; }

/// The first number behind the word for a paragraph; empty: none.
Text paragraph_number(Text answer, Text word) {
  for (size_t at = answer.find(word); at != Text::npos; at = answer.find(word, at + 1)) {
    const Text rest = answer.substr(at + word.size());
    if (!rest.empty() && python::is_digit(rest[0])) return numbers(rest)[0];
  }
  return {};
}

double retrieval(Text prediction, Text answer, Text word) {
  const Text number = paragraph_number(answer, word);
  return number.empty() ? 0 : share_of_numbers(prediction, number);
}

}  // namespace

std::string_view metric_name(Metric metric) { return kMetricNames[static_cast<size_t>(metric)]; }

Result<Metric> parse_metric(std::string_view name) {
  for (size_t i = 0; i < std::size(kMetricNames); ++i)
    if (kMetricNames[i] == name) return static_cast<Metric>(i);
  return error(Code::kInvalidArgument, "unknown metric '{}'; expected one of {}", name,
               fmt::join(kMetricNames, ", "));
}

bool needs_words(Metric metric) { return metric == Metric::kQaF1Zh || metric == Metric::kRougeLZh; }

double score(Metric metric, std::string_view prediction, std::span<const std::string> answers,
             const MetricInputs& inputs) {
  std::u32string predicted = decode(prediction);
  std::vector<std::u32string> classes;
  if (metric == Metric::kClassification)
    for (const std::string& name : inputs.classes) classes.push_back(decode(name));
  double best = 0;
  for (const std::string& bytes : answers) {
    std::u32string answer = decode(bytes);
    double one = 0;
    switch (metric) {
      case Metric::kQaF1:
        one = qa_f1(predicted, answer);
        break;
      case Metric::kRougeL:
        one = rouge_l(predicted, answer);
        break;
      case Metric::kCodeSim:
        one = code_sim(predicted, answer);
        break;
      case Metric::kExactMatch:
        one = exact_match(predicted, answer);
        break;
      case Metric::kClassification:
        one = classification(predicted, answer, classes);
        break;
      case Metric::kRetrieval:
      case Metric::kRetrievalZh:
        one = retrieval(predicted, answer, paragraph_word(metric));
        break;
      case Metric::kCount:
        one = share_of_numbers(predicted, answer);
        break;
      case Metric::kQaF1Zh:
        one = qa_f1_zh(predicted, answer, *inputs.words);
        break;
      case Metric::kRougeLZh:
        one = rouge_l_zh(predicted, answer, *inputs.words);
        break;
    }
    best = std::max(best, one);
  }
  return best;
}

Status check_answers(Metric metric, std::span<const std::string> answers,
                     std::span<const std::string> classes) {
  if (metric == Metric::kClassification && classes.empty())
    return error(Code::kInvalidArgument,
                 "all_classes: found none, expected the names of all classes: 'classification' compares with "
                 "them");
  if (metric == Metric::kRetrieval || metric == Metric::kRetrievalZh) {
    const std::string_view example = metric == Metric::kRetrieval ? "Paragraph 7" : "段落7";
    for (size_t i = 0; i < answers.size(); ++i)
      if (paragraph_number(decode(answers[i]), paragraph_word(metric)).empty())
        return error(Code::kInvalidArgument,
                     "answers[{}]: found '{:.60}', expected one like '{}': '{}' compares numbers", i,
                     answers[i], example, metric_name(metric));
  }
  return ok_status();
}

std::string_view first_line(std::string_view text) {
  text.remove_prefix(std::min(text.find_first_not_of('\n'), text.size()));
  return text.substr(0, text.find('\n'));
}

double points(std::span<const double> scores) {
  if (scores.empty()) return std::numeric_limits<double>::quiet_NaN();
  double total = 0;
  for (double s : scores) total += s;
  return round_points(100 * total / static_cast<double>(scores.size()));
}

double round_points(double value) {
  char text[400];  // the longest double has 309 digits before the point
  auto end = std::to_chars(text, text + sizeof text, value, std::chars_format::fixed, 2).ptr;
  double rounded = value;
  std::from_chars(text, end, rounded);
  return rounded;
}

}  // namespace ds
