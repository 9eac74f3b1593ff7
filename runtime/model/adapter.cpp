#define PCRE2_CODE_UNIT_WIDTH 8
#include "runtime/model/adapter.h"

#include <pcre2.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <filesystem>
#include <memory>
#include <new>
#include <set>

#include "runtime/model/adapter_internal.h"
#include "runtime/model/parallel_internal.h"
#include "support/file.h"
#include "support/hash.h"
#include "support/json.h"

namespace ds {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr const char* kConfigFile = "/adapter_config.json";
constexpr const char* kWeightFile = "/adapter_model.safetensors";
constexpr std::string_view kPrefix = "base_model.model.";
constexpr const char* kEmbeddings = "model.embed_tokens";
constexpr const char* kHead = "lm_head";
// What PEFT targets in all families done here where the config names nothing.
constexpr std::array<const char*, 2> kDefaultTargets{"q_proj", "v_proj"};

std::string shape_text(std::span<const int64_t> shape) { return fmt::format("[{}]", fmt::join(shape, ", ")); }

std::string shown(const json& value) {
  std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  return text.size() > 80 ? text.substr(0, 77) + "..." : text;
}

/// null, false, 0, "" and empty lists: what Python takes for "not set".
bool set(const json& object, const char* key) {
  auto it = object.find(key);
  if (it == object.end() || it->is_null()) return false;
  if (it->is_boolean()) return it->get<bool>();
  if (it->is_number()) return *it != 0;
  if (it->is_string()) return !it->get_ref<const std::string&>().empty();
  return !it->empty();
}

bool ends_with_segment(std::string_view key, std::string_view end) {
  return key == end || (key.ends_with(end) && key[key.size() - end.size() - 1] == '.');
}

/// A Python pattern (PCRE2 reads the common subset alike) against the name of a module.
class NamePattern {
 public:
  static Result<NamePattern> make(const std::string& pattern, const std::string& where) {
    int code = 0;
    size_t offset = 0;
    NamePattern p;
    p.where_ = where;
    p.code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                PCRE2_UTF | PCRE2_ANCHORED, &code, &offset, nullptr),
                  pcre2_code_free);
    if (!p.code_) {
      std::array<unsigned char, 128> message{};
      pcre2_get_error_message(code, message.data(), message.size());
      return error(Code::kCorrupt, "{}: '{:.200}' is no regular expression: {} (at byte {})", where, pattern,
                   reinterpret_cast<const char*>(message.data()), offset);
    }
    return p;
  }

  /// re.match, or re.fullmatch with `whole`. Gives the text of the group `idx` where there is one.
  Result<bool> match(const std::string& text, bool whole, std::string* idx = nullptr) const {
    std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> data(
        pcre2_match_data_create_from_pattern(code_.get(), nullptr), pcre2_match_data_free);
    if (data == nullptr) return error(Code::kExhausted, "{}: out of memory", where_);
    const int rc = pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), 0,
                               whole ? PCRE2_ENDANCHORED : 0, data.get(), nullptr);
    if (rc == PCRE2_ERROR_NOMATCH) return false;
    if (rc < 0)
      return error(Code::kExhausted, "{}: the pattern takes too long on '{}' ({})", where_, text, rc);
    if (idx != nullptr) {
      const int group = pcre2_substring_number_from_name(code_.get(), reinterpret_cast<PCRE2_SPTR>("idx"));
      const size_t* at = pcre2_get_ovector_pointer(data.get());
      if (group > 0 && at[2 * group] != PCRE2_UNSET)
        *idx = text.substr(at[2 * group], at[2 * group + 1] - at[2 * group]);
    }
    return true;
  }

 private:
  std::string where_;
  std::shared_ptr<pcre2_code> code_;
};

Result<bool> matches(const std::string& pattern, const std::string& text, bool whole,
                     const std::string& where, std::string* idx = nullptr) {
  DS_ASSIGN(NamePattern compiled, NamePattern::make(pattern, where));
  return compiled.match(text, whole, idx);
}

