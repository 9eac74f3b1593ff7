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

/// Safe to use from several threads at once.
class Tokenizer {
 public:
  /// Reads `folder`/tokenizer.json, which says all that matters; tokenizer_config.json is not needed. Done:
  /// - model: BPE with merges in both notations, ignore_merges, byte_fallback, unk_token, fuse_unk;
  /// - normalizers: Prepend, Replace, NFC, NFD, NFKC, NFKD, Strip, Sequence;
  /// - pre-tokenizers: ByteLevel, Split, Metaspace, Digits, Whitespace, WhitespaceSplit, Sequence;
  /// - post-processors: TemplateProcessing (single), ByteLevel, Sequence;
  /// - decoders: ByteLevel, Metaspace, Replace, ByteFallback, Fuse, Strip, Sequence;
  /// - added tokens, special and not, with lstrip, rstrip, single_word and normalized.
  /// Everything else is refused by name (kUnsupported). "truncation" and "padding" are not applied: a text is
  /// never cut. Errors name file and key: kNotFound, kIo, kCorrupt, kInvalidArgument, kUnsupported.
  static Result<Tokenizer> load(const std::string& folder);
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  /// UTF-8 text to ids; `add_special` runs the template (BOS and the like). Special tokens written in the
  /// text become their ids, whatever `add_special` says. kInvalidArgument: text is not UTF-8.
  Result<std::vector<int32_t>> encode(std::string_view text, bool add_special) const;
  /// Ids to text; ids outside the vocabulary are kInvalidArgument. Broken UTF-8 becomes U+FFFD, as in the
  /// package.
  Result<std::string> decode(std::span<const int32_t> ids, bool skip_special) const;

  /// What the template puts before a text when `add_special` is set: BOS, nothing, rarely more.
  std::span<const int32_t> prefix() const;

  int64_t vocab_size() const;  // number of tokens, with added tokens; ids may have gaps
  /// Ids of tokens by content ("<s>"), -1: none.
  int32_t token_id(std::string_view content) const;

 private:
  friend class StreamingDecoder;
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

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
