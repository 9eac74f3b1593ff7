#include "runtime/backends/cpu/weights_internal.h"

#include <fcntl.h>
#include <omp.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "runtime/backends/cpu/matmul_internal.h"
#include "support/hash.h"
#include "support/units.h"

namespace ds {

std::string_view weight_cache_status_name(WeightCacheStatus status) {
  switch (status) {
    case WeightCacheStatus::kOff:
      return "off";
    case WeightCacheStatus::kHit:
      return "hit";
    case WeightCacheStatus::kWritten:
      return "written";
    case WeightCacheStatus::kFailed:
      return "failed";
  }
  return "?";
}

namespace cpu {
namespace {

constexpr char kMagic[8] = {'D', 'S', 'W', 'E', 'I', 'G', 'H', 'T'};
constexpr uint32_t kVersion = 1;
constexpr int64_t kLargePage = int64_t{2} << 20;
constexpr int64_t kPiece = int64_t{8} << 20;  // of an array, with a checksum of its own
constexpr int64_t kArrayAlign = 4096;

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

struct Header {
  char magic[8];
  uint32_t version;
  uint32_t key_bytes;
  int64_t block_bytes;
  uint64_t checksum;  // of the header with 0 here, the key and the checksums of the pieces
};

/// A piece of the block that one thread checks at a time.
struct Piece {
  int64_t offset = 0, bytes = 0;
};

std::vector<Piece> pieces_of(const std::vector<WeightArray>& arrays) {
  std::vector<Piece> pieces;
  for (const WeightArray& a : arrays)
    for (int64_t at = 0; at < a.bytes; at += kPiece)
      pieces.push_back({a.offset + at, std::min(kPiece, a.bytes - at)});
  return pieces;
}

/// Everything but the checkpoint's own bytes that the packed bytes depend on.
std::string key_of(const std::vector<WeightArray>& arrays, std::string_view kind, const LoadOptions& o) {
  std::string key = fmt::format("droidspeak packed weights\ncheckpoint {}\ndtype {}\nkind {}\noneDNN {}\n",
                                o.fingerprint, dtype_name(o.dtype), kind, dnnl_version());
  for (const WeightArray& a : arrays) key += fmt::format("{}: {} bytes at {}\n", a.name, a.bytes, a.offset);
  return key;
}

/// The file of one model: where it is, and what it must say.
struct Target {
  std::string path, key;
  std::vector<Piece> pieces;
  int64_t block_bytes = 0;

