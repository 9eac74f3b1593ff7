#include "support/file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <vector>

#include "support/mapping_guard_internal.h"

namespace ds {

Status io_error(std::string_view what, std::string_view path) {
  int number = errno;
  Code code = Code::kIo;
  switch (number) {
    case ENOENT:
    case ENOTDIR:
      code = Code::kNotFound;
      break;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
    case ENOMEM:
    case EMFILE:
    case ENFILE:
      code = Code::kExhausted;
      break;
    default:
      break;
  }
  return error(code, "cannot {} '{}': {}", what, path, std::strerror(number));
}

namespace {

FileStamp stamp_of(const struct stat& info) {
  auto ns = [](const timespec& t) { return int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec; };
  return {static_cast<int64_t>(info.st_dev), static_cast<int64_t>(info.st_ino), info.st_size,
          ns(info.st_mtim), ns(info.st_ctim)};
}

}  // namespace

bool file_exists(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::exists(path, ignored);
}

Result<FileStamp> file_stamp(const std::string& path) {
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) return io_error("stat", path);
  return stamp_of(info);
}

MappedFile::MappedFile(MappedFile&& other) noexcept { *this = std::move(other); }

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(path_, other.path_);
  std::swap(stamp_, other.stamp_);
  std::swap(fd_, other.fd_);
  std::swap(guard_, other.guard_);
  return *this;
}

MappedFile::~MappedFile() {
  if (guard_ != nullptr) detail::unguard_mapping(guard_);
  if (data_ != nullptr) munmap(const_cast<std::byte*>(data_), size_);
  if (fd_ >= 0) close(fd_);
}

Result<MappedFile> MappedFile::open(const std::string& path) {
  int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return io_error("open", path);
  struct stat info {};
  if (fstat(fd, &info) != 0) {
    Status status = io_error("stat", path);
    close(fd);
    return status;
  }
  if (!S_ISREG(info.st_mode)) {
    close(fd);
    return error(Code::kInvalidArgument, "'{}' is not a regular file; give the path of a file", path);
  }
  MappedFile file;
  file.path_ = path;
  file.stamp_ = stamp_of(info);
  file.size_ = static_cast<size_t>(info.st_size);
  if (file.size_ > 0) {
    void* data = mmap(nullptr, file.size_, PROT_READ, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED) {
      Status status = io_error("map", path);
      close(fd);
      return status;
    }
    file.data_ = static_cast<const std::byte*>(data);
    file.guard_ = detail::guard_mapping(data, file.size_);
  }
  file.fd_ = fd;
  return file;
}

Status MappedFile::intact() const {
  if (fd_ < 0) return ok_status();
  // The size as well: what is missing of a last page reads as zeros, without a signal.
  struct stat info {};
  if (fstat(fd_, &info) != 0) return io_error("stat", path_);
  const auto now = static_cast<size_t>(info.st_size);
  if (now < size_)
    return error(
        Code::kCorrupt,
        "'{}' was cut short while it was in use: it had {} bytes when it was opened, it has {} now; give "
        "a file that nobody writes to",
        path_, size_, now);
  if (guard_ != nullptr && detail::mapping_torn(*guard_))
    return error(
        Code::kCorrupt,
        "'{}' could not be read while it was in use: it was cut short meanwhile, or its disk failed (see "
        "dmesg)",
        path_);
  return ok_status();
}

Result<std::string> read_text_file(const std::string& path, int64_t limit) {
  int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return io_error("open", path);
  struct stat info {};
  Status status = fstat(fd, &info) != 0   ? io_error("stat", path)
                  : S_ISDIR(info.st_mode) ? error(Code::kInvalidArgument,
                                                  "'{}' is not a regular file; give the path of a file", path)
                                          : ok_status();
  auto too_large = [&](int64_t bytes, std::string_view more) {
    return error(Code::kInvalidArgument, "'{}' has {} bytes{}, more than the {} that such a file may have",
                 path, bytes, more, limit);
  };
  if (status.ok() && S_ISREG(info.st_mode) && info.st_size > limit) status = too_large(info.st_size, "");
  // Until its end, wherever that is by then: a pipe and a file that grows or shrinks have no size.
  std::string content;
  if (status.ok()) content.resize(static_cast<size_t>(std::max<int64_t>(info.st_size + 1, 64 << 10)));
  size_t used = 0;
  while (status.ok()) {
    if (used == content.size()) content.resize(2 * used);
    ssize_t got = ::read(fd, content.data() + used, content.size() - used);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) status = io_error("read", path);
    if (got <= 0) break;
    used += static_cast<size_t>(got);
    if (static_cast<int64_t>(used) > limit) status = too_large(static_cast<int64_t>(used), " and more");
  }
  content.resize(used);
  close(fd);
  if (!status.ok()) return status;
  return content;
}

