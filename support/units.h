// What people type and read: rates, sizes, times, layer ranges.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "support/status.h"

namespace ds {

/// "20MB/s", "1.5 GB/s" (bytes, powers of ten), "8Gb/s", "80Mb/s" (bits). Never a bare number. Result: bytes
/// per second, > 0 and <= 1e15.
Result<double> parse_rate(std::string_view text);
/// "20 MB/s"
std::string format_rate(double bytes_per_second);

/// "1%", "0.5 %": never a bare number. Result: the share, in (0, 1].
Result<double> parse_percent(std::string_view text);
/// "1 %", "0.333 %"
std::string format_percent(double share);

/// "500MB", "20GiB", "1.5 TiB", "4096B": never a bare number. Result: bytes, >= 0.
Result<int64_t> parse_bytes(std::string_view text);
/// "90s", "10min", "2h", "1.5 h", "1d": never a bare number. Result: seconds, > 0 and <= 1e9.
Result<double> parse_duration(std::string_view text);

/// "1.25 MiB"
std::string format_bytes(int64_t bytes);
/// "412 ms", "3.3 us"
std::string format_ns(int64_t ns);

/// Layers A up to and including B, counted from 0.
struct LayerRange {
  int64_t first = 0;
  int64_t last = -1;  // first > last: empty
  int64_t size() const { return last >= first ? last - first + 1 : 0; }
  bool empty() const { return size() == 0; }
  bool operator==(const LayerRange&) const = default;
};

/// "3-6", "3" (= 3-3), "none"; checked against `layers`.
Result<LayerRange> parse_layers(std::string_view text, int64_t layers);
/// "3-6", "none"
std::string format_layers(const LayerRange& range);

/// Groups thousands: 12345678 -> "12,345,678".
std::string format_count(int64_t value);

/// "256,1024,4096": integers in [low, high], strictly increasing.
Result<std::vector<int64_t>> parse_int_list(std::string_view text, int64_t low, int64_t high);

}  // namespace ds
