// The machine that a tool runs on, for people, and a folder for what it needs for a while.
#pragma once

#include <sys/utsname.h>
#include <unistd.h>

#include <ctime>
#include <filesystem>
#include <fstream>
#include <string>

#include "support/file.h"
#include "support/status.h"

namespace ds {

/// "AMD EPYC 9B45"; "" where the system does not say.
inline std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("model name") && line.find(": ") != std::string::npos)
      return line.substr(line.find(": ") + 2);
  return "";
}

inline std::string kernel_name() {
  utsname name{};
  return uname(&name) == 0 ? fmt::format("{} {} {}", name.sysname, name.release, name.machine) : "";
}

/// "2026-11-21"
inline std::string utc_date() {
  std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  return fmt::format("{:04}-{:02}-{:02}", utc.tm_year + 1900, utc.tm_mon + 1, utc.tm_mday);
}

/// This process's command line, as a shell reads it.
inline std::string command_line() {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  std::string out;
  for (std::string word; std::getline(file, word, '\0');) {
    bool plain = !word.empty() && word.find_first_of(" \t\n\"'\\$`&|;<>()*?[]{}!#~") == std::string::npos;
    std::string quoted = "'";
    for (char c : word) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
    out += (out.empty() ? "" : " ") + (plain ? word : quoted + "'");
  }
  return out;
}

/// A folder of its own, gone with all that is in it when this ends.
struct TemporaryFolder {
  std::string path;
  TemporaryFolder() = default;
  TemporaryFolder(const TemporaryFolder&) = delete;
  ~TemporaryFolder() {
    std::error_code ignored;
    if (!path.empty()) std::filesystem::remove_all(path, ignored);
  }
  /// `what` names it for people: "ds-calibrate".
  Status make(const std::string& what) {
    std::error_code failure;
    auto base = std::filesystem::temp_directory_path(failure);
    std::string name = (failure ? std::string("/tmp") : base.string()) + "/" + what + "-XXXXXX";
    if (mkdtemp(name.data()) == nullptr) return io_error("make the folder", name);
    path = name;
    return ok_status();
  }
};

}  // namespace ds
