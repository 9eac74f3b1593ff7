// What ds-run, ds-publish and ds-bench share: opening a model folder, reading tokens from text or id files.
#pragma once

#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "runtime/model/checkpoint.h"
#include "runtime/model/joined_text.h"
#include "runtime/model/tokenizer.h"
#include "runtime/model/verified.h"
#include "support/file.h"
#include "support/json.h"
#include "tools/backend_flags.h"
#include "tools/open_options.h"
#include "tools/tool.h"

namespace ds {

/// A model ready to run, with what belongs to its folder.
struct LoadedModel {
  std::unique_ptr<Checkpoint> checkpoint;
  std::optional<Tokenizer> tokenizer;  // none: the folder has no tokenizer.json
  ModelIdentity identity;
  std::shared_ptr<Backend> backend;
  std::unique_ptr<DeviceModel> model;
  LoadReport report;                // of packed weights
  bool weights_remembered = false;  // their identity was not read from them
  double load_seconds = 0;
};

/// --weight-cache and --verify-weights.
struct WeightCacheOptions {
  std::string where = "auto";  // auto, off or a folder
  bool verify = false;
  bool quiet = false;  // no progress and no notes: a benchmark's own are enough
};

inline void add_weight_cache_options(CLI::App& app, WeightCacheOptions& o) {
  app.add_option(
         "--weight-cache", o.where,
         "folder that keeps packed weights, for faster starts; a file as large as the weights per model.\n"
         "'off': none; 'auto': $DROIDSPEAK_CACHE, else $XDG_CACHE_HOME/droidspeak, else "
         "~/.cache/droidspeak,\n"
         "for models of 256 MiB and more. It leaves a twentieth of the disk free, and may be deleted any "
         "time")
      ->capture_default_str();
  app.add_flag("--verify-weights", o.verify,
               "read and hash all weights, also where files of the same inode, size and times of change were "
               "seen before");
}

/// The folder to use for this checkpoint, empty: none.
inline std::string weight_cache_folder(const std::string& where, const Checkpoint& checkpoint) {
  constexpr int64_t kLeastBytes = int64_t{256} << 20;
  if (where == "off" || where.empty()) return "";
  if (where != "auto") return where;
  return checkpoint.weight_bytes() >= kLeastBytes ? default_cache_folder() : "";
}

/// The identity of a checkpoint, remembered in `folder` (empty: nowhere), with a progress bar.
inline Result<Verified> verify_weights(const Checkpoint& checkpoint, const std::string& folder,
                                       const WeightCacheOptions& cache) {
  ProgressBar bar("checking " + checkpoint.name());
  VerifyOptions options{folder, cache.verify, {}};
  if (!cache.quiet) options.progress = [&](int64_t done, int64_t total) { bar.update(done, total); };
  return verify_checkpoint(checkpoint, options);
}

/// A model that is known, and not loaded yet: what it is can be refused before it costs anything.
struct OpenedModel {
  std::unique_ptr<Checkpoint> checkpoint;
  std::string weight_cache;  // folder, empty: none
  Verified verified;
  std::chrono::steady_clock::time_point since;  // when opening began
};

inline Result<OpenedModel> open_model(const std::string& folder, const OpenOptions& open,
                                      const WeightCacheOptions& cache) {
  OpenedModel opened;
  opened.since = std::chrono::steady_clock::now();
  DS_ASSIGN(Checkpoint checkpoint, Checkpoint::open(folder, open));
  opened.checkpoint = std::make_unique<Checkpoint>(std::move(checkpoint));
  opened.weight_cache = weight_cache_folder(cache.where, *opened.checkpoint);
  DS_ASSIGN(opened.verified, verify_weights(*opened.checkpoint, opened.weight_cache, cache));
  return opened;
}

/// --dtype: what models run in.
inline Result<DType> running_dtype(const std::string& dtype) {
  DS_ASSIGN(DType type, parse_dtype(dtype));
  if (type == DType::kF16) return error(Code::kInvalidArgument, "--dtype f16: models run in bf16 or f32");
  return type;
}

/// `shared`: the backend of a model that runs beside this one, instead of one of its own.
inline Result<LoadedModel> load_model(OpenedModel opened, const BackendFlags& on, const std::string& dtype,
                                      const WeightCacheOptions& cache,
                                      std::shared_ptr<Backend> shared = nullptr) {
  DS_ASSIGN(DType type, running_dtype(dtype));
  LoadedModel loaded;
  loaded.checkpoint = std::move(opened.checkpoint);
  LoadOptions options;
  options.weight_cache = std::move(opened.weight_cache);
  loaded.identity = std::move(opened.verified.identity);
  loaded.weights_remembered = opened.verified.remembered;
  options.base_fingerprint = opened.verified.base.fingerprint;
  const std::string tokenizer_folder = loaded.checkpoint->folder_of("tokenizer.json");
  if (file_exists(tokenizer_folder + "/tokenizer.json")) {
    DS_ASSIGN(Tokenizer tokenizer, Tokenizer::load(tokenizer_folder));
    loaded.tokenizer = std::move(tokenizer);
  }
  loaded.backend = std::move(shared);
  if (!loaded.backend) {
    DS_ASSIGN(loaded.backend, open_backend(on));
  }
  ProgressBar bar("loading " + loaded.identity.name);
  options.dtype = type;
  options.fingerprint = loaded.identity.fingerprint;
  options.report = &loaded.report;
  if (!cache.quiet) options.progress = [&](int64_t done, int64_t total) { bar.update(done, total); };
  DS_ASSIGN(loaded.model, loaded.backend->load(*loaded.checkpoint, options));
  bar.finish();
  const LoadReport& report = loaded.report;
  if (!report.reason.empty() && !cache.quiet) fmt::print(stderr, "packed weights: {}\n", report.reason);
  if (report.weight_cache == WeightCacheStatus::kWritten && !cache.quiet)
    fmt::print(stderr, "packed weights of '{}' ({}{}) kept in '{}' for later starts\n", loaded.identity.name,
               format_bytes(loaded.model->weight_bytes() - report.shared_bytes),
               report.shared_bytes > 0
                   ? fmt::format("; {} more are its base's", format_bytes(report.shared_bytes))
                   : "",
               report.path);
  loaded.load_seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - opened.since).count();
  return loaded;
}

