// How long a run will take, told before it starts by doing a little of each kind of its work: some layers
// over one context, a batch of questions, a step of decoding, some sums for maps.
#pragma once

#include "profiler/profile_run.h"

namespace ds {

/// What the work takes on this machine, in nanoseconds.
struct Pace {
  int64_t context_tokens = 0;  // of the context that it was measured on
  double layer_row = 0;        // one token of a context of that length through one layer
  double question_row = 0;     // one token of questions and answers behind it through one layer, in a batch
  double decode_row = 0;       // one token of an answer through one layer, in a batch
  double logits_row = 0;       // one token's logits
  double score_row = 0;        // a distribution and how far it is from another
  double sums_row = 0;         // one token's share of the sums for one layer's maps
  double solve = 0;            // one layer's maps, from the sums
  double measured_s = 0;       // seconds that finding this out took
};

/// Measures with `receiver`, for some seconds at most unless a single layer takes longer. The context is the
/// one whose length is nearest to that of the average token's context, from those to fit on where there are
/// no others; what a context of another length takes is told in proportion. `forms`: of the maps that are
/// fitted. kExhausted: memory for one
/// layer's caches.
Result<Pace> measure_pace(Backend& backend, DeviceModel& receiver, const ProfileWork& work,
                          const std::vector<MapForm>& forms = {MapForm::kFull});

struct TimeEstimate {
  double fit_s = 0;  // the maps
  /// By context of the work, where answers are as long as their references, and where all are as long as they
  /// may be.
  std::vector<double> context_s, longest_s;
};

/// What a run may take, and what was fixed by who asks for it.
struct Budget {
  double seconds = 0;
  bool granularity_given = false, scattered_given = false;
};

struct Budgeted {
  ProfileOptions options;
  double seconds = 0;    // the estimate, answers as long as their references
  std::string given_up;  // in words: "5 scattered sets of each size -> 1, granularity 1 -> 3"; empty: nothing
};

/// The finest run that fits, by giving up in this order, each only as far as needed:
///   1. scattered sets: one for each number of layers instead of several;
///   2. granularity: 1, 2, 3, ..., as long as 8 blocks are left;
///   3. the controls: scattered sets, token selection, single layers, the sender alone, another document's
///   cache, shuffled maps;
///   4. contexts, down to 30;
///   5. granularity, as long as 4 blocks are left;
///   6. contexts, down to 10.
/// `work`: of all contexts and the finest ways (granularity 1, unless it is given); `pace` was measured on
/// it. kInfeasible: says how long the least takes.
Result<Budgeted> fit_budget(const Budget& budget, const ProfileOptions& asked, const Pace& pace,
                            const ProfileWork& work, const ModelConfig& config);

TimeEstimate estimate_time(const Pace& pace, const ProfileWork& work, const ModelConfig& config,
                           const FitOptions& fit);

}  // namespace ds
