// --backend, --device, --threads and --fallback: where a tool's models run.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>

#include "runtime/backends/backends.h"
#include "tools/tool.h"

namespace ds {

struct BackendFlags {
  std::string name = "auto", fallback = "none";
  int device = 0, threads = 0;
  bool check_kernels = false;
};

inline void add_backend_flags(CLI::App& app, BackendFlags& o) {
  app.add_option("--backend", o.name, "cpu, cuda, or auto: a device that is there, else the CPU")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  app.add_option("--device", o.device, "which device, as CUDA numbers them")
      ->capture_default_str()
      ->check(CLI::Range(0, 1023));
  app.add_option("--threads", o.threads, "of the cpu backend; 0: all cores")->capture_default_str();
  app.add_option(
         "--fallback", o.fallback,
         "cpu: where the device is not there, has too little memory or is lost before anything of the "
         "result has been shown, run all on the CPU instead;\nnone: end with its error")
      ->capture_default_str()
      ->check(CLI::IsMember({"none", "cpu"}));
  app.add_flag("--check-kernels", o.check_kernels,
               "wait for every kernel of a device, so that an error names it; slow");
}

/// $DROIDSPEAK_CACHE, else $XDG_CACHE_HOME/droidspeak, else ~/.cache/droidspeak; empty: none of them is set.
inline std::string default_cache_folder() {
  auto variable = [](const char* name) {
    const char* value = std::getenv(name);
    return std::string(value != nullptr ? value : "");
  };
  if (std::string own = variable("DROIDSPEAK_CACHE"); !own.empty()) return own;
  if (std::string xdg = variable("XDG_CACHE_HOME"); !xdg.empty()) return xdg + "/droidspeak";
  std::string home = variable("HOME");
  return home.empty() ? "" : home + "/.cache/droidspeak";
}

/// Whether `status` is one that --fallback is for; says so on stderr.
inline bool falls_back(const BackendFlags& flags, const Status& status) {
  if (!is_device_failure(status.code()) || flags.fallback != "cpu" || flags.name == "cpu") return false;
  fmt::print(stderr, "on the CPU instead: {}\n", status.message());
  return true;
}

inline Result<std::shared_ptr<Backend>> open_backend(const BackendFlags& flags) {
  BackendOptions options;
  options.name = flags.name;
  options.cpu.threads = flags.threads;
  options.cuda.device = flags.device;
  options.cuda.cache = default_cache_folder();
  options.cuda.check_kernels = flags.check_kernels;
  auto backend = make_backend(options);
  if (falls_back(flags, backend.status())) backend = make_cpu_backend(options.cpu);
  if (!backend.ok()) return backend.status();
  return std::shared_ptr<Backend>(std::move(*backend));
}

/// Runs `body`; and once more on the CPU where it failed for want of the device and --fallback allows it.
/// `body` sets `shown` once it has shown part of its result: that cannot be taken back, and what another
/// backend would go on with may differ.
inline Status with_fallback(const BackendFlags& flags,
                            const std::function<Status(const BackendFlags&, bool& shown)>& body) {
  bool shown = false;
  Status status = body(flags, shown);
  if (shown && is_device_failure(status.code()) && flags.fallback == "cpu")
    return Status(status.code(),
                  status.message() +
                      "; part of the answer has been shown, so the CPU does not begin it again "
                      "(--fallback is for what fails before)");
  if (!falls_back(flags, status)) return status;
  BackendFlags cpu = flags;
  cpu.name = "cpu";
  return body(cpu, shown);
}

}  // namespace ds
