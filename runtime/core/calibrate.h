// Measures what a plan's kernels cost on this machine, for the compiler's cost model (machine.json).
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "runtime/backends/backend.h"
#include "support/status.h"

namespace ds {

/// Time of one layer call: `rows` rows from `position` on, of which the last `query_rows` go through Q,
/// attention, MLP.
struct LayerTime {
  int64_t rows = 0, query_rows = 0, position = 0;
  int64_t ns = 0;
};

struct Calibration {
  double matmul_flops = 0;     // one large matrix product
  int64_t op_overhead_ns = 0;  // begin to end of an op that does nothing
  int64_t head_ns = 0;
  std::vector<LayerTime> layers;
};

/// Medians over all layers of the model, in order, as a request runs them (so that weights come from memory
/// as they do there). `contexts`: context lengths that plans will see, ascending; `suffix`: rows of a typical
/// prompt.
Result<Calibration> calibrate(Backend& backend, DeviceModel& model, const std::vector<int64_t>& contexts,
                              int64_t suffix,
                              const std::function<void(int64_t done, int64_t total)>& progress);

}  // namespace ds
