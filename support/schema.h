// What our JSON files share: schema name, version, and no key that nobody reads.
#pragma once

#include <fmt/ranges.h>

#include <initializer_list>
#include <string_view>

#include "support/json.h"

namespace ds {

/// "schema" and "version" of the root. kMismatch: another schema; kUnsupported: a version newer than ours.
inline Status check_schema(const JsonObject& root, std::string_view schema, int64_t version) {
  DS_ASSIGN(std::string found, root.string("schema"));
  if (found != schema)
    return error(Code::kMismatch, "{}: found '{}', expected '{}'; is this the right file?", root.at("schema"),
                 found, schema);
  DS_ASSIGN(int64_t v, root.integer("version", 1, INT32_MAX));
  if (v > version) {
    return error(
        Code::kUnsupported,
        "{}: found version {}, this program reads up to {}; use a newer droidspeak or write the file anew",
        root.at("version"), v, version);
  }
  return ok_status();
}

/// A misspelt optional key would be ignored silently; so unknown keys are errors.
inline Status check_keys(const JsonObject& object, std::initializer_list<std::string_view> known) {
  for (const auto& [key, value] : object.json().items()) {
    bool ok = false;
    for (std::string_view k : known) ok = ok || k == key;
    if (!ok)
      return error(Code::kInvalidArgument, "{}: unknown key '{}'; expected {}", object.where(), key,
                   fmt::join(known, ", "));
  }
  return ok_status();
}

}  // namespace ds
