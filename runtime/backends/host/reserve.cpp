// Ranges of device memory on backends that have no virtual memory of their own: committed as a whole.
#include "runtime/backends/backend.h"

namespace ds {
namespace {

class WholeRange final : public GrowingMemory {
 public:
  explicit WholeRange(std::unique_ptr<DeviceMemory> memory) : memory_(std::move(memory)) {}
  std::byte* data() override { return memory_->data(); }
  int64_t size() const override { return memory_->size(); }
  int64_t committed() const override { return memory_->size(); }
  Status commit(int64_t offset, int64_t bytes) override {
    if (offset >= 0 && bytes >= 0 && offset <= size() && bytes <= size() - offset) return ok_status();
    return error(Code::kInvalidArgument, "commit {} bytes from {} on of a range of {}", bytes, offset,
                 size());
  }

 private:
  std::unique_ptr<DeviceMemory> memory_;
};

}  // namespace

Result<std::unique_ptr<GrowingMemory>> Backend::reserve(int64_t bytes) {
  DS_ASSIGN(auto memory, allocate(bytes));
  return std::unique_ptr<GrowingMemory>(std::make_unique<WholeRange>(std::move(memory)));
}

}  // namespace ds
