// What the simulated device promises: that kernels which are wrong show it, and that streams, events, graphs
// and memory behave as CUDA's.
#include <cublasLt.h>
#include <cuda.h>
#include <cudaTypedefs.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <numeric>
#include <set>
#include <thread>
#include <vector>

#include "runtime/backends/cuda/simt_internal.h"
#include "runtime/backends/cuda/simulated/simulated.h"
#include "support/dtype.h"

namespace ds::cuda {
namespace {

class Simulator : public testing::Test {
 protected:
  void SetUp() override {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    simulated::reset("");
    ASSERT_EQ(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), cudaSuccess);
  }
  void TearDown() override { simulated::reset(""); }

  template <typename T>
  T* make(size_t count) {
    void* data = nullptr;
    EXPECT_EQ(cudaMalloc(&data, count * sizeof(T)), cudaSuccess);
    return static_cast<T*>(data);
  }
  template <typename T>
  std::vector<T> read(const T* data, size_t count) {
    EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
    std::vector<T> out(count);
    EXPECT_EQ(cudaMemcpy(out.data(), data, count * sizeof(T), cudaMemcpyDefault), cudaSuccess);
    return out;
  }

  cudaStream_t stream_ = nullptr;
};
using SimulatorDeathTest = Simulator;

// ---- kernels

DS_KERNEL number_threads(int* out) {
  unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] += 1;
}

TEST_F(Simulator, RunsEveryThreadOfEveryBlockOnce) {
  const dim3 grid(5, 3, 2), block(4, 3, 2);
  const size_t count = 5 * 3 * 2 * 4 * 3 * 2;
  int* out = make<int>(count);
  ASSERT_EQ(cudaMemsetAsync(out, 0, count * 4, stream_), cudaSuccess);
  ASSERT_EQ(launch(number_threads, grid, block, 0, stream_, out), cudaSuccess);
  EXPECT_EQ(read(out, count), std::vector<int>(count, 1));
}

DS_KERNEL rotate(const int* in, int* out, bool wait) {
  DS_SHARED int values[256];
  values[threadIdx.x] = in[threadIdx.x];
  if (wait) __syncthreads();
  out[threadIdx.x] = values[(threadIdx.x + 1) % blockDim.x];
}

TEST_F(Simulator, AMissingBarrierGivesWrongResults) {
  int *in = make<int>(256), *out = make<int>(256);
  std::vector<int> values(256), expected(256);
  for (int round = 0; round < 2; ++round) {
    for (int i = 0; i < 256; ++i) values[i] = 1000 * round + i;
    for (int i = 0; i < 256; ++i) expected[i] = values[(i + 1) % 256];
    ASSERT_EQ(cudaMemcpy(in, values.data(), 1024, cudaMemcpyDefault), cudaSuccess);
    ASSERT_EQ(launch(rotate, 1, 256, 0, stream_, in, out, false), cudaSuccess);
    EXPECT_NE(read(out, 256), expected);
    ASSERT_EQ(launch(rotate, 1, 256, 0, stream_, in, out, true), cudaSuccess);
    EXPECT_EQ(read(out, 256), expected);
  }
}

DS_KERNEL shuffles(int* out) {
  int lane = static_cast<int>(threadIdx.x % 32);
  out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, lane, 5) + 100 * __shfl_up_sync(0xffffffffu, lane, 3) +
                     10000 * __shfl_down_sync(0xffffffffu, lane, 2, 8) +
                     1000000 * __shfl_sync(0xffffffffu, lane, 33);
}

TEST_F(Simulator, ShufflesAsCudaDocumentsThem) {
  int* out = make<int>(64);
  ASSERT_EQ(launch(shuffles, 1, 64, 0, stream_, out), cudaSuccess);
  std::vector<int> found = read(out, 64);
  for (int i = 0; i < 64; ++i) {
    int lane = i % 32, up = lane < 3 ? lane : lane - 3, down = lane % 8 >= 6 ? lane : lane + 2;
    EXPECT_EQ(found[i], (lane ^ 5) + 100 * up + 10000 * down + 1000000) << i;
  }
}

DS_KERNEL half_warps(uint32_t* out) {
  uint32_t mask = threadIdx.x % 32 < 16 ? 0x0000ffffu : 0xffff0000u;
  if (threadIdx.x % 32 < 16) {
    out[threadIdx.x] = __ballot_sync(mask, threadIdx.x % 3 == 0);
  } else {
    out[threadIdx.x] = static_cast<uint32_t>(__shfl_sync(mask, threadIdx.x, 31));
  }
}

TEST_F(Simulator, PartsOfAWarpMeetOnTheirOwn) {
  uint32_t* out = make<uint32_t>(32);
  ASSERT_EQ(launch(half_warps, 1, 32, 0, stream_, out), cudaSuccess);
  std::vector<uint32_t> found = read(out, 32);
  for (size_t i = 0; i < 32; ++i) EXPECT_EQ(found[i], i < 16 ? 0b1001001001001001u : 31u);
}

DS_KERNEL leave_before_barrier() {
  if (threadIdx.x == 7) return;
  __syncthreads();
}
DS_KERNEL half_at_barrier() {
  if (threadIdx.x % 2 == 0) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
DS_KERNEL leave_before_shuffle(int* out) {
  if (threadIdx.x == 3) return;
  out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1, 1);
}
DS_KERNEL different_masks(int* out) {
  out[threadIdx.x] = __shfl_xor_sync(threadIdx.x % 32 < 16 ? 0xffffffffu : 0xfffffff0u, 1, 1);
}
DS_KERNEL barrier_and_vote() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __any_sync(0xffffffffu, 1);
  }
  if (threadIdx.x >= 32) __syncwarp();
}