/// A text or a list of texts; empty where it is not set.
Result<std::vector<std::string>> texts(const JsonObject& object, const char* key) {
  std::vector<std::string> out;
  if (!object.has(key)) return out;
  const json& value = object.json().at(key);
  if (value.is_string()) return std::vector<std::string>{value.get<std::string>()};
  DS_ASSIGN(const json* list, object.array(key));
  for (const json& item : *list) {
    if (!item.is_string())
      return error(Code::kCorrupt, "{} is {}, expected texts", object.at(key), shown(value));
    out.push_back(item.get<std::string>());
  }
  return out;
}

enum class Part : uint8_t { kA, kB, kBBias, kEmbeddingA, kEmbeddingB, kMagnitude, kWeight, kBias };

/// The name of a tensor in the file, taken apart.
struct Key {
  std::string module, adapter;  // adapter: "default" and the like, where the name has one
  Part part = Part::kWeight;
};

std::vector<std::string> split(std::string_view text) {
  std::vector<std::string> out(1);
  for (char c : text) {
    if (c == '.')
      out.emplace_back();
    else
      out.back() += c;
  }
  return out;
}

/// Nothing: a name that PEFT does not give to parts of a LoRA adapter.
std::optional<Key> parse_key(std::string_view name) {
  if (!name.starts_with(kPrefix)) return std::nullopt;
  std::vector<std::string> words = split(name.substr(kPrefix.size()));
  static const std::set<std::string, std::less<>> kMarks{"lora_A",           "lora_B",
                                                         "lora_embedding_A", "lora_embedding_B",
                                                         "modules_to_save",  "lora_magnitude_vector",
                                                         "base_layer"};
  auto mark = std::find_if(words.begin(), words.end(), [](const auto& w) { return kMarks.count(w) > 0; });
  Key key;
  const std::string what = mark == words.end() ? "" : *mark;
  std::vector<std::string> rest;
  if (mark == words.end()) {
    rest.push_back(words.back());
    words.pop_back();
    key.module = fmt::format("{}", fmt::join(words, "."));
  } else {
    key.module = fmt::format("{}", fmt::join(words.begin(), mark, "."));
    rest.assign(mark + 1, words.end());
  }
  std::string last = !rest.empty() && (rest.back() == "weight" || rest.back() == "bias") ? rest.back() : "";
  if (!last.empty()) rest.pop_back();
  if (rest.size() > 1 || (rest.size() == 1 && (what.empty() || what == "base_layer"))) return std::nullopt;
  if (!rest.empty()) key.adapter = rest[0];
  if (what.empty() || what == "base_layer" || what == "modules_to_save") {
    if (last.empty()) return std::nullopt;
    key.part = last == "weight" ? Part::kWeight : Part::kBias;
  } else if (what == "lora_A") {
    if (last != "weight") return std::nullopt;
    key.part = Part::kA;
  } else if (what == "lora_B") {
    if (last.empty()) return std::nullopt;
    key.part = last == "weight" ? Part::kB : Part::kBBias;
  } else if (what == "lora_magnitude_vector") {
    if (last == "bias") return std::nullopt;
    key.part = Part::kMagnitude;
  } else {
    if (!last.empty()) return std::nullopt;
    key.part = what == "lora_embedding_A" ? Part::kEmbeddingA : Part::kEmbeddingB;
  }
  return key;
}

/// `count` elements as f32.
void to_f32(const TensorView& from, int64_t first, int64_t count, float* out) {
  const std::byte* at = from.data.data() + first * dtype_size(from.dtype);
  if (from.dtype == DType::kF32) {
    std::memcpy(out, at, static_cast<size_t>(count) * 4);
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    uint16_t half = 0;
    std::memcpy(&half, at + i * 2, 2);
    out[i] = from.dtype == DType::kBF16 ? bf16_to_f32(half) : f16_to_f32(half);
  }
}

