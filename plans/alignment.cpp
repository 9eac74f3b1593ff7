#include "plans/alignment.h"

#include <algorithm>

namespace ds {

std::optional<MapForm> map_form_named(std::string_view name) {
  const auto* first = std::begin(kMapFormNames) + 1;  // "none" is no form of a map
  const auto* at = std::find(first, std::end(kMapFormNames), name);
  if (at == std::end(kMapFormNames)) return std::nullopt;
  return static_cast<MapForm>(at - std::begin(kMapFormNames));
}

Result<MapForm> parse_map_form(std::string_view name, std::string_view where, Code code) {
  if (auto form = map_form_named(name)) return *form;
  return error(code, "{}: unknown form '{}'; expected one of diagonal, low-rank, full", where, name);
}

}  // namespace ds
