// The folder of an adapter: what it is, its tensors by module, its base, its identity.
#include "runtime/model/adapter.h"

#include <filesystem>

#include "runtime/model/adapter_internal.h"
#include "support/file.h"
#include "support/hash.h"

namespace ds {

using namespace lora;
namespace fs = std::filesystem;

bool Adapter::is_adapter(const std::string& folder) {
  return file_exists(folder + kConfigFile) && !file_exists(folder + "/model.safetensors") &&
         !file_exists(folder + "/model.safetensors.index.json");
}

Result<Adapter> Adapter::open(const std::string& folder) {
  Adapter adapter;
  adapter.folder_ = folder;
  DS_TRY(adapter.read_config());
  DS_TRY(adapter.read_tensors());
  return adapter;
}

Status Adapter::read_tensors() {
  const std::string path = folder_ + kWeightFile;
  if (!file_exists(path)) {
    if (file_exists(folder_ + "/adapter_model.bin"))
      return error(Code::kUnsupported,
                   "'{}' has its weights in 'adapter_model.bin'; expected adapter_model.safetensors. Save it "
                   "again with PEFT's save_pretrained",
                   folder_);
    return error(Code::kNotFound,
                 "'{}' has an adapter_config.json, but no adapter_model.safetensors beside it", folder_);
  }
  DS_ASSIGN(SafetensorsFile file, SafetensorsFile::open(path));
  std::string adapter_name;
  bool named = false;
  for (const auto& [name, entry] : file.entries()) {
    std::optional<Key> key = parse_key(name);
    if (!key)
      return error(Code::kUnsupported,
                   "{}: tensor '{}' is none of a LoRA adapter ('{}MODULE.lora_A.weight' and the like), and "
                   "would change the result if it were used",
                   path, name, kPrefix);
    if (!key->adapter.empty()) {
      if (named && key->adapter != adapter_name)
        return error(Code::kUnsupported, "{}: tensors of two adapters, '{}' and '{}'; expected one", path,
                     adapter_name, key->adapter);
      adapter_name = key->adapter;
      named = true;
    }
    Stored stored{name, {}};
    if (entry.dtype != "F32" && entry.dtype != "BF16" && entry.dtype != "F16")
      return error(Code::kUnsupported, "{}: tensor '{}' has elements of type {}, expected F32, BF16 or F16",
                   path, name, entry.dtype);
    stored.view.dtype = entry.dtype == "F32"    ? DType::kF32
                        : entry.dtype == "BF16" ? DType::kBF16
                                                : DType::kF16;
    stored.view.shape = entry.shape;
    stored.view.data = entry.data;
    const auto size = static_cast<uintptr_t>(dtype_size(stored.view.dtype));
    if (reinterpret_cast<uintptr_t>(entry.data.data()) % size != 0) {
      owned_.emplace_back(entry.data.begin(), entry.data.end());
      stored.view.data = owned_.back();
    }
    Module& m = modules_[key->module];
    std::optional<Stored>* const parts[] = {&m.a,           &m.b,         &m.b_bias, &m.embedding_a,
                                            &m.embedding_b, &m.magnitude, &m.weight, &m.bias};
    std::optional<Stored>& to = *parts[static_cast<size_t>(key->part)];
    if (to)
      return error(Code::kCorrupt, "{}: tensors '{}' and '{}' are the same part of the adapter", path,
                   to->name, name);
    to = std::move(stored);
  }
  if (modules_.empty()) return error(Code::kCorrupt, "'{}' has no tensors", path);
  file_ = std::move(file).release();
  return ok_status();
}

Result<std::string> Adapter::find_base(const std::string& given) const {
  std::error_code ignored;
  auto is_folder = [&](const fs::path& p) { return fs::is_directory(p, ignored); };
  if (!given.empty()) {
    if (!is_folder(given))
      return error(Code::kNotFound, "--base '{}' (for the adapter '{}') is no folder", given, folder_);
    return given;
  }
  if (base_name_.empty())
    return error(Code::kNotFound, "'{}' is an adapter that names no base; give its folder with --base DIR",
                 folder_);
  const fs::path name(base_name_);
  if (name.is_absolute() && is_folder(name)) return base_name_;
  if (!name.is_absolute()) {
    const fs::path beside = fs::path(folder_) / name;
    const bool is_beside = is_folder(beside), is_here = is_folder(name);
    if (is_beside && is_here && !fs::equivalent(beside, name, ignored))
      return error(
          Code::kInvalidArgument,
          "'{}' is an adapter of '{}', which is a folder both beside it and in the working directory; "
          "say which with --base DIR",
          folder_, base_name_);
    if (is_beside) return beside.string();
    if (is_here) return base_name_;
  }
  return error(
      Code::kNotFound,
      "'{}' is an adapter of '{}', which is no folder here; give the base model's folder with --base "
      "DIR",
      folder_, base_name_);
}

bool Adapter::untouched(const std::string& name) const {
  if (merges(name) || tensors_.count(name) == 0) return false;
  const size_t dot = name.rfind('.');
  auto own = modules_.find(name.substr(0, dot));
  if (own == modules_.end()) return true;
  return name.substr(dot) == ".bias" ? !own->second.bias : !own->second.weight;
}

std::string Adapter::decisions() const {
  std::string text = "droidspeak adapter 1\n";
  for (const auto& [name, low] : low_rank_)
    text += fmt::format("{} scaled by {:a}{}\n", name, low.scaling, low.magnitude ? ", magnitudes" : "");
  return text;
}

std::string Adapter::hash() const {
  std::string text = decisions();
  static constexpr const char* kParts[] = {"a",           "b",         "b.bias", "embedding_a",
                                           "embedding_b", "magnitude", "weight", "bias"};
  for (const auto& [name, m] : modules_) {
    const std::optional<Stored>* parts[] = {&m.a,           &m.b,         &m.b_bias, &m.embedding_a,
                                            &m.embedding_b, &m.magnitude, &m.weight, &m.bias};
    for (size_t i = 0; i < std::size(parts); ++i) {
      if (!*parts[i]) continue;
      const TensorView& view = (*parts[i])->view;
      const XXH128_hash_t hash = XXH3_128bits(view.data.data(), view.data.size());
      text += fmt::format("{} {} {} {} {:016x}{:016x}\n", name, kParts[i], dtype_name(view.dtype),
                          shape_text(view.shape), hash.high64, hash.low64);
    }
  }
  return sha256_hex(text);
}

}  // namespace ds
