// ds-bench prefill: tokens per second of a full prefill beside its FLOP bound.
#include <map>
#include <memory>

#include "plans/full_prefill.h"
#include "plans/work.h"
#include "runtime/core/session.h"
#include "support/file.h"
#include "tools/ds-bench/bench.h"
#include "tools/model_input.h"

namespace ds {
namespace {

/// Floating-point operations that a full prefill of n tokens needs: in the last layer K and V of all tokens,
/// the rest of the last one only.
double prefill_flops(const Shape& shape, int64_t n) {
  LayerWork whole = layer_work(shape, {0, n, n}), last = layer_work(shape, {0, n, 1});
  double head = 2.0 * static_cast<double>(shape.d_model) * static_cast<double>(shape.vocab);
  return static_cast<double>(shape.layers - 1) * (whole.matmul + whole.attention) + last.matmul +
         last.attention + head;
}

struct PrefillOptions {
  std::string shape = "llama-1b", lengths = "512,2048,4096", dtype = "bf16", backend = "auto", json;
  int threads = 0, repeats = 3;
};

Status bench_prefill(const PrefillOptions& o) {
  DS_ASSIGN(ModelConfig config, preset_config(o.shape));
  DS_ASSIGN(std::vector<int64_t> lengths, parse_int_list(o.lengths, 1, config.max_positions - 1));
  DS_ASSIGN(DType dtype, parse_dtype(o.dtype));
  DS_ASSIGN(auto backend, make_backend(o.backend, o.threads));
  std::unique_ptr<DeviceModel> model;
  {
    DS_ASSIGN(Checkpoint checkpoint, Checkpoint::random(config, 1));
    ProgressBar bar("loading " + o.shape);
    LoadOptions load{dtype, [&](int64_t done, int64_t total) { bar.update(done, total); }};
    DS_ASSIGN(model, backend->load(checkpoint, load));
  }
  Plan plan = full_prefill_plan({}, config.shape(), o.dtype);
  DS_ASSIGN(auto session, Session::create(*backend, *model, plan, {lengths.back() - 1, 1, 1}));
  DS_TRY(session->warm_up());
  std::vector<int32_t> ids(static_cast<size_t>(lengths.back()));
  for (size_t i = 0; i < ids.size(); ++i)
    ids[i] = static_cast<int32_t>((i * 7919 + 13) % static_cast<size_t>(config.vocab));

  std::map<int64_t, std::vector<double>> seconds;
  std::vector<double> peaks;
  ProgressBar bar("measuring");
  int64_t done = 0, total = static_cast<int64_t>(lengths.size()) * o.repeats;
  for (int r = 0; r < o.repeats; ++r) {
    for (int64_t n : lengths) {  // interleaved, with the bound measured beside each: a shared machine drifts
      DS_ASSIGN(double peak, backend->measure_matmul_flops(dtype));
      peaks.push_back(peak);
      Request request;
      request.context = std::span(ids).first(static_cast<size_t>(n - 1));
      request.suffix = std::span(ids).subspan(static_cast<size_t>(n - 1), 1);
      request.full_prefill = true;
      DS_ASSIGN(Answer answer, session->run(request));
      seconds[n].push_back(static_cast<double>(answer.ttft_ns) / 1e9);
      bar.update(++done, total);
    }
  }
  bar.finish();
  double peak = median(peaks);
  nlohmann::ordered_json out = {{"shape", o.shape},
                                {"dtype", o.dtype},
                                {"backend", backend->description()},
                                {"matmul_gflops", peak / 1e9},
                                {"repeats", o.repeats}};
  fmt::print(stderr, "{} {}, {}; one large matrix product: {:.0f} GFLOP/s\n", o.shape, o.dtype,
             backend->description(), peak / 1e9);
  fmt::print(stderr, "{:>8} {:>12} {:>12} {:>14} {:>8}\n", "tokens", "seconds", "tokens/s", "bound tokens/s",
             "share");
  for (int64_t n : lengths) {
    double s = median(seconds[n]), bound = prefill_flops(config.shape(), n) / peak;
    auto [low, high] = std::minmax_element(seconds[n].begin(), seconds[n].end());
    double tokens = static_cast<double>(n);
    fmt::print(stderr, "{:>8} {:>12.3f} {:>12.1f} {:>14.1f} {:>7.0f}%\n", n, s, tokens / s, tokens / bound,
               100 * bound / s);
    out["lengths"].push_back({{"tokens", n},
                              {"seconds", s},
                              {"seconds_min", *low},
                              {"seconds_max", *high},
                              {"tokens_per_second", tokens / s},
                              {"bound_tokens_per_second", tokens / bound},
                              {"share", bound / s}});
  }
  if (!o.json.empty()) DS_TRY(write_file_atomically(o.json, out.dump(2) + "\n"));
  return ok_status();
}

}  // namespace

Bench add_prefill(CLI::App& app) {
  auto o = std::make_shared<PrefillOptions>();
  CLI::App* cmd = app.add_subcommand("prefill", "tokens per second of a full prefill, random weights");
  cmd->add_option("--shape", o->shape, "llama-1b, llama-8b[:LAYERS], or llama:layers=12,d=1024,heads=16,kv=4")
      ->capture_default_str();
  cmd->add_option("--lengths", o->lengths, "tokens")->capture_default_str();
  cmd->add_option("--dtype", o->dtype, "bf16 or f32")->capture_default_str();
  cmd->add_option("--repeats", o->repeats, "runs of each length, interleaved; the median counts")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  cmd->add_option("--threads", o->threads, "0: all cores")->capture_default_str();
  cmd->add_option("--backend", o->backend, "cpu or auto")->capture_default_str();
  cmd->add_option("--json", o->json, "write figures to FILE; '-': stdout");
  return [o] { return bench_prefill(*o); };
}

}  // namespace ds
