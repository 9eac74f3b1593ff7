// Whether cuDNN takes the graphs that we describe, without a device: they are planned and compiled for
// devices whose properties are written down here. Nothing is run.
#include <dlfcn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "runtime/backends/cuda/attention_internal.h"

namespace ds::cuda {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

struct Device {
  const char* name;
  int sm, multiprocessors, shared_bytes, l2_bytes;
};
constexpr Device kA100{"NVIDIA A100-SXM4-80GB", 80, 108, 166912, 41943040};
constexpr Device kH100{"NVIDIA H100 80GB HBM3", 90, 132, 232448, 52428800};

/// As cuDNN 9 writes a device's properties.
std::string properties(const Device& d) {
  return fmt::format(
      R"({{"maxGridSize": [2147483647, 65535, 65535], "maxBlockSize": [1024, 1024, 64], "regsPerBlock": 65536,
"multiProcessorCount": {}, "warpSize": 32, "maxSharedMemoryPerBlock": 49152, "maxSharedMemoryPerBlockOptin": {},
"reservedSharedMemoryPerBlock": 1024, "maxRegistersPerSM": 65536, "maxCtasPerSM": 32, "maxThreadsPerBlock": 1024,
"maxThreadsPerSM": 2048, "pciDeviceId": 0, "isTccDriver": 0, "supportCoopLaunch": 1, "totalGlobalMem": 85031714816,
"smClockRateKHz": 1410000, "memClockRateKHz": 1593000, "l2CacheSize": {}, "cudaDeviceId": 0, "deviceVer": {},
"driverVer": 13000, "deviceName": "{}"}})",
      d.multiprocessors, d.shared_bytes, d.l2_bytes, d.sm * 10, d.name);
}

Result<std::string> plan(const Device& device, const AttentionShape& shape, int64_t keys, int64_t rows) {
  return plan_library_attention(shape, keys, rows, properties(device), device.sm);
}

class LibraryAttentionPlans : public testing::Test {
 protected:
  void SetUp() override {
    // cuDNN finds the driver by this name, whatever it was opened as.
    if (!dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL)) {
      ASSERT_TRUE(dlopen(DS_NO_DRIVER, RTLD_NOW | RTLD_GLOBAL)) << dlerror();
    }
    Result<std::string> asked = plan(kH100, {.heads = 8, .kv_heads = 8, .head_dim = 64}, 256, 256);
    if (!asked.ok() && asked.status().code() == Code::kUnavailable) GTEST_SKIP() << asked.status().message();
  }
};

TEST_F(LibraryAttentionPlans, ForEveryShapeThatModelsHave) {
  EXPECT_THAT(library_attention_version(), StartsWith("cuDNN 9."));
  for (const Device& device : {kA100, kH100})
    for (const AttentionShape& shape : {AttentionShape{.heads = 32, .kv_heads = 8, .head_dim = 128},
                                        {.heads = 32, .kv_heads = 8, .head_dim = 64},
                                        {.heads = 28, .kv_heads = 4, .head_dim = 128},
                                        {.heads = 8, .kv_heads = 8, .head_dim = 80},
                                        {.heads = 8, .kv_heads = 4, .head_dim = 256}}) {
      Result<std::string> planned = plan(device, shape, 32768, 1024);
      ASSERT_TRUE(planned.ok()) << planned.status().message();
      EXPECT_THAT(*planned, HasSubstr("eng")) << device.name;
    }
}

TEST_F(LibraryAttentionPlans, ForFewRowsAndForMoreRowsThanKeys) {
  const AttentionShape shape{.heads = 32, .kv_heads = 8, .head_dim = 128};
  for (const Device& device : {kA100, kH100})
    for (auto [keys, rows] : {std::pair{8191, 8191}, {131072, 256}, {100, 1024}}) {
      Result<std::string> planned = plan(device, shape, keys, rows);
      ASSERT_TRUE(planned.ok()) << planned.status().message();
    }
}

TEST_F(LibraryAttentionPlans, SayWhatIsNotDone) {
  auto refused = [](const AttentionShape& shape, int64_t keys = 4096) {
    Result<std::string> planned = plan(kA100, shape, keys, 256);
    EXPECT_FALSE(planned.ok());
    return planned.ok() ? "" : planned.status().message();
  };
  EXPECT_THAT(refused({.heads = 32, .kv_heads = 8, .head_dim = 128, .dtype = DType::kF32}),
              HasSubstr("it is used for bf16, not f32"));
  EXPECT_THAT(refused({.heads = 32, .kv_heads = 8, .head_dim = 36}),
              HasSubstr("head_dim 36 is not a multiple of 8"));
  EXPECT_THAT(refused({.heads = 32, .kv_heads = 32, .head_dim = 128}, 1 << 20), HasSubstr("32 bits"));
  EXPECT_THAT(refused({.heads = 32, .kv_heads = 8, .head_dim = 512}),
              HasSubstr("head_dim 512 is more than 256"));
  // Refused by cuDNN; what is said names the call.
  constexpr Device kV100{"Tesla V100-SXM2-32GB", 70, 80, 98304, 6291456};
  Result<std::string> planned = plan(kV100, {.heads = 32, .kv_heads = 8, .head_dim = 128}, 4096, 256);
  ASSERT_FALSE(planned.ok());
  EXPECT_EQ(planned.status().code(), Code::kUnsupported);
  EXPECT_THAT(
      planned.status().message(),
      StartsWith("planning cuDNN's attention for sm_70, 256 rows over up to 4096 keys, 32 heads, 8 kv "
                 "heads of 128, bf16: "));
}

TEST_F(LibraryAttentionPlans, NoDeviceIsNoLibrary) {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess && count > 0) GTEST_SKIP() << "there is a device";
  std::string why;
  auto made = LibraryAttention::make({.heads = 8, .kv_heads = 8, .head_dim = 64}, 4096, 1024, 0, why);
  ASSERT_FALSE(made.ok());
  EXPECT_EQ(made.status().code(), Code::kUnavailable);
  auto none = LibraryAttention::make({.heads = 8, .kv_heads = 8, .head_dim = 63}, 4096, 1024, 0, why);
  ASSERT_TRUE(none.ok());
  EXPECT_EQ(*none, nullptr);
  EXPECT_EQ(why, "head_dim 63 is not a multiple of 8");
}

}  // namespace
}  // namespace ds::cuda
