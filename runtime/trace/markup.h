// What every page and picture shares: escaping, a page's frame and colours that can be told apart on light
// and on dark paper. Pages stand by themselves (no scripts, fonts or files from elsewhere), can be read at
// 390 pixels, and are well-formed XML too, so that any XML parser can check them.
#pragma once

#include <string>
#include <string_view>

namespace ds {

/// For XML and HTML, in text and in attributes. Control characters become spaces; `keep_lines`: but for line
/// ends.
std::string escape_markup(std::string_view text, bool keep_lines = false);

/// "<td>content</td>": the content is markup already.
std::string html_cell(std::string_view tag, std::string_view content);

enum class Theme : uint8_t { kLight, kLightAndDark };
/// From the doctype to the title as a heading. `style`: more CSS. The frame's own classes:
///   .s              a table or picture that may be wider than the screen
///   .page, .phone   shown on wide and on narrow screens only
///   .n              said in passing
///   .c0 to .c9      the colours of a picture's series, as the current colour
std::string html_begin(std::string_view title, Theme theme, std::string_view style = "");
inline constexpr std::string_view kHtmlEnd = "</body></html>\n";

inline constexpr size_t kColours = 10;
/// "c3": the class of a picture's i-th series.
std::string colour_class(size_t i);

}  // namespace ds
