// The `file:` engine.
#pragma once

#include <memory>
#include <string>

#include "runtime/store/store.h"

namespace ds {

/// A folder with one file per key, named as the key. `folder` is not empty.
std::unique_ptr<Store> make_file_store(std::string folder);

}  // namespace ds
