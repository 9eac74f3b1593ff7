// The backend that tests of requests run on: the CPU, or the one that $DROIDSPEAK_TEST_BACKEND names, so that
// the same programs test another one (tests/run.py does).
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>

#include "runtime/backends/backends.h"

namespace ds::testing {

inline Result<std::unique_ptr<Backend>> test_backend() {
  const char* name = std::getenv("DROIDSPEAK_TEST_BACKEND");
  BackendOptions options;
  options.name = name != nullptr && *name != '\0' ? name : "cpu";
  options.cuda.cache = ::testing::TempDir() + "ds-test-algorithms";  // searched for once
  return make_backend(options);
}

/// Whether rows are equal to the bit however they are split into calls: the CPU's are.
inline bool exact_rows() { return std::getenv("DROIDSPEAK_TEST_BACKEND") == nullptr; }

}  // namespace ds::testing
