#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <array>
#include <cctype>
#include <string>

#include "runtime/model/tokenizer_regex_internal.h"
#include "runtime/model/tokenizer_tables_internal.h"
#include "runtime/model/tokenizer_unicode_internal.h"

namespace ds {
namespace {

constexpr std::string_view kSpace =
    "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{"
    "3000}";
constexpr std::string_view kNotSpace =
    "\\x{0}-\\x{8}\\x{e}-\\x{1f}\\x{21}-\\x{84}\\x{86}-\\x{9f}\\x{a1}-\\x{167f}\\x{1681}-\\x{1fff}"
    "\\x{200b}-\\x{2027}\\x{202a}-\\x{202e}\\x{2030}-\\x{205e}\\x{2060}-\\x{2fff}\\x{3001}-\\x{10ffff}";
constexpr std::string_view kHex = "0-9A-Fa-f";

std::string code_point(char32_t c) { return fmt::format("\\x{{{:x}}}", static_cast<uint32_t>(c)); }

/// The inside of a class for a general category ("L", "Nd"); empty for a name that is none of those we know.
std::string category_class(std::string_view name) {
  constexpr std::string_view kKnown =
      " L Lu Ll Lt Lm Lo M Mn Mc Me N Nd Nl No P Pc Pd Ps Pe Pi Pf Po S Sm Sc Sk So Z Zs Zl Zp ";
  if (name.empty() || kKnown.find(fmt::format(" {} ", name)) == std::string_view::npos) return {};
  std::string out = fmt::format("\\p{{{}}}", name);
  for (const unicode::Addition& a : unicode::kAdditions) {
    if (a.major != name[0] || (name.size() > 1 && a.minor != name[1])) continue;
    out += code_point(a.first);
    if (a.last != a.first) out.append("-").append(code_point(a.last));
  }
  return out;
}

/// \w, \W and \b; within a class, Oniguruma leaves out six symbols of Latin-1 that it counts elsewhere.
std::string word_class(bool in_class) {
  static const std::string word =
      category_class("L") + category_class("M") + category_class("Nd") + category_class("Nl") +
      category_class("Pc") +
      "\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{1f189}";
  return in_class ? word : word + "\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}";
}

class Translator {
 public:
  Translator(std::string_view pattern, const std::string& where) : in_(pattern), where_(where) {}

  Result<std::string> run() {
    std::vector<bool> outer;  // caselessness of the enclosing groups
    bool group_start = true;
    while (at_ < in_.size()) {
      bool starts_group = group_start;
      group_start = false;
      char c = in_[at_];
      if (c != '\\' && !plain(c)) last_literal_ = 0;
      switch (c) {
        case '\\':
          ++at_;
          DS_TRY(escape());
          break;
        case '[':
          DS_TRY(char_class());
          break;
        case '(': {
          if (in_.substr(at_, 3) == "(?#") {
            size_t end = in_.find(')', at_);
            if (end == std::string_view::npos) return bad("a comment that is never closed");
            at_ = end + 1;
            group_start = starts_group;
            break;
          }
          bool caseless = caseless_, opened = true;
          DS_TRY(open_group(caseless, opened, starts_group));
          if (opened) outer.push_back(caseless_);
          caseless_ = caseless;
          group_start = true;
          break;
        }
        case ')':
          if (outer.empty()) return bad("an unmatched ')'");
          caseless_ = outer.back();
          outer.pop_back();
          out_ += ')';
          ++at_;
          break;
        case '^':
          out_ += "(?m:^)";
          ++at_;
          break;
        case '$':
          out_ += "(?m:$)";
          ++at_;
          break;
        case '{':
          DS_TRY(interval());
          break;
        case '|':
        case '.':
        case '*':
        case '+':
        case '?':
          out_ += c;
          ++at_;
          break;
        default: {
          DS_TRY(literal(unicode::next_char(in_, at_)));
        }
      }
    }
    if (!outer.empty()) return bad("a group that is never closed");
    return std::move(out_);
  }

 private:
  std::string_view in_;
  const std::string& where_;
  std::string out_;
  size_t at_ = 0;
  bool caseless_ = false;
  char32_t last_literal_ = 0;  // in a caseless scope: the literal just before, else 0

  Status refuse(std::string_view what) const {
    return error(Code::kUnsupported, "{}: pattern '{}' has {} at byte {}, which is not supported", where_,
                 in_, what, at_);
  }
  Status bad(std::string_view what) const {
    return error(Code::kCorrupt, "{}: pattern '{}' has {} at byte {}", where_, in_, what, at_);
  }
  static bool plain(char c) { return std::string_view("\\[()^${|.*+?").find(c) == std::string_view::npos; }
  char peek(size_t ahead = 0) const { return at_ + ahead < in_.size() ? in_[at_ + ahead] : '\0'; }
  bool take(std::string_view text) {
    if (in_.substr(at_, text.size()) != text) return false;
    at_ += text.size();
    return true;
  }

