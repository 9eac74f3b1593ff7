#include "runtime/engine/kv_arena.h"

#include <algorithm>
#include <utility>

#include "support/units.h"

namespace ds {
namespace {

constexpr int64_t kRowsAhead = 64;
// Each layer's rows begin at a multiple of it. Steps that are no larger are not counted.
constexpr int64_t kPage = int64_t{64} << 10;
// Layers that fill one begin at one: the host's memory has pages so large (it costs addresses only).
constexpr int64_t kLargePage = int64_t{2} << 20;
// Layers that fill so many larger steps begin at one.
constexpr int64_t kFewSteps = 4;

int64_t up_to(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

}  // namespace

int64_t KvLayout::committed_rows(int64_t wanted) const {
  return up_to(std::min(wanted + kRowsAhead, rows), kCacheTileRows);
}

int64_t KvLayout::needs(int64_t wanted) const {
  if (whole) return size();
  if (step == 0) return bytes.cache(wanted);
  if (stride % step != 0) return up_to(size(), step);
  return bytes.layers * up_to(committed_rows(wanted) * bytes.kv, step);
}

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
  if (rows > layout_.rows)
    return error(Code::kInvalidArgument, "commit {} rows of a sequence made for {}", rows, layout_.rows);
  Status status = commit_to(layout_.committed_rows(rows));
  if (!status.ok() && arena_->drop_idle()) status = commit_to(layout_.committed_rows(rows));
  return status;
}

Status KvRange::commit_to(int64_t rows) {
  const int64_t before = memory_->committed(), row = layout_.bytes.kv;
  Status status;
  for (int64_t l = 0; l < layout_.bytes.layers && status.ok(); ++l)
    status = memory_->commit(l * layout_.stride + committed_rows_ * row, (rows - committed_rows_) * row);
  arena_->committed_ += memory_->committed() - before;
  if (status.ok()) committed_rows_ = rows;
  return status;
}

void KvRange::settle(int64_t rows) {
  const bool counted = layout_.whole || layout_.step > 0;
  claim.shrink(std::max(layout_.needs(rows), counted ? memory_->committed() : 0));
}

Status KvRange::copy_rows(CommandStream& stream, KvRange& from, int64_t from_first, int64_t first,
                          int64_t rows) {
  if (rows <= 0) return ok_status();
  const int64_t row = layout_.bytes.kv;
  for (int64_t l = 0; l < layout_.bytes.layers; ++l)
    stream.copy(layer(l) + first * row, from.layer(l) + from_first * row, rows * row);
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
    const int64_t dropped = idle_.front().memory_->committed();
    idle_bytes_ -= dropped;
    committed_ -= dropped;
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

bool KvArena::drop_idle() {
  std::vector<KvRange> dropped;
  std::lock_guard lock(mutex_);
  dropped.swap(idle_);
  committed_ -= std::exchange(idle_bytes_, 0);
  return !dropped.empty();
}

KvLayout KvArena::layout(const RowBytes& bytes, int64_t rows) const {
  KvLayout l{.bytes = bytes, .rows = up_to(rows, kCacheTileRows)};
  const int64_t step = backend_.range_step();
  l.whole = step == 0;
  if (step > kPage) l.step = step;
  const bool apart = !l.whole && rows * bytes.kv >= kFewSteps * l.step;
  if (apart) l.rows = std::max(rows, longest_);
  const int64_t layer = l.committed_rows(l.rows) * bytes.kv;
  l.stride = up_to(layer, !apart ? kPage : std::max(l.step, layer < kLargePage ? kPage : kLargePage));
  return l;
}

void KvArena::keep(KvRange& range) {
  KvRange kept;
  kept.memory_ = std::move(range.memory_);
  kept.layout_ = range.layout_;
  kept.committed_rows_ = range.committed_rows_;
  range.claim = {};  // what it was is idle now
  const int64_t bytes = kept.memory_->committed();
  std::lock_guard lock(mutex_);
  if (idle_bytes_ + bytes > budget_ - claimed_) {
    committed_ -= bytes;
    return;
  }
  idle_bytes_ += bytes;
  idle_.push_back(std::move(kept));
}

Result<std::shared_ptr<KvRange>> KvArena::reserve(const RowBytes& bytes, int64_t rows, ArenaClaim claim) {
  auto range = std::make_shared<KvRange>();
  const KvLayout wanted = layout(bytes, rows);
  {
    std::lock_guard lock(mutex_);
    // One that is no more memory than will be claimed for it.
    const auto like = std::find_if(idle_.rbegin(), idle_.rend(), [&](const KvRange& idle) {
      return idle.layout_ == wanted && idle.committed_rows_ <= wanted.committed_rows(rows);
    });
    if (like != idle_.rend()) {
      *range = std::move(*like);
      idle_.erase(std::prev(like.base()));
      idle_bytes_ -= range->memory_->committed();
    }
  }
  if (range->memory_ == nullptr) {
    auto memory = backend_.reserve(wanted.size());
    if (!memory.ok() && drop_idle()) memory = backend_.reserve(wanted.size());
    if (!memory.ok()) return memory.status();
    range->layout_ = wanted;
    range->memory_ = std::move(memory).value();
    committed_ += range->memory_->committed();
  }
  range->arena_ = this;
  range->claim = std::move(claim);
  return range;
}

}  // namespace ds
