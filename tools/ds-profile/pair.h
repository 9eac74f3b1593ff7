// The pair of models and the data that ds-profile's actions read.
#pragma once

#include <filesystem>
#include <set>

#include "profiler/estimate.h"
#include "profiler/profile_run.h"
#include "runtime/model/identity.h"
#include "runtime/model/shared_vocab.h"
#include "support/file.h"
#include "tools/chat_input.h"
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
  int64_t shared_vocab = 0;  // shared_vocabulary()
};

/// What can be told from configs and tokenizers, before any weights are read: one shape, and the same ids.
/// shared_vocabulary() of the two.
inline Result<int64_t> check_pair(const PairOptions& o) {
  DS_TRY(check_open_options(o.open, {o.sender, o.receiver}));
  DS_ASSIGN(Checkpoint receiver, Checkpoint::open(o.receiver, o.open));
  DS_ASSIGN(Checkpoint sender, Checkpoint::open(o.sender, o.open));
  DS_TRY(check_same_architecture(sender.config(), receiver.config(), o.sender, o.receiver));
  if (!file_exists(receiver.folder_of("tokenizer.json") + "/tokenizer.json"))
    return error(Code::kNotFound, "'{}' has no tokenizer.json to read the data with", o.receiver);
  return shared_vocabulary(sender, receiver);
}

/// Both models on one backend; a pair that cannot be is refused before its weights are packed.
inline Result<LoadedPair> load_pair(const PairOptions& o) {
  LoadedPair pair;
  DS_ASSIGN(pair.shared_vocab, check_pair(o));
  DS_ASSIGN(pair.receiver, load_model(o.receiver, o.open, o.on, o.dtype, o.cache));
  DS_ASSIGN(pair.sender, load_model(o.sender, o.open, o.on, o.dtype, o.cache, pair.receiver.backend));
  return pair;
}

/// kMismatch: the context, which stands at `where`, has a token that the sender does not know, so that it has
/// no caches of it.
inline Status check_sender_knows(const LoadedPair& pair, std::span<const int32_t> context,
                                 const std::string& where) {
  const Status known =
      check_sender_knows(context, pair.shared_vocab, pair.sender.identity.name, pair.receiver.identity.name);
  if (known.ok()) return known;
  return error(known.code(), "{}: {}; leave it out", where, known.message());
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

/// Has prompts go through the chat template that the options name, by default the receiver's. Says so.
inline Status through_template(PromptTemplates& prompts, const ChatOptions& o, const PairOptions& pair,
                               bool& templated) {
  DS_ASSIGN(std::optional<ChatTemplate> found, open_chat_template(o, pair.receiver, pair.open));
  templated = found.has_value();
  if (!found) return ok_status();
  fmt::print(stderr, "prompts go through the chat template{}\n",
             o.use == "auto" ? fmt::format(" of '{}' (--template none: as they are)", pair.receiver)
                             : fmt::format(" '{}'", o.use));
  return prompts.set_chat(std::make_shared<const ChatTemplate>(std::move(*found)), o.system, o.now());
}

inline void add_prompt_template_options(CLI::App& app, ChatOptions& o) {
  app.add_option("--system", o.system, "system message, for the chat template");
  add_template_options(app, o, "receiver");
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

/// By name, each once, sorted.
inline Result<std::vector<MapForm>> forms_named(const std::vector<std::string>& names) {
  std::set<MapForm> forms;
  for (const std::string& name : names) {
    DS_ASSIGN(MapForm form, parse_map_form(name, "--align"));
    forms.insert(form);
  }
  return std::vector<MapForm>(forms.begin(), forms.end());
}

/// A pair's maps, without those that were fitted to it.
inline MapSet maps_of(const LoadedPair& pair, const std::vector<Quality::Input>& data) {
  const ModelConfig& config = pair.receiver.model->config();
  MapSet set;
  set.sender_name = pair.sender.identity.name;
  set.sender_fingerprint = model_fingerprint(pair.sender.identity);
  set.receiver_name = pair.receiver.identity.name;
  set.receiver_fingerprint = model_fingerprint(pair.receiver.identity);
  set.layers = config.layers;
  set.d_model = config.d_model;
  set.dtype = dtype_name(pair.receiver.model->dtype());
  for (const auto& d : data) set.data.push_back({"fit", d.name, d.sha256});
  return set;
}

/// What an estimate stands on.
inline std::string basis_of(const Pace& pace) {
  return fmt::format("measured in {} on {} tokens: {} per token and layer", format_duration(pace.measured_s),
                     format_count(pace.context_tokens), format_ns(static_cast<int64_t>(pace.layer_row)));
}

/// Runs both models over the contexts and fits maps to them; says how far it is. kInfeasible where `stop` was
/// set.
inline Result<MapFitter::Fitted> fit_pair(const LoadedPair& pair,
                                          const std::vector<std::vector<int32_t>>& contexts,
                                          const FitOptions& options, double expected_seconds,
                                          const std::atomic<bool>& stop) {
  int64_t most = 0, tokens = 0, done = 0;
  for (const auto& c : contexts) {
    most = std::max(most, static_cast<int64_t>(c.size()));
    tokens += static_cast<int64_t>(c.size());
  }
  DS_ASSIGN(auto fitter, MapFitter::create(*pair.receiver.backend, *pair.sender.model, *pair.receiver.model,
                                           options, static_cast<int64_t>(contexts.size()), most));
  const int64_t cuts = pair.receiver.model->config().layers - 1;
  {
    ProgressBar bar("reading contexts to fit maps on", expected_seconds);
    for (size_t i = 0; i < contexts.size(); ++i) {
      if (stop.load())
        return error(Code::kInfeasible,
                     "stopped after {} of {} contexts to fit on; the same command begins again", i,
                     contexts.size());
      const auto n = static_cast<int64_t>(contexts[i].size());
      auto status = fitter->add(contexts[i],
                                [&](int64_t layers) { bar.update(done * cuts + n * layers, tokens * cuts); });
      if (!status.ok()) return status.with_context(fmt::format("context {} to fit on", i));
      done += n;
    }
  }
  ProgressBar bar("solving for maps");
  return fitter->fit([&](int64_t layers) { bar.update(layers, cuts); });
}

/// On stderr: which layers have no map, and why; whose ridge is a limit.
inline void say_unmapped(const std::vector<std::string>& left_out, const std::vector<PlainLayer>& plain,
                         const std::vector<std::string>& limits) {
  for (const std::string& why : left_out) fmt::print(stderr, "plain cut: {}\n", why);
  for (const PlainLayer& p : plain)
    fmt::print(stderr,
               "plain cut: layer {}, {}: on held-out contexts a map's error is {:.4f}, without one {:.4f} (± "
               "{:.4f} of the difference)\n",
               p.layer, map_form_name(p.form), p.fit.error, p.fit.plain_error, p.fit.gain_stderr);
  for (const std::string& limit : limits)
    fmt::print(stderr, "warning: {}; see whether more contexts to fit on help\n", limit);
}

/// "quality.json" -> "quality.maps.safetensors".
inline std::string maps_path_for(const std::string& out) {
  std::filesystem::path path = out == "-" ? "quality" : out;
  return path.replace_extension(".maps.safetensors").string();
}

/// Where the shuffled control of a file of maps is kept: "pair.maps.safetensors" ->
/// "pair.maps.shuffled.safetensors".
inline std::string shuffled_path_for(const std::string& maps) {
  return std::filesystem::path(maps).replace_extension(".shuffled.safetensors").string();
}

}  // namespace ds
