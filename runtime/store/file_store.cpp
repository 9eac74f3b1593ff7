// Objects as files of one folder. A put writes a temporary file beside the others, flushes it and renames it
// into place, so that readers see the old object or the whole new one; a reader keeps its file open and is
// not disturbed by either.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <ctime>
#include <filesystem>

#include "runtime/store/file_store_internal.h"
#include "support/file.h"

namespace ds {
namespace {

namespace fs = std::filesystem;

// K and V can be read back into the context's text: a store that nobody has made is its maker's alone, as its
// objects are wherever they lie.
constexpr unsigned kFolderMode = 0700;

constexpr time_t kLeftoverSeconds =
    3600;  // a temporary file not written to for so long has no writer any more

// write_file_atomically() names its temporary files so.
bool is_temporary(std::string_view name) {
  return name.size() > 11 && name.substr(name.size() - 11, 5) == ".tmp-";
}

Status check_key(std::string_view key) {
  auto good = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
  };
  bool ok = !key.empty() && key.size() <= 200 && key[0] != '.' && key.find(".tmp-") == key.npos;
  for (char c : key) ok = ok && good(c);
  if (ok) return ok_status();
  return error(Code::kInvalidArgument,
               "bad key '{:.40}' ({} characters); expected 1 to 200 of A-Z a-z 0-9 . _ -, not starting with "
               "'.', without '.tmp-'",
               key, key.size());
}

/// A part of a read: small enough that who is told of it finds it in the second-level cache, large enough
/// that the calls cost nothing.
constexpr size_t kPart = 256 << 10;

class FileObject final : public StoreObject {
 public:
  FileObject(int fd, int64_t size, std::string path) : fd_(fd), size_(size), path_(std::move(path)) {}
  FileObject(const FileObject&) = delete;
  ~FileObject() override { close(fd_); }

  int64_t size() const override { return size_; }

  Status read_by_parts(int64_t offset, std::span<std::byte> out, const Arrived& arrived) override {
    if (offset < 0) return error(Code::kInvalidArgument, "cannot read '{}' from byte {}", path_, offset);
    while (!out.empty()) {
      ssize_t got = pread(fd_, out.data(), std::min(out.size(), kPart), offset);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return io_error("read", path_);
      if (got == 0) {
        return error(Code::kCorrupt, "'{}' ends at or before byte {}; {} more bytes were expected there",
                     path_, offset, out.size());
      }
      DS_TRY(arrived(out.first(static_cast<size_t>(got))));
      offset += got;
      out = out.subspan(static_cast<size_t>(got));
    }
    return ok_status();
  }

 private:
  int fd_;
  int64_t size_;
  std::string path_;
};

class FileStore final : public Store {
 public:
  explicit FileStore(std::string folder) : folder_(std::move(folder)) {}

  std::string url() const override { return "file:" + folder_; }

  Status put(const std::string& key, const Produce& produce, Names) override {
    DS_TRY(check_key(key));
    DS_TRY(make_folders(folder_, kFolderMode));
    remove_leftovers();
    std::string path = path_of(key);
    DS_TRY(write_file_atomically(path,
                                 [&](int fd) {
                                   return produce([&](std::span<const std::byte> bytes) {
                                     return write_fully(fd, bytes, path);
                                   });
                                 },
                                 {.owner_only = true}));
    return flush_folder(folder_);
  }

  Result<std::unique_ptr<StoreObject>> open(const std::string& key) override {
    DS_TRY(check_key(key));
    std::string path = path_of(key);
    // Non-blocking only so that a pipe put there by mistake does not hang; it means nothing for files.
    int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return open_error("open", key, path);
    struct stat info {};
    Status status = fstat(fd, &info) != 0 ? io_error("stat", path)
                    : !S_ISREG(info.st_mode)
                        ? error(Code::kCorrupt, "'{}' is not a regular file; objects are files", path)
                        : ok_status();
    if (!status.ok()) {
      close(fd);
      return status;
    }
    return std::unique_ptr<StoreObject>(std::make_unique<FileObject>(fd, info.st_size, std::move(path)));
  }

  Status remove(const std::string& key) override {
    DS_TRY(check_key(key));
    std::string path = path_of(key);
    if (unlink(path.c_str()) != 0) return open_error("remove", key, path);
    return ok_status();
  }

 private:
  std::string path_of(const std::string& key) const { return folder_ + "/" + key; }

  Status open_error(std::string_view what, const std::string& key, const std::string& path) const {
    if (errno != ENOENT) return io_error(what, path);
    struct stat info {};
    bool folder = stat(folder_.c_str(), &info) == 0;
    return error(Code::kNotFound, "no object '{}' in store '{}'{}", key, url(),
                 folder ? "" : ": the folder does not exist");
  }

  // Writers that died leave their temporary file. Looked for at the first put and then at most once an hour.
  void remove_leftovers() {
    time_t now = time(nullptr);
    time_t due = next_cleaning_.load();
    if (now < due || !next_cleaning_.compare_exchange_strong(due, now + kLeftoverSeconds)) return;
    std::error_code ignored;
    fs::directory_iterator end;
    for (fs::directory_iterator it(folder_, ignored); !ignored && it != end; it.increment(ignored)) {
      struct stat info {};
      if (!is_temporary(it->path().filename().native())) continue;
      if (lstat(it->path().c_str(), &info) != 0 || !S_ISREG(info.st_mode)) continue;
      if (now - info.st_mtime > kLeftoverSeconds) unlink(it->path().c_str());
    }
  }

  std::string folder_;
  std::atomic<time_t> next_cleaning_ = 0;
};

}  // namespace

std::unique_ptr<Store> make_file_store(std::string folder) {
  return std::make_unique<FileStore>(std::move(folder));
}

}  // namespace ds
