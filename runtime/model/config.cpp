#include "runtime/model/config.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <numbers>

#include "support/file.h"
#include "support/json.h"

namespace ds {
namespace {

using nlohmann::json;

struct FamilyInfo {
  Family family;
  std::string_view name, architecture;
  // What transformers' class assumes where config.json is silent.
  int64_t kv_heads;  // 0: as many as query heads
  int64_t head_dim;  // 0: hidden_size / num_attention_heads
  int64_t max_positions;
};

constexpr std::array<FamilyInfo, 4> kFamilies{{
    {Family::kLlama, "llama", "LlamaForCausalLM", 0, 0, 2048},
    {Family::kMistral, "mistral", "MistralForCausalLM", 8, 0, 131072},
    {Family::kQwen2, "qwen2", "Qwen2ForCausalLM", 32, 0, 32768},
    {Family::kQwen3, "qwen3", "Qwen3ForCausalLM", 32, 128, 32768},
}};

const FamilyInfo& info_of(Family family) { return kFamilies[static_cast<size_t>(family)]; }

std::string known_families() {
  std::string text;
  for (const FamilyInfo& f : kFamilies) text += fmt::format("{}{}", text.empty() ? "" : ", ", f.name);
  return text;
}

std::string shown(const json& value) {
  std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
  return text.size() > 80 ? text.substr(0, 77) + "..." : text;
}

Status refuse(const JsonObject& config, std::string_view key, std::string_view why) {
  auto it = config.json().find(std::string(key));
  std::string value = it == config.json().end() ? "absent" : shown(*it);
  return error(Code::kUnsupported, "{}: '{}' is {}: {}", config.where(), key, value, why);
}

Result<Family> read_family(const JsonObject& config) {
  std::string model_type;
  DS_ASSIGN(model_type, config.string_or("model_type", ""));
  std::string architecture;
  if (config.has("architectures")) {
    DS_ASSIGN(const json* list, config.array("architectures"));
    for (const json& entry : *list) {
      if (!entry.is_string()) {
        return error(Code::kInvalidArgument, "{}: 'architectures' is {}, expected a list of strings",
                     config.where(), shown(*list));
      }
    }
    if (list->size() > 1) return refuse(config, "architectures", "expected a single class");
    if (!list->empty()) architecture = (*list)[0].get<std::string>();
  }
  if (model_type.empty() && architecture.empty()) {
    return error(Code::kCorrupt, "{}: neither 'model_type' nor 'architectures' says what model this is",
                 config.where());
  }
  const FamilyInfo* found = nullptr;
  for (const FamilyInfo& f : kFamilies) {
    if (model_type.empty() ? f.architecture == architecture : f.name == model_type) found = &f;
  }
  if (found == nullptr) {
    return refuse(config, model_type.empty() ? "architectures" : "model_type",
                  fmt::format("not one of the families that are supported ({})", known_families()));
  }
  if (!architecture.empty() && architecture != found->architecture) {
    return refuse(
        config, "architectures",
        fmt::format("for model type '{}' only {} (a decoder with a language-model head) is supported",
                    found->name, found->architecture));
  }
  return found->family;
}

bool is_number(const json& v, double value) { return v.is_number() && v.get<double>() == value; }
bool neutral_zero(const json& v) { return is_number(v, 0) || v == false; }
bool neutral_one(const json& v) { return is_number(v, 1); }
bool neutral_false(const json& v) { return v == false; }
bool neutral_true(const json& v) { return v == true; }
bool neutral_empty(const json& v) { return v.empty() || v == false; }
bool neutral_never(const json&) { return false; }

// Keys that change the result, and the value with which they do not. null never does. transformers' own
// classes for these families ignore some of them, but a config that states one means a model that needs it.
struct RefusedKey {
  const char* key;
  bool (*neutral)(const json&);
  const char* why;
};

constexpr RefusedKey kRefused[] = {
    {"quantization_config", neutral_empty,
     "quantised weights are not supported; give the checkpoint in bf16, f16 or f32"},
    {"compression_config", neutral_empty,
     "compressed weights are not supported; give the checkpoint in bf16, f16 or f32"},
    {"text_config", neutral_empty, "a multi-modal model; give its text model as a checkpoint of its own"},
    {"vision_config", neutral_empty, "a multi-modal model; give its text model as a checkpoint of its own"},
    {"audio_config", neutral_empty, "a multi-modal model; give its text model as a checkpoint of its own"},
    {"num_local_experts", neutral_zero, "a mixture of experts would need routed MLPs"},
    {"num_experts", neutral_zero, "a mixture of experts would need routed MLPs"},
    {"n_routed_experts", neutral_zero, "a mixture of experts would need routed MLPs"},
    {"num_experts_per_tok", neutral_zero, "a mixture of experts would need routed MLPs"},
    {"moe_intermediate_size", neutral_zero, "a mixture of experts would need routed MLPs"},
    {"mlp_bias", neutral_false, "biases in the MLP are not supported"},
    {"attn_logit_softcapping", neutral_zero, "soft-capped attention scores are not supported"},
    {"final_logit_softcapping", neutral_zero, "soft-capped logits are not supported"},
    {"attention_chunk_size", neutral_zero, "chunked attention is not supported"},
    {"clip_qkv", neutral_zero, "clipped q, k and v are not supported"},
    {"query_pre_attn_scalar", neutral_never, "attention scores are scaled by 1/sqrt(head_dim) only"},
    {"attention_multiplier", neutral_never, "attention scores are scaled by 1/sqrt(head_dim) only"},
    {"attn_temperature_tuning", neutral_false, "attention temperatures are not supported"},
    {"embedding_multiplier", neutral_one, "scaled embeddings are not supported"},
    {"residual_multiplier", neutral_one, "scaled residuals are not supported"},
    {"logits_scaling", neutral_one, "scaled logits are not supported"},
    {"logit_scale", neutral_one, "scaled logits are not supported"},
    {"scale_attn_by_inverse_layer_idx", neutral_false, "scores scaled by layer are not supported"},
    {"use_parallel_residual", neutral_false, "parallel attention and MLP are not supported"},
    {"parallel_attn", neutral_false, "parallel attention and MLP are not supported"},
    {"alibi", neutral_false, "positions other than rotary ones are not supported"},
    {"no_rope_layers", neutral_empty, "layers without rotary positions are not supported"},
    {"no_rope_layer_interval", neutral_zero, "layers without rotary positions are not supported"},
    {"use_mrope", neutral_false, "multi-dimensional rotary positions are not supported"},
    {"mrope_section", neutral_empty, "multi-dimensional rotary positions are not supported"},
    {"is_causal", neutral_true, "attention that is not causal is not supported"},
    {"is_encoder_decoder", neutral_false, "encoder-decoder models are not supported"},
    {"add_cross_attention", neutral_false, "cross-attention is not supported"},
    {"rope_interleaved", neutral_false, "interleaved rotary pairs are not supported (halves are rotated)"},
    {"partial_rotary_factor", neutral_one,
     "every dimension of a head is rotated; a part only is not supported"},
};
// Harmless on purpose: attention_dropout and hidden_dropout (off outside training), pretraining_tp (the same
// sums in slices: only rounding differs, and transformers 5 ignores it), initializer_range, use_cache,
// pad_token_id (no batch padding here), max_window_layers where use_sliding_window is false.

Status refuse_what_is_not_done(const JsonObject& config, Family family) {
  for (const RefusedKey& r : kRefused) {
    if (config.has(r.key) && !r.neutral(config.json().at(r.key))) return refuse(config, r.key, r.why);
  }
  // Qwen2's class has its biases built in and reads no such key, but some files state it.
  if (config.has("attention_bias") && !neutral_false(config.json().at("attention_bias")) &&
      family != Family::kQwen2) {
    return refuse(
        config, "attention_bias",
        fmt::format("biases of attention are supported for qwen2 only, not for {}", family_name(family)));
  }
  if (family == Family::kQwen3) {
    DS_ASSIGN(bool norm, config.boolean_or("use_qk_norm", true));
    if (!norm) return refuse(config, "use_qk_norm", "qwen3 without its q and k norms is not supported");
  } else {
    for (const char* key : {"use_qk_norm", "qk_layernorm", "qk_norm"}) {
      if (config.has(key) && !neutral_false(config.json().at(key))) {
        return refuse(config, key, "norms over q and k are supported for qwen3 only");
      }
    }
  }
  for (const char* key : {"hidden_act", "hidden_activation", "activation_function"}) {
    DS_ASSIGN(std::string activation, config.string_or(key, "silu"));
    if (activation != "silu" && activation != "swish") {
      return refuse(config, key, "the only activation that is supported is 'silu'");
    }
  }
  if (config.has("auto_map")) {
    DS_ASSIGN(JsonObject map, config.object("auto_map"));
    if (map.has("AutoModelForCausalLM")) {
      return refuse(
          config, "auto_map",
          "the checkpoint brings code of its own for the model; only the standard classes are supported");
    }
  }
  return ok_status();
}

// A window binds when some layer slides and its window is shorter than the longest context the model takes.
Status refuse_binding_window(const JsonObject& config, Family family, int64_t layers, int64_t max_positions) {
  constexpr int64_t kMost = int64_t{1} << 40;
  if (config.has("layer_types")) {
    DS_ASSIGN(const json* types, config.array("layer_types"));
    for (size_t i = 0; i < types->size(); ++i) {
      if ((*types)[i] != "full_attention") {
        return error(
            Code::kUnsupported,
            "{}: 'layer_types' has {} at layer {}: only 'full_attention' is supported; a sliding window "
            "would need caches that forget",
            config.where(), shown((*types)[i]), i);
      }
    }
    if (static_cast<int64_t>(types->size()) != layers) {
      return error(Code::kInvalidArgument,
                   "{}: 'layer_types' has {} entries, expected {} (num_hidden_layers)", config.where(),
                   types->size(), layers);
    }
  }
  bool qwen = family == Family::kQwen2 || family == Family::kQwen3;
  int64_t window = 0;  // 0: none
  if (qwen) {
    DS_ASSIGN(bool use, config.boolean_or("use_sliding_window", false));
    if (!use) return ok_status();
    DS_ASSIGN(int64_t first, config.integer_or("max_window_layers", 0, kMost, 28));
    bool listed = config.has("layer_types");  // all full, as checked above: they decide
    if (listed || first >= layers) return ok_status();
    // For these classes null means no window, while an absent key means the default.
    if (!config.json().contains("sliding_window")) {
      window = 4096;
    } else {
      DS_ASSIGN(window, config.integer_or("sliding_window", 0, kMost, 0));
    }
  } else if (family == Family::kMistral && !config.json().contains("sliding_window")) {
    window = 4096;
  } else {
    DS_ASSIGN(window, config.integer_or("sliding_window", 0, kMost, 0));
  }
  if (window == 0 || window >= max_positions) return ok_status();
  return refuse(
      config, qwen ? "use_sliding_window" : "sliding_window",
      fmt::format("a window of {} tokens would bind (max_position_embeddings is {}), and sliding windows "
                  "are not supported; for contexts that fit into the window, set "
                  "max_position_embeddings to {}",
                  window, max_positions, window));
}

// Keys of transformers 4 (rope_theta, rope_scaling with type or rope_type) and 5 (rope_parameters), with
// transformers 5's precedence: a non-empty rope_scaling replaces rope_parameters; what the dictionary states
// wins over the same key beside it.
Result<RopeConfig> read_rope(const JsonObject& config, int64_t max_positions) {
  RopeConfig rope;
  DS_ASSIGN(rope.theta, config.number_or("rope_theta", 1, 1e15, 10000));
  const char* key = nullptr;
  for (const char* candidate : {"rope_scaling", "rope_parameters"}) {
    if (key != nullptr || !config.has(candidate)) continue;
    DS_ASSIGN(JsonObject dictionary, config.object(candidate));
    if (!dictionary.json().empty()) key = candidate;
  }
  if (key == nullptr) return rope;
  DS_ASSIGN(JsonObject dictionary, config.object(key));
  for (const auto& [name, value] : dictionary.json().items()) {
    if (value.is_object()) {
      return refuse(dictionary, name, "rotary parameters that differ by kind of layer are not supported");
    }
  }
  DS_ASSIGN(std::string old_type, dictionary.string_or("type", "default"));
  DS_ASSIGN(std::string type, dictionary.string_or("rope_type", old_type));
  DS_ASSIGN(rope.theta, dictionary.number_or("rope_theta", 1, 1e15, rope.theta));
  if (dictionary.has("partial_rotary_factor") &&
      !neutral_one(dictionary.json().at("partial_rotary_factor"))) {
    return refuse(dictionary, "partial_rotary_factor",
                  "every dimension of a head is rotated; a part only is not supported");
  }
  if (dictionary.has("mrope_section")) {
    return refuse(dictionary, "mrope_section", "multi-dimensional rotary positions are not supported");
  }
  if (type == "default") {
    rope.type = RopeConfig::Type::kDefault;
  } else if (type == "linear") {
    DS_ASSIGN(rope.factor, dictionary.number("factor", 1e-3, 1e6));
    // Dividing by one is the default.
    rope.type = rope.factor == 1 ? RopeConfig::Type::kDefault : RopeConfig::Type::kLinear;
  } else if (type == "llama3") {
    rope.type = RopeConfig::Type::kLlama3;
    DS_ASSIGN(rope.factor, dictionary.number("factor", 1e-3, 1e6));
    DS_ASSIGN(rope.low_freq_factor, dictionary.number("low_freq_factor", 1e-6, 1e6));
    DS_ASSIGN(rope.high_freq_factor, dictionary.number("high_freq_factor", 1e-6, 1e6));
    if (rope.high_freq_factor <= rope.low_freq_factor) {
      return error(Code::kInvalidArgument,
                   "{}: 'high_freq_factor' is {}, expected more than 'low_freq_factor' ({})",
                   dictionary.where(), rope.high_freq_factor, rope.low_freq_factor);
    }
    constexpr const char* kOriginal = "original_max_position_embeddings";
    constexpr int64_t kMost = int64_t{1} << 31;
    DS_ASSIGN(rope.original_max_positions, dictionary.integer_or(kOriginal, 1, kMost, max_positions));
    DS_ASSIGN(rope.original_max_positions,
              config.integer_or(kOriginal, 1, kMost, rope.original_max_positions));
  } else {
    return refuse(dictionary, dictionary.has("rope_type") ? "rope_type" : "type",
                  "supported rotary types are default, linear and llama3");
  }
  return rope;
}

Result<std::vector<int32_t>> read_eos(const JsonObject& object) {
  std::vector<int32_t> ids;
  auto it = object.json().find("eos_token_id");
  if (it == object.json().end() || it->is_null()) return ids;
  json list = it->is_array() ? *it : json::array({*it});
  for (const json& id : list) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() > INT32_MAX ||
        (id.is_number_unsigned() && id.get<uint64_t>() > INT32_MAX)) {
      return error(Code::kInvalidArgument, "{}: 'eos_token_id' is {}, expected a token id or a list of them",
                   object.where(), shown(*it));
    }
    ids.push_back(static_cast<int32_t>(id.get<int64_t>()));
  }
  return ids;
}

