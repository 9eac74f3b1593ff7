// Work that is divided among the cores of this process.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <functional>
#include <system_error>
#include <thread>
#include <vector>

namespace ds {

/// Runs task(0..count-1) on the cores this process has; each index once, in no particular order.
inline void parallel_for(size_t count, const std::function<void(size_t)>& task) {
  size_t workers = std::clamp<size_t>(std::thread::hardware_concurrency(), 1, 16);
  workers = std::min(workers, count);
  std::atomic<size_t> next{0};
  auto run = [&] {
    for (size_t i = next++; i < count; i = next++) task(i);
  };
  std::vector<std::thread> threads;
  try {
    for (size_t i = 1; i < workers; ++i) threads.emplace_back(run);
  } catch (const std::system_error&) {
    // No more threads to be had: those that run, and this one, do the work.
  }
  run();
  for (std::thread& t : threads) t.join();
}

}  // namespace ds