TEST_F(SimulatorDeathTest, ThreadsThatShouldMeetAndDoNot) {
  int* out = make<int>(64);
  auto run = [&](auto kernel, auto... arguments) {
    (void)launch(kernel, 1, 64, 0, stream_, arguments...);
    (void)cudaStreamSynchronize(stream_);
  };
  EXPECT_DEATH(run(leave_before_barrier), "leave_before_barrier|has left|have left");
  EXPECT_DEATH(run(half_at_barrier), "different __syncthreads");
  EXPECT_DEATH(run(leave_before_shuffle, out), "thread \\(3, 0, 0\\) has left the kernel");
  EXPECT_DEATH(run(different_masks, out), "mask ffff.*, while other lanes of it meet for a shuffle");
  EXPECT_DEATH(run(barrier_and_vote), "wait for others that never come");
}

DS_KERNEL one_past(float* data, int64_t at) { data[at] = 1; }

TEST_F(SimulatorDeathTest, AccessesOutsideOfAnAllocationEndTheProgram) {
  float* data = make<float>(64);  // 256 bytes: the page behind begins at once
  auto run = [&](int64_t at) {
    (void)launch(one_past, 1, 1, 0, stream_, data, at);
    (void)cudaStreamSynchronize(stream_);
  };
  run(63);
  EXPECT_DEATH(run(64), "kernel one_past, .*block \\(0, 0, 0\\), thread \\(0, 0, 0\\): an access outside");
  EXPECT_DEATH(run(-1024), "an access outside");
}

DS_KERNEL not_aligned(float* data, bool vector) {
  auto* bytes = reinterpret_cast<std::byte*>(data) + (vector ? 8 : 2);
  if (vector) {
    data[0] = __uint_as_float(load_16(bytes).x);
  } else {
    *reinterpret_cast<float*>(bytes) = 1;
  }
}

TEST_F(SimulatorDeathTest, AccessesThatAreNotAlignedEndTheProgram) {
  float* data = make<float>(64);
  auto run = [&](bool vector) {
    (void)launch(not_aligned, 1, 1, 0, stream_, data, vector);
    (void)cudaStreamSynchronize(stream_);
  };
  EXPECT_DEATH(run(false), "kernel not_aligned, .*not aligned, or an index");
  EXPECT_DEATH(run(true), "kernel not_aligned, .*load_16 of what is not 16-byte aligned");
}

DS_KERNEL copy_late(const uint4* from, uint4* to, bool wait) {
  DS_DYNAMIC_SHARED(shared);
  auto* tile = reinterpret_cast<uint4*>(shared);
  copy_async_16(&tile[threadIdx.x], &from[threadIdx.x], true);
  copy_async_commit();
  copy_async_16(&tile[32 + threadIdx.x], &from[threadIdx.x], false);
  copy_async_commit();
  if (wait) {
    copy_async_wait<1>();
  } else {
    copy_async_wait<2>();
  }
  to[threadIdx.x] = tile[threadIdx.x];
  copy_async_wait<0>();
  to[32 + threadIdx.x] = tile[32 + threadIdx.x];
}

TEST_F(Simulator, AMissingWaitForACopyIsSeen) {
  std::vector<uint32_t> values(128);
  std::iota(values.begin(), values.end(), 1u);
  auto *from = make<uint4>(32), *to = make<uint4>(64);
  ASSERT_EQ(cudaMemcpy(from, values.data(), 512, cudaMemcpyDefault), cudaSuccess);
  for (bool wait : {false, true}) {
    ASSERT_EQ(launch(copy_late, 1, 32, 1024, stream_, from, to, wait), cudaSuccess);
    std::vector<uint32_t> found = read(reinterpret_cast<uint32_t*>(to), 256);
    for (size_t i = 0; i < 128; ++i) EXPECT_EQ(found[i], wait ? values[i] : 0xffffffffu);
    for (size_t i = 128; i < 256; ++i) EXPECT_EQ(found[i], 0u);  // what is not valid
  }
}

/// d[16][8] = a[16][16] * b[8][16]^T through ldmatrix; `transposed`: b comes as [16][8].
DS_KERNEL multiply_tile(const uint16_t* a, const uint16_t* b, float* d, bool transposed) {
  DS_SHARED uint16_t a_tile[16 * 16], b_tile[16 * 16];
  int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 256; i += 32) a_tile[i] = a[i];
  for (int i = lane; i < 256; i += 32) b_tile[i] = i < 128 ? b[i] : 0;
  __syncwarp();
  uint32_t a_part[4], b_part[4];
  ldmatrix(a_part, &a_tile[(lane % 16) * 16 + lane / 16 * 8]);
  if (transposed) {
    ldmatrix_transposed(b_part, &b_tile[(lane % 16) * 8]);
  } else {
    ldmatrix(b_part, &b_tile[(lane % 8) * 16 + lane / 8 % 2 * 8]);
  }
  float sum[4] = {};
  mma_16x8x16(sum, a_part, {b_part[0], b_part[1]});
  for (int i = 0; i < 4; ++i) d[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sum[i];
}

