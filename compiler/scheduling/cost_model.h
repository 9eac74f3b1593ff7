// How long each operation takes: measured where there are measurements, a roofline elsewhere.
//
// Roofline: matrix products of what the call computes (K and V of all rows; Q, O and MLP of the query rows)
// at the matmul rate, plus attention at its rate, but not faster than weights and caches can be read; plus
// the overhead of a call. Measured points correct it: the ratio of measured to modelled time, interpolated
// piecewise linearly in the number of rows between points of the same kind (all rows have queries, some,
// none) and the nearest position, and kept beyond the ends. A measured point is thus met exactly.
#pragma once

#include <cstdint>

#include "compiler/inputs/machine.h"
#include "plans/plan.h"

namespace ds {

/// Where a variant's times hold.
struct TunedPoint {
  int64_t tokens = 0, suffix = 0;
  int64_t rate = 0;  // bytes per second
  int32_t chunks = 1;
};

class CostModel {
 public:
  CostModel(MachineModel machine, const Shape& shape) : machine_(std::move(machine)), shape_(shape) {}

  const MachineModel& machine() const { return machine_; }
  const Shape& shape() const { return shape_; }

  /// At least 1.
  int64_t duration_ns(const Op& op, const TunedPoint& point) const;

  /// One layer; `query_rows` are the last of `rows`, which begin at `position`.
  double layer_ns(int64_t rows, int64_t query_rows, int64_t position) const;
  /// Bytes that a transfer moves.
  int64_t transfer_bytes(const Op& op, const TunedPoint& point) const;

 private:
  double roofline_ns(int64_t rows, int64_t query_rows, int64_t position) const;
  MachineModel machine_;
  Shape shape_;
};

}  // namespace ds