  /// Case folding of one character to several (ss, st, ff, ..) is Oniguruma's alone.
  Status check_caseless(char32_t c) {
    if (!caseless_) return ok_status();
    if (c >= 0x80) return refuse("a character beyond ASCII that ignores case");
    char32_t lower = c >= 'A' && c <= 'Z' ? c + 32 : c;
    char32_t before = last_literal_;
    if ((before == 's' && (lower == 's' || lower == 't')) ||
        (before == 'f' && (lower == 'f' || lower == 'i' || lower == 'l'))) {
      return refuse("letters that ignore case and have a ligature");
    }
    last_literal_ = lower;
    return ok_status();
  }

  Status literal(char32_t c) {
    DS_TRY(check_caseless(c));
    out_ += code_point(c);
    return ok_status();
  }

  /// At '(': writes the group's opening; an option for the rest of a group, "(?i)", opens none.
  Status open_group(bool& caseless, bool& opened, bool starts_group) {
    ++at_;
    if (!take("?")) {
      out_ += "(?:";  // nothing refers to captures
      return ok_status();
    }
    for (std::string_view kind : {":", "=", "!", "<=", "<!", ">"}) {
      if (take(kind)) {
        out_ += fmt::format("(?{}", kind);
        return ok_status();
      }
    }
    bool on = take("i"), off = !on && take("-i");
    if (on || off) {
      caseless = on;
      out_ += on ? "(?i" : "(?-i";
      opened = take(":");
      if (opened) {
        out_ += ':';
        return ok_status();
      }
      // Elsewhere than at the start of a group, Oniguruma lets the option reach over '|', PCRE2 does not.
      if (starts_group && take(")")) {
        out_ += ')';
        return ok_status();
      }
    }
    return refuse("a special group");
  }

  Status interval() {
    size_t end = in_.find('}', at_);
    std::string_view body = end == std::string_view::npos ? "" : in_.substr(at_ + 1, end - at_ - 1);
    size_t comma = body.find(',');
    std::string_view low = body.substr(0, comma);
    std::string_view high = comma == std::string_view::npos ? low : body.substr(comma + 1);
    auto digits = [](std::string_view s) {
      return s.find_first_not_of("0123456789") == std::string_view::npos;
    };
    if (!digits(low) || !digits(high) || (low.empty() && high.empty())) {
      ++at_;
      return literal('{');
    }
    at_ = end + 1;
    if (peek() == '+') return refuse("a repetition of an interval");
    if (peek() == '?' && comma == std::string_view::npos) return refuse("a lazy interval of one count");
    out_ += fmt::format("{{{}", low.empty() ? "0" : low);
    if (comma != std::string_view::npos) out_ += fmt::format(",{}", high);
    out_ += '}';
    if (take("?")) out_ += '?';
    return ok_status();
  }

  /// The character that an escape stands for; -1 where it is another kind of escape. `at_` is on the letter.
  Result<int64_t> escaped_char() {
    char e = peek();
    auto hex = [&](size_t least, size_t most) -> int64_t {
      int64_t value = 0;
      size_t n = 0;
      while (n < most && std::isxdigit(static_cast<unsigned char>(peek())) != 0) {
        char d = peek();
        value = value * 16 + (d <= '9' ? d - '0' : (d | 32) - 'a' + 10);
        ++at_, ++n;
      }
      return n < least ? -1 : value;
    };
    switch (e) {
      case 'n':
        ++at_;
        return int64_t{'\n'};
      case 't':
        ++at_;
        return int64_t{'\t'};
      case 'r':
        ++at_;
        return int64_t{'\r'};
      case 'f':
        ++at_;
        return int64_t{'\f'};
      case 'v':
        ++at_;
        return int64_t{'\v'};
      case 'a':
        ++at_;
        return int64_t{'\a'};
      case 'e':
        ++at_;
        return int64_t{0x1B};
      case 'u':
      case 'x': {
        ++at_;
        bool braces = e == 'x' && take("{");
        int64_t value = braces ? hex(1, 8) : e == 'u' ? hex(4, 4) : hex(1, 2);
        if (braces && value >= 0 && !take("}")) value = -1;
        if (value < 0) return bad("a broken hexadecimal escape");
        if (value > 0x10FFFF || (value >= 0xD800 && value < 0xE000))
          return bad("an escape that is no character");
        if (e == 'x' && !braces && value >= 0x80) return refuse("an escaped byte");
        return value;
      }
      default:
        break;
    }
    if (e == '\0' && at_ >= in_.size()) return bad("a lone '\\' at its end");
    if (std::isalnum(static_cast<unsigned char>(e)) != 0) return int64_t{-1};
    return static_cast<int64_t>(unicode::next_char(in_, at_));
  }

