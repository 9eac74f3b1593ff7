// Words of Chinese text as the Python package jieba 0.42.1 cuts them (jieba.cut(text): its accurate mode,
// with the hidden Markov model for what its dictionary does not know), which LongBench's Chinese scores
// depend on.
//
// Dictionary and model are read from the package's own files on this machine; its code is not run.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "support/status.h"

namespace ds {

class Jieba {
 public:
  /// Reads dict.txt and finalseg/prob_{start,trans,emit}.py of the package's folder. kNotFound says what to
  /// install or to give; kCorrupt names file and line.
  static Result<std::shared_ptr<const Jieba>> load(const std::string& folder);
  /// `folder` where it is given, else $DROIDSPEAK_JIEBA, else where Debian's python3-jieba puts it.
  static std::string find_folder(const std::string& folder);

  /// All of the text, in words, white space and single characters. The results point into `text`.
  std::vector<std::u32string_view> cut(std::u32string_view text) const;

  /// SHA-256 over the files that were read: scores are comparable where it is the same.
  const std::string& sha256() const { return sha256_; }

 private:
  using Text = std::u32string_view;
  using Words = std::vector<Text>;
  struct Hash {
    using is_transparent = void;
    size_t operator()(Text text) const { return std::hash<Text>()(text); }
  };
  /// States of the model, in the order of their letters, which decides between equal probabilities: a word's
  /// begin, end and middle, and a word of one character.
  enum State : uint8_t { kBegin, kEnd, kMiddle, kSingle, kStates };

  Status read_dictionary(const std::string& path, std::string_view text);
  Status read_model(const std::string& folder, std::string& all);
  /// The dictionary's words with the highest probability together; what it does not know goes to the model.
  void cut_block(Text block, Words& words) const;
  void cut_unknown(Text text, Words& words) const;
  void cut_by_model(Text text, Words& words) const;
  int64_t frequency(Text word) const;

  /// By word, and 0 by what is only the beginning of words.
  std::unordered_map<std::u32string, int64_t, Hash, std::equal_to<>> frequency_;
  double log_total_ = 0;
  std::array<double, kStates> start_ = {};
  std::array<std::array<double, kStates>, kStates> transition_ = {};  // [from][to]
  std::unordered_map<char32_t, std::array<double, kStates>> emission_;
  std::string sha256_;
};

}  // namespace ds
