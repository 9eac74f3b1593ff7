// Objects as files of one folder. A put writes a temporary file beside the others, flushes it and renames it
// into place, so that readers see the old object or the whole new one; a reader keeps its file open and is
// not disturbed by either.
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <ctime>
#include <filesystem>

#include "runtime/store/file_index_internal.h"
#include "runtime/store/file_live_internal.h"
#include "runtime/store/file_object_internal.h"
#include "runtime/store/file_store_internal.h"
#include "runtime/store/store_internal.h"
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

class FileStore final : public Store {
 public:
  explicit FileStore(std::string folder)
      : folder_(std::move(folder)), index_(folder_, *this), live_(folder_) {}

  std::string url() const override { return "file:" + folder_; }

  Status put(const std::string& key, const Produce& produce, Names names) override {
    DS_TRY(check_store_key(key));
    DS_TRY(check_store_names(names));
    DS_TRY(make_folders(folder_, kFolderMode));
    remove_leftovers();
    std::string path = path_of(key);
    int64_t written = 0;
    DS_TRY(write_file_atomically(path,
                                 [&](int fd) {
                                   return produce([&](std::span<const std::byte> bytes) {
                                     written += static_cast<int64_t>(bytes.size());
                                     return write_fully(fd, bytes, path);
                                   });
                                 },
                                 {.owner_only = true}));
    DS_TRY(flush_folder(folder_));
    if (!names.empty()) index_.add(key, written, names);
    return ok_status();
  }

  Result<Found> find(Names keys, Names names) override {
    DS_TRY(check_store_names(names));
    Found found;
    for (const std::string& key : keys) {
      DS_TRY(check_store_key(key));
      struct stat info {};
      const bool there = stat(path_of(key).c_str(), &info) == 0;
      if (!there && errno != ENOENT) return io_error("look up", path_of(key));
      // What is no file is for open() to say.
      found.keys.push_back(there ? std::optional(ObjectRef{key, info.st_size, 0}) : std::nullopt);
    }
    found.names.resize(names.size());
    if (names.empty() || !fs::is_directory(folder_)) return found;
    DS_ASSIGN(found.names, index_.find(names));
    return found;
  }

  Result<std::vector<ObjectInfo>> list(std::string_view begins) override {
    std::vector<ObjectInfo> all;
    std::error_code failure;
    fs::directory_iterator end;
    fs::directory_iterator it(folder_, failure);
    if (failure == std::errc::no_such_file_or_directory) return all;
    for (; !failure && it != end; it.increment(failure)) {
      ObjectInfo object{.key = it->path().filename().native()};
      struct stat info {};
      if (!object.key.starts_with(begins) || !check_store_key(object.key).ok() ||
          lstat(it->path().c_str(), &info) != 0 || !S_ISREG(info.st_mode))
        continue;
      object.bytes = info.st_size;
      object.written_s = info.st_mtim.tv_sec;
      object.used_s = std::max(info.st_atim.tv_sec, info.st_mtim.tv_sec);
      object.pinned = file_exists(pin_of(object.key));
      all.push_back(std::move(object));
    }
    if (failure) return error(Code::kIo, "cannot list store '{}': {}", url(), failure.message());
    std::sort(all.begin(), all.end(), [](auto& a, auto& b) { return a.key < b.key; });
    return all;
  }

  // The time of access says it: set by hand it is right on file systems too that do not keep it.
  void touch(const std::string& key) override {
    if (!check_store_key(key).ok()) return;
    const timespec times[] = {{0, UTIME_NOW}, {0, UTIME_OMIT}};
    (void)utimensat(AT_FDCWD, path_of(key).c_str(), times, 0);
  }

  Status pin(const std::string& key, bool pinned) override {
    DS_TRY(check_store_key(key));
    struct stat info {};
    if (const std::string path = path_of(key); stat(path.c_str(), &info) != 0)
      return open_error("pin", key, path);
    const std::string path = pin_of(key);
    if (!pinned) return unlink(path.c_str()) == 0 || errno == ENOENT ? ok_status() : io_error("unpin", path);
    DS_TRY(make_folders(fs::path(path).parent_path().native(), kFolderMode));
    const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) return io_error("pin", path);
    close(fd);
    return flush_folder(fs::path(path).parent_path().native());
  }

  // Readers hold a lock on the file (open()); between its being found and being opened it may go all the
  // same, which is a miss.
  Result<bool> evict(const std::string& key) override {
    DS_TRY(check_store_key(key));
    const std::string path = path_of(key);
    if (file_exists(pin_of(key))) return false;
    const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
    if (fd < 0) return open_error("evict", key, path);
    const bool free = flock(fd, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK;
    Status status = !free ? ok_status() : remove(key);
    close(fd);
    if (!status.ok()) return status;
    return free;
  }

  Result<std::unique_ptr<StoreObject>> open(const std::string& key) override {
    DS_TRY(check_store_key(key));
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
    // Who evicts leaves alone what is locked; whoever cannot lock reads all the same, a file that is gone
    // too.
    (void)flock(fd, LOCK_SH | LOCK_NB);
    return open_file_object(std::make_shared<FileHandle>(fd), 0, info.st_size, std::move(path));
  }

  Result<std::unique_ptr<LiveWriter>> begin_live(const std::string& key, std::string_view head,
                                                 Names names) override {
    DS_TRY(check_store_key(key));
    DS_TRY(check_store_names(names));
    DS_TRY(make_folders(folder_, kFolderMode));
    return live_.begin(key, head, names);
  }
  Result<std::vector<std::vector<ObjectRef>>> find_live(Names names, std::string_view tenant) override {
    DS_TRY(check_store_names(names));
    return live_.find(names, tenant);
  }
  bool live_ends_unseen() const override { return true; }
  Result<std::unique_ptr<LiveObject>> follow(const ObjectRef& found) override {
    DS_TRY(check_store_key(found.key));
    return live_.follow(found.key);
  }
  Result<std::vector<LiveInfo>> list_live() override { return live_.list(); }
  Result<int64_t> remove_dead() override { return live_.remove_dead(); }

  Status remove(const std::string& key) override {
    DS_TRY(check_store_key(key));
    std::string path = path_of(key);
    if (unlink(path.c_str()) != 0) return open_error("remove", key, path);
    unlink(pin_of(key).c_str());
    return ok_status();
  }

 private:
  std::string pin_of(const std::string& key) const { return folder_ + "/.pins/" + key; }
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
  FileIndex index_;
  FileLive live_;
};

}  // namespace

std::unique_ptr<Store> make_file_store(std::string folder) {
  return std::make_unique<FileStore>(std::move(folder));
}

}  // namespace ds
