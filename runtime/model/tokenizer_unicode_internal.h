// What the tokenizer needs to know of Unicode: UTF-8, character classes and normalization forms, each as the
// package `tokenizers` has it (its Unicode differs from our libraries': tokenizer_tables_internal.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace ds::unicode {

/// Offset of the first byte that is not UTF-8 (surrogates, overlong forms and values above U+10FFFF are not);
/// text.size() where all of it is.
size_t valid_utf8_prefix(std::string_view text);

/// Decodes the character at `at` of valid UTF-8 and moves `at` past it.
char32_t next_char(std::string_view text, size_t& at);
void append_char(std::string& out, char32_t c);
/// Bytes of the character that begins with `lead` in valid UTF-8.
constexpr size_t char_size(unsigned char lead) {
  return lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}
/// The one character of `text`; 0 when it has none or several.
char32_t only_char(std::string_view text);

/// Appends bytes as text, every maximal broken sequence as one U+FFFD. Unless `final`, an unfinished last
/// character is left. Returns how many bytes were taken.
size_t append_lossy(std::string& out, std::string_view bytes, bool final);

bool is_white_space(char32_t c);  // White_Space
bool is_numeric(char32_t c);      // general category N
bool is_word(char32_t c);         // \w of Rust's regex: Alphabetic, M, Nd, Pc, Join_Control

enum class Form : uint8_t { kNfc, kNfd, kNfkc, kNfkd };
/// Normalizes valid UTF-8; false where memory ran out.
bool normalize(std::string& text, Form form);

}  // namespace ds::unicode
