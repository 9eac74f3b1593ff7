#include <algorithm>

#include "runtime/trace/describe.h"
#include "runtime/trace/table_internal.h"

namespace ds {

std::vector<size_t> column_widths(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths(rows[0].size(), 0);
  for (const auto& row : rows)
    for (size_t c = 0; row.size() > 1 && c < row.size(); ++c)
      widths[c] = std::max(widths[c], columns(row[c]));
  return widths;
}

std::string table_line(const std::vector<std::string>& row, const std::vector<size_t>& widths,
                       size_t numbers) {
  std::string line;
  for (size_t c = 0; c < row.size(); ++c) {
    const std::string pad(row.size() > 1 ? widths[c] - columns(row[c]) : 0, ' ');
    if (c > 0) line += "  ";
    line += c >= numbers ? pad + row[c] : row[c] + pad;
  }
  line.erase(line.find_last_not_of(' ') + 1);
  return line;
}

}  // namespace ds
