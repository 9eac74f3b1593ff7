// What it costs to find the entries that agree with a context: a folder of 1,000 entries whose contexts begin
// alike, as a fleet's do with one system prompt.
#include <benchmark/benchmark.h>

#include <unistd.h>

#include <filesystem>
#include <random>
#include <stdexcept>

#include "bench/small_shape.h"
#include "runtime/core/chain.h"

namespace ds {
namespace {

const std::string kSalt = "bench";

std::vector<int32_t> random_ids(int64_t count, int64_t vocab, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<int32_t> ids(static_cast<size_t>(count));
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % static_cast<uint64_t>(vocab));
  return ids;
}

/// 1,000 entries: `links` of them have a context of 128k tokens, the others 2,048 tokens each, the first
/// 1,024 of which all have in common.
struct Filled {
  std::string folder;
  std::vector<int32_t> context;
  std::unique_ptr<Store> store;

  explicit Filled(int64_t links) : context(random_ids(128 << 10, kShape.vocab, 1)) {
    folder = (std::filesystem::temp_directory_path() / fmt::format("ds_lookup_bench_{}", getpid())).native();
    std::filesystem::remove_all(folder);
    store = std::move(open_store("file:" + folder)).value();
    const auto all = static_cast<int64_t>(context.size());
    for (int64_t i = 0; i < links; ++i) put(context, all * i / links, all * (i + 1) / links);
    for (int64_t i = links; i < 1000; ++i) {
      std::vector<int32_t> other(context.begin(), context.begin() + 1024);
      const auto rest = random_ids(1024, kShape.vocab, static_cast<uint64_t>(i + 1));
      other.insert(other.end(), rest.begin(), rest.end());
      put(other, 0, 2048);
    }
  }
  ~Filled() { std::filesystem::remove_all(folder); }
  void put(std::span<const int32_t> tokens, int64_t first, int64_t end) {
    const EntryIdentity identity =
        entry_identity(kSender, tokens.first(static_cast<size_t>(end)), first, kSalt, DType::kBF16);
    const std::vector<std::byte> rows(static_cast<size_t>((end - first) * kShape.kv_row() * 2));
    auto written = write_entry(*store, identity, {.name = "sender", .fingerprint = kSender}, kShape,
                               {{TensorKind::kKv, 0, rows}});
    if (!written.ok()) throw std::runtime_error(written.status().message());
  }
};

/// Args: entries that have the context of 128k tokens; tokens asked for.
void find_chain_of(benchmark::State& state) {
  Filled filled(state.range(0));
  const auto tokens = std::span<const int32_t>(filled.context).first(static_cast<size_t>(state.range(1)));
  int64_t found = 0, links = 0;
  for (auto _ : state) {
    auto chain = find_chain(*filled.store, tokens, {kSender, kShape, kSalt, DType::kBF16});
    if (!chain.ok()) state.SkipWithError(chain.status().message().c_str());
    found = chain->tokens();
    links = static_cast<int64_t>(chain->links.size());
  }
  state.counters["tokens"] = static_cast<double>(found);
  state.counters["entries"] = static_cast<double>(links);
}
BENCHMARK(find_chain_of)
    ->ArgNames({"entries", "asked"})
    ->Args({1, 4 << 10})
    ->Args({1, 128 << 10})
    ->Args({16, 128 << 10})
    ->Unit(benchmark::kMillisecond);

/// Of which: the names of so many tokens.
void name_blocks(benchmark::State& state) {
  const auto ids = random_ids(state.range(0), kShape.vocab, 1);
  for (auto _ : state) benchmark::DoNotOptimize(block_names(kSender, ids, 0, kSalt, DType::kBF16));
}
BENCHMARK(name_blocks)->Arg(4 << 10)->Arg(128 << 10)->Unit(benchmark::kMillisecond);

/// And what they cost in the store.
void look_names_up(benchmark::State& state) {
  Filled filled(1);
  const auto names = block_names(
      kSender, std::span(filled.context).first(static_cast<size_t>(state.range(0))), 0, kSalt, DType::kBF16);
  for (auto _ : state) benchmark::DoNotOptimize(filled.store->find({}, names));
}
BENCHMARK(look_names_up)->Arg(4 << 10)->Arg(128 << 10)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace ds
