// What the tools find in droidspeak_cuda.so.
#include "runtime/backends/backends.h"
#include "runtime/backends/cuda/backend_internal.h"

extern "C" const ds::BackendModule droidspeak_backend_module;
const ds::BackendModule droidspeak_backend_module = {ds::kBackendModuleAbi, ds::cuda::make_backend};