Result<DType> read_dtype(const JsonObject& config) {
  const char* key = config.has("dtype") ? "dtype" : "torch_dtype";
  if (!config.has(key)) return DType::kF32;  // torch's default
  DS_ASSIGN(std::string text, config.string(key));
  if (text.starts_with("torch.")) text = text.substr(6);
  Result<DType> dtype = parse_dtype(text);
  if (!dtype.ok()) return refuse(config, key, "supported element types are bfloat16, float16 and float32");
  return dtype;
}

std::string rope_type_name(RopeConfig::Type type) {
  return type == RopeConfig::Type::kDefault  ? "default"
         : type == RopeConfig::Type::kLinear ? "linear"
                                             : "llama3";
}

// Every field that shapes the numbers, by config.json's key; those of the RoPE's scaling only where it uses
// them.
std::vector<std::pair<std::string, std::string>> canonical_fields(const ModelConfig& c) {
  std::vector<std::pair<std::string, std::string>> fields;
  auto add = [&](const char* key, const auto& value) { fields.emplace_back(key, fmt::format("{}", value)); };
  add("model_type", family_name(c.family));
  add("num_hidden_layers", c.layers);
  add("hidden_size", c.d_model);
  add("intermediate_size", c.ff);
  add("num_attention_heads", c.heads);
  add("num_key_value_heads", c.kv_heads);
  add("head_dim", c.head_dim);
  add("vocab_size", c.vocab);
  add("rms_norm_eps", c.rms_norm_eps);
  add("attention_bias", c.qkv_bias);
  add("use_qk_norm", c.qk_norm);
  add("rope_type", rope_type_name(c.rope.type));
  add("rope_theta", c.rope.theta);
  bool linear = c.rope.type == RopeConfig::Type::kLinear, llama3 = c.rope.type == RopeConfig::Type::kLlama3;
  auto add_if = [&](bool used, const char* key, const auto& value) {
    if (used) {
      add(key, value);
    } else {
      fields.emplace_back(key, "none");
    }
  };
  add_if(linear || llama3, "factor", c.rope.factor);
  add_if(llama3, "low_freq_factor", c.rope.low_freq_factor);
  add_if(llama3, "high_freq_factor", c.rope.high_freq_factor);
  add_if(llama3, "original_max_position_embeddings", c.rope.original_max_positions);
  return fields;
}

}  // namespace

