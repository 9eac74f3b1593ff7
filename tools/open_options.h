// How the folders of models are opened, where a tool takes them: the same options in all tools.
#pragma once

#include <CLI/CLI.hpp>
#include <algorithm>
#include <initializer_list>
#include <string>

#include "runtime/model/adapter.h"
#include "runtime/model/checkpoint.h"
#include "support/status.h"

namespace ds {

inline void add_open_options(CLI::App& app, OpenOptions& o) {
  app.add_option(
      "--base", o.base,
      "base model's folder of a LoRA adapter that is given where a model is expected (PEFT's\n"
      "adapter_config.json and adapter_model.safetensors); default: base_model_name_or_path, where\n"
      "that is a folder, beside the adapter's or from here");
}

/// kInvalidArgument: options that none of the folders needs.
inline Status check_open_options(const OpenOptions& o, std::initializer_list<std::string> folders) {
  if (o.base.empty() || std::any_of(folders.begin(), folders.end(), Adapter::is_adapter)) return ok_status();
  return error(Code::kInvalidArgument, "--base '{}': '{}' {}; leave --base out", o.base,
               fmt::join(folders, "' and '"),
               folders.size() == 1 ? "is no adapter (it has weights of its own, or no adapter_config.json)"
                                   : "are no adapters (they have weights of their own, or no "
                                     "adapter_config.json)");
}

}  // namespace ds
