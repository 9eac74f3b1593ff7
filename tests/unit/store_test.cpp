#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <thread>

#include "runtime/store/entry.h"
#include "runtime/store/store.h"
#include "support/file.h"
#include "support/json.h"
#include "tests/unit/store_conformance.h"

namespace {

std::vector<std::string>* flushed = nullptr;  // paths, while a test collects them

}  // namespace

/// Instead of the C library's, in this program: so that a test sees what is flushed.
extern "C" int fsync(int fd) {
  if (flushed != nullptr) {
    std::error_code ignored;
    flushed->push_back(std::filesystem::read_symlink("/proc/self/fd/" + std::to_string(fd), ignored));
  }
  return static_cast<int>(syscall(SYS_fsync, fd));
}

namespace ds {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

template <typename T>
T take(Result<T> result) {
  EXPECT_TRUE(result.ok()) << result.status().message();
  return std::move(result).value();
}

// A folder of its own for the running test, removed at its end.
class Folder {
 public:
  Folder() {
    std::string name = ::testing::TempDir() + "/ds_store_XXXXXX";
    path_ = mkdtemp(name.data());
  }
  ~Folder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }
  std::vector<std::string> files() const {
    std::vector<std::string> names;
    for (auto& e : fs::directory_iterator(path_)) names.push_back(e.path().filename());
    return names;
  }

 private:
  std::string path_;
};

std::unique_ptr<Store> file_store(const std::string& folder) { return take(open_store("file:" + folder)); }

// --- file:
// ---------------------------------------------------------------------------------------------------

class FilePlace final : public StorePlace {
 public:
  std::string url() const override { return "file:" + folder_.path() + "/store"; }
  std::vector<std::string> left() const override {
    std::vector<std::string> names;
    std::error_code none;
    for (auto& e : fs::directory_iterator(folder_.path() + "/store", none))
      if (e.path().filename().string()[0] != '.') names.push_back(e.path().filename());
    std::sort(names.begin(), names.end());
    return names;
  }

 private:
  Folder folder_;
};

const StoreKind kFile{"file", [](std::string&) { return std::make_unique<FilePlace>(); }};
INSTANTIATE_TEST_SUITE_P(File, StoreConformance, ::testing::Values(kFile));
INSTANTIATE_TEST_SUITE_P(File, StoreEntries, ::testing::Values(kFile));
INSTANTIATE_TEST_SUITE_P(File, LiveEntries, ::testing::Values(kFile));
INSTANTIATE_TEST_SUITE_P(File, HostileEntries, ::testing::Values(kFile));

TEST(FileStore, AFolderThatIsNotThereIsSaidToBe) {
  Folder folder;
  auto store = file_store(folder.path() + "/made/by/put");
  EXPECT_THAT(store->size("a").status().message(), HasSubstr("the folder does not exist"));
}

TEST(FileStore, AFirstPutFlushesEveryFolderThatHasGotAnEntry) {
  Folder folder;
  const std::string root = fs::canonical(folder.path());
  auto store = file_store(root + "/made/by/put");
  std::vector<std::string> seen;
  flushed = &seen;
  Status first = put_text(*store, "a", "first");
  flushed = nullptr;
  ASSERT_TRUE(first.ok()) << first.message();
  EXPECT_THAT(seen,
              ::testing::ElementsAre(root, root + "/made", root + "/made/by",
                                     ::testing::StartsWith(root + "/made/by/put/a"), root + "/made/by/put"));
  seen.clear();
  flushed = &seen;
  Status second = put_text(*store, "b", "second");
  flushed = nullptr;
  ASSERT_TRUE(second.ok());
  EXPECT_THAT(seen,
              ::testing::ElementsAre(::testing::StartsWith(root + "/made/by/put/b"), root + "/made/by/put"));
}

TEST(FileStore, ObjectsAndFoldersAreTheirMakersAlone) {
  Folder folder;
  auto mode = [](const std::string& path) {
    struct stat info {};
    EXPECT_EQ(stat(path.c_str(), &info), 0) << path;
    return info.st_mode & 0777;
  };
  const mode_t before = umask(022);
  auto made = file_store(folder.path() + "/made/store"), there = file_store(folder.path() + "/there");
  fs::create_directory(folder.path() + "/there");
  Status puts[] = {put_text(*made, "k", "x"), put_text(*there, "k", "x")};
  umask(before);
  for (const Status& put : puts) ASSERT_TRUE(put.ok()) << put.message();
  EXPECT_EQ(mode(folder.path() + "/made"), 0755u);
  EXPECT_EQ(mode(folder.path() + "/made/store"), 0700u);
  EXPECT_EQ(mode(folder.path() + "/made/store/k"), 0600u);
  EXPECT_EQ(mode(folder.path() + "/there"), 0755u) << "whose it is, is its maker's business";
  EXPECT_EQ(mode(folder.path() + "/there/k"), 0600u);
}

TEST(FileStore, TruncatedUnderAReaderIsCorrupt) {
  Folder folder;
  auto store = file_store(folder.path());
  ASSERT_TRUE(put_text(*store, "k", std::string(10000, 'x')).ok());
  auto object = take(store->open("k"));
  fs::resize_file(folder.path() + "/k", 5000);
  std::vector<std::byte> out(10000);
  Status status = object->read(0, out);
  EXPECT_EQ(status.code(), Code::kCorrupt);
  EXPECT_THAT(status.message(), AllOf(HasSubstr("5000"), HasSubstr(folder.path())));
}

TEST(FileStore, LeftoversOfDeadWritersAreRemovedByALaterPut) {
  Folder folder;
  auto leave = [&](const std::string& name, int64_t age_seconds) {
    std::ofstream(folder.path() + "/" + name) << "half";
    timeval t[2] = {};
    t[0].tv_sec = t[1].tv_sec = time(nullptr) - age_seconds;
    ASSERT_EQ(utimes((folder.path() + "/" + name).c_str(), t), 0);
  };
  leave("k.tmp-aaaaaa", 2 * 3600);  // dead
  leave("k.tmp-bbbbbb", 600);       // may be still at work
  leave("old", 10 * 3600);          // an object
  fs::create_directory(folder.path() + "/folder.tmp-cccccc");
  auto store = file_store(folder.path());
  ASSERT_TRUE(put_text(*store, "new", "x").ok());
  EXPECT_THAT(folder.files(),
              ::testing::UnorderedElementsAre("k.tmp-bbbbbb", "old", "new", "folder.tmp-cccccc"));
}

