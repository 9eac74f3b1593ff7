#include "tests/unit/store_conformance.h"

#include <gmock/gmock.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <csignal>
#include <cstring>
#include <map>
#include <numeric>
#include <set>
#include <thread>

#include "runtime/store/entry.h"
#include "runtime/store/keep.h"
#include "tests/unit/take.h"

namespace ds {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::take;

std::string name_of(int i) { return fmt::format("{:032x}", i); }

std::vector<std::string> keys_of(const std::vector<ObjectRef>& found) {
  std::vector<std::string> keys;
  for (const ObjectRef& ref : found) keys.push_back(ref.key);
  return keys;
}

TEST_P(StoreConformance, PutOpenReadRemove) {
  auto store = open();
  EXPECT_EQ(store->size("a").status().code(), Code::kNotFound);
  EXPECT_THAT(store->size("a").status().message(), HasSubstr("'a'"));
  ASSERT_TRUE(put_text(*store, "a", "first").ok());
  EXPECT_EQ(*store->size("a"), 5);
  EXPECT_EQ(*get_text(*store, "a"), "first");
  ASSERT_TRUE(put_text(*store, "a", "the second").ok());
  EXPECT_EQ(*get_text(*store, "a"), "the second");
  ASSERT_TRUE(put_text(*store, "empty", "").ok());
  EXPECT_EQ(*store->size("empty"), 0);
  EXPECT_EQ(*get_text(*store, "empty"), "");
  EXPECT_EQ(store->size("b").status().code(), Code::kNotFound);
  EXPECT_TRUE(store->remove("a").ok());
  EXPECT_EQ(store->remove("a").code(), Code::kNotFound);
  EXPECT_EQ(store->open("a").status().code(), Code::kNotFound);
}

// Around all bounds that a store may have inside: first bytes, parts, batches of parts.
TEST_P(StoreConformance, BytesOfAnySizeInAnyPiecesComeBack) {
  auto store = open();
  for (size_t bytes : {size_t{1}, size_t{65535}, size_t{65536}, size_t{65537}, size_t{69'632},
                       size_t{1} << 20, (size_t{1} << 20) + 65536, size_t{9'500'001}}) {
    const std::string text = pattern(bytes);
    for (size_t piece : {bytes, size_t{100'003}}) {
      Status put = store->put("k", [&](const Store::Sink& sink) -> Status {
        for (size_t at = 0; at < bytes; at += piece)
          DS_TRY(sink(bytes_of(std::string_view(text).substr(at, piece))));
        return ok_status();
      });
      ASSERT_TRUE(put.ok()) << put.message();
      auto object = take(store->open("k"));
      ASSERT_EQ(object->size(), static_cast<int64_t>(bytes));
      EXPECT_EQ(take(read_text(*object, 0, bytes)) == text, true) << bytes << " in pieces of " << piece;
      for (size_t at : {size_t{0}, bytes / 3, bytes - bytes / 7 - 1})
        for (size_t some : {size_t{1}, bytes / 7, bytes / 2}) {
          if (some > bytes - at) continue;
          EXPECT_EQ(take(read_text(*object, static_cast<int64_t>(at), some)) == text.substr(at, some), true)
              << bytes << ": " << some << " from " << at;
        }
    }
  }
}

TEST_P(StoreConformance, ReadsRangesAndRefusesThoseOutside) {
  auto store = open();
  for (size_t more : {size_t{0}, size_t{100'000}}) {
    ASSERT_TRUE(put_text(*store, "k", pattern(more) + "0123456789").ok());
    auto object = take(store->open("k"));
    const auto from = static_cast<int64_t>(more);
    std::array<std::byte, 4> out{};
    ASSERT_TRUE(object->read(from + 3, out).ok());
    EXPECT_EQ(std::memcmp(out.data(), "3456", 4), 0);
    ASSERT_TRUE(object->read(from + 6, out).ok());
    EXPECT_EQ(object->read(from + 7, out).code(), Code::kCorrupt);
    EXPECT_EQ(object->read(int64_t{1} << 50, out).code(), Code::kCorrupt);
    EXPECT_EQ(object->read(-1, out).code(), Code::kInvalidArgument);
    EXPECT_TRUE(object->read(from + 10, {}).ok());
  }
}

TEST_P(StoreConformance, TellsOfBytesAsTheyCome) {
  auto store = open();
  const std::string text = pattern(1'000'003);
  ASSERT_TRUE(put_text(*store, "k", text).ok());
  // Behind a link too.
  auto shaped = shape_link(open(), {1e9, 0});
  for (Store* s : {store.get(), shaped.get()}) {
    auto object = take(s->open("k"));
    std::string out(text.size() - 5, '\0'), told;
    int parts = 0;
    ASSERT_TRUE(object
                    ->read_by_parts(5, std::as_writable_bytes(std::span(out)),
                                    [&](std::span<const std::byte> part) {
                                      if (part.empty()) return ok_status();
                                      EXPECT_EQ(reinterpret_cast<const char*>(part.data()),
                                                &out[told.size()]);
                                      told.append(reinterpret_cast<const char*>(part.data()), part.size());
                                      ++parts;
                                      return ok_status();
                                    })
                    .ok());
    EXPECT_EQ(out == text.substr(5), true);
    EXPECT_EQ(told == out, true);
    EXPECT_GT(parts, 1);
    // Who is told may end the read, and read again.
    Status status = object->read_by_parts(0, std::as_writable_bytes(std::span(out)), [&](auto part) {
      parts -= !part.empty();
      return parts > 0 ? ok_status() : error(Code::kMismatch, "enough");
    });
    EXPECT_EQ(status.code(), Code::kMismatch);
    EXPECT_EQ(status.message(), "enough") << "the reason is told as it was given";
    EXPECT_EQ(parts, 0);
    EXPECT_EQ(take(read_text(*object, 0, text.size())) == text, true);
  }
}

TEST_P(StoreConformance, OpenObjectsSurviveReplacementRemovalAndTheStore) {
  for (size_t bytes : {size_t{9}, size_t{200'000}}) {
    auto store = open();
    const std::string old = pattern(bytes);
    ASSERT_TRUE(put_text(*store, "k", old).ok());
    auto object = take(store->open("k"));
    ASSERT_TRUE(put_text(*store, "k", "new").ok());
    ASSERT_TRUE(store->remove("k").ok());
    store.reset();
    EXPECT_EQ(take(read_text(*object, 0, bytes)) == old, true);
  }
}

TEST_P(StoreConformance, BadKeysAreRefused) {
  auto store = open();
  for (std::string key :
       {"", ".", "..", ".hidden", "a/b", "../a", "a b", "a\n", "x.tmp-abcdef", "\xc3\xa4", "a{b}", "a*"}) {
    EXPECT_EQ(put_text(*store, key, "x").code(), Code::kInvalidArgument) << key;
    EXPECT_EQ(store->open(key).status().code(), Code::kInvalidArgument) << key;
    EXPECT_EQ(store->remove(key).code(), Code::kInvalidArgument) << key;
    EXPECT_EQ(store->pin(key, true).code(), Code::kInvalidArgument) << key;
    EXPECT_EQ(store->evict(key).status().code(), Code::kInvalidArgument) << key;
  }
  EXPECT_EQ(put_text(*store, std::string(201, 'a'), "x").code(), Code::kInvalidArgument);
  EXPECT_EQ(put_text(*store, std::string("a\0b", 3), "x").code(), Code::kInvalidArgument);
  for (const std::string& name :
       {std::string("'; DROP TABLE names; --"), std::string(31, '0'), std::string(32, 'G')}) {
    const std::string bad[] = {name};
    EXPECT_EQ(store->find({}, bad).status().code(), Code::kInvalidArgument) << name;
    EXPECT_EQ(put_text(*store, "k", "x", bad).code(), Code::kInvalidArgument) << name;
  }
  EXPECT_THAT(place_->left(), ElementsAre());
  EXPECT_TRUE(put_text(*store, std::string(200, 'a'), pattern(70'000)).ok());
  EXPECT_TRUE(put_text(*store, "A-z_0.9", "x").ok());
  EXPECT_EQ(take(get_text(*store, std::string(200, 'a'))) == pattern(70'000), true);
}

TEST_P(StoreConformance, AFailedPutLeavesTheOldObjectAndNothingElse) {
  auto store = open();
  ASSERT_TRUE(put_text(*store, "k", "old").ok());
  const std::vector<std::string> before = place_->left();
  Status status = store->put("k", [](const Store::Sink& sink) -> Status {
    DS_TRY(sink(bytes_of(pattern(12'000'000))));
    return error(Code::kMismatch, "changed my mind");
  });
  EXPECT_EQ(status.code(), Code::kMismatch);
  EXPECT_EQ(status.message(), "changed my mind");
  EXPECT_EQ(*get_text(*store, "k"), "old");
  EXPECT_EQ(place_->left(), before);
}

TEST_P(StoreConformance, ReadersSeeTheOldOrTheWholeNewObject) {
  auto store = open();
  auto content = [](int version) {
    return std::string(50000 + 11'000 * (version % 7), static_cast<char>('a' + version % 26));
  };
  ASSERT_TRUE(put_text(*store, "k", content(0)).ok());
  std::atomic<bool> stop = false;
  std::atomic<int> torn = 0, reads = 0;
  std::vector<std::thread> readers;
  for (int r = 0; r < 2; ++r) {
    readers.emplace_back([&] {
      while (!stop) {
        auto text = get_text(*store, "k");
        bool whole = false;
        for (int v = 0; text.ok() && !whole && v < 26 * 7; ++v) whole = *text == content(v);
        torn += !whole;
        ++reads;
      }
    });
  }
  for (int v = 1; v <= 60 || reads < 20; ++v) ASSERT_TRUE(put_text(*store, "k", content(v)).ok());
  stop = true;
  for (auto& t : readers) t.join();
  EXPECT_EQ(torn, 0);
}

TEST_P(StoreConformance, ConcurrentWritersOfOneKeyLeaveOneWholeObject) {
  std::vector<std::thread> writers;
  std::atomic<int> failed = 0;
  for (int w = 0; w < 4; ++w) {
    writers.emplace_back([&, w] {
      auto store = open();
      const std::string names[] = {name_of(1), name_of(2)};
      for (int i = 0; i < 10; ++i) {
        Status put = put_text(*store, "k", std::string(200'000, static_cast<char>('0' + w)), names);
        failed += !put.ok();
        EXPECT_EQ(put.message(), "");
      }
    });
  }
  for (auto& t : writers) t.join();
  EXPECT_EQ(failed, 0);
  auto store = open();
  const std::string text = take(get_text(*store, "k"));
  EXPECT_EQ(text == std::string(200'000, text[0]), true);
  const std::string names[] = {name_of(1)};
  EXPECT_THAT(keys_of(store->find({}, names).value().names[0]), ElementsAre("k"));
  ASSERT_EQ(store->list().value().size(), 1u);
}

TEST_P(StoreConformance, FindsKeysAndNames) {
  auto store = open();
  const std::string first[] = {name_of(1), name_of(2)}, second[] = {name_of(2), name_of(3)};
  ASSERT_TRUE(put_text(*store, "a", "12345", first).ok());
  ASSERT_TRUE(put_text(*store, "b", pattern(100'000), second).ok());
  const std::string keys[] = {"b", "none", "a"};
  const std::string names[] = {name_of(1), name_of(2), name_of(3), name_of(4)};
  // Of another process.
  auto other = open();
  const Found found = take(other->find(keys, names));
  ASSERT_EQ(found.keys.size(), 3u);
  ASSERT_TRUE(found.keys[0] && found.keys[2]);
  EXPECT_EQ(found.keys[0]->bytes, 100'000);
  EXPECT_FALSE(found.keys[1]);
  EXPECT_EQ(found.keys[2]->bytes, 5);
  ASSERT_EQ(found.names.size(), 4u);
  EXPECT_THAT(keys_of(found.names[0]), ElementsAre("a"));
  EXPECT_THAT(keys_of(found.names[1]), ElementsAre("b", "a")) << "the newest first";
  EXPECT_THAT(keys_of(found.names[2]), ElementsAre("b"));
  EXPECT_THAT(keys_of(found.names[3]), ElementsAre());
  EXPECT_EQ(found.names[1][0].index, 0);
  EXPECT_EQ(found.names[1][1].index, 1);
  EXPECT_EQ(found.names[1][0].bytes, 100'000);
  for (const auto& ref : {*found.keys[0], found.names[2][0]}) {
    auto object = take(other->open(ref));
    EXPECT_EQ(take(read_text(*object, 0, 100'000)) == pattern(100'000), true);
  }
  // More than can be looked at one by one.
  std::vector<std::string> many;
  for (int i = 0; i < 3000; ++i) many.push_back(name_of(1000 + i));
  ASSERT_TRUE(put_text(*store, "c", "x", many).ok());
  const Found all = take(other->find({}, many));
  for (size_t i = 0; i < many.size(); ++i) {
    ASSERT_THAT(keys_of(all.names[i]), ElementsAre("c")) << i;
    ASSERT_EQ(all.names[i][0].index, static_cast<int32_t>(i));
  }
  // No more than that many, the newest of them.
  const std::string shared[] = {name_of(9)};
  for (int i = 0; i < 30; ++i) ASSERT_TRUE(put_text(*store, fmt::format("s{}", i), "x", shared).ok());
  EXPECT_EQ(take(other->find({}, shared)).names[0].size(), Store::kMostOfName);
}

TEST_P(StoreConformance, NamesGoWithTheirObject) {
  auto store = open();
  const std::string first[] = {name_of(1), name_of(2)}, second[] = {name_of(2), name_of(3)};
  const std::string names[] = {name_of(1), name_of(2), name_of(3)};
  auto found = [&] {
    std::vector<std::vector<std::string>> keys;
    for (const auto& refs : take(open()->find({}, names)).names) keys.push_back(keys_of(refs));
    return keys;
  };
  using Keys = std::vector<std::string>;
  ASSERT_TRUE(put_text(*store, "k", pattern(70'000), first).ok());
  EXPECT_THAT(found(), ElementsAre(Keys{"k"}, Keys{"k"}, Keys{}));
  ASSERT_TRUE(put_text(*store, "k", pattern(80'000), second).ok());
  EXPECT_THAT(found(), ElementsAre(Keys{}, Keys{"k"}, Keys{"k"})) << "replaced, names and all";
  EXPECT_EQ(take(open()->find({}, names)).names[1][0].bytes, 80'000);
  ASSERT_TRUE(store->remove("k").ok());
  EXPECT_THAT(found(), ElementsAre(Keys{}, Keys{}, Keys{}));
}

TEST_P(StoreConformance, ListsWhatThereIs) {
  auto store = open();
  EXPECT_TRUE(store->list().value().empty());
  const auto before = time(nullptr);
  ASSERT_TRUE(put_text(*store, "b", pattern(3'000'000)).ok());
  ASSERT_TRUE(put_text(*store, "a", "x").ok());
  ASSERT_TRUE(store->pin("b", true).ok());
  store->touch("a");
  store->touch("none");
  const std::vector<ObjectInfo> all = take(open()->list());
  ASSERT_EQ(all.size(), 2u);
  EXPECT_EQ(all[0].key, "a");
  EXPECT_EQ(all[1].key, "b");
  EXPECT_EQ(all[0].bytes, 1);
  EXPECT_EQ(all[1].bytes, 3'000'000);
  for (const ObjectInfo& o : all) {
    // A file system's clock may be a tick beside the process's: a second of slack.
    EXPECT_GE(o.written_s, before - 1);
    EXPECT_LE(o.written_s, time(nullptr) + 1);
    EXPECT_GE(o.used_s, o.written_s);
    EXPECT_EQ(o.pinned, o.key == "b");
  }
  ASSERT_TRUE(put_text(*store, "bb", pattern(100'000)).ok());
  const std::vector<ObjectInfo> some = take(open()->list("b"));
  ASSERT_EQ(some.size(), 2u);
  EXPECT_EQ(some[0].key, "b");
  EXPECT_EQ(some[1].key, "bb");
  EXPECT_TRUE(take(store->list("bbb")).empty());
}

TEST_P(StoreConformance, AUseIsNoted) {
  auto store = open();
  ASSERT_TRUE(put_text(*store, "k", "x").ok());
  const int64_t written = take(store->list())[0].used_s;
  while (time(nullptr) <= written) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  store->touch("k");
  EXPECT_GT(take(store->list())[0].used_s, written);
  EXPECT_EQ(take(store->list())[0].written_s, written);
}

TEST_P(StoreConformance, ThePinnedAndTheReadAreNotEvicted) {
  auto store = open();
  EXPECT_EQ(store->evict("k").status().code(), Code::kNotFound);
  EXPECT_EQ(store->pin("k", true).code(), Code::kNotFound);
  ASSERT_TRUE(put_text(*store, "k", pattern(100'000)).ok());
  ASSERT_TRUE(store->pin("k", true).ok());
  EXPECT_FALSE(take(store->evict("k")));
  ASSERT_TRUE(store->pin("k", false).ok());
  ASSERT_TRUE(store->pin("k", false).ok());
  auto reading = take(open()->open("k"));
  EXPECT_FALSE(take(store->evict("k")));
  EXPECT_EQ(take(read_text(*reading, 0, 100'000)) == pattern(100'000), true);
  reading.reset();
  EXPECT_TRUE(take(store->evict("k")));
  EXPECT_EQ(store->open("k").status().code(), Code::kNotFound);
  // A pin is of what was there.
  ASSERT_TRUE(put_text(*store, "k", "x").ok());
  ASSERT_TRUE(store->pin("k", true).ok());
  ASSERT_TRUE(store->remove("k").ok());
  ASSERT_TRUE(put_text(*store, "k", "x").ok());
  EXPECT_TRUE(take(store->evict("k")));
}

// --- entries
// -------------------------------------------------------------------------------------------------

TEST_P(StoreEntries, ARequestFindsTheEntriesThatItsBlocksAgreeWith) {
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

// Cross-tenant and cross-adapter hits.
TEST_P(StoreEntries, AnotherTenantOrModelFindsNothingByAnyName) {
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
TEST_P(StoreEntries, ASaltIsAnyBytes) {
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

TEST_P(StoreEntries, EachTenantHasAQuota) {
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
TEST_P(StoreEntries, AKilledProcessLeavesAReadableStore) {
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

TEST_P(StoreEntries, TwoThatPublishOneEntryLeaveOne) {
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

TEST_P(StoreEntries, OthersSignaturesAreMisses) {
  auto own = open(secret('k'));
  auto read = [&](Store& store) -> Status {
    DS_ASSIGN(EntryReader reader, EntryReader::open(store, identity(256), shape_));
    return reader.verify();
  };
  for (auto& maker : {open(), open(secret('x'))}) {
    ASSERT_TRUE(publish(*maker, identity(256)).ok());
    EXPECT_EQ(read(*own).code(), Code::kMismatch);
  }
  ASSERT_TRUE(publish(*own, identity(256)).ok());
  EXPECT_TRUE(read(*own).ok()) << read(*own).message();
}

}  // namespace
}  // namespace ds
