#include "profiler/ways.h"

#include <algorithm>
#include <map>
#include <random>
#include <set>

namespace ds {
namespace {

/// std::uniform_int_distribution differs between standard libraries; profiles must not.
uint64_t below(std::mt19937_64& random, uint64_t bound) { return random() % bound; }

std::vector<LayerRange> ranges_of(const std::vector<int64_t>& blocks, int64_t granularity, int64_t layers) {
  std::vector<LayerRange> ranges;
  for (int64_t block : blocks) {
    int64_t first = block * granularity, last = std::min(first + granularity, layers) - 1;
    if (!ranges.empty() && ranges.back().last + 1 == first) {
      ranges.back().last = last;
    } else {
      ranges.push_back({first, last});
    }
  }
  return ranges;
}

/// Sets of `count` of the blocks above the first with as many parts as can be, drawn at random, all
/// different.
void add_scattered(int64_t blocks, int64_t count, const WayOptions& o, int64_t layers,
                   std::mt19937_64& random, std::vector<Way>& ways) {
  std::set<std::string> seen;
  // Block 0 needs no transition, so that a set with it would not be a control for one without.
  const int64_t most_parts = std::min(count, (blocks - 1 - count) + 1);
  if (most_parts < 2) return;
  constexpr int kTries = 2000;
  for (int tries = 0; tries < kTries && static_cast<int64_t>(seen.size()) < o.scattered; ++tries) {
    std::vector<int64_t> pool(static_cast<size_t>(blocks - 1));
    for (size_t i = 0; i < pool.size(); ++i) pool[i] = static_cast<int64_t>(i) + 1;
    for (size_t i = pool.size(); i > 1; --i) std::swap(pool[i - 1], pool[below(random, i)]);
    pool.resize(static_cast<size_t>(count));
    std::sort(pool.begin(), pool.end());
    Way way = Way::scattered(ranges_of(pool, o.granularity, layers));
    // Half of the tries insist on the most parts, the rest take two or more.
    auto parts = static_cast<int64_t>(way.layers.size());
    if (parts < (tries < kTries / 2 ? std::min<int64_t>(most_parts, 3) : 2)) continue;
    if (seen.insert(way.name()).second) ways.push_back(std::move(way));
  }
}

}  // namespace

int64_t default_granularity(int64_t layers) {
  constexpr int64_t kMostBlocks = 12;
  return (layers + kMostBlocks - 1) / kMostBlocks;
}

std::vector<Heuristic> heuristics(int64_t layers, int64_t granularity, int64_t count) {
  const int64_t blocks = (layers + granularity - 1) / granularity;
  auto range = [&](int64_t first, int64_t end) {
    return LayerRange{first * granularity, std::min(end * granularity, layers) - 1};
  };
  std::vector<Heuristic> all;
  if (count < 1 || count >= blocks) return all;
  all.push_back({"first", Way::group(range(0, count))});
  all.push_back({"last", Way::group(range(blocks - count, blocks))});
  const int64_t below = (blocks - count) / 2;
  if (below > 0) all.push_back({"middle", Way::group(range(below, below + count))});
  const int64_t first = (count + 1) / 2, last = count / 2;
  if (last > 0)
    all.push_back({"first and last", Way::scattered({range(0, first), range(blocks - last, blocks)})});
  return all;
}

Result<std::vector<Way>> all_ways(int64_t layers, const WayOptions& o) {
  if (o.granularity < 1 || o.granularity > layers)
    return error(Code::kInvalidArgument, "--granularity {}: expected 1 to {}, the number of layers",
                 o.granularity, layers);
  for (double share : o.select_shares)
    if (!(share > 0 && share < 1))
      return error(Code::kInvalidArgument,
                   "--select {:g} %: expected shares of the tokens between 0 and 100 %", share * 100);
  for (const LayerRange& range : o.only)
    if (range.empty() || range.first < 0 || range.last >= layers)
      return error(Code::kInvalidArgument, "--only {}: expected layers 0 to {}", format_layers(range),
                   layers - 1);
  std::vector<Way> ways{Way::full_prefill(), Way::full_reuse()};
  const int64_t blocks = (layers + o.granularity - 1) / o.granularity;
  auto edge = [&](int64_t block) { return std::min(block * o.granularity, layers); };
  for (int64_t size = 1; size < blocks; ++size)
    for (int64_t first = 0; first + size <= blocks; ++first)
      ways.push_back(Way::group({edge(first), edge(first + size) - 1}));
  if (!o.only.empty()) {
    ways.resize(2);
    for (const LayerRange& range : o.only)
      if (range.size() < layers) ways.push_back(Way::group(range));
  }
  std::mt19937_64 random(o.seed);
  if (o.scattered > 0)
    for (int64_t count = 2; count < blocks - 1; ++count)
      add_scattered(blocks, count, o, layers, random, ways);
  if (o.heuristics && o.only.empty())
    for (int64_t count = 1; count < blocks; ++count)
      for (Heuristic& h : heuristics(layers, o.granularity, count))
        if (h.way.is_scattered()) ways.push_back(std::move(h.way));
  if (o.reuse_only)
    for (int64_t l = 0; l < layers; ++l) ways.push_back(Way::reuse_only(l));
  if (o.restore) {
    for (int64_t first = 0; first < blocks && o.only.empty(); ++first)
      ways.push_back(Way::restore({edge(first), layers - 1}));
    for (const LayerRange& range : o.only) ways.push_back(Way::restore(range));
  }
  for (double share : o.select_shares) ways.push_back(Way::select(share));
  if (o.sender_alone) ways.push_back(Way::sender_alone());
  if (o.no_context) ways.push_back(Way::no_context());
  if (o.other_document) ways.push_back(Way::other_document());

  const std::vector<Way> plain = ways;
  auto add_aligned = [&](MapForm form, const std::string& control) {
    // For controls one size of groups will do.
    const int64_t third = edge(std::max<int64_t>(1, blocks / 3));
    for (const Way& way : plain) {
      bool controlled = way.restores() || (way.is_group() && way.layers[0].size() == third);
      if (way.can_align() && (control.empty() || controlled)) ways.push_back(way.aligned(form, control));
    }
  };
  for (MapForm form : o.align) add_aligned(form, "");
  if (o.shuffled && !o.align.empty()) add_aligned(o.align[0], kShuffled);
  if (!o.other_pair.empty() && !o.align.empty()) add_aligned(o.align[0], "pair " + o.other_pair);
  return ways;
}

SharedRuns shared_runs(const std::vector<Way>& ways, const std::vector<bool>& active, int64_t layers) {
  // The receiver's own is always needed.
  std::map<std::pair<int64_t, MapKey>, int64_t> top{{{0, {}}, layers}};
  SharedRuns runs;
  for (size_t i = 0; i < ways.size(); ++i) {
    runs.other_document |= active[i] && ways[i].control == Control::kOtherDocument;
    if (!active[i] || (!ways[i].is_group() && !ways[i].is_scattered())) continue;
    for (const LayerRange& r : ways[i].layers) {
      int64_t& t = top[{r.first, r.first == 0 ? MapKey{} : map_key(ways[i])}];
      t = std::max(t, r.last + 1);
    }
  }
  for (const auto& [from, end] : top) runs.runs.push_back({from.first, from.second, end});
  return runs;
}

size_t SharedRuns::find(int64_t first, const MapKey& maps) const {
  auto at = std::find_if(runs.begin(), runs.end(),
                         [&](const Run& r) { return r.first == first && (first == 0 || r.maps == maps); });
  return static_cast<size_t>(at - runs.begin());
}

int64_t SharedRuns::layer_runs(int64_t layers) const {
  int64_t sum = layers * (other_document ? 2 : 1);  // the sender's
  for (const Run& r : runs) sum += r.top - r.first;
  return sum;
}

int64_t naive_layer_runs(const std::vector<Way>& ways, int64_t layers) {
  int64_t sum = layers;
  for (const Way& way : ways) {
    if (way.control == Control::kSenderAlone || way.control == Control::kNoContext) continue;
    if (way.control == Control::kOtherDocument) sum += layers;
    // Reusing one layer is the full prefill, which stays, with one cache exchanged.
    sum += way.control == Control::kReuseOnly ? 0 : way.recomputed(layers);
  }
  return sum;
}

}  // namespace ds