TEST(FileStore, FullDisk) {
  Folder folder;
  if (geteuid() != 0) GTEST_SKIP() << "mounting a small file system needs root";
  if (mount("tmpfs", folder.path().c_str(), "tmpfs", 0, "size=256k") != 0)
    GTEST_SKIP() << "cannot mount a tmpfs here: " << std::strerror(errno);
  auto unmount = [](const std::string* path) { umount2(path->c_str(), MNT_DETACH); };
  std::unique_ptr<const std::string, decltype(unmount)> guard(&folder.path(), unmount);
  auto store = file_store(folder.path());
  ASSERT_TRUE(put_text(*store, "old", "small").ok());
  ASSERT_TRUE(put_text(*store, "k", "small too").ok());
  std::string large(1 << 20, 'x');
  Status status = put_text(*store, "k", large);
  EXPECT_EQ(status.code(), Code::kExhausted);
  EXPECT_THAT(status.message(), HasSubstr("No space left"));
  EXPECT_THAT(folder.files(), ::testing::UnorderedElementsAre("old", "k"));
  EXPECT_EQ(*get_text(*store, "k"), "small too");
  EXPECT_EQ(fs::space(folder.path()).available >= 200'000, true) << "what was written is given back";
}

TEST(FileStore, FileSizeLimit) {
  Folder folder;
  auto store = file_store(folder.path());
  ASSERT_TRUE(put_text(*store, "k", "old").ok());
  // Past the limit the kernel sends SIGXFSZ, whose default ends the process; ignored, write() fails (EFBIG).
  auto* handler = signal(SIGXFSZ, SIG_IGN);
  rlimit before{}, limit{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  limit = before;
  limit.rlim_cur = 64 << 10;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  Status status = put_text(*store, "k", std::string(1 << 20, 'x'));
  setrlimit(RLIMIT_FSIZE, &before);
  signal(SIGXFSZ, handler);
  EXPECT_EQ(status.code(), Code::kExhausted) << status.message();
  EXPECT_THAT(folder.files(), ::testing::ElementsAre("k"));
  EXPECT_EQ(*get_text(*store, "k"), "old");
}

TEST(FileStore, FolderThatMayNotBeUsed) {
  Folder folder;
  std::string closed = folder.path() + "/closed";
  auto store = file_store(closed);
  ASSERT_TRUE(put_text(*store, "k", "x").ok());
  ASSERT_EQ(chmod(closed.c_str(), 0), 0);
  // Permissions do not bind root: become somebody else for the calls.
  uid_t me = geteuid();
  if (me == 0) {
    ASSERT_EQ(chmod(folder.path().c_str(), 0755), 0);
    ASSERT_EQ(seteuid(65534), 0);
  }
  Status open = store->open("k").status(), put = put_text(*store, "k", "y"), remove = store->remove("k");
  Status inside = put_text(*file_store(closed + "/below"), "k", "y");
  if (me == 0) {
    ASSERT_EQ(seteuid(0), 0);
  }
  chmod(closed.c_str(), 0755);
  for (const Status& status : {open, put, remove, inside}) {
    EXPECT_EQ(status.code(), Code::kIo) << status.message();
    EXPECT_THAT(status.message(), AllOf(HasSubstr(closed), HasSubstr("Permission denied")));
  }
  EXPECT_EQ(*get_text(*store, "k"), "x");
}

TEST(FileStore, ThingsThatAreNoFolderOrNoFile) {
  Folder folder;
  std::ofstream(folder.path() + "/file") << "x";
  auto store = file_store(folder.path() + "/file");
  EXPECT_EQ(put_text(*store, "k", "x").code(), Code::kInvalidArgument);
  EXPECT_EQ(store->open("k").status().code(), Code::kNotFound);
  store = file_store(folder.path() + "/file/below");
  EXPECT_EQ(put_text(*store, "k", "x").code(), Code::kInvalidArgument);
  store = file_store(folder.path());
  fs::create_directory(folder.path() + "/folder");
  EXPECT_EQ(store->open("folder").status().code(), Code::kCorrupt);
  EXPECT_FALSE(put_text(*store, "folder", "x").ok());
  ASSERT_EQ(mkfifo((folder.path() + "/pipe").c_str(), 0600), 0);
  EXPECT_EQ(store->open("pipe").status().code(), Code::kCorrupt) << "and does not hang";
}

TEST(OpenStore, Urls) {
  Folder folder;
  for (const std::string& url :
       {"file:" + folder.path(), "file://" + folder.path(), "file://localhost" + folder.path()}) {
    auto store = open_store(url);
    ASSERT_TRUE(store.ok()) << store.status().message();
    EXPECT_EQ((*store)->url(), "file:" + folder.path());
  }
  for (const char* bad :
       {"rediz:127.0.0.1:6379", "", ":", "file:", "/some/folder", "file://host/folder", "File:x"}) {
    auto store = open_store(bad);
    ASSERT_FALSE(store.ok()) << bad;
    EXPECT_EQ(store.status().code(), Code::kInvalidArgument);
    EXPECT_THAT(store.status().message(), HasSubstr("file:PATH")) << "names what is known";
  }
  EXPECT_THAT(open_store("rediz:x").status().message(), HasSubstr("'rediz'"));
  EXPECT_THAT(open_store("file://host/folder").status().message(), HasSubstr("the host 'host'"));
  EXPECT_THAT(open_store("file://relative").status().message(), HasSubstr("the host 'relative'"));
  // Paths are literal.
  for (const char* path : {"x", "./x", "../x", "./~x", "a~", "a/~/b", "/~/x", "a b", "a%20b", "?x#y"})
    EXPECT_EQ((*open_store(std::string("file:") + path))->url(), std::string("file:") + path);
}

TEST(OpenStore, ATildeInFrontIsHome) {
  Folder folder;
  const char* home = getenv("HOME");
  const std::string before = home == nullptr ? "" : home;
  setenv("HOME", folder.path().c_str(), 1);
  EXPECT_EQ((*open_store("file:~"))->url(), "file:" + folder.path());
  EXPECT_EQ((*open_store("file:~/"))->url(), "file:" + folder.path() + "/");
  auto store = take(open_store("file:~/a/b"));
  EXPECT_EQ(store->url(), "file:" + folder.path() + "/a/b");
  ASSERT_TRUE(put_text(*store, "k", "x").ok());
  EXPECT_TRUE(fs::exists(folder.path() + "/a/b/k"));
  for (const char* bad : {"file:~user", "file:~user/x", "file:~~/x"}) {
    auto refused = open_store(bad);
    ASSERT_FALSE(refused.ok()) << bad;
    EXPECT_EQ(refused.status().code(), Code::kInvalidArgument);
  }
  EXPECT_THAT(open_store("file:~user/x").status().message(),
              AllOf(HasSubstr("'~user'"), HasSubstr("'file:./~user/x'")));
  EXPECT_THAT(open_store("~/x").status().message(), HasSubstr("did you mean 'file:~/x'"));
  for (const char* bad : {"", "relative"}) {
    setenv("HOME", bad, 1);
    EXPECT_THAT(open_store("file:~/x").status().message(), HasSubstr("$HOME"));
  }
  unsetenv("HOME");
  EXPECT_THAT(open_store("file:~/x").status().message(), HasSubstr("$HOME is not set"));
  EXPECT_TRUE(open_store("file:x").ok());
  setenv("HOME", before.c_str(), 1);
  EXPECT_FALSE(fs::exists("~"));
}

// --- the shaped link
// -----------------------------------------------------------------------------------------

// Only lower bounds: a link must never be faster than it says; how much slower it is depends on the machine.
class ShapedLink : public ::testing::Test {
 protected:
  using Clock = std::chrono::steady_clock;
  static constexpr int64_t kBytes = 40'000;

  void SetUp() override {
    for (int64_t i = 0; i < kBytes; ++i) content_ += static_cast<char>(i * 31 % 251);
    ASSERT_TRUE(put_text(*file_store(folder_.path()), "k", content_).ok());
  }
  std::unique_ptr<Store> shaped(double rate, double rtt_ms = 0) {
    return shape_link(file_store(folder_.path()), {rate, rtt_ms});
  }
  static double seconds(const std::function<void()>& what) {
    auto start = Clock::now();
    what();
    return std::chrono::duration<double>(Clock::now() - start).count();
  }
  Folder folder_;
  std::string content_;
};

TEST_F(ShapedLink, BytesAreTheStoresAndNotEarlyAtAnyRate) {
  for (double rate : {1e6, 7.3e6, 1e8, 1e9}) {
    auto store = shaped(rate);
    auto object = take(store->open("k"));
    std::string text(content_.size(), '\0');
    auto out = std::as_writable_bytes(std::span(text));
    double took = seconds([&] { ASSERT_TRUE(object->read(0, out).ok()); });
    EXPECT_GE(took, kBytes / rate);
    EXPECT_EQ(text, content_);
  }
}

TEST_F(ShapedLink, ManySmallReadsTakeAsLongAsOneLarge) {
  auto store = shaped(1e6);
  auto object = take(store->open("k"));
  std::string text(content_.size(), '\0');
  auto out = std::as_writable_bytes(std::span(text));
  double took = seconds([&] {
    for (size_t at = 0; at < text.size(); at += 1000)
      ASSERT_TRUE(object->read(static_cast<int64_t>(at), out.subspan(at, 1000)).ok());
  });
  EXPECT_GE(took, kBytes / 1e6);
  EXPECT_EQ(text, content_);
}

TEST_F(ShapedLink, ReadsOfSeveralThreadsAndObjectsShareTheLink) {
  auto store = shaped(4e6);
  double took = seconds([&] {
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) threads.emplace_back([&] { EXPECT_EQ(*get_text(*store, "k"), content_); });
    for (auto& t : threads) t.join();
  });
  EXPECT_GE(took, 4 * kBytes / 4e6);
}

TEST_F(ShapedLink, IdleTimeIsNotSaved) {
  auto store = shaped(1e6);
  auto object = take(store->open("k"));
  std::vector<std::byte> out(10'000);
  ASSERT_TRUE(object->read(0, out).ok());
  std::this_thread::sleep_for(std::chrono::milliseconds(15));
  EXPECT_GE(seconds([&] { ASSERT_TRUE(object->read(0, out).ok()); }), 0.010);
}

TEST_F(ShapedLink, RoundTrips) {
  auto store = shaped(0, 20);
  std::unique_ptr<StoreObject> object;
  std::vector<std::byte> out(100);
  EXPECT_GE(seconds([&] { object = take(store->open("k")); }), 0.020);
  EXPECT_GE(seconds([&] { ASSERT_TRUE(object->read(0, out).ok()); }), 0.020) << "the first read";
  EXPECT_GE(seconds([&] { EXPECT_EQ(*store->size("k"), kBytes); }), 0.020);
  EXPECT_GE(seconds([&] { EXPECT_EQ(store->open("absent").status().code(), Code::kNotFound); }), 0.020);
  // 1000 more reads would take 20 s if each paid.
  EXPECT_LT(seconds([&] {
              for (int i = 0; i < 1000; ++i) ASSERT_TRUE(object->read(i, out).ok());
            }),
            10);
  store = shaped(1e6, 20);
  object = take(store->open("k"));
  out.resize(10'000);
  EXPECT_GE(seconds([&] { ASSERT_TRUE(object->read(0, out).ok()); }), 0.030) << "round trip, then the bytes";
}

TEST_F(ShapedLink, FaultsAndWritesPassThrough) {
  auto store = shaped(1e9, 0.1);
  auto object = take(store->open("k"));
  std::vector<std::byte> out(100);
  EXPECT_EQ(object->read(kBytes - 50, out).code(), Code::kCorrupt);
  EXPECT_EQ(object->read(-1, out).code(), Code::kInvalidArgument);
  EXPECT_TRUE(object->read(kBytes, {}).ok());
  ASSERT_TRUE(put_text(*store, "new", "x").ok());
  EXPECT_EQ(*get_text(*store, "new"), "x");
  EXPECT_TRUE(store->remove("new").ok());
  EXPECT_EQ(store->remove("new").code(), Code::kNotFound);
  EXPECT_EQ(store->url(), "file:" + folder_.path());
}

TEST_F(ShapedLink, AbsurdOptionsDoNotShape) {
  for (double bad : {0.0, -1.0, std::nan(""), HUGE_VAL}) {
    EXPECT_EQ(*get_text(*shaped(bad, bad), "k"), content_);
  }
}

// --- entries
// -------------------------------------------------------------------------------------------------

// Objects in memory: another engine behind the interface, and one whose bytes a test can touch quickly.
class MemoryStore final : public Store {
 public:
  std::map<std::string, std::string> objects;
  int reads = 0;

  std::string url() const override { return "memory:"; }
  Status put(const std::string& key, const Produce& produce, Names) override {
    std::string text;
    DS_TRY(produce([&](std::span<const std::byte> bytes) {
      text.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
      return ok_status();
    }));
    objects[key] = std::move(text);
    return ok_status();
  }
  Result<std::unique_ptr<StoreObject>> open(const std::string& key) override {
    auto it = objects.find(key);
    if (it == objects.end()) return error(Code::kNotFound, "no object '{}'", key);
    return std::unique_ptr<StoreObject>(std::make_unique<Object>(it->second, &reads));
  }
  Status remove(const std::string& key) override {
    return objects.erase(key) == 1 ? ok_status() : error(Code::kNotFound, "no object '{}'", key);
  }

 private:
  struct Object final : StoreObject {
    Object(std::string t, int* r) : text(std::move(t)), reads(r) {}
    int64_t size() const override { return static_cast<int64_t>(text.size()); }
    Status read_by_parts(int64_t offset, std::span<std::byte> out, const Arrived& arrived) override {
      ++*reads;
      if (offset < 0 || offset > size() || static_cast<int64_t>(out.size()) > size() - offset)
        return error(Code::kCorrupt, "outside");
      std::memcpy(out.data(), text.data() + offset, out.size());
      return arrived(out);
    }
    std::string text;
    int* reads;
  };
};

class Entry : public ::testing::Test {
 protected:
  static constexpr int64_t kTokens = 171;

  void SetUp() override {
    shape_ = {"llama", 5, 24, 64, 4, 2, 6, 100};
    sender_ = {"base", std::string(64, 'a'), std::string(64, 'b'), std::string(64, 'c'),
               std::string(64, 'd')};
    std::vector<int32_t> ids;
    for (int i = 0; i < kTokens; ++i) ids.push_back(i * 7 % 100);
    identity_ = {sender_.fingerprint, hash_tokens(ids), "tenant", kTokens, DType::kBF16};
    std::mt19937 random(1);
    auto add = [&](TensorKind kind, int32_t layer) {
      std::string data(static_cast<size_t>(kTokens * 24 * 2), '\0');  // a row of both kinds: 24 bf16
      for (char& c : data) c = static_cast<char>(random());
      tensors_.push_back({kind, layer, std::move(data), {}});
    };
    add(TensorKind::kE, 3);
    add(TensorKind::kE, 1);
    for (int32_t l : {4, 0, 2, 1, 3}) add(TensorKind::kKv, l);
  }

  struct Tensor {
    TensorKind kind;
    int32_t layer;
    std::string data;
    std::string map = {};
  };

  std::vector<EntrySource> sources() const {
    std::vector<EntrySource> s;
    for (auto& t : tensors_) s.push_back({t.kind, t.layer, bytes_of(t.data), t.map});
    return s;
  }
  Result<int64_t> write(Store& store) const {
    return write_entry(store, identity_, sender_, shape_, sources());
  }
  std::string written() const {
    MemoryStore store;
    EXPECT_TRUE(write(store).ok());
    return store.objects.at(identity_.key());
  }
  // The whole way of a receiver: ok only if every byte is what was published.
  Status read_all(Store& store, int64_t chunk = kTokens) const {
    DS_ASSIGN(EntryReader reader, EntryReader::open(store, identity_, shape_));
    for (auto& t : tensors_) {
      int64_t row = reader.header().row_bytes(t.kind);
      std::string out(t.data.size(), '\0');
      for (int64_t first = 0; first < kTokens; first += chunk) {
        DS_TRY(reader.read_rows(t.kind, t.layer, first, std::min(chunk, kTokens - first),
                                reinterpret_cast<std::byte*>(out.data() + first * row), {}, t.map));
      }
      if (out != t.data) return error(Code::kInternal, "wrong bytes and no error: {}", t.layer);
    }
    return ok_status();
  }
  Status read_all(std::string object) const {
    MemoryStore store;
    store.objects[identity_.key()] = std::move(object);
    return read_all(store);
  }
  static uint64_t json_length(const std::string& object) {
    uint64_t length = 0;
    std::memcpy(&length, object.data() + 12, 8);
    return length;
  }
  // The same entry with another header text, its length and checksum right.
  /// What reading says of a good object after a change to its header's list of tensors.
  using TensorChange = std::function<void(nlohmann::json&)>;
  std::string refused(const std::string& good, nlohmann::json header, const TensorChange& change) const {
    change(header["tensors"]);
    Status status = read_all(with_header(good, header.dump()));
    EXPECT_EQ(status.code(), Code::kCorrupt) << status.message();
    return status.message();
  }

  static std::string with_header(const std::string& object, const std::string& json) {
    int64_t tensors = (20 + static_cast<int64_t>(json_length(object)) + 8 + 4095) / 4096 * 4096;
    std::string head = object.substr(0, 12);
    uint64_t length = json.size();
    head.append(reinterpret_cast<const char*>(&length), 8);
    head += json;
    uint64_t checksum = checksum64(bytes_of(head));
    head.append(reinterpret_cast<const char*>(&checksum), 8);
    if (static_cast<int64_t>(head.size()) > tensors) return head;  // longer: tensors would lie in it
    head.resize(static_cast<size_t>(tensors), '\0');
    return head + object.substr(static_cast<size_t>(tensors));
  }
  static std::string header_text(const std::string& object) { return object.substr(20, json_length(object)); }

  /// E of layer 3 also as two receivers want it, of layer 1 in two forms for one of them.
  void add_mapped() {
    int i = 0;
    for (auto& [layer, map] :
         std::vector<std::pair<int32_t, std::string>>{{3, entry_map(kMapsB, MapForm::kFull)},
                                                      {1, entry_map(kMapsA, MapForm::kLowRank)},
                                                      {3, entry_map(kMapsA, MapForm::kFull)},
                                                      {1, entry_map(kMapsA, MapForm::kDiagonal)}}) {
      tensors_.push_back({TensorKind::kE, layer, tensors_[0].data, map});
      tensors_.back().data[static_cast<size_t>(i++)] ^= 1;
    }
  }
  const std::string kMapsA = std::string(63, 'a') + "1", kMapsB = std::string(63, 'b') + "2";

  Shape shape_;
  ModelIdentity sender_;
  EntryIdentity identity_;
  std::vector<Tensor> tensors_;
};

TEST_F(Entry, MapsOfOneLayerAreDifferentTensors) {
  EXPECT_EQ(entry_map(kMapsA, MapForm::kNone), "");
  EXPECT_EQ(entry_map(kMapsA, MapForm::kLowRank), kMapsA + "/low-rank");
  EXPECT_EQ(tensor_name(TensorKind::kE, 3, entry_map(kMapsA, MapForm::kFull)),
            "e(3) through the full map of aaaaaaaaaaaa");
  std::string plain = written();
  EXPECT_EQ(plain[8], 2) << "an entry without maps is what it has been";
  EXPECT_EQ(plain.find("\"map\""), std::string::npos);
  add_mapped();
  std::string object = written();
  EXPECT_EQ(object[8], 3);
  std::reverse(tensors_.begin(), tensors_.end());
  EXPECT_EQ(written(), object);
  for (int64_t chunk : {kTokens, int64_t{1}, int64_t{64}}) {
    MemoryStore store;
    store.objects[identity_.key()] = object;
    Status status = read_all(store, chunk);
    EXPECT_TRUE(status.ok()) << status.message();
  }

  MemoryStore store;
  store.objects[identity_.key()] = object;
  auto reader = take(EntryReader::open(store, identity_, shape_));
  std::vector<std::string> order;
  for (auto& t : reader.header().tensors)
    if (t.kind == TensorKind::kE) order.push_back(tensor_name(t.kind, t.layer, t.map));
  EXPECT_EQ(order, (std::vector<std::string>{"e(1)", "e(1) through the diagonal map of aaaaaaaaaaaa",
                                             "e(1) through the low-rank map of aaaaaaaaaaaa", "e(3)",
                                             "e(3) through the full map of aaaaaaaaaaaa",
                                             "e(3) through the full map of bbbbbbbbbbbb"}));
  std::vector<std::byte> out(48);
  Status status =
      reader.read_rows(TensorKind::kE, 3, 0, 1, out.data(), {}, entry_map(kMapsB, MapForm::kDiagonal));
  EXPECT_EQ(status.code(), Code::kNotFound);
  EXPECT_THAT(status.message(), AllOf(HasSubstr("no e(3) through the diagonal map of bbbbbbbbbbbb"),
                                      HasSubstr("that plan's file of maps")));
  EXPECT_EQ(reader.bytes_read(), 0);
  // A damaged tensor is named with its map.
  const auto* bad = reader.header().find(TensorKind::kE, 3, entry_map(kMapsA, MapForm::kFull));
  ASSERT_NE(bad, nullptr);
  object[static_cast<size_t>(bad->offset)] ^= 1;
  EXPECT_THAT(read_all(object).message(), HasSubstr("e(3) through the full map of aaaaaaaaaaaa is damaged"));
}

TEST_F(Entry, MapsAreChecked) {
  add_mapped();
  std::string good = written();
  auto json = *parse_json(header_text(good), "header");
  auto message = [&](const TensorChange& change) { return refused(good, json, change); };
  const std::string expected = "expected a fingerprint of 64 hexadecimal digits, '/' and a form of map";
  for (const std::string& map :
       {std::string("x"), std::string(), kMapsA, kMapsA + "/", kMapsA + "/none", kMapsA + "/full ",
        kMapsA.substr(1) + "/full", "A" + kMapsA.substr(1) + "/full", std::string(1000, 'a'),
        std::string("\n\0", 2)})
    EXPECT_THAT(message([&](auto& t) { t[1]["map"] = map; }), HasSubstr(expected)) << map.substr(0, 80);
  EXPECT_THAT(message([&](auto& t) { t[1]["map"] = 7; }), HasSubstr("tensor 1"));
  EXPECT_THAT(message([&](auto& t) { t[7]["map"] = t[1]["map"]; }), HasSubstr("only E goes through maps"));
  EXPECT_THAT(message([&](auto& t) { std::swap(t[1], t[2]); }),
              HasSubstr("stands after e(1) through the low-rank map of aaaaaaaaaaaa"));
  EXPECT_THAT(message([&](auto& t) { t[2]["map"] = t[1]["map"]; }), HasSubstr("stands after"));
  // An entry that says it is plain has no maps; one that may have them need not.
  tensors_.resize(tensors_.size() - 4);
  std::string object = written();
  auto mapped = *parse_json(header_text(object), "header");
  mapped["tensors"][0]["map"] = kMapsA + "/full";
  EXPECT_THAT(read_all(with_header(object, mapped.dump())).message(), HasSubstr("which version 2 does not"));
  object[8] = 3;
  Status status = read_all(with_header(object, header_text(object)));
  EXPECT_TRUE(status.ok()) << status.message();

  MemoryStore store;
  auto refused = [&](TensorKind kind, const std::string& map) {
    auto all = tensors_;
    tensors_.push_back({kind, 2, all[0].data, map});
    auto result = write(store);
    EXPECT_EQ(result.status().code(), Code::kInvalidArgument) << result.status().message();
    EXPECT_TRUE(store.objects.empty());
    tensors_ = all;
    return result.status().message();
  };
  EXPECT_THAT(refused(TensorKind::kE, "mine"), HasSubstr(expected));
  EXPECT_THAT(refused(TensorKind::kKv, kMapsA + "/full"), HasSubstr("only E goes through maps"));
  add_mapped();
  tensors_.push_back(tensors_.back());
  EXPECT_THAT(write(store).status().message(),
              HasSubstr("e(1) through the diagonal map of aaaaaaaaaaaa was given twice"));
}

TEST_F(Entry, RoundTripWholeAndInChunks) {
  Folder folder;
  auto store = file_store(folder.path());
  auto size = write(*store);
  ASSERT_TRUE(size.ok()) << size.status().message();
  EXPECT_EQ(*size, *store->size(identity_.key()));
  for (int64_t chunk : {kTokens, int64_t{1}, int64_t{64}, int64_t{170}}) {
    Status status = read_all(*store, chunk);
    EXPECT_TRUE(status.ok()) << status.message();
  }
  Status status = read_all(*shape_link(file_store(folder.path()), {50e6, 0.2}), 64);
  EXPECT_TRUE(status.ok()) << status.message();
}

TEST_F(Entry, HeaderSaysWhatWasPublishedInPlanOrder) {
  MemoryStore store;
  ASSERT_TRUE(write(store).ok());
  auto reader = EntryReader::open(store, identity_, shape_);
  ASSERT_TRUE(reader.ok()) << reader.status().message();
  EXPECT_EQ(store.reads, 1) << "one read for a header of usual length";
  const EntryHeader& h = reader->header();
  EXPECT_EQ(h.identity.tokens, kTokens);
  EXPECT_EQ(h.identity.tokens_hash, identity_.tokens_hash);
  EXPECT_EQ(h.identity.salt, "tenant");
  EXPECT_EQ(h.identity.sender, sender_.fingerprint);
  EXPECT_EQ(h.sender, sender_);
  EXPECT_EQ(h.shape, shape_);
  std::vector<std::pair<TensorKind, int32_t>> order;
  int64_t end = 0;
  for (auto& t : h.tensors) {
    order.emplace_back(t.kind, t.layer);
    EXPECT_EQ(t.offset % 4096, 0);
    EXPECT_GE(t.offset, end);
    end = t.offset + t.bytes;
  }
  using enum TensorKind;
  EXPECT_EQ(order, (decltype(order){{kE, 1}, {kE, 3}, {kKv, 0}, {kKv, 1}, {kKv, 2}, {kKv, 3}, {kKv, 4}}));
  EXPECT_EQ(*store.size(identity_.key()), end);
  EXPECT_EQ(store.objects.at(identity_.key()).substr(0, 8), "DSENTRY1");
  EXPECT_EQ(store.objects.at(identity_.key()).find("tenant"), std::string::npos) << "salts are secrets";
  EXPECT_EQ(reader->bytes_read(), 0);
  std::vector<std::byte> out(10 * 48);
  ASSERT_TRUE(reader->read_rows(kKv, 2, 0, 10, out.data()).ok());
  EXPECT_EQ(reader->bytes_read(), 480);
}

TEST_F(Entry, SameInputSameBytes) {
  std::string first = written();
  std::reverse(tensors_.begin(), tensors_.end());
  EXPECT_EQ(written(), first);
}

TEST_F(Entry, ManyLayersAndAHeaderOfSeveralPages) {
  shape_.layers = 300;
  shape_.head_dim = 1;
  shape_.kv_heads = 1;
  identity_.tokens = 2;
  std::string data = "12345678";
  std::vector<EntrySource> sources;
  for (int32_t l = 0; l < 300; ++l) sources.push_back({TensorKind::kKv, l, bytes_of(data)});
  MemoryStore store;
  ASSERT_TRUE(write_entry(store, identity_, sender_, shape_, sources).ok());
  EXPECT_GT(json_length(store.objects.begin()->second), 20'000u);
  auto reader = EntryReader::open(store, identity_, shape_);
  ASSERT_TRUE(reader.ok()) << reader.status().message();
  EXPECT_LE(store.reads, 2);
  std::string out(8, '\0');
  ASSERT_TRUE(reader->read_rows(TensorKind::kKv, 299, 0, 2, reinterpret_cast<std::byte*>(out.data())).ok());
  EXPECT_EQ(out, data);
}

TEST_F(Entry, OneFlippedBitAnywhereIsNoticed) {
  std::string good = written();
  ASSERT_TRUE(read_all(good).ok());
  MemoryStore store;
  store.objects[identity_.key()] = good;
  EntryHeader h = EntryReader::open(store, identity_, shape_)->header();

  auto header_end = 20 + static_cast<int64_t>(json_length(good)) + 8;
  std::vector<int64_t> positions;
  for (int64_t at = 0; at < 20; ++at) positions.push_back(at);                   // magic, version, length
  for (int64_t at = 20; at < header_end - 8; at += 13) positions.push_back(at);  // JSON
  for (int64_t at = header_end - 8; at < header_end; ++at) positions.push_back(at);
  std::mt19937 random(2);
  for (auto& t : h.tensors) {
    positions.push_back(t.offset);
    positions.push_back(t.offset + t.bytes - 1);
    for (int i = 0; i < 12; ++i) positions.push_back(t.offset + static_cast<int64_t>(random()) % t.bytes);
  }
  EXPECT_GT(positions.size(), 200u);
  for (int64_t at : positions) {
    for (int bit : {0, 3, 7}) {
      std::string bad = good;
      bad[static_cast<size_t>(at)] ^= static_cast<char>(1 << bit);
      Status status = read_all(bad);
      EXPECT_EQ(status.code(), Code::kCorrupt) << "byte " << at << " bit " << bit << ": " << status.message();
      EXPECT_THAT(status.message(), HasSubstr(identity_.key()));
    }
  }
  // Zeros between tensors have no meaning and are not looked at.
  for (int64_t at : {header_end, h.tensors[0].offset - 1, h.tensors[0].offset + h.tensors[0].bytes}) {
    std::string same = good;
    same[static_cast<size_t>(at)] ^= 1;
    EXPECT_TRUE(read_all(same).ok()) << at;
  }
}

TEST_F(Entry, ADamagedTensorIsNoticedInWhateverPiecesItIsRead) {
  Folder folder;
  auto store = file_store(folder.path());
  ASSERT_TRUE(write(*store).ok());
  std::string path = folder.path() + "/" + identity_.key();
  std::string object = *read_text_file(path);
  object[object.size() - 1] ^= 0x10;  // the last byte of kv(4)
  ASSERT_TRUE(write_file_atomically(path, object).ok());
  for (int64_t chunk : {kTokens, int64_t{1}, int64_t{64}}) {
    Status status = read_all(*store, chunk);
    EXPECT_EQ(status.code(), Code::kCorrupt);
    EXPECT_THAT(status.message(), HasSubstr("kv(4) is damaged"));
  }
  // What is not damaged is readable.
  auto reader = take(EntryReader::open(*store, identity_, shape_));
  std::vector<std::byte> out(static_cast<size_t>(kTokens * 48));
  EXPECT_TRUE(reader.read_rows(TensorKind::kKv, 3, 0, kTokens, out.data()).ok());
  // Chunks in any order are verified, each by itself: only the last one is damaged.
  for (int64_t first = (kTokens - 1) / 64 * 64; first >= 0; first -= 64) {
    int64_t rows = std::min<int64_t>(64, kTokens - first);
    bool last = first + rows == kTokens;
    Status status = reader.read_rows(TensorKind::kKv, 4, first, rows, out.data());
    EXPECT_EQ(status.code(), last ? Code::kCorrupt : Code::kOk) << first << ": " << status.message();
  }
  // And a second pass from the front verifies again.
  EXPECT_TRUE(reader.read_rows(TensorKind::kKv, 4, 0, 5, out.data()).ok());
  EXPECT_EQ(reader.read_rows(TensorKind::kKv, 4, 0, kTokens, out.data()).code(), Code::kCorrupt);
  EXPECT_EQ(reader.read_rows(TensorKind::kKv, 4, 0, kTokens, out.data()).code(), Code::kCorrupt);
}

TEST_F(Entry, ReadsThatAreGivenUpEndAndLeaveNothingUnverified) {
  Folder folder;
  auto store = file_store(folder.path());
  ASSERT_TRUE(write(*store).ok());
  auto reader = take(EntryReader::open(*store, identity_, shape_));
  std::vector<std::byte> out(static_cast<size_t>(kTokens * 48));
  int asked = 0;
  auto give_up_at = [&](int call) {
    asked = 0;
    return [&asked, call] { return ++asked == call ? error(Code::kExhausted, "enough") : ok_status(); };
  };
  // Before the read nothing moves; after its only part everything has.
  Status status = reader.read_rows(TensorKind::kKv, 3, 0, kTokens, out.data(), give_up_at(1));
  EXPECT_EQ(status.code(), Code::kExhausted);
  EXPECT_EQ(reader.bytes_read(), 0);
  status = reader.read_rows(TensorKind::kKv, 3, 0, 100, out.data(), give_up_at(2));
  EXPECT_EQ(status.code(), Code::kExhausted);
  EXPECT_THAT(status.message(), HasSubstr("enough"));
  EXPECT_EQ(reader.bytes_read(), 100 * 48);
  // The rest after it is not taken for a verified tensor nor for a damaged one; from the front all is well.
  EXPECT_TRUE(reader.read_rows(TensorKind::kKv, 3, 100, kTokens - 100, out.data()).ok());
  EXPECT_TRUE(reader.read_rows(TensorKind::kKv, 3, 0, kTokens, out.data(), give_up_at(3)).ok());
  EXPECT_EQ(asked, 2);
}

TEST_F(Entry, TruncatedOrLongerIsNoticed) {
  std::string good = written();
  std::vector<size_t> lengths = {
      0, 1, 7, 8, 11, 19, 20, 27, 28, 100, 4095, 4096, 4097, good.size() / 2, good.size() - 1};
  for (size_t length : lengths) {
    Status status = read_all(good.substr(0, length));
    EXPECT_EQ(status.code(), Code::kCorrupt) << length << ": " << status.message();
  }
  for (size_t more : {1, 4096, 100000}) {
    Status status = read_all(good + std::string(more, '\0'));
    EXPECT_EQ(status.code(), Code::kCorrupt) << more;
    EXPECT_THAT(status.message(), HasSubstr(std::to_string(good.size())));
  }
  Status status = read_all("GIF89a\x01\n" + std::string(100, 'x'));
  EXPECT_EQ(status.code(), Code::kCorrupt);
  EXPECT_THAT(status.message(),
              AllOf(HasSubstr("GIF89a\\x01\\x0a"), HasSubstr("DSENTRY1"), HasSubstr("108")));
}

TEST_F(Entry, AnotherVersionIsNamed) {
  std::string object = written();
  for (char version : {1, 6}) {
    object[8] = version;
    Status status = read_all(with_header(object, header_text(object)));
    EXPECT_EQ(status.code(), Code::kUnsupported);
    EXPECT_THAT(status.message(),
                AllOf(HasSubstr(fmt::format("version {:d}", version)), HasSubstr("reads 2 to 5")));
  }
}

TEST_F(Entry, GoesOnFromWhatLiesBefore) {
  std::vector<int32_t> ids(static_cast<size_t>(128 + kTokens));
  std::iota(ids.begin(), ids.end(), 1);
  const EntryIdentity whole = entry_identity(identity_.sender, ids, 0, "", DType::kBF16);
  EXPECT_EQ(whole.key(), (EntryIdentity{identity_.sender, hash_tokens(ids), "", 128 + kTokens}.key()));
  EXPECT_EQ(whole.before, "");
  identity_ = entry_identity(identity_.sender, ids, 128, identity_.salt, identity_.dtype);
  EXPECT_EQ(identity_.tokens, kTokens);
  EXPECT_EQ(identity_.tokens_hash, hash_tokens(std::span(ids).subspan(128)));
  EXPECT_EQ(identity_.before, chain_hash(std::span(ids).first(128)));
  const std::string object = written();
  EXPECT_EQ(object[8], 5);
  Status status = read_all(object);
  EXPECT_TRUE(status.ok()) << status.message();
  auto refused = [&](const EntryIdentity& identity) {
    MemoryStore store;
    store.objects[identity.key()] = object;
    return EntryReader::open(store, identity, shape_).status().message();
  };
  EntryIdentity other = identity_;
  other.first = 64;
  EXPECT_THAT(refused(other), HasSubstr("first token is '128' there, expected '64'"));
  other = identity_;
  other.before = chain_hash(std::span(ids).subspan(1, 128));
  EXPECT_THAT(refused(other), HasSubstr("hash of the tokens before it is '" + identity_.before + "'"));
  other = identity_;
  other.first = 0;
  other.before = "";
  EXPECT_THAT(refused(other), HasSubstr("first token is '128' there, expected '0'"));
  MemoryStore store;
  for (int64_t first : {-64, 65, 0}) {
    EntryIdentity kept = std::exchange(identity_, other);
    identity_.first = first;
    identity_.before = "x";
    EXPECT_THAT(write(store).status().message(),
                HasSubstr(fmt::format("its first token is {} and the hash of those before it 'x'; expected a "
                                      "multiple of 64",
                                      first)));
    identity_ = kept;
  }
}

TEST_F(Entry, ChainHashesGoOnFromBlockToBlock) {
  std::vector<int32_t> ids(200);
  std::iota(ids.begin(), ids.end(), 1);
  EXPECT_EQ(chain_hash({}), "");
  ChainHash chain;
  for (int64_t count : {0, 64, 64, 192, 200})
    EXPECT_EQ(chain.up_to(ids, count), chain_hash(std::span(ids).first(static_cast<size_t>(count)))) << count;
  // As its header says it: hash of hash and block.
  std::string first = sha256_hex(std::as_bytes(std::span(ids).first(64)));
  std::string second = first + std::string(reinterpret_cast<const char*>(ids.data() + 64), 256);
  EXPECT_EQ(chain_hash(std::span(ids).first(128)), sha256_hex(second));
  std::vector<int32_t> other = ids;
  other[3] ^= 1;
  EXPECT_NE(chain_hash(other), chain_hash(ids));
}

TEST_F(Entry, AbsurdHeaderLengths) {
  for (uint64_t length : {uint64_t{0}, uint64_t{1}, uint64_t{16} << 20, (uint64_t{16} << 20) + 1,
                          uint64_t{1} << 62, uint64_t{1} << 63, ~uint64_t{0}, ~uint64_t{0} - 20}) {
    std::string object = written();
    std::memcpy(object.data() + 12, &length, 8);
    EXPECT_EQ(read_all(object).code(), Code::kCorrupt) << length;
  }
}

TEST_F(Entry, ForSomethingElseIsAMismatchThatNamesTheField) {
  std::string object = written();
  struct Case {
    const char* named;
    std::function<void(EntryIdentity&, Shape&)> change;
    std::string found;
  };
  std::vector<Case> cases = {
      {"sender fingerprint", [](auto& i, auto&) { i.sender = std::string(64, 'z'); }, std::string(64, 'a')},
      {"hash of the context's tokens", [](auto& i, auto&) { i.tokens_hash = "other"; },
       identity_.tokens_hash},
      {"number of tokens", [](auto& i, auto&) { i.tokens += 1; }, "171"},
      {"salt", [](auto& i, auto&) { i.salt = ""; }, sha256_hex("tenant")},
      {"element type", [](auto& i, auto&) { i.dtype = DType::kF32; }, "bf16"},
      {"layers", [](auto&, auto& s) { s.layers = 6; }, "5"},
      {"d_model", [](auto&, auto& s) { s.d_model = 25; }, "24"},
      {"ff", [](auto&, auto& s) { s.ff = 65; }, "64"},
      {"heads", [](auto&, auto& s) { s.heads = 8; }, "4"},
      {"kv_heads", [](auto&, auto& s) { s.kv_heads = 1; }, "2"},
      {"head_dim", [](auto&, auto& s) { s.head_dim = 12; }, "6"},
  };
  for (auto& c : cases) {
    EntryIdentity identity = identity_;
    Shape shape = shape_;
    c.change(identity, shape);
    MemoryStore store;
    store.objects[identity.key()] = object;  // as if somebody had renamed it
    Status status = EntryReader::open(store, identity, shape).status();
    EXPECT_EQ(status.code(), Code::kMismatch) << c.named << ": " << status.message();
    EXPECT_THAT(status.message(),
                AllOf(HasSubstr(c.named), HasSubstr("'" + c.found + "'"), HasSubstr("expected")));
  }
}

TEST_F(Entry, NeitherTheFamilysNameNorTheVocabularyIsInItsRows) {
  MemoryStore store;
  store.objects[identity_.key()] = written();
  Shape shape = shape_;
  shape.family = "mistral";
  shape.vocab += 8;
  Result<EntryReader> entry = EntryReader::open(store, identity_, shape);
  ASSERT_TRUE(entry.ok()) << entry.status().message();
  EXPECT_EQ(entry->header().shape, shape_);  // the sender's
}

TEST_F(Entry, EveryPartOfTheIdentityIsInTheKey) {
  std::vector<EntryIdentity> all(8, identity_);
  all[1].sender += "x";
  all[2].tokens_hash += "x";
  all[3].salt = "";
  all[4].tokens += 1;
  all[5].dtype = DType::kF32;
  all[6].sender = identity_.sender + "\ntokens";
  all[7].salt = std::string("\0\xff", 2);
  std::set<std::string> keys;
  for (auto& i : all) {
    keys.insert(i.key());
    EXPECT_EQ(i.key().size(), i.salt.empty() ? 64u : 81u);
  }
  EXPECT_EQ(keys.size(), all.size());
  EXPECT_EQ(identity_.key(), EntryIdentity(identity_).key());
  MemoryStore store;
  ASSERT_TRUE(write(store).ok());
  for (size_t i = 1; i < all.size(); ++i)
    EXPECT_EQ(EntryReader::open(store, all[i], shape_).status().code(), Code::kNotFound);
}

TEST_F(Entry, SaltsMayBeAnyBytesAndNamesNeedNotBeUtf8) {
  identity_.salt = std::string("\0\xff\xfe\"", 4);
  sender_.name = "model\xff";
  Status status = read_all(written());
  EXPECT_TRUE(status.ok()) << status.message();
}

TEST_F(Entry, TokenHashesAreOfLittleEndianInt32) {
  std::vector<int32_t> ids = {1, -1, 258};
  EXPECT_EQ(hash_tokens(ids), sha256_hex(std::string_view("\1\0\0\0\xff\xff\xff\xff\2\1\0\0", 12)));
  EXPECT_EQ(hash_tokens({}), sha256_hex(""));
}

TEST_F(Entry, WhatCannotBePublished) {
  MemoryStore store;
  auto refused = [&](const char* why) {
    auto result = write(store);
    EXPECT_EQ(result.status().code(), Code::kInvalidArgument) << why;
    EXPECT_TRUE(store.objects.empty()) << why;
  };
  auto all = tensors_;
  tensors_.clear();
  refused("no tensors");
  tensors_ = all;
  tensors_.push_back(all[0]);
  refused("one twice");
  tensors_ = all;
  tensors_[2].layer = 5;
  refused("a layer outside");
  tensors_[2].layer = -1;
  refused("a negative layer");
  tensors_ = all;
  tensors_[1].data.pop_back();
  refused("a byte too few");
  tensors_ = all;
  identity_.tokens = 0;
  refused("no tokens");
  identity_.tokens = INT64_MAX;
  refused("absurdly many tokens");
  identity_.tokens = kTokens;
  shape_.d_model = int64_t{1} << 60;
  refused("an absurd shape");
  shape_.d_model = 24;
  sender_.fingerprint = "other";
  refused("an identity for another sender");
}

TEST_F(Entry, PublishingToAFullDiskLeavesNothing) {
  class FullStore final : public Store {
   public:
    std::string url() const override { return "full:"; }
    Status put(const std::string&, const Produce& produce, Names) override {
      int64_t room = 10'000;
      return produce([&](std::span<const std::byte> bytes) {
        room -= static_cast<int64_t>(bytes.size());
        return room < 0 ? error(Code::kExhausted, "no room") : ok_status();
      });
    }
    Result<std::unique_ptr<StoreObject>> open(const std::string&) override {
      return error(Code::kNotFound, "none");
    }
    Status remove(const std::string&) override { return error(Code::kNotFound, "none"); }
  } store;
  auto result = write(store);
  EXPECT_EQ(result.status().code(), Code::kExhausted);
  EXPECT_THAT(result.status().message(), HasSubstr("publishing an entry to 'full:': no room"));
}

TEST_F(Entry, RowsThatAreNotThere) {
  MemoryStore store;
  ASSERT_TRUE(write(store).ok());
  auto reader = take(EntryReader::open(store, identity_, shape_));
  std::vector<std::byte> out(48);
  using enum TensorKind;
  Status status = reader.read_rows(kE, 2, 0, 1, out.data());
  EXPECT_EQ(status.code(), Code::kNotFound);
  EXPECT_THAT(status.message(), HasSubstr("e(2)"));
  EXPECT_EQ(reader.read_rows(kKv, 99, 0, 1, out.data()).code(), Code::kNotFound);
  for (auto [first, rows] : std::vector<std::pair<int64_t, int64_t>>{{-1, 1},
                                                                     {0, -1},
                                                                     {0, kTokens + 1},
                                                                     {kTokens, 1},
                                                                     {INT64_MAX, INT64_MAX},
                                                                     {1, INT64_MAX},
                                                                     {INT64_MIN, 1}}) {
    EXPECT_EQ(reader.read_rows(kKv, 0, first, rows, out.data()).code(), Code::kInvalidArgument) << first;
  }
  EXPECT_TRUE(reader.read_rows(kKv, 0, kTokens, 0, nullptr).ok());
  EXPECT_EQ(reader.bytes_read(), 0);
}

// Every value of the header that decides something is checked, also where the checksum is right.
TEST_F(Entry, EveryValueOfTheHeaderIsChecked) {
  add_mapped();
  std::string good = written();
  auto json = *parse_json(header_text(good), "header");
  ASSERT_TRUE(read_all(with_header(good, json.dump())).ok());

  std::vector<nlohmann::json> nasty = {nullptr,
                                       true,
                                       -1,
                                       0,
                                       1,
                                       4096,
                                       4097,
                                       INT64_MAX,
                                       INT64_MIN,
                                       UINT64_MAX,
                                       int64_t{1} << 32,
                                       1e308,
                                       2.5,
                                       "",
                                       "x",
                                       "-1",
                                       std::string(100'000, 'y'),
                                       nlohmann::json::array(),
                                       nlohmann::json::object(),
                                       nlohmann::json::array({1, 2}),
                                       nlohmann::json({{"a", 1}})};
  int tried = 0;
  std::function<void(const nlohmann::json&, nlohmann::json::json_pointer)> visit =
      [&](const nlohmann::json& value, const nlohmann::json::json_pointer& at) {
        std::string path = at.to_string();
        // What is there for people only, but must still be text.
        bool told = path == "/sender/name" || path == "/sender/config" || path == "/sender/weights" ||
                    path == "/sender/tokenizer";
        for (auto& replacement : nasty) {
          if (replacement == value || (told && replacement.is_string())) continue;
          // The sender's, whatever they are: no row depends on them.
          if (path == "/shape/family" && replacement.is_string() && replacement != "") continue;
          if (path == "/shape/vocab" && replacement.is_number_integer() && replacement > 0 &&
              replacement <= INT32_MAX)
            continue;
          nlohmann::json changed = json;
          changed[at] = replacement;
          Status status = read_all(with_header(good, changed.dump()));
          ASSERT_FALSE(status.ok()) << path << " = " << replacement.dump().substr(0, 50);
          ASSERT_NE(status.code(), Code::kInternal) << path << " = " << replacement.dump().substr(0, 50);
          ASSERT_NE(status.code(), Code::kInvalidArgument) << "it is the entry's fault: " << status.message();
          ++tried;
        }
        if (value.is_object()) {
          for (auto& [key, inner] : value.items()) {
            nlohmann::json changed = json;
            changed[at].erase(key);
            EXPECT_FALSE(read_all(with_header(good, changed.dump())).ok())
                << path << "/" << key << " is missing";
            visit(inner, at / key);
          }
        } else if (value.is_array()) {
          for (size_t i = 0; i < value.size(); ++i) visit(value[i], at / i);
        }
      };
  visit(json, nlohmann::json::json_pointer());
  EXPECT_GT(tried, 1000);
}

TEST_F(Entry, TensorsMustLieInOrderAlignedApartAndInside) {
  std::string good = written();
  auto json = *parse_json(header_text(good), "header");
  auto message = [&](const TensorChange& change) { return refused(good, json, change); };
  int64_t first = json["tensors"][0]["offset"], second = json["tensors"][1]["offset"];
  EXPECT_THAT(message([&](auto& t) { t[1]["offset"] = first; }), HasSubstr("tensor 1 e(3)"));  // overlap
  EXPECT_THAT(message([&](auto& t) { t[1]["offset"] = second + 1; }), HasSubstr("multiple of 4096"));
  EXPECT_THAT(message([&](auto& t) { t[0]["offset"] = 0; }), HasSubstr("at byte 0"));  // the header itself
  EXPECT_THAT(message([&](auto& t) { t[6]["offset"] = int64_t{1} << 40; }), HasSubstr("truncated"));
  EXPECT_THAT(message([&](auto& t) { t[6]["offset"] = (INT64_MAX / 2) & ~int64_t{4095}; }),
              HasSubstr("truncated"));
  EXPECT_THAT(message([&](auto& t) { t[0]["bytes"] = 1; }), HasSubstr("1 bytes, expected 8208"));
  EXPECT_THAT(message([&](auto& t) { std::swap(t[2], t[3]); }), HasSubstr("stands after"));
  EXPECT_THAT(message([&](auto& t) { t[3] = t[2]; }), HasSubstr("stands after"));
  EXPECT_THAT(message([&](auto& t) { t[6]["layer"] = 5; }), HasSubstr("not one of"));
  EXPECT_THAT(message([&](auto& t) { t.erase(6); }), HasSubstr("expected"));  // now the object is too long
  EXPECT_THAT(message([&](auto& t) { t = nlohmann::json::array(); }), HasSubstr("0 tensors"));
  EXPECT_THAT(message([&](auto& t) {
                std::string digits = t[0]["checksums"];
                t[0]["checksums"] = "0123456789ABCDEF" + digits.substr(16);
              }),
              HasSubstr("16 hexadecimal"));
  EXPECT_THAT(message([&](auto& t) { t[0]["checksums"] = "00"; }), HasSubstr("expected 16 for each of"));
}

TEST_F(Entry, NestedOrHugeHeadersDoNotCrash) {
  std::string good = written();
  for (const std::string& text :
       {std::string(5'000'000, '['), std::string(100'000, '[') + std::string(100'000, ']'),
        "{\"layout\":" + std::string(200'000, '[') + std::string(200'000, ']') + "}", std::string(),
        std::string("null"), std::string("[]"), std::string("{}"), std::string(1000, '\0'),
        "\"" + std::string(1'000'000, 'x') + "\"", std::string("\xff\xfe{}")}) {
    Status status = read_all(with_header(good, text));
    EXPECT_EQ(status.code(), Code::kCorrupt) << text.substr(0, 20);
    EXPECT_LT(status.message().size(), 2000u);
  }
}

// Random damage to the header's text, its checksum put right each time: never a crash, never wrong bytes.
TEST_F(Entry, RandomHeaders) {
  std::string good = written(), text = header_text(good);
  std::mt19937 random(3);
  auto below = [&](size_t n) { return static_cast<size_t>(random()) % n; };
  constexpr std::string_view kPieces[] = {
      "{", "}", "[",  "]", ",",    ":",       "\"", "-",
      "0", "9", "e9", ".", "null", "\\u0000", "\\", "99999999999999999999"};
  int unreadable = 0;
  for (int round = 0; round < 20'000; ++round) {
    std::string changed = text;
    for (size_t edits = 1 + below(3); edits > 0; --edits) {
      size_t at = below(changed.size()), length = std::min(below(20), changed.size() - at);
      switch (below(5)) {
        case 0:
          changed[at] = static_cast<char>(random());
          break;
        case 1:
          changed.erase(at, length);
          break;
        case 2:
          changed.insert(at, kPieces[below(std::size(kPieces))]);
          break;
        case 3:
          changed.insert(below(changed.size()), changed.substr(at, length));
          break;
        default:
          changed.resize(at);
      }
      if (changed.empty()) changed.push_back('x');
    }
    Status status = read_all(with_header(good, changed));
    ASSERT_NE(status.code(), Code::kInternal) << changed;
    unreadable += !status.ok();
  }
  EXPECT_GT(unreadable, 10'000);
}

// Random damage to whole objects: truncated, cut apart, overwritten.
TEST_F(Entry, RandomObjects) {
  std::string good = written();
  std::mt19937 random(4);
  auto below = [&](size_t n) { return static_cast<size_t>(random()) % n; };
  for (int round = 0; round < 3'000; ++round) {
    std::string changed = good;
    size_t at = below(2) != 0 ? below(200) : below(changed.size());
    switch (below(3)) {
      case 0:
        changed.resize(at);
        break;
      case 1:
        for (size_t i = at; i < std::min(at + 1 + below(16), changed.size()); ++i)
          changed[i] = static_cast<char>(random());
        break;
      default:
        changed.erase(at, 1 + below(5000));
    }
    ASSERT_NE(read_all(changed).code(), Code::kInternal) << "wrong bytes taken for right, round " << round;
  }
}

TEST_F(Entry, ReplacedWhileBeingRead) {
  Folder folder;
  auto store = file_store(folder.path());
  ASSERT_TRUE(write(*store).ok());
  std::atomic<bool> stop = false;
  std::atomic<int> failed = 0, reads = 0;
  std::thread receiver([&] {
    while (!stop) {
      failed += !read_all(*store, 50).ok();
      ++reads;
    }
  });
  // The same entry with and without a cut: other offsets, so a reader of two halves would notice.
  auto all = sources();
  for (int i = 0; i < 30 || reads < 10; ++i) {
    auto some = all;
    some.push_back({TensorKind::kE, 4, all[0].data});
    ASSERT_TRUE(write_entry(*store, identity_, sender_, shape_, i % 2 != 0 ? all : some).ok());
  }
  stop = true;
  receiver.join();
  EXPECT_EQ(failed, 0);
}

}  // namespace
}  // namespace ds
