#include <algorithm>
#include <charconv>
#include <cmath>

#include "runtime/model/jinja/text_internal.h"
#include "runtime/model/jinja/value_internal.h"
#include "runtime/model/tokenizer_unicode_internal.h"

namespace ds::jinja {
namespace {

int depth_of(const Value& v) {
  switch (v.type()) {
    case Type::kList:
    case Type::kTuple:
    case Type::kView:
      return v.as<ListObject>().depth;
    case Type::kDict:
      return v.dict().depth;
    default:
      return 0;
  }
}

int checked_depth(int depth) {
  if (depth > kMaxValueDepth)
    fail(Code::kExhausted, "a value nests lists and dicts more than {} deep", kMaxValueDepth);
  return depth;
}

std::string_view list_text(const Value& v, std::string (*show)(const Value&), std::string& out, char open,
                           char close) {
  out += open;
  bool first = true;
  for (const Value& item : v.items()) {
    if (!first) out += ", ";
    first = false;
    out += show(item);
    if (static_cast<int64_t>(out.size()) > kMaxString)
      fail(Code::kExhausted, "a text is larger than {} bytes", kMaxString);
  }
  if (v.is(Type::kTuple) && v.items().size() == 1) out += ',';
  out += close;
  return out;
}

std::string string_repr(std::string_view s) {
  bool double_quotes = s.find('\'') != std::string_view::npos && s.find('"') == std::string_view::npos;
  const char quote = double_quotes ? '"' : '\'';
  std::string out(1, quote);
  for (size_t at = 0; at < s.size();) {
    size_t begin = at;
    char32_t c = unicode::next_char(s, at);
    if (c == '\\' || c == static_cast<char32_t>(quote)) {
      out += '\\';
      out += static_cast<char>(c);
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (text::is_printable(c)) {
      out += s.substr(begin, at - begin);
    } else if (c < 0x100) {
      out += fmt::format("\\x{:02x}", static_cast<uint32_t>(c));
    } else if (c < 0x10000) {
      out += fmt::format("\\u{:04x}", static_cast<uint32_t>(c));
    } else {
      out += fmt::format("\\U{:08x}", static_cast<uint32_t>(c));
    }
  }
  return out + quote;
}

void append_json_string(std::string& out, std::string_view s, bool ensure_ascii) {
  out += '"';
  for (size_t at = 0; at < s.size();) {
    size_t begin = at;
    char32_t c = unicode::next_char(s, at);
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\f':
        out += "\\f";
        break;
      case '\b':
        out += "\\b";
        break;
      default:
        if (c < 0x20 || (ensure_ascii && c >= 0x7F && c < 0x10000)) {
          if (c == 0x7F) {
            out += '\x7F';
          } else {
            out += fmt::format("\\u{:04x}", static_cast<uint32_t>(c));
          }
        } else if (ensure_ascii && c >= 0x10000) {
          uint32_t v = static_cast<uint32_t>(c) - 0x10000;
          out += fmt::format("\\u{:04x}\\u{:04x}", 0xD800 + (v >> 10), 0xDC00 + (v & 0x3FF));
        } else {
          out += s.substr(begin, at - begin);
        }
    }
  }
  out += '"';
}

std::string json_float(double f) {
  if (std::isnan(f)) return "NaN";
  if (std::isinf(f)) return f > 0 ? "Infinity" : "-Infinity";
  return float_repr(f);
}

std::string json_key(const Value& key) {
  switch (key.type()) {
    case Type::kString:
      return key.text();
    case Type::kBool:
      return key.integer() != 0 ? "true" : "false";
    case Type::kNone:
      return "null";
    case Type::kInt:
      return fmt::format("{}", key.integer());
    case Type::kFloat:
      return json_float(key.real());
    default:
      raise("keys must be str, int, float, bool or None, not {}", type_name(key));
  }
}

void append_json(std::string& out, const Value& v, const JsonStyle& style, int level) {
  if (static_cast<int64_t>(out.size()) > kMaxString)
    fail(Code::kExhausted, "a text is larger than {} bytes", kMaxString);
  auto new_line = [&](int at) {
    out += '\n';
    for (int i = 0; i < at; ++i) out += style.indent;
  };
  switch (v.type()) {
    case Type::kNone:
      out += "null";
      return;
    case Type::kBool:
      out += v.integer() != 0 ? "true" : "false";
      return;
    case Type::kInt:
      out += fmt::format("{}", v.integer());
      return;
    case Type::kFloat:
      out += json_float(v.real());
      return;
    case Type::kString:
      append_json_string(out, v.text(), style.ensure_ascii);
      return;
    case Type::kList:
    case Type::kTuple: {
      if (v.items().empty()) {
        out += "[]";
        return;
      }
      out += '[';
      bool first = true;
      for (const Value& item : v.items()) {
        if (!first) out += style.item_separator;
        first = false;
        if (style.indented) new_line(level + 1);
        append_json(out, item, style, level + 1);
      }
      if (style.indented) new_line(level);
      out += ']';
      return;
    }
    case Type::kDict: {
      const DictObject& dict = v.dict();
      if (dict.items.empty()) {
        out += "{}";
        return;
      }
      std::vector<const std::pair<Value, Value>*> order;
      for (const auto& item : dict.items) order.push_back(&item);
      if (style.sort_keys)
        std::stable_sort(order.begin(), order.end(),
                         [](const auto* a, const auto* b) { return compare(a->first, b->first, "<") < 0; });
      out += '{';
      bool first = true;
      for (const auto* item : order) {
        if (!first) out += style.item_separator;
        first = false;
        if (style.indented) new_line(level + 1);
        append_json_string(out, json_key(item->first), style.ensure_ascii);
        out += style.key_separator;
        append_json(out, item->second, style, level + 1);
      }
      if (style.indented) new_line(level);
      out += '}';
      return;
    }
    default:
      raise("Object of type {} is not JSON serializable", type_name(v));
  }
}

}  // namespace

void unsupported(std::string_view what) {
  fail(Code::kUnsupported, "{} is not supported in chat templates by this version", what);
}

const Value* DictObject::find(const Value& key) const {
  if (key.is(Type::kList) || key.is(Type::kDict) || key.is(Type::kView)) return nullptr;
  auto it = index.find(hash_key(key));
  return it == index.end() ? nullptr : &items[it->second].second;
}

const Value* DictObject::find(std::string_view key) const {
  auto it = index.find(std::string(1, 's').append(key));
  return it == index.end() ? nullptr : &items[it->second].second;
}

void DictObject::set(Value key, Value value) {
  depth = checked_depth(std::max({depth, 1 + depth_of(value), 1 + depth_of(key)}));
  auto [it, added] = index.emplace(hash_key(key), items.size());
  if (added) {
    items.emplace_back(std::move(key), std::move(value));
  } else {
    items[it->second].second = std::move(value);
  }
}

Value Value::string(std::string text, bool markup) {
  if (static_cast<int64_t>(text.size()) > kMaxString)
    fail(Code::kExhausted, "a text is larger than {} bytes", kMaxString);
  auto object = std::make_shared<StringObject>();
  object->ascii = text::is_ascii(text);
  object->text = std::move(text);
  object->markup = markup;
  return Value::object(Type::kString, std::move(object));
}

Value Value::sequence(Type type, std::vector<Value> items) {
  if (static_cast<int64_t>(items.size()) > kMaxItems)
    fail(Code::kExhausted, "a list has more than {} items", kMaxItems);
  auto object = std::make_shared<ListObject>();
  int depth = 1;
  for (const Value& item : items) depth = std::max(depth, 1 + depth_of(item));
  object->depth = checked_depth(depth);
  object->items = std::move(items);
  return Value::object(type, std::move(object));
}

Value Value::iterator(std::vector<Value> items) {
  for (const Value& item : items) checked_depth(1 + depth_of(item));
  auto object = std::make_shared<IteratorObject>();
  object->items = std::move(items);
  return Value::object(Type::kIterator, std::move(object));
}

Value Value::dict(std::shared_ptr<DictObject> dict) { return Value::object(Type::kDict, std::move(dict)); }

Value Value::undefined(std::string message) {
  auto object = std::make_shared<StringObject>();
  object->text = std::move(message);
  return Value::object(Type::kUndefined, std::move(object));
}

Value Value::from_json(const nlohmann::ordered_json& json) {
  switch (json.type()) {
    case nlohmann::ordered_json::value_t::null:
      return none();
    case nlohmann::ordered_json::value_t::boolean:
      return boolean(json.get<bool>());
    case nlohmann::ordered_json::value_t::number_integer:
      return integer(json.get<int64_t>());
    case nlohmann::ordered_json::value_t::number_unsigned:
      if (json.get<uint64_t>() > INT64_MAX) unsupported(fmt::format("the integer {}", json.get<uint64_t>()));
      return integer(json.get<int64_t>());
    case nlohmann::ordered_json::value_t::number_float:
      return real(json.get<double>());
    case nlohmann::ordered_json::value_t::string: {
      const auto& s = json.get_ref<const std::string&>();
      if (unicode::valid_utf8_prefix(s) != s.size()) raise("a text of the conversation is not UTF-8");
      return string(s);
    }
    case nlohmann::ordered_json::value_t::array: {
      std::vector<Value> items;
      items.reserve(json.size());
      for (const auto& item : json) items.push_back(from_json(item));
      return list(std::move(items));
    }
    case nlohmann::ordered_json::value_t::object: {
      auto made = std::make_shared<DictObject>();
      for (const auto& [key, value] : json.items()) made->set(string(key), from_json(value));
      return dict(std::move(made));
    }
    default:
      unsupported("a value of JSON of this kind");
  }
}

bool Value::same(const Value& other) const {
  if (type_ != other.type_) return false;
  switch (type_) {
    case Type::kNone:
      return true;
    case Type::kBool:
    case Type::kInt:
      return int_ == other.int_;
    case Type::kFloat:
      return float_ == other.float_;
    default:
      return object_ == other.object_;
  }
}

std::string_view type_name(const Value& v) {
  switch (v.type()) {
    case Type::kUndefined:
      return "Undefined";
    case Type::kNone:
      return "NoneType";
    case Type::kBool:
      return "bool";
    case Type::kInt:
      return "int";
    case Type::kFloat:
      return "float";
    case Type::kString:
      return "str";
    case Type::kList:
      return "list";
    case Type::kTuple:
      return "tuple";
    case Type::kRange:
      return "range";
    case Type::kDict:
      return "dict";
    case Type::kView:
      return "dict_items";
    case Type::kIterator:
      return "generator";
    case Type::kNamespace:
      return "Namespace";
    case Type::kLoop:
      return "LoopContext";
    case Type::kMacro:
      return "Macro";
    case Type::kFunction:
      return "function";
    case Type::kMethod:
      return "method";
  }
  return "object";
}

void raise_undefined(const Value& v) {
  // The object is a StringObject; without one nothing is known of the value.
  if (v.same(Value())) raise("a value is undefined");
  raise("{}", v.as<StringObject>().text);
}

bool truth(const Value& v) {
  switch (v.type()) {
    case Type::kUndefined:
    case Type::kNone:
      return false;
    case Type::kBool:
    case Type::kInt:
      return v.integer() != 0;
    case Type::kFloat:
      return v.real() != 0;
    case Type::kString:
      return !v.text().empty();
    case Type::kList:
    case Type::kTuple:
    case Type::kRange:
    case Type::kView:
      return !v.items().empty();
    case Type::kDict:
      return !v.dict().items.empty();
    default:
      return true;
  }
}

bool equal(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) {
    if (a.is_integral() && b.is_integral()) return a.integer() == b.integer();
    return a.real() == b.real();
  }
  if (a.type() != b.type()) return false;
  switch (a.type()) {
    case Type::kUndefined:
    case Type::kNone:
      return true;
    case Type::kString:
      return a.text() == b.text();
    case Type::kList:
    case Type::kTuple:
    case Type::kRange:
      return std::equal(a.items().begin(), a.items().end(), b.items().begin(), b.items().end(), equal);
    case Type::kDict: {
      if (a.dict().items.size() != b.dict().items.size()) return false;
      for (const auto& [key, value] : a.dict().items) {
        const Value* other = b.dict().find(key);
        if (other == nullptr || !equal(value, *other)) return false;
      }
      return true;
    }
    default:
      return a.same(b);
  }
}

