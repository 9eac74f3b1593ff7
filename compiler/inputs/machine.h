// machine.json: how fast a machine computes, reads its store and hears from its link. Schema: schemas.md.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "plans/plan.h"
#include "support/dtype.h"
#include "support/status.h"

namespace ds {

/// One measured call of a layer: K and V for `rows` rows that begin at `position`, queries for the last
/// `query_rows` of them.
struct LayerPoint {
  int64_t rows = 0, query_rows = 0, position = 0;
  int64_t ns = 0;                  // the median
  int64_t min_ns = 0, max_ns = 0;  // its spread; `ns` where the file has none
};

/// A map at a cut, measured: `ns` for one row of hidden states, `row_ns` for each further one.
struct AlignPoint {
  MapForm form = MapForm::kFull;
  int64_t rank = 0;  // low-rank only
  int64_t ns = 0;
  double row_ns = 0;
};

/// What the operations of a request that looks an entry up meet at one link rate, besides what each takes
/// alone.
struct Conditions {
  int64_t kernels_ns = 0, loads_ns = 0;  // when they may start, from the request's beginning
  // How much longer a kernel takes while a load runs, and a load while a kernel does: permille on top.
  int64_t kernel_slow_permille = 0, load_slow_permille = 0;
  int64_t kernel_ns_per_load = 0;  // and what each load adds besides to kernels that run meanwhile
  // From the end of a load, or of a kernel, to the start of an operation on another stream that waits for it.
  int64_t load_handover_ns = 0, kernel_handover_ns = 0;
};

struct MachineModel {
  std::string name;
  std::string backend;
  DType dtype = DType::kBF16;  // of weights and caches
  double matmul_flops_per_s = 0, attention_flops_per_s = 0, memory_bytes_per_s = 0;
  int64_t op_overhead_ns = 0;
  int64_t wakeup_ns = 0;    // end of an op to begin of one on another stream that waited for it
  int64_t link_rtt_ns = 0;  // from issuing the first transfer to its first byte
  int64_t lookup_ns = 0;    // finding and checking the entry, before anything is issued
  // A transfer at the store's own speed takes read_latency_ns and bytes / read_bytes_per_s; 0: not known.
  int64_t read_latency_ns = 0;
  double read_bytes_per_s = 0, copy_bytes_per_s = 0;
  int64_t staged_block_bytes =
      0;  // in which what is read is copied to a device; 0: kernels read where it lands
  // How much longer a kernel takes while a transfer runs at the store's own speed the whole time, and the
  // transfer meanwhile: permille that come on top. A slower link disturbs in proportion to its rate.
  int64_t kernel_slowdown_permille = 0, transfer_slowdown_permille = 0;
  int64_t kernel_ns_per_transfer = 0;    // and whatever its size and rate, for its thread has to wake up
  std::vector<LayerPoint> layer_points;  // of the pair's shape; may be empty
  std::optional<int64_t> head_ns;
  std::optional<int64_t> embed_ns;  // of one row
  double embed_row_ns = 0;          // of each further row; holds with embed_ns
  std::vector<AlignPoint> align;    // maps at cuts; each form and rank at most once
  std::optional<Shape> shape;       // of the measured layers; none: not stated

  /// Nothing starts before the entry has been found; the first byte of a load is a round trip later. Threads
  /// that wait for another stream are woken up. The copy to a device runs behind the link, so that of a
  /// transfer only its last block is still to be copied when the link has delivered it. `rate`: the link's,
  /// bytes per second.
  Conditions conditions(int64_t rate) const;

  /// Reads versions 1 to 4. Errors: kNotFound, kCorrupt, kUnsupported (another version), kInvalidArgument;
  /// each names file and field.
  static Result<MachineModel> read(const std::string& path);
  /// kMismatch when layers of another shape were measured: each differing number, found and expected. The
  /// numbers of layers may differ, and the family, whose norms and biases take next to no time.
  Status check_shape(const std::string& path, const Shape& expected) const;
  /// Stands in where none is given: two cores of a current server with bf16 matrix units; no measured points.
  static MachineModel stand_in(DType dtype);
};

}  // namespace ds
