// ds-bench compile: how long the compiler takes for a deep model, and how good its plan is.
#include <sys/resource.h>

#include <chrono>

#include "compiler/policy/policy.h"
#include "plans/plan_file.h"
#include "support/json.h"
#include "tools/ds-bench/bench.h"
#include "tools/ds-bench/synthetic_pair.h"
#include "tools/host.h"

namespace ds {
namespace {

struct CompileBenchOptions {
  int64_t layers = 80, chunks = 16, variants = 12;
  std::string machine, policy = "balanced", lengths = "1024,4096,16384", rates = "300kB/s,1MB/s,3MB/s", json;
  double slo_loss = 4;
  int repeats = 3;
};

double ms_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
}

/// Reading and verifying a plan file, median of many.
Result<double> load_ms(const std::string& bytes) {
  TemporaryFolder folder;
  DS_TRY(folder.make("ds-bench"));
  const std::string path = folder.path + "/plan.dsplan";
  DS_TRY(write_file_atomically(path, bytes));
  std::vector<double> times;
  for (int i = 0; i < 21; ++i) {
    auto begin = std::chrono::steady_clock::now();
    DS_ASSIGN([[maybe_unused]] Plan plan, read_plan(path));
    times.push_back(ms_since(begin));
  }
  return median(times);
}

Status bench_compile(const CompileBenchOptions& o) {
  // Llama-3-70B's shape, with as many layers as asked for.
  DS_ASSIGN(ModelConfig config, preset_config(fmt::format(
                                    "llama:layers={},d=8192,ff=28672,heads=64,kv=8,vocab=128256", o.layers)));
  std::optional<MachineModel> machine;
  if (!o.machine.empty()) {
    DS_ASSIGN(machine, MachineModel::read(o.machine));
    machine->shape.reset();  // measured on another shape; its points stand for this one's
  }
  CompileInputs inputs = synthetic_inputs(config, std::move(machine));
  CompileOptions options;
  options.policy = o.policy;
  DS_ASSIGN(const PolicyTraits* policy, find_policy(o.policy));
  if (policy->chooses) options.slo_loss = o.slo_loss;
  options.context_lengths = o.lengths;
  options.link_rates = o.rates;
  options.chunks = o.chunks;
  options.max_variants = o.variants;
  options.compiler_version = kVersion;

  CompileOutput out;
  std::vector<double> total, choose, lower, schedule, emit;
  ProgressBar bar("compiling");
  for (int r = 0; r < o.repeats; ++r) {
    auto begin = std::chrono::steady_clock::now();
    DS_ASSIGN(out, compile(inputs, options));
    total.push_back(ms_since(begin));
    auto ms = [](int64_t ns) { return static_cast<double>(ns) / 1e6; };
    choose.push_back(ms(out.times.choose_ns));
    lower.push_back(ms(out.times.lower_ns));
    schedule.push_back(ms(out.times.schedule_ns));
    emit.push_back(ms(out.times.emit_ns));
    bar.update(r + 1, o.repeats);
  }
  bar.finish();
  DS_ASSIGN(double load, load_ms(out.bytes));
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);

  nlohmann::ordered_json json = {{"layers", o.layers},
                                 {"most_chunks", o.chunks},
                                 {"policy", o.policy},
                                 {"repeats", o.repeats},
                                 {"total_ms", median(total)},
                                 {"choose_ms", median(choose)},
                                 {"lower_ms", median(lower)},
                                 {"schedule_ms", median(schedule)},
                                 {"emit_ms", median(emit)},
                                 {"plan_bytes", out.bytes.size()},
                                 {"load_and_verify_ms", load},
                                 {"peak_memory_bytes", int64_t{usage.ru_maxrss} * 1024},
                                 {"variants", nlohmann::json::array()}};
  // With the JSON on standard output the table is for people, elsewhere.
  FILE* to = o.json == "-" ? stderr : stdout;
  fmt::print(to, "{} layers, up to {} chunks, policy {}, median of {}\n", o.layers, o.chunks, o.policy,
             o.repeats);
  fmt::print(to, "{:<14} {:>8} {:>12} {:>7} {:>6} {:>12} {:>9}\n", "variant", "tokens", "link", "chunks",
             "ops", "TTFT", "gap");
  std::vector<const Variant*> variants{&out.plan->full_prefill};
  for (const Variant& v : out.plan->variants) variants.push_back(&v);
  double worst = 0;
  for (const Variant* v : variants) {
    double gap = static_cast<double>(v->makespan_ns) / static_cast<double>(v->lower_bound_ns) - 1;
    worst = std::max(worst, gap);
    fmt::print(to, "{:<14} {:>8} {:>12} {:>7} {:>6} {:>9.2f} ms {:>9}\n", v->name, v->tuned_tokens,
               format_rate(static_cast<double>(v->tuned_rate)), v->chunks, v->ops.size(),
               static_cast<double>(v->makespan_ns) / 1e6,
               v->proven_optimal ? "optimal" : fmt::format("{:.2f} %", 100 * gap));
    json["variants"].push_back({{"name", v->name},
                                {"tokens", v->tuned_tokens},
                                {"rate_bytes_per_s", v->tuned_rate},
                                {"chunks", v->chunks},
                                {"ops", v->ops.size()},
                                {"ttft_ns", v->makespan_ns},
                                {"lower_bound_ns", v->lower_bound_ns},
                                {"proven_optimal", v->proven_optimal},
                                {"gap", gap}});
  }
  json["worst_gap"] = worst;
  fmt::print(
      to,
      "compiled in {:.0f} ms: choosing {:.0f}, lowering {:.0f}, scheduling {:.0f}, writing {:.0f}; worst gap "
      "{:.2f} %\n",
      median(total), median(choose), median(lower), median(schedule), median(emit), 100 * worst);
  fmt::print(to, "plan {}, read and verified in {:.2f} ms; peak memory {}\n",
             format_bytes(static_cast<int64_t>(out.bytes.size())), load,
             format_bytes(int64_t{usage.ru_maxrss} * 1024));
  return o.json.empty() ? ok_status() : write_file_atomically(o.json, json.dump(2) + "\n");
}

}  // namespace

Bench add_compile(CLI::App& app) {
  auto o = std::make_shared<CompileBenchOptions>();
  CLI::App* cmd = app.add_subcommand(
      "compile",
      "the compiler's time, its plan's size and gap to the bound; Llama-3-70B's shape, no checkpoint");
  cmd->add_option("--layers", o->layers, "of the model")->capture_default_str()->check(CLI::Range(2, 10000));
  cmd->add_option("--chunks", o->chunks, "most parts of the context")->capture_default_str();
  cmd->add_option("--variants", o->variants, "most variants, as ds-compile --max-variants")
      ->capture_default_str();
  cmd->add_option("--policy", o->policy, "as ds-compile")->capture_default_str();
  cmd->add_option("--slo-loss", o->slo_loss, "points that may be lost, of the synthetic profile's 30")
      ->capture_default_str();
  cmd->add_option("--lengths", o->lengths, "of contexts")->capture_default_str();
  cmd->add_option("--link-rates", o->rates, "the stand-in breaks even at about 1 MB/s")
      ->capture_default_str();
  cmd->add_option("--machine", o->machine, "machine.json, whatever its shape; default: a stand-in");
  cmd->add_option("--repeats", o->repeats, "the median counts")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  cmd->add_option("--json", o->json, "write figures to FILE; '-': stdout");
  return [o] { return bench_compile(*o); };
}

}  // namespace ds
