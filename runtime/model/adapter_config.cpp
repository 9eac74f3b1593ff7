// adapter_config.json: what it may say, and which modules it means.
#include <algorithm>
#include <array>
#include <set>

#include "runtime/model/adapter.h"
#include "runtime/model/adapter_internal.h"
#include "support/file.h"
#include "support/json.h"

namespace ds {

using namespace lora;

namespace {

using nlohmann::json;

// What PEFT targets in all families done here where the config names nothing.
constexpr std::array<const char*, 2> kDefaultTargets{"q_proj", "v_proj"};

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

}  // namespace

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

}  // namespace ds
