// ds-plan: reads, checks, draws, compares, explains and simulates plan files.
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "plans/plan_file.h"
#include "plans/simulate.h"
#include "runtime/trace/draw.h"
#include "runtime/trace/explain.h"
#include "runtime/trace/plan_diff.h"
#include "runtime/trace/plan_json.h"
#include "runtime/trace/plan_text.h"
#include "support/file.h"
#include "support/hash.h"
#include "tools/tool.h"

// MLIR text needs the compiler; everything else works without it.
#if defined(DS_HAVE_COMPILER) && __has_include("compiler/emit/emit.h")
#define DS_PLAN_MLIR 1
#include "compiler/emit/emit.h"
#endif

namespace ds {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::string file, output = "-", format, variant, record;
  std::vector<std::string> files;
  bool json = false, all_ops = false, all = false;
  std::string link_rate;
  int64_t context_length = 0, suffix_length = 0, waiting = 0;
};

struct LoadedPlan {
  Plan plan;
  std::string path, sha256;
  int64_t bytes = 0;
};

Result<LoadedPlan> load(const std::string& path) {
  LoadedPlan loaded;
  loaded.path = path;
  Result<std::string> file = read_text_file(path, INT32_MAX);
  if (!file.ok()) return file.status().with_context("reading a plan");
  DS_ASSIGN(loaded.plan, parse_plan(std::as_bytes(std::span(file->data(), file->size())), path));
  loaded.sha256 = sha256_hex(*file);
  loaded.bytes = static_cast<int64_t>(file->size());
  return loaded;
}

Result<const Variant*> find_variant(const LoadedPlan& loaded, const std::string& name) {
  std::string names;
  for (const Variant& v : loaded.plan.variants) {
    if (v.name == name) return &v;
    names += "'" + v.name + "', ";
  }
  if (loaded.plan.full_prefill.name == name) return &loaded.plan.full_prefill;
  return error(Code::kInvalidArgument, "plan '{}' has no variant '{}'; it has {}'{}'", loaded.path, name,
               names, loaded.plan.full_prefill.name);
}

