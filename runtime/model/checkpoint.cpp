#include "runtime/model/checkpoint.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <functional>
#include <numeric>
#include <optional>
#include <random>
#include <set>
#include <thread>

#include "runtime/model/adapter.h"
#include "runtime/model/identity.h"
#include "runtime/model/model_folder.h"
#include "runtime/model/parallel_internal.h"
#include "runtime/model/safetensors.h"
#include "support/file.h"
#include "support/hash.h"
#include "support/json.h"

namespace ds {
namespace {

using nlohmann::json;

constexpr const char* kEmbedding = "model.embed_tokens.weight";
constexpr const char* kHead = "lm_head.weight";

std::string shape_text(std::span<const int64_t> shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

// Tables that older versions of transformers saved and that config.json determines.
bool without_effect(std::string_view name) {
  for (std::string_view suffix :
       {".rotary_emb.inv_freq", ".rotary_emb.cos_cached", ".rotary_emb.sin_cached"}) {
    if (name.ends_with(suffix)) return true;
  }
  return false;
}

/// Whether any element has all exponent bits set (infinity or NaN). Without a branch, so that it is
/// vectorised.
template <typename T>
bool any_special(const T* p, size_t n, T exponent) {
  T found = 0;
  for (size_t i = 0; i < n; ++i) found = static_cast<T>(found | ((p[i] & exponent) == exponent ? 1 : 0));
  return found != 0;
}

/// Index of the first NaN or infinity, -1: none.
template <typename T>
int64_t first_special(std::span<const std::byte> bytes, T exponent) {
  const T* p = reinterpret_cast<const T*>(bytes.data());
  const size_t n = bytes.size() / sizeof(T);
  if (!any_special(p, n, exponent)) return -1;
  size_t i = 0;
  while ((p[i] & exponent) != exponent) ++i;
  return static_cast<int64_t>(i);
}

int64_t first_special(DType dtype, std::span<const std::byte> bytes) {
  switch (dtype) {
    case DType::kF32:
      return first_special<uint32_t>(bytes, 0x7f800000u);
    case DType::kBF16:
      return first_special<uint16_t>(bytes, 0x7f80u);
    case DType::kF16:
      return first_special<uint16_t>(bytes, 0x7c00u);
  }
  return -1;
}

double element(const TensorView& t, int64_t index) {
  const std::byte* at = t.data.data() + index * dtype_size(t.dtype);
  if (t.dtype == DType::kF32) return *reinterpret_cast<const float*>(at);
  uint16_t bits = *reinterpret_cast<const uint16_t*>(at);
  return t.dtype == DType::kBF16 ? bf16_to_f32(bits) : f16_to_f32(bits);
}

/// none: another type than weights have.
std::optional<DType> dtype_of(const SafetensorsEntry& entry) {
  if (entry.dtype == "F32") return DType::kF32;
  if (entry.dtype == "BF16") return DType::kBF16;
  if (entry.dtype == "F16") return DType::kF16;
  return std::nullopt;
}

/// At any address.
float number_at(const SafetensorsEntry& entry, DType dtype, size_t index) {
  const std::byte* at = entry.data.data() + index * static_cast<size_t>(dtype_size(dtype));
  if (dtype == DType::kF32) {
    float value;
    std::memcpy(&value, at, sizeof(value));
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, at, sizeof(bits));
  return dtype == DType::kBF16 ? bf16_to_f32(bits) : f16_to_f32(bits);
}

/// Whether two tensors of one shape hold the same numbers: to the bit in one type, else up to what rounding
/// to the narrower of the two can change.
bool equal_numbers(const SafetensorsEntry& a, const SafetensorsEntry& b) {
  const std::optional<DType> x = dtype_of(a), y = dtype_of(b);
  if (!x || !y) return false;
  if (*x == *y) return std::equal(a.data.begin(), a.data.end(), b.data.begin(), b.data.end());
  const bool bf16 = *x == DType::kBF16 || *y == DType::kBF16, f16 = *x == DType::kF16 || *y == DType::kF16;
  const float relative = bf16 ? 0x1p-8f : 0x1p-11f, least = f16 ? 0x1p-25f : 0.0f;  // half a step
  for (size_t i = 0; i < a.data.size() / static_cast<size_t>(dtype_size(*x)); ++i) {
    const float p = number_at(a, *x, i), q = number_at(b, *y, i);
    if (!(std::abs(p - q) <= relative * std::abs(p) + least)) return false;
  }
  return true;
}

/// The weight files of a folder, in order, checked against the index where there is one.
/// `tied`: the head is the embedding, whatever the index says of it.
Result<std::vector<SafetensorsFile>> open_weights(const std::string& folder, bool tied) {
  std::vector<SafetensorsFile> files;
  const std::string single = folder + "/model.safetensors";
  const std::string index_path = folder + "/model.safetensors.index.json";
  if (file_exists(single)) {
    DS_ASSIGN(SafetensorsFile file, SafetensorsFile::open(single));
    files.push_back(std::move(file));
    return files;
  }
  if (!file_exists(index_path)) {
    for (const char* other : {"pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.safetensors",
                              "consolidated.00.pth"}) {
      if (file_exists(folder + "/" + other)) {
        return error(
            Code::kUnsupported,
            "'{}' has its weights in '{}'; expected model.safetensors. Save it again with transformers' "
            "save_pretrained",
            folder, other);
      }
    }
    return error(Code::kNotFound, "'{}' has neither model.safetensors nor model.safetensors.index.json",
                 folder);
  }

  DS_ASSIGN(json document, read_json_file(index_path));
  DS_ASSIGN(JsonObject index, JsonObject::make(document, index_path));
  DS_ASSIGN(JsonObject map, index.object("weight_map"));
  std::set<std::string> names, needed;
  for (const auto& [tensor, file] : map.json().items()) {
    // The index names files beside it; a path could lead out of the folder.
    std::string name = file.is_string() ? file.get<std::string>() : "";
    if (name.empty() || name.find('/') != std::string::npos || name == "." || name == "..") {
      return error(Code::kCorrupt,
                   "{}: tensor '{}' is mapped to {}, expected the name of a file in this folder", index_path,
                   tensor, file.dump(-1, ' ', false, json::error_handler_t::replace));
    }
    names.insert(name);
    if (!tied || tensor != kHead) needed.insert(name);
  }
  std::map<std::string, size_t> opened;
  for (const std::string& name : names) {
    if (needed.count(name) == 0 && !file_exists(folder + "/" + name)) continue;
    Result<SafetensorsFile> file = SafetensorsFile::open(folder + "/" + name);
    if (!file.ok()) {
      return file.status().with_context(fmt::format("a shard that {} names", index_path));
    }
    opened[name] = files.size();
    files.push_back(std::move(*file));
  }
  for (const auto& [tensor, file] : map.json().items()) {
    if (tied && tensor == kHead) continue;  // writers drop it from the files, but not from the index
    const SafetensorsFile& shard = files[opened[file.get<std::string>()]];
    if (shard.entries().count(tensor) == 0) {
      return error(Code::kCorrupt, "'{}' has no tensor '{}', but {} says so", shard.path(), tensor,
                   index_path);
    }
  }
  return files;
}

}  // namespace

int64_t TensorView::elements() const {
  int64_t n = 1;
  for (int64_t size : shape) n *= size;
  return n;
}

std::vector<TensorSpec> required_tensors(const ModelConfig& c) {
  const int64_t q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  std::vector<TensorSpec> specs{{kEmbedding, {c.vocab, c.d_model}}};
  for (int64_t l = 0; l < c.layers; ++l) {
    auto add = [&](const char* name, std::vector<int64_t> shape) {
      specs.push_back({fmt::format("model.layers.{}.{}", l, name), std::move(shape)});
    };
    add("input_layernorm.weight", {c.d_model});
    add("self_attn.q_proj.weight", {q, c.d_model});
    add("self_attn.k_proj.weight", {kv, c.d_model});
    add("self_attn.v_proj.weight", {kv, c.d_model});
    if (c.qkv_bias) {
      add("self_attn.q_proj.bias", {q});
      add("self_attn.k_proj.bias", {kv});
      add("self_attn.v_proj.bias", {kv});
    }
    if (c.o_bias) add("self_attn.o_proj.bias", {c.d_model});
    if (c.qk_norm) {
      add("self_attn.q_norm.weight", {c.head_dim});
      add("self_attn.k_norm.weight", {c.head_dim});
    }
    add("self_attn.o_proj.weight", {c.d_model, q});
    add("post_attention_layernorm.weight", {c.d_model});
    add("mlp.gate_proj.weight", {c.ff, c.d_model});
    add("mlp.up_proj.weight", {c.ff, c.d_model});
    add("mlp.down_proj.weight", {c.d_model, c.ff});
    if (c.mlp_bias) {
      add("mlp.gate_proj.bias", {c.ff});
      add("mlp.up_proj.bias", {c.ff});
      add("mlp.down_proj.bias", {c.d_model});
    }
  }
  specs.push_back({"model.norm.weight", {c.d_model}});
  if (!c.tied_embeddings) specs.push_back({kHead, {c.vocab, c.d_model}});
  return specs;
}

Result<Checkpoint> Checkpoint::open_adapter(const std::string& folder, const OpenOptions& options) {
  DS_ASSIGN(Adapter adapter, Adapter::open(folder));
  DS_ASSIGN(const std::string base_folder, adapter.find_base(options.base));
  if (Adapter::is_adapter(base_folder))
    return error(Code::kUnsupported,
                 "'{}' is an adapter of '{}', which is an adapter itself; merge that one into its base first",
                 folder, base_folder);
  OpenOptions of_base = options;
  of_base.base.clear();
  Result<Checkpoint> base = Checkpoint::open(base_folder, of_base);
  if (!base.ok()) return base.status().with_context(fmt::format("the base of the adapter '{}'", folder));
  Checkpoint checkpoint;
  checkpoint.folder_ = folder;
  checkpoint.name_ = model_name(folder);
  checkpoint.base_ = std::make_shared<const Checkpoint>(std::move(*base));
  DS_TRY(adapter.attach(*checkpoint.base_));
  checkpoint.config_ = adapter.config();
  checkpoint.tensors_ = adapter.tensors();
  checkpoint.files_.push_back(std::move(adapter).release());
  checkpoint.adapter_ = std::make_shared<const Adapter>(std::move(adapter));
  return checkpoint;
}

Result<Checkpoint> Checkpoint::open(const std::string& given, const OpenOptions& options) {
  DS_ASSIGN(const std::string folder, find_model_folder(given));
  if (Adapter::is_adapter(folder)) return open_adapter(folder, options);
  Checkpoint checkpoint;
  checkpoint.folder_ = folder;
  checkpoint.name_ = model_name(folder);
  DS_ASSIGN(checkpoint.config_, ModelConfig::read(folder, options.max_model_len));
  if (file_exists(folder + "/adapter_config.json")) {
    return error(Code::kUnsupported,
                 "'{}' has an adapter (adapter_config.json) beside the weights of a model: is it merged into "
                 "them or not? Keep the two in folders of their own",
                 folder);
  }
  DS_ASSIGN(std::vector<SafetensorsFile> files, open_weights(folder, checkpoint.config_.tied_embeddings));

  const ModelConfig& config = checkpoint.config_;
  std::map<std::string, const SafetensorsFile*> owners;
  for (const SafetensorsFile& file : files) {
    for (const auto& [name, entry] : file.entries()) {
      auto [it, added] = owners.emplace(name, &file);
      if (!added) {
        return error(Code::kCorrupt, "tensor '{}' is in '{}' and again in '{}'", name, it->second->path(),
                     file.path());
      }
    }
  }

  const std::vector<TensorSpec> specs = required_tensors(config);
  int64_t missing = 0;
  const TensorSpec* first_missing = nullptr;
  for (const TensorSpec& spec : specs) {
    if (owners.count(spec.name) > 0) continue;
    if (missing++ == 0) first_missing = &spec;
  }
  if (missing > 0) {
    return error(Code::kNotFound, "'{}' lacks tensor '{}'{} of the {} that its config.json calls for{}",
                 folder, first_missing->name, missing > 1 ? fmt::format(" and {} more", missing - 1) : "",
                 specs.size(),
                 first_missing->name == kHead ? "; is 'tie_word_embeddings' missing there?" : "");
  }

  for (const TensorSpec& spec : specs) {
    auto owner = owners.find(spec.name);
    const std::string& file = owner->second->path();
    const SafetensorsEntry& entry = owner->second->entries().at(spec.name);
    if (entry.shape != spec.shape) {
      return error(Code::kMismatch, "{}: tensor '{}' has shape {}, expected {} by config.json", file,
                   spec.name, shape_text(entry.shape), shape_text(spec.shape));
    }
    TensorView view;
    if (std::optional<DType> dtype = dtype_of(entry)) {
      view.dtype = *dtype;
    } else {
      return error(Code::kUnsupported, "{}: tensor '{}' has elements of type {}, expected BF16, F16 or F32",
                   file, spec.name, entry.dtype);
    }
    view.shape = entry.shape;
    view.data = entry.data;
    if (reinterpret_cast<uintptr_t>(view.data.data()) % static_cast<uintptr_t>(dtype_size(view.dtype)) != 0) {
      checkpoint.owned_.emplace_back(view.data.begin(), view.data.end());
      view.data = checkpoint.owned_.back();
    }
    checkpoint.tensors_.emplace(spec.name, std::move(view));
    owners.erase(owner);
  }

  for (const auto& [name, file] : owners) {
    if (without_effect(name)) continue;
    const SafetensorsEntry& entry = file->entries().at(name);
    if (name == kHead && config.tied_embeddings) {
      // Saved twice. Where they differ the two readings of the folder are two models.
      const SafetensorsFile* other = nullptr;
      for (const SafetensorsFile& f : files) {
        if (f.entries().count(kEmbedding) > 0) other = &f;
      }
      const SafetensorsEntry& embedding = other->entries().at(kEmbedding);
      if (entry.shape == embedding.shape && equal_numbers(entry, embedding)) continue;
      return error(Code::kMismatch,
                   "{}: config.json ties the embeddings ('tie_word_embeddings'), but '{}' differs from '{}'; "
                   "correct the config or drop the tensor",
                   file->path(), kHead, kEmbedding);
    }
    return error(
        Code::kUnsupported,
        "{}: tensor '{}' ({} {}) is no part of {} with {} layers as config.json describes it, and would "
        "change the result if it were used",
        file->path(), name, entry.dtype, shape_text(entry.shape), family_name(config.family), config.layers);
  }
  for (SafetensorsFile& file : files) checkpoint.files_.push_back(std::move(file).release());
  DS_TRY(checkpoint.intact());
  return checkpoint;
}

Result<Checkpoint> Checkpoint::random(const ModelConfig& config, uint64_t seed) {
  Checkpoint checkpoint;
  checkpoint.config_ = config;
  checkpoint.config_.dtype = DType::kBF16;
  checkpoint.name_ = fmt::format("random-{}", seed);
  const std::vector<TensorSpec> specs = required_tensors(config);

  // Drawing billions of normals takes minutes. Every tensor is a run of one pool, from a start of its own;
  // the pool's length is prime, so that the rows of a matrix are different pieces of it.
  constexpr size_t kPool = 2'097'143;
  std::vector<float> normals(kPool);
  std::mt19937_64 generator(seed);
  // Box-Muller by hand: std::normal_distribution may differ between standard libraries.
  auto uniform = [&] { return (static_cast<double>(generator() >> 11) + 0.5) * 0x1p-53; };
  for (size_t i = 0; i < kPool; i += 2) {
    double radius = std::sqrt(-2 * std::log(uniform())), angle = 6.283185307179586 * uniform();
    normals[i] = static_cast<float>(radius * std::cos(angle));
    if (i + 1 < kPool) normals[i + 1] = static_cast<float>(radius * std::sin(angle));
  }

  auto fan_in = [&](const TensorSpec& spec) {
    return spec.shape.size() == 2 ? spec.shape[1] : config.d_model;
  };
  std::map<int64_t, std::vector<uint16_t>> pools;  // by fan-in
  for (const TensorSpec& spec : specs) pools[fan_in(spec)];
  for (auto& [fan, pool] : pools) {
    const float scale = 1.0f / std::sqrt(static_cast<float>(fan));
    pool.resize(kPool);
    for (size_t i = 0; i < kPool; ++i) pool[i] = f32_to_bf16(normals[i] * scale);
  }
  std::vector<size_t> starts(specs.size());
  for (size_t& start : starts) start = generator() % kPool;

  checkpoint.owned_.resize(specs.size());
  std::atomic<bool> exhausted{false};
  parallel_for(specs.size(), [&](size_t i) {
    const TensorSpec& spec = specs[i];
    std::vector<std::byte>& bytes = checkpoint.owned_[i];
    size_t left = 1;
    for (int64_t n : spec.shape) left *= static_cast<size_t>(n);
    try {
      bytes.reserve(left * 2);  // and append: filling with zeros first would touch every page twice
      if (spec.name.ends_with("norm.weight")) {
        const std::array<std::byte, 2> one{std::byte{0x80}, std::byte{0x3f}};
        for (; left > 0; --left) bytes.insert(bytes.end(), one.begin(), one.end());
        return;
      }
      const std::vector<uint16_t>& pool = pools.at(fan_in(spec));
      const auto* source = reinterpret_cast<const std::byte*>(pool.data());
      for (size_t at = starts[i]; left > 0; at = 0) {
        const size_t run = std::min(left, kPool - at);
        bytes.insert(bytes.end(), source + at * 2, source + (at + run) * 2);
        left -= run;
      }
    } catch (const std::bad_alloc&) {
      exhausted = true;
    }
  });
  if (exhausted)
    return error(Code::kExhausted, "out of memory while making up the weights of '{}'", checkpoint.name_);
  for (size_t i = 0; i < specs.size(); ++i) {
    checkpoint.tensors_.emplace(specs[i].name,
                                TensorView{DType::kBF16, specs[i].shape, std::span(checkpoint.owned_[i])});
  }
  return checkpoint;
}

Result<TensorView> Checkpoint::tensor(const std::string& name) const {
  auto it = tensors_.find(name);
  if (it == tensors_.end()) return error(Code::kNotFound, "checkpoint '{}' has no tensor '{}'", name_, name);
  if (adapter_ && adapter_->merges(name)) return adapter_->merge(name);
  return it->second;
}

Result<std::vector<int64_t>> Checkpoint::shape(const std::string& name) const {
  auto it = tensors_.find(name);
  if (it == tensors_.end()) return error(Code::kNotFound, "checkpoint '{}' has no tensor '{}'", name_, name);
  return it->second.shape;
}

std::string Checkpoint::folder_of(const std::string& file) const {
  return base_ && !file_exists(folder_ + "/" + file) ? base_->folder_ : folder_;
}

int64_t Checkpoint::weight_bytes() const {
  int64_t bytes = 0;
  for (const auto& [name, tensor] : tensors_) bytes += static_cast<int64_t>(tensor.data.size());
  return bytes;
}

/// What one reading of all weights finds, by tensor in the order of names.
struct Checkpoint::Reading {
  std::vector<const std::pair<const std::string, TensorView>*> tensors;
  std::vector<XXH128_hash_t> hashes;
  std::vector<int64_t> special;  // index of the first NaN or infinity, -1: none
};

Checkpoint::Reading Checkpoint::read_weights(const std::function<void(int64_t, int64_t)>& progress) const {
  Reading reading;
  for (const auto& named : tensors_) reading.tensors.push_back(&named);
  const size_t count = reading.tensors.size();
  reading.hashes.resize(count);
  reading.special.assign(count, -1);
  // The largest first: a tensor's hash is one chain, and the last to start should be a short one.
  std::vector<size_t> order(count);
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return reading.tensors[a]->second.data.size() > reading.tensors[b]->second.data.size();
  });
  const int64_t total = weight_bytes();
  std::atomic<int64_t> done{0};
  const std::thread::id caller = std::this_thread::get_id();
  parallel_for(count, [&](size_t k) {
    const size_t i = order[k];
    const TensorView& tensor = reading.tensors[i]->second;
    std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state(XXH3_createState(), &XXH3_freeState);
    XXH3_128bits_reset(state.get());
    // Small enough to stay in the second-level cache between the two readers of it.
    constexpr size_t kBlock = 256 << 10;
    for (size_t at = 0; at < tensor.data.size(); at += kBlock) {
      auto block = tensor.data.subspan(at, std::min(kBlock, tensor.data.size() - at));
      XXH3_128bits_update(state.get(), block.data(), block.size());
      if (reading.special[i] < 0) {
        int64_t found = first_special(tensor.dtype, block);
        if (found >= 0) reading.special[i] = static_cast<int64_t>(at) / dtype_size(tensor.dtype) + found;
      }
      int64_t sum = done += static_cast<int64_t>(block.size());
      if (progress && std::this_thread::get_id() == caller) progress(sum, total);
    }
    reading.hashes[i] = XXH3_128bits_digest(state.get());
  });
  if (progress) progress(total, total);
  return reading;
}

