#include <sched.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <limits>
#include <string>
#include <utility>

#include "runtime/backends/cpu/memory_internal.h"
#include "support/brief_team.h"
#include "support/units.h"

namespace ds::cpu {
namespace {

int64_t read_number(const char* path, int64_t otherwise) {
  std::ifstream file(path);
  int64_t value = 0;
  return file >> value ? value : otherwise;
}

}  // namespace

int64_t available_memory() {
  int64_t available = std::numeric_limits<int64_t>::max();
  std::ifstream meminfo("/proc/meminfo");
  for (std::string key; meminfo >> key;) {
    int64_t kib = 0;
    if (key == "MemAvailable:" && meminfo >> kib) available = kib * 1024;
    meminfo.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  int64_t limit = read_number("/sys/fs/cgroup/memory.max", -1);  // "max" where there is none
  int64_t used = read_number("/sys/fs/cgroup/memory.current", -1);
  if (limit >= 0 && used >= 0) {
    // The page cache counts as used there, but gives way.
    std::ifstream stat("/sys/fs/cgroup/memory.stat");
    int64_t value = 0;
    for (std::string key; stat >> key >> value;)
      if (key == "inactive_file" || key == "active_file") used -= value;
    available = std::min(available, limit - used);
  }
  return std::max<int64_t>(available, 0);
}

Status check_memory(int64_t bytes, std::string_view what) {
  int64_t available = available_memory();
  if (bytes <= available) return ok_status();
  return error(Code::kExhausted, "{}: needs {} of memory, {} are available", what, format_bytes(bytes),
               format_bytes(available));
}

int usable_cores() {
  cpu_set_t set;
  int cores = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
  std::ifstream file("/sys/fs/cgroup/cpu.max");
  double quota = 0, period = 0;
  if (file >> quota >> period && period > 0)
    cores = std::min(cores, std::max(1, static_cast<int>(quota / period + 0.5)));
  return std::max(cores, 1);
}

HostBuffer::HostBuffer(HostBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

HostBuffer& HostBuffer::operator=(HostBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

HostBuffer::~HostBuffer() {
  if (data_ != nullptr) munmap(data_, static_cast<size_t>(size_));
}

Result<HostBuffer> HostBuffer::make(int64_t bytes, std::string_view what) {
  if (bytes < 0) return error(Code::kInvalidArgument, "{}: a size of {} bytes", what, bytes);
  HostBuffer buffer;
  if (bytes == 0) return buffer;
  DS_TRY(check_memory(bytes, what));
  auto size = static_cast<size_t>(bytes);
  void* data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED)
    return error(Code::kExhausted, "{}: the system refused {} of memory: {}", what, format_bytes(bytes),
                 std::strerror(errno));
  buffer.data_ = static_cast<std::byte*>(data);
  buffer.size_ = bytes;
  // Large pages where there are any: weights are read from end to end, a page-table walk per 4 KiB costs.
  (void)madvise(data, size, MADV_HUGEPAGE);
  // Zeroing is most of the time that loading takes; every core does its part.
  constexpr size_t kChunk = size_t{64} << 20;
  const BriefTeam team;
#pragma omp parallel for schedule(dynamic) if (size > kChunk)
  for (size_t begin = 0; begin < size; begin += kChunk) {
    const size_t end = std::min(size, begin + kChunk);
#ifdef MADV_POPULATE_WRITE
    if (madvise(buffer.data_ + begin, end - begin, MADV_POPULATE_WRITE) == 0) continue;
#endif
    for (size_t at = begin; at < end; at += 4096) buffer.data_[at] = std::byte{0};
  }
  return buffer;
}

HostRange::HostRange(HostRange&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      committed_(std::exchange(other.committed_, 0)),
      there_(std::move(other.there_)) {}

HostRange& HostRange::operator=(HostRange&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(committed_, other.committed_);
  std::swap(there_, other.there_);
  return *this;
}

HostRange::~HostRange() {
  if (data_ != nullptr) munmap(data_, static_cast<size_t>(size_));
}

Result<HostRange> HostRange::reserve(int64_t bytes) {
  if (bytes < 0) return error(Code::kInvalidArgument, "a range of {} bytes", bytes);
  HostRange range;
  if (bytes == 0) return range;
  constexpr auto kLargePage = size_t{2} << 20;
  const int64_t steps = (bytes + kStep - 1) / kStep;
  const auto size = static_cast<size_t>(steps * kStep);
  void* data =
      mmap(nullptr, size + kLargePage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED)
    return error(Code::kExhausted, "the system refused a range of {} of addresses: {}", format_bytes(bytes),
                 std::strerror(errno));
  // Large pages wherever a whole one is committed: attention reads parts of rows that lie far apart. The
  // system gives none that would reach into what is not.
  const size_t before = (kLargePage - reinterpret_cast<uintptr_t>(data) % kLargePage) % kLargePage;
  range.data_ = static_cast<std::byte*>(data) + before;
  if (before > 0) munmap(data, before);
  munmap(range.data_ + size, kLargePage - before);
  (void)madvise(range.data_, size, MADV_HUGEPAGE);
  range.size_ = steps * kStep;
  range.there_.resize(static_cast<size_t>(steps));
  return range;
}

Status HostRange::commit(int64_t offset, int64_t bytes) {
  if (bytes == 0) return ok_status();
  const auto end = static_cast<size_t>((offset + bytes + kStep - 1) / kStep);
  for (auto step = static_cast<size_t>(offset / kStep); step < end; ++step) {
    if (there_[step]) continue;
    size_t last = step + 1;
    while (last < end && !there_[last]) ++last;
    std::byte* at = data_ + static_cast<int64_t>(step) * kStep;
    const size_t length = (last - step) * static_cast<size_t>(kStep);
    // Asking the system costs some 50 us; who commits small pieces keeps to a budget.
    if (length >= size_t{1} << 20) DS_TRY(check_memory(static_cast<int64_t>(length), "cache"));
    if (mprotect(at, length, PROT_READ | PROT_WRITE) != 0)
      return error(Code::kExhausted, "the system refused {} of memory: {}",
                   format_bytes(static_cast<int64_t>(length)), std::strerror(errno));
    bool populated = false;
#ifdef MADV_POPULATE_WRITE
    populated = madvise(at, length, MADV_POPULATE_WRITE) == 0;
#endif
    for (size_t i = 0; !populated && i < length; i += 4096) at[i] = std::byte{0};
    std::fill(there_.begin() + static_cast<int64_t>(step), there_.begin() + static_cast<int64_t>(last), true);
    committed_ += static_cast<int64_t>(length);
    step = last - 1;
  }
  return ok_status();
}

}  // namespace ds::cpu
