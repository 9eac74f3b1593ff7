#include <utf8proc.h>

#include <algorithm>

#include "runtime/model/jinja/casing_internal.h"
#include "runtime/model/jinja/text_internal.h"
#include "runtime/model/tokenizer_unicode_internal.h"

namespace ds::jinja::text {
namespace {

utf8proc_category_t category(char32_t c) { return utf8proc_category(static_cast<utf8proc_int32_t>(c)); }

const SpecialCase* special_case(char32_t c) {
  if (c < 0xDF) return nullptr;
  const auto* end = std::end(kSpecialCases);
  const auto* it = std::lower_bound(std::begin(kSpecialCases), end, c,
                                    [](const SpecialCase& s, char32_t value) { return s.c < value; });
  return it != end && it->c == c ? it : nullptr;
}

/// Characters that a word may have between its letters (Unicode's Case_Ignorable).
bool is_case_ignorable(char32_t c) {
  switch (category(c)) {
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_SK:
      return true;
    default: {
      constexpr std::u32string_view kWithinWords =
          U"\u0027\u002E\u003A\u00B7\u0387\u055F\u05F4\u2018\u2019\u2024\u2027\uFE13\uFE52\uFE55\uFF07\uFF0E"
          U"\uFF1A";
      return kWithinWords.find(c) != std::u32string_view::npos;
    }
  }
}

void append_upper(std::u32string& out, char32_t c) {
  if (const SpecialCase* s = special_case(c)) {
    out += s->upper;
  } else {
    out += static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(c)));
  }
}

void append_title(std::u32string& out, char32_t c) {
  if (const SpecialCase* s = special_case(c)) {
    out += s->title;
  } else {
    out += static_cast<char32_t>(utf8proc_totitle(static_cast<utf8proc_int32_t>(c)));
  }
}

}  // namespace

void append_lower(std::u32string& out, std::u32string_view s, size_t i) {
  char32_t c = s[i];
  if (c == 0x03A3) {  // a sigma that ends a word has another form
    size_t before = i;
    while (before > 0 && is_case_ignorable(s[before - 1])) --before;
    size_t after = i + 1;
    while (after < s.size() && is_case_ignorable(s[after])) ++after;
    bool final = before > 0 && is_cased(s[before - 1]) && (after == s.size() || !is_cased(s[after]));
    out += final ? char32_t{0x03C2} : char32_t{0x03C3};
  } else if (c == 0x0130) {
    out += U"i\u0307";
  } else {
    out += static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c)));
  }
}

