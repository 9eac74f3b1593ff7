#include "runtime/model/jinja/interpreter_internal.h"

#include <algorithm>
#include <cmath>

#include "runtime/model/jinja/text_internal.h"
#include "runtime/model/tokenizer_unicode_internal.h"

namespace ds::jinja {

const Value* Scope::find(std::string_view name) const {
  for (const Scope* s = this; s != nullptr; s = s->parent)
    for (const auto& [key, value] : s->names)
      if (key == name) return &value;
  return nullptr;
}

void Scope::set(const std::string& name, Value value) {
  for (auto& [key, old] : names) {
    if (key != name) continue;
    old = std::move(value);
    return;
  }
  names.emplace_back(name, std::move(value));
}

bool LoopObject::next(Value& item) {
  if (!ahead.empty()) {
    item = std::move(ahead.front());
    ahead.pop_front();
    return true;
  }
  return source && source(item);
}

bool LoopObject::peek(Value& item) {
  if (ahead.empty()) {
    Value read;
    if (!source || !source(read)) return false;
    ahead.push_back(std::move(read));
  }
  item = ahead.front();
  return true;
}

Parameters::Parameters(std::string_view callee, const Args& args,
                       std::initializer_list<std::string_view> names, size_t required)
    : callee_(callee), values_(names.size()) {
  if (args.positional.size() > names.size())
    raise("{}() takes at most {} arguments, {} were given", callee, names.size(), args.positional.size());
  for (size_t i = 0; i < args.positional.size(); ++i) values_[i] = args.positional[i];
  for (const auto& [name, value] : args.keyword) {
    const auto* it = std::find(names.begin(), names.end(), name);
    if (it == names.end()) raise("{}() got an unexpected keyword argument '{}'", callee, name);
    auto i = static_cast<size_t>(it - names.begin());
    if (values_[i]) raise("{}() got multiple values for argument '{}'", callee, name);
    values_[i] = value;
  }
  for (size_t i = 0; i < required; ++i)
    if (!values_[i]) raise("{}() needs the argument '{}'", callee, names.begin()[i]);
}

int64_t Parameters::integer(size_t i, int64_t otherwise) const {
  if (!has(i)) return otherwise;
  if (values_[i]->is_undefined()) raise_undefined(*values_[i]);
  if (!values_[i]->is_integral())
    raise("{}(): '{}' object cannot be interpreted as an integer", callee_, type_name(*values_[i]));
  return values_[i]->integer();
}

const std::string& Parameters::text(size_t i) const {
  if (!values_[i]->is_string()) raise("{}(): expected str, found {}", callee_, type_name(*values_[i]));
  return values_[i]->text();
}

struct Interpreter::Deeper {
  explicit Deeper(Interpreter& interpreter) : in(interpreter) {
    if (++in.depth_ > kMaxCallDepth)
      fail(Code::kExhausted, "macros or expressions call each other more than {} deep", kMaxCallDepth);
  }
  ~Deeper() { --in.depth_; }
  Interpreter& in;
};

/// A scope for as long as this lives; longer where a macro refers to it.
class Interpreter::NewScope {
 public:
  NewScope(Interpreter& in, Scope* parent) : in_(in), before_(in.scope_), scope_(std::make_unique<Scope>()) {
    scope_->parent = parent;
    in_.scope_ = scope_.get();
  }
  ~NewScope() {
    in_.scope_ = before_;
    if (scope_->captured) in_.kept_scopes_.push_back(std::move(scope_));
  }