std::string Checkpoint::weights_hash(const Reading& reading) const {
  std::string text;
  for (size_t i = 0; i < reading.tensors.size(); ++i) {
    const auto& [name, t] = *reading.tensors[i];
    text += fmt::format("{} {} {} {:016x}{:016x}\n", name, dtype_name(t.dtype), shape_text(t.shape),
                        reading.hashes[i].high64, reading.hashes[i].low64);
  }
  return sha256_hex(text);
}

Status Checkpoint::finite(const Reading& reading) const {
  for (size_t i = 0; i < reading.tensors.size(); ++i) {
    if (reading.special[i] < 0) continue;
    const auto& [name, tensor] = *reading.tensors[i];
    return error(Code::kCorrupt, "checkpoint '{}': tensor '{}' has {} at element {}, expected finite weights",
                 name_, name, element(tensor, reading.special[i]), reading.special[i]);
  }
  return ok_status();
}

Result<ModelIdentity> Checkpoint::identity_with(std::string weights) const {
  ModelIdentity identity;
  identity.name = name_;
  identity.config = sha256_hex(config_.canonical());
  identity.weights = std::move(weights);
  const std::string tokenizer = folder_of("tokenizer.json") + "/tokenizer.json";
  if (!folder_.empty() && file_exists(tokenizer)) {
    DS_ASSIGN(std::string file, read_text_file(tokenizer));
    identity.tokenizer = sha256_hex(file);
  }
  identity.fingerprint = identity_fingerprint(identity.config, identity.weights, identity.tokenizer);
  return identity;
}

