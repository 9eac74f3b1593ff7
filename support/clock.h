// The clock that all times of requests are on.
#pragma once

#include <sys/prctl.h>
#include <time.h>

#include <cerrno>
#include <chrono>
#include <cstdint>

namespace ds {

/// steady_clock nanoseconds.
inline int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

/// Until that time of now_ns(), and not much longer: the system lets a thread sleep some 50 us more than it
/// asks to, a quarter of a small transfer.
inline void sleep_until(int64_t ns) {
  [[maybe_unused]] static thread_local const int exact = prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL);
  timespec t{};
  t.tv_sec = static_cast<time_t>(ns / 1'000'000'000);
  t.tv_nsec = static_cast<long>(ns % 1'000'000'000);
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, nullptr) == EINTR) {
  }
}

}  // namespace ds
