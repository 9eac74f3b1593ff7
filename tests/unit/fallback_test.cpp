// --fallback cpu: what is done again on the CPU, and what is not.
#include <gmock/gmock.h>

#include "tools/backend_flags.h"

namespace ds {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct Tried {
  std::vector<std::string> backends;  // that the body was run with
  Status status;
};

/// A body that fails with `code` on every backend but the CPU's, after it has shown something or not.
Tried attempt(const std::string& backend, const std::string& fallback, Code code, bool shows) {
  BackendFlags flags;
  flags.name = backend;
  flags.fallback = fallback;
  Tried result;
  result.status = with_fallback(flags, [&](const BackendFlags& on, bool& shown) -> Status {
    result.backends.push_back(on.name);
    shown = shows;
    return on.name == "cpu" && backend != "cpu" ? ok_status() : error(code, "it failed");
  });
  return result;
}

TEST(Fallback, ADeviceThatIsLostOrTooSmallBeforeAnythingWasShown) {
  for (Code code : {Code::kUnavailable, Code::kDeviceMemory})
    for (const char* backend : {"cuda", "auto"}) {
      Tried done = attempt(backend, "cpu", code, false);
      EXPECT_THAT(done.backends, ElementsAre(backend, "cpu"));
      EXPECT_TRUE(done.status.ok()) << done.status.message();
    }
}

TEST(Fallback, NothingIsShownTwice) {
  for (Code code : {Code::kUnavailable, Code::kDeviceMemory}) {
    Tried done = attempt("cuda", "cpu", code, true);
    EXPECT_THAT(done.backends, ElementsAre("cuda"));
    EXPECT_EQ(done.status.code(), code);
    EXPECT_THAT(done.status.message(), AllOf(HasSubstr("it failed"), HasSubstr("has been shown")));
  }
}

TEST(Fallback, OtherFailuresAreNotTheDevices) {
  for (Code code : {Code::kExhausted, Code::kIo, Code::kInternal, Code::kCorrupt, Code::kInvalidArgument})
    for (bool shows : {false, true}) {
      Tried done = attempt("auto", "cpu", code, shows);
      EXPECT_THAT(done.backends, ElementsAre("auto"));
      EXPECT_EQ(done.status.message(), "it failed");
    }
}

TEST(Fallback, OnlyWhereItIsAskedForAndFromAnotherBackend) {
  EXPECT_THAT(attempt("cuda", "none", Code::kDeviceMemory, false).backends, ElementsAre("cuda"));
  EXPECT_EQ(attempt("cuda", "none", Code::kDeviceMemory, true).status.message(), "it failed");
  EXPECT_THAT(attempt("cpu", "cpu", Code::kDeviceMemory, false).backends, ElementsAre("cpu"));
}

TEST(Fallback, MemoryThatTheCpuLacksIsNoReasonToTryItAgain) {
  auto backend = make_cpu_backend();
  ASSERT_TRUE(backend.ok());
  Status refused = (*backend)->allocate(int64_t{1} << 50).status();
  EXPECT_FALSE(is_device_failure(refused.code())) << refused.message();
}

}  // namespace
}  // namespace ds
