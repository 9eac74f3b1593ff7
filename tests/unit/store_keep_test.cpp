// What a store keeps and whom it believes: names and their index, signatures, pins, readers, eviction.
#include "runtime/store/keep.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <thread>

#include "runtime/store/entry.h"
#include "runtime/store/store.h"

namespace ds {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class Keep : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "ds_keep_" + std::to_string(getpid());
    fs::remove_all(folder_);
    ids_.resize(400);
    std::iota(ids_.begin(), ids_.end(), 1);
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::unique_ptr<Store> open(std::shared_ptr<const std::string> key = nullptr) const {
    auto store = std::move(open_store("file:" + folder_)).value();
    store->set_signing(std::move(key));
    return store;
  }
  EntryIdentity identity(int64_t end, int64_t first = 0, const std::string& salt = "",
                         const std::string& sender = std::string(64, 'b')) const {
    return entry_identity(sender, std::span(ids_).first(static_cast<size_t>(end)), first, salt, DType::kBF16);
  }
  /// An entry with K and V of each layer.
  Status publish(Store& store, const EntryIdentity& id) const {
    const std::string rows(static_cast<size_t>(id.tokens * 24 * 2), 'k');
    std::vector<EntrySource> sources;
    for (int32_t l = 0; l < 2; ++l)
      sources.push_back({TensorKind::kKv, l, std::as_bytes(std::span(rows)), {}});
    return write_entry(store, id, sender_, shape_, std::move(sources)).status();
  }
  std::vector<std::string> names(int64_t tokens, const std::string& salt = "",
                                 const std::string& sender = std::string(64, 'b')) const {
    return block_names(sender, std::span(ids_).first(static_cast<size_t>(tokens)), 0, salt, DType::kBF16);
  }
  static std::vector<std::string> keys_of(const std::vector<ObjectRef>& found) {
    std::vector<std::string> keys;
    for (const ObjectRef& ref : found) keys.push_back(ref.key);
    return keys;
  }
  static std::shared_ptr<const std::string> secret(char c) {
    return std::make_shared<const std::string>(32, c);
  }
  fs::path index() const { return fs::path(folder_) / ".index" / "names.sqlite"; }

  std::string folder_;
  std::vector<int32_t> ids_;
  Shape shape_ = {"llama", 2, 24, 64, 4, 2, 6, 1000};
  ModelIdentity sender_ = {"base", std::string(64, 'b'), std::string(64, 'c'), std::string(64, 'd'),
                           std::string(64, 'e')};
};

TEST_F(Keep, ARequestFindsTheEntriesThatItsBlocksAgreeWith) {
  auto store = open();
  ASSERT_TRUE(publish(*store, identity(256)).ok());
  ASSERT_TRUE(publish(*store, identity(400, 256)).ok());
  ids_[300] =
      999;  // another request: agrees with the first entry and one block of the second at 64 rows each
  const Found found = store->find({}, names(400)).value();
  ASSERT_EQ(found.names.size(), 7u);
  for (size_t i = 0; i < 4; ++i) {
    ASSERT_EQ(found.names[i].size(), 1u) << i;
    EXPECT_EQ(found.names[i][0].key, identity(256).key());
    EXPECT_EQ(found.names[i][0].index, static_cast<int32_t>(i));
  }
  for (size_t i = 4; i < 7; ++i) EXPECT_TRUE(found.names[i].empty()) << i;
  ids_[300] = 301;
  const Found whole = store->find({}, names(400)).value();
  for (size_t i = 4; i < 7; ++i) EXPECT_EQ(keys_of(whole.names[i]), std::vector{identity(400, 256).key()});
  auto reader = EntryReader::open_named(*store, whole.names[5][0], names(400)[5], shape_);
  ASSERT_TRUE(reader.ok()) << reader.status().message();
  EXPECT_EQ(reader->header().identity.first, 256);
  // What was found by one block's name is no answer for another's.
  EXPECT_EQ(EntryReader::open_named(*store, whole.names[5][0], names(400)[4], shape_).status().code(),
            Code::kMismatch);
}

