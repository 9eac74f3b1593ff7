// The CUDA backend: the device is found once; the rest is in device.cpp, memory.cpp, stream.cpp, matmul.cpp,
// weights.cpp, workspace.cpp, model.cpp with what stands beside it, and the kernels.
#include <algorithm>
#include <cmath>

#include "runtime/backends/cuda/backend_internal.h"
#include "runtime/backends/cuda/device_internal.h"
#include "runtime/backends/cuda/model_internal.h"

namespace ds::cuda {
namespace {

#ifdef DS_SIMULATED_CUDA
constexpr const char* kKind = "simulated on the CPU, for tests only: ";
#else
constexpr const char* kKind = "";
#endif

constexpr int kSamples = 5;  // medians of so many

/// Median seconds of what `work` enqueues on the stream that it is given.
template <typename F>
Result<double> median_seconds(F work) {
  struct Timed {
    cudaStream_t stream = nullptr;
    cudaEvent_t begin = nullptr, end = nullptr;
    ~Timed() {
      if (stream != nullptr) (void)cudaStreamSynchronize(stream);  // memory that it uses goes next
      if (begin != nullptr) (void)cudaEventDestroy(begin);
      if (end != nullptr) (void)cudaEventDestroy(end);
      if (stream != nullptr) (void)cudaStreamDestroy(stream);
    }
  } t;
  DS_TRY(check(cudaStreamCreateWithFlags(&t.stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags"));
  DS_TRY(check(cudaEventCreateWithFlags(&t.begin, cudaEventDefault), "cudaEventCreateWithFlags"));
  DS_TRY(check(cudaEventCreateWithFlags(&t.end, cudaEventDefault), "cudaEventCreateWithFlags"));
  float samples[kSamples];
  for (int i = -1; i < kSamples; ++i) {  // the first only warms up
    DS_TRY(check(cudaEventRecord(t.begin, t.stream), "cudaEventRecord"));
    DS_TRY(work(t.stream));
    DS_TRY(check(cudaEventRecord(t.end, t.stream), "cudaEventRecord"));
    DS_TRY(check(cudaEventSynchronize(t.end), "cudaEventSynchronize of a measurement"));
    if (i >= 0) DS_TRY(check(cudaEventElapsedTime(&samples[i], t.begin, t.end), "cudaEventElapsedTime"));
  }
  std::nth_element(samples, samples + kSamples / 2, samples + kSamples);
  return std::max(static_cast<double>(samples[kSamples / 2]) * 1e-3, 1e-9);
}

/// One product of n x n matrices.
Result<double> product_seconds(const std::shared_ptr<Device>& device, DType dtype, int64_t n) {
  const int64_t element = dtype_size(dtype);
  DS_ASSIGN(DeviceBuffer buffer,
            DeviceBuffer::make(device, 3 * n * n * element + kProductWorkspace, "matrices to multiply"));
  std::byte *w = buffer.data(), *x = w + n * n * element, *y = x + n * n * element,
            *workspace = y + n * n * element;
  // On zeros it would run faster than it ever does.
  DS_TRY(check(fill_random(nullptr, dtype, w, 2 * n * n, 1, 1.0f), "fill_random of {} numbers", 2 * n * n));
  DS_TRY(check(cudaStreamSynchronize(nullptr), "fill_random of {} numbers", 2 * n * n));
  DS_ASSIGN(std::unique_ptr<Product> product,
            Product::make_single(device, {.in = n, .out = n, .dtype = dtype, .out_dtype = dtype}, n));
  return median_seconds([&](cudaStream_t stream) { return product->run(stream, w, x, y, n, workspace); });
}

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(std::shared_ptr<Device> device) : device_(std::move(device)) {}

  std::string_view name() const override { return "cuda"; }
  std::string description() const override {
    const DeviceInfo& i = device_->info();
    const std::string attention = library_attention_version();
    return fmt::format("cuda: {}{}, {}, CUDA runtime {}, driver {}, cuBLASLt {}.{}.{}{}", kKind, i.name,
                       i.sm(), version_text(i.runtime), version_text(i.driver), i.cublas_lt / 10000,
                       i.cublas_lt / 100 % 100, i.cublas_lt % 100,
                       attention.empty() ? ", without cuDNN" : ", " + attention);
  }
  bool host_visible() const override { return false; }
  Result<std::unique_ptr<DeviceMemory>> allocate(int64_t bytes, MemoryKind kind) override {
    return cuda::allocate(device_, bytes, kind);
  }
  int64_t range_step() const override { return device_->virtual_memory().granule(); }
  Result<std::unique_ptr<GrowingMemory>> reserve(int64_t bytes) override {
    return range_step() > 0 ? cuda::reserve(device_, bytes) : Backend::reserve(bytes);
  }
  Result<std::unique_ptr<Event>> make_event() override {
    DS_ASSIGN(std::unique_ptr<CudaEvent> event, CudaEvent::make(device_));
    return std::unique_ptr<Event>(std::move(event));
  }
  Result<double> measure_read_bandwidth() override;

 protected:
  int64_t max_head_dim() const override { return kMaxHeadDim; }
  Result<std::unique_ptr<DeviceModel>> new_model(const Checkpoint& checkpoint,
                                                 const LoadOptions& options) override {
    return CudaModel::load(device_, checkpoint, options);
  }
  Result<std::unique_ptr<DeviceModel>> new_random_model(const ModelConfig& config, const LoadOptions& options,
                                                        uint64_t seed) override {
    return CudaModel::load_random(device_, config, options, seed);
  }
  Result<std::unique_ptr<CommandStream>> new_stream(StreamKind kind, int64_t capacity) override {
    // Transfers over networks and from files are host code; the device takes no core from them.
    if (kind == StreamKind::kLink) return host::HostStream::make(kind, capacity, 0);
    DS_ASSIGN(std::unique_ptr<CudaStream> stream, CudaStream::make(device_, kind, capacity));
    return std::unique_ptr<CommandStream>(std::move(stream));
  }
  Result<double> time_matmul_flops(DType dtype) override;

 private:
  std::shared_ptr<Device> device_;
};

Result<double> CudaBackend::time_matmul_flops(DType dtype) {
  device_->use();
  // As large as a device needs to reach its rate, and as the memory has room for.
  constexpr int64_t kLeast = 256, kMost = 8192;
  constexpr double kLongEnough = 1e-3;
  for (int64_t n = kLeast;; n *= 2) {
    DS_ASSIGN(double seconds, product_seconds(device_, dtype, n));
    const int64_t next = 3 * 4 * n * n * dtype_size(dtype) + kProductWorkspace + kSlack;
    DS_ASSIGN(Device::Memory memory, device_->memory());
    if (n >= kMost || seconds > kLongEnough || next > memory.free / 2)
      return 2.0 * static_cast<double>(n) * static_cast<double>(n) * static_cast<double>(n) / seconds;
  }
}

Result<double> CudaBackend::measure_read_bandwidth() {
  device_->use();
  // Far larger than any cache, or a quarter of a small memory.
  constexpr int64_t kMost = int64_t{1} << 30, kLeast = int64_t{1} << 20;
  constexpr double kLongEnough = 1e-3;
  DS_ASSIGN(Device::Memory memory, device_->memory());
  const int64_t most = std::max(std::min(kMost, memory.free / 4) / kLeast * kLeast, kLeast);
  DS_ASSIGN(DeviceBuffer buffer, DeviceBuffer::make(device_, most + 256, "buffer to read"));
  auto* sum = reinterpret_cast<uint32_t*>(buffer.data() + most);
  for (int64_t bytes = kLeast;; bytes = std::min(4 * bytes, most)) {
    DS_ASSIGN(double seconds, median_seconds([&](cudaStream_t stream) {
                return check(read_all(stream, buffer.data(), bytes, sum), "read_all of {} bytes", bytes);
              }));
    if (bytes == most || seconds > kLongEnough) return static_cast<double>(bytes) / seconds;
  }
}

}  // namespace

Result<std::unique_ptr<Backend>> make_backend(const CudaOptions& options) {
  DS_ASSIGN(std::shared_ptr<Device> device, Device::open(options));
  return std::unique_ptr<Backend>(std::make_unique<CudaBackend>(std::move(device)));
}

}  // namespace ds::cuda
