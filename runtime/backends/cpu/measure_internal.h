// What this machine can do at best, measured when asked: what kernels are held against.
#pragma once

#include "runtime/backends/cpu/kernels_internal.h"
#include "support/status.h"

namespace ds::cpu {

/// FLOP per second of a product large enough to be bound by arithmetic alone.
Result<double> measure_flops(Isa isa, DType dtype, int threads);

/// Bytes per second that the threads together read from memory, each a half-gigabyte or less of its own from
/// end to end.
Result<double> measure_bandwidth(Isa isa, int threads);

}  // namespace ds::cpu
