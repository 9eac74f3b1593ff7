// Weaknesses that caches like these have had, by class, as tests that run on every store: what anybody wrote
// runs nothing and allocates no more than it has bytes, no name from outside reaches a place, and salts
// neither crash anything nor meet.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>
#include <set>

#include "runtime/store/entry_header_internal.h"
#include "runtime/store/live.h"
#include "support/json.h"
#include "tests/unit/store_conformance.h"
#include "tests/unit/take.h"

namespace {

std::atomic<size_t> allocated{0};  // bytes, by whomever in this program

}  // namespace

// Instead of the C++ library's, in this program: so that a test sees what is asked for.
// Inlined they would be half of a pair to the compiler, which warns.
[[gnu::noinline]] void* operator new(size_t bytes) {
  allocated += bytes;
  if (void* memory = std::malloc(bytes == 0 ? 1 : bytes)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  allocated += bytes;
  return std::malloc(bytes == 0 ? 1 : bytes);
}
[[gnu::noinline]] void operator delete(void* memory, const std::nothrow_t&) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace ds {
namespace {

using ::testing::ElementsAreArray;
using ::testing::HasSubstr;
using testing::take;

/// Beside what is fixed, a header may take so many times its bytes: parsed, and kept.
constexpr size_t kTimes = 64, kFixed = 8 << 20;

/// What `call` allocates, all in all.
size_t allocated_by(const std::function<void()>& call) {
  const size_t before = allocated;
  call();
  return allocated - before;
}

std::string with_front(std::string_view magic, uint32_t version, uint64_t length, const std::string& json) {
  std::string bytes(magic);
  bytes.append(reinterpret_cast<const char*>(&version), sizeof version);
  bytes.append(reinterpret_cast<const char*>(&length), sizeof length);
  bytes += json;
  const uint64_t sum = checksum64(bytes_of(bytes));
  bytes.append(reinterpret_cast<const char*>(&sum), sizeof sum);
  return bytes;
}

std::string header_of(std::string_view magic, const std::string& json) {
  return with_front(magic, kEntryVersion, json.size(), json);
}

nlohmann::json json_of(const std::string& header) {
  uint64_t length = 0;
  std::memcpy(&length, header.data() + 12, sizeof length);
  return *parse_json(std::string_view(header).substr(kEntryPrefix, length), "header");
}

/// Digits of as many names, the first ones as they are.
std::string many_names(const nlohmann::json& header, size_t count) {
  std::string digits = header["context"]["names"];
  digits.resize(count * Store::kNameDigits, '0');
  return digits;
}

std::string pickle() {
  // What Python's pickle would make a call of a shell of.
  constexpr char kCall[] = "\x80\x04\x95\x1f\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93\x94";
  return std::string(kCall, sizeof kCall - 1) + "\x8c\x02id\x94\x85\x94R\x94.";
}

// CVE-2025-32444, CVE-2026-3059, CVE-2026-3060: messages of peers that were unpickled; CVE-2025-69872: files
// of a cache that were.
TEST_P(HostileEntries, UnauthenticatedDeserialisationOfEntries) {
  auto store = open();
  ASSERT_TRUE(publish(*store, identity(256)).ok());
  const nlohmann::json good = json_of(take(get_text(*store, identity(256).key())));
  std::vector<std::string> objects{pickle(), std::string(kEntryMagic) + pickle(),
                                   "\x7f"
                                   "ELF" +
                                       std::string(4096, '\x90'),
                                   std::string("\x1f\x8b\x08\0\0\0\0\0", 8) + std::string(100, '\xff')};
  for (const uint64_t length :
       {uint64_t{0}, uint64_t{1} << 20, uint64_t{1} << 31, uint64_t{1} << 63, ~uint64_t{0}})
    objects.push_back(with_front(kEntryMagic, kEntryVersion, length, good.dump()));
  for (const char* open_text : {"[", "{\"a\":", "[[],", "[{},"}) {
    std::string text;
    while (text.size() < 500'000) text += open_text;
    objects.push_back(header_of(kEntryMagic, text));
  }
  const auto changed = [&](const std::function<void(nlohmann::json&)>& change) {
    nlohmann::json json = good;
    change(json);
    objects.push_back(header_of(kEntryMagic, json.dump()));
  };
  for (const int64_t tokens : {int64_t{1} << 30, int64_t{1} << 40, INT64_MAX})
    changed([&](auto& j) { j["context"]["tokens"] = tokens; });
  changed([&](auto& j) {
    j["context"]["tokens"] = 64 << 14;
    j["context"]["names"] = many_names(good, 1 << 14);
  });
  changed([&](auto& j) { j["tensors"] = nlohmann::json::array_t(100'000, good["tensors"][0]); });
  changed([&](auto& j) { j["shape"]["layers"] = 1 << 16; });
  changed([&](auto& j) { j["shape"]["d_model"] = 1 << 28; });
  changed([&](auto& j) { j["tensors"][0]["bytes"] = INT64_MAX / 2; });
  for (const std::string& object : objects) {
    const std::string bytes = object + std::string(kEntryAlignment, '\0');
    ASSERT_TRUE(put_text(*store, identity(256).key(), bytes, identity(256).names).ok());
    const auto ref = take(store->find({}, names(256))).names[0].at(0);
    Status by_key, by_name, whatever;
    const size_t most = kTimes * bytes.size() + kFixed;
    EXPECT_LE(allocated_by([&] { by_key = EntryReader::open(*store, identity(256), shape_).status(); }),
              most);
    EXPECT_LE(
        allocated_by([&] { by_name = EntryReader::open_named(*store, ref, names(64)[0], shape_).status(); }),
        most);
    EXPECT_LE(allocated_by([&] { whatever = EntryReader::open_any(*store, identity(256).key()).status(); }),
              most);
    for (const Status& status : {by_key, by_name, whatever}) {
      EXPECT_FALSE(status.ok()) << object.substr(0, 100);
      EXPECT_LT(status.message().size(), 2000u);
    }
  }
}

TEST_P(HostileEntries, UnauthenticatedDeserialisationOfLiveEntries) {
  auto store = open();
  auto first = begin(*store, identity(256));
  const nlohmann::json good =
      json_of(take(take(store->follow(*find(*store, 256)))->wait({})).records.at(0).head);
  first.reset();
  std::vector<std::string> heads{pickle(), std::string(kLiveMagic) + pickle(), "x",
                                 header_of(kEntryMagic, good.dump())};
  for (const uint64_t length : {uint64_t{0}, uint64_t{1} << 31, ~uint64_t{0}})
    heads.push_back(with_front(kLiveMagic, kEntryVersion, length, good.dump()));
  nlohmann::json json = good;
  json["context"]["tokens"] = int64_t{1} << 30;
  heads.push_back(header_of(kLiveMagic, json.dump()));
  for (const std::string& head : heads) {
    auto writer = take(store->begin_live(identity(256).key(), head, identity(256).names));
    Status status;
    EXPECT_LE(allocated_by([&] { status = follow(*store, *find(*store, 256), 256).status(); }),
              kTimes * head.size() + kFixed);
    EXPECT_FALSE(status.ok()) << head.substr(0, 100);
  }
  // One that says right what it is, of many tensors of many rows: nothing is made ready for what may come.
  json["context"]["tokens"] = 64 << 14;
  json["context"]["names"] = many_names(good, 1 << 14);
  auto& tensors = json["tensors"] = nlohmann::json::array();
  for (int i = 0; i < 4000; ++i)
    tensors.push_back({{"kind", "e"}, {"layer", 1}, {"map", fmt::format("{:064x}/full", i)}});
  const std::string head = header_of(kLiveMagic, json.dump());
  auto writer = take(store->begin_live(identity(256).key(), head, identity(256).names));
  Status status;
  EXPECT_LE(allocated_by([&] { status = follow(*store, *find(*store, 256), 256).status(); }),
            kTimes * head.size() + kFixed);
  EXPECT_TRUE(status.ok()) << status.message();
}

/// An entry of rows that nobody has written, as a file with holes has them.
class Hollow final : public Store {
 public:
  Hollow(std::string header, int64_t bytes) : header_(std::move(header)), bytes_(bytes) {}
  std::string url() const override { return "hollow:"; }
  Status put(const std::string&, const Produce&, Names) override { return error(Code::kIo, "no"); }
  Status remove(const std::string&) override { return error(Code::kIo, "no"); }
  Result<std::unique_ptr<StoreObject>> open(const std::string&) override {
    return std::unique_ptr<StoreObject>(std::make_unique<Object>(*this));
  }

 private:
  struct Object final : StoreObject {
    explicit Object(const Hollow& s) : store(s) {}
    int64_t size() const override { return store.bytes_; }
    Status read_by_parts(int64_t offset, std::span<std::byte> out, const Arrived& arrived) override {
      std::fill(out.begin(), out.end(), std::byte{});
      const auto head = bytes_of(store.header_);
      for (size_t i = 0; i < out.size() && static_cast<size_t>(offset) + i < head.size(); ++i)
        out[i] = head[static_cast<size_t>(offset) + i];
      return arrived(out);
    }
    const Hollow& store;
  };
  const std::string header_;
  const int64_t bytes_;
};

TEST_P(HostileEntries, RowsThatAHeaderClaimsAreReadInBoundedPieces) {
  auto store = open();
  ASSERT_TRUE(publish(*store, identity(256)).ok());
  nlohmann::json json = json_of(take(get_text(*store, identity(256).key())));
  constexpr int64_t kTokens = 4096, kWidth = 1 << 20, kBytes = kTokens * kWidth * 2;
  json["shape"]["d_model"] = kWidth;
  json["context"]["tokens"] = kTokens;
  json["context"]["names"] = many_names(json, kTokens / kChecksumRows);
  json["tensors"] = {{{"kind", "e"},
                      {"layer", 1},
                      {"offset", 2 * kEntryAlignment},
                      {"bytes", kBytes},
                      {"checksums", std::string(16 * kTokens / kChecksumRows, '0')}}};
  Hollow hollow(header_of(kEntryMagic, json.dump()), 2 * kEntryAlignment + kBytes);
  auto reader = take(EntryReader::open_any(hollow, "k"));
  Status status;
  EXPECT_LE(allocated_by([&] { status = reader.verify(); }), 64u << 20);
  EXPECT_EQ(status.code(), Code::kCorrupt);
}

// Files and keys of others, read or written by whom the store is asked by.
TEST_P(HostileEntries, ArbitraryReadsAndWritesByKeysAndNames) {
  auto store = open();
  ASSERT_TRUE(publish(*store, identity(64)).ok());
  const auto before = place_->left();
  const std::string good[] = {identity(64).names[0]};
  for (const std::string& key : {std::string("../outside"),
                                 std::string(".."),
                                 std::string("/etc/passwd"),
                                 std::string("a/../../b"),
                                 std::string("a/b"),
                                 std::string("a\0b", 3),
                                 std::string(1, '\0'),
                                 std::string("a\0.key", 6),
                                 std::string("*"),
                                 std::string("a*"),
                                 std::string("?"),
                                 std::string("[a-z]"),
                                 std::string("}{"),
                                 std::string("{a}b"),
                                 std::string("a:b"),
                                 std::string("k\r\nFLUSHALL\r\n"),
                                 std::string(".live"),
                                 std::string(".index"),
                                 std::string(".pins"),
                                 std::string("-x.tmp-123456"),
                                 std::string("%2e%2e%2foutside"),
                                 std::string("~root"),
                                 std::string(201, 'a'),
                                 std::string(1 << 20, 'a'),
                                 std::string("\xff\xfe"),
                                 std::string("\xe2\x80\xae"),
                                 std::string()}) {
    const std::string keys[] = {key};
    const ObjectRef ref{key, 0, 0};
    const Status all[] = {store->open(key).status(),
                          store->open(ref).status(),
                          store->size(key).status(),
                          store->find(keys, {}).status(),
                          put_text(*store, key, "x"),
                          put_text(*store, key, "x", good),
                          store->remove(key),
                          store->pin(key, true),
                          store->pin(key, false),
                          store->evict(key).status(),
                          store->begin_live(key, "head", good).status(),
                          store->follow(ref).status()};
    for (const Status& status : all) {
      EXPECT_EQ(status.code(), Code::kInvalidArgument) << key.substr(0, 50) << ": " << status.message();
      EXPECT_LT(status.message().size(), 1000u);
    }
    store->touch(key);
  }
  for (const std::string& name :
       {std::string("*"), std::string(32, '*'), std::string("../../../../../../../../etc/pw.."),
        std::string(32, '\0'), std::string(31, 'a') + "'", std::string("'; DROP TABLE names; --"),
        std::string(1 << 20, 'a'), std::string(32, 'A'), std::string()}) {
    const std::string asked[] = {name};
    const Status all[] = {store->find({}, asked).status(), store->find_live(asked, "").status(),
                          put_text(*store, "k", "x", asked), store->begin_live("k", "head", asked).status()};
    for (const Status& status : all) EXPECT_EQ(status.code(), Code::kInvalidArgument) << name.substr(0, 50);
  }
  EXPECT_THAT(place_->left(), ElementsAreArray(before));
  EXPECT_TRUE(take(EntryReader::open(*store, identity(64), shape_)).verify().ok());
  EXPECT_EQ(take(store->list()).size(), 1u);
  EXPECT_TRUE(take(store->list_live()).empty());
}

// Salts that crash a validator, or of which one is as good as another: HMAC fills its key up with zeros, and
// hashes one of more than 64 bytes.
TEST_P(HostileEntries, SaltsOfAnyBytesAreApart) {
  auto store = open();
  std::vector<std::string> salts{
      "",   std::string(1 << 20, 's'), std::string((1 << 20) + 1, 's'), "../../etc", "\xff\xfe\x80", "a\n",
      "\na"};
  for (int b = 0; b < 256; ++b) salts.push_back(std::string(1, static_cast<char>(b)));
  for (size_t zeros = 1; zeros < 70; zeros += 4) salts.push_back("salt" + std::string(zeros, '\0'));
  salts.push_back("salt");
  const auto raw = [](const std::string& hex) {
    std::string bytes;
    for (size_t i = 0; i < hex.size(); i += 2)
      bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
    return bytes;
  };
  for (const std::string& salt :
       {std::string(64, 'x'), std::string(65, 'x'), std::string(100, 'x'), std::string("salt\0", 5)}) {
    salts.push_back(salt);
    salts.push_back(raw(sha256_hex(salt)));
    salts.push_back(sha256_hex(salt));
  }
  const std::set<std::string> apart(salts.begin(), salts.end());
  std::set<std::string> keys, tags, first_names;
  for (const std::string& salt : apart) {
    keys.insert(identity(64, 0, salt).key());
    tags.insert(tenant_tag(salt));
    first_names.insert(names(64, salt)[0]);
  }
  EXPECT_EQ(keys.size(), apart.size());
  EXPECT_EQ(tags.size(), apart.size());
  EXPECT_EQ(first_names.size(), apart.size());
  const std::string pairs[][2] = {{"", std::string(1, '\0')},
                                  {"salt", std::string("salt\0", 5)},
                                  {std::string(100, 'x'), raw(sha256_hex(std::string(100, 'x')))}};
  for (const auto& [salt, other] : pairs) {
    ASSERT_TRUE(publish(*store, identity(128, 0, salt)).ok());
    EXPECT_TRUE(take(store->find({}, names(128, other))).names[0].empty());
    EXPECT_EQ(EntryReader::open(*store, identity(128, 0, other), shape_).status().code(), Code::kNotFound);
    auto writer = begin(*store, identity(192, 0, salt));
    EXPECT_TRUE(find(*store, 192, salt));
    EXPECT_FALSE(find(*store, 192, other));
  }
}

// CVE-2025-46570: whether somebody else has asked the same could be told. Here by no result, whatever is
// asked (for the time of it, bench/tenant_bench).
TEST_P(HostileEntries, WhetherAnotherTenantHasAnEntryShowsInNoResult) {
  auto store = open();
  const auto another = [&](int64_t tokens) { return identity(tokens, 0, "another"); };
  ASSERT_TRUE(publish(*store, another(64)).ok());
  const auto say = [&](const std::string& salt) {
    const EntryIdentity own = identity(256, 0, salt);
    const std::string keys[] = {own.key(), own.old_key()};
    const Found found = take(store->find(keys, own.names));
    const auto live = take(store->find_live(own.names, tenant_tag(salt)));
    std::vector<std::string> all;
    for (const auto& key : found.keys) all.push_back(key ? key->key : "-");
    for (const auto* names : {&found.names, &live})
      for (const auto& refs : *names) all.push_back(std::to_string(refs.size()));
    for (const Status& status :
         {EntryReader::open(*store, own, shape_).status(), store->open(keys[0]).status(),
          store->size(keys[0]).status(), store->remove(keys[0]), store->pin(keys[0], true),
          store->evict(keys[0]).status()})
      all.push_back(fmt::format("{} {}", static_cast<int>(status.code()), status.message()));
    return all;
  };
  const auto mine = say("mine"), nobodys = say("");
  ASSERT_TRUE(publish(*store, another(256)).ok());
  auto writer = begin(*store, another(320));
  EXPECT_THAT(say("mine"), ElementsAreArray(mine));
  EXPECT_THAT(say(""), ElementsAreArray(nobodys));
  EXPECT_EQ(take(store->find({}, names(256, "another"))).names[3].size(), 1u);
  EXPECT_TRUE(find(*store, 320, "another"));
}

// Entries of two adapters of one base, and of the base: vLLM's issue 44250 (a store's keys that left out the
// adapter), 44701 and SGLang's 24638 (an adapter's name that was as good as a salt).
TEST_P(HostileEntries, CrossAdapterHits) {
  auto store = open();
  const std::string senders[] = {std::string(64, 'b'), std::string(64, 'c'), std::string(64, 'd')};
  for (const std::string& sender : senders) {
    ModelIdentity model = sender_;
    model.fingerprint = sender;
    const std::string rows = pattern(256 * 24 * 2, static_cast<size_t>(sender[0]));
    ASSERT_TRUE(write_entry(*store, identity(256, 0, "", sender), model, shape_,
                            {{TensorKind::kKv, 0, bytes_of(rows), {}}})
                    .ok());
  }
  for (const std::string& sender : senders) {
    const auto found = take(store->find({}, names(256, "", sender))).names[3];
    ASSERT_EQ(found.size(), 1u);
    auto reader = take(EntryReader::open_named(*store, found[0], names(256, "", sender)[3], shape_));
    EXPECT_EQ(reader.header().sender.fingerprint, sender);
    for (const std::string& other : senders) {
      EXPECT_EQ(EntryReader::open_named(*store, found[0], names(256, "", other)[3], shape_).ok(),
                other == sender);
      // Another's name as a salt of the base's.
      for (const std::string& salt : {other, "sender 64:" + other, other + "\n" + sender})
        for (const auto& block : take(store->find({}, names(256, salt, sender))).names)
          EXPECT_TRUE(block.empty());
    }
  }
}

}  // namespace
}  // namespace ds
