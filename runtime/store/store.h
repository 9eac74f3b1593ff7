// Object stores: one immutable object per key. `file:` is the embedded default; others come behind this
// interface.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "support/status.h"

namespace ds {

/// One object, as it was when it was opened: replacing or removing its key later does not change what is
/// read.
class StoreObject {
 public:
  /// Told of a read's bytes as they come: part by part, in order, each once and while this core's cache holds
  /// it. While nothing comes from a server it is told of no bytes, some 20 times a second. A failure ends the
  /// read, which returns it.
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

/// An object that find() has named.
struct ObjectRef {
  std::string key;
  int64_t bytes = 0;
  int32_t index = 0;  // which of the names that it was put with was asked for; 0 where its key was
};

/// What find() found.
struct Found {
  std::vector<std::optional<ObjectRef>> keys;  // by key that was asked for; none: there is no such object
  /// By name that was asked for: the objects that were put with it, the newest first, kMostOfName at most.
  /// One of them may be gone by the time that it is opened.
  std::vector<std::vector<ObjectRef>> names;
  /// Why some could not be looked for: one of several servers is not there. What the others have is found.
  Status unasked;
};

/// What is known of an object without reading it.
struct ObjectInfo {
  std::string key;
  int64_t bytes = 0;
  int64_t written_s = 0, used_s = 0;  // seconds since 1970; used: the last touch(), or when it was written
  bool pinned = false;
};

class LiveWriter;
class LiveObject;
struct LiveInfo;

/// Thread-safe. Keys: 1 to 200 of the characters A-Z a-z 0-9 . _ -, not starting with '.', without ".tmp-";
/// another key is kInvalidArgument.
///
/// An object is found by its key, and by the names that it was put with: keyed hashes of kNameDigits
/// lower-case hexadecimal digits, another one is kInvalidArgument. Objects may have names in common. Names
/// are a help only: who opens an object checks that it is what was meant.
class Store {
 public:
  /// Appends bytes to the object being written. Not thread-safe.
  using Sink = std::function<Status(std::span<const std::byte>)>;
  using Produce = std::function<Status(const Sink&)>;
  using Names = std::span<const std::string>;

  static constexpr size_t kNameDigits = 32;
  static constexpr size_t kMostOfName = 4;
  static constexpr size_t kMostNames = size_t{1} << 20;  // of one put, or of one find

  virtual ~Store() = default;
  virtual std::string url() const = 0;
  /// Writes an object through `produce(sink)`; it appears whole or not at all (a failing `produce`, a full
  /// disk, a crash), and is on stable storage when this returns. Replaces, names and all. An object that was
  /// written without its names, because of a crash, is found by its key. Errors: what `produce` returned,
  /// kExhausted (disk full), kIo, kInvalidArgument (no folder can be made there).
  virtual Status put(const std::string& key, const Produce& produce, Names names) = 0;
  Status put(const std::string& key, const Produce& produce) { return put(key, produce, {}); }
  /// Looks an object up. Errors: kNotFound, kIo. The object may outlive the store.
  virtual Result<std::unique_ptr<StoreObject>> open(const std::string& key) = 0;
  /// Which objects there are of these keys and names, in one look-up for all. A store that keeps no names
  /// finds none by them. Errors: kIo, where nothing is found.
  virtual Result<Found> find(Names keys, Names names);
  /// Opens what find() has named, without another look-up. That it is gone meanwhile may show only when it is
  /// read. Errors as open().
  virtual Result<std::unique_ptr<StoreObject>> open(const ObjectRef& found) { return open(found.key); }
  /// Size in bytes; kNotFound. One look-up, like open().
  Result<int64_t> size(const std::string& key);
  /// kNotFound where there is none.
  virtual Status remove(const std::string& key) = 0;

  /// Entries of this store carry a signature by `key`, and those that carry none, or another one, count as
  /// not there (runtime/store/entry.h): who can write to the store but has no key can take entries away, not
  /// make one. Set before the store is used.
  void set_signing(std::shared_ptr<const std::string> key) { signing_ = std::move(key); }
  const std::shared_ptr<const std::string>& signing() const { return signing_; }

  /// No call waits longer for a server that says nothing, where it would have. Set before the store is used.
  virtual void set_patience(double seconds);

  // What is to be kept (runtime/store/keep.h); none of it is waited for by who reads.

