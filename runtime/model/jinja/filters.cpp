// Jinja's filters and tests.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <map>
#include <set>

#include "runtime/model/jinja/interpreter_internal.h"
#include "runtime/model/jinja/text_internal.h"

namespace ds::jinja {
namespace {

Value ignore_case(const Value& v) { return v.is_string() ? Value::string(text::lower(v.text())) : v; }

void sort_by(Interpreter& in, std::vector<std::pair<Value, Value>>& keyed, bool reverse) {
  in.charge(static_cast<int64_t>(keyed.size()) * 8);
  // Stable both ways, as Python's sort.
  if (reverse) std::reverse(keyed.begin(), keyed.end());
  std::stable_sort(keyed.begin(), keyed.end(),
                   [](const auto& a, const auto& b) { return compare(a.first, b.first, "<") == -1; });
  if (reverse) std::reverse(keyed.begin(), keyed.end());
}

std::string soft_str(const Value& v) { return to_str(v); }

Value do_tojson(Interpreter& in, const Value& v, const Args& args) {
  Parameters p("tojson", args, {"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonStyle style;
  style.ensure_ascii = p.flag(0);
  style.sort_keys = p.flag(3);
  if (p.has(1) && !p[1].is_none()) {
    style.indented = true;
    style.item_separator.assign(1, ',');
    if (p[1].is_string()) {
      style.indent = p[1].text();
    } else {
      int64_t width = p.integer(1, 0);
      if (width > 1000) fail(Code::kExhausted, "tojson: an indentation of {}", width);
      style.indent = std::string(static_cast<size_t>(std::max<int64_t>(0, width)), ' ');
    }
  }
  if (p.has(2) && !p[2].is_none()) {
    std::vector<Value> pair = in.items_of(p[2]);
    if (pair.size() != 2 || !pair[0].is_string() || !pair[1].is_string())
      raise("tojson: separators are two texts");
    style.item_separator = pair[0].text();
    style.key_separator = pair[1].text();
  }
  return in.text(to_json(v, style));
}

Value do_join(Interpreter& in, const Value& v, const Args& args) {
  Parameters p("join", args, {"d", "attribute"});
  std::string separator = p.has(0) ? to_str(p[0]) : "", out;
  bool first = true;
  for (const Value& item : in.items_of(v)) {
    if (!first) out += separator;
    first = false;
    out += to_str(p.has(1) && !p[1].is_none() ? in.get_path(item, p[1]) : item);
    if (static_cast<int64_t>(out.size()) > kMaxString)
      fail(Code::kExhausted, "a text is larger than {} bytes", kMaxString);
  }
  return in.text(std::move(out));
}

Value do_indent(Interpreter& in, const Value& v, const Args& args) {
  Parameters p("indent", args, {"width", "first", "blank"});
  std::string indention =
      p.has(0) && p[0].is_string()
          ? p[0].text()
          : std::string(static_cast<size_t>(std::clamp<int64_t>(p.integer(0, 4), 0, 1000)), ' ');
  if (v.is_undefined()) raise_undefined(v);
  if (!v.is_string()) raise("unsupported operand type(s) for +=: '{}' and 'str'", type_name(v));
  std::string s = v.text() + "\n", out;
  bool begin = true, blank = p.flag(2);
  for (std::string_view line : text::split_lines(s, false)) {
    if (!begin) {
      out += '\n';
      if (blank || !line.empty()) out += indention;
    }
    begin = false;
    out += line;
  }
  return in.text(p.flag(1) ? indention + out : out, v.is_markup());
}

Value do_title(Interpreter& in, const Value& v) {
  // Words begin after white space, brackets, '<', '{', '-' (and '(', '['), as jinja2 splits them.
  std::u32string s = text::decode(soft_str(v));
  std::string out;
  auto separates = [](char32_t c) {
    return c == '-' || c == '(' || c == '{' || c == '[' || c == '<' || text::is_space(c);
  };
  for (size_t i = 0; i < s.size();) {
    size_t end = i;
    bool separator = separates(s[i]);
    while (end < s.size() && separates(s[end]) == separator) ++end;
    std::u32string_view item = std::u32string_view(s).substr(i, end - i);
    out += text::upper(text::encode(item.substr(0, 1)));
    out += text::lower(text::encode(item.substr(1)));
    i = end;
  }
  return in.text(std::move(out));
}

std::optional<Value> parse_int(std::string_view s, int64_t base) {
  s = text::strip(s, std::nullopt, true, true);
  std::string digits;
  size_t i = 0;
  bool negative = false;
  if (i < s.size() && (s[i] == '+' || s[i] == '-')) negative = s[i++] == '-';
  if (base == 16 && (s.substr(i).starts_with("0x") || s.substr(i).starts_with("0X"))) i += 2;
  if (base == 8 && (s.substr(i).starts_with("0o") || s.substr(i).starts_with("0O"))) i += 2;
  if (base == 2 && (s.substr(i).starts_with("0b") || s.substr(i).starts_with("0B"))) i += 2;
  if (negative) digits += '-';
  bool was_digit = false;
  for (; i < s.size(); ++i) {
    if (s[i] == '_') {
      if (!was_digit) return std::nullopt;
      was_digit = false;
      continue;
    }
    digits += s[i];
    was_digit = true;
  }
  if (!was_digit || base < 2 || base > 36) return std::nullopt;
  int64_t value = 0;
  auto read = std::from_chars(digits.data(), digits.data() + digits.size(), value, static_cast<int>(base));
  if (read.ptr != digits.data() + digits.size()) return std::nullopt;
  if (read.ec == std::errc::result_out_of_range) unsupported("an integer of more than 64 bits");
  if (read.ec != std::errc()) return std::nullopt;
  return Value::integer(value);
}

std::optional<double> parse_float(std::string_view s) {
  std::string t(text::strip(s, std::nullopt, true, true));
  std::string plain;
  for (size_t i = 0; i < t.size(); ++i) {
    char c = t[i];
    if (c == '_') {
      auto digit = [&](size_t at) { return at < t.size() && t[at] >= '0' && t[at] <= '9'; };
      if (i == 0 || !digit(i - 1) || !digit(i + 1)) return std::nullopt;
      continue;
    }
    plain += c;
  }
  if (plain.empty() || plain.find_first_of("xXpP") != std::string::npos) return std::nullopt;
  if (plain.find('(') != std::string::npos) return std::nullopt;  // strtod's nan(...)
  char* end = nullptr;
  double value = std::strtod(plain.c_str(), &end);
  if (end != plain.c_str() + plain.size()) return std::nullopt;
  return value;
}

Value truncated(double f) {
  if (std::abs(f) >= 9.2e18) unsupported("an integer of more than 64 bits");
  return Value::integer(static_cast<int64_t>(f));
}

Value do_int(const Value& v, const Args& args) {
  Parameters p("int", args, {"default", "base"});
  if (v.is_undefined()) raise_undefined(v);
  Value otherwise = p.get(0, Value::integer(0));
  if (v.is_integral()) return Value::integer(v.integer());
  std::optional<double> f;
  if (v.is(Type::kFloat)) {
    f = v.real();
  } else if (v.is_string()) {
    if (auto parsed = parse_int(v.text(), p.integer(1, 10))) return *parsed;
    f = parse_float(v.text());
  }
  if (!f || !std::isfinite(*f)) return otherwise;
  return truncated(*f);
}

Value do_round(const Value& v, const Args& args) {
  Parameters p("round", args, {"precision", "method"});
  if (v.is_undefined()) raise_undefined(v);
  if (!v.is_number()) raise("type {} doesn't define __round__ method", type_name(v));
  int64_t precision = p.integer(0, 0);
  std::string method = p.has(1) ? p.text(1) : "common";
  if (precision > 300 || precision < -300) unsupported("rounding to so many digits");
  double x = v.real();
  if (method == "ceil" || method == "floor") {
    double scale = std::pow(10.0, static_cast<double>(precision));
    return Value::real((method == "ceil" ? std::ceil(x * scale) : std::floor(x * scale)) / scale);
  }
  if (method != "common") raise("method must be common, ceil or floor");
  if (v.is_integral()) {
    if (precision >= 0) return Value::integer(v.integer());
    unsupported("rounding an integer to tens");
  }
  if (!std::isfinite(x)) return v;
  if (precision < 0) unsupported("rounding to tens");
  return Value::real(std::strtod(fmt::format("{:.{}f}", x, precision).c_str(), nullptr));
}

Value do_map(Interpreter& in, const Value& v, const Args& args) {
  std::vector<Value> out;
  if (!truth(v)) return Value::iterator({});
  if (args.positional.empty()) {
    Parameters p("map", args, {"attribute", "default"});
    if (!p.has(0)) raise("map requires a filter argument");
    for (const Value& item : in.items_of(v)) {
      Value got = in.get_path(item, p[0]);
      out.push_back(got.is_undefined() && p.has(1) && !p[1].is_none() ? p[1] : got);
    }
    return Value::iterator(std::move(out));
  }
  if (!args.positional[0].is_string()) raise("No filter named {}.", to_repr(args.positional[0]));
  Args rest;
  rest.positional.assign(args.positional.begin() + 1, args.positional.end());
  rest.keyword = args.keyword;
  for (const Value& item : in.items_of(v))
    out.push_back(in.apply_filter(args.positional[0].text(), item, rest));
  return Value::iterator(std::move(out));
}

Value do_select(Interpreter& in, const Value& v, const Args& args, bool keep, bool by_attribute) {
  if (!truth(v)) return Value::iterator({});
  size_t off = by_attribute ? 1 : 0;
  if (args.positional.size() < off) raise("Missing parameter for attribute name");
  std::vector<Value> out;
  Args rest;
  if (args.positional.size() > off)
    rest.positional.assign(args.positional.begin() + static_cast<int64_t>(off) + 1, args.positional.end());
  rest.keyword = args.keyword;
  for (Value& item : in.items_of(v)) {
    Value looked_at = by_attribute ? in.get_path(item, args.positional[0]) : item;
    bool holds = args.positional.size() > off ? in.apply_test(to_str(args.positional[off]), looked_at, rest)
                                              : truth(looked_at);
    if (holds == keep) out.push_back(std::move(item));
  }
  return Value::iterator(std::move(out));
}

Value do_sort(Interpreter& in, const Value& v, const Args& args) {
  Parameters p("sort", args, {"reverse", "case_sensitive", "attribute"});
  std::vector<std::pair<Value, Value>> keyed;
  for (Value& item : in.items_of(v)) {
    std::vector<Value> keys;
    if (p.has(2) && p[2].is_string()) {
      for (std::string_view part : text::split(p[2].text(), ",", -1, false))
        keys.push_back(in.get_path(item, Value::string(std::string(part))));
    } else {
      keys.push_back(in.get_path(item, p.get(2, Value::none())));
    }
    if (!p.flag(1))
      for (Value& key : keys) key = ignore_case(key);
    keyed.emplace_back(Value::list(std::move(keys)), std::move(item));
  }
  sort_by(in, keyed, p.flag(0));
  std::vector<Value> out;
  for (auto& [key, item] : keyed) out.push_back(std::move(item));
  return Value::list(std::move(out));
}

Value do_dictsort(Interpreter& in, const Value& v, const Args& args) {
  Parameters p("dictsort", args, {"case_sensitive", "by", "reverse"});
  if (v.is_undefined()) raise_undefined(v);
  if (!v.is(Type::kDict)) raise("'{}' object has no attribute 'items'", type_name(v));
  std::string by = p.has(1) ? p.text(1) : "key";
  if (by != "key" && by != "value") raise("You can only sort by either \"key\" or \"value\"");
  std::vector<std::pair<Value, Value>> keyed;
  for (const auto& [key, value] : v.dict().items) {
    const Value& order = by == "key" ? key : value;
    keyed.emplace_back(p.flag(0) ? order : ignore_case(order), Value::tuple({key, value}));
  }
  sort_by(in, keyed, p.flag(2));
  std::vector<Value> out;
  for (auto& [key, item] : keyed) out.push_back(std::move(item));
  return Value::list(std::move(out));
}

Value do_unique(Interpreter& in, const Value& v, const Args& args) {
  Parameters p("unique", args, {"case_sensitive", "attribute"});
  std::set<std::string> seen;
  std::vector<Value> out;
  for (Value& item : in.items_of(v)) {
    Value key = in.get_path(item, p.get(1, Value::none()));
    if (!p.flag(0)) key = ignore_case(key);
    if (seen.insert(hash_key(key)).second) out.push_back(std::move(item));
  }
  return Value::iterator(std::move(out));
}

Value do_min_max(Interpreter& in, const Value& v, const Args& args, bool largest) {
  Parameters p(largest ? "max" : "min", args, {"case_sensitive", "attribute"});
  std::optional<Value> best, best_key;
  for (Value& item : in.items_of(v)) {
    Value key = in.get_path(item, p.get(1, Value::none()));
    if (!p.flag(0)) key = ignore_case(key);
    if (!best || compare(key, *best_key, largest ? ">" : "<") == (largest ? 1 : -1)) {
      best = std::move(item);
      best_key = std::move(key);
    }
  }
  return best ? *best : Value::undefined("No aggregated item, sequence was empty.");
}

Value do_sum(Interpreter& in, const Value& v, const Args& args) {
  Parameters p("sum", args, {"attribute", "start"});
  Value total = p.get(1, Value::integer(0));
  if (total.is_string()) raise("sum() can't sum strings [use ''.join(seq) instead]");
  for (const Value& item : in.items_of(v))
    total = in.binary("+", total, in.get_path(item, p.get(0, Value::none())));
  return total;
}

Value do_batch(Interpreter& in, const Value& v, const Args& args) {
  Parameters p("batch", args, {"linecount", "fill_with"}, 1);
  auto size = p.integer(0, 0);
  std::vector<Value> out, row;
  for (Value& item : in.items_of(v)) {
    if (static_cast<int64_t>(row.size()) == size) {
      out.push_back(Value::list(std::move(row)));
      row.clear();
    }
    row.push_back(std::move(item));
  }
  if (!row.empty()) {
    if (p.has(1) && !p[1].is_none()) {
      if (size > kMaxItems) fail(Code::kExhausted, "a list has more than {} items", kMaxItems);
      while (static_cast<int64_t>(row.size()) < size) row.push_back(p[1]);
    }
    out.push_back(Value::list(std::move(row)));
  }
  return Value::iterator(std::move(out));
}

Value do_slice(Interpreter& in, const Value& v, const Args& args) {
  Parameters p("slice", args, {"slices", "fill_with"}, 1);
  std::vector<Value> items = in.items_of(v), out;
  int64_t slices = p.integer(0, 0), n = static_cast<int64_t>(items.size()), offset = 0;
  if (slices == 0) raise("integer division or modulo by zero");
  if (slices > kMaxItems) fail(Code::kExhausted, "a list has more than {} items", kMaxItems);
  in.charge(std::max<int64_t>(0, slices));
  int64_t each = n / slices, extra = n % slices;
  for (int64_t i = 0; i < slices; ++i) {
    int64_t start = offset + i * each;
    if (i < extra) ++offset;
    int64_t end = offset + (i + 1) * each;
    std::vector<Value> row(items.begin() + start, items.begin() + end);
    if (p.has(1) && !p[1].is_none() && i >= extra) row.push_back(p[1]);
    out.push_back(Value::list(std::move(row)));
  }
  return Value::iterator(std::move(out));
}

Value do_reverse(Interpreter& in, const Value& v) {
  if (v.is_string()) {
    std::u32string s = text::decode(v.text());
    std::reverse(s.begin(), s.end());
    return in.text(text::encode(s));
  }
  std::vector<Value> items = in.items_of(v);
  std::reverse(items.begin(), items.end());
  // Python's list(value).reverse() for what has no order of its own, else reversed(value).
  return v.is(Type::kIterator) ? Value::list(std::move(items)) : Value::iterator(std::move(items));
}

Value do_last(Interpreter& in, const Value& v) {
  if (v.is(Type::kIterator)) raise("'generator' object is not reversible");
  if (v.is_undefined()) raise("'Undefined' object is not reversible");
  std::vector<Value> items = in.items_of(v);
  return items.empty() ? Value::undefined("No last item, sequence was empty.") : items.back();
}

Value do_first(Interpreter& in, const Value& v) {
  if (v.is(Type::kIterator)) {
    auto& it = v.as<IteratorObject>();
    if (it.at < it.items.size()) return it.items[it.at++];
    return Value::undefined("No first item, sequence was empty.");
  }
  std::vector<Value> items = in.items_of(v);
  return items.empty() ? Value::undefined("No first item, sequence was empty.") : items.front();
}

using Filter = Value (*)(Interpreter&, const Value&, const Args&);

const std::map<std::string, Filter, std::less<>>& filters() {
  static const std::map<std::string, Filter, std::less<>> table = {
      {"abs",
       [](Interpreter& in, const Value& v, const Args& args) {
         Parameters p("abs", args, {});
         if (v.is_undefined()) raise("bad operand type for abs(): 'Undefined'");
         if (!v.is_number()) raise("bad operand type for abs(): '{}'", type_name(v));
         if (v.is(Type::kFloat)) return Value::real(std::abs(v.real()));
         return v.integer() < 0 ? in.binary("*", v, Value::integer(-1)) : Value::integer(v.integer());
       }},
      {"attr",
       [](Interpreter& in, const Value& v, const Args& args) {
         Parameters p("attr", args, {"name"}, 1);
         // Attributes only: a dict's keys are none.
         if (v.is(Type::kDict) && !has_method(v, p.text(0)))
           return Value::undefined(fmt::format("'dict object' has no attribute '{}'", p.text(0)));
         return in.get_attribute(v, p.text(0));
       }},
      {"batch", do_batch},
      {"capitalize",
       [](Interpreter& in, const Value& v, const Args& args) {
         Parameters p("capitalize", args, {});
         return in.text(text::capitalize(soft_str(v)));
       }},
      {"center",
       [](Interpreter& in, const Value& v, const Args& args) {
         Parameters p("center", args, {"width"});
         return call_method(in, in.text(soft_str(v)), "center", {{Value::integer(p.integer(0, 80))}, {}});
       }},
      {"default",
       [](Interpreter&, const Value& v, const Args& args) {
         Parameters p("default", args, {"default_value", "boolean"});
         if (v.is_undefined() || (p.flag(1) && !truth(v))) return p.get(0, Value::string(""));
         return v;
       }},
      {"dictsort", do_dictsort},
      {"escape",
       [](Interpreter& in, const Value& v, const Args& args) {
         Parameters p("escape", args, {});
         return v.is_markup() ? v : in.text(text::escape_html(to_str(v)), true);
       }},
      {"first",
       [](Interpreter& in, const Value& v, const Args& args) {
         Parameters p("first", args, {});
         return do_first(in, v);
       }},
      {"float",
       [](Interpreter&, const Value& v, const Args& args) {
         Parameters p("float", args, {"default"});
         if (v.is_undefined()) raise_undefined(v);
         if (v.is_number()) return Value::real(v.real());
         if (v.is_string())
           if (auto f = parse_float(v.text())) return Value::real(*f);
         return p.get(0, Value::real(0));
       }},
      {"format",
       [](Interpreter& in, const Value& v, const Args& args) {
         if (!args.positional.empty() && !args.keyword.empty())
           raise("can't handle positional and keyword arguments at the same time");
         if (v.is_markup()) unsupported("'format' of a text that is marked as safe");
         if (args.keyword.empty()) return in.text(format_percent(soft_str(v), Value::tuple(args.positional)));
         auto dict = std::make_shared<DictObject>();
         for (const auto& [name, value] : args.keyword) dict->set(Value::string(name), value);
         return in.text(format_percent(soft_str(v), Value::dict(std::move(dict))));
       }},
      {"indent", do_indent},
      {"int", [](Interpreter&, const Value& v, const Args& args) { return do_int(v, args); }},
      {"items",
       [](Interpreter& in, const Value& v, const Args& args) {
         Parameters p("items", args, {});
         if (v.is_undefined()) return Value::iterator({});
         if (!v.is(Type::kDict)) raise("Can only get item pairs from a mapping.");
         std::vector<Value> out;
         for (const auto& [key, value] : v.dict().items) out.push_back(Value::tuple({key, value}));
         in.charge(static_cast<int64_t>(out.size()));
         return Value::iterator(std::move(out));
       }},
      {"join", do_join},
      {"last",
       [](Interpreter& in, const Value& v, const Args& args) {
         Parameters p("last", args, {});
         return do_last(in, v);
       }},
      {"length",
       [](Interpreter& in, const Value& v, const Args& args) {
         Parameters p("length", args, {});
         if (v.is_string()) in.charge_text(v.text().size());
         return Value::integer(length(v));
       }},
      {"list",
       [](Interpreter& in, const Value& v, const Args& args) {
         Parameters p("list", args, {});
         return Value::list(in.items_of(v));
       }},
      {"lower",
       [](Interpreter& in, const Value& v, const Args& args) {
         Parameters p("lower", args, {});
         return in.text(text::lower(soft_str(v)));
       }},
      {"map", do_map},
      {"max", [](Interpreter& in, const Value& v, const Args& a) { return do_min_max(in, v, a, true); }},
      {"min", [](Interpreter& in, const Value& v, const Args& a) { return do_min_max(in, v, a, false); }},
      {"reject",
       [](Interpreter& in, const Value& v, const Args& a) { return do_select(in, v, a, false, false); }},
      {"rejectattr",
       [](Interpreter& in, const Value& v, const Args& a) { return do_select(in, v, a, false, true); }},
      {"replace",
       [](Interpreter& in, const Value& v, const Args& args) {
         Parameters p("replace", args, {"old", "new", "count"}, 2);
         int64_t count = p.has(2) && !p[2].is_none() ? p.integer(2, -1) : -1;
         std::string s = to_str(v);
         in.charge_text(s.size());
         std::string to = to_str(p[1]);
         // At most one replacement for each byte, and one at the end.
         if (static_cast<int64_t>(to.size()) * static_cast<int64_t>(s.size() + 1) > 16 * kMaxString)
           fail(Code::kExhausted, "a text is larger than {} bytes", kMaxString);
         return in.text(text::replace(s, to_str(p[0]), to, count));
       }},
      {"reverse",
       [](Interpreter& in, const Value& v, const Args& args) {
         Parameters p("reverse", args, {});
         return do_reverse(in, v);
       }},
      {"round", [](Interpreter&, const Value& v, const Args& args) { return do_round(v, args); }},
      {"safe",
       [](Interpreter& in, const Value& v, const Args& args) {
         Parameters p("safe", args, {});
         return in.text(to_str(v), true);
       }},
      {"select",
       [](Interpreter& in, const Value& v, const Args& a) { return do_select(in, v, a, true, false); }},
      {"selectattr",
       [](Interpreter& in, const Value& v, const Args& a) { return do_select(in, v, a, true, true); }},
      {"slice", do_slice},
      {"sort", do_sort},
      {"string",
       [](Interpreter& in, const Value& v, const Args& args) {
         Parameters p("string", args, {});
         return v.is_string() ? v : in.text(to_str(v));
       }},
      {"sum", do_sum},
      {"title",
       [](Interpreter& in, const Value& v, const Args& args) {
         Parameters p("title", args, {});
         return do_title(in, v);
       }},
      {"tojson", do_tojson},
      {"trim",
       [](Interpreter& in, const Value& v, const Args& args) {
         Parameters p("trim", args, {"chars"});
         std::optional<std::string> chars;
         if (p.has(0) && !p[0].is_none()) chars = p.text(0);
         std::string s = soft_str(v);
         return in.text(std::string(text::strip(s, chars, true, true)), v.is_markup());
       }},
      {"unique", do_unique},
      {"upper",
       [](Interpreter& in, const Value& v, const Args& args) {
         Parameters p("upper", args, {});
         return in.text(text::upper(soft_str(v)));
       }},
      {"wordcount",
       [](Interpreter&, const Value& v, const Args& args) {
         Parameters p("wordcount", args, {});
         int64_t words = 0;
         bool in_word = false;
         for (char32_t c : text::decode(soft_str(v))) {
           bool word = c == '_' || text::is_alpha(c) || text::is_digit(c);
           words += word && !in_word ? 1 : 0;
           in_word = word;
         }
         return Value::integer(words);
       }},
  };
  return table;
}

constexpr std::string_view kOtherFilters[] = {"filesizeformat", "forceescape", "groupby",  "pprint",
                                              "random",         "striptags",   "truncate", "urlencode",
                                              "urlize",         "wordwrap",    "xmlattr"};

std::string_view canonical_filter(std::string_view name) {
  if (name == "d") return "default";
  if (name == "e") return "escape";
  if (name == "count") return "length";
  return name;
}

using Test = bool (*)(Interpreter&, const Value&, const Args&);

template <int kLow, int kHigh>
bool ordered(Interpreter&, const Value& v, const Args& args) {
  Parameters p("comparison", args, {"other"}, 1);
  int order = compare(v, p[0], kLow < 0 ? "<" : ">");
  return order != 2 && order >= kLow && order <= kHigh;
}

bool equal_to(Interpreter&, const Value& v, const Args& args) {
  Parameters p("equalto", args, {"other"}, 1);
  return equal(v, p[0]);
}
bool not_equal_to(Interpreter& in, const Value& v, const Args& args) { return !equal_to(in, v, args); }

int64_t modulo(Interpreter& in, const Value& v, const Value& by) {
  Value rest = in.binary("%", v, by);
  return rest.is(Type::kFloat) ? (rest.real() == 0   ? 0
                                  : rest.real() == 1 ? 1
                                                     : 2)
                               : (rest.integer() == 0   ? 0
                                  : rest.integer() == 1 ? 1
                                                        : 2);
}

bool has_case(const Value& v, bool (*wanted)(char32_t), bool (*other)(char32_t)) {
  bool found = false;
  for (char32_t c : text::decode(to_str(v))) {
    if (other(c)) return false;
    found |= wanted(c);
  }
  return found;
}

const std::map<std::string, Test, std::less<>>& tests() {
  using In = Interpreter;
  static const std::map<std::string, Test, std::less<>> table = {
      {"boolean", [](In&, const Value& v, const Args&) { return v.is(Type::kBool); }},
      {"callable",
       [](In&, const Value& v, const Args&) {
         // jinja2's undefined values can be called (and raise).
         return v.is_undefined() || v.is(Type::kMacro) || v.is(Type::kFunction) || v.is(Type::kMethod);
       }},
      {"defined", [](In&, const Value& v, const Args&) { return !v.is_undefined(); }},
      {"divisibleby",
       [](In& in, const Value& v, const Args& args) {
         Parameters p("divisibleby", args, {"num"}, 1);
         return modulo(in, v, p[0]) == 0;
       }},
      {"eq", equal_to},
      {"equalto", equal_to},
      {"==", equal_to},
      {"escaped", [](In&, const Value& v, const Args&) { return v.is_markup(); }},
      {"even", [](In& in, const Value& v, const Args&) { return modulo(in, v, Value::integer(2)) == 0; }},
      {"false", [](In&, const Value& v, const Args&) { return v.is(Type::kBool) && v.integer() == 0; }},
      {"filter",
       [](In&, const Value& v, const Args&) {
         std::string name = to_str(v);
         return v.is_string() && (filters().contains(canonical_filter(name)) ||
                                  std::find(std::begin(kOtherFilters), std::end(kOtherFilters), name) !=
                                      std::end(kOtherFilters));
       }},
      {"float", [](In&, const Value& v, const Args&) { return v.is(Type::kFloat); }},
      {"ge", ordered<0, 1>},
      {">=", ordered<0, 1>},
      {"greaterthan", ordered<1, 1>},
      {"gt", ordered<1, 1>},
      {">", ordered<1, 1>},
      {"in",
       [](In& in, const Value& v, const Args& args) {
         Parameters p("in", args, {"seq"}, 1);
         if (p[0].has_items()) in.charge(length(p[0]));
         return contains(p[0], v);
       }},
      {"integer", [](In&, const Value& v, const Args&) { return v.is(Type::kInt); }},
      {"iterable",
       [](In&, const Value& v, const Args&) {
         return v.is_undefined() || v.is_string() || v.has_items() || v.is(Type::kDict) ||
                v.is(Type::kView) || v.is(Type::kIterator) || v.is(Type::kLoop);
       }},
      {"le", ordered<-1, 0>},
      {"<=", ordered<-1, 0>},
      {"lessthan", ordered<-1, -1>},
      {"lower", [](In&, const Value& v,
                   const Args&) { return has_case(v, text::is_lower_case, text::is_upper_case); }},
      {"lt", ordered<-1, -1>},
      {"<", ordered<-1, -1>},
      {"mapping", [](In&, const Value& v, const Args&) { return v.is(Type::kDict); }},
      {"ne", not_equal_to},
      {"!=", not_equal_to},
      {"none", [](In&, const Value& v, const Args&) { return v.is_none(); }},
      {"number", [](In&, const Value& v, const Args&) { return v.is_number(); }},
      {"odd", [](In& in, const Value& v, const Args&) { return modulo(in, v, Value::integer(2)) == 1; }},
      {"sameas",
       [](In&, const Value& v, const Args& args) {
         Parameters p("sameas", args, {"other"}, 1);
         return v.same(p[0]);
       }},
      {"sequence",
       [](In&, const Value& v, const Args&) {
         return v.is_undefined() || v.is_string() || v.has_items() || v.is(Type::kDict);
       }},
      {"string", [](In&, const Value& v, const Args&) { return v.is_string(); }},
      {"test", [](In&, const Value& v, const Args&) { return v.is_string() && tests().contains(v.text()); }},
      {"true", [](In&, const Value& v, const Args&) { return v.is(Type::kBool) && v.integer() != 0; }},
      {"undefined", [](In&, const Value& v, const Args&) { return v.is_undefined(); }},
      {"upper", [](In&, const Value& v,
                   const Args&) { return has_case(v, text::is_upper_case, text::is_lower_case); }},
  };
  return table;
}

}  // namespace

Value Interpreter::apply_filter(const std::string& name, const Value& input, const Args& args) {
  auto it = filters().find(canonical_filter(name));
  if (it != filters().end()) return it->second(*this, input, args);
  if (std::find(std::begin(kOtherFilters), std::end(kOtherFilters), name) != std::end(kOtherFilters))
    unsupported(fmt::format("the filter '{}'", name));
  raise("No filter named '{}'.", name);
}

bool Interpreter::apply_test(const std::string& name, const Value& input, const Args& args) {
  auto it = tests().find(name);
  if (it == tests().end()) raise("No test named '{}'.", name);
  return it->second(*this, input, args);
}

}  // namespace ds::jinja
