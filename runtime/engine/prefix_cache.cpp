#include "runtime/engine/prefix_cache.h"

#include <algorithm>

#include "support/hash.h"

namespace ds {

std::vector<std::string> PrefixCache::chain(const std::string& salt, std::span<const int32_t> tokens) {
  std::vector<std::string> hashes;
  hashes.reserve(tokens.size() / kBlock);
  std::string text = sha256_hex(salt);
  for (size_t at = 0; at + kBlock <= tokens.size(); at += kBlock) {
    text.append(reinterpret_cast<const char*>(tokens.data() + at), kBlock * sizeof(int32_t));
    text = sha256_hex(text);
    hashes.push_back(text);
  }
  return hashes;
}

PrefixCache::Hit PrefixCache::find(const std::string& salt, std::span<const int32_t> tokens) {
  Hit hit;
  const std::vector<Node*>* nodes = nullptr;
  // Block by block, not the whole chain first: most look-ups end early.
  std::string text = sha256_hex(salt);
  for (size_t at = 0; at + kBlock < tokens.size(); at += kBlock) {
    text.append(reinterpret_cast<const char*>(tokens.data() + at), kBlock * sizeof(int32_t));
    text = sha256_hex(text);
    const auto found = blocks_.find(text);
    if (found == blocks_.end()) break;
    nodes = &found->second;
    hit.rows += kBlock;
  }
  if (nodes == nullptr) return hit;
  // Of those that have these blocks, the one that goes on longest as the tokens do.
  Node* node = nullptr;
  const auto begin = tokens.begin() + hit.rows, end = tokens.end() - 1;
  int64_t most = -1;
  for (Node* n : *nodes) {
    const int64_t more =
        std::mismatch(begin, end, n->tokens_.begin() + hit.rows, n->tokens_.end()).first - begin;
    if (more <= most) continue;
    most = more;
    node = n;
  }
  hit.rows += most;
  const auto at = std::find_if(nodes_.begin(), nodes_.end(), [&](const auto& n) { return n.get() == node; });
  nodes_.splice(nodes_.begin(), nodes_, at);
  hit.node = nodes_.front();
  return hit;
}

std::shared_ptr<PrefixCache::Node> PrefixCache::insert(const std::string& salt,
                                                       std::span<const int32_t> tokens,
                                                       std::shared_ptr<KvRange> range) {
  auto hashes = chain(salt, tokens);
  if (hashes.empty() || blocks_.contains(hashes.back())) return nullptr;
  auto node = std::make_shared<Node>();
  node->range_ = std::move(range);
  node->tokens_.assign(tokens.begin(), tokens.end());
  node->salt_ = salt;
  node->chain_ = std::move(hashes);
  index(*node, 0);
  nodes_.push_front(node);
  return node;
}

void PrefixCache::replace(const std::shared_ptr<Node>& node, std::span<const int32_t> tokens) {
  auto hashes = chain(node->salt_, tokens);
  const auto common = static_cast<size_t>(
      std::mismatch(hashes.begin(), hashes.end(), node->chain_.begin(), node->chain_.end()).first -
      hashes.begin());
  forget(*node, common);
  node->chain_ = std::move(hashes);
  node->tokens_.assign(tokens.begin(), tokens.end());
  index(*node, common);
}

bool PrefixCache::evict() {
  const auto at = std::find_if(nodes_.rbegin(), nodes_.rend(), [](const auto& n) {
    return n.use_count() == 1 && n->range_.use_count() == 1;
  });
  if (at == nodes_.rend()) return false;
  forget(**at, 0);
  nodes_.erase(std::prev(at.base()));
  ++evictions_;
  return true;
}

int64_t PrefixCache::bytes() const {
  int64_t sum = 0;
  for (const auto& node : nodes_) sum += node->range_->claim.bytes();
  return sum;
}

void PrefixCache::index(Node& node, size_t from) {
  for (size_t i = from; i < node.chain_.size(); ++i) blocks_[node.chain_[i]].push_back(&node);
}

void PrefixCache::forget(Node& node, size_t from) {
  for (size_t i = from; i < node.chain_.size(); ++i) {
    const auto found = blocks_.find(node.chain_[i]);
    std::erase(found->second, &node);
    if (found->second.empty()) blocks_.erase(found);
  }
}

}  // namespace ds