Status Checkpoint::intact() const {
  if (base_) DS_TRY(base_->intact());
  for (const MappedFile& file : files_) DS_TRY(file.intact());
  return ok_status();
}

std::string Checkpoint::adapted_weights(const std::string& base, const Adapter& adapter) {
  return sha256_hex(fmt::format("base {}\nadapter {}\n", base, adapter.hash()));
}

Result<ModelIdentity> Checkpoint::identity() const {
  if (adapter_) {
    DS_ASSIGN(ModelIdentity base, base_->identity());
    return identity_with(adapted_weights(base.weights, *adapter_));
  }
  const Reading reading = read_weights({});
  DS_TRY(intact());
  return identity_with(weights_hash(reading));
}

Status Checkpoint::check_finite() const {
  if (adapter_) {
    DS_TRY(base_->check_finite());
    return adapter_->check_finite();
  }
  const Reading reading = read_weights({});
  DS_TRY(intact());
  return finite(reading);
}

Result<ModelIdentity> Checkpoint::verify(const std::function<void(int64_t, int64_t)>& progress) const {
  if (adapter_) {
    DS_TRY(adapter_->check_finite());
    DS_ASSIGN(ModelIdentity base, base_->verify(progress));
    return identity_with(adapted_weights(base.weights, *adapter_));
  }
  const Reading reading = read_weights(progress);
  DS_TRY(intact());
  DS_TRY(finite(reading));
  return identity_with(weights_hash(reading));
}

}  // namespace ds