TEST_F(Simulator, MatrixFragmentsFitEachOther) {
  std::vector<uint16_t> a(256), b(128), b_rows(128);
  for (size_t i = 0; i < 256; ++i) a[i] = f32_to_bf16(static_cast<float>(i * 7 % 23) - 11);
  for (size_t i = 0; i < 128; ++i) b[i] = f32_to_bf16(static_cast<float>(i * 5 % 19) - 9);
  for (size_t n = 0; n < 8; ++n)
    for (size_t k = 0; k < 16; ++k) b_rows[k * 8 + n] = b[n * 16 + k];
  auto *da = make<uint16_t>(256), *db = make<uint16_t>(128);
  float* d = make<float>(128);
  ASSERT_EQ(cudaMemcpy(da, a.data(), 512, cudaMemcpyDefault), cudaSuccess);
  for (bool transposed : {false, true}) {
    ASSERT_EQ(cudaMemcpy(db, (transposed ? b_rows : b).data(), 256, cudaMemcpyDefault), cudaSuccess);
    ASSERT_EQ(launch(multiply_tile, 1, 32, 0, stream_, da, db, d, transposed), cudaSuccess);
    std::vector<float> found = read(d, 128);
    for (size_t m = 0; m < 16; ++m)
      for (size_t n = 0; n < 8; ++n) {
        float sum = 0;
        for (size_t k = 0; k < 16; ++k) sum += bf16_to_f32(a[m * 16 + k]) * bf16_to_f32(b[n * 16 + k]);
        EXPECT_EQ(found[m * 8 + n], sum) << m << " " << n;
      }
  }
}

DS_KERNEL add_all(float* sum, unsigned* count, unsigned long long* wide) {
  atomicAdd(sum, 1.0f);
  atomicAdd(count, 2u);
  atomicAdd(wide, 3ull);
}

TEST_F(Simulator, AtomicsOfKernelsOnSeveralStreams) {
  cudaStream_t other;
  ASSERT_EQ(cudaStreamCreateWithPriority(&other, cudaStreamNonBlocking, -1), cudaSuccess);
  float* sum = make<float>(1);
  unsigned* count = make<unsigned>(1);
  auto* wide = make<unsigned long long>(1);
  ASSERT_EQ(cudaMemset(sum, 0, 4), cudaSuccess);
  ASSERT_EQ(cudaMemset(count, 0, 4), cudaSuccess);
  ASSERT_EQ(cudaMemset(wide, 0, 8), cudaSuccess);
  for (cudaStream_t s : {stream_, other, stream_, other})
    ASSERT_EQ(launch(add_all, 10, 96, 0, s, sum, count, wide), cudaSuccess);
  ASSERT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(read(sum, 1)[0], 3840.0f);
  EXPECT_EQ(read(count, 1)[0], 7680u);
  EXPECT_EQ(read(wide, 1)[0], 11520u);
}

TEST_F(Simulator, RefusesLaunchesThatADeviceRefuses) {
  int* out = make<int>(1);
  EXPECT_EQ(launch(number_threads, 1, 1025, 0, stream_, out), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch(number_threads, 0, 32, 0, stream_, out), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch(number_threads, dim3(1, 65536), 32, 0, stream_, out), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch(number_threads, 1, 32, 228 << 10, stream_, out), cudaErrorInvalidValue);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidValue);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

// ---- memory

TEST_F(Simulator, NewMemoryIsNoNumberAndLimited) {
  simulated::reset("memory=1MiB");
  size_t free = 0, total = 0;
  ASSERT_EQ(cudaMemGetInfo(&free, &total), cudaSuccess);
  EXPECT_EQ(total, size_t{1} << 20);
  EXPECT_EQ(free, total);
  void *a = nullptr, *b = nullptr;
  ASSERT_EQ(cudaMalloc(&a, 1 << 19), cudaSuccess);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(a) % 256, 0u);
  uint32_t first = 0;
  ASSERT_EQ(cudaMemcpy(&first, a, 4, cudaMemcpyDeviceToHost), cudaSuccess);
  EXPECT_EQ(first, 0xffffffffu);
  EXPECT_EQ(cudaMalloc(&b, (1 << 19) + 1), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaMallocHost(&b, 1 << 22), cudaSuccess);  // of the host's, not the device's
  ASSERT_EQ(cudaMemGetInfo(&free, &total), cudaSuccess);
  EXPECT_EQ(free, size_t{1} << 19);
  EXPECT_EQ(cudaFree(b), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFreeHost(b), cudaSuccess);
  EXPECT_EQ(cudaFree(a), cudaSuccess);
  EXPECT_EQ(simulated::live().allocations, 0);
}

/// A range of the driver's virtual memory, by the functions that the backend finds.
struct VirtualRange {
  template <typename F>
  static F find(const char* name) {
    void* at = nullptr;
    EXPECT_EQ(cudaGetDriverEntryPointByVersion(name, &at, 10020, cudaEnableDefault, nullptr), cudaSuccess);
    return reinterpret_cast<F>(at);
  }
  PFN_cuMemAddressReserve_v10020 reserve = find<PFN_cuMemAddressReserve_v10020>("cuMemAddressReserve");
  PFN_cuMemAddressFree_v10020 free = find<PFN_cuMemAddressFree_v10020>("cuMemAddressFree");
  PFN_cuMemCreate_v10020 create = find<PFN_cuMemCreate_v10020>("cuMemCreate");
  PFN_cuMemRelease_v10020 release = find<PFN_cuMemRelease_v10020>("cuMemRelease");
  PFN_cuMemMap_v10020 map = find<PFN_cuMemMap_v10020>("cuMemMap");
  PFN_cuMemUnmap_v10020 unmap = find<PFN_cuMemUnmap_v10020>("cuMemUnmap");
  PFN_cuMemSetAccess_v10020 set_access = find<PFN_cuMemSetAccess_v10020>("cuMemSetAccess");

