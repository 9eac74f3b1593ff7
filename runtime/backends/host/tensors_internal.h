// What every backend does with the tensors of a checkpoint before they go into its own layout.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "runtime/model/checkpoint.h"
#include "support/dtype.h"
#include "support/status.h"

namespace ds::host {

/// kNotFound, kMismatch. Reads and merges nothing.
Status check_shape(const Checkpoint& checkpoint, const std::string& name,
                   std::initializer_list<int64_t> shape);

/// A tensor that must have this shape; kNotFound, kMismatch. Held no longer than it is used: an adapter's are
/// made for the caller.
Result<TensorView> tensor_of_shape(const Checkpoint& checkpoint, const std::string& name,
                                   std::initializer_list<int64_t> shape);

/// `count` elements from number `first` on, in another type: bf16 is rounded to nearest, ties to even.
void convert(const TensorView& from, int64_t first, int64_t count, DType to, std::byte* out);

}  // namespace ds::host
