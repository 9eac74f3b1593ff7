// Which of cuBLASLt's algorithms is the fastest for each shape of product, found by trying them once on a
// device and kept in a file: a search takes seconds, and no request may wait for it.
#pragma once

#include <cublasLt.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>

#include "runtime/backends/cuda/device_internal.h"
#include "support/status.h"

namespace ds::cuda {

struct Algorithm {
  cublasLtMatmulAlgo_t algo{};
  int64_t ns = 0;  // of one product; 0: it was the only one, and not measured
};

/// The choices that are known for one device, by the text of a shape. Thread-safe.
class Algorithms {
 public:
  /// `folder` empty: no file. A file that is damaged, or of another device or library, is not used, and
  /// replaced by the next save().
  Algorithms(const DeviceInfo& info, const std::string& folder);

  std::optional<Algorithm> find(const std::string& shape) const;
  void put(const std::string& shape, const Algorithm& algorithm);
  /// Writes the file where anything is new. It costs time, never a request: a failure is kept in reason().
  void save();

  const std::string& path() const { return path_; }  // "": none
  size_t size() const;
  std::string reason() const;  // why a file that was there is not used, or could not be written; "": fine

 private:
  Status read();
  Status write() const;

  std::string device_, path_;
  mutable std::mutex mutex_;
  std::map<std::string, Algorithm> known_;
  bool changed_ = false;
  std::string reason_;
};

}  // namespace ds::cuda