  /// The objects whose keys begin so, in the order of their keys. Errors: kIo; kUnsupported: not of this
  /// store.
  virtual Result<std::vector<ObjectInfo>> list(std::string_view begins);
  Result<std::vector<ObjectInfo>> list() { return list(""); }
  /// Notes that an object is used now, as well as can be told: what fails, or is not there, is nothing.
  virtual void touch(const std::string& key);
  /// A pinned object is not evicted; remove() removes it all the same. kNotFound where there is none, kIo,
  /// kUnsupported.
  virtual Status pin(const std::string& key, bool pinned);
  /// Removes an object unless it is pinned or somebody is reading it: whether it did. kNotFound, kIo,
  /// kUnsupported.
  virtual Result<bool> evict(const std::string& key);

  // What is still being written (runtime/store/live.h): no object yet, and nothing above finds it. Keys are
  // those of the objects that will come of it; several may be written under one. A store that keeps none of
  // it says kUnsupported, and finds none.

  /// Begins with a record of this head. kInvalidArgument, kExhausted, kIo.
  virtual Result<std::unique_ptr<LiveWriter>> begin_live(const std::string& key, std::string_view head,
                                                         Names names);
  /// By name that was asked for, those whose writers live as far as can be told at once, for follow().
  /// `tenant`: tenant_tag() of who asks; what keys say to be another's is passed over, and costs nothing that
  /// could be told. kIo.
  virtual Result<std::vector<std::vector<ObjectRef>>> find_live(Names names, std::string_view tenant);
  /// Whether one that ends between a find() and a find_live() behind it is found by neither.
  virtual bool live_ends_unseen() const { return false; }
  /// kNotFound, kIo, kCorrupt. What comes may outlive the store.
  virtual Result<std::unique_ptr<LiveObject>> follow(const ObjectRef& found);
  /// All of it. kIo.
  virtual Result<std::vector<LiveInfo>> list_live();
  /// Removes what dead writers have left, but for what goes by itself: how many that were. kIo.
  virtual Result<int64_t> remove_dead();

 private:
  std::shared_ptr<const std::string> signing_;
};

/// The key for set_signing(): the bytes of a file, 32 to 4096 of them. kInvalidArgument: fewer, more, or
/// others than its owner may read the file.
Result<std::shared_ptr<const std::string>> read_store_key(const std::string& path);

/// "file:PATH" (as the system reads it: relative to the working folder of each call, or absolute; "~" and
/// "~/" in front are $HOME), "file:///ABSOLUTE/PATH" or "file://localhost/ABSOLUTE/PATH". Paths are taken
/// literally: nothing is percent-decoded. kInvalidArgument names the schemes that are known, and what of a
/// path is not understood ("~user"; "./~user" is a folder of that name). Opening touches nothing: a missing
/// folder is a store without objects.
///
/// Who can read an entry can read back what its context said: a folder that the first put creates has mode
/// 0700, objects have 0600, whatever the umask. For receivers of other users, make the folder beforehand and
/// give both the same user (or copy the objects).
///
/// "redis://[user:password@]host[:port][/db][?options]", or "rediss://" with TLS: a Redis or Valkey server,
/// or a cluster (docs/stores.md). User and password are percent-encoded; no message, and no Store::url(),
/// holds either.
Result<std::unique_ptr<Store>> open_store(const std::string& url);

struct LinkOptions {
  double bytes_per_second = 0;  // 0: not shaped
  double rtt_ms = 0;            // there and back
};

/// A store behind a link of a stated rate and round trip, for reading; all that is not reading goes past the
/// link.
///
/// The link delivers one byte after the other: a read of b bytes that is issued at time t starts to arrive at
/// s = max(t, end of the reads issued before it), has arrived at s + b/rate, and returns then, or when the
/// underlying store has really delivered, if that is later. Times are absolute, so that late wake-ups do not
/// add up; the real bytes are read on the way, in pieces of 4 ms. A read issued within 1 ms after the end of
/// the one before counts as back to back with it (s = that end): its request was on its way already. So from
/// the issue of a first read to the return of a last one, never more than rate * time bytes arrive.
///
/// Every look-up (open, find, size) returns one round trip after it was issued, and behind the bytes under
/// way. The first read of an opened object starts to arrive no earlier than one round trip after it was
/// issued; further reads of that object are pipelined and pay none.
///
/// Waits sleep and never spin. A rate or round trip that is not a finite number above 0 counts as none.
std::unique_ptr<Store> shape_link(std::unique_ptr<Store> store, const LinkOptions& options);

}  // namespace ds