  static constexpr size_t kGranule = 64 << 10;
  CUmemAllocationProp memory{};
  CUmemAccessDesc access{};
  CUdeviceptr at = 0;
  VirtualRange() {
    memory.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    memory.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    access.location = memory.location;
    access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    EXPECT_EQ(reserve(&at, 4 * kGranule, 0, 0, 0), CUDA_SUCCESS);
  }
  float* data(size_t granule) const { return reinterpret_cast<float*>(at + granule * kGranule); }
  void make(size_t granule, size_t count = 1) {
    CUmemGenericAllocationHandle handle{};
    const CUdeviceptr here = at + granule * kGranule;
    EXPECT_EQ(create(&handle, count * kGranule, &memory, 0), CUDA_SUCCESS);
    EXPECT_EQ(map(here, count * kGranule, 0, handle, 0), CUDA_SUCCESS);
    EXPECT_EQ(release(handle), CUDA_SUCCESS);
    EXPECT_EQ(set_access(here, count * kGranule, &access, 1), CUDA_SUCCESS);
  }
};

TEST_F(Simulator, OnlyWhatIsMappedOfARangeIsMemory) {
  simulated::reset("memory=1MiB,granule=64KiB");
  constexpr size_t kGranule = VirtualRange::kGranule;
  {
    VirtualRange r;
    EXPECT_EQ(r.at % kGranule, 0u);
    EXPECT_EQ(simulated::live().ranges, 1);
    EXPECT_EQ(simulated::live().device_bytes, 0);
    EXPECT_EQ(cudaMemset(r.data(0), 0, 4), cudaErrorInvalidValue);
    r.make(1, 2);
    EXPECT_EQ(simulated::live().device_bytes, int64_t{2 * kGranule});
    uint32_t first = 0;
    ASSERT_EQ(cudaMemcpy(&first, r.data(1), 4, cudaMemcpyDeviceToHost), cudaSuccess);
    EXPECT_EQ(first, 0xffffffffu);
    EXPECT_EQ(cudaMemset(r.data(1), 0, 2 * kGranule), cudaSuccess);
    EXPECT_EQ(cudaMemset(r.data(1), 0, 2 * kGranule + 1), cudaErrorInvalidValue);
    EXPECT_EQ(cudaMemset(r.data(1) - 1, 0, 8), cudaErrorInvalidValue);
    r.make(3);
    EXPECT_EQ(cudaMemset(r.data(1), 0, 3 * kGranule), cudaSuccess) << "parts that touch are one";
    // What is mapped is mapped once, in whole granules, and goes as a whole.
    CUmemGenericAllocationHandle handle{};
    EXPECT_EQ(r.create(&handle, kGranule + 4096, &r.memory, 0), CUDA_ERROR_INVALID_VALUE);
    ASSERT_EQ(r.create(&handle, kGranule, &r.memory, 0), CUDA_SUCCESS);
    EXPECT_EQ(r.map(r.at + 2 * kGranule, kGranule, 0, handle, 0), CUDA_ERROR_INVALID_VALUE);
    EXPECT_EQ(r.map(r.at + 4 * kGranule, kGranule, 0, handle, 0), CUDA_ERROR_INVALID_VALUE);
    EXPECT_EQ(r.map(r.at, kGranule, 0, handle, 0), CUDA_SUCCESS);
    EXPECT_EQ(cudaMemset(r.data(0), 0, 4), cudaErrorInvalidValue) << "nobody has access yet";
    EXPECT_EQ(r.release(handle), CUDA_SUCCESS);
    EXPECT_EQ(r.release(handle), CUDA_ERROR_INVALID_VALUE);
    EXPECT_EQ(r.unmap(r.at + kGranule, kGranule), CUDA_ERROR_INVALID_VALUE);
    EXPECT_EQ(r.free(r.at, 4 * kGranule), CUDA_ERROR_INVALID_VALUE) << "something is mapped";
    EXPECT_EQ(r.unmap(r.at, 4 * kGranule), CUDA_SUCCESS);
    EXPECT_EQ(simulated::live().allocations, 0);
    // No more than there is; and once what is asked to be refused.
    EXPECT_EQ(r.create(&handle, 17 * kGranule, &r.memory, 0), CUDA_ERROR_OUT_OF_MEMORY);
    EXPECT_EQ(r.free(r.at, 4 * kGranule), CUDA_SUCCESS);
    EXPECT_EQ(simulated::live().ranges, 0);
  }
  simulated::reset("granule=64KiB,refuse=cuMemCreate:2");
  VirtualRange r;
  CUmemGenericAllocationHandle handle{};
  EXPECT_EQ(r.create(&handle, kGranule, &r.memory, 0), CUDA_SUCCESS);
  EXPECT_EQ(r.create(&handle, kGranule, &r.memory, 0), CUDA_ERROR_OUT_OF_MEMORY);
  EXPECT_EQ(r.create(&handle, kGranule, &r.memory, 0), CUDA_SUCCESS);
}

