// Finished caches, for requests that begin as an earlier one did.
//
// Tokens are cut into blocks of 64, and a block is known by a hash over it and all before it, so that equal
// hashes are equal beginnings; behind the last whole block tokens are compared. The chain begins with a salt
// that names whose caches these are and how they were made: an approximate cache never answers an exact
// look-up, nor one tenant's another's.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "runtime/engine/kv_arena.h"

namespace ds {

class PrefixCache {
 public:
  static constexpr int64_t kBlock = 64;

  /// The caches of one beginning. As long as somebody holds it, it is not evicted.
  class Node {
   public:
    KvRange& range() const { return *range_; }
    int64_t rows() const { return static_cast<int64_t>(tokens_.size()); }  // that are right

   private:
    friend class PrefixCache;
    std::shared_ptr<KvRange> range_;
    std::string salt_;
    std::vector<int32_t> tokens_;     // of its rows
    std::vector<std::string> chain_;  // by whole block
  };

  struct Hit {
    std::shared_ptr<Node> node;
    int64_t rows = 0;  // below the number of tokens asked for: the last one is computed
  };
  /// The longest beginning of `tokens` that is here, of a whole block at least; counts as used. No node:
  /// none.
  Hit find(const std::string& salt, std::span<const int32_t> tokens);

  /// Keeps `range`, whose rows 0 .. tokens.size() - 1 are the caches of `tokens`; it may go on being written
  /// behind them. nullptr: all whole blocks are here already, or there are none.
  std::shared_ptr<Node> insert(const std::string& salt, std::span<const int32_t> tokens,
                               std::shared_ptr<KvRange> range);
  /// The node's rows are now those of `tokens`; what it held beyond their common beginning is forgotten.
  /// Nobody else reads rows of it behind that beginning.
  void replace(const std::shared_ptr<Node>& node, std::span<const int32_t> tokens);
  /// Whether only the caller holds it.
  static bool sole(const std::shared_ptr<Node>& node) { return node.use_count() == 2; }

  /// Gives up the node that was used longest ago of those that nobody holds; false: there is none.
  bool evict();
  int64_t evictions() const { return evictions_; }
  size_t nodes() const { return nodes_.size(); }
  int64_t bytes() const;

 private:
  static std::vector<std::string> chain(const std::string& salt, std::span<const int32_t> tokens);
  void index(Node& node, size_t from);
  void forget(Node& node, size_t from);

  std::list<std::shared_ptr<Node>> nodes_;  // the one used last first
  std::unordered_map<std::string, std::vector<Node*>> blocks_;
  int64_t evictions_ = 0;
};

}  // namespace ds
