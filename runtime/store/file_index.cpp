#include "runtime/store/file_index_internal.h"

#include <fcntl.h>
#include <sqlite3.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <ctime>
#include <filesystem>
#include <unordered_set>
#include <utility>

#include "runtime/store/entry.h"
#include "support/file.h"

namespace ds {
namespace {

namespace fs = std::filesystem;

/// Of the tables below; an index of another version is made again.
constexpr int kVersion = 1;
/// A folder's time of modification has the granularity of the system's clock tick: one younger than this may
/// stay what it is when something more happens.
constexpr int64_t kRacyNs = 100'000'000;
constexpr int kBusyMs = 2000;

int64_t ns_of(const timespec& t) { return int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec; }

/// Where several machines may see the folder: SQLite's log needs memory that all its users share.
bool on_network(const std::string& folder) {
  struct statfs info {};
  if (statfs(folder.c_str(), &info) != 0) return false;
  constexpr std::array<uint32_t, 7> kKnown = {
      0x6969 /* NFS */,    0xff534d42 /* CIFS */, 0xfe534d42 /* SMB2 */,
      0x01021997 /* 9p */, 0x65735546 /* FUSE */, 0x0bd00bd0 /* Lustre */,
      0x00c36400 /* Ceph */};
  return std::find(kKnown.begin(), kKnown.end(), static_cast<uint32_t>(info.f_type)) != kKnown.end();
}

class Statement {
 public:
  Statement(sqlite3* db, const char* sql) { sqlite3_prepare_v2(db, sql, -1, &s_, nullptr); }
  /// One that is `kept` beyond this; prepared where it has not been.
  Statement(sqlite3* db, sqlite3_stmt** kept, const char* sql) : kept_(true) {
    if (*kept == nullptr) sqlite3_prepare_v3(db, sql, -1, SQLITE_PREPARE_PERSISTENT, kept, nullptr);
    s_ = *kept;
  }
  Statement(const Statement&) = delete;
  ~Statement() { kept_ ? sqlite3_reset(s_) : sqlite3_finalize(s_); }
  bool good() const { return s_ != nullptr; }
  void bind(int at, std::string_view text) {
    sqlite3_bind_text(s_, at, text.data(), static_cast<int>(text.size()), SQLITE_TRANSIENT);
  }
  void bind(int at, int64_t value) { sqlite3_bind_int64(s_, at, value); }
  void bind_blob(int at, std::span<const unsigned char> bytes) {
    sqlite3_bind_blob(s_, at, bytes.data(), static_cast<int>(bytes.size()), SQLITE_TRANSIENT);
  }
  int step() { return sqlite3_step(s_); }
  void reset() { sqlite3_reset(s_); }
  int64_t integer(int column) { return sqlite3_column_int64(s_, column); }
  std::string text(int column) {
    const auto* bytes = reinterpret_cast<const char*>(sqlite3_column_text(s_, column));
    return {bytes == nullptr ? "" : bytes, static_cast<size_t>(sqlite3_column_bytes(s_, column))};
  }

