// ds-calibrate: measures this machine and a model's layers on it, and writes machine.json for ds-compile.
#include <unistd.h>

#include "runtime/core/calibrate.h"
#include "runtime/core/calibration_json.h"
#include "support/file.h"
#include "tools/host.h"
#include "tools/model_input.h"

using namespace ds;

namespace {

struct Options {
  std::string model_dir, shape, dtype = "bf16", lengths = "256,1024,4096", store, out;
  int64_t suffix = 16;
  double rtt_ms = 0, budget_s = 60;
  BackendFlags on;
  OpenOptions open;
  WeightCacheOptions cache;
};

Status run(const Options& o) {
  if (o.model_dir.empty() == o.shape.empty())
    return error(Code::kInvalidArgument, "give either --model DIR or --shape NAME");
  DS_TRY(check_open_options(o.open, {o.model_dir}));
  DS_ASSIGN(std::vector<int64_t> contexts, parse_int_list(o.lengths, 1, int64_t{1} << 24));
  DS_ASSIGN(LoadedModel loaded, o.shape.empty() ? load_model(o.model_dir, o.open, o.on, o.dtype, o.cache)
                                                : load_random_model(o.shape, o.on, o.dtype));
  DS_ASSIGN(std::vector<CallSize> grid, calibration_grid(loaded.model->config(), contexts, o.suffix));

  TemporaryFolder folder;
  std::string store_url = o.store;
  if (store_url.empty()) {
    DS_TRY(folder.make("ds-calibrate"));
    store_url = "file:" + folder.path;
  }
  DS_ASSIGN(auto store, open_store(store_url));

  CalibrationSubject subject{
      .name = loaded.backend->description(),
      .backend = std::string(loaded.backend->name()),
      .description = loaded.backend->description(),
      .cpu = cpu_name(),
      .kernel = kernel_name(),
      .threads = o.on.threads,
      .shape = loaded.model->config().shape(),
      .dtype = loaded.model->dtype(),
      .link_rtt_ns = 0,
      .options = fmt::format("{} {} lengths {} suffix {} store {}", kVersion,
                             o.shape.empty() ? loaded.identity.fingerprint : o.shape, o.lengths, o.suffix,
                             o.store.empty() ? "" : store->url())};
  if (!subject.cpu.empty()) subject.name = subject.cpu + "; " + subject.name;

  const bool to_file = o.out != "-";
  const std::string partial = o.out + ".partial";
  Calibration done;
  if (to_file && file_exists(partial)) {
    auto found = read_partial(partial, subject);
    if (found.ok()) {
      done = std::move(found).value();
      fmt::print(stderr, "going on from '{}': {} of {} points are there\n", partial, done.layers.size(),
                 grid.size());
    } else {
      fmt::print(stderr, "measuring from the beginning: {}\n", found.status().message());
    }
  }

  ProgressBar bar("measuring");
  auto written = std::chrono::steady_clock::now();
  CalibrationOptions options;
  options.contexts = contexts;
  options.suffix = o.suffix;
  options.budget_ns = static_cast<int64_t>(o.budget_s * 1e9);
  options.store = store.get();
  options.stop = &stop_on_interrupt();
  options.progress = [&](int64_t ns, int64_t total) { bar.update(ns, total); };
  options.measured = [&](const Calibration& c) -> Status {
    auto now = std::chrono::steady_clock::now();
    if (!to_file || now - written < std::chrono::seconds(2)) return ok_status();
    written = now;
    return write_file_atomically(partial, partial_json(subject, c));
  };
  DS_ASSIGN(Calibration c, calibrate(*loaded.backend, *loaded.model, options, std::move(done)));
  bar.finish();
  if (c.stopped) {
    if (!to_file)
      return error(Code::kInfeasible, "interrupted after {} of {} points", c.layers.size(), grid.size());
    DS_TRY(write_file_atomically(partial, partial_json(subject, c)));
    return error(
        Code::kInfeasible,
        "interrupted after {} of {} points; they are kept in '{}', and the same command goes on from "
        "there",
        c.layers.size(), grid.size(), partial);
  }
  // Opening the entry and reading its header take a round trip each; transfers are pipelined behind them.
  c.machine->lookup_ns += static_cast<int64_t>(2 * o.rtt_ms * 1e6);
  DS_TRY(write_file_atomically(o.out, machine_json(subject, c)));
  if (to_file) {
    unlink(partial.c_str());
    fmt::print(stderr, "wrote {} ({} points in {:.0f} s)\n", o.out, c.layers.size(),
               static_cast<double>(c.spent_ns) / 1e9);
  }
  if (c.disturbed_permille() > 150) {
    fmt::print(
        stderr,
        "the machine was up to {:.0f} % slower at times than at its best: other work runs on it, and times "
        "may come out too long; measure again when it is quiet, or with more --budget-s\n",
        static_cast<double>(c.disturbed_permille()) / 10);
  }
  if (!c.left_out.empty()) {
    auto dearest = std::max_element(c.left_out.begin(), c.left_out.end(), [](const auto& a, const auto& b) {
      return a.rows + a.position < b.rows + b.position;
    });
    fmt::print(
        stderr,
        "{} points did not fit into {:g} s (up to {} rows from position {}): times there are extrapolated; "
        "--budget-s gives more time\n",
        c.left_out.size(), o.budget_s, dearest->rows, dearest->position);
  }
  return ok_status();
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{
      "Measure what a model's layers, the store and the link cost on this machine, for ds-compile --machine.",
      "ds-calibrate"};
  Options o;
  app.add_option("--model", o.model_dir, "the receiver: a Hugging Face folder");
  app.add_option("--shape", o.shape,
                 "random weights instead: llama-1b, llama-8b[:LAYERS], or "
                 "llama:layers=12,d=1024,ff=2816,heads=16,kv=4,vocab=32000");
  app.add_option("--context-lengths", o.lengths, "context lengths that plans will see, ascending")
      ->capture_default_str();
  app.add_option("--suffix-length", o.suffix, "tokens of a typical prompt")
      ->capture_default_str()
      ->check(CLI::Range(1, 65536));
  app.add_option("--budget-s", o.budget_s,
                 "seconds to measure for, after loading; the dearest calls give way")
      ->capture_default_str()
      ->check(CLI::Range(1.0, 86400.0));
  app.add_option("--store", o.store,
                 "where an entry is written, read and removed again (file:DIR); default: a temporary folder");
  app.add_option("--link-rtt-ms", o.rtt_ms, "round trip of the link, as ds-run will be given it")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 60000.0));
  app.add_option("--dtype", o.dtype, "bf16 or f32")->capture_default_str();
  add_open_options(app, o.open);
  add_backend_flags(app, o.on);
  add_weight_cache_options(app, o.cache);
  app.add_option("-o,--output", o.out, "machine.json to write; '-': stdout")->required();
  app.footer(
      "Ctrl-C keeps what is measured in OUTPUT.partial; the same command goes on from there.\n\n"
      "Examples:\n"
      "  ds-calibrate --model R/ --context-lengths 256,1024,4096 -o machine.json\n"
      "  ds-calibrate --shape llama-8b:4 --context-lengths 1024,16384 --budget-s 180 -o machine-8b.json");
  return run_tool(app, argc, argv, [&] { return run(o); });
}