int compare(const Value& a, const Value& b, std::string_view op) {
  auto three_way = [](auto x, auto y) { return x < y ? -1 : x > y ? 1 : x == y ? 0 : 2; };
  if (a.is_undefined()) raise_undefined(a);
  if (b.is_undefined()) raise_undefined(b);
  if (a.is_number() && b.is_number()) {
    if (a.is_integral() && b.is_integral()) return three_way(a.integer(), b.integer());
    return three_way(a.real(), b.real());
  }
  // The order of UTF-8's bytes is that of code points.
  if (a.is_string() && b.is_string()) return three_way(a.text().compare(b.text()), 0);
  if (a.type() == b.type() && (a.is(Type::kList) || a.is(Type::kTuple))) {
    size_t n = std::min(a.items().size(), b.items().size());
    for (size_t i = 0; i < n; ++i)
      if (!equal(a.items()[i], b.items()[i])) return compare(a.items()[i], b.items()[i], op);
    return three_way(a.items().size(), b.items().size());
  }
  raise("'{}' not supported between instances of '{}' and '{}'", op, type_name(a), type_name(b));
}

std::string hash_key(const Value& v) {
  switch (v.type()) {
    case Type::kString:
      return std::string(1, 's').append(v.text());
    case Type::kBool:
    case Type::kInt:
      return fmt::format("n{}", v.integer());
    case Type::kFloat: {
      double f = v.real();
      if (f == std::trunc(f) && std::abs(f) < 9e18) return fmt::format("n{}", static_cast<int64_t>(f));
      return fmt::format("f{}", f);
    }
    case Type::kNone:
      return "N";
    case Type::kUndefined:
      return "U";
    case Type::kTuple: {
      std::string key = "t";
      for (const Value& item : v.items()) {
        std::string part = hash_key(item);
        key += fmt::format("{}:{}", part.size(), part);
      }
      return key;
    }
    default:
      raise("unhashable type: '{}'", type_name(v));
  }
}

