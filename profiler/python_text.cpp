#include <utf8proc.h>

#include <algorithm>

#include "profiler/python_text_internal.h"
#include "runtime/model/jinja/text_internal.h"
#include "runtime/model/tokenizer_unicode_internal.h"

namespace ds::python {
namespace {

utf8proc_category_t category(char32_t c) { return utf8proc_category(static_cast<utf8proc_int32_t>(c)); }

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
  for (size_t i = 0; i < text.size(); ++i) jinja::text::append_lower(out, text, i);
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
