#include "profiler/jieba.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>

#include "profiler/json_lines.h"
#include "profiler/python_text_internal.h"
#include "support/file.h"
#include "support/hash.h"
#include "support/json.h"

namespace ds {
namespace {

using Text = std::u32string_view;

constexpr const char* kDebianFolder = "/usr/lib/python3/dist-packages/jieba";
/// What the package takes for the logarithm of 0.
constexpr double kImpossible = -3.14e100;
constexpr std::string_view kStateNames = "BEMS";

bool is_ascii_word(char32_t c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}
bool is_han(char32_t c) { return c >= 0x4E00 && c <= 0x9FD5; }
/// Characters of blocks that are cut by the dictionary.
bool in_block(char32_t c) {
  constexpr Text kMarks = U"+#&._%-";
  return is_han(c) || is_ascii_word(c) || kMarks.find(c) != Text::npos;
}

/// How far characters of one kind go.
template <class Is>
size_t run_of(Text text, size_t at, Is is) {
  size_t end = at;
  while (end < text.size() && is(text[end])) ++end;
  return end;
}

/// Ends of letters and digits with what may follow: a fraction, then a percent sign.
size_t ascii_word_end(Text text, size_t at) {
  size_t end = run_of(text, at, is_ascii_word);
  auto is_digit = [](char32_t c) { return c >= '0' && c <= '9'; };
  if (end < text.size() && text[end] == '.') {
    size_t fraction = run_of(text, end + 1, is_digit);
    if (fraction > end + 1) end = fraction;
  }
  return end < text.size() && text[end] == '%' ? end + 1 : end;
}

/// The literal dictionary of a Python file "P={'B': {'\u4e00': -3.65, ...}}", read as JSON.
Result<nlohmann::json> read_table(const std::string& path, std::string& all) {
  DS_ASSIGN(std::string text, read_text_file(path));
  all += text;
  size_t begin = text.find('{'), end = text.rfind('}');
  if (begin == std::string::npos || end == std::string::npos || end < begin)
    return error(Code::kCorrupt, "'{}': found no table; expected P={{'B': ...}}, as in jieba 0.42.1", path);
  text = text.substr(begin, end + 1 - begin);
  std::replace(text.begin(), text.end(), '\'', '"');
  return parse_json(text, path);
}

Result<double> read_number(const nlohmann::json& value, const std::string& path) {
  if (!value.is_number())
    return error(Code::kCorrupt, "'{}': found {:.40}, expected a logarithm of a probability", path,
                 value.dump());
  return value.get<double>();
}

}  // namespace

std::string Jieba::find_folder(const std::string& folder) {
  if (!folder.empty()) return folder;
  const char* set = std::getenv("DROIDSPEAK_JIEBA");
  return set != nullptr && *set != '\0' ? set : kDebianFolder;
}

Result<std::shared_ptr<const Jieba>> Jieba::load(const std::string& folder) {
  auto jieba = std::make_shared<Jieba>();
  const std::string path = folder + "/dict.txt";
  auto file = read_text_file(path, int64_t{1} << 30);
  if (!file.ok())
    return error(file.status().code(),
                 "{}\nscores of Chinese answers need the dictionary of the Python package jieba 0.42.1: "
                 "install Debian's python3-jieba, or unpack PyPI's jieba and give its folder, with dict.txt "
                 "and finalseg/, by --jieba or $DROIDSPEAK_JIEBA",
                 file.status().message());
  std::string all = std::move(*file);
  DS_TRY(jieba->read_dictionary(path, all));
  DS_TRY(jieba->read_model(folder + "/finalseg", all));
  jieba->sha256_ = sha256_hex(all);
  return std::shared_ptr<const Jieba>(std::move(jieba));
}

Status Jieba::read_dictionary(const std::string& path, std::string_view text) {
  int64_t total = 0;
  DS_TRY(for_each_line(text, [&](std::string_view line, int64_t number) -> Status {
    constexpr std::string_view kSpaces = " \t\r\f\v";
    line.remove_prefix(std::min(line.find_first_not_of(kSpaces), line.size()));
    line = line.substr(0, line.find_last_not_of(kSpaces) + 1);
    const size_t space = line.find(' ');
    const std::string_view digits =
        space == std::string_view::npos ? "" : line.substr(space + 1, line.find(' ', space + 1) - space - 1);
    int64_t count = 0;
    auto [end, failure] = std::from_chars(digits.data(), digits.data() + digits.size(), count);
    if (digits.empty() || failure != std::errc() || end != digits.data() + digits.size() || count < 0)
      return error(Code::kCorrupt, "{}:{}: found '{:.60}', expected a word and how often it occurs", path,
                   number, line);
    const std::u32string word = python::decode(line.substr(0, space));
    frequency_[word] = count;
    total += count;
    for (size_t n = 1; n < word.size(); ++n) frequency_.try_emplace(word.substr(0, n), 0);
    return ok_status();
  }));
  if (total < 1) return error(Code::kCorrupt, "'{}': no word occurs in it", path);
  log_total_ = std::log(static_cast<double>(total));
  return ok_status();
}

Status Jieba::read_model(const std::string& folder, std::string& all) {
  auto state_of = [](std::string_view name) -> size_t {
    return name.size() == 1 ? kStateNames.find(name[0]) : std::string_view::npos;
  };
  auto by_state = [&](const std::string& path, const nlohmann::json& table, auto take) -> Status {
    if (!table.is_object()) return error(Code::kCorrupt, "'{}': expected a table by state", path);
    for (const auto& [name, value] : table.items()) {
      const size_t state = state_of(name);
      if (state == std::string_view::npos)
        return error(Code::kCorrupt, "'{}': found state '{}', expected B, E, M or S", path, name);
      DS_TRY(take(state, value));
    }
    return ok_status();
  };
  start_.fill(kImpossible);
  for (auto& row : transition_) row.fill(kImpossible);
  std::string path = folder + "/prob_start.py";
  DS_ASSIGN(nlohmann::json start, read_table(path, all));
  DS_TRY(by_state(path, start, [&](size_t state, const nlohmann::json& value) -> Status {
    DS_ASSIGN(start_[state], read_number(value, path));
    return ok_status();
  }));
  path = folder + "/prob_trans.py";
  DS_ASSIGN(nlohmann::json transition, read_table(path, all));
  DS_TRY(by_state(path, transition, [&](size_t from, const nlohmann::json& row) {
    return by_state(path, row, [&](size_t to, const nlohmann::json& value) -> Status {
      DS_ASSIGN(transition_[from][to], read_number(value, path));
      return ok_status();
    });
  }));
  path = folder + "/prob_emit.py";
  DS_ASSIGN(nlohmann::json emission, read_table(path, all));
  return by_state(path, emission, [&](size_t state, const nlohmann::json& row) -> Status {
    if (!row.is_object()) return error(Code::kCorrupt, "'{}': expected a table by character", path);
    for (const auto& [character, value] : row.items()) {
      const std::u32string text = python::decode(character);
      if (text.size() != 1)
        return error(Code::kCorrupt, "'{}': found '{}', expected one character", path, character);
      auto [at, fresh] = emission_.try_emplace(text[0]);
      if (fresh) at->second.fill(kImpossible);
      DS_ASSIGN(at->second[state], read_number(value, path));
    }
    return ok_status();
  });
}

int64_t Jieba::frequency(Text word) const {
  auto at = frequency_.find(word);
  return at == frequency_.end() ? 0 : at->second;
}

std::vector<Text> Jieba::cut(Text text) const {
  Words words;
  for (size_t at = 0; at < text.size();) {
    if (size_t end = run_of(text, at, in_block); end > at) {
      cut_block(text.substr(at, end - at), words);
      at = end;
      continue;
    }
    const size_t size = text.substr(at).starts_with(U"\r\n") ? 2 : 1;
    words.push_back(text.substr(at, size));
    at += size;
  }
  return words;
}

void Jieba::cut_block(Text block, Words& words) const {
  // From the end: the most probable words from each character on, and the last character of the first of
  // them. Of two that are equally probable the longer first word is taken.
  const size_t n = block.size();
  std::vector<double> best(n + 1);
  std::vector<size_t> last(n);
  for (size_t at = n; at-- > 0;) {
    bool any = false;
    auto consider = [&](size_t end, int64_t count) {
      double value = std::log(static_cast<double>(std::max<int64_t>(count, 1))) - log_total_ + best[end + 1];
      if (any && value < best[at]) return;
      any = true;
      best[at] = value;
      last[at] = end;
    };
    for (size_t end = at; end < n; ++end) {
      auto known = frequency_.find(block.substr(at, end + 1 - at));
      if (known == frequency_.end()) break;
      if (known->second > 0) consider(end, known->second);
    }
    if (!any) consider(at, frequency(block.substr(at, 1)));
  }
  // Characters that are no part of a longer word are looked at together.
  size_t single = 0;
  for (size_t at = 0; at < n; at = last[at] + 1) {
    if (last[at] == at) {
      ++single;
      continue;
    }
    cut_unknown(block.substr(at - single, single), words);
    single = 0;
    words.push_back(block.substr(at, last[at] + 1 - at));
  }
  cut_unknown(block.substr(n - single), words);
}

void Jieba::cut_unknown(Text text, Words& words) const {
  if (text.size() < 2 || frequency(text) > 0) {
    for (size_t i = 0; i < text.size(); ++i) words.push_back(text.substr(i, 1));
    return;
  }
  for (size_t at = 0; at < text.size();) {
    if (size_t end = run_of(text, at, is_han); end > at) {
      cut_by_model(text.substr(at, end - at), words);
      at = end;
      continue;
    }
    // Letters and digits are words; the marks between them stay together.
    size_t end = is_ascii_word(text[at])
                     ? ascii_word_end(text, at)
                     : run_of(text, at, [](char32_t c) { return !is_han(c) && !is_ascii_word(c); });
    words.push_back(text.substr(at, end - at));
    at = end;
  }
}

/// Viterbi's algorithm over the states of the characters.
void Jieba::cut_by_model(Text text, Words& words) const {
  // Which states may come before each; the order decides nothing, the letter does.
  constexpr std::array<std::array<State, 2>, kStates> kBefore = {
      {{kEnd, kSingle}, {kBegin, kMiddle}, {kBegin, kMiddle}, {kEnd, kSingle}}};
  static constexpr std::array<double, kStates> kUnknown = {kImpossible, kImpossible, kImpossible,
                                                           kImpossible};
  auto emission = [&](char32_t c) -> const std::array<double, kStates>& {
    auto at = emission_.find(c);
    return at == emission_.end() ? kUnknown : at->second;
  };
  std::vector<std::array<State, kStates>> from(text.size());
  std::array<double, kStates> value, next;
  for (size_t s = 0; s < kStates; ++s) value[s] = start_[s] + emission(text[0])[s];
  for (size_t i = 1; i < text.size(); ++i) {
    const std::array<double, kStates>& emitted = emission(text[i]);
    for (size_t s = 0; s < kStates; ++s) {
      const auto [low, high] = kBefore[s];
      const double by_low = value[low] + transition_[low][s] + emitted[s],
                   by_high = value[high] + transition_[high][s] + emitted[s];
      from[i][s] = by_low > by_high ? low : high;
      next[s] = std::max(by_low, by_high);
    }
    value = next;
  }
  std::vector<State> states(text.size());
  State state = value[kEnd] > value[kSingle] ? kEnd : kSingle;
  for (size_t i = text.size(); i-- > 0;) {
    states[i] = state;
    state = from[i][state];
  }
  size_t begin = 0, done = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    if (states[i] == kBegin) begin = i;
    if (states[i] == kSingle) begin = i;
    if (states[i] != kEnd && states[i] != kSingle) continue;
    words.push_back(text.substr(begin, i + 1 - begin));
    done = i + 1;
  }
  if (done < text.size()) words.push_back(text.substr(done));
}

}  // namespace ds
