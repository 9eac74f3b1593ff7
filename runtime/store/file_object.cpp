#include "runtime/store/file_object_internal.h"

#include <algorithm>
#include <cerrno>

#include "runtime/store/store_internal.h"
#include "support/file.h"

namespace ds {
namespace {

class FileObject final : public StoreObject {
 public:
  FileObject(std::shared_ptr<FileHandle> file, int64_t begin, int64_t size, std::string path)
      : file_(std::move(file)), begin_(begin), size_(size), path_(std::move(path)) {}

  int64_t size() const override { return size_; }

  Status read_by_parts(int64_t offset, std::span<std::byte> out, const Arrived& arrived) override {
    if (offset < 0) return error(Code::kInvalidArgument, "cannot read '{}' from byte {}", path_, offset);
    while (!out.empty()) {
      ssize_t got = pread(file_->fd, out.data(), std::min(out.size(), kReadPart), begin_ + offset);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return io_error("read", path_);
      if (got == 0) {
        return error(Code::kCorrupt, "'{}' ends at or before byte {}; {} more bytes were expected there",
                     path_, begin_ + offset, out.size());
      }
      DS_TRY(arrived(out.first(static_cast<size_t>(got))));
      offset += got;
      out = out.subspan(static_cast<size_t>(got));
    }
    return ok_status();
  }

 private:
  const std::shared_ptr<FileHandle> file_;
  const int64_t begin_, size_;
  const std::string path_;
};

}  // namespace

std::unique_ptr<StoreObject> open_file_object(std::shared_ptr<FileHandle> file, int64_t begin, int64_t size,
                                              std::string path) {
  return std::make_unique<FileObject>(std::move(file), begin, size, std::move(path));
}

}  // namespace ds
