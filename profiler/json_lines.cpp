#include "profiler/json_lines.h"

#include "runtime/model/tokenizer_unicode_internal.h"
#include "support/file.h"
#include "support/hash.h"

namespace ds {
namespace {

constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

Status check_line(std::string_view text, const std::string& where, std::string_view what) {
  if (static_cast<int64_t>(text.size()) > kMostLineBytes) {
    return error(
        Code::kInvalidArgument,
        "{}: the line has {} bytes, expected at most {}; is this a file of JSON lines, each with {}?", where,
        text.size(), kMostLineBytes, what);
  }
  if (size_t at = unicode::valid_utf8_prefix(text); at < text.size()) {
    return error(
        Code::kCorrupt,
        "{}: byte {:#04x} at column {} is not UTF-8; expected JSON lines in UTF-8 (convert the file: "
        "iconv -f ENCODING -t UTF-8)",
        where, static_cast<unsigned char>(text[at]), at + 1);
  }
  return ok_status();
}

/// The parser's message without its line: it has seen one only.
Status not_json(const Status& status, std::string_view what) {
  std::string message = status.message();
  constexpr std::string_view kLine = "at line 1, column";
  if (size_t at = message.find(kLine); at != std::string::npos)
    message.replace(at, kLine.size(), "at column");
  return error(status.code(), "{}; expected one JSON object with {} on each line", message, what);
}

}  // namespace

Status for_each_line(std::string_view text, const std::function<Status(std::string_view, int64_t)>& line) {
  for (int64_t number = 1; !text.empty(); ++number) {
    size_t end = text.find('\n');
    std::string_view one = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    if (!one.empty() && one.back() == '\r') one.remove_suffix(1);
    DS_TRY(line(one, number));
  }
  return ok_status();
}

Result<std::string> read_json_lines(const std::string& path, std::string_view what,
                                    const std::function<Status(const JsonObject&, int64_t)>& line) {
  DS_ASSIGN(std::string file, read_text_file(path, INT64_MAX));
  std::string_view text = file;
  if (text.starts_with(kByteOrderMark)) text.remove_prefix(kByteOrderMark.size());
  bool any = false;
  DS_TRY(for_each_line(text, [&](std::string_view one, int64_t number) -> Status {
    if (one.find_first_not_of(" \t\r") == std::string_view::npos) return ok_status();
    any = true;
    std::string where = fmt::format("{}:{}", path, number);
    DS_TRY(check_line(one, where, what));
    Result<nlohmann::json> json = parse_json(one, where);
    if (!json.ok()) return not_json(json.status(), what);
    Result<JsonObject> object = JsonObject::make(*json, where);
    if (!object.ok()) return error(object.status().code(), "{} with {}", object.status().message(), what);
    return line(*object, number);
  }));
  if (!any) return error(Code::kCorrupt, "'{}' is empty; expected JSON lines, each with {}", path, what);
  return sha256_hex(file);
}

}  // namespace ds