std::string_view family_name(Family family) { return info_of(family).name; }

std::vector<float> RopeConfig::inverse_frequencies(int64_t head_dim) const {
  std::vector<float> result(static_cast<size_t>(head_dim / 2));
  // In f32 and in transformers' order of operations; its Python scalars are double until they meet a tensor,
  // and torch computes scalar / tensor as reciprocal times scalar.
  const float base = static_cast<float>(theta);
  for (size_t i = 0; i < result.size(); ++i) {
    float exponent = static_cast<float>(2 * i) / static_cast<float>(head_dim);
    float frequency = 1.0f / std::pow(base, exponent);
    if (type == Type::kLinear) {
      frequency /= static_cast<float>(factor);
    } else if (type == Type::kLlama3) {
      const double original = static_cast<double>(original_max_positions);
      const float low_wavelength = static_cast<float>(original / low_freq_factor);
      const float high_wavelength = static_cast<float>(original / high_freq_factor);
      const float f = static_cast<float>(factor);
      const float wavelength = (1.0f / frequency) * static_cast<float>(2 * std::numbers::pi);
      if (wavelength > low_wavelength) {
        frequency = frequency / f;
      } else if (!(wavelength < high_wavelength)) {
        float smooth =
            ((1.0f / wavelength) * static_cast<float>(original) - static_cast<float>(low_freq_factor)) /
            static_cast<float>(high_freq_factor - low_freq_factor);
        frequency = (1.0f - smooth) * frequency / f + smooth * frequency;
      }
    }
    result[i] = frequency;
  }
  return result;
}

