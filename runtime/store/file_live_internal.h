// What is still being written of a folder's objects: one file each in its subfolder .live, locked by its
// writer for as long as that lives.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "runtime/store/live.h"
#include "runtime/store/store.h"

namespace ds {

/// Keys and names have been checked, and the folder is there where something is written.
class FileLive {
 public:
  explicit FileLive(const std::string& folder) : folder_(folder + "/.live") {}

  Result<std::unique_ptr<LiveWriter>> begin(const std::string& key, std::string_view head,
                                            Store::Names names) const;
  Result<std::vector<std::vector<ObjectRef>>> find(Store::Names names, std::string_view tenant) const;
  Result<std::unique_ptr<LiveObject>> follow(const std::string& key) const;
  Result<std::vector<LiveInfo>> list() const;
  Result<int64_t> remove_dead() const;

 private:
  const std::string folder_;
};

}  // namespace ds
