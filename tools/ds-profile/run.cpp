// ds-profile without an action: answers a data set over every way and writes quality.json; and `merge`.
#include <charconv>
#include <memory>
#include <numeric>

#include "profiler/task_notes.h"
#include "support/clock.h"
#include "support/file.h"
#include "tools/ds-profile/pair.h"
#include "tools/ds-profile/profile.h"

namespace ds {
namespace {

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

/// Which aligned ways there are, and where their maps come from: --maps, --fit-data, or a share of --data.
Status check_align(RunOptions& o) {
  WayOptions& w = o.profile.ways;
  const int sources = !o.maps.empty() + !o.fit_data.empty() + !o.fit_share.empty();
  if (sources + o.no_align > 1)
    return error(Code::kInvalidArgument,
                 "expected one of --maps, --fit-data, --fit-share and --no-align, found {}",
                 sources + o.no_align);
  if (o.no_align) return ok_status();
  for (const std::string& name : o.forms) {
    DS_ASSIGN(MapForm form, parse_map_form(name, "--align"));
    if (std::find(w.align.begin(), w.align.end(), form) == w.align.end()) w.align.push_back(form);
  }
  // Of maps that are given the control is a file beside them.
  w.shuffled = !o.no_controls && (o.maps.empty() || file_exists(shuffled_path_for(o.maps)));
  o.profile.fit = {w.align, o.align.rank, o.align.fallback == "plain", w.shuffled};
  if (sources == 0) o.fit_share = "25%";
  if (!o.fit_share.empty()) {
    DS_ASSIGN(o.profile.fit_share, parse_percent(o.fit_share));
    if (o.profile.fit_share >= 1)
      return error(Code::kInvalidArgument,
                   "--fit-share {}: nothing would be left to score; expected less than 100 %", o.fit_share);
  }
  if (o.maps_out.empty()) o.maps_out = maps_path_for(o.out);
  return ok_status();
}

Status check_options(RunOptions& o) {
  DS_TRY(need_option(o.pair.sender, "--sender", "the model whose caches are reused"));
  DS_TRY(need_option(o.pair.receiver, "--receiver", "the model that answers"));
  DS_TRY(need_option(o.data.empty() ? "" : o.data[0], "--data", "questions to answer, JSON lines"));
  DS_TRY(need_option(o.out, "-o", "quality.json to write"));
  WayOptions& w = o.profile.ways;
  if (!o.select.empty()) {
    w.select_shares.clear();
    for (const std::string& text : o.select) {
      DS_ASSIGN(double share, parse_percent(text));
      w.select_shares.push_back(share);
    }
    std::sort(w.select_shares.begin(), w.select_shares.end());
    w.select_shares.erase(std::unique(w.select_shares.begin(), w.select_shares.end()), w.select_shares.end());
  }
  for (const std::string& text : o.only) {
    DS_ASSIGN(LayerRange range, parse_layers(text, INT32_MAX));
    w.only.push_back(range);
  }
  w.heuristics = w.no_context = w.other_document = !o.no_controls;
  if (o.no_controls) {
    w.select_shares.clear();
    w.scattered = 0;
    w.reuse_only = w.sender_alone = false;
  }
  if (o.granularity != "auto") {
    const char* end = o.granularity.data() + o.granularity.size();
    if (std::from_chars(o.granularity.data(), end, w.granularity).ptr != end)
      return error(Code::kInvalidArgument, "--granularity '{}': expected a number of layers, or auto",
                   o.granularity);
  }
  if (!o.budget.empty()) {
    auto seconds = parse_duration(o.budget);
    if (!seconds.ok()) return seconds.status().with_context("--budget");
    o.within->seconds = *seconds;
    o.within->granularity_given = o.granularity != "auto";
  } else {
    o.within.reset();
  }
  if (o.json && !o.dry_run)
    return error(Code::kInvalidArgument,
                 "--json needs --dry-run: what a run has found is quality.json itself (-o)");
  DS_TRY(check_align(o));
  if (o.race != 0) {
    if (!(o.race > 0.5 && o.race < 1))
      return error(Code::kInvalidArgument, "--race {}: expected a confidence between 0.5 and 1, like 0.95",
                   o.race);
    o.profile.race = o.race;
  }
  if (o.state.empty()) o.state = o.out == "-" ? "quality.json.run" : o.out + ".run";
  return ok_status();
}

void say_cost(const RunOptions& o, const ProfileWork& work, const ModelConfig& config, DType dtype) {
  auto n = static_cast<int64_t>(work.contexts.size());
  fmt::print(
      stderr,
      "{} questions about {} contexts ({} tokens), {} ways to answer each\n"
      "per context {} layer-runs ({} if every way ran by itself), {} in all; {} of memory for caches\n",
      format_count(work.questions), format_count(n), format_count(work.tokens), work.ways.size(),
      work.layer_runs / n, work.naive_layer_runs / n, format_count(work.layer_runs),
      format_bytes(ProfileEngine::memory_bytes(config, dtype, work.ways, work.limits)));
  if (o.profile.race)
    fmt::print(
        stderr,
        "racing: groups that are beaten are dropped from context {} on; the risk that a best one is dropped "
        "is at most {:.0f} % (as far as means over contexts are normal)\n",
        o.profile.race_round, (1 - *o.profile.race) * 100);
}

/// A template that ends in what the answer begins with asks behind a token that the model never saw there.
void say_merged(const ProfileWork& work) {
  for (const auto& [task, merged] : work.merged)
    if (merged.items > 0)
      fmt::print(
          stderr,
          "warning: in {} of {} items of task '{}' the prompt's last token is another one once the answer "
          "follows (a line break or a space at its end joins what comes next): the model is asked behind a "
          "token that it does not know there; let the template end before it\n",
          format_count(merged.items), format_count(merged.of), task);
}

double sum_of(const std::vector<double>& seconds) {
  return std::accumulate(seconds.begin(), seconds.end(), 0.0);
}

/// Without what the state keeps already.
void say_time(const RunOptions& o, const Pace& pace, const TimeEstimate& time) {
  const double answers = sum_of(time.context_s);
  fmt::print(stderr, "about {}{}, at most {} where all answers are as long as they may be ({})\n",
             format_duration(time.fit_s + answers),
             time.fit_s > 0 ? fmt::format(", {} of them to fit maps", format_duration(time.fit_s)) : "",
             format_duration(time.fit_s + sum_of(time.longest_s)), basis_of(pace));
  if (o.profile.race) fmt::print(stderr, "racing shortens that by what it drops\n");
}

/// What other granularities would take.
struct Offer {
  int64_t granularity = 0, ways = 0, layer_runs = 0;
  double seconds = 0;
};

Result<std::vector<Offer>> offers(const RunOptions& o, const Pace& pace, const ProfileWork& work,
                                  const ModelConfig& config) {
  std::vector<Offer> all;
  if (!o.profile.ways.only.empty()) return all;
  ProfileWork other = work;
  for (int64_t g : {1, 2, 3, 4, 6, 8}) {
    constexpr int64_t kLeastBlocks = 4;
    if ((config.layers + g - 1) / g < kLeastBlocks) break;
    WayOptions ways = o.profile.ways;
    ways.granularity = g;
    DS_TRY(set_ways(other, config, ways));
    const TimeEstimate time = estimate_time(pace, other, config, o.profile.fit);
    all.push_back({g, static_cast<int64_t>(other.ways.size()),
                   other.layer_runs / static_cast<int64_t>(other.contexts.size()),
                   time.fit_s + sum_of(time.context_s)});
  }
  return all;
}

void say_offers(const std::vector<Offer>& all, int64_t chosen) {
  for (const Offer& offer : all)
    fmt::print(stderr, "{} granularity {}: {:>5} ways, {:>5} layer-runs a context, about {}\n",
               offer.granularity == chosen ? "*" : " ", offer.granularity, format_count(offer.ways),
               format_count(offer.layer_runs), format_duration(offer.seconds));
}

nlohmann::ordered_json cost_json(const ProfileWork& work, const ModelConfig& config, DType dtype,
                                 const WayOptions& ways, const TimeEstimate& time,
                                 const std::vector<Offer>& all, const std::string& given_up) {
  const auto n = static_cast<int64_t>(work.contexts.size());
  nlohmann::ordered_json json{
      {"schema", "droidspeak.profile-cost"},
      {"version", 1},
      {"questions", work.questions},
      {"contexts", n},
      {"context_tokens", work.tokens},
      {"fit_contexts", work.fit.size()},
      {"fit_tokens", work.fit_tokens},
      {"granularity", ways.granularity},
      {"ways", work.ways.size()},
      {"layer_runs_per_context", work.layer_runs / n},
      {"layer_runs_per_context_each_way_by_itself", work.naive_layer_runs / n},
      {"cache_bytes", ProfileEngine::memory_bytes(config, dtype, work.ways, work.limits)},
      {"seconds", time.fit_s + sum_of(time.context_s)},
      {"fit_seconds", time.fit_s},
      {"longest_seconds", time.fit_s + sum_of(time.longest_s)},
      {"given_up", given_up},
      {"granularities", nlohmann::ordered_json::array()}};
  for (const Offer& offer : all)
    json["granularities"].push_back({{"granularity", offer.granularity},
                                     {"ways", offer.ways},
                                     {"layer_runs_per_context", offer.layer_runs},
                                     {"seconds", offer.seconds}});
  return json;
}

/// Has the run fit --budget; what its folder was begun with stays. What was given up, in words.
Result<std::string> keep_budget(RunOptions& o, const Pace& pace, const ModelConfig& config,
                                ProfileWork& work) {
  if (!o.within) return std::string();
  DS_ASSIGN(std::optional<ProfileOptions> begun, options_of_run(o.state, o.profile));
  std::string given_up;
  if (begun) {
    o.profile = std::move(*begun);
    o.profile.fit.shuffled = o.profile.ways.shuffled;
    given_up = "as this run was begun";
    fmt::print(stderr, "--budget: '{}' holds a run; it goes on as it was begun\n", o.state);
  } else {
    DS_ASSIGN(Budgeted found, fit_budget(*o.within, o.profile, pace, work, config));
    o.profile = std::move(found.options);
    given_up = std::move(found.given_up);
    fmt::print(stderr, "--budget {}: {}\n", o.budget,
               given_up.empty() ? "all of it fits" : "given up, in this order: " + given_up);
  }
  DS_TRY(keep_contexts(work, config, o.profile));
  DS_TRY(set_ways(work, config, o.profile.ways));
  return given_up;
}

void say_task_notes(const Quality& q) {
  for (const std::string& note : task_notes(q)) fmt::print(stderr, "warning: {}\n", note);
}

void say_result(const Quality& q, const ProfileWork& work, const EngineWork& done, double seconds) {
  auto s = [](int64_t ns) { return static_cast<double>(ns) / 1e9; };
  if (done.layer_runs > 0) {
    double total = s(done.sender_ns + done.runs_ns + done.answers_ns);
    fmt::print(stderr,
               "{:.0f} s: sender {:.0f} %, shared runs {:.0f} %, answers {:.0f} % ({} layer-runs, {} rows of "
               "questions and answers)\n",
               seconds, 100 * s(done.sender_ns) / total, 100 * s(done.runs_ns) / total,
               100 * s(done.answers_ns) / total, format_count(done.layer_runs),
               format_count(done.answer_rows));
  }
  int64_t dropped = 0;
  for (const WayScore& w : q.ways) dropped += w.dropped;
  if (dropped > 0) {
    fmt::print(stderr, "racing dropped {} of {} ways and saved {:.0f} % of the answers\n", dropped,
               q.ways.size(),
               100 * (1 - static_cast<double>(q.cost["answers"].get<int64_t>()) /
                              static_cast<double>(work.questions * static_cast<int64_t>(work.ways.size()))));
  }
  size_t width = 16;
  for (const std::string& name : q.pareto_aligned) width = std::max(width, name.size());
  fmt::print("{:<{}} {:>6}  {:>14}  {:>14}  {:>15}\n", "way", width, "layers", "score", "loss", "divergence");
  auto line = [&](const WayScore& w) {
    fmt::print("{:<{}} {:>6}  {:>6.2f} ± {:<5.2f}  {:>6.2f} ± {:<5.2f}  {:>6.4f} ± {:<6.4f}\n", w.way.name(),
               width, w.way.recomputed(q.layers), w.score.value, w.score.standard_error, w.loss.value,
               w.loss.standard_error, w.divergence.value, w.divergence.standard_error);
  };
  line(q.ways[0]);
  line(q.ways[1]);
  for (const auto* list : {&q.pareto, &q.pareto_aligned})
    for (const std::string& name : *list)
      for (const WayScore& w : q.ways)
        if (w.way.name() == name) line(w);
  if (const std::string tasks = task_table_text(q); !tasks.empty()) fmt::print("\n{}", tasks);
  say_task_notes(q);
}

Status write_stats(const RunOptions& o, const EngineWork& w, double seconds) {
  auto s = [](int64_t ns) { return static_cast<double>(ns) / 1e9; };
  nlohmann::ordered_json json{
      {"seconds", seconds},           {"sender_s", s(w.sender_ns)},  {"shared_runs_s", s(w.runs_ns)},
      {"answers_s", s(w.answers_ns)}, {"scores_s", s(w.scores_ns)},  {"layer_runs", w.layer_runs},
      {"kv_runs", w.kv_runs},         {"answer_rows", w.answer_rows}};
  for (size_t i = 0; i < kPhases; ++i)
    json["answer_phases_s"][std::string(kPhaseNames[i])] = s(w.answer_phases.ns[i]);
  return write_file_atomically(o.stats, json.dump(1) + "\n");
}

/// What is known about maps before anything has run.
struct MapInputs {
  std::optional<MapSet> given, shuffled, other;
  DataFiles data;
};

Result<MapInputs> read_map_inputs(RunOptions& o, const PromptTemplates& prompts) {
  MapInputs in;
  if (!o.maps.empty()) {
    DS_ASSIGN(in.given, MapSet::read(o.maps));
    const std::string control = shuffled_path_for(o.maps);
    if (o.profile.ways.shuffled) {
      DS_ASSIGN(in.shuffled, MapSet::read(control));
      fmt::print(stderr, "control: shuffled maps '{}'\n", control);
    } else if (!o.no_controls) {
      fmt::print(stderr,
                 "no control with shuffled maps: '{}' is not there; `ds-profile fit --shuffled` writes it\n",
                 control);
    }
  }
  if (!o.other_maps.empty()) {
    DS_ASSIGN(in.other, MapSet::read(o.other_maps));
    o.profile.ways.other_pair = in.other->sender_name;
  }
  DS_ASSIGN(in.data, read_data(o.fit_data, prompts));
  return in;
}

Status check_maps(const RunOptions& o, const MapInputs& in, const LoadedPair& pair) {
  const ModelConfig& config = pair.receiver.model->config();
  auto check_own = [&](const std::optional<MapSet>& maps, const std::string& path) -> Status {
    if (!maps) return ok_status();
    return maps->check_pair(path, pair.sender.identity, pair.receiver.identity, config.layers,
                            config.d_model);
  };
  DS_TRY(check_own(in.given, o.maps));
  DS_TRY(check_own(in.shuffled, shuffled_path_for(o.maps)));
  if (in.other && (in.other->layers != config.layers || in.other->d_model != config.d_model))
    return error(Code::kMismatch,
                 "--control-maps '{}' are for {} layers of width {}, this pair has {} of width {}",
                 o.other_maps, in.other->layers, in.other->d_model, config.layers, config.d_model);
  return ok_status();
}

/// The run's maps: read from its folder, taken from --maps, or fitted.
Result<RunMaps> prepare_maps(const RunOptions& o, const MapInputs& in, const LoadedPair& pair,
                             const DataFiles& data, double expected_seconds, ProfileWork& work) {
  RunMaps maps;
  if (o.profile.ways.align.empty()) return maps;
  auto make = [&]() -> Result<RunMaps> {
    RunMaps made;
    if (in.given) {
      made.own = *in.given;
      if (in.shuffled) made.shuffled = *in.shuffled;
      return made;
    }
    size_t longest = 0;
    for (const auto& c : work.fit) longest = std::max(longest, c.size());
    fmt::print(stderr, "fitting maps on {} contexts ({} tokens); {} of memory beside the models\n",
               work.fit.size(), format_count(work.fit_tokens),
               format_bytes(MapFitter::memory_bytes(pair.receiver.model->config(), o.profile.fit,
                                                    static_cast<int64_t>(work.fit.size()),
                                                    static_cast<int64_t>(longest))));
    DS_ASSIGN(auto fitted, fit_pair(pair, work.fit, o.profile.fit, expected_seconds, stop_on_interrupt()));
    // Without files of their own the fit's contexts are a share of those that are scored.
    made.own = made.shuffled = maps_of(pair, o.fit_data.empty() ? data.inputs : in.data.inputs);
    made.own.maps = std::move(fitted.maps);
    made.own.plain = std::move(fitted.plain);
    made.shuffled.maps = std::move(fitted.shuffled);
    made.left_out = std::move(fitted.left_out);
    made.limits = std::move(fitted.limits);
    return made;
  };
  DS_ASSIGN(maps, run_maps(o.state, o.profile.ways.shuffled, stop_on_interrupt(), make));
  say_unmapped(maps.left_out, maps.own.plain, maps.limits);
  if (in.other) maps.given = &*in.other;
  work.ways = available_ways(work.ways, maps.own);
  return maps;
}

RunIdentity identity_of(const RunOptions& o, const LoadedPair& pair, const DataFiles& data,
                        const MapInputs& in, const PromptTemplates& prompts, const ProfileWork& work) {
  RunIdentity identity;
  identity.sender = pair.sender.identity;
  identity.receiver = pair.receiver.identity;
  identity.dtype = dtype_name(pair.receiver.model->dtype());
  identity.backend = pair.receiver.backend->name();
  identity.data = data.inputs;
  identity.fit_data = in.data.inputs;
  if (in.given) identity.maps = in.given->fingerprint();
  if (in.other) identity.other_maps = in.other->fingerprint();
  identity.prompts = {prompts.name() == "builtin" ? prompts.name()
                                                  : std::filesystem::path(prompts.name()).filename().string(),
                      prompts.sha256()};
  if (work.words) identity.words = work.words->sha256();
  identity.options = o.profile;
  identity.layers = pair.receiver.model->config().layers;
  identity.contexts = static_cast<int64_t>(work.contexts.size());
  return identity;
}

Status run_profile(RunOptions o) {
  DS_TRY(check_options(o));
  // What can fail at once comes before what takes time.
  DS_ASSIGN(PromptTemplates prompts, read_prompts(o.prompts, o.max_new_tokens));
  bool templated = false;
  DS_TRY(through_template(prompts, o.chat, o.pair, templated));
  DS_ASSIGN(DataFiles data, read_data(o.data, prompts));
  DS_TRY(check_max_new_tokens(prompts, data.sets));
  DS_ASSIGN(std::shared_ptr<const Jieba> words, load_words(data.sets, o.jieba));
  std::optional<Quality> other;
  if (!o.other.empty()) {
    DS_ASSIGN(other, Quality::read(o.other));
  }
  DS_ASSIGN(MapInputs map_inputs, read_map_inputs(o, prompts));
  DS_ASSIGN(LoadedPair pair, load_pair(o.pair));
  LoadedModel &receiver = pair.receiver, &sender = pair.sender;
  const ModelConfig& config = receiver.model->config();
  DS_TRY(check_maps(o, map_inputs, pair));
  if (other && other->layers != config.layers)
    return error(Code::kMismatch, "--compare-with: its pair has {} layers, this one {}", other->layers,
                 config.layers);
  // A budget gives up from the finest.
  if (o.granularity == "auto" && !o.within) o.profile.ways.granularity = default_granularity(config.layers);
  DS_ASSIGN(ProfileWork work, plan_work(data.sets, prompts, *receiver.tokenizer, config, o.profile));
  if (work.contexts.size() < 2) {
    o.profile.ways.other_document = false;
    DS_TRY(set_ways(work, config, o.profile.ways));
  }
  say_merged(work);
  if (!o.fit_data.empty()) {
    int64_t left_out = 0;
    DS_ASSIGN(work.fit, fit_contexts(map_inputs.data.sets, prompts, *receiver.tokenizer, config,
                                     o.profile.truncate, work.contexts, left_out));
    for (const auto& c : work.fit) work.fit_tokens += static_cast<int64_t>(c.size());
    if (left_out > 0)
      fmt::print(stderr, "{} contexts of --fit-data are scored as well; maps are not fitted on them\n",
                 left_out);
  }
  for (const ProfileContext& c : work.contexts)
    DS_TRY(check_sender_knows(pair, c.tokens, c.origins.front().item->where));
  for (const auto& c : work.fit) DS_TRY(check_sender_knows(pair, c, "a context to fit maps on"));
  work.limits.batch_rows = o.batch_rows;
  work.limits.shared_vocab = pair.shared_vocab;
  work.words = std::move(words);
  if (!o.within) say_cost(o, work, config, receiver.model->dtype());
  DS_ASSIGN(Pace pace, measure_pace(*receiver.backend, *receiver.model, work, o.profile.ways.align));
  DS_ASSIGN(const std::string given_up, keep_budget(o, pace, config, work));
  if (o.within) say_cost(o, work, config, receiver.model->dtype());
  TimeEstimate time = estimate_time(pace, work, config, o.profile.fit);
  say_time(o, pace, time);
  if (o.dry_run) {
    DS_ASSIGN(const std::vector<Offer> all, offers(o, pace, work, config));
    if (!o.json) {
      say_offers(all, o.profile.ways.granularity);
      return ok_status();
    }
    fmt::print("{}\n",
               cost_json(work, config, receiver.model->dtype(), o.profile.ways, time, all, given_up).dump(1));
    return ok_status();
  }

  DS_TRY(open_run(o.state, identity_of(o, pair, data, map_inputs, prompts, work)));
  DS_ASSIGN(RunMaps maps, prepare_maps(o, map_inputs, pair, data, time.fit_s, work));
  DS_ASSIGN(RunRecords before, read_records(o.state, work.ways.size()));
  for (const std::string& message : before.damaged) fmt::print(stderr, "computing it again: {}\n", message);
  work.seconds = time.context_s;
  double left = sum_of(work.seconds);
  for (const ContextRecord& r : before.records)
    if (r.index < static_cast<int64_t>(work.seconds.size()))
      left -= work.seconds[static_cast<size_t>(r.index)];
  if (!before.records.empty())
    fmt::print(stderr, "going on from '{}': {} of {} contexts are there; about {} to go\n", o.state,
               before.records.size(), work.contexts.size(), format_duration(left));
  std::vector<int32_t> ends = config.eos_token_ids;
  if (templated) {
    DS_ASSIGN(ends, with_turn_end(std::move(ends), *receiver.checkpoint, *receiver.tokenizer));
  }
  DS_ASSIGN(auto engine,
            ProfileEngine::create(*receiver.backend, *sender.model, *receiver.model, work.ways, work.limits,
                                  ends, maps.by_control(o.profile.ways.other_pair)));
  ProgressBar bar("profiling", left);
  std::optional<double> first;  // share of the work that was there
  int64_t begin = now_ns();
  DS_TRY(run_contexts(o.state, work, o.profile, *receiver.tokenizer, config.layers, *engine,
                      stop_on_interrupt(), [&](const RunProgress& p) {
                        constexpr double kParts = 1e6;
                        if (!first) first = p.share;
                        bar.update(static_cast<int64_t>(kParts * (p.share - *first)),
                                   static_cast<int64_t>(kParts * (1 - *first)));
                      }));
  bar.finish();
  double seconds = static_cast<double>(now_ns() - begin) / 1e9;
  DS_ASSIGN(Quality q, profile_of_runs({o.state}, other ? &*other : nullptr));
  if (!o.profile.ways.align.empty()) {
    const std::string& file = map_inputs.given ? o.maps : o.maps_out;
    q.maps.name = std::filesystem::path(file).filename().string();
    if (!map_inputs.given) DS_TRY(maps.own.write(file));
  }
  DS_TRY(write_file_atomically(o.out, q.to_text()));
  if (o.out != "-") say_result(q, work, engine->work(), seconds);
  return o.stats.empty() ? ok_status() : write_stats(o, engine->work(), seconds);
}

struct MergeOptions {
  std::vector<std::string> runs;
  std::string out, other;
};

Status run_merge(const MergeOptions& o) {
  std::optional<Quality> other;
  if (!o.other.empty()) {
    DS_ASSIGN(other, Quality::read(o.other));
  }
  DS_ASSIGN(Quality q, profile_of_runs(o.runs, other ? &*other : nullptr));
  if (!q.maps.fingerprint.empty()) {
    DS_ASSIGN(MapSet maps, MapSet::read(o.runs[0] + "/maps.safetensors"));
    const std::string file = maps_path_for(o.out);
    q.maps.name = std::filesystem::path(file).filename().string();
    DS_TRY(maps.write(file));
  }
  say_task_notes(q);
  return write_file_atomically(o.out, q.to_text());
}

}  // namespace

Action add_run(CLI::App& app) {
  auto o = std::make_shared<RunOptions>();
  add_pair_options(app, o->pair);
  app.add_option("--data", o->data,
                 "questions: JSON lines with LongBench's fields; several files are one profile");
  add_prompt_template_options(app, o->chat);
  app.add_option(
      "--prompts", o->prompts,
      "prompt templates by task (droidspeak.prompts), or LongBench's dataset2prompt.json; default: "
      "context + input");
  app.add_option("--max-new-tokens", o->max_new_tokens,
                 "most tokens of an answer: a number, or a file with one by task (LongBench's "
                 "dataset2maxlen.json); default: the templates' own");
  app.add_option("--jieba", o->jieba, kJiebaHelp);
  app.add_option("-o,--output", o->out, "quality.json to write; '-': stdout");
  app.add_option(
         "--granularity", o->granularity,
         "edges of groups are multiples of so many layers; auto: 1, and in models of more than 12 layers "
         "as many as leave 12 edges")
      ->capture_default_str();
  app.add_option(
         "--budget", o->budget,
         "a time, like 90s, 10min, 2h: what does not fit is given up in this order, as little as needed: "
         "scattered sets but one a size; granularity, down to 8 edges; controls; contexts, down to 30; "
         "granularity, down to 4 edges; contexts, down to 10. What is given by its own option stays")
      ->type_name("TIME");
  app.add_option(
         "--contexts", o->profile.most_contexts,
         "most contexts to read, in the order of --seed; those that maps are fitted on count where they "
         "are a share of --data; 0: all")
      ->check(CLI::Range(0, INT32_MAX));
  app.add_option("--truncate", o->profile.truncate,
                 "contexts of more tokens keep their first and last halves of this many")
      ->check(CLI::Range(int64_t{2}, int64_t{1} << 30));
  app.add_option(
      "--race", o->race,
      "drop groups while running that are beaten with this confidence (0.95) by one with no more layers");
  app.add_option("--race-round", o->profile.race_round, "contexts between two looks")
      ->capture_default_str()
      ->check(CLI::Range(5, 100'000));
  app.add_option("--select", o->select,
                 "shares of the tokens for token selection (CacheBlend); default 5% 10% 15% 20% 30% 50%");
  CLI::Option* scattered = app.add_option("--scattered", o->profile.ways.scattered,
                                          "random scattered sets for each number of layers")
                               ->capture_default_str()
                               ->check(CLI::Range(0, 1000));
  app.add_flag("--no-controls", o->no_controls,
               "only groups and restored layers: no scattered sets, selection, single layers, shuffled maps, "
               "first and last layers, nor the sender alone, the receiver without context or over another "
               "document's cache");
  app.add_option("--seed", o->profile.ways.seed, "of the order of contexts, scattered sets and splits")
      ->capture_default_str();
  app.add_option("--state", o->state,
                 "folder that keeps what is done; several processes with the same one share the run. "
                 "Default: OUTPUT.run");
  app.add_option("--compare-with", o->other,
                 "another pair's quality.json: its best groups are looked up here");
  app.add_option("--stats", o->stats, "write where the time went (JSON)");
  app.add_flag("--dry-run", o->dry_run,
               "state the cost and the time that it would take, also with other granularities, and end");
  app.add_flag("--json", o->json, "with --dry-run: as JSON");
  app.add_option("--batch-rows", o->batch_rows,
                 "rows of questions and answers computed at once; 0: as memory for 256 MiB of caches allows")
      ->capture_default_str()
      ->check(CLI::Range(0, 1 << 20));
  app.add_option("--align", o->forms,
                 "forms of maps that aligned ways are scored with: full, low-rank, diagonal")
      ->default_val(std::vector<std::string>{"full"});
  app.add_option(
      "--fit-data", o->fit_data,
      "fit the maps of aligned cuts on the contexts of these files (as --data; questions are not read)");
  app.add_option(
      "--fit-share", o->fit_share,
      "fit them on this share of the contexts of --data, which are then not scored. The default, with 25%");
  app.add_option("--maps", o->maps, "use these maps, from an earlier run or `ds-profile fit`, and fit none");
  app.add_option("--maps-out", o->maps_out,
                 "where to write the maps; default: OUTPUT with .maps.safetensors");
  app.add_option("--control-maps", o->other_maps, "another pair's maps: scored as a control");
  app.add_flag("--no-align", o->no_align, "no aligned cuts");
  add_align_options(app, o->align);
  app.add_option("--only", o->only, "only these groups and restored layers, like 7-10");
  return [o, scattered] {
    o->within = Budget{.scattered_given = scattered->count() > 0};
    return run_profile(*o);
  };
}

Action add_merge(CLI::App& app) {
  CLI::App* merge =
      app.add_subcommand("merge", "Make one profile of several finished runs of the same pair.");
  auto o = std::make_shared<MergeOptions>();
  merge->add_option("runs", o->runs, "run folders (--state)")->required();
  merge->add_option("-o,--output", o->out, "quality.json to write; '-': stdout")->required();
  merge->add_option("--compare-with", o->other,
                    "another pair's quality.json: its best groups are looked up here");
  merge->footer("Example:\n  ds-profile merge monday.json.run tuesday.json.run -o quality.json");
  return [o] { return run_merge(*o); };
}

}  // namespace ds
