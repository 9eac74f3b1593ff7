// Bytes of a file, as an object.
#pragma once

#include <unistd.h>

#include <cstdint>
#include <memory>
#include <string>

#include "runtime/store/store.h"

namespace ds {

struct FileHandle {
  explicit FileHandle(int opened) : fd(opened) {}
  FileHandle(const FileHandle&) = delete;
  ~FileHandle() { close(fd); }
  const int fd;
};

/// `size` bytes of the file, from byte `begin` on. `path`: for messages.
std::unique_ptr<StoreObject> open_file_object(std::shared_ptr<FileHandle> file, int64_t begin, int64_t size,
                                              std::string path);

}  // namespace ds