std::string json_text(const Json& json) {
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string drawn(const Picture& picture, const std::string& format) {
  return format == "svg"    ? draw_schedule_svg(picture)
         : format == "html" ? draw_schedule_html(picture)
                            : draw_schedule_chrome(picture);
}

/// --link-rate in bytes per second; 0: not given.
Result<int64_t> link_rate(const Options& o) {
  if (o.link_rate.empty()) return 0;
  DS_ASSIGN(double parsed, parse_rate(o.link_rate));
  if (parsed < 1) return error(Code::kInvalidArgument, "--link-rate {} is less than 1 B/s", o.link_rate);
  return static_cast<int64_t>(parsed);
}

/// What is not given is taken from where `base` is tuned.
OperatingPoint point_of(const Options& o, int64_t rate, const Variant& base) {
  return {o.context_length > 0 ? o.context_length : base.tuned_tokens,
          o.suffix_length > 0 ? o.suffix_length : base.tuned_suffix, rate > 0 ? rate : base.tuned_rate};
}

struct Selected {
  const Variant* variant;
  std::string why;
};
/// As the runtime selects.
Selected select(const Plan& plan, const OperatingPoint& at, int64_t waiting) {
  std::string where =
      fmt::format("{} tokens at {}", format_count(at.tokens), format_rate(static_cast<double>(at.rate)));
  if (waiting > 0) where += fmt::format(" while {} wait", format_count(waiting));
  if (const Variant* v = select_variant(plan, at.tokens, at.rate, waiting))
    return {v, "its ranges cover " + where};
  return {&plan.full_prefill, "no variant covers " + where + ": the fall-back"};
}

// --- dump -------------------------------------------------------------------------------------------------

Status dump(const Options& o) {
  if (o.json && !o.format.empty() && o.format != "json") {
    return error(Code::kInvalidArgument, "--json contradicts --format {}; give one of them", o.format);
  }
  std::string format = o.json ? "json" : o.format.empty() ? "text" : o.format;
  if (o.all_ops && format != "text") {
    return error(Code::kInvalidArgument, "--all-ops is for --format text only, not {}", format);
  }
  if (!o.variant.empty() && (format == "json" || format == "mlir")) {
    return error(Code::kInvalidArgument, "--variant does not go with --format {}, which shows the whole plan",
                 format);
  }
  DS_ASSIGN(LoadedPlan loaded, load(o.file));
  const Plan& plan = loaded.plan;
  const Variant* variant = nullptr;
  if (!o.variant.empty()) {
    DS_ASSIGN(variant, find_variant(loaded, o.variant));
  }
  if (format == "json") return write_file_atomically(o.output, json_text(plan_to_json(plan)));
  if (format == "mlir") {
#ifdef DS_PLAN_MLIR
    DS_ASSIGN(std::string text, plan_to_mlir(plan));
    return write_file_atomically(o.output, text);
#else
    return error(Code::kUnsupported,
                 "--format mlir needs the compiler, which this ds-plan was built without; build with "
                 "-DDS_COMPILER=ON, or use "
                 "--format text or json");
#endif
  }
  if (format == "text") {
    TextOptions text{o.file, loaded.bytes, loaded.sha256, variant};
    if (o.all_ops) text.max_ops = SIZE_MAX;
    return write_file_atomically(o.output, plan_to_text(plan, text));
  }
  if (variant == nullptr) variant = plan.variants.empty() ? &plan.full_prefill : &plan.variants[0];
  if (variant->makespan_ns == 0) {
    return error(Code::kInvalidArgument,
                 "variant '{}' has no predicted times, so that there is nothing to draw", variant->name);
  }
  return write_file_atomically(o.output, drawn({plan, *variant}, format));
}

// --- verify -----------------------------------------------------------------------------------------------

Status verify(const Options& o) {
  Json results = Json::array();
  Status first;
  size_t failed = 0;
  for (const std::string& path : o.files) {
    Result<LoadedPlan> loaded = load(path);
    Json result = {{"file", path}, {"ok", loaded.ok()}};
    if (loaded.ok()) {
      size_t ops = loaded->plan.full_prefill.ops.size();
      for (const Variant& v : loaded->plan.variants) ops += v.ops.size();
      result["format_version"] = loaded->plan.format_version;
      result["variants"] = loaded->plan.variants.size();
      result["ops"] = ops;
      if (!o.json) {
        fmt::print("{}: ok (format {}, {} variant(s) and the full prefill, {} ops)\n", path,
                   loaded->plan.format_version, loaded->plan.variants.size(),
                   format_count(static_cast<int64_t>(ops)));
      }
    } else {
      ++failed;
      result["error"] = code_name(loaded.status().code());
      result["message"] = loaded.status().message();
      if (!o.json && o.files.size() > 1) fmt::print(stderr, "{}\n", loaded.status().message());
      if (first.ok()) first = loaded.status();
    }
    results.push_back(std::move(result));
  }
  if (o.json) fmt::print("{}", json_text({{"ok", failed == 0}, {"files", results}}));
  if (failed > 0 && o.files.size() > 1) {
    return error(first.code(), "{} of {} plans are not valid", failed, o.files.size());
  }
  return first;
}

// --- simulate ---------------------------------------------------------------------------------------------

struct Simulated {
  const Variant* variant;
  std::string why;
  Simulation sim;
};

Json simulation_json(const Simulated& s) {
  Json streams = Json::array();
  for (const StreamUse& u : s.sim.streams) {
    streams.push_back({{"kind", stream_kind_name(u.kind)}, {"busy_ns", u.busy_ns}, {"idle_ns", u.idle_ns}});
  }
  return {{"variant", s.variant->name},
          {"policy", s.variant->policy},
          {"scheduler", s.variant->scheduler},
          {"selected_because", s.why},
          {"context_tokens", s.sim.point.tokens},
          {"suffix_tokens", s.sim.point.suffix},
          {"link_rate", s.sim.point.rate},
          {"at_tuned_point", s.sim.point == tuned_point(*s.variant)},
          {"ttft_ns", s.sim.ttft_ns},
          {"plan_makespan_ns", s.variant->makespan_ns},
          {"bytes", s.sim.bytes},
          {"streams", streams}};
}

Status simulate(const Options& o) {
  DS_ASSIGN(int64_t rate, link_rate(o));
  DS_ASSIGN(LoadedPlan loaded, load(o.file));
  const Plan& plan = loaded.plan;
  // What the runtime would choose; what is not given is taken from the first variant's tuned point.
  const Variant& any = plan.variants.empty() ? plan.full_prefill : plan.variants[0];
  bool free = o.link_rate.empty() && o.context_length == 0 && o.suffix_length == 0 && o.waiting == 0;
  std::vector<Simulated> chosen;
  if (!o.variant.empty()) {
    DS_ASSIGN(const Variant* v, find_variant(loaded, o.variant));
    chosen.push_back({v, "named by --variant", {}});
  } else if (free) {
    for (const Variant& v : plan.variants)
      chosen.push_back({&v, "all variants, each at its own tuned point", {}});
    chosen.push_back({&plan.full_prefill, "the fall-back, at its own tuned point", {}});
  } else {
    Selected selected = select(plan, point_of(o, rate, any), o.waiting);
    chosen.push_back({selected.variant, selected.why, {}});
    if (selected.variant != &plan.full_prefill)
      chosen.push_back({&plan.full_prefill, "the fall-back, for comparison", {}});
  }
  for (Simulated& s : chosen) {
    // Points that are not given come from the variant at hand when it stands for itself, else from the first
    // one, so that the fall-back is compared at the same length.
    const Variant& base = free || !o.variant.empty() ? *s.variant : any;
    OperatingPoint point = point_of(o, rate, base);
    // Without transfers the rate plays no part: keep the variant's own, so that its tuned point is
    // recognised.
    bool sends = std::any_of(s.variant->streams.begin(), s.variant->streams.end(),
                             [](const Stream& stream) { return stream.kind == StreamKind::kLink; });
    if (!sends && rate == 0) point.rate = s.variant->tuned_rate;
    DS_ASSIGN(s.sim, simulate_variant(plan, *s.variant, point));
  }
  if (o.json) {
    Json results = Json::array();
    for (const Simulated& s : chosen) results.push_back(simulation_json(s));
    return write_file_atomically("-", json_text({{"schema", "droidspeak.simulation"},
                                                 {"version", 1},
                                                 {"plan", o.file},
                                                 {"estimate", true},
                                                 {"results", results}}));
  }
  std::string text =
      "Estimate: the schedule is replayed op by op; transfers are scaled by bytes / rate, kernels by "
      "multiply-adds, both\n"
      "from the tuned point, where they are the plan's own. Fixed costs of small kernels are not modelled.\n";
  for (const Simulated& s : chosen) {
    const Variant& v = *s.variant;
    bool tuned = s.sim.point == tuned_point(v);
    text += fmt::format("\nvariant {} ({}, {}): {}\n", v.name, v.policy, v.scheduler, s.why);
    text += fmt::format("  at        {} context and {} suffix tokens{}{}\n", format_count(s.sim.point.tokens),
                        format_count(s.sim.point.suffix),
                        s.sim.bytes > 0 ? ", link " + format_rate(static_cast<double>(s.sim.point.rate)) : "",
                        tuned ? " (the tuned point)" : "");
    text += fmt::format("  TTFT      {}{}\n", format_ns(s.sim.ttft_ns),
                        tuned && s.sim.ttft_ns != v.makespan_ns
                            ? fmt::format(" (the plan says {}: some of its ops start later than they could)",
                                          format_ns(v.makespan_ns))
                            : std::string());
    if (s.sim.bytes > 0) text += fmt::format("  loaded    {}\n", format_bytes(s.sim.bytes));
    for (const StreamUse& u : s.sim.streams) {
      text += fmt::format("  {:<9} busy {:>9}, idle {:>9}  ({:.1f} % busy)\n", stream_kind_name(u.kind),
                          format_ns(u.busy_ns), format_ns(u.idle_ns),
                          s.sim.ttft_ns > 0
                              ? 100.0 * static_cast<double>(u.busy_ns) / static_cast<double>(s.sim.ttft_ns)
                              : 0.0);
    }
  }
  return write_file_atomically("-", text);
}

// --- explain ----------------------------------------------------------------------------------------------

/// Every variant in full; in text, what they have in common is not said again by each.
Status explain_all(const Options& o, const Plan& plan, int64_t rate) {
  std::vector<const Variant*> all;
  for (const Variant& v : plan.variants) all.push_back(&v);
  all.push_back(&plan.full_prefill);
  Json list = Json::array();
  std::string text;
  for (const Variant* v : all) {
    const OperatingPoint point = point_of(o, rate, *v);
    DS_ASSIGN(Explanation explanation, explain_variant(plan, *v, point));
    const std::string why = point == tuned_point(*v) ? "where it is tuned" : "at the point that was given";
    if (o.json) {
      list.push_back(explanation_json(explanation, why));
    } else {
      text += (text.empty() ? "" : "\n") + explanation_text(explanation, why, OthersShown::kNone);
    }
  }
  return write_file_atomically(
      "-",
      o.json ? json_text({{"schema", "droidspeak.explanations"}, {"version", 1}, {"variants", list}}) : text);
}

Status explain(const Options& o) {
  if (o.all && (!o.variant.empty() || o.waiting > 0))
    return error(Code::kInvalidArgument, "--all contradicts {}: it shows every variant",
                 o.variant.empty() ? "--waiting" : "--variant " + o.variant);
  DS_ASSIGN(int64_t rate, link_rate(o));
  DS_ASSIGN(LoadedPlan loaded, load(o.file));
  const Plan& plan = loaded.plan;
  if (o.all) return explain_all(o, plan, rate);
  const Variant& first = plan.variants.empty() ? plan.full_prefill : plan.variants[0];
  const bool point_given = rate > 0 || o.context_length > 0 || o.suffix_length > 0 || o.waiting > 0;
  if (plan.variants.size() > 1 && o.variant.empty() && !point_given && !o.json) {
    DS_ASSIGN(std::string text, explain_plan(plan, o.file));
    return write_file_atomically("-", text);
  }
  Selected chosen{&first, "the first of the plan, where it is tuned"};
  OperatingPoint point = point_of(o, rate, first);
  if (!o.variant.empty()) {
    DS_ASSIGN(chosen.variant, find_variant(loaded, o.variant));
    chosen.why = "named by --variant";
    point = point_of(o, rate, *chosen.variant);
  } else if (point_given) {
    chosen = select(plan, point, o.waiting);
  }
  DS_ASSIGN(Explanation explanation, explain_variant(plan, *chosen.variant, point));
  return write_file_atomically("-", o.json ? json_text(explanation_json(explanation, chosen.why))
                                           : explanation_text(explanation, chosen.why));
}

// --- diff -------------------------------------------------------------------------------------------------

Status diff(const Options& o, bool& differ) {
  DS_ASSIGN(LoadedPlan a, load(o.files[0]));
  DS_ASSIGN(LoadedPlan b, load(o.files[1]));
  std::vector<PlanChange> changes = diff_plans(a.plan, b.plan);
  differ = !changes.empty();
  if (!o.json) return write_file_atomically("-", plan_diff_text(changes));
  auto file = [](const LoadedPlan& l) { return Json{{"file", l.path}, {"sha256", l.sha256}}; };
  return write_file_atomically("-", json_text({{"schema", "droidspeak.plan_diff"},
                                               {"version", 1},
                                               {"same", changes.empty()},
                                               {"a", file(a)},
                                               {"b", file(b)},
                                               {"changes", plan_diff_json(changes)}}));
}

// --- trace ------------------------------------------------------------------------------------------------

Status trace(const Options& o) {
  DS_ASSIGN(LoadedPlan loaded, load(o.file));
  DS_ASSIGN(RunRecord record, read_run_record(o.record));
  if (!record.plan_sha256.empty() && record.plan_sha256 != loaded.sha256) {
    return error(
        Code::kMismatch,
        "run record '{}' is of the plan with SHA-256 {}..., but '{}' has {}...; give the plan that was run",
        o.record, record.plan_sha256.substr(0, 16), o.file, loaded.sha256.substr(0, 16));
  }
  Result<const Variant*> variant = find_variant(loaded, record.variant);
  if (!variant.ok()) {
    return error(
        Code::kMismatch,
        "run record '{}' is of variant '{}', which plan '{}' does not have; give the plan that was run",
        o.record, record.variant, o.file);
  }
  DS_TRY(check_record(**variant, record, o.record));
  return write_file_atomically(
      o.output, drawn({loaded.plan, **variant, &record}, o.format.empty() ? "html" : o.format));
}

}  // namespace
}  // namespace ds

