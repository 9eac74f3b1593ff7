// The CPU backend: instruction set and threads are found once; the rest is in model.cpp and what it
// names, matmul.cpp, attention.cpp and the kernels.
#include <omp.h>

#include <algorithm>
#include <mutex>
#include <string>

#include "runtime/backends/backends.h"
#include "runtime/backends/cpu/matmul_internal.h"
#include "runtime/backends/cpu/measure_internal.h"
#include "runtime/backends/cpu/memory_internal.h"
#include "runtime/backends/cpu/model_internal.h"
#include "runtime/backends/host/stream_internal.h"
#include "support/brief_team.h"

namespace ds {
namespace cpu {
namespace {

class CpuMemory final : public DeviceMemory {
 public:
  explicit CpuMemory(HostBuffer buffer) : buffer_(std::move(buffer)) {}
  std::byte* data() override { return buffer_.data(); }
  int64_t size() const override { return buffer_.size(); }

 private:
  HostBuffer buffer_;
};

class CpuRange final : public GrowingMemory {
 public:
  explicit CpuRange(HostRange range) : range_(std::move(range)) {}
  std::byte* data() override { return range_.data(); }
  int64_t size() const override { return range_.size(); }
  int64_t committed() const override { return range_.committed(); }

 protected:
  Status commit_range(int64_t offset, int64_t bytes) override { return range_.commit(offset, bytes); }

 private:
  HostRange range_;
};

/// How this machine does products of models in bf16, as a model's own products find it when they are loaded.
std::string describe_products(Isa isa, int threads) {
  const BriefTeam team;
  ThreadScope scope(threads);
  const Math math = choose_math(isa, DType::kBF16);
  const DType active = active_dtype(math);
  auto product =
      Product::make(math, select_kernels(isa, DType::kBF16, active), DType::kBF16, 256, 256, 2, DType::kF32);
  if (!product.ok() || !(*product)->settle().ok()) return "not known";
  return (*product)->way();
}

class CpuBackend final : public Backend {
 public:
  CpuBackend(Isa isa, int threads) : isa_(isa), threads_(threads) {}

  std::string_view name() const override { return "cpu"; }
  std::string description() const override {
    std::call_once(described_, [this] { products_ = describe_products(isa_, threads_); });
    return fmt::format("cpu: {}, {} thread{}, oneDNN {}, products: {}", isa_name(isa_), threads_,
                       threads_ == 1 ? "" : "s", dnnl_version(), products_);
  }
  bool host_visible() const override { return true; }
  Result<std::unique_ptr<DeviceMemory>> allocate(int64_t bytes, MemoryKind) override {
    DS_ASSIGN(HostBuffer buffer, HostBuffer::make(bytes, "buffer"));
    return std::unique_ptr<DeviceMemory>(std::make_unique<CpuMemory>(std::move(buffer)));
  }
  int64_t range_step() const override { return HostRange::kStep; }
  Result<std::unique_ptr<GrowingMemory>> reserve(int64_t bytes) override {
    DS_ASSIGN(HostRange range, HostRange::reserve(bytes));
    return std::unique_ptr<GrowingMemory>(std::make_unique<CpuRange>(std::move(range)));
  }
  Result<std::unique_ptr<Event>> make_event() override {
    return std::unique_ptr<Event>(std::make_unique<host::HostEvent>());
  }
  Result<double> measure_read_bandwidth() override {
    const BriefTeam team;
    return measure_bandwidth(isa_, threads_);
  }

 protected:
  int64_t max_head_dim() const override { return kMaxHeadDim; }
  Result<std::unique_ptr<DeviceModel>> new_model(const Checkpoint& checkpoint,
                                                 const LoadOptions& options) override {
    const BriefTeam team;
    return CpuModel::load(checkpoint, options, isa_, threads_);
  }
  Result<std::unique_ptr<DeviceModel>> new_random_model(const ModelConfig& config, const LoadOptions& options,
                                                        uint64_t seed) override {
    // Its tensors are copied and not kept.
    DS_ASSIGN(Checkpoint checkpoint, Checkpoint::random(config, seed));
    return new_model(checkpoint, options);
  }
  Result<std::unique_ptr<CommandStream>> new_stream(StreamKind kind, int64_t capacity) override {
    return host::HostStream::make(kind, capacity, threads_);
  }
  Result<double> time_matmul_flops(DType dtype) override {
    const BriefTeam team;
    return measure_flops(isa_, dtype, threads_);
  }

 private:
  Isa isa_;
  int threads_;
  mutable std::once_flag described_;
  mutable std::string products_;
};

}  // namespace

std::string_view isa_name(Isa isa) {
  switch (isa) {
    case Isa::kGeneric:
      return "no vector extension";
    case Isa::kAvx2:
      return "AVX2";
    case Isa::kAvx512:
      return "AVX-512";
    case Isa::kAvx512Bf16:
      return "AVX-512 with bf16";
  }
  return "?";
}

Isa detect_isa() {
#ifdef __x86_64__
  __builtin_cpu_init();
  auto allowed = [](dnnl::cpu_isa isa) {  // each value holds the bits of those it includes
    auto bits = static_cast<unsigned>(isa);
    return (static_cast<unsigned>(dnnl::get_effective_cpu_isa()) & bits) == bits;
  };
  bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                allowed(dnnl::cpu_isa::avx512_core);
  if (avx512 && __builtin_cpu_supports("avx512bf16") && allowed(dnnl::cpu_isa::avx512_core_bf16))
    return Isa::kAvx512Bf16;
  if (avx512) return Isa::kAvx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && allowed(dnnl::cpu_isa::avx2))
    return Isa::kAvx2;
#endif
  return Isa::kGeneric;
}

Kernels select_kernels(Isa isa, DType hidden, DType active) {
  bool f32 = hidden == DType::kF32;
#ifdef __x86_64__
  if (active == DType::kBF16) return kAvx512NativeBf16;
  if (isa == Isa::kAvx512 || isa == Isa::kAvx512Bf16) return f32 ? kAvx512F32 : kAvx512Bf16;
  if (isa == Isa::kAvx2) return f32 ? kAvx2F32 : kAvx2Bf16;
#else
  (void)isa, (void)active;
#endif
  return f32 ? kGenericF32 : kGenericBf16;
}

}  // namespace cpu

Result<std::unique_ptr<Backend>> make_cpu_backend(const CpuOptions& options) {
  if (options.threads < 0 || options.threads > 1024)
    return error(Code::kInvalidArgument, "cpu backend with {} threads; expected 0 (all) to 1024",
                 options.threads);
  // oneDNN shares its work out before it knows how many threads there are: where OpenMP gives fewer than
  // asked for, a part of every product would be missing. So no more are asked for than its limit
  // (OMP_THREAD_LIMIT) allows.
  const int threads =
      std::min(options.threads > 0 ? options.threads : cpu::usable_cores(), omp_get_thread_limit());
  return std::unique_ptr<Backend>(std::make_unique<cpu::CpuBackend>(cpu::detect_isa(), threads));
}

}  // namespace ds
