// One rendering of a template.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/model/jinja/syntax_internal.h"
#include "runtime/model/jinja/template.h"
#include "runtime/model/jinja/value_internal.h"

namespace ds::jinja {

inline constexpr int kMaxCallDepth = 600;  // of nodes that are being evaluated, one within the other
inline constexpr size_t kMaxNamespaces = 10'000;

/// Names of one body; a name that is not there is looked for in `parent`.
struct Scope {
  Scope* parent = nullptr;
  std::vector<std::pair<std::string, Value>> names;
  bool captured = false;  // a macro refers to it

  const Value* find(std::string_view name) const;
  void set(const std::string& name, Value value);
};

struct Args {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> keyword;
};

struct MacroObject : Object {
  const Stmt* definition = nullptr;
  std::string name;
  Scope* scope = nullptr;  // where it was defined
};

/// joiner() and cycler(): functions with a state.
struct FunctionObject : Object {
  std::string name;
  std::vector<Value> items;
  size_t at = 0;
};

struct MethodObject : Object {
  Value self;
  std::string name;
};

struct LoopObject : Object {
  std::function<bool(Value&)> source;  // the next item that the loop's condition lets through
  std::deque<Value> ahead;             // read before their turn, for `last`, `nextitem` and `length`
  int64_t index0 = -1, depth0 = 0;
  int64_t known_length = -1;  // of a sequence without condition
  Value current, previous, changed;
  bool changed_once = false;

  bool next(Value& item);
  bool peek(Value& item);
};

/// A call's arguments by Python's rules; raises where they do not fit.
class Parameters {
 public:
  /// `names`: the parameters after the value that a filter or method is applied to.
  Parameters(std::string_view callee, const Args& args, std::initializer_list<std::string_view> names,
             size_t required = 0);
  bool has(size_t i) const { return values_[i].has_value(); }
  const Value& operator[](size_t i) const { return *values_[i]; }
  Value get(size_t i, Value otherwise) const { return has(i) ? *values_[i] : std::move(otherwise); }
  bool flag(size_t i, bool otherwise = false) const { return has(i) ? truth(*values_[i]) : otherwise; }
  int64_t integer(size_t i, int64_t otherwise) const;
  const std::string& text(size_t i) const;

 private:
  std::string callee_;
  std::vector<std::optional<Value>> values_;
};

class Interpreter {
 public:
  Interpreter(const RenderOptions& options) : options_(options) {}
  ~Interpreter();

  std::string run(const Body& body, const nlohmann::ordered_json& variables);

  // For built-ins.
  Value get_attribute(const Value& object, const std::string& name);
  Value get_item(const Value& object, const Value& key);
  /// By a path as filters take it: "function.name", 0.
  Value get_path(Value object, const Value& path);
  Value apply_filter(const std::string& name, const Value& input, const Args& args);
  bool apply_test(const std::string& name, const Value& input, const Args& args);
  Value call(const Value& callee, Args args);
  void charge(int64_t steps);
  void charge_text(size_t bytes) { charge(1 + static_cast<int64_t>(bytes / 64)); }
  Value text(std::string s, bool markup = false) {
    charge_text(s.size());
    return Value::string(std::move(s), markup);
  }
  std::vector<Value> items_of(const Value& v) {
    std::vector<Value> items = iterate(v);
    charge(static_cast<int64_t>(items.size()));
    return items;
  }
  std::time_t now() const { return options_.now ? *options_.now : std::time(nullptr); }
  bool has_clock() const { return !options_.now; }
  Value make_namespace(const Args& args);
  Value binary(const std::string& op, const Value& a, const Value& b);

 private:
  enum class Flow : uint8_t { kNext, kBreak, kContinue };
  struct Deeper;
  class NewScope;

  Value eval(const Expr& e, const Value* filtered = nullptr);
  Value eval_node(const Expr& e, const Value* filtered);
  Value lookup(const std::string& name);
  Value slice(const Expr& e);
  bool compare_chain(const Expr& e);
  Args eval_args(const CallArgs& args);
  Flow exec(const Body& body);
  Flow exec(const Stmt& s);
  Flow exec_for(const Stmt& s);
  void assign(const Expr& target, Value value);
  std::string capture(const Body& body);
  Value call_macro(const Value& callee, Args args);
  void write(std::string_view s);

  RenderOptions options_;
  int64_t steps_ = 0;
  int depth_ = 0;
  int64_t loops_ = 0;
  std::string* out_ = nullptr;
  Scope* scope_ = nullptr;
  std::vector<std::unique_ptr<Scope>> kept_scopes_;           // that macros refer to
  std::vector<std::shared_ptr<NamespaceObject>> namespaces_;  // emptied at the end, so that no cycle stays
  std::vector<std::shared_ptr<LoopObject>> loop_objects_;
};

Value call_method(Interpreter& in, const Value& self, const std::string& name, const Args& args);
/// Whether Python's type of the value has a method of this name that the sandbox lets through; throws
/// kUnsupported for those that are not done.
bool has_method(const Value& self, std::string_view name);
/// Those that change a list or dict: the sandbox forbids them.
bool is_forbidden_method(const Value& self, std::string_view name);
Value call_function(Interpreter& in, FunctionObject& function, const Args& args);
bool is_function(std::string_view name);
/// Python's `%` on texts.
std::string format_percent(const std::string& format, const Value& args);

}  // namespace ds::jinja
