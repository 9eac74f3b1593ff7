#include "runtime/store/file_live_internal.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <optional>
#include <unordered_map>

#include "runtime/store/file_object_internal.h"
#include "runtime/store/keep.h"
#include "runtime/store/store_internal.h"
#include "support/clock.h"
#include "support/file.h"
#include "support/hash.h"

namespace ds {
namespace {

namespace fs = std::filesystem;

constexpr time_t kBeginningSeconds = 60;  // a file not written to for so long is not just being begun

/// In front of each record's head and payload. Behind the last record: one of no bytes at all.
struct Frame {
  static constexpr uint64_t kMagic = 0x4443455256494c44;  // "DLIVRECD"
  uint64_t magic = kMagic;
  uint64_t head_bytes = 0, payload_bytes = 0;
  uint64_t checksum = 0;  // of the numbers above and the head

  uint64_t right_checksum(std::string_view head) const {
    StreamingChecksum sum;
    sum.update(std::as_bytes(std::span(this, 1)).first(offsetof(Frame, checksum)));
    sum.update(std::as_bytes(std::span(head.data(), head.size())));
    return sum.value();
  }
  bool last() const { return head_bytes == 0 && payload_bytes == 0; }
};
constexpr uint64_t kMostHeadBytes = uint64_t{64} << 20, kMostPayload = uint64_t{1} << 40;

Status write_record(int fd, std::string_view head, std::span<const std::byte> payload,
                    const std::string& path) {
  Frame frame;
  frame.head_bytes = head.size();
  frame.payload_bytes = payload.size();
  frame.checksum = frame.right_checksum(head);
  std::string front(reinterpret_cast<const char*>(&frame), sizeof frame);
  front += head;
  DS_TRY(write_fully(fd, std::as_bytes(std::span(front.data(), front.size())), path));
  return write_fully(fd, payload, path);
}

/// Whether nobody writes the file any more.
bool abandoned(int fd) {
  if (flock(fd, LOCK_SH | LOCK_NB) != 0) return false;
  (void)flock(fd, LOCK_UN);
  return true;
}

bool same_file(int fd, const std::string& path) {
  struct stat mine {
  }, theirs{};
  return fstat(fd, &mine) == 0 && stat(path.c_str(), &theirs) == 0 && mine.st_ino == theirs.st_ino &&
         mine.st_dev == theirs.st_dev;
}

/// Reads whole records from the file's beginning on.
class Records {
 public:
  Records(std::shared_ptr<FileHandle> file, std::string path)
      : file_(std::move(file)), path_(std::move(path)) {}

  struct Record {
    std::string head;
    int64_t payload_at = 0, payload_bytes = 0;
  };
  /// The next one; none: it is not there, or not whole.
  Result<std::optional<Record>> next() {
    struct stat info {};
    if (fstat(file_->fd, &info) != 0) return io_error("stat", path_);
    const auto left = static_cast<uint64_t>(std::max<int64_t>(0, info.st_size - at_));
    Frame frame;
    if (ended_ || left < sizeof frame) return std::optional<Record>();
    DS_TRY(read(at_, std::as_writable_bytes(std::span(&frame, 1))));
    if (frame.magic != Frame::kMagic || frame.head_bytes > kMostHeadBytes ||
        frame.payload_bytes > kMostPayload)
      return error(Code::kCorrupt, "'{}' has no record at byte {}", path_, at_);
    if (left - sizeof frame < frame.head_bytes + frame.payload_bytes) return std::optional<Record>();
    Record record;
    record.head.resize(frame.head_bytes);
    const int64_t head_at = at_ + static_cast<int64_t>(sizeof frame);
    DS_TRY(read(head_at, std::as_writable_bytes(std::span(record.head))));
    if (frame.checksum != frame.right_checksum(record.head))
      return error(Code::kCorrupt, "'{}' has a record at byte {} that is damaged", path_, at_);
    record.payload_at = head_at + static_cast<int64_t>(frame.head_bytes);
    record.payload_bytes = static_cast<int64_t>(frame.payload_bytes);
    at_ = record.payload_at + record.payload_bytes;
    ended_ = frame.last();
    if (ended_) return std::optional<Record>();
    return std::optional(std::move(record));
  }
  bool ended() const { return ended_; }

 private:
  Status read(int64_t at, std::span<std::byte> out) const {
    return open_file_object(file_, 0, 0, path_)->read(at, out);
  }

  const std::shared_ptr<FileHandle> file_;
  const std::string path_;
  int64_t at_ = 0;
  bool ended_ = false;
};

class FileLiveWriter final : public LiveWriter {
 public:
  FileLiveWriter(int fd, std::string path) : file_(fd), path_(std::move(path)) {}
  // Taken away before its lock goes, so that nobody finds a dead one.
  ~FileLiveWriter() override { remove(); }

