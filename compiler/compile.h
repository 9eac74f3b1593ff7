// The compiler as a function: a pair of models and what is wanted -> a plan, or the IR of any phase on the
// way.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "compiler/inputs/machine.h"
#include "compiler/inputs/models.h"
#include "plans/plan.h"
#include "plans/quality.h"
#include "runtime/model/maps.h"
#include "support/status.h"

namespace ds {

/// What is wanted, as typed on ds-compile's command line.
struct CompileOptions {
  std::optional<std::string> recompute;     // "A-B"
  std::optional<std::string> policy;        // balanced, droidspeak, cake, restore, select, full-prefill,
                                            // full-reuse; default: droidspeak with `recompute`, else balanced
  std::optional<std::string> select_share;  // "15%": of the tokens, for policy select
  std::optional<double> slo_loss;           // points
  std::optional<std::string>
      slo_divergence;  // "0.05": nats per reference token; "least": within --slo-ttft-ms
  std::optional<double> slo_ttft_ms;
  std::optional<double> confidence;  // bounds of losses and divergences instead of means: above 0.5,
                                     // below 1
  std::optional<std::string> context_lengths;  // "256,1024"
  std::optional<std::string> link_rates;       // "20MB/s,8Gb/s"
  int64_t suffix_length = 32;
  int64_t chunks = 16;  // most parts into which the context is divided
  int64_t max_variants = 32;
  std::string schedule = "best";
  std::string align = "auto";                   // auto, none, full, low-rank, diagonal: how cuts are mapped
  std::string align_side = "auto";              // auto, receiver, sender: who maps them
  int64_t receivers = 1;                        // that are to share one entry: decides what "auto" side is
  std::optional<std::string> align_fallback;    // plain: maps that cannot be used are a note, not an error
  std::optional<std::string> dtype;             // bf16, f32; by default the machine's, else bf16
  std::string emit = "flatbuffer";              // reuse, plan, schedule, flatbuffer
  bool live_sender = false;                     // variants besides, for one that is still computing
  int64_t plan_format = kWrittenFormatVersion;  // of the file, from there to kPlanFormatVersion
  std::string compiler_version;
};

inline constexpr const char* kDefaultContextLengths = "256,1024,4096,16384";
inline constexpr const char* kDefaultLinkRates =
    "1MB/s,3MB/s,10MB/s,30MB/s,100MB/s,300MB/s,1GB/s,3GB/s,10GB/s";

/// Where the inputs are.
struct CompileFiles {
  std::string receiver, sender;          // model folders
  std::optional<std::string> quality;    // quality.json
  std::optional<std::string> machine;    // machine.json
  std::optional<std::string> maps = {};  // of the pair, for aligned cuts
  OpenOptions open = {};                 // of both models
  Identify identify = {};                // of the models; empty: all weights are read
};

/// The inputs, read.
struct CompileInputs {
  ModelPair pair;
  std::optional<Quality> quality;
  std::optional<MachineModel> machine;  // none: a stand-in
  std::vector<InputFile> files;         // for the provenance
  std::optional<MapSet> maps;           // checked against the pair
  MapsIdentity maps_identity;           // of `maps`
  std::string maps_fault;               // why there are none although a file was given
  int64_t max_model_len = 0;            // as it was given, for the provenance
};

/// Where the compiler's time went.
struct CompileTimes {
  int64_t choose_ns = 0;    // tilings, and the ranges of variants
  int64_t lower_ns = 0;     // to the plan dialect, and verified
  int64_t schedule_ns = 0;  // with the verification of schedules
  int64_t emit_ns = 0;      // the plan, verified, as bytes
};

struct CompileOutput {
  std::string bytes;                  // a .dsplan file, or text (--emit)
  std::optional<Plan> plan;           // where it was compiled to the end
  std::vector<std::string> notes;     // for people: what was assumed, what was left out
  std::vector<std::string> warnings;  // promises that the profile cannot tell to be kept
  CompileTimes times;
};

/// Errors: kInvalidArgument (options that contradict each other, by name), kMismatch (models, profile or
/// machine that do not belong together, maps of another pair, or other maps than the profile was scored with;
/// no map for a layer that was named), kInfeasible (no tiling meets the objectives; lists what can be had),
/// and what the inputs' readers report. The same input gives the same bytes. Options are checked before any
/// file is opened.
Result<CompileOutput> compile(const CompileFiles& files, const CompileOptions& options);
Result<CompileOutput> compile(const CompileInputs& inputs, const CompileOptions& options);

/// Reads and cross-checks the files: for several plans of one pair. `plain_without_maps`: maps that cannot be
/// read, or are of another pair, are left out; maps_fault says why.
Result<CompileInputs> read_inputs(const CompileFiles& files, bool plain_without_maps = false);

}  // namespace ds
