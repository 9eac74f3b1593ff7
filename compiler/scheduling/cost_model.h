// How long each operation takes: measured where there are measurements, between them by interpolation, and by
// a roofline where nothing was measured.
//
// Roofline: matrix products of what the call computes (K and V of all rows; Q, O and MLP of the query rows)
// at the matmul rate, plus attention at its rate, but not faster than weights and caches can be read; plus
// the overhead of a call.
//
// Points of one kind (K and V only; queries for all rows) lie on lines of equal rows, by position. Between
// two neighbours on a line, and then between two lines, time is linear in the roofline's time (between lines:
// in that at position 0): a point is met exactly, and longer calls never come out shorter.
// (Points that are out of order themselves, by noise, are raised to the longest of the smaller calls.) Beyond
// the ends the ratio is kept; a call of more rows than any point is held against calls whose rows see as
// many keys on average. A call with some queries is put together from the two kinds, unless it was measured.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "compiler/inputs/machine.h"
#include "plans/plan.h"

namespace ds {

/// Where a variant's times hold.
struct TunedPoint {
  int64_t tokens = 0, suffix = 0;
  int64_t rate = 0;  // bytes per second
  int32_t chunks = 1;
  double share = 0;                   // of the context's tokens that are selected
  MapForm map_form = MapForm::kNone;  // of the maps that the receiver applies; kNone: it applies none
  int64_t map_rank = 0;               // low-rank: the largest rank among them
};

/// What a time rests on, best first. Of a sum: its weakest part.
enum class CostSource : uint8_t { kMeasured, kInterpolated, kExtrapolated, kModelled };

struct Cost {
  double ns = 0;
  CostSource source = CostSource::kModelled;
};

/// How much of the compute time of some operations rests on what.
struct Coverage {
  std::array<double, 4> ns{};  // by CostSource
  int64_t measured_to = 0;     // positions that measured calls of layers reach; 0: none was measured
  void add(const Cost& cost) { ns[static_cast<size_t>(cost.source)] += cost.ns; }
  Coverage& operator+=(const Coverage& other);
  /// "times: 93 % from measured points, 7 % extrapolated beyond 4,096 positions"; "" without any time.
  std::string note() const;
};

class CostModel {
 public:
  CostModel(MachineModel machine, const Shape& shape);

  const MachineModel& machine() const { return machine_; }
  const Shape& shape() const { return shape_; }

  /// At least 1. Selected rows are scattered over the context; they are taken to be its last, which see most
  /// keys. A choice of tokens is taken to be what K and V of all of them are.
  int64_t duration_ns(const Op& op, const TunedPoint& point) const;
  /// The same, with what it rests on (transfers: the stated rate, kMeasured).
  Cost duration(const Op& op, const TunedPoint& point) const;
  /// Of the kernels of a variant; transfers are not in it.
  Coverage coverage(const Variant& variant, const TunedPoint& point) const;

  /// One layer; `query_rows` are the last of `rows`, which begin at `position`. Some 50 ns: tables are made
  /// once, and nothing is allocated.
  double layer_ns(int64_t rows, int64_t query_rows, int64_t position) const {
    return layer(rows, query_rows, position).ns;
  }
  Cost layer(int64_t rows, int64_t query_rows, int64_t position) const;
  /// A map over rows of hidden states: as measured (a low-rank one of another rank in proportion to its
  /// arithmetic), else its arithmetic, reading and writing the rows, and a call.
  Cost align(int64_t rows, MapForm form, int64_t rank) const;
  /// Bytes that a transfer moves.
  int64_t transfer_bytes(const Op& op, const TunedPoint& point) const;

 private:
  struct Point {
    double position, roofline, ns;
  };
  struct Line {
    double rows, roofline;  // at position 0
    size_t begin, end;      // of its points
  };
  /// The points of one kind of call.
  struct Table {
    bool queries = false;
    std::vector<Line> lines;    // by rows
    std::vector<Point> points;  // by line, then position
  };
  struct Rooflines {                                             // nanoseconds
    double per_row = 0, per_pair = 0, overhead = 0;              // matrix products, attention, a call
    double weights = 0, memory_per_row = 0, memory_per_key = 0;  // reading
    double at(double rows, double position) const;
  };

  void fill(Table& table, bool queries);
  Cost look_up(const Table& table, double rows, double position) const;
  Cost on_line(const Table& table, const Line& line, double position) const;
  double roofline(bool queries, double rows, double position) const {
    return (queries ? with_queries_ : without_).at(rows, position);
  }

  MachineModel machine_;
  Shape shape_;
  Rooflines with_queries_, without_;
  Table all_, none_;
  std::vector<LayerPoint> some_;  // measured calls with some queries, by size
  int64_t measured_to_ = 0;
};

}  // namespace ds
