// The page at "/": what is served, how it goes, what was answered last; in one file, from GET /status.
#pragma once

#include <string_view>

namespace ds {

std::string_view status_page();

}  // namespace ds
