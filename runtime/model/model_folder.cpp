#include "runtime/model/model_folder.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <vector>

#include "support/file.h"

namespace ds {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kCachePrefix = "models--";
constexpr std::string_view kLfsPrefix = "version https://git-lfs.github.com/spec/";

bool is_folder(const fs::path& path) {
  std::error_code ignored;
  return fs::is_directory(path, ignored);
}

/// Names in a folder, sorted; none where it cannot be listed.
std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code failed;
  for (fs::directory_iterator at(folder, failed), end; !failed && at != end; at.increment(failed))
    names.push_back(at->path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

std::string first_bytes(const fs::path& path, size_t count) {
  std::string bytes(count, '\0');
  std::ifstream file(path, std::ios::binary);
  file.read(bytes.data(), static_cast<std::streamsize>(count));
  bytes.resize(static_cast<size_t>(std::max<std::streamsize>(file.gcount(), 0)));
  return bytes;
}

std::string extension_of(const std::string& name) {
  std::string extension = fs::path(name).extension().string();
  std::transform(extension.begin(), extension.end(), extension.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return extension;
}

/// "org/name" of "models--org--name", empty for other names.
std::string hub_name(const std::string& folder_name) {
  if (!folder_name.starts_with(kCachePrefix)) return "";
  const std::string name = folder_name.substr(kCachePrefix.size());
  const size_t dashes = name.find("--");
  return dashes == std::string::npos ? name : name.substr(0, dashes) + '/' + name.substr(dashes + 2);
}

/// Whether it could be the name of a model on the Hub: "org/name".
bool is_hub_name(const std::string& given) {
  const size_t slash = given.find('/');
  if (slash == std::string::npos || slash == 0 || slash + 1 == given.size()) return false;
  if (given.find('/', slash + 1) != std::string::npos || given[0] == '.' || given[0] == '~') return false;
  return std::all_of(given.begin(), given.end(), [](unsigned char c) {
    return std::isalnum(c) != 0 || c == '.' || c == '_' || c == '-' || c == '/';
  });
}

/// Where the Hub's clients keep what they have downloaded.
fs::path hub_cache() {
  auto variable = [](const char* name) {
    const char* value = std::getenv(name);
    return std::string(value != nullptr ? value : "");
  };
  if (std::string cache = variable("HF_HUB_CACHE"); !cache.empty()) return cache;
  if (std::string home = variable("HF_HOME"); !home.empty()) return fs::path(home) / "hub";
  if (std::string xdg = variable("XDG_CACHE_HOME"); !xdg.empty()) return fs::path(xdg) / "huggingface/hub";
  std::string home = variable("HOME");
  return home.empty() ? fs::path() : fs::path(home) / ".cache/huggingface/hub";
}

Status not_there(const std::string& given) {
  if (!is_hub_name(given))
    return error(Code::kNotFound,
                 "there is no folder '{}'; expected one with config.json and model.safetensors", given);
  std::string cached = std::string(kCachePrefix) + given;
  cached.replace(cached.find('/'), 1, "--");
  const fs::path cache = hub_cache() / cached;
  if (is_folder(cache / "snapshots"))
    return error(Code::kNotFound,
                 "there is no folder '{}'. It is the name of a model on the Hugging Face Hub, which has been "
                 "downloaded: give '{}'",
                 given, cache.string());
  return error(
      Code::kNotFound,
      "there is no folder '{}'. It looks like the name of a model on the Hugging Face Hub; nothing is "
      "downloaded here: 'hf download {} --local-dir FOLDER' does that, then give FOLDER",
      given, given);
}

Status is_a_file(const std::string& given) {
  const fs::path folder = fs::path(given).parent_path();
  if (extension_of(given) == ".gguf" || first_bytes(given, 4) == "GGUF")
    return error(
        Code::kUnsupported,
        "'{}' is a GGUF file (llama.cpp's format, mostly quantised); expected a Hugging Face folder. "
        "Give that of the model it was made from; transformers can also write one: "
        "from_pretrained(..., gguf_file=...), then save_pretrained",
        given);
  const std::string name = fs::path(given).filename().string();
  if (extension_of(given) == ".safetensors" || name == "config.json" || name == "tokenizer.json" ||
      name == "model.safetensors.index.json")
    return error(Code::kUnsupported, "'{}' is one file of a model; expected the folder that it is in: '{}'",
                 given, folder.empty() ? "." : folder.string());
  return error(Code::kUnsupported, "'{}' is a file; expected a Hugging Face folder", given);
}

/// The snapshot of a model's folder in the Hub's cache.
Result<std::string> find_snapshot(const fs::path& root) {
  const fs::path all = root / "snapshots";
  std::string commit = first_bytes(root / "refs/main", 128);
  while (!commit.empty() && std::isspace(static_cast<unsigned char>(commit.back())) != 0) commit.pop_back();
  const bool plain = !commit.empty() && commit.find('/') == std::string::npos && commit[0] != '.';
  if (plain && is_folder(all / commit)) return (all / commit).string();
  const std::vector<std::string> snapshots = names_in(all);
  if (snapshots.size() == 1) return (all / snapshots[0]).string();
  if (snapshots.empty())
    return error(Code::kNotFound,
                 "'{}' is a model's folder in the Hub's cache, without any snapshot; download "
                 "the model again: 'hf download {}'",
                 root.string(), hub_name(root.filename().string()));
  return error(
      Code::kUnsupported,
      "'{}' is a model's folder in the Hub's cache with {} snapshots, of which refs/main names none; "
      "give one of them:\n  {}/{}",
      root.string(), snapshots.size(), all.string(), fmt::join(snapshots, "\n  " + all.string() + "/"));
}

/// A file of which only Git LFS's pointer is there, empty: none.
std::string lfs_pointer_in(const fs::path& folder, const std::vector<std::string>& names) {
  constexpr uintmax_t kLargestPointer = 1024;
  for (const std::string& name : names) {
    const std::string extension = extension_of(name);
    if (extension != ".json" && extension != ".safetensors") continue;
    std::error_code failed;
    const uintmax_t size = fs::file_size(folder / name, failed);
    if (failed || size > kLargestPointer) continue;
    if (first_bytes(folder / name, kLfsPrefix.size()) == kLfsPrefix) return name;
  }
  return "";
}

}  // namespace

Result<std::string> find_model_folder(const std::string& given) {
  std::error_code failed;
  const fs::path path(given);
  if (given.empty()) return error(Code::kNotFound, "the name of a model's folder is empty");
  const fs::file_status status = fs::status(path, failed);
  if (!fs::exists(status)) {
    if (failed && failed != std::errc::no_such_file_or_directory && failed != std::errc::not_a_directory)
      return error(Code::kIo, "cannot look at '{}': {}", given, failed.message());
    return not_there(given);
  }
  if (!fs::is_directory(status)) return is_a_file(given);
  std::string folder = given;
  if (!file_exists(path / "config.json") && is_folder(path / "snapshots")) {
    const fs::path whole = fs::absolute(path, failed).lexically_normal();
    DS_ASSIGN(folder, find_snapshot(whole.has_filename() ? whole : whole.parent_path()));
  }
  const std::vector<std::string> names = names_in(folder);
  if (std::string pointer = lfs_pointer_in(folder, names); !pointer.empty())
    return error(
        Code::kCorrupt,
        "{}/{} is a pointer of Git LFS, not the file itself; fetch the files: 'git lfs pull' in '{}'", folder,
        pointer, folder);
  return folder;
}

std::string model_name(const std::string& given) {
  std::error_code failed;
  fs::path path = fs::path(given).lexically_normal();
  if (fs::path whole = fs::absolute(path, failed).lexically_normal(); !failed) path = whole;
  if (!path.has_filename()) path = path.parent_path();
  fs::path root = path.parent_path().filename() == "snapshots" ? path.parent_path().parent_path() : path;
  if (std::string name = hub_name(root.filename().string()); !name.empty())
    return name.substr(name.find('/') + 1);
  return path.filename().string();
}

Status no_config(const std::string& folder) {
  const std::vector<std::string> names = names_in(folder);
  auto has = [&](std::string_view name) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  for (const std::string& name : names) {
    if (extension_of(name) == ".gguf")
      return error(
          Code::kUnsupported,
          "'{}' has a GGUF file ('{}', llama.cpp's format) and no config.json; expected a Hugging Face "
          "folder: give that of the model it was made from",
          folder, name);
    if (name.starts_with(kCachePrefix))
      return error(
          Code::kUnsupported,
          "'{}' is a cache of the Hugging Face Hub, not a model; give one of the folders in it, like "
          "'{}/{}'",
          folder, folder, name);
  }
  if (has("params.json"))
    return error(Code::kUnsupported,
                 "'{}' has params.json and no config.json: a model in its publisher's own format; expected a "
                 "Hugging Face folder, which most publishers offer too",
                 folder);
  for (const std::string& name : names)
    if (file_exists(fs::path(folder) / name / "config.json"))
      return error(Code::kNotFound, "'{}' has no config.json; there is one in '{}/{}': give that folder",
                   folder, folder, name);
  return error(Code::kNotFound,
               "'{}' has no config.json; expected a Hugging Face folder, with config.json and "
               "model.safetensors",
               folder);
}

}  // namespace ds
