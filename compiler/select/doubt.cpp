#include "compiler/select/doubt.h"

#include <algorithm>
#include <cmath>

namespace ds {
namespace {

constexpr double kSurely = 1.645;  // standard errors: 95 %, one-sided

/// Two significant digits, upwards.
int64_t rounded(double count) {
  const double unit = std::pow(10, std::max(std::floor(std::log10(count)) - 1, 0.0));
  return std::llround(std::ceil(count / unit) * unit);
}

}  // namespace

std::optional<Doubt> doubt_of(const Mean& mean, int64_t contexts, double limit) {
  const double error = mean.standard_error;
  if (std::isnan(mean.value) || std::isnan(error) || error <= 0) return std::nullopt;
  if (error <= limit && mean.value + error <= limit) return std::nullopt;
  Doubt doubt{mean, limit, contexts};
  const double room = limit - std::max(mean.value, 0.0), errors = kSurely * error / room;
  constexpr double kMost = 1e9;
  if (const double count = static_cast<double>(contexts) * errors * errors; room > 0 && count < kMost)
    doubt.would_tell = std::max(rounded(count), contexts + 1);
  return doubt;
}

}  // namespace ds