 private:
  sqlite3_stmt* s_ = nullptr;
  const bool kept_ = false;
};

std::array<unsigned char, Store::kNameDigits / 2> bytes_of(const std::string& name) {
  std::array<unsigned char, Store::kNameDigits / 2> bytes{};
  for (size_t i = 0; i < bytes.size(); ++i)
    std::from_chars(name.data() + 2 * i, name.data() + 2 * i + 2, bytes[i], 16);
  return bytes;
}

// Ids are never used again, so that names of an object that is gone mean nothing; they are swept together.
constexpr const char* kTables =
    "BEGIN IMMEDIATE;"
    "CREATE TABLE IF NOT EXISTS objects(id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE,"
    " bytes INTEGER NOT NULL);"
    "CREATE TABLE IF NOT EXISTS names(name BLOB NOT NULL, object INTEGER NOT NULL, place INTEGER NOT NULL,"
    " PRIMARY KEY(name, object)) WITHOUT ROWID;"
    "CREATE TABLE IF NOT EXISTS state(one INTEGER PRIMARY KEY CHECK(one = 1), folder_ns INTEGER NOT NULL,"
    " gone INTEGER NOT NULL);"
    "INSERT OR IGNORE INTO state VALUES(1, 0, 0);"
    "PRAGMA user_version = 1;"
    "COMMIT;";

}  // namespace

FileIndex::FileIndex(std::string folder, Store& store) : folder_(std::move(folder)), store_(store) {}
FileIndex::~FileIndex() { close(); }

void FileIndex::close() {
  for (sqlite3_stmt** kept : {&state_, &named_}) sqlite3_finalize(std::exchange(*kept, nullptr));
  sqlite3_close(db_);
  db_ = nullptr;
}

Status FileIndex::failed(std::string_view what) {
  const int code = sqlite3_errcode(db_) & 0xff;
  damaged_ = code == SQLITE_CORRUPT || code == SQLITE_NOTADB;
  return error(Code::kIo, "cannot {} the index of store 'file:{}': {}", what, folder_, sqlite3_errmsg(db_));
}

Status FileIndex::run(const char* sql) {
  return sqlite3_exec(db_, sql, nullptr, nullptr, nullptr) == SQLITE_OK ? ok_status() : failed("use");
}

Status FileIndex::open_at(const std::string& path) {
  in_memory_ = path == ":memory:";
  if (!in_memory_) {
    // SQLite gives its other files the mode of this one.
    const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) return io_error("open the index", path);
    ::close(fd);
  }
  if (sqlite3_open_v2(path.c_str(), &db_, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_FULLMUTEX,
                      nullptr) != SQLITE_OK) {
    Status status = failed("open");
    close();
    return status;
  }
  sqlite3_busy_timeout(db_, kBusyMs);
  // A commit waits for no disk; what a crash of the machine takes is the newest rows, not their order.
  Status status = in_memory_ ? ok_status() : run("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL;");
  int64_t version = 0;
  if (status.ok()) {
    Statement asked(db_, "PRAGMA user_version");
    if (!asked.good() || asked.step() != SQLITE_ROW) status = failed("read");
    if (status.ok()) version = asked.integer(0);
  }
  if (status.ok() && version != 0 && version != kVersion) {
    damaged_ = true;
    status = error(Code::kUnsupported, "the index of store 'file:{}' has version {}, expected {}", folder_,
                   version, kVersion);
  }
  if (status.ok() && version == 0) status = run(kTables);
  if (!status.ok()) close();
  return status;
}

Status FileIndex::open() {
  if (db_ != nullptr) return ok_status();
  std::error_code ignored;
  if (!on_network(folder_)) {
    const std::string under = folder_ + "/" + kFolder, path = under + "/names.sqlite";
    mkdir(under.c_str(), 0700);
    for (int tries = 0; tries < 2; ++tries) {
      damaged_ = false;
      if (open_at(path).ok()) return ok_status();
      if (!damaged_) break;
      for (const char* end : {"", "-wal", "-shm"}) fs::remove(path + end, ignored);
    }
  }
  return open_at(":memory:");
}

Status FileIndex::insert(const std::string& key, int64_t bytes, Store::Names names) {
  Statement old(db_, "DELETE FROM objects WHERE key = ?1");
  Statement object(db_, "INSERT INTO objects(key, bytes) VALUES(?1, ?2)");
  Statement name(db_, "INSERT OR REPLACE INTO names VALUES(?1, ?2, ?3)");
  if (!old.good() || !object.good() || !name.good()) return failed("write");
  old.bind(1, key);
  if (old.step() != SQLITE_DONE) return failed("write");
  if (sqlite3_changes(db_) > 0) DS_TRY(run("UPDATE state SET gone = gone + 1"));
  object.bind(1, key);
  object.bind(2, bytes);
  if (object.step() != SQLITE_DONE) return failed("write");
  const int64_t id = sqlite3_last_insert_rowid(db_);
  for (size_t i = 0; i < names.size(); ++i) {
    name.reset();
    name.bind_blob(1, bytes_of(names[i]));
    name.bind(2, id);
    name.bind(3, static_cast<int64_t>(i));
    if (name.step() != SQLITE_DONE) return failed("write");
  }
  return ok_status();
}

void FileIndex::add(const std::string& key, int64_t bytes, Store::Names names) {
  std::lock_guard lock(mutex_);
  if (!open().ok() || !run("BEGIN IMMEDIATE").ok()) return;
  Status status = insert(key, bytes, names);
  if (!status.ok() || !run("COMMIT").ok()) (void)run("ROLLBACK");
}

