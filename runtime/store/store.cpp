#include "runtime/store/store.h"

#include <sys/stat.h>

#include <cstdlib>

#include "runtime/store/file_store_internal.h"
#include "runtime/store/live.h"
#include "runtime/store/redis_store_internal.h"
#include "runtime/store/store_internal.h"
#include "support/file.h"

namespace ds {

namespace {

Status unsupported(const Store& store, std::string_view what) {
  return error(Code::kUnsupported, "store '{}' {}", store.url(), what);
}

}  // namespace

Result<int64_t> Store::size(const std::string& key) {
  DS_ASSIGN(std::unique_ptr<StoreObject> object, open(key));
  return object->size();
}

Status check_store_key(std::string_view key) {
  auto good = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
  };
  bool ok = !key.empty() && key.size() <= 200 && key[0] != '.' && key.find(".tmp-") == key.npos;
  for (char c : key) ok = ok && good(c);
  if (ok) return ok_status();
  return error(Code::kInvalidArgument,
               "bad key '{:.40}' ({} characters); expected 1 to 200 of A-Z a-z 0-9 . _ -, not starting with "
               "'.', without '.tmp-'",
               key, key.size());
}

Status check_store_names(Store::Names names) {
  if (names.size() > Store::kMostNames)
    return error(Code::kInvalidArgument, "{} names, expected {} at most", names.size(), Store::kMostNames);
  for (const std::string& name : names)
    if (name.size() != Store::kNameDigits || name.find_first_not_of("0123456789abcdef") != name.npos)
      return error(Code::kInvalidArgument, "bad name '{:.40}' ({} characters); expected {} of 0-9 a-f", name,
                   name.size(), Store::kNameDigits);
  return ok_status();
}

Result<std::shared_ptr<const std::string>> read_store_key(const std::string& path) {
  constexpr int64_t kLeast = 32, kMost = 4096;
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) return io_error("stat the store's key", path);
  if (S_ISREG(info.st_mode) && (info.st_mode & 077) != 0)
    return error(Code::kInvalidArgument,
                 "the store's key '{}' has mode {:04o}, others than its owner may use it; chmod 600 it", path,
                 info.st_mode & 07777);
  DS_ASSIGN(std::string key, read_text_file(path, kMost));
  if (static_cast<int64_t>(key.size()) < kLeast)
    return error(
        Code::kInvalidArgument,
        "the store's key '{}' has {} bytes, expected {} to {}; make one with 'head -c 32 /dev/urandom'", path,
        key.size(), kLeast, kMost);
  return std::make_shared<const std::string>(std::move(key));
}

Result<Found> Store::find(Names keys, Names names) {
  Found found;
  found.names.resize(names.size());
  for (const std::string& key : keys) {
    auto bytes = size(key);
    if (!bytes.ok() && bytes.status().code() != Code::kNotFound) return bytes.status();
    auto& ref = found.keys.emplace_back();
    if (bytes.ok()) ref = ObjectRef{key, *bytes};
  }
  return found;
}

Result<std::vector<ObjectInfo>> Store::list(std::string_view) {
  return unsupported(*this, "lists no objects");
}
void Store::set_patience(double) {}
void Store::touch(const std::string&) {}
Status Store::pin(const std::string&, bool) { return unsupported(*this, "pins no objects"); }
Result<bool> Store::evict(const std::string&) { return unsupported(*this, "evicts no objects"); }

Result<std::unique_ptr<LiveWriter>> Store::begin_live(const std::string&, std::string_view, Names) {
  return unsupported(*this, "shows nothing that is still being written");
}
Result<std::vector<std::vector<ObjectRef>>> Store::find_live(Names names, std::string_view) {
  return std::vector<std::vector<ObjectRef>>(names.size());
}
Result<std::unique_ptr<LiveObject>> Store::follow(const ObjectRef& found) {
  return error(Code::kNotFound, "store '{}' has nothing that is still being written, and so no '{}'", url(),
               found.key);
}
Result<std::vector<LiveInfo>> Store::list_live() { return std::vector<LiveInfo>(); }
Result<int64_t> Store::remove_dead() { return 0; }

Result<std::unique_ptr<Store>> open_store(const std::string& url) {
  constexpr std::string_view kKnown =
      "known are file:PATH, a folder, and redis://HOST:PORT (rediss:// with TLS), a server";
  size_t colon = url.find(':');
  if (colon == std::string::npos) {
    return error(Code::kInvalidArgument, "store '{}' has no scheme; {} (did you mean 'file:{}'?)", url,
                 kKnown, url);
  }
  std::string scheme = url.substr(0, colon), path = url.substr(colon + 1);
  if (scheme == "redis" || scheme == "rediss") {
    DS_ASSIGN(RedisOptions options, parse_redis_url(url));
    return make_redis_store(std::move(options));
  }
  if (scheme != "file") {
    // Nothing else of it is said: such URLs may hold passwords, and what stands in front of a ':' may be one.
    const bool named = scheme.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789+.-") == scheme.npos;
    return error(Code::kInvalidArgument, "a store has {}; {}",
                 named ? fmt::format("the unknown scheme '{}'", scheme) : "no scheme", kKnown);
  }
  if (path.starts_with("//")) {
    // file://HOST/PATH names another machine; only the empty host and localhost are this one.
    constexpr std::string_view kLocal = "//localhost/";
    if (path.starts_with(kLocal)) {
      path = path.substr(kLocal.size() - 1);
    } else if (path.starts_with("///")) {
      path = path.substr(2);
    } else {
      return error(Code::kInvalidArgument,
                   "store '{}' names the host '{}'; {}, or file:///PATH for an absolute one", url,
                   path.substr(2, path.find('/', 2) - 2), kKnown);
    }
  } else if (path.starts_with('~')) {
    // No shell has seen it behind "file:".
    if (path != "~" && !path.starts_with("~/")) {
      const std::string user = path.substr(0, path.find('/'));
      return error(Code::kInvalidArgument,
                   "store '{}': '{}' is not expanded, only ~ and ~/ are ($HOME); give the whole path, or "
                   "'file:./{}' for a folder of that name",
                   url, user, path);
    }
    const char* home = std::getenv("HOME");
    if (home == nullptr || *home != '/')
      return error(Code::kInvalidArgument, "store '{}': $HOME is {}; give the whole path", url,
                   home == nullptr ? "not set" : fmt::format("'{}', no absolute path", home));
    path = home + path.substr(1);
  }
  if (path.empty() || path.find('\0') != std::string::npos) {
    return error(Code::kInvalidArgument, "store '{}' has no usable path; {}", url, kKnown);
  }
  return make_file_store(std::move(path));
}

}  // namespace ds