Status write_fully(int fd, std::span<const std::byte> bytes, std::string_view path) {
  while (!bytes.empty()) {
    ssize_t written = ::write(fd, bytes.data(), bytes.size());
    if (written < 0) {
      if (errno == EINTR) continue;
      return io_error("write", path);
    }
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
  return ok_status();
}

namespace {

/// A new file beside `path`, whose name is left in `temporary`. The system applies the umask, which cannot be
/// asked for without changing it for all threads.
Result<int> create_beside(const std::string& path, mode_t mode, std::string& temporary) {
  constexpr std::string_view kLetters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
  for (int tries = 0; tries < 100; ++tries) {
    unsigned char random[6];
    if (getrandom(random, sizeof(random), 0) != sizeof(random)) return io_error("draw a name for", path);
    temporary = path + ".tmp-";
    for (unsigned char r : random) temporary += kLetters[r % kLetters.size()];
    int fd = ::open(temporary.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, mode);
    if (fd >= 0) return fd;
    if (errno != EEXIST) break;
  }
  return io_error("create a file beside", path);
}

}  // namespace

Status write_file_atomically(const std::string& path, const std::function<Status(int fd)>& write,
                             const WriteOptions& options) {
  if (path == "-") return write(STDOUT_FILENO);
  namespace fs = std::filesystem;
  std::error_code ignored;
  if (fs::exists(path, ignored) && !fs::is_regular_file(path, ignored)) {
    // A device or pipe (/dev/stdout, /dev/full) cannot be replaced by rename: write straight into it.
    if (fs::is_directory(path, ignored)) {
      return error(Code::kInvalidArgument, "'{}' is a folder; give the path of a file", path);
    }
    int fd = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
    if (fd < 0) return io_error("open", path);
    Status status = write(fd);
    close(fd);
    return status;
  }
  std::string temporary;
  DS_ASSIGN(int fd, create_beside(path, options.owner_only ? 0600 : 0666, temporary));
  Status status = write(fd);
  if (status.ok() && options.flush && fsync(fd) != 0) status = io_error("flush", temporary);
  if (close(fd) != 0 && status.ok()) status = io_error("close", temporary);
  if (status.ok() && rename(temporary.c_str(), path.c_str()) != 0)
    status = io_error("rename into place", path);
  if (!status.ok()) unlink(temporary.c_str());
  return status;
}

Status write_file_atomically(const std::string& path, std::string_view content, const WriteOptions& options) {
  return write_file_atomically(
      path,
      [&](int fd) { return write_fully(fd, std::as_bytes(std::span(content.data(), content.size())), path); },
      options);
}

Status flush_folder(const std::string& path) {
  int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return errno == EACCES ? ok_status() : io_error("open the folder", path);
  Status status = fsync(fd) != 0 && errno != EINVAL ? io_error("flush the folder", path) : ok_status();
  close(fd);
  return status;
}

Status make_folders(const std::string& path, unsigned mode) {
  namespace fs = std::filesystem;
  std::error_code ignored;
  if (fs::is_directory(path, ignored)) return ok_status();
  // Those that are missing, the innermost first.
  std::vector<std::string> missing;
  fs::path folder(path);
  for (; !folder.empty() && !fs::exists(folder, ignored); folder = folder.parent_path()) {
    if (folder.has_filename() && folder.filename() != ".")
      missing.push_back(folder.string());  // "a/." is "a"
    if (folder == folder.parent_path()) break;
  }
  for (size_t i = missing.size(); i-- > 0;) {
    if (mkdir(missing[i].c_str(), i == 0 ? mode : 0777) != 0 && errno != EEXIST) {
      if (errno != ENOTDIR) return io_error("create the folder", path);
      break;
    }
    const std::string parent = fs::path(missing[i]).parent_path().string();
    DS_TRY(flush_folder(parent.empty() ? "." : parent));
  }
  if (fs::is_directory(path, ignored)) return ok_status();
  return error(Code::kInvalidArgument, "cannot create the folder '{}': {}; give the path of a folder", path,
               std::strerror(ENOTDIR));
}

FileLock::~FileLock() {
  if (fd_ < 0) return;
  unlink(path_.c_str());  // while it is held: nobody can have locked what has this name
  close(fd_);
}

Result<bool> FileLock::take(std::string path) {
  for (;;) {
    int fd = ::open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0666);
    if (fd < 0) return io_error("make the lock", path);
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
      Status status = errno == EWOULDBLOCK ? ok_status() : io_error("lock", path);
      close(fd);
      if (!status.ok()) return status;
      return false;
    }
    // Whoever held it before may have removed the file between the two calls: then this is a lock on a file
    // that nobody else will ever open, and the next one who comes would make a new one.
    struct stat locked {
    }, named{};
    const bool same = fstat(fd, &locked) == 0 && stat(path.c_str(), &named) == 0 &&
                      locked.st_dev == named.st_dev && locked.st_ino == named.st_ino;
    if (same) {
      path_ = std::move(path);
      fd_ = fd;
      return true;
    }
    close(fd);
  }
}

}  // namespace ds
