#include <algorithm>
#include <chrono>
#include <cstring>

#include "runtime/backends/cpu/matmul_internal.h"
#include "runtime/backends/cpu/measure_internal.h"
#include "runtime/backends/cpu/memory_internal.h"

namespace ds::cpu {
namespace {

using Clock = std::chrono::steady_clock;

}  // namespace

Result<double> measure_flops(Isa isa, DType dtype, int threads) {
  constexpr int64_t kRows = 512, kIn = 2048, kOut = 8192;
  ThreadScope scope(threads);
  Math math = choose_math(isa, dtype);
  DType active = active_dtype(math);
  DS_ASSIGN(auto product,
            Product::make(math, select_kernels(isa, dtype, active), dtype, kIn, kOut, kRows, active));
  // Ordinary numbers: on zeros some machines run faster than they ever do.
  auto fill = [](HostBuffer& buffer, int64_t count, DType type) {
    uint32_t state = 1;
    for (int64_t i = 0; i < count; ++i) {
      state = state * 1664525u + 1013904223u;
      float value = static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f;
      uint16_t half = f32_to_bf16(value);
      if (type == DType::kF32)
        std::memcpy(buffer.data() + i * 4, &value, 4);
      else
        std::memcpy(buffer.data() + i * 2, &half, 2);
    }
  };
  DS_ASSIGN(HostBuffer w, HostBuffer::make(kIn * kOut * dtype_size(dtype), "matrix product"));
  DS_ASSIGN(HostBuffer x, HostBuffer::make(kRows * kIn * dtype_size(active), "matrix product"));
  DS_ASSIGN(HostBuffer y, HostBuffer::make(kRows * kOut * dtype_size(active), "matrix product"));
  fill(w, kIn * kOut, dtype);
  fill(x, kRows * kIn, active);
  PackedWeights::Part part{w.data(), dtype, kOut};
  DS_ASSIGN(HostBuffer block, HostBuffer::make(product->packed_bytes(), "matrix product"));
  HostBuffer joined;
  DS_TRY(PackedWeights::pack(*product, {&part, 1}, joined, block.data()));
  const PackedWeights packed = PackedWeights::view(block.data());
  DS_TRY(product->settle(packed));
  DS_ASSIGN(HostBuffer scratch, HostBuffer::make(product->scratch_bytes(), "matrix product"));
  ProductRunner runner(product);
  double best = 0;
  auto begin = Clock::now();
  for (int i = 0; i < 4 || Clock::now() - begin < std::chrono::milliseconds(400); ++i) {
    auto start = Clock::now();
    DS_TRY(runner.run(packed, kRows, x.data(), y.data(), scratch.data()));
    double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    best = std::max(best, 2.0 * kRows * kIn * kOut / seconds);
  }
  return best;
}

Result<double> measure_bandwidth(Isa isa, int threads) {
  // Far larger than any last-level cache, but not all of a small machine's memory.
  constexpr int64_t kMost = int64_t{1} << 30, kPiece = int64_t{1} << 20;
  int64_t pieces = std::max<int64_t>(std::min(kMost, available_memory() / 2) / kPiece, 1);
  DS_ASSIGN(HostBuffer buffer, HostBuffer::make(pieces * kPiece, "buffer to read"));
  Kernels kernels = select_kernels(isa, DType::kF32, DType::kF32);
  double best = 0;
  volatile uint32_t seen = 0;  // so that reading cannot be left out
  auto begin = Clock::now();
  for (int i = 0; i < 4 || Clock::now() - begin < std::chrono::milliseconds(400); ++i) {
    auto start = Clock::now();
    uint32_t sum = 0;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(^ : sum)
    for (int64_t p = 0; p < pieces; ++p) sum ^= kernels.read(buffer.data() + p * kPiece, kPiece);
    seen = sum;
    double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    best = std::max(best, static_cast<double>(pieces * kPiece) / seconds);
  }
  (void)seen;
  return best;
}

}  // namespace ds::cpu
