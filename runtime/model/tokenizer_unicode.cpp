#include <utf8proc.h>

#include <algorithm>
#include <iterator>
#include <vector>

#include "runtime/model/tokenizer_tables_internal.h"
#include "runtime/model/tokenizer_unicode_internal.h"

namespace ds::unicode {
namespace {

template <typename Range, size_t n>
const Range* find_range(const Range (&table)[n], char32_t c) {
  auto it = std::upper_bound(std::begin(table), std::end(table), c,
                             [](char32_t value, const Range& r) { return value < r.first; });
  if (it == std::begin(table)) return nullptr;
  --it;
  return c <= it->last ? it : nullptr;
}

/// Length of the longest well-formed beginning of a character at `at`; `complete` when that is a character.
/// 0 for a byte that begins none.
size_t sequence_length(std::string_view s, size_t at, bool& complete) {
  auto byte = [&](size_t i) { return static_cast<unsigned char>(s[i]); };
  unsigned char lead = byte(at);
  complete = true;
  if (lead < 0x80) return 1;
  complete = false;
  if (lead < 0xC2 || lead > 0xF4) return 0;
  size_t want = char_size(lead), have = 1;
  for (; have < want && at + have < s.size(); ++have) {
    unsigned char low = 0x80, high = 0xBF, b = byte(at + have);
    if (have == 1) {
      if (lead == 0xE0) low = 0xA0;
      if (lead == 0xED) high = 0x9F;
      if (lead == 0xF0) low = 0x90;
      if (lead == 0xF4) high = 0x8F;
    }
    if (b < low || b > high) return have;
  }
  complete = have == want;
  return have;
}

char major_category(char32_t c, char& minor) {
  if (const Addition* a = find_range(kAdditions, c)) {
    minor = a->minor;
    return a->major;
  }
  const char* name = utf8proc_category_string(static_cast<utf8proc_int32_t>(c));
  minor = name[1];
  return name[0];
}

}  // namespace

size_t valid_utf8_prefix(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    if (static_cast<unsigned char>(text[at]) < 0x80) {
      ++at;
      continue;
    }
    bool complete = false;
    size_t n = sequence_length(text, at, complete);
    if (!complete) return at;
    at += n;
  }
  return at;
}

char32_t next_char(std::string_view text, size_t& at) {
  auto byte = [&](size_t i) { return static_cast<char32_t>(static_cast<unsigned char>(text[i])); };
  char32_t lead = byte(at);
  size_t n = char_size(static_cast<unsigned char>(lead));
  char32_t c = n == 1 ? lead : lead & (0x7Fu >> n);
  for (size_t i = 1; i < n; ++i) c = c << 6 | (byte(at + i) & 0x3F);
  at += n;
  return c;
}

void append_char(std::string& out, char32_t c) {
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += static_cast<char>(0xC0 | c >> 6);
    out += static_cast<char>(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    out += static_cast<char>(0xE0 | c >> 12);
    out += static_cast<char>(0x80 | (c >> 6 & 0x3F));
    out += static_cast<char>(0x80 | (c & 0x3F));
  } else {
    out += static_cast<char>(0xF0 | c >> 18);
    out += static_cast<char>(0x80 | (c >> 12 & 0x3F));
    out += static_cast<char>(0x80 | (c >> 6 & 0x3F));
    out += static_cast<char>(0x80 | (c & 0x3F));
  }
}

char32_t only_char(std::string_view text) {
  if (text.empty() || valid_utf8_prefix(text) != text.size()) return 0;
  size_t at = 0;
  char32_t c = next_char(text, at);
  return at == text.size() ? c : 0;
}

size_t append_lossy(std::string& out, std::string_view bytes, bool final) {
  size_t at = 0;
  while (at < bytes.size()) {
    bool complete = false;
    size_t n = sequence_length(bytes, at, complete);
    if (complete) {
      out.append(bytes, at, n);
    } else {
      if (n > 0 && at + n == bytes.size() && !final) return at;
      out += "\xEF\xBF\xBD";
    }
    at += std::max<size_t>(n, 1);
  }
  return at;
}

bool is_white_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

bool is_numeric(char32_t c) {
  char minor = 0;
  return major_category(c, minor) == 'N' || find_range(kNewerNumeric, c) != nullptr;
}

bool is_word(char32_t c) {
  if (c == 0x200C || c == 0x200D) return true;  // Join_Control
  if ((c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) || (c >= 0x1F150 && c <= 0x1F169) ||
      (c >= 0x1F170 && c <= 0x1F189)) {
    return true;  // symbols that are Alphabetic
  }
  char minor = 0;
  char major = major_category(c, minor);
  return major == 'L' || major == 'M' || (major == 'N' && (minor == 'd' || minor == 'l')) ||
         (major == 'P' && minor == 'c');
}

bool normalize(std::string& text, Form form) {
  bool compose = form == Form::kNfc || form == Form::kNfkc;
  bool compat = form == Form::kNfkc || form == Form::kNfkd;
  // ASCII stays as it is in every form, and everything below U+0300 does in NFC.
  bool same = std::all_of(text.begin(), text.end(), [&](char c) {
    auto b = static_cast<unsigned char>(c);
    return b < 0x80 || (form == Form::kNfc && b < 0xCC);
  });
  if (same) return true;

  std::string out;
  out.reserve(text.size() + text.size() / 8);
  std::vector<utf8proc_int32_t> run;  // characters up to one that neither moves nor composes
  auto options = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | (compat ? UTF8PROC_COMPAT : 0) |
                                                (compose ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE));
  auto flush = [&] {
    // Canonical ordering by a stable sort of each run of marks; utf8proc's own is quadratic in long ones.
    auto class_of = [](utf8proc_int32_t c) { return utf8proc_get_property(c)->combining_class; };
    for (size_t i = 0; i < run.size();) {
      size_t j = i;
      while (j < run.size() && class_of(run[j]) != 0) ++j;
      if (j - i > 1) {
        std::stable_sort(run.begin() + static_cast<ptrdiff_t>(i), run.begin() + static_cast<ptrdiff_t>(j),
                         [&](auto a, auto b) { return class_of(a) < class_of(b); });
      }
      i = std::max(j, i + 1);
    }
    auto n = static_cast<utf8proc_ssize_t>(run.size());
    if (compose && n > 0) n = utf8proc_normalize_utf32(run.data(), n, options);
    for (utf8proc_ssize_t i = 0; i < n; ++i)
      append_char(out, static_cast<char32_t>(run[static_cast<size_t>(i)]));
    run.clear();
  };
  for (size_t at = 0; at < text.size();) {
    char32_t c = next_char(text, at);
    if (find_range(kPlainInNormalization, c) != nullptr) {
      flush();
      append_char(out, c);
      continue;
    }
    utf8proc_int32_t parts[32];
    int boundary = 0;
    utf8proc_ssize_t n =
        utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c), parts, 32, options, &boundary);
    if (n < 0 || n > 32) return false;
    // A line's end can neither compose nor be reordered: keep runs short.
    run.insert(run.end(), parts, parts + n);
    if (c == '\n') flush();
  }
  flush();
  text = std::move(out);
  return true;
}

}  // namespace ds::unicode