TEST_F(SimulatorDeathTest, KernelsMustNotTouchWhatIsNotMapped) {
  simulated::reset("granule=64KiB");
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), cudaSuccess);
  VirtualRange r;
  r.make(1);
  auto run = [&](size_t granule, int64_t at) {
    (void)launch(one_past, 1, 1, 0, stream_, r.data(granule), at);
    (void)cudaStreamSynchronize(stream_);
  };
  run(1, 0);
  run(1, VirtualRange::kGranule / 4 - 1);
  EXPECT_DEATH(run(1, VirtualRange::kGranule / 4), "kernel one_past, .*an access outside");
  EXPECT_DEATH(run(1, -1), "an access outside");
  EXPECT_EQ(r.unmap(r.at + VirtualRange::kGranule, VirtualRange::kGranule), CUDA_SUCCESS);
  EXPECT_DEATH(run(1, 0), "an access outside");
}

TEST_F(Simulator, CopiesAreChecked) {
  float *a = make<float>(64), *b = make<float>(64);
  float host[64] = {};
  EXPECT_EQ(cudaMemcpyAsync(a, host, 256, cudaMemcpyHostToDevice, stream_), cudaSuccess);
  EXPECT_EQ(cudaMemcpyAsync(a, host, 256, cudaMemcpyDeviceToDevice, stream_), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpyAsync(a, b, 257, cudaMemcpyDefault, stream_), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemcpyAsync(a + 1, a, 8, cudaMemcpyDefault, stream_), cudaErrorInvalidValue);
  EXPECT_EQ(cudaMemsetAsync(a, 0, 257, stream_), cudaErrorInvalidValue);
  cudaPointerAttributes attributes;
  ASSERT_EQ(cudaPointerGetAttributes(&attributes, a + 3), cudaSuccess);
  EXPECT_EQ(attributes.type, cudaMemoryTypeDevice);
  ASSERT_EQ(cudaPointerGetAttributes(&attributes, host), cudaSuccess);
  EXPECT_EQ(attributes.type, cudaMemoryTypeUnregistered);
}

// ---- streams, events, values

TEST_F(Simulator, StreamsRunInOrderAndWaitForEvents) {
  cudaStream_t other;
  cudaEvent_t event, never;
  ASSERT_EQ(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking), cudaSuccess);
  ASSERT_EQ(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), cudaSuccess);
  ASSERT_EQ(cudaEventCreateWithFlags(&never, cudaEventDefault), cudaSuccess);
  std::atomic<bool> go = false;
  std::vector<int> order;
  struct Call {
    std::vector<int>* order;
    int number;
    std::atomic<bool>* go;
  } first{&order, 1, &go}, second{&order, 2, nullptr};
  auto call = [](void* data) {
    auto* c = static_cast<Call*>(data);
    while (c->go != nullptr && !*c->go) std::this_thread::yield();
    c->order->push_back(c->number);
  };
  EXPECT_EQ(cudaStreamWaitEvent(other, never, 0), cudaSuccess);  // never recorded: nothing to wait for
  ASSERT_EQ(cudaLaunchHostFunc(stream_, call, &first), cudaSuccess);
  ASSERT_EQ(cudaEventRecord(event, stream_), cudaSuccess);
  ASSERT_EQ(cudaStreamWaitEvent(other, event, 0), cudaSuccess);
  ASSERT_EQ(cudaLaunchHostFunc(other, call, &second), cudaSuccess);
  EXPECT_EQ(cudaEventQuery(event), cudaErrorNotReady);
  EXPECT_EQ(cudaStreamQuery(other), cudaErrorNotReady);
  EXPECT_EQ(cudaEventQuery(never), cudaSuccess);
  go = true;
  ASSERT_EQ(cudaStreamSynchronize(other), cudaSuccess);
  EXPECT_EQ(order, (std::vector{1, 2}));
  EXPECT_EQ(cudaEventQuery(event), cudaSuccess);
  EXPECT_EQ(cudaStreamQuery(other), cudaSuccess);
  float ms;
  EXPECT_EQ(cudaEventElapsedTime(&ms, event, event), cudaErrorInvalidResourceHandle);  // made without times
  ASSERT_EQ(cudaStreamDestroy(other), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(other), cudaErrorInvalidResourceHandle);
}

TEST_F(Simulator, CopiesFromPageableMemoryTakeWhatIsThereNow) {
  float *device = make<float>(4), host[4] = {1, 2, 3, 4};
  std::atomic<bool> go = false;
  auto hold = [](void* data) {
    while (!*static_cast<std::atomic<bool>*>(data)) std::this_thread::yield();
  };
  ASSERT_EQ(cudaLaunchHostFunc(stream_, hold, &go), cudaSuccess);
  ASSERT_EQ(cudaMemcpyAsync(device, host, sizeof host, cudaMemcpyHostToDevice, stream_), cudaSuccess);
  host[0] = 9;
  go = true;
  float back[4] = {};
  ASSERT_EQ(cudaMemcpyAsync(back, device, sizeof back, cudaMemcpyDeviceToHost, stream_), cudaSuccess);
  EXPECT_EQ(back[0], 1);  // there already: the caller has waited
  EXPECT_EQ(back[3], 4);
}

TEST_F(Simulator, HostFunctionsMustNotCallCuda) {
  cudaError_t found = cudaSuccess;
  ASSERT_EQ(
      cudaLaunchHostFunc(
          stream_, [](void* data) { *static_cast<cudaError_t*>(data) = cudaStreamQuery(nullptr); }, &found),
      cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  EXPECT_EQ(found, cudaErrorNotPermitted);
}

using StreamValue = CUresult (*)(CUstream, CUdeviceptr, cuuint32_t, unsigned);
StreamValue entry(const char* name) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult status;
  EXPECT_EQ(cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &status), cudaSuccess);
  return reinterpret_cast<StreamValue>(found);
}

