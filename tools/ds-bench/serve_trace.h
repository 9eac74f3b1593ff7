// What kept an engine's link and device busy, as a picture.
#pragma once

#include <string>

#include "runtime/engine/engine.h"

namespace ds {

/// Writes the engine's spans since the last time (EngineLimits::record_spans) as a Chrome trace.
Status write_trace(Engine& engine, const std::string& path);

}  // namespace ds
