// What was given as a model, and the folder that is meant.
#pragma once

#include <string>
#include <string_view>

#include "support/status.h"

namespace ds {

/// The folder with a model's files. Mostly `given` itself; of a model in the Hub's cache
/// ("models--org--name") the snapshot of refs/main, or the only one there is.
///
/// What is no such folder is refused with what it is and what to give instead: a model's name on the Hub, a
/// whole cache, a GGUF file, one file of a model, a folder of another format, weights or a tokenizer of which
/// only Git LFS's pointer is there. kNotFound, kUnsupported, kCorrupt. A folder with an adapter is returned:
/// what becomes of it is the reader's business.
Result<std::string> find_model_folder(const std::string& given);

/// What people call the model: the folder's name, "name" of a snapshot in "models--org--name".
std::string model_name(const std::string& given);

/// Why a folder without config.json cannot be read as a model: kNotFound, or kUnsupported for another format.
Status no_config(const std::string& folder);

}  // namespace ds
