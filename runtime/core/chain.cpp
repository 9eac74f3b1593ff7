#include "runtime/core/chain.h"

#include <algorithm>
#include <map>
#include <set>

namespace ds {
namespace {

/// An entry that covers the tokens up to a block's end.
struct Agreeing {
  ObjectRef ref;
  int64_t begin = 0;   // its first block
  bool whole = false;  // found by the key of all tokens
};

}  // namespace

Result<Chain> find_chain(Store& store, std::span<const int32_t> tokens, const ChainQuery& query) {
  Chain chain;
  if (tokens.empty()) {
    chain.why = error(Code::kNotFound, "looking for the sender's entry: the context has no tokens");
    return chain;
  }
  const EntryIdentity whole = entry_identity(query.sender, tokens, 0, query.salt, query.dtype);
  const std::string keys[] = {whole.key(), whole.old_key()};
  DS_ASSIGN(const Found found, store.find(keys, whole.names));
  const auto blocks = static_cast<int64_t>(whole.names.size()), n = static_cast<int64_t>(tokens.size());

  // By the block that they are taken up to. An entry that agrees there agrees before as well.
  std::vector<std::vector<Agreeing>> candidates(static_cast<size_t>(blocks) + 1);
  for (int64_t b = 1; b <= blocks && static_cast<size_t>(b) <= found.names.size(); ++b)
    for (const ObjectRef& ref : found.names[static_cast<size_t>(b - 1)])
      if (ref.index >= 0 && ref.index < b)
        candidates[static_cast<size_t>(b)].push_back({ref, b - 1 - ref.index});
  for (const auto& ref : found.keys)
    if (ref) candidates[static_cast<size_t>(blocks)].push_back({*ref, 0, true});

  std::set<std::string> unusable;
  std::map<std::string, EntryReader> opened;
  for (;;) {
    // Fewest entries up to each block's end.
    std::vector<const Agreeing*> by(candidates.size(), nullptr);
    std::vector<int64_t> links(candidates.size(), INT64_MAX);
    links[0] = 0;
    int64_t longest = 0;
    for (int64_t b = 1; b <= blocks; ++b)
      for (const Agreeing& c : candidates[static_cast<size_t>(b)]) {
        const int64_t before = links[static_cast<size_t>(c.begin)];
        if (before == INT64_MAX || before + 1 >= links[static_cast<size_t>(b)] ||
            unusable.contains(c.ref.key))
          continue;
        links[static_cast<size_t>(b)] = before + 1;
        by[static_cast<size_t>(b)] = &c;
        longest = b;
      }
    bool good = true;
    for (int64_t b = longest; b > 0 && good; b = by[static_cast<size_t>(b)]->begin) {
      const Agreeing& c = *by[static_cast<size_t>(b)];
      if (opened.contains(c.ref.key)) continue;
      auto entry = c.whole ? EntryReader::open(store, whole, query.shape)
                           : EntryReader::open_named(store, c.ref, whole.names[static_cast<size_t>(b - 1)],
                                                     query.shape);
      Status status = entry.status();
      if (status.ok() && entry->header().identity.first != c.begin * kChecksumRows)
        status = error(Code::kMismatch, "entry '{}' in '{}': its first token is {}, expected {}", c.ref.key,
                       store.url(), entry->header().identity.first, c.begin * kChecksumRows);
      if (status.ok() && query.check) status = query.check(*entry);
      if (status.ok()) {
        opened.emplace(c.ref.key, std::move(*entry));
        continue;
      }
      if (chain.why.ok()) chain.why = std::move(status);
      unusable.insert(c.ref.key);
      good = false;
    }
    if (!good) continue;
    for (int64_t b = longest; b > 0; b = by[static_cast<size_t>(b)]->begin) {
      const Agreeing& c = *by[static_cast<size_t>(b)];
      const int64_t begin = c.begin * kChecksumRows;
      chain.links.push_back(
          {c.ref.key, begin, std::min(b * kChecksumRows, n), std::move(opened.at(c.ref.key))});
      store.touch(c.ref.key);
    }
    std::reverse(chain.links.begin(), chain.links.end());
    if (chain.links.empty() && chain.why.ok())
      chain.why = error(Code::kNotFound, "looking for the sender's entry: no object '{}' in store '{}'",
                        keys[0], store.url());
    return chain;
  }
}

}  // namespace ds
