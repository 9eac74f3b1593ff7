// The compiler as a function: two model folders and what is wanted -> a plan, or the IR of any phase on the
// way.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "plans/plan.h"
#include "support/status.h"

namespace ds {

/// As typed on ds-compile's command line; compile() checks all of it before it opens any file.
struct CompileOptions {
  std::string receiver, sender;          // model folders
  std::optional<std::string> recompute;  // "A-B"
  std::optional<std::string> policy;     // balanced, droidspeak, cake, full-prefill, full-reuse; default:
                                         // droidspeak with `recompute`, else balanced
  std::optional<std::string> quality;    // quality.json
  std::optional<std::string> machine;    // machine.json
  std::optional<double> slo_loss;        // points
  std::optional<double> slo_ttft_ms;
  std::optional<std::string> context_lengths;  // "256,1024"
  std::optional<std::string> link_rates;       // "20MB/s,8Gb/s"
  int64_t suffix_length = 32;
  int64_t chunks = 16;  // most parts into which the context is divided
  std::string schedule = "best";
  std::optional<std::string> dtype;  // bf16, f32; by default the machine's, else bf16
  std::string emit = "flatbuffer";   // reuse, plan, schedule, flatbuffer
  std::string compiler_version;
};

inline constexpr const char* kDefaultContextLengths = "256,1024,4096,16384";
inline constexpr const char* kDefaultLinkRates =
    "1MB/s,3MB/s,10MB/s,30MB/s,100MB/s,300MB/s,1GB/s,3GB/s,10GB/s";

struct CompileOutput {
  std::string bytes;               // a .dsplan file, or text (--emit)
  std::optional<Plan> plan;        // where it was compiled to the end
  std::vector<std::string> notes;  // for people: what was assumed, what was left out
};

/// Errors: kInvalidArgument (options that contradict each other, by name), kMismatch (models, profile or
/// machine that do not belong together), kInfeasible (no tiling meets the objectives; lists what can be had),
/// and what the inputs' readers report. The same input gives the same bytes.
Result<CompileOutput> compile(const CompileOptions& options);

}  // namespace ds