std::vector<float> to_f32(const TensorView& from) {
  std::vector<float> out(static_cast<size_t>(from.elements()));
  to_f32(from, 0, from.elements(), out.data());
  return out;
}

/// [rows][columns] -> [columns][rows]
std::vector<float> transposed(const std::vector<float>& from, int64_t rows, int64_t columns) {
  std::vector<float> out(from.size());
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j)
      out[static_cast<size_t>(j * rows + i)] = from[static_cast<size_t>(i * columns + j)];
  return out;
}

int64_t first_not_finite(std::span<const float> values) {
  for (size_t i = 0; i < values.size(); ++i)
    if (!std::isfinite(values[i])) return static_cast<int64_t>(i);
  return -1;
}

bool same_bytes(const TensorView& a, const TensorView& b) {
  return a.dtype == b.dtype && a.shape == b.shape &&
         (a.data.data() == b.data.data() || std::equal(a.data.begin(), a.data.end(), b.data.begin()));
}

}  // namespace

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

Status Adapter::read_config() {
  const std::string path = folder_ + kConfigFile;
  DS_ASSIGN(std::string text, read_text_file(path, 64 << 20));
  DS_ASSIGN(json document, parse_json(text, path));
  DS_ASSIGN(JsonObject object, JsonObject::make(document, path));
  DS_ASSIGN(std::string type, object.string("peft_type"));
  if (type != "LORA")
    return error(Code::kUnsupported, "{}: peft_type is '{:.60}'; of PEFT's adapters only LORA is done", path,
                 type);
  DS_ASSIGN(std::string task, object.string_or("task_type", "CAUSAL_LM"));
  if (task != "CAUSAL_LM")
    return error(Code::kUnsupported, "{}: task_type is '{:.60}', expected CAUSAL_LM", path, task);
  DS_ASSIGN(base_name_, object.string_or("base_model_name_or_path", ""));

  static constexpr struct {
    const char *key, *why;
  } kRefused[] = {
      {"alora_invocation_tokens", "activated LoRA changes only some tokens and cannot be merged"},
      {"arrow_config", "Arrow routes between adapters and cannot be merged"},
      {"use_bdlora", "block-diagonal LoRA is not done"},
      {"use_qalora", "QALoRA is not done"},
      {"monteclora_config", "MonteCLoRA is not done"},
      {"kasa_config", "KaSA changes the base's weights"},
      {"layer_replication", "replicated layers are not done"},
      {"target_parameters", "LoRA on parameters (mixtures of experts) is not done"},
      {"trainable_token_indices", "trainable tokens are not done"},
      {"megatron_config", "Megatron's layers are not done"},
  };
  for (const auto& refused : kRefused) {
    if (set(document, refused.key))
      return error(Code::kUnsupported, "{}: '{}' is set: {}", path, refused.key, refused.why);
  }
  if (object.has("init_lora_weights")) {
    const json& init = document.at("init_lora_weights");
    static const std::set<std::string> kHarmless{"gaussian", "eva", "orthogonal", "true", "True", "false"};
    if (!init.is_boolean() && !(init.is_string() && kHarmless.count(init.get<std::string>()) > 0))
      return error(
          Code::kUnsupported,
          "{}: 'init_lora_weights' is {}, which changes the base's weights before training; save the "
          "adapter with save_pretrained(..., path_initial_model_for_weight_conversion=...)",
          path, shown(init));
  }

  Settings& s = settings_;
  DS_ASSIGN(s.r, object.integer_or("r", 1, 1 << 20, 8));
  DS_ASSIGN(s.alpha, object.number_or("lora_alpha", -1e9, 1e9, 8));
  DS_ASSIGN(s.rslora, object.boolean_or("use_rslora", false));
  DS_ASSIGN(s.dora, object.boolean_or("use_dora", false));
  DS_ASSIGN(s.lora_bias, object.boolean_or("lora_bias", false));
  DS_ASSIGN(s.tie, object.boolean_or("ensure_weight_tying", false));
  DS_ASSIGN(s.bias, object.string_or("bias", "none"));
  if (s.bias != "none" && s.bias != "all" && s.bias != "lora_only")
    return error(Code::kUnsupported, "{}: 'bias' is '{:.60}', expected none, all or lora_only", path, s.bias);

  // nlohmann's plain objects forget the order of keys, but of patterns the first that matches counts.
  const auto ordered = nlohmann::ordered_json::parse(text, nullptr, /*allow_exceptions=*/false);
  auto pattern = [&](const char* key, double low, double high, auto& to) -> Status {
    if (!object.has(key)) return ok_status();
    DS_ASSIGN(JsonObject checked, object.object(key));
    for (const auto& [name, ignored] : ordered.at(key).items()) {
      DS_ASSIGN(double value, checked.number(name, low, high));
      using Value = typename std::decay_t<decltype(to)>::value_type::second_type;
      if (static_cast<double>(static_cast<Value>(value)) != value)
        return error(Code::kCorrupt, "{} is {}, expected a whole number", checked.at(name), value);
      to.emplace_back(name, static_cast<Value>(value));
    }
    return ok_status();
  };
  DS_TRY(pattern("rank_pattern", 1, 1 << 20, s.rank_pattern));
  DS_TRY(pattern("alpha_pattern", -1e9, 1e9, s.alpha_pattern));

  DS_ASSIGN(s.saved, texts(object, "modules_to_save"));
  DS_ASSIGN(s.excludes, texts(object, "exclude_modules"));
  if (object.has("exclude_modules") && document.at("exclude_modules").is_string()) {
    if (!s.excludes[0].empty()) s.exclude_regex = s.excludes[0];
    s.excludes.clear();
  }
  if (!object.has("target_modules")) {
    s.targets.assign(kDefaultTargets.begin(), kDefaultTargets.end());
  } else {
    DS_ASSIGN(s.targets, texts(object, "target_modules"));
    if (document.at("target_modules").is_string()) {
      std::string lower = s.targets[0];
      std::transform(lower.begin(), lower.end(), lower.begin(),
                     [](unsigned char c) { return std::tolower(c); });
      s.all_linear = lower == "all-linear";
      if (!s.all_linear) s.target_regex = s.targets[0];
      s.targets.clear();
    }
  }
  if (object.has("layers_to_transform")) {
    const json& value = document.at("layers_to_transform");
    std::vector<int64_t> layers;
    for (const json& l : value.is_array() ? value : json::array({value})) {
      if (!l.is_number_integer())
        return error(Code::kCorrupt, "{}: 'layers_to_transform' is {}, expected numbers of layers", path,
                     shown(value));
      layers.push_back(l.get<int64_t>());
    }
    if (!value.is_array() || !layers.empty()) s.layers = std::move(layers);
  }
  DS_ASSIGN(s.layers_patterns, texts(object, "layers_pattern"));
  std::erase(s.layers_patterns, "");
  return ok_status();
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

Result<bool> Adapter::targeted(const std::string& module) const {
  const Settings& s = settings_;
  const std::string where = folder_ + kConfigFile;
  if (s.exclude_regex) {
    DS_ASSIGN(bool excluded, matches(*s.exclude_regex, module, true, where + ": exclude_modules"));
    if (excluded) return false;
  }
  auto names = [&](const std::string& end) { return ends_with_segment(module, end); };
  if (std::any_of(s.excludes.begin(), s.excludes.end(), names)) return false;
  for (const std::string& m : s.saved) {
    DS_ASSIGN(bool is_saved,
              matches(fmt::format("(^|.*\\.){}($|\\..*)", m), module, false, where + ": modules_to_save"));
    if (is_saved) return false;
  }
  if (s.all_linear) return module != kHead && module != kEmbeddings;
  if (s.target_regex) return matches(*s.target_regex, module, true, where + ": target_modules");
  // A module that is named in full is one whatever layers the others are limited to.
  if (std::find(s.targets.begin(), s.targets.end(), module) != s.targets.end()) return true;
  if (!std::any_of(s.targets.begin(), s.targets.end(), names)) return false;
  if (!s.layers) return true;
  std::vector<std::string> patterns{".*?\\.[^.]*\\.(?P<idx>\\d+)\\."};
  if (!s.layers_patterns.empty()) {
    patterns.clear();
    for (const std::string& p : s.layers_patterns)
      patterns.push_back(fmt::format("(?:^|.*?\\.){}\\.(?P<idx>\\d+)\\.", p));
  }
  for (const std::string& p : patterns) {
    std::string layer;
    DS_ASSIGN(bool found, matches(p, module, false, where + ": layers_pattern", &layer));
    if (!found) continue;
    return std::any_of(s.layers->begin(), s.layers->end(),
                       [&](int64_t l) { return std::to_string(l) == layer; });
  }
  return false;
}

bool Adapter::saved(const std::string& module) const {
  // PEFT saves a module and all below it where its name *ends* with one of the list.
  for (size_t end = module.size(); end != std::string::npos; end = module.rfind('.', end - 1)) {
    const std::string_view name = std::string_view(module).substr(0, end);
    for (const std::string& m : settings_.saved)
      if (!m.empty() && name.ends_with(m)) return true;
    if (end == 0) break;
  }
  return false;
}

Status Adapter::attach_embeddings(const Checkpoint& base) {
  const ModelConfig& c = base.config();
  const std::string path = folder_ + kWeightFile;
  const std::string embeddings_name = std::string(kEmbeddings) + ".weight",
                    head_name = std::string(kHead) + ".weight";
  static const Module kNone;
  auto find = [&](const char* name) -> const Module& {
    auto it = modules_.find(name);
    return it == modules_.end() ? kNone : it->second;
  };
  const Module &e = find(kEmbeddings), &h = find(kHead);
  for (const Module* m : {&e, &h}) {
    if (m->weight && (m->weight->view.shape.size() != 2 || m->weight->view.shape[1] != c.d_model ||
                      m->weight->view.shape[0] < 1))
      return error(Code::kMismatch, "{}: tensor '{}' has shape {}, expected [tokens, {}] as in the base '{}'",
                   path, m->weight->name, shape_text(m->weight->view.shape), c.d_model, base.name());
  }
  DS_ASSIGN(const TensorView base_embeddings, base.tensor(embeddings_name));
  TensorView embeddings = base_embeddings, head = base_embeddings;
  if (!c.tied_embeddings) {
    DS_ASSIGN(head, base.tensor(head_name));
    if (e.weight) embeddings = e.weight->view;
    if (h.weight) head = h.weight->view;
  } else {
    // What `modules_to_save` names is a copy of its own; anything else that is saved is the shared matrix.
    const bool own_embeddings = saved(kEmbeddings), own_head = saved(kHead);
    TensorView shared = base_embeddings;
    if (e.weight && !own_embeddings) shared = e.weight->view;
    if (h.weight && !own_head) {
      if (e.weight && !own_embeddings && !same_bytes(e.weight->view, h.weight->view))
        return error(Code::kMismatch,
                     "{}: the base '{}' ties its embeddings, but '{}' differs from '{}'; name both in "
                     "'modules_to_save' if they were trained apart",
                     path, base.name(), h.weight->name, e.weight->name);
      shared = h.weight->view;
    }
    embeddings = own_embeddings && e.weight ? e.weight->view : shared;
    head = own_head && h.weight ? h.weight->view : own_embeddings && settings_.tie ? embeddings : shared;
    config_.tied_embeddings = !e.low_rank() && !h.low_rank() && same_bytes(embeddings, head);
  }
  if (embeddings.shape != head.shape)
    return error(
        Code::kMismatch,
        "{}: with the base '{}' the embeddings have shape {}, but the head {}; expected as many tokens", path,
        base.name(), shape_text(embeddings.shape), shape_text(head.shape));
  config_.vocab = embeddings.shape[0];
  tensors_[embeddings_name] = embeddings;
  if (!config_.tied_embeddings) tensors_[head_name] = head;
  return ok_status();
}

Status Adapter::attach_low_rank(const std::string& name, const Module& m) {
  const std::string path = folder_ + kWeightFile;
  const Settings& s = settings_;
  const std::string tensor_name = name + ".weight";
  auto it = tensors_.find(tensor_name);
  const bool embedding = name == kEmbeddings;
  const std::string any = (m.a             ? m.a
                           : m.b           ? m.b
                           : m.embedding_a ? m.embedding_a
                           : m.embedding_b ? m.embedding_b
                           : m.b_bias      ? m.b_bias
                                           : m.magnitude)
                              ->name;
  if (it == tensors_.end() || it->second.shape.size() != 2)
    return error(Code::kUnsupported,
                 "{}: tensor '{}': LoRA on '{}' is not done; expected a matrix of the model", path, any,
                 name);
  DS_ASSIGN(bool is_target, targeted(name));
  if (!is_target)
    return error(Code::kMismatch,
                 "{}: tensor '{}': 'target_modules' of adapter_config.json does not name '{}', so that PEFT "
                 "would ignore it; the two files do not belong together",
                 path, any, name);
  const auto& first = embedding ? m.embedding_a : m.a;
  const auto& second = embedding ? m.embedding_b : m.b;
  if (!first || !second || (embedding ? m.a || m.b || m.b_bias : m.embedding_a || m.embedding_b))
    return error(Code::kCorrupt, "{}: '{}' has '{}', expected {} and {} of it", path, name, any,
                 embedding ? "lora_embedding_A" : "lora_A", embedding ? "lora_embedding_B" : "lora_B");

  // PEFT's get_pattern_key().
  auto of_pattern = [&](const auto& patterns, auto otherwise,
                        const char* key) -> Result<std::decay_t<decltype(otherwise)>> {
    for (const auto& [pattern, value] : patterns) {
      DS_ASSIGN(bool found, matches(fmt::format("(.*\\.)?({})$", pattern), name, false,
                                    fmt::format("{}{}: {}", folder_, kConfigFile, key)));
      if (found) return value;
    }
    return otherwise;
  };
  DS_ASSIGN(const int64_t r, of_pattern(s.rank_pattern, s.r, "rank_pattern"));
  DS_ASSIGN(const double alpha, of_pattern(s.alpha_pattern, s.alpha, "alpha_pattern"));
  const int64_t rows = it->second.shape[0], columns = it->second.shape[1];
  auto check = [&](const Stored& stored, std::vector<int64_t> shape) -> Status {
    if (stored.view.shape == shape) return ok_status();
    return error(Code::kMismatch,
                 "{}: tensor '{}' has shape {}, expected {} (r is {} there, '{}' is {} in the base){}", path,
                 stored.name, shape_text(stored.view.shape), shape_text(shape), r, tensor_name,
                 shape_text(it->second.shape),
                 base_name_.empty() ? "" : fmt::format("; it was trained on '{}'", base_name_));
  };
  DS_TRY(check(*first, {r, embedding ? rows : columns}));
  DS_TRY(check(*second, {embedding ? columns : rows, r}));
  LowRank low{first->view, second->view, std::nullopt,
              s.rslora ? alpha / std::sqrt(static_cast<double>(r)) : alpha / static_cast<double>(r),
              embedding};

  if (s.dora != m.magnitude.has_value())
    return error(Code::kCorrupt, "{}: 'use_dora' is {}, but '{}' has {} lora_magnitude_vector", path, s.dora,
                 name, s.dora ? "no" : "a");
  if (s.dora) {
    if (embedding)
      return error(Code::kUnsupported, "{}: tensor '{}': DoRA on embeddings is not done", path,
                   m.magnitude->name);
    DS_TRY(check(*m.magnitude, {rows}));
    low.magnitude = m.magnitude->view;
  }
  if (!embedding && s.lora_bias != m.b_bias.has_value())
    return error(Code::kCorrupt, "{}: 'lora_bias' is {}, but '{}' has {} lora_B.bias", path, s.lora_bias,
                 name, s.lora_bias ? "no" : "a");
  if (m.b_bias) {
    if (tensors_.count(name + ".bias") == 0)
      return error(Code::kUnsupported,
                   "{}: tensor '{}' adds a bias to '{}', which has none in the base; PEFT cannot merge that "
                   "either",
                   path, m.b_bias->name, name);
    DS_TRY(check(*m.b_bias, {rows}));
    low_rank_[name + ".bias"] = {{}, m.b_bias->view, std::nullopt, low.scaling, false};
  }
  low_rank_[tensor_name] = std::move(low);
  return ok_status();
}

Status Adapter::attach(const Checkpoint& base) {
  const std::string path = folder_ + kWeightFile;
  config_ = base.config();
  tensors_.clear();
  low_rank_.clear();
  DS_TRY(attach_embeddings(base));
  std::set<std::string> names{kHead};  // of modules; a tied head is one too
  for (const TensorSpec& spec : required_tensors(config_)) {
    const size_t dot = spec.name.rfind('.');
    const std::string module = spec.name.substr(0, dot);
    const bool is_bias = spec.name.substr(dot) == ".bias";
    names.insert(module);
    auto own = modules_.find(module);
    const std::optional<Stored>* stored = own == modules_.end() ? nullptr
                                          : is_bias             ? &own->second.bias
                                                                : &own->second.weight;
    if (stored != nullptr && *stored && module != kEmbeddings && module != kHead) {
      if ((*stored)->view.shape != spec.shape)
        return error(Code::kMismatch, "{}: tensor '{}' has shape {}, expected {} as in the base '{}'", path,
                     (*stored)->name, shape_text((*stored)->view.shape), shape_text(spec.shape), base.name());
      tensors_[spec.name] = (*stored)->view;
    } else if (tensors_.count(spec.name) == 0) {
      DS_ASSIGN(tensors_[spec.name], base.tensor(spec.name));
    }
  }

  for (const auto& [name, module] : modules_) {
    const Stored* foreign = names.count(name) == 0 && module.weight              ? &*module.weight
                            : module.bias && tensors_.count(name + ".bias") == 0 ? &*module.bias
                                                                                 : nullptr;
    if (foreign != nullptr)
      return error(
          Code::kUnsupported,
          "{}: tensor '{}' is no part of the base '{}' ({}, {} layers), and would change the result if "
          "it were used",
          path, foreign->name, base.name(), family_name(config_.family), config_.layers);
    if (module.low_rank()) DS_TRY(attach_low_rank(name, module));
  }

  // What the config names and the file lacks: PEFT would take it as untrained.
  auto lacks = [&](const std::string& name, std::string_view what, const char* key) {
    return error(
        Code::kCorrupt,
        "'{}' lacks {} of '{}', which '{}' in adapter_config.json names: the file is incomplete, or the "
        "base '{}' is not the one that it was trained on",
        path, what, name, key, base.name());
  };
  for (const std::string& name : names) {
    auto own = modules_.find(name);
    static const Module kNone;
    const Module& m = own == modules_.end() ? kNone : own->second;
    const bool has_bias = tensors_.count(name + ".bias") > 0;
    if (saved(name)) {
      if (!m.weight && !(name == kHead && settings_.tie && saved(kEmbeddings)))
        return lacks(name, "the weight", "modules_to_save");
      if (has_bias && !m.bias) return lacks(name, "the bias", "modules_to_save");
      continue;
    }
    auto tensor = tensors_.find(name + ".weight");
    const bool matrix = name == kHead || (tensor != tensors_.end() && tensor->second.shape.size() == 2);
    bool is_target = false;
    if (matrix) {
      DS_ASSIGN(is_target, targeted(name));
    }
    if (is_target && !m.low_rank()) return lacks(name, "lora_A and lora_B", "target_modules");
    if (has_bias && !m.bias && (settings_.bias == "all" || (settings_.bias == "lora_only" && is_target)))
      return lacks(name, "the bias", "bias");
  }
  return ok_status();
}

Result<TensorView> Adapter::merge(const std::string& name) const {
  auto found = low_rank_.find(name);
  if (found == low_rank_.end()) return error(Code::kInternal, "'{}' is not merged by '{}'", name, folder_);
  const LowRank& low = found->second;
  const TensorView& base = tensors_.at(name);
  const int64_t rows = base.shape[0], columns = base.shape.size() == 2 ? base.shape[1] : 1;
  const auto scaling = static_cast<float>(low.scaling);
  try {
    TensorView out{DType::kF32, base.shape, {}};
    const auto bytes = static_cast<size_t>(base.elements()) * 4;
    std::shared_ptr<std::byte[]> memory = std::make_shared_for_overwrite<std::byte[]>(bytes);
    auto* to = reinterpret_cast<float*>(memory.get());
    std::atomic<int64_t> bad{-1};
    if (base.shape.size() == 1) {
      const std::vector<float> bias = to_f32(low.b);
      to_f32(base, 0, rows, to);
      const float one = 1;
      lora::merge_row(&one, bias.data(), 1, rows, scaling, to);
      bad = first_not_finite({to, static_cast<size_t>(rows)});
    } else {
      std::vector<float> a = to_f32(low.a), b = to_f32(low.b);
      const int64_t r = low.a.shape[0];
      if (low.embedding) {  // (B A) transposed is (A transposed) (B transposed)
        std::vector<float> left = transposed(a, r, rows);
        a = transposed(b, columns, r);
        b = std::move(left);
      }
      const std::vector<float> magnitude = low.magnitude ? to_f32(*low.magnitude) : std::vector<float>{};
      constexpr int64_t kRows = 16;  // a thread's share at a time
      parallel_for(static_cast<size_t>((rows + kRows - 1) / kRows), [&](size_t block) {
        const int64_t first = static_cast<int64_t>(block) * kRows, last = std::min(rows, first + kRows);
        for (int64_t i = first; i < last; ++i) {
          float* row = to + i * columns;
          to_f32(base, i * columns, columns, row);
          lora::merge_row(b.data() + i * r, a.data(), r, columns, scaling, row);
          if (!magnitude.empty()) lora::set_magnitude(magnitude[static_cast<size_t>(i)], columns, row);
          if (int64_t at = first_not_finite({row, static_cast<size_t>(columns)}); at >= 0)
            bad = i * columns + at;
        }
      });
    }
    if (bad >= 0)
      return error(Code::kCorrupt, "merging the adapter '{}': tensor '{}' becomes {} at element {}", folder_,
                   name, to[bad], bad.load());
    out.data = {memory.get(), bytes};
    out.owner = std::move(memory);
    return out;
  } catch (const std::bad_alloc&) {
    return error(Code::kExhausted, "merging the adapter '{}': no memory for '{}' ({} elements in f32)",
                 folder_, name, base.elements());
  }
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

Status Adapter::check_finite() const {
  for (const auto& [module, m] : modules_) {
    for (const auto* part :
         {&m.a, &m.b, &m.b_bias, &m.embedding_a, &m.embedding_b, &m.magnitude, &m.weight, &m.bias}) {
      if (!*part) continue;
      const TensorView& view = (*part)->view;
      std::vector<float> piece(1 << 16);
      for (int64_t at = 0; at < view.elements(); at += static_cast<int64_t>(piece.size())) {
        const int64_t count = std::min(view.elements() - at, static_cast<int64_t>(piece.size()));
        to_f32(view, at, count, piece.data());
        const int64_t bad = first_not_finite({piece.data(), static_cast<size_t>(count)});
        if (bad >= 0)
          return error(Code::kCorrupt, "{}{}: tensor '{}' has {} at element {}, expected finite weights",
                       folder_, kWeightFile, (*part)->name, piece[static_cast<size_t>(bad)], at + bad);
      }
    }
  }
  return ok_status();
}

}  // namespace ds