Status FileIndex::fill() {
  struct stat info {};
  if (stat(folder_.c_str(), &info) != 0) return ok_status();
  const int64_t folder_ns = ns_of(info.st_mtim);
  timespec clock{};
  clock_gettime(CLOCK_REALTIME, &clock);
  const bool settled = ns_of(clock) - folder_ns > kRacyNs;
  {
    Statement known(db_, &state_, "SELECT folder_ns FROM state");
    if (!known.good() || known.step() != SQLITE_ROW) return failed("read");
    if (known.integer(0) == folder_ns) return ok_status();
  }
  std::unordered_set<std::string> there;
  std::error_code failure;
  fs::directory_iterator end;
  for (fs::directory_iterator it(folder_, failure); !failure && it != end; it.increment(failure)) {
    std::string name = it->path().filename().native();
    if (name[0] != '.' && name.find(".tmp-") == name.npos) there.insert(std::move(name));
  }
  if (failure) return error(Code::kIo, "cannot list store 'file:{}': {}", folder_, failure.message());
  std::vector<std::string> gone;
  {
    Statement known(db_, "SELECT key FROM objects");
    if (!known.good()) return failed("read");
    int step = SQLITE_ROW;
    while ((step = known.step()) == SQLITE_ROW) {
      std::string key = known.text(0);
      if (there.erase(key) == 0) gone.push_back(std::move(key));
    }
    if (step != SQLITE_DONE) return failed("read");
  }
  if (there.empty() && gone.empty() && !settled) return ok_status();
  DS_TRY(run("BEGIN IMMEDIATE"));
  auto write = [&]() -> Status {
    Statement remove(db_, "DELETE FROM objects WHERE key = ?1");
    if (!remove.good()) return failed("write");
    for (const std::string& key : gone) {
      remove.reset();
      remove.bind(1, key);
      if (remove.step() != SQLITE_DONE) return failed("write");
    }
    for (const std::string& key : there) {
      // What is no entry, or a damaged one, has no names; it is known by its key all the same.
      auto names = entry_names(store_, key);
      auto bytes = store_.size(key);
      if (!bytes.ok()) continue;
      DS_TRY(insert(key, *bytes, names.ok() ? *names : std::vector<std::string>()));
    }
    Statement state(db_, "UPDATE state SET folder_ns = ?1, gone = gone + ?2");
    if (!state.good()) return failed("write");
    state.bind(1, settled ? folder_ns : 0);
    state.bind(2, static_cast<int64_t>(gone.size()));
    if (state.step() != SQLITE_DONE) return failed("write");
    // Names of objects that are gone, once they are as many as those of objects that are there.
    bool sweep = false;
    {
      Statement count(db_, "SELECT gone > 16 + (SELECT count(*) FROM objects) FROM state");
      if (!count.good() || count.step() != SQLITE_ROW) return failed("read");
      sweep = count.integer(0) != 0;
    }
    if (sweep)
      DS_TRY(
          run("DELETE FROM names WHERE object NOT IN (SELECT id FROM objects); UPDATE state SET gone = 0"));
    return run("COMMIT");
  };
  Status status = write();
  if (!status.ok()) {
    const bool damaged = damaged_;
    (void)run("ROLLBACK");
    damaged_ = damaged;
  }
  return status;
}

Result<std::vector<std::vector<ObjectRef>>> FileIndex::ask(Store::Names names) {
  DS_TRY(open());
  DS_TRY(fill());
  std::vector<std::vector<ObjectRef>> found(names.size());
  const auto read = [&]() -> Status {
    Statement named(db_, &named_,
                    "SELECT o.key, o.bytes, n.place FROM names n JOIN objects o ON o.id = n.object"
                    " WHERE n.name = ?1 ORDER BY n.object DESC LIMIT ?2");
    if (!named.good()) return failed("read");
    for (size_t i = 0; i < names.size(); ++i) {
      named.reset();
      named.bind_blob(1, bytes_of(names[i]));
      named.bind(2, static_cast<int64_t>(Store::kMostOfName));
      int step = SQLITE_ROW;
      while ((step = named.step()) == SQLITE_ROW)
        found[i].push_back({named.text(0), named.integer(1), static_cast<int32_t>(named.integer(2))});
      if (step != SQLITE_DONE) return failed("read");
    }
    return ok_status();
  };
  DS_TRY(run("BEGIN"));  // one lock for all names
  Status status = read();
  const bool damaged = damaged_;
  if (!run("COMMIT").ok()) (void)run("ROLLBACK");
  damaged_ = damaged;
  if (!status.ok()) return status;
  return found;
}

Result<std::vector<std::vector<ObjectRef>>> FileIndex::find(Store::Names names) {
  std::lock_guard lock(mutex_);
  damaged_ = false;
  auto found = ask(names);
  if (found.ok()) return found;
  // Once more, from the entries themselves: into a new file where it was damaged, else (no room, no rights,
  // somebody holds it too long) into memory.
  const bool damaged = damaged_;
  close();
  if (damaged) {
    std::error_code ignored;
    for (const char* end : {"", "-wal", "-shm"})
      fs::remove(folder_ + "/" + kFolder + "/names.sqlite" + end, ignored);
  } else {
    DS_TRY(open_at(":memory:"));
  }
  return ask(names);
}

}  // namespace ds
