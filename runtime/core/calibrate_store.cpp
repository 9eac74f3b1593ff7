// What the store costs, and transfers beside kernels.
#include "runtime/core/calibrate_internal.h"

#include <span>

#include "plans/work.h"
#include "runtime/core/chain.h"
#include "runtime/core/landing.h"
#include "support/clock.h"

namespace ds::calibration {
namespace {

/// The reads of an entry on the link stream, until told to end.
struct Reads {
  std::function<Status(int64_t layer)> read;
  int64_t layers = 0, begin_ns = 0, spacing_ns = 0;
  std::atomic<bool> end{false};
  std::vector<int64_t> times;
  Status status;

  void one(int64_t i) {
    int64_t begin = now_ns();
    status = read(i % layers);
    times.push_back(std::max<int64_t>(now_ns() - begin, 1));
  }
  /// One after the other.
  static void run(void* context, int64_t) {
    auto& r = *static_cast<Reads*>(context);
    for (int64_t i = 0; !r.end && r.status.ok(); ++i) r.one(i);
  }
  /// The i-th of a request's: a command by itself, which waits for the link.
  static void run_one(void* context, int64_t i) {
    auto& r = *static_cast<Reads*>(context);
    if (r.end || !r.status.ok()) return;
    r.one(i);
    sleep_until(r.begin_ns + (i + 1) * r.spacing_ns);
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
  // A request's meets caches that kernels have filled: one after the other take a third of its time.
  constexpr double kCaches = 0x1p26;
  const int64_t rows = std::min<int64_t>(longest_, 64);
  const double layer_bytes = layer_work(shape, {0, 1, 1}).matmul / 2 * static_cast<double>(element_);
  const auto layers = static_cast<int64_t>(std::clamp(kCaches / layer_bytes, 1.0, d(config_.layers)));
  for (int i = 0; i <= 20 && !stopped(); ++i) {
    DS_ASSIGN([[maybe_unused]] const int64_t between, pass({rows, rows, 0}, layers));
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
  // Reads that come as a link brings them keep the store busy for an eighth of the time, and are so many in a
  // round.
  constexpr int64_t kIdle = 7, kLeastNs = 250'000, kRoundNs = 100'000'000, kMostReads = 60;
  int64_t rows = std::min<int64_t>(longest_, 256), spacing_ns = kLeastNs;
  std::vector<int64_t> alone, beside, beside_spaced, reads_alone, reads_beside;
  auto kernels = [&](int64_t round_ns, std::vector<int64_t>& times) -> Status {
    for (int64_t begin = now_ns(); !stopped() && now_ns() - begin < round_ns;) {
      DS_ASSIGN(const int64_t ns, pass({rows, rows, 0}, std::min<int64_t>(config_.layers, 4)));
      times.push_back(ns);
    }
    return ok_status();
  };
  auto ended = [&](Reads& reads, Status status) -> Status {
    reads.end = true;
    DS_TRY(link_->synchronize());
    DS_TRY(status);
    return reads.status;
  };
  auto all_the_time = [&](std::vector<int64_t>& read_times, std::vector<int64_t>* kernel_times) -> Status {
    Reads reads{.read = read, .layers = config_.layers};
    link_->host({&Reads::run, &reads, 0});
    Status status;
    if (kernel_times != nullptr)
      status = kernels(kRoundNs, *kernel_times);
    else
      std::this_thread::sleep_for(std::chrono::nanoseconds(kRoundNs));
    DS_TRY(ended(reads, std::move(status)));
    read_times.insert(read_times.end(), reads.times.begin(), reads.times.end());
    return ok_status();
  };
  auto spaced = [&]() -> Status {
    Reads reads{.read = read, .layers = config_.layers, .begin_ns = now_ns(), .spacing_ns = spacing_ns};
    const int64_t count = std::clamp<int64_t>(kRoundNs / spacing_ns, 1, kMostReads);
    for (int64_t i = 0; i < count; ++i) link_->host({&Reads::run_one, &reads, i});
    return ended(reads, kernels(count * spacing_ns, beside_spaced));
  };
  // In turns, so that other work on the machine, or a change of clock, meets all alike; but what takes a core
  // all of the time comes last, since threads that compute remember it.
  const int64_t begun = now_ns();
  auto enough = [&](int round) { return stopped() || (round > 1 && now_ns() - begun > 3'000'000'000); };
  DS_TRY(all_the_time(reads_alone, nullptr));
  if (reads_alone.empty()) return ok_status();
  spacing_ns = std::max(kLeastNs, (1 + kIdle) * median(reads_alone));
  for (int round = 0; round < 5 && !enough(round); ++round) {
    DS_TRY(kernels(kRoundNs, alone));
    DS_TRY(spaced());
  }
  for (int round = 0; round < 4 && !enough(round); ++round) {
    DS_TRY(all_the_time(reads_alone, nullptr));
    DS_TRY(all_the_time(reads_beside, &beside));
  }
  for (const auto* times : {&alone, &beside, &beside_spaced, &reads_beside})
    if (times->empty()) return ok_status();
  m.kernel_slowdown_permille = excess(d(median(beside)), d(median(alone)));
  m.transfer_slowdown_permille = excess(d(median(reads_beside)), d(median(reads_alone)));
  // What is not in proportion to the time that the store is read.
  const double share = std::min(1.0, d(median(reads_alone)) / d(spacing_ns));
  const double more =
      d(excess(d(median(beside_spaced)), d(median(alone)))) - share * d(m.kernel_slowdown_permille);
  m.kernel_ns_per_transfer = std::llround(std::max(0.0, more / 1000 * d(spacing_ns)));
  return ok_status();
}

}  // namespace ds::calibration
