// An adapter against its base: every tensor has its place, and every place its tensor.
#include <algorithm>
#include <cmath>
#include <set>

#include "runtime/model/adapter.h"
#include "runtime/model/adapter_internal.h"

namespace ds {

using namespace lora;

namespace {

bool same_bytes(const TensorView& a, const TensorView& b) {
  return a.dtype == b.dtype && a.shape == b.shape &&
         (a.data.data() == b.data.data() || std::equal(a.data.begin(), a.data.end(), b.data.begin()));
}

}  // namespace

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

}  // namespace ds
