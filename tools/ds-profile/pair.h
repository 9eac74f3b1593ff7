// The pair of models and the data that ds-profile's actions read.
#pragma once

#include <filesystem>

#include "profiler/profile_run.h"
#include "tools/model_input.h"

namespace ds {

struct PairOptions {
  std::string sender, receiver, dtype = "bf16";
  BackendFlags on;
  OpenOptions open;
  WeightCacheOptions cache;
};

inline void add_pair_options(CLI::App& app, PairOptions& o) {
  app.add_option("--sender", o.sender, "the model whose caches are reused: a Hugging Face folder");
  app.add_option("--receiver", o.receiver, "the model that answers");
  app.add_option("--dtype", o.dtype, "bf16 or f32")->capture_default_str();
  add_open_options(app, o.open);
  add_backend_flags(app, o.on);
  add_weight_cache_options(app, o.cache);
}

/// kInvalidArgument with what it is for.
inline Status need_option(const std::string& value, const char* name, const char* what) {
  if (!value.empty()) return ok_status();
  return error(Code::kInvalidArgument, "{} is missing: {}; see ds-profile --help", name, what);
}

struct LoadedPair {
  LoadedModel sender, receiver;
};

/// Both models on one backend, of one shape, with tokenizers that give the same ids.
inline Result<LoadedPair> load_pair(const PairOptions& o) {
  LoadedPair pair;
  DS_TRY(check_open_options(o.open, {o.sender, o.receiver}));
  DS_ASSIGN(pair.receiver, load_model(o.receiver, o.open, o.on, o.dtype, o.cache));
  DS_ASSIGN(pair.sender, load_model(o.sender, o.open, o.on, o.dtype, o.cache, pair.receiver.backend));
  DS_TRY(check_same_architecture(pair.sender.model->config(), pair.receiver.model->config(), o.sender,
                                 o.receiver));
  if (!pair.receiver.tokenizer)
    return error(Code::kNotFound, "'{}' has no tokenizer.json to read the data with", o.receiver);
  if (pair.sender.tokenizer)
    DS_TRY(check_same_ids(*pair.sender.tokenizer, o.sender, *pair.receiver.tokenizer, o.receiver));
  return pair;
}

/// `max_new_tokens`: a number or a file, see PromptTemplates::set_max_new_tokens(); empty: the templates'
/// own.
inline Result<PromptTemplates> read_prompts(const std::string& path, const std::string& max_new_tokens = "") {
  PromptTemplates prompts = PromptTemplates::builtin();
  if (!path.empty()) {
    DS_ASSIGN(prompts, PromptTemplates::read(path));
  }
  if (!max_new_tokens.empty())
    DS_TRY(prompts.set_max_new_tokens(max_new_tokens).with_context("--max-new-tokens"));
  return prompts;
}

struct DataFiles {
  std::vector<Dataset> sets;
  std::vector<Quality::Input> inputs;
};

inline Result<DataFiles> read_data(const std::vector<std::string>& paths, const PromptTemplates& prompts) {
  DataFiles files;
  for (const std::string& path : paths) {
    DS_ASSIGN(Dataset set, read_dataset(path, [&](std::string_view task) { return prompts.metric(task); }));
    files.inputs.push_back({std::filesystem::path(path).filename().string(), set.sha256});
    files.sets.push_back(std::move(set));
  }
  return files;
}

/// How maps are fitted, as `run` and `fit` both ask for it.
struct AlignOptions {
  int64_t rank = 0;
  std::string fallback = "none";
};

inline void add_align_options(CLI::App& app, AlignOptions& o) {
  app.add_option("--rank", o.rank, "of low-rank maps; 0: an eighth of the width")
      ->check(CLI::Range(0, 1 << 24));
  app.add_option("--align-fallback", o.fallback,
                 "plain: layers whose maps cannot be fitted keep their plain cuts; none: that is an error")
      ->check(CLI::IsMember({"none", "plain"}))
      ->capture_default_str();
}

/// A pair's maps, without those that were fitted to it.
inline MapSet maps_of(const LoadedPair& pair, const std::vector<Quality::Input>& data) {
  const ModelConfig& config = pair.receiver.model->config();
  MapSet set;
  set.sender_name = pair.sender.identity.name;
  set.sender_fingerprint = pair.sender.identity.fingerprint;
  set.receiver_name = pair.receiver.identity.name;
  set.receiver_fingerprint = pair.receiver.identity.fingerprint;
  set.layers = config.layers;
  set.d_model = config.d_model;
  set.dtype = dtype_name(pair.receiver.model->dtype());
  for (const auto& d : data) set.data.push_back({"fit", d.name, d.sha256});
  return set;
}

/// Runs both models over the contexts and fits maps to them. kInfeasible where `stop` was set.
inline Result<MapFitter::Fitted> fit_pair(const LoadedPair& pair,
                                          const std::vector<std::vector<int32_t>>& contexts,
                                          const FitOptions& options, const std::atomic<bool>& stop) {
  int64_t most = 0;
  for (const auto& c : contexts) most = std::max(most, static_cast<int64_t>(c.size()));
  DS_ASSIGN(auto fitter, MapFitter::create(*pair.receiver.backend, *pair.sender.model, *pair.receiver.model,
                                           options, static_cast<int64_t>(contexts.size()), most));
  ProgressBar bar("fitting maps");
  for (size_t i = 0; i < contexts.size(); ++i) {
    if (stop.load())
      return error(Code::kInfeasible,
                   "stopped after {} of {} contexts to fit on; the same command begins again", i,
                   contexts.size());
    auto status = fitter->add(contexts[i]);
    if (!status.ok()) return status.with_context(fmt::format("context {} to fit on", i));
    bar.update(static_cast<int64_t>(i) + 1, static_cast<int64_t>(contexts.size()));
  }
  bar.finish();
  return fitter->fit();
}

/// "quality.json" -> "quality.maps.safetensors".
inline std::string maps_path_for(const std::string& out) {
  std::filesystem::path path = out == "-" ? "quality" : out;
  return path.replace_extension(".maps.safetensors").string();
}

}  // namespace ds
