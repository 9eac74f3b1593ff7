#include "runtime/backends/backends.h"

#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <vector>

namespace ds {
namespace {

constexpr const char* kModule = "droidspeak_cuda.so";
constexpr const char* kModuleVariable = "DROIDSPEAK_CUDA_MODULE";
// From a program's folder to that of libraries, as this build installs them; then as others do: an installed
// tree may have been moved, and a program of somebody else's may lie in another one.
constexpr const char* kLibraryFolders[] = {DS_LIBDIR_FROM_BIN, "../lib", "../lib64",
                                           "../lib/" DS_LIBRARY_ARCHITECTURE};

/// Where the module may be, in the order of looking.
std::vector<std::string> module_places() {
  namespace fs = std::filesystem;
  std::vector<std::string> places;
  if (const char* given = std::getenv(kModuleVariable); given != nullptr && *given != '\0') return {given};
  std::error_code ignored;
  // The program, and the library or program that this function is in.
  std::vector<fs::path> from = {fs::read_symlink("/proc/self/exe", ignored)};
  Dl_info info{};
  if (dladdr(reinterpret_cast<void*>(&module_places), &info) != 0 && info.dli_fname != nullptr)
    from.push_back(fs::absolute(info.dli_fname, ignored));
  for (const fs::path& file : from) {
    if (file.empty()) continue;
    places.push_back(file.parent_path() / kModule);
    for (const char* folder : kLibraryFolders)
      places.push_back(file.parent_path() / folder / "droidspeak" / kModule);
  }
  return places;
}

/// Without the driver's library there is no device, and CUDA's own, which are large, need not be loaded.
bool may_have_device() {
  if (const char* given = std::getenv(kModuleVariable); given != nullptr && *given != '\0') return true;
  void* driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
  if (driver != nullptr) dlclose(driver);
  return driver != nullptr;
}

/// Never closed: what it has made may outlive any scope.
Result<const BackendModule*> open_module() {
  std::string path;
  for (const std::string& place : module_places())
    if (path.empty() && access(place.c_str(), R_OK) == 0) path = place;
  if (path.empty()) {
    const char* given = std::getenv(kModuleVariable);
    return error(
        Code::kUnavailable, "the cuda backend is not there: {}; {}",
        given != nullptr && *given != '\0'
            ? fmt::format("${} names '{}', which cannot be read", kModuleVariable, given)
            : fmt::format("no {} beside this program nor in {}/droidspeak", kModule, DS_LIBDIR_FROM_BIN),
        "build it with the CUDA toolkit (./dev build cuda), or use --backend cpu");
  }
  void* module = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (module == nullptr) {
    return error(
        Code::kUnavailable,
        "the cuda backend's libraries are not there: {}; install the CUDA runtime libraries (cuBLAS, "
        "cuDNN) or name their folder in LD_LIBRARY_PATH, or use --backend cpu",
        dlerror());
  }
  auto* found = static_cast<const BackendModule*>(dlsym(module, "droidspeak_backend_module"));
  if (found == nullptr || std::strcmp(found->abi, kBackendModuleAbi) != 0) {
    return error(Code::kMismatch, "'{}' is {}, expected '{}'; build it together with this program", path,
                 found == nullptr ? "no module of a backend" : fmt::format("'{}'", found->abi),
                 kBackendModuleAbi);
  }
  return found;
}

}  // namespace

Result<std::unique_ptr<Backend>> make_cuda_backend(const CudaOptions& options) {
  DS_ASSIGN(const BackendModule* module, open_module());
  return module->make(options);
}

Result<std::unique_ptr<Backend>> make_backend(const BackendOptions& options) {
  if (options.name == "cpu") return make_cpu_backend(options.cpu);
  if (options.name == "cuda") return make_cuda_backend(options.cuda);
  if (options.name != "auto")
    return error(Code::kInvalidArgument, "unknown backend '{}'; expected cpu, cuda or auto", options.name);
  if (!may_have_device()) return make_cpu_backend(options.cpu);
  auto cuda = make_cuda_backend(options.cuda);
  return cuda.ok() || cuda.status().code() != Code::kUnavailable ? std::move(cuda)
                                                                 : make_cpu_backend(options.cpu);
}

}  // namespace ds
