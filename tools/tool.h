// What every tool's main shares: argument parsing with worked examples, errors, progress on a terminal.
#pragma once

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <functional>
#include <string>

#include "support/status.h"
#include "support/units.h"

namespace ds {

inline constexpr const char* kVersion = DS_VERSION;

/// Parses the command line and runs `body`; prints a failure as "TOOL: error: ..." and returns its exit code.
/// Also turns a std::bad_alloc or another escaped exception into an error, so that no tool ends in a crash.
inline int run_tool(CLI::App& app, int argc, char** argv, const std::function<Status()>& body) {
  std::string tool = app.get_name();
  app.set_version_flag("--version", std::string(kVersion));
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) return app.exit(e);
    fmt::print(stderr, "{}: error: {}\nRun '{} --help' for usage.\n", tool, e.what(), tool);
    return exit_code(Code::kInvalidArgument);
  }
  Status status;
  try {
    status = body();
  } catch (const std::bad_alloc&) {
    status = error(Code::kExhausted, "out of memory");
  } catch (const std::exception& e) {
    status = error(Code::kInternal, "{}", e.what());
  }
  if (!status.ok()) fmt::print(stderr, "{}: error: {}\n", tool, status.message());
  return exit_code(status.code());
}

/// From now on Ctrl-C and SIGTERM only set the flag that is returned, once: a second Ctrl-C ends at once.
inline std::atomic<bool>& stop_on_interrupt() {
  static std::atomic<bool> flag{false};
  struct sigaction action {};
  action.sa_handler = [](int) { flag = true; };
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  return flag;
}

/// A one-line progress bar on stderr: drawn on a terminal only, at most ten times a second, cleared at the
/// end.
class ProgressBar {
 public:
  explicit ProgressBar(std::string what) : what_(std::move(what)), terminal_(isatty(STDERR_FILENO) != 0) {}
  ProgressBar(const ProgressBar&) = delete;
  ~ProgressBar() { finish(); }

  void update(int64_t done, int64_t total) {
    if (!terminal_ || total <= 0) return;
    auto now = std::chrono::steady_clock::now();
    if (drawn_ && now - last_ < std::chrono::milliseconds(100) && done < total) return;
    last_ = now;
    double share = static_cast<double>(done) / static_cast<double>(total);
    double seconds = std::chrono::duration<double>(now - start_).count();
    int filled = static_cast<int>(share * 30);
    fmt::print(stderr, "\r\033[K{} [{}{}] {:3.0f}%", what_, std::string(static_cast<size_t>(filled), '#'),
               std::string(static_cast<size_t>(30 - filled), '.'), share * 100);
    if (share > 0.02 && seconds > 1) fmt::print(stderr, " {:.0f} s left", seconds * (1 - share) / share);
    std::fflush(stderr);
    drawn_ = true;
  }
  void finish() {
    if (drawn_) fmt::print(stderr, "\r\033[K");
    drawn_ = false;
  }

 private:
  std::string what_;
  bool terminal_, drawn_ = false;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now(), last_;
};

}  // namespace ds
