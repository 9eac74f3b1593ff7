#include "runtime/model/config.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <numbers>

#include "runtime/model/model_folder.h"
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
  // Which biases the class has where config.json asks for them.
  bool attention_bias, mlp_bias;
  std::string_view old_architecture = "";  // how early checkpoints spell it
};

constexpr std::array<FamilyInfo, 4> kFamilies{{
    {Family::kLlama, "llama", "LlamaForCausalLM", 0, 0, 2048, true, true, "LLaMAForCausalLM"},
    {Family::kMistral, "mistral", "MistralForCausalLM", 8, 0, 131072, false, false},
    {Family::kQwen2, "qwen2", "Qwen2ForCausalLM", 32, 0, 32768, false, false},
    {Family::kQwen3, "qwen3", "Qwen3ForCausalLM", 32, 128, 32768, true, false},
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
    if (!architecture.empty() && architecture == f.old_architecture) architecture = f.architecture;
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
  const FamilyInfo& info = info_of(family);
  DS_ASSIGN(bool attention_bias, config.boolean_or("attention_bias", false));
  if (attention_bias && !info.attention_bias && family != Family::kQwen2) {
    return refuse(
        config, "attention_bias",
        fmt::format("biases of attention are supported for llama, qwen2 and qwen3, not for {}", info.name));
  }
  DS_ASSIGN(bool mlp_bias, config.boolean_or("mlp_bias", false));
  if (mlp_bias && !info.mlp_bias) {
    return refuse(config, "mlp_bias",
                  fmt::format("biases in the MLP are supported for llama only, not for {}", info.name));
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

/// A window binds when some layer slides and its window is shorter than the longest context the model takes.
Status refuse_binding_window(const JsonObject& config, Family family, int64_t layers, int64_t max_positions) {
  constexpr int64_t kMost = int64_t{1} << 40;
  const bool qwen = family == Family::kQwen2 || family == Family::kQwen3;
  // null means no window, while an absent key means the class's default.
  const bool by_default = !config.json().contains("sliding_window") && (qwen || family == Family::kMistral);
  int64_t window = 4096;  // 0: none
  if (!by_default) {
    DS_ASSIGN(window, config.integer_or("sliding_window", 0, kMost, 0));
  }
  DS_ASSIGN(bool used, config.boolean_or("use_sliding_window", !qwen));
  if (!used) window = 0;

  bool slides = window > 0;
  const char* key = qwen ? "use_sliding_window" : "sliding_window";
  if (config.has("layer_types")) {  // they decide, where they are listed
    DS_ASSIGN(const json* types, config.array("layer_types"));
    slides = false;
    for (size_t i = 0; i < types->size(); ++i) {
      const json& type = (*types)[i];
      if (type == "full_attention") continue;
      slides = true;
      key = "layer_types";
      if (type == "sliding_attention" && window > 0) continue;
      return error(Code::kUnsupported,
                   "{}: 'layer_types' has {} at layer {}{}: only 'full_attention' is supported, and "
                   "'sliding_attention' with a window that no context exceeds",
                   config.where(), shown(type), i,
                   type == "sliding_attention" ? ", but no window is stated" : "");
    }
    if (static_cast<int64_t>(types->size()) != layers) {
      return error(Code::kInvalidArgument,
                   "{}: 'layer_types' has {} entries, expected {} (num_hidden_layers)", config.where(),
                   types->size(), layers);
    }
  } else if (qwen) {
    DS_ASSIGN(int64_t first, config.integer_or("max_window_layers", 0, kMost, 28));
    slides = slides && first < layers;
  }
  if (!slides || window >= max_positions) return ok_status();
  return refuse(
      config, key,
      fmt::format("a sliding window of {} tokens would bind (max_position_embeddings gives {} positions), "
                  "and caches that forget are not supported; for contexts that fit into the window, "
                  "--max-model-len {}",
                  window, max_positions, window));
}

/// YaRN's numbers as transformers 5 reads them: a 'factor' that is given counts (transformers 4 took the
/// ratio of max_position_embeddings to the original positions instead, which is 1 where a config was extended
/// as Qwen2.5's documentation says), and where it is null, that ratio.
Status read_yarn(const JsonObject& dictionary, int64_t max_positions, RopeConfig& rope) {
  rope.type = RopeConfig::Type::kYarn;
  if (dictionary.json().contains("factor") && !dictionary.has("factor")) {
    rope.factor = static_cast<double>(max_positions) / static_cast<double>(rope.original_max_positions);
  } else {
    DS_ASSIGN(rope.factor, dictionary.number("factor", 1e-3, 1e6));
  }
  // 0 stands for the default there.
  auto or_default = [&](const char* key, double otherwise) -> Result<double> {
    DS_ASSIGN(double value, dictionary.number_or(key, 0, 1e9, otherwise));
    return value == 0 ? otherwise : value;
  };
  DS_ASSIGN(rope.beta_fast, or_default("beta_fast", 32));
  DS_ASSIGN(rope.beta_slow, or_default("beta_slow", 1));
  if (rope.beta_fast < rope.beta_slow) {
    return error(Code::kInvalidArgument, "{}: 'beta_fast' is {}, expected no less than 'beta_slow' ({})",
                 dictionary.where(), rope.beta_fast, rope.beta_slow);
  }
  if (rope.theta <= 1) {
    return error(Code::kInvalidArgument, "{}: 'rope_theta' is {}, expected more than 1 for yarn",
                 dictionary.where(), rope.theta);
  }
  DS_ASSIGN(rope.truncate, dictionary.boolean_or("truncate", !dictionary.json().contains("truncate")));
  DS_ASSIGN(double mscale, dictionary.number_or("mscale", -1e3, 1e3, 0));
  DS_ASSIGN(double all_dim, dictionary.number_or("mscale_all_dim", -1e3, 1e3, 0));
  auto scale_of = [&](double m) { return rope.factor <= 1 ? 1.0 : 0.1 * m * std::log(rope.factor) + 1.0; };
  const double derived = mscale != 0 && all_dim != 0 ? scale_of(mscale) / scale_of(all_dim) : scale_of(1);
  DS_ASSIGN(rope.attention_factor, dictionary.number_or("attention_factor", 0, 1e3, derived));
  if (!std::isfinite(rope.attention_factor) || rope.attention_factor <= 0) {
    return error(Code::kInvalidArgument, "{}: the attention factor comes to {}, expected more than 0",
                 dictionary.where(), rope.attention_factor);
  }
  return ok_status();
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
  if (type == "default") return rope;
  if (type == "linear") {
    DS_ASSIGN(rope.factor, dictionary.number("factor", 1e-3, 1e6));
    // Dividing by one is the default.
    rope.type = rope.factor == 1 ? RopeConfig::Type::kDefault : RopeConfig::Type::kLinear;
    return rope;
  }
  if (type != "llama3" && type != "yarn") {
    return refuse(
        dictionary, dictionary.has("rope_type") ? "rope_type" : "type",
        type == "dynamic" || type == "longrope" || type == "su"
            ? "its frequencies depend on how long a request is, and cached keys keep those of another; "
              "supported rotary types are default, linear, llama3 and yarn"
            : "supported rotary types are default, linear, llama3 and yarn");
  }
  constexpr const char* kOriginal = "original_max_position_embeddings";
  constexpr int64_t kMost = int64_t{1} << 31;
  DS_ASSIGN(rope.original_max_positions, dictionary.integer_or(kOriginal, 1, kMost, max_positions));
  DS_ASSIGN(rope.original_max_positions, config.integer_or(kOriginal, 1, kMost, rope.original_max_positions));
  if (type == "yarn") {
    DS_TRY(read_yarn(dictionary, max_positions, rope));
  } else {
    rope.type = RopeConfig::Type::kLlama3;
    DS_ASSIGN(rope.factor, dictionary.number("factor", 1e-3, 1e6));
    DS_ASSIGN(rope.low_freq_factor, dictionary.number("low_freq_factor", 1e-6, 1e6));
    DS_ASSIGN(rope.high_freq_factor, dictionary.number("high_freq_factor", 1e-6, 1e6));
    if (rope.high_freq_factor <= rope.low_freq_factor) {
      return error(Code::kInvalidArgument,
                   "{}: 'high_freq_factor' is {}, expected more than 'low_freq_factor' ({})",
                   dictionary.where(), rope.high_freq_factor, rope.low_freq_factor);
    }
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
  switch (type) {
    case RopeConfig::Type::kDefault:
      return "default";
    case RopeConfig::Type::kLinear:
      return "linear";
    case RopeConfig::Type::kLlama3:
      return "llama3";
    case RopeConfig::Type::kYarn:
      break;
  }
  return "yarn";
}

/// A field that shapes the numbers, by config.json's key.
struct Field {
  std::string key, value;
  bool shared = true;   // sender and receiver must have the same
  bool always = false;  // it is in the canonical text even where it says nothing
};

/// Those of the RoPE's scaling say "none" where it does not use them.
std::vector<Field> fields_of(const ModelConfig& c) {
  std::vector<Field> fields;
  auto add = [&](const char* key, const auto& value) {
    fields.push_back({.key = key, .value = fmt::format("{}", value), .always = true});
  };
  auto unshared = [&] { fields.back().shared = false; };
  add("model_type", family_name(c.family));
  unshared();
  add("num_hidden_layers", c.layers);
  add("hidden_size", c.d_model);
  add("intermediate_size", c.ff);
  add("num_attention_heads", c.heads);
  add("num_key_value_heads", c.kv_heads);
  add("head_dim", c.head_dim);
  add("vocab_size", c.vocab);
  unshared();
  add("rms_norm_eps", c.rms_norm_eps);
  add("attention_bias", c.qkv_bias);
  add("use_qk_norm", c.qk_norm);
  const RopeConfig& rope = c.rope;
  add("rope_type", rope_type_name(rope.type));
  add("rope_theta", rope.theta);
  const bool llama3 = rope.type == RopeConfig::Type::kLlama3, yarn = rope.type == RopeConfig::Type::kYarn;
  auto add_if = [&](bool used, const char* key, const auto& value) {
    if (used) {
      add(key, value);
    } else {
      fields.push_back({.key = key, .value = "none", .always = true});
    }
  };
  add_if(rope.type != RopeConfig::Type::kDefault, "factor", rope.factor);
  add_if(llama3, "low_freq_factor", rope.low_freq_factor);
  add_if(llama3, "high_freq_factor", rope.high_freq_factor);
  add_if(llama3 || yarn, "original_max_position_embeddings", rope.original_max_positions);
  // What came later is there only where it is used, so that older models keep their text.
  const size_t first = fields.size();
  add_if(yarn, "beta_fast", rope.beta_fast);
  add_if(yarn, "beta_slow", rope.beta_slow);
  add_if(yarn, "truncate", rope.truncate);
  add_if(yarn, "attention_factor", rope.attention_factor);
  // A bias that is not there is one of zeros.
  add_if(c.o_bias, "attention_bias of o_proj", true);
  unshared();
  add_if(c.mlp_bias, "mlp_bias", true);
  unshared();
  for (size_t i = first; i < fields.size(); ++i) fields[i].always = false;
  return fields;
}

}  // namespace

std::string_view family_name(Family family) { return info_of(family).name; }

std::vector<float> RopeConfig::inverse_frequencies(int64_t head_dim) const {
  std::vector<float> result(static_cast<size_t>(head_dim / 2));
  // In f32 and in transformers' order of operations; its Python scalars are double until they meet a tensor,
  // and torch computes scalar / tensor as reciprocal times scalar.
  const float base = static_cast<float>(theta);
  double low = 0, high = 0;  // the pairs between which YaRN blends
  if (type == Type::kYarn) {
    const auto dim = static_cast<double>(head_dim);
    auto pair_of = [&](double turns) {
      return dim * std::log(static_cast<double>(original_max_positions) / (turns * 2 * std::numbers::pi)) /
             (2 * std::log(theta));
    };
    low = pair_of(beta_fast);
    high = pair_of(beta_slow);
    if (truncate) {
      low = std::floor(low);
      high = std::ceil(high);
    }
    low = std::max(low, 0.0);
    high = std::min(high, dim - 1);
    if (low == high) high += 0.001;
  }
  for (size_t i = 0; i < result.size(); ++i) {
    float exponent = static_cast<float>(2 * i) / static_cast<float>(head_dim);
    const float turn = std::pow(base, exponent);
    float frequency = 1.0f / turn;
    if (type == Type::kYarn) {
      float ramp = (static_cast<float>(i) - static_cast<float>(low)) / static_cast<float>(high - low);
      const float kept = 1.0f - std::clamp(ramp, 0.0f, 1.0f);
      frequency = 1.0f / (static_cast<float>(factor) * turn) * (1.0f - kept) + frequency * kept;
    } else if (type == Type::kLinear) {
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

Result<ModelConfig> ModelConfig::read(const std::string& given, int64_t max_model_len) {
  DS_ASSIGN(const std::string folder, find_model_folder(given));
  const std::string path = folder + "/config.json";
  Result<json> file = read_json_file(path);
  if (file.status().code() == Code::kNotFound) return no_config(folder);
  DS_ASSIGN(const json document, std::move(file));
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
  // What YaRN stretches to: configs are extended by adding 'rope_scaling' alone, too.
  if (c.rope.type == RopeConfig::Type::kYarn) {
    const double stretched = std::round(c.rope.factor * static_cast<double>(c.rope.original_max_positions));
    c.max_positions =
        std::max(c.max_positions, static_cast<int64_t>(std::min(stretched, static_cast<double>(1LL << 31))));
  }
  if (max_model_len < 0 || max_model_len > c.max_positions) {
    return error(Code::kInvalidArgument,
                 "{}: --max-model-len is {}, expected 1 to the {} positions that the model has", path,
                 max_model_len, c.max_positions);
  }
  if (max_model_len > 0) c.max_positions = max_model_len;
  DS_TRY(refuse_binding_window(config, c.family, c.layers, c.max_positions));
  DS_ASSIGN(c.tied_embeddings, config.boolean_or("tie_word_embeddings", false));
  DS_ASSIGN(c.dtype, read_dtype(config));
  DS_ASSIGN(const bool attention_bias, config.boolean_or("attention_bias", false));
  c.qkv_bias = c.family == Family::kQwen2 || attention_bias;
  c.o_bias = attention_bias && family.attention_bias;
  DS_ASSIGN(c.mlp_bias, config.boolean_or("mlp_bias", false));
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
  for (const Field& f : fields_of(*this))
    if (f.always || f.value != "none") text += f.key + "=" + f.value + "\n";
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
  const std::vector<Field> a = fields_of(sender), b = fields_of(receiver);
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i].shared && a[i].value != b[i].value) {
      lines.push_back(fmt::format("{}: sender {}, receiver {}", a[i].key, a[i].value, b[i].value));
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