TEST_F(Simulator, StreamsWaitForValuesInHostMemory) {
  void* memory = nullptr;
  ASSERT_EQ(cudaHostAlloc(&memory, 4, cudaHostAllocMapped), cudaSuccess);
  auto* flag = static_cast<uint32_t*>(memory);
  *flag = 0;
  EXPECT_EQ(entry("cuStreamNothing"), nullptr);
  StreamValue wait = entry("cuStreamWaitValue32"), write = entry("cuStreamWriteValue32");
  auto address = reinterpret_cast<CUdeviceptr>(flag);
  ASSERT_EQ(wait(stream_, address, 7, CU_STREAM_WAIT_VALUE_GEQ), CUDA_SUCCESS);
  ASSERT_EQ(write(stream_, address, 9, 0), CUDA_SUCCESS);
  EXPECT_EQ(cudaStreamQuery(stream_), cudaErrorNotReady);
  std::atomic_ref(*flag).store(8);
  ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  EXPECT_EQ(*flag, 9u);
  uint32_t unknown = 0;
  EXPECT_EQ(wait(stream_, reinterpret_cast<CUdeviceptr>(&unknown), 0, 0), CUDA_ERROR_INVALID_VALUE);
}

DS_KERNEL do_nothing() {}

TEST_F(Simulator, WhatMayWaitWhileAStreamWaitsIsNoted) {
  void *memory = nullptr, *more = nullptr;
  ASSERT_EQ(cudaHostAlloc(&memory, 4, cudaHostAllocMapped), cudaSuccess);
  auto* flag = static_cast<uint32_t*>(memory);
  *flag = 0;
  StreamValue wait = entry("cuStreamWaitValue32");
  ASSERT_EQ(wait(stream_, reinterpret_cast<CUdeviceptr>(flag), 1, CU_STREAM_WAIT_VALUE_GEQ), CUDA_SUCCESS);
  EXPECT_EQ(simulated::calls_while_waiting(), std::vector<std::string>());
  ASSERT_EQ(launch(do_nothing, 1, 1, 0, stream_), cudaSuccess);
  ASSERT_EQ(launch(do_nothing, 1, 1, 0, stream_), cudaSuccess);
  ASSERT_EQ(cudaMallocHost(&more, 4), cudaSuccess);
  EXPECT_EQ(simulated::calls_while_waiting(),
            (std::vector<std::string>{"load of do_nothing, 1, 1, 0, stream_", "cudaMallocHost"}));
  std::atomic_ref(*flag).store(1);
  ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  ASSERT_EQ(cudaFreeHost(more), cudaSuccess);
  ASSERT_EQ(cudaFreeHost(memory), cudaSuccess);
  EXPECT_EQ(simulated::calls_while_waiting().size(), 2u);
}

TEST_F(Simulator, MemoryIsFreedInAStreamsOrder) {
  void *data = nullptr, *memory = nullptr;
  ASSERT_EQ(cudaHostAlloc(&memory, 8, cudaHostAllocMapped), cudaSuccess);
  auto* flag = static_cast<uint32_t*>(memory);
  *flag = 0;
  ASSERT_EQ(cudaMallocAsync(&data, 1024, stream_), cudaSuccess);
  ASSERT_EQ(entry("cuStreamWaitValue32")(stream_, reinterpret_cast<CUdeviceptr>(flag), 1, 0), CUDA_SUCCESS);
  ASSERT_EQ(cudaMemsetAsync(data, 3, 1024, stream_), cudaSuccess);
  ASSERT_EQ(cudaMemcpyAsync(flag + 1, data, 4, cudaMemcpyDeviceToHost, stream_), cudaSuccess);
  ASSERT_EQ(cudaFreeAsync(data, stream_), cudaSuccess);
  EXPECT_TRUE(simulated::in_device_memory(data, 1024));
  std::atomic_ref(*flag).store(1);
  ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  EXPECT_EQ(flag[1], 0x03030303u);
  EXPECT_FALSE(simulated::in_device_memory(data, 1));
  EXPECT_EQ(cudaFreeAsync(data, stream_), cudaErrorInvalidValue);
  ASSERT_EQ(cudaFreeHost(memory), cudaSuccess);
}

// ---- graphs

DS_KERNEL add_one(int* value) { *value += 1; }

