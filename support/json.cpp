#include "support/json.h"

#include <cmath>

#include "support/file.h"

namespace ds {
namespace {

std::string shown(const nlohmann::json& value) {
  std::string text = value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  return text;
}

// Deeper than anything real. Whatever walks a value recursively (dump, copy) would run out of stack on more.
constexpr int kMaxDepth = 256;

bool too_deep(std::string_view text) {
  int depth = 0;
  bool quoted = false;
  for (size_t i = 0; i < text.size(); ++i) {
    char c = text[i];
    if (quoted) {
      if (c == '\\') ++i;
      if (c == '"') quoted = false;
    } else if (c == '"') {
      quoted = true;
    } else if (c == '[' || c == '{') {
      if (++depth > kMaxDepth) return true;
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return false;
}

template <typename Json>
Result<Json> parse_as(std::string_view text, const std::string& origin) {
  if (text.empty()) return error(Code::kCorrupt, "'{}' is empty; expected JSON", origin);
  if (too_deep(text)) {
    return error(Code::kCorrupt, "'{}' nests lists or objects more than {} deep", origin, kMaxDepth);
  }
  try {
    return Json::parse(text);
  } catch (const nlohmann::json::exception& e) {
    return error(Code::kCorrupt, "'{}' is not valid JSON ({} bytes): {}", origin, text.size(), e.what());
  }
}

}  // namespace

Result<nlohmann::json> parse_json(std::string_view text, const std::string& origin) {
  return parse_as<nlohmann::json>(text, origin);
}

Result<nlohmann::ordered_json> parse_ordered_json(std::string_view text, const std::string& origin) {
  return parse_as<nlohmann::ordered_json>(text, origin);
}

Result<nlohmann::json> read_json_file(const std::string& path) {
  DS_ASSIGN(std::string text, read_text_file(path));
  return parse_json(text, path);
}

Result<JsonObject> JsonObject::make(const nlohmann::json& value, std::string where) {
  if (!value.is_object()) {
    return error(Code::kCorrupt, "{}: found {}, expected a JSON object", where, shown(value));
  }
  JsonObject object;
  object.value_ = &value;
  object.where_ = std::move(where);
  return object;
}

bool JsonObject::has(std::string_view key) const {
  auto it = value_->find(std::string(key));
  return it != value_->end() && !it->is_null();
}

Result<const nlohmann::json*> JsonObject::find(std::string_view key) const {
  auto it = value_->find(std::string(key));
  if (it == value_->end() || it->is_null())
    return error(Code::kCorrupt, "{}: key '{}' is missing", where_, key);
  return &*it;
}

Result<int64_t> JsonObject::integer(std::string_view key, int64_t low, int64_t high) const {
  DS_ASSIGN(const nlohmann::json* v, find(key));
  bool integral = v->is_number_integer() && !(v->is_number_unsigned() && v->get<uint64_t>() > INT64_MAX);
  if (!integral || v->get<int64_t>() < low || v->get<int64_t>() > high) {
    return error(Code::kInvalidArgument, "{}: '{}' is {}, expected an integer in [{}, {}]", where_, key,
                 shown(*v), low, high);
  }
  return v->get<int64_t>();
}

Result<double> JsonObject::number(std::string_view key, double low, double high) const {
  DS_ASSIGN(const nlohmann::json* v, find(key));
  if (!v->is_number() || !std::isfinite(v->get<double>()) || v->get<double>() < low ||
      v->get<double>() > high) {
    return error(Code::kInvalidArgument, "{}: '{}' is {}, expected a number in [{}, {}]", where_, key,
                 shown(*v), low, high);
  }
  return v->get<double>();
}

Result<std::string> JsonObject::string(std::string_view key) const {
  DS_ASSIGN(const nlohmann::json* v, find(key));
  if (!v->is_string()) {
    return error(Code::kInvalidArgument, "{}: '{}' is {}, expected a string", where_, key, shown(*v));
  }
  return v->get<std::string>();
}

Result<bool> JsonObject::boolean(std::string_view key) const {
  DS_ASSIGN(const nlohmann::json* v, find(key));
  if (!v->is_boolean()) {
    return error(Code::kInvalidArgument, "{}: '{}' is {}, expected true or false", where_, key, shown(*v));
  }
  return v->get<bool>();
}

Result<JsonObject> JsonObject::object(std::string_view key) const {
  DS_ASSIGN(const nlohmann::json* v, find(key));
  return make(*v, at(key));
}

Result<const nlohmann::json*> JsonObject::array(std::string_view key) const {
  DS_ASSIGN(const nlohmann::json* v, find(key));
  if (!v->is_array()) {
    return error(Code::kInvalidArgument, "{}: '{}' is {}, expected a list", where_, key, shown(*v));
  }
  return v;
}

Result<int64_t> JsonObject::integer_or(std::string_view key, int64_t low, int64_t high,
                                       int64_t otherwise) const {
  if (!has(key)) return otherwise;
  return integer(key, low, high);
}
Result<double> JsonObject::number_or(std::string_view key, double low, double high, double otherwise) const {
  if (!has(key)) return otherwise;
  return number(key, low, high);
}
Result<std::string> JsonObject::string_or(std::string_view key, std::string otherwise) const {
  if (!has(key)) return otherwise;
  return string(key);
}
Result<bool> JsonObject::boolean_or(std::string_view key, bool otherwise) const {
  if (!has(key)) return otherwise;
  return boolean(key);
}

}  // namespace ds
