// The parts of a profiling run: what the user says, maps, what is told.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "tools/ds-profile/pair.h"
#include "tools/ds-profile/profile.h"

namespace ds {

struct RunOptions {
  PairOptions pair;
  ChatOptions chat;
  AlignOptions align;
  std::string out, prompts, max_new_tokens, jieba, state, other, stats, maps, other_maps, maps_out;
  std::vector<std::string> data, fit_data, forms, only;
  std::string fit_share;
  ProfileOptions profile;
  std::vector<std::string> select;
  std::string granularity = "auto", budget;
  bool no_controls = false, no_align = false, dry_run = false, json = false;
  double race = 0;
  int64_t batch_rows = 0;
  std::optional<Budget> within;  // what --budget says
};

// run_options.cpp
/// The option --scattered: a budget leaves it alone where it was given.
CLI::Option* add_run_options(CLI::App& app, RunOptions& options);
/// Checks them, and fills in what follows from them.
Status check_options(RunOptions& options);

// run_maps.cpp
/// What is known about maps before anything has run.
struct MapInputs {
  std::optional<MapSet> given, shuffled, other;
  DataFiles data;
};
Result<MapInputs> read_map_inputs(RunOptions& options, const PromptTemplates& prompts);
Status check_maps(const RunOptions& options, const MapInputs& in, const LoadedPair& pair);
/// The run's maps: read from its folder, taken from --maps, or fitted.
Result<RunMaps> prepare_maps(const RunOptions& options, const MapInputs& in, const LoadedPair& pair,
                             const DataFiles& data, double expected_seconds, ProfileWork& work);

// run_texts.cpp
/// What other granularities would take.
struct Offer {
  int64_t granularity = 0, ways = 0, layer_runs = 0;
  double seconds = 0;
};
Result<std::vector<Offer>> offers(const RunOptions& options, const Pace& pace, const ProfileWork& work,
                                  const ModelConfig& config);
double sum_of(const std::vector<double>& seconds);
void say_cost(const RunOptions& options, const ProfileWork& work, const ModelConfig& config, DType dtype);
/// A template that ends in what the answer begins with asks behind a token that the model never saw there.
void say_merged(const ProfileWork& work);
/// Without what the state keeps already.
void say_time(const RunOptions& options, const Pace& pace, const TimeEstimate& time);
void say_offers(const std::vector<Offer>& all, int64_t chosen);
void say_task_notes(const Quality& quality);
void say_result(const Quality& quality, const ProfileWork& work, const EngineWork& done, double seconds);
nlohmann::ordered_json cost_json(const ProfileWork& work, const ModelConfig& config, DType dtype,
                                 const WayOptions& ways, const TimeEstimate& time,
                                 const std::vector<Offer>& all, const std::string& given_up);
/// --stats
Status write_stats(const RunOptions& options, const EngineWork& work, double seconds);

}  // namespace ds
