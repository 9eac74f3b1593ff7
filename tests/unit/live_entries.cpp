// What every store promises of entries that are still being written, beside store_conformance.cpp.
#include <gmock/gmock.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "runtime/store/live.h"
#include "runtime/store/live_entry.h"
#include "tests/unit/store_conformance.h"
#include "tests/unit/take.h"

namespace ds {
namespace {

using ::testing::HasSubstr;
using testing::take;

constexpr size_t kRow = LiveEntries::kRow;

std::span<const std::byte> rows_of(const std::string& rows, int64_t first, int64_t end) {
  return bytes_of(rows).subspan(static_cast<size_t>(first) * kRow, static_cast<size_t>(end - first) * kRow);
}

std::string read_rows(EntryReader& reader, TensorKind kind, int32_t layer, int64_t first, int64_t rows) {
  std::string out(static_cast<size_t>(rows) * kRow, '\0');
  const Status status =
      reader.read_rows(kind, layer, first, rows, std::as_writable_bytes(std::span(out)).data());
  EXPECT_TRUE(status.ok()) << status.message();
  return out;
}

TEST_P(LiveEntries, PartsAreReadAsTheyCome) {
  auto store = open(), other = open();
  EXPECT_FALSE(find(*other, 400));
  auto writer = begin(*store, identity(400));
  for (int64_t tokens : {64, 320, 400}) EXPECT_TRUE(find(*other, tokens)) << tokens;
  auto reader = take(follow(*other, *find(*other, 320), 320));
  EXPECT_TRUE(reader.live());
  EXPECT_EQ(reader.header().identity.tokens, 400);
  EXPECT_EQ(reader.header().sender.name, "base");
  EXPECT_TRUE(reader.has(TensorKind::kE, 1).ok());
  EXPECT_EQ(reader.has(TensorKind::kE, 0).code(), Code::kNotFound);
  EXPECT_FALSE(reader.ready(TensorKind::kKv, 0, 1));
  ASSERT_TRUE(writer->add({TensorKind::kKv, 0}, rows_of(rows_, 0, 128)).ok());
  EXPECT_EQ(read_rows(reader, TensorKind::kKv, 0, 0, 128), rows_.substr(0, 128 * kRow));
  EXPECT_TRUE(reader.ready(TensorKind::kKv, 0, 128));
  EXPECT_FALSE(reader.ready(TensorKind::kKv, 0, 129));
  EXPECT_FALSE(reader.ready(TensorKind::kKv, 1, 1));
  // A reader that comes in the middle has what was there before.
  auto second = take(follow(*other, *find(*other, 64), 64));
  EXPECT_EQ(read_rows(second, TensorKind::kKv, 0, 64, 64), rows_.substr(64 * kRow, 64 * kRow));
  // One that waits is woken by what it waits for, over two parts, and verified to the end.
  std::thread waits([&] {
    EXPECT_EQ(read_rows(reader, TensorKind::kKv, 0, 100, 300), rows_.substr(100 * kRow, 300 * kRow));
  });
  ASSERT_TRUE(writer->add({TensorKind::kE, 1}, rows_of(rows_, 0, 400)).ok());
  ASSERT_TRUE(writer->add({TensorKind::kKv, 0}, rows_of(rows_, 128, 192)).ok());
  ASSERT_TRUE(writer->add({TensorKind::kKv, 0}, rows_of(rows_, 192, 400)).ok());
  waits.join();
  ASSERT_TRUE(writer->add({TensorKind::kKv, 1}, rows_of(rows_, 0, 400)).ok());
  // Not an object, and nothing that finds one finds it.
  EXPECT_TRUE(take(store->list()).empty());
  EXPECT_TRUE(take(store->find({}, names(400))).names[0].empty());
  ASSERT_EQ(take(store->list_live()).size(), 1u);
  EXPECT_TRUE(take(store->list_live())[0].alive);
  EXPECT_EQ(take(store->list_live())[0].key, identity(400).key());
  EXPECT_GT(take(store->list_live())[0].bytes, static_cast<int64_t>(3 * 400 * kRow));
  ASSERT_TRUE(publish(*store, identity(400)).ok());
  ASSERT_TRUE(writer->end().ok());
  EXPECT_TRUE(take(store->list_live()).empty());
  // Who follows has all of it all the same.
  EXPECT_TRUE(reader.verify().ok()) << reader.verify().message();
  EXPECT_TRUE(second.verify().ok());
  EXPECT_TRUE(EntryReader::open(*store, identity(400), shape_)->verify().ok());
}

TEST_P(LiveEntries, OnlyWholeBlocksInTheirOrder) {
  auto store = open();
  auto writer = begin(*store, identity(400));
  for (auto [first, end] : {std::pair<int64_t, int64_t>{0, 63}, {0, 399}})
    EXPECT_EQ(writer->add({TensorKind::kKv, 0}, rows_of(rows_, first, end)).code(), Code::kInvalidArgument);
  EXPECT_EQ(writer->add({TensorKind::kKv, 0}, bytes_of(rows_).first(64 * kRow + 1)).code(),
            Code::kInvalidArgument);
  EXPECT_EQ(writer->add({TensorKind::kE, 0}, rows_of(rows_, 0, 64)).code(), Code::kInvalidArgument);
  ASSERT_TRUE(writer->add({TensorKind::kKv, 0}, rows_of(rows_, 0, 400)).ok());
  EXPECT_EQ(writer->add({TensorKind::kKv, 0}, rows_of(rows_, 0, 64)).code(), Code::kInvalidArgument);
  EXPECT_EQ(
      LiveEntryWriter::begin(*store, identity(400), sender_, shape_, {{TensorKind::kKv, 2}}).status().code(),
      Code::kInvalidArgument);
}

TEST_P(LiveEntries, AWriterThatGivesUpIsAMiss) {
  auto store = open();
  auto writer = begin(*store, identity(400));
  ASSERT_TRUE(writer->add({TensorKind::kKv, 0}, rows_of(rows_, 0, 64)).ok());
  auto reader = take(follow(*store, *find(*store, 400), 400));
  std::string out(400 * kRow, '\0');
  Status status;
  std::thread waits([&] {
    status = reader.read_rows(TensorKind::kKv, 0, 0, 400, std::as_writable_bytes(std::span(out)).data());
  });
  writer.reset();
  waits.join();
  EXPECT_EQ(status.code(), Code::kNotFound) << status.message();
  EXPECT_THAT(status.message(), HasSubstr("died"));
  EXPECT_TRUE(reader.ready(TensorKind::kKv, 0, 400)) << "nobody need wait for it";
  EXPECT_TRUE(take(store->list()).empty());
}

// Between being found and being followed it may go.
TEST_P(LiveEntries, WhatHasGoneIsAMiss) {
  auto store = open();
  auto writer = begin(*store, identity(400));
  const ObjectRef ref = *find(*store, 400);
  writer.reset();
  EXPECT_EQ(follow(*store, ref, 400).status().code(), Code::kNotFound);
}

// One that ends early, and was over before anybody read it.
TEST_P(LiveEntries, OneThatEndsWithoutAllOfItsPartsSaysSo) {
  auto store = open();
  auto writer = begin(*store, identity(400));
  ASSERT_TRUE(writer->add({TensorKind::kKv, 0}, rows_of(rows_, 0, 64)).ok());
  auto reader = take(follow(*store, *find(*store, 400), 400));
  ASSERT_TRUE(writer->end().ok());
  std::string out(400 * kRow, '\0');
  const Status status =
      reader.read_rows(TensorKind::kKv, 0, 0, 400, std::as_writable_bytes(std::span(out)).data());
  EXPECT_EQ(status.code(), Code::kCorrupt) << status.message();
}

TEST_P(LiveEntries, AReaderMayStopWaiting) {
  auto store = open();
  auto writer = begin(*store, identity(400));
  auto reader = take(follow(*store, *find(*store, 400), 400));
  std::string out(64 * kRow, '\0');
  int asked = 0;
  const Status status = reader.read_rows(
      TensorKind::kKv, 0, 0, 64, std::as_writable_bytes(std::span(out)).data(),
      [&]() -> Status { return ++asked < 4 ? ok_status() : error(Code::kExhausted, "late"); });
  EXPECT_EQ(status.code(), Code::kExhausted);
}

TEST_P(LiveEntries, AnotherTenantOrModelFollowsNothing) {
  auto store = open();
  auto writer = begin(*store, identity(256, 0, "tenant a"));
  EXPECT_TRUE(find(*store, 256, "tenant a"));
  EXPECT_FALSE(find(*store, 256));
  EXPECT_FALSE(find(*store, 256, "tenant b"));
  EXPECT_FALSE(find(*store, 256, "tenant a", std::string(64, 'f')));
  // Who is told a key, or guesses it, has no name that goes with it.
  const ObjectRef told = *find(*store, 256, "tenant a");
  EXPECT_EQ(follow(*store, told, 256, "tenant b").status().code(), Code::kMismatch);
}

TEST_P(LiveEntries, SignedOnesAreReadWithTheKeyOnly) {
  auto own = open(secret('k'));
  auto writer = begin(*own, identity(256));
  ASSERT_TRUE(writer->add({TensorKind::kKv, 0}, rows_of(rows_, 0, 256)).ok());
  const ObjectRef ref = *find(*own, 256);
  auto reader = take(follow(*own, ref, 256));
  EXPECT_EQ(read_rows(reader, TensorKind::kKv, 0, 0, 256), rows_.substr(0, 256 * kRow));
  EXPECT_EQ(follow(*open(secret('l')), ref, 256).status().code(), Code::kMismatch);
  EXPECT_EQ(follow(*open(), ref, 256).status().code(), Code::kMismatch);
  writer.reset();
  auto plain = open();
  writer = begin(*plain, identity(256));
  EXPECT_EQ(follow(*own, *find(*plain, 256), 256).status().code(), Code::kMismatch);
}

TEST_P(LiveEntries, TwoMayWriteTheSame) {
  auto store = open();
  auto first = begin(*store, identity(256));
  auto follows_first = take(follow(*store, *find(*store, 256), 256));
  auto second = begin(*store, identity(256));
  auto follows_second = take(follow(*store, *find(*store, 256), 256));
  ASSERT_TRUE(second->add({TensorKind::kKv, 0}, rows_of(rows_, 0, 64)).ok());
  ASSERT_TRUE(first->add({TensorKind::kKv, 0}, rows_of(rows_, 0, 256)).ok());
  EXPECT_EQ(read_rows(follows_first, TensorKind::kKv, 0, 0, 256), rows_.substr(0, 256 * kRow));
  ASSERT_TRUE(first->end().ok());
  EXPECT_EQ(read_rows(follows_second, TensorKind::kKv, 0, 0, 64), rows_.substr(0, 64 * kRow));
  ASSERT_TRUE(second->add({TensorKind::kKv, 0}, rows_of(rows_, 64, 256)).ok());
  EXPECT_EQ(read_rows(follows_second, TensorKind::kKv, 0, 64, 192), rows_.substr(64 * kRow, 192 * kRow));
}

// Killed at any moment, a writer is a miss, and what is found afterwards is whole.
TEST_P(LiveEntries, AKilledWriterIsAMissAndLeavesAReadableStore) {
  const bool server = GetParam().name != "file";  // which takes seconds to find it dead
  for (int i = 0; i < (server ? 2 : 100); ++i) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      auto store = open();
      for (;;) {
        auto writer = LiveEntryWriter::begin(*store, identity(400), sender_, shape_,
                                             {{TensorKind::kKv, 0}, {TensorKind::kKv, 1}});
        if (!writer.ok()) continue;
        for (int32_t l = 0; l < 2; ++l)
          for (int64_t at = 0; at < 400; at += 64)
            (void)(*writer)->add({TensorKind::kKv, l}, rows_of(rows_, at, std::min<int64_t>(at + 64, 400)));
        (void)publish(*store, identity(400));
        (void)(*writer)->end();
        (void)store->remove(identity(400).key());
      }
    }
    auto store = open();
    std::atomic<bool> killed = false;
    std::thread kills([&] {
      std::this_thread::sleep_for(std::chrono::microseconds((server ? 300'000 : 0) + (i * 7919) % 23'000));
      kill(child, SIGKILL);
      (void)waitpid(child, nullptr, 0);
      killed = true;
    });
    for (bool last = false; !last;) {
      last = killed;
      const auto ref = find(*store, 400);
      if (!ref) continue;
      auto reader = follow(*store, *ref, 400);
      const Status status = reader.ok() ? reader->verify() : reader.status();
      EXPECT_TRUE(status.ok() || status.code() == Code::kNotFound) << status.message();
    }
    kills.join();
    for (const ObjectInfo& o : take(store->list()))
      EXPECT_TRUE(take(EntryReader::open_any(*store, o.key)).verify().ok());
    if (server) continue;
    EXPECT_FALSE(find(*store, 400));
    for (const LiveInfo& live : take(store->list_live())) EXPECT_FALSE(live.alive);
    take(store->remove_dead());
    EXPECT_TRUE(take(store->list_live()).empty());
    for (const ObjectInfo& o : take(store->list())) (void)store->remove(o.key);
  }
}

}  // namespace
}  // namespace ds