TEST_F(Simulator, GraphsReplayWhatWasCaptured) {
  int* value = make<int>(1);
  ASSERT_EQ(cudaMemset(value, 0, 4), cudaSuccess);
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  ASSERT_EQ(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  cudaStreamCaptureStatus status;
  ASSERT_EQ(cudaStreamIsCapturing(stream_, &status), cudaSuccess);
  EXPECT_EQ(status, cudaStreamCaptureStatusActive);
  for (int i = 0; i < 3; ++i) ASSERT_EQ(launch(add_one, 1, 1, 0, stream_, value), cudaSuccess);
  ASSERT_EQ(cudaStreamEndCapture(stream_, &graph), cudaSuccess);
  ASSERT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
  ASSERT_EQ(cudaGraphDestroy(graph), cudaSuccess);
  EXPECT_EQ(read(value, 1)[0], 0);  // nothing has run
  for (int i = 0; i < 5; ++i) ASSERT_EQ(cudaGraphLaunch(exec, stream_), cudaSuccess);
  EXPECT_EQ(read(value, 1)[0], 15);
  ASSERT_EQ(cudaGraphExecDestroy(exec), cudaSuccess);
  EXPECT_EQ(simulated::live().graphs, 0);
}

TEST_F(Simulator, WhatWaitsOrAllocatesBreaksACapture) {
  cudaGraph_t graph;
  void* data = nullptr;
  for (int what = 0; what < 2; ++what) {
    ASSERT_EQ(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    EXPECT_EQ(what == 0 ? cudaStreamSynchronize(stream_) : cudaMalloc(&data, 4),
              cudaErrorStreamCaptureUnsupported);
    EXPECT_EQ(cudaStreamEndCapture(stream_, &graph), cudaErrorStreamCaptureInvalidated);
    EXPECT_EQ(graph, nullptr);
  }
  EXPECT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
}

TEST_F(Simulator, ACaptureKeepsToItsStream) {
  cudaStream_t other;
  cudaEvent_t before, within;
  cudaGraph_t graph;
  ASSERT_EQ(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking), cudaSuccess);
  ASSERT_EQ(cudaEventCreateWithFlags(&before, cudaEventDisableTiming), cudaSuccess);
  ASSERT_EQ(cudaEventCreateWithFlags(&within, cudaEventDisableTiming), cudaSuccess);
  ASSERT_EQ(cudaEventRecord(before, stream_), cudaSuccess);
  ASSERT_EQ(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), cudaSuccess);
  ASSERT_EQ(cudaEventRecord(within, stream_), cudaSuccess);
  EXPECT_EQ(cudaEventQuery(within), cudaErrorCapturedEvent);
  EXPECT_EQ(cudaStreamWaitEvent(stream_, within, 0), cudaSuccess);
  EXPECT_EQ(cudaStreamWaitEvent(stream_, before, 0), cudaErrorStreamCaptureIsolation);
  EXPECT_EQ(cudaStreamEndCapture(stream_, &graph), cudaErrorStreamCaptureInvalidated);
}

// ---- faults

TEST_F(Simulator, FaultsThatAreAskedFor) {
  int count = 0;
  simulated::reset("devices=0");
  EXPECT_EQ(cudaGetDeviceCount(&count), cudaErrorNoDevice);
  simulated::reset("driver=12000");
  EXPECT_EQ(cudaGetDeviceCount(&count), cudaErrorInsufficientDriver);
  EXPECT_EQ(cudaDriverGetVersion(&count), cudaSuccess);
  EXPECT_EQ(count, 12000);
  simulated::reset("fail=cudaMalloc:3");
  void* data;
  EXPECT_EQ(cudaMalloc(&data, 4), cudaSuccess);
  EXPECT_EQ(cudaMalloc(&data, 4), cudaSuccess);
  EXPECT_EQ(cudaMalloc(&data, 4), cudaErrorIllegalAddress);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaErrorIllegalAddress);  // and from now on
  EXPECT_EQ(cudaGetLastError(), cudaErrorIllegalAddress);
  EXPECT_EQ(cudaGetLastError(), cudaErrorIllegalAddress);
}

TEST_F(Simulator, AKernelThatLosesTheDeviceIsFoundBySynchronizing) {
  simulated::reset("fail=kernel:2");
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), cudaSuccess);
  void *data, *host;
  ASSERT_EQ(cudaMalloc(&data, 4), cudaSuccess);
  ASSERT_EQ(cudaMallocHost(&host, 4), cudaSuccess);
  ASSERT_EQ(cudaMemset(data, 0, 4), cudaSuccess);
  ASSERT_EQ(launch(add_one, 1, 1, 0, stream_, static_cast<int*>(data)), cudaSuccess);
  ASSERT_EQ(cudaStreamSynchronize(stream_), cudaSuccess);
  *static_cast<uint32_t*>(host) = 0;
  ASSERT_EQ(launch(add_one, 1, 1, 0, stream_, static_cast<int*>(data)), cudaSuccess);
  EXPECT_EQ(cudaStreamSynchronize(stream_), cudaErrorIllegalAddress);
  EXPECT_EQ(simulated::calls("kernel"), 2);
}

TEST_F(Simulator, ALostDeviceLeavesNobodyWaiting) {
  simulated::reset("fail=cudaMemGetInfo:1");
  ASSERT_EQ(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), cudaSuccess);
  void* flag = nullptr;
  cudaEvent_t event;
  ASSERT_EQ(cudaMallocHost(&flag, 4), cudaSuccess);
  ASSERT_EQ(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), cudaSuccess);
  std::memset(flag, 0, 4);
  ASSERT_EQ(entry("cuStreamWaitValue32")(stream_, reinterpret_cast<CUdeviceptr>(flag), 1, 0), CUDA_SUCCESS);
  ASSERT_EQ(cudaEventRecord(event, stream_), cudaSuccess);
  EXPECT_EQ(cudaEventQuery(event), cudaErrorNotReady);
  size_t free, total;
  EXPECT_EQ(cudaMemGetInfo(&free, &total), cudaErrorIllegalAddress);
  EXPECT_EQ(cudaEventSynchronize(event), cudaErrorIllegalAddress);
  EXPECT_EQ(cudaStreamSynchronize(stream_), cudaErrorIllegalAddress);
}

// ---- products