Result<ModelConfig> ModelConfig::read(const std::string& folder) {
  const std::string path = folder + "/config.json";
  DS_ASSIGN(json document, read_json_file(path));
  DS_ASSIGN(JsonObject config, JsonObject::make(document, path));

  ModelConfig c;
  DS_ASSIGN(c.family, read_family(config));
  DS_TRY(refuse_what_is_not_done(config, c.family));
  const FamilyInfo& family = info_of(c.family);

  DS_ASSIGN(c.layers, config.integer("num_hidden_layers", 1, 1024));
  DS_ASSIGN(c.d_model, config.integer("hidden_size", 1, 1 << 18));
  DS_ASSIGN(c.ff, config.integer("intermediate_size", 1, 1 << 20));
  DS_ASSIGN(c.heads, config.integer("num_attention_heads", 1, 1 << 14));
  DS_ASSIGN(c.vocab, config.integer("vocab_size", 1, 1 << 24));
  DS_ASSIGN(c.max_positions,
            config.integer_or("max_position_embeddings", 1, int64_t{1} << 31, family.max_positions));
  DS_ASSIGN(c.rms_norm_eps, config.number_or("rms_norm_eps", 0, 1, 1e-6));

  // Absent means the class's default, null means derived.
  int64_t kv_default =
      document.contains("num_key_value_heads") || family.kv_heads == 0 ? c.heads : family.kv_heads;
  DS_ASSIGN(c.kv_heads, config.integer_or("num_key_value_heads", 1, 1 << 14, kv_default));
  if (c.heads % c.kv_heads != 0) {
    return error(Code::kInvalidArgument,
                 "{}: 'num_attention_heads' is {}, expected a multiple of 'num_key_value_heads' ({}{})", path,
                 c.heads, c.kv_heads,
                 document.contains("num_key_value_heads") ? "" : " where the key is absent");
  }
  if (config.has("head_dim")) {
    DS_ASSIGN(c.head_dim, config.integer("head_dim", 1, 1 << 12));
  } else if (!document.contains("head_dim") && family.head_dim > 0) {
    c.head_dim = family.head_dim;
  } else {
    if (c.d_model % c.heads != 0) {
      return error(
          Code::kInvalidArgument,
          "{}: 'hidden_size' is {}, expected a multiple of 'num_attention_heads' ({}) or a 'head_dim'", path,
          c.d_model, c.heads);
    }
    c.head_dim = c.d_model / c.heads;
    if (c.head_dim > 1 << 12) {
      return error(Code::kInvalidArgument, "{}: hidden_size / num_attention_heads is {}, expected at most {}",
                   path, c.head_dim, 1 << 12);
    }
  }
  if (c.head_dim % 2 != 0) {
    return error(Code::kInvalidArgument,
                 "{}: the head dimension is {}, expected an even number (rotary pairs)", path, c.head_dim);
  }
  DS_ASSIGN(c.rope, read_rope(config, c.max_positions));
  DS_TRY(refuse_binding_window(config, c.family, c.layers, c.max_positions));
  DS_ASSIGN(c.tied_embeddings, config.boolean_or("tie_word_embeddings", false));
  DS_ASSIGN(c.dtype, read_dtype(config));
  c.qkv_bias = c.family == Family::kQwen2;
  c.qk_norm = c.family == Family::kQwen3;

  DS_ASSIGN(c.eos_token_ids, read_eos(config));
  const std::string generation_path = folder + "/generation_config.json";
  Result<json> generation = read_json_file(generation_path);
  if (generation.ok()) {
    DS_ASSIGN(JsonObject object, JsonObject::make(*generation, generation_path));
    DS_ASSIGN(std::vector<int32_t> ids, read_eos(object));
    if (!ids.empty()) c.eos_token_ids = std::move(ids);
  } else if (generation.status().code() != Code::kNotFound) {
    return generation.status();
  }
  return c;
}

