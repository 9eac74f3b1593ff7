// Kernels on the simulated device: what CUDA C++ has of its own, for a C++ compiler. The threads of a block
// are fibers of one thread of the CPU; one runs until it meets others (a barrier, a shuffle, ...), and who
// runs next is drawn from a seed, so that an order that only happened to work does not pass for one that is
// right. Threads that should meet and do not are a fault: the program ends and says where.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>
#include <math.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>
#include <type_traits>

#define DS_KERNEL void
#define DS_DEVICE inline
#define DS_THREADS(count)
#define DS_SHARED static thread_local __attribute__((aligned(16)))
#define DS_DYNAMIC_SHARED(name) std::byte* name = ::ds::cuda::simulated::dynamic_shared()

// Those of the thread that is running.
extern constinit thread_local uint3 threadIdx, blockIdx;
extern constinit thread_local dim3 blockDim, gridDim;

namespace ds::cuda::simulated {

/// Where in a kernel's source a thread waits for others.
struct Place {
  const char* function = __builtin_FUNCTION();
  int line = __builtin_LINE();
};

constexpr int kWarp = 32;
constexpr uint32_t kWholeWarp = 0xffffffffu;

int lane();                   // of the running thread in its warp
std::byte* dynamic_shared();  // of the running block; filled with 0xff when the block starts
void barrier(const Place& place);

/// What the lanes of a warp do together: arguments[i] is that of lane i, null for a lane that is not in the
/// mask.
using WarpStep = void (*)(void* const* arguments);
/// Waits for all lanes of `mask`, of whom the last to come runs `step`. It is a fault if one of them has left
/// the kernel, or meets for anything else.
void meet(const char* what, uint32_t mask, void* argument, WarpStep step, const Place& place);

[[noreturn]] void fault(const char* message);  // names kernel, block and thread
inline void check_aligned(const void* address, size_t alignment, const char* what) {
  if (reinterpret_cast<uintptr_t>(address) % alignment != 0) fault(what);
}

cudaError_t enqueue_kernel(const void* kernel, const char* launch_text, dim3 grid, dim3 block,
                           size_t shared_bytes, cudaStream_t stream, std::function<void()> thread);

template <typename... Params, typename... Args>
cudaError_t launch_kernel(const char* text, void (*kernel)(Params...), dim3 grid, dim3 block,
                          size_t shared_bytes, cudaStream_t stream, Args... args) {
  return enqueue_kernel(
      reinterpret_cast<const void*>(kernel), text, grid, block, shared_bytes, stream,
      [kernel, params = std::tuple<Params...>(static_cast<Params>(args)...)] { std::apply(kernel, params); });
}

struct Shuffle {
  uint64_t value = 0, found = 0;
  int from = 0;
};
void shuffle(uint32_t mask, Shuffle& mine, const Place& place);
uint32_t ballot(uint32_t mask, bool vote, const Place& place);

template <typename T>
T shuffle_value(uint32_t mask, T value, int from, const Place& place) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(uint64_t));
  Shuffle mine{.from = from};
  std::memcpy(&mine.value, &value, sizeof(T));
  shuffle(mask, mine, place);
  std::memcpy(&value, &mine.found, sizeof(T));
  return value;
}

void mma_16x8x16(float* d, const uint32_t* a, const uint32_t* b, const Place& place);
void load_matrices(uint32_t* r, const void* row, bool transposed, const Place& place);
void copy_async_16(void* shared, const void* global, bool valid);
void copy_async_commit();
void copy_async_wait(int pending);

}  // namespace ds::cuda::simulated

// ---- CUDA's names

inline void __syncthreads(const ds::cuda::simulated::Place& place = {}) {
  ds::cuda::simulated::barrier(place);
}
inline void __syncwarp(uint32_t mask = ds::cuda::simulated::kWholeWarp,
                       const ds::cuda::simulated::Place& place = {}) {
  ds::cuda::simulated::meet(
      "__syncwarp", mask, nullptr, [](void* const*) {}, place);
}
template <typename T>
T __shfl_sync(uint32_t mask, T value, int from, int width = 32,
              const ds::cuda::simulated::Place& place = {}) {
  int first = ds::cuda::simulated::lane() & ~(width - 1);
  return ds::cuda::simulated::shuffle_value(mask, value, first + (from & (width - 1)), place);
}
template <typename T>
T __shfl_xor_sync(uint32_t mask, T value, int with, int width = 32,
                  const ds::cuda::simulated::Place& place = {}) {
  int lane = ds::cuda::simulated::lane(), from = lane ^ with;
  if (from >= (lane & ~(width - 1)) + width) from = lane;
  return ds::cuda::simulated::shuffle_value(mask, value, from, place);
}
template <typename T>
T __shfl_up_sync(uint32_t mask, T value, unsigned delta, int width = 32,
                 const ds::cuda::simulated::Place& place = {}) {
  int lane = ds::cuda::simulated::lane(), from = lane - static_cast<int>(delta);
  if (from < (lane & ~(width - 1))) from = lane;
  return ds::cuda::simulated::shuffle_value(mask, value, from, place);
}
template <typename T>
T __shfl_down_sync(uint32_t mask, T value, unsigned delta, int width = 32,
                   const ds::cuda::simulated::Place& place = {}) {
  int lane = ds::cuda::simulated::lane(), from = lane + static_cast<int>(delta);
  if (from >= (lane & ~(width - 1)) + width) from = lane;
  return ds::cuda::simulated::shuffle_value(mask, value, from, place);
}
inline uint32_t __ballot_sync(uint32_t mask, int vote, const ds::cuda::simulated::Place& place = {}) {
  return ds::cuda::simulated::ballot(mask, vote != 0, place);
}
inline int __any_sync(uint32_t mask, int vote, const ds::cuda::simulated::Place& place = {}) {
  return ds::cuda::simulated::ballot(mask, vote != 0, place) != 0;
}
inline int __all_sync(uint32_t mask, int vote, const ds::cuda::simulated::Place& place = {}) {
  return ds::cuda::simulated::ballot(mask, vote != 0, place) == mask;
}
inline void __threadfence() { std::atomic_thread_fence(std::memory_order_seq_cst); }
inline void __threadfence_block() { std::atomic_thread_fence(std::memory_order_seq_cst); }

