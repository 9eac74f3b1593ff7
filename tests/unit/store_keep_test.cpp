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

}  // namespace
}  // namespace ds