std::string ModelConfig::canonical() const {
  std::string text;
  for (const auto& [key, value] : canonical_fields(*this)) text += key + "=" + value + "\n";
  return text + fmt::format("tie_word_embeddings={}\n", tied_embeddings);
}

Shape ModelConfig::shape() const {
  Shape s;
  s.family = std::string(family_name(family));
  s.layers = layers;
  s.d_model = d_model;
  s.ff = ff;
  s.heads = heads;
  s.kv_heads = kv_heads;
  s.head_dim = head_dim;
  s.vocab = vocab;
  return s;
}

std::vector<std::string> architecture_differences(const ModelConfig& sender, const ModelConfig& receiver) {
  std::vector<std::string> lines;
  auto a = canonical_fields(sender), b = canonical_fields(receiver);
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i].second != b[i].second) {
      lines.push_back(fmt::format("{}: sender {}, receiver {}", a[i].first, a[i].second, b[i].second));
    }
  }
  return lines;
}

Status check_same_architecture(const ModelConfig& sender, const ModelConfig& receiver,
                               const std::string& sender_name, const std::string& receiver_name) {
  std::vector<std::string> differences = architecture_differences(sender, receiver);
  if (differences.empty()) return ok_status();
  return error(Code::kMismatch,
               "sender '{}' and receiver '{}' cannot share caches; they differ in {} field{}:\n  {}",
               sender_name, receiver_name, differences.size(), differences.size() == 1 ? "" : "s",
               fmt::join(differences, "\n  "));
}

