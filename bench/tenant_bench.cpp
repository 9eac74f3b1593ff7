// Whether the time of a look-up tells that another tenant has an entry of the same context: look-ups of who
// has none, in turns of contexts that the other one has and of contexts that nobody has.
//
// tenant_bench STORE [ROUNDS [TOKENS]]: an empty STORE, as open_store() has it. Of the difference of the two
// kinds it prints the mean with its 95 % interval, and how often one that the other has took longer than one
// that nobody has: 50 % is nothing to tell by.
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "bench/program.h"
#include "bench/small_shape.h"
#include "runtime/core/chain.h"
#include "runtime/store/live_entry.h"
#include "support/clock.h"

namespace ds {
namespace {

constexpr int64_t kContexts = 32;  // of each kind
const std::string kAnother = "another tenant's salt", kMine = "my salt";

using Context = std::vector<int32_t>;
std::vector<Context> random_contexts(int64_t tokens, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<Context> contexts(kContexts, Context(static_cast<size_t>(tokens)));
  for (Context& c : contexts)
    for (int32_t& id : c) id = static_cast<int32_t>(random() % static_cast<uint64_t>(kShape.vocab));
  return contexts;
}

/// How often a value of `a` is more than one of `b`; one that is the same counts half.
double more_often(const std::vector<double>& a, std::vector<double> b) {
  std::sort(b.begin(), b.end());
  double wins = 0;
  for (double v : a) {
    const auto [first, last] = std::equal_range(b.begin(), b.end(), v);
    wins += static_cast<double>(first - b.begin()) + 0.5 * static_cast<double>(last - first);
  }
  return wins / static_cast<double>(a.size()) / static_cast<double>(b.size());
}

/// What a pair of look-ups differs by in the middle 90 % of the pairs: others' work makes the rest.
std::vector<double> middle(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const auto cut = static_cast<std::ptrdiff_t>(values.size() / 20);
  return {values.begin() + cut, values.end() - cut};
}

void measure(Store& store, const char* what, const std::vector<Context>& has,
             const std::vector<Context>& has_not, int64_t rounds) {
  const auto look_up = [&](const Context& context) {
    const int64_t start = now_ns();
    const Chain chain =
        take(find_chain(store, context, {.sender = kSender, .shape = kShape, .salt = kMine, .live = true}));
    const int64_t end = now_ns();
    if (chain.tokens() != 0) fail("it was found");
    return static_cast<double>(end - start) / 1e3;
  };
  std::mt19937_64 random(3);
  std::vector<double> with, without, differences;
  for (int64_t round = -rounds / 10; round < rounds; ++round) {
    const auto at = static_cast<size_t>(random() % kContexts);
    const bool first = random() % 2 != 0;
    const double a = look_up(first ? has[at] : has_not[at]), b = look_up(first ? has_not[at] : has[at]);
    if (round < 0) continue;  // warming up
    with.push_back(first ? a : b);
    without.push_back(first ? b : a);
    differences.push_back(with.back() - without.back());
  }
  const std::vector<double> used = middle(differences);
  const auto n = static_cast<double>(used.size());
  const double mean = std::accumulate(used.begin(), used.end(), 0.0) / n;
  double square = 0;
  for (double d : used) square += (d - mean) * (d - mean);
  std::printf("%-30s %8.1f us %8.1f us %8.3f +- %.3f us %8.1f %%\n", what, median(with), median(without),
              mean, 1.96 * std::sqrt(square / (n - 1) / n), 100 * more_often(with, without));
}

int run(const std::string& url, int64_t rounds, int64_t tokens) {
  auto store = take(open_store(url));
  const ModelIdentity sender{.name = "sender", .fingerprint = kSender};
  const std::vector<std::byte> rows(static_cast<size_t>(tokens * kShape.kv_row() * 2));
  const auto identity = [&](const Context& c) {
    return entry_identity(kSender, c, 0, kAnother, DType::kBF16);
  };
  const auto whole = random_contexts(tokens, 1), written = random_contexts(tokens, 2),
             nobodys = random_contexts(tokens, 3);
  for (const Context& c : whole)
    take(write_entry(*store, identity(c), sender, kShape, {{TensorKind::kKv, 0, rows}}));
  if (url.starts_with("file:")) usleep(100'000);  // until the index knows that nothing more comes
  std::printf("%-30s %11s %11s %21s %10s\n", "another tenant has of it", "median", "of nobody's",
              "mean difference", "longer");
  measure(*store, "nothing (two like kinds)", random_contexts(tokens, 4), nobodys, rounds);
  measure(*store, "an entry", whole, nobodys, rounds);
  std::vector<std::unique_ptr<LiveEntryWriter>> writers;
  for (const Context& c : written)
    writers.push_back(
        take(LiveEntryWriter::begin(*store, identity(c), sender, kShape, {{TensorKind::kKv, 0}})));
  measure(*store, "one that is being written", written, nobodys, rounds);
  measure(*store, "an entry, others being written", whole, nobodys, rounds);
  writers.clear();
  for (const Context& c : whole) (void)store->remove(identity(c).key());
  return 0;
}

}  // namespace
}  // namespace ds

int main(int argc, char** argv) {
  const ds::Arguments given(argc, argv, 1, 3, "STORE [ROUNDS [TOKENS]]");
  return ds::run(given[0], given.number(1, 2000, 64), given.number(2, 4096, 64));
}
