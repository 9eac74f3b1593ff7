// The simulated device, for tests: what it is like and what is left on it. See README.md for what it shows
// and what it does not.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace ds::cuda::simulated {

/// What $DROIDSPEAK_SIMULATED_CUDA says, as "devices=1,memory=1GiB,...".
struct Config {
  int devices = 1;
  int64_t memory = int64_t{4} << 30;  // B, KiB, MiB, GiB
  int driver = CUDART_VERSION;        // older than the toolkit: every call is refused
  int sm = 90;
  int multiprocessors = 4;
  uint64_t seed = 1;      // of the order of threads, blocks and streams
  std::string fail = {};  // "cudaMalloc:3": the third call of it from now on loses the device, as an illegal
                          // address does. "kernel:3": the third kernel to run does, after it was launched.
  int64_t fail_at = 0;
  std::string refuse = {};  // "cuMemCreate:3": the third call of it finds no memory, and nothing is lost
  int64_t refuse_at = 0;
  size_t granule = size_t{2} << 20;  // of virtual memory; 0: the device has none
};

/// A new device as `text` says ("": as the environment does), once all streams have ended; what was left on
/// the old one is gone. Ends the program on a text that it does not know.
void reset(std::string_view text = "");

/// What has been made and not yet destroyed.
struct Live {
  int64_t device_bytes = 0, host_bytes = 0;
  int ranges = 0;  // of addresses
  int allocations = 0, streams = 0, events = 0, graphs = 0, handles = 0;
};
Live live();

/// How often a function of the runtime has been called since reset(); "kernel": kernels that have run.
int64_t calls(std::string_view function);

/// Functions that may wait for the device, and first launches of a kernel ("load of ..."), that were called
/// since reset() while a stream was given a wait for a value in memory that nobody had written: on a device
/// such a call could wait for ever.
std::vector<std::string> calls_while_waiting();

/// Whether all of it lies in one allocation of device memory; or of memory that devices can read at all.
bool in_device_memory(const void* data, size_t bytes);
bool in_readable_memory(const void* data, size_t bytes);

/// Puts work that a library does on the device into a stream (or into the graph that it is capturing).
cudaError_t enqueue(cudaStream_t stream, std::function<void()> work);
/// A kernel is launched, of a library's too: the first time it is loaded, which may wait for the device.
void load_kernel(const void* kernel, const std::string& name);
/// For a library's calls: counts the call, and says whether it is refused.
cudaError_t enter(const char* function);

}  // namespace ds::cuda::simulated