std::string float_repr(double f) {
  if (std::isnan(f)) return "nan";
  if (std::isinf(f)) return f > 0 ? "inf" : "-inf";
  char buffer[64];
  auto done = std::to_chars(buffer, buffer + sizeof buffer, f, std::chars_format::scientific);
  std::string_view all(buffer, static_cast<size_t>(done.ptr - buffer));
  std::string out;
  if (all[0] == '-') {
    out = "-";
    all.remove_prefix(1);
  }
  size_t e = all.find('e');
  std::string digits(1, all[0]);
  if (e > 2) digits += all.substr(2, e - 2);
  int exponent = std::atoi(std::string(all.substr(e + 1)).c_str());
  auto n = static_cast<int>(digits.size());
  if (exponent < -4 || exponent >= 16) {
    out += digits[0];
    if (n > 1) out.append(1, '.').append(digits, 1);
    return out + fmt::format("e{}{:02}", exponent < 0 ? '-' : '+', std::abs(exponent));
  }
  if (exponent < 0) return out + "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + digits;
  if (n <= exponent + 1) return out + digits + std::string(static_cast<size_t>(exponent + 1 - n), '0') + ".0";
  return out + digits.substr(0, static_cast<size_t>(exponent) + 1) + "." +
         digits.substr(static_cast<size_t>(exponent) + 1);
}

