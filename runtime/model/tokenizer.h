// tokenizer.json as the Hugging Face package `tokenizers` writes it: BPE, byte-level or SentencePiece-style
// with byte fall-back. Encode and decode equal the package's.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "support/status.h"

namespace ds {

/// kInvalidArgument with the place of the first byte that is not.
Status check_utf8(std::string_view text);

struct IdsComparison;

/// Safe to use from several threads at once.
class Tokenizer {
 public:
  /// Reads `folder`/tokenizer.json, and of the files beside it what decides ids. Done of tokenizer.json:
  /// - model: BPE with merges in both notations, ignore_merges, byte_fallback, unk_token, fuse_unk;
  /// - normalizers: Prepend, Replace, NFC, NFD, NFKC, NFKD, Strip, Sequence;
  /// - pre-tokenizers: ByteLevel, Split, Metaspace, Digits, Whitespace, WhitespaceSplit, Sequence;
  /// - post-processors: TemplateProcessing (single), ByteLevel, Sequence;
  /// - decoders: ByteLevel, Metaspace, Replace, ByteFallback, Fuse, Strip, Sequence;
  /// - added tokens, special and not, with lstrip, rstrip, single_word and normalized.
  /// Everything else is refused by name (kUnsupported). "truncation" and "padding" are not applied: a text is
  /// never cut.
  ///
  /// Added tokens beside it, as PreTrainedTokenizerFast of transformers 4 and 5 reads them:
  /// - "added_tokens_decoder" of tokenizer_config.json, or else, where there is none, added_tokens.json and
  ///   special_tokens_map.json; then the special tokens that are named anywhere ("pad_token", "extra_special_
  ///   tokens", ..) and that no list has.
  /// - A token that tokenizer.json has already gets the flags stated beside it (those of added_tokens.json
  ///   only under another id) and stays special. Its id is tokenizer.json's.
  /// - A new one gets the next free id, in the order of the ids stated, which are not looked at otherwise.
  ///
  /// "add_bos_token" and "add_eos_token" of tokenizer_config.json are obeyed where they are true and
  /// tokenizer.json's template puts nothing before the text, or nothing behind it: so did transformers 4 with
  /// LlamaTokenizerFast, with which such models were trained, and so does llama.cpp; transformers 5 ignores
  /// both. What "bos_token" names is put there; null names nothing.
  ///
  /// Errors name file and key: kNotFound, kIo, kCorrupt, kInvalidArgument, kUnsupported.
  static Result<Tokenizer> load(const std::string& folder);
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  /// UTF-8 text to ids; `add_special` runs the template (BOS and the like). Special tokens written in the
  /// text become their ids, whatever `add_special` says. kInvalidArgument: text is not UTF-8.
  Result<std::vector<int32_t>> encode(std::string_view text, bool add_special) const;
  /// Ids to text. An id that no token has (models have more rows than their tokenizer has tokens) is nothing,
  /// as in the package; so are negative ones. Broken UTF-8 becomes U+FFFD.
  Result<std::string> decode(std::span<const int32_t> ids, bool skip_special) const;

  /// What the template puts before a text when `add_special` is set: BOS, nothing, rarely more.
  std::span<const int32_t> prefix() const;

  int64_t vocab_size() const;  // number of tokens, with added tokens; ids may have gaps
  /// Ids of tokens by content ("<s>"), -1: none.
  int32_t token_id(std::string_view content) const;

 private:
  friend class StreamingDecoder;
  friend IdsComparison compare_ids(const Tokenizer&, const std::string&, const Tokenizer&,
                                   const std::string&);
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// Two tokenizers by what decides ids: vocabulary, merges, normalizer, pre-tokenizer, what stands before a
/// text, added tokens (but for what is special, which decides only what is shown). Padding, truncation,
/// decoders, order and notation of a file decide nothing.
struct IdsComparison {
  struct Token {
    int32_t id = 0;
    std::string content;
  };
  std::string difference;             // the first thing that differs, for people; empty: nothing
  std::vector<Token> only_a, only_b;  // with ids that the other does not know, by id
  int32_t end_a = 0, end_b = 0;       // above the largest id that each knows
  /// Every text without the tokens that only one knows has the same ids.
  bool agree() const { return difference.empty(); }
  /// Every text has.
  bool same() const { return agree() && only_a.empty() && only_b.empty(); }
};
/// The names stand in `difference`.
IdsComparison compare_ids(const Tokenizer& a, const std::string& name_a, const Tokenizer& b,
                          const std::string& name_b);

/// The one rule for a pair: kMismatch, with the first thing that differs, where sender and receiver do not
/// agree on the ids that both know. Else the id from which on only the receiver knows any (tokens that its
/// training has added); 0: none. Requests are held to more: entries are found by the ids of their text.
Result<int64_t> check_same_ids(const Tokenizer& sender, const std::string& sender_name,
                               const Tokenizer& receiver, const std::string& receiver_name);
/// The same of two folders; one without a tokenizer.json has nothing to differ in. Errors: those of
/// Tokenizer::load().
Result<int64_t> check_same_ids(const std::string& sender_folder, const std::string& receiver_folder);

/// Decodes ids as they come, so that text can be printed at once: push() returns what no later id can change
/// (it may be empty), finish() the rest. All that came out, put together, is the decode() of all ids. The
/// tokenizer must outlive the decoder.
class StreamingDecoder {
 public:
  explicit StreamingDecoder(const Tokenizer& tokenizer, bool skip_special = true);
  StreamingDecoder(StreamingDecoder&&) noexcept;
  ~StreamingDecoder();
  Result<std::string> push(int32_t id);
  /// Afterwards the decoder is at its beginning again.
  Result<std::string> finish();

 private:
  struct State;
  const Tokenizer::Impl* tokenizer_;
  bool skip_special_;
  std::unique_ptr<State> state_;
};

}  // namespace ds