TEST_F(Simulator, ProductsAsTheBackendAsksForThem) {
  const int64_t out = 24, in = 16, rows = 5;  // W [out][in], X [rows][in], Y [rows][out], all row-major
  std::vector<uint16_t> w(out * in), x(rows * in), bias(out), y(rows * out);
  for (size_t i = 0; i < w.size(); ++i) w[i] = f32_to_bf16(static_cast<float>(i * 3 % 17) / 8 - 1);
  for (size_t i = 0; i < x.size(); ++i) x[i] = f32_to_bf16(static_cast<float>(i * 5 % 13) / 8 - 1);
  for (size_t i = 0; i < bias.size(); ++i) bias[i] = f32_to_bf16(static_cast<float>(i) / 4);
  for (size_t i = 0; i < y.size(); ++i) y[i] = f32_to_bf16(static_cast<float>(i % 7));
  auto *dw = make<uint16_t>(w.size()), *dx = make<uint16_t>(x.size()), *db = make<uint16_t>(bias.size()),
       *dy = make<uint16_t>(y.size());
  ASSERT_EQ(cudaMemcpy(dw, w.data(), w.size() * 2, cudaMemcpyDefault), cudaSuccess);
  ASSERT_EQ(cudaMemcpy(dx, x.data(), x.size() * 2, cudaMemcpyDefault), cudaSuccess);
  ASSERT_EQ(cudaMemcpy(db, bias.data(), bias.size() * 2, cudaMemcpyDefault), cudaSuccess);
  cublasLtHandle_t handle;
  cublasLtMatmulDesc_t desc;
  cublasLtMatrixLayout_t a, b, c;
  cublasLtMatmulPreference_t preference;
  ASSERT_EQ(cublasLtCreate(&handle), CUBLAS_STATUS_SUCCESS);
  ASSERT_EQ(cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), CUBLAS_STATUS_SUCCESS);
  cublasOperation_t transpose = CUBLAS_OP_T;
  cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
  ASSERT_EQ(cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_TRANSA, &transpose, sizeof transpose),
            CUBLAS_STATUS_SUCCESS);
  ASSERT_EQ(cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue),
            CUBLAS_STATUS_SUCCESS);
  ASSERT_EQ(cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &db, sizeof db),
            CUBLAS_STATUS_SUCCESS);
  ASSERT_EQ(cublasLtMatrixLayoutCreate(&a, CUDA_R_16BF, in, out, in), CUBLAS_STATUS_SUCCESS);
  ASSERT_EQ(cublasLtMatrixLayoutCreate(&b, CUDA_R_16BF, in, rows, in), CUBLAS_STATUS_SUCCESS);
  ASSERT_EQ(cublasLtMatrixLayoutCreate(&c, CUDA_R_16BF, out, rows, out), CUBLAS_STATUS_SUCCESS);
  ASSERT_EQ(cublasLtMatmulPreferenceCreate(&preference), CUBLAS_STATUS_SUCCESS);
  size_t workspace_bytes = 1 << 16;
  ASSERT_EQ(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                 &workspace_bytes, sizeof workspace_bytes),
            CUBLAS_STATUS_SUCCESS);
  auto* workspace = make<std::byte>(workspace_bytes);
  cublasLtMatmulHeuristicResult_t results[8];
  int found = 0;
  ASSERT_EQ(cublasLtMatmulAlgoGetHeuristic(handle, desc, a, b, c, c, preference, 8, results, &found),
            CUBLAS_STATUS_SUCCESS);
  ASSERT_EQ(found, 3);  // the fourth takes multiples of 8 only
  EXPECT_NE(std::memcmp(&results[0].algo, &results[1].algo, sizeof results[0].algo), 0);
  const float one = 1;
  for (int i = 0; i < found; ++i) {
    ASSERT_EQ(cudaMemcpy(dy, y.data(), y.size() * 2, cudaMemcpyDefault), cudaSuccess);
    ASSERT_EQ(cublasLtMatmul(handle, desc, &one, dw, a, dx, b, &one, dy, c, dy, c, &results[i].algo,
                             workspace, workspace_bytes, stream_),
              CUBLAS_STATUS_SUCCESS);
    std::vector<uint16_t> got = read(dy, y.size());
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t o = 0; o < out; ++o) {
        float sum = bf16_to_f32(y[r * out + o]) + bf16_to_f32(bias[o]);
        for (int64_t k = 0; k < in; ++k) sum += bf16_to_f32(w[o * in + k]) * bf16_to_f32(x[r * in + k]);
        EXPECT_EQ(got[r * out + o], f32_to_bf16(sum));
      }
  }
  auto product = [&](const uint16_t* from, size_t bytes) {
    return cublasLtMatmul(handle, desc, &one, from, a, dx, b, &one, dy, c, dy, c, &results[2].algo, workspace,
                          bytes, stream_);
  };
  EXPECT_EQ(product(dw, workspace_bytes), CUBLAS_STATUS_SUCCESS);
  EXPECT_EQ(product(w.data(), workspace_bytes), CUBLAS_STATUS_INVALID_VALUE);  // host memory
  EXPECT_EQ(product(dw + 1, workspace_bytes), CUBLAS_STATUS_INVALID_VALUE);    // past its end, not aligned
  EXPECT_EQ(product(dw, 16), CUBLAS_STATUS_INVALID_VALUE);                     // the algorithm needs more
  cublasLtMatrixLayoutDestroy(a);
  cublasLtMatrixLayoutDestroy(b);
  cublasLtMatrixLayoutDestroy(c);
  cublasLtMatmulDescDestroy(desc);
  cublasLtMatmulPreferenceDestroy(preference);
  cublasLtDestroy(handle);
  EXPECT_EQ(simulated::live().handles, 0);
}

}  // namespace
}  // namespace ds::cuda
