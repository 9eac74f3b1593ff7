// machine.json: how fast a machine computes and how long its link takes to answer. Schema: schemas.md.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "support/dtype.h"
#include "support/status.h"

namespace ds {

/// One measured call of a layer: K and V for `rows` rows that begin at `position`, queries for the last
/// `query_rows` of them.
struct LayerPoint {
  int64_t rows = 0, query_rows = 0, position = 0;
  int64_t ns = 0;
};

struct MachineModel {
  std::string name;
  std::string backend;
  DType dtype = DType::kBF16;  // of weights and caches
  double matmul_flops_per_s = 0, attention_flops_per_s = 0, memory_bytes_per_s = 0;
  int64_t op_overhead_ns = 0;
  int64_t link_rtt_ns = 0;
  std::vector<LayerPoint> layer_points;  // of the pair's shape; may be empty
  std::optional<int64_t> head_ns;

  /// Errors: kNotFound, kCorrupt, kUnsupported (a newer version), kInvalidArgument; each names file and
  /// field.
  static Result<MachineModel> read(const std::string& path);
  /// Stands in where none is given: two cores of a current server with bf16 matrix units; no measured points.
  static MachineModel stand_in(DType dtype);
};

}  // namespace ds