  Status append(std::string_view head, std::span<const std::byte> payload) override {
    return write_record(file_.fd, head, payload, path_);
  }
  Status end() override {
    Status status = write_record(file_.fd, {}, {}, path_);
    remove();
    return status;
  }

 private:
  // Somebody else may have begun the same one since.
  void remove() const {
    if (same_file(file_.fd, path_)) unlink(path_.c_str());
  }

  const FileHandle file_;
  const std::string path_;
};

class FileLiveObject final : public LiveObject {
 public:
  FileLiveObject(std::shared_ptr<FileHandle> file, std::string path)
      : file_(std::move(file)), path_(std::move(path)), records_(file_, path_) {}
  ~FileLiveObject() override {
    for (int fd : {notify_, stop_})
      if (fd >= 0) close(fd);
  }

  /// The names come first: they are not the reader's.
  Status begin() {
    // By the open file, which may have another name by now, or none.
    notify_ = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    stop_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    const std::string opened = fmt::format("/proc/self/fd/{}", file_->fd);
    if (notify_ >= 0) (void)inotify_add_watch(notify_, opened.c_str(), IN_MODIFY | IN_CLOSE_WRITE);
    DS_ASSIGN(auto names, records_.next());
    if (names) return ok_status();
    return error(Code::kCorrupt, "'{}' does not begin as what is still being written does", path_);
  }

  Result<News> wait(const std::function<Status()>& waiting) override {
    const int64_t until = now_ns() + kWaitNs;
    // Where nobody tells of changes (a folder on a network), and where a writer that is gone has not let go
    // of its lock yet, it is looked at by the clock.
    bool look = true;
    for (;;) {
      DS_ASSIGN(News news, take());
      if (!news.records.empty() || news.ended) return news;
      if (look && abandoned(file_->fd)) {
        DS_ASSIGN(News last, take());
        if (!last.records.empty() || last.ended) return last;
        return error(Code::kNotFound,
                     "'{}' is still being written, but not by anybody: its writer has died, or given up",
                     path_);
      }
      if (now_ns() >= until) return news;
      if (waiting) DS_TRY(waiting());
      pollfd changes[] = {{notify_, POLLIN, 0}, {stop_, POLLIN, 0}};  // what is none is passed over
      look = poll(changes, 2, closed_ ? 5 : 50) > 0 ? heard() : closed_;
    }
  }

  void stop() override { (void)eventfd_write(stop_, 1); }

  Result<std::unique_ptr<StoreObject>> payload(int64_t record) override {
    std::lock_guard lock(mutex_);
    if (record < 0 || record >= static_cast<int64_t>(payloads_.size()))
      return error(Code::kInvalidArgument, "'{}' has {} records, {} was asked for", path_, payloads_.size(),
                   record);
    const auto [at, bytes] = payloads_[static_cast<size_t>(record)];
    return open_file_object(file_, at, bytes, path_);
  }

 private:
  static constexpr int64_t kWaitNs = 1'000'000'000;

  Result<News> take() {
    News news;
    for (;;) {
      DS_ASSIGN(auto record, records_.next());
      if (!record) break;
      std::lock_guard lock(mutex_);
      payloads_.emplace_back(record->payload_at, record->payload_bytes);
      news.records.push_back({std::move(record->head), record->payload_bytes});
    }
    news.ended = records_.ended();
    return news;
  }

  /// What the kernel has to tell: whether somebody has closed the file. It says so before the lock goes.
  bool heard() {
    alignas(inotify_event) std::array<char, 4096> events;
    for (ssize_t got = 0; (got = read(notify_, events.data(), events.size())) > 0;)
      for (const char* at = events.data(); at < events.data() + got;) {
        inotify_event event{};
        std::memcpy(&event, at, sizeof event);
        closed_ = closed_ || (event.mask & IN_CLOSE_WRITE) != 0;
        at += sizeof event + event.len;
      }
    return closed_;
  }

