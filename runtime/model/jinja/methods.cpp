// Methods of Python's types, global functions, and Python's formats.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>

#include "runtime/model/jinja/interpreter_internal.h"
#include "runtime/model/jinja/text_internal.h"
#include "runtime/model/tokenizer_unicode_internal.h"

namespace ds::jinja {
namespace {

template <size_t kCount>
bool among(const std::string_view (&names)[kCount], std::string_view name) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

constexpr std::string_view kStringMethods[] = {
    "capitalize", "center",     "count",   "endswith",   "find",      "format",       "index",
    "isalnum",    "isalpha",    "isdigit", "islower",    "isspace",   "isupper",      "join",
    "ljust",      "lower",      "lstrip",  "rfind",      "partition", "removeprefix", "removesuffix",
    "replace",    "rindex",     "rjust",   "rpartition", "rsplit",    "rstrip",       "split",
    "splitlines", "startswith", "strip",   "title",      "upper",     "zfill",        "isascii"};
constexpr std::string_view kOtherStringMethods[] = {"casefold",  "encode",       "expandtabs", "format_map",
                                                    "isdecimal", "isidentifier", "isnumeric",  "isprintable",
                                                    "istitle",   "maketrans",    "swapcase",   "translate"};
constexpr std::string_view kDictMethods[] = {"copy", "get", "items", "keys", "values"};
constexpr std::string_view kDictChanges[] = {"clear", "pop", "popitem", "setdefault", "update"};
constexpr std::string_view kListMethods[] = {"count", "index"};
constexpr std::string_view kListChanges[] = {"append", "clear", "pop",    "reverse",
                                             "insert", "sort",  "extend", "remove"};
constexpr std::string_view kNumberMethods[] = {
    "as_integer_ratio", "bit_count",  "bit_length", "conjugate", "denominator",
    "fromhex",          "from_bytes", "hex",        "imag",      "is_integer",
    "numerator",        "real",       "to_bytes"};
constexpr std::string_view kFunctions[] = {"range",  "namespace", "dict",         "raise_exception",
                                           "joiner", "cycler",    "strftime_now", "lipsum"};

Value boolean(bool b) { return Value::boolean(b); }

bool all_chars(const std::string& s, bool (*holds)(char32_t)) {
  std::u32string chars = text::decode(s);
  return !chars.empty() && std::all_of(chars.begin(), chars.end(), holds);
}

/// Python's s[start:end] for methods that take the two; what lies before is `offset` characters.
struct Window {
  std::string_view text;
  int64_t offset = 0;
  bool outside = false;  // start behind the end: not even an empty text is found there
};

Window window(const Value& self, const Parameters& p, size_t start_at) {
  const std::string& s = self.text();
  bool given =
      (p.has(start_at) && !p[start_at].is_none()) || (p.has(start_at + 1) && !p[start_at + 1].is_none());
  if (!given) return {s, 0, false};
  int64_t n = length(self);
  auto bound = [&](size_t i, int64_t otherwise) {
    if (!p.has(i) || p[i].is_none()) return otherwise;
    int64_t v = p.integer(i, otherwise);
    return v < 0 ? std::max<int64_t>(0, v + n) : v;
  };
  int64_t start = bound(start_at, 0), end = std::min(bound(start_at + 1, n), n);
  if (start > n || start > end) return {{}, start, true};
  size_t begin = 0, at = 0;
  for (int64_t i = 0; i < end; ++i) {
    if (i == start) begin = at;
    at += unicode::char_size(static_cast<unsigned char>(s[at]));
  }
  if (start == end) begin = at;
  return {std::string_view(s).substr(begin, at - begin), start, false};
}

Value strings(Interpreter& in, const std::vector<std::string_view>& pieces) {
  std::vector<Value> items;
  for (std::string_view piece : pieces) items.push_back(in.text(std::string(piece)));
  return Value::list(std::move(items));
}

Value padded(Interpreter& in, const Value& self, const Args& args, std::string_view name) {
  Parameters p(name, args, {"width", "fillchar"}, 1);
  const std::string& s = self.text();
  std::string fill = p.has(1) ? p.text(1) : " ";
  if (text::count(fill) != 1) raise("The fill character must be exactly one character long");
  const int64_t width = p.integer(0, 0), n = length(self);
  if (width <= n) return self;
  const int64_t missing = width - n;
  if (missing > kMaxString / 4) fail(Code::kExhausted, "a text is larger than {} bytes", kMaxString);
  int64_t left = name == "ljust" ? 0 : name == "rjust" ? missing : missing / 2 + (missing & width & 1);
  auto repeated = [&](int64_t n) {
    std::string out;
    for (int64_t i = 0; i < n; ++i) out += fill;
    return out;
  };
  return in.text(repeated(left) + s + repeated(missing - left));
}

/// str.format with {}, {0} and {name}.
std::string format_braces(const std::string& format, const Args& args) {
  std::string out;
  size_t automatic = 0;
  bool numbered = false;
  for (size_t i = 0; i < format.size(); ++i) {
    char c = format[i];
    if (c != '{' && c != '}') {
      out += c;
      continue;
    }
    if (i + 1 < format.size() && format[i + 1] == c) {
      out += c;
      ++i;
      continue;
    }
    if (c == '}') raise("Single '}}' encountered in format string");
    size_t end = format.find('}', i);
    if (end == std::string::npos) raise("expected '}}' before end of string");
    std::string field = format.substr(i + 1, end - i - 1);
    i = end;
    if (field.find_first_of("{:!.[") != std::string::npos)
      unsupported(fmt::format("the field '{{{}}}' of a format", field));
    bool number = !field.empty() && field.size() < 6 &&
                  std::all_of(field.begin(), field.end(), [](char d) { return d >= '0' && d <= '9'; });
    if (field.empty() || number) {
      if (field.empty() ? numbered : automatic > 0)
        raise("cannot switch between manual field specification and automatic field numbering");
      numbered |= number;
      size_t at = number ? static_cast<size_t>(std::stoll(field)) : automatic++;
      if (at >= args.positional.size())
        raise("Replacement index {} out of range for positional args tuple", at);
      out += to_str(args.positional[at]);
      continue;
    }
    auto it =
        std::find_if(args.keyword.begin(), args.keyword.end(), [&](auto& k) { return k.first == field; });
    if (it == args.keyword.end()) raise("'{}'", field);
    out += to_str(it->second);
  }
  return out;
}

Value string_method(Interpreter& in, const Value& self, const std::string& name, const Args& args) {
  const std::string& s = self.text();
  in.charge_text(s.size());
  auto none = [&] { Parameters p(name, args, {}); };
  if (name == "strip" || name == "lstrip" || name == "rstrip") {
    Parameters p(name, args, {"chars"});
    std::optional<std::string> chars;
    if (p.has(0) && !p[0].is_none()) chars = p.text(0);
    return in.text(std::string(text::strip(s, chars, name != "rstrip", name != "lstrip")), self.is_markup());
  }
  if (name == "split" || name == "rsplit") {
    Parameters p(name, args, {"sep", "maxsplit"});
    int64_t limit = p.integer(1, -1);
    if (!p.has(0) || p[0].is_none()) return strings(in, text::split_space(s, limit, name == "rsplit"));
    if (p.text(0).empty()) raise("empty separator");
    return strings(in, text::split(s, p.text(0), limit, name == "rsplit"));
  }
  if (name == "splitlines") {
    Parameters p(name, args, {"keepends"});
    return strings(in, text::split_lines(s, p.flag(0)));
  }
  if (name == "partition" || name == "rpartition") {
    Parameters p(name, args, {"sep"}, 1);
    const std::string& sep = p.text(0);
    if (sep.empty()) raise("empty separator");
    size_t at = name == "partition" ? s.find(sep) : s.rfind(sep);
    auto part = [&](std::string t) { return in.text(std::move(t)); };
    if (at == std::string::npos) {
      return name == "partition" ? Value::tuple({part(s), part(""), part("")})
                                 : Value::tuple({part(""), part(""), part(s)});
    }
    return Value::tuple({part(s.substr(0, at)), part(sep), part(s.substr(at + sep.size()))});
  }
  if (name == "startswith" || name == "endswith") {
    Parameters p(name, args, {"prefix", "start", "end"}, 1);
    Window w = window(self, p, 1);
    auto holds = [&](const Value& v) {
      if (!v.is_string()) raise("{} first arg must be str or a tuple of str, not {}", name, type_name(v));
      if (w.outside) return false;
      return name == "startswith" ? w.text.starts_with(v.text()) : w.text.ends_with(v.text());
    };
    if (!p[0].is(Type::kTuple)) return boolean(holds(p[0]));
    return boolean(std::any_of(p[0].items().begin(), p[0].items().end(), holds));
  }
  if (name == "find" || name == "rfind" || name == "index" || name == "rindex") {
    Parameters p(name, args, {"sub", "start", "end"}, 1);
    Window w = window(self, p, 1);
    bool right = name[0] == 'r';
    size_t at = w.outside ? std::string::npos : right ? w.text.rfind(p.text(0)) : w.text.find(p.text(0));
    if (at != std::string::npos) return Value::integer(w.offset + text::count(w.text.substr(0, at)));
    if (name.ends_with("index")) raise("substring not found");
    return Value::integer(-1);
  }
  if (name == "count") {
    Parameters p(name, args, {"sub", "start", "end"}, 1);
    Window w = window(self, p, 1);
    if (w.outside) return Value::integer(0);
    const std::string& sub = p.text(0);
    if (sub.empty()) return Value::integer(text::count(w.text) + 1);
    int64_t n = 0;
    for (size_t at = w.text.find(sub); at != std::string_view::npos; at = w.text.find(sub, at + sub.size()))
      ++n;
    return Value::integer(n);
  }
  if (name == "replace") {
    Parameters p(name, args, {"old", "new", "count"}, 2);
    if (self.is_markup() || p[0].is_markup() || p[1].is_markup())
      unsupported("replacing in a text that is marked as safe");
    return in.apply_filter("replace", self,
                           {{in.text(p.text(0)), in.text(p.text(1)), Value::integer(p.integer(2, -1))}, {}});
  }
  if (name == "join") {
    Parameters p(name, args, {"iterable"}, 1);
    std::vector<Value> items = in.items_of(p[0]);
    for (size_t i = 0; i < items.size(); ++i)
      if (!items[i].is_string())
        raise("sequence item {}: expected str instance, {} found", i, type_name(items[i]));
    return in.apply_filter("join", Value::list(std::move(items)), {{self}, {}});
  }
  if (name == "format") {
    if (self.is_markup()) unsupported("'format' of a text that is marked as safe");
    return in.text(format_braces(s, args));
  }
  if (name == "removeprefix" || name == "removesuffix") {
    Parameters p(name, args, {"prefix"}, 1);
    const std::string& part = p.text(0);
    if (name == "removeprefix") return s.starts_with(part) ? in.text(s.substr(part.size())) : self;
    return s.ends_with(part) ? in.text(s.substr(0, s.size() - part.size())) : self;
  }
  if (name == "center" || name == "ljust" || name == "rjust") return padded(in, self, args, name);
  if (name == "zfill") {
    Parameters p(name, args, {"width"}, 1);
    const int64_t width = p.integer(0, 0), n = length(self);
    if (width <= n) return self;
    const int64_t missing = width - n;
    if (missing > kMaxString) fail(Code::kExhausted, "a text is larger than {} bytes", kMaxString);
    size_t sign = !s.empty() && (s[0] == '-' || s[0] == '+') ? 1 : 0;
    return in.text(s.substr(0, sign) + std::string(static_cast<size_t>(missing), '0') + s.substr(sign));
  }
  none();
  if (name == "lower") return in.text(text::lower(s));
  if (name == "upper") return in.text(text::upper(s));
  if (name == "title") return in.text(text::title(s));
  if (name == "capitalize") return in.text(text::capitalize(s));
  if (name == "isspace") return boolean(all_chars(s, text::is_space));
  if (name == "isdigit") return boolean(all_chars(s, text::is_digit));
  if (name == "isalpha") return boolean(all_chars(s, text::is_alpha));
  if (name == "isalnum")
    return boolean(all_chars(s, [](char32_t c) { return text::is_alpha(c) || text::is_digit(c); }));
  if (name == "isascii") return boolean(self.as<StringObject>().ascii);
  if (name == "islower" || name == "isupper") return boolean(in.apply_test(name.substr(2), self, {}));
  fail(Code::kInternal, "no method '{}' of str", name);
}

Value dict_method(Interpreter& in, const Value& self, const std::string& name, const Args& args) {
  const DictObject& dict = self.dict();
  in.charge(1);
  if (name == "get") {
    Parameters p(name, args, {"key", "default"}, 1);
    hash_key(p[0]);
    const Value* found = dict.find(p[0]);
    return found != nullptr ? *found : p.get(1, Value::none());
  }
  Parameters p(name, args, {});
  in.charge(static_cast<int64_t>(dict.items.size()));
  if (name == "copy") return self;
  std::vector<Value> items;
  for (const auto& [key, value] : dict.items)
    items.push_back(name == "keys" ? key : name == "values" ? value : Value::tuple({key, value}));
  return Value::sequence(Type::kView, std::move(items));
}

Value list_method(Interpreter& in, const Value& self, const std::string& name, const Args& args) {
  if (name == "copy") return self;
  Parameters p(name, args, {"value"}, 1);
  in.charge(length(self));
  int64_t n = 0;
  for (size_t i = 0; i < self.items().size(); ++i) {
    if (!equal(self.items()[i], p[0])) continue;
    if (name == "index") return Value::integer(static_cast<int64_t>(i));
    ++n;
  }
  if (name == "index") raise("{} is not in list", to_repr(p[0]));
  return Value::integer(n);
}

Value range(const Args& args) {
  if (!args.keyword.empty()) raise("range() takes no keyword arguments");
  size_t n = args.positional.size();
  if (n < 1 || n > 3) raise("range expected 1 to 3 arguments, got {}", n);
  for (const Value& v : args.positional) {
    if (v.is_undefined()) raise_undefined(v);
    if (!v.is_integral()) raise("'{}' object cannot be interpreted as an integer", type_name(v));
  }
  int64_t start = n == 1 ? 0 : args.positional[0].integer();
  int64_t stop = args.positional[n == 1 ? 0 : 1].integer();
  int64_t step = n == 3 ? args.positional[2].integer() : 1;
  if (step == 0) raise("range() arg 3 must not be zero");
  std::vector<Value> items;
  for (int64_t i = start; step > 0 ? i < stop : i > stop;) {
    if (static_cast<int64_t>(items.size()) >= kMaxRange)
      raise("Range too big. The sandbox blocks ranges larger than MAX_RANGE ({}).", kMaxRange);
    items.push_back(Value::integer(i));
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  return Value::sequence(Type::kRange, std::move(items));
}

/// datetime.now().strftime(): the time has no zone, so %z and %Z are empty.
std::string strftime(const Interpreter& in, const std::string& format) {
  std::timespec clock{};
  std::timespec_get(&clock, TIME_UTC);
  std::time_t now = in.has_clock() ? clock.tv_sec : in.now();
  std::tm local{};
  localtime_r(&now, &local);
  std::string plain;
  for (size_t i = 0; i < format.size(); ++i) {
    if (format[i] != '%' || i + 1 == format.size()) {
      plain += format[i];
      continue;
    }
    char c = format[++i];
    if (c == 'f') {
      plain += fmt::format("{:06}", in.has_clock() ? clock.tv_nsec / 1000 : 0);
    } else if (c != 'z' && c != 'Z') {
      plain += '%';
      plain += c;
    }
  }
  if (plain.empty()) return "";
  if (plain.size() > 1000) unsupported("a format of a time of more than 1,000 bytes");
  std::array<char, 16384> buffer{};
  size_t size = std::strftime(buffer.data(), buffer.size(), plain.c_str(), &local);
  return std::string(buffer.data(), size);
}

}  // namespace

std::string format_percent(const std::string& format, const Value& args) {
  std::string out;
  size_t used = 0;
  const bool tuple = args.is(Type::kTuple), dict = args.is(Type::kDict);
  auto next = [&]() -> Value {
    if (!tuple && used++ == 0) return args;
    if (tuple && used < args.items().size()) return args.items()[used++];
    raise("not enough arguments for format string");
  };
  bool by_name = false;
  for (size_t i = 0; i < format.size(); ++i) {
    if (format[i] != '%') {
      out += format[i];
      continue;
    }
    if (++i == format.size()) raise("incomplete format");
    Value value;
    bool named = false;
    if (format[i] == '(') {
      size_t end = format.find(')', i);
      if (!dict) raise("format requires a mapping");
      if (end == std::string::npos) raise("incomplete format key");
      std::string key = format.substr(i + 1, end - i - 1);
      const Value* found = args.dict().find(key);
      if (found == nullptr) raise("'{}'", key);
      value = *found;
      named = by_name = true;
      i = end + 1;
    }
    std::string flags;
    while (i < format.size() && std::string_view("-+ 0#").find(format[i]) != std::string_view::npos)
      flags += format[i++];
    auto number = [&]() -> int64_t {
      int64_t n = -1;
      for (; i < format.size() && format[i] >= '0' && format[i] <= '9'; ++i) {
        n = std::max<int64_t>(n, 0) * 10 + (format[i] - '0');
        if (n > 10'000) fail(Code::kExhausted, "a format's width of more than 10,000");
      }
      return n;
    };
    int64_t width = number(), precision = -1;
    if (i < format.size() && format[i] == '.') {
      ++i;
      precision = std::max<int64_t>(number(), 0);
    }
    if (i >= format.size()) raise("incomplete format");
    char kind = format[i];
    if (kind == '%') {
      out += '%';
      continue;
    }
    if (kind == '*') unsupported("'*' in a format");
    if (!named) value = next();
    auto pad = [&](const std::string& s) {
      int64_t missing = width - text::count(s);
      std::string spaces(static_cast<size_t>(std::max<int64_t>(0, missing)), ' ');
      return flags.find('-') != std::string::npos ? s + spaces : spaces + s;
    };
    std::string spec = fmt::format("%{}{}{}", flags, width >= 0 ? fmt::format("{}", width) : "",
                                   precision >= 0 ? fmt::format(".{}", precision) : "");
    auto print = [&](const std::string& full, auto number_value) {
      int size = std::snprintf(nullptr, 0, full.c_str(), number_value);
      std::string text(static_cast<size_t>(size) + 1, '\0');
      std::snprintf(text.data(), text.size(), full.c_str(), number_value);
      text.pop_back();
      return text;
    };
    switch (kind) {
      case 's':
      case 'r': {
        std::string s = kind == 's' ? to_str(value) : to_repr(value);
        if (precision >= 0) s = text::encode(text::decode(s).substr(0, static_cast<size_t>(precision)));
        out += pad(s);
        break;
      }
      case 'd':
      case 'i':
      case 'u':
      case 'x':
      case 'X':
      case 'o': {
        if (!value.is_number())
          raise("%{} format: a real number is required, not {}", kind, type_name(value));
        bool decimal = kind == 'd' || kind == 'i' || kind == 'u';
        if (!value.is_integral() && !decimal) raise("%{} format: an integer is required, not float", kind);
        if (!value.is_integral() && !(std::abs(value.real()) < 9e18))
          unsupported("an integer of more than 64 bits in a format");
        int64_t whole = value.is_integral() ? value.integer() : static_cast<int64_t>(value.real());
        if (!decimal && whole < 0) unsupported("a negative number in that format");
        out += print(spec + "ll" + (decimal ? 'd' : kind), static_cast<long long>(whole));
        break;
      }
      case 'f':
      case 'F':
      case 'e':
      case 'E':
      case 'g':
      case 'G':
        if (!value.is_number()) raise("must be real number, not {}", type_name(value));
        out += print(spec + kind, value.real());
        break;
      default:
        unsupported(static_cast<unsigned char>(kind) < 0x80 ? fmt::format("'%{}' in a format", kind)
                                                            : std::string("such a conversion in a format"));
    }
  }
  if (tuple ? used < args.items().size() : (used == 0 && !dict && !by_name && !args.has_items()))
    raise("not all arguments converted during string formatting");
  return out;
}

bool is_forbidden_method(const Value& self, std::string_view name) {
  if (self.is(Type::kDict)) return among(kDictChanges, name);
  return self.is(Type::kList) && among(kListChanges, name);
}

bool has_method(const Value& self, std::string_view name) {
  if (name.starts_with("__") && !self.is_undefined() && name.ends_with("__") && !self.is(Type::kDict))
    return false;
  switch (self.type()) {
    case Type::kString:
      if (among(kOtherStringMethods, name)) unsupported(fmt::format("the method '{}' of str", name));
      return among(kStringMethods, name);
    case Type::kDict:
      if (name == "fromkeys") unsupported("the method 'fromkeys' of dict");
      return among(kDictMethods, name);
    case Type::kList:
      return among(kListMethods, name) || name == "copy";
    case Type::kTuple:
    case Type::kRange:
      return among(kListMethods, name);
    case Type::kBool:
    case Type::kInt:
    case Type::kFloat:
      if (among(kNumberMethods, name))
        unsupported(fmt::format("the attribute '{}' of {}", name, type_name(self)));
      return false;
    case Type::kFunction: {
      auto& function = self.as<FunctionObject>();
      return function.name == "a cycler" && (name == "next" || name == "reset");
    }
    default:
      return false;
  }
}

Value call_method(Interpreter& in, const Value& self, const std::string& name, const Args& args) {
  switch (self.type()) {
    case Type::kString:
      return string_method(in, self, name, args);
    case Type::kDict:
      return dict_method(in, self, name, args);
    case Type::kList:
    case Type::kTuple:
    case Type::kRange:
      return list_method(in, self, name, args);
    case Type::kLoop: {
      auto& loop = self.as<LoopObject>();
      if (name == "cycle") {
        if (args.positional.empty()) raise("no items for cycling given");
        return args.positional[static_cast<size_t>(loop.index0) % args.positional.size()];
      }
      Value now = Value::tuple(args.positional);
      bool changed = !loop.changed_once || !equal(loop.changed, now);
      loop.changed_once = true;
      loop.changed = std::move(now);
      return boolean(changed);
    }
    case Type::kFunction: {
      auto& cycler = self.as<FunctionObject>();
      Parameters p(name, args, {});
      if (name == "reset") {
        cycler.at = 0;
        return Value::none();
      }
      Value current = cycler.items[cycler.at];
      if (name == "next") cycler.at = (cycler.at + 1) % cycler.items.size();
      return current;
    }
    default:
      fail(Code::kInternal, "no methods of {}", type_name(self));
  }
}

bool is_function(std::string_view name) { return among(kFunctions, name); }

Value call_function(Interpreter& in, FunctionObject& function, const Args& args) {
  const std::string& name = function.name;
  if (name == "range") {
    Value made = range(args);
    in.charge(length(made));
    return made;
  }
  if (name == "namespace") return in.make_namespace(args);
  if (name == "dict") {
    auto dict = std::make_shared<DictObject>();
    if (args.positional.size() > 1) raise("dict expected at most 1 argument, got {}", args.positional.size());
    if (!args.positional.empty()) {
      const Value& from = args.positional[0];
      if (from.is(Type::kDict)) {
        for (const auto& [key, value] : from.dict().items) dict->set(key, value);
      } else {
        for (const Value& pair : in.items_of(from)) {
          std::vector<Value> parts = in.items_of(pair);
          if (parts.size() != 2)
            raise("dictionary update sequence element has length {}; 2 is required", parts.size());
          dict->set(parts[0], parts[1]);
        }
      }
    }
    for (const auto& [key, value] : args.keyword) dict->set(Value::string(key), value);
    return Value::dict(std::move(dict));
  }
  if (name == "raise_exception") {
    Parameters p(name, args, {"message"}, 1);
    raise("{}", to_str(p[0]));
  }
  if (name == "strftime_now") {
    Parameters p(name, args, {"format"}, 1);
    return in.text(strftime(in, p.text(0)));
  }
  if (name == "joiner" || name == "cycler") {
    auto made = std::make_shared<FunctionObject>();
    made->name = "a " + name;
    if (name == "joiner") {
      Parameters p(name, args, {"sep"});
      made->items.push_back(p.get(0, Value::string(", ")));
    } else {
      if (args.positional.empty()) raise("at least one item has to be provided");
      made->items = args.positional;
    }
    return Value::object(Type::kFunction, std::move(made));
  }
  if (name == "a joiner") {
    Parameters p(name, args, {});
    return function.at++ == 0 ? Value::string("") : function.items[0];
  }
  unsupported(fmt::format("the function '{}'", name));
}

}  // namespace ds::jinja
