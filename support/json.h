// JSON with errors that say file, key, found and expected. Thin over nlohmann-json.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "support/status.h"

namespace ds {

/// Parses text; kCorrupt with line and column, or when nested absurdly deep. `origin` names the file in
/// messages.
Result<nlohmann::json> parse_json(std::string_view text, const std::string& origin);
Result<nlohmann::json> read_json_file(const std::string& path);
/// The same with the keys of objects in the text's order.
Result<nlohmann::ordered_json> parse_ordered_json(std::string_view text, const std::string& origin);

/// A view of one JSON object that knows where it stands ("machine.json: compute.matmul"): typed access with
/// ranges.
class JsonObject {
 public:
  /// kCorrupt when `value` is not an object.
  static Result<JsonObject> make(const nlohmann::json& value, std::string where);

  bool has(std::string_view key) const;  // present and not null
  Result<int64_t> integer(std::string_view key, int64_t low, int64_t high) const;
  Result<double> number(std::string_view key, double low, double high) const;  // finite
  Result<std::string> string(std::string_view key) const;
  Result<bool> boolean(std::string_view key) const;
  Result<JsonObject> object(std::string_view key) const;
  Result<const nlohmann::json*> array(std::string_view key) const;

  Result<int64_t> integer_or(std::string_view key, int64_t low, int64_t high, int64_t otherwise) const;
  Result<double> number_or(std::string_view key, double low, double high, double otherwise) const;
  Result<std::string> string_or(std::string_view key, std::string otherwise) const;
  Result<bool> boolean_or(std::string_view key, bool otherwise) const;

  const nlohmann::json& json() const { return *value_; }
  const std::string& where() const { return where_; }
  std::string at(std::string_view key) const { return where_ + ": " + std::string(key); }

 private:
  const nlohmann::json* value_ = nullptr;
  std::string where_;
  Result<const nlohmann::json*> find(std::string_view key) const;
};

}  // namespace ds
