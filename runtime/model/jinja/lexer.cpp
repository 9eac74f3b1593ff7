#include <charconv>
#include <cstdlib>

#include "runtime/model/jinja/syntax_internal.h"
#include "runtime/model/jinja/text_internal.h"
#include "runtime/model/tokenizer_unicode_internal.h"

namespace ds::jinja {
namespace {

[[noreturn]] void syntax_error(int line, std::string what) {
  throw Failure{Code::kCorrupt, std::move(what), line};
}

bool is_name_start(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_name_char(char c) { return is_name_start(c) || is_digit(c); }

/// Line breaks become \n; the last one goes, as jinja2 does unless told to keep it.
std::string normalized(std::string_view source) {
  std::string out;
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out += '\n';
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      out += source[i];
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string source) : source_(std::move(source)) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) data();
    add(TokenKind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  std::string source_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_start_ = true;  // what was read last ended with a line break
  std::vector<Token> tokens_;

  std::string_view rest() const { return std::string_view(source_).substr(at_); }
  Token& add(TokenKind kind, std::string text) {
    tokens_.push_back({kind, std::move(text), 0, 0, line_});
    return tokens_.back();
  }
  void advance(size_t n) {
    for (size_t i = at_; i < at_ + n; ++i) line_ += source_[i] == '\n' ? 1 : 0;
    if (n > 0) line_start_ = source_[at_ + n - 1] == '\n';
    at_ += n;
  }
  size_t spaces_at(size_t at) const {
    size_t end = at;
    for (size_t next = at; next < source_.size(); end = next)
      if (!text::is_space(unicode::next_char(source_, next))) return end - at;
    return source_.size() - at;
  }
  /// Length of "raw %}" with what surrounds it, from behind "{%" and its sign; 0: it is another tag.
  size_t raw_begin(size_t at) const {
    size_t begin = at;
    at += spaces_at(at);
    if (source_.compare(at, 3, "raw") != 0) return 0;
    at += 3;
    at += spaces_at(at);
    if (source_.compare(at, 3, "-%}") == 0) {
      at += 3;
      return at + spaces_at(at) - begin;
    }
    return source_.compare(at, 2, "%}") == 0 ? at + 2 - begin : 0;
  }

  /// The text before a tag, with what the tag's sign and lstrip_blocks take from its end.
  void add_data(std::string_view text, char sign, bool strips_line) {
    if (sign == '-') {
      text = text::strip(text, std::nullopt, false, true);
    } else if (sign != '+' && strips_line) {
      size_t line = text.rfind('\n');
      size_t begin = line == std::string_view::npos ? 0 : line + 1;
      if (begin > 0 || line_start_) {
        std::string_view tail = text.substr(begin);
        if (text::strip(tail, std::nullopt, true, true).empty()) text = text.substr(0, begin);
      }
    }
    if (!text.empty()) add(TokenKind::kData, std::string(text));
  }

  /// Where the next tag begins: "{%", "{{" or "{#".
  size_t next_tag() const {
    for (size_t i = at_; i + 1 < source_.size(); ++i)
      if (source_[i] == '{' && (source_[i + 1] == '%' || source_[i + 1] == '{' || source_[i + 1] == '#'))
        return i;
    return std::string::npos;
  }
  char sign_at(size_t at) const {
    return at < source_.size() && (source_[at] == '-' || source_[at] == '+') ? source_[at] : '\0';
  }

  void data() {
    size_t tag = next_tag();
    if (tag == std::string::npos) {
      add(TokenKind::kData, std::string(rest()));
      advance(source_.size() - at_);
      return;
    }
    char kind = source_[tag + 1];
    char sign = sign_at(tag + 2);
    add_data(std::string_view(source_).substr(at_, tag - at_), sign, kind != '{');
    size_t inside = tag + 2 + (sign != '\0' ? 1 : 0);
    if (kind == '#') return comment(inside);
    if (kind == '%') {
      if (size_t raw_size = raw_begin(inside); raw_size > 0) {
        advance(inside + raw_size - at_);
        return raw();
      }
    }
    advance(tag - at_);
    add(kind == '%' ? TokenKind::kBlockBegin : TokenKind::kVariableBegin, "");
    advance(inside - at_);
    code(kind == '%');
  }

  /// What a block's or comment's end takes of what follows, with trim_blocks.
  size_t block_end_size(size_t at, char first) const {
    auto is_end = [&](size_t where) {
      return where + 1 < source_.size() && source_[where] == first && source_[where + 1] == '}';
    };
    if (source_[at] == '+' && is_end(at + 1)) return 3;
    if (source_[at] == '-' && is_end(at + 1)) return 3 + spaces_at(at + 3);
    if (is_end(at)) return at + 2 < source_.size() && source_[at + 2] == '\n' ? 3 : 2;
    return 0;
  }

  void comment(size_t inside) {
    for (size_t at = inside; at < source_.size(); ++at) {
      if (size_t size = block_end_size(at, '#')) return advance(at + size - at_);
    }
    syntax_error(line_, "a comment '{#' has no end '#}'");
  }

  void raw() {
    for (size_t at = at_; at < source_.size(); ++at) {
      if (source_.compare(at, 2, "{%") != 0) continue;
      char sign = sign_at(at + 2);
      size_t name = at + 2 + (sign != '\0' ? 1 : 0);
      name += spaces_at(name);
      if (source_.compare(name, 6, "endraw") != 0) continue;
      size_t end = name + 6;
      end += spaces_at(end);
      size_t size = end < source_.size() ? block_end_size(end, '%') : 0;
      if (size == 0) continue;
      add_data(std::string_view(source_).substr(at_, at - at_), sign, true);
      return advance(end + size - at_);
    }
    syntax_error(line_, "'raw' has no 'endraw'");
  }

  void code(bool block) {
    std::string open;  // brackets that wait for their end
    const int begin = line_;
    while (true) {
      advance(spaces_at(at_));
      if (at_ >= source_.size()) syntax_error(begin, block ? "'{%' has no end '%}'" : "'{{' has no end '}}'");
      if (open.empty()) {
        size_t size = 0;
        if (block) {
          size = block_end_size(at_, '%');
        } else if (rest().starts_with("-}}")) {
          size = 3 + spaces_at(at_ + 3);
        } else if (rest().starts_with("}}")) {
          size = 2;
        }
        if (size > 0) {
          add(block ? TokenKind::kBlockEnd : TokenKind::kVariableEnd, "");
          return advance(size);
        }
      }
      char c = source_[at_];
      if (is_name_start(c)) {
        size_t end = at_;
        while (end < source_.size() && is_name_char(source_[end])) ++end;
        add(TokenKind::kName, source_.substr(at_, end - at_));
        advance(end - at_);
      } else if (is_digit(c)) {
        number();
      } else if (c == '\'' || c == '"') {
        string(c);
      } else {
        operation(open);
      }
    }
  }

  void number() {
    size_t end = at_;
    std::string digits;
    auto take_digits = [&] {
      while (end < source_.size() &&
             (is_digit(source_[end]) ||
              (source_[end] == '_' && end + 1 < source_.size() && is_digit(source_[end + 1])))) {
        if (source_[end] != '_') digits += source_[end];
        ++end;
      }
    };
    take_digits();
    bool real = false;
    auto digit_at = [&](size_t at) { return at < source_.size() && is_digit(source_[at]); };
    bool after_dot = at_ > 0 && source_[at_ - 1] == '.';  // `x.0.1` is two subscripts
    if (!after_dot && end < source_.size() && source_[end] == '.' && digit_at(end + 1)) {
      real = true;
      digits += '.';
      ++end;
      take_digits();
    }
    if (!after_dot && end < source_.size() && (source_[end] == 'e' || source_[end] == 'E')) {
      size_t exponent = end + 1;
      if (exponent < source_.size() && (source_[exponent] == '+' || source_[exponent] == '-')) ++exponent;
      if (digit_at(exponent)) {
        real = true;
        digits += source_.substr(end, exponent - end);
        end = exponent;
        take_digits();
      }
    }
    if (end < source_.size() && is_name_char(source_[end]))
      syntax_error(line_,
                   fmt::format("'{}' is no number of this version's", source_.substr(at_, end - at_ + 1)));
    Token& token = add(real ? TokenKind::kFloat : TokenKind::kInteger, digits);
    if (real) {
      token.real = std::strtod(digits.c_str(), nullptr);
    } else {
      auto read = std::from_chars(digits.data(), digits.data() + digits.size(), token.integer);
      if (read.ec != std::errc())
        throw Failure{Code::kUnsupported, fmt::format("the integer {} has more than 64 bits", digits), line_};
    }
    advance(end - at_);
  }

  void string(char quote) {
    const int line = line_;
    size_t end = at_ + 1;
    while (end < source_.size() && source_[end] != quote) end += source_[end] == '\\' ? 2 : 1;
    if (end >= source_.size()) syntax_error(line, "a text in quotes has no end");
    add(TokenKind::kString, unescaped(std::string_view(source_).substr(at_ + 1, end - at_ - 1)));
    advance(end + 1 - at_);
  }

  /// Python's escapes in literals ("unicode-escape").
  std::string unescaped(std::string_view s) const {
    std::string out;
    for (size_t i = 0; i < s.size(); ++i) {
      if (s[i] != '\\' || i + 1 == s.size()) {
        out += s[i];
        continue;
      }
      char c = s[++i];
      constexpr std::string_view kFrom = "\\'\"abfnrtv", kTo = "\\'\"\a\b\f\n\r\t\v";
      if (size_t at = kFrom.find(c); at != std::string_view::npos) {
        out += kTo[at];
      } else if (c == '\n') {
        continue;
      } else if (c >= '0' && c <= '7') {
        uint32_t value = 0;
        size_t n = 0;
        for (; n < 3 && i + n < s.size() && s[i + n] >= '0' && s[i + n] <= '7'; ++n)
          value = value * 8 + static_cast<uint32_t>(s[i + n] - '0');
        i += n - 1;
        unicode::append_char(out, value);
      } else if (c == 'x' || c == 'u' || c == 'U') {
        size_t n = c == 'x' ? 2 : c == 'u' ? 4 : 8;
        uint32_t value = 0;
        std::string_view digits = s.substr(i + 1, n);
        auto read = std::from_chars(digits.data(), digits.data() + digits.size(), value, 16);
        if (digits.size() < n || read.ptr != digits.data() + n)
          syntax_error(line_, fmt::format("'\\{}' is followed by fewer than {} hexadecimal digits", c, n));
        if (value > 0x10FFFF || (value >= 0xD800 && value < 0xE000))
          throw Failure{Code::kUnsupported,
                        fmt::format("the character '\\{}{}' is half of one, or none", c, digits), line_};
        unicode::append_char(out, value);
        i += n;
      } else if (c == 'N') {
        throw Failure{Code::kUnsupported, "'\\N{...}', a character by its name, is not supported", line_};
      } else {
        out += '\\';
        out += c;
      }
    }
    return out;
  }

  void operation(std::string& open) {
    static constexpr std::string_view kOperators[] = {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/",
                                                      "*",  "%",  "~",  "[",  "]",  "(",  ")", "{", "}",
                                                      ">",  "<",  "=",  ".",  ":",  "|",  ",", ";"};
    for (std::string_view op : kOperators) {
      if (!rest().starts_with(op)) continue;
      if (op == "(" || op == "[" || op == "{") {
        open += op == "(" ? ')' : op == "[" ? ']' : '}';
      } else if (op == ")" || op == "]" || op == "}") {
        if (open.empty()) syntax_error(line_, fmt::format("unexpected '{}'", op));
        if (open.back() != op[0])
          syntax_error(line_, fmt::format("unexpected '{}', expected '{}'", op, open.back()));
        open.pop_back();
      }
      add(TokenKind::kOperator, std::string(op));
      return advance(op.size());
    }
    size_t end = at_;
    unicode::next_char(source_, end);
    syntax_error(line_, fmt::format("unexpected '{}'", source_.substr(at_, end - at_)));
  }
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) {
  if (size_t valid = unicode::valid_utf8_prefix(source); valid != source.size())
    syntax_error(0, fmt::format("byte {} is not UTF-8", valid));
  return Lexer(normalized(source)).run();
}

}  // namespace ds::jinja
