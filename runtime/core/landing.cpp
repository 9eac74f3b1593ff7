#include "runtime/core/landing.h"

#include <omp.h>

#include <algorithm>
#include <atomic>

namespace ds {
namespace {

// One thread copies and verifies some 5 GB/s; a device's link takes ten times that.
constexpr int kMostThreads = 8;
constexpr int64_t kMostCopies = int64_t{1} << 20;  // between two synchronize()

}  // namespace

Result<std::unique_ptr<Landing>> Landing::create(Backend& backend, int64_t row_bytes, int threads) {
  std::unique_ptr<Landing> landing(new Landing());
  if (backend.host_visible()) return landing;
  landing->threads_ = threads > 0 ? threads : std::clamp(omp_get_num_procs() / 2, 1, kMostThreads);
  landing->cursors_.resize(static_cast<size_t>(landing->threads_));
  // Whole blocks of a checksum each, so that every byte is verified whichever thread reads it.
  landing->block_bytes_ = std::max(kBlockBytes, kChecksumRows * row_bytes);
  for (int i = 0; i < 2 * landing->threads_ + 2; ++i) {
    Block block;
    DS_ASSIGN(block.memory, backend.allocate(landing->block_bytes_, MemoryKind::kHost));
    DS_ASSIGN(block.copied, backend.make_event());
    landing->free_.push_back(landing->blocks_.size());
    landing->blocks_.push_back(std::move(block));
  }
  landing->copying_.reserve(landing->blocks_.size());
  DS_ASSIGN(landing->copies_, backend.make_stream(StreamKind::kCopy, kMostCopies));
  return landing;
}

/// The index of a block that nobody uses, taken from its place. There are more blocks than readers, so one
/// that is neither free nor being copied is never all that is left.
size_t Landing::acquire() {
  size_t block = 0;
  {
    std::lock_guard lock(mutex_);
    if (!free_.empty()) {
      block = free_.back();
      free_.pop_back();
      return block;
    }
    block = copying_.front();
    copying_.erase(copying_.begin());
  }
  // It is this reader's from now on; others wait for later ones.
  blocks_[block].copied->block();
  return block;
}

void Landing::copy(size_t block, std::byte* to, int64_t bytes) {
  std::lock_guard lock(mutex_);
  Block& from = blocks_[block];
  from.copied->reset();
  copies_->copy(to, from.memory->data(), bytes);
  copies_->record(*from.copied);
  copying_.push_back(block);
}

Status Landing::read(EntryReader& entry, const LandingRows& rows, std::byte* to,
                     const std::function<Status()>& go_on) {
  if (!staged()) return entry.read_rows(rows.kind, rows.layer, rows.first, rows.rows, to, go_on, rows.map);
  const int64_t row_bytes = entry.header().row_bytes(rows.kind);
  const int64_t step = std::max<int64_t>(block_bytes_ / row_bytes / kChecksumRows, 1) * kChecksumRows;
  // Blocks begin where checksums do, whatever the first row is.
  const int64_t base = rows.first / kChecksumRows * kChecksumRows;
  const int64_t count = (rows.first + rows.rows - base + step - 1) / step;
  Status failure;
  std::atomic<bool> failed{false};
  auto read_block = [&](int64_t i, EntryReader::Cursor& cursor) -> Status {
    const int64_t first = std::max(rows.first, base + i * step);
    const int64_t end = std::min(rows.first + rows.rows, base + (i + 1) * step);
    const size_t block = acquire();
    std::byte* staged = blocks_[block].memory->data();
    Status status =
        entry.read_rows(cursor, rows.kind, rows.layer, first, end - first, staged, go_on, rows.map);
    copy(block, to + (first - rows.first) * row_bytes, status.ok() ? (end - first) * row_bytes : 0);
    return status;
  };
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads_) if (count > 1)
  for (int64_t i = 0; i < count; ++i) {
    if (failed) continue;
    Status status = read_block(i, cursors_[static_cast<size_t>(omp_get_thread_num())]);
    if (status.ok() || failed.exchange(true)) continue;
    failure = std::move(status);  // of the one thread that was first
  }
  return failure;
}

}  // namespace ds
