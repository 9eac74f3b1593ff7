// Files: reading (mapped, or copied), atomic writing, folders, locks.
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

namespace detail {
struct GuardedMapping;
}

/// Is there a file or folder of that name (links are followed)? False where that cannot be told.
bool file_exists(const std::string& path);

/// A file mapped read-only; its pages are shared with the page cache, nothing is copied. For what is large;
/// smaller inputs are read with read_text_file().
///
/// Where another process cuts the file short, or its disk fails, reading what is no longer there raises
/// SIGBUS. A handler of ours, set for the process when the first file is mapped, puts zeros there instead and
/// makes intact() fail; it knows our mappings only and leaves every other SIGBUS to who handled it before. So
/// whoever has used the bytes asks intact() before using what came of them.
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

  /// kCorrupt: the file has lost bytes since it was opened, or they cannot be read; what was read may have
  /// been zeros. A system call; thread-safe.
  Status intact() const;

 private:
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
  std::string path_;
  FileStamp stamp_;
  int fd_ = -1;  // kept for its size
  detail::GuardedMapping* guard_ = nullptr;
};

/// The whole of a file, or of a pipe until its end, copied. Errors: kNotFound, kIo; kInvalidArgument when
/// larger than `limit` bytes, or a folder.
Result<std::string> read_text_file(const std::string& path, int64_t limit = int64_t{1} << 30);

struct WriteOptions {
  bool flush =
      true;  // false: does not wait for the disk, for files that carry checksums and can be made again
  /// For what is, or can be read back into, somebody's text: mode 0600, whatever the umask. Else the umask
  /// decides (0666 without its bits).
  bool owner_only = false;
};

/// Writes `path` through a temporary file in the same folder, fsync and rename: readers see the old file or
/// the whole new one. A failure (a full disk included) leaves no temporary file behind. "-" writes to stdout.
Status write_file_atomically(const std::string& path, std::string_view content,
                             const WriteOptions& options = {});

/// The same, for content that is produced piece by piece through `write(fd)`.
Status write_file_atomically(const std::string& path, const std::function<Status(int fd)>& write,
                             const WriteOptions& options = {});

/// Makes the folder `path` with `mode` (less the umask's bits) where it is missing, and the folders above it
/// with the umask's mode alone; all that it has made is on stable storage when it returns. Errors: kIo,
/// kExhausted; kInvalidArgument where something else has that name.
Status make_folders(const std::string& path, unsigned mode = 0777);

/// Flushes a folder: its entries are on stable storage. One that may not be listed, or lies on a file system
/// that cannot do it, counts as flushed.
Status flush_folder(const std::string& path);

/// A lock between processes, and between objects of one process: a file that its holder has locked (flock).
/// Given up, and the file removed, when the object or the process ends.
class FileLock {
 public:
  FileLock() = default;
  FileLock(const FileLock&) = delete;
  ~FileLock();
  /// Without waiting. False: somebody else has it. Errors: kNotFound (no such folder), kIo, kExhausted.
  Result<bool> take(std::string path);

 private:
  std::string path_;
  int fd_ = -1;
};

/// write(2) until all is written; kExhausted for a full disk or quota, kIo otherwise.
Status write_fully(int fd, std::span<const std::byte> bytes, std::string_view path);

}  // namespace ds
