// The backends there are, by name.
#pragma once

#include <memory>
#include <string>

#include "runtime/backends/backend.h"
#include "support/status.h"

namespace ds {

struct CpuOptions {
  int threads = 0;  // 0: all cores this process may use
};
/// The embedded default: oneDNN, bf16 or f32.
Result<std::unique_ptr<Backend>> make_cpu_backend(const CpuOptions& options = {});

struct CudaOptions {
  int device = 0;              // as CUDA numbers them
  std::string cache = {};      // folder that keeps the choice of matrix-product algorithms; empty: none
  bool graphs = true;          // steps of decoding as CUDA graphs
  bool check_kernels = false;  // wait for every kernel, so that a failure names it; slow
};
/// From the module droidspeak_cuda.so, which is opened now: beside this program or library, in the folder
/// droidspeak of the libraries' folder next to theirs (../lib, ../lib64, ../lib/x86_64-linux-gnu, or as this
/// build installs them), or where $DROIDSPEAK_CUDA_MODULE says. kUnavailable: no module, none of CUDA's
/// libraries, no driver or one that is too old, no such device; says which.
Result<std::unique_ptr<Backend>> make_cuda_backend(const CudaOptions& options = {});

struct BackendOptions {
  std::string name = "auto";  // cpu, cuda, or auto: a device that is there, else the CPU
  CpuOptions cpu;
  CudaOptions cuda;
};
/// kInvalidArgument: no such backend.
Result<std::unique_ptr<Backend>> make_backend(const BackendOptions& options);

/// What the shared module of a backend exports under the name droidspeak_backend_module.
struct BackendModule {
  const char* abi;  // kBackendModuleAbi of what it was built with
  Result<std::unique_ptr<Backend>> (*make)(const CudaOptions& options);
};
inline constexpr const char* kBackendModuleAbi = "droidspeak backend 2";

}  // namespace ds