template <typename T>
T __ldg(const T* p) {
  return *p;
}
template <typename T>
T __ldcs(const T* p) {
  return *p;
}
template <typename T>
T __ldcg(const T* p) {
  return *p;
}
template <typename T>
void __stcs(T* p, T value) {
  *p = value;
}
template <typename T>
void __stcg(T* p, T value) {
  *p = value;
}

template <typename T, typename F>
T ds_simulated_atomic(T* p, F f) {  // kernels of other streams run beside this one
  std::atomic_ref<T> at(*p);
  T before = at.load();
  while (!at.compare_exchange_weak(before, f(before))) {
  }
  return before;
}
template <typename T>
T atomicAdd(T* p, std::type_identity_t<T> value) {
  return ds_simulated_atomic(p, [value](T before) { return static_cast<T>(before + value); });
}
template <typename T>
T atomicMax(T* p, std::type_identity_t<T> value) {
  return ds_simulated_atomic(p, [value](T before) { return std::max(before, value); });
}
template <typename T>
T atomicMin(T* p, std::type_identity_t<T> value) {
  return ds_simulated_atomic(p, [value](T before) { return std::min(before, value); });
}
template <typename T>
T atomicExch(T* p, std::type_identity_t<T> value) {
  return ds_simulated_atomic(p, [value](T) { return value; });
}
template <typename T>
T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  return ds_simulated_atomic(p, [=](T before) { return before == expected ? value : before; });
}

inline void sincospif(float turns, float* s, float* c) {
  *s = static_cast<float>(sin(turns * 3.141592653589793));
  *c = static_cast<float>(cos(turns * 3.141592653589793));
}
inline float rsqrtf(float v) { return 1.0f / sqrtf(v); }
inline float __fadd_rn(float a, float b) { return a + b; }  // compiled without contraction
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdividef(float a, float b) { return a / b; }
inline uint32_t __float_as_uint(float v) { return std::bit_cast<uint32_t>(v); }
inline float __uint_as_float(uint32_t v) { return std::bit_cast<float>(v); }
inline int32_t __float_as_int(float v) { return std::bit_cast<int32_t>(v); }
inline float __int_as_float(int32_t v) { return std::bit_cast<float>(v); }
inline int __popc(uint32_t v) { return std::popcount(v); }
inline int __clz(int32_t v) { return std::countl_zero(static_cast<uint32_t>(v)); }
inline int __ffs(int32_t v) { return v == 0 ? 0 : std::countr_zero(static_cast<uint32_t>(v)) + 1; }

// The text of the call names the kernel in messages.
#define launch(...) simulated::launch_kernel(#__VA_ARGS__, __VA_ARGS__)

namespace ds::cuda {

using std::max;
using std::min;

/// 2^v; relative error below 2^-22.
inline float exp2_approx(float v) { return exp2f(v); }

inline uint4 load_16(const void* p) {
  simulated::check_aligned(p, 16, "load_16 of what is not 16-byte aligned");
  return *static_cast<const uint4*>(p);
}
inline void store_16(void* p, uint4 v) {
  simulated::check_aligned(p, 16, "store_16 to what is not 16-byte aligned");
  *static_cast<uint4*>(p) = v;
}

inline void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                        const simulated::Place& place = {}) {
  simulated::mma_16x8x16(d, a, b, place);
}
inline void ldmatrix(uint32_t (&r)[4], const void* row, const simulated::Place& place = {}) {
  simulated::load_matrices(r, row, false, place);
}
inline void ldmatrix_transposed(uint32_t (&r)[4], const void* row, const simulated::Place& place = {}) {
  simulated::load_matrices(r, row, true, place);
}
inline void copy_async_16(void* shared, const void* global, bool valid) {
  simulated::copy_async_16(shared, global, valid);
}
inline void copy_async_commit() { simulated::copy_async_commit(); }
template <int kPending>
void copy_async_wait() {
  simulated::copy_async_wait(kPending);
}

}  // namespace ds::cuda
