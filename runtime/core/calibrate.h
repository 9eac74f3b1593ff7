// Measures what a plan's transfers and kernels cost on this machine, for the compiler's cost model.
#pragma once

#include <atomic>
#include <compare>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "runtime/backends/backend.h"
#include "runtime/store/store.h"
#include "support/status.h"

namespace ds {

/// A layer call: K and V for `rows` rows from `position` on, of which the last `query_rows` go through Q,
/// attention, MLP.
struct CallSize {
  int64_t rows = 0, query_rows = 0, position = 0;
  auto operator<=>(const CallSize&) const = default;
};

/// One call, timed in several passes over layers that follow each other as in a request, so that weights come
/// from memory as they do there. Times are nanoseconds per call; `ns` is the median of the passes' means.
struct LayerTime {
  CallSize size;
  int64_t ns = 0, min_ns = 0, max_ns = 0;
  int64_t passes = 0;
  int64_t probe_ns = 0;  // what one and the same call took just before: how fast the machine was then
};

/// Taking rows of hidden states through a map of an aligned cut: ns + row_ns * (rows - 1).
struct AlignTime {
  MapForm form = MapForm::kFull;
  int64_t rank = 0;   // low-rank: r
  int64_t ns = 0;     // of one row
  double row_ns = 0;  // of each further row
};

/// What does not depend on the size of a call.
struct MachineTimes {
  double matmul_flops = 0;        // per second, one large matrix product
  double attention_flops = 0;     // per second, within attention over a long context
  double memory_bytes_per_s = 0;  // all threads reading
  int64_t op_overhead_ns = 0;     // begin to end of an op that does nothing
  int64_t wakeup_ns = 0;          // end of an op to begin of one on another stream that waited for it
  int64_t embed_ns = 0;           // of one row
  double embed_row_ns = 0;        // of each further row
  int64_t head_ns = 0;            // final norm and logits of one row
  int64_t lookup_ns = 0;          // hashing the context's tokens, opening its entry, checking the header
  int64_t read_latency_ns = 0;    // a read from the store: this and bytes / read_bytes_per_s
  double read_bytes_per_s = 0;    //
  double copy_bytes_per_s = 0;    // a stream's copy from the host's memory to that of kernels
  int64_t staged_block_bytes =
      0;  // in which what is read is copied to the device; 0: it lands where kernels read
  int64_t kernel_slowdown_permille =
      0;  // permille that a kernel takes longer while a transfer runs at full rate
  int64_t kernel_ns_per_transfer = 0;      // what each transfer adds besides to the kernel beside it
  int64_t transfer_slowdown_permille = 0;  // permille that a transfer takes longer while kernels run
  std::vector<AlignTime> aligns;           // full, low-rank of an eighth of the width, diagonal
};

struct Calibration {
  std::optional<MachineTimes> machine;  // none: not measured yet
  std::vector<LayerTime> layers;        // in the order measured
  int64_t spent_ns = 0;                 // on all of it
  bool stopped = false;                 // before the end
  std::vector<CallSize> left_out;       // for want of time
  /// How much slower than at its best the machine was, in permille, when the most disturbed point was
  /// measured.
  int64_t disturbed_permille() const;
};

struct CalibrationOptions {
  std::vector<int64_t> contexts;  // lengths that plans will see, ascending
  int64_t suffix = 16;            // rows of a typical prompt
  int64_t budget_ns = 60'000'000'000;
  Store* store = nullptr;                   // where an entry is written, read and removed again
  const std::atomic<bool>* stop = nullptr;  // ends early, keeping what is measured
  std::function<void(int64_t done_ns, int64_t total_ns)> progress;
  std::function<Status(const Calibration&)> measured;  // after every step
};

/// The calls that calibrate() times, most telling first; the same for the same arguments. kInvalidArgument:
/// lengths that do not fit the model's positions.
Result<std::vector<CallSize>> calibration_grid(const ModelConfig& config,
                                               const std::vector<int64_t>& contexts, int64_t suffix);

/// Goes on from `done` (empty: from the beginning). The budget bounds the choice of calls, not a call that
/// turns out slower than expected.
Result<Calibration> calibrate(Backend& backend, DeviceModel& model, const CalibrationOptions& options,
                              Calibration done = {});

}  // namespace ds
