// Files of JSON lines: one object per line. Blank lines, CRLF and a byte order mark are fine.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "support/json.h"

namespace ds {

inline constexpr int64_t kMostLineBytes = int64_t{256} << 20;

/// Calls `line` for each line that is not blank, with an object that knows its place ("notes.jsonl:3") and
/// the line's number, from 1; one line is held at a time. Returns the file's SHA-256. Errors: those of
/// `line`; kNotFound, kIo; kCorrupt for a file without lines, for what is not UTF-8 or not an object;
/// kInvalidArgument for a line longer than kMostLineBytes. `what` says what an object should have: "the field
/// pred".
Result<std::string> read_json_lines(const std::string& path, std::string_view what,
                                    const std::function<Status(const JsonObject&, int64_t)>& line);

/// The lines of a text without their ends; the last one may lack its end. An empty text has none.
Status for_each_line(std::string_view text, const std::function<Status(std::string_view, int64_t)>& line);

}  // namespace ds
