// Ranges of device memory that are committed bit by bit; as a whole on backends that have no virtual memory
// of their own.
#include "runtime/backends/backend.h"

namespace ds {
namespace {

class WholeRange final : public GrowingMemory {
 public:
  explicit WholeRange(std::unique_ptr<DeviceMemory> memory) : memory_(std::move(memory)) {}
  std::byte* data() override { return memory_->data(); }
  int64_t size() const override { return memory_->size(); }
  int64_t committed() const override { return memory_->size(); }

 protected:
  Status commit_range(int64_t, int64_t) override { return ok_status(); }

 private:
  std::unique_ptr<DeviceMemory> memory_;
};

}  // namespace

Status GrowingMemory::commit(int64_t offset, int64_t bytes) {
  if (offset < 0 || bytes < 0 || offset > size() || bytes > size() - offset)
    return error(Code::kInvalidArgument, "commit {} bytes from {} on of a range of {}", bytes, offset,
                 size());
  return bytes == 0 ? ok_status() : commit_range(offset, bytes);
}

Result<std::unique_ptr<GrowingMemory>> Backend::reserve(int64_t bytes) {
  DS_ASSIGN(auto memory, allocate(bytes));
  return std::unique_ptr<GrowingMemory>(std::make_unique<WholeRange>(std::move(memory)));
}

}  // namespace ds