TEST_F(Keep, TheIndexIsMadeAgainFromTheEntries) {
  ASSERT_TRUE(publish(*open(), identity(256)).ok());
  const auto found = [&] { return keys_of(open()->find({}, names(64)).value().names[0]); };
  const std::vector<std::string> right{identity(256).key()};
  EXPECT_EQ(found(), right);
  fs::remove_all(index().parent_path());
  EXPECT_EQ(found(), right) << "without an index";
  std::ofstream(index()) << "this is no index, and rather long for one: " << std::string(5000, '?');
  EXPECT_EQ(found(), right) << "with bytes that are none";
  // An index that is damaged inside.
  {
    std::fstream file(index(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(4096);
    file << std::string(8192, '\xee');
  }
  EXPECT_EQ(found(), right) << "damaged";
  // Copied in and taken away behind its back.
  const fs::path entry = fs::path(folder_) / right[0];
  fs::rename(entry, folder_ + "-away");
  for (const std::string& key : found())
    EXPECT_EQ(open()->open(key).status().code(), Code::kNotFound) << "what is gone is a miss";
  fs::rename(folder_ + "-away", entry);
  EXPECT_EQ(found(), right);
}

TEST_F(Keep, AnIndexThatANeighbourWithoutTheKeyHasMadeFindsSignedEntries) {
  ASSERT_TRUE(publish(*open(secret('k')), identity(256)).ok());
  fs::remove_all(index().parent_path());
  EXPECT_EQ(open()->find({}, names(64)).value().names[0].size(), 1u);
  auto store = open(secret('k'));
  const auto found = store->find({}, names(64)).value().names[0];
  ASSERT_EQ(found.size(), 1u);
  EXPECT_TRUE(EntryReader::open_named(*store, found[0], names(64)[0], shape_).ok());
}

// Of the faults of 2026 in such systems: what an untrusted store holds is taken for a model's own.
TEST_F(Keep, WhoHasNotTheKeyCanMakeNoEntry) {
  auto own = open(secret('k'));
  auto read = [&](Store& store) -> Status {
    DS_ASSIGN(EntryReader reader, EntryReader::open(store, identity(256), shape_));
    return reader.verify();
  };
  for (auto& maker : {open(), open(secret('x'))}) {
    ASSERT_TRUE(publish(*maker, identity(256)).ok());
    Status status = read(*own);
    EXPECT_EQ(status.code(), Code::kMismatch);
    EXPECT_THAT(status.message(), HasSubstr("not signed by the store's key"));
    EXPECT_EQ(status.message().find(std::string(32, 'k')), std::string::npos) << "a key is never printed";
  }
  ASSERT_TRUE(publish(*own, identity(256)).ok());
  EXPECT_TRUE(read(*own).ok()) << read(*own).message();
  // Who does not know the key cannot check rows, and uses none.
  EXPECT_THAT(read(*open()).message(), HasSubstr("give that key"));
  // Every byte of a signed entry with a meaning is noticed; its plain checksums could be made again.
  const fs::path path = fs::path(folder_) / identity(256).key();
  std::string good((std::istreambuf_iterator<char>(std::ifstream(path, std::ios::binary).rdbuf())), {});
  for (size_t at : {size_t{9}, size_t{40}, size_t{4096}, good.size() - 1}) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 1);
    std::ofstream(path, std::ios::binary) << bad;
    EXPECT_FALSE(read(*own).ok()) << at;
  }
}

// Cross-tenant and cross-adapter hits.
TEST_F(Keep, AnotherTenantOrModelFindsNothingByAnyName) {
  auto store = open();
  ASSERT_TRUE(publish(*store, identity(256, 0, "tenant a")).ok());
  const std::string adapted(64, 'f');
  for (const auto& other : {names(256), names(256, "tenant b"), names(256, "tenant a", adapted)}) {
    const Found found = store->find({}, other).value();
    for (const auto& block : found.names) EXPECT_TRUE(block.empty());
  }
  EXPECT_EQ(store->find({}, names(256, "tenant a")).value().names[0].size(), 1u);
  for (const EntryIdentity& id :
       {identity(256), identity(256, 0, "tenant b"), identity(256, 0, "tenant a", adapted)})
    EXPECT_EQ(EntryReader::open(*store, id, shape_).status().code(), Code::kNotFound);
  EXPECT_EQ(identity(256, 0, "tenant a").key().find("tenant"), std::string::npos);
}

