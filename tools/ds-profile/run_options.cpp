// What a profiling run may be told.
#include <charconv>

#include "support/file.h"
#include "tools/ds-profile/run.h"

namespace ds {
namespace {

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

}  // namespace

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

CLI::Option* add_run_options(CLI::App& app, RunOptions& o) {
  add_pair_options(app, o.pair);
  app.add_option("--data", o.data,
                 "questions: JSON lines with LongBench's fields; several files are one profile");
  add_prompt_template_options(app, o.chat);
  app.add_option(
      "--prompts", o.prompts,
      "prompt templates by task (droidspeak.prompts), or LongBench's dataset2prompt.json; default: "
      "context + input");
  app.add_option("--max-new-tokens", o.max_new_tokens,
                 "most tokens of an answer: a number, or a file with one by task (LongBench's "
                 "dataset2maxlen.json); default: the templates' own");
  app.add_option("--jieba", o.jieba, kJiebaHelp);
  app.add_option("-o,--output", o.out, "quality.json to write; '-': stdout");
  app.add_option(
         "--granularity", o.granularity,
         "edges of groups are multiples of so many layers; auto: 1, and in models of more than 12 layers "
         "as many as leave 12 edges")
      ->capture_default_str();
  app.add_option(
         "--budget", o.budget,
         "a time, like 90s, 10min, 2h: what does not fit is given up in this order, as little as needed: "
         "scattered sets but one a size; granularity, down to 8 edges; controls; contexts, down to 30; "
         "granularity, down to 4 edges; contexts, down to 10. What is given by its own option stays")
      ->type_name("TIME");
  app.add_option(
         "--contexts", o.profile.most_contexts,
         "most contexts to read, in the order of --seed; those that maps are fitted on count where they "
         "are a share of --data; 0: all")
      ->check(CLI::Range(0, INT32_MAX));
  app.add_option("--truncate", o.profile.truncate,
                 "contexts of more tokens keep their first and last halves of this many")
      ->check(CLI::Range(int64_t{2}, int64_t{1} << 30));
  app.add_option(
      "--race", o.race,
      "drop groups while running that are beaten with this confidence (0.95) by one with no more layers");
  app.add_option("--race-round", o.profile.race_round, "contexts between two looks")
      ->capture_default_str()
      ->check(CLI::Range(5, 100'000));
  app.add_option("--select", o.select,
                 "shares of the tokens for token selection (CacheBlend); default 5% 10% 15% 20% 30% 50%");
  CLI::Option* scattered = app.add_option("--scattered", o.profile.ways.scattered,
                                          "random scattered sets for each number of layers")
                               ->capture_default_str()
                               ->check(CLI::Range(0, 1000));
  app.add_flag("--no-controls", o.no_controls,
               "only groups and restored layers: no scattered sets, selection, single layers, shuffled maps, "
               "first and last layers, nor the sender alone, the receiver without context or over another "
               "document's cache");
  app.add_option("--seed", o.profile.ways.seed, "of the order of contexts, scattered sets and splits")
      ->capture_default_str();
  app.add_option("--state", o.state,
                 "folder that keeps what is done; several processes with the same one share the run. "
                 "Default: OUTPUT.run");
  app.add_option("--compare-with", o.other,
                 "another pair's quality.json: its best groups are looked up here");
  app.add_option("--stats", o.stats, "write where the time went (JSON)");
  app.add_flag("--dry-run", o.dry_run,
               "state the cost and the time that it would take, also with other granularities, and end");
  app.add_flag("--json", o.json, "with --dry-run: as JSON");
  app.add_option("--batch-rows", o.batch_rows,
                 "rows of questions and answers computed at once; 0: as memory for 256 MiB of caches allows")
      ->capture_default_str()
      ->check(CLI::Range(0, 1 << 20));
  app.add_option("--align", o.forms,
                 "forms of maps that aligned ways are scored with: full, low-rank, diagonal")
      ->default_val(std::vector<std::string>{"full"});
  app.add_option(
      "--fit-data", o.fit_data,
      "fit the maps of aligned cuts on the contexts of these files (as --data; questions are not read)");
  app.add_option(
      "--fit-share", o.fit_share,
      "fit them on this share of the contexts of --data, which are then not scored. The default, with 25%");
  app.add_option("--maps", o.maps, "use these maps, from an earlier run or `ds-profile fit`, and fit none");
  app.add_option("--maps-out", o.maps_out, "where to write the maps; default: OUTPUT with .maps.safetensors");
  app.add_option("--control-maps", o.other_maps, "another pair's maps: scored as a control");
  app.add_flag("--no-align", o.no_align, "no aligned cuts");
  add_align_options(app, o.align);
  app.add_option("--only", o.only, "only these groups and restored layers, like 7-10");
  return scattered;
}

}  // namespace ds
