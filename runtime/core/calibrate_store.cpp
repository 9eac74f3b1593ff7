// What the store costs, and transfers beside kernels.
#include "runtime/core/calibrate_internal.h"

#include <span>

#include "runtime/core/chain.h"
#include "runtime/core/landing.h"

namespace ds::calibration {
namespace {

/// The reads of an entry, one after the other until told to end, on the link stream.
struct Reads {
  std::function<Status(int64_t layer)> read;
  int64_t layers = 0;
  std::atomic<bool> end{false};
  std::vector<int64_t> times;
  Status status;

  static void run(void* context, int64_t) {
    auto& r = *static_cast<Reads*>(context);
    for (int64_t i = 0; !r.end && r.status.ok(); ++i) {
      int64_t begin = now_ns();
      r.status = r.read(i % r.layers);
      r.times.push_back(std::max<int64_t>(now_ns() - begin, 1));
    }
  }
};

}  // namespace

Status Calibrator::measure_store(MachineTimes& m) {
  constexpr int64_t kMost = int64_t{64} << 20;
  const Shape shape = config_.shape();
  int64_t row = config_.kv_row() * element_;
  int64_t tokens = std::clamp<int64_t>(kMost / (row * config_.layers), 1, options_.contexts.back());
  std::span<const int32_t> context = std::span(ids_).first(static_cast<size_t>(tokens));
  ModelIdentity sender{.name = "ds-calibrate",
                       .fingerprint = std::string(64, 'c'),
                       .config = {},
                       .weights = {},
                       .tokenizer = {}};
  const EntryIdentity identity =
      entry_identity(sender.fingerprint, context, 0, "ds-calibrate", model_.dtype());
  // What lies in the caches, as ordinary as a request's.
  std::vector<EntrySource> sources;
  std::vector<std::byte> kept(static_cast<size_t>(config_.layers * tokens * row));
  for (int64_t l = 0; l < config_.layers; ++l) {
    auto rows =
        std::span(kept).subspan(static_cast<size_t>(l * tokens * row), static_cast<size_t>(tokens * row));
    compute_->copy(rows.data(), caches_[static_cast<size_t>(l)]->data(), tokens * row);
    sources.push_back({TensorKind::kKv, static_cast<int32_t>(l), rows});
    DS_TRY(compute_->synchronize());
  }
  DS_TRY(write_entry(*options_.store, identity, sender, shape, sources));
  Status status = measure_entry(m, identity, shape);
  Status removed = options_.store->remove(identity.key());
  return status.ok() ? removed : status;
}

Status Calibrator::measure_entry(MachineTimes& m, const EntryIdentity& identity, const Shape& shape) {
  std::vector<int64_t> lookups;
  for (int i = 0; i <= 20 && !stopped(); ++i) {
    int64_t begin = now_ns();
    auto chain = find_chain(*options_.store, std::span(ids_).first(static_cast<size_t>(identity.tokens)),
                            {identity.sender, shape, identity.salt, identity.dtype});
    if (!chain.ok()) return chain.status();
    if (chain->links.empty()) return chain->why;
    if (i > 0) lookups.push_back(now_ns() - begin);
  }
  DS_ASSIGN(EntryReader entry, EntryReader::open(*options_.store, identity, shape));
  int64_t row = config_.kv_row() * element_;
  int64_t all = identity.tokens, few = std::max<int64_t>(all / 16, 1);
  // Not into the caches: kernels will run on them meanwhile.
  DS_ASSIGN(auto landed, backend_.allocate(identity.tokens * config_.layers * row));
  DS_ASSIGN(auto landing, Landing::create(backend_, row));
  auto read = [&](int64_t layer, int64_t rows) -> Status {
    DS_TRY(landing->read(entry, {TensorKind::kKv, static_cast<int32_t>(layer), 0, rows},
                         landed->data() + layer * identity.tokens * row));
    return landing->synchronize();
  };
  std::vector<int64_t> wholes, parts;
  for (int round = 0; round < 4; ++round) {
    for (int64_t l = 0; l < config_.layers && !stopped(); ++l) {
      for (auto* times : {&parts, &wholes}) {
        int64_t begin = now_ns();
        DS_TRY(read(l, times == &parts ? few : all));
        if (round > 0) times->push_back(std::max<int64_t>(now_ns() - begin, 1));
      }
    }
  }
  if (stopped() || lookups.empty()) return ok_status();
  m.lookup_ns = median(lookups);
  int64_t whole = median(wholes), part = median(parts);
  if (all > few && whole > part) {
    m.read_bytes_per_s = d((all - few) * row) / d(whole - part) * 1e9;
    m.read_latency_ns = std::max<int64_t>(part - std::llround(d(few * row) / m.read_bytes_per_s * 1e9), 0);
  } else {
    m.read_bytes_per_s = d(all * row) / d(whole) * 1e9;
  }

  if (landing->staged()) m.staged_block_bytes = std::max(Landing::kBlockBytes, kChecksumRows * row);
  const int64_t copy_bytes = landed->size();
  DS_ASSIGN(auto there, backend_.allocate(copy_bytes, MemoryKind::kHost));
  DS_ASSIGN(int64_t copy, timed(4, [&] { compute_->copy(landed->data(), there->data(), copy_bytes); }));
  m.copy_bytes_per_s = d(copy_bytes) / d(copy) * 1e9;
  return measure_contention(m, [&](int64_t layer) { return read(layer, all); });
}

Status Calibrator::measure_contention(MachineTimes& m, std::function<Status(int64_t)> read) {
  int64_t rows = std::min<int64_t>(longest_, 256);
  std::vector<int64_t> kernel_times[2], read_times[2];  // alone, beside the other
  // Either may be left out.
  auto run = [&](bool kernels, bool transfers) -> Status {
    Reads reads{read, config_.layers, false, {}, {}};
    if (transfers) link_->host({&Reads::run, &reads, 0});
    const size_t beside = kernels && transfers ? 1 : 0;
    Status status;
    for (int64_t begin = now_ns(); status.ok() && !stopped() && now_ns() - begin < 100'000'000;) {
      if (!kernels) {
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
        continue;
      }
      auto ns = pass({rows, rows, 0}, std::min<int64_t>(config_.layers, 4));
      status = ns.status();
      if (ns.ok()) kernel_times[beside].push_back(*ns);
    }
    reads.end = true;
    DS_TRY(link_->synchronize());
    DS_TRY(status);
    read_times[beside].insert(read_times[beside].end(), reads.times.begin(), reads.times.end());
    return reads.status;
  };
  // In turns, so that other work on the machine, or a change of clock, meets all three alike.
  const int64_t begun = now_ns();
  for (int round = 0; round < 5 && !stopped(); ++round) {
    if (round > 1 && now_ns() - begun > 3'000'000'000) break;
    DS_TRY(run(true, false));
    DS_TRY(run(false, true));
    DS_TRY(run(true, true));
  }
  for (const auto* times : {kernel_times, read_times})
    if (times[0].empty() || times[1].empty()) return ok_status();
  m.kernel_slowdown_permille = excess(d(median(kernel_times[1])), d(median(kernel_times[0])));
  m.transfer_slowdown_permille = excess(d(median(read_times[1])), d(median(read_times[0])));
  return ok_status();
}

}  // namespace ds::calibration
