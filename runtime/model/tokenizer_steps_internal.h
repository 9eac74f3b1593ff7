// The steps of tokenizer.json around the model: normalizers and pre-tokenizers before it, decoders after it.
#pragma once

#include <array>
#include <deque>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/model/tokenizer_regex_internal.h"
#include "runtime/model/tokenizer_unicode_internal.h"
#include "support/json.h"
#include "support/status.h"

namespace ds {

/// GPT-2's printable stand-in for each byte: "!" is "!", a space is "Ġ".
std::string_view byte_level_char(unsigned char byte);

/// A part of the text on its way to the model. The text is owned by the caller's text or by a TextPool.
struct Piece {
  std::string_view text;
  bool at_start = false;  // begins with the first character of the original text
};

/// Keeps made-up texts alive, at fixed addresses.
class TextPool {
 public:
  std::string& add(std::string text = {}) { return texts_.emplace_back(std::move(text)); }

 private:
  std::deque<std::string> texts_;
};

/// Prepend, Replace, NFC, NFD, NFKC, NFKD, Strip and sequences of them.
class Normalizer {
 public:
  /// `value` is the JSON under "normalizer"; null makes one that does nothing.
  static Result<Normalizer> read(const nlohmann::json& value, const std::string& where);
  bool empty() const { return steps_.empty(); }
  /// Clears `at_start` where what began the text is gone.
  Status apply(std::string& text, bool& at_start) const;
  /// One line per step: the same for two files that ask for the same, however they are written.
  std::vector<std::string> canonical() const;

 private:
  enum class Kind : uint8_t { kPrepend, kReplace, kForm, kStrip };
  struct Step {
    Kind kind = Kind::kPrepend;
    std::string text;
    Pattern pattern;
    unicode::Form form = unicode::Form::kNfc;
    bool left = false, right = false;
  };
  std::vector<Step> steps_;
  static Status read_into(const nlohmann::json& value, const std::string& where, int depth,
                          std::vector<Step>& steps);
};

/// ByteLevel, Split, Metaspace, Digits, Whitespace, WhitespaceSplit and sequences of them.
class PreTokenizer {
 public:
  static Result<PreTokenizer> read(const nlohmann::json& value, const std::string& where);
  /// Splits and rewrites the pieces in place; none of the result is empty.
  Status apply(std::vector<Piece>& pieces, TextPool& pool) const;
  std::vector<std::string> canonical() const;  // as of normalizers

 private:
  enum class Kind : uint8_t { kByteLevel, kSplit, kMetaspace, kDigits, kWhitespace, kWhitespaceSplit };
  enum class Behavior : uint8_t { kIsolated, kRemoved, kMergedWithPrevious, kMergedWithNext, kContiguous };
  enum class Prepend : uint8_t { kFirst, kNever, kAlways };
  struct Step {
    Kind kind = Kind::kSplit;
    Pattern pattern;  // kSplit; kByteLevel and kMetaspace where they split
    bool splits = true;
    Behavior behavior = Behavior::kIsolated;
    bool invert = false;
    bool prefix_space = false;           // kByteLevel
    std::string replacement;             // kMetaspace
    Prepend prepend = Prepend::kAlways;  // kMetaspace
  };
  std::vector<Step> steps_;
  static Status read_into(const nlohmann::json& value, const std::string& where, int depth,
                          std::vector<Step>& steps);
  static Status find(const Step& step, std::string_view text, std::vector<Span>& spans);
  static void arrange(Behavior behavior, std::vector<Span>& spans);
};

/// ByteLevel, Metaspace, Replace, ByteFallback, Fuse, Strip and sequences of them; null joins tokens with
/// spaces.
class Decoder {
 public:
  static Result<Decoder> read(const nlohmann::json& value, const std::string& where);

  /// The state of one decoding; tokens go in one by one, text comes out as soon as nothing later can change
  /// it.
  class Run {
   public:
    explicit Run(const Decoder& decoder) : decoder_(decoder), states_(decoder.steps_.size()) {}
    Status feed(std::string_view token, std::string& out) { return feed(0, token, out); }
    Status finish(std::string& out);

   private:
    struct State {
      std::string held;
      size_t count = 0;
    };
    const Decoder& decoder_;
    std::vector<State> states_;
    Status feed(size_t step, std::string_view token, std::string& out);
    Status flush_bytes(size_t step, std::string& out);
  };

 private:
  enum class Kind : uint8_t { kByteLevel, kMetaspace, kReplace, kByteFallback, kFuse, kStrip, kJoin };
  struct Step {
    Kind kind = Kind::kJoin;
    Pattern pattern;             // kReplace
    std::string content;         // kReplace: what stands in; kMetaspace, kStrip: the character
    bool drop_first = false;     // kMetaspace
    size_t start = 0, stop = 0;  // kStrip
    bool whole = false;          // the input is one token that comes in parts, and this step needs all of it
    bool parts = false;  // the input is one token that comes in parts, and this step takes them one by one
  };
  std::vector<Step> steps_;
  static Status read_into(const nlohmann::json& value, const std::string& where, int depth,
                          std::vector<Step>& steps);
  static Result<std::string> apply(const Step& step, std::string_view token, bool first);
};

}  // namespace ds
