// Which entries of a store agree with a context from its beginning on.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "runtime/store/entry.h"
#include "runtime/store/store.h"
#include "support/status.h"

namespace ds {

struct ChainLink {
  std::string key;
  int64_t begin = 0, end = 0;  // tokens: multiples of kChecksumRows, but the last one's end
  EntryReader entry;
  /// The entry's row that is token `begin`.
  int64_t first_row() const { return begin - entry.header().identity.first; }
};

struct Chain {
  std::vector<ChainLink> links;  // from token 0 on, each where the one before it ends
  /// Why it does not cover all tokens, where it does not: a server of the store that is not there, the first
  /// entry that could not be used, or that there is none. What is another tenant's is not there.
  Status why;

  int64_t tokens() const { return links.empty() ? 0 : links.back().end; }
  /// Whether an entry in it is still being written.
  bool live() const {
    return std::any_of(links.begin(), links.end(), [](const ChainLink& l) { return l.entry.live(); });
  }
};

struct ChainQuery {
  const std::string& sender;  // ModelIdentity::fingerprint
  const Shape& shape;         // the sender's
  const std::string& salt;
  DType dtype = DType::kBF16;
  /// What an entry lacks of what is needed (EntryReader::has()); such a one counts as not there. May be
  /// empty.
  std::function<Status(const EntryReader&)> check = {};
  /// Whether entries that are still being written may stand in it, where those that are whole do not cover
  /// all tokens: in another look-up.
  bool live = false;
};

/// The longest chain for the beginning of `tokens`, and of those as long the one of fewest entries: in one
/// look-up, and one read of each entry that is used. It ends with the tokens, or at a multiple of
/// kChecksumRows. An entry that is damaged, not signed, another's, or gone is left out, and the next best
/// chain taken; where one that is still being written would make it longer (ChainQuery::live), with that, or
/// with what has come of it meanwhile: where it may be whole by now, that is looked up once more.
/// Errors: those of Store::find().
Result<Chain> find_chain(Store& store, std::span<const int32_t> tokens, const ChainQuery& query);

}  // namespace ds
