// Ranges of device addresses that become memory granule by granule.
#include <algorithm>
#include <vector>

#include "runtime/backends/cuda/memory_internal.h"
#include "support/units.h"

namespace ds::cuda {
namespace {

int64_t granules(int64_t bytes, int64_t granule) { return (bytes + granule - 1) / granule; }

class CudaRange final : public GrowingMemory {
 public:
  CudaRange(std::shared_ptr<Device> device, std::byte* data, int64_t bytes)
      : device_(std::move(device)),
        memory_(device_->virtual_memory()),
        data_(data),
        size_(bytes),
        there_(static_cast<size_t>(bytes / memory_.granule())) {}
  /// Kernels that were enqueued may use it yet.
  ~CudaRange() override {
    device_->use();
    device_->releases().later(
        [&memory = memory_, data = data_, size = size_, parts = std::move(parts_)] {
          for (const Part& part : parts) memory.unmap(part.at, part.bytes);
          memory.free(data, size);
        },
        Releases::MayWait::kYes);
  }

  std::byte* data() override { return data_; }
  int64_t size() const override { return size_; }
  int64_t committed() const override { return committed_; }

 protected:
  Status commit_range(int64_t offset, int64_t bytes) override {
    const int64_t granule = memory_.granule();
    const auto end = there_.begin() + granules(offset + bytes, granule);
    device_->use();
    for (auto first = there_.begin() + offset / granule;;) {
      first = std::find(first, end, false);
      if (first == end) return ok_status();
      const auto last = std::find(first, end, true);
      DS_TRY(commit_part({data_ + (first - there_.begin()) * granule, (last - first) * granule}));
      std::fill(first, last, true);
      first = last;
    }
  }

 private:
  /// Of one map().
  struct Part {
    std::byte* at;
    int64_t bytes;
  };

  Status commit_part(Part part) {
    constexpr std::string_view kWhat = "a part of a range of caches";
    DS_TRY(device_->check_memory(part.bytes, kWhat));
    cudaError_t raised = memory_.map(part.at, part.bytes);
    if (raised == cudaSuccess) {
      raised = device_->releases().zero(part.at, static_cast<size_t>(part.bytes));
      if (raised != cudaSuccess) memory_.unmap(part.at, part.bytes);
    }
    if (raised == cudaErrorMemoryAllocation) {
      (void)cudaGetLastError();
      return device_->exhausted(part.bytes, kWhat);
    }
    DS_TRY(check(raised, "{} more of a range of {}", format_bytes(part.bytes), format_bytes(size_)));
    parts_.push_back(part);
    committed_ += part.bytes;
    return ok_status();
  }

  std::shared_ptr<Device> device_;
  const VirtualMemory& memory_;
  std::byte* const data_;
  const int64_t size_;
  int64_t committed_ = 0;
  std::vector<bool> there_;  // by granule
  std::vector<Part> parts_;
};

}  // namespace

Result<std::unique_ptr<GrowingMemory>> reserve(std::shared_ptr<Device> device, int64_t bytes) {
  if (bytes < 0) return error(Code::kInvalidArgument, "a range of {} bytes", bytes);
  const VirtualMemory& memory = device->virtual_memory();
  const int64_t size = granules(std::max<int64_t>(bytes, 1), memory.granule()) * memory.granule();
  device->use();
  std::byte* data = nullptr;
  if (cudaError_t raised = memory.reserve(&data, size); raised != cudaSuccess)
    return error(Code::kExhausted, "{} of addresses for caches are not to be had on {}: {}",
                 format_bytes(size), device->info().name, cudaGetErrorName(raised));
  return std::unique_ptr<GrowingMemory>(std::make_unique<CudaRange>(std::move(device), data, size));
}

}  // namespace ds::cuda