  /// The inside of a class for \s, \d, \w, \h, \p{..}; `negated` where the escape means all others. Empty:
  /// another escape.
  Result<std::string> escaped_class(bool in_class, bool& negated) {
    char e = peek();
    negated = e == 'S' || e == 'D' || e == 'W' || e == 'H' || e == 'P';
    switch (e) {
      case 's':
      case 'S':
        ++at_;
        return std::string(kSpace);
      case 'd':
      case 'D':
        ++at_;
        return category_class("Nd");
      case 'w':
      case 'W':
        ++at_;
        return word_class(in_class);
      case 'h':
      case 'H':
        ++at_;
        return std::string(kHex);
      case 'p':
      case 'P': {
        size_t end = in_.find('}', at_);
        if (peek(1) != '{' || end == std::string_view::npos) return bad("a property without braces");
        std::string_view name = in_.substr(at_ + 2, end - at_ - 2);
        if (!name.empty() && name[0] == '^') {
          negated = !negated;
          name.remove_prefix(1);
        }
        std::string inside = category_class(name);
        if (inside.empty()) return refuse("a property other than a general category");
        if (caseless_ && (name == "Lu" || name == "Ll" || name == "Lt")) {
          return refuse("a property of case where case is ignored");
        }
        at_ = end + 1;
        return inside;
      }
      default:
        return std::string();
    }
  }

  Status escape() {
    bool negated = false;
    DS_ASSIGN(std::string inside, escaped_class(false, negated));
    if (!inside.empty()) {
      last_literal_ = 0;
      out_ += fmt::format("[{}{}]", negated ? "^" : "", inside);
      return ok_status();
    }
    DS_ASSIGN(int64_t c, escaped_char());
    if (c >= 0) return literal(static_cast<char32_t>(c));
    last_literal_ = 0;
    switch (peek()) {
      case 'A':
      case 'z':
      case 'Z':
        out_ += fmt::format("\\{}", peek());
        break;
      case 'b':
        out_ += fmt::format("(?:(?<=[{0}])(?![{0}])|(?<![{0}])(?=[{0}]))", word_class(false));
        break;
      case 'B':
        out_ += fmt::format("(?:(?<=[{0}])(?=[{0}])|(?<![{0}])(?![{0}]))", word_class(false));
        break;
      default:
        return refuse("an unknown escape");
    }
    ++at_;
    return ok_status();
  }

  /// One character of a class (escaped or not); -1 and `inside` for what stands for several.
  Result<int64_t> class_item(std::string& inside) {
    if (peek() != '\\') {
      if (peek() == '[') return refuse("a class within a class");
      return static_cast<int64_t>(unicode::next_char(in_, at_));
    }
    ++at_;
    bool negated = false;
    char letter = peek();
    DS_ASSIGN(inside, escaped_class(true, negated));
    if (!inside.empty()) {
      if (negated && letter == 'S') {
        inside = kNotSpace;
      } else if (negated) {
        return refuse("a negated escape within a class");
      }
      return int64_t{-1};
    }
    if (letter == 'b') {
      ++at_;
      return int64_t{8};
    }
    DS_ASSIGN(int64_t c, escaped_char());
    if (c < 0) return refuse("an unknown escape");
    return c;
  }

