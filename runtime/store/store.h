// Object stores: one immutable object per key. `file:` is the embedded default; others come behind this
// interface.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "support/status.h"

namespace ds {

/// One object, as it was when it was opened: replacing or removing its key later does not change what is
/// read.
class StoreObject {
 public:
  /// Told of a read's bytes as they come: part by part, in order, each once and while this core's cache holds
  /// it. A failure ends the read, which returns it.
  using Arrived = std::function<Status(std::span<const std::byte>)>;

  virtual ~StoreObject() = default;
  /// In bytes.
  virtual int64_t size() const = 0;
  /// Fills `out` with the bytes from `offset` on; kCorrupt when the object ends before that, kIo, or what
  /// `arrived` returned. Thread-safe; may block (shaped links do); allocates nothing when it succeeds.
  virtual Status read_by_parts(int64_t offset, std::span<std::byte> out, const Arrived& arrived) = 0;
  Status read(int64_t offset, std::span<std::byte> out) {
    return read_by_parts(offset, out, [](std::span<const std::byte>) { return ok_status(); });
  }
};

/// Thread-safe. Keys: 1 to 200 of the characters A-Z a-z 0-9 . _ -, not starting with '.', without ".tmp-";
/// another key is kInvalidArgument.
class Store {
 public:
  /// Appends bytes to the object being written. Not thread-safe.
  using Sink = std::function<Status(std::span<const std::byte>)>;

  virtual ~Store() = default;
  virtual std::string url() const = 0;
  /// Writes an object through `produce(sink)`; it appears whole or not at all (a failing `produce`, a full
  /// disk, a crash), and is on stable storage when this returns. Replaces. Errors: what `produce` returned,
  /// kExhausted (disk full), kIo, kInvalidArgument (no folder can be made there).
  virtual Status put(const std::string& key, const std::function<Status(const Sink&)>& produce) = 0;
  /// Looks an object up. Errors: kNotFound, kIo. The object may outlive the store.
  virtual Result<std::unique_ptr<StoreObject>> open(const std::string& key) = 0;
  /// Size in bytes; kNotFound. One look-up, like open().
  Result<int64_t> size(const std::string& key);
  /// kNotFound where there is none.
  virtual Status remove(const std::string& key) = 0;
};

/// "file:PATH" (as the system reads it: relative to the working folder of each call, or absolute; "~" and
/// "~/" in front are $HOME), "file:///ABSOLUTE/PATH" or "file://localhost/ABSOLUTE/PATH". Paths are taken
/// literally: nothing is percent-decoded. kInvalidArgument names the schemes that are known, and what of a
/// path is not understood ("~user"; "./~user" is a folder of that name). Opening touches nothing: a missing
/// folder is a store without objects.
///
/// Who can read an entry can read back what its context said: a folder that the first put creates has mode
/// 0700, objects have 0600, whatever the umask. For receivers of other users, make the folder beforehand and
/// give both the same user (or copy the objects).
Result<std::unique_ptr<Store>> open_store(const std::string& url);

struct LinkOptions {
  double bytes_per_second = 0;  // 0: not shaped
  double rtt_ms = 0;            // there and back
};

/// A store behind a link of a stated rate and round trip, for reading; put and remove go past the link.
///
/// The link delivers one byte after the other: a read of b bytes that is issued at time t starts to arrive at
/// s = max(t, end of the reads issued before it), has arrived at s + b/rate, and returns then, or when the
/// underlying store has really delivered, if that is later. Times are absolute, so that late wake-ups do not
/// add up; the real bytes are read on the way, in pieces of 4 ms. A read issued within 1 ms after the end of
/// the one before counts as back to back with it (s = that end): its request was on its way already. So from
/// the issue of a first read to the return of a last one, never more than rate * time bytes arrive.
///
/// Every look-up (open, size) returns one round trip after it was issued, and behind the bytes under way. The
/// first read of an opened object starts to arrive no earlier than one round trip after it was issued;
/// further reads of that object are pipelined and pay none.
///
/// Waits sleep and never spin. A rate or round trip that is not a finite number above 0 counts as none.
std::unique_ptr<Store> shape_link(std::unique_ptr<Store> store, const LinkOptions& options);

}  // namespace ds
