// A CUDA driver with no device, under whose name cuDNN compiles its kernels: they are "loaded", and nothing runs.
// For machines without a driver, where cuDNN would refuse to plan even for a device that is only described.
#include <stddef.h>

enum { kSuccess = 0, kNoDevice = 100, kNotSupported = 801 };

int cuDriverGetVersion(int* version) { return *version = 13000, kSuccess; }
int cuGetErrorString(int code, const char** text) { return (void)code, *text = "no driver", kSuccess; }
int cuGetErrorName(int code, const char** text) { return (void)code, *text = "CUDA_ERROR_NO_DRIVER", kSuccess; }
int cuDeviceGetCount(int* count) { return *count = 0, kSuccess; }

static char module, kernel;
int cuLibraryLoadData(void** loaded) { return *loaded = &module, kSuccess; }
int cuLibraryUnload(void* loaded) { return (void)loaded, kSuccess; }
int cuLibraryGetKernel(void** found) { return *found = &kernel, kSuccess; }

#define NO_DEVICE(name) \
  int name(void) { return kNoDevice; }
NO_DEVICE(cuInit)
NO_DEVICE(cuDeviceGet)
NO_DEVICE(cuDeviceGetAttribute)
NO_DEVICE(cuDevicePrimaryCtxRetain)
NO_DEVICE(cuDevicePrimaryCtxReset)
NO_DEVICE(cuDevicePrimaryCtxRelease)
NO_DEVICE(cuCtxGetCurrent)
NO_DEVICE(cuCtxGetDevice)
NO_DEVICE(cuCtxGetLimit)
NO_DEVICE(cuCtxPushCurrent)
NO_DEVICE(cuCtxPopCurrent)
NO_DEVICE(cuStreamGetCtx)
NO_DEVICE(cuStreamSynchronize)
NO_DEVICE(cuMemcpyDtoH_v2)
NO_DEVICE(cuTensorMapEncodeTiled)
NO_DEVICE(cuLaunchKernel)
NO_DEVICE(cuLaunchKernelEx)
NO_DEVICE(cuLaunchCooperativeKernel)
NO_DEVICE(cuOccupancyMaxPotentialClusterSize)
NO_DEVICE(cuOccupancyMaxActiveBlocksPerMultiprocessor)

#define NOT_SUPPORTED(name) \
  int name(void) { return kNotSupported; }
NOT_SUPPORTED(cuGetExportTable)
NOT_SUPPORTED(cuLinkCreate)
NOT_SUPPORTED(cuLinkCreate_v2)
NOT_SUPPORTED(cuLinkAddData)
NOT_SUPPORTED(cuLinkAddData_v2)
NOT_SUPPORTED(cuLinkAddFile_v2)
NOT_SUPPORTED(cuLinkComplete)
NOT_SUPPORTED(cuLinkDestroy)
NOT_SUPPORTED(cuModuleLoadData)
NOT_SUPPORTED(cuModuleLoadDataEx)
NOT_SUPPORTED(cuModuleLoadFatBinary)
NOT_SUPPORTED(cuModuleGetFunction)
NOT_SUPPORTED(cuModuleGetGlobal_v2)
NOT_SUPPORTED(cuModuleUnload)
NOT_SUPPORTED(cuLibraryLoadFromFile)

// Of functions: how much they may use. cuDNN sets it before it runs them, and it runs none.
#define NOTHING_TO_DO(name) \
  int name(void) { return kSuccess; }
NOTHING_TO_DO(cuKernelSetAttribute)
NOTHING_TO_DO(cuKernelGetAttribute)
NOTHING_TO_DO(cuFuncSetAttribute)
NOTHING_TO_DO(cuFuncGetAttribute)
