// The arithmetic of merging, apart from what is merged.
#pragma once

#include <cstdint>

namespace ds::lora {

/// A chain of multiply-adds per element, in the order of r. `row`: [columns], of the base, replaced by
/// row + (b a) * scaling. `b`: [r], `a`: [r][columns].
void merge_row(const float* b, const float* a, int64_t r, int64_t columns, float scaling, float* row);

/// Scales `row` to the length `magnitude`, as DoRA does: row * (magnitude / |row|).
void set_magnitude(float magnitude, int64_t columns, float* row);

}  // namespace ds::lora
