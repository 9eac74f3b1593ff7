#include "runtime/backends/cuda/memory_internal.h"

#include <algorithm>
#include <cstring>

#include "support/units.h"

namespace ds::cuda {

// ---- of the device

DeviceBuffer::DeviceBuffer(DeviceBuffer&& other) noexcept
    : device_(std::move(other.device_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

DeviceBuffer& DeviceBuffer::operator=(DeviceBuffer&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

DeviceBuffer::~DeviceBuffer() {
  if (data_ == nullptr) return;
  device_->use();
  (void)cudaDeviceSynchronize();  // whoever still uses it, on whatever stream
  (void)cudaFree(data_);
}

Result<DeviceBuffer> DeviceBuffer::make(std::shared_ptr<Device> device, int64_t bytes,
                                        std::string_view what) {
  if (bytes < 0) return error(Code::kInvalidArgument, "{}: a size of {} bytes", what, bytes);
  DeviceBuffer buffer;
  if (bytes == 0) return buffer;
  DS_TRY(device->check_memory(bytes + kSlack, what));
  const auto size = static_cast<size_t>(bytes + kSlack);
  void* data = nullptr;
  if (cudaError_t raised = cudaMalloc(&data, size); raised != cudaSuccess) {
    if (raised != cudaErrorMemoryAllocation)
      return failure(raised, fmt::format("cudaMalloc of {} for {}", format_bytes(bytes), what));
    (void)cudaGetLastError();
    return device->exhausted(bytes + kSlack, what);
  }
  buffer.device_ = std::move(device);
  buffer.data_ = static_cast<std::byte*>(data);
  buffer.size_ = bytes;
  DS_TRY(check(cudaMemset(data, 0, size), "cudaMemset of {} for {}", format_bytes(bytes), what));
  // It may return before it has run, and streams of ours do not wait for it.
  DS_TRY(check(cudaStreamSynchronize(nullptr), "cudaMemset of {} for {}", format_bytes(bytes), what));
  return buffer;
}

// ---- of the host

PinnedBuffer::PinnedBuffer(PinnedBuffer&& other) noexcept
    : device_(std::move(other.device_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

PinnedBuffer& PinnedBuffer::operator=(PinnedBuffer&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

PinnedBuffer::~PinnedBuffer() {
  if (data_ == nullptr) return;
  device_->use();
  device_->pinned().remove(data_);
  (void)cudaDeviceSynchronize();
  (void)cudaFreeHost(data_);
}

Result<PinnedBuffer> PinnedBuffer::make(std::shared_ptr<Device> device, int64_t bytes,
                                        std::string_view what) {
  if (bytes < 0) return error(Code::kInvalidArgument, "{}: a size of {} bytes", what, bytes);
  PinnedBuffer buffer;
  if (bytes == 0) return buffer;
  device->use();
  void* data = nullptr;
  if (cudaError_t raised =
          cudaHostAlloc(&data, static_cast<size_t>(bytes), cudaHostAllocPortable | cudaHostAllocMapped);
      raised != cudaSuccess) {
    if (raised != cudaErrorMemoryAllocation)
      return failure(raised, fmt::format("cudaHostAlloc of {} for {}", format_bytes(bytes), what));
    (void)cudaGetLastError();
    return error(
        Code::kDeviceMemory,
        "{}: needs {} of pinned host memory, no more are available; see the limits of this machine and "
        "of locked memory (ulimit -l)",
        what, format_bytes(bytes));
  }
  std::memset(data, 0, static_cast<size_t>(bytes));
  buffer.device_ = std::move(device);
  buffer.data_ = static_cast<std::byte*>(data);
  buffer.size_ = bytes;
  buffer.device_->pinned().add(buffer.data_, bytes);
  return buffer;
}

// ---- staging

Result<StagingArena> StagingArena::make(std::shared_ptr<Device> device, int64_t bytes) {
  StagingArena arena;
  DS_ASSIGN(PinnedBuffer first, PinnedBuffer::make(device, bytes, "a stream's staging memory"));
  arena.device_ = std::move(device);
  arena.chunks_.push_back(std::move(first));
  return arena;
}

std::byte* StagingArena::take(int64_t bytes) {
  bytes = (bytes + 63) / 64 * 64;
  while (used_ + bytes > chunks_[chunk_].size()) {
    if (++chunk_ == chunks_.size()) {
      auto more = PinnedBuffer::make(device_, std::max(bytes, 2 * chunks_.back().size()),
                                     "a stream's staging memory");
      if (!more.ok()) {
        --chunk_;
        return nullptr;
      }
      chunks_.push_back(std::move(*more));
    }
    used_ = 0;
  }
  return chunks_[chunk_].data() + std::exchange(used_, used_ + bytes);
}

void StagingArena::reset() {
  chunk_ = 0;
  used_ = 0;
}

// ---- as the interface has it

namespace {

template <typename Buffer>
class CudaMemory final : public DeviceMemory {
 public:
  explicit CudaMemory(Buffer buffer) : buffer_(std::move(buffer)) {}
  std::byte* data() override { return buffer_.data(); }
  int64_t size() const override { return buffer_.size(); }

 private:
  Buffer buffer_;
};

}  // namespace

Result<std::unique_ptr<DeviceMemory>> allocate(std::shared_ptr<Device> device, int64_t bytes,
                                               MemoryKind kind) {
  if (kind == MemoryKind::kHost) {
    DS_ASSIGN(PinnedBuffer buffer, PinnedBuffer::make(std::move(device), bytes, "buffer"));
    return std::unique_ptr<DeviceMemory>(std::make_unique<CudaMemory<PinnedBuffer>>(std::move(buffer)));
  }
  DS_ASSIGN(DeviceBuffer buffer, DeviceBuffer::make(std::move(device), bytes, "buffer"));
  return std::unique_ptr<DeviceMemory>(std::make_unique<CudaMemory<DeviceBuffer>>(std::move(buffer)));
}

}  // namespace ds::cuda
