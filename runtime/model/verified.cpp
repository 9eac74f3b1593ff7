#include "runtime/model/verified.h"

#include <chrono>
#include <filesystem>

#include "support/hash.h"
#include "support/json.h"

namespace ds {
namespace {

using nlohmann::json;

constexpr int64_t kVersion = 1;
constexpr int64_t kYoungNs = 2'000'000'000;

json stamp_json(const std::string& path, const FileStamp& s) {
  return {{"path", path},
          {"device", s.device},
          {"inode", s.inode},
          {"bytes", s.bytes},
          {"modified_ns", s.modified_ns},
          {"changed_ns", s.changed_ns}};
}

std::string absolute(const std::string& path) {
  std::error_code failed;
  std::filesystem::path whole = std::filesystem::canonical(path, failed);
  return failed ? path : whole.string();
}

/// What must be the same for the hash of the weights to be the same: files, and which tensors of them count.
json key_of(const Checkpoint& checkpoint) {
  json key = {{"schema", "droidspeak.verified"},
              {"version", kVersion},
              {"config", sha256_hex(checkpoint.config().canonical())},
              {"files", json::array()}};
  for (const MappedFile& file : checkpoint.files())
    key["files"].push_back(stamp_json(absolute(file.path()), file.stamp()));
  return key;
}

/// The weights' hash; empty: not remembered (or not readable, which is the same).
std::string recall(const std::string& path, const json& key) {
  Result<std::string> text = read_text_file(path, 1 << 20);
  if (!text.ok()) return "";
  Result<json> found = parse_json(*text, path);
  if (!found.ok() || !found->is_object() || !found->contains("weights") || !(*found)["weights"].is_string())
    return "";
  std::string weights = (*found)["weights"];
  found->erase("weights");
  return *found == key && weights.size() == 64 ? weights : "";
}

/// Whether the files are still what they were when they were opened, and old enough for a stamp to tell.
bool settled(const Checkpoint& checkpoint) {
  const int64_t now = std::chrono::duration_cast<std::chrono::nanoseconds>(
                          std::chrono::system_clock::now().time_since_epoch())
                          .count();
  for (const MappedFile& file : checkpoint.files()) {
    Result<FileStamp> stamp = file_stamp(file.path());
    if (!stamp.ok() || *stamp != file.stamp() || now - stamp->changed_ns < kYoungNs) return false;
  }
  return true;
}

}  // namespace

Status make_cache_folder(const std::string& folder) {
  std::error_code failed;
  std::filesystem::create_directories(folder, failed);
  if (failed)
    return error(Code::kIo, "cannot create the cache folder '{}': {}", folder, failed.message());
  return ok_status();
}

Result<Verified> verify_checkpoint(const Checkpoint& checkpoint, const VerifyOptions& options) {
  Verified verified;
  if (options.cache.empty() || checkpoint.files().empty()) {
    DS_ASSIGN(verified.identity, checkpoint.verify(options.progress));
    return verified;
  }
  const std::string path = fmt::format("{}/{:.32}.verified.json", options.cache,
                                       sha256_hex(absolute(checkpoint.folder())));
  json key = key_of(checkpoint);
  if (std::string weights = options.reread ? "" : recall(path, key); !weights.empty()) {
    DS_ASSIGN(verified.identity, checkpoint.identity_with(std::move(weights)));
    verified.remembered = true;
    return verified;
  }
  DS_ASSIGN(verified.identity, checkpoint.verify(options.progress));
  if (!settled(checkpoint)) return verified;
  key["weights"] = verified.identity.weights;
  Status status = make_cache_folder(options.cache);
  const std::string text = key.dump(1) + "\n";
  auto write = [&](int fd) {
    return write_fully(fd, std::as_bytes(std::span(text.data(), text.size())), path);
  };
  if (status.ok()) status = write_file_atomically(path, write, /*flush=*/false);
  if (!status.ok()) verified.note = status.message();
  return verified;
}

}  // namespace ds
