// The value of a Result that a test relies on; throws, so that nothing after a failure runs.
#pragma once

#include <gtest/gtest.h>

#include <stdexcept>

#include "support/status.h"

namespace ds::testing {

template <typename T>
T take(Result<T> result) {
  EXPECT_TRUE(result.ok()) << result.status().message();
  if (!result.ok()) throw std::runtime_error(result.status().message());
  return std::move(result).value();
}

}  // namespace ds::testing
