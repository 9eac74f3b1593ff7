// safetensors files: 8 bytes of header length (little-endian), a JSON header, then the tensors' bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "support/dtype.h"
#include "support/file.h"
#include "support/status.h"

namespace ds {

/// One tensor as the header states it; its element type may be one that droidspeak does not compute with.
struct SafetensorsEntry {
  std::string dtype;                // "BF16", "F32", "I64", ...
  std::vector<int64_t> shape;       // row-major; empty: a scalar
  std::span<const std::byte> data;  // exactly the bytes of the shape; alignment is not promised by the format
};

/// A mapped file whose header has been checked; the entries live as long as it does.
class SafetensorsFile {
 public:
  /// Errors: kNotFound, kIo; kCorrupt where lengths, JSON, shapes, offsets or the coverage of the data (no
  /// overlap, no hole, no byte left over) are not what the format promises, with file and tensor.
  static Result<SafetensorsFile> open(const std::string& path);

  const std::string& path() const { return file_.path(); }
  const std::map<std::string, SafetensorsEntry>& entries() const { return entries_; }
  /// Of `__metadata__`; what is not a text there is left out.
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  /// Gives the mapping away; the data of the entries stay valid while it lives.
  MappedFile release() && { return std::move(file_); }

 private:
  MappedFile file_;
  std::map<std::string, SafetensorsEntry> entries_;
  std::map<std::string, std::string> metadata_;
};

/// "F32", "BF16", "F16"
std::string_view safetensors_dtype(DType dtype);

struct NamedTensor {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  std::span<const std::byte> data;  // product(shape) * dtype_size(dtype) bytes
};

/// Writes tensors in the order given, and `metadata` where there is any, atomically ("-": to stdout).
/// kInvalidArgument: a name twice, or data that do not fit the shape.
Status write_safetensors(const std::string& path, std::span<const NamedTensor> tensors,
                         const std::map<std::string, std::string>& metadata = {});

}  // namespace ds
