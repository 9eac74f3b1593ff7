// ds-profile without an action: answers a data set over every way and writes quality.json; and `merge`.
#include <filesystem>
#include <memory>

#include "profiler/profile_run.h"
#include "support/clock.h"
#include "tools/ds-profile/profile.h"
#include "tools/model_input.h"

namespace ds {
namespace {

struct RunOptions {
  std::string sender, receiver, out, prompts, state, other, stats;
  std::vector<std::string> data;
  ProfileOptions profile;
  std::vector<std::string> select;
  bool no_controls = false, dry_run = false;
  double race = 0;
  std::string dtype = "bf16", backend = "auto";
  int threads = 0;
  int64_t batch_rows = 0;
  WeightCacheOptions cache;
};

Status check_options(RunOptions& o) {
  auto needs = [](const std::string& value, const char* name, const char* what) -> Status {
    if (!value.empty()) return ok_status();
    return error(Code::kInvalidArgument, "{} is missing: {}; see ds-profile --help", name, what);
  };
  DS_TRY(needs(o.sender, "--sender", "the model whose caches are reused"));
  DS_TRY(needs(o.receiver, "--receiver", "the model that answers"));
  DS_TRY(needs(o.data.empty() ? "" : o.data[0], "--data", "questions to answer, JSON lines"));
  DS_TRY(needs(o.out, "-o", "quality.json to write"));
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
  if (o.no_controls) {
    w.select_shares.clear();
    w.scattered = 0;
    w.restore = w.reuse_only = w.sender_alone = false;
  }
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
      format_bytes(Engine::memory_bytes(config, dtype, work.ways, work.limits)));
  if (o.profile.race)
    fmt::print(
        stderr,
        "racing: groups that are beaten are dropped from context {} on; the risk that a best one is dropped "
        "is at most {:.0f} % (as far as means over contexts are normal)\n",
        o.profile.race_round, (1 - *o.profile.race) * 100);
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
  fmt::print("{:<16} {:>6}  {:>14}  {:>14}  {:>10}\n", "way", "layers", "score", "loss", "divergence");
  auto line = [&](const WayScore& w) {
    fmt::print("{:<16} {:>6}  {:>6.2f} ± {:<5.2f}  {:>6.2f} ± {:<5.2f}  {:>10.4f}\n", w.way.name(),
               w.way.recomputed(q.layers), w.score.value, w.score.standard_error, w.loss.value,
               w.loss.standard_error, w.divergence.value);
  };
  line(q.ways[0]);
  line(q.ways[1]);
  for (const std::string& name : q.pareto)
    for (const WayScore& w : q.ways)
      if (w.way.name() == name) line(w);
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

Status run_profile(RunOptions o) {
  DS_TRY(check_options(o));
  // What can fail at once comes before what takes time.
  PromptTemplates prompts = PromptTemplates::builtin();
  if (!o.prompts.empty()) {
    DS_ASSIGN(prompts, PromptTemplates::read(o.prompts));
  }
  std::vector<Dataset> data;
  RunIdentity identity;
  for (const std::string& path : o.data) {
    DS_ASSIGN(Dataset set, read_dataset(path, [&](std::string_view task) { return prompts.metric(task); }));
    identity.data.push_back({std::filesystem::path(path).filename().string(), set.sha256});
    data.push_back(std::move(set));
  }
  std::optional<Quality> other;
  if (!o.other.empty()) {
    DS_ASSIGN(other, Quality::read(o.other));
  }
  DS_ASSIGN(LoadedModel receiver, load_model(o.receiver, o.backend, o.threads, o.dtype, o.cache));
  DS_ASSIGN(LoadedModel sender,
            load_model(o.sender, o.backend, o.threads, o.dtype, o.cache, receiver.backend));
  const ModelConfig& config = receiver.model->config();
  DS_TRY(check_same_architecture(sender.model->config(), config, o.sender, o.receiver));
  if (!receiver.tokenizer)
    return error(Code::kNotFound, "'{}' has no tokenizer.json to read the data with", o.receiver);
  if (sender.identity.tokenizer != receiver.identity.tokenizer)
    return error(
        Code::kMismatch,
        "sender and receiver have different tokenizers (tokenizer.json of '{}' and '{}'): the same text "
        "would be other tokens, so that nothing can be reused",
        o.sender, o.receiver);
  if (other && other->layers != config.layers)
    return error(Code::kMismatch, "--compare-with: its pair has {} layers, this one {}", other->layers,
                 config.layers);
  DS_ASSIGN(ProfileWork work, plan_work(data, prompts, *receiver.tokenizer, config, o.profile));
  work.limits.batch_rows = o.batch_rows;
  say_cost(o, work, config, receiver.model->dtype());
  if (o.dry_run) return ok_status();

  identity.sender = sender.identity;
  identity.receiver = receiver.identity;
  identity.dtype = dtype_name(receiver.model->dtype());
  identity.backend = receiver.backend->name();
  identity.prompts = {prompts.name() == "builtin" ? prompts.name()
                                                  : std::filesystem::path(prompts.name()).filename().string(),
                      prompts.sha256()};
  identity.options = o.profile;
  identity.layers = config.layers;
  identity.contexts = static_cast<int64_t>(work.contexts.size());
  DS_TRY(open_run(o.state, identity));
  DS_ASSIGN(RunRecords before, read_records(o.state, work.ways.size()));
  for (const std::string& message : before.damaged) fmt::print(stderr, "computing it again: {}\n", message);
  if (!before.records.empty())
    fmt::print(stderr, "going on from '{}': {} of {} contexts are there\n", o.state, before.records.size(),
               work.contexts.size());
  DS_ASSIGN(auto engine, Engine::create(*receiver.backend, *sender.model, *receiver.model, work.ways,
                                        work.limits, config.eos_token_ids));
  ProgressBar bar("profiling");
  const auto first = static_cast<int64_t>(before.records.size());
  int64_t begin = now_ns();
  DS_TRY(run_contexts(o.state, work, o.profile, *receiver.tokenizer, config.layers, *engine,
                      stop_on_interrupt(),
                      [&](const RunProgress& p) { bar.update(p.done - first, p.total - first); }));
  bar.finish();
  double seconds = static_cast<double>(now_ns() - begin) / 1e9;
  DS_ASSIGN(Quality q, profile_of_runs({o.state}, other ? &*other : nullptr));
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
  return write_file_atomically(o.out, q.to_text());
}

}  // namespace

Action add_run(CLI::App& app) {
  auto o = std::make_shared<RunOptions>();
  app.add_option("--sender", o->sender, "the model whose caches are reused: a Hugging Face folder");
  app.add_option("--receiver", o->receiver, "the model that answers");
  app.add_option("--data", o->data,
                 "questions: JSON lines with LongBench's fields; several files are one profile");
  app.add_option("--prompts", o->prompts,
                 "prompt templates by task (droidspeak.prompts); default: context + input");
  app.add_option("-o,--output", o->out, "quality.json to write; '-': stdout");
  app.add_option("--granularity", o->profile.ways.granularity,
                 "edges of groups are multiples of so many layers")
      ->capture_default_str();
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
  app.add_option("--scattered", o->profile.ways.scattered, "random scattered sets for each number of layers")
      ->capture_default_str()
      ->check(CLI::Range(0, 1000));
  app.add_flag("--no-controls", o->no_controls,
               "only groups: no scattered sets, selection, restore, single layers, nor the sender alone");
  app.add_option("--seed", o->profile.ways.seed, "of the order of contexts, scattered sets and splits")
      ->capture_default_str();
  app.add_option("--state", o->state,
                 "folder that keeps what is done; several processes with the same one share the run. "
                 "Default: OUTPUT.run");
  app.add_option("--compare-with", o->other,
                 "another pair's quality.json: its best groups are looked up here");
  app.add_option("--stats", o->stats, "write where the time went (JSON)");
  app.add_flag("--dry-run", o->dry_run, "state the cost and end");
  app.add_option("--batch-rows", o->batch_rows,
                 "rows of questions and answers computed at once; 0: as memory for 256 MiB of caches allows")
      ->capture_default_str()
      ->check(CLI::Range(0, 1 << 20));
  app.add_option("--dtype", o->dtype, "bf16 or f32")->capture_default_str();
  app.add_option("--backend", o->backend, "cpu or auto")->capture_default_str();
  app.add_option("--threads", o->threads, "compute threads; 0: all cores")->capture_default_str();
  add_weight_cache_options(app, o->cache);
  return [o] { return run_profile(*o); };
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
