// The API's description for programs.
#pragma once

#include <string_view>

namespace ds {

/// openapi.json: OpenAPI 3.1.
std::string_view openapi();

}  // namespace ds
