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
  bool live = false;   // it is still being written
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
  const auto blocks = static_cast<int64_t>(whole.names.size()), n = static_cast<int64_t>(tokens.size());

  // By the block that they are taken up to. An entry that agrees there agrees before as well.
  std::vector<std::vector<Agreeing>> candidates(static_cast<size_t>(blocks) + 1);
  const auto look_up = [&]() -> Status {
    DS_ASSIGN(const Found found, store.find(keys, whole.names));
    if (chain.why.ok()) chain.why = found.unasked;
    for (auto& of_block : candidates) std::erase_if(of_block, [](const Agreeing& c) { return !c.live; });
    for (int64_t b = 1; b <= blocks && static_cast<size_t>(b) <= found.names.size(); ++b)
      for (const ObjectRef& ref : found.names[static_cast<size_t>(b - 1)])
        if (ref.index >= 0 && ref.index < b)
          candidates[static_cast<size_t>(b)].push_back({ref, b - 1 - ref.index});
    for (const auto& ref : found.keys)
      if (ref) candidates[static_cast<size_t>(blocks)].push_back({*ref, 0, true});
    return ok_status();
  };
  DS_TRY(look_up());

  // Entries that are whole, and with `live` those that are not: by key, and which of the two it is.
  std::set<std::pair<std::string, bool>> unusable;
  std::map<std::pair<std::string, bool>, EntryReader> opened;
  bool live = false;   // those that are not have been asked for,
  bool ended = false;  // one of them may have become whole since the look-up,
  bool again = false;  // which was made once more
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
            unusable.contains({c.ref.key, c.live}))
          continue;
        links[static_cast<size_t>(b)] = before + 1;
        by[static_cast<size_t>(b)] = &c;
        longest = b;
      }
    bool good = true;
    for (int64_t b = longest; b > 0 && good; b = by[static_cast<size_t>(b)]->begin) {
      const Agreeing& c = *by[static_cast<size_t>(b)];
      if (opened.contains({c.ref.key, c.live})) continue;
      const std::string& name = whole.names[static_cast<size_t>(b - 1)];
      auto entry = c.live    ? EntryReader::open_live(store, c.ref, name, query.shape)
                   : c.whole ? EntryReader::open(store, whole, query.shape)
                             : EntryReader::open_named(store, c.ref, name, query.shape);
      Status status = entry.status();
      if (status.ok() && entry->header().identity.first != c.begin * kChecksumRows)
        status = error(Code::kMismatch, "entry '{}' in '{}': its first token is {}, expected {}", c.ref.key,
                       store.url(), entry->header().identity.first, c.begin * kChecksumRows);
      if (status.ok() && query.check) status = query.check(*entry);
      if (status.ok()) {
        opened.emplace(std::pair(c.ref.key, c.live), std::move(*entry));
        continue;
      }
      ended = ended || (c.live && status.code() == Code::kNotFound);
      if (chain.why.ok()) chain.why = std::move(status);
      unusable.emplace(c.ref.key, c.live);
      good = false;
    }
    if (!good) continue;
    if (query.live && !live && longest < blocks) {
      live = true;
      // Only what goes further is worth waiting for.
      DS_ASSIGN(const auto writing,
                store.find_live(std::span(whole.names).subspan(static_cast<size_t>(longest)),
                                tenant_tag(query.salt)));
      bool any = false;
      for (int64_t b = longest + 1; b <= blocks && static_cast<size_t>(b - longest) <= writing.size(); ++b)
        for (const ObjectRef& ref : writing[static_cast<size_t>(b - longest - 1)])
          if (ref.index >= 0 && ref.index < b) {
            candidates[static_cast<size_t>(b)].push_back({ref, b - 1 - ref.index, false, true});
            any = true;
          }
      ended = ended || store.live_ends_unseen();
      if (any) continue;
    }
    if (ended && !again && longest < blocks) {
      again = true;
      DS_TRY(look_up());
      continue;
    }
    for (int64_t b = longest; b > 0; b = by[static_cast<size_t>(b)]->begin) {
      const Agreeing& c = *by[static_cast<size_t>(b)];
      const int64_t begin = c.begin * kChecksumRows;
      chain.links.push_back(
          {c.ref.key, begin, std::min(b * kChecksumRows, n), std::move(opened.at({c.ref.key, c.live}))});
      if (!c.live) store.touch(c.ref.key);
    }
    std::reverse(chain.links.begin(), chain.links.end());
    if (chain.links.empty() && chain.why.ok())
      chain.why = error(Code::kNotFound, "looking for the sender's entry: no object '{}' in store '{}'",
                        keys[0], store.url());
    if (chain.tokens() < n && chain.why.ok())
      chain.why = error(Code::kNotFound,
                        "store '{}' has none of the sender's entries for what comes from token {} on",
                        store.url(), chain.tokens());
    if (chain.tokens() == n) chain.why = ok_status();
    return chain;
  }
}

}  // namespace ds
