// A table as text, shared by a plan's listing and its explanation.
#pragma once

#include <string>
#include <vector>

namespace ds {

/// Characters of the widest cell of each column. Rows of one cell are headings and do not count.
std::vector<size_t> column_widths(const std::vector<std::vector<std::string>>& rows);
/// The cells of a row, two spaces apart; those from number `numbers` on stand to the right.
std::string table_line(const std::vector<std::string>& row, const std::vector<size_t>& widths,
                       size_t numbers);

}  // namespace ds
