// ds-profile without an action: answers a data set over every way and writes quality.json.
#include "tools/ds-profile/run.h"

#include <memory>

#include "support/clock.h"
#include "support/file.h"

namespace ds {
namespace {

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

}  // namespace

Action add_run(CLI::App& app) {
  auto o = std::make_shared<RunOptions>();
  const CLI::Option* scattered = add_run_options(app, *o);
  return [o, scattered] {
    o->within = Budget{.scattered_given = scattered->count() > 0};
    return run_profile(*o);
  };
}

}  // namespace ds
