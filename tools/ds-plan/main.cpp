// ds-plan: reads, checks, draws, compares, explains and simulates plan files.
#include "tools/ds-plan/actions.h"

int main(int argc, char** argv) {
  ds::PlanOptions o;
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
