// A profile's run: every context once, each kept as a file as soon as it is done, so that a run may be
// stopped at any moment, go on later, and be shared by several processes; the result does not depend on any
// of that.
//
// A run is a folder:
//   run.json                   what it is a run of; another command line's run is refused, by field
//   context-000017.jsonl       one context's answers (record.h), written whole or not at all; its owner's
//   only context-000017.lock        held (FileLock) by the process that works on it; the kernel frees it with
//   the process maps.safetensors           of aligned cuts, where there are any: made by the first process,
//   or given shuffled.safetensors       those of the control
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "plans/plan.h"
#include "profiler/dataset.h"
#include "profiler/engine.h"
#include "profiler/jieba.h"
#include "profiler/map_fitter.h"
#include "profiler/prompt.h"
#include "profiler/record.h"
#include "runtime/model/tokenizer.h"
#include "support/status.h"

namespace ds {

struct ProfileOptions {
  WayOptions ways;
  int64_t truncate = 0;  // contexts of more tokens keep the first and last halves of this many; 0: never
  /// Drop groups while running that are beaten, with this confidence that none of those dropped was the best
  /// of its size, by one with no more layers. Looked at after every round of contexts.
  std::optional<double> race;
  int64_t race_round = 10;
  /// Of the contexts, set aside to fit maps on and not scored; 0: none, maps come from elsewhere.
  double fit_share = 0;
  /// Most contexts that are read of the data, those to fit on included where they are a share of it; 0: all.
  int64_t most_contexts = 0;
  FitOptions fit;
};

/// One context and what is asked about it.
struct ProfileContext {
  std::vector<int32_t> entry;   // of the context by itself
  std::vector<int32_t> tokens;  // the first of them: those that it has in every question's whole text, too
  std::vector<Question> questions;
  struct Origin {
    const Item* item = nullptr;
    const PromptTemplate* prompt = nullptr;
    std::string source, task;
  };
  std::vector<Origin> origins;  // by question
  /// For the control: the next document of its file (else of the next file), again and again or its
  /// beginning, so that it has as many tokens. Empty where there is one document only.
  std::vector<int32_t> other;
};

/// What a run will do, in the order in which it does it.
struct ProfileWork {
  std::vector<Way> ways;
  std::vector<ProfileContext> contexts;  // shuffled by the seed
  /// Contexts that maps are fitted on; none of them is scored.
  std::vector<std::vector<int32_t>> fit;
  int64_t fit_tokens = 0;
  ProfileEngineLimits limits;
  std::shared_ptr<const Jieba> words;  // where a metric needs_words(); not set by plan_work()
  std::vector<double> seconds;         // by context, for its share of the work; empty: all count alike
  int64_t tokens = 0, questions = 0;
  int64_t layer_runs = 0, naive_layer_runs = 0;  // without racing
  /// By task: of how many items the prompt's tokens are others once the answer follows it, and of how many
  /// there are.
  struct Merged {
    int64_t items = 0, of = 0;
  };
  std::map<std::string, Merged> merged;
};

/// Has the work be that of other ways.
Status set_ways(ProfileWork& work, const ModelConfig& config, const WayOptions& options);
/// Has it be that of the first contexts only, as ProfileOptions::most_contexts says.
Status keep_contexts(ProfileWork& work, const ModelConfig& config, const ProfileOptions& options);

/// Renders, encodes and groups the items by context. Context and question are read as one text (join_text());
/// the questions of a context share as many of its tokens as all of them leave as they are. `data` and
/// `prompts` outlive the result. Errors name the item: a context, question and answer longer than the model's
/// positions (says what to do), no tokens. kInfeasible: no context is left to score.
Result<ProfileWork> plan_work(const std::vector<Dataset>& data, const PromptTemplates& prompts,
                              const Tokenizer& tokenizer, const ModelConfig& config,
                              const ProfileOptions& options);

/// The different contexts of `data`, encoded, in the order of the file; those that are in `scored` are left
/// out, and counted in `left_out`.
Result<std::vector<std::vector<int32_t>>> fit_contexts(const std::vector<Dataset>& data,
                                                       const PromptTemplates& prompts,
                                                       const Tokenizer& tokenizer, const ModelConfig& config,
                                                       int64_t truncate,
                                                       const std::vector<ProfileContext>& scored,
                                                       int64_t& left_out);

/// What a run's files must agree on.
struct RunIdentity {
  ModelIdentity sender, receiver;
  std::string dtype, backend;
  std::vector<Quality::Input> data;
  Quality::Input prompts;
  ProfileOptions options;
  int64_t layers = 0, contexts = 0;
  std::vector<Quality::Input> fit_data;  // empty: a share of `data`
  std::string maps, other_maps;          // fingerprints of files that were given; empty: none was
  std::string words;                     // Jieba::sha256() where a metric needs_words(), else empty
};

/// Makes the folder, or finds the same run in it. kMismatch names the field that differs.
Status open_run(const std::string& folder, const RunIdentity& identity);

/// The ways and the number of contexts that the run in `folder` was begun with, by the fields that a budget
/// chooses: what it chose stays for as long as the run does. nullopt: there is no run.
Result<std::optional<ProfileOptions>> options_of_run(const std::string& folder, const ProfileOptions& asked);

/// What was read back of a run.
struct RunRecords {
  std::vector<ContextRecord> records;  // by index
  std::vector<std::string> damaged;    // messages about files that will be made again
};
Result<RunRecords> read_records(const std::string& folder, size_t ways);

/// The maps of a run. Empty where it has no aligned ways.
struct RunMaps {
  MapSet own, shuffled;
  // Why layers have none, where that is allowed, and LayerMaps::limits; only from the process that fitted
  // them.
  std::vector<std::string> left_out, limits;
  const MapSet* given = nullptr;  // another pair's, for the control
  ProfileEngine::Maps by_control(const std::string& other_pair) const;
};
/// Reads a run's maps, or makes them with `fit` and keeps them in its folder: one process does, others wait.
Result<RunMaps> run_maps(const std::string& folder, bool shuffled, const std::atomic<bool>& stop,
                         const std::function<Result<RunMaps>()>& fit);
/// Of `ways` those whose maps are all there.
std::vector<Way> available_ways(const std::vector<Way>& ways, const MapSet& own);

/// Ways that take part in context `index`, given the records of all contexts of earlier rounds.
std::vector<bool> racing_ways(const std::vector<Way>& ways, int64_t layers,
                              const std::vector<ContextRecord>& records, const ProfileOptions& options,
                              int64_t index);

struct RunProgress {
  int64_t done = 0, total = 0;  // contexts, those of other processes included
  double share = 0;             // of all contexts' work, what is done
};

/// Works on contexts until all are done, by this process or others; kInfeasible where `stop` was set (between
/// two contexts): says what is kept.
Status run_contexts(const std::string& folder, const ProfileWork& work, const ProfileOptions& options,
                    const Tokenizer& tokenizer, int64_t layers, ProfileEngine& engine,
                    const std::atomic<bool>& stop, const std::function<void(const RunProgress&)>& progress);

/// The profile of one finished run, or of several of the same pair, template and ways (merged; a question
/// that is in two of them counts once). Errors: kInfeasible where contexts are missing, kMismatch by field.
Result<Quality> profile_of_runs(const std::vector<std::string>& folders, const Quality* other_pair);

}  // namespace ds
