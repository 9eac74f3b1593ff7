// Where the tensors of an entry land: in the memory that kernels read.
//
// A backend whose memory the host can write takes them straight. For any other they are read in blocks into
// pinned memory, by several threads, and each block is copied to the device while the next ones are read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string_view>
#include <vector>

#include "runtime/backends/backend.h"
#include "runtime/store/entry.h"
#include "support/status.h"

namespace ds {

/// Rows of one tensor.
struct LandingRows {
  TensorKind kind = TensorKind::kKv;
  int32_t layer = 0;
  int64_t first = 0, rows = 0;
  std::string_view map = {};  // entry_map()
};

class Landing {
 public:
  /// `row_bytes`: of the longest row that will be read. `threads` that read into pinned memory; 0: as many as
  /// a device's link can use and this machine spare. kExhausted: no pinned memory.
  static Result<std::unique_ptr<Landing>> create(Backend& backend, int64_t row_bytes, int threads = 0);

  /// On one thread at a time. When it returns, all rows have been read and, where staged(), are on their way:
  /// record() says when they are there. `go_on` as in EntryReader::read_rows; it is called by several
  /// threads.
  Status read(EntryReader& entry, const LandingRows& rows, std::byte* to,
              const std::function<Status()>& go_on = {});

  /// Whether what was read is copied behind read()'s back. Where it is not, it is there when read() returns.
  bool staged() const { return copies_ != nullptr; }
  /// `event` completes once all that has been read is there. staged() only; on read()'s thread.
  void record(Event& event) { copies_->record(event); }
  /// Blocks until then; the first failure of a copy.
  Status synchronize() { return staged() ? copies_->synchronize() : ok_status(); }

  /// Small enough that a copy begins soon, large enough that it runs at the link's rate.
  static constexpr int64_t kBlockBytes = int64_t{4} << 20;

 private:
  Landing() = default;
  size_t acquire();
  void copy(size_t block, std::byte* to, int64_t bytes);

  struct Block {
    std::unique_ptr<DeviceMemory> memory;
    std::unique_ptr<Event> copied;
  };
  int64_t block_bytes_ = 0;
  int threads_ = 1;
  std::vector<EntryReader::Cursor> cursors_;  // by thread
  std::unique_ptr<CommandStream> copies_;     // none: the host writes where kernels read
  std::mutex mutex_;                          // of what follows, and of enqueuing copies
  std::vector<Block> blocks_;
  std::vector<size_t> free_;     // blocks
  std::vector<size_t> copying_;  // blocks, the first one copied first
};

}  // namespace ds
