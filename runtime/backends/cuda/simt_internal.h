// What kernels are written in: CUDA C++ with a few names of our own, so that the same source also runs on the
// simulated device (simulated/), thread by thread on the CPU. Included by .cu files only.
//
// Kernels use threadIdx, blockIdx, blockDim, gridDim, __syncthreads(), __syncwarp(), __shfl_*_sync(),
// __ballot_sync(), and of shared memory DS_SHARED and DS_DYNAMIC_SHARED. They are started with launch().
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#ifdef DS_SIMULATED_CUDA
#include "runtime/backends/cuda/simulated/simt.h"
#else

#include <map>
#include <mutex>
#include <utility>

#define DS_KERNEL __global__ void
#define DS_DEVICE __device__ __forceinline__
/// Most threads of a block of a kernel: DS_KERNEL DS_THREADS(256) name(...)
#define DS_THREADS(count) __launch_bounds__(count)
/// Shared memory of a fixed size, 16-byte aligned.
#define DS_SHARED __shared__ __align__(16)
/// std::byte* name: the dynamic shared memory, 16-byte aligned.
#define DS_DYNAMIC_SHARED(name)                              \
  extern __shared__ __align__(16) uint4 ds_dynamic_shared[]; \
  std::byte* name = reinterpret_cast<std::byte*>(ds_dynamic_shared)

namespace ds::cuda {

/// More than 48 KiB of shared memory for a kernel: asked for once, not at each launch.
inline cudaError_t grant_shared(const void* kernel, size_t bytes) {
  static std::mutex mutex;
  static std::map<std::pair<int, const void*>, size_t> granted;
  int device = 0;
  if (cudaError_t raised = cudaGetDevice(&device); raised != cudaSuccess) return raised;
  std::lock_guard lock(mutex);
  size_t& most = granted[{device, kernel}];
  if (bytes <= most) return cudaSuccess;
  cudaError_t raised =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (raised == cudaSuccess) most = bytes;
  return raised;
}

/// kernel<<<grid, block, shared_bytes, stream>>>(args...); more than 48 KiB of shared memory are asked for.
template <typename... Params, typename... Args>
cudaError_t launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                   Args... args) {
  if (shared_bytes > (48 << 10))
    if (cudaError_t raised = grant_shared(reinterpret_cast<const void*>(kernel), shared_bytes);
        raised != cudaSuccess)
      return raised;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
}

/// 2^v; relative error below 2^-22, 0 where it would be subnormal.
DS_DEVICE float exp2_approx(float v) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(v));
  return result;
}

/// 16 bytes of global memory, 16-byte aligned, in one access whatever the compiler thinks of the pointer. Not
/// for what the same thread has written otherwise than by store_16().
DS_DEVICE uint4 load_16(const void* p) {
  uint4 v;
  asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(__cvta_generic_to_global(p)));
  return v;
}
DS_DEVICE void store_16(void* p, uint4 v) {
  asm volatile("st.global.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(__cvta_generic_to_global(p)), "r"(v.x), "r"(v.y),
               "r"(v.z), "r"(v.w)
               : "memory");
}

/// d += a * b of one warp: a 16 x 16 and b 16 x 8 of bf16, d 16 x 8 of f32, laid out as PTX's
/// mma.sync.aligned.m16n8k16.row.col says.
DS_DEVICE void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// Four 8 x 8 matrices of 16-bit elements from shared memory (ldmatrix.x4); thread i names row i % 8 of
/// matrix i / 8. `ldmatrix_transposed`: each matrix transposed.
DS_DEVICE void ldmatrix(uint32_t (&r)[4], const void* row) {
  auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
DS_DEVICE void ldmatrix_transposed(uint32_t (&r)[4], const void* row) {
  auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

/// 16 bytes from global to shared memory, in the background; both 16-byte aligned. Nothing is read, and zeros
/// are written, where `valid` is false.
DS_DEVICE void copy_async_16(void* shared, const void* global, bool valid) {
  auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
}
DS_DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Until at most `kPending` of this thread's committed groups are under way.
template <int kPending>
DS_DEVICE void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace ds::cuda
#endif

/// In front of a loop that must be unrolled, so that what it indexes stays in registers; or by a number.
#ifdef __CUDACC__
#define DS_PRAGMA(text) _Pragma(#text)
#define DS_UNROLL DS_PRAGMA(unroll)
#define DS_UNROLL_BY(count) DS_PRAGMA(unroll count)
#else
#define DS_UNROLL
#define DS_UNROLL_BY(count)
#endif

namespace ds::cuda {

/// Sum of what the 32 threads of a warp hold, to all of them, in an order that does not change.
DS_DEVICE float warp_sum(float v) {
  for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(0xffffffffu, v, offset);
  return v;
}
DS_DEVICE float warp_max(float v) {
  for (int offset = 16; offset > 0; offset /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, offset));
  return v;
}

}  // namespace ds::cuda