namespace {

/// "layers=12,d=1024,..." over a Llama's defaults.
Result<ModelConfig> spelled_out_config(std::string_view name, std::string_view text, ModelConfig c) {
  c.layers = 12;
  c.d_model = 1024;
  c.ff = 0;
  c.heads = 16;
  c.kv_heads = 0;
  c.head_dim = 0;
  c.vocab = 32000;
  struct Key {
    std::string_view name;
    int64_t* value;
    int64_t high;
  };
  const Key keys[] = {{"layers", &c.layers, 1024},  {"d", &c.d_model, 1 << 16},
                      {"ff", &c.ff, 1 << 18},       {"heads", &c.heads, 1024},
                      {"kv", &c.kv_heads, 1024},    {"head_dim", &c.head_dim, 256},
                      {"vocab", &c.vocab, 1 << 20}, {"positions", &c.max_positions, 1 << 24}};
  std::vector<std::string_view> seen;
  while (!text.empty()) {
    std::string_view item = text.substr(0, text.find(','));
    text.remove_prefix(std::min(text.size(), item.size() + 1));
    std::string_view key = item.substr(0, item.find('='));
    auto at = std::find_if(std::begin(keys), std::end(keys), [&](const Key& k) { return k.name == key; });
    if (at == std::end(keys) || key.size() == item.size()) {
      return error(Code::kInvalidArgument,
                   "architecture '{}': '{}' is not understood; expected KEY=NUMBER with a key of layers, d, "
                   "ff, heads, kv, head_dim, vocab, positions",
                   name, item);
    }
    if (std::find(seen.begin(), seen.end(), key) != seen.end())
      return error(Code::kInvalidArgument, "architecture '{}': '{}' is given twice", name, key);
    seen.push_back(key);
    std::string_view digits = item.substr(key.size() + 1);
    auto [end, failure] = std::from_chars(digits.data(), digits.data() + digits.size(), *at->value);
    if (failure != std::errc() || end != digits.data() + digits.size() || *at->value < 1 ||
        *at->value > at->high) {
      return error(Code::kInvalidArgument, "architecture '{}': {} is '{}', expected 1 to {}", name, key,
                   digits, at->high);
    }
  }
  if (c.head_dim == 0) {
    if (c.d_model % c.heads != 0 || c.d_model / c.heads % 2 != 0 || c.d_model / c.heads > 256) {
      return error(
          Code::kInvalidArgument,
          "architecture '{}': d {} over {} heads is no even head_dim of at most 256; choose others or "
          "give head_dim",
          name, c.d_model, c.heads);
    }
    c.head_dim = c.d_model / c.heads;
  }
  if (c.head_dim % 2 != 0)
    return error(Code::kInvalidArgument, "architecture '{}': head_dim {} is odd", name, c.head_dim);
  if (c.kv_heads == 0) c.kv_heads = c.heads % 4 == 0 ? c.heads / 4 : c.heads;
  if (c.heads % c.kv_heads != 0) {
    return error(Code::kInvalidArgument, "architecture '{}': {} heads are no multiple of {} kv heads", name,
                 c.heads, c.kv_heads);
  }
  if (c.ff == 0) c.ff = (c.d_model * 11 / 4 + 63) / 64 * 64;
  return c;
}

}  // namespace