std::string to_repr(const Value& v) {
  switch (v.type()) {
    case Type::kUndefined:
      return "Undefined";
    case Type::kNone:
      return "None";
    case Type::kBool:
      return v.integer() != 0 ? "True" : "False";
    case Type::kInt:
      return fmt::format("{}", v.integer());
    case Type::kFloat:
      return float_repr(v.real());
    case Type::kString: {
      std::string repr = string_repr(v.text());
      return v.is_markup() ? "Markup(" + repr + ")" : repr;
    }
    case Type::kList: {
      std::string out;
      list_text(v, to_repr, out, '[', ']');
      return out;
    }
    case Type::kTuple: {
      std::string out;
      list_text(v, to_repr, out, '(', ')');
      return out;
    }
    case Type::kDict: {
      std::string out = "{";
      bool first = true;
      for (const auto& [key, value] : v.dict().items) {
        if (!first) out += ", ";
        first = false;
        out += to_repr(key) + ": " + to_repr(value);
        if (static_cast<int64_t>(out.size()) > kMaxString)
          fail(Code::kExhausted, "a text is larger than {} bytes", kMaxString);
      }
      return out + "}";
    }
    default:
      unsupported(fmt::format("the text of a '{}'", type_name(v)));
  }
}

std::string to_str(const Value& v) {
  if (v.is_string()) return v.text();
  if (v.is_undefined()) return "";
  return to_repr(v);
}

