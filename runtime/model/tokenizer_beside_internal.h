// Added tokens, and what the files beside a tokenizer.json say of them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "support/json.h"
#include "support/status.h"

namespace ds {

struct AddedToken {
  std::string content;
  std::string matched;  // what is looked for in the text: the content, normalized where the token is
  std::string decoded;  // what decoding starts from: `matched`, where the token ever was normalized
  bool single_word = false, lstrip = false, rstrip = false, normalized = false, special = false;
  int32_t id = -1;
};

/// What tokenizer_config.json, special_tokens_map.json and added_tokens.json say, as PreTrainedTokenizerFast
/// of transformers 4 and 5 reads them.
struct BesideTokenizer {
  /// To be added in this order, behind those of tokenizer.json; without ids. One that is there already gets
  /// these flags and keeps its id.
  std::vector<AddedToken> tokens;
  std::string bos_token, eos_token;  // empty: none is named
  bool add_bos = false, add_eos = false;
};

/// `own`: the added tokens of tokenizer.json, with ids. None of the files has to be there. Errors name file
/// and key: kIo, kCorrupt, kInvalidArgument, kUnsupported (split_special_tokens).
Result<BesideTokenizer> read_beside(const std::string& folder, const std::vector<AddedToken>& own);

}  // namespace ds