  const std::shared_ptr<FileHandle> file_;
  const std::string path_;
  Records records_;
  int notify_ = -1, stop_ = -1;
  bool closed_ = false;
  std::mutex mutex_;
  std::vector<std::pair<int64_t, int64_t>> payloads_;  // by record: where, bytes
};

/// Files of the folder, open, of one tenant where that is given; none where there is no folder.
struct Opened {
  std::string key, path;
  std::shared_ptr<FileHandle> file;
  struct stat info {};
  bool begun = false;  // else it has its writer's temporary name
};
Result<std::vector<Opened>> open_all(const std::string& folder,
                                     std::optional<std::string_view> tenant = std::nullopt) {
  std::vector<Opened> all;
  std::error_code failure;
  fs::directory_iterator end, it(folder, failure);
  if (failure == std::errc::no_such_file_or_directory) return all;
  for (; !failure && it != end; it.increment(failure)) {
    Opened o{.key = it->path().filename().native(), .path = it->path().native()};
    if (tenant && key_tenant(o.key) != *tenant) continue;
    const int fd = open(o.path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
    if (fd < 0) continue;
    o.file = std::make_shared<FileHandle>(fd);
    if (fstat(fd, &o.info) != 0 || !S_ISREG(o.info.st_mode)) continue;
    o.begun = check_store_key(o.key).ok();
    all.push_back(std::move(o));
  }
  if (failure) return error(Code::kIo, "cannot list '{}': {}", folder, failure.message());
  std::sort(all.begin(), all.end(), [](auto& a, auto& b) { return a.key < b.key; });
  return all;
}

}  // namespace

Result<std::unique_ptr<LiveWriter>> FileLive::begin(const std::string& key, std::string_view head,
                                                    Store::Names names) const {
  DS_TRY(make_folders(folder_, 0700));
  (void)remove_dead();
  const std::string path = folder_ + "/" + key;
  std::string temporary = path + ".tmp-XXXXXX";
  const int fd = mkostemp(temporary.data(), O_CLOEXEC);
  if (fd < 0) return io_error("create", temporary);
  auto writer = std::make_unique<FileLiveWriter>(fd, path);
  // Whoever finds it finds it locked.
  Status status = flock(fd, LOCK_EX | LOCK_NB) == 0 ? ok_status() : io_error("lock", temporary);
  if (status.ok())
    status = write_record(fd, names.empty() ? " " : fmt::format("{}", fmt::join(names, "")), {}, temporary);
  if (status.ok()) status = writer->append(head, {});
  if (status.ok() && rename(temporary.c_str(), path.c_str()) != 0) status = io_error("rename", temporary);
  if (status.ok()) return std::unique_ptr<LiveWriter>(std::move(writer));
  unlink(temporary.c_str());
  return status;
}

Result<std::vector<std::vector<ObjectRef>>> FileLive::find(Store::Names names,
                                                           std::string_view tenant) const {
  std::vector<std::vector<ObjectRef>> found(names.size());
  DS_ASSIGN(std::vector<Opened> all, open_all(folder_, tenant));
  if (all.empty()) return found;
  std::unordered_map<std::string_view, std::vector<size_t>> asked;
  for (size_t i = 0; i < names.size(); ++i) asked[names[i]].push_back(i);
  for (const Opened& o : all) {
    if (!o.begun || abandoned(o.file->fd)) continue;
    auto record = Records(o.file, o.path).next();
    if (!record.ok() || !*record) continue;
    const std::string_view its = (*record)->head;
    for (size_t at = 0; at + Store::kNameDigits <= its.size(); at += Store::kNameDigits)
      if (auto same = asked.find(its.substr(at, Store::kNameDigits)); same != asked.end())
        for (size_t i : same->second)
          found[i].push_back({o.key, 0, static_cast<int32_t>(at / Store::kNameDigits)});
  }
  return found;
}

Result<std::unique_ptr<LiveObject>> FileLive::follow(const std::string& key) const {
  const std::string path = folder_ + "/" + key;
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
  if (fd < 0 && errno == ENOENT)
    return error(Code::kNotFound, "nothing '{}' is being written in '{}' any more", key, folder_);
  if (fd < 0) return io_error("follow", path);
  auto object = std::make_unique<FileLiveObject>(std::make_shared<FileHandle>(fd), path);
  DS_TRY(object->begin());
  return std::unique_ptr<LiveObject>(std::move(object));
}

Result<std::vector<LiveInfo>> FileLive::list() const {
  DS_ASSIGN(std::vector<Opened> all, open_all(folder_));
  std::vector<LiveInfo> list;
  for (const Opened& o : all)
    if (o.begun) list.push_back({o.key, o.info.st_size, o.info.st_mtim.tv_sec, !abandoned(o.file->fd)});
  return list;
}

Result<int64_t> FileLive::remove_dead() const {
  DS_ASSIGN(std::vector<Opened> all, open_all(folder_));
  int64_t removed = 0;
  for (const Opened& o : all) {
    const bool old = o.begun || time(nullptr) - o.info.st_mtim.tv_sec > kBeginningSeconds;
    if (old && abandoned(o.file->fd) && same_file(o.file->fd, o.path) && unlink(o.path.c_str()) == 0)
      ++removed;
  }
  return removed;
}

}  // namespace ds
