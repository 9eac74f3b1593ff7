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
  device_->releases().free(data_);
}

Result<DeviceBuffer> DeviceBuffer::make(std::shared_ptr<Device> device, int64_t bytes,
                                        std::string_view what) {
  if (bytes < 0) return error(Code::kInvalidArgument, "{}: a size of {} bytes", what, bytes);
  DeviceBuffer buffer;
  if (bytes == 0) return buffer;
  DS_TRY(device->check_memory(bytes + kSlack, what));
  const auto size = static_cast<size_t>(bytes + kSlack);
  void* data = nullptr;
  if (cudaError_t raised = device->releases().allocate(&data, size); raised != cudaSuccess) {
    if (raised != cudaErrorMemoryAllocation)
      return failure(raised, fmt::format("allocation of {} for {}", format_bytes(bytes), what));
    (void)cudaGetLastError();
    return device->exhausted(bytes + kSlack, what);
  }
  buffer.device_ = std::move(device);
  buffer.data_ = static_cast<std::byte*>(data);
  buffer.size_ = bytes;
  return buffer;
}

// ---- of the host

PinnedBuffer::PinnedBuffer(PinnedBuffer&& other) noexcept
    : device_(std::move(other.device_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      block_(std::exchange(other.block_, 0)) {}

PinnedBuffer& PinnedBuffer::operator=(PinnedBuffer&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(block_, other.block_);
  return *this;
}

PinnedBuffer::~PinnedBuffer() {
  if (data_ == nullptr) return;
  device_->use();
  device_->pinned().remove(data_);
  device_->releases().free_pinned(data_, block_);
}

Result<PinnedBuffer> PinnedBuffer::make(std::shared_ptr<Device> device, int64_t bytes,
                                        std::string_view what) {
  if (bytes < 0) return error(Code::kInvalidArgument, "{}: a size of {} bytes", what, bytes);
  PinnedBuffer buffer;
  if (bytes == 0) return buffer;
  device->use();
  void* data = nullptr;
  if (cudaError_t raised =
          device->releases().allocate_pinned(&data, static_cast<size_t>(bytes), buffer.block_);
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

Result<std::byte*> StagingArena::take(int64_t bytes) {
  bytes = (bytes + 63) / 64 * 64;
  while (used_ + bytes > chunks_[chunk_].size()) {
    if (chunk_ + 1 == chunks_.size()) {
      if (device_->awaited() > 0) {
        int64_t size = 0;
        for (const PinnedBuffer& chunk : chunks_) size += chunk.size();
        return error(Code::kExhausted,
                     "{} of arguments: the stream's {} are used up, and more cannot be pinned while a stream "
                     "waits for an event that nobody has recorded; make the stream after its workspace, or "
                     "synchronize it earlier",
                     format_bytes(bytes), format_bytes(size));
      }
      DS_ASSIGN(PinnedBuffer more, PinnedBuffer::make(device_, std::max(bytes, 2 * chunks_.back().size()),
                                                      "a stream's staging memory"));
      chunks_.push_back(std::move(more));
    }
    ++chunk_;
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
