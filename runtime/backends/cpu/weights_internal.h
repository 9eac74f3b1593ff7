// All weights of a model as one block of memory: made anew, or mapped from a file that an earlier start
// wrote.
//
// The file: a header (magic, version, sizes, checksums), the text that names what is packed and how, a
// checksum per piece, and from the next 2 MiB boundary on the block itself. It is mapped, not copied: the
// page cache keeps it from one start to the next, and processes that run the same model share it.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/backends/backend.h"
#include "runtime/backends/cpu/memory_internal.h"
#include "support/file.h"
#include "support/status.h"

namespace ds::cpu {

/// One array of the block.
struct WeightArray {
  std::string name;  // with its layout: two arrays of one name hold the same bytes for the same checkpoint
  int64_t bytes = 0;
  std::function<Status(std::byte* to)> make;  // writes all `bytes`; `to` is 64-byte aligned
  int64_t offset = 0;                         // in the block; set by Weights::load
};

class Weights {
 public:
  /// `kind` distinguishes files of one checkpoint and dtype: what the machine computes with. Uses the calling
  /// thread's OpenMP threads. A file that cannot be used or written costs time, never the load;
  /// options.report says what happened.
  static Result<Weights> load(std::vector<WeightArray>& arrays, std::string_view kind,
                              const LoadOptions& options);

  const std::byte* data() const { return data_; }
  int64_t size() const { return size_; }
  /// kCorrupt: the file that they are mapped from was cut short; kernels ask after they have read them.
  Status intact() const { return file_.intact(); }

 private:
  const std::byte* data_ = nullptr;
  int64_t size_ = 0;
  HostBuffer memory_;
  MappedFile file_;
};

}  // namespace ds::cpu