inline Result<LoadedModel> load_model(const std::string& folder, const OpenOptions& open,
                                      const BackendFlags& on, const std::string& dtype,
                                      const WeightCacheOptions& cache,
                                      std::shared_ptr<Backend> shared = nullptr) {
  DS_TRY(running_dtype(dtype));
  DS_ASSIGN(OpenedModel opened, open_model(folder, open, cache));
  return load_model(std::move(opened), on, dtype, cache, std::move(shared));
}

/// A model of random weights (preset_config), for measurements that need no checkpoint; without identity.
inline Result<LoadedModel> load_random_model(const std::string& shape, const BackendFlags& on,
                                             const std::string& dtype) {
  DS_ASSIGN(DType type, running_dtype(dtype));
  DS_ASSIGN(ModelConfig config, preset_config(shape));
  LoadedModel loaded;
  DS_ASSIGN(loaded.backend, open_backend(on));
  ProgressBar bar("loading " + shape);
  LoadOptions options{type, [&](int64_t done, int64_t total) { bar.update(done, total); }};
  DS_ASSIGN(loaded.model, loaded.backend->load_random(config, options, 1));
  return loaded;
}

/// A plain JSON list of token ids.
inline Result<std::vector<int32_t>> read_ids(const std::string& path) {
  DS_ASSIGN(nlohmann::json json, read_json_file(path));
  if (!json.is_array()) return error(Code::kCorrupt, "'{}' is not a JSON list of token ids", path);
  std::vector<int32_t> ids;
  ids.reserve(json.size());
  for (const auto& id : json) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() > INT32_MAX) {
      std::string found = id.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
      return error(Code::kInvalidArgument,
                   "'{}': element {} is {:.40}, expected a token id (integer, 0 or more)", path, ids.size(),
                   found);
    }
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

/// kNotFound: the model's folder has none.
inline Result<const Tokenizer*> tokenizer_of(const LoadedModel& model) {
  if (model.tokenizer) return &*model.tokenizer;
  return error(Code::kNotFound,
               "'{}' has no tokenizer.json to read text with; give token ids (--context-ids, --prompt-ids)",
               model.identity.name);
}

/// Context tokens from --context FILE (text, by text_ids()) or --context-ids FILE; empty when neither is
/// given.
inline Result<std::vector<int32_t>> context_tokens(const LoadedModel& model, const std::string& text_file,
                                                   const std::string& ids_file) {
  if (!text_file.empty() && !ids_file.empty()) {
    return error(Code::kInvalidArgument, "--context and --context-ids contradict each other; give one");
  }
  if (!ids_file.empty()) return read_ids(ids_file);
  if (text_file.empty()) return std::vector<int32_t>{};
  DS_ASSIGN(std::string text, read_text_file(text_file));
  DS_ASSIGN(const Tokenizer* tokenizer, tokenizer_of(model));
  auto ids = text_ids(*tokenizer, text);
  if (!ids.ok()) return ids.status().with_context(text_file);
  return ids;
}

/// Where a request's context and prompt stand: each as text or as ids.
struct RequestInput {
  std::string context, context_ids;  // files; neither: no context
  std::string prompt;                // the text itself
  std::string prompt_ids;            // a file
};

/// A request's tokens. Where context and prompt are both text they are read as one; ids are taken as they
/// are, and a prompt's text behind a context of ids is read by itself.
inline Result<JoinedText> read_request(const LoadedModel& model, const RequestInput& input) {
  if (input.prompt_ids.empty() && input.context_ids.empty()) {
    DS_ASSIGN(const Tokenizer* tokenizer, tokenizer_of(model));
    std::string context;
    if (!input.context.empty()) {
      DS_ASSIGN(context, read_text_file(input.context));
    }
    return join_text(*tokenizer, context, input.prompt);
  }
  JoinedText joined;
  DS_ASSIGN(joined.entry, context_tokens(model, input.context, input.context_ids));
  joined.ids = joined.entry;
  joined.shared = static_cast<int64_t>(joined.entry.size());
  std::vector<int32_t> prompt;
  if (!input.prompt_ids.empty()) {
    DS_ASSIGN(prompt, read_ids(input.prompt_ids));
  } else {
    DS_ASSIGN(const Tokenizer* tokenizer, tokenizer_of(model));
    DS_ASSIGN(prompt, text_ids(*tokenizer, input.prompt, joined.entry.empty()));
  }
  joined.ids.insert(joined.ids.end(), prompt.begin(), prompt.end());
  return joined;
}

}  // namespace ds
