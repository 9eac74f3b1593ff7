// Files: mapped reading, atomic writing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "support/status.h"

namespace ds {

/// The Status of a failed system call: "cannot <what> '<path>': <text of errno>". kNotFound, kExhausted
/// (disk, quota, size limit, memory, descriptors) or kIo.
Status io_error(std::string_view what, std::string_view path);

/// What changes whenever a file is written, replaced or moved in from elsewhere; equal stamps of one path
/// mean the same content. (The change time cannot be set back, unlike the time of modification.)
struct FileStamp {
  int64_t device = 0, inode = 0, bytes = 0, modified_ns = 0, changed_ns = 0;
  bool operator==(const FileStamp&) const = default;
};
/// Errors: kNotFound, kIo.
Result<FileStamp> file_stamp(const std::string& path);

/// A file mapped read-only; its pages are shared with the page cache, nothing is copied.
class MappedFile {
 public:
  MappedFile() = default;
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  /// Errors: kNotFound, kIo. An empty file maps to an empty span.
  static Result<MappedFile> open(const std::string& path);

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::string& path() const { return path_; }
  const FileStamp& stamp() const { return stamp_; }  // as it was when it was opened

 private:
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
  std::string path_;
  FileStamp stamp_;
};

/// The whole of a small file. Errors: kNotFound, kIo; kInvalidArgument when larger than `limit` bytes.
Result<std::string> read_text_file(const std::string& path, int64_t limit = int64_t{1} << 30);

/// Writes `path` through a temporary file in the same folder, fsync and rename: readers see the old file or
/// the whole new one. A failure (a full disk included) leaves no temporary file behind. "-" writes to stdout.
Status write_file_atomically(const std::string& path, std::string_view content);

/// As write_file_atomically, for content that is produced piece by piece through `write(fd)`. Without `flush`
/// it does not wait for the disk: for files that carry checksums and can be made again.
Status write_file_atomically(const std::string& path, const std::function<Status(int fd)>& write,
                             bool flush = true);

/// write(2) until all is written; kExhausted for a full disk or quota, kIo otherwise.
Status write_fully(int fd, std::span<const std::byte> bytes, std::string_view path);

}  // namespace ds
