// ds-bench attention: its arithmetic per second beside that of one large matrix product.
#include <map>
#include <memory>

#include "plans/work.h"
#include "support/file.h"
#include "tools/ds-bench/bench.h"

namespace ds {
namespace {

struct AttentionOptions {
  RandomModelOptions model;
  std::string lengths = "512,2048,4096";
};

Status bench_attention(const AttentionOptions& options) {
  const RandomModelOptions& o = options.model;
  DS_ASSIGN(ModelConfig config, preset_config(o.shape));
  DS_ASSIGN(std::vector<int64_t> lengths, parse_int_list(options.lengths, 1, config.max_positions));
  config.layers = 1;  // what attention costs does not depend on the layer, or on the vocabulary
  config.vocab = 64;
  DS_ASSIGN(RandomModel loaded, load_random_model(o, config));
  auto& [backend, model, dtype] = loaded;
  int64_t most = lengths.back(), element = dtype_size(dtype);
  DS_ASSIGN(auto workspace, model->make_workspace(most));
  DS_ASSIGN(auto stream, backend->make_stream(StreamKind::kCompute, 8));
  DS_ASSIGN(auto hidden, backend->allocate(most * config.d_model * element));
  DS_ASSIGN(auto cache, backend->allocate(most * config.kv_row() * element));
  std::vector<int32_t> ids = scattered_ids(most, config.vocab);

  struct Figures {
    std::vector<double> pack_ns, whole_ns;
  };
  std::map<int64_t, Figures> figures;
  std::vector<double> peaks;
  ProgressBar bar("measuring");
  int64_t done = 0, total = static_cast<int64_t>(lengths.size()) * (o.repeats + 1);
  for (int r = -1; r < o.repeats; ++r)  // interleaved; the first round warms up
    for (int64_t n : lengths) {
      DS_ASSIGN(double peak, backend->measure_matmul_flops(dtype));
      PhaseTimes times;
      model->set_profile(&times);
      model->embed(*stream, ids.data(), n, hidden->data());
      model->layer(*stream, *workspace, {0, hidden->data(), cache->data(), 0, n, n});
      DS_TRY(stream->synchronize());
      bar.update(++done, total);
      if (r < 0) continue;
      peaks.push_back(peak);
      double pack = static_cast<double>(times[Phase::kAttentionPack]);
      figures[n].pack_ns.push_back(pack);
      figures[n].whole_ns.push_back(pack + static_cast<double>(times[Phase::kAttention]));
    }
  bar.finish();
  double peak = median(peaks) / 1e9;
  nlohmann::ordered_json out = {{"shape", o.shape},      {"head_dim", config.head_dim},
                                {"dtype", o.dtype},      {"backend", backend->description()},
                                {"matmul_gflops", peak}, {"repeats", o.repeats}};
  fmt::print(stderr,
             "{} {}, {} query and {} kv heads of {}, {}; the bound is one large matrix product: {:.0f} "
             "GFLOP/s\n",
             o.shape, o.dtype, config.heads, config.kv_heads, config.head_dim, backend->description(), peak);
  fmt::print(stderr, "{:>8} {:>12} {:>12} {:>10} {:>8}\n", "tokens", "ms a layer", "of it pack", "GFLOP/s",
             "share");
  for (int64_t n : lengths) {
    double ns = median(figures[n].whole_ns), pack = median(figures[n].pack_ns);
    double gflops = layer_work(config.shape(), {0, n, n}).attention / ns;
    fmt::print(stderr, "{:>8} {:>12.2f} {:>12.2f} {:>10.0f} {:>7.0f}%\n", n, ns / 1e6, pack / 1e6, gflops,
               100 * gflops / peak);
    out["lengths"].push_back({{"tokens", n},
                              {"ms", ns / 1e6},
                              {"pack_ms", pack / 1e6},
                              {"gflops", gflops},
                              {"share", gflops / peak}});
  }
  if (!o.json.empty()) DS_TRY(write_file_atomically(o.json, out.dump(2) + "\n"));
  return ok_status();
}

}  // namespace

Bench add_attention(CLI::App& app) {
  auto o = std::make_shared<AttentionOptions>();
  CLI::App* cmd = app.add_subcommand("attention", "causal attention of one layer, all tokens at once");
  add_random_model(*cmd, o->model);
  cmd->add_option("--lengths", o->lengths, "tokens")->capture_default_str();
  return [o] { return bench_attention(*o); };
}

}  // namespace ds
