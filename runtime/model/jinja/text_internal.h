// Python's str, as far as templates use it: characters are code points, text is valid UTF-8.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace ds::jinja::text {

bool is_ascii(std::string_view s);
bool is_space(char32_t c);      // str.isspace
bool is_printable(char32_t c);  // str.isprintable
bool is_cased(char32_t c);
bool is_digit(char32_t c);  // str.isdigit, of decimal digits only
bool is_alpha(char32_t c);
bool is_lower_case(char32_t c);
bool is_upper_case(char32_t c);

std::u32string decode(std::string_view s);
std::string encode(std::u32string_view s);
int64_t count(std::string_view s);  // code points

/// Appends the lower case of s[i]: a sigma's depends on what stands around it, and U+0130 has two characters.
void append_lower(std::u32string& out, std::u32string_view s, size_t i);
std::string lower(std::string_view s);
std::string upper(std::string_view s);
std::string capitalize(std::string_view s);
std::string title(std::string_view s);  // str.title()

/// `chars`: what is stripped; none: white space.
std::string_view strip(std::string_view s, const std::optional<std::string>& chars, bool left, bool right);
/// str.split and rsplit; `limit` < 0: all.
std::vector<std::string_view> split_space(std::string_view s, int64_t limit, bool from_right);
std::vector<std::string_view> split(std::string_view s, std::string_view separator, int64_t limit,
                                    bool from_right);
std::vector<std::string_view> split_lines(std::string_view s, bool keep_ends);
std::string replace(std::string_view s, std::string_view from, std::string_view to, int64_t limit);
std::string escape_html(std::string_view s);

}  // namespace ds::jinja::text