int main(int argc, char** argv) {
  ds::Options o;
  CLI::App app("Shows, checks, explains, compares, simulates and draws plan files (.dsplan).", "ds-plan");
  app.require_subcommand(1);
  app.footer(R"x(Examples:
  ds-plan dump pair.dsplan                        what the plan does, for people
  ds-plan dump pair.dsplan --variant v1           the same for one of several variants
  ds-plan dump pair.dsplan --format svg -o a.svg  a picture of the schedule
  ds-plan verify plans/golden/*.dsplan            every rule of plans/README.md
  ds-plan explain pair.dsplan                     what bounds its time, and what would change that
  ds-plan diff old.dsplan new.dsplan              what changed, in words and bytes
  ds-plan simulate pair.dsplan --link-rate 20MB/s --context-length 4096
  ds-run ... --record run.jsonl && ds-plan trace --plan pair.dsplan --record run.jsonl -o run.html

Exit codes: 0 ok, 1 the plans differ (diff), 2 invalid argument, 3 not found, 4 corrupt, 5 mismatch, 6 unsupported, 8 i/o error.
'ds-plan COMMAND --help' tells more.)x");

  CLI::App* dump = app.add_subcommand("dump", "Print or draw a plan");
  dump->add_option("FILE", o.file, "plan file")->required();
  dump->add_option("--format", o.format, "text (default), json, mlir, svg, html or chrome (for Perfetto)")
      ->check(CLI::IsMember({"text", "json", "mlir", "svg", "html", "chrome"}));
  dump->add_flag("--json", o.json, "the same as --format json");
  dump->add_option("--variant", o.variant, "show this variant; default: the first");
  dump->add_flag("--all-ops", o.all_ops, "list every operation of a long variant (text)");
  dump->add_option("-o,--output", o.output, "file to write; default: stdout")->type_name("FILE");
  dump->footer(R"x(Examples:
  ds-plan dump pair.dsplan
  ds-plan dump pair.dsplan --format json | jq '.variants[0].promised_ttft_ns'
  ds-plan dump pair.dsplan --format chrome -o trace.json     open it at ui.perfetto.dev
  ds-plan dump pair.dsplan --variant full-prefill --format svg -o prefill.svg)x");

  CLI::App* verify = app.add_subcommand("verify", "Check plans against every rule; prints nothing else");
  verify->add_option("FILE", o.files, "plan files")->required();
  verify->add_flag("--json", o.json, "one object: {ok, files: [{file, ok, error, message}]}");
  verify->footer(R"x(Examples:
  ds-plan verify pair.dsplan
  ds-plan verify plans/golden/*.dsplan --json)x");

  CLI::App* simulate = app.add_subcommand("simulate", "Estimate the TTFT at another length or link rate");
  simulate->add_option("FILE", o.file, "plan file")->required();
  simulate->add_option("--link-rate", o.link_rate, "20MB/s, 8Gb/s; default: the rate the plan is tuned for");
  simulate->add_option("--context-length", o.context_length, "context tokens; default: the tuned length")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 32));
  simulate->add_option("--waiting", o.waiting, "other requests that wait, for the choice of the variant")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 32));
  simulate->add_option("--suffix-length", o.suffix_length, "suffix tokens; default: the tuned length")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 32));
  simulate->add_option("--variant", o.variant,
                       "take this variant; default: the one the runtime would select");
  simulate->add_flag("--json", o.json, "one object, times in nanoseconds");
  simulate->footer(R"x(Examples:
  ds-plan simulate pair.dsplan                      all variants, each at its tuned point
  ds-plan simulate pair.dsplan --link-rate 100MB/s  which variant would run, and how long it would take
  ds-plan simulate pair.dsplan --variant full-prefill --context-length 8192 --json

Durations are scaled from the tuned point: transfers by bytes / rate (what was predicted beyond that stays), kernels by
multiply-adds. At the tuned point the result is the plan's own.)x");

  CLI::App* explain = app.add_subcommand("explain", "Why a variant takes as long as it does");
  explain->add_option("FILE", o.file, "plan file")->required();
  explain->add_option("--variant", o.variant,
                      "this variant in full; default: as the runtime selects for the length, rate or waiting "
                      "requests that are given, else all of them in short");
  explain->add_flag("--all", o.all, "every variant in full");
  explain->add_option("--link-rate", o.link_rate, "20MB/s, 8Gb/s; default: the rate it is tuned for");
  explain
      ->add_option("--context-length,--tokens", o.context_length, "context tokens; default: the tuned length")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 32));
  explain->add_option("--suffix-length", o.suffix_length, "suffix tokens; default: the tuned length")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 32));
  explain->add_option("--waiting", o.waiting, "other requests that wait, for the choice of the variant")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 32));
  explain->add_flag(
      "--json", o.json,
      "one object, times in nanoseconds, with the critical path: of one variant (by default the "
      "first), or with --all a list of them");
  explain->footer(R"x(Examples:
  ds-plan explain pair.dsplan                                        all variants: what they share, what differs
  ds-plan explain pair.dsplan --variant v2                           one of them in full
  ds-plan explain pair.dsplan --context-length 8192 --link-rate 1Gb/s  what would run there, and why so long
  ds-plan explain pair.dsplan --variant v2 --json | jq .bound

In full it tells why this tiling was chosen and what the others would have cost; what the same request would cost by whatever else the plan holds; where the critical path (the operations that
decide the end) spends its time; how far the schedule is from its lower bound; and what twice the link or twice the compute
would bring. Of aligned cuts also what differs by who maps them: time, work for each request and for each entry, and what an entry
holds for several receivers. Away from the tuned point times are scaled as 'ds-plan simulate' does.)x");

  CLI::App* diff = app.add_subcommand("diff", "What differs between two plans");
  diff->add_option("FILES", o.files, "two plan files")->required()->expected(2);
  diff->add_flag("--json", o.json, "one object: {same, a, b, changes: [{where, field, a, b, text}]}");
  diff->footer(R"x(Examples:
  ds-plan diff old.dsplan new.dsplan
  ds-plan diff old.dsplan new.dsplan --json | jq -r '.changes[] | .where + ": " + .field'
  ds-plan diff old.dsplan new.dsplan >/dev/null && echo same

Variants are matched by their ranges of length, link rate and load, the others by name. Exit code 0: equal in every field
(nothing is printed); 1: they differ; above 1: an error.)x");

  CLI::App* trace = app.add_subcommand("trace", "Draw what a run measured beside what its plan predicted");
  trace->add_option("--plan", o.file, "plan file")->required();
  trace->add_option("--record", o.record, "run record, as ds-run --record writes it")->required();
  trace->add_option("--format", o.format, "html (default), svg or chrome (for Perfetto)")
      ->check(CLI::IsMember({"svg", "html", "chrome"}));
  trace->add_option("-o,--output", o.output, "file to write; default: stdout")->type_name("FILE");
  trace->footer(R"x(Examples:
  ds-plan trace --plan pair.dsplan --record run.jsonl -o run.html
  ds-plan trace --plan pair.dsplan --record run.jsonl --format chrome -o run.json

Ops are joined by their index. Where the run had another length or rate than the plan was tuned for, the prediction
is scaled to the run's (as ds-plan simulate does), and the picture says so.)x");

  bool differ = false;
  int code = ds::run_tool(app, argc, argv, [&]() -> ds::Status {
    if (dump->parsed()) return ds::dump(o);
    if (verify->parsed()) return ds::verify(o);
    if (simulate->parsed()) return ds::simulate(o);
    if (explain->parsed()) return ds::explain(o);
    if (diff->parsed()) return ds::diff(o, differ);
    return ds::trace(o);
  });
  return code == 0 && differ ? 1 : code;
}
