#include "support/units.h"

#include <charconv>
#include <cmath>

namespace ds {
namespace {

std::string_view trim(std::string_view s) {
  while (!s.empty() && s.front() == ' ') s.remove_prefix(1);
  while (!s.empty() && s.back() == ' ') s.remove_suffix(1);
  return s;
}

bool parse_int(std::string_view s, int64_t& out) {
  auto [end, ec] = std::from_chars(s.data(), s.data() + s.size(), out);
  return ec == std::errc() && end == s.data() + s.size() && !s.empty();
}

/// "1.5 h": 1.5 and "h"; no unit where there is no number.
std::pair<double, std::string_view> number_and_unit(std::string_view text) {
  const std::string_view s = trim(text);
  double number = 0;
  const auto [end, ec] = std::from_chars(s.data(), s.data() + s.size(), number);
  return {number, ec == std::errc() ? trim(s.substr(static_cast<size_t>(end - s.data()))) : ""};
}

}  // namespace

Result<double> parse_rate(std::string_view text) {
  auto bad = [&](std::string_view why) {
    return error(
        Code::kInvalidArgument,
        "bad rate '{}': {}; expected a number with a unit, bytes (kB/s, MB/s, GB/s) or bits (kb/s, Mb/s, "
        "Gb/s), for example 20MB/s or 8Gb/s",
        text, why);
  };
  std::string_view s = trim(text);
  double number = 0;
  auto [end, ec] = std::from_chars(s.data(), s.data() + s.size(), number);
  if (ec != std::errc()) return bad("no number");
  std::string_view unit = trim(s.substr(static_cast<size_t>(end - s.data())));
  if (unit.empty()) return bad("no unit");
  double scale = 0;
  struct Unit {
    std::string_view name;
    double bytes;
  };
  for (Unit u : {Unit{"B/s", 1}, Unit{"kB/s", 1e3}, Unit{"KB/s", 1e3}, Unit{"MB/s", 1e6}, Unit{"GB/s", 1e9},
                 Unit{"b/s", 1 / 8.0}, Unit{"kb/s", 1e3 / 8}, Unit{"Kb/s", 1e3 / 8}, Unit{"Mb/s", 1e6 / 8},
                 Unit{"Gb/s", 1e9 / 8}}) {
    if (unit == u.name) scale = u.bytes;
  }
  if (scale == 0) return bad("unknown unit");
  double rate = number * scale;
  if (!std::isfinite(rate) || rate <= 0) return bad("must be greater than zero");
  if (rate > 1e15) return bad("more than 1e15 bytes per second");
  return rate;
}

std::string format_rate(double r) {
  if (r >= 1e9) return fmt::format("{:.4g} GB/s", r / 1e9);
  if (r >= 1e6) return fmt::format("{:.4g} MB/s", r / 1e6);
  if (r >= 1e3) return fmt::format("{:.4g} kB/s", r / 1e3);
  return fmt::format("{:.4g} B/s", r);
}

Result<double> parse_percent(std::string_view text) {
  std::string_view s = trim(text);
  double number = 0;
  auto [end, ec] = std::from_chars(s.data(), s.data() + s.size(), number);
  std::string_view unit = ec == std::errc() ? trim(s.substr(static_cast<size_t>(end - s.data()))) : "";
  if (unit != "%" || !(number > 0 && number <= 100)) {
    return error(Code::kInvalidArgument,
                 "bad share '{}'; expected more than 0% and at most 100%, with the sign, for example 1%",
                 text);
  }
  return number / 100;
}

Result<int64_t> parse_bytes(std::string_view text) {
  constexpr std::pair<std::string_view, double> kUnits[] = {
      {"B", 1},        {"kB", 1e3},     {"MB", 1e6},     {"GB", 1e9},    {"TB", 1e12},
      {"KiB", 0x1p10}, {"MiB", 0x1p20}, {"GiB", 0x1p30}, {"TiB", 0x1p40}};
  const auto [number, unit] = number_and_unit(text);
  for (const auto& [name, bytes] : kUnits)
    if (unit == name && number >= 0 && number * bytes < 0x1p62) return static_cast<int64_t>(number * bytes);
  return error(Code::kInvalidArgument,
               "bad size '{}'; expected bytes with their unit, like 500MB, 20GiB or 1.5TiB", text);
}

Result<double> parse_duration(std::string_view text) {
  constexpr std::pair<std::string_view, double> kUnits[] = {{"s", 1}, {"min", 60}, {"h", 3600}, {"d", 86400}};
  const auto [number, unit] = number_and_unit(text);
  for (const auto& [name, seconds] : kUnits)
    if (unit == name && number > 0 && number * seconds <= 1e9) return number * seconds;
  return error(Code::kInvalidArgument,
               "bad time '{}'; expected one above 0 with its unit, s, min, h or d, for example 10min", text);
}

std::string format_percent(double share) { return fmt::format("{:.3g} %", 100 * share); }

std::string format_bytes(int64_t bytes) {
  double b = static_cast<double>(bytes);
  if (bytes >= (int64_t{1} << 30)) return fmt::format("{:.2f} GiB", b / (1 << 30));
  if (bytes >= (1 << 20)) return fmt::format("{:.2f} MiB", b / (1 << 20));
  if (bytes >= (1 << 10)) return fmt::format("{:.1f} KiB", b / (1 << 10));
  return fmt::format("{} B", bytes);
}

std::string format_ns(int64_t ns) {
  double t = static_cast<double>(ns);
  if (ns >= 10'000'000'000) return fmt::format("{:.2f} s", t / 1e9);
  if (ns >= 1'000'000) return fmt::format("{:.4g} ms", t / 1e6);
  if (ns >= 1'000) return fmt::format("{:.4g} us", t / 1e3);
  return fmt::format("{} ns", ns);
}

Result<LayerRange> parse_layers(std::string_view text, int64_t layers) {
  std::string_view s = trim(text);
  if (s == "none") return LayerRange{};
  auto dash = s.find('-');
  LayerRange range;
  bool good = dash == std::string_view::npos
                  ? parse_int(s, range.first) && ((range.last = range.first), true)
                  : parse_int(s.substr(0, dash), range.first) && parse_int(s.substr(dash + 1), range.last);
  if (!good) {
    return error(
        Code::kInvalidArgument,
        "bad layer range '{}'; expected A-B (layers A up to and including B, counted from 0), A, or none",
        text);
  }
  if (range.first < 0 || range.first > range.last || range.last >= layers) {
    return error(Code::kInvalidArgument,
                 "layer range '{}' does not lie in the model's layers 0-{} (A-B includes both ends, A <= B)",
                 text, layers - 1);
  }
  return range;
}

std::string format_layers(const LayerRange& r) {
  if (r.empty()) return "none";
  return r.first == r.last ? fmt::format("{}", r.first) : fmt::format("{}-{}", r.first, r.last);
}

std::string format_count(int64_t value) {
  auto magnitude = static_cast<uint64_t>(value);
  std::string digits = fmt::format("{}", value < 0 ? 0 - magnitude : magnitude);
  for (int64_t i = static_cast<int64_t>(digits.size()) - 3; i > 0; i -= 3)
    digits.insert(static_cast<size_t>(i), 1, ',');
  return value < 0 ? "-" + digits : digits;
}

Result<std::vector<int64_t>> parse_int_list(std::string_view text, int64_t low, int64_t high) {
  std::vector<int64_t> values;
  for (size_t begin = 0; begin <= text.size();) {
    size_t end = std::min(text.find(',', begin), text.size());
    int64_t value = 0;
    if (!parse_int(trim(text.substr(begin, end - begin)), value) || value < low || value > high ||
        (!values.empty() && value <= values.back())) {
      return error(Code::kInvalidArgument,
                   "bad list '{}': '{}' is not an integer in [{}, {}] greater than the one before it", text,
                   text.substr(begin, end - begin), low, high);
    }
    values.push_back(value);
    begin = end + 1;
  }
  return values;
}

}  // namespace ds
