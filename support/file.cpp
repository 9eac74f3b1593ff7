#include "support/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

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
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<std::byte*>(data_), size_);
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
  }
  close(fd);
  return file;
}

Result<std::string> read_text_file(const std::string& path, int64_t limit) {
  DS_ASSIGN(MappedFile file, MappedFile::open(path));
  auto bytes = file.bytes();
  if (static_cast<int64_t>(bytes.size()) > limit) {
    return error(Code::kInvalidArgument, "'{}' has {} bytes, more than the {} that such a file may have",
                 path, bytes.size(), limit);
  }
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
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

Status write_file_atomically(const std::string& path, const std::function<Status(int fd)>& write,
                             bool flush) {
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
  std::string temporary = path + ".tmp-XXXXXX";
  int fd = mkostemp(temporary.data(), O_CLOEXEC);
  if (fd < 0) return io_error("create a file beside", path);
  Status status = write(fd);
  if (status.ok() && fchmod(fd, 0644) != 0) status = io_error("set the mode of", temporary);
  if (status.ok() && flush && fsync(fd) != 0) status = io_error("flush", temporary);
  if (close(fd) != 0 && status.ok()) status = io_error("close", temporary);
  if (status.ok() && rename(temporary.c_str(), path.c_str()) != 0)
    status = io_error("rename into place", path);
  if (!status.ok()) unlink(temporary.c_str());
  return status;
}

Status write_file_atomically(const std::string& path, std::string_view content) {
  return write_file_atomically(path, [&](int fd) {
    return write_fully(fd, std::as_bytes(std::span(content.data(), content.size())), path);
  });
}

}  // namespace ds