bool is_ascii(std::string_view s) {
  return std::all_of(s.begin(), s.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

bool is_space(char32_t c) {
  // White_Space, and the four separators of ASCII, which Unicode's bidirectional classes call spaces.
  return unicode::is_white_space(c) || (c >= 0x1C && c <= 0x1F);
}

bool is_printable(char32_t c) {
  if (c == ' ') return true;
  switch (category(c)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
      return false;
    default:
      return true;
  }
}

bool is_lower_case(char32_t c) {
  return category(c) == UTF8PROC_CATEGORY_LL || c == 0xAA || c == 0xBA || (c >= 0x2170 && c <= 0x217F) ||
         (c >= 0x24D0 && c <= 0x24E9);
}

bool is_upper_case(char32_t c) {
  return category(c) == UTF8PROC_CATEGORY_LU || (c >= 0x2160 && c <= 0x216F) ||
         (c >= 0x24B6 && c <= 0x24CF) || (c >= 0x1F130 && c <= 0x1F149) || (c >= 0x1F150 && c <= 0x1F169) ||
         (c >= 0x1F170 && c <= 0x1F189);
}

bool is_cased(char32_t c) {
  return is_lower_case(c) || is_upper_case(c) || category(c) == UTF8PROC_CATEGORY_LT;
}

bool is_digit(char32_t c) { return category(c) == UTF8PROC_CATEGORY_ND; }

bool is_alpha(char32_t c) { return utf8proc_category_string(static_cast<utf8proc_int32_t>(c))[0] == 'L'; }

std::u32string decode(std::string_view s) {
  std::u32string out;
  out.reserve(s.size());
  for (size_t at = 0; at < s.size();) out += unicode::next_char(s, at);
  return out;
}

std::string encode(std::u32string_view s) {
  std::string out;
  out.reserve(s.size());
  for (char32_t c : s) unicode::append_char(out, c);
  return out;
}

int64_t count(std::string_view s) {
  return std::count_if(s.begin(), s.end(),
                       [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

std::string lower(std::string_view s) {
  std::u32string from = decode(s), out;
  for (size_t i = 0; i < from.size(); ++i) append_lower(out, from, i);
  return encode(out);
}

std::string upper(std::string_view s) {
  std::u32string out;
  for (char32_t c : decode(s)) append_upper(out, c);
  return encode(out);
}

std::string capitalize(std::string_view s) {
  std::u32string from = decode(s), out;
  for (size_t i = 0; i < from.size(); ++i) i == 0 ? append_title(out, from[0]) : append_lower(out, from, i);
  return encode(out);
}

std::string title(std::string_view s) {
  std::u32string from = decode(s), out;
  bool in_word = false;
  for (size_t i = 0; i < from.size(); ++i) {
    in_word ? append_lower(out, from, i) : append_title(out, from[i]);
    in_word = is_cased(from[i]);
  }
  return encode(out);
}

std::string_view strip(std::string_view s, const std::optional<std::string>& chars, bool left, bool right) {
  std::u32string set = chars ? decode(*chars) : std::u32string();
  auto stripped = [&](char32_t c) { return chars ? set.find(c) != std::u32string::npos : is_space(c); };
  if (left) {
    size_t at = 0;
    for (size_t next = 0; next < s.size(); at = next)
      if (!stripped(unicode::next_char(s, next))) break;
    s.remove_prefix(std::min(at, s.size()));
  }
  while (right && !s.empty()) {
    size_t begin = s.size() - 1;
    while ((static_cast<unsigned char>(s[begin]) & 0xC0) == 0x80) --begin;
    size_t at = begin;
    if (!stripped(unicode::next_char(s, at))) break;
    s = s.substr(0, begin);
  }
  return s;
}

std::vector<std::string_view> split_space(std::string_view s, int64_t limit, bool from_right) {
  std::vector<std::string_view> words;
  while (true) {
    s = strip(s, std::nullopt, !from_right, from_right);
    if (s.empty()) break;
    if (limit >= 0 && static_cast<int64_t>(words.size()) == limit) {
      words.push_back(s);  // with the white space at its other end
      break;
    }
    if (from_right) {
      size_t begin = s.size();
      while (begin > 0) {
        size_t lead = begin - 1;
        while ((static_cast<unsigned char>(s[lead]) & 0xC0) == 0x80) --lead;
        size_t at = lead;
        if (is_space(unicode::next_char(s, at))) break;
        begin = lead;
      }
      words.push_back(s.substr(begin));
      s = s.substr(0, begin);
    } else {
      size_t end = 0;
      for (size_t next = 0; next < s.size(); end = next)
        if (is_space(unicode::next_char(s, next))) break;
      words.push_back(s.substr(0, end));
      s.remove_prefix(end);
    }
  }
  if (from_right) std::reverse(words.begin(), words.end());
  return words;
}

std::vector<std::string_view> split(std::string_view s, std::string_view separator, int64_t limit,
                                    bool from_right) {
  std::vector<std::string_view> pieces;
  while (limit < 0 || static_cast<int64_t>(pieces.size()) < limit) {
    size_t at = from_right ? s.rfind(separator) : s.find(separator);
    if (at == std::string_view::npos) break;
    if (from_right) {
      pieces.push_back(s.substr(at + separator.size()));
      s = s.substr(0, at);
    } else {
      pieces.push_back(s.substr(0, at));
      s.remove_prefix(at + separator.size());
    }
  }
  pieces.push_back(s);
  if (from_right) std::reverse(pieces.begin(), pieces.end());
  return pieces;
}

std::vector<std::string_view> split_lines(std::string_view s, bool keep_ends) {
  std::vector<std::string_view> lines;
  size_t begin = 0;
  for (size_t at = 0; at < s.size();) {
    size_t end = at;
    char32_t c = unicode::next_char(s, at);
    bool ends =
        (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 || c == 0x2029;
    if (!ends) continue;
    if (c == '\r' && at < s.size() && s[at] == '\n') ++at;
    lines.push_back(s.substr(begin, (keep_ends ? at : end) - begin));
    begin = at;
  }
  if (begin < s.size()) lines.push_back(s.substr(begin));
  return lines;
}

std::string replace(std::string_view s, std::string_view from, std::string_view to, int64_t limit) {
  std::string out;
  size_t at = 0;
  for (int64_t done = 0; limit < 0 || done < limit; ++done) {
    if (from.empty()) {  // between all characters, and at both ends
      out += to;
      if (at == s.size()) return out;
      size_t size = unicode::char_size(static_cast<unsigned char>(s[at]));
      out += s.substr(at, size);
      at += size;
      continue;
    }
    size_t found = s.find(from, at);
    if (found == std::string_view::npos) break;
    out += s.substr(at, found - at);
    out += to;
    at = found + from.size();
  }
  out += s.substr(at);
  return out;
}

std::string escape_html(std::string_view s) {
  std::string out;
  for (char c : s) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '\'':
        out += "&#39;";
        break;
      case '"':
        out += "&#34;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

}  // namespace ds::jinja::text
