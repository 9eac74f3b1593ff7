// What every store promises (runtime/store/store.h), as tests that run on any of them: a program with this in
// it says on which, by INSTANTIATE_TEST_SUITE_P(..., StoreConformance, Values(...)).
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/store/entry.h"
#include "runtime/store/live_entry.h"
#include "runtime/store/store.h"
#include "tests/unit/take.h"

namespace ds {

/// Where a test's objects are; a new, empty place for each test.
class StorePlace {
 public:
  virtual ~StorePlace() = default;
  virtual std::string url() const = 0;
  /// What is there, for who wants to know that nothing else is left: file names, or keys. Not those of an
  /// index.
  virtual std::vector<std::string> left() const = 0;
};

struct StoreKind {
  std::string name;
  /// nullptr: not on this machine, and `why` says what is missing.
  std::function<std::unique_ptr<StorePlace>(std::string& why)> make;
};
inline void PrintTo(const StoreKind& kind, std::ostream* out) { *out << kind.name; }

inline std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

inline Status put_text(Store& store, const std::string& key, std::string_view text, Store::Names names = {}) {
  return store.put(
      key, [&](const Store::Sink& sink) { return sink(bytes_of(text)); }, names);
}

inline Result<std::string> read_text(StoreObject& object, int64_t from, size_t bytes) {
  std::string text(bytes, '\0');
  DS_TRY(object.read(from, std::as_writable_bytes(std::span(text))));
  return text;
}

inline Result<std::string> get_text(Store& store, const std::string& key) {
  DS_ASSIGN(auto object, store.open(key));
  return read_text(*object, 0, static_cast<size_t>(object->size()));
}

/// Bytes that differ from place to place.
inline std::string pattern(size_t bytes, size_t seed = 0) {
  std::string text(bytes, '\0');
  for (size_t i = 0; i < bytes; ++i) text[i] = static_cast<char>((i + seed) * 131 % 251);
  return text;
}

class StoreConformance : public ::testing::TestWithParam<StoreKind> {
 protected:
  void SetUp() override {
    std::string why;
    place_ = GetParam().make(why);
    if (place_ == nullptr) GTEST_SKIP() << why;
  }
  std::unique_ptr<Store> open() const {
    auto store = open_store(place_->url());
    EXPECT_TRUE(store.ok()) << store.status().message();
    return std::move(store).value();
  }
  std::unique_ptr<StorePlace> place_;
};

/// With entries in it.
class StoreEntries : public StoreConformance {
 protected:
  void SetUp() override {
    StoreConformance::SetUp();
    ids_.resize(400);
    std::iota(ids_.begin(), ids_.end(), 1);
  }
  std::unique_ptr<Store> open(std::shared_ptr<const std::string> key = nullptr) const {
    auto store = StoreConformance::open();
    store->set_signing(std::move(key));
    return store;
  }
  EntryIdentity identity(int64_t end, int64_t first = 0, const std::string& salt = "",
                         const std::string& sender = std::string(64, 'b')) const {
    return entry_identity(sender, std::span(ids_).first(static_cast<size_t>(end)), first, salt, DType::kBF16);
  }
  /// An entry with K and V of each layer.
  Status publish(Store& store, const EntryIdentity& id) const {
    const std::string rows = pattern(static_cast<size_t>(id.tokens * 24 * 2));
    std::vector<EntrySource> sources;
    for (int32_t l = 0; l < 2; ++l)
      sources.push_back({TensorKind::kKv, l, std::as_bytes(std::span(rows)), {}});
    return write_entry(store, id, sender_, shape_, std::move(sources)).status();
  }
  std::vector<std::string> names(int64_t tokens, const std::string& salt = "",
                                 const std::string& sender = std::string(64, 'b')) const {
    return block_names(sender, std::span(ids_).first(static_cast<size_t>(tokens)), 0, salt, DType::kBF16);
  }
  static std::shared_ptr<const std::string> secret(char c) {
    return std::make_shared<const std::string>(32, c);
  }

  std::vector<int32_t> ids_;
  Shape shape_ = {"llama", 2, 24, 64, 4, 2, 6, 1000};
  ModelIdentity sender_ = {"base", std::string(64, 'b'), std::string(64, 'c'), std::string(64, 'd'),
                           std::string(64, 'e')};
};

/// With entries in it that are still being written (live_entries.cpp).
class LiveEntries : public StoreEntries {
 public:
  static constexpr size_t kRow = 24 * 2;  // bytes, of each tensor of the shape

 protected:
  std::unique_ptr<LiveEntryWriter> begin(Store& store, const EntryIdentity& id) const {
    return testing::take(LiveEntryWriter::begin(
        store, id, sender_, shape_, {{TensorKind::kKv, 1}, {TensorKind::kE, 1}, {TensorKind::kKv, 0}}));
  }
  /// The first of what is found by the name of the first `tokens`.
  std::optional<ObjectRef> find(Store& store, int64_t tokens, const std::string& salt = "",
                                const std::string& sender = std::string(64, 'b')) const {
    const std::string asked[] = {names(tokens, salt, sender).back()};
    const auto found = testing::take(store.find_live(asked, tenant_tag(salt)));
    return found[0].empty() ? std::nullopt : std::optional(found[0][0]);
  }
  Result<EntryReader> follow(Store& store, const ObjectRef& ref, int64_t tokens,
                             const std::string& salt = "") const {
    return EntryReader::open_live(store, ref, names(tokens, salt).back(), shape_);
  }
  std::string rows_ = pattern(400 * kRow, 7);
};

/// That somebody has written who means no good (hostile_entries.cpp).
class HostileEntries : public LiveEntries {};

}  // namespace ds
