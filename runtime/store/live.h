// What is still being written: a log of records that others follow while it grows (docs/stores.md).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/store/store.h"
#include "support/status.h"

namespace ds {

/// A writer that lives, but has said nothing for so long, counts as dead (LiveEntry).
inline constexpr int64_t kLiveSilenceS = 60;

/// Adds records. Not thread-safe. Where it is destroyed before end(), or its process dies, what there is of
/// it is gone, and who follows it is told.
class LiveWriter {
 public:
  virtual ~LiveWriter() = default;
  /// A record is there whole or not at all. `head` is brought to all who follow, the payload to who asks for
  /// it. Errors: kExhausted, kIo; nothing can be appended after one.
  virtual Status append(std::string_view head, std::span<const std::byte> payload) = 0;
  /// That was all: nobody finds it any more, who follows it has it for another while.
  virtual Status end() = 0;
};

struct LiveRecord {
  std::string head;
  int64_t bytes = 0;  // of its payload
};

/// Of one reader.
class LiveObject {
 public:
  struct News {
    std::vector<LiveRecord> records;  // behind those of the calls before
    bool ended = false;               // there will be no more
  };

  virtual ~LiveObject() = default;
  /// Blocks until there is something new, a second long at the most. `waiting` is asked some 20 times a
  /// second; its failure ends the wait, which returns it. kNotFound: the writer has died, or given up; kIo;
  /// kCorrupt. One thread at a time.
  virtual Result<News> wait(const std::function<Status()>& waiting) = 0;
  /// Ends a wait() that runs, or the next one, soon. Thread-safe.
  virtual void stop() {}
  /// The payload of a record that wait() has brought. Thread-safe, the object too.
  virtual Result<std::unique_ptr<StoreObject>> payload(int64_t record) = 0;
};

/// What is known of one without following it.
struct LiveInfo {
  std::string key;
  int64_t bytes = 0;
  int64_t written_s = 0;  // last, seconds since 1970
  bool alive = false;     // else its writer has died
};

}  // namespace ds