// Salts that crash a validator.
TEST_F(Keep, ASaltIsAnyBytes) {
  auto store = open();
  std::set<std::string> keys;
  for (const std::string& salt :
       {std::string(), std::string(1, '\0'), std::string("\0a", 2), std::string("../../etc"),
        std::string(1 << 20, 's'), std::string("\xff\xfe\x80")}) {
    const EntryIdentity id = identity(64, 0, salt);
    ASSERT_TRUE(publish(*store, id).ok());
    EXPECT_TRUE(EntryReader::open(*store, id, shape_).ok());
    keys.insert(id.key());
  }
  EXPECT_EQ(keys.size(), 6u);
  EXPECT_EQ(store->list().value().size(), 6u);
}

// Reads and writes of any file by way of keys.
TEST_F(Keep, NothingFromOutsideReachesAFileName) {
  auto store = open();
  ASSERT_TRUE(publish(*store, identity(64)).ok());
  for (const char* key : {"../outside", "/etc/passwd", ".index", ".pins", "a/b", "", "..", "a\nb"}) {
    EXPECT_EQ(store->open(key).status().code(), Code::kInvalidArgument) << key;
    EXPECT_EQ(store->remove(key).code(), Code::kInvalidArgument) << key;
    EXPECT_EQ(store->pin(key, true).code(), Code::kInvalidArgument) << key;
    EXPECT_EQ(store->evict(key).status().code(), Code::kInvalidArgument) << key;
  }
  for (const std::string& name :
       {std::string("'; DROP TABLE names; --"), std::string(31, '0'), std::string(32, 'G')}) {
    const std::string bad[] = {name};
    EXPECT_EQ(store->find({}, bad).status().code(), Code::kInvalidArgument) << name;
  }
  struct stat info {};
  for (auto& e : fs::recursive_directory_iterator(folder_)) {
    ASSERT_EQ(stat(e.path().c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 077, 0u) << e.path();
  }
}

TEST_F(Keep, ThePinnedAndTheReadStayTheLongestUnusedGoesFirst) {
  auto store = open();
  std::vector<std::string> keys;
  for (int i = 0; i < 5; ++i) {
    const EntryIdentity id = identity(64 * (i + 1));
    ASSERT_TRUE(publish(*store, id).ok());
    keys.push_back(id.key());
    const timespec old[] = {{1000 + i, 0}, {1000, 0}};
    ASSERT_EQ(utimensat(AT_FDCWD, (folder_ + "/" + keys.back()).c_str(), old, 0), 0);
  }
  ASSERT_TRUE(store->pin(keys[0], true).ok());
  auto reading = EntryReader::open_any(*store, keys[1]);
  ASSERT_TRUE(reading.ok());
  const timespec old[] = {{1001, 0}, {1000, 0}};  // which reading may have changed, by the system's own means
  ASSERT_EQ(utimensat(AT_FDCWD, (folder_ + "/" + keys[1]).c_str(), old, 0), 0);
  // A use counts: the third is the youngest now.
  ASSERT_TRUE(EntryReader::open(*store, identity(64 * 3), shape_).ok());
  int64_t bytes = 0;
  const std::vector<ObjectInfo> all = store->list().value();
  for (const ObjectInfo& o : all) bytes += o.bytes;
  KeepOptions options{.most_bytes = bytes - 1, .now_s = 2000, .dry_run = true};
  EXPECT_EQ(collect(*store, options)->evicted.size(), 1u);
  EXPECT_EQ(store->list()->size(), 5u) << "a dry run takes nothing away";
  options.dry_run = false;
  Collected done = collect(*store, options).value();
  ASSERT_EQ(done.evicted.size(), 1u);
  EXPECT_EQ(done.evicted[0].key, keys[3]);
  EXPECT_EQ(done.in_use, 1);
  options.most_bytes = 0;
  done = collect(*store, options).value();
  EXPECT_EQ(done.evicted.size(), 2u);
  EXPECT_EQ(done.kept, 2);
  EXPECT_GT(done.bytes_over, 0);
  EXPECT_TRUE(reading->verify().ok()) << "who reads is not disturbed";
  { auto closed = std::move(*reading); }
  ASSERT_TRUE(store->pin(keys[0], false).ok());
  EXPECT_EQ(collect(*store, options)->evicted.size(), 2u);
  EXPECT_TRUE(store->list()->empty());
}

TEST_F(Keep, EachTenantHasAQuota) {
  auto store = open();
  for (int i = 1; i <= 3; ++i) {
    ASSERT_TRUE(publish(*store, identity(64 * i, 0, "a")).ok());
    ASSERT_TRUE(publish(*store, identity(64 * i, 0, "b")).ok());
  }
  std::map<std::string, int64_t> bytes;
  const std::vector<ObjectInfo> all = store->list().value();
  for (const ObjectInfo& o : all) bytes[key_tenant(o.key)] += o.bytes;
  ASSERT_EQ(bytes.size(), 2u);
  ASSERT_EQ(bytes.count(tenant_tag("a")), 1u);
  ASSERT_TRUE(store->remove(identity(64, 0, "b").key()).ok());
  const Collected done = collect(*store, {.most_tenant_bytes = bytes[tenant_tag("a")] - 1}).value();
  ASSERT_EQ(done.evicted.size(), 1u) << "only a has too much";
  EXPECT_EQ(key_tenant(done.evicted[0].key), tenant_tag("a"));
}

// Killed at any moment of putting, evicting and collecting, a store is readable: what is there is whole.
TEST_F(Keep, AKilledProcessLeavesAReadableStore) {
  ASSERT_TRUE(publish(*open(), identity(400)).ok());
  ASSERT_TRUE(open()->pin(identity(400).key(), true).ok());
  for (int i = 0; i < 200; ++i) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      auto store = open();
      for (int64_t n = 0;; ++n) {
        (void)publish(*store, identity(64 * (n % 5 + 1)));
        (void)store->find({}, names(320));
        (void)store->evict(identity(64 * ((n + 2) % 5 + 1)).key());
        if (n % 7 == 0) (void)collect(*store, {.most_bytes = 100'000});
      }
    }
    std::this_thread::sleep_for(std::chrono::microseconds(500 + (i * 7919) % 23'000));
    kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    auto store = open();
    const auto all = store->list();
    ASSERT_TRUE(all.ok()) << all.status().message();
    for (const ObjectInfo& o : *all) {
      auto entry = EntryReader::open_any(*store, o.key);
      ASSERT_TRUE(entry.ok()) << entry.status().message();
      ASSERT_TRUE(entry->verify().ok()) << entry->verify().message();
    }
    const Found found = store->find({}, names(320)).value();
    ASSERT_FALSE(found.names[0].empty());
    auto pinned = EntryReader::open(*store, identity(400), shape_);
    ASSERT_TRUE(pinned.ok()) << pinned.status().message();
  }
}

TEST_F(Keep, TwoThatPublishOneEntryLeaveOne) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 2; ++t)
    threads.emplace_back([&] {
      auto store = open();
      for (int i = 0; i < 20; ++i) EXPECT_TRUE(publish(*store, identity(256)).ok());
    });
  for (auto& thread : threads) thread.join();
  auto store = open();
  ASSERT_EQ(store->list()->size(), 1u);
  EXPECT_TRUE(EntryReader::open_any(*store, store->list()->at(0).key)->verify().ok());
  EXPECT_EQ(store->find({}, names(64)).value().names[0].size(), 1u);
}

}  // namespace
}  // namespace ds