  int64_t header_bytes() const {
    return static_cast<int64_t>(sizeof(Header) + key.size() + pieces.size() * sizeof(uint64_t));
  }
  int64_t block_offset() const { return round_up(header_bytes(), kLargePage); }
};

/// Header, key and checksums as the file holds them.
std::string header_text(const Target& target, std::span<const uint64_t> checksums) {
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  header.version = kVersion;
  header.key_bytes = static_cast<uint32_t>(target.key.size());
  header.block_bytes = target.block_bytes;
  std::string text(reinterpret_cast<const char*>(&header), sizeof(header));
  text += target.key;
  text.append(reinterpret_cast<const char*>(checksums.data()), checksums.size_bytes());
  header.checksum = checksum64(std::as_bytes(std::span(text.data(), text.size())));
  std::memcpy(text.data(), &header, sizeof(header));
  return text;
}

/// The file, with every piece read and checked; kNotFound when there is none.
Result<MappedFile> open_checked(const Target& target, const LoadOptions& options) {
  DS_ASSIGN(MappedFile file, MappedFile::open(target.path));
  const std::byte* bytes = file.bytes().data();
  const auto size = static_cast<int64_t>(file.bytes().size());
  Header header{};
  if (size < static_cast<int64_t>(sizeof(header)))
    return error(Code::kCorrupt, "'{}' has {} bytes, less than a header", target.path, size);
  std::memcpy(&header, bytes, sizeof(header));
  if (std::memcmp(header.magic, kMagic, sizeof(kMagic)) != 0)
    return error(Code::kCorrupt, "'{}' is no file of packed weights", target.path);
  if (header.version != kVersion)
    return error(Code::kMismatch, "'{}' has format {}, expected {}", target.path, header.version, kVersion);
  if (header.key_bytes != target.key.size() || header.block_bytes != target.block_bytes ||
      size < target.header_bytes() ||
      std::memcmp(bytes + sizeof(header), target.key.data(), target.key.size()) != 0)
    return error(Code::kMismatch, "'{}' was packed from another checkpoint or for another layout",
                 target.path);
  std::vector<uint64_t> checksums(target.pieces.size());
  std::memcpy(checksums.data(), bytes + sizeof(header) + target.key.size(),
              checksums.size() * sizeof(uint64_t));
  if (header_text(target, checksums)
          .compare(0, std::string::npos, reinterpret_cast<const char*>(bytes),
                   static_cast<size_t>(target.header_bytes())) != 0)
    return error(Code::kCorrupt, "'{}': the header is damaged", target.path);
  if (size != target.block_offset() + target.block_bytes)
    return error(Code::kCorrupt, "'{}' has {} bytes, expected {}: it is cut short", target.path, size,
                 target.block_offset() + target.block_bytes);

  const std::byte* block = bytes + target.block_offset();
  const auto count = static_cast<int64_t>(target.pieces.size());
  std::atomic<int64_t> damaged{-1}, done{0};
#pragma omp parallel for schedule(dynamic)
  for (int64_t i = 0; i < count; ++i) {
    const Piece& piece = target.pieces[static_cast<size_t>(i)];
#ifdef MADV_POPULATE_READ
    (void)madvise(const_cast<std::byte*>(block) + piece.offset, static_cast<size_t>(piece.bytes),
                  MADV_POPULATE_READ);
#endif
    if (checksum64({block + piece.offset, static_cast<size_t>(piece.bytes)}) !=
        checksums[static_cast<size_t>(i)])
      damaged = i;
    int64_t sum = done += piece.bytes;
    if (omp_get_thread_num() == 0 && options.progress) options.progress(sum, target.block_bytes);
  }
  if (options.progress) options.progress(target.block_bytes, target.block_bytes);
  if (damaged >= 0) {
    const Piece& piece = target.pieces[static_cast<size_t>(damaged.load())];
    return error(Code::kCorrupt, "'{}': the {} bytes from {} on do not match their checksum", target.path,
                 piece.bytes, target.block_offset() + piece.offset);
  }
  DS_TRY(file.intact());
  return file;
}

/// Temporary files of writers that were killed: not written to for an hour.
void remove_leftovers(const std::string& path) {
  namespace fs = std::filesystem;
  const fs::path whole(path);
  const std::string prefix = whole.filename().string() + ".tmp-";
  std::error_code ignored;
  for (fs::directory_iterator it(whole.parent_path(), ignored), end; !ignored && it != end;
       it.increment(ignored)) {
    if (it->path().filename().string().rfind(prefix, 0) != 0) continue;
    if (fs::file_time_type::clock::now() - it->last_write_time(ignored) > std::chrono::hours(1))
      fs::remove(it->path(), ignored);
  }
}

/// Packs array by array into a window and writes each: no more memory than the largest array takes.
Status write_file(const Target& target, const std::vector<WeightArray>& arrays, const LoadOptions& options) {
  std::error_code failed;
  std::filesystem::create_directories(options.weight_cache, failed);
  if (failed)
    return error(Code::kIo, "cannot create the cache folder '{}': {}", options.weight_cache,
                 failed.message());
  remove_leftovers(target.path);
  const std::filesystem::space_info space = std::filesystem::space(options.weight_cache, failed);
  const int64_t size = target.block_offset() + target.block_bytes;
  if (!failed && static_cast<double>(space.available) - static_cast<double>(size) <
                     static_cast<double>(space.capacity) / 20)
    return error(Code::kExhausted, "'{}' ({}) would leave less than a twentieth of its disk free",
                 target.path, format_bytes(size));
  auto write = [&](int fd) -> Status {
    // A full disk is found here, before any work.
    if (posix_fallocate(fd, 0, size) == ENOSPC) {
      errno = ENOSPC;
      return io_error(fmt::format("reserve {} for", format_bytes(size)), target.path);
    }
    int64_t most = 0;
    for (const WeightArray& a : arrays) most = std::max(most, a.bytes);
    DS_ASSIGN(HostBuffer window, HostBuffer::make(most, "weights being packed"));
    std::vector<uint64_t> checksums(target.pieces.size());
    size_t first = 0;
    for (const WeightArray& a : arrays) {
      DS_TRY(a.make(window.data()));
      size_t end = first;
      while (end < target.pieces.size() && target.pieces[end].offset < a.offset + a.bytes) ++end;
      Status written;
#pragma omp parallel
      {
#pragma omp single nowait
        {
          if (lseek(fd, target.block_offset() + a.offset, SEEK_SET) < 0)
            written = io_error("write", target.path);
          else
            written = write_fully(fd, {window.data(), static_cast<size_t>(a.bytes)}, target.path);
        }
#pragma omp for schedule(dynamic)
        for (size_t i = first; i < end; ++i)
          checksums[i] = checksum64({window.data() + (target.pieces[i].offset - a.offset),
                                     static_cast<size_t>(target.pieces[i].bytes)});
      }
      DS_TRY(written);
      first = end;
      if (options.progress) options.progress(a.offset + a.bytes, target.block_bytes);
    }
    std::string text = header_text(target, checksums);
    if (lseek(fd, 0, SEEK_SET) < 0) return io_error("write", target.path);
    return write_fully(fd, std::as_bytes(std::span(text.data(), text.size())), target.path);
  };
  return write_file_atomically(target.path, write, {.flush = false});
}

}  // namespace

Result<Weights> Weights::load(std::vector<WeightArray>& arrays, std::string_view kind,
                              const LoadOptions& options) {
  Weights weights;
  for (WeightArray& a : arrays) {
    a.offset = round_up(weights.size_, kArrayAlign);
    weights.size_ = a.offset + a.bytes;
  }
  LoadReport unseen;
  LoadReport& report = options.report != nullptr ? *options.report : unseen;
  report = {};
  if (!options.weight_cache.empty() && !options.fingerprint.empty()) {
    Target target{fmt::format("{}/{:.32}-{}-{}.weights", options.weight_cache, options.fingerprint,
                              dtype_name(options.dtype), kind),
                  key_of(arrays, kind, options), pieces_of(arrays), weights.size_};
    report.path = target.path;
    Result<MappedFile> file = open_checked(target, options);
    report.weight_cache = WeightCacheStatus::kHit;
    if (!file.ok()) {
      if (file.status().code() != Code::kNotFound) report.reason = file.status().message();
      report.weight_cache = WeightCacheStatus::kWritten;
      Status written = write_file(target, arrays, options);
      if (written.ok())
        file = open_checked(target, options);
      else
        file = written;
    }
    if (file.ok()) {
      weights.file_ = std::move(*file);
      weights.data_ = weights.file_.bytes().data() + target.block_offset();
      return weights;
    }
    report.weight_cache = WeightCacheStatus::kFailed;
    report.reason = file.status().message();
  }
  DS_ASSIGN(weights.memory_, HostBuffer::make(weights.size_, "weights"));
  weights.data_ = weights.memory_.data();
  for (const WeightArray& a : arrays) {
    DS_TRY(a.make(weights.memory_.data() + a.offset));
    if (options.progress) options.progress(a.offset + a.bytes, weights.size_);
  }
  return weights;
}

}  // namespace cpu
}  // namespace ds
