#include "runtime/engine/kv_arena.h"

#include <algorithm>
#include <utility>

#include "support/units.h"

namespace ds {
namespace {

// Rows are committed some ahead: a call into the system per layer costs more than a page.
constexpr int64_t kRowsAhead = 64;
// Each layer's rows begin at a page of any backend's.
constexpr int64_t kPage = int64_t{64} << 10;

}  // namespace

ArenaClaim::ArenaClaim(ArenaClaim&& other) noexcept
    : arena_(std::exchange(other.arena_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

ArenaClaim& ArenaClaim::operator=(ArenaClaim&& other) noexcept {
  std::swap(arena_, other.arena_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

ArenaClaim::~ArenaClaim() {
  if (arena_ != nullptr) arena_->give_back(bytes_);
}

void ArenaClaim::shrink(int64_t bytes) {
  if (arena_ == nullptr || bytes >= bytes_) return;
  arena_->give_back(bytes_ - bytes);
  bytes_ = bytes;
}

Status ArenaClaim::grow(int64_t bytes) {
  if (bytes <= bytes_) return ok_status();
  if (arena_ == nullptr) return error(Code::kInvalidArgument, "{} bytes for a claim on no arena", bytes);
  DS_TRY(arena_->take(bytes - bytes_));
  bytes_ = bytes;
  return ok_status();
}

ArenaClaim ArenaClaim::split(int64_t bytes) {
  bytes = std::clamp<int64_t>(bytes, 0, bytes_);
  bytes_ -= bytes;
  return ArenaClaim(arena_, bytes);
}

KvRange::~KvRange() {
  if (arena_ != nullptr && memory_) arena_->keep(*this);
}

Status KvRange::commit(int64_t rows) {
  if (rows <= committed_rows_) return ok_status();
  if (rows > rows_)
    return error(Code::kInvalidArgument, "commit {} rows of a sequence made for {}", rows, rows_);
  const int64_t ahead = std::min(rows_, rows + kRowsAhead);
  for (int64_t l = 0; l < bytes_.layers; ++l)
    DS_TRY(memory_->commit(l * stride_ + committed_rows_ * bytes_.kv, (ahead - committed_rows_) * bytes_.kv));
  committed_rows_ = ahead;
  return ok_status();
}

Status KvRange::copy_rows(CommandStream& stream, KvRange& from, int64_t from_first, int64_t first,
                          int64_t rows) {
  if (rows <= 0) return ok_status();
  for (int64_t l = 0; l < bytes_.layers; ++l)
    stream.copy(layer(l) + first * bytes_.kv, from.layer(l) + from_first * bytes_.kv, rows * bytes_.kv);
  return stream.synchronize();
}

int64_t KvArena::claimed() const {
  std::lock_guard lock(mutex_);
  return claimed_;
}

int64_t KvArena::peak() const {
  std::lock_guard lock(mutex_);
  return peak_;
}

Result<ArenaClaim> KvArena::claim(int64_t bytes) {
  DS_TRY(take(bytes));
  return ArenaClaim(this, bytes);
}

Status KvArena::take(int64_t bytes) {
  std::lock_guard lock(mutex_);
  if (bytes < 0 || bytes > budget_ - claimed_)
    return error(Code::kExhausted, "{} of memory for caches wanted; {} of {} are in use", format_bytes(bytes),
                 format_bytes(claimed_), format_bytes(budget_));
  while (idle_bytes_ > budget_ - claimed_ - bytes) {
    idle_bytes_ -= idle_.front().memory_->committed();
    idle_.erase(idle_.begin());
  }
  claimed_ += bytes;
  peak_ = std::max(peak_, claimed_);
  return ok_status();
}

void KvArena::give_back(int64_t bytes) {
  std::lock_guard lock(mutex_);
  claimed_ -= bytes;
}

void KvArena::keep(KvRange& range) {
  KvRange kept;
  kept.memory_ = std::move(range.memory_);
  kept.bytes_ = range.bytes_;
  kept.rows_ = range.rows_;
  kept.stride_ = range.stride_;
  kept.committed_rows_ = range.committed_rows_;
  range.claim = {};  // what it was is idle now
  const int64_t bytes = kept.memory_->committed();
  std::lock_guard lock(mutex_);
  if (idle_bytes_ + bytes > budget_ - claimed_) return;
  idle_bytes_ += bytes;
  idle_.push_back(std::move(kept));
}

Result<std::shared_ptr<KvRange>> KvArena::reserve(const RowBytes& bytes, int64_t rows, ArenaClaim claim) {
  auto range = std::make_shared<KvRange>();
  {
    std::lock_guard lock(mutex_);
    const auto like = std::find_if(idle_.rbegin(), idle_.rend(), [&](const KvRange& idle) {
      return idle.bytes_ == bytes && idle.rows_ == rows;
    });
    if (like != idle_.rend()) {
      *range = std::move(*like);
      idle_.erase(std::prev(like.base()));
      idle_bytes_ -= range->memory_->committed();
    }
  }
  if (range->memory_ == nullptr) {
    range->bytes_ = bytes;
    range->rows_ = rows;
    range->stride_ = (rows * bytes.kv + kPage - 1) / kPage * kPage;
    DS_ASSIGN(range->memory_, backend_.reserve(bytes.layers * range->stride_));
  }
  range->arena_ = this;
  range->claim = std::move(claim);
  return range;
}

}  // namespace ds