 private:
  Interpreter& in_;
  Scope* before_;
  std::unique_ptr<Scope> scope_;
};

Interpreter::~Interpreter() {
  // Namespaces and loops may hold each other, so each is emptied while all are alive.
  for (auto& ns : namespaces_) {
    std::vector<std::pair<Value, Value>> fields = std::move(ns->fields.items);
    ns->fields.items.clear();
  }
}

void Interpreter::charge(int64_t steps) {
  steps_ += steps;
  if (steps_ > options_.max_steps)
    fail(Code::kExhausted, "the template takes more than {} steps", options_.max_steps);
}

std::string Interpreter::run(const Body& body, const nlohmann::ordered_json& variables) {
  std::string out;
  Scope given;
  for (const auto& [name, value] : variables.items()) given.set(name, Value::from_json(value));
  out_ = &out;
  {
    NewScope top(*this, &given);
    exec(body);
    // What is left refers to `given`.
    for (auto& ns : namespaces_) ns->fields.items.clear();
  }
  return out;
}

void Interpreter::write(std::string_view s) {
  charge_text(s.size());
  *out_ += s;
  if (static_cast<int64_t>(out_->size()) > options_.max_output)
    fail(Code::kExhausted, "the template writes more than {} bytes", options_.max_output);
}

std::string Interpreter::capture(const Body& body) {
  std::string text;
  std::string* before = std::exchange(out_, &text);
  struct Restore {
    std::string*& out;
    std::string* before;
    ~Restore() { out = before; }
  } restore{out_, before};
  exec(body);
  return text;
}

Value Interpreter::lookup(const std::string& name) {
  if (const Value* found = scope_->find(name)) return *found;
  if (is_function(name)) {
    auto function = std::make_shared<FunctionObject>();
    function->name = name;
    return Value::object(Type::kFunction, std::move(function));
  }
  return Value::undefined(fmt::format("'{}' is undefined", name));
}

Value Interpreter::get_attribute(const Value& object, const std::string& name) {
  if (object.is_undefined()) raise_undefined(object);
  auto missing = [&] {
    std::string owner = object.is_none() ? "None" : fmt::format("{} object", type_name(object));
    return Value::undefined(fmt::format("'{}' has no attribute '{}'", owner, name));
  };
  if (is_forbidden_method(object, name))
    return Value::undefined(
        fmt::format("access to attribute '{}' of '{}' object is unsafe", name, type_name(object)));
  switch (object.type()) {
    case Type::kNamespace: {
      const Value* found = object.as<NamespaceObject>().fields.find(name);
      return found != nullptr ? *found : missing();
    }
    case Type::kLoop: {
      auto& loop = object.as<LoopObject>();
      Value item;
      if (name == "index") return Value::integer(loop.index0 + 1);
      if (name == "index0") return Value::integer(loop.index0);
      if (name == "first") return Value::boolean(loop.index0 == 0);
      if (name == "last") return Value::boolean(!loop.peek(item));
      if (name == "depth") return Value::integer(loop.depth0 + 1);
      if (name == "depth0") return Value::integer(loop.depth0);
      if (name == "previtem")
        return loop.index0 == 0 ? Value::undefined("there is no previous item") : loop.previous;
      if (name == "nextitem") return loop.peek(item) ? item : Value::undefined("there is no next item");
      if (name == "length" || name == "revindex" || name == "revindex0") {
        if (loop.known_length < 0) {
          std::vector<Value> rest;
          while (loop.next(item)) {
            charge(1);
            rest.push_back(item);
          }
          loop.known_length = loop.index0 + 1 + static_cast<int64_t>(rest.size());
          loop.ahead.assign(rest.begin(), rest.end());
        }
        int64_t n = loop.known_length;
        return Value::integer(name == "length"     ? n
                              : name == "revindex" ? n - loop.index0
                                                   : n - loop.index0 - 1);
      }
      if (name != "cycle" && name != "changed") return missing();
      break;
    }
    case Type::kMacro:
      if (name == "name") return text(object.as<MacroObject>().name);
      return missing();
    case Type::kFunction: {
      auto& function = object.as<FunctionObject>();
      if (!function.items.empty() && name == "current") return function.items[function.at];
      if (!has_method(object, name)) return missing();
      break;
    }
    default:
      if (!has_method(object, name)) {
        if (object.is(Type::kDict))
          if (const Value* found = object.dict().find(name)) return *found;
        return missing();
      }
  }
  auto method = std::make_shared<MethodObject>();
  method->self = object;
  method->name = name;
  return Value::object(Type::kMethod, std::move(method));
}

Value Interpreter::get_item(const Value& object, const Value& key) {
  if (object.is_undefined()) raise_undefined(object);
  if (object.is(Type::kDict)) {
    if (const Value* found = object.dict().find(key)) return *found;
  } else if (key.is_integral() && (object.has_items() || object.is_string())) {
    int64_t n = length(object), i = key.integer();
    if (i < 0) i += n;
    if (i >= 0 && i < n) {
      if (object.has_items()) return object.items()[static_cast<size_t>(i)];
      const std::string& s = object.text();
      charge_text(s.size());
      if (object.as<StringObject>().ascii) return Value::string(std::string(1, s[static_cast<size_t>(i)]));
      size_t at = 0;
      for (; i > 0; --i) at += unicode::char_size(static_cast<unsigned char>(s[at]));
      return Value::string(s.substr(at, unicode::char_size(static_cast<unsigned char>(s[at]))));
    }
  }
  if (key.is_string()) {
    // As an attribute, but without looking for a dict's key again.
    if (is_forbidden_method(object, key.text()) || !object.is(Type::kDict) || has_method(object, key.text()))
      return get_attribute(object, key.text());
  }
  std::string shown =
      key.is_string() || key.is_number() || key.is_none() ? to_repr(key) : std::string(type_name(key));
  if (key.is_string())
    return Value::undefined(fmt::format("'{} object' has no attribute {}", type_name(object), shown));
  return Value::undefined(fmt::format("{} object has no element {}", type_name(object), shown));
}

Value Interpreter::get_path(Value object, const Value& path) {
  if (path.is_none()) return object;
  if (!path.is_string()) return get_item(object, path);
  for (std::string_view part : text::split(path.text(), ".", -1, false)) {
    bool number = !part.empty() && part.size() < 10 &&
                  std::all_of(part.begin(), part.end(), [](char c) { return c >= '0' && c <= '9'; });
    object = get_item(
        object, number ? Value::integer(std::stoll(std::string(part))) : Value::string(std::string(part)));
  }
  return object;
}

Value Interpreter::eval(const Expr& e, const Value* filtered) {
  charge(1);
  Deeper deeper(*this);
  try {
    return eval_node(e, filtered);
  } catch (Failure& failure) {
    if (failure.line == 0) failure.line = e.line;
    throw;
  }
}

Value Interpreter::eval_node(const Expr& e, const Value* filtered) {
  auto kid = [&](size_t i) { return eval(*e.kids[i]); };
  switch (e.kind) {
    case ExprKind::kConst:
      return e.value;
    case ExprKind::kName:
      return lookup(e.name);
    case ExprKind::kList:
    case ExprKind::kTuple: {
      std::vector<Value> items;
      for (const ExprPtr& item : e.kids) items.push_back(eval(*item));
      return Value::sequence(e.kind == ExprKind::kList ? Type::kList : Type::kTuple, std::move(items));
    }
    case ExprKind::kDict: {
      auto dict = std::make_shared<DictObject>();
      for (size_t i = 0; i < e.kids.size(); i += 2) {
        Value key = kid(i);
        dict->set(std::move(key), kid(i + 1));
      }
      return Value::dict(std::move(dict));
    }
    case ExprKind::kGetAttr:
      return get_attribute(kid(0), e.name);
    case ExprKind::kGetItem: {
      Value object = kid(0);
      return get_item(object, kid(1));
    }
    case ExprKind::kSlice:
      return slice(e);
    case ExprKind::kCall: {
      Value callee = kid(0);
      return call(callee, eval_args(e.args));
    }
    case ExprKind::kFilter: {
      Value input = e.kids[0] ? (filtered != nullptr ? eval(*e.kids[0], filtered) : kid(0)) : *filtered;
      return apply_filter(e.name, input, eval_args(e.args));
    }
    case ExprKind::kTest: {
      Value input = kid(0);
      return Value::boolean(apply_test(e.name, input, eval_args(e.args)));
    }
    case ExprKind::kNot:
      return Value::boolean(!truth(kid(0)));
    case ExprKind::kNegative:
    case ExprKind::kPositive: {
      Value v = kid(0);
      if (v.is_undefined()) raise_undefined(v);
      bool negative = e.kind == ExprKind::kNegative;
      if (!v.is_number()) raise("bad operand type for unary {}: '{}'", negative ? '-' : '+', type_name(v));
      if (v.is(Type::kFloat)) return Value::real(negative ? -v.real() : v.real());
      if (negative && v.integer() == INT64_MIN) unsupported("an integer of more than 64 bits");
      return Value::integer(negative ? -v.integer() : v.integer());
    }
    case ExprKind::kAnd: {
      Value left = kid(0);
      return truth(left) ? kid(1) : left;
    }
    case ExprKind::kOr: {
      Value left = kid(0);
      return truth(left) ? left : kid(1);
    }
    case ExprKind::kCompare:
      return Value::boolean(compare_chain(e));
    case ExprKind::kBinary: {
      Value left = kid(0);
      return binary(e.ops[0], left, kid(1));
    }
    case ExprKind::kConcat: {
      std::string joined;
      for (const ExprPtr& part : e.kids) {
        std::string s = to_str(eval(*part));
        charge_text(s.size());
        joined += s;
        if (static_cast<int64_t>(joined.size()) > kMaxString)
          fail(Code::kExhausted, "a text is larger than {} bytes", kMaxString);
      }
      return text(std::move(joined));
    }
    case ExprKind::kCondition:
      if (truth(kid(0))) return kid(1);
      if (e.kids[2]) return kid(2);
      return Value::undefined("the inline if-expression evaluated to false and no else section was defined");
    case ExprKind::kNamespaceRef:
      break;
  }
  fail(Code::kInternal, "an expression of kind {}", static_cast<int>(e.kind));
}

bool Interpreter::compare_chain(const Expr& e) {
  Value left = eval(*e.kids[0]);
  for (size_t i = 0; i < e.ops.size(); ++i) {
    Value right = eval(*e.kids[i + 1]);
    const std::string& op = e.ops[i];
    bool holds = false;
    if (op == "==") {
      holds = equal(left, right);
    } else if (op == "!=") {
      holds = !equal(left, right);
    } else if (op == "in" || op == "not in") {
      if (right.is_string()) charge_text(right.text().size());
      if (right.has_items()) charge(length(right));
      holds = contains(right, left) == (op == "in");
    } else {
      int order = compare(left, right, op);
      holds = order != 2 && (op == "<"    ? order < 0
                             : op == "<=" ? order <= 0
                             : op == ">"  ? order > 0
                                          : order >= 0);
    }
    if (!holds) return false;
    left = std::move(right);
  }
  return true;
}

Value Interpreter::slice(const Expr& e) {
  Value object = eval(*e.kids[0]);
  if (object.is_undefined()) raise_undefined(object);
  std::optional<int64_t> part[3];
  for (size_t i = 0; i < 3; ++i) {
    if (!e.kids[i + 1]) continue;
    Value v = eval(*e.kids[i + 1]);
    if (v.is_none()) continue;
    if (!v.is_integral()) raise("slice indices must be integers or None or have an __index__ method");
    part[i] = v.integer();
  }
  if (!object.has_items() && !object.is_string()) {
    if (object.is(Type::kDict)) raise("unhashable type: 'slice'");
    raise("'{}' object is not subscriptable", type_name(object));
  }
  const int64_t n = length(object), step = part[2].value_or(1);
  if (step == 0) raise("slice step cannot be zero");
  auto bounded = [&](std::optional<int64_t> value, int64_t otherwise) {
    if (!value) return otherwise;
    int64_t v = *value < 0 ? std::max(*value + n, step < 0 ? int64_t{-1} : int64_t{0}) : *value;
    return std::min(v, step < 0 ? n - 1 : n);
  };
  int64_t start = bounded(part[0], step < 0 ? n - 1 : 0), stop = bounded(part[1], step < 0 ? -1 : n);
  std::vector<int64_t> chosen;
  for (int64_t i = start; step > 0 ? i < stop : i > stop;) {
    chosen.push_back(i);
    if (step > 0 ? step > stop - i : step < stop - i) break;
    i += step;
  }
  charge(static_cast<int64_t>(chosen.size()) / 16);
  if (object.is_string()) {
    const std::string& s = object.text();
    charge_text(s.size());
    std::string out;
    if (object.as<StringObject>().ascii) {
      for (int64_t i : chosen) out += s[static_cast<size_t>(i)];
    } else {
      std::u32string chars = text::decode(s), picked;
      for (int64_t i : chosen) picked += chars[static_cast<size_t>(i)];
      out = text::encode(picked);
    }
    return text(std::move(out), object.is_markup());
  }
  std::vector<Value> items;
  for (int64_t i : chosen) items.push_back(object.items()[static_cast<size_t>(i)]);
  return Value::sequence(object.type(), std::move(items));
}

Value Interpreter::binary(const std::string& op, const Value& a, const Value& b) {
  if (a.is_undefined()) raise_undefined(a);
  // A text's `%` takes an undefined value as it takes any other.
  if (b.is_undefined() && !(op == "%" && a.is_string())) raise_undefined(b);
  auto no = [&]() {
    raise("unsupported operand type(s) for {}: '{}' and '{}'", op, type_name(a), type_name(b));
  };
  if (op == "+" && a.is_string() && b.is_string()) {
    bool markup = a.is_markup() || b.is_markup();
    auto part = [&](const Value& v) {
      return markup && !v.is_markup() ? text::escape_html(v.text()) : v.text();
    };
    return text(part(a) + part(b), markup);
  }
  if (op == "+" && a.type() == b.type() && (a.is(Type::kList) || a.is(Type::kTuple))) {
    std::vector<Value> items = items_of(a);
    for (Value& item : items_of(b)) items.push_back(std::move(item));
    return Value::sequence(a.type(), std::move(items));
  }
  if (op == "*" && (a.is_integral() || b.is_integral()) && !(a.is_number() && b.is_number())) {
    const Value& what = a.is_integral() ? b : a;
    int64_t times = std::max<int64_t>(0, (a.is_integral() ? a : b).integer());
    if (what.is_string()) {
      auto size = static_cast<int64_t>(what.text().size());
      if (size > 0 && times > kMaxString / size)
        fail(Code::kExhausted, "a text is larger than {} bytes", kMaxString);
      std::string out;
      for (int64_t i = 0; size > 0 && i < times; ++i) out += what.text();
      return text(std::move(out), what.is_markup());
    }
    if (what.is(Type::kList) || what.is(Type::kTuple)) {
      int64_t size = length(what);
      if (size > 0 && times > kMaxItems / size)
        fail(Code::kExhausted, "a list has more than {} items", kMaxItems);
      std::vector<Value> items;
      for (int64_t i = 0; i < times; ++i) items.insert(items.end(), what.items().begin(), what.items().end());
      charge(static_cast<int64_t>(items.size()));
      return Value::sequence(what.type(), std::move(items));
    }
    no();
  }
  if (op == "%" && a.is_string()) {
    if (a.is_markup()) unsupported("'%' on a text that is marked as safe");
    return text(format_percent(a.text(), b));
  }
  if (!a.is_number() || !b.is_number()) no();
  const bool integral = a.is_integral() && b.is_integral();
  const double x = a.real(), y = b.real();
  int64_t i = a.integer(), j = b.integer(), result = 0;
  auto whole = [&](bool overflow) {
    if (overflow) unsupported("an integer of more than 64 bits");
    return Value::integer(result);
  };
  if (op == "+") return integral ? whole(__builtin_add_overflow(i, j, &result)) : Value::real(x + y);
  if (op == "-") return integral ? whole(__builtin_sub_overflow(i, j, &result)) : Value::real(x - y);
  if (op == "*") return integral ? whole(__builtin_mul_overflow(i, j, &result)) : Value::real(x * y);
  if (op == "**") {
    if (!integral || j < 0) {
      if (x == 0 && y < 0) raise("0.0 cannot be raised to a negative power");
      double power = std::pow(x, y);
      if (std::isnan(power) && !std::isnan(x) && !std::isnan(y)) unsupported("a complex number");
      if (std::isinf(power) && !std::isinf(x) && !std::isinf(y)) raise("result too large");
      return Value::real(power);
    }
    result = 1;
    bool overflow = false;
    if (i == 0 || i == 1 || i == -1) {
      if (j > 0) result = i == -1 && j % 2 == 0 ? 1 : i;
      return Value::integer(result);
    }
    for (; j > 0 && !overflow; --j) overflow = __builtin_mul_overflow(result, i, &result);
    return whole(overflow);
  }
  if (integral ? j == 0 : y == 0)
    raise("{}", op == "/"  ? (integral ? "division by zero" : "float division by zero")
                : integral ? "integer division or modulo by zero"
                           : "float floor division or modulo by zero");
  if (op == "/") return Value::real(x / y);
  if (integral) {
    if (i == INT64_MIN && j == -1) unsupported("an integer of more than 64 bits");
    int64_t quotient = i / j, rest = i % j;
    if (rest != 0 && (rest < 0) != (j < 0)) {
      --quotient;
      rest += j;
    }
    return Value::integer(op == "//" ? quotient : rest);
  }
  double rest = std::fmod(x, y);
  double quotient = (x - rest) / y;
  if (rest != 0) {
    if ((y < 0) != (rest < 0)) {
      rest += y;
      quotient -= 1;
    }
  } else {
    rest = std::copysign(0.0, y);
  }
  if (op == "%") return Value::real(rest);
  if (quotient == 0) return Value::real(std::copysign(0.0, x / y));
  double floor = std::floor(quotient);
  return Value::real(quotient - floor > 0.5 ? floor + 1 : floor);
}

Args Interpreter::eval_args(const CallArgs& args) {
  Args out;
  for (const ExprPtr& e : args.positional) out.positional.push_back(eval(*e));
  for (const auto& [name, e] : args.keyword) out.keyword.emplace_back(name, eval(*e));
  if (args.star)
    for (Value& v : items_of(eval(*args.star))) out.positional.push_back(std::move(v));
  if (args.double_star) {
    Value more = eval(*args.double_star);
    if (!more.is(Type::kDict)) raise("argument after ** must be a mapping, not {}", type_name(more));
    for (const auto& [key, value] : more.dict().items) {
      if (!key.is_string()) raise("keywords must be strings");
      out.keyword.emplace_back(key.text(), value);
    }
  }
  return out;
}

Value Interpreter::call(const Value& callee, Args args) {
  switch (callee.type()) {
    case Type::kUndefined:
      raise_undefined(callee);
    case Type::kMacro:
      return call_macro(callee, std::move(args));
    case Type::kFunction:
      return call_function(*this, callee.as<FunctionObject>(), args);
    case Type::kMethod: {
      auto& method = callee.as<MethodObject>();
      return call_method(*this, method.self, method.name, args);
    }
    default:
      raise("'{}' object is not callable", type_name(callee));
  }
}

Value Interpreter::call_macro(const Value& callee, Args args) {
  Deeper deeper(*this);
  auto& macro = callee.as<MacroObject>();
  const Stmt& definition = *macro.definition;
  const auto& names = definition.signature.names;
  const auto& defaults = definition.signature.defaults;
  std::vector<std::optional<Value>> given(names.size());
  const size_t positional = std::min(args.positional.size(), names.size());
  for (size_t i = 0; i < positional; ++i) given[i] = args.positional[i];
  auto keyword = [&](const std::string& name) -> std::optional<Value> {
    for (auto it = args.keyword.begin(); it != args.keyword.end(); ++it) {
      if (it->first != name) continue;
      Value value = std::move(it->second);
      args.keyword.erase(it);
      return value;
    }
    return std::nullopt;
  };
  for (size_t i = positional; i < names.size(); ++i) given[i] = keyword(names[i]);
  NewScope scope(*this, macro.scope);
  const bool named_caller = std::find(names.begin(), names.end(), "caller") != names.end();
  if (definition.uses_caller && !named_caller) {
    auto caller = keyword("caller");
    scope_->set("caller", caller ? std::move(*caller) : Value::undefined("No caller defined"));
  }
  if (definition.uses_kwargs) {
    auto rest = std::make_shared<DictObject>();
    for (auto& [name, value] : args.keyword) rest->set(Value::string(name), std::move(value));
    scope_->set("kwargs", Value::dict(std::move(rest)));
  } else if (!args.keyword.empty()) {
    if (args.keyword[0].first == "caller")
      raise("macro '{}' was invoked with two values for the special caller argument", macro.name);
    raise("macro '{}' takes no keyword argument '{}'", macro.name, args.keyword[0].first);
  }
  if (definition.uses_varargs) {
    std::vector<Value> rest(args.positional.begin() + static_cast<int64_t>(positional),
                            args.positional.end());
    scope_->set("varargs", Value::tuple(std::move(rest)));
  } else if (args.positional.size() > names.size()) {
    raise("macro '{}' takes not more than {} argument(s)", macro.name, names.size());
  }
  for (size_t i = 0; i < names.size(); ++i) {
    if (given[i]) {
      scope_->set(names[i], std::move(*given[i]));
    } else if (i + defaults.size() >= names.size()) {
      scope_->set(names[i], eval(*defaults[i + defaults.size() - names.size()]));
    } else {
      scope_->set(names[i], Value::undefined(fmt::format("parameter '{}' was not provided", names[i])));
    }
  }
  return text(capture(definition.bodies[0]));
}

Value Interpreter::make_namespace(const Args& args) {
  if (args.positional.size() > 1) raise("namespace() takes at most 1 positional argument");
  if (namespaces_.size() >= kMaxNamespaces)
    fail(Code::kExhausted, "the template makes more than {} namespaces", kMaxNamespaces);
  auto ns = std::make_shared<NamespaceObject>();
  auto set = [&](const Value& key, const Value& value) {
    if (key.is_string() && key.text().starts_with('_'))
      raise("chat templates cannot store underscore-prefixed attributes on a namespace, but got '{}'",
            key.text());
    ns->fields.set(key, value);
  };
  if (!args.positional.empty()) {
    const Value& from = args.positional[0];
    if (from.is(Type::kDict)) {
      for (const auto& [key, value] : from.dict().items) set(key, value);
    } else {
      for (const Value& pair : items_of(from)) {
        std::vector<Value> parts = items_of(pair);
        if (parts.size() != 2)
          raise("dictionary update sequence element has length {}; 2 is required", parts.size());
        set(parts[0], parts[1]);
      }
    }
  }
  for (const auto& [name, value] : args.keyword) set(Value::string(name), value);
  namespaces_.push_back(ns);
  return Value::object(Type::kNamespace, std::move(ns));
}

void Interpreter::assign(const Expr& target, Value value) {
  switch (target.kind) {
    case ExprKind::kName:
      scope_->set(target.name, std::move(value));
      return;
    case ExprKind::kNamespaceRef: {
      Value ns = lookup(target.name);
      if (!ns.is(Type::kNamespace)) raise("cannot assign attribute on non-namespace object");
      const std::string& name = target.ops[0];
      if (name.starts_with('_'))
        raise("chat templates cannot store underscore-prefixed attributes on a namespace, but got '{}'",
              name);
      ns.as<NamespaceObject>().fields.set(Value::string(name), std::move(value));
      return;
    }
    default: {
      std::vector<Value> items = items_of(value);
      if (items.size() > target.kids.size())
        raise("too many values to unpack (expected {})", target.kids.size());
      if (items.size() < target.kids.size())
        raise("not enough values to unpack (expected {}, got {})", target.kids.size(), items.size());
      for (size_t i = 0; i < items.size(); ++i) assign(*target.kids[i], std::move(items[i]));
    }
  }
}

Interpreter::Flow Interpreter::exec(const Body& body) {
  for (const auto& s : body)
    if (Flow flow = exec(*s); flow != Flow::kNext) return flow;
  return Flow::kNext;
}

Interpreter::Flow Interpreter::exec(const Stmt& s) {
  charge(1);
  Deeper deeper(*this);
  try {
    switch (s.kind) {
      case StmtKind::kData:
        write(s.text);
        return Flow::kNext;
      case StmtKind::kOutput:
        for (const ExprPtr& e : s.exprs) write(to_str(eval(*e)));
        return Flow::kNext;
      case StmtKind::kIf:
        for (size_t i = 0; i < s.exprs.size(); ++i)
          if (truth(eval(*s.exprs[i]))) return exec(s.bodies[i]);
        return s.bodies.size() > s.exprs.size() ? exec(s.bodies.back()) : Flow::kNext;
      case StmtKind::kFor:
        return exec_for(s);
      case StmtKind::kSet:
        assign(*s.exprs[0], eval(*s.exprs[1]));
        return Flow::kNext;
      case StmtKind::kSetBlock: {
        Value value;
        {
          NewScope scope(*this, scope_);
          value = text(capture(s.bodies[0]));
          if (s.exprs[1]) value = eval(*s.exprs[1], &value);
        }
        assign(*s.exprs[0], std::move(value));
        return Flow::kNext;
      }
      case StmtKind::kMacro: {
        auto macro = std::make_shared<MacroObject>();
        macro->definition = &s;
        macro->name = s.text;
        macro->scope = scope_;
        for (Scope* scope = scope_; scope != nullptr; scope = scope->parent) scope->captured = true;
        scope_->set(s.text, Value::object(Type::kMacro, std::move(macro)));
        return Flow::kNext;
      }
      case StmtKind::kCall: {
        auto caller = std::make_shared<MacroObject>();
        caller->definition = &s;
        caller->name = "caller";
        caller->scope = scope_;
        for (Scope* scope = scope_; scope != nullptr; scope = scope->parent) scope->captured = true;
        const Expr& target = *s.exprs[0];
        Value callee = eval(*target.kids[0]);
        Args args = eval_args(target.args);
        args.keyword.emplace_back("caller", Value::object(Type::kMacro, std::move(caller)));
        write(to_str(call(callee, std::move(args))));
        return Flow::kNext;
      }
      case StmtKind::kFilter: {
        NewScope scope(*this, scope_);
        Value input = text(capture(s.bodies[0]));
        write(to_str(eval(*s.exprs[0], &input)));
        return Flow::kNext;
      }
      case StmtKind::kWith: {
        std::vector<Value> values;
        for (size_t i = 1; i < s.exprs.size(); i += 2) values.push_back(eval(*s.exprs[i]));
        NewScope scope(*this, scope_);
        for (size_t i = 0; i < values.size(); ++i) assign(*s.exprs[2 * i], std::move(values[i]));
        return exec(s.bodies[0]);
      }
      case StmtKind::kGeneration: {
        NewScope scope(*this, scope_);
        return exec(s.bodies[0]);
      }
      case StmtKind::kBreak:
        return Flow::kBreak;
      case StmtKind::kContinue:
        return Flow::kContinue;
    }
  } catch (Failure& failure) {
    if (failure.line == 0) failure.line = s.line;
    throw;
  }
  return Flow::kNext;
}

Interpreter::Flow Interpreter::exec_for(const Stmt& s) {
  const Expr& target = *s.exprs[0];
  const Expr* condition = s.exprs[2].get();
  Value iterated = eval(*s.exprs[1]);
  auto items = std::make_shared<std::vector<Value>>(items_of(iterated));
  auto at = std::make_shared<size_t>(0);
  auto loop = std::make_shared<LoopObject>();
  loop->depth0 = 0;
  if (condition == nullptr && !iterated.is(Type::kIterator))
    loop->known_length = static_cast<int64_t>(items->size());
  Scope* outer = scope_;
  // The condition is looked at when its item's turn comes, as by a generator: what the body has set counts.
  loop->source = [this, items, at, condition, &target, outer](Value& item) {
    while (*at < items->size()) {
      item = (*items)[(*at)++];
      if (condition == nullptr) return true;
      NewScope scope(*this, outer);
      assign(target, item);
      if (truth(eval(*condition))) return true;
    }
    return false;
  };
  struct End {  // outside of this loop nothing more can be read from it
    LoopObject& loop;
    ~End() { loop.source = nullptr; }
  } end{*loop};
  const Value loop_value = Value::object(Type::kLoop, loop);
  // As in jinja2, `else` runs unless a body has come to its end: also where the first ones ended by
  // `continue`.
  bool ended_one = false;
  Value item;
  while (loop->next(item)) {
    charge(1);
    ++loop->index0;
    loop->previous = std::exchange(loop->current, item);
    NewScope scope(*this, outer);
    scope_->set("loop", loop_value);
    assign(target, item);
    Flow flow = exec(s.bodies[0]);
    if (flow == Flow::kBreak) break;
    if (flow == Flow::kNext) ended_one = true;
  }
  if (!ended_one && s.bodies.size() > 1) {
    NewScope scope(*this, outer);
    return exec(s.bodies[1]);
  }
  return Flow::kNext;
}

struct Template::Tree {
  Body body;
};

namespace {

Status status_of(const Failure& failure, const std::string& name) {
  std::string where = failure.line > 0 ? fmt::format("{}, line {}", name, failure.line) : name;
  return Status(failure.code, fmt::format("{}: {}", where, failure.what));
}

}  // namespace

Template::Template(std::string name, std::shared_ptr<const Tree> tree)
    : name_(std::move(name)), tree_(std::move(tree)) {}
Template::Template(Template&&) noexcept = default;
Template& Template::operator=(Template&&) noexcept = default;
Template::~Template() = default;

Result<Template> Template::parse(std::string_view source, std::string name) {
  try {
    auto tree = std::make_shared<Tree>();
    tree->body = jinja::parse(source);
    return Template(std::move(name), std::move(tree));
  } catch (const Failure& failure) {
    return status_of(failure, name);
  }
}

Result<std::string> Template::render(const nlohmann::ordered_json& variables,
                                     const RenderOptions& options) const {
  try {
    Interpreter interpreter(options);
    return interpreter.run(tree_->body, variables);
  } catch (const Failure& failure) {
    return status_of(failure, name_);
  }
}

}  // namespace ds::jinja
