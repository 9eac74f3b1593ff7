#include <utf8proc.h>

#include <algorithm>

#include "profiler/python_text_internal.h"
#include "runtime/model/tokenizer_unicode_internal.h"

namespace ds::python {
namespace {

utf8proc_category_t category(char32_t c) { return utf8proc_category(static_cast<utf8proc_int32_t>(c)); }

/// Unicode's Cased, for characters that are not ignorable: letters with case, and what else is
/// Other_Lowercase or Other_Uppercase (ordinals, Roman numerals, letters in circles and squares).
bool is_cased(char32_t c) {
  switch (category(c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
      return true;
    default:
      return c == 0xAA || c == 0xBA || (c >= 0x2160 && c <= 0x217F) || (c >= 0x24B6 && c <= 0x24E9) ||
             (c >= 0x1F130 && c <= 0x1F149) || (c >= 0x1F150 && c <= 0x1F169) ||
             (c >= 0x1F170 && c <= 0x1F189);
  }
}

/// Unicode's Case_Ignorable: marks, formats, modifiers, and what breaks no word between letters.
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

/// A capital sigma at `at` ends a word: a cased character before it, none after it.
bool is_final_sigma(std::u32string_view text, size_t at) {
  size_t before = at;
  while (before > 0 && is_case_ignorable(text[before - 1])) --before;
  if (before == 0 || !is_cased(text[before - 1])) return false;
  size_t after = at + 1;
  while (after < text.size() && is_case_ignorable(text[after])) ++after;
  return after == text.size() || !is_cased(text[after]);
}

}  // namespace

std::u32string decode(std::string_view bytes) {
  std::string text;
  unicode::append_lossy(text, bytes, true);
  std::u32string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) out += unicode::next_char(text, at);
  return out;
}

bool is_space(char32_t c) {
  // White_Space, and the four separators of ASCII, which Unicode's bidirectional classes call spaces.
  return unicode::is_white_space(c) || (c >= 0x1C && c <= 0x1F);
}

bool is_word(char32_t c) {
  if (c < 0x80) return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
  char major = utf8proc_category_string(static_cast<utf8proc_int32_t>(c))[0];
  return major == 'L' || major == 'N';
}

bool is_digit(char32_t c) { return category(c) == UTF8PROC_CATEGORY_ND; }

std::u32string lower(std::u32string_view text) {
  std::u32string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    char32_t c = text[i];
    if (c == 0x03A3) {
      out += is_final_sigma(text, i) ? char32_t{0x03C2} : char32_t{0x03C3};
    } else if (c == 0x0130) {
      out += U"i\u0307";
    } else {
      out += static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c)));
    }
  }
  return out;
}

std::vector<std::u32string_view> split(std::u32string_view text) {
  std::vector<std::u32string_view> words;
  for (size_t at = 0; at < text.size();) {
    size_t begin = at;
    while (at < text.size() && !is_space(text[at])) ++at;
    if (at > begin) words.push_back(text.substr(begin, at - begin));
    while (at < text.size() && is_space(text[at])) ++at;
  }
  return words;
}

std::u32string_view strip(std::u32string_view text) {
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

std::vector<std::u32string_view> split(std::u32string_view text, char32_t separator) {
  std::vector<std::u32string_view> pieces;
  for (;;) {
    size_t end = text.find(separator);
    pieces.push_back(text.substr(0, end));
    if (end == std::u32string_view::npos) return pieces;
    text.remove_prefix(end + 1);
  }
}

}  // namespace ds::python