  Status char_class() {
    ++at_;
    last_literal_ = 0;
    out_ += '[';
    if (take("^")) out_ += '^';
    if (peek() == ']') return refuse("an empty class or a class that begins with ']'");
    while (true) {
      if (at_ >= in_.size()) return bad("a class that is never closed");
      if (take("]")) break;
      if (in_.substr(at_, 2) == "&&") return refuse("an intersection of classes");
      std::string inside;
      DS_ASSIGN(int64_t first, class_item(inside));
      if (first < 0) {
        out_ += inside;
        continue;
      }
      int64_t last = first;
      if (peek() == '-' && peek(1) != ']' && at_ + 1 < in_.size()) {
        ++at_;
        DS_ASSIGN(last, class_item(inside));
        if (last < 0) return refuse("a range that ends in several characters");
        if (last < first) return bad("a range that runs backwards");
      }
      if (caseless_ && last >= 0x80) return refuse("a character beyond ASCII that ignores case");
      out_ += code_point(static_cast<char32_t>(first));
      if (last != first) out_.append("-").append(code_point(static_cast<char32_t>(last)));
    }
    out_ += ']';
    return ok_status();
  }
};

std::string pcre2_message(int code) {
  std::array<unsigned char, 256> text{};
  pcre2_get_error_message(code, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

/// What a match needs besides the pattern; one per thread, for all patterns.
struct Scratch {
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(32 << 10, 64 << 20, nullptr);
  Scratch() {
    if (context != nullptr && stack != nullptr) pcre2_jit_stack_assign(context, nullptr, stack);
  }
  Scratch(const Scratch&) = delete;
  ~Scratch() {
    pcre2_match_data_free(data);
    pcre2_match_context_free(context);
    if (stack != nullptr) pcre2_jit_stack_free(stack);
  }
};

}  // namespace

Result<std::string> translate_pattern(std::string_view pattern, const std::string& where) {
  if (unicode::valid_utf8_prefix(pattern) != pattern.size()) {
    return error(Code::kCorrupt, "{}: the pattern is not UTF-8", where);
  }
  return Translator(pattern, where).run();
}

Result<Pattern> Pattern::literal(std::string text, const std::string& where) {
  if (text.empty()) return error(Code::kUnsupported, "{}: an empty pattern is not supported", where);
  Pattern p;
  p.literal_ = std::move(text);
  p.where_ = where;
  return p;
}

Result<Pattern> Pattern::regex(std::string_view pattern, const std::string& where) {
  DS_ASSIGN(std::string translated, translate_pattern(pattern, where));
  std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)> context(
      pcre2_compile_context_create(nullptr), pcre2_compile_context_free);
  if (context == nullptr) return error(Code::kExhausted, "{}: out of memory", where);
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int code = 0;
  size_t offset = 0;
  pcre2_code* compiled = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                                       PCRE2_UTF | PCRE2_UCP, &code, &offset, context.get());
  if (compiled == nullptr) {
    return error(Code::kUnsupported, "{}: pattern '{}' cannot be compiled: {} (at byte {} of '{}')", where,
                 pattern, pcre2_message(code), offset, translated);
  }
  Pattern p;
  p.regex_ = translated;
  p.where_ = where;
  p.code_ = std::shared_ptr<const void>(
      compiled, [](const void* v) { pcre2_code_free(static_cast<pcre2_code*>(const_cast<void*>(v))); });
  pcre2_jit_compile(compiled, PCRE2_JIT_COMPLETE);  // where there is no JIT, the interpreter does it
  return p;
}

Status Pattern::split(std::string_view text, std::vector<Span>& out) const {
  out.clear();
  if (text.empty()) {
    out.push_back({});
    return ok_status();
  }
  size_t covered = 0;
  auto add = [&](size_t begin, size_t end) {
    if (covered != begin) out.push_back({covered, begin, false});
    out.push_back({begin, end, true});
    covered = end;
  };
  if (!literal_.empty()) {
    for (size_t at = text.find(literal_); at != std::string_view::npos;
         at = text.find(literal_, at + literal_.size())) {
      add(at, at + literal_.size());
    }
  } else {
    thread_local Scratch scratch;
    if (scratch.data == nullptr || scratch.context == nullptr) {
      return error(Code::kExhausted, "{}: out of memory", where_);
    }
    const auto* code = static_cast<const pcre2_code*>(code_.get());
    size_t at = 0, last_end = std::string_view::npos;
    while (at <= text.size()) {
      int rc = pcre2_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), at,
                           PCRE2_NO_UTF_CHECK, scratch.data, scratch.context);
      if (rc == PCRE2_ERROR_NOMATCH) break;
      if (rc < 0) {
        return error(Code::kExhausted, "{}: the pattern fails at byte {} of {} bytes of text: {}", where_, at,
                     text.size(), pcre2_message(rc));
      }
      const size_t* found = pcre2_get_ovector_pointer(scratch.data);
      if (found[0] == found[1] &&
          found[1] == last_end) {  // an empty match right behind a match does not count
        at += at < text.size() ? unicode::char_size(static_cast<unsigned char>(text[at])) : 1;
        continue;
      }
      at = last_end = found[1];
      add(found[0], found[1]);
    }
  }
  if (covered != text.size()) out.push_back({covered, text.size(), false});
  return ok_status();
}

Result<std::string> Pattern::replace(std::string_view text, std::string_view content) const {
  std::vector<Span> spans;
  DS_TRY(split(text, spans));
  std::string out;
  out.reserve(text.size() + text.size() / 2);
  for (const Span& s : spans) out += s.match ? content : text.substr(s.begin, s.end - s.begin);
  return out;
}

}  // namespace ds