std::string to_json(const Value& v, const JsonStyle& style) {
  std::string out;
  append_json(out, v, style, 0);
  return out;
}

std::vector<Value> iterate(const Value& v) {
  switch (v.type()) {
    case Type::kUndefined:
      return {};
    case Type::kList:
    case Type::kTuple:
    case Type::kRange:
    case Type::kView:
      return v.items();
    case Type::kIterator: {
      auto& it = v.as<IteratorObject>();
      std::vector<Value> rest(it.items.begin() + static_cast<int64_t>(it.at), it.items.end());
      it.at = it.items.size();
      return rest;
    }
    case Type::kDict: {
      std::vector<Value> keys;
      for (const auto& item : v.dict().items) keys.push_back(item.first);
      return keys;
    }
    case Type::kString: {
      std::vector<Value> chars;
      const std::string& s = v.text();
      if (static_cast<int64_t>(s.size()) > kMaxItems)
        fail(Code::kExhausted, "a text of more than {} bytes is walked character by character", kMaxItems);
      for (size_t at = 0; at < s.size();) {
        size_t size = unicode::char_size(static_cast<unsigned char>(s[at]));
        chars.push_back(Value::string(s.substr(at, size)));
        at += size;
      }
      return chars;
    }
    default:
      raise("'{}' object is not iterable", type_name(v));
  }
}

int64_t length(const Value& v) {
  switch (v.type()) {
    case Type::kUndefined:
      return 0;
    case Type::kString:
      return v.as<StringObject>().ascii ? static_cast<int64_t>(v.text().size()) : text::count(v.text());
    case Type::kList:
    case Type::kTuple:
    case Type::kRange:
    case Type::kView:
      return static_cast<int64_t>(v.items().size());
    case Type::kDict:
      return static_cast<int64_t>(v.dict().items.size());
    default:
      raise("object of type '{}' has no len()", type_name(v));
  }
}

bool contains(const Value& container, const Value& key) {
  switch (container.type()) {
    case Type::kString:
      if (key.is_undefined()) raise("'in <string>' requires string as left operand, not Undefined");
      if (!key.is_string()) raise("'in <string>' requires string as left operand, not {}", type_name(key));
      return container.text().find(key.text()) != std::string::npos;
    case Type::kDict:
      hash_key(key);  // TypeError for what cannot be a key
      return container.dict().find(key) != nullptr;
    case Type::kNone:
    case Type::kBool:
    case Type::kInt:
    case Type::kFloat:
      raise("argument of type '{}' is not iterable", type_name(container));
    default: {
      for (const Value& item : iterate(container))
        if (equal(item, key)) return true;
      return false;
    }
  }
}

}  // namespace ds::jinja
