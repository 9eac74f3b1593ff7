#include "runtime/model/verified.h"

#include <chrono>
#include <filesystem>

#include "runtime/model/adapter.h"
#include "support/hash.h"
#include "support/json.h"

namespace ds {
namespace {

using nlohmann::json;

constexpr int64_t kVersion = 1;
constexpr int64_t kYoungNs = 2'000'000'000;

json stamp_json(const std::string& path, const FileStamp& s) {
  return {{"path", path},     {"device", s.device},           {"inode", s.inode},
          {"bytes", s.bytes}, {"modified_ns", s.modified_ns}, {"changed_ns", s.changed_ns}};
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
  if (checkpoint.adapter() != nullptr) key["adapter"] = sha256_hex(checkpoint.adapter()->decisions());
  return key;
}

/// What the last start found in this folder; empty where it is not known or not readable, which is the same.
struct Memory {
  json key;
  std::string weights, fingerprint;
};

Memory recall(const std::string& path) {
  Result<std::string> text = read_text_file(path, 1 << 20);
  if (!text.ok()) return {};
  Result<json> found = parse_json(*text, path);
  if (!found.ok() || !found->is_object()) return {};
  Memory memory{*found, "", ""};
  for (auto [name, to] : {std::pair("weights", &memory.weights), {"fingerprint", &memory.fingerprint}}) {
    auto it = memory.key.find(name);
    if (it == memory.key.end() || !it->is_string() || it->get<std::string>().size() != 64) return {};
    *to = *it;
    memory.key.erase(name);
  }
  return memory;
}

/// Packed weights (backends name their files by fingerprint) of what was in this folder before.
void remove_packed(const std::string& cache, const std::string& fingerprint) {
  namespace fs = std::filesystem;
  const std::string prefix = fingerprint.substr(0, 32) + "-";
  std::error_code ignored;
  for (fs::directory_iterator it(cache, ignored), end; !ignored && it != end; it.increment(ignored)) {
    const std::string name = it->path().filename().string();
    if (name.starts_with(prefix) && name.ends_with(".weights")) fs::remove(it->path(), ignored);
  }
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

Result<Verified> verify_checkpoint(const Checkpoint& checkpoint, const VerifyOptions& options) {
  Verified verified;
  if (options.cache.empty() || checkpoint.files().empty()) {
    DS_ASSIGN(verified.identity, checkpoint.verify(options.progress));
    return verified;
  }
  json key = key_of(checkpoint);
  std::string model = absolute(checkpoint.folder());
  Verified base;
  base.remembered = true;
  if (checkpoint.base() != nullptr) {
    DS_ASSIGN(base, verify_checkpoint(*checkpoint.base(), options));
    key["base"] = base.identity.weights;
    verified.base = base.identity;
    model = fmt::format("{}\n{}", model, absolute(checkpoint.base()->folder()));
  }
  const std::string path = fmt::format("{}/{:.32}.verified.json", options.cache, sha256_hex(model));
  Memory memory = recall(path);
  if (!options.reread && memory.key == key) {
    DS_ASSIGN(verified.identity, checkpoint.identity_with(memory.weights));
    verified.remembered = base.remembered;
    return verified;
  }
  if (checkpoint.adapter() != nullptr) {
    DS_TRY(checkpoint.adapter()->check_finite());
    DS_ASSIGN(verified.identity, checkpoint.identity_with(Checkpoint::adapted_weights(
                                     base.identity.weights, *checkpoint.adapter())));
  } else {
    DS_ASSIGN(verified.identity, checkpoint.verify(options.progress));
  }
  if (!memory.fingerprint.empty() && memory.fingerprint != verified.identity.fingerprint)
    remove_packed(options.cache, memory.fingerprint);
  if (!settled(checkpoint)) return verified;
  key["weights"] = verified.identity.weights;
  key["fingerprint"] = verified.identity.fingerprint;
  const std::string text = key.dump(1) + "\n";
  std::error_code ignored;
  std::filesystem::create_directories(options.cache, ignored);
  // What cannot be remembered is read again; the file of packed weights says why a folder takes nothing.
  (void)write_file_atomically(
      path, [&](int fd) { return write_fully(fd, std::as_bytes(std::span(text.data(), text.size())), path); },
      {.flush = false});
  return verified;
}

}  // namespace ds