Result<ModelConfig> preset_config(std::string_view name) {
  std::string_view base = name.substr(0, name.find(':'));
  ModelConfig c;
  c.rms_norm_eps = 1e-5;
  c.max_positions = 131072;
  c.vocab = 128256;
  c.heads = 32;
  c.kv_heads = 8;
  c.rope = {.type = RopeConfig::Type::kLlama3,
            .theta = 500000,
            .factor = 8,
            .low_freq_factor = 1,
            .high_freq_factor = 4,
            .original_max_positions = 8192};
  c.dtype = DType::kBF16;
  c.eos_token_ids = {128001};
  if (base == "llama" && base.size() < name.size()) {
    c.eos_token_ids.clear();
    return spelled_out_config(name, name.substr(base.size() + 1), std::move(c));
  }
  if (base == "llama-1b") {
    c.layers = 16;
    c.d_model = 2048;
    c.ff = 8192;
    c.head_dim = 64;
    c.rope.factor = 32;
    c.tied_embeddings = true;
  } else if (base == "llama-8b") {
    c.layers = 32;
    c.d_model = 4096;
    c.ff = 14336;
    c.head_dim = 128;
  } else {
    return error(Code::kInvalidArgument,
                 "unknown architecture '{}'; expected llama-1b or llama-8b, with ':N' for N layers, or "
                 "llama:layers=12,d=1024,ff=2816,heads=16,kv=4,vocab=32000",
                 name);
  }
  if (base.size() < name.size()) {
    std::string_view text = name.substr(base.size() + 1);
    int64_t layers = 0;
    auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), layers);
    if (failure != std::errc() || end != text.data() + text.size() || layers < 1 || layers > c.layers) {
      return error(Code::kInvalidArgument, "'{}' asks for '{}' layers, expected a number from 1 to {}", name,
                   text, c.layers);
    }
    c.layers = layers;
  }
  return c;
}

}  // namespace ds
