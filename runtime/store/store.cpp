#include "runtime/store/store.h"

#include "runtime/store/file_store_internal.h"

namespace ds {

Result<int64_t> Store::size(const std::string& key) {
  DS_ASSIGN(std::unique_ptr<StoreObject> object, open(key));
  return object->size();
}

Result<std::unique_ptr<Store>> open_store(const std::string& url) {
  constexpr std::string_view kKnown = "known is file:PATH, a folder";
  size_t colon = url.find(':');
  if (colon == std::string::npos) {
    return error(Code::kInvalidArgument, "store '{}' has no scheme; {} (did you mean 'file:{}'?)", url,
                 kKnown, url);
  }
  std::string scheme = url.substr(0, colon), path = url.substr(colon + 1);
  if (scheme != "file") {
    return error(Code::kInvalidArgument, "store '{}' has the unknown scheme '{}'; {}", url, scheme, kKnown);
  }
  if (path.starts_with("//")) {
    // file://HOST/PATH names another machine; only the empty host is this one.
    if (!path.starts_with("///")) {
      return error(Code::kInvalidArgument, "store '{}' names a host; {}, or file:///PATH", url, kKnown);
    }
    path = path.substr(2);
  }
  if (path.empty() || path.find('\0') != std::string::npos) {
    return error(Code::kInvalidArgument, "store '{}' has no usable path; {}", url, kKnown);
  }
  return make_file_store(std::move(path));
}

}  // namespace ds
