// ds-bench make-plans: plans of a stated number of recomputed layers for a pair of random models, to be run
// by ds-bench plans on the machine that the profile was measured on.
#include <filesystem>

#include "support/file.h"
#include "tools/ds-bench/bench.h"
#include "tools/ds-bench/synthetic_pair.h"

namespace ds {
namespace {

struct MakePlansOptions {
  std::string shape = "llama-8b", machine, layers = "4,11,16", rates = "4Gb/s,10Gb/s,40Gb/s,100Gb/s", out;
  int64_t tokens = 8192, suffix = 64, chunks = 16;
};

/// The middle of the model, where profiles mostly find what is sensitive: there is a cut under it.
std::string middle_group(int64_t layers, int64_t count) {
  int64_t first = (layers - count) / 2;
  return fmt::format("{}-{}", first, first + count - 1);
}

Status make_plans(const MakePlansOptions& o) {
  DS_ASSIGN(ModelConfig config, preset_config(o.shape));
  DS_ASSIGN(std::vector<int64_t> counts, parse_int_list(o.layers, 1, config.layers));
  DS_ASSIGN(std::vector<int64_t> rates, parse_rate_list(o.rates));
  DS_ASSIGN(MachineModel machine, MachineModel::read(o.machine));
  DS_TRY(machine.check_shape(o.machine, config.shape()));
  CompileInputs inputs = synthetic_inputs(config, std::move(machine));
  inputs.quality.reset();
  std::error_code failed;
  std::filesystem::create_directories(o.out, failed);
  if (failed) return error(Code::kIo, "cannot make the folder '{}': {}", o.out, failed.message());
  ProgressBar bar("compiling");
  int64_t done = 0;
  for (int64_t count : counts) {
    for (int64_t rate : rates) {
      CompileOptions options;
      options.recompute = middle_group(config.layers, count);
      options.context_lengths = std::to_string(o.tokens);
      options.link_rates = fmt::format("{}B/s", rate);
      options.suffix_length = o.suffix;
      options.chunks = o.chunks;
      options.compiler_version = kVersion;
      std::string name = fmt::format("{}-of-{}-at-{}.dsplan", count, config.layers, rate);
      auto made = compile(inputs, options);
      if (!made.ok()) return made.status().with_context(name);
      DS_TRY(write_file_atomically(o.out + "/" + name, made->bytes));
      bar.update(++done, static_cast<int64_t>(counts.size() * rates.size()));
    }
  }
  bar.finish();
  fmt::print("{} plans for {} tokens of {} in '{}'\n", done, o.tokens, o.shape, o.out);
  return ok_status();
}

}  // namespace

Bench add_make_plans(CLI::App& app) {
  auto o = std::make_shared<MakePlansOptions>();
  CLI::App* cmd = app.add_subcommand(
      "make-plans", "plans of stated numbers of recomputed layers for a pair of random models");
  cmd->add_option("--shape", o->shape, "as for prefill")->capture_default_str();
  cmd->add_option("--machine", o->machine, "profile of the machine that will run them (ds-calibrate)")
      ->required();
  cmd->add_option("--layers", o->layers, "how many are recomputed; a plan each")->capture_default_str();
  cmd->add_option("--rates", o->rates, "of the link; a plan each")->capture_default_str();
  cmd->add_option("--tokens", o->tokens, "of the context")
      ->capture_default_str()
      ->check(CLI::Range(64, 1 << 24));
  cmd->add_option("--suffix", o->suffix, "tokens of the question")
      ->capture_default_str()
      ->check(CLI::Range(1, 1 << 20));
  cmd->add_option("--chunks", o->chunks, "most parts of the context")
      ->capture_default_str()
      ->check(CLI::Range(1, 4096));
  cmd->add_option("-o,--out", o->out, "folder for the plans")->required();
  return [o] { return make_plans(*o); };
}

}  // namespace ds
