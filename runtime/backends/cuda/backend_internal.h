// The CUDA backend, as the module exports it and tests link it.
#pragma once

#include <memory>

#include "runtime/backends/backends.h"

namespace ds::cuda {

/// kUnavailable: no driver, one that is too old, no such device, or one that the kernels cannot run on.
Result<std::unique_ptr<Backend>> make_backend(const CudaOptions& options);

}  // namespace ds::cuda
