// How far a tool is and how long it will take: a bar on a terminal, a line now and then elsewhere.
#pragma once

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <optional>
#include <string>

namespace ds {

/// "0.6 seconds", "40 seconds", "4.2 minutes", "38 minutes", "6.5 hours", "3.1 days".
inline std::string format_duration(double seconds) {
  constexpr double kMinute = 60, kHour = 60 * kMinute, kDay = 24 * kHour;
  auto in = [&](double unit, const char* name) {
    const double value = seconds / unit;
    return fmt::format("{:.{}f} {}", value, value < 9.95 ? 1 : 0, name);
  };
  if (seconds < 1.5 * kMinute) return in(1, "seconds");
  if (seconds < 1.5 * kHour) return in(kMinute, "minutes");
  return seconds < 2 * kDay ? in(kHour, "hours") : in(kDay, "days");
}

/// How long work goes on, by what it has taken so far and what was expected before it started (0: nothing
/// was).
class Remaining {
 public:
  explicit Remaining(double expected_seconds = 0) : expected_(expected_seconds) {}
  /// None: nothing is known yet. `share`: of the work, what is done after `seconds`.
  std::optional<double> left(double share, double seconds) const {
    const double known = expected_ > 0 ? 0.1 : 0.02;  // of the work: enough to go by it alone
    const double by_share = share > 0 ? seconds * (1 - share) / share : 0;
    if (expected_ <= 0) return share >= known && seconds > 1 ? std::optional(by_share) : std::nullopt;
    const double weight = std::min(share / known, 1.0);
    return std::max(weight * by_share + (1 - weight) * (expected_ - seconds), 0.0);
  }

 private:
  double expected_;
};

/// When the next line is due: after half a minute, then later and later, every ten minutes at last.
class LineClock {
 public:
  bool due(double seconds) {
    if (seconds < next_) return false;
    next_ = seconds + std::clamp(seconds / 2, 30.0, 600.0);
    return true;
  }

 private:
  double next_ = 30;
};

/// On stderr: a bar on a terminal, drawn at most ten times a second and cleared at the end; elsewhere lines,
/// which stay.
class ProgressBar {
 public:
  explicit ProgressBar(std::string what, double expected_seconds = 0)
      : what_(std::move(what)), remaining_(expected_seconds), terminal_(isatty(STDERR_FILENO) != 0) {}
  ProgressBar(const ProgressBar&) = delete;
  ~ProgressBar() { finish(); }

  void update(int64_t done, int64_t total) {
    if (total <= 0) return;
    const auto now = std::chrono::steady_clock::now();
    const double share = static_cast<double>(done) / static_cast<double>(total),
                 seconds = std::chrono::duration<double>(now - start_).count();
    const std::optional<double> left = remaining_.left(share, seconds);
    if (!terminal_) {
      if (done < total && lines_.due(seconds))
        fmt::print(stderr, "{}: {:.0f}%{}\n", what_, share * 100,
                   left ? ", about " + format_duration(*left) + " left" : "");
      return;
    }
    if (drawn_ && now - last_ < std::chrono::milliseconds(100) && done < total) return;
    last_ = now;
    int filled = static_cast<int>(share * 30);
    fmt::print(stderr, "\r\033[K{} [{}{}] {:3.0f}%", what_, std::string(static_cast<size_t>(filled), '#'),
               std::string(static_cast<size_t>(30 - filled), '.'), share * 100);
    if (left) fmt::print(stderr, " {} left", format_duration(*left));
    std::fflush(stderr);
    drawn_ = true;
  }
  void finish() {
    if (drawn_) fmt::print(stderr, "\r\033[K");
    drawn_ = false;
  }

 private:
  std::string what_;
  Remaining remaining_;
  LineClock lines_;
  bool terminal_, drawn_ = false;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now(), last_;
};

}  // namespace ds
