// An entry that its sender is still computing: part by part, each verified by itself (docs/stores.md).
//
// A live log (runtime/store/live.h) whose first head is a header as entries have it, but its tensors have
// neither places nor checksums yet, and it names the run that writes it. Then a record for each part: its
// head (little-endian)
//      0   u32 tensor of the header's list, u32 zero
//      8   i64 first row, i64 rows
//     24   u64 checksum of every kChecksumRows rows
//     ..   u64 XXH3 of: the header's checksum, u64 number of the record, the bytes above
//          of a signed one instead: HMAC-SHA256 of the same by the store's key
// and its payload are the rows. Parts of a tensor come in the order of its rows, none twice, each a multiple
// of kChecksumRows long but for the last. So a part of another entry, of another run of this one, or at
// another place is no part.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "runtime/store/entry.h"
#include "runtime/store/live.h"
#include "support/status.h"

namespace ds {

struct LiveTensor {
  TensorKind kind = TensorKind::kKv;
  int32_t layer = 0;
  std::string map = {};  // entry_map(), of E only
};

class LiveEntryWriter {
 public:
  /// What an entry of this identity will have. It is found from now on. Errors: those of write_entry(), and
  /// of Store::begin_live().
  static Result<std::unique_ptr<LiveEntryWriter>> begin(Store& store, const EntryIdentity& identity,
                                                        const ModelIdentity& sender, const Shape& shape,
                                                        std::vector<LiveTensor> tensors);
  /// The tensor's next rows, whole: a multiple of kChecksumRows of them, or all that are left.
  /// kInvalidArgument, kExhausted, kIo: then nothing more can be added.
  Status add(const LiveTensor& tensor, std::span<const std::byte> rows);
  /// How many of the tensor's rows have been added.
  int64_t rows(const LiveTensor& tensor) const;
  /// All has been added, and the entry itself is there.
  Status end() { return log_->end(); }

 private:
  LiveEntryWriter() = default;
  const EntryTensor* find(const LiveTensor& tensor, size_t& index) const;

  EntryHeader header_;
  std::vector<int64_t> rows_;  // by tensor
  std::shared_ptr<const std::string> signing_;
  std::string header_seal_;
  uint64_t records_ = 0;
  std::unique_ptr<LiveWriter> log_;
};

/// One that is followed, by a thread of its own. Thread-safe. EntryReader reads it.
class LiveEntry {
 public:
  /// Follows what Store::find_live() has found by a name. Errors as EntryReader::open_named().
  static Result<std::shared_ptr<LiveEntry>> open(Store& store, const ObjectRef& found,
                                                 const std::string& name, const Shape& shape);
  ~LiveEntry();

  /// Its tensors have neither places nor checksums.
  const EntryHeader& header() const { return header_; }
  const std::shared_ptr<const std::string>& signing() const { return signing_; }

  /// Whether the first `rows` rows of a tensor can be read without waiting: they are there, or will never be.
  bool ready(size_t tensor, int64_t rows) const;
  /// Called whenever there is more, on the thread that follows, until this is called again.
  void when_more(std::function<void()> tell);
  /// As StoreObject::read_by_parts(), of a tensor's bytes; waits for those that are not there, `go_on` being
  /// asked. kNotFound: the writer has died; kExhausted: it has been silent for kLiveSilenceS.
  Status read(size_t tensor, int64_t offset, std::span<std::byte> out, const StoreObject::Arrived& arrived,
              const std::function<Status()>& go_on);
  /// Of a block whose rows have been read.
  uint64_t checksum(size_t tensor, int64_t block) const;

 private:
  struct Part {
    int64_t first = 0, rows = 0, record = 0;
  };
  struct Tensor {
    int64_t rows = 0;  // that are there
    std::vector<Part> parts;
    std::vector<uint64_t> checksums;  // by block, of those rows
  };
  explicit LiveEntry(std::unique_ptr<LiveObject> log) : log_(std::move(log)) {}
  void follow();
  void end(Status status);
  Status take(const LiveRecord& record);

  const std::unique_ptr<LiveObject> log_;
  std::string header_seal_;
  EntryHeader header_;
  std::shared_ptr<const std::string> signing_;
  int64_t records_ = 0;  // the follower's

  mutable std::mutex mutex_;  // of what follows
  std::condition_variable changed_;
  std::vector<Tensor> tensors_;
  bool over_ = false, stopping_ = false;
  Status failure_;  // why nothing more will come, where not all is there
  std::mutex telling_;
  std::function<void()> tell_;
  std::thread follower_;
};

}  // namespace ds
