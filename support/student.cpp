#include "support/student.h"

#include <boost/math/distributions/students_t.hpp>
#include <cmath>

namespace ds {

double student_quantile(double p, int64_t freedom) {
  if (!(p > 0 && p < 1) || freedom < 1) return std::nan("");
  return boost::math::quantile(boost::math::students_t(static_cast<double>(freedom)), p);
}

}  // namespace ds
