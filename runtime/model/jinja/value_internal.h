// Values of templates, with the semantics of the Python objects that jinja2 would have: truth, equality,
// order, str(), repr(), json.dumps().
//
// Inside the interpreter failures are thrown (Failure) and turned into a Status at its edge,
// Template::parse() and Template::render(): an expression's evaluation would otherwise be mostly the handing
// on of errors.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "support/json.h"
#include "support/status.h"

namespace ds::jinja {

struct Failure {
  Code code;
  std::string what;
  int line = 0;  // 0: not known yet; the interpreter adds that of the innermost node
};

template <typename... Args>
[[noreturn]] void fail(Code code, fmt::format_string<Args...> format, Args&&... args) {
  throw Failure{code, fmt::format(format, std::forward<Args>(args)...)};
}
/// What Python or jinja2 would raise while rendering.
template <typename... Args>
[[noreturn]] void raise(fmt::format_string<Args...> format, Args&&... args) {
  throw Failure{Code::kInvalidArgument, fmt::format(format, std::forward<Args>(args)...)};
}
/// Of Jinja or Python, but not done here.
[[noreturn]] void unsupported(std::string_view what);

// Limits, so that a hostile template ends with an error.
inline constexpr int kMaxValueDepth = 128;
inline constexpr int64_t kMaxString = int64_t{64} << 20;
inline constexpr int64_t kMaxItems = 1'000'000;
inline constexpr int64_t kMaxRange = 100'000;  // jinja2's sandbox has this one too

enum class Type : uint8_t {
  kUndefined,
  kNone,
  kBool,
  kInt,
  kFloat,
  kString,
  kList,
  kTuple,
  kRange,
  kDict,
  kView,      // what dict.items(), keys() and values() return: has a length, cannot be indexed
  kIterator,  // what most filters over sequences return: can be walked once
  kNamespace,
  kLoop,
  kMacro,
  kFunction,
  kMethod,
};

struct Object {
  virtual ~Object() = default;
};
class Value;

struct StringObject : Object {
  std::string text;  // UTF-8
  bool ascii = true;
  bool markup = false;  // a `safe` string: what is added to it is escaped for HTML
};
struct ListObject : Object {
  std::vector<Value> items;
  int depth = 1;
};
struct IteratorObject : Object {
  std::vector<Value> items;
  size_t at = 0;
};
struct DictObject : Object {
  std::vector<std::pair<Value, Value>> items;     // in order of insertion
  std::unordered_map<std::string, size_t> index;  // by hash_key()
  int depth = 1;
  const Value* find(const Value& key) const;  // nullptr: none, or a key that cannot be one
  const Value* find(std::string_view key) const;
  void set(Value key, Value value);  // TypeError for a key that cannot be one
};
struct NamespaceObject : Object {
  DictObject fields;
};

class Value {
 public:
  Value() = default;  // undefined, without a name
  static Value none() { return Value(Type::kNone); }
  static Value boolean(bool b) {
    Value v(Type::kBool);
    v.int_ = b ? 1 : 0;
    return v;
  }
  static Value integer(int64_t i) {
    Value v(Type::kInt);
    v.int_ = i;
    return v;
  }
  static Value real(double f) {
    Value v(Type::kFloat);
    v.float_ = f;
    return v;
  }
  static Value string(std::string text, bool markup = false);
  static Value list(std::vector<Value> items) { return sequence(Type::kList, std::move(items)); }
  static Value tuple(std::vector<Value> items) { return sequence(Type::kTuple, std::move(items)); }
  static Value sequence(Type type, std::vector<Value> items);  // kList, kTuple, kRange, kView
  static Value iterator(std::vector<Value> items);
  static Value dict(std::shared_ptr<DictObject> dict);
  /// `message`: what the UndefinedError says where it is used.
  static Value undefined(std::string message);
  static Value object(Type type, std::shared_ptr<Object> object) {
    Value v(type);
    v.object_ = std::move(object);
    return v;
  }
  /// kUnsupported for integers beyond 64 bits.
  static Value from_json(const nlohmann::ordered_json& json);

  Type type() const { return type_; }
  bool is(Type type) const { return type_ == type; }
  bool is_undefined() const { return type_ == Type::kUndefined; }
  bool is_none() const { return type_ == Type::kNone; }
  bool is_string() const { return type_ == Type::kString; }
  bool is_number() const { return type_ == Type::kInt || type_ == Type::kFloat || type_ == Type::kBool; }
  bool is_integral() const { return type_ == Type::kInt || type_ == Type::kBool; }
  bool has_items() const {  // kList, kTuple, kRange
    return type_ == Type::kList || type_ == Type::kTuple || type_ == Type::kRange;
  }
  bool is_markup() const { return is_string() && as<StringObject>().markup; }

  int64_t integer() const { return int_; }  // of kInt and kBool
  double real() const { return type_ == Type::kFloat ? float_ : static_cast<double>(int_); }
  const std::string& text() const { return as<StringObject>().text; }
  const std::vector<Value>& items() const { return as<ListObject>().items; }
  const DictObject& dict() const { return as<DictObject>(); }
  template <typename T>
  T& as() const {
    return static_cast<T&>(*object_);
  }
  bool same(const Value& other) const;  // Python's `is`

 private:
  explicit Value(Type type) : type_(type) {}
  Type type_ = Type::kUndefined;
  union {
    int64_t int_ = 0;
    double float_;
  };
  std::shared_ptr<Object> object_;  // kUndefined: its message, or none
};

/// Python's name of the type: "str", "NoneType", "dict"; for messages.
std::string_view type_name(const Value& v);
/// Raises what using this undefined value raises.
[[noreturn]] void raise_undefined(const Value& v);

bool truth(const Value& v);
bool equal(const Value& a, const Value& b);
/// -1, 0 or 1; TypeError where Python has no order. Not-a-number: 2.
int compare(const Value& a, const Value& b, std::string_view op);
/// What stands for the value as a key of a dict; TypeError for lists and dicts.
std::string hash_key(const Value& v);

std::string to_str(const Value& v);
std::string to_repr(const Value& v);
std::string float_repr(double f);

struct JsonStyle {
  bool ensure_ascii = false, sort_keys = false, indented = false;
  std::string indent, item_separator = ", ", key_separator = ": ";
};
/// json.dumps(); TypeError for what it does not take.
std::string to_json(const Value& v, const JsonStyle& style);

/// What iterating gives, all at once; TypeError for what cannot be iterated. An iterator is empty afterwards.
std::vector<Value> iterate(const Value& v);
/// len(); TypeError where there is none.
int64_t length(const Value& v);
/// key `in` container.
bool contains(const Value& container, const Value& key);

}  // namespace ds::jinja
