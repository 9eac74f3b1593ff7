// ds-bench kernels: how near each kind of kernel of one layer comes to what the machine can do: products and
// attention to one large matrix product, all others to reading memory.
#include <map>
#include <memory>

#include "plans/work.h"
#include "support/file.h"
#include "tools/ds-bench/bench.h"

namespace ds {
namespace {

struct KernelsOptions {
  RandomModelOptions model{.shape = "llama-8b", .repeats = 7};
  std::string rows = "1,64,1024,8192";
  int64_t context = 8192;
};

/// What one layer's kernels of a kind do for `rows` rows at the end of a context.
struct KernelWork {
  double flops = 0, bytes = 0;
};

/// Activations once in and once out where they are used, weights once; sums of a phase's kernels.
std::map<Phase, KernelWork> layer_kernels(const ModelConfig& c, int64_t rows, int64_t position,
                                          double element) {
  auto f = [](int64_t v) { return static_cast<double>(v); };
  const double r = f(rows), d = f(c.d_model), q = f(c.heads * c.head_dim), kv = f(c.kv_row()), ff = f(c.ff);
  auto product = [&](double in, double out) {
    return KernelWork{2 * r * in * out, (r * in + r * out + in * out) * element};
  };
  const double keys = f(position + rows);
  std::map<Phase, KernelWork> work;
  work[Phase::kNorm] = {0, 2 * 2 * r * d * element};  // two norms
  work[Phase::kQkv] = product(d, q + kv);
  work[Phase::kRope] = {0, 2 * r * (q + kv) * element};
  work[Phase::kAttention] = {layer_work(c.shape(), {position, rows, rows}).attention,
                             (2 * r * q + keys * kv) * element};
  work[Phase::kO] = product(q, d);
  work[Phase::kGateUp] = product(d, 2 * ff);
  work[Phase::kSwiglu] = {0, 3 * r * ff * element};
  work[Phase::kDown] = product(ff, d);
  work[Phase::kAlign] = product(d, d);
  work[Phase::kEmbed] = {0, 2 * r * d * element};
  return work;
}

AlignmentMap full_map(int64_t d) {
  AlignmentMap map;
  map.form = MapForm::kFull;
  map.bias.assign(static_cast<size_t>(d), 0.01f);
  uint32_t state = 1;
  for (int64_t i = 0; i < d * d; ++i) {
    state = state * 1664525u + 1013904223u;
    map.weight.push_back(static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f /
                         std::sqrt(static_cast<float>(d)));
  }
  return map;
}

Status bench_kernels(const KernelsOptions& options) {
  const RandomModelOptions& o = options.model;
  DS_ASSIGN(ModelConfig config, preset_config(o.shape));
  config.layers = std::min<int64_t>(config.layers, 4);  // enough that weights come from memory
  DS_ASSIGN(std::vector<int64_t> rows, parse_int_list(options.rows, 1, options.context));
  if (options.context > config.max_positions)
    return error(Code::kInvalidArgument, "--context {}: the model has {} positions", options.context,
                 config.max_positions);
  DS_ASSIGN(RandomModel loaded, load_random_model(o, config));
  auto& [backend, model, dtype] = loaded;
  const int64_t element = dtype_size(dtype), context = options.context;
  DS_ASSIGN(auto map, model->load_map(full_map(config.d_model)));
  DS_ASSIGN(auto workspace, model->make_workspace(context));
  DS_ASSIGN(auto stream, backend->make_stream(StreamKind::kCompute, 4 * config.layers + 8));
  DS_ASSIGN(auto hidden, backend->allocate(context * config.d_model * element));
  DS_ASSIGN(auto caches, backend->allocate(config.layers * context * config.kv_row() * element));
  const std::vector<int32_t> ids = scattered_ids(context, config.vocab);
  auto run = [&](int64_t count) -> Status {
    model->embed(*stream, ids.data(), count, hidden->data());
    for (int64_t l = 0; l < config.layers; ++l) {
      std::byte* cache = caches->data() + l * context * config.kv_row() * element;
      model->layer(*stream, *workspace, {l, hidden->data(), cache, context - count, count, count});
      model->align(*stream, *workspace, *map, hidden->data(), count);
    }
    return stream->synchronize();
  };
  DS_TRY(run(context));  // ordinary numbers in the caches

  std::map<int64_t, std::map<Phase, std::vector<double>>> times;  // ns of one layer's kernels
  std::vector<double> peaks, bandwidths;
  ProgressBar bar("measuring");
  int64_t done = 0;
  for (int r = -1; r < o.repeats; ++r) {  // interleaved with the bounds; the first round warms up
    DS_ASSIGN(double peak, backend->measure_matmul_flops(dtype));
    DS_ASSIGN(double bandwidth, backend->measure_read_bandwidth());
    if (r >= 0) peaks.push_back(peak), bandwidths.push_back(bandwidth);
    for (int64_t n : rows) {
      PhaseTimes phases;
      model->set_profile(&phases);
      DS_TRY(run(n));
      model->set_profile(nullptr);
      for (const auto& [phase, work] : layer_kernels(config, n, context - n, static_cast<double>(element))) {
        const double of = phase == Phase::kEmbed ? 1 : static_cast<double>(config.layers);
        if (r >= 0) times[n][phase].push_back(static_cast<double>(phases[phase]) / of);
      }
      bar.update(++done, static_cast<int64_t>(rows.size()) * (o.repeats + 1));
    }
  }
  bar.finish();
  const double peak = median(peaks), bandwidth = median(bandwidths);
  fmt::print(
      stderr,
      "{} {}, a context of {}, {}; one large matrix product: {:.1f} TFLOP/s; reading memory: {:.1f} GB/s\n",
      o.shape, o.dtype, context, backend->description(), peak / 1e12, bandwidth / 1e9);
  fmt::print(stderr, "{:>6} {:<16} {:>12} {:>12} {:>12} {:>12}\n", "rows", "kernels", "us a layer", "TFLOP/s",
             "GB/s", "of bound");
  nlohmann::ordered_json out = {{"shape", o.shape},           {"dtype", o.dtype},
                                {"context", context},         {"backend", backend->description()},
                                {"matmul_flops_per_s", peak}, {"read_bytes_per_s", bandwidth},
                                {"repeats", o.repeats},       {"kernels", nlohmann::json::array()}};
  for (int64_t n : rows) {
    for (const auto& [phase, work] : layer_kernels(config, n, context - n, static_cast<double>(element))) {
      const double ns = median(times[n][phase]);
      const double bound = std::max(work.flops / peak, work.bytes / bandwidth) * 1e9;
      const std::string_view name = kPhaseNames[static_cast<size_t>(phase)];
      fmt::print(stderr, "{:>6} {:<16} {:>12.2f} {:>12.2f} {:>12.1f} {:>11.0f}%\n", n, name, ns / 1e3,
                 work.flops / ns / 1e3, work.bytes / ns, 100 * bound / ns);
      out["kernels"].push_back({{"rows", n},
                                {"kernel", name},
                                {"ns", ns},
                                {"flops_per_s", work.flops / ns * 1e9},
                                {"bytes_per_s", work.bytes / ns * 1e9},
                                {"bound_ns", bound},
                                {"share", bound / ns}});
    }
  }
  return o.json.empty() ? ok_status() : write_file_atomically(o.json, out.dump(1) + "\n");
}

}  // namespace

Bench add_kernels(CLI::App& app) {
  auto o = std::make_shared<KernelsOptions>();
  CLI::App* cmd = app.add_subcommand(
      "kernels", "each kind of kernel of a layer against the matrix products' and the memory's speed");
  add_random_model(*cmd, o->model);
  cmd->add_option("--rows", o->rows, "rows of a call, at the end of the context")->capture_default_str();
  cmd->add_option("--context", o->context, "tokens")->capture_default_str()->check(CLI::Range(1, 1 << 24));
  return [o] { return bench_kernels(*o); };
}

}  // namespace ds
