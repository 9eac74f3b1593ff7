// What every tool's main shares: argument parsing with worked examples, errors, progress on a terminal.
#pragma once

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <functional>
#include <string>

#include "support/status.h"
#include "support/units.h"
#include "tools/progress.h"

namespace ds {

inline constexpr const char* kVersion = DS_VERSION;

/// A text in which URLs may stand, without their users and passwords.
inline std::string without_passwords(std::string text) {
  for (size_t at = 0; (at = text.find("://", at)) != std::string::npos;) {
    at += 3;
    const size_t end = std::min(text.find_first_of(" \n\t", at), text.size());
    const size_t host = text.rfind('@', end);
    if (host != std::string::npos && host >= at && host < end) text.replace(at, host - at, "***");
  }
  return text;
}

/// Parses the command line and runs `body`; prints a failure as "TOOL: error: ..." and returns its exit code.
/// Also turns a std::bad_alloc or another escaped exception into an error, so that no tool ends in a crash.
inline int run_tool(CLI::App& app, int argc, char** argv, const std::function<Status()>& body) {
  std::string tool = app.get_name();
  app.set_version_flag("--version", std::string(kVersion));
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) return app.exit(e);
    fmt::print(stderr, "{}: error: {}\nRun '{} --help' for usage.\n", tool, without_passwords(e.what()),
               tool);
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

}  // namespace ds
