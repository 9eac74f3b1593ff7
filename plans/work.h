// How much arithmetic a layer is: what cost models, simulations and bounds are made of.
#pragma once

#include "plans/plan.h"

namespace ds {

/// Floating-point operations; a multiply and an add are two.
struct LayerWork {
  double matmul = 0;     // K and V of all rows; Q, O and the MLP of the query rows
  double attention = 0;  // both products: the query at position t meets t + 1 keys and values
};

/// One layer over `rows` (its last `queries` go through Q, attention and MLP).
LayerWork layer_work(const Shape& shape, const OpRows& rows);

/// A map at a cut over one row of `d` elements; `rank` of low-rank maps.
double map_flops(MapForm form, int64_t d, int64_t rank);

}  // namespace ds
