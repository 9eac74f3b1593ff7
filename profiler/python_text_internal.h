// What Python's str does with text, which scores depend on: characters, not bytes; Unicode's white space,
// words and lower case.
//
// Limit: classes and lower case are those of utf8proc's Unicode (15 in Debian 12). Python 3.11 has Unicode 14
// and takes the characters that came with 15 for unassigned ones; on all others the two agree.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace ds::python {

/// bytes.decode("utf-8", errors="replace"): every maximal broken sequence is one U+FFFD.
std::u32string decode(std::string_view bytes);

bool is_space(char32_t c);  // str.isspace
bool is_word(char32_t c);   // \w of the module re
bool is_digit(char32_t c);  // \d of it

/// str.lower(), with the two mappings that depend on more than the character: a final sigma, and U+0130,
/// which becomes two characters.
std::u32string lower(std::u32string_view text);

/// str.split() and str.strip(); the results point into `text`.
std::vector<std::u32string_view> split(std::u32string_view text);
std::u32string_view strip(std::u32string_view text);

/// str.split(separator): at least one piece, pieces may be empty.
std::vector<std::u32string_view> split(std::u32string_view text, char32_t separator);

}  // namespace ds::python
