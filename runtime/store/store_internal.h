// What every store needs.
#pragma once

#include <cstddef>
#include <string_view>

#include "runtime/store/store.h"
#include "support/status.h"

namespace ds {

/// A part of a read: small enough that who is told of it finds it in the second-level cache, large enough
/// that the calls cost nothing.
inline constexpr size_t kReadPart = 256 << 10;

/// kInvalidArgument where it is none that Store takes.
Status check_store_key(std::string_view key);
Status check_store_names(Store::Names names);

}  // namespace ds
