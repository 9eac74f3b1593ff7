// What benches share that are programs of their own: their arguments, and an end with a word where something
// fails.
#pragma once

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "support/status.h"

namespace ds {

[[noreturn]] inline void fail(const std::string& what) {
  std::fprintf(stderr, "%s: %s\n", program_invocation_short_name, what.c_str());
  std::exit(1);
}

template <typename T>
T take(Result<T> result) {
  if (!result.ok()) fail(result.status().message());
  return std::move(result).value();
}

/// What stands behind the program's name; ends with the usage where it is too little or too much.
class Arguments {
 public:
  Arguments(int argc, char** argv, int least, int most, const char* usage) : argc_(argc), argv_(argv) {
    if (argc - 1 >= least && argc - 1 <= most) return;
    std::fprintf(stderr, "usage: %s %s\n", program_invocation_short_name, usage);
    std::exit(2);
  }
  const char* operator[](int i) const { return argv_[i + 1]; }
  /// A number from `least` on; `other` where there is no such argument.
  int64_t number(int i, int64_t other, int64_t least = 1) const {
    if (i + 1 >= argc_) return other;
    const std::string_view text = argv_[i + 1];
    int64_t value = 0;
    const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (failure != std::errc() || end != text.data() + text.size() || value < least)
      fail(fmt::format("'{}' is no whole number from {} on", text, least));
    return value;
  }

 private:
  int argc_;
  char** argv_;
};

inline double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace ds
