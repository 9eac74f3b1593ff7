// How the folders of models are opened, where a tool takes them: the same options in all tools.
#pragma once

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "runtime/model/adapter.h"
#include "runtime/model/checkpoint.h"
#include "runtime/model/model_folder.h"
#include "support/status.h"

namespace ds {

inline void add_open_options(CLI::App& app, OpenOptions& o) {
  app.add_option(
      "--base", o.base,
      "base model's folder of a LoRA adapter that is given where a model is expected (PEFT's\n"
      "adapter_config.json and adapter_model.safetensors); default: base_model_name_or_path, where\n"
      "that is a folder, beside the adapter's or from here");
  app.add_option("--max-model-len", o.max_model_len,
                 "use no more than N positions of the models; default: all that they have. A model whose\n"
                 "sliding window is N or longer never drops a key then, and can be used")
      ->type_name("N")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 31));
}

/// kInvalidArgument: options without a folder that they could be for.
inline Status check_open_options(const OpenOptions& o, std::initializer_list<std::string> folders) {
  // What is no model's folder at all is said when it is opened.
  auto may_be_adapter = [](const std::string& given) {
    if (given.empty()) return false;
    auto folder = find_model_folder(given);
    return !folder.ok() || Adapter::is_adapter(*folder);
  };
  if (!o.base.empty() && std::none_of(folders.begin(), folders.end(), may_be_adapter))
    return error(Code::kInvalidArgument, "--base '{}': '{}' {}; leave --base out", o.base,
                 fmt::join(folders, "' and '"),
                 folders.size() == 1 ? "is no adapter (it has weights of its own, or no adapter_config.json)"
                                     : "are no adapters (they have weights of their own, or no "
                                       "adapter_config.json)");
  if (o.max_model_len != 0 &&
      std::all_of(folders.begin(), folders.end(), [](const std::string& f) { return f.empty(); }))
    return error(
        Code::kInvalidArgument,
        "--max-model-len {}: it limits a model that is read from a folder, and none is given; leave it out",
        o.max_model_len);
  return ok_status();
}

/// The folder that `file` (a tokenizer's, a chat template) of a model is read from: its own, or that of an
/// adapter's base where the adapter has none. Opens no weights but an adapter's.
inline Result<std::string> folder_for(const std::string& file, const std::string& model,
                                      const OpenOptions& options) {
  DS_ASSIGN(std::string folder, find_model_folder(model));
  if (!Adapter::is_adapter(folder)) return folder;
  DS_ASSIGN(const Checkpoint checkpoint, Checkpoint::open(folder, options));
  return checkpoint.folder_of(file);
}

}  // namespace ds
