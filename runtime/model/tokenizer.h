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

class Tokenizer {
 public:
  /// Reads `folder`/tokenizer.json and tokenizer_config.json (may be absent). Normalizers, pre-tokenizers,
  /// models, post-processors and decoders that are not done are refused by name (kUnsupported).
  static Result<Tokenizer> load(const std::string& folder);
  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  /// UTF-8 text to ids; `add_special` runs the template (BOS and the like). kInvalidArgument: text is not
  /// UTF-8.
  Result<std::vector<int32_t>> encode(std::string_view text, bool add_special) const;
  /// Ids to text; ids outside the vocabulary are kInvalidArgument. Broken UTF-8 becomes U+FFFD, as in the
  /// package.
  Result<std::string> decode(std::span<const int32_t> ids, bool skip_special) const;

  int64_t vocab_size() const;  // with added tokens
  /// Ids of tokens by content ("<s>"), -1: none.
  int32_t token_id(std::string_view content) const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// Decodes a growing list of ids so that text can be printed as it comes: push() returns the new complete
/// characters.
class StreamingDecoder {
 public:
  explicit StreamingDecoder(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}
  Result<std::string> push(int32_t id);
  Result<std::string> finish();

 private:
  const Tokenizer& tokenizer_;
  std::vector<int32_t> ids_;
  size_t printed_ = 0;
};

}  // namespace ds
