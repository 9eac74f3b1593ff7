// ds-calibrate: measures this machine's layer times for a model and writes machine.json for ds-compile.
#include <unistd.h>

#include "runtime/core/calibrate.h"
#include "support/file.h"
#include "tools/model_input.h"

using namespace ds;

int main(int argc, char** argv) {
  CLI::App app{"Measure what the layers of a model cost on this machine, for ds-compile --machine.",
               "ds-calibrate"};
  std::string model_dir, dtype = "bf16", backend = "auto", lengths = "256,1024", out;
  int64_t suffix = 16;
  double rtt_ms = 0;
  int threads = 0;
  WeightCacheOptions cache;
  app.add_option("--model", model_dir, "the receiver: a Hugging Face folder")->required();
  app.add_option("--context-lengths", lengths, "context lengths to measure, ascending")
      ->capture_default_str();
  app.add_option("--suffix-length", suffix, "tokens of a typical prompt")
      ->capture_default_str()
      ->check(CLI::Range(1, 65536));
  app.add_option("--link-rtt-ms", rtt_ms, "round trip of the link, as ds-run will be given it")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 60000.0));
  app.add_option("--dtype", dtype, "bf16 or f32")->capture_default_str();
  app.add_option("--backend", backend, "cpu or auto")->capture_default_str();
  app.add_option("--threads", threads, "compute threads; 0: all cores")->capture_default_str();
  add_weight_cache_options(app, cache);
  app.add_option("-o,--output", out, "machine.json to write; '-': stdout")->required();
  app.footer("Example:\n  ds-calibrate --model R/ --context-lengths 256,1024,4096 -o machine.json");
  return run_tool(app, argc, argv, [&]() -> Status {
    DS_ASSIGN(std::vector<int64_t> contexts, parse_int_list(lengths, 1, int64_t{1} << 24));
    DS_ASSIGN(LoadedModel loaded, load_model(model_dir, backend, threads, dtype, cache));
    ProgressBar bar("measuring");
    DS_ASSIGN(Calibration c, calibrate(*loaded.backend, *loaded.model, contexts, suffix,
                                       [&](int64_t done, int64_t total) { bar.update(done, total); }));
    bar.finish();
    nlohmann::ordered_json json = {
        {"schema", "droidspeak.machine"},
        {"version", 1},
        {"name", loaded.backend->description()},
        {"backend", loaded.backend->name()},
        {"dtype", dtype_name(loaded.model->dtype())},
        {"compute", {{"matmul_flops_per_s", c.matmul_flops}, {"op_overhead_ns", c.op_overhead_ns}}},
        // The look-up and the first read pay one round trip each before a byte of a tensor arrives.
        {"link", {{"rtt_ns", static_cast<int64_t>(2 * rtt_ms * 1e6)}}},
        {"head_ns", c.head_ns},
        {"layer_ns", nlohmann::ordered_json::array()}};
    for (const LayerTime& t : c.layers) {
      json["layer_ns"].push_back(
          {{"rows", t.rows}, {"query_rows", t.query_rows}, {"position", t.position}, {"ns", t.ns}});
    }
    DS_TRY(write_file_atomically(out, json.dump(2) + "\n"));
    if (out != "-") fmt::print(stderr, "wrote {} ({} measured points)\n", out, c.layers.size());
    return ok_status();
  });
}
